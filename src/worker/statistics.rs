//! The counters of a worker. Only the worker writes them; other threads read them at any time.

use std::sync::atomic::{AtomicU64, Ordering};

use super::connections::{ConnectionCounters, ConnectionOutcome};
use crate::turn::{Counters, Direction, Outcome};

/// The counters and gauges of a worker. They have their own cache lines, so that writing them does not slow down other
/// workers.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Statistics {
    packets: [AtomicU64; Outcome::COUNT],
    bytes: [AtomicU64; 2],
    connections: [AtomicU64; ConnectionOutcome::COUNT],
    allocations: AtomicU64,
    routes: AtomicU64,
    publications: AtomicU64,
}

impl Default for Statistics {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            packets: std::array::from_fn(|_| zero()),
            bytes: std::array::from_fn(|_| zero()),
            connections: std::array::from_fn(|_| zero()),
            allocations: zero(),
            routes: zero(),
            publications: zero(),
        }
    }
}

/// The values of [`Statistics`] at one moment, of one worker or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Packets by outcome.
    pub(crate) packets: Counters,
    /// Application data that was sent to peers, in bytes.
    pub(crate) bytes_to_peers: u64,
    /// Application data that was sent to clients, in bytes.
    pub(crate) bytes_to_clients: u64,
    /// Connections by outcome.
    pub(crate) connections: ConnectionCounters,
    /// Allocations that exist.
    pub(crate) allocations: u64,
    /// Channels that exist and whose peers have permissions.
    pub(crate) routes: u64,
}

impl Totals {
    /// Adds the values of another worker.
    pub(crate) fn add(&mut self, other: &Self) {
        self.packets.add(&other.packets);
        self.bytes_to_peers += other.bytes_to_peers;
        self.bytes_to_clients += other.bytes_to_clients;
        self.connections.add(&other.connections);
        self.allocations += other.allocations;
        self.routes += other.routes;
    }
}

impl Statistics {
    /// Reads all values. Each is exact, but they may be read at slightly different times.
    #[must_use]
    pub(crate) fn read(&self) -> Totals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [to_peers, to_clients] = &self.bytes;
        Totals {
            packets: Counters::from(self.packets.each_ref().map(load)),
            bytes_to_peers: load(to_peers),
            bytes_to_clients: load(to_clients),
            connections: ConnectionCounters::from(self.connections.each_ref().map(load)),
            allocations: load(&self.allocations),
            routes: load(&self.routes),
        }
    }

    /// Returns a count that grows at least once per second while the event loop runs.
    #[must_use]
    pub(crate) fn heartbeat(&self) -> u64 {
        self.publications.load(Ordering::Relaxed)
    }

    #[expect(clippy::indexing_slicing, reason = "every index of an outcome is below COUNT, see Outcome's test")]
    pub(super) fn count(&self, outcome: Outcome, packets: u64) {
        add(&self.packets[outcome.index()], packets);
    }

    pub(super) fn count_bytes(&self, direction: Direction, bytes: u64) {
        let [to_peers, to_clients] = &self.bytes;
        add(if direction == Direction::ToPeers { to_peers } else { to_clients }, bytes);
    }

    #[expect(clippy::indexing_slicing, reason = "every index of an outcome is below COUNT, see its test")]
    pub(super) fn count_connection(&self, outcome: ConnectionOutcome, connections: u64) {
        add(&self.connections[outcome.index()], connections);
    }

    /// Publishes the gauges, and increments the [`heartbeat`](Self::heartbeat).
    pub(crate) fn publish(&self, allocations: usize, routes: usize) {
        set(&self.allocations, allocations as u64);
        set(&self.routes, routes as u64);
        add(&self.publications, 1);
    }
}

/// Adds to a counter that no other thread writes.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

fn set(gauge: &AtomicU64, value: u64) {
    gauge.store(value, Ordering::Relaxed);
}
