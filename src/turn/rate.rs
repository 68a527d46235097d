//! Token buckets: an amount per second, and a burst.
//!
//! A bucket is one word: the time at which it will be full again (the generic cell rate algorithm). It needs no
//! periodic update, and several workers can share one.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::turn::time::Instant;

/// The number of a bucket's time units in a microsecond. At the highest rate, one unit is the time for four bytes.
const PARTS: u64 = 1024;
const SECOND: u64 = 1_000_000 * PARTS;

/// A rate limit: an amount per second, and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: NonZeroU64,
    /// The time that fills an empty bucket.
    depth: u64,
}

impl Rate {
    /// Creates a rate limit. At most `burst` may be taken at once. `None` if `per_second` is 0, which means no limit.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Option<Self> {
        let per_second = NonZeroU64::new(per_second.into())?;
        Some(Self { per_second, depth: u64::from(burst) * SECOND / per_second })
    }

    /// Creates a rate limit on bytes. The burst is the amount per second, but at least 64 KiB, so that any datagram
    /// fits.
    #[must_use]
    pub fn of_bytes(per_second: u32) -> Option<Self> {
        Self::new(per_second, per_second.max(65_536))
    }

    /// Creates a rate limit on new peers. The burst is the amount of four seconds, but at least 64: a browser requests
    /// permissions for all candidates of the other side at once.
    #[must_use]
    pub fn of_peers(per_second: u32) -> Option<Self> {
        Self::new(per_second, per_second.saturating_mul(4).max(64))
    }

    /// Creates a rate limit on allocations. The burst is the amount of four seconds, but at least 32: a page opens
    /// several connections at once, and a browser makes an allocation per connection, URL and interface.
    #[must_use]
    pub fn of_allocations(per_second: u32) -> Option<Self> {
        Self::new(per_second, per_second.saturating_mul(4).max(32))
    }

    /// Takes `amount` from a bucket that will be full at `full`. Returns the new time at which it will be full;
    /// `None` if it has less than `amount`.
    fn after(&self, full: u64, now: Instant, amount: u64) -> Option<u64> {
        let now = now.micros().saturating_mul(PARTS);
        let owed = full.saturating_sub(now).saturating_add(amount.saturating_mul(SECOND) / self.per_second);
        (owed <= self.depth).then(|| now.saturating_add(owed))
    }

    /// Gives `amount` back to a bucket that will be full at `full`. Returns the new time at which it will be full.
    fn before(&self, full: u64, amount: u64) -> u64 {
        full.saturating_sub(amount.saturating_mul(SECOND) / self.per_second)
    }
}

/// A bucket of one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket(u64);

impl Bucket {
    pub(crate) const FULL: Self = Self(0);

    /// Returns the bucket after `amount` is taken; `None` if it has less.
    pub(crate) fn offer(self, rate: &Rate, now: Instant, amount: usize) -> Option<Self> {
        rate.after(self.0, now, amount as u64).map(Self)
    }

    /// Takes `amount`. Returns false, and takes nothing, if the bucket has less.
    pub(crate) fn take(&mut self, rate: &Rate, now: Instant, amount: usize) -> bool {
        let after = self.offer(rate, now, amount);
        *self = after.unwrap_or(*self);
        after.is_some()
    }

    /// Gives back an amount that was taken.
    pub(crate) fn give_back(&mut self, rate: &Rate, amount: u64) {
        self.0 = rate.before(self.0, amount);
    }
}

/// A bucket that several workers share.
#[derive(Debug)]
pub(crate) struct SharedBucket(AtomicU64);

impl SharedBucket {
    /// Creates a bucket that will be full at `full`; 0 for a full bucket.
    pub(crate) fn new(full: u64) -> Self {
        Self(AtomicU64::new(full))
    }

    /// Takes `amount`. Returns false, and takes nothing, if the bucket has less.
    pub(crate) fn take(&self, rate: &Rate, now: Instant, amount: usize) -> bool {
        // Relaxed: no other memory depends on the word.
        let after = |full| rate.after(full, now, amount as u64);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).is_ok()
    }

    /// Gives back an amount that was taken.
    pub(crate) fn give_back(&self, rate: &Rate, amount: u64) {
        let before = |full| Some(rate.before(full, amount));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, before);
    }

    /// Whether the bucket has `amount`.
    pub(crate) fn has(&self, rate: &Rate, now: Instant, amount: usize) -> bool {
        rate.after(self.0.load(Ordering::Relaxed), now, amount as u64).is_some()
    }

    /// Fills the bucket. Does not write to a full one, so that a page of unused buckets stays unmapped.
    pub(crate) fn fill(&self) {
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(microsecond: u64) -> Instant {
        Instant::from_elapsed(Duration::from_micros(microsecond))
    }

    fn passed(bucket: &mut Bucket, rate: &Rate, now: Instant, amount: usize) -> usize {
        (0..100_000).filter(|_| bucket.take(rate, now, amount)).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_applies() {
        let (rate, mut bucket) = (Rate::of_bytes(100_000).unwrap(), Bucket::FULL);
        assert_eq!(passed(&mut bucket, &rate, at(5_000_000), 1_000), 100);
        assert_eq!(passed(&mut bucket, &rate, at(5_500_000), 1_000), 50);
        assert_eq!(passed(&mut bucket, &rate, at(5_500_000), 1_000), 0);
        assert_eq!(passed(&mut bucket, &rate, at(900_000_000), 1_000), 100);
    }

    #[test]
    fn every_rate_allows_the_longest_datagram_and_the_burst_of_a_browser() {
        for (rate, amount) in [(Rate::of_bytes(1), 65_507), (Rate::of_peers(1), 64), (Rate::of_allocations(1), 32)] {
            let mut bucket = Bucket::FULL;
            assert!(bucket.take(&rate.unwrap(), at(0), amount));
        }
    }

    #[test]
    fn small_amounts_count_at_the_highest_rate() {
        let (rate, mut bucket) = (Rate::of_bytes(u32::MAX).unwrap(), Bucket::FULL);
        assert!(bucket.take(&rate, at(0), u32::MAX as usize));
        let second = (0..1_000_000).map(|microsecond| passed(&mut bucket, &rate, at(microsecond), 1_000));
        let bytes = second.take(1_000).sum::<usize>() * 1_000;
        // The amount of one millisecond.
        assert!((4_200_000..=4_350_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_rate_of_zero_is_no_limit() {
        assert_eq!([Rate::of_bytes(0), Rate::of_peers(0), Rate::of_allocations(0), Rate::new(0, 5)], [None; 4]);
    }

    #[test]
    fn concurrent_workers_share_one_burst() {
        let (rate, bucket) = (Rate::new(1, 1_000).unwrap(), SharedBucket::new(0));
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1_000).filter(|_| bucket.take(&rate, at(7), 1)).count())).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000);
    }

    proptest! {
        // Rates that divide a second, so nothing is rounded.
        #[test]
        fn a_bucket_behaves_like_a_continuously_refilled_counter(
            exponent in 0..7_u32,
            burst in 1..3_000_u32,
            steps in prop::collection::vec((0..900_000_u64, 0..2_000_usize), 1..60),
        ) {
            let per_second = 10_u32.pow(exponent);
            let rate = Rate::new(per_second, burst).unwrap();
            let (mut bucket, shared) = (Bucket::FULL, SharedBucket::new(0));
            // In millionths.
            let full = u64::from(burst) * 1_000_000;
            let (mut level, mut now) = (full, 0);
            for (pause, amount) in steps {
                now += pause;
                level = full.min(level + pause * u64::from(per_second));
                let wanted = amount as u64 * 1_000_000;
                let passes = wanted <= level;
                prop_assert_eq!(bucket.take(&rate, at(now), amount), passes);
                prop_assert_eq!(shared.take(&rate, at(now), amount), passes);
                level -= if passes { wanted } else { 0 };
            }
        }
    }
}
