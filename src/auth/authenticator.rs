//! From a username and an integrity check to an identity.

use std::collections::BTreeMap;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::time_limited::{self, Malformed, NoneOf};
use super::{HumanSeconds, Identity, KeyAlgorithm, LongTermKey, Secret, SecurityFeatures};

/// Knows the realm, the shared secrets and the static users, and says who sent a request (RFC 8489 §9.2.4).
#[derive(Debug)]
pub struct Authenticator {
    realm: String,
    secrets: Vec<Secret>,
    users: BTreeMap<String, StaticKeys>,
    /// The names of the static users by their USERHASH.
    names: BTreeMap<[u8; 32], String>,
    /// What the integrity of a request is compared with if nobody could have sent it, so that the time that the answer
    /// takes does not tell which users there are. Nobody is let in by it.
    nobody: LongTermKey,
}

#[derive(Debug)]
struct StaticKeys {
    md5: LongTermKey,
    sha256: LongTermKey,
}

impl Authenticator {
    /// Builds it from the realm, the shared secrets and the static users (name, password). Of two users of one
    /// name the last counts.
    #[must_use]
    pub fn new(realm: String, secrets: Vec<Secret>, users: impl IntoIterator<Item = (String, Secret)>) -> Self {
        let users: BTreeMap<_, _> = users
            .into_iter()
            .map(|(name, password)| {
                let derive = |algorithm| LongTermKey::derive_by(algorithm, &name, &realm, password.as_bytes());
                let keys = StaticKeys { md5: derive(KeyAlgorithm::Md5), sha256: derive(KeyAlgorithm::Sha256) };
                (name, keys)
            })
            .collect();
        let names = users.keys().map(|name| (userhash(name, &realm), name.clone())).collect();
        let nobody = LongTermKey::derive("", &realm, b"");
        Self { realm, secrets, users, names, nobody }
    }

    /// The realm of every credential.
    #[must_use]
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// What a challenge may announce: clients are invited to hide their names only where every name can be found from
    /// its hash, and a time-limited one cannot.
    #[must_use]
    pub fn features(&self) -> SecurityFeatures {
        let username_anonymity = self.secrets.is_empty() && !self.users.is_empty();
        SecurityFeatures { password_algorithms: true, username_anonymity }
    }

    /// The static user with this USERHASH (RFC 8489 §14.4).
    #[must_use]
    pub fn name_of(&self, userhash: &[u8; 32]) -> Option<&str> {
        self.names.get(userhash).map(String::as_str)
    }

    /// Finds out whose a request of `username` is; `None` stands for a USERHASH of nobody. `matches` says whether its
    /// integrity is right under a key; it is called once for each candidate: the key of the static user of that name if
    /// there is one, else the key under each shared secret. Where there is no candidate it is called once all the same,
    /// so that a wrong name takes as long as a wrong password.
    ///
    /// `known` is an identity from an earlier call. If it may be that of the request its key is the first candidate, and
    /// if that is right, nothing is derived.
    ///
    /// A right but expired credential is an [`Identity`], not a failure: what an expiry means depends on the method.
    ///
    /// # Errors
    ///
    /// Why it is nobody's; RFC 8489 §9.2.4 has a 401 for all of them.
    pub fn authenticate(
        &self,
        username: Option<&str>,
        algorithm: KeyAlgorithm,
        unix_now: u64,
        known: Option<&Rc<Identity>>,
        matches: &mut dyn FnMut(&LongTermKey) -> bool,
    ) -> Result<Rc<Identity>, AuthFailure> {
        let Some(username) = username else { return self.refuse(AuthFailure::UnknownUserhash, matches) };
        // RFC 8489 §9.2.2: trailing NULs are no part of the name
        let username = username.trim_end_matches('\0');
        let known = known.filter(|known| known.may_be(username, algorithm));
        if let Some(known) = known
            && matches(known.key())
        {
            return Ok(Rc::clone(known));
        }
        if let Some(keys) = self.users.get(username) {
            let key = match algorithm {
                KeyAlgorithm::Md5 => &keys.md5,
                KeyAlgorithm::Sha256 => &keys.sha256,
            };
            return if known.is_none() && matches(key) {
                Ok(Rc::new(Identity::of_static_user(username, key.clone())))
            } else {
                Err(AuthFailure::WrongPassword)
            };
        }

        let time_limited = match time_limited::check_username(username) {
            Ok(_) if self.secrets.is_empty() => return self.refuse(AuthFailure::NoSecret, matches),
            Ok(time_limited) => time_limited,
            Err(malformed) => return self.refuse(malformed.into(), matches),
        };
        for (at, secret) in self.secrets.iter().enumerate() {
            let password = time_limited::password(secret, username);
            let key = LongTermKey::derive_by(algorithm, username, &self.realm, password.as_bytes());
            // The key of the known one has been tried. It is derived all the same: a wrong password takes as long for a user
            // who is known here as for another one.
            let tried = known.is_some_and(|known| known.secret == Some(at));
            if !tried && matches(&key) {
                return Ok(Rc::new(Identity::of_credential(username, time_limited, key, at)));
            }
        }
        let tried = self.secrets.len();
        Err(match time_limited::expired_for(time_limited.expires, unix_now) {
            None => AuthFailure::WrongSecret { tried },
            Some(ago_seconds) => AuthFailure::WrongSecretAndExpired { tried, ago_seconds },
        })
    }

    fn refuse<T>(&self, failure: AuthFailure, matches: &mut dyn FnMut(&LongTermKey) -> bool) -> Result<T, AuthFailure> {
        let _ = matches(&self.nobody);
        Err(failure)
    }
}

fn userhash(username: &str, realm: &str) -> [u8; 32] {
    Sha256::new().chain_update(username).chain_update(b":").chain_update(realm).finalize().into()
}

/// Why a request is nobody's. `Display` is a sentence for the operator's log, without the username.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFailure {
    /// Neither a static user nor of the time-limited form.
    #[error("unknown user: no static user has that name, and it is not <unix expiry>:<name>")]
    UnknownUser,
    /// A USERHASH that is no static user's.
    #[error(
        "unknown user: no static user has that USERHASH, and a time-limited username cannot be found from its hash"
    )]
    UnknownUserhash,
    /// Of the form `<name>:<unix expiry>`.
    #[error("unknown user: the expiry stands behind the name, the username has to be <unix expiry>:<name>")]
    ExpiryBehindName,
    /// The expiry is in milliseconds; as seconds it would be thousands of years ahead.
    #[error("the expiry {expires} looks like milliseconds; the application has to make it in seconds")]
    ExpiryInMilliseconds {
        /// The number as it stands in the username.
        expires: u64,
    },
    /// Of the time-limited form, but no secret is configured.
    #[error("the credential is time-limited, but no shared secret is configured")]
    NoSecret,
    /// A static user with another password.
    #[error("wrong password (or realm) for a static user")]
    WrongPassword,
    /// None of the secrets made the credential.
    #[error("{}", NoneOf(*tried))]
    WrongSecret {
        /// How many secrets were tried.
        tried: usize,
    },
    /// None of the secrets made the credential, and its time is over as well.
    #[error(
        "{}; besides, the credential expired {} ago \
         (if it should not have, compare the clocks of the application and of this machine)",
        NoneOf(*tried), HumanSeconds(*ago_seconds)
    )]
    WrongSecretAndExpired {
        /// How many secrets were tried.
        tried: usize,
        /// Seconds since the expiry.
        ago_seconds: u64,
    },
}

impl From<Malformed> for AuthFailure {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::ExpiryBehindName => Self::ExpiryBehindName,
            Malformed::ExpiryInMilliseconds { expires } => Self::ExpiryInMilliseconds { expires },
            _ => Self::UnknownUser,
        }
    }
}

#[cfg(test)]
mod tests;
