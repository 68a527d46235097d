//! The event loop around one core: a thread with its own runtime, listeners and relay sockets.
//!
//! Everything here belongs to one thread. Each listener has a task, all relay sockets have one together, and each connection
//! has its own. They wait for readiness and then hand what is there to `Worker`, which asks the core and carries out what it
//! decides.

mod connections;
mod datagrams;
mod events;
mod handshake;
mod outbox;
mod pace;
mod stream;
mod tasks;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::runtime::LocalOptions;
use tokio::sync::{Notify, watch as channel};

use crate::clock::{self, Clock};
use crate::net::batch::{DropCounter, RecvBatch, Room};
use crate::net::watch::{Readable, Watch};
use crate::net::{timer, tls, udp, watch};
use crate::turn::{
    Action, Context, Counters, DropReason, FiveTuple, HEADROOM, Instant, LARGEST_FRAME, OpenError, OpenRelay, Opened,
    Outcome, REPLY_BUFFER, RelayId, Server, Settings, Shared, TAILROOM,
};
pub use connections::{Close, ConnectionCounters};
use events::EventLog;
use handshake::Handshakes;
use outbox::Outbox;
use pace::Pace;
use stream::Outbound;
pub use tasks::HEARTBEAT;

/// The longest UDP payload, and one byte to see that it is not exceeded.
const LARGEST_DATAGRAM: usize = 65_536;

/// What one read of a connection takes at most, in bytes.
const LARGEST_READ: usize = 64 * 1024;

/// What connections are read into: one read behind the beginning of a message from the read before.
const STREAM_BUFFER: usize = LARGEST_FRAME + LARGEST_READ;

/// A slot for a datagram.
const ROOM: Room = Room { headroom: HEADROOM, payload: LARGEST_DATAGRAM, tailroom: TAILROOM };

/// What a worker is started with. The sockets are bound before any thread runs, so that a start fails as a whole.
#[derive(Debug)]
pub struct Plan {
    /// This worker's listeners, each bound to an address that every worker listens on.
    pub listeners: Vec<UdpSocket>,
    /// This worker's TCP listeners, bound in the same way.
    pub tcp_listeners: Vec<StdTcpListener>,
    /// This worker's TLS listeners, bound in the same way.
    pub tls_listeners: Vec<StdTcpListener>,
    /// What TLS handshakes are served with, always the latest; `None` if there are no TLS listeners.
    pub tls: Option<channel::Receiver<tls::Acceptor>>,
    /// How long it waits for clients on connections.
    pub timeouts: Timeouts,
    /// This worker's part of the configuration.
    pub settings: Settings,
    /// What it shares with the other workers.
    pub shared: Arc<Shared>,
    /// The clock of the process.
    pub clock: Clock,
    /// A generator of this worker's own, seeded from the system's.
    pub rng: StdRng,
    /// Becomes true when the worker has to stop.
    pub stop: channel::Receiver<bool>,
    /// Counted up by the worker each [`HEARTBEAT`] while its loop turns.
    pub heartbeat: Arc<AtomicU64>,
}

/// How long a worker waits for clients on connections.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the end of the TLS handshake, from the connection on.
    pub tls_handshake: Duration,
    /// For the first request, from the handshake on.
    pub first_request: Duration,
    /// After the last request, on a connection without an allocation.
    pub idle: Duration,
    /// In all, on a connection that has had no allocation.
    pub unauthenticated: Duration,
}

/// What became of a worker's packets and connections.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By outcome.
    pub packets: Counters,
    /// By end.
    pub connections: ConnectionCounters,
}

impl Totals {
    /// Adds those of another worker.
    pub fn add(&mut self, other: &Self) {
        self.packets.add(&other.packets);
        self.connections.add(&other.connections);
    }
}

/// Runs a worker on this thread until it is told to stop, and returns what became of its packets and connections. `started` is called
/// once its clients can be served.
///
/// # Errors
/// If the runtime cannot be made, a socket cannot be registered with it, or a task of the worker panics.
pub fn run(plan: Plan, started: impl FnOnce()) -> io::Result<Totals> {
    // Without it a pause takes longer, and no more than that.
    let _ = timer::make_precise();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().on_thread_park(tasks::end_turn);
    // A `LocalSet` would come to the same, with a second queue in front of the runtime's and a look at `serve` each turn.
    let runtime = runtime.build_local(LocalOptions::default())?;
    runtime.block_on(tasks::serve(plan, started))
}

/// A socket that clients write to.
#[derive(Debug)]
struct Listener {
    socket: Readable,
    address: SocketAddr,
    /// What waits for the end of the turn.
    outbox: RefCell<Outbox>,
    lost: Cell<DropCounter>,
}

impl Listener {
    fn new(socket: UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        // An old kernel does without.
        udp::merge_received(&socket);
        Ok(Self { socket: watch::readable(socket)?, address, outbox: RefCell::default(), lost: Cell::default() })
    }

    /// Whether packets to `server` arrive here; a wildcard takes what no other listener of that port is bound to.
    fn serves(&self, server: SocketAddr, exactly: bool) -> bool {
        let wildcard = !exactly && self.address.ip().is_unspecified();
        self.address.port() == server.port() && (wildcard || self.address.ip() == server.ip())
    }
}

/// The socket of one relayed transport address.
#[derive(Debug)]
struct Relay {
    id: RelayId,
    socket: UdpSocket,
    lost: DropCounter,
    /// It stands in [`Worker::due`] or [`Worker::unread`].
    due: bool,
    /// It has an error to tell.
    error: bool,
}

/// The time, read once for a batch of packets.
#[derive(Clone, Copy, Debug)]
struct Now {
    monotonic: Instant,
    unix: u64,
}

/// One worker's state.
#[derive(Debug)]
struct Worker {
    server: Server,
    listeners: Vec<Rc<Listener>>,
    /// By [`RelayId::slot`].
    relays: Vec<Option<Relay>>,
    /// Tells which of them have something to read; the token is the slot.
    watch: Rc<Watch>,
    /// The slots of those that are known to have something.
    due: VecDeque<usize>,
    /// The slots of those that could not be received from.
    unread: Vec<usize>,
    /// What is to be written to the clients that are on connections.
    connections: HashMap<FiveTuple, Rc<RefCell<Outbound>>>,
    connection_counters: ConnectionCounters,
    handshakes: Handshakes,
    timeouts: Timeouts,
    /// What a listener received.
    from_clients: RecvBatch,
    /// What relay sockets received and clients have not been sent; its first `filled` slots are in use.
    from_peers: RecvBatch,
    filled: usize,
    to_peers: Outbox,
    /// What connections are read into.
    buffer: Box<[u8]>,
    reply: Box<[u8]>,
    pace: Pace,
    /// Tasks that ran since waiting datagrams were last sent.
    tasks: u32,
    shared: Arc<Shared>,
    clock: Clock,
    rng: StdRng,
    counters: Counters,
    events: EventLog,
    panicked: Rc<Notify>,
    /// No connection is taken any more, and those that there are end once their answers are written.
    stopping: bool,
    /// Told when the last connection has ended.
    disconnected: Rc<Notify>,
}

impl Worker {
    fn new(plan: Plan) -> io::Result<Rc<RefCell<Self>>> {
        let listeners = plan.listeners.into_iter().map(|socket| Listener::new(socket).map(Rc::new));
        let listeners = listeners.collect::<io::Result<_>>()?;
        let watch = Rc::new(Watch::new()?);
        Ok(Rc::new(RefCell::new(Self {
            listeners,
            shared: Arc::clone(&plan.shared),
            server: Server::new(plan.shared, plan.settings),
            relays: Vec::new(),
            watch,
            due: VecDeque::new(),
            unread: Vec::new(),
            connections: HashMap::new(),
            connection_counters: ConnectionCounters::default(),
            handshakes: Handshakes::default(),
            timeouts: plan.timeouts,
            from_clients: RecvBatch::new(datagrams::FROM_CLIENTS, ROOM),
            from_peers: RecvBatch::new(datagrams::FROM_PEERS, ROOM),
            filled: 0,
            to_peers: Outbox::default(),
            buffer: vec![0; STREAM_BUFFER].into(),
            pace: Pace::new(Instant::from_elapsed(plan.clock.elapsed())),
            tasks: 0,
            reply: vec![0; REPLY_BUFFER].into(),
            clock: plan.clock,
            rng: plan.rng,
            counters: Counters::default(),
            events: EventLog::default(),
            panicked: Rc::default(),
            stopping: false,
            disconnected: Rc::default(),
        })))
    }

    fn now(&self) -> Now {
        Now { monotonic: Instant::from_elapsed(self.clock.elapsed()), unix: clock::unix_seconds() }
    }

    /// Lets time pass in the core.
    fn tick(&mut self, now: Now) {
        self.server.advance(now.monotonic);
        self.carry_out(now);
        self.receive_again(now);
        self.events.tick(now.monotonic);
    }

    /// Ends every allocation, what is to be told, and every connection once what is due on it is written.
    fn stop(&mut self, now: Now) {
        self.stopping = true;
        self.flush_to_clients();
        self.server.stop(now.monotonic);
        self.carry_out(now);
        self.events.finish();
        for outbound in self.connections.values() {
            outbound.borrow_mut().finish();
        }
    }

    /// Counts a packet's end.
    fn settle(&mut self, from: SocketAddr, outcome: Outcome) {
        self.counters.count(outcome);
        if let Outcome::Rejected(_) | Outcome::Refused(_) | Outcome::Dropped(_) = outcome {
            tracing::debug!(%from, "{outcome}");
        }
    }

    /// Does what the core wants done besides.
    fn carry_out(&mut self, now: Now) {
        while let Some(action) = self.server.next_action() {
            match action {
                Action::Close(id) => self.close_relay(id),
                Action::Log(event) => self.events.log(now.monotonic, &event),
            }
        }
    }

    /// Opens relay sockets until the core is content, and answers the client. The outcome is `None` if it is counted when
    /// the answer is sent.
    fn open_relay(&mut self, now: Now, mut open: OpenRelay) -> Option<Outcome> {
        loop {
            let opened = udp::bind_relay(open.bind).and_then(|socket| {
                udp::report_errors(&socket)?;
                udp::merge_received(&socket);
                let token = u64::try_from(open.relay.slot()).map_err(io::Error::other)?;
                self.watch.add(&socket, token)?;
                Ok(socket)
            });
            let report = match &opened {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(OpenError::PortInUse),
                Err(error) => {
                    tracing::debug!(address = %open.bind, %error, "relay socket not opened");
                    Err(OpenError::Other)
                }
            };
            let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
            match self.server.relay_opened(&mut cx, &open, report, &mut self.reply) {
                Opened::Reply(tuple, reply) => {
                    if let Ok(socket) = opened {
                        self.install(&open, socket);
                    }
                    return self.send_reply(&tuple, &reply);
                }
                Opened::Open(next) => {
                    if let Ok(socket) = opened {
                        self.install(&open, socket);
                    }
                    open = next;
                }
                Opened::Abandoned => {
                    if let Ok(socket) = opened {
                        drop(socket);
                        self.server.relay_closed(open.bind);
                    }
                    return Some(Outcome::Dropped(DropReason::AllocationEnded));
                }
            }
        }
    }

    fn install(&mut self, open: &OpenRelay, socket: UdpSocket) {
        let slot = open.relay.slot();
        if self.relays.len() <= slot {
            self.relays.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.relays.get_mut(slot) {
            debug_assert!(place.is_none(), "a slot's socket is closed before the slot is used again");
            *place = Some(Relay { id: open.relay, socket, lost: DropCounter::default(), due: false, error: false });
        }
    }

    fn close_relay(&mut self, id: RelayId) {
        let Some(relay) = self.relays.get_mut(id.slot()).and_then(|place| place.take_if(|relay| relay.id == id)) else {
            return;
        };
        let bind = relay.socket.local_addr();
        drop(relay);
        match bind {
            Ok(bind) => self.server.relay_closed(bind),
            Err(error) => tracing::error!(%error, "the port of a relay socket is lost"),
        }
    }
}
