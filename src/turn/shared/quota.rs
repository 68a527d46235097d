//! The number of allocations of all workers, per user and in total, and the rate usage of each user.
//!
//! Counters are atomic words. Workers change them by compare-and-swap when allocations begin and end, without locks.
//! The data path changes one word, and only if the bandwidth of users is limited. It finds this word by the index in
//! the ticket of the allocation.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use zeroize::Zeroizing;

use crate::turn::rate::{Rate, SharedBucket};
use crate::turn::time::Instant;

/// The number of words in a row. The hash of a user selects the row.
const WAYS: usize = 16;
/// The number of words in the table for each allocation of its capacity. A row has at most four users on average, and
/// one row in a million overflows.
const ROOM: usize = 4;
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
/// The number of buckets of one user: data to peers, data to clients, and new allocations.
const METERS: usize = 3;

/// The number of allocations, in total and per user. Limits and rates are arguments, because a reload may change them.
pub struct Quota {
    allocations: AtomicU32,
    /// Rows of [`WAYS`] words. A word has a user's fingerprint above [`COUNT_BITS`] bits of count; 0 is an empty word.
    /// A user without allocations keeps its word and its rate usage until another user needs the word.
    users: Box<[AtomicU64]>,
    /// [`METERS`] buckets for each word of `users`.
    meters: Box<[SharedBucket]>,
    /// Whether a rate was ever applied. Until then every meter is full, and its memory stays untouched.
    metered: AtomicBool,
    /// The share of each user of limits that apply to several servers together, for each word of `users`; 0 is none.
    shares: Box<[AtomicU64]>,
    /// The share of users without one; 0 if limits apply to this server alone.
    first_share: AtomicU64,
    /// A client that does not know the key cannot choose names that share a fingerprint or fill a row.
    key: Zeroizing<[u8; 32]>,
}

/// The rates of one user, over all workers; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserRates {
    /// New allocations.
    pub allocations: Option<Rate>,
    /// Application data in bytes, per direction.
    pub bytes: Option<Rate>,
}

/// The direction of application data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the client to its peers.
    ToPeers,
    /// From peers to the client.
    ToClient,
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quota").field("allocations", &self.allocations()).finish_non_exhaustive()
    }
}

/// What a user may use here of limits that apply to several servers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserShare {
    /// The number of allocations.
    pub allocations: u32,
    /// The part of the bytes per second, in millionths, at least 1.
    pub bytes: u32,
}

impl UserShare {
    /// What [`bytes`](Self::bytes) is a part of.
    const WHOLE: u64 = 1_000_000;

    /// Returns the share as a word, which is not 0.
    fn to_word(self) -> u64 {
        (u64::from(self.allocations) << 32) | u64::from(self.bytes.max(1))
    }

    #[expect(clippy::cast_possible_truncation, reason = "a word has two numbers of 32 bits")]
    fn from_word(word: u64) -> Self {
        Self { allocations: (word >> 32) as u32, bytes: word as u32 }
    }
}

/// The limit that an allocation would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaExceeded {
    /// The user has as many allocations as one user may have.
    User,
    /// The server has as many allocations as it may have.
    Server,
}

/// The place of one allocation in the quota. Dropping the ticket releases the place.
#[derive(Debug)]
#[must_use = "dropping a ticket releases the place"]
pub struct Ticket {
    quota: Arc<Quota>,
    /// `None` once the place has moved into a [`TicketWord`].
    word: Option<TicketWord>,
}

/// A [`Ticket`] as a word, which workers can exchange: 1 if its user is not counted, else the index of the user's word
/// plus 2. Dropping it does not release the place. [`Quota::ticket`] converts it back to a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TicketWord(NonZeroU64);

impl Ticket {
    /// Converts the ticket to a word, which keeps the place.
    pub(crate) fn into_word(mut self) -> TicketWord {
        self.word.take().unwrap_or(TicketWord::UNCOUNTED)
    }

    /// Returns the word without giving up the place.
    pub(crate) fn word(&self) -> TicketWord {
        self.word.unwrap_or(TicketWord::UNCOUNTED)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(word) = self.word {
            self.quota.release(word);
        }
    }
}

impl TicketWord {
    const UNCOUNTED: Self = Self(NonZeroU64::MIN);

    fn of(slot: Option<usize>) -> Self {
        Self(slot.map_or(NonZeroU64::MIN, |slot| NonZeroU64::MIN.saturating_add(slot as u64 + 1)))
    }

    fn slot(self) -> Option<usize> {
        usize::try_from(self.0.get().checked_sub(2)?).ok()
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0.get()
    }

    /// Returns the word with these bits, from [`to_bits`](Self::to_bits).
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(NonZeroU64::new(bits).unwrap_or(NonZeroU64::MIN))
    }
}

impl Quota {
    /// Creates a quota without allocations, with room for the users of `room` allocations. `key` comes from a secure
    /// random source.
    #[must_use]
    pub fn new(room: usize, key: [u8; 32]) -> Self {
        let words = (room * ROOM / WAYS).next_power_of_two() * WAYS;
        Self {
            allocations: AtomicU32::new(0),
            users: zeroed(words, AtomicU64::new),
            meters: zeroed(words * METERS, SharedBucket::new),
            metered: AtomicBool::new(false),
            shares: zeroed(words, AtomicU64::new),
            first_share: AtomicU64::new(0),
            key: Zeroizing::new(key),
        }
    }

    /// Counts one more allocation of `user`, unless the user has `per_user` or the server has `in_all`; 0 is no limit. A
    /// share of a limit over several servers does not concern it.
    ///
    /// # Errors
    /// If a limit is reached. Then nothing is counted.
    pub fn admit(self: &Arc<Self>, user: &str, per_user: u32, in_all: u32) -> Result<Ticket, QuotaExceeded> {
        self.admit_with(user, per_user, in_all, false)
    }

    /// Like [`admit`](Self::admit), but the user has no more than its share of `per_user`, if there are shares.
    ///
    /// # Errors
    /// If a limit is reached. Then nothing is counted.
    pub fn admit_shared(self: &Arc<Self>, user: &str, per_user: u32, in_all: u32) -> Result<Ticket, QuotaExceeded> {
        self.admit_with(user, per_user, in_all, per_user != 0)
    }

    fn admit_with(
        self: &Arc<Self>,
        user: &str,
        per_user: u32,
        in_all: u32,
        is_shared: bool,
    ) -> Result<Ticket, QuotaExceeded> {
        let limit = if in_all == 0 { u32::MAX } else { in_all };
        self.allocations
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < limit).then(|| count + 1))
            .map_err(|_| QuotaExceeded::Server)?;
        match self.admit_user(user, per_user, is_shared) {
            Ok(word) => Ok(self.ticket(word)),
            Err(exceeded) => {
                self.allocations.fetch_sub(1, Ordering::Relaxed);
                Err(exceeded)
            }
        }
    }

    /// Returns whether `user` has as many allocations as `per_user` permits; 0 is no limit.
    pub(crate) fn is_full(&self, user: &str, per_user: u32) -> bool {
        let (row, tag) = self.fingerprint(user);
        let count = |word: &AtomicU64| {
            let word = word.load(Ordering::Relaxed);
            if word & !COUNT_MASK == tag { word & COUNT_MASK } else { 0 }
        };
        per_user != 0 && self.row(row).iter().map(count).max().unwrap_or_default() >= per_user.into()
    }

    /// Converts a word back to a ticket. Call it once for each ticket that was converted.
    pub(crate) fn ticket(self: &Arc<Self>, word: TicketWord) -> Ticket {
        Ticket { quota: Arc::clone(self), word: Some(word) }
    }

    fn release(&self, word: TicketWord) {
        self.allocations.fetch_sub(1, Ordering::Relaxed);
        // A word that counts an allocation is never taken over by another user.
        if let Some(word) = word.slot().and_then(|slot| self.users.get(slot)) {
            let before = word.fetch_sub(1, Ordering::Relaxed);
            debug_assert_ne!(before & COUNT_MASK, 0, "every released place was counted");
        }
    }

    /// Whether the place of a ticket is counted for `user`, or for no user.
    pub(crate) fn is_of(&self, ticket: TicketWord, user: &str) -> bool {
        let Some(slot) = ticket.slot() else { return true };
        let (row, tag) = self.fingerprint(user);
        let word = self.users.get(slot).map(|word| word.load(Ordering::Relaxed));
        slot / WAYS == row && word.is_some_and(|word| word & !COUNT_MASK == tag)
    }

    /// Whether the user of a ticket may make an allocation now.
    pub(crate) fn admits_rate(&self, ticket: TicketWord, rate: Option<&Rate>, now: Instant) -> bool {
        self.takes(ticket.slot(), 2, rate, now, 1)
    }

    /// Whether `bytes` of application data of the user of a ticket may be relayed now.
    pub(crate) fn admits_bytes(
        &self,
        ticket: &Ticket,
        direction: Direction,
        rate: Option<&Rate>,
        now: Instant,
        bytes: usize,
    ) -> bool {
        if rate.is_none() {
            return true;
        }
        let slot = ticket.word().slot();
        let weighted = usize::try_from(self.weighted(slot, bytes as u64)).unwrap_or(usize::MAX);
        self.takes(slot, direction as usize, rate, now, weighted)
    }

    /// Gives back bytes that [`admits_bytes`](Self::admits_bytes) has charged.
    pub(crate) fn refund_bytes(&self, ticket: &Ticket, direction: Direction, rate: Option<&Rate>, bytes: u64) {
        let (Some(rate), Some(slot)) = (rate, ticket.word().slot()) else { return };
        if let Some(bucket) = self.meters.get(slot * METERS + direction as usize) {
            bucket.give_back(rate, self.weighted(Some(slot), bytes));
        }
    }

    /// Sets what each user may use here whose share is not known. `None`: limits apply to this server alone.
    pub fn set_first_share(&self, first: Option<UserShare>) {
        self.first_share.store(first.map_or(0, UserShare::to_word), Ordering::Relaxed);
    }

    /// Whether limits apply to several servers together.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.first_share.load(Ordering::Relaxed) != 0
    }

    /// Gives each user the first share.
    pub fn clear_shares(&self) {
        // Does not write to pages that are not in use.
        let set = self.shares.iter().filter(|share| share.load(Ordering::Relaxed) != 0);
        set.for_each(|share| share.store(0, Ordering::Relaxed));
    }

    /// Sets the share of a user; `None` for the first share. Returns the number of its allocations after that. A user
    /// without a word in the table has the first share.
    pub fn set_share(&self, user: &str, share: Option<UserShare>) -> u32 {
        let (row, tag) = self.fingerprint(user);
        let word = share.map_or(0, UserShare::to_word);
        for (slot, own) in (row * WAYS..).zip(self.row(row)) {
            if own.load(Ordering::Relaxed) & !COUNT_MASK == tag
                && let Some(shared) = self.shares.get(slot)
            {
                shared.store(word, Ordering::SeqCst);
            }
        }
        self.count(user)
    }

    /// Returns the number of allocations of a user.
    #[must_use]
    pub fn count(&self, user: &str) -> u32 {
        let (row, tag) = self.fingerprint(user);
        let words = self.row(row).iter().map(|word| word.load(Ordering::SeqCst));
        let count: u64 = words.filter(|word| word & !COUNT_MASK == tag).map(|word| word & COUNT_MASK).sum();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Returns the share of the user of a slot; `None` if limits apply to this server alone.
    fn share(&self, slot: Option<usize>) -> Option<UserShare> {
        let first = self.first_share.load(Ordering::Relaxed);
        if first == 0 {
            return None;
        }
        let own = slot.and_then(|slot| self.shares.get(slot)).map_or(0, |word| word.load(Ordering::Relaxed));
        Some(UserShare::from_word(if own == 0 { first } else { own }))
    }

    /// Returns how much of a bucket for the whole rate an amount takes from the share of a user.
    fn weighted(&self, slot: Option<usize>, bytes: u64) -> u64 {
        // Every bucket has at least 64 KiB, so that a datagram passes also with the smallest share.
        const MOST: u64 = 65_536;
        self.share(slot).map_or(bytes, |share| {
            let weighted = bytes.saturating_mul(UserShare::WHOLE) / u64::from(share.bytes).clamp(1, UserShare::WHOLE);
            weighted.min(MOST).max(bytes)
        })
    }

    /// Returns the number of allocations.
    #[must_use]
    pub fn allocations(&self) -> u32 {
        self.allocations.load(Ordering::Relaxed)
    }

    fn takes(&self, slot: Option<usize>, meter: usize, rate: Option<&Rate>, now: Instant, amount: usize) -> bool {
        let (Some(rate), Some(slot)) = (rate, slot) else { return true };
        if !self.metered.load(Ordering::Relaxed) {
            self.metered.store(true, Ordering::Relaxed);
        }
        self.meters.get(slot * METERS + meter).is_none_or(|bucket| bucket.take(rate, now, amount))
    }

    fn admit_user(&self, user: &str, per_user: u32, is_shared: bool) -> Result<TicketWord, QuotaExceeded> {
        let (row, tag) = self.fingerprint(user);
        let general = if per_user == 0 { COUNT_MASK } else { COUNT_MASK.min(per_user.into()) };
        let limit_at = |slot: Option<usize>| match self.share(slot) {
            Some(share) if is_shared => general.min(share.allocations.into()),
            _ => general,
        };
        // Another worker may change the word between the load and the swap; then the loop repeats. Two workers that
        // find different free words may both enter a new user. Then the limits are exceeded by a few until the user's
        // allocations end.
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
                (Some((slot, _, value)), _) if value & COUNT_MASK >= limit_at(Some(slot)) => {
                    return Err(QuotaExceeded::User);
                }
                (None, Some(_)) if limit_at(None) == 0 => return Err(QuotaExceeded::User),
                (Some((slot, word, value)), _) => (slot, word, value, value + 1),
                (None, Some((slot, word, value))) => (slot, word, value, tag | 1),
                // Sixteen other users occupy the row. It is better not to count a user than to reject an allocation.
                (None, None) => return Ok(TicketWord::UNCOUNTED),
            };
            if word.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                if own.is_none() {
                    // It may be the share of another user.
                    if let Some(share) = self.shares.get(slot).filter(|share| share.load(Ordering::Relaxed) != 0) {
                        share.store(0, Ordering::Relaxed);
                    }
                }
                if own.is_none() && self.metered.load(Ordering::Relaxed) {
                    // The word may have belonged to another user, so its rate usage is reset.
                    self.meters.iter().skip(slot * METERS).take(METERS).for_each(SharedBucket::fill);
                }
                return Ok(TicketWord::of(Some(slot)));
            }
        }
    }

    fn row(&self, row: usize) -> &[AtomicU64] {
        self.users.get(row * WAYS..(row + 1) * WAYS).unwrap_or_default()
    }

    /// Returns the user's row and its fingerprint. The fingerprint is above the count bits and never 0.
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

    /// Returns the number of allocations that are counted for `user`.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of_user(&self, user: &str) -> u64 {
        let (row, tag) = self.fingerprint(user);
        let words = self.row(row).iter().map(|word| word.load(Ordering::Relaxed));
        words.filter(|word| word & !COUNT_MASK == tag).map(|word| word & COUNT_MASK).sum()
    }
}

/// Returns `length` zero words. They use memory only once they are written: the allocator gets zeroed pages from the
/// system, and wrapping the words does not write to them.
pub(crate) fn zeroed<T>(length: usize, wrap: impl Fn(u64) -> T) -> Box<[T]> {
    vec![0; length].into_iter().map(wrap).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A quota with fixed limits and rates.
    struct Limited {
        quota: Arc<Quota>,
        per_user: u32,
        in_all: u32,
        rates: UserRates,
    }

    impl std::ops::Deref for Limited {
        type Target = Arc<Quota>;

        fn deref(&self) -> &Arc<Quota> {
            &self.quota
        }
    }

    impl Limited {
        fn admit(&self, user: &str) -> Result<Ticket, QuotaExceeded> {
            self.quota.admit(user, self.per_user, self.in_all)
        }

        fn admits_rate(&self, ticket: TicketWord, now: Instant) -> bool {
            self.quota.admits_rate(ticket, self.rates.allocations.as_ref(), now)
        }

        fn admits_bytes(&self, ticket: &Ticket, direction: Direction, now: Instant, bytes: usize) -> bool {
            self.quota.admits_bytes(ticket, direction, self.rates.bytes.as_ref(), now, bytes)
        }
    }

    fn quota(per_user: u32, in_all: u32) -> Limited {
        Limited { quota: Arc::new(Quota::new(16_384, [7; 32])), per_user, in_all, rates: UserRates::default() }
    }

    #[test]
    fn the_limit_applies_to_each_user() {
        let quota = quota(2, 0);
        let first = quota.admit("alice").unwrap();
        let _second = quota.admit("alice").unwrap();
        assert_eq!(quota.admit("alice").unwrap_err(), QuotaExceeded::User);
        let _other = quota.admit("bob").unwrap();
        drop(first);
        let _again = quota.admit("alice").unwrap();
        assert_eq!(quota.allocations(), 3);
    }

    #[test]
    fn a_ticket_can_be_converted_to_a_word_and_back() {
        for per_user in [0, 3] {
            let quota = quota(per_user, 0);
            for user in ["alice", "bob", "carol"] {
                let word = quota.admit(user).unwrap().into_word();
                assert!(!quota.is_of(word, "dave"));
                assert!(quota.is_of(word, user));
                drop(quota.ticket(word));
                let again: Vec<Ticket> = (0..3).map(|_| quota.admit(user).unwrap()).collect();
                again.into_iter().for_each(drop);
            }
            assert_eq!(quota.allocations(), 0);
        }
        // A converted ticket still refers to the rate usage of its user.
        let quota = metered(0);
        let [alice, bob] = ["alice", "bob"].map(|user| quota.admit(user).unwrap());
        assert!(quota.admits_bytes(&alice, Direction::ToPeers, at(0), 100));
        let [alice, bob] = [alice, bob].map(|ticket| quota.ticket(ticket.into_word()));
        assert!(!quota.admits_bytes(&alice, Direction::ToPeers, at(0), 1));
        assert!(quota.admits_bytes(&bob, Direction::ToPeers, at(0), 100));
        assert!(quota.is_of(bob.word(), "bob") && !quota.is_of(bob.word(), "alice"));
    }

    #[test]
    fn the_key_does_not_print() {
        assert_eq!(format!("{:?}", quota(2, 0).quota), "Quota { allocations: 0, .. }");
    }

    #[test]
    fn the_server_limit_covers_all_users() {
        let quota = quota(0, 2);
        let first = quota.admit("a").unwrap();
        let _second = quota.admit("b").unwrap();
        assert_eq!(quota.admit("c").unwrap_err(), QuotaExceeded::Server);
        drop(first);
        assert!(quota.admit("c").is_ok());
    }

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    /// A quota with one row and with rates: a burst of two allocations and of a hundred bytes.
    fn metered(per_user: u32) -> Limited {
        let rates = UserRates { allocations: Rate::new(1, 2), bytes: Rate::new(1, 100) };
        Limited { quota: Arc::new(Quota::new(1, [7; 32])), per_user, in_all: 0, rates }
    }

    #[test]
    fn the_rates_of_a_user_cover_all_its_tickets_and_each_direction_separately() {
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

    #[test]
    fn a_share_is_a_part_of_the_rate_until_another_user_needs_the_word() {
        let quota = metered(1);
        let share = |bytes| Some(UserShare { allocations: 1, bytes });
        let admits = |ticket: &Ticket, second, bytes| quota.admits_bytes(ticket, Direction::ToPeers, at(second), bytes);
        quota.set_first_share(share(500_000));
        let alice = quota.admit("alice").unwrap();
        // Of a hundred bytes.
        assert!(admits(&alice, 0, 50) && !admits(&alice, 0, 1));
        quota.set_share("alice", share(250_000));
        assert!(admits(&alice, 100, 25) && !admits(&alice, 100, 1));
        quota.refund_bytes(&alice, Direction::ToPeers, quota.rates.bytes.as_ref(), 25);
        assert!(admits(&alice, 100, 25) && !admits(&alice, 100, 1));
        quota.set_share("alice", share(1_000_000));
        assert!(admits(&alice, 200, 100) && !admits(&alice, 200, 1));
        quota.set_share("alice", None);
        assert!(admits(&alice, 300, 50) && !admits(&alice, 300, 1));
        quota.set_share("alice", share(1_000_000));
        quota.clear_shares();
        assert!(admits(&alice, 400, 50) && !admits(&alice, 400, 1));
        quota.set_share("alice", share(1_000_000));
        drop(alice);
        // The row has a few words, which all go to others.
        let others: Vec<Ticket> = (0..WAYS).map(|user| quota.admit(&user.to_string()).unwrap()).collect();
        for other in &others {
            assert!(admits(other, 500, 50) && !admits(other, 500, 1));
        }
        quota.set_first_share(None);
        assert!(admits(&others[0], 600, 100) && !admits(&others[0], 600, 1));
    }

    // Otherwise a user could evade the rate limits by deleting its last allocation and creating a new one.
    #[test]
    fn rate_usage_outlasts_the_allocations_until_another_user_needs_the_word() {
        let quota = metered(1);
        let ticket = quota.admit("alice").unwrap();
        assert!(quota.admits_bytes(&ticket, Direction::ToPeers, at(0), 100));
        drop(ticket);
        let ticket = quota.admit("alice").unwrap();
        assert!(!quota.admits_bytes(&ticket, Direction::ToPeers, at(0), 1));
        drop(ticket);
        // Other users get the fifteen other words of the row before they get Alice's.
        let others: Vec<Ticket> = (0..15).map(|user| quota.admit(&format!("user-{user}")).unwrap()).collect();
        let ticket = quota.admit("alice").unwrap();
        assert!(!quota.admits_bytes(&ticket, Direction::ToPeers, at(0), 1));
        drop(ticket);
        let last = quota.admit("mallory").unwrap();
        assert!(quota.admits_bytes(&last, Direction::ToPeers, at(0), 100));
        assert_eq!((quota.of_user("alice"), quota.of_user("mallory")), (0, 1));
        others.into_iter().chain([last]).for_each(drop);
        assert_eq!(quota.allocations(), 0);
    }

    #[test]
    fn a_user_without_a_free_word_in_its_row_is_not_counted() {
        let quota = metered(1);
        let tickets: Vec<Ticket> = (0..16).map(|user| quota.admit(&format!("user-{user}")).unwrap()).collect();
        for user in 0..16 {
            assert_eq!(quota.admit(&format!("user-{user}")).unwrap_err(), QuotaExceeded::User);
        }
        let uncounted = [(); 3].map(|()| quota.admit("one too many").unwrap());
        assert!(quota.admits_bytes(&uncounted[0], Direction::ToPeers, at(0), 1_000));
        assert_eq!(quota.allocations(), 19);
        uncounted.into_iter().chain(tickets).for_each(drop);
        let ticket = quota.admit("one too many").unwrap();
        assert!(!quota.admits_bytes(&ticket, Direction::ToPeers, at(0), 1_000));
        assert_eq!(quota.allocations(), 1);
    }

    #[test]
    fn a_table_has_room_for_the_given_number_of_users() {
        let quota = Limited {
            quota: Arc::new(Quota::new(40_000, [7; 32])),
            per_user: 1,
            in_all: 0,
            rates: UserRates::default(),
        };
        let tickets: Vec<Ticket> = (0..40_000).map(|user| quota.admit(&user.to_string()).unwrap()).collect();
        assert_eq!(tickets.iter().filter(|ticket| ticket.word().slot().is_none()).count(), 0);
    }

    #[test]
    fn concurrent_workers_admit_exactly_the_limit() {
        let quota = quota(100, 0);
        let admitted: Vec<Ticket> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..200).filter_map(|_| quota.admit("alice").ok()).collect::<Vec<_>>()))
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!(admitted.len(), 100);
        assert_eq!(quota.allocations(), 100);
    }

    proptest! {
        #[test]
        fn counts_like_a_map(steps in prop::collection::vec((0..16u8, any::<bool>()), 1..300)) {
            // All in one row.
            let rates = UserRates::default();
            let quota = Limited { quota: Arc::new(Quota::new(1, [9; 32])), per_user: 3, in_all: 20, rates };
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
                    drop(ticket);
                }
                prop_assert_eq!(quota.of_user(&user.to_string()), model[&user].len() as u64);
                prop_assert_eq!(quota.allocations() as usize, model.values().map(Vec::len).sum::<usize>());
            }
        }
    }
}
