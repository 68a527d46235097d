//! What the credentials of test links may still relay.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::auth::TestLink;

/// What a datagram costs beside its data, in bytes: about its headers. Without this, empty ones would cost nothing.
const PER_DATAGRAM: u64 = 48;

/// The bytes that the users of each test link may still relay, over all workers and in both directions: application data,
/// and 48 bytes for each datagram.
#[derive(Debug)]
pub struct TestLinks([AtomicU64; TestLink::PLACES]);

impl Default for TestLinks {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; TestLink::PLACES])
    }
}

impl TestLinks {
    /// Lets the users of a link relay `bytes`.
    pub fn open(&self, link: TestLink, bytes: u64) {
        if let Some(left) = self.0.get(link.place()) {
            left.store(bytes, Ordering::Relaxed);
        }
    }

    /// Returns the bytes that the users of a link may still relay.
    #[must_use]
    pub fn left(&self, link: TestLink) -> u64 {
        self.0.get(link.place()).map_or(0, |left| left.load(Ordering::Relaxed))
    }

    /// Takes what a datagram with `bytes` of data costs, unless less is left.
    pub(crate) fn take_datagram(&self, link: TestLink, bytes: u64) -> bool {
        let cost = bytes.saturating_add(PER_DATAGRAM);
        let take = |left: &AtomicU64| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(cost)).is_ok()
        };
        self.0.get(link.place()).is_some_and(take)
    }

    /// Gives back the data of datagrams that were not sent. Their fixed costs remain.
    pub(crate) fn give_back(&self, link: TestLink, bytes: u64) {
        if let Some(left) = self.0.get(link.place()) {
            left.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}
