//! The long-term credentials of a client, and what a challenge makes of them (RFC 8489 §9.2).

use std::fmt;

use super::failure::{Discarded, Failure, required};
use crate::auth::{KeyAlgorithm, LongTermKey, Secret, SecurityFeatures, userhash};
use crate::stun::attribute::{
    ErrorCodeAttribute, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, Userhash, Username,
};
use crate::stun::{AttributeType, Class, IntegrityStatus, Message, MessageWriter, RawAttribute};

/// A username and its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The username.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// How a client proves that it has the password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithms {
    /// As browsers do: the key is an MD5, and requests have MESSAGE-INTEGRITY (RFC 5389 §10.2).
    #[default]
    Rfc5389,
    /// The first algorithm that both sides support, and USERHASH if the server wants it (RFC 8489 §9.2). Servers that
    /// only implement RFC 5389 are used as browsers use them.
    Rfc8489,
}

/// What authenticates the requests of a client after a challenge.
#[derive(Clone)]
pub struct Session {
    credentials: Credentials,
    algorithms: Algorithms,
    realm: String,
    nonce: String,
    key: LongTermKey,
    /// The username is sent as its hash.
    is_anonymous: bool,
    /// The value of PASSWORD-ALGORITHMS in the challenge, if the client has to repeat it. Requests then have
    /// MESSAGE-INTEGRITY-SHA256.
    offered: Option<Vec<u8>>,
}

impl Session {
    /// Reads a 401 or 438.
    ///
    /// # Errors
    /// If it lacks a realm or a nonce, if they are malformed, or if the client must not answer it (RFC 8489 §9.2.5).
    pub fn from_challenge(
        challenge: &Message<'_>,
        credentials: Credentials,
        algorithms: Algorithms,
    ) -> Result<Self, Failure> {
        let (Realm(realm), Nonce(nonce)) = (required(challenge)?, required(challenge)?);
        let (features, offered) = match algorithms {
            Algorithms::Rfc5389 => (SecurityFeatures::default(), None),
            Algorithms::Rfc8489 => {
                (SecurityFeatures::of(nonce).unwrap_or_default(), required::<PasswordAlgorithms<'_>>(challenge).ok())
            }
        };
        if features.password_algorithms && offered.is_none() {
            return Err(Failure::AlgorithmsRemoved);
        }
        let algorithm = offered.map_or(Ok(KeyAlgorithm::Md5), |offered| first_supported(&offered))?;
        let key = LongTermKey::derive_by(algorithm, &credentials.username, realm, credentials.password.as_bytes());
        Ok(Self {
            credentials,
            algorithms,
            realm: realm.to_owned(),
            nonce: nonce.to_owned(),
            key,
            is_anonymous: features.username_anonymity,
            offered: offered.and_then(|_| raw(challenge, AttributeType::PASSWORD_ALGORITHMS)),
        })
    }

    /// Adopts the nonce of a 438.
    ///
    /// # Errors
    /// As in [`from_challenge`](Self::from_challenge). The session is then unchanged.
    pub fn renew(&mut self, stale: &Message<'_>) -> Result<(), Failure> {
        *self = Self::from_challenge(stale, self.credentials.clone(), self.algorithms)?;
        Ok(())
    }

    /// The realm of the server.
    #[must_use]
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// The nonce that the server sent last.
    #[must_use]
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The algorithm of the key.
    #[must_use]
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.key.algorithm()
    }

    /// Writes the attributes that authenticate a request, after its other attributes (RFC 8489 §9.2.3, §9.2.5).
    pub fn sign(&self, writer: &mut MessageWriter<'_>) {
        if self.is_anonymous {
            writer.push(&Userhash(&userhash(&self.credentials.username, &self.realm)));
        } else {
            writer.push(&Username(&self.credentials.username));
        }
        writer.push(&Realm(&self.realm));
        writer.push(&Nonce(&self.nonce));
        let Some(offered) = &self.offered else { return writer.message_integrity(self.key.as_bytes()) };
        writer.push(&RawAttribute { kind: AttributeType::PASSWORD_ALGORITHMS, value: offered });
        writer.push(&match self.key.algorithm() {
            KeyAlgorithm::Md5 => PasswordAlgorithm::MD5,
            KeyAlgorithm::Sha256 => PasswordAlgorithm::SHA256,
        });
        writer.message_integrity_sha256(self.key.as_bytes());
    }

    /// Checks that a response comes from the server, which has the same key (RFC 8489 §9.2.5).
    ///
    /// # Errors
    /// Why the client must discard the response.
    pub fn verify(&self, response: &Message<'_>) -> Result<(), Discarded> {
        let key = self.key.as_bytes();
        let status = match self.offered {
            Some(_) => response.verify_integrity_sha256(key),
            None => response.verify_integrity(key),
        };
        match status {
            IntegrityStatus::Valid => Ok(()),
            IntegrityStatus::Wrong => Err(Discarded::WrongIntegrity),
            IntegrityStatus::Absent => Err(Discarded::Unauthenticated(match response.class() {
                Class::Error => response.get::<ErrorCodeAttribute<'_>>().ok().flatten().map(|error| error.code),
                _ => None,
            })),
        }
    }
}

// The credentials are not shown.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { realm, key, .. } = self;
        f.debug_struct("Session").field("realm", realm).field("algorithm", &key.algorithm()).finish_non_exhaustive()
    }
}

fn first_supported(offered: &PasswordAlgorithms<'_>) -> Result<KeyAlgorithm, Failure> {
    let supported = |offered: PasswordAlgorithm<'_>| match offered {
        PasswordAlgorithm::MD5 => Some(KeyAlgorithm::Md5),
        PasswordAlgorithm::SHA256 => Some(KeyAlgorithm::Sha256),
        _ => None,
    };
    let none = || Failure::NoCommonAlgorithm(offered.iter().map(|offered| offered.algorithm).collect());
    offered.iter().find_map(supported).ok_or_else(none)
}

fn raw(message: &Message<'_>, kind: AttributeType) -> Option<Vec<u8>> {
    message.attributes().find(|attribute| attribute.kind == kind).map(|attribute| attribute.value.to_vec())
}
