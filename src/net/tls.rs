//! TLS: loads and checks certificates and their keys from PEM files, and performs handshakes with them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::sign::{CertifiedKey, SigningKey};
use tokio_rustls::rustls::{InconsistentKeys, ServerConfig};
use zeroize::Zeroize as _;

use crate::file;

mod certificate;
mod challenge;
mod handshake;
mod selection;
#[cfg(test)]
pub(crate) mod tests;
mod weakness;

pub(crate) use certificate::{Certificate, date};
pub(crate) use challenge::{ACME_TLS, Challenges};
pub(crate) use handshake::{Acceptor, Failure, HANDSHAKE_RECORD, Stream, Usage};
pub(crate) use selection::{KeyType, for_client};
pub(crate) use weakness::weaknesses;

/// A loaded certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The certificate chain and the key, for handshakes.
    certified: Arc<CertifiedKey>,
    /// The certificate of the server.
    pub(crate) certificate: Certificate,
    /// The certificates of its issuers in the file, in their order.
    pub(crate) issuers: Vec<Certificate>,
    /// The state of the certificate chain in the file.
    pub(crate) chain: Chain,
    /// Whether the certificate was outside its validity period at the time of [`compare`](Self::compare).
    is_invalid: bool,
}

impl Setup {
    /// Compares the validity period with the time, in seconds since the Unix epoch. Returns whether the result has changed.
    ///
    /// Clients get a valid certificate rather than another one.
    pub(crate) fn compare(&mut self, unix: u64) -> bool {
        let is_invalid = !self.certificate.is_valid_at(unix);
        std::mem::replace(&mut self.is_invalid, is_invalid) != is_invalid
    }

    /// Returns the certificate of the server, in DER.
    pub(crate) fn der(&self) -> &[u8] {
        self.certified.cert.first().map(|der| &**der).unwrap_or_default()
    }
}

/// The state of a certificate chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chain {
    /// Each certificate is followed by its issuer.
    Ordered,
    /// The order is wrong, or unrelated certificates are present. The server sends the related ones in the right order.
    Unordered,
    /// The certificate is not self-signed, and its issuer is missing.
    Incomplete,
}

/// Why a certificate and its key cannot be used.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// The certificate file has an error.
    Certificate(FileError),
    /// The key file has an error.
    Key(FileError),
    /// The key does not belong to any certificate in the file.
    Mismatch,
}

/// Why a certificate file or key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The file cannot be read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// The file is not well-formed PEM.
    #[error("it is not well-formed PEM")]
    BadPem,
    /// The file is binary.
    #[error("it is binary (DER): convert it to PEM with `openssl x509 -inform der` or `openssl pkey -inform der`")]
    Binary,
    /// The certificate file contains a key and no certificate.
    #[error("it contains a private key but no certificate; check whether the two files are swapped")]
    OnlyKey,
    /// The key file contains a certificate and no key.
    #[error("it contains a certificate but no private key; check whether the two files are swapped")]
    OnlyCertificate,
    /// The file contains no certificate.
    #[error("it contains no certificate (a PEM block that begins with `-----BEGIN CERTIFICATE-----`)")]
    NoCertificate,
    /// The file contains no key.
    #[error("it contains no private key (a PEM block that begins with `-----BEGIN PRIVATE KEY-----`)")]
    NoKey,
    /// The key is encrypted.
    #[error("the key is encrypted, and the server cannot ask for a passphrase: remove it with `openssl pkey`")]
    EncryptedKey,
    /// A certificate cannot be parsed.
    #[error("certificate {0} in the file is damaged")]
    Damaged(usize),
    /// The type of the key is not supported, or the key is damaged.
    #[error(
        "the key cannot be used: it is damaged, or neither RSA (2048 to 8192 bits), ECDSA (P-256, P-384) nor Ed25519"
    )]
    UnusableKey,
    /// The certificate does not belong to the key.
    #[error("it is for another key")]
    OtherKey,
}

/// Loads a certificate and its key. The caller checks the validity period.
///
/// # Errors
/// The reason for which they cannot be used.
pub(crate) fn load(certificate: &Path, key: &Path) -> Result<Setup, LoadError> {
    let chain = read_certificates(certificate).map_err(LoadError::Certificate)?;
    let key = read_key(key).map_err(LoadError::Key)?;
    let (chain, order) = order(chain, &key)?;
    let (parsed, chain): (Vec<_>, Vec<_>) = chain.into_iter().unzip();
    let mut issuers = parsed.into_iter();
    let certificate = issuers.next().ok_or(LoadError::Certificate(FileError::NoCertificate))?;
    let certified = Arc::new(CertifiedKey::new(chain, key));
    Ok(Setup { certified, certificate, issuers: issuers.collect(), chain: order, is_invalid: false })
}

/// Checks a certificate chain and its key, in PEM. The caller checks the names and the validity period.
///
/// # Errors
/// The reason for which they cannot be used.
pub(crate) fn check(chain: &[u8], key: &[u8]) -> Result<Certificate, FileError> {
    let chain = parse_certificates(chain)?;
    let (mut ordered, _) = order(chain, &parse_key(key)?).map_err(|_| FileError::OtherKey)?;
    Ok(ordered.swap_remove(0).0)
}

type Parsed = (Certificate, CertificateDer<'static>);

fn read_certificates(path: &Path) -> Result<Vec<Parsed>, FileError> {
    // The file often contains the key as well.
    parse_certificates(&file::read(path).map_err(FileError::Unreadable)?)
}

fn parse_certificates(bytes: &[u8]) -> Result<Vec<Parsed>, FileError> {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(|_| FileError::BadPem)?;
    if certificates.is_empty() {
        return Err(if is_binary(bytes) {
            FileError::Binary
        } else if contains(bytes, b"PRIVATE KEY-----") {
            FileError::OnlyKey
        } else {
            FileError::NoCertificate
        });
    }
    let parse = |(index, der): (usize, CertificateDer<'static>)| match Certificate::parse(&der) {
        Ok(parsed) => Ok((parsed, der)),
        Err(_) => Err(FileError::Damaged(index + 1)),
    };
    certificates.into_iter().enumerate().map(parse).collect()
}

fn read_key(path: &Path) -> Result<Arc<dyn SigningKey>, FileError> {
    parse_key(&file::read(path).map_err(FileError::Unreadable)?)
}

fn parse_key(bytes: &[u8]) -> Result<Arc<dyn SigningKey>, FileError> {
    if contains(bytes, b"ENCRYPTED") {
        return Err(FileError::EncryptedKey);
    }
    let mut key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| match error {
        pem::Error::NoItemsFound if is_binary(bytes) => FileError::Binary,
        pem::Error::NoItemsFound if contains(bytes, b"BEGIN CERTIFICATE-----") => FileError::OnlyCertificate,
        pem::Error::NoItemsFound => FileError::NoKey,
        _ => FileError::BadPem,
    })?;
    let usable = ring::sign::any_supported_type(&key);
    key.zeroize();
    usable.map_err(|_| FileError::UnusableKey)
}

/// Returns whether the file is DER, which begins with a SEQUENCE.
fn is_binary(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x30])
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Orders the chain: the certificate of the key first, each one followed by its issuer (RFC 8446 §4.4.2).
fn order(mut rest: Vec<Parsed>, key: &Arc<dyn SigningKey>) -> Result<(Vec<Parsed>, Chain), LoadError> {
    let is_of_key = |der: &CertificateDer<'static>| {
        let matched = CertifiedKey::new(vec![der.clone()], Arc::clone(key)).keys_match();
        // If the key cannot be compared, the first certificate is used.
        matches!(matched, Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)))
    };
    let place = rest.iter().position(|(_, der)| is_of_key(der)).ok_or(LoadError::Mismatch)?;
    let mut ordered = place == 0;
    let mut chain = vec![rest.remove(place)];
    while let Some((last, _)) = chain.last()
        && !last.is_self_signed()
        && let Some(place) = rest.iter().position(|(other, _)| last.is_issued_by(other))
    {
        ordered &= place == 0;
        let issuer = rest.remove(place);
        chain.push(issuer);
    }
    let complete = chain.len() > 1 || chain.iter().any(|(own, _)| own.is_self_signed());
    let order = match (complete, ordered && rest.is_empty()) {
        (false, _) => Chain::Incomplete,
        (true, true) => Chain::Ordered,
        (true, false) => Chain::Unordered,
    };
    Ok((chain, order))
}

/// Returns the settings of handshakes with these certificates, of which the first one is the default.
fn server_config(certificates: Vec<Setup>) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    #[expect(clippy::expect_used, reason = "the provider has cipher suites of both versions")]
    let versions = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has cipher suites of both versions");
    let mut config = versions.with_no_client_auth().with_cert_resolver(Arc::new(selection::Resolver(certificates)));
    config.alpn_protocols = handshake::ALPN.map(<[u8]>::to_vec).into();
    // No resumption: it saves the signature, which costs little with ECDSA (docs/performance.md), and the key of the
    // tickets would put the secrecy of past sessions at risk.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}
