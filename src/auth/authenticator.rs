//! Authentication of a request by its username and message integrity.

use std::collections::BTreeMap;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::time_limited::{self, Malformed, NoSecretMatched, Reading, TimeLimitedUsername};
use super::{HumanSeconds, Identity, KeyAlgorithm, LongTermKey, Revocations, Secret, SecurityFeatures, TestLink};

/// Authenticates requests with the realm, the shared secrets and the static users (RFC 8489 §9.2.4).
#[derive(Debug)]
pub struct Authenticator {
    realm: String,
    secrets: Vec<Secret>,
    users: BTreeMap<String, StaticKeys>,
    /// The name of each static user by USERHASH.
    names: BTreeMap<[u8; 32], String>,
    /// The key that a request is checked with if there is no candidate key. The response time then does not reveal
    /// which users exist. A match never authenticates a request.
    dummy_key: LongTermKey,
    /// The usernames whose credentials do not authenticate.
    revoked: Revocations,
    /// The secret of the credentials of test links.
    test_links: Option<Secret>,
    /// Whether a user database has further users.
    has_database: bool,
    /// Realms in which keys of existing allocations may have been derived.
    former_realms: Vec<String>,
}

/// Whether an identity that was authenticated earlier still has valid credentials, apart from their expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// They are those of a static user or of a shared secret.
    Valid,
    /// Neither a static user nor a shared secret has them.
    Removed,
    /// The operator has revoked the username.
    Revoked,
}

#[derive(Debug)]
struct StaticKeys {
    /// `None` if only the key is known.
    password: Option<Secret>,
    md5: LongTermKey,
    /// `None` if only the MD5 key is known.
    sha256: Option<LongTermKey>,
    /// The user's own limit on allocations.
    allocations: Option<u32>,
}

impl StaticKeys {
    fn of_password(name: &str, realm: &str, password: Secret) -> Self {
        let derive = |algorithm| LongTermKey::derive_by(algorithm, name, realm, password.as_bytes());
        let (md5, sha256) = (derive(KeyAlgorithm::Md5), Some(derive(KeyAlgorithm::Sha256)));
        Self { password: Some(password), md5, sha256, allocations: None }
    }

    fn key(&self, algorithm: KeyAlgorithm) -> Option<&LongTermKey> {
        match algorithm {
            KeyAlgorithm::Md5 => Some(&self.md5),
            KeyAlgorithm::Sha256 => self.sha256.as_ref(),
        }
    }

    /// Authenticates a request of the static user. The key of `known` has been tried. `dummy_key` is tried if the user
    /// has no key of this algorithm.
    fn authenticate(
        &self,
        username: &str,
        algorithm: KeyAlgorithm,
        known: Option<&Rc<Identity>>,
        dummy_key: &LongTermKey,
        matches: &mut dyn FnMut(&LongTermKey) -> bool,
    ) -> Result<Rc<Identity>, AuthFailure> {
        let Some(key) = self.key(algorithm) else {
            let _ = matches(dummy_key);
            return Err(AuthFailure::WrongPassword);
        };
        if known.is_none_or(|known| known.key() != key) && matches(key) {
            Ok(Rc::new(Identity::of_static_user(username, key.clone(), self.allocations)))
        } else {
            Err(AuthFailure::WrongPassword)
        }
    }
}

impl Authenticator {
    /// Creates an authenticator from the realm, the shared secrets, and the static users (name and password).
    ///
    /// If a name occurs twice, the last user is used.
    #[must_use]
    pub fn new(realm: String, secrets: Vec<Secret>, users: impl IntoIterator<Item = (String, Secret)>) -> Self {
        let users: BTreeMap<_, _> = users
            .into_iter()
            .map(|(name, password)| {
                let keys = StaticKeys::of_password(&name, &realm, password);
                (name, keys)
            })
            .collect();
        let names = users.keys().map(|name| (userhash(name, &realm), name.clone())).collect();
        let dummy_key = LongTermKey::derive("", &realm, b"");
        Self {
            realm,
            secrets,
            users,
            names,
            dummy_key,
            revoked: Revocations::default(),
            test_links: None,
            has_database: false,
            former_realms: Vec::new(),
        }
    }

    /// Adds static users of whom only the MD5 key is known, which was derived with the realm of this authenticator.
    ///
    /// While there is such a user, no password algorithms are announced: a client would choose SHA-256, for which there
    /// is no key.
    #[must_use]
    pub fn with_md5_keys(mut self, users: impl IntoIterator<Item = (String, LongTermKey)>) -> Self {
        for (name, md5) in users {
            self.names.insert(userhash(&name, &self.realm), name.clone());
            self.users.insert(name, StaticKeys { password: None, md5, sha256: None, allocations: None });
        }
        self
    }

    /// Sets the limits on allocations of static users, by name; 0 for no limit. Without one, the general limit applies.
    #[must_use]
    pub fn with_allocations<'n>(mut self, limits: impl IntoIterator<Item = (&'n str, u32)>) -> Self {
        for (name, allocations) in limits {
            if let Some(keys) = self.users.get_mut(name) {
                keys.allocations = Some(allocations);
            }
        }
        self
    }

    /// Sets the revoked usernames.
    #[must_use]
    pub fn with_revoked(self, revoked: Revocations) -> Self {
        Self { revoked, ..self }
    }

    /// Sets the secret of the credentials of test links. It makes no other credential valid.
    #[must_use]
    pub fn with_test_links(self, secret: Secret) -> Self {
        Self { test_links: Some(secret), ..self }
    }

    /// Sets that a user database has further users. Their names are not known in advance, and of each only the MD5 key is
    /// known, so neither username anonymity nor password algorithms are announced.
    #[must_use]
    pub fn with_database(self) -> Self {
        Self { has_database: true, ..self }
    }

    /// Sets the realms of earlier configurations. They matter only for [`standing`](Self::standing): a new request needs
    /// the present realm.
    #[must_use]
    pub fn with_former_realms(mut self, former_realms: Vec<String>) -> Self {
        // A client that hides its name sends the hash with the realm of its allocation.
        for realm in &former_realms {
            for name in self.users.keys() {
                self.names.entry(userhash(name, realm)).or_insert_with(|| name.clone());
            }
        }
        self.former_realms = former_realms;
        self
    }

    /// Returns the realm of all credentials.
    #[must_use]
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// Returns the features that a challenge may announce.
    ///
    /// Username anonymity is announced only if every username can be found by its hash. The username of a time-limited
    /// credential cannot. Password algorithms are announced only if every static user has a key for each. A user database
    /// rules out both.
    #[must_use]
    pub fn features(&self) -> SecurityFeatures {
        let username_anonymity = self.secrets.is_empty() && !self.users.is_empty() && !self.has_database;
        let password_algorithms = self.users.values().all(|user| user.sha256.is_some()) && !self.has_database;
        SecurityFeatures { password_algorithms, username_anonymity }
    }

    /// Returns the name of the static user with this USERHASH (RFC 8489 §14.4).
    #[must_use]
    pub fn username_for(&self, userhash: &[u8; 32]) -> Option<&str> {
        self.names.get(userhash).map(String::as_str)
    }

    /// Returns whether the configuration alone decides about requests of `username`: it is a static user, or a
    /// time-limited username for which there is a secret.
    #[must_use]
    pub fn decides_about(&self, username: &str) -> bool {
        let has_secret = |parsed: TimeLimitedUsername<'_>| self.secrets_for(parsed.user).next().is_some();
        self.users.contains_key(username) || time_limited::check_username(username).is_ok_and(has_secret)
    }

    /// Checks the message integrity of a request with a key that matches none, so that an unknown name takes as long as a
    /// wrong password.
    pub fn try_dummy_key(&self, matches: &mut dyn FnMut(&LongTermKey) -> bool) {
        let _ = matches(&self.dummy_key);
    }

    /// Authenticates a request of `username`, which is `None` if its USERHASH is unknown.
    ///
    /// `matches` returns whether the message integrity of the request is correct with a key. It is called once for each
    /// candidate: the key of the static user of that name, or else the key with each shared secret. If there is no
    /// candidate, it is called once with a dummy key, so that an unknown name takes as long as a wrong password.
    ///
    /// `known` is an identity from an earlier call. If it has the username and algorithm of the request, its key is the
    /// first candidate, and no key is derived if it matches.
    ///
    /// A correct but expired credential results in an [`Identity`], because the effect of the expiry depends on the
    /// method.
    ///
    /// # Errors
    ///
    /// The reason for the failure. The response to each is 401 (RFC 8489 §9.2.4).
    pub fn authenticate(
        &self,
        username: Option<&str>,
        algorithm: KeyAlgorithm,
        unix_now: u64,
        known: Option<&Rc<Identity>>,
        matches: &mut dyn FnMut(&LongTermKey) -> bool,
    ) -> Result<Rc<Identity>, AuthFailure> {
        let Some(username) = username else { return self.fail(AuthFailure::UnknownUserhash, matches) };
        // RFC 8489 §9.2.2: trailing NULs are not part of the name.
        let username = username.trim_end_matches('\0');
        let known = known.filter(|known| known.is_for(username, algorithm));
        let identity = match known {
            Some(known) if matches(known.key()) => Rc::clone(known),
            _ => match self.users.get(username) {
                Some(keys) => keys.authenticate(username, algorithm, known, &self.dummy_key, matches)?,
                None => self.authenticate_credential(username, algorithm, unix_now, known, matches)?,
            },
        };
        if self.revoked.covers(identity.username(), unix_now) { Err(AuthFailure::Revoked) } else { Ok(identity) }
    }

    /// Authenticates a request with a time-limited credential. The key of `known` has been tried.
    fn authenticate_credential(
        &self,
        username: &str,
        algorithm: KeyAlgorithm,
        unix_now: u64,
        known: Option<&Rc<Identity>>,
        matches: &mut dyn FnMut(&LongTermKey) -> bool,
    ) -> Result<Rc<Identity>, AuthFailure> {
        let time_limited = match time_limited::check_username(username) {
            Ok(time_limited) if self.secrets_for(time_limited.user).next().is_none() => {
                return self.fail(AuthFailure::NoSecret, matches);
            }
            Ok(time_limited) => time_limited,
            Err(malformed) => return self.fail(malformed.into(), matches),
        };
        for (secret, test_link) in self.secrets_for(time_limited.user) {
            let password = time_limited::password(secret, username);
            let key = LongTermKey::derive_by(algorithm, username, &self.realm, password.as_bytes());
            // The key is derived even if it is that of the known identity, which was tried above. A wrong password then
            // takes the same time whether the user is cached or not.
            let tried = known.is_some_and(|known| *known.key() == key);
            if !tried && matches(&key) {
                let identity = Identity::of_credential(username, time_limited, key);
                return Ok(Rc::new(test_link.into_iter().fold(identity, Identity::of_test_link)));
            }
        }
        let (tried, reading) = (self.secrets.len(), time_limited.reading);
        Err(match time_limited::expired_for(time_limited.expires, unix_now) {
            None => AuthFailure::WrongSecret { tried, reading },
            Some(ago_seconds) => AuthFailure::WrongSecretAndExpired { tried, ago_seconds, reading },
        })
    }

    /// Returns the secrets with which a credential of `user` may have been made, and the test link that it is for.
    fn secrets_for(&self, user: &str) -> impl Iterator<Item = (&Secret, Option<TestLink>)> {
        let of_link = TestLink::of_user(user).and_then(|link| Some((self.test_links.as_ref()?, Some(link))));
        self.secrets.iter().map(|secret| (secret, None)).chain(of_link)
    }

    /// Returns whether the operator has revoked a username, at `unix_now` in seconds since the Unix epoch.
    #[must_use]
    pub fn is_revoked(&self, username: &str, unix_now: u64) -> bool {
        self.revoked.covers(username, unix_now)
    }

    /// Returns whether an identity still has valid credentials. Its key may be of a former realm: a client keeps the
    /// key of its allocation.
    #[must_use]
    pub fn standing(&self, identity: &Identity) -> Standing {
        if self.revoked.covers(identity.username(), 0) {
            return Standing::Revoked;
        }
        if identity.is_of_database() && self.has_database && !self.users.contains_key(identity.username()) {
            // The next Refresh asks the database.
            return Standing::Valid;
        }
        let mut realms = std::iter::once(&self.realm).chain(&self.former_realms);
        if realms.any(|realm| self.has_key_in(realm, identity)) { Standing::Valid } else { Standing::Removed }
    }

    /// Whether a password of this configuration results in the key of an identity in a realm.
    fn has_key_in(&self, realm: &str, identity: &Identity) -> bool {
        let (username, key) = (identity.username(), identity.key());
        let has_key = |password: &[u8]| LongTermKey::derive_by(key.algorithm(), username, realm, password) == *key;
        match self.users.get(username) {
            Some(StaticKeys { password: Some(password), .. }) => has_key(password.as_bytes()),
            // The realm of a key is not known, so the key itself decides.
            Some(user) => user.md5 == *key,
            None => {
                let of_secret = |(secret, test_link): (&Secret, Option<TestLink>)| {
                    let password = time_limited::password(secret, username);
                    test_link == identity.test_link() && has_key(password.as_bytes())
                };
                time_limited::check_username(username).is_ok() && self.secrets_for(identity.user()).any(of_secret)
            }
        }
    }

    /// Returns the identity with this username and key; `None` if they are not valid credentials. Expiry is not
    /// checked. A name about which the configuration does not decide may be that of a user of the database, which the next
    /// Refresh asks.
    #[must_use]
    pub fn recognize(&self, username: &str, key: &LongTermKey) -> Option<Rc<Identity>> {
        let mut matches = |candidate: &LongTermKey| candidate == key;
        let configured = self.authenticate(Some(username), key.algorithm(), 0, None, &mut matches);
        configured.ok().or_else(|| {
            let may_be = self.has_database && !self.decides_about(username) && !self.revoked.covers(username, 0);
            may_be.then(|| Rc::new(Identity::of_database_user(username, key.clone())))
        })
    }

    fn fail<T>(&self, failure: AuthFailure, matches: &mut dyn FnMut(&LongTermKey) -> bool) -> Result<T, AuthFailure> {
        self.try_dummy_key(matches);
        Err(failure)
    }
}

/// Returns USERHASH of a username in a realm (RFC 8489 §14.4).
pub(crate) fn userhash(username: &str, realm: &str) -> [u8; 32] {
    Sha256::new().chain_update(username).chain_update(b":").chain_update(realm).finalize().into()
}

/// Why a request could not be authenticated. `Display` is the text for the log, without the username.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFailure {
    /// The username is neither that of a static user nor time-limited.
    #[error(
        "unknown user: no static user has this name, and it is neither of the form <unix expiry>:<name> nor <name>:<unix expiry>"
    )]
    UnknownUser,
    /// No static user has the USERHASH.
    #[error("unknown user: no static user has this USERHASH, and a time-limited username cannot be found by its hash")]
    UnknownUserhash,
    /// Neither the configuration nor the user database has the username.
    #[error("unknown user: neither the configuration nor the user database has a user of this name")]
    UnknownToDatabase,
    /// The user database has another key for the username.
    #[error("wrong password or realm for a user of the user database")]
    WrongDatabaseKey,
    /// The user database has not responded in time.
    #[error("the user database has not responded in time, so it is not known whether the credentials are valid")]
    DatabaseUnavailable,
    /// The expiry is in milliseconds. In seconds it would be thousands of years in the future.
    // Without the number: the log has the username, unless `log.usernames` hides it.
    #[error("the expiry seems to be in milliseconds; the application must set it in seconds")]
    ExpiryInMilliseconds {
        /// The number in the username.
        expires: u64,
    },
    /// The username is time-limited, but no secret is configured.
    #[error("the credential is time-limited, but no shared secret is configured")]
    NoSecret,
    /// The operator has revoked the username.
    #[error("the operator has revoked this username")]
    Revoked,
    /// The password of a static user is wrong.
    #[error("wrong password or realm for a static user")]
    WrongPassword,
    /// The password does not match any secret.
    #[error("{}{reading}", NoSecretMatched(*tried))]
    WrongSecret {
        /// The number of secrets tried.
        tried: usize,
        /// Which part of the username was read as the expiry.
        reading: Reading,
    },
    /// The password does not match any secret, and the credential has expired as well.
    #[error(
        "{}; in addition, the credential expired {} ago \
         (if this is unexpected, compare the clocks of the application and of this machine){reading}",
        NoSecretMatched(*tried), HumanSeconds(*ago_seconds)
    )]
    WrongSecretAndExpired {
        /// The number of secrets tried.
        tried: usize,
        /// Seconds since the expiry.
        ago_seconds: u64,
        /// Which part of the username was read as the expiry.
        reading: Reading,
    },
}

impl AuthFailure {
    /// Returns whether the user database may have the user nevertheless.
    #[must_use]
    pub fn leaves_database(self) -> bool {
        matches!(
            self,
            Self::UnknownUser
                | Self::ExpiryInMilliseconds { .. }
                | Self::NoSecret
                | Self::WrongSecret { .. }
                | Self::WrongSecretAndExpired { .. }
        )
    }
}

impl From<Malformed> for AuthFailure {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::ExpiryInMilliseconds { expires } => Self::ExpiryInMilliseconds { expires },
            _ => Self::UnknownUser,
        }
    }
}

#[cfg(test)]
mod tests;
