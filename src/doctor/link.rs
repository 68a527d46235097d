//! A blocking socket or connection to a TURN server.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use tokio_rustls::rustls::{ClientConnection, StreamOwned};

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
    frames: Frames,
    buffer: Vec<u8>,
}

enum Path {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
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
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                if transport.is_encrypted() {
                    let (stream, judgement) = trust.handshake(stream, name)?;
                    (Path::Tls(Box::new(stream)), Some(judgement))
                } else {
                    (Path::Tcp(stream), None)
                }
            }
        };
        Ok((Self { path, frames: Frames::default(), buffer: vec![0; BUFFER] }, judgement))
    }

    /// Returns the own address.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        match &self.path {
            Path::Udp(socket) => socket.local_addr(),
            Path::Tcp(stream) => stream.local_addr(),
            Path::Tls(stream) => stream.sock.local_addr(),
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
        match &mut self.path {
            Path::Udp(socket) => {
                socket.send(message)?;
            }
            Path::Tcp(stream) => stream.write_all(message)?,
            Path::Tls(stream) => {
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
            let left = Some(left.max(SHORTEST));
            let read = match &mut self.path {
                Path::Udp(socket) => {
                    socket.set_read_timeout(left)?;
                    socket.recv(&mut self.buffer)
                }
                Path::Tcp(stream) => {
                    stream.set_read_timeout(left)?;
                    stream.read(&mut self.buffer)
                }
                Path::Tls(stream) => {
                    stream.sock.set_read_timeout(left)?;
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

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
