//! The usernames that the operator has revoked.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Revoked usernames, each until a time. A copy is cheap.
#[derive(Clone, Default)]
pub struct Revocations(Arc<BTreeMap<Box<str>, u64>>);

/// No more usernames can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} usernames are revoked already, which is the greatest number", Revocations::CAPACITY)]
pub struct TooManyRevocations;

impl Revocations {
    /// The greatest number of usernames.
    pub const CAPACITY: usize = 10_000;

    /// Revokes a username until `until`, in seconds since the Unix epoch. It replaces an earlier revocation of the
    /// username, and ends it if `until` has passed.
    ///
    /// # Errors
    /// If there are too many.
    pub fn revoke(&mut self, username: &str, until: u64, unix_now: u64) -> Result<(), TooManyRevocations> {
        let revoked = Arc::make_mut(&mut self.0);
        revoked.retain(|_, until| *until > unix_now);
        if until <= unix_now {
            revoked.remove(username);
            return Ok(());
        }
        if revoked.len() >= Self::CAPACITY && !revoked.contains_key(username) {
            return Err(TooManyRevocations);
        }
        revoked.insert(username.into(), until);
        Ok(())
    }

    /// Returns these revocations together with further ones, whose number the caller limits. Of two of a username, the later
    /// end counts.
    #[must_use]
    pub fn with<'u>(&self, further: impl IntoIterator<Item = (&'u str, u64)>, unix_now: u64) -> Self {
        let mut all = self.at(unix_now);
        let revoked = Arc::make_mut(&mut all.0);
        for (username, until) in further.into_iter().filter(|(_, until)| *until > unix_now) {
            let known = revoked.entry(username.into()).or_default();
            *known = (*known).max(until);
        }
        all
    }

    /// Returns the revocations that have not ended.
    #[must_use]
    pub fn at(&self, unix_now: u64) -> Self {
        if self.0.values().all(|until| *until > unix_now) {
            return self.clone();
        }
        let live = self.0.iter().filter(|(_, until)| **until > unix_now);
        Self(Arc::new(live.map(|(username, until)| (username.clone(), *until)).collect()))
    }

    /// Whether a username is revoked.
    #[must_use]
    pub fn covers(&self, username: &str, unix_now: u64) -> bool {
        self.0.get(username).is_some_and(|until| *until > unix_now)
    }
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revocations").field("len", &self.0.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_username_is_revoked_until_its_time() {
        let mut revoked = Revocations::default();
        revoked.revoke("500:ann", 500, 100).unwrap();
        assert!(revoked.covers("500:ann", 100) && revoked.covers("500:ann", 499));
        assert!(!revoked.covers("500:ann", 500) && !revoked.covers("500:bob", 100));
        assert!(revoked.at(499).covers("500:ann", 0) && !revoked.at(500).covers("500:ann", 0));
    }

    #[test]
    fn a_time_that_has_passed_ends_a_revocation() {
        let mut revoked = Revocations::default();
        revoked.revoke("500:ann", 500, 100).unwrap();
        revoked.revoke("500:ann", 100, 100).unwrap();
        assert!(!revoked.covers("500:ann", 100));
    }

    #[test]
    fn further_ones_add_to_them_also_above_the_limit() {
        let mut own = Revocations::default();
        own.revoke("ann", 500, 100).unwrap();
        let further: Vec<String> = (0..Revocations::CAPACITY).map(|number| number.to_string()).collect();
        let all = own.with(further.iter().map(|name| (name.as_str(), 300)).chain([("ann", 400), ("bob", 100)]), 100);
        assert!(all.covers("ann", 499) && all.covers("7", 299) && !all.covers("bob", 100));
        assert_eq!(all.0.len(), Revocations::CAPACITY + 1);
    }

    #[test]
    fn the_number_is_limited_and_expired_ones_make_room() {
        let mut revoked = Revocations::default();
        for number in 0..Revocations::CAPACITY {
            revoked.revoke(&number.to_string(), 500, 100).unwrap();
        }
        assert_eq!(revoked.revoke("one more", 900, 499), Err(TooManyRevocations));
        assert_eq!(revoked.revoke("7", 900, 499), Ok(()));
        assert_eq!(revoked.revoke("one more", 900, 500), Ok(()));
        assert_eq!(revoked.0.len(), 2);
    }
}
