//! What the workers share for the lifetime of the process. It has no locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::turn::rate::SharedBucket;
use crate::turn::shared::quota::Quota;
use crate::turn::shared::sources::Sources;
use crate::turn::shared::test_links::TestLinks;

/// Tables of atomic words. No reload replaces them.
#[derive(Debug)]
pub struct Ledger {
    /// The number of allocations, in total and per user, and the rate usage of users.
    pub quota: Arc<Quota>,
    /// The number of connections, in total and per source. A source is an IPv4 address or an IPv6 /64, as text.
    pub connections: Arc<Quota>,
    /// The limits on responses to each source, and what the source has proved.
    pub sources: Sources,
    /// What the credentials of test links may still relay.
    pub test_links: TestLinks,
    /// The look-ups in the user database.
    pub(crate) lookups: SharedBucket,
    draining: AtomicBool,
    room: usize,
    smallest_table: usize,
    connections_room: u32,
}

impl Ledger {
    /// Creates a ledger without allocations, with room for the users of `room` allocations. `connections` is the most
    /// connections, 0 for no limit. The keys come from a secure random source.
    #[must_use]
    pub fn new(room: usize, connections: u32, keys: [[u8; 32]; 2]) -> Self {
        Self::with_tables(room, connections, keys, Sources::default(), SMALLEST_TABLE)
    }

    /// Like [`new`](Self::new), with small tables, for tests that create many ledgers. They hold as much, but more
    /// sources share a row.
    #[must_use]
    pub fn with_small_tables(room: usize, connections: u32, keys: [[u8; 32]; 2]) -> Self {
        Self::with_tables(room, connections, keys, Sources::with_rows(1 << 8), 8)
    }

    fn with_tables(
        room: usize,
        connections: u32,
        [quota, connections_key]: [[u8; 32]; 2],
        sources: Sources,
        smallest_table: usize,
    ) -> Self {
        Self {
            quota: Arc::new(Quota::new(room, quota)),
            connections: Arc::new(Quota::new(room_for(connections), connections_key)),
            sources,
            test_links: TestLinks::default(),
            lookups: SharedBucket::new(0),
            draining: AtomicBool::new(false),
            room,
            smallest_table,
            connections_room: u32::try_from(room_for(connections)).unwrap_or(u32::MAX),
        }
    }

    /// Returns the number of allocations for which the tables have room.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// Returns the number of allocations for which the table of each worker has room.
    pub(crate) fn table_room(&self) -> usize {
        self.room.max(self.smallest_table)
    }

    /// Returns the number of connections whose sources the table has room for.
    pub(crate) fn connections_room(&self) -> u32 {
        self.connections_room
    }

    /// Whether new allocations are rejected because the process is about to end.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Begins or ends a drain.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }
}

/// The number of allocations that every table of a worker has room for: its size is fixed when the worker starts, and a
/// reload may add relay addresses and ports.
const SMALLEST_TABLE: usize = 1024;

/// The most connections that the table of sources has room for. A process has at most this many open files, unless the
/// system's `fs.nr_open` was raised.
const MOST_CONNECTIONS: u32 = 1 << 20;

/// The room if there is no limit: the server has no listener for connections, or the limit of open files is unknown.
const ROOM_WITHOUT_LIMIT: u32 = 1 << 16;

/// Returns the room in the table of sources for a limit on connections.
fn room_for(connections: u32) -> usize {
    if connections == 0 { ROOM_WITHOUT_LIMIT as usize } else { connections.min(MOST_CONNECTIONS) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_counted_up_to_the_limit_of_connections() {
        let ledger = Ledger::new(2, 50_000, [[7; 32], [8; 32]]);
        let admit = |source: u32| ledger.connections.admit(&source.to_string(), 1, 50_000);
        let tickets: Vec<_> = (0..50_000).map(|source| admit(source).unwrap()).collect();
        let uncounted = tickets.iter().enumerate().filter(|(source, ticket)| {
            ledger.connections.is_of(ticket.word(), &source.to_string())
                && ledger.connections.of_user(&source.to_string()) == 0
        });
        assert_eq!(uncounted.count(), 0);
    }
}
