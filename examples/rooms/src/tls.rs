//! The certificate with which the pages are served.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use time::{Duration, OffsetDateTime};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use turnserver::clock::unix_seconds;

use crate::connect::{Fingerprint, fingerprint};

/// How long a certificate that is made here is valid. It is made anew at each start.
const VALID: Duration = Duration::days(90);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be used.
    #[error("cannot use {}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The certificate could not be made.
    #[error("cannot make a certificate: {0}. Are the values of --name names or addresses?")]
    NotMade(#[from] rcgen::Error),
    /// The TLS library does not accept it.
    #[error("the certificate and its key cannot be used: {0}")]
    Refused(#[from] tokio_rustls::rustls::Error),
}

/// What TLS needs.
#[derive(Clone)]
pub struct Identity {
    /// Accepts TLS connections.
    pub acceptor: TlsAcceptor,
    /// The hash of the certificate.
    pub fingerprint: Fingerprint,
}

impl Identity {
    /// Loads a certificate and its key.
    ///
    /// # Errors
    /// If a file cannot be read, or they do not belong together.
    pub fn load(certificate: &Path, private_key: &Path) -> Result<Self, CertificateError> {
        let unusable = |path: &Path, error: &dyn std::fmt::Display| CertificateError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unusable(certificate, &error))?;
        let key = PrivateKeyDer::from_pem_file(private_key).map_err(|error| unusable(private_key, &error))?;
        let first = chain.first().ok_or_else(|| unusable(certificate, &"there is no certificate in it"))?;
        let fingerprint = fingerprint(first);
        Self::new(chain, key, fingerprint)
    }

    /// Makes a certificate for some names and addresses, which stays in memory.
    ///
    /// # Errors
    /// If a name cannot be in a certificate.
    pub fn make(names: Vec<String>) -> Result<Self, CertificateError> {
        let mut parameters = CertificateParams::new(names)?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, "rooms");
        let seconds = i64::try_from(unix_seconds()).unwrap_or_default();
        let now = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        (parameters.not_before, parameters.not_after) = (now - Duration::days(1), now + VALID);
        let key = KeyPair::generate()?;
        let certificate = parameters.self_signed(&key)?;
        let fingerprint = fingerprint(certificate.der());
        Self::new(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()), fingerprint)
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        fingerprint: Fingerprint,
    ) -> Result<Self, CertificateError> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let mut config =
            builder.with_safe_default_protocol_versions()?.with_no_client_auth().with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), fingerprint })
    }

    /// Returns the hash of the certificate as browsers show it.
    #[must_use]
    pub fn shown(&self) -> String {
        self.fingerprint.map(|byte| format!("{byte:02X}")).join(":")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::parse_fingerprint;

    #[test]
    fn the_printed_fingerprint_is_read_again() {
        let identity = Identity::make(vec!["localhost".to_owned(), "::1".to_owned()]).unwrap();
        assert_eq!(parse_fingerprint(&identity.shown()), Ok(identity.fingerprint));
        assert!(parse_fingerprint("AB:CD").is_err());
    }
}
