//! The client's side of TLS, on a blocking socket.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::rustls::{
    self, ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion, version,
};

use super::certificates::Authority;
use super::{TIMEOUT, unless_interrupted};

pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// The TLS versions and ALPN protocols that a client offers.
pub(crate) struct Offer<'o> {
    pub(crate) versions: &'o [&'static SupportedProtocolVersion],
    pub(crate) alpn: &'o [&'o str],
    /// How far the client's clock is ahead.
    pub(crate) ahead: Duration,
}

pub(crate) const TLS12: &SupportedProtocolVersion = &version::TLS12;
pub(crate) const TLS13: &SupportedProtocolVersion = &version::TLS13;
pub(crate) const ANY: Offer<'static> = Offer { versions: &[TLS13, TLS12], alpn: &[], ahead: Duration::ZERO };

/// The clock of a client.
#[derive(Debug)]
struct Clock(Duration);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(
            UnixTime::now().as_secs().checked_add(self.0.as_secs()).map(Duration::from_secs)?,
        ))
    }
}

/// Returns a session that trusts `authority` and expects a certificate for `localhost`.
pub(crate) fn session(authority: &Authority, offer: &Offer<'_>) -> ClientConnection {
    session_with("localhost", authority, offer)
}

/// Returns a session that trusts `authority` and expects a certificate for `name`. For an address, it sends no server
/// name.
pub(crate) fn session_with(name: &str, authority: &Authority, offer: &Offer<'_>) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.root().as_bytes()).unwrap()).unwrap();
    let mut config =
        ClientConfig::builder_with_details(Arc::new(ring::default_provider()), Arc::new(Clock(offer.ahead)))
            .with_protocol_versions(offer.versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = offer.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

pub(crate) fn tcp(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Connects and performs the handshake.
pub(crate) fn handshake(
    server: SocketAddr,
    authority: &Authority,
    offer: &Offer<'_>,
) -> Result<TlsStream, rustls::Error> {
    handshake_of(session(authority, offer), server)
}

/// Connects and performs the handshake of a session.
pub(crate) fn handshake_of(session: ClientConnection, server: SocketAddr) -> Result<TlsStream, rustls::Error> {
    let mut stream = StreamOwned::new(session, tcp(server));
    while stream.conn.is_handshaking() {
        if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned();
            return Err(inner.unwrap_or_else(|| panic!("not an error of TLS: {error}")));
        }
    }
    Ok(stream)
}

/// Returns the serial number of the server's certificate, in hexadecimal. The serial number has two bytes and follows
/// the header and the version of the certificate.
pub(crate) fn serial(stream: &TlsStream) -> String {
    let own = &stream.conn.peer_certificates().unwrap()[0];
    let at = own.windows(4).position(|four| four[..3] == [0x02, 0x02, 0x5e]).unwrap();
    format!("{:02x}{:02x}", own[at + 2], own[at + 3])
}

/// Writes `bytes` in as few records as possible.
pub(crate) fn write(stream: &mut TlsStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// Reads until the server ends the connection. Returns `false` if it sent no `close_notify`.
pub(crate) fn read_to_end(stream: &mut TlsStream) -> bool {
    loop {
        match unless_interrupted(|| stream.read(&mut [0; 1024])) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                return false;
            }
            Err(error) => panic!("the connection was not closed: {error}"),
        }
    }
}
