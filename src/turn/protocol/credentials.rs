//! What a request says of its sender, read but not believed yet: the first checks of RFC 8489 §9.2.4.

use crate::auth::{Authenticator, KeyAlgorithm, LongTermKey, NonceError, SecurityFeatures};
use crate::stun::attribute::{Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, Userhash, Username};
use crate::stun::{AttributeType, ErrorCode, IntegrityStatus, Message};
use crate::turn::protocol::request::{optional, required};
use crate::turn::protocol::response::{PASSWORD_ALGORITHMS, Reject};

/// The credentials of a request.
#[derive(Debug)]
pub(crate) struct Claim<'m> {
    name: Name<'m>,
    /// How the key is made.
    pub(crate) algorithm: KeyAlgorithm,
    /// Whether MESSAGE-INTEGRITY-SHA256 protects the request, which goes before MESSAGE-INTEGRITY.
    sha256: bool,
}

#[derive(Clone, Copy, Debug)]
enum Name<'m> {
    Given(&'m str),
    Hidden(&'m [u8; 32]),
}

impl<'m> Claim<'m> {
    /// `nonce` is what the check of the request's nonce gave.
    pub(crate) fn read(message: &Message<'m>, nonce: Result<(), NonceError>) -> Result<Self, Reject> {
        // No integrity → 401.
        let sha256 = message.contains(AttributeType::MESSAGE_INTEGRITY_SHA256);
        if !sha256 && !message.contains(AttributeType::MESSAGE_INTEGRITY) {
            return Err(Reject::challenge(ErrorCode::UNAUTHENTICATED));
        }
        // Integrity, but no USERNAME or USERHASH, REALM or NONCE → 400.
        let name = match optional(message)? {
            // RFC 8489 §9.2.2: trailing nulls are no part of the name.
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

    /// The username; `None` for a USERHASH that is nobody's.
    pub(crate) fn username<'a>(&self, authenticator: &'a Authenticator) -> Option<&'a str>
    where
        'm: 'a,
    {
        match self.name {
            Name::Given(name) => Some(name),
            Name::Hidden(hash) => authenticator.name_of(hash),
        }
    }

    /// Whether the request was signed with `key`; the comparison takes the same time wherever it fails.
    pub(crate) fn is_signed_with(&self, key: &LongTermKey, message: &Message<'_>) -> bool {
        let key = key.as_bytes();
        let status = if self.sha256 { message.verify_integrity_sha256(key) } else { message.verify_integrity(key) };
        status == IntegrityStatus::Valid
    }

    /// The name as the log has it.
    pub(crate) fn shown(&self, authenticator: &Authenticator) -> String {
        match (self.username(authenticator), self.name) {
            (Some(name), _) | (None, Name::Given(name)) => name.to_owned(),
            (None, Name::Hidden([a, b, c, d, ..])) => format!("USERHASH {a:02x}{b:02x}{c:02x}{d:02x}…"),
        }
    }
}

/// The third check of RFC 8489 §9.2.4: how the key is made.
fn algorithm(message: &Message<'_>, nonce: &str, checked: Result<(), NonceError>) -> Result<KeyAlgorithm, Reject> {
    let listed: Option<PasswordAlgorithms<'_>> = optional(message)?;
    let named: Option<PasswordAlgorithm<'_>> = optional(message)?;
    let announced = SecurityFeatures::of(nonce).is_some_and(|features| features.password_algorithms);
    let named = match (listed, named) {
        // A client that knows of no password algorithms.
        (None, None) => return Ok(KeyAlgorithm::Md5),
        (Some(listed), Some(named)) => {
            // What another server's nonce came with is not ours to say: its client is to get a nonce of ours by a 438.
            let is_ours = checked != Err(NonceError::Foreign);
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
        // Another server's: the challenge has what can be used here.
        _ => Err(Reject::challenge(ErrorCode::UNAUTHENTICATED)),
    }
}

const BAD_PASSWORD_ALGORITHM: Reject = Reject::new(ErrorCode::BAD_REQUEST, "Bad PASSWORD-ALGORITHM");
