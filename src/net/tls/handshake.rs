//! The server's side of a handshake, within bounds, and why TLS failed where it did.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, InvalidMessage, ServerConfig};

/// RFC 7443 §2, in the order of preference.
pub(super) const ALPN: [&[u8]; 2] = [TURN, NAT_DISCOVERY];
const TURN: &[u8] = b"stun.turn";
const NAT_DISCOVERY: &[u8] = b"stun.nat-discovery";

/// What a client may send until its handshake is done, in bytes; a large ClientHello has two or three thousand.
const LONGEST_HANDSHAKE: usize = 16 * 1024;

/// What is held back of records that are to be sent, in bytes, so that they are no second queue behind that of the
/// connection. As much again waits as long as the client does not read.
const MOST_BUFFERED: usize = 32 * 1024;

/// What an idle connection keeps of a buffer, in bytes.
const MOST_KEPT: usize = 4 * 1024;

/// Serves handshakes with one certificate. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Acceptor(pub(super) Arc<ServerConfig>);

/// A connection whose handshake is done.
pub type Stream<S> = tokio_rustls::server::TlsStream<Metered<S>>;

/// What a client said with ALPN that the connection is for (RFC 7443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// TURN, or nothing was said.
    Turn,
    /// NAT discovery: Binding and nothing else.
    NatDiscovery,
}

/// Why TLS failed on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What came is not TLS.
    NotTls,
    /// The client offers protocols, and none of them is ours (RFC 7301 §3.2).
    NoApplicationProtocol,
    /// No version, cipher suite, group or signature scheme in common.
    Incompatible,
    /// The client sent a fatal alert: it does not trust the certificate, for example.
    Alert,
    /// The client breaks the rules of TLS.
    Violation,
    /// A handshake longer than any client needs.
    TooLong,
    /// The connection ended without `close_notify`, or before the handshake did.
    Truncated,
    /// The connection broke.
    Broken,
}

impl Acceptor {
    /// Carries out the handshake of a new connection. Has no deadline of its own.
    ///
    /// # Errors
    /// Why there is no connection; the client has been sent the alert that says so, where that was possible.
    pub async fn accept<S>(&self, stream: S) -> Result<(Stream<S>, Usage), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let metered = Metered { stream, left: Some(LONGEST_HANDSHAKE), records: Vec::new() };
        let bound = |session: &mut rustls::ServerConnection| session.set_buffer_limit(Some(MOST_BUFFERED));
        let accept = TlsAcceptor::from(Arc::clone(&self.0)).accept_with(metered, bound).into_fallible();
        match accept.await {
            Ok(mut stream) => {
                let (metered, session) = stream.get_mut();
                metered.left = None;
                let usage =
                    if session.alpn_protocol() == Some(NAT_DISCOVERY) { Usage::NatDiscovery } else { Usage::Turn };
                Ok((stream, usage))
            }
            Err((_, metered)) if metered.left == Some(0) => Err(Failure::TooLong),
            Err((error, _)) => Err(Failure::of(&error)),
        }
    }
}

impl Failure {
    /// The reason behind an error of reading or writing.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            )) => Self::NotTls,
            Some(rustls::Error::NoApplicationProtocol) => Self::NoApplicationProtocol,
            Some(rustls::Error::PeerIncompatible(_)) => Self::Incompatible,
            Some(rustls::Error::AlertReceived(_)) => Self::Alert,
            Some(_) => Self::Violation,
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Truncated,
            None => Self::Broken,
        }
    }
}

/// The stream below TLS. During the handshake it takes no more than so many bytes; after it, records are collected until
/// a flush, so that many of them leave in one write.
#[derive(Debug)]
pub struct Metered<S> {
    stream: S,
    /// What the client may still send; `None` after the handshake.
    left: Option<usize>,
    /// Records that wait for the flush.
    records: Vec<u8>,
}

impl<S: AsyncWrite + Unpin> Metered<S> {
    fn poll_write_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut done = 0;
        let result = loop {
            match self.records.get(done..) {
                None | Some([]) => break Poll::Ready(Ok(())),
                Some(rest) => match Pin::new(&mut self.stream).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => done += written,
                    Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                    Poll::Pending => break Poll::Pending,
                },
            }
        };
        self.records.drain(..done);
        if self.records.is_empty() && self.records.capacity() > MOST_KEPT {
            self.records = Vec::new();
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.left == Some(0) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if let Some(left) = &mut this.left {
            *left = left.saturating_sub(buf.filled().len() - before);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// An alert may be the last of several records, and is tried only once: all of them have to go.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.left.is_some() {
            return Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        }
        if this.records.len() >= MOST_BUFFERED {
            ready!(this.poll_write_records(cx))?;
        }
        let before = this.records.len();
        slices.iter().for_each(|slice| this.records.extend_from_slice(slice));
        Poll::Ready(Ok(this.records.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_records(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_records(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
