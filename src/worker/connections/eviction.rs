//! Evictions at other workers.
//!
//! A worker that rejects a connection has no connection to evict. It asks the next worker, which evicts one or asks the
//! next. The client that was rejected can then connect.

use crate::by_source::Source;
use crate::turn::QuotaExceeded;
use crate::worker::{Handle, Worker};

/// A connection without an allocation to evict: one of a source, or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Eviction(Option<Source>);

impl Eviction {
    pub(super) fn of(source: Source) -> Self {
        Self(Some(source))
    }

    pub(super) fn in_all() -> Self {
        Self(None)
    }

    /// Returns what makes place for a connection from `source` that was rejected.
    pub(super) fn for_rejected(source: Source, exceeded: QuotaExceeded) -> Self {
        match exceeded {
            QuotaExceeded::User => Self::of(source),
            QuotaExceeded::Server => Self::in_all(),
        }
    }
}

/// A request to evict a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EvictionRequest {
    eviction: Eviction,
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

    pub(super) fn ask_for(&self, eviction: Eviction) {
        self.ask_next(EvictionRequest { eviction, left: self.count });
    }

    fn ask_next(&self, request: EvictionRequest) {
        if let Some(left) = request.left.checked_sub(1) {
            self.next.evict(EvictionRequest { left, ..request });
        }
    }
}

impl Worker {
    /// Evicts a connection for another worker, or asks the next one.
    pub(in crate::worker) fn evict_for_other(&self, request: EvictionRequest) {
        let mut places = self.shell.connections.places.borrow_mut();
        let evicted = match request.eviction {
            Eviction(Some(source)) => places.evict_of(source),
            Eviction(None) => places.evict(),
        };
        if !evicted {
            self.shell.others.ask_next(request);
        }
    }
}
