//! Authenticated users, and the cache of them.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;

use super::time_limited::{self, Reading, TimeLimitedUsername};
use super::{KeyAlgorithm, LongTermKey, TestLink};

/// An authenticated user. It is shared with [`Rc`], so that name and key are in memory once.
#[derive(Debug)]
pub struct Identity {
    username: Box<str>,
    /// The byte offset of [`Self::user`] in the username, and its length.
    user_start: u16,
    user_len: u16,
    /// The expiry of a time-limited credential, and which part of the username was read as the expiry.
    expiry: Option<(u64, Reading)>,
    /// The limit on allocations that replaces the general one.
    own_allocations: Option<u32>,
    test_link: Option<TestLink>,
    /// Whether the key comes from the user database.
    of_database: bool,
    key: LongTermKey,
}

impl Identity {
    pub(super) fn of_static_user(username: &str, key: LongTermKey, own_allocations: Option<u32>) -> Self {
        let user_len = short(username.len());
        Self {
            username: username.into(),
            user_start: 0,
            user_len,
            expiry: None,
            own_allocations,
            test_link: None,
            of_database: false,
            key,
        }
    }

    /// Returns the identity of a user of the user database.
    #[must_use]
    pub fn of_database_user(username: &str, key: LongTermKey) -> Self {
        Self { of_database: true, ..Self::of_static_user(username, key, None) }
    }

    /// `parsed` is the parsed `username`.
    pub(super) fn of_credential(username: &str, parsed: TimeLimitedUsername<'_>, key: LongTermKey) -> Self {
        let (user_start, user_len) = match (parsed.user.len(), parsed.reading) {
            (0, _) => (0, username.len()),
            (length, Reading::ExpiryLast) => (0, length),
            (length, Reading::ExpiryFirst | Reading::Ambiguous) => (username.len() - length, length),
        };
        let (user_start, user_len) = (short(user_start), short(user_len));
        // All clients may share a username without a name.
        let own_allocations = parsed.user.is_empty().then_some(0);
        let expiry = Some((parsed.expires, parsed.reading));
        Self {
            username: username.into(),
            user_start,
            user_len,
            expiry,
            own_allocations,
            test_link: None,
            of_database: false,
            key,
        }
    }

    pub(super) fn of_test_link(self, test_link: TestLink) -> Self {
        Self { test_link: Some(test_link), own_allocations: Some(TestLink::ALLOCATIONS), ..self }
    }

    /// Returns the value of USERNAME without trailing NULs.
    #[must_use]
    pub fn username(&self) -> &str {
        &self.username
    }

    /// Returns the user to whom quotas apply: the static user or the name beside the expiry. Without a name it is the
    /// whole username.
    #[must_use]
    pub fn user(&self) -> &str {
        let rest = self.username.get(usize::from(self.user_start)..);
        let user = rest.and_then(|rest| rest.get(..usize::from(self.user_len)));
        user.unwrap_or(&self.username)
    }

    /// Returns the user's own limit on allocations, which replaces the general one; 0 for no limit. A static user may
    /// have one, and the user of a test link has one. A time-limited credential without a name has no limit, because its
    /// username identifies no user.
    #[must_use]
    pub fn own_allocations(&self) -> Option<u32> {
        self.own_allocations
    }

    /// Returns the test link of which this is the user.
    #[must_use]
    pub fn test_link(&self) -> Option<TestLink> {
        self.test_link
    }

    /// Returns whether the key comes from the user database. It is valid only as long as the database has it.
    #[must_use]
    pub fn is_of_database(&self) -> bool {
        self.of_database
    }

    /// Returns the key for the message integrity of requests and responses.
    #[must_use]
    pub fn key(&self) -> &LongTermKey {
        &self.key
    }

    /// Returns when a time-limited credential expires, in seconds since the Unix epoch. The time can be in the past.
    /// `None` for a static user.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.expiry.map(|(expires, _)| expires)
    }

    /// Returns which part of the username was read as the expiry.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.expiry.map_or(Reading::ExpiryFirst, |(_, reading)| reading)
    }

    /// Returns the seconds since the credential expired, `Some(0)` in the second of the expiry. `None` if it has not
    /// expired, and for a static user.
    #[must_use]
    pub fn expired_for(&self, unix_now: u64) -> Option<u64> {
        self.expires().and_then(|expires| time_limited::expired_for(expires, unix_now))
    }

    /// Returns whether a request with this username and key algorithm can be of this identity.
    #[must_use]
    pub fn is_for(&self, username: &str, algorithm: KeyAlgorithm) -> bool {
        self.key.algorithm() == algorithm && *self.username == *username
    }
}

/// Converts an offset. The length of an attribute has 16 bits.
fn short(offset: usize) -> u16 {
    u16::try_from(offset).unwrap_or(u16::MAX)
}

const SETS: usize = 256;
const WAYS: usize = 8;

/// A cache of authenticated identities, so that the key is not derived again for every request.
///
/// It holds at most 2048 identities. An identity takes about 150 bytes. With the longest usernames (763 bytes), the
/// whole cache takes 1.8 MB. The caller inserts an identity only after it has authenticated a request.
///
/// A keyed hash of username and algorithm selects one of 256 sets of eight entries. A full set evicts the least
/// recently used entry, whose key then has to be derived again. A credential has at most two entries, one per
/// algorithm, and a client cannot compute the hash. A client with a few credentials therefore cannot evict the entries
/// of others.
///
/// Entries are valid for one [`Authenticator`](super::Authenticator). An authenticator with other secrets or users
/// needs a new cache.
pub struct IdentityCache {
    /// The entries of each set, the most recently used first.
    sets: Box<[[Option<Rc<Identity>>; WAYS]]>,
    hasher: RandomState,
}

impl IdentityCache {
    /// Creates an empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self { sets: (0..SETS).map(|_| Default::default()).collect(), hasher: RandomState::new() }
    }

    /// Returns the identity with this username and key algorithm.
    #[must_use]
    pub fn get(&self, username: &str, algorithm: KeyAlgorithm) -> Option<&Rc<Identity>> {
        let set = self.sets.get(self.set(username, algorithm))?;
        set.iter().flatten().find(|identity| identity.is_for(username, algorithm))
    }

    /// Inserts the identity of an authenticated request, or moves it to the front of its set.
    pub fn insert(&mut self, identity: &Rc<Identity>) {
        let (username, algorithm) = (identity.username(), identity.key.algorithm());
        let index = self.set(username, algorithm);
        let Some(set) = self.sets.get_mut(index) else { return };
        let same = |known: &Option<Rc<Identity>>| known.as_ref().is_none_or(|known| known.is_for(username, algorithm));
        let place = set.iter().position(same).unwrap_or(WAYS - 1);
        if let Some(moved) = set.get_mut(..=place) {
            moved.rotate_right(1);
        }
        if let Some(first) = set.first_mut() {
            *first = Some(Rc::clone(identity));
        }
    }

    /// Returns the number of identities.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.iter().flatten().flatten().count()
    }

    /// Returns whether the cache is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below the number of sets")]
    fn set(&self, username: &str, algorithm: KeyAlgorithm) -> usize {
        (self.hasher.hash_one((username, algorithm)) % SETS as u64) as usize
    }
}

impl Default for IdentityCache {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for IdentityCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityCache").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(username: &str) -> Rc<Identity> {
        Rc::new(Identity::of_static_user(username, LongTermKey::derive(username, "realm", b"password"), None))
    }

    #[test]
    fn an_identity_is_found_by_name_and_algorithm() {
        let mut known = IdentityCache::new();
        assert!(known.is_empty() && known.get("alice", KeyAlgorithm::Md5).is_none());
        let alice = identity("alice");
        known.insert(&alice);
        known.insert(&identity("bob"));
        assert!(Rc::ptr_eq(known.get("alice", KeyAlgorithm::Md5).unwrap(), &alice));
        assert!(known.get("alice", KeyAlgorithm::Sha256).is_none());
        assert!(known.get("alic", KeyAlgorithm::Md5).is_none());
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn an_identity_replaces_another_of_the_same_name() {
        let mut known = IdentityCache::new();
        let (first, second) = (identity("alice"), identity("alice"));
        known.insert(&first);
        known.insert(&second);
        known.insert(&second);
        assert_eq!(known.len(), 1);
        assert!(Rc::ptr_eq(known.get("alice", KeyAlgorithm::Md5).unwrap(), &second));
        assert_eq!(Rc::strong_count(&first), 1);
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_the_last_identities() {
        let mut known = IdentityCache::new();
        let names: Vec<String> = (0..4 * SETS * WAYS).map(|number| format!("user-{number}")).collect();
        names.iter().for_each(|name| known.insert(&identity(name)));
        assert!(known.len() <= SETS * WAYS && known.len() > SETS * WAYS * 9 / 10, "{}", known.len());
        // The last eight are found even if all of them are in one set.
        assert!(names.iter().rev().take(WAYS).all(|name| known.get(name, KeyAlgorithm::Md5).is_some()));
    }

    #[test]
    fn an_active_user_is_not_evicted_by_others() {
        let mut known = IdentityCache::new();
        let alice = identity("alice");
        known.insert(&alice);
        for number in 0..4 * SETS * WAYS {
            known.insert(&identity(&format!("user-{number}")));
            if number.is_multiple_of(SETS / 4) {
                known.insert(&alice);
            }
        }
        assert!(Rc::ptr_eq(known.get("alice", KeyAlgorithm::Md5).unwrap(), &alice));
    }

    #[test]
    fn the_set_of_a_name_is_not_predictable() {
        let (one, other) = (IdentityCache::new(), IdentityCache::new());
        let sets = |known: &IdentityCache| -> Vec<usize> {
            (0..32).map(|number| known.set(&number.to_string(), KeyAlgorithm::Md5)).collect()
        };
        assert_ne!(sets(&one), sets(&other));
    }

    #[test]
    fn debug_shows_no_name_and_no_key() {
        let mut known = IdentityCache::new();
        known.insert(&identity("alice"));
        assert_eq!(format!("{known:?}"), "IdentityCache { len: 1, .. }");
        assert!(format!("{:?}", identity("alice")).contains("LongTermKey(redacted)"));
    }
}
