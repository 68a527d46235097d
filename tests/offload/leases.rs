//! The leases of the workers: a worker that has ended or stalled relays nothing.

use nix::time::{ClockId, clock_gettime};

use crate::example::{all, received};
use crate::kernel::{Kernel, LEASED, PAST_LEASE, Verdict};
use crate::layout::Outcome;

const DATA: &[u8] = b"application data of some length, so that no frame is padded";
/// The length of a lease in nanoseconds: more than one tick of the kernel.
const LEASE: u64 = 50_000_000;

/// Returns `CLOCK_MONOTONIC` in nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(time.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap()
}

#[test]
fn packets_of_a_worker_without_a_lease_pass() {
    let Some(mut kernel) = Kernel::load() else { return };
    for mut entry in all() {
        let frame = received(&entry, DATA).bytes();
        for worker in [0, 1, LEASED - 1, PAST_LEASE, 255] {
            entry.worker = worker;
            kernel.insert(&entry);
            let before = kernel.outcome(Outcome::NoLease);
            assert_eq!(kernel.run(&frame), (Verdict::Pass, frame.clone()), "worker {worker}");
            assert_eq!(kernel.outcome(Outcome::NoLease) - before, 1);
            assert_eq!(kernel.counter(entry.slot).packets, 0);
        }
        kernel.remove(&entry);
    }
}

#[test]
fn each_worker_has_its_own_lease() {
    let Some(mut kernel) = Kernel::load() else { return };
    let mut entry = all().next().unwrap();
    let frame = received(&entry, DATA).bytes();
    for worker in 0..=255 {
        entry.worker = worker;
        kernel.insert(&entry);
        kernel.lease(worker, 0);
        assert_eq!(kernel.run(&frame).0, Verdict::Pass, "worker {worker}");
        kernel.lease(worker, u64::MAX);
        assert_eq!(kernel.run(&frame).0, Verdict::Transmit, "worker {worker}");
        kernel.lease(worker, 0);
    }
}

#[test]
fn a_lease_that_is_not_extended_ends_by_itself() {
    let Some(mut kernel) = Kernel::load() else { return };
    let mut entry = all().next().unwrap();
    entry.worker = 3;
    kernel.insert(&entry);
    let frame = received(&entry, DATA).bytes();
    for _ in 0..2 {
        let until = now() + LEASE;
        kernel.lease(entry.worker, until);
        // The thread may be interrupted for longer than the lease.
        let mut verdicts = Vec::new();
        while verdicts.last() != Some(&Verdict::Pass) {
            let started = now();
            let verdict = kernel.run(&frame).0;
            assert!(verdict == Verdict::Transmit || now() >= until, "it is used before it ends");
            // The program's clock is that of the last tick, at most 10 ms ago.
            assert!(verdict == Verdict::Pass || started < until + 10_000_000, "it is used after it has ended");
            verdicts.push(verdict);
        }
    }
    assert!(kernel.outcome(Outcome::NoLease) >= 2);
}
