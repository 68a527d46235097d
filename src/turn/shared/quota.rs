//! How many allocations a user has, and how many there are, over all workers; and what a user uses of its rates.
//!
//! The one thing that workers must know of each other before they admit an allocation. Counters are words that each
//! worker changes by compare-and-swap, on the control path only; nothing waits. The data path touches one word, and only
//! where a user's bandwidth is limited: an allocation's ticket says where it is.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use zeroize::Zeroizing;

use crate::turn::rate::{Rate, SharedBucket};
use crate::turn::time::Instant;

/// Users whose fingerprints fall into the same row.
const WAYS: usize = 16;
/// Words for each allocation that there is room for: a row holds four users at most on average, and overflows for one in a
/// million.
const ROOM: usize = 4;
/// The allocations that a table is made for unless it is told: the relay ports of one address.
const ALLOCATIONS: usize = 16_384;
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
/// Buckets of one user: data to peers, data to clients, and new allocations.
const METERS: usize = 3;

/// Live allocations: per user and in all.
pub struct Quota {
    per_user: u32,
    in_all: u32,
    rates: UserRates,
    allocations: AtomicU32,
    /// Rows of [`WAYS`] words, each a user's fingerprint above [`COUNT_BITS`] bits of count; 0 is an empty word. A user
    /// without allocations keeps its place, and so what it owes to its rates, until another one needs it.
    users: Box<[AtomicU64]>,
    /// [`METERS`] for each word of `users`; none without rates.
    meters: Box<[SharedBucket]>,
    /// Nobody can choose names that share a fingerprint or crowd a row without this key.
    key: Zeroizing<[u8; 32]>,
}

/// How much one user may do in a second, over all workers; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserRates {
    /// New allocations.
    pub allocations: Option<Rate>,
    /// Application data in bytes, each direction apart.
    pub bytes: Option<Rate>,
}

/// Which way application data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToPeers,
    ToClient,
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
    /// The user's word. There is none if users are not told apart, or the row was full: then the user goes uncounted.
    word: TicketWord,
}

/// A [`Ticket`] on its way from one worker to another: the place of its user's word, counted from 1, or 0 if the user
/// goes uncounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TicketWord(pub(crate) u64);

impl Ticket {
    fn new(slot: Option<usize>) -> Self {
        Self { word: TicketWord(slot.map_or(0, |slot| slot as u64 + 1)) }
    }

    pub(crate) fn into_word(self) -> TicketWord {
        self.word
    }

    /// For what is asked of it wherever it is.
    pub(crate) fn word(&self) -> TicketWord {
        self.word
    }
}

impl TicketWord {
    /// To be called once for each ticket that was made a word.
    pub(crate) fn into_ticket(self) -> Ticket {
        Ticket { word: self }
    }

    fn slot(self) -> Option<usize> {
        usize::try_from(self.0.checked_sub(1)?).ok()
    }
}

impl Quota {
    /// Limits of 0 mean no limit. `key` comes from a secure random source.
    #[must_use]
    pub fn new(per_user: u32, in_all: u32, key: [u8; 32]) -> Self {
        Self::with_rates(per_user, in_all, UserRates::default(), ALLOCATIONS, key)
    }

    /// The same with limits for what a user may do in a second, and room for the users of so many allocations.
    #[must_use]
    pub fn with_rates(per_user: u32, in_all: u32, rates: UserRates, room: usize, key: [u8; 32]) -> Self {
        let words = (room * ROOM / WAYS).next_power_of_two() * WAYS;
        let meters = if rates == UserRates::default() { 0 } else { words * METERS };
        Self {
            per_user,
            in_all,
            rates,
            allocations: AtomicU32::new(0),
            users: zeroed(words, AtomicU64::new),
            meters: zeroed(meters, SharedBucket::new),
            key: Zeroizing::new(key),
        }
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
        // Nobody takes a word over that counts an allocation.
        if let Some(word) = ticket.word.slot().and_then(|slot| self.users.get(slot)) {
            let before = word.fetch_sub(1, Ordering::Relaxed);
            debug_assert_ne!(before & COUNT_MASK, 0, "what is released was counted");
        }
    }

    /// Whether a ticket may serve for an allocation of `user`: it is counted for them, or for nobody.
    pub(crate) fn is_of(&self, ticket: TicketWord, user: &str) -> bool {
        let Some(slot) = ticket.slot() else { return true };
        let (row, tag) = self.fingerprint(user);
        let word = self.users.get(slot).map(|word| word.load(Ordering::Relaxed));
        slot / WAYS == row && word.is_some_and(|word| word & !COUNT_MASK == tag)
    }

    /// Whether the user of a ticket may make an allocation in this second.
    pub(crate) fn admits_rate(&self, ticket: TicketWord, now: Instant) -> bool {
        self.takes(ticket.slot(), 2, self.rates.allocations.as_ref(), now, 1)
    }

    /// Whether the user of a ticket may have so many bytes relayed.
    pub(crate) fn admits_bytes(&self, ticket: &Ticket, direction: Direction, now: Instant, bytes: usize) -> bool {
        self.takes(ticket.word.slot(), direction as usize, self.rates.bytes.as_ref(), now, bytes)
    }

    /// Allocations that are counted now.
    #[must_use]
    pub fn allocations(&self) -> u32 {
        self.allocations.load(Ordering::Relaxed)
    }

    fn takes(&self, slot: Option<usize>, meter: usize, rate: Option<&Rate>, now: Instant, amount: usize) -> bool {
        let (Some(rate), Some(slot)) = (rate, slot) else { return true };
        self.meters.get(slot * METERS + meter).is_none_or(|bucket| bucket.take(rate, now, amount))
    }

    fn admit_user(&self, user: &str) -> Result<Ticket, QuotaExceeded> {
        if self.per_user == 0 && self.meters.is_empty() {
            return Ok(Ticket::new(None));
        }
        let (row, tag) = self.fingerprint(user);
        let limit = if self.per_user == 0 { COUNT_MASK } else { COUNT_MASK.min(self.per_user.into()) };
        // Another worker may take the word between the look and the swap; then look again. Two workers that see different
        // free words may both enter a new user: then the limits are passed by a few until the user's allocations end.
        loop {
            let (mut own, mut empty, mut left) = (None, None, None);
            for (slot, word) in (row * WAYS..).zip(self.row(row)) {
                match word.load(Ordering::Relaxed) {
                    0 => empty = empty.or(Some((slot, word, 0))),
                    value if value & !COUNT_MASK == tag => own = own.or(Some((slot, word, value))),
                    value if value & COUNT_MASK == 0 => left = left.or(Some((slot, word, value))),
                    _ => {}
                }
            }
            let (slot, word, old, new) = match (own, empty.or(left)) {
                (Some((_, _, value)), _) if value & COUNT_MASK >= limit => return Err(QuotaExceeded::User),
                (Some((slot, word, value)), _) => (slot, word, value, value + 1),
                (None, Some((slot, word, value))) => (slot, word, value, tag | 1),
                // Sixteen other users share the row: better to leave one uncounted than to refuse a stranger's call.
                (None, None) => return Ok(Ticket::new(None)),
            };
            if word.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                if own.is_none() {
                    // What another user owed whose place this was is forgotten.
                    self.meters.iter().skip(slot * METERS).take(METERS).for_each(SharedBucket::fill);
                }
                return Ok(Ticket::new(Some(slot)));
            }
        }
    }

    fn row(&self, row: usize) -> &[AtomicU64] {
        self.users.get(row * WAYS..(row + 1) * WAYS).unwrap_or_default()
    }

    /// The user's row, and its fingerprint, which is in place above the count bits and never 0.
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below the number of rows")]
    fn fingerprint(&self, user: &str) -> (usize, u64) {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
        let mut mac = Hmac::<Sha1>::new_from_slice(&*self.key).expect("HMAC takes keys of every length");
        mac.update(user.as_bytes());
        let digest = mac.finalize().into_bytes();
        let word = |at: usize| digest.iter().skip(at).take(8).fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
        let rows = (self.users.len() / WAYS) as u64;
        ((word(0) % rows) as usize, (word(8) & !COUNT_MASK).max(COUNT_MASK + 1))
    }

    /// The allocations that are counted for `user`.
    #[cfg(test)]
    pub(crate) fn of_user(&self, user: &str) -> u64 {
        let (row, tag) = self.fingerprint(user);
        let words = self.row(row).iter().map(|word| word.load(Ordering::Relaxed));
        words.filter(|word| word & !COUNT_MASK == tag).map(|word| word & COUNT_MASK).sum()
    }
}

/// Words of 0 that cost memory only once they are used: they come from the system as they are, and wrapping them
/// changes nothing.
fn zeroed<T>(length: usize, wrap: impl Fn(u64) -> T) -> Box<[T]> {
    vec![0; length].into_iter().map(wrap).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

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
        // What a user owes goes with it.
        let quota = metered(0);
        let [alice, bob] = ["alice", "bob"].map(|user| quota.admit(user).unwrap());
        assert!(quota.admits_bytes(&alice, Direction::ToPeers, at(0), 100));
        let [alice, bob] = [alice, bob].map(|ticket| ticket.into_word().into_ticket());
        assert!(!quota.admits_bytes(&alice, Direction::ToPeers, at(0), 1));
        assert!(quota.admits_bytes(&bob, Direction::ToPeers, at(0), 100));
        assert!(quota.is_of(bob.word(), "bob") && !quota.is_of(bob.word(), "alice"));
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

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    /// With two allocations a second and a hundred bytes, and one row.
    fn metered(per_user: u32) -> Quota {
        let rates = UserRates { allocations: Rate::new(1, 2), bytes: Rate::new(1, 100) };
        Quota::with_rates(per_user, 0, rates, 1, [7; 32])
    }

    #[test]
    fn a_user_owes_the_same_rates_on_every_ticket_and_each_direction_apart() {
        let quota = metered(0);
        let [first, second, other] = ["alice", "alice", "bob"].map(|user| quota.admit(user).unwrap());
        assert!(quota.admits_bytes(&first, Direction::ToPeers, at(0), 60));
        assert!(!quota.admits_bytes(&second, Direction::ToPeers, at(0), 60));
        assert!(quota.admits_bytes(&second, Direction::ToClient, at(0), 100));
        assert!(quota.admits_bytes(&other, Direction::ToPeers, at(0), 100));
        assert!(quota.admits_bytes(&second, Direction::ToPeers, at(20), 60));
        let [first, second, other] = [first, second, other].map(Ticket::into_word);
        assert!(quota.admits_rate(first, at(0)) && quota.admits_rate(second, at(0)));
        assert!(!quota.admits_rate(first, at(0)) && quota.admits_rate(other, at(0)));
    }

    // Otherwise whoever deletes the last allocation and makes a new one is past every limit.
    #[test]
    fn what_a_user_owes_outlasts_its_allocations_until_another_user_needs_the_place() {
        let quota = metered(1);
        let ticket = quota.admit("alice").unwrap();
        assert!(quota.admits_bytes(&ticket, Direction::ToPeers, at(0), 100));
        quota.release(ticket);
        let ticket = quota.admit("alice").unwrap();
        assert!(!quota.admits_bytes(&ticket, Direction::ToPeers, at(0), 1));
        quota.release(ticket);
        // There are fifteen other places in the row, and these take hers last.
        let others: Vec<Ticket> = (0..15).map(|user| quota.admit(&format!("user-{user}")).unwrap()).collect();
        let ticket = quota.admit("alice").unwrap();
        assert!(!quota.admits_bytes(&ticket, Direction::ToPeers, at(0), 1));
        quota.release(ticket);
        let last = quota.admit("mallory").unwrap();
        assert!(quota.admits_bytes(&last, Direction::ToPeers, at(0), 100));
        assert_eq!((quota.of_user("alice"), quota.of_user("mallory")), (0, 1));
        others.into_iter().chain([last]).for_each(|ticket| quota.release(ticket));
        assert_eq!(quota.allocations(), 0);
    }

    #[test]
    fn where_a_row_is_full_of_users_the_next_one_goes_uncounted() {
        let quota = metered(1);
        let tickets: Vec<Ticket> = (0..16).map(|user| quota.admit(&format!("user-{user}")).unwrap()).collect();
        for user in 0..16 {
            assert_eq!(quota.admit(&format!("user-{user}")).unwrap_err(), QuotaExceeded::User);
        }
        let uncounted = [(); 3].map(|()| quota.admit("one too many").unwrap());
        assert!(quota.admits_bytes(&uncounted[0], Direction::ToPeers, at(0), 1_000));
        assert_eq!(quota.allocations(), 19);
        uncounted.into_iter().chain(tickets).for_each(|ticket| quota.release(ticket));
        let ticket = quota.admit("one too many").unwrap();
        assert!(!quota.admits_bytes(&ticket, Direction::ToPeers, at(0), 1_000));
        assert_eq!(quota.allocations(), 1);
    }

    #[test]
    fn a_table_has_room_for_the_users_that_it_is_made_for() {
        let quota = Quota::with_rates(1, 0, UserRates::default(), 40_000, [7; 32]);
        let tickets: Vec<Ticket> = (0..40_000).map(|user| quota.admit(&user.to_string()).unwrap()).collect();
        assert_eq!(tickets.iter().filter(|ticket| ticket.word.slot().is_none()).count(), 0);
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
        fn counts_like_a_map(steps in prop::collection::vec((0..16u8, any::<bool>()), 1..300)) {
            // All in one row.
            let quota = Quota::with_rates(3, 20, UserRates::default(), 1, [9; 32]);
            let mut model = BTreeMap::<u8, Vec<Ticket>>::new();
            for (user, admit) in steps {
                let total: usize = model.values().map(Vec::len).sum();
                let tickets = model.entry(user).or_default();
                if admit {
                    match quota.admit(&user.to_string()) {
                        Ok(ticket) => {
                            prop_assert!(tickets.len() < 3 && total < 20);
                            tickets.push(ticket);
                        }
                        Err(QuotaExceeded::Server) => prop_assert_eq!(total, 20),
                        Err(QuotaExceeded::User) => prop_assert_eq!(tickets.len(), 3),
                    }
                } else if let Some(ticket) = tickets.pop() {
                    quota.release(ticket);
                }
                prop_assert_eq!(quota.of_user(&user.to_string()), model[&user].len() as u64);
                prop_assert_eq!(quota.allocations() as usize, model.values().map(Vec::len).sum::<usize>());
            }
        }
    }
}
