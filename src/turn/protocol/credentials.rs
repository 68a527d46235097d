//! The credentials of a request, parsed but not yet verified: the first checks of RFC 8489 §9.2.4.

use crate::auth::{Authenticator, KeyAlgorithm, LongTermKey, NonceError, SecurityFeatures};
use crate::stun::attribute::{Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, Userhash, Username};
use crate::stun::{AttributeType, IntegrityStatus, Message};
use crate::turn::protocol::rejection::Rejection;
use crate::turn::protocol::request::{optional, required};
use crate::turn::protocol::response::PASSWORD_ALGORITHMS;

/// The credentials of a request.
#[derive(Debug)]
pub(crate) struct Credentials<'m> {
    name: Name<'m>,
    /// How the key is derived from the password.
    pub(crate) algorithm: KeyAlgorithm,
    /// Whether MESSAGE-INTEGRITY-SHA256 protects the request. It takes precedence over MESSAGE-INTEGRITY.
    sha256: bool,
}

#[derive(Clone, Copy, Debug)]
enum Name<'m> {
    Given(&'m str),
    Hidden(&'m [u8; 32]),
}

impl<'m> Credentials<'m> {
    /// Reads the credentials. `nonce` is the result of the nonce check.
    pub(crate) fn read(message: &Message<'m>, nonce: Result<(), NonceError>) -> Result<Self, Rejection> {
        // No integrity → 401.
        let sha256 = message.contains(AttributeType::MESSAGE_INTEGRITY_SHA256);
        if !sha256 && !message.contains(AttributeType::MESSAGE_INTEGRITY) {
            return Err(Rejection::Unauthenticated);
        }
        // Integrity, but no USERNAME or USERHASH, REALM or NONCE → 400.
        let name = match optional(message)? {
            // RFC 8489 §9.2.2: trailing nulls are not part of the name.
            Some(Username(name)) => Name::Given(name.trim_end_matches('\0')),
            None => {
                let Userhash(hash) = required(message)?;
                Name::Hidden(hash)
            }
        };
        let Realm(_) = required(message)?;
        let Nonce(text) = required(message)?;
        let algorithm = algorithm(message, text, nonce)?;
        Ok(Self { name, algorithm, sha256 })
    }

    /// Returns the username; `None` for an unknown USERHASH.
    pub(crate) fn username<'a>(&self, authenticator: &'a Authenticator) -> Option<&'a str>
    where
        'm: 'a,
    {
        match self.name {
            Name::Given(name) => Some(name),
            Name::Hidden(hash) => authenticator.username_for(hash),
        }
    }

    /// Whether the integrity of the request is valid under `key`. The comparison takes constant time.
    pub(crate) fn is_signed_with(&self, key: &LongTermKey, message: &Message<'_>) -> bool {
        let key = key.as_bytes();
        let status = if self.sha256 { message.verify_integrity_sha256(key) } else { message.verify_integrity(key) };
        status == IntegrityStatus::Valid
    }

    /// Returns the username for the log.
    pub(crate) fn for_log(&self, authenticator: &Authenticator) -> String {
        match (self.username(authenticator), self.name) {
            (Some(name), _) | (None, Name::Given(name)) => name.to_owned(),
            (None, Name::Hidden([a, b, c, d, ..])) => format!("USERHASH {a:02x}{b:02x}{c:02x}{d:02x}…"),
        }
    }
}

/// Carries out the third check of RFC 8489 §9.2.4: the password algorithm.
fn algorithm(message: &Message<'_>, nonce: &str, checked: Result<(), NonceError>) -> Result<KeyAlgorithm, Rejection> {
    let listed: Option<PasswordAlgorithms<'_>> = optional(message)?;
    let named: Option<PasswordAlgorithm<'_>> = optional(message)?;
    let announced = SecurityFeatures::of(nonce).is_some_and(|features| features.password_algorithms);
    let named = match (listed, named) {
        // The client does not use password algorithms.
        (None, None) => return Ok(KeyAlgorithm::Md5),
        (Some(listed), Some(named)) => {
            // If another server made the nonce, the list that it announced is unknown here. The client gets a 438 with
            // a new nonce.
            let is_ours = checked != Err(NonceError::Invalid);
            let as_sent = !is_ours || listed == PASSWORD_ALGORITHMS;
            let chosen = listed.iter().any(|listed| listed == named);
            if announced && !(as_sent && chosen) {
                return Err(BAD_PASSWORD_ALGORITHM);
            }
            named
        }
        (None, Some(named)) if !announced => named,
        (Some(_), None) if !announced => return Ok(KeyAlgorithm::Md5),
        _ => return Err(BAD_PASSWORD_ALGORITHM),
    };
    match named {
        PasswordAlgorithm::SHA256 => Ok(KeyAlgorithm::Sha256),
        PasswordAlgorithm::MD5 => Ok(KeyAlgorithm::Md5),
        // An algorithm that another server offered. The challenge lists the algorithms of this server.
        _ => Err(Rejection::Unauthenticated),
    }
}

const BAD_PASSWORD_ALGORITHM: Rejection = Rejection::BadRequest("Bad PASSWORD-ALGORITHM");
