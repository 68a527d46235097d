//! The metrics of the fleet.

use std::fmt;
use std::sync::atomic::Ordering;

use super::families::Families;
use crate::control::fleet::{Counts, Handle};
use crate::turn::Instant;

/// The values of the fleet.
#[derive(Debug)]
pub(super) struct Fleet {
    is_connected: bool,
    nodes: u64,
    counts: Counts,
    queued: u64,
    sent: u64,
    dropped: u64,
}

impl Fleet {
    /// Reads the values; `None` without `[fleet]`.
    pub(super) fn read(handle: &Handle, now: Instant) -> Option<Self> {
        let view = handle.view.borrow();
        view.settings.as_ref()?;
        let of_stream = &handle.stream;
        Some(Self {
            is_connected: view.connection.borrow().is_up,
            nodes: view.nodes().live(now).count() as u64,
            counts: view.counts(),
            queued: of_stream.queued.load(Ordering::Relaxed),
            sent: of_stream.sent.load(Ordering::Relaxed),
            dropped: of_stream.dropped.load(Ordering::Relaxed),
        })
    }

    pub(super) fn write(&self, families: &mut Families<'_, '_>) -> fmt::Result {
        let Counts { connections, beats, failed_beats, orders, malformed, leases } = self.counts;
        let connected = u64::from(self.is_connected);
        families.gauge("fleet_connected", "1 while the engine of the fleet is connected", None, connected)?;
        families.counter("fleet_connections", "Connections to the engine that were made", connections)?;
        families.gauge("fleet_nodes", "Nodes of the fleet, with this one", None, self.nodes)?;
        families.counters(
            "fleet_heartbeats",
            "Heartbeats of this node, by whether the engine has stored them",
            None,
            "result",
            [("stored", beats), ("failed", failed_beats)],
        )?;
        families.counter("fleet_orders", "Orders that this node has carried out or refused", orders)?;
        families.counter("fleet_malformed_messages", "Messages of the fleet that could not be used", malformed)?;
        families.gauge("fleet_leases", "Users whose limits this node shares with others", None, leases)?;
        families.gauge("fleet_queued_events", "Events that wait for the engine", None, self.queued)?;
        families.counters(
            "fleet_events",
            "Events that the engine has acknowledged, and those that did not fit",
            None,
            "outcome",
            [("sent", self.sent), ("dropped", self.dropped)],
        )
    }
}
