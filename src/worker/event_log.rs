//! The log lines for events of the core, rate-limited.
//!
//! Clients cause most of these events, so the lines of each kind are limited per minute: a few for problems, many for
//! allocations. Further lines are suppressed and counted, and one line reports their number.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::clock::Clock;
use crate::net::limits;
use crate::setting;
use crate::turn::{Deadline, Event, FiveTuple, Instant, Limit, Outcome, QuotaExceeded, RedirectCause, Waiting};

#[cfg(test)]
mod tests;

/// The number of lines of one kind per [`WINDOW`].
const LINES: u32 = 5;
/// The number of lines about allocations per [`WINDOW`]: 100 per second. Even a busy server logs fewer, and a client
/// with a credential cannot fill the disk quickly.
const ALLOCATION_LINES: u32 = 6_000;
/// The number of lines about the allocations of one user per [`WINDOW`], and what remains of it once half of all lines are used. A browser needs 16
/// for a call.
const LINES_PER_USER: u32 = 600;
const FEWER_LINES_PER_USER: u32 = 60;
/// The number of lines about packets with one outcome per [`WINDOW`].
const PACKET_LINES: u32 = 1_000;
/// The number of counters of lines. A keyed hash assigns users to them, so the memory is fixed.
const USERS: usize = 4_096;
const WINDOW: Duration = Duration::from_secs(60);

/// The maximum length of a name from the network in a line, in characters.
const LONGEST_NAME: usize = 64;

/// Writes events to the log.
#[derive(Debug)]
pub(super) struct EventLog {
    allocations: RateLimit,
    users: UserShares,
    revoked_peers: RateLimit,
    failed_authentications: RateLimit,
    waiting_sources: RateLimit,
    rejected_allocations: RateLimit,
    redirected_allocations: RateLimit,
    limits: BTreeMap<Limit, RateLimit>,
    rfc5766_channels: RateLimit,
    rejected_connections: RateLimit,
    failed_accepts: RateLimit,
    plain_on_tls: RateLimit,
    tls_without_certificate: RateLimit,
    failed_relay_sockets: RateLimit,
    /// The ranges whose denial has been explained in the log.
    explained: BTreeSet<&'static str>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            allocations: RateLimit::of(ALLOCATION_LINES),
            users: UserShares::default(),
            revoked_peers: RateLimit::of(ALLOCATION_LINES),
            failed_authentications: RateLimit::of(LINES),
            waiting_sources: RateLimit::of(LINES),
            rejected_allocations: RateLimit::of(LINES),
            redirected_allocations: RateLimit::of(LINES),
            limits: Limit::ALL.iter().map(|limit| (*limit, RateLimit::of(LINES))).collect(),
            rfc5766_channels: RateLimit::of(LINES),
            rejected_connections: RateLimit::of(LINES),
            failed_accepts: RateLimit::of(LINES),
            plain_on_tls: RateLimit::of(1),
            tls_without_certificate: RateLimit::of(1),
            failed_relay_sockets: RateLimit::of(LINES),
            explained: BTreeSet::new(),
        }
    }
}

impl EventLog {
    pub(super) fn log(&mut self, now: Instant, event: &Event) {
        match event {
            Event::AllocationCreated { user, tuple, relay, lifetime } => {
                if self.users.allows(&mut self.allocations, user, now) {
                    tracing::info!(
                        event = "allocation-created", user = &*printable(user), client = %tuple.client,
                        server = %tuple.server, transport = %tuple.transport, %relay, lifetime, "allocation created"
                    );
                }
            }
            Event::AllocationEnded(ended) => {
                if self.users.allows(&mut self.allocations, &ended.user, now) {
                    tracing::info!(
                        event = "allocation-ended", user = &*printable(&ended.user),
                        client = %ended.tuple.client, relay = %ended.relay,
                        reason = %ended.reason, duration = ended.duration.as_secs(),
                        bytes_to_peers = ended.traffic.bytes_to_peers, bytes_to_client = ended.traffic.bytes_to_client,
                        "allocation ended"
                    );
                }
            }
            Event::AuthenticationFailed { username, tuple, cause } => {
                if self.failed_authentications.allows(now) {
                    tracing::warn!(
                        event = "authentication-failed", user = &*printable(username), client = %tuple.client,
                        reason = %cause,
                        "authentication failed"
                    );
                }
            }
            Event::SourceWaits { username, tuple, waiting } => {
                if self.waiting_sources.allows(now) {
                    let whose = match waiting {
                        Waiting::User => "with this username at this source",
                        Waiting::Source => "of this source, with any username,",
                        Waiting::Site => "of the /48 of this source, with any username,",
                    };
                    tracing::warn!(
                        event = "source-waits", user = &*printable(username), client = %tuple.client,
                        limit = setting::FAILED_AUTHENTICATIONS,
                        "request dropped: authentication {whose} has failed more often than this limit allows"
                    );
                }
            }
            Event::AllocationRejected { user, tuple, reason } => {
                if self.rejected_allocations.allows(now) {
                    tracing::warn!(
                        event = "allocation-rejected", user = &*printable(user), client = %tuple.client, reason,
                        "allocation rejected"
                    );
                }
            }
            Event::LimitReached { user, tuple, limit } => {
                if self.limits.get_mut(limit).is_some_and(|lines| lines.allows(now)) {
                    tracing::warn!(
                        event = "limit-reached", user = &*printable(user), client = %tuple.client,
                        limit = for_operator(limit.setting()), "{}", limit.note()
                    );
                }
            }
            Event::AllocationRedirected { user, tuple, server, cause: RedirectCause::Always } => {
                tracing::debug!(
                    event = "allocation-redirected", user = &*printable(user), client = %tuple.client,
                    alternate = %server, "allocation redirected"
                );
            }
            Event::AllocationRedirected { user, tuple, server, cause } => {
                if self.redirected_allocations.allows(now) {
                    tracing::info!(
                        event = "allocation-redirected", user = &*printable(user), client = %tuple.client,
                        alternate = %server, reason = %cause, "allocation redirected"
                    );
                }
            }
            Event::Rfc5766Channel { user, tuple, number } => {
                if self.rfc5766_channels.allows(now) {
                    tracing::warn!(
                        event = "channel-rejected", user = &*printable(user), client = %tuple.client,
                        channel = format_args!("{number:#06x}"),
                        "channel rejected: RFC 8656 allows 0x4000 to 0x4fff; {} = true also allows 0x5000 to 0x7fff",
                        setting::RFC5766_CHANNELS
                    );
                }
            }
            Event::PeersRevoked { user, tuple, permissions, channels } => {
                if self.revoked_peers.allows(now) {
                    tracing::info!(
                        event = "peers-revoked", user = &*printable(user), client = %tuple.client,
                        permissions, channels,
                        "permissions or channels removed: the new configuration denies their peers or their channel numbers"
                    );
                }
            }
            Event::PeerDenied { user, tuple, peer, denial } => {
                let (user, client, range) = (printable(user), tuple.client, denial.label());
                if self.explained.insert(range) {
                    tracing::info!(
                        event = "peer-denied", user = &*user, %client, %peer, range,
                        "peer denied. Browsers also send addresses of their own network; the call uses other addresses. \
                         {} allows a range. Each worker logs this once for each range",
                        setting::PEERS_ALLOW
                    );
                } else {
                    tracing::debug!(event = "peer-denied", user = &*user, %client, %peer, range, "peer denied");
                }
            }
        }
    }

    pub(super) fn connection_rejected(&mut self, now: Instant, client: SocketAddr, exceeded: QuotaExceeded) {
        if self.rejected_connections.allows(now) {
            let limit = match exceeded {
                QuotaExceeded::User => setting::CONNECTIONS_PER_SOURCE,
                QuotaExceeded::Server => setting::CONNECTIONS,
            };
            tracing::warn!(event = "connection-rejected", %client, limit, "connection rejected: the limit is reached");
        }
    }

    pub(super) fn allocated_connections_exceeded(&mut self, now: Instant, client: SocketAddr) {
        if self.rejected_connections.allows(now) {
            let limit = setting::ALLOCATED_CONNECTIONS_PER_SOURCE;
            tracing::warn!(event = "connection-closed", %client, limit, "connection closed: the limit is reached");
        }
    }

    pub(super) fn plain_on_tls(&mut self, now: Instant, tuple: FiveTuple) {
        if self.plain_on_tls.allows(now) {
            tracing::warn!(
                event = "plain-on-tls-port", client = %tuple.client, server = %tuple.server,
                "connection closed: the client sent TURN without TLS to a port of listen.tls. Some clients, such as \
                 libnice, do so with turns: URLs. Add the port to listen.tcp to serve them"
            );
        }
    }

    pub(super) fn tls_without_certificate(&mut self, now: Instant, tuple: FiveTuple) {
        if self.tls_without_certificate.allows(now) {
            tracing::warn!(
                event = "tls-without-certificate", client = %tuple.client, server = %tuple.server,
                "connection closed: the client began a TLS handshake, but the server has no certificate. Set {} and \
                 {} to serve turns: URLs",
                setting::TLS_CERTIFICATE, setting::TLS_PRIVATE_KEY
            );
        }
    }

    pub(super) fn accept_failed(&mut self, now: Instant, error: &io::Error) {
        if self.failed_accepts.allows(now) {
            tracing::warn!(
                event = "accept-failed", %error,
                "a connection could not be accepted. If the process has too many open files, raise {}",
                for_operator(setting::OPEN_FILES)
            );
        }
    }

    /// Logs why the kernel did not open a relay socket. The core logs what that means for the client.
    pub(super) fn relay_socket_failed(&mut self, now: Instant, bind: SocketAddr, error: &io::Error) {
        if !self.failed_relay_sockets.allows(now) {
            return;
        }
        let address = bind.ip();
        if error.kind() == io::ErrorKind::AddrNotAvailable {
            tracing::warn!(
                event = "relay-socket-failed", %address, %error,
                "relay socket not opened: this machine does not have the relay address"
            );
        } else {
            tracing::warn!(event = "relay-socket-failed", %address, %error, "relay socket not opened");
        }
    }

    /// Logs the number of suppressed lines of each window that has ended.
    pub(super) fn tick(&mut self, now: Instant) {
        self.log_suppressed(|limit| limit.summary(now));
    }

    /// Logs the number of suppressed lines when the worker stops.
    pub(super) fn finish(&mut self) {
        self.log_suppressed(RateLimit::rest);
    }

    fn log_suppressed(&mut self, count_of: impl Fn(&mut RateLimit) -> Option<u64>) {
        for (limit, suppressed, what) in [
            (&mut self.allocations, "allocation-created, allocation-ended", "allocations created or ended"),
            (&mut self.revoked_peers, "peers-revoked", "allocations with revoked peers"),
            (&mut self.failed_authentications, "authentication-failed", "failed authentications"),
            (&mut self.waiting_sources, "source-waits", "requests of sources with too many failed authentications"),
            (&mut self.rejected_allocations, "allocation-rejected", "rejected allocations"),
            (&mut self.redirected_allocations, "allocation-redirected", "redirected allocations"),
            (&mut self.rfc5766_channels, "channel-rejected", "rejected channels"),
            (&mut self.rejected_connections, "connection-rejected, connection-closed", "rejected connections"),
            (&mut self.failed_accepts, "accept-failed", "connections that could not be accepted"),
            (&mut self.plain_on_tls, "plain-on-tls-port", "connections without TLS to a TLS port"),
            (&mut self.tls_without_certificate, "tls-without-certificate", "TLS handshakes without a certificate"),
            (&mut self.failed_relay_sockets, "relay-socket-failed", "relay sockets that could not be opened"),
        ] {
            if let Some(count) = count_of(limit) {
                tracing::warn!(
                    event = "lines-suppressed",
                    suppressed,
                    count,
                    "further {what} in the last minute were not logged"
                );
            }
        }
        for (limit, lines) in &mut self.limits {
            if let Some(count) = count_of(lines) {
                tracing::warn!(
                    event = "lines-suppressed",
                    suppressed = "limit-reached",
                    count,
                    limit = for_operator(limit.setting()),
                    "this limit was reached again in the last minute; these events were not logged"
                );
            }
        }
    }
}

/// The host that a packet concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Client(SocketAddr),
    Peer(SocketAddr),
    /// The kernel dropped packets at the socket that is bound to this address, without reporting their sources.
    Local(SocketAddr),
}

/// Logs the packets that were rejected or dropped, at the level *debug*. The lines of each outcome are limited, so that
/// a flood neither fills the disk nor hides another outcome.
#[derive(Debug)]
pub(super) struct PacketLog {
    /// One limit for each [`Outcome::index`].
    limits: Vec<RateLimit>,
}

impl Default for PacketLog {
    fn default() -> Self {
        Self { limits: (0..Outcome::COUNT).map(|_| RateLimit::of(PACKET_LINES)).collect() }
    }
}

impl PacketLog {
    pub(super) fn log(&mut self, clock: &Clock, host: Host, outcome: Outcome, packets: u64) {
        if outcome.is_failure() && tracing::enabled!(tracing::Level::DEBUG) {
            self.log_at(Instant::from_elapsed(clock.elapsed()), host, outcome, packets);
        }
    }

    fn log_at(&mut self, now: Instant, host: Host, outcome: Outcome, packets: u64) {
        if !self.limits.get_mut(outcome.index()).is_some_and(|limit| limit.allows(now)) {
            return;
        }
        match host {
            Host::Client(client) => tracing::debug!(event = "packet-failed", %client, packets, "{outcome}"),
            Host::Peer(peer) => tracing::debug!(event = "packet-failed", %peer, packets, "{outcome}"),
            Host::Local(address) => tracing::debug!(event = "packet-failed", %address, packets, "{outcome}"),
        }
    }

    /// Logs the number of suppressed lines of each window that has ended.
    pub(super) fn tick(&mut self, now: Instant) {
        self.log_suppressed(|limit| limit.summary(now));
    }

    /// Logs the number of suppressed lines when the worker stops.
    pub(super) fn finish(&mut self) {
        self.log_suppressed(RateLimit::rest);
    }

    fn log_suppressed(&mut self, count_of: impl Fn(&mut RateLimit) -> Option<u64>) {
        for (limit, outcome) in self.limits.iter_mut().zip(Outcome::all()) {
            if let Some(count) = count_of(limit) {
                tracing::debug!(
                    event = "lines-suppressed",
                    suppressed = "packet-failed",
                    count,
                    "further lines in the last minute were not logged: {outcome}"
                );
            }
        }
    }
}

/// Returns the name of a setting for the operator of this process.
fn for_operator(setting: &'static str) -> &'static str {
    setting::name_for_operator(setting, limits::is_service())
}

/// Shares the lines of a window out to users, so that one user does not hide the others.
#[derive(Debug)]
struct UserShares {
    /// The lines of each user in this window.
    lines: Box<[u32]>,
    hasher: RandomState,
}

impl Default for UserShares {
    fn default() -> Self {
        Self { lines: vec![0; USERS].into(), hasher: RandomState::new() }
    }
}

impl UserShares {
    /// Whether a line about this user may be logged. If not, `all` counts it.
    fn allows(&mut self, all: &mut RateLimit, user: &str, now: Instant) -> bool {
        if all.begin_window(now) {
            self.lines.fill(0);
        }
        let share = if all.allowed < all.lines / 2 { LINES_PER_USER } else { FEWER_LINES_PER_USER };
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is below USERS")]
        let place = (self.hasher.hash_one(user) % USERS as u64) as usize;
        let Some(lines) = self.lines.get_mut(place).filter(|lines| **lines < share) else {
            all.suppressed += 1;
            return false;
        };
        *lines += 1;
        all.allows(now)
    }
}

/// Allows a number of lines per window.
#[derive(Debug)]
struct RateLimit {
    lines: u32,
    window: Option<Deadline>,
    allowed: u32,
    suppressed: u64,
}

impl RateLimit {
    fn of(lines: u32) -> Self {
        Self { lines, window: None, allowed: 0, suppressed: 0 }
    }

    /// Begins the next window if the last one has ended.
    fn begin_window(&mut self, now: Instant) -> bool {
        let over = self.window.is_none_or(|end| end.has_passed(now));
        if over {
            self.window = Some(Deadline::after(now, WINDOW));
            self.allowed = 0;
        }
        over
    }

    fn allows(&mut self, now: Instant) -> bool {
        self.begin_window(now);
        if self.allowed < self.lines {
            self.allowed += 1;
            return true;
        }
        self.suppressed += 1;
        false
    }

    /// Returns the number of suppressed lines once their window has ended.
    fn summary(&mut self, now: Instant) -> Option<u64> {
        let over = self.window.is_some_and(|end| end.has_passed(now));
        if over { self.rest() } else { None }
    }

    /// Returns the number of suppressed lines that were not reported yet.
    fn rest(&mut self) -> Option<u64> {
        (self.suppressed > 0).then(|| std::mem::take(&mut self.suppressed))
    }
}

/// Returns a name from the network without control characters and with a limited length. The name may still look like
/// fields of a log line. It is therefore logged as a string, which the text format quotes, not with `%`.
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
    use crate::turn::{
        AllocationSummary, AuthCause, Denial, DropReason, EndReason, FiveTuple, SocketId, Traffic, Transport,
    };

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    /// Collects the log lines of this thread.
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

    /// Returns the lines that `work` logs at level *info* and above.
    fn logged(work: impl FnOnce()) -> Vec<String> {
        logged_at(tracing::Level::INFO, work)
    }

    fn logged_at(level: tracing::Level, work: impl FnOnce()) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        lines.0.lock().unwrap().clone()
    }

    fn tuple() -> FiveTuple {
        let address = |text: &str| text.parse().unwrap();
        let (client, server) = (address("192.0.2.1:5000"), address("192.0.2.200:3478"));
        FiveTuple { client, server, transport: Transport::Udp }
    }

    /// The rate-limited events of the core, and their lines per minute.
    fn events() -> Vec<(Event, usize)> {
        let (user, username, tuple, relay) = ("ann".to_owned(), "ann".to_owned(), tuple(), tuple().server);
        let summary = AllocationSummary {
            id: SocketId::for_tests(0).allocation(),
            user: user.clone(),
            tuple,
            relay: relay.into(),
            duration: WINDOW,
            traffic: Traffic::default(),
            reason: EndReason::Deleted,
        };
        let redirected = |cause| Event::AllocationRedirected { user: "ann".to_owned(), tuple, server: relay, cause };
        let denied =
            |label| Event::PeerDenied { user: "ann".to_owned(), tuple, peer: relay, denial: Denial::Special(label) };
        let reading = crate::auth::time_limited::Reading::ExpiryFirst;
        let mut events = vec![
            (Event::AllocationCreated { user: user.clone(), tuple, relay: relay.into(), lifetime: 600 }, 600),
            (Event::AllocationEnded(Box::new(summary)), 600),
            (Event::PeersRevoked { user: user.clone(), tuple, permissions: 1, channels: 1 }, 6_000),
            (Event::AuthenticationFailed { username, tuple, cause: AuthCause::Expired { ago: 5, reading } }, 5),
            (Event::SourceWaits { username: "ann".to_owned(), tuple, waiting: Waiting::User }, 5),
            (Event::Rfc5766Channel { user: user.clone(), tuple, number: 0x5000 }, 5),
            (Event::AllocationRejected { user: user.clone(), tuple, reason: "tunnel" }, 5),
            (redirected(RedirectCause::Limit(Limit::RelayPorts)), 5),
            (denied("loopback"), 1),
            (denied("private"), 1),
        ];
        let limits = Limit::ALL.iter().map(|limit| Event::LimitReached { user: user.clone(), tuple, limit: *limit });
        events.extend(limits.map(|event| (event, 5)));
        events
    }

    // Each kind has its own limit.
    #[test]
    fn events_are_rate_limited_per_minute_and_summed_up() {
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
                    // Logged only once.
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
    fn the_churn_of_a_few_users_does_not_hide_the_allocations_of_others() {
        let created = |user: String| Event::AllocationCreated {
            user,
            tuple: tuple(),
            relay: tuple().server.into(),
            lifetime: 600,
        };
        let mut log = EventLog::default();
        let lines = logged(|| {
            for user in 0..20 {
                (0..10_000).for_each(|_| log.log(at(1), &created(format!("churn {user}"))));
            }
        });
        assert!((3_000..6_000).contains(&lines.len()), "{}", lines.len());
        // A user may share a counter with one of the others.
        let others = logged(|| (0..20).for_each(|user| log.log(at(2), &created(format!("caller {user}")))));
        assert!(others.len() >= 18, "{others:?}");
        // The next minute is not affected, and the sum contains the lines of every user.
        let sum = logged(|| log.tick(at(61)));
        let suppressed = 20 * 10_000 + 20 - lines.len() - others.len();
        assert!(sum[0].contains(&format!("count={suppressed}")), "{sum:?}");
        assert_eq!(logged(|| log.log(at(61), &created("churn 0".to_owned()))).len(), 1);
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

    // The level debug is for a search after a fault. A flood during the search must not fill the disk.
    #[test]
    fn lines_about_packets_are_limited_for_each_outcome() {
        let (dropped, rejected) = (Outcome::Dropped(DropReason::NoAllocation), Outcome::RejectedByLimit(Limit::ALL[0]));
        let (client, peer) = (Host::Client(tuple().client), Host::Peer(tuple().server));
        let lines = logged_at(tracing::Level::DEBUG, || {
            let mut log = PacketLog::default();
            (0..10_000).for_each(|_| log.log_at(at(1), client, dropped, 1));
            log.log_at(at(1), peer, rejected, 3);
            log.tick(at(61));
            log.finish();
        });
        assert_eq!(lines.len(), 1_002);
        assert!(
            lines[0].contains(&format!("{dropped} event=\"packet-failed\" client=192.0.2.1:5000 packets=1")),
            "{}",
            lines[0]
        );
        assert!(
            lines[1_000].contains(&format!("{rejected} event=\"packet-failed\" peer=192.0.2.200:3478 packets=3")),
            "{}",
            lines[1_000]
        );
        assert!(lines[1_001].contains(&dropped.to_string()) && lines[1_001].contains("count=9000"), "{}", lines[1_001]);
    }

    #[test]
    fn packets_are_logged_only_at_level_debug_and_only_failures() {
        let mut log = PacketLog::default();
        let (clock, client) = (Clock::start(), Host::Client(tuple().client));
        let dropped = Outcome::Dropped(DropReason::NoAllocation);
        let mut lines = |level, outcome| logged_at(level, || log.log(&clock, client, outcome, 1)).len();
        assert_eq!(lines(tracing::Level::INFO, dropped), 0);
        assert_eq!(lines(tracing::Level::DEBUG, Outcome::RelayedToPeer), 0);
        assert_eq!(lines(tracing::Level::DEBUG, dropped), 1);
    }

    #[test]
    fn a_limit_is_logged_with_its_setting_the_user_and_the_client() {
        for limit in Limit::ALL {
            let event = Event::LimitReached { user: "ann".to_owned(), tuple: tuple(), limit: *limit };
            let lines = logged(|| EventLog::default().log(at(1), &event));
            let setting = format!("limit=\"{}\"", for_operator(limit.setting()));
            for part in [" WARN ", "user=\"ann\"", "client=192.0.2.1:5000", &setting, limit.note()] {
                assert!(lines[0].contains(part), "{part} in {lines:?}");
            }
        }
    }

    #[test]
    fn a_window_allows_a_few_lines_and_counts_the_rest() {
        let mut limit = RateLimit::of(LINES);
        assert_eq!((0..1_000).filter(|_| limit.allows(at(1))).count(), 5);
        assert_eq!(limit.summary(at(60)), None);
        assert_eq!(limit.summary(at(61)), Some(995));
        assert_eq!(limit.summary(at(62)), None);
        assert!(limit.allows(at(62)));
    }

    #[test]
    fn a_stop_reports_suppressed_lines_before_the_window_ends() {
        let mut limit = RateLimit::of(LINES);
        assert_eq!((0..7).filter(|_| limit.allows(at(1))).count(), 5);
        assert_eq!((limit.rest(), limit.rest()), (Some(2), None));
    }

    #[test]
    fn names_from_the_network_cannot_forge_lines_and_are_truncated() {
        assert_eq!(printable("1700000000:alice"), "1700000000:alice");
        assert_eq!(printable("a\nINFO \u{1b}[2J"), "a\\nINFO \\u{1b}[2J");
        assert_eq!(printable(&"é".repeat(1_000)).chars().count(), LONGEST_NAME + 1);
    }
}
