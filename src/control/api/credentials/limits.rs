//! The rate limits of requests for credentials. The memory is bounded: a bucket per key, and a table of sources.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;

use crate::turn::{Bucket, Instant, Rate};

/// The number of buckets for sources. A keyed hash assigns sources to them.
const SOURCES: usize = 8192;
/// Requests without a valid key, per second and source, and the burst.
const FAILURES: (u32, u32) = (1, 20);
/// The seconds over which a key accumulates unused requests.
const KEY_BURST: u32 = 4;

/// The rate limits.
#[derive(Debug)]
pub(super) struct Limits {
    keys: HashMap<String, Bucket>,
    failures: Box<[Bucket]>,
    hasher: RandomState,
}

impl Default for Limits {
    fn default() -> Self {
        Self { keys: HashMap::new(), failures: vec![Bucket::FULL; SOURCES].into(), hasher: RandomState::new() }
    }
}

impl Limits {
    /// Whether the requests of a source have failed so often that further ones without a valid key have to wait.
    pub(super) fn is_exhausted(&self, source: IpAddr, now: Instant) -> bool {
        let bucket = self.failures.get(self.row(source));
        let exhausted = |bucket: &Bucket| rate(FAILURES).is_some_and(|rate| bucket.offer(&rate, now, 1).is_none());
        bucket.is_some_and(exhausted)
    }

    /// Counts a request without a valid key.
    pub(super) fn failed(&mut self, source: IpAddr, now: Instant) {
        let row = self.row(source);
        if let (Some(bucket), Some(rate)) = (self.failures.get_mut(row), rate(FAILURES)) {
            bucket.take(&rate, now, 1);
        }
    }

    /// Whether a key may be used, at most `per_second` times per second. 0: no limit.
    pub(super) fn admit(&mut self, key: &str, per_second: u32, now: Instant) -> bool {
        let Some(rate) = rate((per_second, per_second.saturating_mul(KEY_BURST))) else { return true };
        if let Some(bucket) = self.keys.get_mut(key) {
            return bucket.take(&rate, now, 1);
        }
        let mut bucket = Bucket::FULL;
        let admitted = bucket.take(&rate, now, 1);
        self.keys.insert(key.to_owned(), bucket);
        admitted
    }

    /// Returns the bucket of a source: an IPv4 address or an IPv6 /64.
    fn row(&self, source: IpAddr) -> usize {
        let prefix = match source.to_canonical() {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
        };
        usize::try_from(self.hasher.hash_one((source.is_ipv4(), prefix)) % SOURCES as u64).unwrap_or_default()
    }
}

fn rate((per_second, burst): (u32, u32)) -> Option<Rate> {
    Rate::new(per_second, burst)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    #[test]
    fn a_source_has_a_burst_of_failures_and_then_one_per_second() {
        let mut limits = Limits::default();
        let [one, near, far] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|ip| ip.parse().unwrap());
        for _ in 0..20 {
            assert!(!limits.is_exhausted(one, at(5)));
            limits.failed(one, at(5));
        }
        assert!(limits.is_exhausted(one, at(5)) && limits.is_exhausted(near, at(5)));
        // A keyed hash may assign one row to both, once in 8192 runs.
        assert!(!limits.is_exhausted(far, at(5)) || limits.row(one) == limits.row(far));
        assert!(!limits.is_exhausted(one, at(6)));
        limits.failed(near, at(6));
        assert!(limits.is_exhausted(one, at(6)));
    }

    #[test]
    fn a_key_has_four_seconds_worth_of_requests_at_once() {
        let mut limits = Limits::default();
        let admitted = |limits: &mut Limits, second| (0..100).filter(|_| limits.admit("a", 2, at(second))).count();
        assert_eq!(admitted(&mut limits, 0), 8);
        assert_eq!(admitted(&mut limits, 1), 2);
        assert!(limits.admit("b", 2, at(1)));
        assert!((0..100).all(|_| limits.admit("c", 0, at(1))));
    }
}
