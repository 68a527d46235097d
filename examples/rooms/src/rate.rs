//! Rate limits.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A rate: so many at once, and one more per interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) burst: u32,
    pub(crate) interval: Duration,
}

/// What a source has left of a rate. It counts in time: `full` is when nothing of the burst is used any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    full: Instant,
}

impl Bucket {
    pub(crate) fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// Takes one.
    ///
    /// # Errors
    /// The time until there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let used = self.full.max(now) + rate.interval;
        let allowed = now + rate.interval * rate.burst;
        if used > allowed {
            return Err(used - allowed);
        }
        self.full = used;
        Ok(())
    }

    /// Takes one although there may be none, and returns when there is one again.
    pub(crate) fn spend(&mut self, rate: Rate, now: Instant) -> Instant {
        self.full = self.full.max(now) + rate.interval;
        self.full.checked_sub(rate.interval * (rate.burst - 1)).unwrap_or(now).max(now)
    }
}

/// The greatest number of sources that are remembered.
const SOURCES: usize = 10_000;

/// A rate for each source: an IPv4 address or an IPv6 /56.
#[derive(Debug)]
pub(crate) struct PerSource {
    rate: Rate,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

impl PerSource {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Takes one for a source.
    ///
    /// # Errors
    /// The time until there is one.
    pub(crate) fn take(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= SOURCES {
            buckets.retain(|_, bucket| bucket.full > now);
        }
        // So many sources at once are an attack. Those that are known already may go on.
        let source = network(source);
        if buckets.len() >= SOURCES && !buckets.contains_key(&source) {
            return Err(self.rate.interval);
        }
        buckets.entry(source).or_insert_with(|| Bucket::new(now)).take(self.rate, now)
    }
}

/// Returns what one user may have: an IPv4 address, or the /56 of an IPv6 address.
pub(crate) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 72 << 72)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 2, interval: Duration::from_secs(1) };

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_then_one_per_interval() {
        let mut bucket = Bucket::new(Instant::now());
        let mut take = || bucket.take(RATE, Instant::now());
        assert_eq!([take(), take()], [Ok(()); 2]);
        assert_eq!(take(), Err(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([take(), take()], [Ok(()), Err(Duration::from_secs(1))]);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!([take(), take(), take()].map(|result| result.is_ok()), [true, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_one_above_the_burst_costs_an_interval() {
        let (mut bucket, now) = (Bucket::new(Instant::now()), Instant::now());
        let waits: Vec<u64> = (0..4).map(|_| (bucket.spend(RATE, now) - now).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_addresses_of_an_ipv6_56_share_a_bucket_and_other_sources_do_not() {
        let sources = PerSource::new(Rate { burst: 1, ..RATE });
        let take = |text: &str| sources.take(text.parse().unwrap(), Instant::now()).is_ok();
        assert!(take("2001:db8::1"));
        assert!(!take("2001:db8:0:ff::2"));
        assert!(take("2001:db8:0:100::1"));
        assert!(take("192.0.2.1"));
        assert!(!take("::ffff:192.0.2.1"), "the same IPv4 address");
        assert!(take("192.0.2.2"));
    }
}
