//! The event loop around one core: a thread with its own runtime, listeners and relay sockets.
//!
//! Everything here belongs to one thread. Each listener and each connection has a task, and all relay sockets share
//! one. A task waits for readiness and then passes the received packets to `Worker`, which asks the core for decisions
//! and carries them out. Control sends commands through the [`mod@mailbox`] and reads the [`Statistics`].

mod connections;
mod event_log;
mod feed;
mod from_clients;
mod from_peers;
mod iterations;
mod lookups;
mod mailbox;
#[cfg(feature = "offload")]
mod offload;
#[cfg(not(feature = "offload"))]
#[path = "no_offload.rs"]
mod offload;
mod outbox;
mod pace;
mod proxied;
mod relays;
mod session;
mod statistics;
mod tasks;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;

use ipnet::IpNet;
use rand::rngs::StdRng;
use tokio::runtime::LocalOptions;
use tokio::sync::{Notify, mpsc, watch as channel};
use tokio::task::JoinHandle;

use crate::clock::{self, Clock};
use crate::net::batch::{DropCounter, RecvBatch, SlotLayout};
use crate::net::limits::SpareFiles;
use crate::net::watch::Readable;
use crate::net::{timer, tls, udp, watch};
use crate::privacy::Privacy;
use crate::transport::Endpoint;
use crate::turn::{
    self, Action, AllocationDetail, AllocationId, AllocationInfo, Context, Cursor, DatabaseUnavailable, Direction,
    DropReason, Event, Filter, HEADROOM, Instant, LARGEST_FRAME, Ledger, Oldest, OpenError, Opened, Operator, Outcome,
    Page, RESPONSE_BUFFER, Server, SocketId, SocketSpec, TAILROOM,
};
use connections::{CloseReason, Connections};
pub(crate) use connections::{ConnectionLimits, ConnectionOutcome, OtherWorkers, Timeouts};
pub(crate) use event_log::RateLimit;
use event_log::{EventLog, Host, PacketLog};
pub(crate) use feed::{Feed, FeedReader, LostRecords, RecordBatch, SessionRecord, feed};
use iterations::Iterations;
use lookups::Lookups;
pub(crate) use lookups::{LookedUp, Lookup, lookups};
pub(crate) use mailbox::{AlteredListener, FailedListener, Handle, ListenerChange, Mailbox, WorkerEnded, mailbox};
#[cfg(feature = "offload")]
pub(crate) use offload::Blocks as OffloadBlocks;
use offload::{Offload, Relayed};
pub(crate) use offload::{Plan as OffloadPlan, REASONS as OFFLOAD_REASONS};
use outbox::{Flow, SendResult, Staged, StagedForClients};
use pace::Pace;
use proxied::Proxied;
use relays::RelaySockets;
pub(crate) use session::{NotASessionId, SessionId};
use statistics::SocketRole;
pub(crate) use statistics::{
    Distribution, EventLoop, HANDSHAKE_BOUNDS, LIFETIME_BOUNDS, OffloadTotals, SIZE_BOUNDS, Statistics, Totals,
};

/// The longest UDP payload, and one more byte to detect a longer one.
const LARGEST_DATAGRAM: usize = 65_536;

/// The maximum number of bytes that one read of a connection returns.
const LARGEST_READ: usize = 64 * 1024;

/// The size of the buffer for connections. It holds an incomplete message from the preceding read, and one read after
/// it.
const STREAM_BUFFER: usize = LARGEST_FRAME + LARGEST_READ;

/// The layout of a slot for a datagram.
const SLOT: SlotLayout = SlotLayout { headroom: HEADROOM, payload: LARGEST_DATAGRAM, tailroom: TAILROOM };

/// The number of allocations whose expiry is handled before packets are served again.
const ADVANCED: usize = 64;

/// The default size of a thread's stack in the standard library.
const STACK: usize = 2 << 20;

/// Returns the address space that a worker needs for its buffers and its stack.
pub(crate) fn address_space() -> usize {
    let slots = from_clients::BATCH + from_peers::BATCH;
    slots * SLOT.size() + STREAM_BUFFER + RESPONSE_BUFFER + STACK
}

/// Everything that a worker needs to start. All listeners are bound before the first worker starts. If one of them
/// cannot be bound, no worker starts.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The index of the worker.
    pub(crate) index: usize,
    /// The listeners at the start. Each worker has its own socket for each endpoint.
    pub(crate) listeners: Vec<BoundListener>,
    /// The initial configuration. The mailbox delivers later ones.
    pub(crate) snapshot: Arc<Snapshot>,
    /// The state that all workers share.
    pub(crate) ledger: Arc<Ledger>,
    /// The counters of this worker, which control reads.
    pub(crate) statistics: Arc<Statistics>,
    /// Commands from control and from other workers.
    pub(crate) mailbox: Mailbox,
    /// The records of allocations, for accounting.
    pub(crate) feed: Feed,
    pub(crate) others: OtherWorkers,
    /// Look-ups in the user database.
    pub(crate) lookups: mpsc::Sender<Lookup>,
    pub(crate) spare: SpareFiles,
    /// The clock of the process.
    pub(crate) clock: Clock,
    /// The random number generator of this worker, seeded from the generator of the system.
    pub(crate) rng: StdRng,
    /// Lets the kernel relay channels.
    pub(crate) offload: Option<OffloadPlan>,
    /// Becomes true when the worker has to stop.
    pub(crate) stop: channel::Receiver<bool>,
}

/// A listener whose socket is bound.
#[derive(Debug)]
pub(crate) struct BoundListener {
    /// The endpoint that clients reach, with the actual port.
    pub(crate) endpoint: Endpoint,
    pub(crate) socket: ListenerSocket,
    /// Clients without TLS are served. TLS is served on every connection if there is a certificate.
    pub(crate) plain: bool,
}

/// The socket of a listener.
#[derive(Debug)]
pub(crate) enum ListenerSocket {
    /// Receives datagrams.
    Udp(UdpSocket),
    /// Accepts connections, for TCP and for TLS. The kernel may give it none until a worker serves it.
    Tcp(TcpListener),
}

impl ListenerSocket {
    /// Returns the address that the socket is bound to.
    ///
    /// # Errors
    /// If the kernel does not report it.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Tcp(socket) => socket.local_addr(),
        }
    }
}

/// The part of the configuration that workers read. A reload replaces it as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// The configuration of the core.
    pub(crate) core: Arc<turn::Snapshot>,
    pub(crate) connection_limits: ConnectionLimits,
    pub(crate) timeouts: Timeouts,
    /// Serves TLS handshakes; `None` without a certificate.
    pub(crate) tls: Option<tls::Acceptor>,
    /// The challenges of an authority that are pending.
    pub(crate) challenges: Arc<tls::Challenges>,
    /// What the log says about clients, peers and users.
    pub(crate) privacy: Arc<Privacy>,
    /// The indices of the interfaces that have the XDP program.
    pub(crate) offload_interfaces: Arc<BTreeSet<u32>>,
    /// The sources whose connections and datagrams begin with a PROXY header.
    pub(crate) proxies: Arc<[IpNet]>,
    /// Whether the beginning and the end of each allocation are recorded, for accounting.
    pub(crate) records: bool,
}

impl Snapshot {
    fn is_proxy(&self, source: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(&source))
    }
}

/// Runs a worker on this thread until it has to stop. Calls `started` once clients can be served.
///
/// # Errors
/// If the runtime cannot be created, a socket cannot be registered with it, or a task of the worker panics.
pub(crate) fn run(plan: Plan, started: impl FnOnce()) -> io::Result<()> {
    // If this fails, pauses take longer. There is no other effect.
    let _ = timer::minimize_timer_slack();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time();
    let runtime = runtime.on_thread_park(tasks::end_iteration).on_thread_unpark(tasks::begin_iteration);
    // A `LocalSet` would add a second queue before that of the runtime.
    let runtime = runtime.build_local(LocalOptions::default())?;
    runtime.block_on(tasks::serve(plan, started))
}

/// A UDP socket that clients send to.
#[derive(Debug)]
struct Listener {
    socket: Readable,
    address: SocketAddr,
    drops: Cell<DropCounter>,
}

impl Listener {
    fn new(socket: UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        // Old kernels do not support GRO. Datagrams then arrive one by one.
        udp::enable_gro(&socket);
        Ok(Self { socket: watch::readable(socket)?, address, drops: Cell::default() })
    }

    /// Returns whether the listener is bound to `server` or, unless `exactly`, to the wildcard address and the port of
    /// `server`. The kernel prefers the listener of the exact address, so the caller searches for it first.
    fn serves(&self, server: SocketAddr, exactly: bool) -> bool {
        serves(self.address, server, exactly)
    }
}

fn serves(listener: SocketAddr, server: SocketAddr, exactly: bool) -> bool {
    let wildcard = !exactly && listener.ip().is_unspecified();
    listener.port() == server.port() && (wildcard || listener.ip() == server.ip())
}

/// Returns the listener that serves the clients of an address of this server.
fn serving(listeners: &[SocketAddr], server: SocketAddr) -> Option<SocketAddr> {
    let find = |exactly| listeners.iter().copied().find(|listener| serves(*listener, server, exactly));
    find(true).or_else(|| find(false))
}

/// An allocation as control describes it.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) detail: AllocationDetail,
    /// For each channel, why user space relays its packets to the peer, and why those to the client; `None` if the
    /// kernel does. Empty without offload.
    pub(crate) offload: Vec<Option<[Option<String>; 2]>>,
}

/// The time, read once for a batch of packets.
#[derive(Clone, Copy, Debug)]
struct Now {
    monotonic: Instant,
    unix: u64,
}

/// One worker: the buffers into which packets from clients are received, and everything else.
///
/// A buffer and the datagrams queued from it form one value ([`Staged`]), which is passed along with each packet.
#[derive(Debug)]
struct Worker {
    shell: Shell,
    /// Datagrams that listeners receive.
    datagrams: Staged<RecvBatch>,
    /// Bytes that connections receive.
    stream: Staged<Box<[u8]>>,
    listening: Vec<Listening>,
}

/// A listener, and the task that serves it.
#[derive(Debug)]
struct Listening {
    endpoint: Endpoint,
    task: JoinHandle<()>,
    /// `Some` if it accepts connections.
    acceptor: Option<Rc<tasks::Acceptor>>,
}

/// The core, and everything that carries out its decisions.
#[derive(Debug)]
struct Shell {
    server: Server,
    snapshot: Arc<Snapshot>,
    ledger: Arc<Ledger>,
    statistics: Arc<Statistics>,
    listeners: Vec<Rc<Listener>>,
    relays: RelaySockets,
    spare: SpareFiles,
    /// Datagrams that relay sockets receive and that are sent to clients over UDP.
    to_clients: StagedForClients,
    connections: Connections,
    others: OtherWorkers,
    lookups: Lookups,
    /// The clients behind proxies, over UDP; `None` if there are no proxies.
    proxied: Option<Proxied>,
    response: Box<[u8]>,
    pace: Pace,
    iterations: Iterations,
    clock: Clock,
    rng: StdRng,
    events: EventLog,
    feed: Feed,
    packet_log: PacketLog,
    offload: Option<Offload>,
    panicked: Rc<Notify>,
}

impl Worker {
    fn new(plan: Plan) -> io::Result<(Rc<RefCell<Self>>, Mailbox)> {
        let (core, ledger) = (Arc::clone(&plan.snapshot.core), Arc::clone(&plan.ledger));
        let privacy = Arc::clone(&plan.snapshot.privacy);
        let clock_start = clock::monotonic().saturating_sub(plan.clock.elapsed());
        let interfaces = Arc::clone(&plan.snapshot.offload_interfaces);
        let proxied = (!plan.snapshot.proxies.is_empty()).then(Proxied::default);
        let mut shell = Shell {
            server: Server::new(core, ledger),
            snapshot: plan.snapshot,
            ledger: plan.ledger,
            statistics: plan.statistics,
            relays: RelaySockets::new(plan.spare.clone())?,
            spare: plan.spare,
            to_clients: StagedForClients::new(RecvBatch::try_new(from_peers::BATCH, SLOT)?),
            listeners: Vec::new(),
            connections: Connections::default(),
            others: plan.others,
            lookups: Lookups::new(plan.index, plan.lookups),
            proxied,
            response: vec![0; RESPONSE_BUFFER].into(),
            iterations: Iterations::new(plan.clock.elapsed()),
            pace: Pace::new(Instant::from_elapsed(plan.clock.elapsed())),
            clock: plan.clock,
            rng: plan.rng,
            events: EventLog::new(plan.index, Arc::clone(&privacy)),
            feed: plan.feed,
            packet_log: PacketLog::new(privacy),
            offload: plan.offload.map(|plan| Offload::new(plan, clock_start, interfaces)),
            panicked: Rc::default(),
        };
        shell.feed.set_wanted(shell.snapshot.records);
        let worker = Self {
            shell,
            datagrams: Staged::new(RecvBatch::try_new(from_clients::BATCH, SLOT)?),
            stream: Staged::new(vec![0; STREAM_BUFFER].into()),
            listening: Vec::new(),
        };
        Ok((Rc::new(RefCell::new(worker)), plan.mailbox))
    }

    fn reconfigure(&mut self, snapshot: Arc<Snapshot>) {
        let shell = &mut self.shell;
        if !Arc::ptr_eq(&shell.snapshot.core, &snapshot.core) {
            shell.offload.iter_mut().for_each(Offload::suspend);
            shell.server.reconfigure(Arc::clone(&snapshot.core));
        }
        shell.offload.iter_mut().for_each(|offload| offload.set_interfaces(&snapshot.offload_interfaces));
        shell.events.privacy = Arc::clone(&snapshot.privacy);
        shell.packet_log.privacy = Arc::clone(&snapshot.privacy);
        shell.feed.set_wanted(snapshot.records);
        if !snapshot.proxies.is_empty() {
            shell.proxied.get_or_insert_default();
        }
        shell.snapshot = snapshot;
    }

    /// Returns the addresses of the UDP listeners.
    fn listener_addresses(&self) -> Vec<SocketAddr> {
        self.shell.listeners.iter().map(|listener| listener.address).collect()
    }

    /// Ends the allocations of a page whose clients another listener serves than `before`, or none. The kernel may give
    /// their packets to another worker, because its choice among the workers depends on the address of the listener.
    /// Returns the cursor of the next page, if there is one.
    fn end_unserved(&mut self, cursor: Cursor, most: usize, before: &[SocketAddr]) -> Option<Cursor> {
        let now = self.shell.now();
        let page = self.shell.server.allocations(now.monotonic, cursor, most, &Filter::default());
        let present = self.listener_addresses();
        for allocation in page.allocations {
            let tuple = &allocation.tuple;
            let local = self.shell.local_of(tuple);
            if !tuple.transport.is_connection() && serving(before, local) != serving(&present, local) {
                self.shell.server.end_unserved(now.monotonic, allocation.id);
            }
        }
        self.shell.carry_out(now);
        page.next
    }

    /// Reviews some allocations after a new configuration. Returns whether there are more.
    fn review(&mut self, most: usize) -> bool {
        let now = self.shell.now();
        let more = self.shell.server.review(now.monotonic, most);
        self.shell.carry_out(now);
        if !more {
            self.shell.offload.iter_mut().for_each(Offload::reviewed);
        }
        more
    }

    fn list(&self, cursor: Cursor, most: usize, filter: &Filter) -> Page {
        self.shell.server.allocations(self.shell.now().monotonic, cursor, most, filter)
    }

    /// Begins a search for the oldest allocations.
    fn begin_oldest(&self, most: usize) -> Oldest {
        Oldest::new(self.shell.now().monotonic, most)
    }

    fn seek_oldest(&self, cursor: Cursor, most: usize, oldest: &mut Oldest) -> Option<Cursor> {
        self.shell.server.seek_oldest(self.shell.now().monotonic, cursor, most, oldest)
    }

    fn found_oldest(&self, oldest: &Oldest) -> Vec<AllocationInfo> {
        self.shell.server.found_oldest(self.shell.now().monotonic, oldest)
    }

    fn describe(&mut self, id: AllocationId) -> Option<Described> {
        let now = self.shell.now().monotonic;
        let mut detail = self.shell.server.describe(now, id)?;
        let Some(offload) = &mut self.shell.offload else {
            return Some(Described { detail, offload: Vec::new() });
        };
        // What the program has relayed in this second is still missing.
        let (tuple, channels) = (detail.info.tuple, detail.channels.iter().map(|(channel, ..)| *channel));
        offload.read(&tuple, channels);
        self.shell.credit_offloaded();
        detail = self.shell.server.describe(now, id)?;
        let ways = |channel| self.shell.offload.as_ref().and_then(|offload| offload.why_in_user_space(&tuple, channel));
        let offload = detail.channels.iter().map(|(channel, ..)| ways(*channel)).collect();
        Some(Described { detail, offload })
    }

    fn end_allocations(&mut self, ids: &[AllocationId], operator: Operator) -> usize {
        let now = self.shell.now();
        let ended = ids.iter().filter(|id| self.shell.server.end_allocation(now.monotonic, **id, operator)).count();
        self.shell.carry_out(now);
        ended
    }

    fn publish(&self) {
        self.shell.publish();
    }
}

impl Shell {
    fn now(&self) -> Now {
        Now { monotonic: Instant::from_elapsed(self.clock.elapsed()), unix: clock::unix_seconds() }
    }

    /// Ends what has expired, of some allocations. Returns whether there may be more.
    fn advance(&mut self, now: Now) -> bool {
        let more = self.server.advance(now.monotonic, ADVANCED);
        self.carry_out(now);
        more
    }

    /// Does the periodic work, but for [`advance`](Self::advance).
    fn tick(&mut self, now: Now) {
        self.offload.iter_mut().for_each(Offload::tick);
        self.retry_failed_relays(now);
        self.count_drops();
        self.forget_proxied(now);
        self.events.tick(now.monotonic);
        self.feed.flush();
        self.packet_log.tick(now.monotonic);
        self.iterations.tick(self.clock.elapsed());
        self.publish();
    }

    fn publish(&self) {
        let offload = self.offload.as_ref().map(Offload::counts).unwrap_or_default();
        self.statistics.publish_offload(&offload);
        self.statistics.publish(&self.server.gauges(), &self.iterations, self.clock.elapsed());
    }

    /// Ends every allocation, and every connection as soon as its queue is written.
    fn stop(&mut self, now: Now) {
        self.flush_to_clients();
        // As long as the allocations are there, what they have relayed is found at once.
        self.offload.iter_mut().for_each(Offload::finish);
        self.credit_offloaded();
        self.server.stop(now.monotonic);
        self.carry_out(now);
        self.offload.iter_mut().for_each(Offload::finish);
        self.credit_offloaded();
        self.events.finish();
        self.feed.finish();
        self.packet_log.finish();
        self.connections.stop();
    }

    /// Counts the connections that are still open as ended by the stop.
    fn end_connections(&mut self) {
        let open = self.statistics.read().connections.open();
        self.statistics.count_connection(ConnectionOutcome::Ended(CloseReason::ServerStopped), open);
        self.statistics.no_connection_is_open();
    }

    /// Counts the outcome of a packet. Each packet has exactly one.
    fn count_outcome(&mut self, host: Host, outcome: Outcome) {
        self.count_packets(host, outcome, 1);
    }

    fn count_packets(&mut self, host: Host, outcome: Outcome, packets: u64) {
        self.statistics.count(outcome, packets);
        self.packet_log.log(&self.clock, host, outcome, packets);
    }

    /// Credits packets that were sent.
    fn credit(&mut self, socket: SocketId, direction: Direction, packets: u64, bytes: u64) {
        self.server.credit(socket, direction, packets, bytes);
        self.statistics.count_bytes(direction, bytes);
    }

    /// Carries out the actions of the core. The caller must have sent the datagrams that wait for peers.
    fn carry_out(&mut self, now: Now) {
        // Waiting data is credited to its allocation when it is sent, so it is sent, or dropped on connections, before
        // the end of an allocation is logged.
        if self.server.has_actions() {
            if self.to_clients.filled > 0 {
                self.flush_to_clients();
            }
            let ended: Vec<_> = self.server.ended_allocations().collect();
            ended.into_iter().for_each(|(id, tuple)| self.drop_data_of(id, &tuple));
            if let Some(offload) = &mut self.offload {
                offload.remove(self.server.removed_routes());
                self.credit_offloaded();
            }
        }
        while let Some(action) = self.server.next_action() {
            match action {
                Action::Close { socket, bind } => self.close_relay(socket, bind),
                Action::LookUp(username) => {
                    if !self.lookups.ask(username.clone())
                        && let Some(database) = &self.server.snapshot().database
                    {
                        let source = Arc::clone(&database.source);
                        self.server.looked_up(now.monotonic, &source, &username, Err(DatabaseUnavailable));
                    }
                }
                Action::Log(event) => {
                    self.count_event(&event);
                    self.feed.record(self.events.worker(), &event);
                    self.events.log(now.monotonic, &event);
                }
                Action::RouteAdded(route) => {
                    let leg = self.proxied.as_ref().and_then(|proxied| proxied.last_leg_to(&route.tuple));
                    let proxied = leg.is_some();
                    self.offload.iter_mut().for_each(|offload| offload.add(route, proxied, &mut self.rng));
                }
                // Most are removed already. One that was announced with these actions is not.
                Action::RouteRemoved(route) => {
                    self.offload.iter_mut().for_each(|offload| offload.remove(std::iter::once(&route)));
                }
            }
        }
    }

    /// Does a step of the work of the offload. Returns whether there is more.
    fn step_offload(&mut self) -> bool {
        let Some(offload) = &mut self.offload else { return false };
        let more = offload.step(&self.server);
        self.credit_offloaded();
        more
    }

    /// Credits what the program has relayed.
    fn credit_offloaded(&mut self) {
        let relayed = self.offload.as_mut().map(Offload::take_relayed).unwrap_or_default();
        for Relayed { socket, direction, packets, bytes } in relayed {
            let outcome = match direction {
                Direction::ToPeers => Outcome::RelayedToPeer,
                Direction::ToClient => Outcome::RelayedToClient,
            };
            self.statistics.count(outcome, packets);
            self.statistics.count_offloaded(direction, packets, bytes);
            self.credit(socket, direction, packets, bytes);
        }
    }

    /// Counts an event, which the log may suppress.
    fn count_event(&self, event: &Event) {
        match event {
            Event::AuthenticationFailed { cause, .. } => self.statistics.count_failed_authentication(*cause),
            Event::AllocationEnded(ended) => self.statistics.count_ended_allocation(ended),
            Event::PeersRevoked { permissions, channels, .. } => {
                self.statistics.count_revoked_peers(*permissions, *channels);
            }
            _ => {}
        }
    }

    /// Opens relay sockets until the core requests no more, then sends its response. Returns `None` if the outcome is
    /// counted when the response is sent.
    fn open_relay(&mut self, now: Now, mut spec: SocketSpec) -> Option<Outcome> {
        loop {
            let opened = self.relays.open(&spec);
            let result = opened.as_ref().map(drop).map_err(|error| self.relay_socket_failed(now, spec.bind, error));
            let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
            match self.server.socket_opened(&mut cx, &spec, result, &mut self.response) {
                Opened::Respond(tuple, response) => {
                    if let Ok(socket) = opened {
                        self.relays.insert(&spec, socket);
                    }
                    return self.respond(&tuple, response.length, response.outcome);
                }
                Opened::Open(next) => {
                    if let Ok(socket) = opened {
                        self.relays.insert(&spec, socket);
                    }
                    spec = next;
                }
                Opened::Abandoned => {
                    if let Ok(socket) = opened {
                        drop(socket);
                        self.server.socket_closed(spec.bind);
                    }
                    return Some(Outcome::Dropped(DropReason::AllocationEnded));
                }
            }
        }
    }

    /// Counts and logs a relay socket that could not be opened. The core tries another port if a port is in use, so that
    /// is not logged.
    fn relay_socket_failed(&mut self, now: Now, bind: SocketAddr, error: &io::Error) -> OpenError {
        let failure = match error.kind() {
            io::ErrorKind::AddrInUse => OpenError::PortInUse,
            io::ErrorKind::AddrNotAvailable => OpenError::AddressGone,
            _ => OpenError::Other,
        };
        self.statistics.count_failed_relay_socket(failure);
        if failure != OpenError::PortInUse {
            self.events.relay_socket_failed(now.monotonic, bind, error);
        }
        failure
    }

    fn close_relay(&mut self, socket: SocketId, bind: SocketAddr) {
        if let Some(dropped) = self.relays.close(socket) {
            self.count_receive_drops(SocketRole::Relay, bind, dropped);
            self.server.socket_closed(bind);
        }
    }
}

/// Counts relayed data or responses after an attempt to send them. Credits what was sent, and refunds the rest.
fn count_sent(server: &mut Server, statistics: &Statistics, direction: Direction, result: SendResult) {
    let SendResult { flow, outcome, to: _, packets, bytes } = result;
    statistics.count(outcome, packets);
    let Flow::Relay(socket) = flow else { return };
    if let Outcome::RelayedToPeer | Outcome::RelayedToClient = outcome {
        server.credit(socket, direction, packets, bytes);
        statistics.count_bytes(direction, bytes);
    } else {
        server.refund(socket, direction, bytes);
        if let Outcome::Dropped(reason) = outcome {
            server.count_drops(socket, reason, packets);
        }
    }
}
