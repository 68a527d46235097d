//! One server with two relay addresses, clients that know how to write requests, and an eye on all that comes out.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::auth::{Authenticator, LongTermKey, NonceMint, Secret, time_limited};
use crate::stun::attribute::{
    ErrorCodeAttribute, Lifetime, Nonce, Realm, RequestedTransport, Username, XorPeerAddress, XorRelayedAddress,
};
use crate::stun::{
    Attribute, AttributeType, Class, EncodeAttribute, HEADER_LEN, IntegrityStatus, Message, MessageWriter, Method,
    TransactionId, ValueWriter,
};
use crate::turn::tables::ports::PortPool;
use crate::turn::*;

pub(crate) const REALM: &str = "example.org";
pub(crate) const SECRET: &str = "north-star";
/// When a world begins.
pub(crate) const UNIX: u64 = 1_800_000_000;
pub(crate) const NONCE_LIFETIME: u64 = 3_000;
pub(crate) const NONCE_KEY: [u8; 32] = [3; 32];
pub(crate) const EXPIRY_GRACE: u64 = 700;
pub(crate) const USERS: [(&str, &str); 2] = [("alice", "wonderland"), ("bob", "builder")];

pub(crate) const PORTS: u16 = 8;
/// The IPv4 relay address is behind 1:1 NAT; the IPv6 one is not.
pub(crate) const BIND_V4: &str = "10.0.0.5";
pub(crate) const ADVERTISED_V4: &str = "203.0.113.9";
pub(crate) const RELAY_V6: &str = "2001:db8:1::5";
/// Peers that the policy admits; all else of the documentation ranges is refused.
pub(crate) const PEERS: [&str; 2] = ["198.51.100.0/24", "2001:db8:2::/48"];

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An admitted IPv4 peer.
pub(crate) fn peer(host: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, host], 7_000))
}

/// An admitted IPv6 peer.
pub(crate) fn peer_v6(host: u16) -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 2, 0, 0, 0, 0, host], 7_000))
}

/// What a world may differ in.
pub(crate) struct Setup {
    pub(crate) settings: Settings,
    pub(crate) policy: PeerPolicy,
    /// Whether there are time-limited credentials besides the static users.
    pub(crate) secrets: bool,
    pub(crate) allocations_per_user: u32,
    pub(crate) allocations: u32,
    pub(crate) alternate: Option<Alternate>,
    pub(crate) user_rates: UserRates,
}

impl Setup {
    fn new() -> Self {
        let relay = |bind: &str, advertised: &str| RelayRange {
            bind: bind.parse().unwrap(),
            advertised: advertised.parse().unwrap(),
            ports: 50_000..=50_000 + PORTS - 1,
        };
        let own = [BIND_V4, ADVERTISED_V4, RELAY_V6].map(|own| own.parse().unwrap());
        Self {
            settings: Settings {
                relays: vec![relay(BIND_V4, ADVERTISED_V4), relay(RELAY_V6, RELAY_V6)],
                permissions_per_allocation: 8,
                channels_per_allocation: 4,
                peer_rate: None,
                byte_rate: None,
                unverified_replies: 0,
                rfc5766_channels: false,
                draft_dual_allocation: false,
                expiry_grace: EXPIRY_GRACE,
            },
            policy: PeerPolicy {
                allow: PEERS.map(|net| net.parse().unwrap()).to_vec(),
                deny: Vec::new(),
                own: own.to_vec(),
            },
            secrets: true,
            allocations_per_user: 0,
            allocations: 0,
            alternate: None,
            user_rates: UserRates::default(),
        }
    }
}

/// A server and its time. At its end it must have nothing left to say.
pub(crate) struct World {
    /// With what packets arrive.
    pub(crate) tos: u8,
    /// With what the latest went on to a client.
    pub(crate) tos_sent: u8,
    pub(crate) server: Server,
    pub(crate) shared: Arc<Shared>,
    pub(crate) now: Instant,
    pub(crate) unix: u64,
    rng: StdRng,
    /// Sockets asked for and not reported on.
    opening: usize,
    transactions: u32,
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.server.next_action(), None, "nothing is left");
        }
    }
}

/// What must be as before when an attempt came to nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) allocations: usize,
    pub(crate) counted: u32,
    pub(crate) live: usize,
    pub(crate) ports_taken: usize,
    pub(crate) ports_reserved: usize,
    pub(crate) ports_borrowed: usize,
}

pub(crate) const NOTHING: Footprint =
    Footprint { allocations: 0, counted: 0, live: 0, ports_taken: 0, ports_reserved: 0, ports_borrowed: 0 };

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::new();
        change(&mut setup);
        let secret = |text: &str| Secret::new(text).unwrap();
        let users = USERS.map(|(name, password)| (name.to_owned(), secret(password)));
        let relays = setup.settings.relays.iter().map(|relay| (relay.bind, relay.advertised));
        let secrets = if setup.secrets { vec![secret(SECRET)] } else { Vec::new() };
        let authenticator = Authenticator::new(REALM.to_owned(), secrets, users);
        let shared = Arc::new(Shared {
            nonces: NonceMint::from_random(NONCE_KEY, NONCE_LIFETIME).announcing(authenticator.features()),
            authenticator,
            policy: setup.policy,
            live: LiveRelays::new(relays.clone()),
            reservations: Reservations::new(relays, &(50_000..=50_000 + 2 * PORTS - 1)),
            quota: Quota::with_rates(setup.allocations_per_user, setup.allocations, setup.user_rates, 64, [5; 32]),
            connections: Quota::new(0, 0, [6; 32]),
            draining: false.into(),
            alternate: setup.alternate,
        });
        Self::over(shared, setup.settings)
    }

    fn over(shared: Arc<Shared>, settings: Settings) -> Self {
        Self {
            tos: 0,
            tos_sent: 0,
            server: Server::new(Arc::clone(&shared), settings),
            shared,
            now: Instant::from_elapsed(seconds(1_000)),
            unix: UNIX,
            rng: StdRng::seed_from_u64(7),
            opening: 0,
            transactions: 0,
        }
    }

    /// Another worker, with ports of its own.
    pub(crate) fn sibling(&self) -> Self {
        let mut settings = Setup::new().settings;
        for relay in &mut settings.relays {
            relay.ports = 50_000 + PORTS..=50_000 + 2 * PORTS - 1;
        }
        let mut sibling = Self::over(Arc::clone(&self.shared), settings);
        (sibling.now, sibling.unix) = (self.now, self.unix);
        sibling
    }

    /// A client at a host of its own with a nonce for it, and alice's credentials.
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
        self.shared.nonces.mint(self.unix, client).to_string()
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.unix += time.as_secs();
    }

    /// Lets time pass and tells the server.
    pub(crate) fn advance(&mut self, time: Duration) {
        self.pass(time);
        self.server.advance(self.now);
        self.server.check_invariants(self.opening);
    }

    pub(crate) fn footprint(&self) -> Footprint {
        Footprint {
            allocations: self.server.allocations(),
            counted: self.shared.quota.allocations(),
            live: self.shared.live.count(),
            ports_taken: self.server.pools.iter().map(PortPool::taken).sum(),
            ports_reserved: self.server.reserved_ports(),
            ports_borrowed: self.server.borrowed_ports(),
        }
    }

    pub(crate) fn transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        let mut bytes = [0xc0; 12];
        bytes[8..].copy_from_slice(&self.transactions.to_be_bytes());
        TransactionId::new(bytes)
    }

    pub(crate) fn event(&mut self) -> Event {
        match self.server.next_action() {
            Some(Action::Log(event)) => event,
            other => panic!("something to log is expected, not {other:?}"),
        }
    }

    /// The limit that somebody has run into, as the log says.
    pub(crate) fn limit(&mut self) -> Limit {
        match self.event() {
            Event::LimitReached { limit, .. } => limit,
            other => panic!("a limit is expected in the log, not {other:?}"),
        }
    }

    /// Hands in a packet; the reply buffer holds rubbish before.
    pub(crate) fn client_packet(&mut self, tuple: &FiveTuple, packet: &[u8]) -> (FromClient, Vec<u8>) {
        let mut reply = vec![0xaa; REPLY_BUFFER];
        let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
        let decision = self.server.client_packet(&mut cx, tuple, packet, self.tos, &mut reply);
        if let FromClient::Open(_) = decision {
            self.opening += 1;
        }
        self.server.check_invariants(self.opening);
        (decision, reply)
    }

    pub(crate) fn relay_opened(&mut self, open: &OpenRelay, result: Result<(), OpenError>) -> (Opened, Vec<u8>) {
        let mut reply = vec![0xaa; REPLY_BUFFER];
        self.opening -= 1;
        let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
        let opened = self.server.relay_opened(&mut cx, open, result, &mut reply);
        if let Opened::Open(_) = opened {
            self.opening += 1;
        }
        self.server.check_invariants(self.opening);
        (opened, reply)
    }

    /// A packet that has an answer at once.
    pub(crate) fn answer_to(&mut self, tuple: &FiveTuple, packet: &[u8]) -> Answer {
        match self.client_packet(tuple, packet) {
            (FromClient::Reply(reply), buffer) => Answer::new(packet, &buffer, &reply),
            (other, _) => panic!("an answer is expected, not {other:?}"),
        }
    }

    /// A packet that makes the server open a socket.
    pub(crate) fn open_for(&mut self, tuple: &FiveTuple, packet: &[u8]) -> OpenRelay {
        match self.client_packet(tuple, packet) {
            (FromClient::Open(open), _) => open,
            (other, _) => panic!("a socket to open is expected, not {other:?}"),
        }
    }

    /// The answer to an Allocate request once its socket is open or not.
    pub(crate) fn opened(&mut self, packet: &[u8], open: &OpenRelay, result: Result<(), OpenError>) -> Answer {
        match self.relay_opened(open, result) {
            (Opened::Reply(_, reply), buffer) => Answer::new(packet, &buffer, &reply),
            (other, _) => panic!("an answer is expected, not {other:?}"),
        }
    }

    /// The answer to an Allocate request once whatever it takes is open.
    pub(crate) fn all_opened(&mut self, packet: &[u8], mut open: OpenRelay) -> Answer {
        loop {
            match self.relay_opened(&open, Ok(())) {
                (Opened::Reply(_, reply), buffer) => return Answer::new(packet, &buffer, &reply),
                (Opened::Open(next), _) => open = next,
                (Opened::Abandoned, _) => panic!("an answer is expected"),
            }
        }
    }

    /// A packet that is met with silence.
    pub(crate) fn dropped(&mut self, tuple: &FiveTuple, packet: &[u8]) -> DropReason {
        match self.client_packet(tuple, packet) {
            (FromClient::Drop(reason), _) => reason,
            (other, _) => panic!("silence is expected, not {other:?}"),
        }
    }

    /// A packet that goes on to a peer: out of which socket, where to, and the payload.
    pub(crate) fn relayed(&mut self, tuple: &FiveTuple, packet: &[u8]) -> (RelayId, SocketAddr, Vec<u8>) {
        match self.client_packet(tuple, packet) {
            (FromClient::Relay(route), _) => (route.relay, route.peer, packet[route.payload].to_vec()),
            (other, _) => panic!("a route to a peer is expected, not {other:?}"),
        }
    }

    /// What reaches the client of a datagram from a peer. The buffer around it holds rubbish before.
    pub(crate) fn peer_packet(
        &mut self,
        relay: RelayId,
        source: SocketAddr,
        payload: &[u8],
    ) -> Result<(FiveTuple, Vec<u8>), DropReason> {
        let mut buffer = vec![0xaa; HEADROOM + payload.len() + TAILROOM];
        buffer[HEADROOM..HEADROOM + payload.len()].copy_from_slice(payload);
        let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
        let decision = self.server.peer_packet(&mut cx, relay, source, self.tos, &mut buffer, payload.len());
        self.server.check_invariants(self.opening);
        match decision {
            FromPeer::Relay(route) => {
                assert_eq!(route.outcome, Outcome::RelayedToClient);
                self.tos_sent = route.tos;
                Ok((route.tuple, buffer[route.message].to_vec()))
            }
            FromPeer::Drop(reason) => Err(reason),
        }
    }

    /// What reaches the client of an ICMP error about a datagram to a peer. The buffer holds rubbish before.
    pub(crate) fn peer_unreachable(
        &mut self,
        relay: RelayId,
        peer: SocketAddr,
        error: IcmpError,
    ) -> Result<(FiveTuple, Vec<u8>), DropReason> {
        let mut buffer = vec![0xaa; REPLY_BUFFER];
        let mut cx = Context { now: self.now, unix: self.unix, rng: &mut self.rng };
        match self.server.peer_unreachable(&mut cx, relay, peer, error, &mut buffer) {
            FromPeer::Relay(route) => {
                assert_eq!((route.outcome, route.tos), (Outcome::RelayedIcmp, 0));
                Ok((route.tuple, buffer[route.message].to_vec()))
            }
            FromPeer::Drop(reason) => Err(reason),
        }
    }

    /// An authenticated request and its answer; a socket that it needs is opened.
    pub(crate) fn ask(&mut self, client: &Client, method: Method, attributes: &[&dyn EncodeAttribute]) -> Answer {
        let packet = client.request(self.transaction(), method, attributes);
        let answer = match self.client_packet(&client.tuple, &packet) {
            (FromClient::Reply(reply), buffer) => Answer::new(&packet, &buffer, &reply),
            (FromClient::Open(open), _) => self.all_opened(&packet, open),
            (other, _) => panic!("an answer is expected, not {other:?}"),
        };
        // RFC 8489 §9.2.4: what follows authentication is signed, and what is not, is not.
        let challenged = matches!(answer.code(), Some(401 | 438));
        assert_eq!(answer.message().contains(AttributeType::MESSAGE_INTEGRITY), !challenged);
        assert!(challenged || answer.is_signed_for(client), "the answer is signed with the client's key");
        answer
    }

    /// The code of the error response to an authenticated request.
    pub(crate) fn refusal(&mut self, client: &Client, method: Method, attributes: &[&dyn EncodeAttribute]) -> u16 {
        self.ask(client, method, attributes).code().expect("a refusal is expected")
    }

    pub(crate) fn accept(&mut self, client: &Client, method: Method, attributes: &[&dyn EncodeAttribute]) -> Answer {
        let answer = self.ask(client, method, attributes);
        assert_eq!(answer.code(), None, "{}", answer.reason());
        answer
    }

    pub(crate) fn allocate(&mut self, client: &Client) -> Relay {
        self.allocate_with(client, &[])
    }

    pub(crate) fn allocate_with(&mut self, client: &Client, attributes: &[&dyn EncodeAttribute]) -> Relay {
        let udp: &dyn EncodeAttribute = &RequestedTransport::UDP;
        let attributes: Vec<_> = std::iter::once(udp).chain(attributes.iter().copied()).collect();
        let packet = client.request(self.transaction(), Method::ALLOCATE, &attributes);
        let open = self.open_for(&client.tuple, &packet);
        let answer = self.opened(&packet, &open, Ok(()));
        assert!(answer.is_signed_for(client));
        let XorRelayedAddress(relayed) = answer.get().expect("a relayed address");
        match self.event() {
            Event::AllocationCreated { tuple, relay, lifetime, .. } => {
                assert_eq!((tuple, relay, Some(lifetime)), (client.tuple, relayed.into(), answer.lifetime()));
            }
            other => panic!("an allocation is expected in the log, not {other:?}"),
        }
        Relay { id: open.relay, bind: open.bind, relayed }
    }

    pub(crate) fn permit(&mut self, client: &Client, peer: SocketAddr) {
        self.accept(client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer)]);
    }

    /// The server wants the socket closed and logs the end of its allocation; closes the socket.
    pub(crate) fn ended(&mut self, relay: &Relay) -> AllocationSummary {
        assert_eq!(self.server.next_action(), Some(Action::Close(relay.id)));
        let Event::AllocationEnded(summary) = self.event() else { panic!("an end is expected in the log") };
        assert_eq!(summary.relay, relay.relayed.into());
        self.server.check_invariants(self.opening);
        self.server.relay_closed(relay.bind);
        self.server.check_invariants(self.opening);
        *summary
    }
}

/// What the log says about the allocation that was refused.
pub(crate) fn limit(world: &mut World) -> String {
    match world.event() {
        Event::AllocationRefused { reason, .. } => reason.to_owned(),
        Event::LimitReached { limit, .. } => format!("{}: {}", limit.setting(), limit.note()),
        other => panic!("a refusal is expected in the log, not {other:?}"),
    }
}

/// An open relay socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relay {
    pub(crate) id: RelayId,
    pub(crate) bind: SocketAddr,
    pub(crate) relayed: SocketAddr,
}

/// What a client needs to know to write requests.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) tuple: FiveTuple,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) nonce: String,
}

impl Client {
    /// The same client with the credentials of a static user.
    pub(crate) fn as_user(&self, at: usize) -> Self {
        Self { username: USERS[at].0.to_owned(), password: USERS[at].1.to_owned(), ..self.clone() }
    }

    /// The same client with a time-limited credential.
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

    /// A request with whatever integrity `seal` puts under it.
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

/// A message without credentials.
pub(crate) fn plain(class: Class, method: Method, attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
    write(class, method, TransactionId::new([0x0b; 12]), |writer| {
        attributes.iter().for_each(|attribute| writer.push(*attribute));
    })
}

/// A ChannelData message (RFC 8656 §12.4).
pub(crate) fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    [&number.to_be_bytes(), &length.to_be_bytes(), payload].concat()
}

/// An attribute that its type would not let us write.
pub(crate) struct Raw<'a>(pub(crate) AttributeType, pub(crate) &'a [u8]);

impl EncodeAttribute for Raw<'_> {
    fn kind(&self) -> AttributeType {
        self.0
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(self.1);
    }
}

/// A response that has been checked for what every response must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) outcome: Outcome,
}

impl Answer {
    pub(crate) fn new(request: &[u8], buffer: &[u8], reply: &Reply) -> Self {
        let (answer, untouched) = buffer.split_at(reply.length);
        assert!(untouched.iter().all(|byte| *byte == 0xaa), "nothing is written behind the answer");
        let answer = Self { bytes: answer.to_vec(), outcome: reply.outcome };
        let (request, message) = (Message::parse(request).unwrap(), answer.message());
        assert_eq!((message.method(), message.transaction_id()), (request.method(), request.transaction_id()));
        match answer.outcome {
            Outcome::Answered(method) => assert_eq!((message.class(), method), (Class::Success, request.method())),
            Outcome::Rejected(code) => {
                assert_eq!((message.class(), answer.code()), (Class::Error, Some(code.code())));
                // RFC 8489 §14.8: fewer than 128 characters.
                assert!((1..128).contains(&answer.reason().chars().count()), "an error has a reason phrase");
            }
            Outcome::Refused(limit) => {
                assert_eq!((message.class(), answer.code()), (Class::Error, Some(limit.code().code())));
                assert_eq!(answer.reason(), limit.reason());
            }
            other => panic!("an answer is not {other}"),
        }
        assert_padding_is_zero(&answer.bytes);
        answer
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

    /// The types of its attributes, in order.
    pub(crate) fn kinds(&self) -> Vec<AttributeType> {
        self.message().attributes().map(|attribute| attribute.kind).collect()
    }

    pub(crate) fn is_signed_for(&self, client: &Client) -> bool {
        self.message().verify_integrity(client.key().as_bytes()) == IntegrityStatus::Valid
    }
}

/// Panics unless every padding byte is zero (RFC 8489 §14) and no attribute appears twice.
pub(crate) fn assert_padding_is_zero(message: &[u8]) {
    let mut rest = &message[HEADER_LEN..];
    let mut kinds = BTreeSet::new();
    while let [kind_high, kind_low, high, low, behind @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let padded = length.next_multiple_of(4);
        assert!(behind[length..padded].iter().all(|byte| *byte == 0), "padding is zero");
        let kind = AttributeType::new(u16::from_be_bytes([*kind_high, *kind_low]));
        let may_repeat = [AttributeType::XOR_RELAYED_ADDRESS, AttributeType::ALTERNATE_SERVER].contains(&kind);
        assert!(kinds.insert(kind) || may_repeat, "an attribute type appears once");
        rest = &behind[padded..];
    }
    assert!(rest.is_empty());
}
