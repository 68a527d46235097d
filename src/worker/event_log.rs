//! The log lines for events of the core, rate-limited.
//!
//! Clients cause most of these events, so the lines of each kind are limited per minute: a few for problems, many for
//! allocations. Further lines are suppressed and counted, and one line reports their number.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::field::DisplayValue;

use super::SessionId;
use crate::clock::Clock;
use crate::net::limits;
use crate::privacy::Privacy;
use crate::setting;
use crate::transport::Endpoint;
use crate::turn::{
    AllocationId, Deadline, Event, FiveTuple, Instant, Limit, Outcome, QuotaExceeded, RedirectCause, Waiting,
};

#[cfg(test)]
pub(super) mod tests;

/// The number of lines of one kind per [`WINDOW`].
const LINES: u32 = 5;
/// The number of lines about allocations per [`WINDOW`]: 100 per second. Even a busy server logs fewer, and a client
/// with a credential cannot fill the disk quickly.
const ALLOCATION_LINES: u32 = 6_000;
/// The number of lines about the allocations of one user per [`WINDOW`], and what remains of it once half of all lines
/// are used. A browser needs 16 for a call.
const LINES_PER_USER: u32 = 600;
const FEWER_LINES_PER_USER: u32 = 60;
/// The number of lines about packets with one outcome per [`WINDOW`].
const PACKET_LINES: u32 = 1_000;
/// The number of counters of lines. A keyed hash assigns users to them, so the memory is fixed.
const USERS: usize = 4_096;
const WINDOW: Duration = Duration::from_secs(60);

/// Writes events to the log.
#[derive(Debug)]
pub(super) struct EventLog {
    /// The index of the worker, which is part of the session IDs.
    worker: usize,
    pub(super) privacy: Arc<Privacy>,
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
    proxies_not_listed: RateLimit,
    failed_proxy_headers: RateLimit,
    failed_relay_sockets: RateLimit,
    /// The ranges whose denial has been explained in the log.
    explained: BTreeSet<&'static str>,
}

impl EventLog {
    pub(super) fn new(worker: usize, privacy: Arc<Privacy>) -> Self {
        Self {
            worker,
            privacy,
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
            proxies_not_listed: RateLimit::of(LINES),
            failed_proxy_headers: RateLimit::of(LINES),
            failed_relay_sockets: RateLimit::of(LINES),
            explained: BTreeSet::new(),
        }
    }

    /// Returns the index of the worker.
    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    pub(super) fn log(&mut self, now: Instant, event: &Event) {
        let privacy = &*self.privacy;
        match event {
            Event::AllocationCreated { id, user, tuple, relay, lifetime } => {
                if self.users.allows(&mut self.allocations, user, now) {
                    tracing::info!(
                        event = "allocation-created", session = session(self.worker, *id),
                        user = privacy.user(user).as_deref(), client = privacy.address(tuple.client),
                        server = %tuple.server, transport = %tuple.transport, %relay, lifetime, "allocation created"
                    );
                }
            }
            // A client may do so every few seconds.
            Event::AllocationRefreshed { .. } => {}
            Event::AllocationEnded(ended) => {
                if self.users.allows(&mut self.allocations, &ended.user, now) {
                    tracing::info!(
                        event = "allocation-ended", session = session(self.worker, ended.id),
                        user = privacy.user(&ended.user).as_deref(),
                        client = privacy.address(ended.tuple.client), relay = %ended.relay,
                        reason = %ended.reason, duration = ended.duration.as_secs(),
                        bytes_to_peers = ended.traffic.bytes_to_peers, bytes_to_client = ended.traffic.bytes_to_client,
                        "allocation ended"
                    );
                }
            }
            Event::AuthenticationFailed { id, username, tuple, cause } => {
                if self.failed_authentications.allows(now) {
                    tracing::warn!(
                        event = "authentication-failed", session = id.map(|id| session(self.worker, id)),
                        user = privacy.username(username).as_deref(), client = privacy.address(tuple.client),
                        reason = %cause,
                        "authentication failed"
                    );
                }
            }
            Event::SourceWaits { id, username, tuple, waiting } => {
                if self.waiting_sources.allows(now) {
                    let whose = match waiting {
                        Waiting::User => "with this username at this source",
                        Waiting::Source => "of this source, with any username,",
                        Waiting::Site => "of the /48 of this source, with any username,",
                    };
                    tracing::warn!(
                        event = "source-waits",
                        session = id.map(|id| session(self.worker, id)),
                        user = privacy.username(username).as_deref(),
                        client = privacy.address(tuple.client),
                        limit = setting::FAILED_AUTHENTICATIONS,
                        "request dropped: authentication {whose} has failed more often than this limit allows"
                    );
                }
            }
            Event::AllocationRejected { user, tuple, reason } => {
                if self.rejected_allocations.allows(now) {
                    tracing::warn!(
                        event = "allocation-rejected",
                        user = privacy.user(user).as_deref(),
                        client = privacy.address(tuple.client),
                        reason,
                        "allocation rejected"
                    );
                }
            }
            Event::LimitReached { id, user, tuple, limit } => {
                if self.limits.get_mut(limit).is_some_and(|lines| lines.allows(now)) {
                    tracing::warn!(
                        event = "limit-reached",
                        session = id.map(|id| session(self.worker, id)),
                        user = privacy.user(user).as_deref(),
                        client = privacy.address(tuple.client),
                        limit = for_operator(limit.setting()),
                        "{}",
                        limit.note()
                    );
                }
            }
            Event::AllocationRedirected { user, tuple, server, cause: RedirectCause::Always } => {
                tracing::debug!(
                    event = "allocation-redirected",
                    user = privacy.user(user).as_deref(), client = privacy.address(tuple.client),
                    alternate = %server, "allocation redirected"
                );
            }
            Event::AllocationRedirected { user, tuple, server, cause } => {
                if self.redirected_allocations.allows(now) {
                    tracing::info!(
                        event = "allocation-redirected",
                        user = privacy.user(user).as_deref(), client = privacy.address(tuple.client),
                        alternate = %server, reason = %cause, "allocation redirected"
                    );
                }
            }
            Event::Rfc5766Channel { id, user, tuple, number } => {
                if self.rfc5766_channels.allows(now) {
                    tracing::warn!(
                        event = "channel-rejected",
                        session = session(self.worker, *id),
                        user = privacy.user(user).as_deref(),
                        client = privacy.address(tuple.client),
                        channel = format_args!("{number:#06x}"),
                        "channel rejected: RFC 8656 allows 0x4000 to 0x4fff; {} = true also allows 0x5000 to 0x7fff",
                        setting::RFC5766_CHANNELS
                    );
                }
            }
            Event::PeersRevoked { id, user, tuple, permissions, channels } => {
                if self.revoked_peers.allows(now) {
                    tracing::info!(
                        event = "peers-revoked",
                        session = session(self.worker, *id),
                        user = privacy.user(user).as_deref(),
                        client = privacy.address(tuple.client),
                        permissions,
                        channels,
                        "permissions or channels removed: the new configuration denies their peers or their channel numbers"
                    );
                }
            }
            Event::PeerDenied { id, user, tuple, peer, denial } => {
                let range = denial.label();
                if self.explained.insert(range) {
                    tracing::info!(
                        event = "peer-denied",
                        session = session(self.worker, *id),
                        user = privacy.user(user).as_deref(),
                        client = privacy.address(tuple.client),
                        peer = privacy.address(*peer),
                        range,
                        "peer denied. Browsers also send addresses of their own network; the call uses other addresses. \
                         {} allows a range. Each worker logs this once for each range",
                        setting::PEERS_ALLOW
                    );
                } else {
                    tracing::debug!(
                        event = "peer-denied",
                        session = session(self.worker, *id),
                        user = privacy.user(user).as_deref(),
                        client = privacy.address(tuple.client),
                        peer = privacy.address(*peer),
                        range,
                        "peer denied"
                    );
                }
            }
        }
    }

    /// Logs that this worker does not serve clients at a new listener.
    pub(super) fn listener_failed(&self, endpoint: Endpoint, error: &io::Error) {
        tracing::error!(
            event = "listener-failed", worker = self.worker, address = %endpoint.address,
            transport = endpoint.transport.as_str(), %error,
            "a worker cannot serve clients at a new listener; `reload-incomplete` says what to do"
        );
    }

    pub(super) fn connection_rejected(&mut self, now: Instant, client: SocketAddr, exceeded: QuotaExceeded) {
        if self.rejected_connections.allows(now) {
            let limit = match exceeded {
                QuotaExceeded::User => setting::CONNECTIONS_PER_SOURCE,
                QuotaExceeded::Server => setting::CONNECTIONS,
            };
            tracing::warn!(
                event = "connection-rejected",
                client = self.privacy.address(client),
                limit,
                "connection rejected: the limit is reached"
            );
        }
    }

    pub(super) fn allocated_connections_exceeded(
        &mut self,
        now: Instant,
        client: SocketAddr,
        allocation: Option<AllocationId>,
    ) {
        if self.rejected_connections.allows(now) {
            let limit = setting::ALLOCATED_CONNECTIONS_PER_SOURCE;
            tracing::warn!(
                event = "connection-closed",
                session = allocation.map(|id| session(self.worker, id)),
                client = self.privacy.address(client),
                limit,
                "connection closed: the limit is reached"
            );
        }
    }

    pub(super) fn plain_on_tls(&mut self, now: Instant, tuple: FiveTuple) {
        if self.plain_on_tls.allows(now) {
            tracing::warn!(
                event = "plain-on-tls-port", client = self.privacy.address(tuple.client), server = %tuple.server,
                "connection closed: the client sent TURN without TLS to a port of listen.tls. Some clients, such as \
                 libnice, do so with turns: URLs. Add the port to listen.tcp to serve them"
            );
        }
    }

    pub(super) fn tls_without_certificate(&mut self, now: Instant, tuple: FiveTuple) {
        if self.tls_without_certificate.allows(now) {
            tracing::warn!(
                event = "tls-without-certificate", client = self.privacy.address(tuple.client), server = %tuple.server,
                "connection closed: the client began a TLS handshake, but the server has no certificate. Set {} and \
                 {} to serve turns: URLs",
                setting::TLS_CERTIFICATE, setting::TLS_PRIVATE_KEY
            );
        }
    }

    pub(super) fn proxy_not_listed(&mut self, now: Instant, tuple: FiveTuple) {
        if self.proxies_not_listed.allows(now) {
            tracing::warn!(
                event = "proxy-not-listed", client = self.privacy.address(tuple.client), server = %tuple.server,
                transport = %tuple.transport,
                "PROXY header rejected: its source is not in {0}. If it is your proxy, add its address to {0}; otherwise \
                 a client tried to forge its address",
                setting::LISTEN_PROXIES
            );
        }
    }

    pub(super) fn proxy_header_failed(&mut self, now: Instant, proxy: FiveTuple, reason: &'static str) {
        if self.failed_proxy_headers.allows(now) {
            tracing::warn!(
                event = "proxy-header-failed", proxy = %proxy.client, server = %proxy.server,
                transport = %proxy.transport, reason,
                "a connection or datagram of a proxy was rejected: it must begin with a PROXY header. Let the proxy send \
                 one (HAProxy: send-proxy-v2; nginx: proxy_protocol on), or remove its address from {}",
                setting::LISTEN_PROXIES
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
            (&mut self.proxies_not_listed, "proxy-not-listed", "PROXY headers of sources that are not listed"),
            (
                &mut self.failed_proxy_headers,
                "proxy-header-failed",
                "connections and datagrams without a valid PROXY header",
            ),
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
    pub(super) privacy: Arc<Privacy>,
}

impl PacketLog {
    pub(super) fn new(privacy: Arc<Privacy>) -> Self {
        Self { limits: (0..Outcome::COUNT).map(|_| RateLimit::of(PACKET_LINES)).collect(), privacy }
    }

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
            Host::Client(client) => {
                tracing::debug!(event = "packet-failed", client = self.privacy.address(client), packets, "{outcome}");
            }
            Host::Peer(peer) => {
                tracing::debug!(event = "packet-failed", peer = self.privacy.address(peer), packets, "{outcome}");
            }
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

/// Returns the field `session` of an allocation.
fn session(worker: usize, allocation: AllocationId) -> DisplayValue<SessionId> {
    tracing::field::display(SessionId { worker, allocation })
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
pub(crate) struct RateLimit {
    lines: u32,
    window: Option<Deadline>,
    allowed: u32,
    suppressed: u64,
}

impl RateLimit {
    /// Returns the limit of the lines about one kind of problem that clients cause.
    pub(crate) fn of_problems() -> Self {
        Self::of(LINES)
    }

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

    pub(crate) fn allows(&mut self, now: Instant) -> bool {
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
    pub(crate) fn rest(&mut self) -> Option<u64> {
        (self.suppressed > 0).then(|| std::mem::take(&mut self.suppressed))
    }
}
