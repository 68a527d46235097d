//! One side of the comparison: a server with the clients and peers of one sequence.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use turnserver::clock::Clock;
use turnserver::stun::{Class, Method, TransactionId};

use crate::client::{Client, Learned};
use crate::encode::{Wire, encode};
use crate::observe::{END, Names, Seen};
use crate::operations::{self, Attribute, Credentials, Operation, Peer, Target, Transport};
use crate::support::client::message;

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
/// How long a side waits for a response that the other server has sent.
const PATIENCE: Duration = Duration::from_secs(5);
const IMPATIENCE: Duration = Duration::from_millis(200);

const DENIED: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 9);

/// The addresses of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listening {
    pub(crate) udp: SocketAddr,
    pub(crate) udp6: SocketAddr,
    pub(crate) tcp: SocketAddr,
}

pub(crate) struct Side<'s> {
    peers: &'s [UdpSocket],
    clients: Vec<Client>,
    /// How many times as long as at first the server gets.
    patience: usize,
    barriers: u64,
    reservations: Vec<Reservation>,
    /// The token in the message of the last operation.
    token_sent: Option<SentToken>,
}

struct Reservation {
    token: [u8; 8],
    address: SocketAddr,
    is_claimed: bool,
}

/// A token in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SentToken {
    pub(crate) value: [u8; 8],
    /// The address that it reserved before the request.
    pub(crate) reserves: Option<SocketAddr>,
}

impl<'s> Side<'s> {
    pub(crate) fn new(listening: Listening, peers: &'s [UdpSocket], clients: &[Transport], patience: usize) -> Self {
        let clients = clients.iter().enumerate();
        let clients = clients.map(|(index, transport)| Client::new(index, *transport, listening)).collect();
        let side = Self { peers, clients, patience, barriers: 0, reservations: Vec::new(), token_sent: None };
        side.drain_peers();
        side
    }

    /// Whether the server has closed the connection of a client.
    pub(crate) fn is_closed(&self, client: usize) -> bool {
        self.clients[client].is_closed()
    }

    /// Returns for each client whether it has a relayed address of each family, as far as responses tell.
    pub(crate) fn allocated(&self) -> Vec<[bool; 2]> {
        self.clients.iter().map(|client| client.allocated).collect()
    }

    /// Returns the token in the message of the last operation.
    pub(crate) fn token_sent(&self) -> Option<SentToken> {
        self.token_sent
    }

    /// Carries out an operation and returns what clients and peers receive because of it.
    pub(crate) fn step(&mut self, number: usize, operation: &Operation) -> Vec<Seen> {
        let client = operation.client();
        match operation {
            Operation::Message { message, .. } => self.send_message(number, client, message),
            Operation::Again { .. } => self.clients[client].repeat(),
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
        self.token_sent = self.clients[client].token_sent().map(|value| SentToken {
            value,
            reserves: self.reservation(value).filter(|found| !found.is_claimed).map(|found| found.address),
        });
        let mut seen = self.settle(client);
        if operation.is_data() {
            for other in (0..self.clients.len()).filter(|other| *other != client) {
                seen.extend(self.settle(other));
            }
            seen.extend(self.drain_peers());
        }
        seen
    }

    /// Waits for as much as the other side has received. coturn responds to the first authenticated request of a client
    /// after it has asked another thread, and to a later Binding request at once. On a busy machine, the kernel delivers
    /// datagrams between namespaces late.
    pub(crate) fn catch_up(&mut self, seen: &mut Vec<Seen>, other: &[Seen], operation: &Operation) {
        let (clock, most) = (Clock::start(), if self.patience > 1 { PATIENCE } else { IMPATIENCE });
        let places = || other.iter().map(|seen| &seen.at);
        let count = |all: &[Seen], at: &String| all.iter().filter(|seen| seen.at == *at).count();
        while places().any(|at| count(seen, at) < count(other, at)) && clock.elapsed() < most {
            for client in 0..self.clients.len() {
                let is_closed = self.is_closed(client);
                seen.extend(self.settle(client).into_iter().filter(|_| !is_closed));
            }
            if operation.is_data() {
                seen.extend(self.drain_peers());
            }
        }
    }

    /// Deletes the allocations.
    pub(crate) fn finish(mut self) {
        self.patience = 1;
        for client in 0..self.clients.len() {
            if self.clients[client].relayed == [None; 2] || !self.clients[client].is_udp() {
                continue;
            }
            for credentials in [Credentials::Right, Credentials::Right, Credentials::OtherUser, Credentials::OtherUser]
            {
                let mut delete = operations::Message::request(Method::REFRESH, vec![Attribute::Lifetime(0)]);
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
        self.clients[client].send_message(bytes, transaction, message.credentials);
    }

    /// Sends the request with which every client begins, to get a nonce. It is not compared.
    fn challenge(&mut self, client: usize) {
        let request = operations::Message {
            credentials: Credentials::None,
            ..operations::Message::request(Method::ALLOCATE, vec![Attribute::RequestedTransport(17)])
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
        for _ in 0..ROUNDS * self.patience {
            self.barriers += 1;
            let mut id = [0xbb; 12];
            id[4..].copy_from_slice(&self.barriers.to_be_bytes());
            let barrier = TransactionId::new(id);
            let client = &mut self.clients[client];
            if client.is_closed() {
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
        if self.is_closed(client) {
            seen.push(Seen::new(&self.clients[client].at, END));
        }
        for frame in &received {
            let Some(Learned { claimed, reserved }) = self.clients[client].learn(frame) else { continue };
            for reservation in &mut self.reservations {
                reservation.is_claimed |= claimed == Some(reservation.token);
            }
            let made = reserved.map(|(token, address)| Reservation { token, address, is_claimed: false });
            self.reservations.extend(made);
        }
        seen
    }

    fn reservation(&self, token: [u8; 8]) -> Option<&Reservation> {
        self.reservations.iter().find(|reservation| reservation.token == token)
    }

    fn read(&self, client: usize, frame: &[u8]) -> Seen {
        let client = &self.clients[client];
        let name = |address| self.name(address);
        let names = Names {
            own: client.own,
            transaction: client.last.as_ref().map(|(_, transaction)| *transaction),
            sent: &|transaction| client.sent(transaction).cloned().unwrap_or_default(),
            is_repeated: client.has_repeated,
            reserved: &|token| self.reservation(token).map(|reservation| reservation.address),
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
