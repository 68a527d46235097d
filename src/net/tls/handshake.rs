//! The server side of a TLS handshake, with its limits, and the reasons for which TLS fails.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::server::Acceptor as HelloReader;
use tokio_rustls::rustls::{self, InvalidMessage, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::Setup;
use super::challenge::Challenges;

/// The application protocols of the server (RFC 7443 §2), in the order of preference.
pub(super) const ALPN: [&[u8]; 2] = [TURN, NAT_DISCOVERY];
const TURN: &[u8] = b"stun.turn";
const NAT_DISCOVERY: &[u8] = b"stun.nat-discovery";

/// The application protocol of HTTP clients (RFC 7301 §6).
const HTTP: &[u8] = b"http/1.1";

/// The first byte of a TLS connection: the type of a record of the handshake (RFC 8446 §5.1). No STUN message and no
/// ChannelData begins with it (RFC 7983 §7).
pub(crate) const HANDSHAKE_RECORD: u8 = 0x16;

/// The most bytes that a client may send until its handshake is complete. A large ClientHello has 2000 to 3000 bytes.
const MAX_HANDSHAKE: usize = 16 * 1024;

/// The number of bytes of records at which no further message is accepted until they are written. Old data cannot be
/// dropped from them, so this is little: about the longest record (RFC 8446 §5.2).
const MAX_BUFFERED: usize = 16 * 1024;

/// The largest capacity, in bytes, that an empty record buffer keeps. A larger buffer is freed.
const MAX_IDLE_CAPACITY: usize = 4 * 1024;

/// Performs handshakes, and responds to the challenges of an authority. Clones share the certificates.
#[derive(Clone, Debug)]
pub(crate) struct Acceptor {
    pub(super) config: Arc<ServerConfig>,
    pub(super) challenges: Arc<Challenges>,
}

/// A connection whose ClientHello was read.
pub(crate) struct Hello<S>(StartHandshake<LimitedStream<S>>);

impl<S> Hello<S> {
    pub(crate) fn get_ref(&self) -> &S {
        &self.0.io.stream
    }
}

/// A connection whose handshake is complete.
///
/// It accepts a message only if no earlier record waits in rustls. So each message up to the length of a record has a
/// record of its own, and little data waits here while the client does not read.
pub(crate) struct Stream<S>(TlsStream<LimitedStream<S>>);

/// The usage of a connection that the client selected with ALPN (RFC 7443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    /// TURN, or no ALPN.
    Turn,
    /// NAT discovery: only Binding.
    NatDiscovery,
}

/// Why TLS failed on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The client did not send TLS.
    NotTls,
    /// The server supports none of the protocols that the client offers (RFC 7301 §3.2).
    NoApplicationProtocol,
    /// Client and server have no version, cipher suite, group or signature scheme in common.
    Incompatible,
    /// The client sent a fatal alert, for example because it does not trust the certificate.
    Alert,
    /// The client violated the protocol.
    Violation,
    /// The client sent more bytes than any handshake needs.
    TooLong,
    /// The client was an authority (RFC 8737). It has got its response.
    Challenge,
    /// The connection ended before the handshake was complete or without `close_notify`.
    Truncated,
    /// The connection failed.
    Broken,
}

impl Acceptor {
    /// Creates an acceptor with these certificates. The first one is the default. Without any, a handshake ends with an
    /// alert (access_denied).
    pub(crate) fn new(certificates: Vec<Setup>) -> Self {
        Self { config: Arc::new(super::server_config(certificates)), challenges: Arc::default() }
    }

    /// Returns the same acceptor with other challenges.
    #[must_use]
    pub(crate) fn with_challenges(self, challenges: Arc<Challenges>) -> Self {
        Self { challenges, ..self }
    }

    /// Reads the ClientHello of a new connection, which takes little time of the processor. The caller sets the
    /// deadline.
    ///
    /// # Errors
    /// The reason for which the handshake failed. The alert was sent to the client if possible.
    pub(crate) async fn hello<S>(stream: S) -> Result<Hello<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let limited = LimitedStream { stream, remaining: Some(MAX_HANDSHAKE), records: Vec::new() };
        let hello = LazyConfigAcceptor::new(HelloReader::default(), limited).await;
        hello.map(Hello).map_err(|error| Failure::of(&error))
    }

    /// Performs the handshake of an HTTP client, with the same certificates. The stream is `None` if the client was an
    /// authority that has got its response (RFC 8737).
    ///
    /// # Errors
    /// If the handshake fails.
    pub(crate) async fn accept_http<S>(&self, stream: S) -> io::Result<Option<TlsStream<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = LazyConfigAcceptor::new(HelloReader::default(), stream).await?;
        if let Some(challenge) = self.challenges.of_hello(&hello.client_hello()) {
            let mut stream = hello.into_stream(challenge).await?;
            poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await?;
            return Ok(None);
        }
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = vec![HTTP.to_vec()];
        hello.into_stream(Arc::new(config)).await.map(Some)
    }

    /// Agrees on a key and signs, which takes up to a few milliseconds before this returns. The future sends the
    /// response and completes the handshake.
    ///
    /// # Errors
    /// As [`hello`](Self::hello).
    pub(crate) fn respond<S>(
        &self,
        hello: Hello<S>,
    ) -> impl Future<Output = Result<(Stream<S>, Usage), Failure>> + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let bound = |session: &mut rustls::ServerConnection| session.set_buffer_limit(Some(MAX_BUFFERED));
        let challenge = self.challenges.of_hello(&hello.0.client_hello());
        let is_challenge = challenge.is_some();
        let config = challenge.unwrap_or_else(|| Arc::clone(&self.config));
        let accept = hello.0.into_stream_with(config, bound);
        async move {
            let mut stream = accept.await.map_err(|error| Failure::of(&error))?;
            if is_challenge {
                // RFC 8737 §3: the connection serves nothing else. The authority may have closed it.
                let _ = poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await;
                return Err(Failure::Challenge);
            }
            let (limited, session) = stream.get_mut();
            limited.remaining = None;
            let usage = if session.alpn_protocol() == Some(NAT_DISCOVERY) { Usage::NatDiscovery } else { Usage::Turn };
            Ok((Stream(stream), usage))
        }
    }
}

/// The error of reading more than [`MAX_HANDSHAKE`] bytes.
#[derive(Debug, thiserror::Error)]
#[error("the handshake is too long")]
struct TooLong;

impl Failure {
    /// Returns the reason for an error of reading or writing.
    #[must_use]
    pub(crate) fn of(error: &io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<TooLong>()) {
            return Self::TooLong;
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            )) => Self::NotTls,
            Some(rustls::Error::NoApplicationProtocol) => Self::NoApplicationProtocol,
            // The server has no certificate yet.
            Some(rustls::Error::PeerIncompatible(_) | rustls::Error::General(_)) => Self::Incompatible,
            Some(rustls::Error::AlertReceived(_)) => Self::Alert,
            Some(_) => Self::Violation,
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Truncated,
            None => Self::Broken,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = &mut self.get_mut().0;
        let (limited, session) = stream.get_ref();
        if session.wants_write() || limited.records.len() >= MAX_BUFFERED {
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
        }
        Pin::new(stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

/// The stream below TLS, with a limit on the handshake and a buffer for records.
///
/// During the handshake it reads a limited number of bytes. After the handshake it collects records until a flush, so
/// that one write sends many of them.
#[derive(Debug)]
pub(crate) struct LimitedStream<S> {
    stream: S,
    /// The number of bytes that the client may still send; `None` after the handshake.
    remaining: Option<usize>,
    /// The records that wait for a flush.
    records: Vec<u8>,
}

impl<S: AsyncWrite + Unpin> LimitedStream<S> {
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
        if self.records.is_empty() && self.records.capacity() > MAX_IDLE_CAPACITY {
            self.records = Vec::new();
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LimitedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.remaining == Some(0) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, TooLong)));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if let Some(remaining) = &mut this.remaining {
            *remaining = remaining.saturating_sub(buf.filled().len() - before);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LimitedStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// Accepts all slices: an alert can be the last of several records, and rustls tries to write it only once.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.remaining.is_some() {
            return Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        }
        if this.records.len() >= MAX_BUFFERED {
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
