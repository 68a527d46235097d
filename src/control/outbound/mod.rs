//! HTTP requests of the server: of the authority that certifies it, and of the receiver of its events. Redirects are not
//! followed, and what a response may have is bounded.

mod connect;

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::http::response::Parts;
use hyper::{HeaderMap, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore};

use super::acme::http_date;
use crate::clock;
use crate::file;
use crate::net::tls::date;

pub(super) use connect::connect;

/// The longest head of a response, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// The most header fields of a response.
const MAX_FIELDS: usize = 64;

/// The longest body of a response that is read only so that the connection can be used again, in bytes.
const MAX_REST: usize = 16 * 1024;
/// The longest time that this takes.
const REST_TIME: Duration = Duration::from_millis(250);

const PRODUCT: &str = concat!("turnserver/", env!("CARGO_PKG_VERSION"));

/// Creates a runtime for a program that connects once.
///
/// # Errors
/// If the system refuses what it needs.
pub(super) fn runtime() -> Result<Runtime, String> {
    Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())
}

/// Creates the TLS client that trusts the authorities in a PEM file; without one, those that browsers trust.
///
/// # Errors
/// If the file cannot be used.
pub(super) fn tls_connector(ca: Option<&Path>) -> Result<TlsConnector, String> {
    Ok(TlsConnector::from(Arc::new(client_config(ca)?)))
}

/// Like [`tls_connector`], for a library that connects itself.
///
/// # Errors
/// If the file cannot be used.
pub(super) fn client_config(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let roots = match ca {
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
        Some(path) => read_roots(path).map_err(|why| format!("{}: {why}", path.display()))?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let bytes = file::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|_| "it is not well-formed PEM".to_owned())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("it has no certificate".to_owned()) } else { Ok(roots) }
}

/// Returns a hash of the authorities in a file, so that a reload notices others; `None` without a file that can be read.
pub(super) fn authorities(ca: Option<&Path>) -> Option<[u8; 32]> {
    Some(Sha256::digest(file::read(ca?).ok()?).into())
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: Uri,
}

impl Destination {
    /// Returns the destination of a URL; `None` if it has no host, or a port that is none. `port` is that of its scheme.
    pub(super) fn of(uri: &Uri, port: u16) -> Option<Self> {
        let host = uri.host().filter(|host| !host.is_empty())?;
        let authority = uri.authority()?.as_str();
        // `Uri::port` ignores what is no port.
        let port = match authority.rsplit('@').next()?.strip_prefix(host)? {
            "" => port,
            rest => rest.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).parse().ok()?;
        Some(Self { host: host.trim_matches(['[', ']']).to_owned(), port, path })
    }

    /// Returns the host and the port as in a URL: an IPv6 address has brackets (RFC 3986 §3.2.2).
    pub(super) fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// Makes a TLS connection to the host on a connection. `ca_setting` is the key that names further authorities.
///
/// # Errors
/// Why there is none.
pub(super) async fn tls(
    connector: &TlsConnector,
    host: &str,
    stream: TcpStream,
    ca_setting: &str,
) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "it is no name of a server".to_owned())?;
    connector.connect(name, stream).await.map_err(|error| tls_failure(&error, ca_setting))
}

/// Describes why TLS failed.
fn tls_failure(error: &io::Error, ca_setting: &str) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        )) => format!(
            "its certificate is not valid on {}, which is the time of this machine: check the clock",
            date(clock::unix_seconds())
        ),
        // A bad signature: an authority with the name of a trusted one, which has another key.
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            format!(
                "its certificate comes from an authority that is not trusted: for a private one, set `{ca_setting}`"
            )
        }
        _ => format!("TLS failed: {error}"),
    }
}

/// Sends a request over a connection of its own, and returns the response, whose body has at most `max_body` bytes.
///
/// # Errors
/// Why there is no response.
pub(super) async fn exchange<S, B>(
    stream: S,
    to: &Destination,
    request: Request<B>,
    max_body: usize,
) -> Result<(Parts, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connection = Connection::over(stream).await?;
    let (head, body) = connection.send(to, request).await.map_err(|error| error.to_string())?.into_parts();
    let body = Limited::new(body, max_body)
        .collect()
        .await
        .map_err(|error| format!("its response cannot be read, or is longer than {} KiB: {error}", max_body / 1024))?;
    Ok((head, body.to_bytes()))
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
#[error("it sent no response: {message}")]
pub(super) struct NoResponse {
    message: String,
    /// Whether the other side had closed the connection, as it may do at any time between two requests.
    pub(super) is_closed: bool,
}

impl From<hyper::Error> for NoResponse {
    fn from(error: hyper::Error) -> Self {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        let is_reset = matches!(
            cause,
            // The last one: TLS was not closed.
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof)
        );
        let is_closed = error.is_canceled() || error.is_closed() || error.is_incomplete_message() || is_reset;
        Self { message: error.to_string(), is_closed }
    }
}

/// A connection for requests one after the other. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Connection<B> {
    sender: http1::SendRequest<B>,
    /// Reads and writes. It ends when it is dropped.
    _task: JoinSet<()>,
}

impl<B> Connection<B>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Begins HTTP/1.1 on a stream.
    ///
    /// # Errors
    /// Why that fails.
    pub(super) async fn over<S>(stream: S) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .handshake::<_, B>(TokioIo::new(stream))
            .await;
        let (sender, connection) = handshake.map_err(|error| error.to_string())?;
        let mut task = JoinSet::new();
        // Its error is also that of the request.
        task.spawn(async move { drop(connection.await) });
        Ok(Self { sender, _task: task })
    }

    /// Sends a request. The body of the response comes while the connection is kept.
    ///
    /// # Errors
    /// Why there is no response.
    pub(super) async fn send(
        &mut self,
        to: &Destination,
        request: Request<B>,
    ) -> Result<Response<Incoming>, NoResponse> {
        let (mut head, body) = request.into_parts();
        let authority = to.authority();
        let default_port = if head.uri.scheme_str() == Some("http") { ":80" } else { ":443" };
        let authority = authority.strip_suffix(default_port).unwrap_or(&authority);
        let host = HeaderValue::from_str(authority);
        let host = host.map_err(|error| NoResponse { message: error.to_string(), is_closed: false })?;
        head.headers.insert(HOST, host);
        head.headers.insert(USER_AGENT, HeaderValue::from_static(PRODUCT));
        head.uri = to.path.clone();
        Ok(self.sender.send_request(Request::from_parts(head, body)).await?)
    }

    /// Reads the rest of a response whose content does not matter, and returns the connection if it can take another request.
    pub(super) async fn after(mut self, response: Response<Incoming>) -> Option<Self> {
        let body = response.into_body();
        if body.size_hint().lower() > MAX_REST as u64 {
            return None;
        }
        let rest = async {
            Limited::new(body, MAX_REST).collect().await.ok()?;
            self.sender.ready().await.ok()
        };
        timeout(REST_TIME, rest).await.ok()??;
        Some(self)
    }
}

/// Returns the time that a response demands until the next request, in seconds (RFC 9110 §10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: u64) -> Option<u64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    match text.trim().parse::<u64>() {
        Ok(seconds) => Some(seconds),
        Err(_) => http_date(text).map(|at| at.saturating_sub(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_none_is_not_replaced_by_that_of_the_scheme() {
        let of = |url: &str| Destination::of(&url.parse().unwrap(), 443).map(|to| to.authority());
        assert_eq!(of("https://a.example/x").as_deref(), Some("a.example:443"));
        assert_eq!(of("https://[2001:db8::1]:8443/").as_deref(), Some("[2001:db8::1]:8443"));
        for wrong in ["https://a.example:99999/", "https://a.example:0/", "https://a.example:/", "/x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
