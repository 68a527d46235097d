//! A TURN client on UDP, TCP or TLS, which sends only what a test requests.

use std::cell::{Cell, RefCell};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};

use turnserver::auth::{Secret, time_limited};
use turnserver::client::{Algorithms, Allocate, Credentials, Families, Request, write_message};
use turnserver::clock::unix_seconds;
use turnserver::stun::attribute::{
    AddressFamily, Data, ErrorCodeAttribute, XorMappedAddress, XorPeerAddress, XorRelayedAddress,
};
use turnserver::stun::{Attribute, Class, Message, MessageWriter, Method, TransactionId};

use super::tls::{self, TlsStream};
use super::{SECRET, TIMEOUT, unless_interrupted};

/// Writes a request's attributes before its integrity attribute.
type Fill<'f> = &'f dyn Fn(&mut MessageWriter<'_>);

pub(crate) struct Client {
    link: Link,
    server: SocketAddr,
    /// The number of messages sent to the server.
    sent: Cell<u64>,
}

enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<RefCell<TlsStream>>),
}

/// A username and its password.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// The credentials of a client after a challenge.
pub(crate) use turnserver::client::Session;

/// A received message.
pub(crate) struct Response(Vec<u8>);

impl Login {
    pub(crate) fn new(username: &str, password: &str) -> Self {
        Self { username: username.to_owned(), password: password.to_owned() }
    }

    /// Returns the username and the password.
    pub(crate) fn into_parts(self) -> (String, String) {
        (self.username, self.password)
    }

    /// Mints a time-limited credential with the test secret. It expires in `after` seconds.
    pub(crate) fn mint(user: &str, after: i64) -> Self {
        let secret = Secret::new(SECRET).unwrap();
        let minted = time_limited::mint(&secret, Some(user), unix_seconds().checked_add_signed(after).unwrap());
        Self::new(&minted.username, &minted.password)
    }
}

impl Client {
    pub(crate) fn new(server: SocketAddr) -> Self {
        let own: IpAddr = if server.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        Self::on(socket(SocketAddr::new(own, 0)), server)
    }

    /// Creates a client on an existing socket.
    pub(crate) fn on(socket: UdpSocket, server: SocketAddr) -> Self {
        // A connected socket receives no response from another address.
        socket.connect(server).unwrap();
        Self { link: Link::Udp(socket), server, sent: Cell::new(0) }
    }

    /// Creates a client on a TCP connection.
    pub(crate) fn connect(server: SocketAddr) -> Self {
        Self::on_tcp(TcpStream::connect(server).unwrap())
    }

    /// Creates a client on an existing TCP connection.
    pub(crate) fn on_tcp(stream: TcpStream) -> Self {
        let server = stream.peer_addr().unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { link: Link::Tcp(stream), server, sent: Cell::new(0) }
    }

    /// Creates a client on a TLS connection after its handshake.
    pub(crate) fn on_tls(stream: TlsStream) -> Self {
        let server = stream.sock.peer_addr().unwrap();
        Self { link: Link::Tls(Box::new(RefCell::new(stream))), server, sent: Cell::new(0) }
    }

    /// Returns the TLS connection.
    pub(crate) fn into_tls(self) -> TlsStream {
        match self.link {
            Link::Tls(stream) => stream.into_inner(),
            _ => panic!("this client is not on TLS"),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match &self.link {
            Link::Udp(socket) => socket.local_addr(),
            Link::Tcp(stream) => stream.local_addr(),
            Link::Tls(stream) => stream.borrow().sock.local_addr(),
        }
        .unwrap()
    }

    /// Returns the socket of a UDP client.
    pub(crate) fn socket(&self) -> &UdpSocket {
        let Link::Udp(socket) = &self.link else { panic!("this client is not on UDP") };
        socket
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.get()
    }

    pub(crate) fn send(&self, message: &[u8]) {
        match &self.link {
            Link::Udp(socket) => assert_eq!(socket.send(message).unwrap(), message.len()),
            Link::Tcp(stream) => (&*stream).write_all(message).unwrap(),
            Link::Tls(stream) => tls::write(&mut stream.borrow_mut(), message).unwrap(),
        }
        self.sent.set(self.sent.get() + 1);
    }

    pub(crate) fn receive(&self) -> Response {
        match &self.link {
            Link::Udp(socket) => Response(receive(socket).0),
            Link::Tcp(_) | Link::Tls(_) => Response(self.frame().expect("an open connection")),
        }
    }

    /// Receives the next message of a connection, without its padding. `None` if the server has closed it.
    pub(crate) fn frame(&self) -> Option<Vec<u8>> {
        let read = |bytes: &mut [u8]| match &self.link {
            Link::Udp(_) => panic!("UDP has no frames"),
            Link::Tcp(stream) => (&*stream).read_exact(bytes),
            Link::Tls(stream) => stream.borrow_mut().read_exact(bytes),
        };
        let mut frame = vec![0; 4];
        match read(&mut frame) {
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                return None;
            }
            result => result.unwrap(),
        }
        let length = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
        let whole = if frame[0] < 4 { 20 + length } else { 4 + length };
        frame.resize(whole.next_multiple_of(4), 0);
        read(&mut frame[4..]).unwrap();
        assert!(frame[whole..].iter().all(|padding| *padding == 0));
        frame.truncate(whole);
        Some(frame)
    }

    /// Sends a Binding request and returns the client's address as the server sees it.
    pub(crate) fn binding(&self) -> SocketAddr {
        self.send(&message(Class::Request, Method::BINDING, self.transaction(), &|_| {}));
        self.receive().get::<XorMappedAddress>().expect("a Binding response").0
    }

    /// Sends an Allocate request without credentials and returns the session from its 401.
    pub(crate) fn challenge(&self, login: &Login) -> Session {
        self.send(&allocate(self.transaction()));
        let response = self.receive();
        assert_eq!(response.error(), Some(401));
        let (username, password) = (login.username.clone(), Secret::new(login.password.as_bytes()).unwrap());
        let credentials = Credentials { username, password };
        Session::from_challenge(&response.message(), credentials, Algorithms::Rfc5389).unwrap()
    }

    /// Returns a session with a new nonce and the same key.
    pub(crate) fn renew(&self, session: &Session) -> Session {
        self.send(&allocate(self.transaction()));
        let mut renewed = session.clone();
        renewed.renew(&self.receive().message()).unwrap();
        renewed
    }

    pub(crate) fn request(&self, session: &Session, method: Method, fill: Fill<'_>) -> Response {
        self.send(&self.signed(session, method, fill));
        self.receive()
    }

    /// Returns a request with credentials.
    pub(crate) fn signed(&self, session: &Session, method: Method, fill: Fill<'_>) -> Vec<u8> {
        message(Class::Request, method, self.transaction(), &|writer| {
            fill(writer);
            session.sign(writer);
        })
    }

    /// Allocates. The error is the code of the response.
    pub(crate) fn allocate(&self, login: &Login) -> Result<(Session, SocketAddr), u16> {
        let session = self.challenge(login);
        let families = Families::One(AddressFamily::of(self.server.ip()));
        let request = Request::Allocate(Allocate { families, ..Allocate::default() });
        let response = self.request(&session, Method::ALLOCATE, &|writer| request.encode(writer));
        match response.error() {
            Some(code) => Err(code),
            None => Ok((session, response.get::<XorRelayedAddress>().unwrap().0)),
        }
    }

    pub(crate) fn permit(&self, session: &Session, peer: SocketAddr) {
        let request = Request::CreatePermission(vec![peer]);
        let response = self.request(session, request.method(), &|writer| request.encode(writer));
        assert_eq!(response.error(), None);
    }

    pub(crate) fn send_to_peer(&self, peer: SocketAddr, payload: &[u8]) {
        self.send(&message(Class::Indication, Method::SEND, self.transaction(), &|writer| {
            writer.push(&XorPeerAddress(peer));
            writer.push(&Data(payload));
        }));
    }

    /// Deletes the allocation.
    pub(crate) fn delete(&self, session: &Session) {
        let response = self.request(session, Method::REFRESH, &|writer| Request::Refresh(0).encode(writer));
        assert_eq!(response.error(), None);
    }

    /// Returns a transaction ID that differs for each message sent.
    fn transaction(&self) -> TransactionId {
        let mut id = [0x7e; 12];
        id[4..].copy_from_slice(&self.sent().to_be_bytes());
        TransactionId::new(id)
    }
}

impl Response {
    pub(crate) fn error(&self) -> Option<u16> {
        self.get::<ErrorCodeAttribute<'_>>().map(|error| error.code.code())
    }

    fn message(&self) -> Message<'_> {
        Message::parse(&self.0).unwrap()
    }

    pub(crate) fn get<'a, A: Attribute<'a>>(&'a self) -> Option<A> {
        self.message().get().unwrap()
    }

    /// Returns all attributes of a type.
    pub(crate) fn all<'a, A: Attribute<'a>>(&'a self) -> Vec<A> {
        self.message().all().map(Result::unwrap).collect()
    }
}

/// Binds a socket with a receive timeout.
pub(crate) fn socket(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

pub(crate) fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 2048];
    let (len, from) = unless_interrupted(|| socket.recv_from(&mut buffer)).expect("a datagram");
    buffer.truncate(len);
    (buffer, from)
}

/// Returns an Allocate request without credentials.
pub(crate) fn allocate(transaction: TransactionId) -> Vec<u8> {
    let request = Request::Allocate(Allocate::default());
    message(Class::Request, request.method(), transaction, &|writer| request.encode(writer))
}

pub(crate) fn message(class: Class, method: Method, transaction: TransactionId, fill: Fill<'_>) -> Vec<u8> {
    write_message(class, method, transaction, 2048, |writer| fill(writer)).unwrap()
}
