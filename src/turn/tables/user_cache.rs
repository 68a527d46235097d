//! What the user database has said about usernames, for a limited time.
//!
//! Users and absent names have places of their own, so that a flood of made-up names evicts no user. A keyed hash of the
//! name selects a set of eight entries, which evicts the least recently used one; no client can choose the set.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;
use std::time::Duration;

use crate::auth::{Identity, LongTermKey};
use crate::turn::shared::snapshot::UserDatabase;
use crate::turn::time::{Deadline, Instant};

/// The number of absent names. With the longest names they take 1.2 MB.
const ABSENT: usize = 2048;
/// The number of entries of a set.
const WAYS: usize = 8;
/// How long an entry that could not be renewed is used before the database is asked again.
const RETRY: Duration = Duration::from_secs(10);

/// What is known about a username.
#[derive(Debug)]
pub(crate) enum Known {
    /// The database has the user. `age` is the time since it said so.
    User { identity: Rc<Identity>, age: Duration },
    /// The database does not have the user.
    Absent,
}

/// A user of the database.
struct User {
    identity: Rc<Identity>,
    /// When the database was asked.
    asked: Instant,
    /// Until then the database is not asked again.
    fresh: Deadline,
    /// Until then the entry is used if the database does not respond.
    stale: Deadline,
}

/// A name that the database does not have.
struct Absent {
    name: Box<str>,
    fresh: Deadline,
}

trait Named {
    fn name(&self) -> &str;
}

impl Named for User {
    fn name(&self) -> &str {
        self.identity.username()
    }
}

impl Named for Absent {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Sets of entries, the most recently used first.
struct Sets<T> {
    sets: Box<[[Option<T>; WAYS]]>,
    hasher: RandomState,
}

impl<T: Named> Sets<T> {
    /// Creates sets for at least this many entries.
    fn new(entries: usize) -> Self {
        Self {
            sets: (0..entries.div_ceil(WAYS)).map(|_| std::array::from_fn(|_| None)).collect(),
            hasher: RandomState::new(),
        }
    }

    fn set(&mut self, name: &str) -> Option<&mut [Option<T>; WAYS]> {
        let sets = self.sets.len() as u64;
        let at = self.hasher.hash_one(name).checked_rem(sets)?;
        self.sets.get_mut(usize::try_from(at).ok()?)
    }

    /// Returns the entry of a name, which becomes the most recently used one of its set.
    fn get(&mut self, name: &str) -> Option<&mut T> {
        let set = self.set(name)?;
        let at = set.iter().position(|entry| entry.as_ref().is_some_and(|entry| entry.name() == name))?;
        set.get_mut(..=at)?.rotate_right(1);
        set.first_mut()?.as_mut()
    }

    fn insert(&mut self, new: T) {
        let Some(set) = self.set(new.name()) else { return };
        let same = |entry: &Option<T>| entry.as_ref().is_none_or(|entry| entry.name() == new.name());
        let at = set.iter().position(same).unwrap_or(WAYS - 1);
        if let Some(moved) = set.get_mut(..=at) {
            moved.rotate_right(1);
        }
        if let Some(first) = set.first_mut() {
            *first = Some(new);
        }
    }

    fn remove(&mut self, name: &str) {
        let Some(set) = self.set(name) else { return };
        set.iter_mut().filter(|entry| entry.as_ref().is_some_and(|entry| entry.name() == name)).for_each(|entry| {
            *entry = None;
        });
    }

    fn len(&self) -> usize {
        self.sets.iter().flatten().flatten().count()
    }
}

/// What the user database has said.
pub(crate) struct UserCache {
    users: Sets<User>,
    absent: Sets<Absent>,
}

impl UserCache {
    /// Creates an empty cache for a database; without one it has no memory.
    pub(crate) fn new(settings: Option<&UserDatabase>) -> Self {
        let (users, absent) = settings.map_or((0, 0), |settings| (settings.cached_users, ABSENT));
        Self { users: Sets::new(users), absent: Sets::new(absent) }
    }

    /// Returns what is known about a username. If the database `has_failed` to respond, what was known before counts for
    /// longer.
    pub(crate) fn get(&mut self, username: &str, now: Instant, has_failed: bool) -> Option<Known> {
        let user = self.users.get(username).filter(|user| {
            let until = if has_failed { user.stale.later(user.fresh) } else { user.fresh };
            !until.has_passed(now)
        });
        if let Some(user) = user {
            return Some(Known::User { identity: Rc::clone(&user.identity), age: now.since(user.asked) });
        }
        let absent = self.absent.get(username).filter(|absent| !absent.fresh.has_passed(now));
        absent.map(|_| Known::Absent)
    }

    /// Records what the database has said about a username.
    pub(crate) fn insert(&mut self, settings: &UserDatabase, username: &str, key: Option<LongTermKey>, now: Instant) {
        let Some(key) = key else {
            self.users.remove(username);
            let fresh = Deadline::after(now, settings.absent_for);
            return self.absent.insert(Absent { name: username.into(), fresh });
        };
        self.absent.remove(username);
        let fresh = Deadline::after(now, settings.found_for);
        // A key that has not changed keeps its identity, which allocations share.
        let same = self.users.get(username).filter(|user| *user.identity.key() == key);
        let identity = match same {
            Some(user) => Rc::clone(&user.identity),
            None => Rc::new(Identity::of_database_user(username, key)),
        };
        self.users.insert(User { identity, asked: now, fresh, stale: fresh.plus(settings.stale_for) });
    }

    /// Records that the database has not responded: a user that is known from before can be used for a while without
    /// asking again.
    pub(crate) fn postpone(&mut self, username: &str, now: Instant) {
        if let Some(user) = self.users.get(username) {
            user.fresh = user.fresh.later(Deadline::after(now, RETRY).earlier(user.stale));
        }
    }

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.users.len() + self.absent.len()
    }
}

impl fmt::Debug for UserCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserCache").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::shared::snapshot::WhenUnavailable;

    fn settings(cached_users: usize) -> UserDatabase {
        UserDatabase {
            source: "test".into(),
            time_limit: Duration::from_secs(2),
            found_for: Duration::from_secs(60),
            absent_for: Duration::from_secs(10),
            stale_for: Duration::from_secs(600),
            cached_users,
            lookups_per_second: 0,
            lookups_per_second_per_source: 0,
            when_unavailable: WhenUnavailable::ServerError,
        }
    }

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    fn key(password: &str) -> LongTermKey {
        LongTermKey::derive("ann", "realm", password.as_bytes())
    }

    fn is_known(cache: &mut UserCache, name: &str, second: u64, has_failed: bool) -> bool {
        matches!(cache.get(name, at(second), has_failed), Some(Known::User { .. }))
    }

    #[test]
    fn a_user_is_known_for_a_time_and_longer_if_the_database_fails() {
        let (settings, mut cache) = (settings(16), UserCache::new(Some(&settings(16))));
        cache.insert(&settings, "ann", Some(key("one")), at(0));
        assert!(is_known(&mut cache, "ann", 59, false) && !is_known(&mut cache, "ann", 60, false));
        assert!(is_known(&mut cache, "ann", 659, true) && !is_known(&mut cache, "ann", 660, true));
        cache.postpone("ann", at(100));
        assert!(is_known(&mut cache, "ann", 109, false) && !is_known(&mut cache, "ann", 110, false));
        // Never beyond the time of stale entries.
        cache.postpone("ann", at(655));
        assert!(is_known(&mut cache, "ann", 659, false) && !is_known(&mut cache, "ann", 660, false));
    }

    #[test]
    fn a_deleted_user_is_absent_and_a_new_one_is_not() {
        let (settings, mut cache) = (settings(16), UserCache::new(Some(&settings(16))));
        cache.insert(&settings, "ann", Some(key("one")), at(0));
        cache.insert(&settings, "ann", None, at(1));
        assert!(matches!(cache.get("ann", at(2), true), Some(Known::Absent)));
        assert!(cache.get("ann", at(11), true).is_none());
        cache.insert(&settings, "ann", Some(key("two")), at(12));
        let Some(Known::User { identity, age }) = cache.get("ann", at(15), false) else { panic!("ann is known") };
        assert!(*identity.key() == key("two") && age == Duration::from_secs(3));
    }

    #[test]
    fn an_unchanged_key_keeps_its_identity() {
        let (settings, mut cache) = (settings(16), UserCache::new(Some(&settings(16))));
        let identity = |cache: &mut UserCache, second| match cache.get("ann", at(second), false) {
            Some(Known::User { identity, .. }) => identity,
            other => panic!("{other:?}"),
        };
        cache.insert(&settings, "ann", Some(key("one")), at(0));
        let first = identity(&mut cache, 0);
        cache.insert(&settings, "ann", Some(key("one")), at(50));
        assert!(Rc::ptr_eq(&first, &identity(&mut cache, 100)));
        cache.insert(&settings, "ann", Some(key("two")), at(50));
        assert!(!Rc::ptr_eq(&first, &identity(&mut cache, 100)));
    }

    #[test]
    fn entries_take_what_is_documented() {
        // The name, and the two counts of `Rc`.
        let user = size_of::<Option<User>>() + 2 * size_of::<usize>() + size_of::<Identity>() + 508;
        let absent = size_of::<Option<Absent>>() + 508;
        for (topic, bytes) in [
            ("A user of Redis in the cache of a worker", user),
            ("A name that Redis does not have, in the cache of a worker", absent),
        ] {
            let documented = crate::test_memory_table::documented(topic);
            assert!(bytes <= documented && documented < 2 * bytes, "{topic}: {bytes}");
        }
    }

    #[test]
    fn absent_names_evict_no_user_and_are_bounded() {
        let (settings, mut cache) = (settings(64), UserCache::new(Some(&settings(64))));
        cache.insert(&settings, "ann", Some(key("one")), at(0));
        for number in 0..20_000 {
            cache.insert(&settings, &number.to_string(), None, at(0));
        }
        assert!(is_known(&mut cache, "ann", 0, false));
        assert!(cache.len() <= ABSENT + 1, "{}", cache.len());
        for number in 0..20_000 {
            cache.insert(&settings, &number.to_string(), Some(key("one")), at(0));
        }
        assert!(cache.len() <= ABSENT + 64, "{}", cache.len());
        assert!(UserCache::new(None).get("ann", at(0), true).is_none());
    }
}
