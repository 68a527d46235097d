//! One server with two relay addresses, clients that write requests, and checks of every output.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::auth::{LongTermKey, Secret, time_limited};
use crate::ip_fields::IpFields;
use crate::stun::attribute::{
    ErrorCodeAttribute, Lifetime, Nonce, Realm, RequestedTransport, Username, XorPeerAddress, XorRelayedAddress,
};
use crate::stun::{
    Attribute, AttributeType, Class, EncodeAttribute, IntegrityStatus, Message, MessageWriter, Method, TransactionId,
    ValueWriter,
};
pub(crate) use crate::test_messages::assert_padding_is_zero;
use crate::test_messages::{UNTOUCHED, checked_response};
use crate::test_world::{self, Blueprint};
use crate::turn::*;

pub(crate) const REALM: &str = "example.org";
pub(crate) const SECRET: &str = "north-star";
/// The wall clock at the start of a world.
pub(crate) const UNIX: u64 = 1_800_000_000;
pub(crate) const NONCE_LIFETIME: u64 = 3_000;
pub(crate) const NONCE_KEY: [u8; 32] = [3; 32];
pub(crate) const EXPIRY_GRACE: u64 = 700;
pub(crate) const USERS: [(&str, &str); 2] = [("alice", "wonderland"), ("bob", "builder")];

pub(crate) const PORTS: u16 = 8;
/// The IPv4 relay address is behind 1:1 NAT. The IPv6 relay address is not.
pub(crate) const BIND_V4: &str = "10.0.0.5";
pub(crate) const ADVERTISED_V4: &str = "203.0.113.9";
pub(crate) const RELAY_V6: &str = "2001:db8:1::5";
/// Peers that the policy allows. It denies all other documentation addresses.
pub(crate) const PEERS: [&str; 2] = ["198.51.100.0/24", "2001:db8:2::/48"];

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Returns an allowed IPv4 peer.
pub(crate) fn peer(host: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, host], 7_000))
}

/// Returns an allowed IPv6 peer.
pub(crate) fn peer_v6(host: u16) -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 2, 0, 0, 0, 0, host], 7_000))
}

/// Returns the configuration of a world: two relay addresses, static users and time-limited credentials.
pub(crate) fn blueprint() -> Blueprint {
    let mut blueprint = Blueprint::new(REALM, (BIND_V4, ADVERTISED_V4), ALL_PORTS);
    let v6 = RELAY_V6.parse().unwrap();
    blueprint.relays.push((v6, v6));
    blueprint.secrets.push(Secret::new(SECRET).unwrap());
    blueprint.nonce_key = Some(NONCE_KEY);
    blueprint.nonce_lifetime = NONCE_LIFETIME;
    blueprint.limits.channels_per_allocation = 4;
    blueprint.expiry_grace = EXPIRY_GRACE;
    blueprint.policy = PeerPolicy {
        allow: PEERS.map(|net| net.parse().unwrap()).to_vec(),
        deny: Vec::new(),
        own: [BIND_V4, ADVERTISED_V4, RELAY_V6].map(|own| own.parse().unwrap()).to_vec(),
        ..PeerPolicy::default()
    };
    USERS.into_iter().fold(blueprint, |blueprint, (name, password)| blueprint.user(name, password))
}

const ALL_PORTS: std::ops::RangeInclusive<u16> = 50_000..=50_000 + PORTS - 1;

/// A server and its clocks. When it is dropped, no action may be pending.
pub(crate) struct World {
    /// The IP header fields of arriving packets.
    pub(crate) fields: IpFields,
    /// The IP header fields of the last packet to a client.
    pub(crate) fields_sent: IpFields,
    pub(crate) server: Server,
    pub(crate) ledger: Arc<Ledger>,
    /// The announced routes, by 5-tuple and channel.
    pub(crate) routes: Vec<ChannelRoute>,
    pub(crate) now: Instant,
    pub(crate) unix: u64,
    rng: StdRng,
    /// The number of requested sockets whose result was not reported.
    opening: usize,
    transactions: u32,
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.action(), None, "no action is pending");
        }
    }
}

/// The resources that allocations use. A request that fails must not change them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) allocations: usize,
    pub(crate) counted: u32,
    pub(crate) live: usize,
    /// Those of reservations included.
    pub(crate) ports_taken: usize,
}

pub(crate) const EMPTY: Footprint = Footprint { allocations: 0, counted: 0, live: 0, ports_taken: 0 };

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Blueprint)) -> Self {
        let mut blueprint = blueprint();
        change(&mut blueprint);
        Self::over(blueprint.snapshot(), blueprint.ledger())
    }

    fn over(snapshot: Arc<Snapshot>, ledger: Arc<Ledger>) -> Self {
        Self {
            fields: IpFields::default(),
            fields_sent: IpFields::default(),
            server: Server::new(snapshot, Arc::clone(&ledger)),
            ledger,
            routes: Vec::new(),
            now: Instant::from_elapsed(seconds(1_000)),
            unix: UNIX,
            rng: StdRng::seed_from_u64(7),
            opening: 0,
            transactions: 0,
        }
    }

    /// Returns another worker of the process.
    pub(crate) fn other_worker(&self) -> Self {
        let (snapshot, ledger) = (Arc::clone(self.server.snapshot()), Arc::clone(&self.ledger));
        let mut other_worker = Self::over(snapshot, ledger);
        (other_worker.now, other_worker.unix) = (self.now, self.unix);
        other_worker
    }

    /// Returns a server of another process with the same configuration and clocks.
    pub(crate) fn successor(&self) -> Self {
        let blueprint = blueprint();
        let mut successor = Self::over(blueprint.snapshot(), blueprint.ledger());
        (successor.now, successor.unix) = (self.now, self.unix);
        successor
    }

    /// Returns the next action that is not about a route. Routes are kept in `routes`.
    pub(crate) fn action(&mut self) -> Option<Action> {
        loop {
            match self.server.next_action()? {
                Action::RouteAdded(route) => {
                    self.routes.retain(|other| (other.tuple, other.channel) != (route.tuple, route.channel));
                    self.routes.push(route);
                }
                Action::RouteRemoved(route) => {
                    let before = self.routes.len();
                    self.routes.retain(|other| *other != route);
                    assert_eq!(self.routes.len(), before - 1, "the removed route was announced");
                }
                other => return Some(other),
            }
        }
    }

    /// Returns a client at the given host with a valid nonce and alice's credentials.
    pub(crate) fn client(&self, host: u8) -> Client {
        let tuple = FiveTuple {
            client: SocketAddr::from(([192, 0, 2, host], 5_000)),
            server: address("192.0.2.200:3478"),
            transport: Transport::Udp,
        };
        let (username, password) = (USERS[0].0.to_owned(), USERS[0].1.to_owned());
        Client { tuple, username, password, nonce: self.nonce(tuple.client) }
    }

    pub(crate) fn nonce(&self, client: SocketAddr) -> String {
        self.server.snapshot().nonces.mint(self.unix, client).to_string()
    }

    /// Advances the clocks without notifying the server.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.unix += time.as_secs();
    }

    /// Advances the clocks and notifies the server.
    pub(crate) fn advance(&mut self, time: Duration) {
        self.pass(time);
        self.server.advance(self.now, usize::MAX);
        self.server.check_invariants(self.opening);
    }

    /// Returns the relay addresses, which the workers of a process share.
    pub(crate) fn relays(&self) -> &RelayAddresses {
        &self.server.snapshot().relays
    }

    pub(crate) fn footprint(&self) -> Footprint {
        Footprint {
            allocations: self.server.allocation_count(),
            counted: self.ledger.quota.allocations(),
            live: self.relays().live_count(),
            ports_taken: self.relays().taken_count(),
        }
    }

    pub(crate) fn transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        let mut bytes = [0xc0; 12];
        bytes[8..].copy_from_slice(&self.transactions.to_be_bytes());
        TransactionId::new(bytes)
    }

    /// Returns the next action, which must be a log entry.
    pub(crate) fn event(&mut self) -> Event {
        match self.action() {
            Some(Action::Log(event)) => event,
            other => panic!("a log entry is expected, not {other:?}"),
        }
    }

    /// Returns the limit in the next log entry.
    pub(crate) fn logged_limit(&mut self) -> Limit {
        match self.event() {
            Event::LimitReached { limit, .. } => limit,
            other => panic!("a limit is expected in the log, not {other:?}"),
        }
    }

    /// Passes a packet to the server. The response buffer initially contains other bytes.
    pub(crate) fn client_packet(&mut self, tuple: &FiveTuple, packet: &[u8]) -> (FromClient, Vec<u8>) {
        let mut buffer = vec![UNTOUCHED; RESPONSE_BUFFER];
        let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
        let decision = test_world::client_packet(&mut self.server, &mut cx, tuple, packet, self.fields, &mut buffer);
        if let FromClient::Open(_) = decision {
            self.opening += 1;
        }
        self.server.check_invariants(self.opening);
        (decision, buffer)
    }

    /// Lets the server decide about the next request that has waited for the user database. Also returns the response
    /// buffer.
    pub(crate) fn resume(&mut self) -> Option<(FiveTuple, FromClient, Vec<u8>)> {
        let request = self.server.next_resumed(self.now)?;
        let mut buffer = vec![UNTOUCHED; RESPONSE_BUFFER];
        let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
        let decision = self.server.resume(&mut cx, &request, &mut buffer);
        if let FromClient::Open(_) = decision {
            self.opening += 1;
        }
        self.server.check_invariants(self.opening);
        Some((request.tuple, decision, buffer))
    }

    /// Passes a merged datagram from a client, with segments of `length` bytes. Returns for each segment how many bytes
    /// are relayed, or why it is dropped.
    pub(crate) fn client_burst(
        &mut self,
        tuple: &FiveTuple,
        buffer: &[u8],
        length: usize,
    ) -> Vec<Result<usize, DropReason>> {
        let mut burst = ClientBurst::new(0..buffer.len(), Some(length), self.fields);
        let mut decisions = Vec::new();
        loop {
            let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
            match self.server.client_packet(&mut cx, tuple, buffer, &mut burst, &mut [0; RESPONSE_BUFFER]) {
                Some(FromClient::Relay(route)) => {
                    self.server.credit(route.socket, Direction::ToPeers, 1, route.payload.len() as u64);
                    decisions.push(Ok(route.payload.len()));
                }
                Some(FromClient::Drop(reason)) => decisions.push(Err(reason)),
                Some(other) => panic!("a route is expected, not {other:?}"),
                None => return decisions,
            }
        }
    }

    /// Passes a merged datagram from a peer, with segments of `length` bytes. Returns for each segment
    /// how many bytes are relayed, or why it is dropped.
    pub(crate) fn peer_burst(
        &mut self,
        socket: SocketId,
        source: SocketAddr,
        buffer: &[u8],
        length: usize,
    ) -> Vec<Result<usize, DropReason>> {
        let mut burst = PeerBurst::new(source, 0..buffer.len(), Some(length), self.fields);
        let mut decisions = Vec::new();
        loop {
            let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
            match self.server.peer_packet(&mut cx, socket, buffer, &mut burst, &mut [0; HEADROOM]) {
                Some(FromPeer::Relay(route)) => {
                    self.server.credit(socket, Direction::ToClient, 1, route.payload.len() as u64);
                    decisions.push(Ok(route.payload.len()));
                }
                Some(FromPeer::Drop(reason)) => decisions.push(Err(reason)),
                None => return decisions,
            }
        }
    }

    pub(crate) fn socket_opened(&mut self, open: &SocketSpec, result: Result<(), OpenError>) -> (Opened, Vec<u8>) {
        let mut buffer = vec![UNTOUCHED; RESPONSE_BUFFER];
        self.opening -= 1;
        let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
        let opened = self.server.socket_opened(&mut cx, open, result, &mut buffer);
        if let Opened::Open(_) = opened {
            self.opening += 1;
        }
        self.server.check_invariants(self.opening);
        (opened, buffer)
    }

    /// Passes a packet to the server, which must respond without opening a socket.
    pub(crate) fn response_to(&mut self, tuple: &FiveTuple, packet: &[u8]) -> CheckedResponse {
        match self.client_packet(tuple, packet) {
            (FromClient::Respond(response), buffer) => CheckedResponse::new(packet, &buffer, &response),
            (other, _) => panic!("a response is expected, not {other:?}"),
        }
    }

    /// Passes a packet to the server, which must request a socket.
    pub(crate) fn open_for(&mut self, tuple: &FiveTuple, packet: &[u8]) -> SocketSpec {
        match self.client_packet(tuple, packet) {
            (FromClient::Open(open), _) => open,
            (other, _) => panic!("a socket request is expected, not {other:?}"),
        }
    }

    /// Reports the result of opening a socket, and returns the response to the Allocate request.
    pub(crate) fn opened(
        &mut self,
        packet: &[u8],
        open: &SocketSpec,
        result: Result<(), OpenError>,
    ) -> CheckedResponse {
        match self.socket_opened(open, result) {
            (Opened::Respond(_, response), buffer) => CheckedResponse::new(packet, &buffer, &response),
            (other, _) => panic!("a response is expected, not {other:?}"),
        }
    }

    /// Reports every requested socket open, and returns the response to the Allocate request.
    pub(crate) fn all_opened(&mut self, packet: &[u8], mut open: SocketSpec) -> CheckedResponse {
        loop {
            match self.socket_opened(&open, Ok(())) {
                (Opened::Respond(_, response), buffer) => return CheckedResponse::new(packet, &buffer, &response),
                (Opened::Open(next), _) => open = next,
                (Opened::Abandoned, _) => panic!("a response is expected"),
            }
        }
    }

    /// Passes a packet to the server, which must drop it.
    pub(crate) fn dropped(&mut self, tuple: &FiveTuple, packet: &[u8]) -> DropReason {
        match self.client_packet(tuple, packet) {
            (FromClient::Drop(reason), _) => reason,
            (other, _) => panic!("a drop is expected, not {other:?}"),
        }
    }

    /// Passes a packet to the server, which must relay it. Returns the socket, the destination and the payload.
    pub(crate) fn relayed(&mut self, tuple: &FiveTuple, packet: &[u8]) -> (SocketId, SocketAddr, Vec<u8>) {
        match self.client_packet(tuple, packet) {
            (FromClient::Relay(route), _) => {
                self.server.credit(route.socket, Direction::ToPeers, 1, route.payload.len() as u64);
                (route.socket, route.peer, packet[route.payload].to_vec())
            }
            (other, _) => panic!("a route to a peer is expected, not {other:?}"),
        }
    }

    /// Passes a datagram from a peer to the server. Returns the message to the client. The buffer around the payload
    /// initially contains other bytes.
    pub(crate) fn peer_packet(
        &mut self,
        relay: SocketId,
        source: SocketAddr,
        payload: &[u8],
    ) -> Result<(FiveTuple, Vec<u8>), DropReason> {
        let mut buffer = vec![0xaa; HEADROOM + payload.len() + TAILROOM];
        buffer[HEADROOM..HEADROOM + payload.len()].copy_from_slice(payload);
        let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
        let sent = test_world::peer_packet(&mut self.server, &mut cx, relay, source, self.fields, &mut buffer);
        self.server.check_invariants(self.opening);
        let (route, message) = sent?;
        self.server.credit(relay, Direction::ToClient, 1, payload.len() as u64);
        self.fields_sent = route.fields;
        Ok((route.tuple, buffer[message].to_vec()))
    }

    /// Passes an ICMP error to the server. Returns the message to the client. The buffer initially contains other
    /// bytes.
    pub(crate) fn peer_unreachable(
        &mut self,
        relay: SocketId,
        peer: SocketAddr,
        error: IcmpError,
    ) -> Result<(FiveTuple, Vec<u8>), DropReason> {
        let mut buffer = vec![UNTOUCHED; RESPONSE_BUFFER];
        let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
        let indication = self.server.peer_unreachable(&mut cx, relay, peer, error, &mut buffer)?;
        Ok((indication.tuple, buffer[..indication.length].to_vec()))
    }

    /// Passes an authenticated request to the server, opens the sockets that it needs, and returns the response.
    pub(crate) fn send_request(
        &mut self,
        client: &Client,
        method: Method,
        attributes: &[&dyn EncodeAttribute],
    ) -> CheckedResponse {
        let packet = client.request(self.transaction(), method, attributes);
        let response = match self.client_packet(&client.tuple, &packet) {
            (FromClient::Respond(response), buffer) => CheckedResponse::new(&packet, &buffer, &response),
            (FromClient::Open(open), _) => self.all_opened(&packet, open),
            (other, _) => panic!("a response is expected, not {other:?}"),
        };
        // RFC 8489 §9.2.4: every response to an authenticated request is signed, and a challenge is not.
        let challenged = matches!(response.code(), Some(401 | 438));
        assert_eq!(response.message().contains(AttributeType::MESSAGE_INTEGRITY), !challenged);
        assert!(challenged || response.is_signed_for(client), "the response is signed with the client's key");
        response
    }

    /// Passes an authenticated request to the server, which must reject it. Returns the error code.
    pub(crate) fn error_code(&mut self, client: &Client, method: Method, attributes: &[&dyn EncodeAttribute]) -> u16 {
        self.send_request(client, method, attributes).code().expect("an error response is expected")
    }

    /// Passes an authenticated request to the server, which must accept it. Returns the response.
    pub(crate) fn accept(
        &mut self,
        client: &Client,
        method: Method,
        attributes: &[&dyn EncodeAttribute],
    ) -> CheckedResponse {
        let response = self.send_request(client, method, attributes);
        assert_eq!(response.code(), None, "{}", response.reason());
        response
    }

    pub(crate) fn allocate(&mut self, client: &Client) -> Relay {
        self.allocate_with(client, &[])
    }

    pub(crate) fn allocate_with(&mut self, client: &Client, attributes: &[&dyn EncodeAttribute]) -> Relay {
        let udp: &dyn EncodeAttribute = &RequestedTransport::UDP;
        let attributes: Vec<_> = std::iter::once(udp).chain(attributes.iter().copied()).collect();
        let packet = client.request(self.transaction(), Method::ALLOCATE, &attributes);
        let open = self.open_for(&client.tuple, &packet);
        let response = self.opened(&packet, &open, Ok(()));
        assert!(response.is_signed_for(client));
        let XorRelayedAddress(relayed) = response.get().expect("a relayed address");
        match self.event() {
            Event::AllocationCreated { tuple, relay, lifetime, .. } => {
                assert_eq!((tuple, relay, Some(lifetime)), (client.tuple, relayed.into(), response.lifetime()));
            }
            other => panic!("a log entry about a new allocation is expected, not {other:?}"),
        }
        Relay { id: open.socket, bind: open.bind, relayed }
    }

    pub(crate) fn permit(&mut self, client: &Client, peer: SocketAddr) {
        self.accept(client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer)]);
    }

    /// Expects that the server closes the socket and logs the end of its allocation. Reports the socket closed.
    pub(crate) fn expect_end(&mut self, relay: &Relay) -> AllocationSummary {
        assert_eq!(self.action(), Some(Action::Close { socket: relay.id, bind: relay.bind }));
        let Event::AllocationEnded(summary) = self.event() else { panic!("a log entry about the end is expected") };
        assert_eq!(summary.relay, relay.relayed.into());
        self.server.check_invariants(self.opening);
        self.server.socket_closed(relay.bind);
        self.server.check_invariants(self.opening);
        *summary
    }
}

/// Returns the text of the next log entry, which must be about a rejected allocation.
pub(crate) fn rejection_note(world: &mut World) -> String {
    match world.event() {
        Event::AllocationRejected { reason, .. } => reason.to_owned(),
        Event::LimitReached { limit, .. } => format!("{}: {}", limit.setting(), limit.note()),
        other => panic!("a log entry about a rejected allocation is expected, not {other:?}"),
    }
}

/// An open relay socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relay {
    pub(crate) id: SocketId,
    pub(crate) bind: SocketAddr,
    pub(crate) relayed: SocketAddr,
}

/// The 5-tuple and the credentials of a client, which writes requests.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) tuple: FiveTuple,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) nonce: String,
}

impl Client {
    /// Returns the same client with the credentials of a static user.
    pub(crate) fn as_user(&self, at: usize) -> Self {
        Self { username: USERS[at].0.to_owned(), password: USERS[at].1.to_owned(), ..self.clone() }
    }

    /// Returns the same client with a time-limited credential.
    pub(crate) fn with_credential(&self, user: &str, expires: u64) -> Self {
        let credential = time_limited::mint(&Secret::new(SECRET).unwrap(), Some(user), expires);
        Self { username: credential.username, password: credential.password.to_string(), ..self.clone() }
    }

    pub(crate) fn key(&self) -> LongTermKey {
        LongTermKey::derive(&self.username, REALM, self.password.as_bytes())
    }

    pub(crate) fn request(
        &self,
        transaction: TransactionId,
        method: Method,
        attributes: &[&dyn EncodeAttribute],
    ) -> Vec<u8> {
        self.request_sealed(transaction, method, attributes, |writer, key| writer.message_integrity(key))
    }

    /// Returns a request whose integrity attributes `seal` writes.
    pub(crate) fn request_sealed(
        &self,
        transaction: TransactionId,
        method: Method,
        attributes: &[&dyn EncodeAttribute],
        seal: impl FnOnce(&mut MessageWriter<'_>, &[u8]),
    ) -> Vec<u8> {
        write(Class::Request, method, transaction, |writer| {
            attributes.iter().for_each(|attribute| writer.push(*attribute));
            writer.push(&Username(&self.username));
            writer.push(&Realm(REALM));
            writer.push(&Nonce(&self.nonce));
            seal(writer, self.key().as_bytes());
        })
    }
}

pub(crate) fn write(
    class: Class,
    method: Method,
    transaction: TransactionId,
    fill: impl FnOnce(&mut MessageWriter<'_>),
) -> Vec<u8> {
    let mut buffer = vec![0; 70_000];
    let mut writer = MessageWriter::new(&mut buffer, class, method, transaction);
    fill(&mut writer);
    writer.finish().unwrap().to_vec()
}

/// Returns a message without credentials.
pub(crate) fn plain(class: Class, method: Method, attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
    write(class, method, TransactionId::new([0x0b; 12]), |writer| {
        attributes.iter().for_each(|attribute| writer.push(*attribute));
    })
}

/// Returns a ChannelData message (RFC 8656 §12.4).
pub(crate) fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    [&number.to_be_bytes(), &length.to_be_bytes(), payload].concat()
}

/// An attribute with any value, for malformed and unknown attributes.
pub(crate) struct Raw<'a>(pub(crate) AttributeType, pub(crate) &'a [u8]);

impl EncodeAttribute for Raw<'_> {
    fn kind(&self) -> AttributeType {
        self.0
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(self.1);
    }
}

/// A response that fulfills the requirements for all responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckedResponse {
    pub(crate) bytes: Vec<u8>,
    pub(crate) outcome: Outcome,
}

impl CheckedResponse {
    pub(crate) fn new(request: &[u8], buffer: &[u8], decision: &Response) -> Self {
        let bytes = checked_response(request, buffer, decision).as_bytes().to_vec();
        let response = Self { bytes, outcome: decision.outcome };
        if let Outcome::RejectedByLimit(limit) = response.outcome {
            assert_eq!(response.reason(), limit.reason());
        }
        response
    }

    pub(crate) fn message(&self) -> Message<'_> {
        Message::parse(&self.bytes).unwrap()
    }

    pub(crate) fn get<'a, A: Attribute<'a>>(&'a self) -> Option<A> {
        self.message().get().unwrap()
    }

    pub(crate) fn code(&self) -> Option<u16> {
        self.get().map(|error: ErrorCodeAttribute<'_>| error.code.code())
    }

    pub(crate) fn reason(&self) -> String {
        self.get().map(|error: ErrorCodeAttribute<'_>| error.reason.to_owned()).unwrap_or_default()
    }

    pub(crate) fn lifetime(&self) -> Option<u32> {
        self.get().map(|Lifetime(seconds)| seconds)
    }

    pub(crate) fn nonce(&self) -> Option<String> {
        self.get().map(|Nonce(nonce)| nonce.to_owned())
    }

    /// Returns the types of the attributes, in order.
    pub(crate) fn kinds(&self) -> Vec<AttributeType> {
        self.message().attributes().map(|attribute| attribute.kind).collect()
    }

    pub(crate) fn is_signed_for(&self, client: &Client) -> bool {
        self.message().verify_integrity(client.key().as_bytes()) == IntegrityStatus::Valid
    }
}
