//! How many allocations a user has, and how many there are, over all workers.
//!
//! The one thing that workers must know of each other before they admit an allocation. Counters are words that each
//! worker changes by compare-and-swap, on the control path only; nothing waits.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use zeroize::Zeroizing;

/// Users whose fingerprints fall into the same bucket; with [`BUCKETS`] and as many users as a range has relay ports
/// (some 16 000) a bucket holds four on average.
const WAYS: usize = 16;
const BUCKETS: usize = 4096;
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Live allocations: per user and in all.
pub struct Quota {
    per_user: u32,
    in_all: u32,
    allocations: AtomicU32,
    /// Each word is a user's fingerprint above [`COUNT_BITS`] bits of count; 0 is an empty word.
    users: Box<[[AtomicU64; WAYS]]>,
    /// Nobody can choose names that share a fingerprint or crowd a bucket without this key.
    key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quota").field("allocations", &self.allocations()).finish_non_exhaustive()
    }
}

/// Why an allocation is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaExceeded {
    /// The user has as many allocations as one user may have.
    User,
    /// The server has as many allocations as it may have.
    Server,
}

/// An admitted allocation's place in the count. It is given back with [`Quota::release`].
#[derive(Debug)]
#[must_use = "a ticket that is dropped is never released"]
pub struct Ticket {
    /// `None` if the bucket was full and the user goes uncounted.
    user: Option<Fingerprint>,
}

/// A [`Ticket`] on its way from one worker to another: 0 if its user goes uncounted, else the user's fingerprint with
/// the bucket in the place of the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TicketWord(pub(super) u64);

impl Ticket {
    pub(super) fn into_word(self) -> TicketWord {
        TicketWord(self.user.map_or(0, |user| user.tag | user.bucket as u64))
    }
}

impl TicketWord {
    /// To be called once for each ticket that was made a word.
    pub(super) fn into_ticket(self) -> Ticket {
        let user = Fingerprint { bucket: (self.0 & COUNT_MASK) as usize, tag: self.0 & !COUNT_MASK };
        Ticket { user: (self.0 != 0).then_some(user) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    bucket: usize,
    /// Already in place above the count bits, and never 0.
    tag: u64,
}

impl Quota {
    /// Limits of 0 mean no limit. `key` comes from a secure random source.
    #[must_use]
    pub fn new(per_user: u32, in_all: u32, key: [u8; 32]) -> Self {
        let users = (0..BUCKETS).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect();
        Self { per_user, in_all, allocations: AtomicU32::new(0), users, key: Zeroizing::new(key) }
    }

    /// Counts one more allocation of `user`.
    ///
    /// # Errors
    /// If a limit is reached; then nothing is counted.
    pub fn admit(&self, user: &str) -> Result<Ticket, QuotaExceeded> {
        let limit = if self.in_all == 0 { u32::MAX } else { self.in_all };
        self.allocations
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < limit).then(|| count + 1))
            .map_err(|_| QuotaExceeded::Server)?;
        match self.admit_user(user) {
            Ok(ticket) => Ok(ticket),
            Err(exceeded) => {
                self.allocations.fetch_sub(1, Ordering::Relaxed);
                Err(exceeded)
            }
        }
    }

    /// Gives an allocation's place back.
    pub fn release(&self, ticket: Ticket) {
        self.allocations.fetch_sub(1, Ordering::Relaxed);
        let Some(user) = ticket.user else { return };
        for word in self.bucket(user) {
            let less = |value: u64| {
                let left = (value & COUNT_MASK).checked_sub(1)?;
                (value & !COUNT_MASK == user.tag).then_some(if left == 0 { 0 } else { user.tag | left })
            };
            if word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                return;
            }
        }
    }

    /// Whether a ticket may serve for an allocation of `user`: it is counted for them, or for nobody.
    pub(super) fn is_of(&self, ticket: TicketWord, user: &str) -> bool {
        ticket.into_ticket().user.is_none_or(|counted| counted == self.fingerprint(user))
    }

    /// Allocations that are counted now.
    #[must_use]
    pub fn allocations(&self) -> u32 {
        self.allocations.load(Ordering::Relaxed)
    }

    fn admit_user(&self, user: &str) -> Result<Ticket, QuotaExceeded> {
        if self.per_user == 0 {
            return Ok(Ticket { user: None });
        }
        let user = self.fingerprint(user);
        let limit = u64::from(self.per_user).min(COUNT_MASK);
        // Another worker may take the word between the look and the swap; then look again. Two workers that see different
        // empty words may both enter a new user: then the limit is passed by a few until the user's allocations end.
        loop {
            let mut empty = None;
            let mut found = None;
            for word in self.bucket(user) {
                match word.load(Ordering::Relaxed) {
                    0 => empty = empty.or(Some(word)),
                    value if value & !COUNT_MASK == user.tag => found = Some((word, value)),
                    _ => {}
                }
            }
            let (word, old, new) = match (found, empty) {
                (Some((_, value)), _) if value & COUNT_MASK >= limit => return Err(QuotaExceeded::User),
                (Some((word, value)), _) => (word, value, value + 1),
                (None, Some(word)) => (word, 0, user.tag | 1),
                // Sixteen other users share the bucket: better to leave one uncounted than to refuse a stranger's call.
                (None, None) => return Ok(Ticket { user: None }),
            };
            if word.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Ok(Ticket { user: Some(user) });
            }
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a fingerprint's bucket is below BUCKETS")]
    fn bucket(&self, user: Fingerprint) -> &[AtomicU64; WAYS] {
        &self.users[user.bucket]
    }

    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below BUCKETS")]
    fn fingerprint(&self, user: &str) -> Fingerprint {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
        let mut mac = Hmac::<Sha1>::new_from_slice(&*self.key).expect("HMAC takes keys of every length");
        mac.update(user.as_bytes());
        let digest = mac.finalize().into_bytes();
        let word = |at: usize| digest.iter().skip(at).take(8).fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
        Fingerprint { bucket: (word(0) % BUCKETS as u64) as usize, tag: (word(8) & !COUNT_MASK).max(COUNT_MASK + 1) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_user_gets_as_many_as_the_limit_and_another_user_too() {
        let quota = Quota::new(2, 0, [7; 32]);
        let first = quota.admit("alice").unwrap();
        let _second = quota.admit("alice").unwrap();
        assert_eq!(quota.admit("alice").unwrap_err(), QuotaExceeded::User);
        let _other = quota.admit("bob").unwrap();
        quota.release(first);
        assert!(quota.admit("alice").is_ok());
        assert_eq!(quota.allocations(), 3);
    }

    #[test]
    fn a_ticket_survives_being_a_word() {
        for per_user in [0, 3] {
            let quota = Quota::new(per_user, 0, [7; 32]);
            for user in ["alice", "bob", "carol"] {
                let word = quota.admit(user).unwrap().into_word();
                assert_eq!(quota.is_of(word, "dave"), per_user == 0);
                assert!(quota.is_of(word, user));
                quota.release(word.into_ticket());
                let again: Vec<Ticket> = (0..3).map(|_| quota.admit(user).unwrap()).collect();
                again.into_iter().for_each(|ticket| quota.release(ticket));
            }
            assert_eq!(quota.allocations(), 0);
        }
    }

    #[test]
    fn the_key_does_not_print() {
        assert_eq!(format!("{:?}", Quota::new(2, 0, [7; 32])), "Quota { allocations: 0, .. }");
    }

    #[test]
    fn the_limit_in_all_is_over_all_users() {
        let quota = Quota::new(0, 2, [7; 32]);
        let first = quota.admit("a").unwrap();
        let _second = quota.admit("b").unwrap();
        assert_eq!(quota.admit("c").unwrap_err(), QuotaExceeded::Server);
        quota.release(first);
        assert!(quota.admit("c").is_ok());
    }

    #[test]
    fn workers_that_count_at_once_admit_exactly_the_limit() {
        let quota = Quota::new(100, 0, [7; 32]);
        let admitted: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..200).filter_map(|_| quota.admit("alice").ok()).collect::<Vec<_>>()))
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap().len()).sum()
        });
        assert_eq!(admitted, 100);
        assert_eq!(quota.allocations(), 100);
    }

    proptest! {
        #[test]
        fn counts_like_a_map(steps in prop::collection::vec((0..6u8, any::<bool>()), 1..300)) {
            let quota = Quota::new(3, 10, [9; 32]);
            let mut model = BTreeMap::<u8, Vec<Ticket>>::new();
            for (user, admit) in steps {
                let total: usize = model.values().map(Vec::len).sum();
                let tickets = model.entry(user).or_default();
                if admit {
                    match quota.admit(&user.to_string()) {
                        Ok(ticket) => {
                            prop_assert!(tickets.len() < 3 && total < 10);
                            tickets.push(ticket);
                        }
                        Err(QuotaExceeded::Server) => prop_assert_eq!(total, 10),
                        Err(QuotaExceeded::User) => prop_assert_eq!(tickets.len(), 3),
                    }
                } else if let Some(ticket) = tickets.pop() {
                    quota.release(ticket);
                }
                prop_assert_eq!(quota.allocations() as usize, model.values().map(Vec::len).sum::<usize>());
            }
        }
    }
}
