//! What the core tells, as lines of the log.
//!
//! What a stranger can cause is written at most a few times a minute; the rest is counted and summed up.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::turn::{Deadline, Event, Instant, QuotaExceeded, RedirectCause};

/// How many lines of one kind are written in one [`WINDOW`].
const LINES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);

/// The longest name from the network that a line repeats, in characters.
const LONGEST_NAME: usize = 64;

/// Writes events to the log.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    failed_authentications: RateLimit,
    refused_allocations: RateLimit,
    redirected_allocations: RateLimit,
    old_channels: RateLimit,
    refused_connections: RateLimit,
    failed_accepts: RateLimit,
    /// Ranges whose refusal has been explained once.
    explained: BTreeSet<&'static str>,
}

impl EventLog {
    pub(super) fn log(&mut self, now: Instant, event: &Event) {
        match event {
            Event::AllocationCreated { user, tuple, relay, lifetime } => tracing::info!(
                user = &*printable(user), client = %tuple.client, server = %tuple.server, transport = %tuple.transport,
                %relay, lifetime, "allocation created"
            ),
            Event::AllocationEnded(ended) => tracing::info!(
                user = &*printable(&ended.user), client = %ended.tuple.client, relay = %ended.relay,
                reason = %ended.reason, duration = ended.duration.as_secs(), bytes_to_peers = ended.bytes_to_peers,
                bytes_to_client = ended.bytes_to_client, "allocation ended"
            ),
            Event::AuthenticationFailed { username, tuple, cause } => {
                if self.failed_authentications.admits(now) {
                    tracing::warn!(
                        username = &*printable(username), client = %tuple.client, reason = %cause,
                        "authentication failed"
                    );
                }
            }
            Event::AllocationRefused { user, tuple, limit } => {
                if self.refused_allocations.admits(now) {
                    tracing::warn!(user = &*printable(user), client = %tuple.client, limit, "allocation refused");
                }
            }
            Event::AllocationRedirected { user, tuple, server, cause: RedirectCause::Always } => {
                tracing::debug!(user = &*printable(user), client = %tuple.client, %server, "allocation redirected");
            }
            Event::AllocationRedirected { user, tuple, server, cause } => {
                if self.redirected_allocations.admits(now) {
                    tracing::info!(
                        user = &*printable(user), client = %tuple.client, %server, reason = %cause,
                        "allocation redirected"
                    );
                }
            }
            Event::Rfc5766Channel { user, tuple, number } => {
                if self.old_channels.admits(now) {
                    tracing::warn!(
                        user = &*printable(user), client = %tuple.client, channel = format_args!("{number:#06x}"),
                        "channel refused: RFC 8656 allows 0x4000 to 0x4fff; compat.rfc5766-channels = true admits \
                         this client's"
                    );
                }
            }
            Event::PeerRefused { user, tuple, peer, denial } => {
                let (user, client, range) = (printable(user), tuple.client, denial.label());
                if self.explained.insert(range) {
                    tracing::info!(
                        user = &*user, %client, %peer, range,
                        "peer refused: browsers offer addresses of their own network too, and their call goes on over \
                         others; peers.allow admits a range (said once for each range)"
                    );
                } else {
                    tracing::debug!(user = &*user, %client, %peer, range, "peer refused");
                }
            }
        }
    }

    pub(super) fn connection_refused(&mut self, now: Instant, client: SocketAddr, exceeded: QuotaExceeded) {
        if self.refused_connections.admits(now) {
            let limit = match exceeded {
                QuotaExceeded::User => "limits.connections-per-source",
                QuotaExceeded::Server => "limits.connections",
            };
            tracing::warn!(%client, limit, "connection refused: the limit is reached");
        }
    }

    pub(super) fn accept_failed(&mut self, now: Instant, error: &io::Error) {
        if self.failed_accepts.admits(now) {
            tracing::warn!(
                %error,
                "a connection could not be accepted; if there are too many open files, raise LimitNOFILE"
            );
        }
    }

    /// Sums up what was not written, once its window is over.
    pub(super) fn tick(&mut self, now: Instant) {
        self.sum_up(|limit| limit.summary(now));
    }

    /// Sums up what was not written, at the end.
    pub(super) fn finish(&mut self) {
        self.sum_up(RateLimit::rest);
    }

    fn sum_up(&mut self, count_of: impl Fn(&mut RateLimit) -> Option<u64>) {
        for (limit, what) in [
            (&mut self.failed_authentications, "failed authentications"),
            (&mut self.refused_allocations, "refused allocations"),
            (&mut self.redirected_allocations, "redirected allocations"),
            (&mut self.old_channels, "refused channels"),
            (&mut self.refused_connections, "refused connections"),
            (&mut self.failed_accepts, "connections not accepted"),
        ] {
            if let Some(count) = count_of(limit) {
                tracing::warn!(count, "more {what} in the last minute, not logged one by one");
            }
        }
    }
}

/// Lets a few through in each window.
#[derive(Debug, Default)]
struct RateLimit {
    window: Option<Deadline>,
    admitted: u32,
    suppressed: u64,
}

impl RateLimit {
    fn admits(&mut self, now: Instant) -> bool {
        if self.window.is_none_or(|end| end.has_passed(now)) {
            self.window = Some(Deadline::after(now, WINDOW));
            self.admitted = 0;
        }
        if self.admitted < LINES {
            self.admitted += 1;
            return true;
        }
        self.suppressed += 1;
        false
    }

    /// How many were not let through, once their window is over.
    fn summary(&mut self, now: Instant) -> Option<u64> {
        let over = self.window.is_some_and(|end| end.has_passed(now));
        if over { self.rest() } else { None }
    }

    /// How many were not let through and are in no summary yet.
    fn rest(&mut self) -> Option<u64> {
        (self.suppressed > 0).then(|| std::mem::take(&mut self.suppressed))
    }
}

/// A name from the network, fit for the log: short, and without characters that move the cursor. As it may still look
/// like fields of a line, it is recorded as a string, which the text format puts in quotes, and never by `%`.
fn printable(name: &str) -> Cow<'_, str> {
    if name.len() <= LONGEST_NAME && !name.chars().any(char::is_control) {
        return Cow::Borrowed(name);
    }
    let mut shown = String::new();
    for c in name.chars().take(LONGEST_NAME) {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    if name.chars().nth(LONGEST_NAME).is_some() {
        shown.push('…');
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    #[test]
    fn a_few_lines_a_window_and_then_a_sum() {
        let mut limit = RateLimit::default();
        assert_eq!((0..1_000).filter(|_| limit.admits(at(1))).count(), 5);
        assert_eq!(limit.summary(at(60)), None);
        assert_eq!(limit.summary(at(61)), Some(995));
        assert_eq!(limit.summary(at(62)), None);
        assert!(limit.admits(at(62)));
    }

    #[test]
    fn at_the_end_the_sum_does_not_wait_for_its_window() {
        let mut limit = RateLimit::default();
        assert_eq!((0..7).filter(|_| limit.admits(at(1))).count(), 5);
        assert_eq!((limit.rest(), limit.rest()), (Some(2), None));
    }

    #[test]
    fn names_from_the_network_cannot_forge_lines_or_fill_them() {
        assert_eq!(printable("1700000000:alice"), "1700000000:alice");
        assert_eq!(printable("a\nINFO \u{1b}[2J"), "a\\nINFO \\u{1b}[2J");
        assert_eq!(printable(&"é".repeat(1_000)).chars().count(), LONGEST_NAME + 1);
    }
}
