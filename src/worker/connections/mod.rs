//! TCP and TLS connections: their acceptance, their number, and the reason why each one ends.

mod eviction;
mod front;
mod handshake;
mod outbound;
mod places;
mod proxy_header;
mod stream;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::event_log::Host;
use super::{Shell, Worker};
use crate::by_source::Source;
use crate::net::tcp;
use crate::net::tls::Failure;
use crate::proxy_protocol::Addresses;
use crate::transport::Transport;
use crate::turn::{AllocationId, Direction, DropReason, FiveTuple, Instant, QuotaExceeded, SocketId};
use eviction::Eviction;
pub(crate) use eviction::{EvictionRequest, OtherWorkers};
use handshake::Handshakes;
use outbound::{Outbound, Shared};
use places::{Place, Places};
use proxy_header::{Wait, Waiting};

pub(super) use front::serve;

/// The memory of the queues for all clients of a worker on connections, in bytes. If it is exceeded, the relayed data of
/// the largest queues is dropped. If that does not suffice, the connections with the largest queues end.
const MAX_HELD: usize = 16 * 1024 * 1024;

/// Limits on connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// Connections without an allocation from one source: an IPv4 address or an IPv6 /64; 0 for no limit.
    pub(crate) per_source: u32,
    /// The same for connections with an allocation.
    pub(crate) allocated_per_source: u32,
    /// Connections of the server; 0 for no limit.
    pub(crate) in_all: u32,
}

/// How long a worker waits for clients on connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// From the connection to the end of the TLS handshake.
    pub(crate) tls_handshake: Duration,
    /// From the end of the handshake to the first request.
    pub(crate) first_request: Duration,
    /// From one request to the next, on a connection without an allocation.
    pub(crate) idle: Duration,
    /// From the end of the handshake to the first allocation.
    pub(crate) unauthenticated: Duration,
}

/// The connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// The queue of each connection.
    open: HashMap<FiveTuple, Rc<RefCell<Outbound>>>,
    /// What the queues share.
    queues: Rc<Shared>,
    places: Rc<RefCell<Places>>,
    handshakes: Rc<RefCell<Handshakes>>,
    /// The connections that wait for the header of their proxy.
    waiting: Rc<RefCell<Waiting>>,
    /// What other workers were asked to evict since a connection was admitted here.
    asked: BTreeSet<Eviction>,
    /// The worker accepts no further connections, and each open one ends once its queue is written.
    stopping: bool,
    /// Notified when the last connection has ended.
    none_left: Rc<Notify>,
}

impl Connections {
    /// Adds an empty queue, as if a client had connected.
    #[cfg(test)]
    pub(super) fn open_for_tests(&mut self, tuple: FiveTuple) {
        let outbound = Outbound::new(&tuple, Rc::clone(&self.queues));
        self.open.insert(tuple, Rc::new(RefCell::new(outbound)));
    }

    /// Ends every connection as soon as its queue is written.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        for outbound in self.open.values() {
            outbound.borrow_mut().finish();
        }
    }

    /// Says that no packet arrived in the iteration that ends.
    pub(super) fn worker_is_idle(&self) {
        self.handshakes.borrow().worker_is_idle();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn none_left(&self) -> &Rc<Notify> {
        &self.none_left
    }

    /// Queues a response, or an indication about an ICMP error. Returns whether the connection exists.
    pub(super) fn push_response(&self, tuple: &FiveTuple, message: &[u8], has_allocation: bool) -> bool {
        let outbound = self.open.get(tuple);
        if let Some(outbound) = outbound {
            self.queues.limit(MAX_HELD, self.open.values());
            outbound.borrow_mut().push_response(message, has_allocation);
        }
        outbound.is_some()
    }

    /// Says that a request that waited for the user database was resumed. It may have created the allocation.
    pub(super) fn resumed(&self, tuple: &FiveTuple) {
        if let Some(outbound) = self.open.get(tuple) {
            outbound.borrow_mut().resume();
        }
    }

    /// Queues relayed data with `payload` bytes of application data, which consists of a few parts. It is counted when
    /// it was written or dropped.
    pub(super) fn push_data(
        &self,
        now: Instant,
        tuple: &FiveTuple,
        socket: SocketId,
        payload: usize,
        parts: [&[u8]; 3],
    ) -> Result<(), DropReason> {
        let outbound = self.open.get(tuple).ok_or(DropReason::SendFailed)?;
        self.queues.limit(MAX_HELD, self.open.values());
        let queued = outbound.borrow_mut().push_data(now, socket, payload, parts);
        if queued { Ok(()) } else { Err(DropReason::SendBufferFull) }
    }
}

/// A connection that counts as accepted.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) tuple: FiveTuple,
    place: Place,
    /// The connection must begin with a PROXY header. Until then, the client is the proxy.
    wait: Option<Box<Wait>>,
}

impl Worker {
    /// Returns a new connection with its place; `None` if the connection is rejected. One from a proxy waits for its
    /// header.
    pub(super) fn accept(&mut self, stream: &TcpStream, transport: Transport) -> Option<Admitted> {
        let real = self.prepare(stream)?;
        if !self.shell.snapshot.is_proxy(real.client.ip()) {
            return self.admit_with(real, transport);
        }
        // A proxy hides its clients, so it may have any number of connections.
        let limits = ConnectionLimits { per_source: 0, ..self.shell.snapshot.connection_limits };
        let mut admitted = self.count_admitted(real, transport, &limits)?;
        let wait = Waiting::begin(&self.shell.connections.waiting, Source::of(real.client.ip()));
        admitted.wait = Some(Box::new(wait));
        Some(admitted)
    }

    /// Returns a connection that a front has accepted, with its place; `None` if the connection is rejected. The front
    /// has read the header that names its addresses, if there is one.
    pub(super) fn admit(&mut self, stream: &TcpStream, addresses: Addresses, transport: Transport) -> Option<Admitted> {
        self.prepare(stream)?;
        self.admit_with(addresses, transport)
    }

    /// Configures a new connection and returns its addresses; `None` if it cannot be served.
    fn prepare(&mut self, stream: &TcpStream) -> Option<Addresses> {
        let shell = &mut self.shell;
        if shell.connections.stopping {
            return None;
        }
        let Ok((client, server)) = prepare(stream) else {
            // The client has already closed the connection.
            shell.statistics.count_connection(ConnectionOutcome::Accepted, 1);
            shell.statistics.count_connection(ConnectionOutcome::Ended(CloseReason::Broken), 1);
            return None;
        };
        // A client has one 5-tuple, whatever the address family of the listener's socket.
        Some(Addresses { client, server }.canonical())
    }

    fn admit_with(&mut self, addresses: Addresses, transport: Transport) -> Option<Admitted> {
        let limits = self.shell.snapshot.connection_limits;
        self.count_admitted(addresses, transport, &limits)
    }

    /// Counts a connection as accepted or rejected.
    fn count_admitted(
        &mut self,
        Addresses { client, server }: Addresses,
        transport: Transport,
        limits: &ConnectionLimits,
    ) -> Option<Admitted> {
        let place = self.place(client, limits);
        let outcome = place.as_ref().map_or_else(|exceeded| (*exceeded).into(), |_| ConnectionOutcome::Accepted);
        self.shell.statistics.count_connection(outcome, 1);
        let place = place.ok()?;
        self.shell.statistics.connection_opened(transport);
        Some(Admitted { tuple: FiveTuple { client, server, transport }, place, wait: None })
    }

    /// Returns a place for a connection of a client. If there is none, asks the other workers for one and logs that.
    fn place(&mut self, client: SocketAddr, limits: &ConnectionLimits) -> Result<Place, QuotaExceeded> {
        let shell = &mut self.shell;
        let source = Source::of(client.ip());
        let place = Places::admit(&shell.connections.places, &shell.ledger.connections, source, limits);
        match &place {
            Ok(_) => {
                shell.connections.asked.remove(&Eviction::in_all());
                shell.connections.asked.remove(&Eviction::of(source));
            }
            Err(exceeded) => {
                let eviction = Eviction::for_rejected(source, *exceeded);
                // Of many connections that are rejected at once, most will not come again.
                if shell.connections.asked.insert(eviction) {
                    shell.others.ask_for(eviction);
                }
                let now = shell.now();
                shell.events.connection_rejected(now.monotonic, client, *exceeded);
            }
        }
        place
    }

    /// Gives a connection from a proxy the addresses of its header and a place of its client. Without addresses, the
    /// client is the proxy.
    fn identify(&mut self, admitted: Admitted, given: Option<Addresses>) -> Result<Admitted, CloseReason> {
        let Admitted { tuple, place, .. } = admitted;
        let Addresses { client, server } =
            given.map_or(Addresses { client: tuple.client, server: tuple.server }, Addresses::canonical);
        // The connection has one place at a time.
        drop(place);
        let limits = self.shell.snapshot.connection_limits;
        let place = self.place(client, &limits)?;
        Ok(Admitted { tuple: FiveTuple { client, server, ..tuple }, place, wait: None })
    }

    /// Counts a connection as one with or without an allocation.
    fn count_allocation(&mut self, tuple: &FiveTuple, place: &mut Place) -> Result<(), CloseReason> {
        let shell = &mut self.shell;
        let allocation = shell.server.allocation_of(tuple);
        let has_allocation = allocation.is_some();
        if place.has_allocation() == has_allocation {
            return Ok(());
        }
        let limits = &shell.snapshot.connection_limits;
        place.set_allocation(&shell.ledger.connections, has_allocation, limits).map_err(|_| {
            let now = shell.now();
            shell.events.allocated_connections_exceeded(now.monotonic, tuple.client, allocation);
            CloseReason::TooManyAllocated
        })
    }

    pub(super) fn accept_failed(&mut self, error: &io::Error) {
        self.shell.statistics.count_connection(ConnectionOutcome::AcceptFailed, 1);
        let now = self.shell.now();
        self.shell.events.accept_failed(now.monotonic, error);
    }

    /// Adds a connection.
    fn connected(&mut self, tuple: FiveTuple, outbound: Rc<RefCell<Outbound>>) {
        if self.shell.connections.stopping {
            outbound.borrow_mut().finish();
        }
        if let Some(old) = self.shell.connections.open.insert(tuple, outbound) {
            // The client reuses the port, so its old connection is broken. The task of that connection has not detected
            // this yet.
            old.borrow_mut().abandon();
            self.shell.settle(&old);
            self.end_allocation(&tuple);
        }
    }

    /// Asks other workers again for what they had nothing to evict.
    pub(super) fn forget_asked(&mut self) {
        self.shell.connections.asked.clear();
    }

    /// Drops relayed data that has waited for too long, for clients that do not read.
    pub(super) fn drop_old_data(&mut self) {
        let now = self.shell.now().monotonic;
        let waits = |queue: &&Rc<RefCell<Outbound>>| queue.borrow().has_data_or_results();
        let queues: Vec<_> = self.shell.connections.open.values().filter(waits).cloned().collect();
        for queue in queues {
            queue.borrow_mut().drop_old(now);
            self.shell.settle(&queue);
        }
    }

    /// Drops and counts all relayed data that waits, because the worker ends.
    pub(super) fn abandon_data(&mut self) {
        let queues: Vec<_> = self.shell.connections.open.values().cloned().collect();
        for queue in queues {
            queue.borrow_mut().abandon();
            self.shell.settle(&queue);
        }
    }

    /// Removes a connection and ends its allocation.
    fn disconnected(&mut self, tuple: &FiveTuple, outbound: &Rc<RefCell<Outbound>>, close: CloseReason) {
        outbound.borrow_mut().abandon();
        self.shell.settle(outbound);
        let connections = &mut self.shell.connections;
        if connections.open.get(tuple).is_some_and(|current| Rc::ptr_eq(current, outbound)) {
            connections.open.remove(tuple);
            self.end_allocation(tuple);
        }
        if self.shell.connections.open.is_empty() {
            self.shell.connections.none_left.notify_one();
        }
        self.connection_ended(tuple, close);
    }

    /// Sets the transport of a connection, which its first byte shows.
    fn set_transport(&mut self, admitted: &mut Admitted, transport: Transport) {
        self.shell.statistics.connection_closed(admitted.tuple.transport);
        self.shell.statistics.connection_opened(transport);
        admitted.tuple.transport = transport;
    }

    /// Counts a connection that has ended.
    fn connection_ended(&mut self, tuple: &FiveTuple, close: CloseReason) {
        self.shell.statistics.count_connection(ConnectionOutcome::Ended(close), 1);
        self.shell.statistics.connection_closed(tuple.transport);
        tracing::debug!(
            event = "connection-ended", client = self.shell.snapshot.privacy.address(tuple.client),
            transport = %tuple.transport, reason = %close, "connection ended"
        );
    }

    fn end_allocation(&mut self, tuple: &FiveTuple) {
        let now = self.shell.now();
        self.shell.server.connection_closed(now.monotonic, tuple);
        self.shell.carry_out(now);
    }
}

impl Shell {
    /// Counts the relayed data that a queue has written or dropped.
    fn settle(&mut self, outbound: &RefCell<Outbound>) {
        let Self { server, statistics, packet_log, clock, .. } = self;
        for result in outbound.borrow_mut().settled() {
            packet_log.log(clock, Host::Client(result.to), result.outcome, result.packets);
            super::count_sent(server, statistics, Direction::ToClient, result);
        }
    }

    /// Drops and counts the relayed data that waits for the client of an allocation that has ended.
    pub(super) fn drop_data_of(&mut self, allocation: AllocationId, tuple: &FiveTuple) {
        if let Some(outbound) = self.connections.open.get(tuple).cloned() {
            outbound.borrow_mut().drop_data_of(allocation);
            self.settle(&outbound);
        }
    }
}

/// Configures a new connection to send at once and to detect an unreachable client. Returns the addresses of both ends.
fn prepare(stream: &TcpStream) -> io::Result<(SocketAddr, SocketAddr)> {
    // Responses are written whole, so waiting for more data would only delay them.
    stream.set_nodelay(true)?;
    tcp::limit_unsent_data(stream)?;
    tcp::enable_dead_peer_detection(stream)?;
    Ok((stream.peer_addr()?, stream.local_addr()?))
}

macro_rules! close_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a connection ended. Each accepted connection ends for exactly one reason.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum CloseReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl CloseReason {
            /// Every reason.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in logs and counters.
            #[must_use]
            pub(crate) fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }
        }
    };
}

close_reasons! {
    /// The client closed the connection, or its own direction of it.
    ByClient = "closed-by-client",
    /// The client closed a TLS connection without `close_notify`, or during the handshake.
    Truncated = "closed-without-notify",
    /// The client sent something other than TURN.
    Garbage = "not-turn",
    /// The client negotiated `stun.nat-discovery` and sent a request other than Binding (RFC 7443).
    OtherUsage = "not-nat-discovery",
    /// The client does not read its responses.
    Unread = "responses-unread",
    /// The client has no allocation and sent no request in time.
    Idle = "idle",
    /// The client created no allocation on the connection in time.
    Unauthenticated = "unauthenticated",
    /// The server, or the source, had as many connections as allowed. This was the oldest one without an allocation of
    /// the source with the most of them, or of the source.
    Evicted = "evicted",
    /// The source has as many connections with an allocation as allowed.
    TooManyAllocated = "allocated-connections-per-source",
    /// The connection broke.
    Broken = "broken",
    /// The TLS handshake took too long.
    HandshakeTimeout = "tls-handshake-timeout",
    /// There were too many unfinished TLS handshakes. This was the oldest of the source with the most of them.
    HandshakeEvicted = "tls-handshake-evicted",
    /// The client sent more bytes than a TLS handshake takes.
    HandshakeTooLong = "tls-handshake-too-long",
    /// The client sent something other than TLS.
    NotTls = "not-tls",
    /// The client offered no application protocol that the server speaks (RFC 7301 §3.2).
    NoApplicationProtocol = "no-application-protocol",
    /// The client and the server have no TLS version, cipher suite or signature scheme in common.
    Incompatible = "tls-incompatible",
    /// The client was an authority that checked a name of this server (RFC 8737). It has got its response.
    Challenge = "acme-challenge",
    /// The client sent a TLS alert, for example because it does not trust the certificate.
    Alert = "tls-alert-from-client",
    /// The client violated the TLS protocol.
    Violation = "tls-violation",
    /// A connection from a proxy did not begin with a PROXY header.
    ProxyHeaderMissing = "proxy-header-missing",
    /// The PROXY header was not valid.
    ProxyHeaderMalformed = "proxy-header-malformed",
    /// The PROXY header was longer than the server reads.
    ProxyHeaderTooLong = "proxy-header-too-long",
    /// The PROXY header was not complete in time.
    ProxyHeaderTimeout = "proxy-header-timeout",
    /// Too many connections waited for their PROXY header. This was the oldest of the proxy with the most of them.
    ProxyHeaderEvicted = "proxy-header-evicted",
    /// A connection began with a PROXY header, but its source is not a proxy.
    ProxyHeaderUnexpected = "proxy-header-unexpected",
    /// The client behind a proxy has as many connections as a source may have.
    TooManyOfSource = "connections-per-source",
    /// The server had as many connections as allowed when the header of a proxy named the client.
    TooMany = "connections",
    /// The server stopped.
    ServerStopped = "server-stopped",
}

impl CloseReason {
    /// The reasons for which TLS handshakes fail.
    pub(crate) const OF_HANDSHAKES: [Self; 12] = [
        Self::Truncated,
        Self::Evicted,
        Self::Broken,
        Self::HandshakeTimeout,
        Self::HandshakeEvicted,
        Self::HandshakeTooLong,
        Self::NotTls,
        Self::NoApplicationProtocol,
        Self::Incompatible,
        Self::Challenge,
        Self::Alert,
        Self::Violation,
    ];
}

impl From<QuotaExceeded> for CloseReason {
    fn from(exceeded: QuotaExceeded) -> Self {
        match exceeded {
            QuotaExceeded::User => Self::TooManyOfSource,
            QuotaExceeded::Server => Self::TooMany,
        }
    }
}

impl From<Failure> for CloseReason {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotTls => Self::NotTls,
            Failure::NoApplicationProtocol => Self::NoApplicationProtocol,
            Failure::Incompatible => Self::Incompatible,
            Failure::Challenge => Self::Challenge,
            Failure::Alert => Self::Alert,
            Failure::Violation => Self::Violation,
            Failure::TooLong => Self::HandshakeTooLong,
            Failure::Truncated => Self::Truncated,
            Failure::Broken => Self::Broken,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The outcome of a connection: one of the first four variants. An accepted connection has a second outcome, its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionOutcome {
    Accepted,
    /// The source has as many connections as allowed.
    RejectedBySource,
    /// The server has as many connections as allowed.
    Rejected,
    /// `accept` failed.
    AcceptFailed,
    Ended(CloseReason),
}

impl ConnectionOutcome {
    pub(crate) const COUNT: usize = 4 + CloseReason::ALL.len();

    /// Returns every outcome, in the order of their indices.
    fn all() -> impl Iterator<Item = Self> {
        [Self::Accepted, Self::RejectedBySource, Self::Rejected, Self::AcceptFailed]
            .into_iter()
            .chain(CloseReason::ALL.iter().copied().map(Self::Ended))
    }

    /// Returns the index of the outcome in an array of [`COUNT`](Self::COUNT) counters.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Accepted => 0,
            Self::RejectedBySource => 1,
            Self::Rejected => 2,
            Self::AcceptFailed => 3,
            Self::Ended(close) => 4 + close as usize,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::RejectedBySource => "rejected connections-per-source",
            Self::Rejected => "rejected connections",
            Self::AcceptFailed => "accept failed",
            Self::Ended(close) => close.label(),
        }
    }
}

impl From<QuotaExceeded> for ConnectionOutcome {
    fn from(exceeded: QuotaExceeded) -> Self {
        match exceeded {
            QuotaExceeded::User => Self::RejectedBySource,
            QuotaExceeded::Server => Self::Rejected,
        }
    }
}

/// The number of connections by outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionCounters([u64; ConnectionOutcome::COUNT]);

impl Default for ConnectionCounters {
    fn default() -> Self {
        Self([0; ConnectionOutcome::COUNT])
    }
}

impl From<[u64; ConnectionOutcome::COUNT]> for ConnectionCounters {
    /// The counts are in the order of [`ConnectionOutcome::index`].
    fn from(counts: [u64; ConnectionOutcome::COUNT]) -> Self {
        Self(counts)
    }
}

impl ConnectionCounters {
    /// Returns the number of connections that are open.
    pub(crate) fn open(&self) -> u64 {
        let [accepted, _, _, _, ended @ ..] = &self.0;
        accepted.saturating_sub(ended.iter().sum())
    }

    /// Adds the counts of another worker.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, other)| *count += other);
    }

    /// Returns the number of connections with `outcome`.
    #[expect(clippy::indexing_slicing, reason = "every index of an outcome is below COUNT, see its test")]
    pub(crate) fn get(&self, outcome: ConnectionOutcome) -> u64 {
        self.0[outcome.index()]
    }

    /// Returns the number of connections that ended, by reason.
    pub(crate) fn ended(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        CloseReason::ALL.iter().map(|reason| (reason.label(), self.get(ConnectionOutcome::Ended(*reason))))
    }

    /// Returns every outcome that occurred, by name and count.
    pub(crate) fn occurred(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let named = ConnectionOutcome::all().map(ConnectionOutcome::label);
        named.zip(self.0).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use socket2::SockRef;
    use tokio::net::TcpListener;

    use super::*;

    // Relayed data that waits in the kernel cannot be dropped when it becomes old.
    #[tokio::test]
    async fn a_new_connection_queues_little_in_the_kernel_and_detects_a_dead_client() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let addresses = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert_eq!(prepare(&stream).unwrap(), addresses);
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 32 * 1024);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    }

    /// Returns the connections of clients that do not read, and their 5-tuples.
    fn unread(count: u16) -> (Connections, Vec<FiveTuple>) {
        let mut connections = Connections::default();
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let tuple = |port| FiveTuple { client: address(port), server: address(1), transport: Transport::Tcp };
        let tuples: Vec<FiveTuple> = (1_000..1_000 + count).map(tuple).collect();
        tuples.iter().for_each(|tuple| connections.open_for_tests(*tuple));
        (connections, tuples)
    }

    // Each client may have 512 KiB of data and 64 KiB of responses.
    #[test]
    fn the_memory_for_all_clients_that_do_not_read_is_limited() {
        let (connections, tuples) = unread(48);
        let now = Instant::from_elapsed(Duration::ZERO);
        for tuple in tuples.iter().flat_map(|tuple| [tuple; 8]) {
            let data = [7; 60_000];
            let queued = connections.push_data(now, tuple, SocketId::for_tests(1), 1, [&data, &[], &[]]);
            assert_eq!(queued, Ok(()), "the data of other clients gives way");
        }
        let settled =
            |queue: &Rc<RefCell<Outbound>>| queue.borrow_mut().settled().map(|result| result.packets).sum::<u64>();
        let dropped: u64 = connections.open.values().map(settled).sum();
        // 16 MiB hold at most 279 of the 384 messages.
        assert!((105..300).contains(&dropped), "{dropped}");
    }

    #[tokio::test]
    async fn connections_with_many_unread_responses_end_when_all_together_have_too_many() {
        let (connections, tuples) = unread(512);
        for tuple in &tuples {
            assert!(connections.push_response(tuple, &[7; 60_000], true));
        }
        let now = Instant::from_elapsed(Duration::ZERO);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut ended = 0;
        for outbound in connections.open.values() {
            let written = outbound.borrow_mut().poll_write(&mut cx, now, &mut tokio::io::sink());
            ended += u32::from(written == std::task::Poll::Ready(CloseReason::Unread));
        }
        // 16 MiB hold at most 279 of the 512 responses.
        assert!((233..400).contains(&ended), "{ended}");
    }

    #[test]
    fn every_outcome_has_a_counter_and_a_name_of_its_own() {
        for (index, outcome) in ConnectionOutcome::all().enumerate() {
            assert_eq!(outcome.index(), index);
        }
        let one_of_each = ConnectionCounters([1; ConnectionOutcome::COUNT]);
        let mut sum = one_of_each.clone();
        sum.add(&one_of_each);
        let names: BTreeSet<_> = sum.occurred().collect();
        assert_eq!(names.len(), ConnectionOutcome::COUNT);
        assert!(names.iter().all(|(_, count)| *count == 2));
    }

    #[test]
    fn connections_that_have_not_ended_are_open() {
        let mut counts = [0; ConnectionOutcome::COUNT];
        counts[ConnectionOutcome::Accepted.index()] = 3;
        counts[ConnectionOutcome::RejectedBySource.index()] = 5;
        counts[ConnectionOutcome::Ended(CloseReason::ByClient).index()] = 1;
        assert_eq!(ConnectionCounters::from(counts).open(), 2);
    }
}
