//! Token buckets: how much may pass in a second, and how much at once.
//!
//! A bucket is one word, the moment at which it will be full again (the generic cell rate algorithm). Nothing has to
//! be done to it while time passes, and several workers can share one.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::turn::time::Instant;

/// Parts of a microsecond that buckets reckon in, so that a single byte of a fast link counts.
const PARTS: u64 = 1024;
const SECOND: u64 = 1_000_000 * PARTS;

/// How much of something may pass: so much in a second, and in a burst what has not been used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: NonZeroU64,
    /// How long it takes to fill an empty bucket.
    depth: u64,
}

impl Rate {
    /// `burst` may pass at once, and no single thing may be larger. `None` if `per_second` is 0, which means no limit.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Option<Self> {
        let per_second = NonZeroU64::new(per_second.into())?;
        Some(Self { per_second, depth: u64::from(burst) * SECOND / per_second })
    }

    /// Of bytes, with a burst of one second's worth, but at least 64 KiB, which every datagram fits into.
    #[must_use]
    pub fn of_bytes(per_second: u32) -> Option<Self> {
        Self::new(per_second, per_second.max(65_536))
    }

    /// Of new peers, with a burst of four seconds' worth, but at least 64: a browser asks for all candidates of the other
    /// side at once.
    #[must_use]
    pub fn of_peers(per_second: u32) -> Option<Self> {
        Self::new(per_second, per_second.saturating_mul(4).max(64))
    }

    /// Of allocations, with a burst of four seconds' worth, but at least 32: a page opens several connections at once,
    /// and a browser makes an allocation for each url and interface of each.
    #[must_use]
    pub fn of_allocations(per_second: u32) -> Option<Self> {
        Self::new(per_second, per_second.saturating_mul(4).max(32))
    }

    /// When a bucket will be full that would have been full at `full`, once `amount` more has passed; `None` if that may
    /// not pass.
    fn after(&self, full: u64, now: Instant, amount: u64) -> Option<u64> {
        let now = now.micros().saturating_mul(PARTS);
        let owed = full.saturating_sub(now).saturating_add(amount.saturating_mul(SECOND) / self.per_second);
        (owed <= self.depth).then(|| now.saturating_add(owed))
    }
}

/// What one worker uses of a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket(u64);

impl Bucket {
    pub(crate) const FULL: Self = Self(0);

    /// Whether so much may pass; it is taken with [`take`](Self::take).
    pub(crate) fn offer(self, rate: &Rate, now: Instant, amount: usize) -> Option<Self> {
        rate.after(self.0, now, amount as u64).map(Self)
    }

    /// Lets so much pass, or leaves the bucket as it was.
    pub(crate) fn take(&mut self, rate: &Rate, now: Instant, amount: usize) -> bool {
        let after = self.offer(rate, now, amount);
        *self = after.unwrap_or(*self);
        after.is_some()
    }
}

/// What several workers use of one rate.
#[derive(Debug)]
pub(crate) struct SharedBucket(AtomicU64);

impl SharedBucket {
    /// `full` is 0 for a full bucket.
    pub(crate) fn new(full: u64) -> Self {
        Self(AtomicU64::new(full))
    }

    /// Lets so much pass, or leaves the bucket as it was.
    pub(crate) fn take(&self, rate: &Rate, now: Instant, amount: usize) -> bool {
        // Relaxed: the word publishes nothing but itself.
        let after = |full| rate.after(full, now, amount as u64);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).is_ok()
    }

    /// Fills the bucket. A full one is not written to, so that a page of unused buckets stays unmapped.
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
    fn a_burst_passes_and_then_the_rate() {
        let (rate, mut bucket) = (Rate::of_bytes(100_000).unwrap(), Bucket::FULL);
        assert_eq!(passed(&mut bucket, &rate, at(5_000_000), 1_000), 100);
        assert_eq!(passed(&mut bucket, &rate, at(5_500_000), 1_000), 50);
        assert_eq!(passed(&mut bucket, &rate, at(5_500_000), 1_000), 0);
        assert_eq!(passed(&mut bucket, &rate, at(900_000_000), 1_000), 100);
    }

    #[test]
    fn no_rate_is_too_low_for_a_datagram_or_what_a_browser_asks_at_once() {
        for (rate, amount) in [(Rate::of_bytes(1), 65_507), (Rate::of_peers(1), 64), (Rate::of_allocations(1), 32)] {
            let mut bucket = Bucket::FULL;
            assert!(bucket.take(&rate.unwrap(), at(0), amount));
        }
    }

    #[test]
    fn single_bytes_count_on_the_fastest_link_too() {
        let (rate, mut bucket) = (Rate::of_bytes(u32::MAX).unwrap(), Bucket::FULL);
        assert!(bucket.take(&rate, at(0), u32::MAX as usize));
        let second = (0..1_000_000).map(|microsecond| passed(&mut bucket, &rate, at(microsecond), 1_000));
        let bytes = second.take(1_000).sum::<usize>() * 1_000;
        // One millisecond of it.
        assert!((4_200_000..=4_350_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn no_rate_is_no_limit() {
        assert_eq!([Rate::of_bytes(0), Rate::of_peers(0), Rate::of_allocations(0), Rate::new(0, 5)], [None; 4]);
    }

    #[test]
    fn workers_that_take_at_once_share_one_burst() {
        let (rate, bucket) = (Rate::new(1, 1_000).unwrap(), SharedBucket::new(0));
        let taken: usize = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1_000).filter(|_| bucket.take(&rate, at(7), 1)).count())).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000);
    }

    proptest! {
        // Rates that divide a second, so that there is nothing to round.
        #[test]
        fn a_bucket_behaves_like_one_that_is_filled_drop_by_drop(
            exponent in 0..7_u32,
            burst in 1..3_000_u32,
            steps in prop::collection::vec((0..900_000_u64, 0..2_000_usize), 1..60),
        ) {
            let per_second = 10_u32.pow(exponent);
            let (rate, mut bucket, shared) = (Rate::new(per_second, burst).unwrap(), Bucket::FULL, SharedBucket::new(0));
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
