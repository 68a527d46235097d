//! What the core tells, as lines of the log.
//!
//! What clients can cause is written so many times a minute at most: a few times what tells of trouble, and the ordinary
//! lines of allocations as often as a log can bear. The rest is counted and summed up.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::turn::{Deadline, Event, Instant, Limit, QuotaExceeded, RedirectCause};

/// How many lines of one kind are written in one [`WINDOW`].
const LINES: u32 = 5;
/// How many lines tell of allocations in one [`WINDOW`]: a hundred a second, more than a busy server needs, and less
/// than fills a disk overnight when somebody with a credential tries.
const ALLOCATION_LINES: u32 = 6_000;
const WINDOW: Duration = Duration::from_secs(60);

/// The longest name from the network that a line repeats, in characters.
const LONGEST_NAME: usize = 64;

/// Writes events to the log.
#[derive(Debug)]
pub(super) struct EventLog {
    allocations: RateLimit,
    failed_authentications: RateLimit,
    refused_allocations: RateLimit,
    redirected_allocations: RateLimit,
    limits: BTreeMap<Limit, RateLimit>,
    old_channels: RateLimit,
    refused_connections: RateLimit,
    failed_accepts: RateLimit,
    /// Ranges whose refusal has been explained once.
    explained: BTreeSet<&'static str>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            allocations: RateLimit::of(ALLOCATION_LINES),
            failed_authentications: RateLimit::of(LINES),
            refused_allocations: RateLimit::of(LINES),
            redirected_allocations: RateLimit::of(LINES),
            limits: Limit::ALL.iter().map(|limit| (*limit, RateLimit::of(LINES))).collect(),
            old_channels: RateLimit::of(LINES),
            refused_connections: RateLimit::of(LINES),
            failed_accepts: RateLimit::of(LINES),
            explained: BTreeSet::new(),
        }
    }
}

impl EventLog {
    pub(super) fn log(&mut self, now: Instant, event: &Event) {
        match event {
            Event::AllocationCreated { user, tuple, relay, lifetime } => {
                if self.allocations.admits(now) {
                    tracing::info!(
                        user = &*printable(user), client = %tuple.client, server = %tuple.server,
                        transport = %tuple.transport, %relay, lifetime, "allocation created"
                    );
                }
            }
            Event::AllocationEnded(ended) => {
                if self.allocations.admits(now) {
                    tracing::info!(
                        user = &*printable(&ended.user), client = %ended.tuple.client, relay = %ended.relay,
                        reason = %ended.reason, duration = ended.duration.as_secs(),
                        bytes_to_peers = ended.bytes_to_peers, bytes_to_client = ended.bytes_to_client,
                        "allocation ended"
                    );
                }
            }
            Event::AuthenticationFailed { username, tuple, cause } => {
                if self.failed_authentications.admits(now) {
                    tracing::warn!(
                        username = &*printable(username), client = %tuple.client, reason = %cause,
                        "authentication failed"
                    );
                }
            }
            Event::AllocationRefused { user, tuple, reason } => {
                if self.refused_allocations.admits(now) {
                    tracing::warn!(user = &*printable(user), client = %tuple.client, reason, "allocation refused");
                }
            }
            Event::LimitReached { user, tuple, limit } => {
                if self.limits.get_mut(limit).is_some_and(|lines| lines.admits(now)) {
                    tracing::warn!(
                        user = &*printable(user), client = %tuple.client, limit = limit.setting(), "{}", limit.note()
                    );
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
            (&mut self.allocations, "allocations created or ended"),
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
        for (limit, lines) in &mut self.limits {
            if let Some(count) = count_of(lines) {
                tracing::warn!(
                    count,
                    limit = limit.setting(),
                    "more clients ran into this limit in the last minute, not logged one by one"
                );
            }
        }
    }
}

/// Lets so many through in each window.
#[derive(Debug)]
struct RateLimit {
    lines: u32,
    window: Option<Deadline>,
    admitted: u32,
    suppressed: u64,
}

impl RateLimit {
    fn of(lines: u32) -> Self {
        Self { lines, window: None, admitted: 0, suppressed: 0 }
    }

    fn admits(&mut self, now: Instant) -> bool {
        if self.window.is_none_or(|end| end.has_passed(now)) {
            self.window = Some(Deadline::after(now, WINDOW));
            self.admitted = 0;
        }
        if self.admitted < self.lines {
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
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::turn::{AllocationSummary, AuthCause, Denial, EndReason, FiveTuple, Transport};

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    /// Keeps the lines of this thread's log.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged while `work` runs.
    fn logged(work: impl FnOnce()) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, work);
        lines.0.lock().unwrap().clone()
    }

    fn tuple() -> FiveTuple {
        let address = |text: &str| text.parse().unwrap();
        let (client, server) = (address("192.0.2.1:5000"), address("192.0.2.200:3478"));
        FiveTuple { client, server, transport: Transport::Udp }
    }

    /// Everything that a client can have written, and how often a minute.
    fn events() -> Vec<(Event, usize)> {
        let (user, username, tuple, relay) = ("ann".to_owned(), "ann".to_owned(), tuple(), tuple().server);
        let summary = AllocationSummary {
            user: user.clone(),
            tuple,
            relay: relay.into(),
            duration: WINDOW,
            bytes_to_peers: 0,
            bytes_to_client: 0,
            reason: EndReason::Deleted,
        };
        let redirected = |cause| Event::AllocationRedirected { user: "ann".to_owned(), tuple, server: relay, cause };
        let refused =
            |label| Event::PeerRefused { user: "ann".to_owned(), tuple, peer: relay, denial: Denial::Special(label) };
        let mut events = vec![
            (Event::AllocationCreated { user: user.clone(), tuple, relay: relay.into(), lifetime: 600 }, 6_000),
            (Event::AllocationEnded(Box::new(summary)), 6_000),
            (Event::AuthenticationFailed { username, tuple, cause: AuthCause::Expired { ago: 5 } }, 5),
            (Event::Rfc5766Channel { user: user.clone(), tuple, number: 0x5000 }, 5),
            (Event::AllocationRefused { user: user.clone(), tuple, reason: "tunnel" }, 5),
            (redirected(RedirectCause::Limit(Limit::RelayPorts)), 5),
            (refused("loopback"), 1),
            (refused("private"), 1),
        ];
        let limits = Limit::ALL.iter().map(|limit| Event::LimitReached { user: user.clone(), tuple, limit: *limit });
        events.extend(limits.map(|event| (event, 5)));
        events
    }

    // However fast a client makes them happen; and each kind is limited apart, so that none hides another.
    #[test]
    fn events_are_so_many_lines_a_minute_and_a_sum() {
        for (event, most) in events() {
            let mut log = EventLog::default();
            let mut minute = |from: u64| {
                logged(|| {
                    (0..10_000).for_each(|_| log.log(at(from), &event));
                    (1..=60).for_each(|second| log.tick(at(from + second)));
                })
            };
            for (round, from) in [0, 70].into_iter().enumerate() {
                let lines = minute(from);
                if most == 1 {
                    // Explained once and never again.
                    assert_eq!(lines.len(), 1 - round, "{event:?}");
                    continue;
                }
                assert_eq!(lines.len(), most + 1, "{event:?}");
                let sum = &lines[most];
                assert!(sum.contains(&format!("count={}", 10_000 - most)), "{sum}");
            }
        }
    }

    #[test]
    fn one_kind_of_event_does_not_hide_another() {
        let mut log = EventLog::default();
        let lines = logged(|| {
            for (event, _) in events().into_iter().cycle().take(events().len() * 4) {
                log.log(at(1), &event);
            }
        });
        assert_eq!(lines.len(), (events().len() - 2) * 4 + 2);
    }

    #[test]
    fn a_limit_is_logged_with_its_setting_the_user_and_the_client() {
        for limit in Limit::ALL {
            let event = Event::LimitReached { user: "ann".to_owned(), tuple: tuple(), limit: *limit };
            let lines = logged(|| EventLog::default().log(at(1), &event));
            let setting = format!("limit=\"{}\"", limit.setting());
            for part in [" WARN ", "user=\"ann\"", "client=192.0.2.1:5000", &setting, limit.note()] {
                assert!(lines[0].contains(part), "{part} in {lines:?}");
            }
        }
    }

    #[test]
    fn a_few_lines_a_window_and_then_a_sum() {
        let mut limit = RateLimit::of(LINES);
        assert_eq!((0..1_000).filter(|_| limit.admits(at(1))).count(), 5);
        assert_eq!(limit.summary(at(60)), None);
        assert_eq!(limit.summary(at(61)), Some(995));
        assert_eq!(limit.summary(at(62)), None);
        assert!(limit.admits(at(62)));
    }

    #[test]
    fn at_the_end_the_sum_does_not_wait_for_its_window() {
        let mut limit = RateLimit::of(LINES);
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
