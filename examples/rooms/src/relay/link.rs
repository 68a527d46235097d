//! The connection with the relay: UDP, TCP or TLS.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{Instant, timeout_at};
use turnserver::client::Frames;
use turnserver::transport::{Transport, TurnUri};

use crate::connect::{Stream, Trust, connect_to};

/// The longest datagram in bytes.
const DATAGRAM: usize = 65_535;

/// The bytes that are read from a connection at once.
const READ: usize = 16 * 1024;

/// The bytes that wait until the connection takes them. Data of calls that comes then is dropped; requests wait.
const WAITING: usize = 256 * 1024;

/// How a Send indication begins (RFC 8656 §17).
const SEND_INDICATION: [u8; 2] = [0x00, 0x16];

/// A connection that takes nothing for this time is dead.
const STALLED: Duration = Duration::from_secs(5);

/// Connects to a server; if there is an address, to that. The name in its certificate is that of the URI.
pub(super) async fn open(uri: &TurnUri, address: Option<SocketAddr>, trust: &Trust) -> io::Result<(Reader, Writer)> {
    // A URL has an IPv6 address in brackets, and a socket address has none.
    let host = uri.host().trim_start_matches('[').trim_end_matches(']');
    let addresses = match address {
        Some(address) => vec![address],
        None => lookup_host((host, uri.port())).await?.collect(),
    };
    if uri.transport() == Transport::Udp {
        let socket = Arc::new(open_udp(host, &addresses).await?);
        let reader = Reader::Datagrams { socket: Arc::clone(&socket), buffer: vec![0; DATAGRAM] };
        return Ok((reader, Writer::new(Sink::Datagrams(socket))));
    }
    let trust = uri.transport().is_encrypted().then(|| trust.clone());
    Ok(pair(connect_to(addresses.as_slice(), host, trust).await?))
}

/// Returns both directions of a stream.
fn pair(stream: Box<dyn Stream>) -> (Reader, Writer) {
    let (reader, writer) = split(stream);
    let (frames, message, buffer) = (Frames::default(), Vec::new(), vec![0; READ]);
    (Reader::Stream { stream: reader, frames, message, buffer }, Writer::new(Sink::Stream(writer)))
}

/// Opens a socket to the first address that this machine has a route to.
async fn open_udp(host: &str, addresses: &[SocketAddr]) -> io::Result<UdpSocket> {
    let mut result = Err(io::Error::other(format!("{host} has no address")));
    for address in addresses {
        result = open_udp_to(*address).await;
        if result.is_ok() {
            break;
        }
    }
    result
}

async fn open_udp_to(address: SocketAddr) -> io::Result<UdpSocket> {
    let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// What comes from the relay.
pub(super) enum Reader {
    Datagrams { socket: Arc<UdpSocket>, buffer: Vec<u8> },
    Stream { stream: ReadHalf<Box<dyn Stream>>, frames: Frames, message: Vec<u8>, buffer: Vec<u8> },
}

impl Reader {
    /// Receives a message. Nothing is lost if the caller stops waiting.
    pub(super) async fn receive(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Datagrams { socket, buffer } => loop {
                match socket.recv(buffer).await {
                    Err(error) if is_of_earlier_datagram(&error) => {}
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
                    0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the relay closed the connection")),
                    length => frames.push(buffer.get(..length).unwrap_or_default()),
                }
            },
        }
    }
}

/// An ICMP error. The requests find out whether the server is there.
fn is_of_earlier_datagram(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    )
}

enum Sink {
    Datagrams(Arc<UdpSocket>),
    Stream(WriteHalf<Box<dyn Stream>>),
}

/// What goes to the relay.
pub(super) struct Writer {
    sink: Sink,
    /// Messages that wait, and the bytes that they have.
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How much of the first message has been written.
    written: usize,
    /// TLS keeps a part until it is flushed.
    needs_flush: bool,
    /// When the connection took something last, or something began to wait.
    moved: Instant,
    dropped: u64,
}

impl Writer {
    fn new(sink: Sink) -> Self {
        let (waiting, moved) = (VecDeque::new(), Instant::now());
        Self { sink, waiting, bytes: 0, written: 0, needs_flush: false, moved, dropped: 0 }
    }

    /// Queues a message for [`flush`](Self::flush). Data for peers is dropped if too much waits.
    pub(super) fn push(&mut self, message: Vec<u8>) {
        let is_channel_data = message.first().is_some_and(|first| *first > 3);
        let is_data = is_channel_data || message.starts_with(&SEND_INDICATION);
        if is_data && self.bytes + message.len() > WAITING {
            self.dropped += 1;
            return;
        }
        if self.is_idle() {
            self.moved = Instant::now();
        }
        self.bytes += message.len();
        self.waiting.push_back(message);
    }

    /// Whether nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.needs_flush
    }

    /// Sends what waits. Nothing is lost, and nothing is sent twice, if the caller stops waiting.
    ///
    /// # Errors
    /// If the connection has ended, or takes nothing for [`STALLED`].
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while !self.is_idle() {
            let late = || {
                let message = format!("the connection with the relay takes no data for {} s", STALLED.as_secs());
                io::Error::new(io::ErrorKind::TimedOut, message)
            };
            timeout_at(self.moved + STALLED, self.advance()).await.map_err(|_| late())??;
            self.moved = Instant::now();
        }
        if self.dropped > 0 {
            tracing::debug!("{} datagrams were dropped: the connection with the relay was too slow", self.dropped);
            self.dropped = 0;
        }
        Ok(())
    }

    /// Sends a part of what waits.
    async fn advance(&mut self) -> io::Result<()> {
        let Some(first) = self.waiting.front() else {
            if let Sink::Stream(stream) = &mut self.sink {
                stream.flush().await?;
            }
            self.needs_flush = false;
            return Ok(());
        };
        match &mut self.sink {
            Sink::Datagrams(socket) => match socket.send(first).await {
                Err(error) if !is_of_earlier_datagram(&error) => return Err(error),
                _ => self.written = first.len(),
            },
            Sink::Stream(stream) => {
                let length = stream.write(first.get(self.written..).unwrap_or_default()).await?;
                if length == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.written += length;
                self.needs_flush = true;
            }
        }
        if self.written >= first.len() {
            self.bytes -= first.len();
            self.written = 0;
            self.waiting.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn data(begin: [u8; 2]) -> Vec<u8> {
        let mut message = vec![7; 1_000];
        message[..2].copy_from_slice(&begin);
        message
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_takes_nothing_drops_data_but_no_request_and_is_dead_after_some_seconds() {
        let (client, _server) = tokio::io::duplex(1_000);
        let (_reader, mut writer) = pair(Box::new(client));
        for _ in 0..500 {
            writer.push(data([0x40, 7]));
            writer.push(data(SEND_INDICATION));
        }
        writer.push(vec![0; 20]);
        assert!(writer.bytes <= WAITING + 20);
        assert_eq!(writer.dropped, 1_000 - writer.waiting.len() as u64 + 1);
        assert_eq!(writer.waiting.back(), Some(&vec![0; 20]));
        let begin = Instant::now();
        let error = writer.flush().await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed()), (io::ErrorKind::TimedOut, STALLED));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_connection_gets_everything_in_order_although_the_sender_stops_waiting() {
        let (client, mut server) = tokio::io::duplex(64);
        let (_reader, mut writer) = pair(Box::new(client));
        let mut expected = Vec::new();
        for number in 0..20 {
            let message = vec![number; 50];
            expected.extend_from_slice(&message);
            writer.push(message);
        }
        let mut received = Vec::new();
        while received.len() < expected.len() {
            // Each time, the sender gives up before it is finished.
            let _ = tokio::time::timeout(STALLED / 2, writer.flush()).await;
            let mut part = [0; 40];
            let length = server.read(&mut part).await.unwrap();
            received.extend_from_slice(&part[..length]);
        }
        assert_eq!(received, expected);
        writer.flush().await.unwrap();
        assert!(writer.is_idle());
    }
}
