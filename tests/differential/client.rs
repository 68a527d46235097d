//! A client of one server: its socket, and what it has learned from responses.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use turnserver::auth::{KeyAlgorithm, LongTermKey};
use turnserver::client::Frames;
use turnserver::stun::attribute::{
    AddressFamily, EvenPort, Lifetime, Nonce, PasswordAlgorithm, Realm, RequestedAddressFamily, ReservationToken,
    XorRelayedAddress,
};
use turnserver::stun::{AttributeType, Class, Message, Method, TransactionId};

use crate::operations::{Credentials, Transport};
use crate::side::{CLIENT, Listening, USERS};
use crate::support::{REALM, TIMEOUT};

pub(crate) struct Client {
    socket: Socket,
    pub(crate) own: SocketAddr,
    /// What it is called in transcripts.
    pub(crate) at: String,
    /// The last challenge.
    pub(crate) challenge: Option<Vec<u8>>,
    /// The last IPv4 and IPv6 relayed address.
    pub(crate) relayed: [Option<SocketAddr>; 2],
    /// Whether it has a relayed address of each family, as far as responses tell.
    pub(crate) allocated: [bool; 2],
    /// The last token.
    pub(crate) token: [u8; 8],
    /// The last message, and whether it was sent again.
    pub(crate) last: Option<(Vec<u8>, TransactionId)>,
    pub(crate) has_repeated: bool,
    sent: HashMap<TransactionId, Sent>,
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream, Frames),
    Closed,
}

/// What the response to a request depends on.
#[derive(Clone, Default)]
pub(crate) struct Sent {
    /// The key of the user whom the request names, for the algorithm that it names.
    pub(crate) key: Option<LongTermKey>,
    /// Whether the request asks for an even port.
    pub(crate) even: bool,
    pub(crate) token: Option<[u8; 8]>,
    family: Option<AddressFamily>,
}

/// What an Allocate response means for reservations.
pub(crate) struct Learned {
    /// The token of the request.
    pub(crate) claimed: Option<[u8; 8]>,
    /// A new token, and the address that it reserves.
    pub(crate) reserved: Option<([u8; 8], SocketAddr)>,
}

impl Sent {
    /// Reads a request. A damaged one has no response.
    fn read(request: &[u8], credentials: Credentials) -> Self {
        let Ok(message) = Message::parse(request) else { return Self::default() };
        let user = match credentials {
            Credentials::UnknownUser => None,
            Credentials::OtherUser => Some(&USERS[1]),
            _ => Some(&USERS[0]),
        };
        let algorithm = match message.get::<PasswordAlgorithm<'_>>() {
            Ok(Some(PasswordAlgorithm::SHA256)) => KeyAlgorithm::Sha256,
            _ => KeyAlgorithm::Md5,
        };
        let derive =
            |(name, password): &(&str, &str)| LongTermKey::derive_by(algorithm, name, REALM, password.as_bytes());
        Self {
            key: user.map(derive),
            even: matches!(message.get::<EvenPort>(), Ok(Some(_))),
            token: message.get().ok().flatten().map(|ReservationToken(token)| token),
            family: message.get().ok().flatten().map(|RequestedAddressFamily(family)| family),
        }
    }
}

impl Client {
    pub(crate) fn new(index: usize, transport: Transport, listening: Listening) -> Self {
        let (socket, own) = match transport {
            Transport::Udp | Transport::Udp6 => {
                let server = if transport == Transport::Udp { listening.udp } else { listening.udp6 };
                let socket = bind(if transport == Transport::Udp { CLIENT } else { "fd00:1::2".parse().unwrap() });
                socket.connect(server).unwrap();
                socket.set_read_timeout(Some(TIMEOUT)).unwrap();
                let own = socket.local_addr();
                (Socket::Udp(socket), own)
            }
            Transport::Tcp => {
                let stream = TcpStream::connect(listening.tcp).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                let own = stream.local_addr();
                (Socket::Tcp(stream, Frames::default()), own)
            }
        };
        Self {
            socket,
            own: own.unwrap(),
            at: name(index),
            challenge: None,
            relayed: [None; 2],
            allocated: [false; 2],
            token: [0; 8],
            last: None,
            has_repeated: false,
            sent: HashMap::new(),
        }
    }

    pub(crate) fn is_udp(&self) -> bool {
        matches!(self.socket, Socket::Udp(_))
    }

    /// Whether the server has closed the connection.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.socket, Socket::Closed)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        match &mut self.socket {
            Socket::Udp(socket) => assert_eq!(socket.send(bytes).unwrap(), bytes.len()),
            // The end of the connection is seen when its bytes are read.
            Socket::Tcp(stream, _) => _ = stream.write_all(bytes),
            Socket::Closed => {}
        }
    }

    /// Sends a message that responses are expected to.
    pub(crate) fn send_message(&mut self, bytes: Vec<u8>, transaction: TransactionId, credentials: Credentials) {
        self.send(&bytes);
        self.sent.insert(transaction, Sent::read(&bytes, credentials));
        self.last = Some((bytes, transaction));
        self.has_repeated = false;
    }

    /// Sends the last message again.
    pub(crate) fn repeat(&mut self) {
        if let Some((bytes, _)) = self.last.clone() {
            self.send(&bytes);
            self.has_repeated = true;
        }
    }

    pub(crate) fn sent(&self, transaction: TransactionId) -> Option<&Sent> {
        self.sent.get(&transaction)
    }

    /// Returns the token in the last message.
    pub(crate) fn token_sent(&self) -> Option<[u8; 8]> {
        let (_, transaction) = self.last.as_ref()?;
        self.sent(*transaction)?.token
    }

    /// Receives a datagram, or a message of a connection without its padding. `None` at the end of a connection.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        match &mut self.socket {
            Socket::Udp(socket) => {
                let length = socket.recv(&mut buffer).expect("a response to a Binding request");
                Some(buffer[..length].to_vec())
            }
            Socket::Tcp(stream, received) => loop {
                if let Some(message) = received.next_message().expect("a server sends messages") {
                    return Some(message.to_vec());
                }
                match stream.read(&mut buffer) {
                    Ok(length @ 1..) => received.push(&buffer[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no response over TCP"),
                    Ok(0) | Err(_) => {
                        self.socket = Socket::Closed;
                        self.allocated = [false; 2];
                        return None;
                    }
                }
            },
            Socket::Closed => None,
        }
    }

    /// Keeps what later messages need. Returns what a new allocation means for reservations.
    pub(crate) fn learn(&mut self, message: &[u8]) -> Option<Learned> {
        let message = Message::parse(message).ok()?;
        let has = |kind| message.contains(kind);
        if has(AttributeType::REALM) && message.get::<Realm<'_>>().is_ok() && has(AttributeType::NONCE) {
            assert!(matches!(message.get::<Nonce<'_>>(), Ok(Some(_))), "a nonce is a text");
            self.challenge = Some(message.as_bytes().to_vec());
        }
        match (message.method(), message.class()) {
            (Method::ALLOCATE, Class::Success) => {
                for XorRelayedAddress(relayed) in message.all::<XorRelayedAddress>().flatten() {
                    self.relayed[usize::from(relayed.is_ipv6())] = Some(relayed);
                    self.allocated[usize::from(relayed.is_ipv6())] = true;
                }
                let token = message.get().ok().flatten().map(|ReservationToken(token)| token);
                self.token = token.unwrap_or(self.token);
                let XorRelayedAddress(first) = message.get().ok().flatten()?;
                let next = SocketAddr::new(first.ip(), first.port() | 1);
                let claimed = self.sent(message.transaction_id()).and_then(|sent| sent.token);
                Some(Learned { claimed, reserved: token.map(|token| (token, next)) })
            }
            (Method::REFRESH, Class::Success) if matches!(message.get(), Ok(Some(Lifetime(0)))) => {
                match self.sent(message.transaction_id())?.family {
                    Some(family) => self.allocated[usize::from(family == AddressFamily::V6)] = false,
                    None => self.allocated = [false; 2],
                }
                None
            }
            _ => None,
        }
    }
}

/// Returns what a client is called.
pub(crate) fn name(client: usize) -> String {
    format!("client {client}")
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
