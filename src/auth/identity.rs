//! Who sent a request, and whom a worker knows already.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;

use super::time_limited::{self, TimeLimitedUsername};
use super::{KeyAlgorithm, LongTermKey};

/// A user whose credential was found right. Whoever needs it shares it: name and key are in memory once.
#[derive(Debug)]
pub struct Identity {
    username: Box<str>,
    /// Where in the username the part begins that quotas go by.
    user_at: usize,
    expires: Option<u64>,
    key: LongTermKey,
    /// Which of the shared secrets made the credential; `None` for a static user.
    pub(super) secret: Option<usize>,
}

impl Identity {
    pub(super) fn of_static_user(username: &str, key: LongTermKey) -> Self {
        Self { username: username.into(), user_at: 0, expires: None, key, secret: None }
    }

    /// `parsed` is `username` taken apart.
    pub(super) fn of_credential(
        username: &str,
        parsed: TimeLimitedUsername<'_>,
        key: LongTermKey,
        secret: usize,
    ) -> Self {
        let user_at = if parsed.user.is_empty() { 0 } else { username.len() - parsed.user.len() };
        Self { username: username.into(), user_at, expires: Some(parsed.expires), key, secret: Some(secret) }
    }

    /// What the client names itself in USERNAME, without trailing NULs.
    #[must_use]
    pub fn username(&self) -> &str {
        &self.username
    }

    /// Whom quotas are counted for: the static user, or the name behind the expiry, or the whole username where there is
    /// only an expiry.
    #[must_use]
    pub fn user(&self) -> &str {
        self.username.get(self.user_at..).unwrap_or(&self.username)
    }

    /// The key under which requests are right and under which answers are signed.
    #[must_use]
    pub fn key(&self) -> &LongTermKey {
        &self.key
    }

    /// When a time-limited credential ends, in seconds since the Unix epoch; may have passed. `None` for a static user.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// Seconds since the credential expired, `Some(0)` at that very second; `None` while it lives or if it is a static
    /// user's.
    #[must_use]
    pub fn expired_for(&self, unix_now: u64) -> Option<u64> {
        self.expires.and_then(|expires| time_limited::expired_for(expires, unix_now))
    }

    /// Whether a request of this username whose key is made so may be of this identity.
    #[must_use]
    pub fn may_be(&self, username: &str, algorithm: KeyAlgorithm) -> bool {
        self.key.algorithm() == algorithm && *self.username == *username
    }
}

const SETS: usize = 256;
const WAYS: usize = 8;

/// The identities that a worker has met lately, so that a key is not derived again for every request: 2048 at most, of
/// some 150 bytes each and at worst (by the longest usernames, 508 bytes) 1.3 MB in all.
///
/// It holds only what the worker puts into it, which is to be done for a request whose sender has proved who it is. A name
/// falls into one of 256 sets of eight by a hash that nobody outside can compute; in a full set the one goes that
/// was looked up longest ago, which costs its user a derivation. As every credential takes two places at most (one for each
/// algorithm), nobody with a few of them gets the others out.
///
/// What is right does not change while an [`Authenticator`](super::Authenticator) lives. With another one, for other
/// secrets or users, goes a new cache.
pub struct KnownIdentities {
    /// Each begins with the one that sent the last request.
    sets: Box<[[Option<Rc<Identity>>; WAYS]]>,
    hasher: RandomState,
}

impl KnownIdentities {
    /// Nobody is known.
    #[must_use]
    pub fn new() -> Self {
        Self { sets: (0..SETS).map(|_| Default::default()).collect(), hasher: RandomState::new() }
    }

    /// Whose a request of this username may be that uses a key of this algorithm.
    #[must_use]
    pub fn find(&self, username: &str, algorithm: KeyAlgorithm) -> Option<&Rc<Identity>> {
        let set = self.sets.get(self.set(username, algorithm))?;
        set.iter().flatten().find(|identity| identity.may_be(username, algorithm))
    }

    /// Takes note of a request that was right in every respect.
    pub fn keep(&mut self, identity: &Rc<Identity>) {
        let (username, algorithm) = (identity.username(), identity.key.algorithm());
        let at = self.set(username, algorithm);
        let Some(set) = self.sets.get_mut(at) else { return };
        let same = |known: &Option<Rc<Identity>>| known.as_ref().is_none_or(|known| known.may_be(username, algorithm));
        let place = set.iter().position(same).unwrap_or(WAYS - 1);
        if let Some(moved) = set.get_mut(..=place) {
            moved.rotate_right(1);
        }
        if let Some(first) = set.first_mut() {
            *first = Some(Rc::clone(identity));
        }
    }

    /// How many are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.iter().flatten().flatten().count()
    }

    /// Whether nobody is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below the number of sets")]
    fn set(&self, username: &str, algorithm: KeyAlgorithm) -> usize {
        (self.hasher.hash_one((username, algorithm)) % SETS as u64) as usize
    }
}

impl Default for KnownIdentities {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for KnownIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownIdentities").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(username: &str) -> Rc<Identity> {
        Rc::new(Identity::of_static_user(username, LongTermKey::derive(username, "realm", b"password")))
    }

    #[test]
    fn who_is_known_is_found_by_name_and_algorithm() {
        let mut known = KnownIdentities::new();
        assert!(known.is_empty() && known.find("alice", KeyAlgorithm::Md5).is_none());
        let alice = identity("alice");
        known.keep(&alice);
        known.keep(&identity("bob"));
        assert!(Rc::ptr_eq(known.find("alice", KeyAlgorithm::Md5).unwrap(), &alice));
        assert!(known.find("alice", KeyAlgorithm::Sha256).is_none());
        assert!(known.find("alic", KeyAlgorithm::Md5).is_none());
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn the_last_identity_of_a_name_takes_the_place_of_another() {
        let mut known = KnownIdentities::new();
        let (first, second) = (identity("alice"), identity("alice"));
        known.keep(&first);
        known.keep(&second);
        known.keep(&second);
        assert_eq!(known.len(), 1);
        assert!(Rc::ptr_eq(known.find("alice", KeyAlgorithm::Md5).unwrap(), &second));
        assert_eq!(Rc::strong_count(&first), 1);
    }

    #[test]
    fn of_many_the_last_are_known_and_no_more_than_there_is_room_for() {
        let mut known = KnownIdentities::new();
        let names: Vec<String> = (0..4 * SETS * WAYS).map(|number| format!("user-{number}")).collect();
        names.iter().for_each(|name| known.keep(&identity(name)));
        assert!(known.len() <= SETS * WAYS && known.len() > SETS * WAYS * 9 / 10, "{}", known.len());
        // However they fall, the last eight are in one set at worst.
        assert!(names.iter().rev().take(WAYS).all(|name| known.find(name, KeyAlgorithm::Md5).is_some()));
    }

    #[test]
    fn whoever_sends_requests_is_not_put_out_by_others() {
        let mut known = KnownIdentities::new();
        let alice = identity("alice");
        known.keep(&alice);
        for number in 0..4 * SETS * WAYS {
            known.keep(&identity(&format!("user-{number}")));
            if number.is_multiple_of(SETS / 4) {
                known.keep(&alice);
            }
        }
        assert!(Rc::ptr_eq(known.find("alice", KeyAlgorithm::Md5).unwrap(), &alice));
    }

    #[test]
    fn nobody_can_tell_which_names_share_a_set() {
        let (one, other) = (KnownIdentities::new(), KnownIdentities::new());
        let sets = |known: &KnownIdentities| -> Vec<usize> {
            (0..32).map(|number| known.set(&number.to_string(), KeyAlgorithm::Md5)).collect()
        };
        assert_ne!(sets(&one), sets(&other));
    }

    #[test]
    fn debug_shows_no_name_and_no_key() {
        let mut known = KnownIdentities::new();
        known.keep(&identity("alice"));
        assert_eq!(format!("{known:?}"), "KnownIdentities { len: 1, .. }");
        assert!(format!("{:?}", identity("alice")).contains("LongTermKey(redacted)"));
    }
}
