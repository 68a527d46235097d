//! The clients and peers of one of the two servers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use turnserver::auth::{KeyAlgorithm, LongTermKey};
use turnserver::clock::Clock;
use turnserver::stun::attribute::{Nonce, Realm, ReservationToken, XorRelayedAddress};
use turnserver::stun::{AttributeType, Class, Message, Method, TransactionId};

use crate::encode::{Wire, encode};
use crate::observe::{Names, Seen};
use crate::operations::{self, Credentials, Item, Link, Operation, Peer, Target};
use crate::support::client::message;
use crate::support::{REALM, TIMEOUT};

pub(crate) const USERS: [(&str, &str); 2] =
    [("alice", "the password of alice in this test"), ("bob", "the password of bob in this test")];

/// The clients' address for each family, and the peers' addresses. The two networks are those of `support::network`.
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
pub(crate) const PEERS: [(Peer, &str); 4] =
    [(Peer::A, "10.0.2.2"), (Peer::A2, "10.0.2.2"), (Peer::B, "10.0.2.3"), (Peer::V6, "fd00:2::2")];

/// Binding requests after each operation: the second one reaches a server after everything that it has sent in the
/// iteration of its event loop that served the first one.
const ROUNDS: usize = 2;
const PATIENT_ROUNDS: usize = 20;
/// How long a party waits for a response that the other server has sent.
const PATIENCE: Duration = Duration::from_secs(5);

const DENIED: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 9);

/// The addresses of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listening {
    pub(crate) udp: SocketAddr,
    pub(crate) udp6: SocketAddr,
    pub(crate) tcp: SocketAddr,
}

/// The clients and peers of one server in one sequence.
pub(crate) struct Party<'p> {
    peers: &'p [UdpSocket],
    clients: Vec<Client>,
    keys: Vec<LongTermKey>,
    /// Whether the server gets more time.
    patient: bool,
    barriers: u64,
}

struct Client {
    stream: Stream,
    own: SocketAddr,
    at: String,
    /// The last challenge.
    challenge: Option<Vec<u8>>,
    /// The IPv4 and the IPv6 relayed address.
    relayed: [Option<SocketAddr>; 2],
    token: [u8; 8],
    /// The last message with its transaction, and whether it determines the parity of the port.
    last: Option<(Vec<u8>, TransactionId, bool)>,
}

enum Stream {
    Udp(UdpSocket),
    Tcp(TcpStream, Vec<u8>),
    Closed,
}

impl<'p> Party<'p> {
    pub(crate) fn new(listening: Listening, peers: &'p [UdpSocket], links: &[Link], patient: bool) -> Self {
        let keys = USERS.iter().flat_map(|(name, password)| {
            [KeyAlgorithm::Md5, KeyAlgorithm::Sha256]
                .map(|algorithm| LongTermKey::derive_by(algorithm, name, REALM, password.as_bytes()))
        });
        let clients = links.iter().enumerate().map(|(index, link)| Client::new(index, *link, listening)).collect();
        let party = Self { peers, clients, keys: keys.collect(), patient, barriers: 0 };
        party.drain_peers();
        party
    }

    /// Whether the server has closed the connection of a client.
    pub(crate) fn is_closed(&self, client: usize) -> bool {
        matches!(self.clients[client].stream, Stream::Closed)
    }

    /// Carries out an operation and returns what clients and peers receive because of it.
    pub(crate) fn step(&mut self, number: usize, operation: &Operation) -> Vec<Seen> {
        let client = operation.client();
        match operation {
            Operation::Message { message, .. } => self.send_message(number, client, message),
            Operation::Again { .. } => {
                if let Some((bytes, ..)) = self.clients[client].last.clone() {
                    self.clients[client].send(&bytes);
                }
            }
            Operation::ChannelData { number, payload, excess, padding, .. } => {
                let length = i16::try_from(payload.len()).unwrap() + excess;
                let mut frame = number.to_be_bytes().to_vec();
                frame.extend(length.to_be_bytes());
                frame.extend(payload);
                frame.resize(frame.len() + padding, 0);
                self.clients[client].send(&frame);
            }
            Operation::Bytes { bytes, .. } => self.clients[client].send(bytes),
            Operation::FromPeer { peer, payload, .. } => {
                let relayed = self.clients[client].relayed[usize::from(*peer == Peer::V6)];
                if let Some(relayed) = relayed {
                    self.peer(*peer).send_to(payload, relayed).unwrap();
                }
            }
        }
        let mut seen = self.settle(client);
        if operation.is_data() {
            for other in (0..self.clients.len()).filter(|other| *other != client) {
                seen.extend(self.settle(other));
            }
            seen.extend(self.drain_peers());
        }
        seen
    }

    /// Waits longer for a response that the other server has sent. coturn responds to the first authenticated request
    /// of a client after it has asked another thread, and to a later Binding request at once.
    pub(crate) fn wait(&mut self, client: usize) -> Vec<Seen> {
        let clock = Clock::start();
        loop {
            let seen = self.settle(client);
            if !seen.is_empty() || clock.elapsed() > PATIENCE {
                return seen;
            }
        }
    }

    /// Deletes the allocations.
    pub(crate) fn finish(mut self) {
        self.patient = false;
        for client in 0..self.clients.len() {
            if self.clients[client].relayed == [None; 2] || !matches!(self.clients[client].stream, Stream::Udp(_)) {
                continue;
            }
            for credentials in [Credentials::Right, Credentials::Right, Credentials::OtherUser, Credentials::OtherUser]
            {
                let mut delete = operations::Message::request(Method::REFRESH, vec![Item::Lifetime(0)]);
                delete.credentials = credentials;
                self.send_message(99, client, &delete);
                if self.settle(client).iter().any(|seen| ["Refresh success", "Refresh 437"].contains(&&*seen.kind)) {
                    break;
                }
            }
        }
    }

    fn peer(&self, peer: Peer) -> &UdpSocket {
        let index = Peer::ALL.iter().position(|one| *one == peer).unwrap();
        &self.peers[index]
    }

    fn send_message(&mut self, number: usize, client: usize, message: &operations::Message) {
        let needs_challenge = !matches!(message.credentials, Credentials::None | Credentials::NoNonce);
        let foreign = (client + 1) % self.clients.len();
        for needed in [client, foreign] {
            let needs = needed == client || message.credentials == Credentials::ForeignNonce;
            if needs_challenge && needs && self.clients[needed].challenge.is_none() {
                self.challenge(needed);
            }
        }
        let mut id = [0x7e; 12];
        (id[0], id[1]) = (u8::try_from(number).unwrap(), u8::try_from(client).unwrap());
        let transaction = TransactionId::new(id);
        let wire = Wire {
            transaction,
            challenge: self.clients[client].challenge.as_deref(),
            foreign: self.clients[foreign].challenge.as_deref(),
            target: &|target| self.target(target),
            token: &|of| self.clients[of].token,
        };
        let bytes = encode(message, &wire);
        let even = message.has(|item| matches!(item, Item::EvenPort(_) | Item::Token(_)));
        let client = &mut self.clients[client];
        client.send(&bytes);
        client.last = Some((bytes, transaction, even));
    }

    /// Sends the request with which every client begins, to get a nonce. It is not compared.
    fn challenge(&mut self, client: usize) {
        let request = operations::Message {
            credentials: Credentials::None,
            ..operations::Message::request(Method::ALLOCATE, vec![Item::RequestedTransport(17)])
        };
        let last = self.clients[client].last.take();
        self.send_message(98, client, &request);
        self.settle(client);
        self.clients[client].last = last;
    }

    fn target(&self, target: Target) -> SocketAddr {
        let with_port = |ip: &str| format!("{ip}:9").parse().unwrap();
        match target {
            Target::Peer(peer) => self.peer(peer).local_addr().unwrap(),
            Target::Relay(client) => {
                self.clients[client].relayed[0].unwrap_or_else(|| self.target(Target::Peer(Peer::B)))
            }
            Target::Denied => (DENIED, 9).into(),
            Target::MappedDenied => (DENIED.to_ipv6_mapped(), 9).into(),
            Target::Loopback => with_port("127.0.0.1"),
            Target::Unspecified => with_port("0.0.0.0"),
            Target::Multicast => with_port("224.0.0.9"),
            Target::Broadcast => with_port("255.255.255.255"),
            Target::ZeroPort => SocketAddr::new(self.target(Target::Peer(Peer::A)).ip(), 0),
        }
    }

    /// Receives what a server has sent to a client because of earlier messages. The server processes the messages of a
    /// client in order, so whatever has not come before the response to a later Binding request does not come.
    fn settle(&mut self, client: usize) -> Vec<Seen> {
        let mut received = Vec::new();
        for _ in 0..if self.patient { PATIENT_ROUNDS } else { ROUNDS } {
            self.barriers += 1;
            let mut id = [0xbb; 12];
            id[4..].copy_from_slice(&self.barriers.to_be_bytes());
            let barrier = TransactionId::new(id);
            let client = &mut self.clients[client];
            if matches!(client.stream, Stream::Closed) {
                break;
            }
            client.send(&message(Class::Request, Method::BINDING, barrier, &|_| {}));
            while let Some(frame) = client.receive() {
                let id = frame.get(8..20).and_then(|id| id.try_into().ok()).map(TransactionId::new);
                if id == Some(barrier) {
                    break;
                }
                received.push(frame);
            }
        }
        let mut seen: Vec<_> = received.iter().map(|frame| self.read(client, frame)).collect();
        if matches!(self.clients[client].stream, Stream::Closed) {
            seen.push(Seen::new(&self.clients[client].at, "the end of the connection"));
        }
        received.iter().for_each(|frame| self.clients[client].learn(frame));
        seen
    }

    fn read(&self, client: usize, frame: &[u8]) -> Seen {
        let client = &self.clients[client];
        let name = |address| self.name(address);
        let names = Names {
            own: client.own,
            transaction: client.last.as_ref().map(|(_, transaction, _)| *transaction),
            keys: &self.keys,
            even: client.last.as_ref().is_some_and(|(_, _, even)| *even),
            name: &name,
        };
        Seen::read(&client.at, frame, &names)
    }

    fn name(&self, address: SocketAddr) -> String {
        let peer = Peer::ALL.iter().find(|peer| self.peer(**peer).local_addr().unwrap() == address);
        if let Some(peer) = peer {
            return format!("peer {peer:?}");
        }
        let relay = self.clients.iter().find(|client| client.relayed.contains(&Some(address)));
        match relay {
            Some(client) => format!("the relayed address of {}", client.at),
            None if address.ip() == IpAddr::from(SERVER) => format!("{} with another port", address.ip()),
            None => address.to_string(),
        }
    }

    /// Receives what has come to the peers.
    fn drain_peers(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut buffer = [0; 2048];
        for peer in Peer::ALL {
            loop {
                match self.peer(peer).recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        let one = Seen::new(&format!("peer {peer:?}"), "datagram");
                        let payload = operations::hex(&buffer[..length]);
                        seen.push(one.with("payload", payload).with("from", self.name(from)));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("a peer cannot receive: {error}"),
                }
            }
        }
        seen
    }
}

impl Client {
    fn new(index: usize, link: Link, listening: Listening) -> Self {
        let stream = match link {
            Link::Udp | Link::Udp6 => {
                let server = if link == Link::Udp { listening.udp } else { listening.udp6 };
                let socket = bind(if link == Link::Udp { CLIENT } else { "fd00:1::2".parse().unwrap() });
                socket.connect(server).unwrap();
                socket.set_read_timeout(Some(TIMEOUT)).unwrap();
                Stream::Udp(socket)
            }
            Link::Tcp => {
                let stream = TcpStream::connect(listening.tcp).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                Stream::Tcp(stream, Vec::new())
            }
        };
        let own = match &stream {
            Stream::Udp(socket) => socket.local_addr(),
            Stream::Tcp(stream, _) => stream.local_addr(),
            Stream::Closed => unreachable!("it was just opened"),
        };
        let at = format!("client {index}");
        Self { stream, own: own.unwrap(), at, challenge: None, relayed: [None; 2], token: [0; 8], last: None }
    }

    fn send(&mut self, bytes: &[u8]) {
        match &mut self.stream {
            Stream::Udp(socket) => assert_eq!(socket.send(bytes).unwrap(), bytes.len()),
            // The end of the connection is seen when its bytes are read.
            Stream::Tcp(stream, _) => _ = stream.write_all(bytes),
            Stream::Closed => {}
        }
    }

    /// Receives a datagram or a frame with its padding. `None` at the end of a connection.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        match &mut self.stream {
            Stream::Udp(socket) => {
                let length = socket.recv(&mut buffer).expect("a response to a Binding request");
                Some(buffer[..length].to_vec())
            }
            Stream::Tcp(stream, received) => loop {
                if let Some(whole) = frame_len(received).filter(|whole| received.len() >= *whole) {
                    let rest = received.split_off(whole);
                    return Some(std::mem::replace(received, rest));
                }
                match stream.read(&mut buffer) {
                    Ok(length @ 1..) => received.extend(&buffer[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no response over TCP"),
                    Ok(0) | Err(_) => {
                        self.stream = Stream::Closed;
                        return None;
                    }
                }
            },
            Stream::Closed => None,
        }
    }

    /// Keeps what later messages need.
    fn learn(&mut self, frame: &[u8]) {
        let Ok(message) = Message::parse(frame) else { return };
        let has = |kind| message.contains(kind);
        if has(AttributeType::REALM) && message.get::<Realm<'_>>().is_ok() && has(AttributeType::NONCE) {
            assert!(matches!(message.get::<Nonce<'_>>(), Ok(Some(_))), "a nonce is a text");
            self.challenge = Some(frame.to_vec());
        }
        if message.method() == Method::ALLOCATE && message.class() == Class::Success {
            for XorRelayedAddress(relayed) in message.all::<XorRelayedAddress>().flatten() {
                self.relayed[usize::from(relayed.is_ipv6())] = Some(relayed);
            }
            if let Ok(Some(ReservationToken(token))) = message.get() {
                self.token = token;
            }
        }
    }
}

/// Returns the length of the first frame in received bytes, with padding.
fn frame_len(received: &[u8]) -> Option<usize> {
    let [first, _, high, low, ..] = received else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    Some(if *first < 0x40 { 20 + length } else { (4 + length).next_multiple_of(4) })
}

/// Binds a socket on a port that no earlier client has used, because servers remember clients for a while.
fn bind(ip: IpAddr) -> UdpSocket {
    static NEXT: AtomicU16 = AtomicU16::new(2_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        match UdpSocket::bind((ip, port.max(1_024))) {
            Ok(socket) => return socket,
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => panic!("{ip}: {error}"),
        }
    }
}
