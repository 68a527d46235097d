//! TLS: a certificate and its key from PEM files, checked, and handshakes with them.

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use tokio_rustls::rustls::{InconsistentKeys, ServerConfig};
use zeroize::{Zeroize as _, Zeroizing};

mod certificate;
mod handshake;
#[cfg(test)]
pub(crate) mod tests;

pub use certificate::{Certificate, date};
pub use handshake::{Acceptor, Failure, Metered, Stream, Usage};

/// A certificate that can be served.
#[derive(Debug)]
pub struct Setup {
    /// What handshakes are served with.
    pub acceptor: Acceptor,
    /// The server's own certificate.
    pub certificate: Certificate,
    /// What the file has of its issuers.
    pub chain: Chain,
}

/// The certificates behind the server's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Each is followed by its issuer.
    Ordered,
    /// They are there in another order, or some do not belong there. Those that do are sent, in the right order.
    Unordered,
    /// The certificate is not signed by itself, and its issuer is not in the file.
    Incomplete,
}

/// Why a certificate cannot be served.
#[derive(Debug)]
pub enum LoadError {
    /// The file with the certificate.
    Certificate(FileError),
    /// The file with the key.
    Key(FileError),
    /// The key belongs to another certificate.
    Mismatch,
}

/// What is wrong with one of the files.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// It is not well-formed PEM.
    #[error("it is not well-formed PEM")]
    BadPem,
    /// It has the binary form.
    #[error("it is binary (DER): convert it to PEM with `openssl x509 -inform der` or `openssl pkey -inform der`")]
    Binary,
    /// There is a key in it and no certificate.
    #[error("it holds a private key and no certificate: are the two files exchanged?")]
    OnlyKey,
    /// There is a certificate in it and no key.
    #[error("it holds a certificate and no private key: are the two files exchanged?")]
    OnlyCertificate,
    /// There is no certificate in it.
    #[error("there is no certificate in it (a PEM block that begins with `-----BEGIN CERTIFICATE-----`)")]
    NoCertificate,
    /// There is no key in it.
    #[error("there is no private key in it (a PEM block that begins with `-----BEGIN PRIVATE KEY-----`)")]
    NoKey,
    /// The key is encrypted.
    #[error("the key is encrypted, and a server has nobody to ask for the passphrase: `openssl pkey` removes it")]
    EncryptedKey,
    /// A certificate cannot be understood.
    #[error("certificate {0} in it is damaged")]
    Damaged(usize),
    /// The kind of key is not known, or the key is damaged.
    #[error(
        "the key cannot be used: it is damaged, or neither RSA (2048 to 8192 bits), ECDSA (P-256, P-384) nor Ed25519"
    )]
    UnusableKey,
    /// The certificate is good, and TLS does not work with it.
    #[error("{0}")]
    Refused(rustls::Error),
}

/// Loads a certificate and its key.
///
/// Whether the certificate is valid now is for the caller to judge.
///
/// # Errors
/// What makes them unusable.
pub fn load(certificate: &Path, key: &Path) -> Result<Setup, LoadError> {
    let chain = read_certificates(certificate).map_err(LoadError::Certificate)?;
    let key = read_key(key).map_err(LoadError::Key)?;
    let (chain, order) = order(chain, &key)?;
    let own = chain.first().ok_or(LoadError::Certificate(FileError::NoCertificate))?.0.clone();
    let chain = chain.into_iter().map(|(_, der)| der).collect();
    let acceptor =
        acceptor(CertifiedKey::new(chain, key)).map_err(|error| LoadError::Certificate(FileError::Refused(error)))?;
    Ok(Setup { acceptor, certificate: own, chain: order })
}

type Parsed = (Certificate, CertificateDer<'static>);

fn read_certificates(path: &Path) -> Result<Vec<Parsed>, FileError> {
    // A file with the key in it as well is usual.
    let bytes = Zeroizing::new(read(path).map_err(FileError::Unreadable)?);
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|_| FileError::BadPem)?;
    if certificates.is_empty() {
        return Err(if is_binary(&bytes) {
            FileError::Binary
        } else if contains(&bytes, b"PRIVATE KEY-----") {
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

/// The longest certificate chain or key that is read, in bytes.
const LONGEST_FILE: u64 = 1 << 20;

/// Reads a file. A pipe could keep the caller waiting for ever, and a device could go on for ever.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let about = fs::metadata(path)?;
    // A directory says so itself.
    if !about.is_file() && !about.is_dir() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if about.len() > LONGEST_FILE {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    fs::read(path)
}

fn read_key(path: &Path) -> Result<Arc<dyn SigningKey>, FileError> {
    let bytes = Zeroizing::new(read(path).map_err(FileError::Unreadable)?);
    if contains(&bytes, b"ENCRYPTED") {
        return Err(FileError::EncryptedKey);
    }
    let mut key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound if is_binary(&bytes) => FileError::Binary,
        pem::Error::NoItemsFound if contains(&bytes, b"BEGIN CERTIFICATE-----") => FileError::OnlyCertificate,
        pem::Error::NoItemsFound => FileError::NoKey,
        _ => FileError::BadPem,
    })?;
    let usable = ring::sign::any_supported_type(&key);
    key.zeroize();
    usable.map_err(|_| FileError::UnusableKey)
}

/// DER begins with a SEQUENCE.
fn is_binary(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x30])
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The certificate of the key first, and then each one's issuer (RFC 8446 §4.4.2).
fn order(mut rest: Vec<Parsed>, key: &Arc<dyn SigningKey>) -> Result<(Vec<Parsed>, Chain), LoadError> {
    let is_of_key = |der: &CertificateDer<'static>| {
        let matched = CertifiedKey::new(vec![der.clone()], Arc::clone(key)).keys_match();
        // Where the key does not tell, the first certificate is taken for its own.
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

fn acceptor(certified: CertifiedKey) -> Result<Acceptor, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = handshake::ALPN.map(<[u8]>::to_vec).into();
    // A connection lasts as long as a call: resumption would save little, and its table is a lock between workers.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Acceptor(Arc::new(config)))
}
