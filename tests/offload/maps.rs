//! The maps as a worker uses them.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::thread;
use std::time::Duration;

use turnserver::clock::monotonic;
use turnserver::offload::maps::{Descriptors, LEASES, Maps, NotInserted};
use turnserver::offload::obstacle::NotLoaded;
use turnserver::offload::program::{Program, Sizes};

use crate::example::{all, entry, received};
use crate::frame::OWN_LINK_ADDRESS;
use crate::kernel::{Kernel, OWN_INTERFACE, SLOTS, Verdict, pin_to_cpu, skip};
use crate::layout::{Counter, Direction, Entry, Outcome};

const DATA: &[u8] = b"application data of some length, so that no frame is padded";
const SIZES: Sizes = Sizes { entries: 100, slots: 3000 };

/// Loads the program. Returns `None`, and skips the test, without the privilege.
pub(crate) fn load(sizes: Sizes) -> Option<Program> {
    match Program::load(sizes) {
        Ok(program) => Some(program),
        Err(NotLoaded::NotPermitted(confinement)) => {
            skip(&format!("this process may not load the program: {confinement}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn maps() -> Option<Maps> {
    Some(Maps::new(load(SIZES)?.descriptors().unwrap()).unwrap())
}

fn with_port(port: u16) -> Entry {
    let mut entry = entry(Direction::ToPeer, true, true);
    entry.received.source.set_port(port);
    entry
}

#[test]
fn a_full_map_is_an_error_and_has_room_after_a_removal() {
    let Some(mut maps) = maps() else { return };
    assert_eq!((maps.entries(), maps.slots()), (100, 3000));
    for port in 1..=100 {
        maps.insert(&with_port(port)).unwrap();
    }
    assert!(matches!(maps.insert(&with_port(101)), Err(NotInserted::Full)));
    // An entry that exists can be replaced.
    maps.insert(&with_port(50)).unwrap();
    assert!(maps.remove(Direction::ToPeer, &with_port(7).key()).unwrap());
    assert!(!maps.remove(Direction::ToPeer, &with_port(7).key()).unwrap());
    maps.insert(&with_port(101)).unwrap();
    // The other direction has a map of its own.
    maps.insert(&entry(Direction::ToClient, true, true)).unwrap();
}

#[test]
fn clearing_removes_all_entries_leases_and_counters() {
    let Some(mut kernel) = Kernel::load() else { return };
    let mut maps = Maps::new(kernel.descriptors()).unwrap();
    let mut frames = Vec::new();
    for (number, mut entry) in (0..).zip(all()) {
        entry.worker = number;
        maps.extend_lease(number, u64::MAX).unwrap();
        maps.insert(&entry).unwrap();
        let frame = received(&entry, DATA).bytes();
        assert_eq!(kernel.run(&frame).0, Verdict::Transmit, "{entry:?}");
        frames.push((entry, frame));
    }
    assert_eq!(kernel.counter(7).packets, frames.len() as u64);
    maps.clear().unwrap();
    assert_eq!(kernel.counter(7), Counter::default());
    let before = kernel.outcome(Outcome::NoLease);
    for (entry, frame) in &frames {
        assert_eq!(kernel.run(frame).0, Verdict::Pass, "{entry:?}");
        assert!(!maps.remove(entry.direction, &entry.key()).unwrap(), "it has gone");
        maps.insert(entry).unwrap();
        assert_eq!(kernel.run(frame).0, Verdict::Pass, "it has no lease: {entry:?}");
        // Entries that differ only in what is sent have the same key.
        assert!(maps.remove(entry.direction, &entry.key()).unwrap());
    }
    assert_eq!(kernel.outcome(Outcome::NoLease) - before, frames.len() as u64);
    assert_eq!(LEASES, 256);
}

#[test]
fn inserting_an_entry_notes_the_link_address_of_its_interface() {
    let Some(mut kernel) = Kernel::load() else { return };
    let mut maps = Maps::new(kernel.descriptors()).unwrap();
    let mut other = maps.try_clone().unwrap();
    let mut leaves = entry(Direction::ToPeer, true, true);
    (leaves.sent.interface, leaves.sent.link_source) = (OWN_INTERFACE + 1, [2, 0, 0, 0, 0, 9]);
    let mut returns = entry(Direction::ToClient, true, true);
    let mut frame = received(&leaves, DATA);
    maps.insert(&leaves).unwrap();
    assert_eq!(kernel.run(&frame.bytes()).0, Verdict::Pass, "the receiving interface is not known");
    maps.insert(&returns).unwrap();
    assert_eq!(kernel.run(&frame.bytes()).0, Verdict::Redirect);
    // Another worker sees another address, and this one again the first.
    frame.link_destination = [2, 0, 0, 0, 0, 7];
    assert_eq!(kernel.run(&frame.bytes()).0, Verdict::Pass);
    for (maps, address) in [(&mut other, frame.link_destination), (&mut maps, OWN_LINK_ADDRESS)] {
        (returns.sent.link_source, frame.link_destination) = (address, address);
        maps.insert(&returns).unwrap();
        assert_eq!(kernel.run(&frame.bytes()).0, Verdict::Redirect);
    }
    other.clear().unwrap();
    maps.insert(&leaves).unwrap();
    maps.extend_lease(leaves.worker, u64::MAX).unwrap();
    assert_eq!(kernel.run(&frame.bytes()).0, Verdict::Pass, "the address was cleared");
    maps.set_link_address(OWN_INTERFACE, OWN_LINK_ADDRESS).unwrap();
    assert_eq!(kernel.run(&frame.bytes()).0, Verdict::Redirect);
}

#[test]
fn counters_and_outcomes_are_the_sums_of_all_cpus() {
    let Some(kernel) = Kernel::load() else { return };
    let mut maps = Maps::new(kernel.descriptors()).unwrap();
    let kernel = std::sync::Mutex::new(kernel);
    let mut entry = entry(Direction::ToPeer, true, true);
    let frame = received(&entry, DATA).bytes();
    let mut last = 0;
    for slot in [0, 1, SLOTS - 1] {
        entry.slot = slot;
        maps.insert(&entry).unwrap();
        let cpus = (0..2).filter(|cpu| {
            thread::scope(|scope| {
                let run = || pin_to_cpu(*cpu) && kernel.lock().unwrap().run(&frame).0 == Verdict::Transmit;
                scope.spawn(run).join().unwrap()
            })
        });
        let packets = cpus.count() as u64;
        assert!(packets > 0);
        let mut counters = vec![Counter::default(); SLOTS as usize];
        maps.read_counters(0, &mut counters).unwrap();
        let counted = counters[slot as usize];
        assert_eq!((counted.packets, counted.bytes), (packets, packets * DATA.len() as u64));
        assert!(counted.last >= last && counted.last > 0);
        last = counted.last;
        // A range finds the same as the whole.
        let mut one = [Counter::default()];
        maps.read_counters(slot, &mut one).unwrap();
        assert_eq!(one, [counted]);
    }
    let mut counters = [Counter::default(); 2];
    assert!(maps.read_counters(SLOTS - 1, &mut counters).is_err(), "there is no such slot");
    assert!(maps.read_counters(SLOTS, &mut counters[..1]).is_err(), "there is no such slot");
    maps.read_counters(SLOTS, &mut []).unwrap();
    let relayed = kernel.lock().unwrap().outcome(Outcome::Relayed);
    assert!(relayed > 0);
    let outcomes = maps.read_outcomes().unwrap();
    assert_eq!(outcomes[Outcome::Relayed as usize], relayed);
    assert_eq!(outcomes.iter().sum::<u64>(), relayed);
}

#[test]
fn ranges_of_any_length_are_read_in_order() {
    let Some(program) = load(SIZES) else { return };
    let mut maps = Maps::new(program.descriptors().unwrap()).unwrap();
    // Each slot counts a number of its own.
    let data = aya::maps::MapData::from_fd(program.descriptors().unwrap().counters).unwrap();
    let mut writer: aya::maps::PerCpuArray<_, [u64; 3]> =
        aya::maps::PerCpuArray::try_from(aya::maps::Map::from_map_data(data).unwrap()).unwrap();
    let cpus = aya::util::nr_cpus().unwrap();
    for slot in 0..SIZES.slots {
        let words = [u64::from(slot), 2 * u64::from(slot), 3 * u64::from(slot)];
        writer.set(slot, vec![words; cpus].try_into().unwrap(), 0).unwrap();
    }
    for (first, length) in [(0, 3000), (0, 1), (2999, 1), (1, 1023), (1, 1024), (1, 1025), (976, 2024), (1500, 0)] {
        let mut counters = vec![Counter::default(); length];
        maps.read_counters(first, &mut counters).unwrap();
        for (slot, counter) in (u64::from(first)..).zip(&counters) {
            let expected = Counter { packets: cpus as u64 * slot, bytes: 2 * cpus as u64 * slot, last: 3 * slot };
            assert_eq!(*counter, expected, "slot {slot} of {length} from {first}");
        }
    }
}

#[test]
fn the_maps_of_another_program_are_not_used() {
    let Some(program) = load(SIZES) else { return };
    let descriptors = program.descriptors().unwrap();
    let duplicate = |fd: &std::os::fd::OwnedFd| fd.as_fd().try_clone_to_owned();
    for part in 0..6 {
        let mut wrong = descriptors.try_map(duplicate).unwrap();
        match part {
            0 => wrong.to_peer = duplicate(&descriptors.counters).unwrap(),
            1 => wrong.to_client = duplicate(&descriptors.lease).unwrap(),
            2 => wrong.counters = duplicate(&descriptors.outcomes).unwrap(),
            3 => wrong.outcomes = duplicate(&descriptors.lease).unwrap(),
            4 => wrong.lease = std::fs::File::open("/dev/null").unwrap().into(),
            _ => wrong.links = duplicate(&descriptors.lease).unwrap(),
        }
        let Err(error) = Maps::new(wrong) else { panic!("map {part} is not the right one") };
        let names = ["to_peer", "to_client", "counters", "outcomes", "lease", "links"];
        assert!(error.to_string().contains(names[part]), "{error}");
    }
    assert_eq!(Descriptors::NAMES.to_peer, "to_peer");
}

#[test]
fn a_program_with_too_large_maps_is_not_loaded() {
    let Some(_) = load(SIZES) else { return };
    let sizes = Sizes { entries: u32::MAX, slots: 1 };
    let error = Program::load(sizes).unwrap_err();
    assert!(matches!(error, NotLoaded::NoMemory { entries: u32::MAX, slots: 1 }), "{error}");
}

#[test]
#[ignore = "measures, and asserts nothing"]
fn cost_of_the_maps() {
    const ENTRIES: u16 = 20_000;
    let Some(program) = load(Sizes { entries: ENTRIES.into(), slots: 2 * u32::from(ENTRIES) }) else { return };
    let mut maps = Maps::new(program.descriptors().unwrap()).unwrap();
    for (name, fd, count) in [
        ("entry of one direction", &maps.descriptors().to_peer, u32::from(ENTRIES)),
        ("counter", &maps.descriptors().counters, 2 * u32::from(ENTRIES)),
    ] {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap().trim();
        println!("memory of a {name}: {} bytes", bytes.parse::<u32>().unwrap() / count);
    }
    let per =
        |name: &str, count: u32, time: Duration| println!("{name}: {:?} each, {time:?} for {count}", time / count);
    let entries: Vec<Entry> = (0..ENTRIES).map(with_port).collect();
    for (number, entries) in [(10_000_u32, &entries[..10_000]), (20_000, &entries[..])] {
        let start = monotonic();
        entries.iter().for_each(|entry| maps.insert(entry).unwrap());
        per("insert", number, monotonic() - start);
        let start = monotonic();
        entries.iter().for_each(|entry| maps.insert(entry).unwrap());
        per("replace", number, monotonic() - start);
        let start = monotonic();
        entries.iter().for_each(|entry| assert!(maps.remove(entry.direction, &entry.key()).unwrap()));
        per("remove", number, monotonic() - start);
    }
    entries.iter().for_each(|entry| maps.insert(entry).unwrap());
    let start = monotonic();
    maps.clear().unwrap();
    per("clear", ENTRIES.into(), monotonic() - start);
    for length in [1_u32, 64, 1024, 10_000, 40_000] {
        let mut counters = vec![Counter::default(); length as usize];
        maps.read_counters(0, &mut counters).unwrap();
        let start = monotonic();
        maps.read_counters(0, &mut counters).unwrap();
        per("read counters", length, monotonic() - start);
    }
    let start = monotonic();
    (0..1000).for_each(|_| _ = maps.read_outcomes().unwrap());
    per("read outcomes", 1000, monotonic() - start);
    let start = monotonic();
    (0..1000).for_each(|until| maps.extend_lease(1, until).unwrap());
    per("extend lease", 1000, monotonic() - start);
}
