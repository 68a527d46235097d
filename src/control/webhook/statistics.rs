//! What the thread of the webhook counts, for the metrics and the status.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Written by the thread `events`, and read by the HTTP server at any time.
#[derive(Debug, Default)]
pub(in crate::control) struct Statistics {
    pub(super) is_configured: AtomicBool,
    pub(super) queued: AtomicU64,
    pub(super) queued_bytes: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) succeeded: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) last_success: AtomicU64,
}

/// The numbers at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::control) struct Counts {
    /// Events that wait for the receiver, and their bytes.
    pub(in crate::control) queued: u64,
    pub(in crate::control) queued_bytes: u64,
    /// Events that the receiver has taken.
    pub(in crate::control) sent: u64,
    /// Requests by their result.
    pub(in crate::control) succeeded: u64,
    pub(in crate::control) failed: u64,
    /// Events that did not fit, whose sums are in one `events.lost`, and those that are damaged.
    pub(in crate::control) dropped: u64,
    /// Failed requests since the last one that succeeded.
    pub(in crate::control) failures: u64,
    /// When a request last succeeded, in seconds since the Unix epoch.
    pub(in crate::control) last_success: Option<u64>,
}

impl Statistics {
    /// Returns the numbers; `None` without `[webhook]`.
    pub(in crate::control) fn read(&self) -> Option<Counts> {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.is_configured.load(Ordering::Relaxed).then(|| Counts {
            queued: of(&self.queued),
            queued_bytes: of(&self.queued_bytes),
            sent: of(&self.sent),
            succeeded: of(&self.succeeded),
            failed: of(&self.failed),
            dropped: of(&self.dropped),
            failures: of(&self.failures),
            last_success: Some(of(&self.last_success)).filter(|time| *time > 0),
        })
    }
}
