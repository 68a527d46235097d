//! A client's way to the server. Errors are values here: clients meet drains, kicks and limits.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use turnserver::client::Frames;
use turnserver::transport::Transport;

use crate::support::certificates::Authority;
use crate::support::tls::{ANY, TlsStream, session};

/// How long a client waits for a connection and for its handshake.
const PATIENCE: Duration = Duration::from_secs(20);

/// A datagram socket or a connection.
pub(crate) enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream, Frames),
    Tls(Box<TlsStream>, Frames),
}

impl Link {
    /// Opens a link from a source.
    pub(crate) fn open(
        transport: Transport,
        source: IpAddr,
        server: SocketAddr,
        authority: &Authority,
    ) -> io::Result<Self> {
        Ok(match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind((source, 0))?;
                socket.connect(server)?;
                Self::Udp(socket)
            }
            Transport::Tcp => Self::Tcp(connect(source, server)?, Frames::default()),
            Transport::Tls => {
                let mut stream = TlsStream::new(session(authority, &ANY), connect(source, server)?);
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock)?;
                }
                Self::Tls(Box::new(stream), Frames::default())
            }
        })
    }

    pub(crate) fn is_connection(&self) -> bool {
        !matches!(self, Self::Udp(_))
    }

    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).map(|_| ()),
            Self::Tcp(stream, _) => stream.write_all(message),
            Self::Tls(stream, _) => stream.write_all(message).and_then(|()| stream.flush()),
        }
    }

    /// Receives the next message. `None` if there is none in this time.
    pub(crate) fn receive(&mut self, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        let limit = Some(limit.max(Duration::from_millis(1)));
        let mut buffer = [0; 4096];
        match self {
            Self::Udp(socket) => {
                socket.set_read_timeout(limit)?;
                or_none(socket.recv(&mut buffer)).map(|length| length.map(|length| buffer[..length].to_vec()))
            }
            Self::Tcp(stream, frames) => {
                stream.set_read_timeout(limit)?;
                next(frames, || or_none(stream.read(&mut buffer)).map(|length| length.map(|l| buffer[..l].to_vec())))
            }
            Self::Tls(stream, frames) => {
                stream.sock.set_read_timeout(limit)?;
                next(frames, || or_none(stream.read(&mut buffer)).map(|length| length.map(|l| buffer[..l].to_vec())))
            }
        }
    }
}

/// Returns the next frame, for which bytes are read as long as there are some.
fn next(frames: &mut Frames, mut read: impl FnMut() -> io::Result<Option<Vec<u8>>>) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(frame) = frames.next_message().map_err(io::Error::other)? {
            return Ok(Some(frame.to_vec()));
        }
        match read()? {
            None => return Ok(None),
            Some(bytes) if bytes.is_empty() => return Err(ErrorKind::UnexpectedEof.into()),
            Some(bytes) => frames.push(&bytes),
        }
    }
}

/// Turns the end of the time into `None`.
fn or_none(received: io::Result<usize>) -> io::Result<Option<usize>> {
    match received {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
            Ok(None)
        }
        received => received.map(Some),
    }
}

/// Connects from a source.
pub(crate) fn connect(source: IpAddr, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&server.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
