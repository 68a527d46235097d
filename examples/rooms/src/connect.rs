//! Connections to other servers over TCP, with TLS or without.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

/// A connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The SHA-256 hash of a certificate.
pub type Fingerprint = [u8; 32];

/// Which certificates are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of the authorities that browsers trust.
    #[default]
    Authorities,
    /// The one with this hash, as `rooms serve` makes it.
    Fingerprint(Fingerprint),
    /// These, those that these have issued, and those of the authorities that browsers trust.
    Certificates(Arc<[CertificateDer<'static>]>),
}

impl Trust {
    /// Reads certificates in PEM that are trusted besides those of the authorities. Without a file, there are none.
    ///
    /// # Errors
    /// If the file cannot be read, or has no certificate.
    pub fn from_file(path: Option<&Path>) -> Result<Self, TrustError> {
        let Some(path) = path else { return Ok(Self::Authorities) };
        let unusable = |reason: String| TrustError { path: path.to_owned(), reason };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unusable(error.to_string()))?;
        if certificates.is_empty() {
            return Err(unusable("there is no certificate in PEM in it".to_owned()));
        }
        Ok(Self::Certificates(certificates.into()))
    }
}

/// The file of `--relay-ca` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use --relay-ca {}: {reason}", .path.display())]
pub struct TrustError {
    path: PathBuf,
    reason: String,
}

/// Connects to a server. `trust` is that for TLS; without it, the connection has no TLS.
///
/// # Errors
/// If the name is not found, nobody listens, or the certificate is not trusted.
pub async fn connect(host: &str, port: u16, trust: Option<Trust>) -> io::Result<Box<dyn Stream>> {
    // A URL has an IPv6 address in brackets, and a socket address has none.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    connect_to((host, port), host, trust).await
}

/// Connects to an address. `host` is the name in its certificate.
///
/// # Errors
/// As for [`connect`].
pub async fn connect_to(address: impl ToSocketAddrs, host: &str, trust: Option<Trust>) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let Some(trust) = trust else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(configuration(trust)?)).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|error| explained(host, error))?))
}

/// Says what to do if a certificate is not trusted.
fn explained(host: &str, error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(TlsError::InvalidCertificate(reason)) => io::Error::new(
            error.kind(),
            format!(
                "the certificate of {host} is not trusted ({reason}). If the relay has a certificate of a private \
                 authority, or one that it has signed itself, name the PEM file with --relay-ca; if a `rooms` server has \
                 made it, name its fingerprint with --certificate-sha256"
            ),
        ),
        _ => error,
    }
}

fn configuration(trust: Trust) -> io::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let builder = match trust {
        Trust::Authorities => builder.with_root_certificates(authorities()),
        Trust::Fingerprint(fingerprint) => {
            let pinned = Pinned { expected: vec![fingerprint], issued: None, provider };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned))
        }
        Trust::Certificates(certificates) => {
            let mut roots = authorities();
            // A certificate that is none of an authority is only trusted itself.
            roots.add_parsable_certificates(certificates.iter().cloned());
            let expected = certificates.iter().map(fingerprint).collect();
            let issued = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            let issued = Some(issued.build().map_err(io::Error::other)?);
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { expected, issued, provider }))
        }
    };
    Ok(builder.with_no_client_auth())
}

fn authorities() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

/// Returns the hash of a certificate.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(certificate).into()
}

/// Reads a hash as it is printed: hexadecimal, with or without colons.
///
/// # Errors
/// If it has not 32 bytes.
pub fn parse_fingerprint(text: &str) -> Result<Fingerprint, String> {
    let digits: Vec<u32> = text.chars().filter(|character| *character != ':').filter_map(|c| c.to_digit(16)).collect();
    let bytes: Vec<u8> =
        digits.chunks_exact(2).filter_map(|pair| u8::try_from(pair.first()? << 4 | pair.last()?).ok()).collect();
    match <[u8; 32]>::try_from(bytes) {
        Ok(fingerprint) if digits.len() == 64 => Ok(fingerprint),
        _ => Err("expected the 32 bytes in hexadecimal that `rooms` printed at its start".to_owned()),
    }
}

/// Accepts some certificates, whatever their names, and those that authorities have issued.
#[derive(Debug)]
struct Pinned {
    expected: Vec<Fingerprint>,
    issued: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if self.expected.contains(&fingerprint(certificate)) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.issued {
            Some(issued) => issued.verify_server_cert(certificate, intermediates, name, ocsp, now),
            None => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
