//! Why the program is not loaded or not attached, in words for the operator.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::path::Path;

use aya::util::KernelVersion;
use thiserror::Error;

/// The oldest version of Linux that has what the program needs.
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// No driver rejects XDP because of an MTU up to this.
const USUAL_MTU: u32 = 1500;

/// Why the program cannot be loaded.
#[derive(Debug, Error)]
pub enum NotLoaded {
    /// The process may not load programs.
    #[error("this process may not load an XDP program: {0}")]
    NotPermitted(Confinement),
    /// The kernel lacks something that the program uses.
    #[error("Linux {kernel} is too old: the offload needs Linux 5.15 or later")]
    TooOld {
        /// The release of the running kernel.
        kernel: String,
    },
    /// There is not enough memory for the maps.
    #[error(
        "the kernel has no memory for maps with {entries} entries in each direction and {slots} counters: lower the \
         limits on allocations and channels, or add memory"
    )]
    NoMemory {
        /// The size of each hash map.
        entries: u32,
        /// The number of counters.
        slots: u32,
    },
    /// Any other error.
    #[error("Linux {kernel} does not load the XDP program: {reason}. Please report this as a bug")]
    Rejected {
        /// The release of the running kernel.
        kernel: String,
        /// The error, with its causes.
        reason: String,
    },
}

/// Why the program is not attached to an interface.
#[derive(Debug, Error)]
pub enum NotAttached {
    /// There is no such interface in this network namespace.
    #[error("this machine has no interface of this name")]
    NoInterface,
    /// Another program is attached, and stays.
    #[error(
        "another XDP program is attached to it, and was not replaced (`ip link show` names it): detach that program, \
         or remove the interface from `offload.interfaces`"
    )]
    OtherProgram,
    /// The process may not attach programs.
    #[error("this process may not attach the XDP program: {0}")]
    NotPermitted(Confinement),
    /// The driver has no native XDP.
    #[error(
        "its {driver} does not run XDP programs, or not with its settings ({mtu}, LRO, GRO_HW or checksum offload: \
         `ethtool -k`)"
    )]
    NotSupported {
        /// The driver.
        driver: Driver,
        /// The MTU.
        mtu: Mtu,
    },
    /// A packet must fit into one page of memory.
    #[error("{mtu} is too large for XDP in its {driver}: lower it (1500 is never too large){reason}")]
    MtuTooLarge {
        /// The driver.
        driver: Driver,
        /// The MTU.
        mtu: Mtu,
        /// What the driver reported.
        reason: Reason,
    },
    /// The driver has no queues for the program.
    #[error(
        "its {driver} has no memory or too few transmit queues: XDP needs one more for each CPU (`ethtool -l` shows \
         them, `ethtool -L` changes them)"
    )]
    NoQueues {
        /// The driver.
        driver: Driver,
    },
    /// The link of the program cannot be kept.
    #[error("the program cannot be kept attached below {path}: {error}")]
    NotPinned {
        /// The path of the link.
        path: String,
        /// The error.
        error: String,
    },
    /// Any other error.
    #[error("its {driver} rejects the program{reason}")]
    Rejected {
        /// The driver.
        driver: Driver,
        /// The error, with its causes.
        reason: Reason,
    },
}

/// Why a process may not use BPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// It lacks a capability.
    Capabilities,
    /// It has the capabilities only in a user namespace, where they do not suffice.
    UserNamespace,
    /// It has the capabilities, but something else denies the system call.
    Sandbox,
}

/// The driver of an interface, if it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver(pub Option<String>);

/// The MTU of an interface in bytes, if it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(pub Option<u32>);

/// An error with its causes, if the kernel has given more than a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(pub String);

impl Display for Confinement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities => f.write_str(
                "it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, which `turnserver offload attach` has if root runs it",
            ),
            Self::UserNamespace => f.write_str(
                "it is in a container with a user namespace, whose capabilities do not suffice: attach the program on \
                 the host, or run without offload",
            ),
            Self::Sandbox => f.write_str(
                "it has the capabilities, but a sandbox or a security module denies the system call `bpf` (a unit of \
                 systemd needs `SystemCallFilter=bpf`)",
            ),
        }
    }
}

impl Display for Driver {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "driver `{name}`"),
            None => f.write_str("driver"),
        }
    }
}

impl Display for Mtu {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(mtu) => write!(f, "its MTU of {mtu}"),
            None => f.write_str("its MTU"),
        }
    }
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

impl NotLoaded {
    /// Explains an error of `aya` while it loads the maps and the program.
    pub(super) fn explain(error: &(dyn Error + 'static), entries: u32, slots: u32) -> Self {
        match errno(error) {
            Some(libc::EPERM) => Self::NotPermitted(Confinement::detect()),
            // The verifier rejects pointer arithmetic without CAP_PERFMON.
            Some(libc::EACCES) if Confinement::detect() == Confinement::Capabilities => {
                Self::NotPermitted(Confinement::Capabilities)
            }
            Some(libc::ENOMEM | libc::E2BIG) => Self::NoMemory { entries, slots },
            code => {
                let version = kernel_version();
                let kernel =
                    version.map_or_else(|| "(version unknown)".to_owned(), |(major, minor)| format!("{major}.{minor}"));
                if version.is_some_and(|version| version < OLDEST_KERNEL) || code == Some(libc::ENOSYS) {
                    Self::TooOld { kernel }
                } else {
                    Self::Rejected { kernel, reason: with_causes(error) }
                }
            }
        }
    }
}

impl NotAttached {
    /// Explains an error of `aya` while it attaches the program to an interface.
    pub(super) fn explain(error: &(dyn Error + 'static), interface: &str) -> Self {
        let (driver, mtu) = (Driver::of(interface), Mtu::of(interface));
        let reason = Reason(with_causes(error));
        match errno(error) {
            Some(libc::ENODEV | libc::ENXIO) => Self::NoInterface,
            Some(libc::EBUSY | libc::EEXIST) => Self::OtherProgram,
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted(Confinement::detect()),
            Some(libc::EOPNOTSUPP) => Self::NotSupported { driver, mtu },
            Some(libc::ERANGE | libc::E2BIG | libc::EFBIG | libc::EMSGSIZE) => {
                Self::MtuTooLarge { driver, mtu, reason: Reason(String::new()) }
            }
            Some(libc::EINVAL) if mtu.0.is_some_and(|mtu| mtu > USUAL_MTU) => Self::MtuTooLarge { driver, mtu, reason },
            Some(libc::ENOMEM | libc::ENOSPC) => Self::NoQueues { driver },
            _ => Self::Rejected { driver, reason },
        }
    }
}

impl Confinement {
    /// Returns the most likely reason for this process.
    fn detect() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = field.and_then(|field| u64::from_str_radix(field.trim(), 16).ok()).unwrap_or_default();
        if !suffice(capabilities) {
            Self::Capabilities
        } else if is_in_user_namespace() {
            Self::UserNamespace
        } else {
            Self::Sandbox
        }
    }
}

/// Returns whether these capabilities suffice to load and attach the program.
fn suffice(capabilities: u64) -> bool {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let has = |needed| capabilities & needed == needed;
    has(NET_ADMIN | SYS_ADMIN) || has(NET_ADMIN | PERFMON | BPF)
}

pub(super) fn is_in_user_namespace() -> bool {
    // The first user namespace maps all identifiers to themselves.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = map.split_whitespace().collect();
    !words.is_empty() && words != ["0", "0", "4294967295"]
}

impl Driver {
    /// Returns the driver of an interface of this network namespace.
    #[must_use]
    pub fn of(interface: &str) -> Self {
        let link = fs::read_link(attribute(interface, "device/driver")).ok();
        let name = link.and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()));
        let kind = || {
            let text = fs::read_to_string(attribute(interface, "uevent")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("DEVTYPE=").map(str::to_owned))
        };
        Self(name.or_else(kind))
    }
}

impl Mtu {
    fn of(interface: &str) -> Self {
        let text = fs::read_to_string(attribute(interface, "mtu")).ok();
        Self(text.and_then(|text| text.trim().parse().ok()))
    }
}

fn attribute(interface: &str, name: &str) -> std::path::PathBuf {
    Path::new("/sys/class/net").join(interface).join(name)
}

/// Returns the first two numbers of the version of the running kernel.
fn kernel_version() -> Option<(u32, u32)> {
    let code = KernelVersion::current().ok()?.code();
    Some((code >> 16, code >> 8 & 0xff))
}

/// Returns the number of the error of a system call among the causes.
pub(super) fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    chain(error).find_map(|cause| cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error))
}

/// Returns the texts of an error and of the causes that it does not include. Of a log of the verifier, the last lines.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in chain(error).skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [first, .., a, b, c, d] => [*first, "…", a, b, c, d].join(" "),
        few => few.join(" "),
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn loading_takes_three_capabilities_or_those_that_include_them() {
        assert!(suffice(u64::MAX));
        assert!(suffice(0x0000_00c0_0000_1000));
        assert!(suffice(0x0000_0000_0020_1000));
        for insufficient in [0, 0x1000, 0x0000_0080_0000_1000, 0x0000_00c0_0000_0000, 0x0020_0000] {
            assert!(!suffice(insufficient), "{insufficient:x}");
        }
    }

    #[test]
    fn each_error_of_a_driver_has_its_explanation() {
        let explain = |code| NotAttached::explain(&io::Error::from_raw_os_error(code), "no such interface").to_string();
        for (code, expected) in [
            (libc::ENODEV, "no interface of this name"),
            (libc::EBUSY, "another XDP program"),
            (libc::EEXIST, "another XDP program"),
            (libc::EPERM, "may not attach"),
            (libc::EOPNOTSUPP, "does not run XDP programs"),
            (libc::ERANGE, "too large"),
            (libc::ENOMEM, "too few transmit queues"),
            (libc::EINVAL, "rejects the program: Invalid argument"),
        ] {
            assert!(explain(code).contains(expected), "{}", explain(code));
        }
    }

    #[test]
    fn the_causes_of_an_error_are_not_repeated() {
        let error = SyscallError { call: "bpf", io_error: io::Error::from_raw_os_error(libc::EINVAL) };
        assert_eq!(with_causes(&error), "`bpf` failed: Invalid argument (os error 22)");
        assert_eq!(with_causes(&io::Error::other("one")), "one");
        let log = io::Error::other("first\n2\n3\n\n4\n5\n6\n");
        assert_eq!(with_causes(&log), "first … 3 4 5 6");
        assert_eq!(errno(&error), Some(libc::EINVAL));
    }
}
