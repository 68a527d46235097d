//! Connections to other servers over TCP, with TLS or without.

use std::io;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of the authorities that browsers trust.
    #[default]
    Authorities,
    /// The one with this hash, as `rooms serve` makes it.
    Fingerprint(Fingerprint),
}

/// Connects to a server. `trust` is that for TLS; without it, the connection has no TLS.
///
/// # Errors
/// If the name is not found, nobody listens, or the certificate is not trusted.
pub async fn connect(host: &str, port: u16, trust: Option<Trust>) -> io::Result<Box<dyn Stream>> {
    // A URL has an IPv6 address in brackets, and a socket address has none.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let Some(trust) = trust else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(configuration(trust)?)).connect(name, stream).await?;
    Ok(Box::new(stream))
}

fn configuration(trust: Trust) -> io::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let builder = match trust {
        Trust::Authorities => {
            let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            builder.with_root_certificates(roots)
        }
        Trust::Fingerprint(expected) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { expected, provider }))
        }
    };
    Ok(builder.with_no_client_auth())
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

/// Accepts one certificate.
#[derive(Debug)]
struct Pinned {
    expected: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if fingerprint(certificate) == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
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
