//! Loads the program, and attaches it to interfaces in native mode. Needs `CAP_BPF`, `CAP_NET_ADMIN` and
//! `CAP_PERFMON`.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapData};
use aya::programs::links::{FdLink, Link as _, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_obj::programs::XdpAttachType;
use nix::net::if_::if_nametoindex;

use super::maps::Descriptors;
use super::obstacle::{NotAttached, NotLoaded, errno};

/// `src/offload/build` makes it from `relay.bpf.c`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("relay.bpf.o");
/// The name of the program in the object.
const PROGRAM: &str = "relay";

/// The number of consecutive slots that a worker takes at a time.
pub const BLOCK: u32 = 64;

/// The sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The largest number of entries of each direction.
    pub entries: u32,
    /// The number of counters.
    pub slots: u32,
}

impl Sizes {
    /// Returns the sizes for this number of channels: an entry and a counter of each direction. Workers share the slots
    /// in blocks of 64, so each CPU gets one more for the slots of its worker that are free.
    #[must_use]
    pub fn for_channels(channels: u32) -> Self {
        let cpus = nr_cpus().ok().and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1);
        let blocks = channels.saturating_mul(2).div_ceil(BLOCK).saturating_add(cpus);
        Self { entries: channels, slots: blocks.min(u32::MAX / BLOCK) * BLOCK }
    }
}

/// The program in the kernel. Dropping it changes nothing while it is attached.
#[derive(Debug)]
pub struct Program {
    bpf: Ebpf,
}

/// The program on one interface. Dropping it detaches the program, unless it is pinned.
#[derive(Debug)]
pub struct Attachment(FdLink);

impl Program {
    /// Loads the program with empty maps of these sizes.
    ///
    /// # Errors
    /// Says why the kernel does not load it.
    pub fn load(sizes: Sizes) -> Result<Self, NotLoaded> {
        let Sizes { entries, slots } = sizes;
        Self::try_load(sizes).map_err(|error| NotLoaded::explain(&error, entries, slots))
    }

    fn try_load(sizes: Sizes) -> Result<Self, EbpfError> {
        let names = Descriptors::NAMES;
        let bpf = EbpfLoader::new()
            .map_max_entries(names.to_peer, sizes.entries)
            .map_max_entries(names.to_client, sizes.entries)
            .map_max_entries(names.counters, sizes.slots)
            .load(OBJECT)?;
        let mut program = Self { bpf };
        program.xdp()?.load()?;
        Ok(program)
    }

    /// Returns new descriptors of the maps.
    ///
    /// # Errors
    /// If the process has too many open files.
    pub fn descriptors(&self) -> io::Result<Descriptors<OwnedFd>> {
        Descriptors::NAMES.try_map(|name| self.map(name)?.fd().as_fd().try_clone_to_owned())
    }

    /// Attaches the program to an interface in native mode.
    ///
    /// # Errors
    /// Says why the interface does not take it. An interface with another program is not changed.
    pub fn attach(&mut self, interface: &str) -> Result<Attachment, NotAttached> {
        let xdp = self.xdp().map_err(|error| NotAttached::explain(&error, interface))?;
        attach(xdp, interface)
    }

    /// Pins the maps below a directory.
    pub(super) fn pin_maps(&self, directory: &Path) -> io::Result<()> {
        Descriptors::NAMES.try_map(|name| self.map(name)?.pin(directory.join(name)).map_err(io::Error::other)).map(drop)
    }

    /// Pins the program.
    pub(super) fn pin(&mut self, path: &Path) -> io::Result<()> {
        self.xdp().map_err(io::Error::other)?.pin(path).map_err(io::Error::other)
    }

    fn map(&self, name: &str) -> io::Result<&MapData> {
        match self.bpf.map(name) {
            Some(Map::HashMap(map) | Map::PerCpuArray(map) | Map::Array(map)) => Ok(map),
            _ => Err(io::Error::other(format!("the object has no map `{name}`"))),
        }
    }

    /// Returns the program as `aya` has it.
    pub(super) fn xdp(&mut self) -> Result<&mut Xdp, ProgramError> {
        self.bpf.program_mut(PROGRAM).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
    }
}

/// Attaches a program to an interface in native mode.
///
/// # Errors
/// Says why the interface does not take it. An interface with another program is not changed.
pub fn attach(xdp: &mut Xdp, interface: &str) -> Result<Attachment, NotAttached> {
    let index = if_nametoindex(interface).map_err(|_| NotAttached::NoInterface)?;
    let attached = xdp.attach_to_if_index(index, XdpMode::Driver).and_then(|link| xdp.take_link(link));
    let attached = attached.map_err(|error| NotAttached::explain(&error, interface))?;
    // If the kernel makes no link, `aya` attaches by netlink. That cannot be pinned, and would outlive this process. The
    // conversion below would forget it, and only `Debug` shows it before.
    if format!("{attached:?}").contains("NlLink") {
        attached.detach().map_err(|error| NotAttached::explain(&error, interface))?;
        let error = io::Error::other("the kernel attaches the program only without a link");
        return Err(NotAttached::explain(&error, interface));
    }
    FdLink::try_from(attached).map(Attachment).map_err(|error| NotAttached::explain(&error, interface))
}

/// Replaces the program of a pinned attachment by this one. No packet passes between them without a program.
pub(super) fn replace(xdp: &mut Xdp, attachment: PinnedLink) -> io::Result<()> {
    let link = XdpLink::try_from(FdLink::from(attachment)).map_err(io::Error::other)?;
    let replaced = xdp.attach_to_link(link).and_then(|link| xdp.take_link(link));
    // Dropping it closes the descriptor. The link stays pinned.
    replaced.map(drop).map_err(io::Error::other)
}

/// Opens a pinned program.
pub(super) fn open(path: &Path) -> io::Result<Xdp> {
    Xdp::from_pin(path, XdpAttachType::Interface).map_err(|error| match errno(&error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error),
    })
}

impl Attachment {
    /// Keeps the program attached for as long as the file exists.
    pub(super) fn pin(self, path: &Path) -> Result<(), NotAttached> {
        let pinned = self.0.pin(path).map(drop);
        pinned.map_err(|error| NotAttached::NotPinned { path: path.display().to_string(), error: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_two_counters_in_groups_of_64() {
        let slots = |channels| Sizes::for_channels(channels).slots;
        let of_cpus = slots(1) - 64;
        assert!(of_cpus >= 64 && of_cpus.is_multiple_of(64), "{of_cpus}");
        assert_eq!([32, 33, 16_384, 1_000_000].map(slots), [64, 128, 32_768, 2_000_000].map(|slots| slots + of_cpus));
        assert_eq!((slots(u32::MAX), Sizes::for_channels(33).entries), (4_294_967_232, 33));
    }
}
