//! The environment of the servers: clocks, sockets and the network between clients, servers and peers. Each input is
//! passed to a server and to the model, and their outputs are compared.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use turnserver::ip_fields::IpFields;
use turnserver::stun::attribute::Icmp;
use turnserver::turn::{
    Action, ChannelRoute, ClientBurst, Context, Counters, Direction, Epoch, Event, FiveTuple, FromClient, FromPeer,
    HEADROOM, IcmpError, Instant, Ledger, OpenError, Opened, Outcome, PeerBurst, RESPONSE_BUFFER, RedirectCause,
    RelayAddresses, Server, SocketId, SocketSpec,
};

use crate::check;
use crate::model::{Body, Expect, ExpectOpened, ExpectPeer, ExpectedResponse, Model, Now};
use crate::packet::{Packet, Signed};
use crate::rng::SplitMix;
use crate::setup::Setup;

/// The number of lines that are printed when a run fails.
const TRACE_LENGTH: usize = 40;

/// A packet in the network.
#[derive(Clone, Debug)]
pub(crate) enum Flight {
    ToServer(Packet),
    ToRelay(Datagram),
}

#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) worker: usize,
    pub(crate) relay: SocketId,
    pub(crate) source: SocketAddr,
    pub(crate) payload: Rc<[u8]>,
}

#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) credential: usize,
    pub(crate) nonce: Option<String>,
    pub(crate) old_nonce: Option<String>,
    /// The latest packets, for retransmissions.
    pub(crate) sent: VecDeque<Packet>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Socket {
    pub(crate) worker: usize,
    pub(crate) relay: SocketId,
    pub(crate) bind: SocketAddr,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: SplitMix,
    pub(crate) model: Model,
    pub(crate) clients: Vec<Client>,
    pub(crate) sockets: Vec<Socket>,
    /// Recently closed sockets.
    pub(crate) stale: VecDeque<Socket>,
    pub(crate) opens: Vec<(usize, SocketSpec)>,
    pub(crate) closing: Vec<(usize, SocketAddr)>,
    pub(crate) flight: Vec<Flight>,
    pub(crate) ms: u64,
    pub(crate) counters: Counters,
    /// How often each of the [`SITUATIONS`](crate::SITUATIONS) occurred.
    pub(crate) observed: BTreeMap<&'static str, u64>,
    pub(crate) ledger: Arc<Ledger>,
    servers: Vec<Server>,
    /// The announced routes of each worker.
    routes: Vec<Vec<ChannelRoute>>,
    /// Packets that are credited after a later input, each with the number of its own input.
    unsent: Vec<(u64, usize, SocketId, Direction, usize)>,
    inputs: u64,
    core_rng: StdRng,
    response: Vec<u8>,
    buffer: Vec<u8>,
    transcript: Option<Transcript>,
}

/// The last lines of the trace, and a digest of all lines.
#[derive(Debug, Default)]
struct Transcript {
    last: VecDeque<String>,
    digest: DefaultHasher,
}

impl Drop for Transcript {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last steps:");
            for line in &self.last {
                eprintln!("  {line}");
            }
        }
    }
}

impl World {
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut rng = SplitMix::new(seed);
        let setup = Setup::generate(&mut rng);
        let credentials = setup.credentials(&mut rng);
        let blueprint = setup.blueprint();
        let (snapshot, ledger) = (blueprint.snapshot(), blueprint.ledger());
        let server = |_| Server::new(Arc::clone(&snapshot), Arc::clone(&ledger));
        let servers = (0..setup.workers).map(server).collect();
        let clients = (0..setup.clients.len())
            .map(|_| Client { credential: rng.below(credentials.len()), ..Client::default() })
            .collect();
        let mut world = Self {
            rng,
            clients,
            sockets: Vec::new(),
            stale: VecDeque::new(),
            opens: Vec::new(),
            closing: Vec::new(),
            flight: Vec::new(),
            ms: 0,
            counters: Counters::default(),
            observed: BTreeMap::new(),
            ledger,
            servers,
            routes: vec![Vec::new(); setup.workers],
            unsent: Vec::new(),
            inputs: 0,
            core_rng: StdRng::seed_from_u64(seed),
            response: vec![0; RESPONSE_BUFFER],
            buffer: Vec::new(),
            transcript: traced.then(Transcript::default),
            model: Model::new(setup, credentials),
        };
        world.trace(|world| format!("{:?}", world.model.setup));
        world
    }

    /// Returns the relay addresses, which the workers share.
    fn relays(&self) -> &RelayAddresses {
        &self.servers[0].snapshot().relays
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.model.setup
    }

    pub(crate) fn now(&self) -> Now {
        Now { ms: self.ms, unix: (self.model.setup.unix_ms + self.ms) / 1_000 }
    }

    pub(crate) fn trace(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.transcript.is_none() {
            return;
        }
        let line = format!("{:>9} ms: {}", self.ms, line(self));
        let Some(transcript) = &mut self.transcript else { return };
        line.hash(&mut transcript.digest);
        transcript.last.push_back(line);
        if transcript.last.len() > TRACE_LENGTH {
            transcript.last.pop_front();
        }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.transcript.as_ref().map_or(0, |transcript| transcript.digest.finish())
    }

    pub(crate) fn client_packet(&mut self, packet: &Packet) {
        self.client_burst(packet.client, &[(packet.bytes.clone(), packet.signed)]);
    }

    /// Passes packets of a client that the kernel has merged. All have one length, except that the last may be shorter.
    pub(crate) fn client_burst(&mut self, client: usize, packets: &[(Rc<[u8]>, Signed)]) {
        let (tuple, worker) = (self.setup().clients[client], self.setup().worker_of(client));
        self.packets_from(worker, tuple, packets, Some(client));
    }

    pub(crate) fn packets_from(
        &mut self,
        worker: usize,
        tuple: FiveTuple,
        packets: &[(Rc<[u8]>, Signed)],
        client: Option<usize>,
    ) {
        let now = self.now();
        let buffer: Vec<u8> = packets.iter().flat_map(|(bytes, _)| bytes.iter().copied()).collect();
        let fields = self.fields();
        let length = (packets.len() > 1).then(|| packets[0].0.len());
        let mut burst = ClientBurst::new(0..buffer.len(), length, fields);
        for (bytes, signed) in packets {
            self.trace(|_| format!("client {client:?} → {signed:?}, {} bytes", bytes.len()));
            let expected = self.model.client_packet(now, &tuple, bytes, *signed);
            self.trace(|_| format!("  expected: {expected:?}"));
            self.response.fill(0xa5);
            let mut cx = context(now, &mut self.core_rng);
            let got = self.servers[worker].client_packet(&mut cx, &tuple, &buffer, &mut burst, &mut self.response);
            match (expected, got.expect("a packet has a decision")) {
                (Expect::Drop(expected), FromClient::Drop(reason)) => {
                    assert_eq!(reason, expected);
                    self.counters.count(Outcome::Dropped(reason));
                }
                (Expect::ToPeer { relay, peer, payload, dont_fragment }, FromClient::Relay(route)) => {
                    assert_eq!((route.socket, route.peer, &buffer[route.payload]), (relay, peer, payload.as_slice()));
                    assert_eq!((Some(route.fields), route.dont_fragment), (fields.forwarded(), dont_fragment));
                    self.counters.count(Outcome::RelayedToPeer);
                    self.sent(worker, relay, Direction::ToPeers, payload.len());
                    self.datagram_from_relay(worker, relay, peer, payload.into());
                    if packets.len() > 1 {
                        self.observe("merged packets to a peer");
                    }
                }
                (Expect::Respond(expected), FromClient::Respond(response)) => {
                    self.counters.count(response.outcome);
                    self.check_response(&tuple, response.length, response.outcome, &expected, client);
                    if packets.len() > 1 {
                        self.observe("a request between merged packets");
                    }
                }
                (Expect::Open(wanted), FromClient::Open(open)) => {
                    if let Some((_, maker)) = wanted.claimed {
                        self.observe(if maker == worker {
                            "a claimed port"
                        } else {
                            "a port claimed at another worker"
                        });
                    }
                    self.model.opening(now, tuple, worker, *wanted, &open);
                    self.opens.push((worker, open));
                }
                (expected, got) => panic!("expected {expected:?}, got {got:?}"),
            }
            self.take_actions(worker);
        }
        let mut cx = context(now, &mut self.core_rng);
        let end = self.servers[worker].client_packet(&mut cx, &tuple, &buffer, &mut burst, &mut self.response);
        assert!(end.is_none(), "the burst has ended");
    }

    fn check_response(
        &mut self,
        tuple: &FiveTuple,
        length: usize,
        outcome: Outcome,
        expected: &ExpectedResponse,
        client: Option<usize>,
    ) {
        let key = expected.signer.map(|signer| self.model.credentials[signer].key(expected.keyed));
        let nonce = check::response(&self.response[..length], outcome, expected, key.as_ref());
        if let Some(nonce) = nonce {
            // RFC 8489 §9.2.4. Only a server whose users are all static can find every USERHASH.
            let cookie = if self.setup().secrets.is_empty() { "obMatJos2wAAD" } else { "obMatJos2gAAB" };
            assert!(nonce.starts_with(cookie), "{nonce}");
            let now = self.now();
            self.model.issued(now, tuple.client, &nonce);
            if let Some(client) = client {
                self.clients[client].old_nonce = self.clients[client].nonce.replace(nonce);
            }
        }
        if self.transcript.is_some() {
            let bytes = self.response[..length].to_vec();
            self.trace(|_| format!("  response {bytes:02x?}"));
        }
    }

    /// Returns the IP header fields of the next packet.
    fn fields(&mut self) -> IpFields {
        let hop_limit = if self.rng.percent(3) { 1 } else { self.rng.next() as u8 };
        self.model.hop_limit = hop_limit;
        IpFields { tos: self.rng.next() as u8, hop_limit: Some(hop_limit) }
    }

    fn observe(&mut self, what: &'static str) {
        *self.observed.entry(what).or_default() += 1;
    }

    /// Delivers a datagram of a relay socket to another relay socket, or to a peer, which may send it back.
    fn datagram_from_relay(&mut self, worker: usize, relay: SocketId, peer: SocketAddr, payload: Rc<[u8]>) {
        let find = |socket: &&Socket| socket.worker == worker && socket.relay == relay;
        let from = *self.sockets.iter().find(find).expect("a relay socket is open");
        let other = self.sockets.iter().find(|socket| socket.bind == peer).copied();
        let datagram = match other {
            Some(other) => Datagram { worker: other.worker, relay: other.relay, source: from.bind, payload },
            None if self.rng.percent(60) => return,
            None => Datagram { worker, relay, source: peer, payload },
        };
        self.send(Flight::ToRelay(datagram));
    }

    pub(crate) fn send(&mut self, flight: Flight) {
        if self.flight.len() >= 60 {
            let lost = self.rng.below(self.flight.len());
            self.flight.swap_remove(lost);
        }
        self.flight.push(flight);
    }

    /// Passes a datagram of a peer, and sometimes more of the same length that the kernel has merged with it.
    pub(crate) fn peer_packet(&mut self, datagram: &Datagram) {
        let Datagram { worker, relay, source, payload } = datagram;
        let (worker, relay, source) = (*worker, *relay, *source);
        let now = self.now();
        let merged = !payload.is_empty() && payload.len() < 2_000 && self.rng.percent(20);
        let count = if merged { self.rng.between(2, 5) as usize } else { 1 };
        let fields = self.fields();
        let buffer = payload.repeat(count);
        let mut burst = PeerBurst::new(source, 0..buffer.len(), merged.then_some(payload.len()), fields);
        for at in 0..count {
            self.trace(|_| format!("{source} → {relay:?} of worker {worker}, {} bytes", payload.len()));
            let expected = self.model.peer_packet(now, worker, relay, source, payload);
            self.trace(|_| format!("  expected: {expected:?}"));
            let mut headroom = [0xee; HEADROOM];
            let mut cx = context(now, &mut self.core_rng);
            let got = self.servers[worker].peer_packet(&mut cx, relay, &buffer, &mut burst, &mut headroom);
            if !matches!(expected, ExpectPeer::Drop(_)) && self.setup().is_relay_address(source.ip()) {
                self.observe("data between two relayed addresses of this server");
            }
            match (expected, got.expect("a datagram has a decision")) {
                (ExpectPeer::Drop(expected), FromPeer::Drop(reason)) => {
                    assert_eq!(reason, expected);
                    self.counters.count(Outcome::Dropped(reason));
                }
                (expected, FromPeer::Relay(route)) => {
                    assert_eq!(Some(route.fields), fields.forwarded());
                    assert_eq!(route.payload, at * payload.len()..(at + 1) * payload.len());
                    let mut message = [&headroom[HEADROOM - route.header..], &buffer[route.payload.clone()]].concat();
                    message.resize(message.len() + route.padding, 0);
                    match expected {
                        ExpectPeer::Channel(to, number) => {
                            assert_eq!(route.tuple, to);
                            check::channel_data(&message, number, payload);
                        }
                        ExpectPeer::Indication(to, peer) => {
                            assert_eq!(route.tuple, to);
                            check::data_indication(&message, peer, payload);
                        }
                        other => panic!("expected {other:?}, got {route:?}"),
                    }
                    self.counters.count(Outcome::RelayedToClient);
                    self.sent(worker, relay, Direction::ToClient, payload.len());
                    if merged {
                        self.observe("merged packets to a client");
                    }
                }
                (expected, got) => panic!("expected {expected:?}, got {got:?}"),
            }
            self.take_actions(worker);
        }
        let mut headroom = [0; HEADROOM];
        let mut cx = context(now, &mut self.core_rng);
        let end = self.servers[worker].peer_packet(&mut cx, relay, &buffer, &mut burst, &mut headroom);
        assert!(end.is_none(), "the burst has ended");
    }

    /// Credits a packet now, after a later input, or never.
    fn sent(&mut self, worker: usize, relay: SocketId, direction: Direction, bytes: usize) {
        match self.rng.below(10) {
            0 => {}
            1..4 => self.unsent.push((self.inputs, worker, relay, direction, bytes)),
            _ => self.credit(worker, relay, direction, bytes),
        }
    }

    fn credit(&mut self, worker: usize, relay: SocketId, direction: Direction, bytes: usize) {
        self.servers[worker].credit(relay, direction, 1, bytes as u64);
        if self.model.credit(worker, relay, direction, bytes as u64) {
            self.observe("bytes credited to an allocation that has ended");
        }
    }

    /// Credits the packets of preceding inputs, before the actions of this one are carried out.
    fn send_waiting(&mut self) {
        let input = self.inputs;
        for (_, worker, relay, direction, bytes) in
            self.unsent.extract_if(.., |(of, ..)| *of < input).collect::<Vec<_>>()
        {
            self.credit(worker, relay, direction, bytes);
        }
        self.inputs += 1;
    }

    /// Passes an ICMP error about a datagram to `peer` to a relay socket.
    pub(crate) fn peer_unreachable(&mut self, socket: &Socket, peer: SocketAddr, error: IcmpError) {
        let (now, worker, relay) = (self.now(), socket.worker, socket.relay);
        let expected = self.model.peer_unreachable(now, worker, relay, peer, error);
        self.trace(|_| format!("{peer} is unreachable from {socket:?}: {error:?}, expected: {expected:?}"));
        self.buffer.clear();
        self.buffer.resize(RESPONSE_BUFFER, 0xee);
        let mut cx = context(now, &mut self.core_rng);
        let got = self.servers[worker].peer_unreachable(&mut cx, relay, peer, error, &mut self.buffer);
        match (expected, got) {
            (ExpectPeer::Drop(expected), Err(reason)) => {
                assert_eq!(reason, expected);
                self.counters.count(Outcome::Dropped(reason));
            }
            (ExpectPeer::Icmp(to, peer, data), Ok(indication)) => {
                assert_eq!(indication.tuple, to);
                self.counters.count(Outcome::RelayedIcmp);
                let icmp = Icmp { kind: error.kind, code: error.code, data };
                check::icmp_indication(&self.buffer[..indication.length], peer, icmp);
            }
            (expected, got) => panic!("expected {expected:?}, got {got:?}"),
        }
        self.take_actions(worker);
    }

    /// Reports the result of opening a socket.
    pub(crate) fn report_opened(&mut self, at: usize, result: Result<(), OpenError>) {
        let (worker, open) = self.opens.swap_remove(at);
        let now = self.now();
        self.trace(|_| format!("worker {worker}: {open:?} → {result:?}"));
        self.response.fill(0xa5);
        let mut cx = context(now, &mut self.core_rng);
        let got = self.servers[worker].socket_opened(&mut cx, &open, result, &mut self.response);
        let token = if let Opened::Respond(_, response) = &got {
            check::token(&self.response[..response.length])
        } else {
            None
        };
        let expected = self.model.opened(now, worker, &open, result, token);
        self.trace(|_| format!("  expected: {expected:?}"));
        let goes_on = !matches!(got, Opened::Abandoned);
        if result.is_ok() && goes_on {
            self.sockets.push(Socket { worker, relay: open.socket, bind: open.bind });
        }
        match (expected, got) {
            (ExpectOpened::Respond(expected_tuple, expected), Opened::Respond(tuple, response)) => {
                assert_eq!(tuple, expected_tuple);
                match &expected.body {
                    Body::Allocated { relayed, .. } if relayed.len() == 2 => self.observe("a dual allocation"),
                    Body::Allocated { address_error: Some((false, 508)), .. } => {
                        self.observe("a dual allocation without IPv4");
                    }
                    Body::Allocated { address_error: Some((true, 508)), .. } => {
                        self.observe("a dual allocation without IPv6");
                    }
                    Body::Allocated { token: Some(_), .. } => self.observe("a reservation"),
                    Body::Error { code: 508, .. } => {
                        self.observe("a claimed port that cannot be opened");
                    }
                    _ => {}
                }
                self.counters.count(response.outcome);
                self.check_response(&tuple, response.length, response.outcome, &expected, None);
            }
            (ExpectOpened::OpenAnother { at, v6 }, Opened::Open(another)) => {
                assert_eq!(another.bind.is_ipv6(), v6);
                assert!(result.is_err() || another.socket != open.socket, "an open socket keeps its identifier");
                self.model.opening_another(now, at, &another);
                self.opens.push((worker, another));
            }
            (ExpectOpened::Abandoned, Opened::Abandoned) => {
                if result.is_ok() {
                    self.closing.push((worker, open.bind));
                }
            }
            (expected, got) => panic!("expected {expected:?}, got {got:?}"),
        }
        self.take_actions(worker);
    }

    pub(crate) fn report_closed(&mut self, at: usize) {
        let (worker, bind) = self.closing.swap_remove(at);
        self.trace(|_| format!("worker {worker}: {bind} is closed"));
        self.model.closed(bind);
        self.servers[worker].socket_closed(bind);
        self.take_actions(worker);
    }

    pub(crate) fn advance(&mut self, worker: usize) {
        let now = self.now();
        self.send_waiting();
        self.servers[worker].advance(instant(now), usize::MAX);
        let actions = self.drain(worker);
        self.trace(|_| format!("worker {worker} advances: {actions:?}"));
        self.model.advanced(now, worker, &actions);
        self.close_sockets(worker, &actions);
        // The server checks deadlines once per second.
        let second = Instant::from_elapsed(Duration::from_secs(now.ms / 1_000));
        let expired = self.routes[worker].iter().find(|route| route.expires.has_passed(second));
        assert_eq!(expired, None, "an expired route is removed");
    }

    pub(crate) fn stop(&mut self, worker: usize) {
        let now = self.now();
        self.send_waiting();
        self.servers[worker].stop(instant(now));
        let actions = self.drain(worker);
        self.trace(|_| format!("worker {worker} stops: {actions:?}"));
        self.model.stopped(now, worker, &actions);
        self.close_sockets(worker, &actions);
    }

    /// Checks the actions of a server after an input.
    fn take_actions(&mut self, worker: usize) {
        self.send_waiting();
        let actions = self.drain(worker);
        if !actions.is_empty() {
            self.trace(|_| format!("  actions: {actions:?}"));
        }
        assert_eq!(actions, std::mem::take(&mut self.model.announced));
        self.close_sockets(worker, &actions);
    }

    fn drain(&mut self, worker: usize) -> Vec<Action> {
        let server = &mut self.servers[worker];
        let mut actions = Vec::new();
        while let Some(mut action) = server.next_action() {
            match &mut action {
                Action::RouteAdded(route) => {
                    let same = |other: &ChannelRoute| (other.tuple, other.channel) == (route.tuple, route.channel);
                    self.routes[worker].retain(|other| !same(other));
                    self.routes[worker].push(*route);
                    continue;
                }
                Action::RouteRemoved(route) => {
                    let before = self.routes[worker].len();
                    self.routes[worker].retain(|other| other != route);
                    assert_eq!(self.routes[worker].len() + 1, before, "the removed route was announced");
                    continue;
                }
                Action::Log(Event::LimitReached { limit, .. }) => *limit = check::merge_port_limits(*limit),
                Action::Log(Event::AllocationRejected { reason, .. }) => {
                    assert!(!reason.is_empty(), "a rejection has a reason");
                    *reason = "";
                }
                Action::Log(Event::AllocationRedirected { cause, .. }) => match cause {
                    RedirectCause::Limit(limit) => *limit = check::merge_port_limits(*limit),
                    RedirectCause::Rejected(reason) => {
                        assert!(!reason.is_empty(), "a redirection has a reason");
                        *reason = "";
                    }
                    RedirectCause::Always => {}
                },
                _ => {}
            }
            actions.push(action);
        }
        actions
    }

    fn close_sockets(&mut self, worker: usize, actions: &[Action]) {
        for action in actions {
            let Action::Close { socket: relay, bind } = action else { continue };
            let find = |socket: &Socket| socket.worker == worker && (socket.relay, socket.bind) == (*relay, *bind);
            let at = self.sockets.iter().position(find).expect("the closed socket was open");
            let socket = self.sockets.swap_remove(at);
            self.closing.push((worker, socket.bind));
            self.stale.push_back(socket);
            if self.stale.len() > 8 {
                self.stale.pop_front();
            }
        }
    }

    /// Replaces the policy of all workers.
    pub(crate) fn change_policy(&mut self) {
        self.model.setup.strict = !self.model.setup.strict;
        self.trace(|world| format!("strict policy: {}", world.setup().strict));
        let snapshot = self.setup().blueprint().snapshot_with(self.relays().clone());
        let now = self.now();
        for worker in 0..self.servers.len() {
            self.servers[worker].reconfigure(Arc::clone(&snapshot));
            while self.servers[worker].review(instant(now), 2) {}
            self.model.review(now, worker);
            if !self.model.announced.is_empty() {
                self.observe("peers that a new policy denies");
            }
            // The order is not specified.
            let tuple = |action: &Action| match action {
                Action::Log(Event::PeersRevoked { tuple, .. }) => format!("{tuple:?}"),
                other => panic!("unexpected: {other:?}"),
            };
            let (mut actions, mut expected) = (self.drain(worker), std::mem::take(&mut self.model.announced));
            actions.sort_by_key(tuple);
            expected.sort_by_key(tuple);
            assert_eq!(actions, expected);
        }
    }

    /// Imports the allocations of a worker into another server and checks that they are equal there.
    pub(crate) fn hand_over(&mut self, worker: usize) {
        let now = self.now();
        let unix = Duration::from_millis(self.model.setup.unix_ms + self.ms);
        let here = Epoch { now: instant(now), unix };
        // The other process has another clock, which may have started after the allocations.
        let started = if self.rng.percent(50) { 0 } else { self.ms + 98_765_432 };
        let there = Epoch { now: Instant::from_elapsed(Duration::from_millis(started)), unix };
        let blueprint = self.setup().blueprint();
        let mut other = Server::new(blueprint.snapshot(), blueprint.ledger());
        let records: Vec<_> = self.servers[worker].export(here).collect();
        let mut imported = Vec::new();
        for record in records {
            assert_eq!(other.import(there, &record).unwrap().len(), record.relays.len());
            imported.push(record);
        }
        other.check_invariants(0);
        let mut again: Vec<_> = other.export(there).collect();
        let by_relay = |record: &turnserver::turn::AllocationRecord| record.relays[0].bind;
        again.sort_by_key(by_relay);
        imported.sort_by_key(by_relay);
        assert_eq!(again, imported);
        if !again.is_empty() {
            self.observe("an imported allocation");
        }
        // The routes are the same.
        let added = std::iter::from_fn(|| other.next_action()).map(|action| match action {
            Action::RouteAdded(route) => (route.tuple, route.channel, route.peer),
            other => panic!("unexpected: {other:?}"),
        });
        let mut added: Vec<_> = added.collect();
        let tuples: Vec<_> = imported.iter().map(|record| record.tuple).collect();
        let routes = self.model.routes(now, worker).into_iter().filter(|route| tuples.contains(&route.tuple));
        let mut expected: Vec<_> = routes.map(|route| (route.tuple, route.channel, route.peer)).collect();
        let key = |(tuple, channel, _): &(FiveTuple, u16, _)| (tuple.client, tuple.server, *channel);
        added.sort_by_key(key);
        expected.sort_by_key(key);
        assert_eq!(added, expected);
    }

    pub(crate) fn no_routes(&self) -> bool {
        self.routes.iter().all(Vec::is_empty)
    }

    /// Checks that the live routes are the bound channels.
    fn check_routes(&mut self) {
        let now = self.now();
        for worker in 0..self.servers.len() {
            let expected = self.model.routes(now, worker);
            let live = |route: &&ChannelRoute| !route.expires.has_passed(instant(now));
            let mut routes: Vec<_> = self.routes[worker].iter().filter(live).copied().collect();
            routes.sort_by_key(|route| (route.relay, route.channel));
            assert_eq!(routes, expected, "routes of worker {worker}");
            if routes.len() > 3 {
                self.observe("more than three routes");
            }
            if self.model.has_channel_without_permission(now, worker) {
                self.observe("a channel whose permission has expired");
            }
        }
    }

    /// Checks the invariants after a step.
    pub(crate) fn check(&mut self, thoroughly: bool) {
        self.check_routes();
        for (worker, server) in self.servers.iter().enumerate() {
            server.check_invariants(self.opens.iter().filter(|(at, _)| *at == worker).count());
            let allocs = self.model.allocs.iter().filter(|alloc| alloc.worker == worker).count();
            assert_eq!(server.allocation_count(), allocs, "allocations of worker {worker}");
        }
        assert_eq!(self.ledger.quota.allocations() as usize, self.model.places(None), "allocations in the quota");
        if thoroughly {
            assert_eq!(self.relays().live_count(), self.model.count_open_sockets(), "live relayed addresses");
            assert_eq!(self.sockets.len(), self.model.count_open_sockets(), "relay sockets");
            assert_eq!(self.relays().reservation_count(), self.model.reservations.len(), "reservations");
            let reserved = self.model.reserved_ports();
            let held: usize = self.servers.iter().map(Server::held_ports).sum();
            let all = self.relays().taken_count();
            assert_eq!(all, held + self.relays().reservation_count(), "each taken port has a holder");
            assert_eq!(all, self.model.taken.len() + reserved.len(), "taken ports");
            let mut taken = [self.model.taken.as_slice(), &reserved].concat();
            taken.sort_unstable();
            assert!(taken.is_sorted_by(|a, b| a < b), "no port is used twice");
        }
    }
}

fn instant(now: Now) -> Instant {
    Instant::from_elapsed(Duration::from_millis(now.ms))
}

fn context(now: Now, rng: &mut StdRng) -> Context<'_> {
    Context { now: instant(now), unix: now.unix, rng }
}
