//! The certificate that a client gets: by the server name that it sends and the signatures that it supports.

use std::sync::Arc;

use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{SignatureAlgorithm, SignatureScheme};

use super::Setup;

/// The type of the key of a certificate. The server prefers the first ones, whose signatures take less time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum KeyType {
    Ecdsa,
    Ed25519,
    Rsa,
    Other,
}

impl KeyType {
    /// Returns the name for the operator.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ecdsa => "ECDSA",
            Self::Ed25519 => "Ed25519",
            Self::Rsa => "RSA",
            Self::Other => "another type",
        }
    }
}

impl Setup {
    /// Returns the type of the key.
    pub(crate) fn key_type(&self) -> KeyType {
        match self.certified.key.algorithm() {
            SignatureAlgorithm::ECDSA => KeyType::Ecdsa,
            SignatureAlgorithm::ED25519 => KeyType::Ed25519,
            SignatureAlgorithm::RSA => KeyType::Rsa,
            _ => KeyType::Other,
        }
    }
}

/// How well a certificate fits the name that a client sends; the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Name,
    Wildcard,
}

/// Returns the certificate for a client. `usable` tells whether the client can verify signatures of a key.
///
/// A valid certificate precedes an expired one, one with the name itself precedes one with a wildcard, an ECDSA key precedes
/// an RSA key, and then the first one is used. Without a name, or with an unknown one, the client gets the default
/// certificate or another one that is for the same names: an operator may have one of each type of key.
pub(super) fn select<'s>(all: &'s [Setup], name: Option<&str>, usable: impl Fn(&Setup) -> bool) -> Option<&'s Setup> {
    let default = all.first()?;
    let fit = |setup: &Setup| match name? {
        name if setup.certificate.has_name(name) => Some(Fit::Name),
        name if setup.certificate.covers(name) => Some(Fit::Wildcard),
        _ => None,
    };
    let fitting = || all.iter().filter_map(|setup| Some((fit(setup)?, setup)));
    let rank = |(fit, setup): &(Fit, &Setup)| (setup.is_invalid, *fit, setup.key_type());
    let best = fitting().filter(|(_, setup)| usable(setup)).min_by_key(rank);
    // If the client can verify none of them, the TLS library tells it so.
    if let Some((_, setup)) = best.or_else(|| fitting().next()) {
        return Some(setup);
    }
    let same_names = all.iter().filter(|setup| setup.certificate.is_for_the_names_of(&default.certificate));
    let rank = |setup: &&Setup| (setup.is_invalid, setup.key_type());
    same_names.filter(|setup| usable(setup)).min_by_key(rank).or(Some(default))
}

/// Returns the certificate for a client that supports every type of key.
pub(crate) fn for_client<'s>(all: &'s [Setup], name: Option<&str>) -> Option<&'s Setup> {
    select(all, name, |_| true)
}

/// Selects a certificate for each client. The first one is the default.
#[derive(Debug)]
pub(super) struct Resolver(pub(super) Vec<Setup>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // In TLS 1.2, these are only those that the cipher suites of the client permit.
        let schemes: &[SignatureScheme] = hello.signature_schemes();
        let usable = |setup: &Setup| setup.certified.key.choose_scheme(schemes).is_some();
        select(&self.0, hello.server_name(), usable).map(|setup| Arc::clone(&setup.certified))
    }
}
