//! Entries that are replaced while the program uses them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::example::{entry, received, sent};
use crate::kernel::{Kernel, Verdict, pin_to_cpu, skip};
use crate::layout::{Direction, Outcome};

const RUNS: usize = 1_000_000;
const DATA: &[u8] = b"application data of some length, so that no frame is padded";

/// The kernel gives the memory of a deleted entry to the next one at once.
#[test]
fn no_packet_is_sent_with_the_entry_of_another_channel() {
    let stopped = AtomicBool::new(false);
    let (give, take) = mpsc::channel();
    thread::scope(|scope| {
        // IPv6 has no Identification, so all packets of an entry are equal.
        let ours = entry(Direction::ToPeer, false, false);
        let mut other = ours;
        other.received.source.set_port(1);
        other.sent.source.set_port(2);
        other.sent.destination = "[2001:db8:7::7]:7".parse().unwrap();
        other.sent.link_destination = [6; 6];
        let stopped = &stopped;
        // It begins before this thread is bound to a CPU, so that it can have another one.
        scope.spawn(move || {
            if !pin_to_cpu(1) {
                return skip("there is only one CPU");
            }
            let Ok(mut map): Result<aya::maps::HashMap<_, _, _>, _> = take.recv() else { return };
            while !stopped.load(Ordering::Relaxed) {
                for (old, new) in [(ours, other), (other, ours)] {
                    map.remove(&old.key()).unwrap();
                    map.insert(new.key(), new.value(), 0).unwrap();
                }
            }
        });
        let _stop = Stop(stopped);
        let Some(mut kernel) = Kernel::load() else { return drop(give) };
        kernel.insert(&ours);
        let expected = (Verdict::Transmit, sent(&kernel, &ours, DATA).bytes());
        let frame = received(&ours, DATA).bytes();
        let passed = (Verdict::Pass, frame.clone());
        // It fails if the other thread has no CPU.
        let _ = give.send(kernel.take_entries(Direction::ToPeer));
        let mut relayed = 0;
        for _ in 0..RUNS {
            let result = kernel.run(&frame);
            assert!(result == expected || result == passed, "{result:02x?}");
            relayed += u64::from(result == expected);
        }
        assert_eq!(kernel.outcome(Outcome::Relayed), relayed);
        println!("{relayed} of {RUNS} relayed, {} replaced", kernel.outcome(Outcome::Replaced));
    });
}

/// Stops the other thread, also if this one panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
