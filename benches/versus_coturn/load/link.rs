//! A client's path to the server: UDP, TCP or TLS.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};
use turnserver::client::Request;
use turnserver::stun::TransactionId;

use super::allocation::write;
use super::frame::length_in_stream;
use super::{Job, Outcome, clock};
use crate::scenario::Transport;

/// Time without a response after which a request is retransmitted.
const RETRANSMIT_AFTER: Duration = Duration::from_millis(300);

/// Time limit for the start of a server.
const START_TIMEOUT: u64 = 10 * clock::SECOND;

/// Interval between attempts to reach a server that is starting.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// A client's socket or connection. Blocking, with a receive timeout.
pub(crate) enum Link {
    Udp(UdpSocket),
    Stream(Stream),
}

/// A connection and its received but unread bytes.
pub(crate) struct Stream {
    inner: Connection,
    received: Vec<u8>,
}

enum Connection {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Creates the links of a job.
pub(crate) struct Connector {
    own: IpAddr,
    server: SocketAddr,
    transport: Transport,
    tls: Option<Arc<ClientConfig>>,
}

impl Connector {
    pub(crate) fn new(job: &Job, transport: Transport) -> Outcome<Self> {
        let tls = match transport {
            Transport::Tls => Some(Arc::new(tls_config(&job.certificate)?)),
            Transport::Udp | Transport::Tcp => None,
        };
        Ok(Self { own: job.own, server: job.server, transport, tls })
    }

    pub(crate) fn connect(&self) -> Outcome<Link> {
        if self.transport == Transport::Udp {
            return Ok(Link::Udp(udp(self.own, self.server)?));
        }
        let tcp = TcpStream::connect(self.server)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(10 * RETRANSMIT_AFTER))?;
        let inner = match &self.tls {
            None => Connection::Tcp(tcp),
            Some(config) => {
                let connection = ClientConnection::new(Arc::clone(config), self.server.ip().into())?;
                Connection::Tls(Box::new(StreamOwned::new(connection, tcp)))
            }
        };
        Ok(Link::Stream(Stream { inner, received: Vec::new() }))
    }
}

impl Link {
    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).map(drop),
            Self::Stream(stream) => stream.write_all(message).and_then(|()| stream.flush()),
        }
    }

    /// Receives the next message. `None` on a timeout.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Udp(socket) => {
                let mut buffer = vec![0; 2048];
                let received = unless_timed_out(socket.recv(&mut buffer))?;
                Ok(received.map(|length| {
                    buffer.truncate(length);
                    buffer
                }))
            }
            Self::Stream(stream) => loop {
                if let Some(message) = stream.take_message() {
                    return Ok(Some(message));
                }
                if unless_timed_out(stream.read_more())?.is_none() {
                    return Ok(None);
                }
            },
        }
    }

    /// Returns whether messages can be lost and need retransmission.
    pub(crate) fn is_lossy(&self) -> bool {
        matches!(self, Self::Udp(_))
    }
}

impl Stream {
    /// Returns the socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        match &self.inner {
            Connection::Tcp(tcp) => tcp,
            Connection::Tls(tls) => &tls.sock,
        }
    }

    /// Reads available bytes once.
    pub(crate) fn read_more(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 << 10];
        let length = match &mut self.inner {
            Connection::Tcp(tcp) => tcp.read(&mut piece),
            Connection::Tls(tls) => tls.read(&mut piece),
        }?;
        self.received.extend(piece.iter().take(length));
        if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Calls `each` with every complete message, including its padding.
    pub(crate) fn each_message(&mut self, each: &mut dyn FnMut(&[u8])) {
        let mut used = 0;
        while let Some(rest) = self.received.get(used..)
            && let Some(message) = length_in_stream(rest).and_then(|length| rest.get(..length))
        {
            each(message);
            used += message.len();
        }
        self.received.drain(..used);
    }

    fn take_message(&mut self) -> Option<Vec<u8>> {
        let length = length_in_stream(&self.received).filter(|length| *length <= self.received.len())?;
        Some(self.received.drain(..length).collect())
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.inner {
            Connection::Tcp(tcp) => tcp.write(bytes),
            Connection::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.inner {
            Connection::Tcp(tcp) => tcp.flush(),
            Connection::Tls(tls) => tls.flush(),
        }
    }
}

/// Returns a socket that is connected to the server.
pub(crate) fn udp(own: IpAddr, server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((own, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(RETRANSMIT_AFTER))?;
    Ok(socket)
}

/// Returns a Binding request.
pub(crate) fn binding_request(transaction: TransactionId) -> Outcome<Vec<u8>> {
    write(&Request::Binding, transaction, None)
}

/// Waits until the server responds on the transport of the job.
pub(crate) fn await_server(job: &Job) -> Outcome<()> {
    let transport = job.load().map_or(Transport::Udp, |load| load.transport);
    let connector = Connector::new(job, transport)?;
    let deadline = clock::now() + START_TIMEOUT;
    let mut result = Err("no attempt was made".into());
    while clock::now() < deadline {
        result = probe(&connector);
        if result.is_ok() {
            return Ok(());
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
    result.map_err(|error| format!("the server was not reached within 10 s: {error}").into())
}

fn probe(connector: &Connector) -> Outcome<()> {
    let mut link = connector.connect()?;
    link.send(&binding_request(TransactionId::new([1; 12]))?)?;
    link.receive()?.ok_or("no response")?;
    Ok(())
}

/// Returns a TLS configuration that trusts the benchmark's certificate only.
pub(crate) fn tls_config(certificate: &Path) -> Outcome<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
}

/// Converts a timeout to `None`.
pub(crate) fn unless_timed_out<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(error),
    }
}
