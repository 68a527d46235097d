//! The connection with the relay: UDP, TCP or TLS.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UdpSocket, lookup_host};
use turnserver::client::Frames;
use turnserver::transport::{Transport, TurnUri};

use crate::connect::{Stream, Trust, connect};

/// The longest datagram in bytes.
const DATAGRAM: usize = 65_535;

/// The bytes that are read from a connection at once.
const READ: usize = 16 * 1024;

/// A connection with the relay.
pub(super) enum Link {
    Datagrams { socket: UdpSocket, buffer: Vec<u8> },
    Stream { stream: Box<dyn Stream>, frames: Frames, message: Vec<u8>, buffer: Vec<u8> },
}

impl Link {
    /// Connects to a server.
    pub(super) async fn connect(uri: &TurnUri) -> io::Result<Self> {
        let (host, port) = (uri.host(), uri.port());
        if uri.transport() == Transport::Udp {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let missing = || io::Error::other(format!("{host} has no address"));
            let address = lookup_host((host, port)).await?.next().ok_or_else(missing)?;
            let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(local).await?;
            socket.connect(address).await?;
            return Ok(Self::Datagrams { socket, buffer: vec![0; DATAGRAM] });
        }
        let trust = uri.transport().is_encrypted().then_some(Trust::Authorities);
        let stream = connect(host, port, trust).await?;
        Ok(Self::Stream { stream, frames: Frames::default(), message: Vec::new(), buffer: vec![0; READ] })
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Datagrams { socket, .. } => match socket.send(message).await {
                // An ICMP error for an earlier datagram. The requests find out whether the server is there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                result => result.map(drop),
            },
            Self::Stream { stream, .. } => stream.write_all(message).await,
        }
    }

    /// Receives a message. Nothing is lost if the caller stops waiting.
    pub(super) async fn receive(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Datagrams { socket, buffer } => loop {
                match socket.recv(buffer).await {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(error) => return Err(error),
                    Ok(length) => return Ok(buffer.get(..length).unwrap_or_default()),
                }
            },
            Self::Stream { stream, frames, message, buffer } => loop {
                if let Some(next) = frames.next_message().map_err(io::Error::other)? {
                    message.clear();
                    message.extend_from_slice(next);
                    return Ok(message);
                }
                match stream.read(buffer).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    length => frames.push(buffer.get(..length).unwrap_or_default()),
                }
            },
        }
    }
}
