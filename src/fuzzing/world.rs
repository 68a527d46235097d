//! A process with two workers, as the shell sees it: its sockets, its clocks, and what it has promised to whom.
//!
//! After each step, what the core says has to agree with what the shell knows.

mod checks;
mod rights;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use self::checks::assert_message;
use self::rights::{Opening, Relayed, Reservation, Rights};
use super::credentials::Signature;
use super::responses;
use crate::auth::TestLink;
use crate::ip_fields::IpFields;
use crate::stun::attribute::XorPeerAddress;
use crate::stun::{AttributeType, Class, Message, Method};
use crate::test_messages::{UNTOUCHED, assert_padding_is_zero};
use crate::test_world::Blueprint;
use crate::turn::*;

/// The wall clock at the start.
pub(super) const UNIX: u64 = 1_800_000_000;

/// A worker and its sockets.
pub(super) struct Worker {
    pub(super) server: Server,
    opening: Vec<Opening>,
    /// The open sockets and their addresses.
    pub(super) open: BTreeMap<SocketId, SocketAddr>,
    /// The sockets that are being closed.
    closing: Vec<SocketAddr>,
    /// The sockets that were open, in the order of their end.
    pub(super) closed: Vec<SocketId>,
    routes: Vec<ChannelRoute>,
    /// The allocations that were created and have not ended, with the rights of their clients.
    rights: HashMap<AllocationId, Rights>,
    /// The allocation with a success response that is not announced yet.
    created: Option<(AllocationId, Rights)>,
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
    /// The ports that are reserved at present.
    reservations: Vec<Reservation>,
    /// Why the shell ends allocations at present.
    commanded: Option<EndReason>,
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
        closed: Vec::new(),
        routes: Vec::new(),
        rights: HashMap::new(),
        created: None,
        ended: HashSet::new(),
    }
}

impl Worker {
    /// Whether it has a socket that is bound to an address.
    fn binds(&self, bind: SocketAddr) -> bool {
        self.open.values().chain(&self.closing).any(|bound| *bound == bind)
    }
}

impl World {
    pub(super) fn new(blueprint: Blueprint, workers: usize) -> Self {
        let all_tables = blueprint.relay_addresses();
        let (snapshot, ledger) = (blueprint.snapshot_with(all_tables.clone()), blueprint.small_ledger());
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
            reservations: Vec::new(),
            commanded: None,
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

    /// Passes a packet of a client, or several merged ones, to a worker. `signature` is how it is signed, if it is.
    pub(super) fn client_packet(
        &mut self,
        at: usize,
        tuple: &FiveTuple,
        buffer: &[u8],
        length: Option<usize>,
        signature: Option<&Signature>,
    ) {
        let segments = length.map_or(1, |length| buffer.len().div_ceil(length.max(1)).max(1));
        let mut burst = ClientBurst::new(0..buffer.len(), length, self.fields);
        let step = length.unwrap_or(buffer.len()).max(1);
        let mut decisions = 0;
        loop {
            let start = decisions * step;
            let packet = buffer.get(start..buffer.len().min(start + step)).unwrap_or_default();
            let before = self.footprint();
            let authentic = signature.filter(|signature| self.is_authentic(at, tuple, packet, signature));
            let mut response = vec![UNTOUCHED; RESPONSE_BUFFER];
            let mut cx = Context { now: self.now(), unix: self.unix, rng: &mut self.rng };
            let server = &mut self.workers[at].server;
            let Some(decision) = server.client_packet(&mut cx, tuple, buffer, &mut burst, &mut response) else { break };
            decisions += 1;
            let (after, mut has_effect) = (self.footprint(), false);
            match decision {
                FromClient::Relay(route) => self.relay_to_peer(at, tuple, packet, start, &route),
                FromClient::Respond(decision) => {
                    let message = self.check_response(tuple, packet, &response, &decision, authentic);
                    let message = Message::parse(&message).expect("a response is a message");
                    let binding = decision.outcome == Outcome::Answered(RequestMethod::Binding);
                    if message.class() == Class::Success && !binding {
                        let signature = authentic.expect("only valid credentials get a success response");
                        let request = Message::parse(packet).expect("the request is a message");
                        self.grant(at, tuple, &request, &message, signature);
                        has_effect = true;
                    }
                }
                FromClient::Open(spec) => {
                    let signature = authentic.expect("only valid credentials get a socket");
                    self.requested(at, tuple, spec, packet, signature);
                    has_effect = true;
                }
                FromClient::Wait | FromClient::Drop(_) => {}
            }
            if !has_effect {
                before.assert_same(&after, authentic.is_some());
            }
            self.carry_out(at);
        }
        assert_eq!(decisions, segments, "each packet has one outcome");
    }

    /// Checks the response to a request, and returns it. `signature` is that of an authentic request.
    fn check_response(
        &self,
        tuple: &FiveTuple,
        request: &[u8],
        buffer: &[u8],
        decision: &Response,
        signature: Option<&Signature>,
    ) -> Vec<u8> {
        let may_be_refused = |signature: &Signature| {
            !signature.is_intact || signature.has_expired(self.unix) || !signature.is_known(&self.blueprint)
        };
        let has_allocation = self.workers.iter().any(|worker| worker.server.allocation_of(tuple).is_some());
        responses::check(
            &responses::Case {
                tuple,
                request,
                unix: self.unix,
                blueprint: &self.blueprint,
                nonces: &self.snapshot().nonces,
                signature,
                may_be_unsigned: signature.is_none_or(may_be_refused),
                has_proved_source: tuple.transport.proves_source() || has_allocation,
            },
            buffer,
            decision,
        );
        buffer[..decision.length].to_vec()
    }

    fn relay_to_peer(&mut self, at: usize, tuple: &FiveTuple, packet: &[u8], start: usize, route: &ToPeer) {
        let worker = &self.workers[at];
        let bind = worker.open.get(&route.socket).expect("data goes through an open socket");
        let id = route.socket.allocation();
        let allocation = worker.server.table.get(id).expect("data belongs to an allocation");
        let rights = worker.rights.get(&id).expect("the allocation was created");
        assert_eq!((allocation.tuple, rights.tuple), (*tuple, *tuple), "of this client");
        assert!(rights.relays.get(bind).is_some_and(|relay| relay.until > self.ms), "that has not expired");
        let (peer, place, may_not_fragment) = match Message::parse(packet) {
            Ok(message) => {
                let XorPeerAddress(peer) = message.get().unwrap().expect("a Send indication names a peer");
                assert!(rights.has_permission(peer.ip(), self.ms), "{peer} has a permission");
                let place = message.data_range().expect("a Send indication has data");
                (peer, place, message.contains(AttributeType::DONT_FRAGMENT))
            }
            Err(_) => {
                let [number_high, number_low, high, low] = packet[..4].try_into().unwrap();
                let number = u16::from_be_bytes([number_high, number_low]);
                let peer = rights.peer_of(number, self.ms).expect("the channel is bound");
                (peer, 4..4 + usize::from(u16::from_be_bytes([high, low])), false)
            }
        };
        assert!(place.end <= packet.len());
        assert_eq!(route.payload, start + place.start..start + place.end, "exactly the data of the packet is relayed");
        assert_eq!(peer.is_ipv4(), bind.is_ipv4(), "through the socket of its address family");
        let relays = &worker.server.snapshot().relays;
        let is_own = self.workers.iter().any(|worker| worker.open.values().any(|open| *open == route.peer));
        // Peers of this server have other addresses behind NAT.
        assert!(
            route.peer == peer && !relays.is_relay_address(peer.ip())
                || relays.live(peer) == Some(route.peer) && is_own
        );
        assert!(may_not_fragment || !route.dont_fragment);
        assert_eq!(Some(route.fields), tuple.transport.relayed_fields(self.fields));
        self.assert_allowed(at, id, peer);
        self.charge(at, route.socket, Direction::ToPeers, route.payload.len());
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

    pub(super) fn opening_count(&self, at: usize) -> usize {
        self.workers[at].opening.len()
    }

    /// Passes the result of opening a socket to a worker. Returns the content of the response buffer, too.
    fn socket_opened(&mut self, at: usize, spec: &SocketSpec, result: Result<(), OpenError>) -> (Opened, Vec<u8>) {
        let mut response = vec![UNTOUCHED; RESPONSE_BUFFER];
        let mut cx = Context { now: self.now(), unix: self.unix, rng: &mut self.rng };
        let opened = self.workers[at].server.socket_opened(&mut cx, spec, result, &mut response);
        (opened, response)
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
        let step = length.unwrap_or(payload.len()).max(1);
        let mut burst = PeerBurst::new(source, HEADROOM..HEADROOM + payload.len(), length, self.fields);
        let mut decisions = 0;
        loop {
            let mut headroom = [UNTOUCHED; HEADROOM];
            let mut cx = Context { now: self.now(), unix: self.unix, rng: &mut self.rng };
            let server = &mut self.workers[at].server;
            let Some(decision) = server.peer_packet(&mut cx, socket, &buffer, &mut burst, &mut headroom) else { break };
            decisions += 1;
            if let FromPeer::Relay(route) = decision {
                let start = (decisions - 1) * step;
                let place = HEADROOM + start..HEADROOM + payload.len().min(start + step);
                self.relay_to_client((at, socket), source, &buffer, &headroom, &route, place);
            }
            self.carry_out(at);
        }
        assert_eq!(decisions, segments, "each datagram has one outcome");
        self.charge_late(at, socket, payload.len());
    }

    /// Reports data for a socket whose allocation has ended, which no other allocation is charged for.
    fn charge_late(&mut self, at: usize, socket: SocketId, bytes: usize) {
        if self.workers[at].rights.contains_key(&socket.allocation()) {
            return;
        }
        let before = self.footprint();
        for direction in [Direction::ToPeers, Direction::ToClient] {
            self.charge(at, socket, direction, bytes);
        }
        before.assert_same(&self.footprint(), false);
    }

    /// Checks a message to a client. The datagram is at `place` in the buffer.
    fn relay_to_client(
        &mut self,
        (at, socket): (usize, SocketId),
        source: SocketAddr,
        buffer: &[u8],
        headroom: &[u8; HEADROOM],
        route: &ToClient,
        place: Range<usize>,
    ) {
        let Worker { server, open, rights, .. } = &self.workers[at];
        let bind = open.get(&socket).expect("data comes through an open socket");
        let rights = rights.get(&socket.allocation()).expect("the socket has an allocation");
        assert_eq!(route.tuple, rights.tuple, "data goes to the client of the allocation");
        assert!(rights.relays.get(bind).is_some_and(|relay| relay.until > self.ms), "that has not expired");
        let peer = server.snapshot().relays.advertised(source);
        let channel = rights.channel_of(peer, self.ms);
        assert!(channel.is_some() || rights.has_permission(peer.ip(), self.ms), "{peer} has a permission or a channel");
        assert_eq!(route.payload, place, "exactly the data of the datagram is relayed");
        assert_eq!(Some(route.fields), route.tuple.transport.relayed_fields(self.fields));
        let (untouched, header) = headroom.split_at(HEADROOM - route.header);
        assert!(untouched.iter().all(|byte| *byte == UNTOUCHED));
        let data = &buffer[place];
        let message = [header, data, &vec![0; route.padding]].concat();
        assert_message(&message, peer, channel, data, route.tuple.transport.is_framed());
        let bytes = data.len();
        self.assert_allowed(at, socket.allocation(), peer);
        self.charge(at, socket, Direction::ToClient, bytes);
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
            let Worker { open, rights, .. } = &self.workers[at];
            assert!(open.contains_key(&socket), "the error is about an open socket");
            let rights = rights.get(&id).expect("the allocation was created");
            assert!(rights.has_permission(peer.ip(), self.ms) || rights.channel_of(peer, self.ms).is_some());
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
        loop {
            let has_more = self.workers[at].server.advance(now, most);
            if !has_more {
                let ms = self.ms;
                self.reservations.retain(|reservation| reservation.at != at || reservation.until > ms);
            }
            self.carry_out(at);
            if !has_more || most == 1 {
                return;
            }
        }
    }

    pub(super) fn review(&mut self, at: usize, most: usize) {
        let now = self.now();
        self.workers[at].server.review(now, most);
        self.carry_out(at);
    }

    pub(super) fn connection_closed(&mut self, at: usize, tuple: &FiveTuple) {
        let now = self.now();
        self.commanded = Some(EndReason::ConnectionClosed);
        self.workers[at].server.connection_closed(now, tuple);
        self.abandon(at, tuple);
        assert_eq!(self.workers[at].server.allocation_of(tuple), None);
        self.carry_out(at);
    }

    /// Ends the allocation of a client on behalf of the operator, or because its listener is removed.
    pub(super) fn kick(&mut self, at: usize, tuple: &FiveTuple, by_operator: bool) {
        let (now, server) = (self.now(), &mut self.workers[at].server);
        let Some(id) = server.allocation_of(tuple) else { return };
        if by_operator {
            let (is_open, operator) = (server.describe(now, id).is_some(), Operator { process: None, user: Some(0) });
            self.commanded = Some(EndReason::EndedByOperator(operator));
            assert_eq!(server.end_allocation(now, id, operator), is_open);
            assert!(!is_open || server.allocation_of(tuple).is_none());
        } else {
            self.commanded = Some(EndReason::ListenerRemoved);
            server.end_unserved(now, id);
            assert_eq!(server.allocation_of(tuple), None);
            self.abandon(at, tuple);
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
        let tables = &self.tables;
        let is_kept = |reservation: &Reservation| tables.iter().any(|table| Arc::ptr_eq(table, &reservation.table));
        self.reservations.retain(is_kept);
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
            let records: Vec<AllocationRecord> = old.server.export(epoch).collect();
            for record in &records {
                let from = old.server.allocation_of(&record.tuple).expect("it was exported");
                let rights = old.rights.get(&from).expect("the allocation was created");
                let has_bind = |bind: SocketAddr| self.tables.iter().any(|table| table.bind() == bind.ip());
                let missing = record.relays.iter().map(|relay| relay.bind).find(|bind| !has_bind(*bind));
                let expected = match missing {
                    _ if !rights.signature.is_known(&self.blueprint) => Err(ImportError::Credentials),
                    Some(bind) => Err(ImportError::Port(bind)),
                    None => Ok(()),
                };
                let imported = new.server.import(epoch, record);
                assert_eq!(imported.as_ref().map(|_| ()).map_err(|error| *error), expected);
                let Ok(sockets) = imported else { continue };
                assert!(sockets.iter().map(|spec| spec.bind).eq(record.relays.iter().map(|relay| relay.bind)));
                new.open.extend(sockets.iter().map(|spec| (spec.socket, spec.bind)));
                let to = sockets[0].socket.allocation();
                let mut rights = rights.clone();
                rights.relays.retain(|_, relay| relay.until > self.ms);
                for (bind, relay) in &mut rights.relays {
                    // The address may have been given another advertised one.
                    let table = successor.tables.iter().find(|table| table.bind() == bind.ip());
                    relay.table = Arc::clone(table.expect("it was imported"));
                }
                new.rights.insert(to, rights);
                if !old.server.review.is_pending() {
                    let again = new.server.export(epoch).find(|again| again.tuple == record.tuple);
                    assert_eq!(again.as_ref(), Some(record), "the same allocation");
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
            database: self.blueprint.database.clone(),
            ..self.blueprint
        }
    }

    /// Stops all workers. Then everything is free.
    pub(super) fn stop(&mut self) {
        let now = self.now();
        for at in 0..self.workers.len() {
            self.commanded = Some(EndReason::ServerStopped);
            self.workers[at].server.stop(now);
            self.reservations.retain(|reservation| reservation.at != at);
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
        let Worker { server, open, closing, closed, routes, rights, created, ended, .. } = &mut self.workers[at];
        let mut gone: Vec<(AllocationId, SocketAddr, Relayed)> = Vec::new();
        let mut summaries = Vec::new();
        while let Some(action) = server.next_action() {
            match action {
                Action::Close { socket, bind } => {
                    assert_eq!(open.remove(&socket), Some(bind), "an open socket is closed, once");
                    closing.push(bind);
                    closed.push(socket);
                    let id = socket.allocation();
                    let relay = rights.get_mut(&id).and_then(|rights| rights.relays.remove(&bind));
                    // The first of two sockets may be open in an allocation that is not.
                    gone.extend(relay.map(|relay| (id, bind, relay)));
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
                    let (responded, of) = created.take().expect("an allocation is announced after its response");
                    assert_eq!(responded, id);
                    assert!(!ended.contains(&id) && rights.insert(id, of).is_none(), "IDs are not reused");
                }
                Action::Log(Event::AllocationEnded(summary)) => {
                    let of = rights.remove(&summary.id).expect("an allocation ends once");
                    assert_eq!(of.tuple, summary.tuple);
                    ended.insert(summary.id);
                    summaries.push((summary, of));
                }
                Action::Log(_) | Action::LookUp(_) => {}
            }
        }
        assert!(created.is_none(), "an allocation with a success response is announced");
        for (summary, of) in summaries {
            let relays: Vec<_> = gone.extract_if(.., |(id, ..)| *id == summary.id).collect();
            self.assert_reason(summary.reason, &of, &relays);
        }
        // One of two relayed transport addresses.
        for (_, bind, relay) in gone {
            assert!(relay.until <= self.ms || !self.has_relay(&relay), "{bind} was in use");
        }
        self.commanded = None;
        self.check(at);
    }

    /// Whether the configuration has the relay address of a relayed transport address.
    fn has_relay(&self, relay: &Relayed) -> bool {
        self.tables.iter().any(|table| Arc::ptr_eq(table, &relay.table))
    }

    /// Checks why an allocation has ended.
    fn assert_reason(&self, reason: EndReason, of: &Rights, relays: &[(AllocationId, SocketAddr, Relayed)]) {
        let have_passed = relays.iter().all(|(.., relay)| relay.until <= self.ms);
        let is_right = match reason {
            EndReason::Deleted | EndReason::Expired => have_passed,
            EndReason::CredentialsRevoked => of.signature.credential.is_revoked(&self.blueprint),
            EndReason::CredentialsRemoved => !of.signature.is_known(&self.blueprint),
            EndReason::RelayAddressGone => {
                relays.iter().all(|(.., relay)| relay.until <= self.ms || !self.has_relay(relay))
            }
            command => self.commanded == Some(command),
        };
        assert!(is_right, "an allocation ends for a reason, which {reason} is not: {of:?}");
    }
}
