//! A blocking socket or connection to a TURN server.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use super::timed::TimedStream;
use super::trust::{Judgement, Trust};
use crate::client::{Frames, NotFramed};
use crate::clock;
use crate::transport::Transport;

/// The size of the buffer for received bytes: the longest datagram.
const BUFFER: usize = 65_536;

/// The bytes that are shown of what is not TURN.
const SHOWN: usize = 60;

/// The shortest timeout: the kernel does not accept zero.
const SHORTEST: Duration = Duration::from_millis(1);

/// A socket or a connection to a server.
pub(super) struct Link {
    path: Path,
    /// The time for sending a message.
    timeout: Duration,
    frames: Frames,
    buffer: Vec<u8>,
}

enum Path {
    Udp(UdpSocket),
    Tcp(TimedStream),
    Tls(Box<StreamOwned<ClientConnection, TimedStream>>),
}

/// Why nothing can be exchanged with a server.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The kernel reports an error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The TLS handshake failed, or did not end in time.
    #[error("{0}")]
    Tls(io::Error),
    /// The server speaks another protocol.
    #[error("{0}")]
    NotFramed(#[from] NotFramed),
}

impl Link {
    /// Opens a path to `server`, within `timeout`. `name`: the name that the certificate of the server must have.
    ///
    /// # Errors
    /// Those of the kernel and of the TLS handshake. What is wrong with the certificate is part of the result.
    pub(super) fn open(
        transport: Transport,
        server: SocketAddr,
        name: &str,
        trust: &Trust,
        timeout: Duration,
    ) -> Result<(Self, Option<Judgement>), LinkError> {
        let end = clock::monotonic() + timeout;
        let (path, judgement) = match transport {
            Transport::Udp => {
                let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
                socket.connect(server)?;
                (Path::Udp(socket), None)
            }
            Transport::Tcp | Transport::Tls => {
                let stream = TcpStream::connect_timeout(&server, timeout)?;
                stream.set_nodelay(true)?;
                let stream = TimedStream::new(stream, end);
                if transport.is_encrypted() {
                    let (stream, judgement) = trust.handshake(stream, name).map_err(LinkError::Tls)?;
                    (Path::Tls(Box::new(stream)), Some(judgement))
                } else {
                    (Path::Tcp(stream), None)
                }
            }
        };
        Ok((Self::new(path, timeout), judgement))
    }

    /// Opens a UDP path to `server` from an address of this machine.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn udp_from(own: IpAddr, server: SocketAddr) -> Result<Self, LinkError> {
        let socket = UdpSocket::bind(SocketAddr::new(own, 0))?;
        socket.connect(server)?;
        Ok(Self::new(Path::Udp(socket), Duration::ZERO))
    }

    fn new(path: Path, timeout: Duration) -> Self {
        Self { path, timeout, frames: Frames::default(), buffer: vec![0; BUFFER] }
    }

    /// Returns the own address.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        match &self.path {
            Path::Udp(socket) => socket.local_addr(),
            Path::Tcp(stream) => stream.get().local_addr(),
            Path::Tls(stream) => stream.sock.get().local_addr(),
        }
    }

    /// Returns whether messages can be lost.
    pub(super) fn is_connection(&self) -> bool {
        !matches!(self.path, Path::Udp(_))
    }

    /// Returns the socket of a UDP path.
    pub(super) fn udp(&self) -> Option<&UdpSocket> {
        match &self.path {
            Path::Udp(socket) => Some(socket),
            Path::Tcp(_) | Path::Tls(_) => None,
        }
    }

    /// Returns the beginning of what the server sent on a connection, if it is text and not TURN.
    pub(super) fn text(&self) -> Option<&str> {
        let start = self.frames.rest().get(..SHOWN.min(self.frames.rest().len()))?;
        let line = start.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
        std::str::from_utf8(line).ok().filter(|line| line.len() > 3 && line.is_ascii())
    }

    /// Sends a message.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        let end = clock::monotonic() + self.timeout;
        match &mut self.path {
            Path::Udp(socket) => {
                socket.send(message)?;
            }
            Path::Tcp(stream) => {
                stream.set_end(end);
                stream.write_all(message)?;
            }
            Path::Tls(stream) => {
                stream.sock.set_end(end);
                stream.write_all(message)?;
                stream.flush()?;
            }
        }
        Ok(())
    }

    /// Returns the next message. `None` if there is none until `end` on the monotonic clock.
    pub(super) fn receive(&mut self, end: Duration) -> Result<Option<Vec<u8>>, LinkError> {
        loop {
            if let Some(message) = self.frames.next_message()? {
                return Ok(Some(message.to_vec()));
            }
            let Some(left) = end.checked_sub(clock::monotonic()).filter(|left| !left.is_zero()) else {
                return Ok(None);
            };
            let read = match &mut self.path {
                Path::Udp(socket) => {
                    socket.set_read_timeout(Some(left.max(SHORTEST)))?;
                    socket.recv(&mut self.buffer)
                }
                Path::Tcp(stream) => {
                    stream.set_end(end);
                    stream.read(&mut self.buffer)
                }
                Path::Tls(stream) => {
                    stream.sock.set_end(end);
                    stream.read(&mut self.buffer)
                }
            };
            let received = match read {
                Ok(length) => self.buffer.get(..length).unwrap_or_default(),
                Err(error) if is_timeout(&error) => continue,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(LinkError::Closed),
                Err(error) => return Err(error.into()),
            };
            match &self.path {
                Path::Udp(_) => return Ok(Some(received.to_vec())),
                _ if received.is_empty() => return Err(LinkError::Closed),
                _ => self.frames.push(received),
            }
        }
    }
}

pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
    use std::thread;

    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::{ServerConfig, ServerConnection};

    use super::*;
    use crate::clock::unix_seconds;
    use crate::test_certificates::Authority;

    /// The time of the client.
    const BRIEFLY: Duration = Duration::from_millis(200);

    /// The time of the server between two bytes.
    const PAUSE: Duration = Duration::from_millis(20);

    /// Sends one byte at a time until the test is done, for much longer than the time of the client, but not for ever.
    fn send_slowly(stream: &mut TcpStream, bytes: &[u8], done: &Receiver<()>) {
        for byte in bytes.chunks(1).take(500) {
            if stream.write_all(byte).is_err() || done.recv_timeout(PAUSE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    #[test]
    fn a_server_that_sends_one_byte_at_a_time_does_not_hold_up_the_handshake() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (finish, done) = channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                // A handshake record of 16 KiB.
                let record = [&[22, 3, 3, 0x40, 0][..], &[0; 0x4000]].concat();
                send_slowly(&mut listener.accept().unwrap().0, &record, &done);
            });
            let opened = Link::open(Transport::Tls, address, "localhost", &Trust::new(None).unwrap(), BRIEFLY);
            let error = opened.err().unwrap();
            assert!(matches!(&error, LinkError::Tls(error) if is_timeout(error)), "{error:?}");
            drop(finish);
        });
    }

    #[test]
    fn a_server_that_sends_one_byte_at_a_time_does_not_hold_up_a_message() {
        let issued = Authority::new(unix_seconds()).issue(&["localhost"]);
        let own = CertificateDer::from_pem_slice(issued.own.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = Arc::new(config.with_single_cert(vec![own], key).unwrap());
        for transport in [Transport::Tls, Transport::Tcp] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let (address, config) = (listener.local_addr().unwrap(), Arc::clone(&config));
            let (finish, done) = channel();
            thread::scope(|scope| {
                scope.spawn(move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut bytes = vec![0; 1_000];
                    if transport == Transport::Tls {
                        let mut connection = ServerConnection::new(config).unwrap();
                        while connection.is_handshaking() {
                            connection.complete_io(&mut stream).unwrap();
                        }
                        while connection.wants_write() {
                            connection.write_tls(&mut stream).unwrap();
                        }
                        connection.writer().write_all(&bytes).unwrap();
                        bytes.clear();
                        connection.write_tls(&mut bytes).unwrap();
                    } else {
                        // The beginning of a STUN message of 996 bytes, with its magic cookie.
                        bytes[..8].copy_from_slice(&[0, 1, 3, 0xd0, 0x21, 0x12, 0xa4, 0x42]);
                    }
                    send_slowly(&mut stream, &bytes, &done);
                });
                let trust = Trust::new(None).unwrap();
                let (mut link, _) =
                    Link::open(transport, address, "localhost", &trust, Duration::from_secs(60)).unwrap();
                let received = link.receive(clock::monotonic() + BRIEFLY);
                assert!(matches!(received, Ok(None)), "{transport}: {received:?}");
                drop(finish);
            });
        }
    }
}
