//! The challenges by which an authority checks that this server has a name (RFC 8555 §8, RFC 8737).

use std::fmt;
use std::io;
use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::ClientHello;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, ServerConfig};

/// The application protocol of the challenge tls-alpn-01 (RFC 8737 §6.2).
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";

/// The challenges that are pending: for each name, the TLS configuration that responds to tls-alpn-01; for each token of
/// http-01, the key authorization. It is immutable, and a part of the snapshot.
#[derive(Clone, Default)]
pub(crate) struct Challenges {
    tls_alpn: Vec<(String, Arc<ServerConfig>)>,
    http: Vec<(String, String)>,
}

impl Challenges {
    /// Adds a challenge tls-alpn-01: the SHA-256 `digest` of the key authorization for a name in lower case.
    ///
    /// # Errors
    /// If the certificate cannot be made.
    pub(crate) fn add_tls_alpn(&mut self, name: &str, digest: &[u8; 32]) -> io::Result<()> {
        let config = tls_alpn_config(name, digest)?;
        self.tls_alpn.push((name.to_owned(), Arc::new(config)));
        Ok(())
    }

    /// Adds a challenge http-01.
    pub(crate) fn add_http(&mut self, token: &str, key_authorization: &str) {
        self.http.push((token.to_owned(), key_authorization.to_owned()));
    }

    /// Returns whether a challenge tls-alpn-01 is pending for a name.
    #[must_use]
    pub(crate) fn has_tls_alpn(&self, name: &str) -> bool {
        self.of_name(name).is_some()
    }

    /// Returns whether a challenge http-01 is pending.
    #[must_use]
    pub(crate) fn has_any_token(&self) -> bool {
        !self.http.is_empty()
    }

    /// Returns the key authorization of a token of http-01, which anyone may read while the challenge is pending.
    #[must_use]
    pub(crate) fn key_authorization(&self, token: &str) -> Option<&str> {
        self.http.iter().find(|(own, _)| own == token).map(|(_, authorization)| authorization.as_str())
    }

    fn of_name(&self, name: &str) -> Option<&Arc<ServerConfig>> {
        self.tls_alpn.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, config)| config)
    }

    /// Returns the configuration that responds to a ClientHello of an authority, if this is one and its challenge is
    /// pending. RFC 8737 §3: it offers one protocol, and it names the server.
    pub(super) fn of_hello(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        if self.tls_alpn.is_empty() {
            return None;
        }
        let mut offered = hello.alpn()?;
        let is_acme = offered.next() == Some(ACME_TLS) && offered.next().is_none();
        self.of_name(hello.server_name().filter(|_| is_acme)?).cloned()
    }
}

/// Key authorizations are no secrets, but they are not for a log either.
impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.tls_alpn.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Challenges").field("tls_alpn", &names).field("http", &self.http.len()).finish()
    }
}

/// Returns the configuration with the self-signed certificate of RFC 8737 §3.
fn tls_alpn_config(name: &str, digest: &[u8; 32]) -> io::Result<ServerConfig> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(io::Error::other)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions.push(CustomExtension::new_acme_identifier(digest));
    let certificate = params.self_signed(&key).map_err(io::Error::other)?.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = ring::sign::any_supported_type(&key).map_err(io::Error::other)?;
    let certified = CertifiedKey::new(vec![certificate], key);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_found_by_its_name_in_any_case_and_by_its_token() {
        let mut challenges = Challenges::default();
        assert!(!challenges.has_tls_alpn("turn.example.org"));
        challenges.add_tls_alpn("turn.example.org", &[7; 32]).unwrap();
        challenges.add_http("token", "token.thumbprint");
        assert!(challenges.has_tls_alpn("TURN.example.org") && !challenges.has_tls_alpn("example.org"));
        assert_eq!(challenges.key_authorization("token"), Some("token.thumbprint"));
        assert_eq!(challenges.key_authorization("toke"), None);
        let shown = format!("{challenges:?}");
        assert!(!shown.contains("thumbprint"), "{shown}");
    }
}
