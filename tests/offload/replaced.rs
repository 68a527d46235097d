//! Entries that are replaced while the program uses them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use aya::maps::MapData;

use crate::example::{entry, received, sent};
use crate::kernel::{Kernel, Verdict, pin_to_cpu, skip};
use crate::layout::{Direction, ENTRY, Entry, KEY, Outcome};

const RUNS: usize = 1_000_000;
const DATA: &[u8] = b"application data of some length, so that no frame is padded";

type Entries = aya::maps::HashMap<MapData, [u8; KEY], [u8; ENTRY]>;

/// The kernel gives the memory of a deleted entry to the next one at once.
#[test]
fn no_packet_is_sent_with_the_entry_of_another_channel() {
    let mut other = ours();
    other.received.source.set_port(1);
    let relayed = send_while(other, |map, old, new| {
        map.remove(&old.key()).unwrap();
        map.insert(new.key(), new.value(), 0).unwrap();
    });
    assert!(relayed.is_none_or(|[_, with_other]| with_other == 0));
}

/// An update writes the new entry to the memory of an earlier one.
#[test]
fn no_packet_is_sent_with_parts_of_two_entries_of_its_channel() {
    send_while(ours(), |map, _, new| map.insert(new.key(), new.value(), 0).unwrap());
}

/// Returns an entry for IPv6, which has no Identification. So all packets of an entry are equal.
fn ours() -> Entry {
    entry(Direction::ToPeer, false, false)
}

/// Sends packets of our entry while another thread replaces it by `other`, and that by ours. Asserts that each is sent
/// with one of them or passes. Returns how many were sent with each.
fn send_while(mut other: Entry, replace: impl Fn(&mut Entries, &Entry, &Entry) + Send) -> Option<[u64; 2]> {
    let stopped = AtomicBool::new(false);
    let (give, take) = mpsc::channel();
    thread::scope(|scope| {
        let ours = ours();
        other.sent.source.set_port(2);
        other.sent.destination = "[2001:db8:7::7]:7".parse().unwrap();
        other.sent.link_destination = [6; 6];
        let stopped = &stopped;
        // It begins before this thread is bound to a CPU, so that it can have another one.
        scope.spawn(move || {
            if !pin_to_cpu(1) {
                return skip("there is only one CPU");
            }
            let Ok(mut map): Result<Entries, _> = take.recv() else { return };
            while !stopped.load(Ordering::Relaxed) {
                for (old, new) in [(ours, other), (other, ours)] {
                    replace(&mut map, &old, &new);
                }
            }
        });
        let _stop = Stop(stopped);
        let Some(mut kernel) = Kernel::load() else {
            drop(give);
            return None;
        };
        kernel.insert(&ours);
        let expected = [ours, other].map(|entry| (Verdict::Transmit, sent(&kernel, &entry, DATA).bytes()));
        let frame = received(&ours, DATA).bytes();
        let passed = (Verdict::Pass, frame.clone());
        // It fails if the other thread has no CPU.
        let _ = give.send(kernel.take_entries(Direction::ToPeer));
        let mut relayed = [0; 2];
        for _ in 0..RUNS {
            let result = kernel.run(&frame);
            match expected.iter().position(|expected| *expected == result) {
                Some(entry) => relayed[entry] += 1,
                None => assert_eq!(result, passed),
            }
        }
        assert_eq!(kernel.outcome(Outcome::Relayed), relayed.iter().sum::<u64>());
        println!("{relayed:?} of {RUNS} relayed, {} replaced", kernel.outcome(Outcome::Replaced));
        Some(relayed)
    })
}

/// Stops the other thread, also if this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
