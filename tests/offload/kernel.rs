//! The program in the kernel: loads it, fills its maps, and runs it on single frames.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{TestRun as _, Xdp};
use aya::{Ebpf, EbpfLoader, TestRunOptions};
use nix::libc::EPERM;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use turnserver::offload::maps::Descriptors;

use crate::layout::{COUNTER, Counter, Direction, ENTRY, Entry, KEY, Outcome};

/// The index of the loopback interface, on which the frames of these tests arrive.
pub(crate) const OWN_INTERFACE: u32 = 1;
/// The number of interfaces whose link addresses the program knows. Each is at its index modulo this number.
pub(crate) const LINKS: u32 = 256;
/// The number of counters.
pub(crate) const SLOTS: u32 = 64;
/// The worker whose lease never ends. That of [`PAST_LEASE`] ended long ago, and others have none.
pub(crate) const LEASED: u8 = 200;
pub(crate) const PAST_LEASE: u8 = 201;
/// The room in front of a frame, without what the kernel uses for itself (`struct xdp_frame`).
pub(crate) const HEADROOM: usize = 256 - 40;

/// What the program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    Aborted,
    Drop,
    Pass,
    Transmit,
    Redirect,
}

/// The loaded program and its maps.
pub(crate) struct Kernel {
    bpf: Ebpf,
}

impl Kernel {
    /// Loads the program. Returns `None`, and skips the test, without the privilege.
    ///
    /// From here on, the thread runs on one CPU, because each CPU has counters of its own.
    pub(crate) fn load() -> Option<Self> {
        pin_to_cpu(0);
        match Self::try_load() {
            Ok(kernel) => Some(kernel),
            Err(error) if lacks_privilege(&*error) => {
                skip(&format!("no privilege to load a program: {error}"));
                None
            }
            Err(error) => panic!("the program cannot be loaded: {error}"),
        }
    }

    fn try_load() -> Result<Self, Box<dyn Error>> {
        let mut bpf = EbpfLoader::new()
            .map_max_entries("to_peer", 1024)
            .map_max_entries("to_client", 1024)
            .map_max_entries("counters", SLOTS)
            .load_file(object())?;
        for name in ["relay", "pass_all"] {
            let program: &mut Xdp = bpf.program_mut(name).ok_or("the object has no such program")?.try_into()?;
            program.load()?;
        }
        let mut kernel = Self { bpf };
        kernel.lease(LEASED, u64::MAX);
        kernel.lease(PAST_LEASE, 1);
        Ok(kernel)
    }

    /// Lets the entries of a worker be used until this time.
    pub(crate) fn lease(&mut self, worker: u8, until: u64) {
        let mut map: Array<_, u64> = Array::try_from(self.bpf.map_mut("lease").unwrap()).unwrap();
        map.set(worker.into(), until, 0).unwrap();
    }

    /// Notes the link address of an interface.
    pub(crate) fn link(&mut self, interface: u32, address: [u8; 6]) {
        let mut map: Array<_, [u8; 12]> = Array::try_from(self.bpf.map_mut("links").unwrap()).unwrap();
        let value = [&interface.to_le_bytes()[..], &address, &[0; 2]].concat();
        map.set(interface % LINKS, <[u8; 12]>::try_from(value).unwrap(), 0).unwrap();
    }

    /// Returns a program of the object.
    pub(crate) fn program(&mut self, name: &str) -> &mut Xdp {
        self.bpf.program_mut(name).unwrap().try_into().unwrap()
    }

    /// Inserts or replaces an entry.
    pub(crate) fn insert(&mut self, entry: &Entry) {
        self.insert_bytes(entry.direction, entry.key(), entry.value()).unwrap();
    }

    /// Inserts or replaces an entry, given as bytes.
    pub(crate) fn insert_bytes(
        &mut self,
        direction: Direction,
        key: [u8; KEY],
        value: [u8; ENTRY],
    ) -> Result<(), aya::maps::MapError> {
        self.entries(direction).insert(key, value, 0)
    }

    /// Removes an entry.
    pub(crate) fn remove(&mut self, entry: &Entry) {
        self.entries(entry.direction).remove(&entry.key()).unwrap();
    }

    /// Takes a map, for another thread. The program still uses it.
    pub(crate) fn take_entries(&mut self, direction: Direction) -> HashMap<MapData, [u8; KEY], [u8; ENTRY]> {
        HashMap::try_from(self.bpf.take_map(map_name(direction)).unwrap()).unwrap()
    }

    /// Returns descriptors of the maps.
    pub(crate) fn descriptors(&self) -> Descriptors<OwnedFd> {
        let descriptors = Descriptors::NAMES.try_map(|name| match self.bpf.map(name).unwrap() {
            Map::HashMap(map) | Map::PerCpuArray(map) | Map::Array(map) => map.fd().as_fd().try_clone_to_owned(),
            other => panic!("{other:?} is not such a map"),
        });
        descriptors.unwrap()
    }

    fn entries(&mut self, direction: Direction) -> HashMap<&mut MapData, [u8; KEY], [u8; ENTRY]> {
        HashMap::try_from(self.bpf.map_mut(map_name(direction)).unwrap()).unwrap()
    }

    /// Returns what a slot has counted on all CPUs.
    pub(crate) fn counter(&self, slot: u32) -> Counter {
        let map: PerCpuArray<_, [u8; COUNTER]> = PerCpuArray::try_from(self.bpf.map("counters").unwrap()).unwrap();
        map.get(&slot, 0).unwrap().iter().fold(Counter::default(), |sum, bytes| {
            let one = Counter::from_bytes(*bytes);
            Counter { packets: sum.packets + one.packets, bytes: sum.bytes + one.bytes, last: sum.last.max(one.last) }
        })
    }

    /// Returns how many packets with an entry had this outcome.
    pub(crate) fn outcome(&self, outcome: Outcome) -> u64 {
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(self.bpf.map("outcomes").unwrap()).unwrap();
        map.get(&(outcome as u32), 0).unwrap().iter().sum()
    }

    /// Runs the program on a frame. Returns the frame afterwards.
    pub(crate) fn run(&mut self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        self.run_with_metadata(0, frame)
    }

    /// Returns whether frames can leave the program too little headroom on this kernel: the metadata that a test run puts
    /// there has at most 32 bytes on old kernels.
    pub(crate) fn can_limit_headroom(&mut self) -> bool {
        let input = [0; HEADROOM + 60];
        let numbers = [HEADROOM, input.len(), 0, 0, 0, 0];
        let context: Vec<u8> =
            numbers.iter().flat_map(|number| u32::try_from(*number).unwrap().to_ne_bytes()).collect();
        let options = TestRunOptions { data_in: Some(&input), ctx_in: Some(&context), ..Default::default() };
        let can = self.program("pass_all").test_run(options).is_ok();
        assert!(can || is_linux_6_1(), "newer kernels accept such metadata");
        if !can {
            println!("skipped: frames with too little headroom, which this kernel cannot make");
        }
        can
    }

    /// Runs the program on a frame with `metadata` bytes in front of it, which leave less headroom.
    pub(crate) fn run_with_metadata(&mut self, metadata: usize, frame: &[u8]) -> (Verdict, Vec<u8>) {
        self.run_program("relay", metadata, frame)
    }

    /// Runs a program of the object.
    pub(crate) fn run_program(&mut self, program: &str, metadata: usize, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut input = vec![0xa5; metadata];
        input.extend_from_slice(frame);
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let numbers = [metadata, input.len(), 0, 0, 0, 0];
        let context: Vec<u8> =
            numbers.iter().flat_map(|number| u32::try_from(*number).unwrap().to_ne_bytes()).collect();
        let mut context_after = vec![0; context.len()];
        let mut output = vec![0; 4096];
        let result = self
            .program(program)
            .test_run(TestRunOptions {
                data_in: Some(&input),
                data_out: Some(&mut output),
                ctx_in: Some(&context),
                ctx_out: Some(&mut context_after),
                ..Default::default()
            })
            .unwrap();
        output.truncate(result.data_size_out as usize);
        let metadata_after = u32::from_ne_bytes(context_after[..4].try_into().unwrap()) as usize;
        assert_eq!(metadata_after, metadata, "the metadata stays in front of the frame");
        let frame = output.split_off(metadata);
        assert_eq!(output, input[..metadata], "the metadata stays the same");
        (verdict(result.return_value), frame)
    }

    /// Returns the mean duration of a run of `program` on a frame.
    pub(crate) fn time(&mut self, program: &str, frame: &[u8], repeat: u32) -> Duration {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..Default::default() };
        self.program(program).test_run(options).unwrap().duration
    }
}

fn map_name(direction: Direction) -> &'static str {
    match direction {
        Direction::ToPeer => "to_peer",
        Direction::ToClient => "to_client",
    }
}

fn verdict(value: u32) -> Verdict {
    match value {
        0 => Verdict::Aborted,
        1 => Verdict::Drop,
        2 => Verdict::Pass,
        3 => Verdict::Transmit,
        4 => Verdict::Redirect,
        other => panic!("{other} is not an XDP action"),
    }
}

/// The verifier rejects a program with `EACCES` or another error.
fn lacks_privilege(error: &(dyn Error + 'static)) -> bool {
    let chain = std::iter::successors(Some(error), |error| (*error).source());
    chain.filter_map(|error| error.downcast_ref::<io::Error>()).any(|error| error.raw_os_error() == Some(EPERM))
}

/// Binds this thread to the CPU of this index among those that it may use. Returns whether there is one.
pub(crate) fn pin_to_cpu(index: usize) -> bool {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let Some(cpu) = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()).nth(index) else { return false };
    let mut one = CpuSet::new();
    one.set(cpu).unwrap();
    sched_setaffinity(this, &one).unwrap();
    true
}

fn object() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/offload/relay.bpf.o")
}

/// Returns whether this is the kernel of Debian 12, whose tests `.ci/kernels` runs.
pub(crate) fn is_linux_6_1() -> bool {
    nix::sys::utsname::uname().unwrap().release().as_encoded_bytes().starts_with(b"6.1.")
}

/// Says why a test does not run. It fails the test if `REQUIRE_ALL_TESTS` is set, as in `.ci/run`.
pub(crate) fn skip(reason: &str) {
    let required = std::env::var_os("REQUIRE_ALL_TESTS").is_some();
    assert!(!required, "REQUIRE_ALL_TESTS is set, but this test cannot run: {reason}");
    println!("skipped: {reason}");
}
