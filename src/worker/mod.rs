//! The event loop around one core: a thread with its own runtime, listeners and relay sockets.
//!
//! Everything here belongs to one thread. A listener and a relay socket each have a task that waits for readiness and
//! then hands what is there to `Worker`, which asks the core and carries out what it decides.

mod connections;
mod events;
mod handshake;
mod stream;
mod tasks;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};

use crate::clock::{self, Clock};
use crate::net::{tls, udp};
use crate::turn::{
    Action, Context, Counters, DropReason, FiveTuple, FromClient, FromPeer, HEADROOM, IcmpError, Instant,
    LARGEST_FRAME, OpenError, OpenRelay, Opened, Outcome, REPLY_BUFFER, RelayId, Reply, Server, Settings, Shared,
    TAILROOM, ToClient, ToPeer, Transport,
};
pub use connections::{Close, ConnectionCounters};
use events::EventLog;
use handshake::Handshakes;
use stream::Outbound;
pub use tasks::HEARTBEAT;
use tasks::Reader;

/// The longest UDP payload, and one byte to see that it is not exceeded.
const LARGEST_DATAGRAM: usize = 65_536;

/// What a worker receives into: a datagram with room around it, or what one read of a connection brings, behind the
/// beginning of a message from the read before.
const BUFFER: usize = HEADROOM + LARGEST_DATAGRAM + TAILROOM + LARGEST_FRAME;

/// What a worker is started with. The sockets are bound before any thread runs, so that a start fails as a whole.
#[derive(Debug)]
pub struct Plan {
    /// This worker's listeners, each bound to an address that every worker listens on.
    pub listeners: Vec<StdUdpSocket>,
    /// This worker's TCP listeners, bound in the same way.
    pub tcp_listeners: Vec<StdTcpListener>,
    /// This worker's TLS listeners, bound in the same way.
    pub tls_listeners: Vec<StdTcpListener>,
    /// What TLS handshakes are served with, always the latest; `None` if there are no TLS listeners.
    pub tls: Option<watch::Receiver<tls::Acceptor>>,
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
    pub stop: watch::Receiver<bool>,
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, tasks::serve(plan, started))
}

/// A socket that clients write to.
#[derive(Debug)]
struct Listener {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Listener {
    fn new(socket: StdUdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, address })
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
    bind: SocketAddr,
    /// Shared with its reader alone, so that it is closed as soon as both are gone.
    socket: Rc<UdpSocket>,
    reader: Reader,
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
    /// For the tasks that read relay sockets.
    this: Weak<RefCell<Self>>,
    server: Server,
    listeners: Vec<Rc<Listener>>,
    /// By [`RelayId::slot`].
    relays: Vec<Option<Relay>>,
    /// What is to be written to the clients that are on connections.
    connections: HashMap<FiveTuple, Rc<RefCell<Outbound>>>,
    connection_counters: ConnectionCounters,
    handshakes: Handshakes,
    timeouts: Timeouts,
    /// Every packet is received here: behind [`HEADROOM`] if it comes from a peer.
    buffer: Box<[u8]>,
    reply: Box<[u8]>,
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
        Ok(Rc::new_cyclic(|this| {
            RefCell::new(Self {
                this: this.clone(),
                listeners,
                shared: Arc::clone(&plan.shared),
                server: Server::new(plan.shared, plan.settings),
                relays: Vec::new(),
                connections: HashMap::new(),
                connection_counters: ConnectionCounters::default(),
                handshakes: Handshakes::default(),
                timeouts: plan.timeouts,
                buffer: vec![0; BUFFER].into(),
                reply: vec![0; REPLY_BUFFER].into(),
                clock: plan.clock,
                rng: plan.rng,
                counters: Counters::default(),
                events: EventLog::default(),
                panicked: Rc::default(),
                stopping: false,
                disconnected: Rc::default(),
            })
        }))
    }

    fn now(&self) -> Now {
        Now { monotonic: Instant::from_elapsed(self.clock.elapsed()), unix: clock::unix_seconds() }
    }

    /// Receives one packet from a client and sees it to its end.
    ///
    /// # Errors
    /// Those of receiving, [`io::ErrorKind::WouldBlock`] if nothing is there.
    fn serve_client(&mut self, now: Now, listener: &Listener) -> io::Result<()> {
        let received = udp::receive(&listener.socket, &mut self.buffer)?;
        let server = received.destination.unwrap_or(listener.address.ip());
        let server = SocketAddr::new(server, listener.address.port());
        let tuple = FiveTuple { client: received.source, server, transport: Transport::Udp };
        if received.truncated {
            self.finish(now, tuple.client, Outcome::Dropped(DropReason::Truncated));
        } else {
            self.serve_packet(now, &tuple, 0..received.len, received.tos);
        }
        Ok(())
    }

    /// Sees a client's packet, which is at `place` in the buffer, to its end.
    fn serve_packet(&mut self, now: Now, tuple: &FiveTuple, place: Range<usize>, tos: u8) -> Outcome {
        let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
        let packet = self.buffer.get(place.clone()).unwrap_or_default();
        let outcome = match self.server.client_packet(&mut cx, tuple, packet, tos, &mut self.reply) {
            FromClient::Relay(route) => self.send_to_peer(&route, place),
            FromClient::Reply(reply) => self.send_reply(tuple, &reply),
            FromClient::Open(open) => {
                // The slot may have been another socket's, which is to be closed first.
                self.carry_out(now);
                self.open_relay(now, open)
            }
            FromClient::Drop(reason) => Outcome::Dropped(reason),
        };
        self.finish(now, tuple.client, outcome);
        outcome
    }

    /// Receives one datagram from a peer and sees it to its end.
    ///
    /// # Errors
    /// Those of receiving, [`io::ErrorKind::WouldBlock`] if nothing is there.
    fn serve_peer(&mut self, now: Now, relay: RelayId, socket: &UdpSocket) -> io::Result<()> {
        let room = self.buffer.get_mut(HEADROOM..HEADROOM + LARGEST_DATAGRAM).unwrap_or_default();
        let received = udp::receive(socket, room)?;
        let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
        let decision = if received.truncated {
            FromPeer::Drop(DropReason::Truncated)
        } else {
            let (source, tos) = (received.source, received.tos);
            self.server.peer_packet(&mut cx, relay, source, tos, &mut self.buffer, received.len)
        };
        let outcome = match decision {
            FromPeer::Relay(route) => self.send_to_client(&route),
            FromPeer::Drop(reason) => Outcome::Dropped(reason),
        };
        self.finish(now, received.source, outcome);
        Ok(())
    }

    /// Takes one ICMP error about a datagram to a peer and sees it to its end.
    ///
    /// # Errors
    /// Those of asking for it, [`io::ErrorKind::WouldBlock`] if there is none.
    fn serve_error(&mut self, now: Now, relay: RelayId, socket: &UdpSocket) -> io::Result<()> {
        let error = udp::receive_error(socket)?.ok_or(io::ErrorKind::WouldBlock)?;
        let peer = error.peer;
        let error = IcmpError { kind: error.kind, code: error.code, mtu: error.info };
        let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
        let outcome = match self.server.peer_unreachable(&mut cx, relay, peer, error, &mut self.buffer) {
            FromPeer::Relay(route) => self.send_to_client(&route),
            FromPeer::Drop(reason) => Outcome::Dropped(reason),
        };
        self.finish(now, peer, outcome);
        Ok(())
    }

    /// Lets time pass in the core.
    fn tick(&mut self, now: Now) {
        self.server.advance(now.monotonic);
        self.carry_out(now);
        self.events.tick(now.monotonic);
    }

    /// Ends every allocation, what is to be told, and every connection once what is due on it is written.
    fn stop(&mut self, now: Now) {
        self.stopping = true;
        self.server.stop(now.monotonic);
        self.carry_out(now);
        self.events.finish();
        for outbound in self.connections.values() {
            outbound.borrow_mut().finish();
        }
    }

    fn finish(&mut self, now: Now, from: SocketAddr, outcome: Outcome) {
        self.counters.count(outcome);
        if let Outcome::Rejected(_) | Outcome::Dropped(_) = outcome {
            tracing::debug!(%from, "{outcome}");
        }
        self.carry_out(now);
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

    /// Opens relay sockets until the core is content, and answers the client.
    fn open_relay(&mut self, now: Now, mut open: OpenRelay) -> Outcome {
        loop {
            let opened = bind_relay(open.bind);
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
                    return Outcome::Dropped(DropReason::AllocationEnded);
                }
            }
        }
    }

    fn install(&mut self, open: &OpenRelay, socket: UdpSocket) {
        let socket = Rc::new(socket);
        let reader = Reader::spawn(self.this.clone(), &self.panicked, open.relay, &socket);
        let slot = open.relay.slot();
        if self.relays.len() <= slot {
            self.relays.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.relays.get_mut(slot) {
            debug_assert!(place.is_none(), "a slot's socket is closed before the slot is used again");
            *place = Some(Relay { id: open.relay, bind: open.bind, socket, reader });
        }
    }

    fn close_relay(&mut self, id: RelayId) {
        let Some(relay) = self.relays.get_mut(id.slot()).and_then(|place| place.take_if(|relay| relay.id == id)) else {
            return;
        };
        let bind = relay.bind;
        relay.reader.end();
        drop(relay);
        self.server.relay_closed(bind);
    }

    /// Sends on a part of the packet that is at `place` in the buffer.
    fn send_to_peer(&self, route: &ToPeer, place: Range<usize>) -> Outcome {
        let relay = self.relays.get(route.relay.slot()).and_then(Option::as_ref);
        let packet = self.buffer.get(place).unwrap_or_default();
        let (Some(relay), Some(payload)) = (relay, packet.get(route.payload.clone())) else {
            return Outcome::Dropped(DropReason::AllocationEnded);
        };
        let result = if route.dont_fragment {
            udp::send_unfragmented(&relay.socket, payload, route.peer, route.tos)
        } else {
            udp::send_marked(&relay.socket, payload, route.peer, None, route.tos)
        };
        sent(result, Outcome::RelayedToPeer)
    }

    fn send_to_client(&self, route: &ToClient) -> Outcome {
        let message = self.buffer.get(route.message.clone()).unwrap_or_default();
        self.send_on(&route.tuple, message, route.tos, route.outcome)
    }

    fn send_reply(&self, tuple: &FiveTuple, reply: &Reply) -> Outcome {
        let message = self.reply.get(..reply.length).unwrap_or_default();
        self.send_on(tuple, message, 0, reply.outcome)
    }

    /// Sends on a client's 5-tuple: from the listener and the very address that the client wrote to.
    fn send_on(&self, tuple: &FiveTuple, message: &[u8], tos: u8, outcome: Outcome) -> Outcome {
        if tuple.transport.is_stream() {
            return self.send_on_connection(tuple, message, outcome);
        }
        let find = |exactly| self.listeners.iter().find(|listener| listener.serves(tuple.server, exactly));
        let Some(listener) = find(true).or_else(|| find(false)) else {
            return Outcome::Dropped(DropReason::SendFailed);
        };
        let from: Option<IpAddr> = listener.address.ip().is_unspecified().then(|| tuple.server.ip());
        sent(udp::send_marked(&listener.socket, message, tuple.client, from, tos), outcome)
    }
}

fn bind_relay(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = udp::bind_relay(address)?;
    udp::report_errors(&socket)?;
    UdpSocket::from_std(socket)
}

/// What becomes of a packet that was to be sent on.
fn sent(result: io::Result<()>, outcome: Outcome) -> Outcome {
    match result {
        Ok(()) => outcome,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Dropped(DropReason::SendBufferFull),
        Err(error) => {
            tracing::trace!(%error, "not sent");
            Outcome::Dropped(DropReason::SendFailed)
        }
    }
}
