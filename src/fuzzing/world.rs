//! A process with two workers, as the shell sees it: its sockets, its clocks, and what it has promised to whom.
//!
//! After each step, what the core says has to agree with what the shell knows.

mod checks;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use self::checks::{assert_message, signed_peers, verifies};
use super::responses::{self, UNTOUCHED};
use super::stun::assert_padding_is_zero;
use crate::auth::{LongTermKey, TestLink};
use crate::ip_fields::IpFields;
use crate::stun::attribute::{ChannelNumber, Data, ReservationToken, XorPeerAddress};
use crate::stun::{Class, Message, Method};
use crate::test_world::Blueprint;
use crate::turn::*;

/// RFC 8656 §9 and §12, in milliseconds.
const PERMISSION: u64 = 300_000;
const CHANNEL: u64 = 600_000;

/// The wall clock at the start.
pub(super) const UNIX: u64 = 1_800_000_000;

/// What a client may do on an allocation, according to the responses that it got. Times are in milliseconds.
#[derive(Clone, Default)]
struct Rights {
    permissions: HashMap<IpAddr, u64>,
    channels: HashMap<SocketAddr, u64>,
}

/// A socket that the core has requested.
struct Opening {
    spec: SocketSpec,
    request: Vec<u8>,
    key: Option<LongTermKey>,
}

/// A worker and its sockets.
pub(super) struct Worker {
    pub(super) server: Server,
    opening: Vec<Opening>,
    /// The open sockets and their addresses.
    pub(super) open: BTreeMap<SocketId, SocketAddr>,
    /// The sockets that are being closed.
    closing: Vec<SocketAddr>,
    routes: Vec<ChannelRoute>,
    /// The allocations that were created and have not ended, with the rights of their clients.
    rights: HashMap<AllocationId, Rights>,
    ended: HashSet<AllocationId>,
}

pub(super) struct World {
    pub(super) blueprint: Blueprint,
    /// The tables of the relay addresses in use, and all that there were in this process.
    tables: Vec<Arc<RelayAddress>>,
    all_tables: RelayAddresses,
    pub(super) ledger: Arc<Ledger>,
    pub(super) workers: Vec<Worker>,
    /// The monotonic clock, in milliseconds.
    pub(super) ms: u64,
    pub(super) unix: u64,
    rng: StdRng,
    /// The reservation tokens that clients got.
    pub(super) tokens: Vec<[u8; 8]>,
    /// Whether the kernel takes what is sent.
    pub(super) sends: bool,
    /// The TOS and the hop limit of received packets.
    pub(super) fields: IpFields,
}

fn worker(snapshot: &Arc<Snapshot>, ledger: &Arc<Ledger>) -> Worker {
    Worker {
        server: Server::new(Arc::clone(snapshot), Arc::clone(ledger)),
        opening: Vec::new(),
        open: BTreeMap::new(),
        closing: Vec::new(),
        routes: Vec::new(),
        rights: HashMap::new(),
        ended: HashSet::new(),
    }
}

impl World {
    pub(super) fn new(blueprint: Blueprint, workers: usize) -> Self {
        let all_tables = blueprint.relay_addresses();
        let (snapshot, ledger) = (blueprint.snapshot_with(all_tables.clone()), blueprint.ledger());
        ledger.test_links.open(TestLink::at(0).unwrap(), 4_000);
        Self {
            tables: all_tables.iter().cloned().collect(),
            all_tables,
            workers: (0..workers).map(|_| worker(&snapshot, &ledger)).collect(),
            blueprint,
            ledger,
            ms: 1_000_000,
            unix: UNIX,
            rng: StdRng::seed_from_u64(7),
            tokens: Vec::new(),
            sends: true,
            fields: IpFields::default(),
        }
    }

    pub(super) fn now(&self) -> Instant {
        Instant::from_elapsed(Duration::from_millis(self.ms))
    }

    fn epoch(&self) -> Epoch {
        Epoch { now: self.now(), unix: Duration::from_secs(self.unix) }
    }

    pub(super) fn snapshot(&self) -> &Arc<Snapshot> {
        self.workers[0].server.snapshot()
    }

    /// Returns the live relayed transport addresses, as peers see them.
    pub(super) fn relayed(&self) -> Vec<SocketAddr> {
        let open = self.workers.iter().flat_map(|worker| worker.open.values());
        open.map(|bind| self.snapshot().relays.advertised(*bind)).collect()
    }

    /// Passes a packet of a client, or several merged ones, to a worker. `key` is that with which it is signed, if it is
    /// one of this server.
    pub(super) fn client_packet(
        &mut self,
        at: usize,
        tuple: &FiveTuple,
        buffer: &[u8],
        length: Option<usize>,
        key: Option<&LongTermKey>,
    ) {
        let segments = length.map_or(1, |length| buffer.len().div_ceil(length.max(1)).max(1));
        let mut burst = ClientBurst::new(0..buffer.len(), length, self.fields);
        let step = length.unwrap_or(buffer.len()).max(1);
        let mut decisions = 0;
        loop {
            let packet = buffer.get(decisions * step..buffer.len().min((decisions + 1) * step)).unwrap_or_default();
            let before = self.footprint();
            let mut response = vec![UNTOUCHED; RESPONSE_BUFFER];
            let mut cx = Context { now: self.now(), unix: self.unix, rng: &mut self.rng };
            let server = &mut self.workers[at].server;
            let Some(decision) = server.client_packet(&mut cx, tuple, buffer, &mut burst, &mut response) else { break };
            decisions += 1;
            let is_signed = key.is_some_and(|key| verifies(packet, key)) && self.has_fresh_nonce(at, tuple, packet);
            match decision {
                FromClient::Relay(route) => self.relay_to_peer(at, tuple, buffer, packet, &route),
                FromClient::Respond(decision) => {
                    let message = responses::check(tuple, packet, &response, &decision);
                    let binding = decision.outcome == Outcome::Answered(RequestMethod::Binding);
                    if message.class() == Class::Success && !binding {
                        assert!(is_signed, "only valid credentials get a success response");
                        self.grant(at, tuple, packet, &message);
                    }
                }
                FromClient::Open(spec) => {
                    assert!(is_signed, "only valid credentials get a socket");
                    self.requested(at, spec, packet, key);
                }
                FromClient::Drop(_) => {}
            }
            if !is_signed {
                before.assert_no_growth(&self.footprint());
            }
            self.carry_out(at);
        }
        assert_eq!(decisions, segments, "each packet has one outcome");
    }

    fn relay_to_peer(&mut self, at: usize, tuple: &FiveTuple, buffer: &[u8], packet: &[u8], route: &ToPeer) {
        let worker = &self.workers[at];
        assert!(worker.open.contains_key(&route.socket), "data goes through an open socket");
        let id = route.socket.allocation();
        let allocation = worker.server.table.get(id).expect("data belongs to an allocation");
        assert_eq!(allocation.tuple, *tuple, "of this client");
        let payload = buffer.get(route.payload.clone()).expect("the payload is in the buffer");
        let expected = match Message::parse(packet) {
            Ok(message) => message.get().unwrap().map(|Data(data)| data),
            Err(_) => packet.get(4..4 + payload.len()),
        };
        assert_eq!(expected, Some(payload), "exactly the data of the packet is relayed");
        assert!(route.fields.hop_limit != Some(0));
        let peer = worker.server.snapshot().relays.advertised(route.peer);
        self.assert_permitted(at, id, peer);
        self.charge(at, route.socket, Direction::ToPeers, payload.len());
    }

    fn charge(&mut self, at: usize, socket: SocketId, direction: Direction, bytes: usize) {
        let server = &mut self.workers[at].server;
        if self.sends {
            server.credit(socket, direction, 1, bytes as u64);
        } else {
            server.refund(socket, direction, bytes as u64);
            server.count_drops(socket, DropReason::SendFailed, 1);
        }
    }

    /// Records what a success response gives to a client.
    fn grant(&mut self, at: usize, tuple: &FiveTuple, request: &[u8], response: &Message<'_>) {
        let request = Message::parse(request).expect("the request is a message");
        self.tokens.extend(response.get().unwrap().map(|ReservationToken(token)| token));
        let Worker { server, rights, .. } = &mut self.workers[at];
        let Some(id) = server.allocation_of(tuple) else {
            return assert_eq!(request.method(), Method::REFRESH, "only a Refresh ends an allocation");
        };
        let now = Instant::from_elapsed(Duration::from_millis(self.ms));
        let allocation = server.table.get(id).expect("the allocation exists");
        let Some(rights) = rights.get_mut(&id) else { return };
        let peers = signed_peers(&request);
        match request.method() {
            Method::CREATE_PERMISSION => {
                for peer in peers {
                    rights.permissions.insert(peer.ip(), self.ms + PERMISSION);
                    assert!(allocation.permissions.allows(peer.ip(), now), "the permission is installed");
                }
            }
            Method::CHANNEL_BIND => {
                let (peer, number) = (peers.into_iter().next().unwrap(), request.get::<ChannelNumber>().unwrap());
                rights.channels.insert(peer, self.ms + CHANNEL);
                rights.permissions.insert(peer.ip(), self.ms + PERMISSION);
                assert_eq!(allocation.channels.number(peer, now), number.map(|ChannelNumber(number)| number));
            }
            _ => {}
        }
    }

    fn requested(&mut self, at: usize, spec: SocketSpec, request: &[u8], key: Option<&LongTermKey>) {
        let ports = self.blueprint.ports.clone();
        assert!(self.tables.iter().any(|table| table.bind() == spec.bind.ip()) && ports.contains(&spec.bind.port()));
        let worker = &mut self.workers[at];
        assert!(!worker.open.contains_key(&spec.socket), "sockets are identified uniquely");
        assert!(worker.opening.iter().all(|other| other.spec.socket != spec.socket));
        worker.opening.push(Opening { spec, request: request.to_vec(), key: key.cloned() });
    }

    pub(super) fn opening_count(&self, at: usize) -> usize {
        self.workers[at].opening.len()
    }

    /// Reports the result of a requested socket.
    pub(super) fn report_opened(&mut self, at: usize, which: usize, mut result: Result<(), OpenError>) {
        if self.workers[at].opening.is_empty() {
            return;
        }
        let which = which % self.workers[at].opening.len();
        let Opening { spec, request, key } = self.workers[at].opening.swap_remove(which);
        // The kernel binds an address once.
        let is_bound = |worker: &Worker| worker.open.values().chain(&worker.closing).any(|bind| *bind == spec.bind);
        if result.is_ok() && self.workers.iter().any(is_bound) {
            result = Err(OpenError::PortInUse);
        }
        let mut response = vec![UNTOUCHED; RESPONSE_BUFFER];
        let mut cx = Context { now: self.now(), unix: self.unix, rng: &mut self.rng };
        let opened = self.workers[at].server.socket_opened(&mut cx, &spec, result, &mut response);
        let is_used = !matches!(opened, Opened::Abandoned);
        match (result, is_used) {
            (Ok(()), true) => drop(self.workers[at].open.insert(spec.socket, spec.bind)),
            (Ok(()), false) => self.workers[at].closing.push(spec.bind),
            (Err(_), _) => {}
        }
        match opened {
            Opened::Respond(tuple, decision) => {
                let message = responses::check(&tuple, &request, &response, &decision);
                self.tokens.extend(message.get().unwrap().map(|ReservationToken(token)| token));
            }
            Opened::Open(next) => self.requested(at, next, &request, key.as_ref()),
            Opened::Abandoned => {}
        }
        self.carry_out(at);
    }

    /// Reports a socket closed.
    pub(super) fn report_closed(&mut self, at: usize, which: usize) {
        let worker = &mut self.workers[at];
        if !worker.closing.is_empty() {
            let which = which % worker.closing.len();
            let bind = worker.closing.swap_remove(which);
            worker.server.socket_closed(bind);
            self.carry_out(at);
        }
    }

    /// Passes datagrams of a peer to a worker.
    pub(super) fn peer_packet(
        &mut self,
        at: usize,
        socket: SocketId,
        source: SocketAddr,
        payload: &[u8],
        length: Option<usize>,
    ) {
        let buffer = [&[UNTOUCHED; HEADROOM][..], payload, &[UNTOUCHED; TAILROOM]].concat();
        let segments = length.map_or(1, |length| payload.len().div_ceil(length.max(1)).max(1));
        let mut burst = PeerBurst::new(source, HEADROOM..HEADROOM + payload.len(), length, self.fields);
        let mut decisions = 0;
        loop {
            let mut headroom = [UNTOUCHED; HEADROOM];
            let mut cx = Context { now: self.now(), unix: self.unix, rng: &mut self.rng };
            let server = &mut self.workers[at].server;
            let Some(decision) = server.peer_packet(&mut cx, socket, &buffer, &mut burst, &mut headroom) else { break };
            decisions += 1;
            if let FromPeer::Relay(route) = decision {
                assert!(self.workers[at].open.contains_key(&socket), "data comes through an open socket");
                let server = &self.workers[at].server;
                let peer = server.snapshot().relays.advertised(source);
                let allocation = server.table.get(socket.allocation()).expect("the socket has an allocation");
                assert_eq!(route.tuple, allocation.tuple);
                let data = buffer.get(route.payload.clone()).expect("the payload is in the buffer");
                let message = [&headroom[HEADROOM - route.header..], data, &vec![0; route.padding]].concat();
                assert!(headroom[..HEADROOM - route.header].iter().all(|byte| *byte == UNTOUCHED));
                assert_message(&message, peer, data, route.tuple.transport.is_framed());
                self.assert_permitted(at, socket.allocation(), peer);
                self.charge(at, socket, Direction::ToClient, data.len());
            }
            self.carry_out(at);
        }
        assert_eq!(decisions, segments, "each datagram has one outcome");
    }

    /// Passes an ICMP error to a worker.
    pub(super) fn icmp(&mut self, at: usize, socket: SocketId, peer: SocketAddr, error: IcmpError) {
        let mut buffer = vec![UNTOUCHED; RESPONSE_BUFFER];
        let mut cx = Context { now: self.now(), unix: self.unix, rng: &mut self.rng };
        let result = self.workers[at].server.peer_unreachable(&mut cx, socket, peer, error, &mut buffer);
        if let Ok(IcmpIndication { tuple, length }) = result {
            let server = &self.workers[at].server;
            let peer = server.snapshot().relays.advertised(peer);
            let message = Message::parse(&buffer[..length]).expect("an indication is a message");
            assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
            assert_eq!(message.get(), Ok(Some(XorPeerAddress(peer))));
            assert_padding_is_zero(&buffer[..length]);
            let id = socket.allocation();
            assert_eq!(server.table.get(id).map(|allocation| allocation.tuple), Some(tuple));
            let rights = self.workers[at].rights.get(&id).expect("the allocation was created");
            let lasts = |until: Option<&u64>| until.is_some_and(|until| *until > self.ms);
            assert!(lasts(rights.permissions.get(&peer.ip())) || lasts(rights.channels.get(&peer)));
        }
        self.carry_out(at);
    }

    /// Lets time pass without the knowledge of the workers.
    pub(super) fn pass(&mut self, ms: u64) {
        self.unix += (self.ms % 1_000 + ms) / 1_000;
        self.ms += ms;
    }

    pub(super) fn advance(&mut self, at: usize, most: usize) {
        let now = self.now();
        while self.workers[at].server.advance(now, most) && most > 1 {
            self.carry_out(at);
        }
        self.carry_out(at);
    }

    pub(super) fn review(&mut self, at: usize, most: usize) {
        let now = self.now();
        self.workers[at].server.review(now, most);
        self.carry_out(at);
    }

    pub(super) fn connection_closed(&mut self, at: usize, tuple: &FiveTuple) {
        let now = self.now();
        self.workers[at].server.connection_closed(now, tuple);
        assert_eq!(self.workers[at].server.allocation_of(tuple), None);
        self.carry_out(at);
    }

    /// Ends the allocation of a client on behalf of the operator, or because its listener is removed.
    pub(super) fn kick(&mut self, at: usize, tuple: &FiveTuple, by_operator: bool) {
        let (now, server) = (self.now(), &mut self.workers[at].server);
        let Some(id) = server.allocation_of(tuple) else { return };
        if by_operator {
            let is_open = server.describe(now, id).is_some();
            assert_eq!(server.end_allocation(now, id, Operator { process: None, user: 0 }), is_open);
            assert!(!is_open || server.allocation_of(tuple).is_none());
        } else {
            server.end_unserved(now, id);
            assert_eq!(server.allocation_of(tuple), None);
        }
        self.carry_out(at);
    }

    /// Replaces the configuration of all workers. Relay addresses that stay keep their tables, as in a reload.
    pub(super) fn reconfigure(&mut self, blueprint: Blueprint) {
        let table = |(bind, advertised): &(IpAddr, IpAddr)| {
            let same = |table: &&Arc<RelayAddress>| (table.bind(), table.advertised()) == (*bind, *advertised);
            if let Some(table) = self.tables.iter().find(same) {
                return Arc::clone(table);
            }
            Arc::new(match self.tables.iter().find(|table| table.bind() == *bind) {
                Some(table) => table.sharing_ports(*advertised),
                None => RelayAddress::new(*bind, *advertised, &blueprint.ports),
            })
        };
        self.tables = blueprint.relays.iter().map(table).collect();
        let known: Vec<Arc<RelayAddress>> = self.all_tables.iter().cloned().collect();
        let new = self.tables.iter().filter(|table| !known.iter().any(|known| Arc::ptr_eq(known, table)));
        self.all_tables = known.iter().chain(new).cloned().collect();
        let snapshot = blueprint.snapshot_with(self.tables.iter().cloned().collect());
        self.blueprint = blueprint;
        for at in 0..self.workers.len() {
            self.workers[at].server.reconfigure(Arc::clone(&snapshot));
        }
        (0..self.workers.len()).for_each(|at| self.carry_out(at));
    }

    /// Hands all allocations over to another process with the same configuration, and ends this one.
    pub(super) fn hand_over(&mut self) {
        let epoch = self.epoch();
        let mut successor =
            Self { ms: self.ms, unix: self.unix, ..Self::new(self.clone_blueprint(), self.workers.len()) };
        for (old, new) in self.workers.iter().zip(&mut successor.workers) {
            for record in old.server.export(epoch) {
                let live = record.relays.iter().any(|relay| relay.expires > epoch.unix);
                match new.server.import(epoch, &record) {
                    Ok(sockets) => {
                        assert!(live && !sockets.is_empty());
                        new.open.extend(sockets.iter().map(|spec| (spec.socket, spec.bind)));
                        let (from, to) = (old.server.allocation_of(&record.tuple), sockets[0].socket.allocation());
                        let rights = from.and_then(|from| old.rights.get(&from)).expect("the allocation was created");
                        new.rights.insert(to, rights.clone());
                    }
                    Err(ImportError::Credentials | ImportError::Port(_)) => {}
                    Err(ImportError::Expired) => assert!(!live),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        self.stop();
        *self = successor;
        (0..self.workers.len()).for_each(|at| self.carry_out(at));
    }

    fn clone_blueprint(&self) -> Blueprint {
        let Blueprint { limits, policy, compat, alternate, .. } = &self.blueprint;
        Blueprint {
            realm: self.blueprint.realm.clone(),
            secrets: self.blueprint.secrets.clone(),
            users: self.blueprint.users.clone(),
            test_links: self.blueprint.test_links.clone(),
            revoked: self.blueprint.revoked.clone(),
            former_realms: self.blueprint.former_realms.clone(),
            policy: policy.clone(),
            udp_ports: self.blueprint.udp_ports.clone(),
            limits: limits.clone(),
            alternate: alternate.clone(),
            compat: *compat,
            relays: self.blueprint.relays.clone(),
            ports: self.blueprint.ports.clone(),
            ..self.blueprint
        }
    }

    /// Stops all workers. Then everything is free.
    pub(super) fn stop(&mut self) {
        let now = self.now();
        for at in 0..self.workers.len() {
            self.workers[at].server.stop(now);
            self.carry_out(at);
        }
        self.settle();
        self.assert_free();
    }

    /// Lets everything expire. Then everything is free.
    pub(super) fn expire_all(&mut self) {
        self.pass(1_000 * u64::from(MAXIMUM_LIFETIME) + 2_000);
        self.settle();
        (0..self.workers.len()).for_each(|at| self.advance(at, usize::MAX));
        self.settle();
        self.assert_free();
    }

    /// Completes all socket operations.
    fn settle(&mut self) {
        for at in 0..self.workers.len() {
            while !self.workers[at].opening.is_empty() {
                self.report_opened(at, 0, Ok(()));
            }
            while !self.workers[at].closing.is_empty() {
                self.report_closed(at, 0);
            }
        }
    }

    /// Carries out the actions of a worker and checks everything.
    fn carry_out(&mut self, at: usize) {
        let Worker { server, open, closing, routes, rights, ended, .. } = &mut self.workers[at];
        while let Some(action) = server.next_action() {
            match action {
                Action::Close { socket, bind } => {
                    assert_eq!(open.remove(&socket), Some(bind), "an open socket is closed, once");
                    closing.push(bind);
                }
                Action::RouteAdded(route) => {
                    assert!(open.contains_key(&route.socket), "a route has an open socket");
                    assert_eq!(open.get(&route.socket), Some(&route.relay));
                    routes.retain(|other| (other.tuple, other.channel) != (route.tuple, route.channel));
                    routes.push(route);
                }
                Action::RouteRemoved(route) => {
                    let before = routes.len();
                    routes.retain(|other| *other != route);
                    assert_eq!(routes.len() + 1, before, "the removed route was announced");
                }
                Action::Log(Event::AllocationCreated { id, .. }) => {
                    assert!(
                        !ended.contains(&id) && rights.insert(id, Rights::default()).is_none(),
                        "IDs are not reused"
                    );
                }
                Action::Log(Event::AllocationEnded(summary)) => {
                    assert!(rights.remove(&summary.id).is_some(), "an allocation ends once");
                    ended.insert(summary.id);
                }
                Action::Log(_) => {}
            }
        }
        self.check(at);
    }
}
