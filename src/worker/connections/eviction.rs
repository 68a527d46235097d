//! Evictions at other workers.
//!
//! A worker that rejects a connection has no connection to evict. It asks the next worker, which evicts one or asks the
//! next. The client that was rejected can then connect.

use super::by_source::Source;
use crate::turn::QuotaExceeded;
use crate::worker::{Handle, Worker};

/// The request to evict a connection without an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eviction {
    /// The source that has as many connections as allowed; `None` if the server has.
    source: Option<Source>,
    /// The number of workers that can still be asked.
    left: usize,
}

/// The other workers. All workers form a ring.
#[derive(Clone, Debug)]
pub(crate) struct OtherWorkers {
    next: Handle,
    count: usize,
}

impl OtherWorkers {
    /// Returns the `count` other workers, of which `next` is the first.
    pub(crate) fn new(next: Handle, count: usize) -> Self {
        Self { next, count }
    }

    /// Asks for the eviction of one connection, because one from `source` was rejected.
    pub(super) fn ask_for_place(&self, source: Source, exceeded: QuotaExceeded) {
        let source = match exceeded {
            QuotaExceeded::User => Some(source),
            QuotaExceeded::Server => None,
        };
        self.ask_next(Eviction { source, left: self.count });
    }

    fn ask_next(&self, eviction: Eviction) {
        if let Some(left) = eviction.left.checked_sub(1) {
            self.next.evict(Eviction { left, ..eviction });
        }
    }
}

impl Worker {
    /// Evicts a connection for another worker, or asks the next one.
    pub(in crate::worker) fn evict_for_other(&self, eviction: Eviction) {
        let mut places = self.shell.connections.places.borrow_mut();
        let evicted = match eviction.source {
            Some(source) => places.evict_of(source),
            None => places.evict(),
        };
        if !evicted {
            self.shell.others.ask_next(eviction);
        }
    }
}
