//! The rate limit on responses to unverified sources.
//!
//! A forged source makes the server respond to a third party. So responses to requests without a nonce of this server
//! are rate-limited per source. A client that repeats the nonce of its first response is verified.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use crate::turn::contract::FiveTuple;
use crate::turn::time::{Deadline, Instant};

/// The number of buckets. A keyed hash assigns sources to them, so the memory is fixed.
const BUCKETS: usize = 8192;

/// The time over which a source accumulates unused responses.
const BURST: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(crate) struct ResponseLimit {
    /// The time between two responses at the steady rate; `None` for no limit.
    interval: Option<Duration>,
    /// Per bucket, when the next response is due at the steady rate.
    due: Vec<Deadline>,
    /// Its key is random in each process.
    hasher: RandomState,
}

impl ResponseLimit {
    /// Creates a limit of `per_second` responses to each source; 0 is no limit.
    pub(crate) fn new(per_second: u32) -> Self {
        let interval = (per_second > 0).then(|| Duration::from_secs(1) / per_second);
        let never_used = Deadline::after(Instant::from_elapsed(Duration::ZERO), Duration::ZERO);
        let buckets = if interval.is_some() { BUCKETS } else { 0 };
        Self { interval, due: vec![never_used; buckets], hasher: RandomState::new() }
    }

    /// Whether another response may be sent to the client. A client with a connection has proved its source.
    pub(crate) fn admits(&mut self, tuple: &FiveTuple, now: Instant) -> bool {
        tuple.transport.proves_source() || self.admits_source(tuple.client.ip(), now)
    }

    /// Like [`admits`](Self::admits), by IPv4 address or by the /64 network of an IPv6 address.
    pub(crate) fn admits_source(&mut self, source: IpAddr, now: Instant) -> bool {
        let Some(interval) = self.interval else { return true };
        let network = match source {
            IpAddr::V4(v4) => (4, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (6, u128::from(v6) >> 64),
        };
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is below BUCKETS")]
        let bucket = (self.hasher.hash_one(network) % BUCKETS as u64) as usize;
        let Some(due) = self.due.get_mut(bucket) else { return true };
        let admitted = due.has_passed(now.plus(BURST));
        if admitted {
            *due = due.later(Deadline::after(now, Duration::ZERO)).plus(interval);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millisecond: u64) -> Instant {
        Instant::from_elapsed(Duration::from_millis(millisecond))
    }

    fn admitted(limit: &mut ResponseLimit, source: &str, now: Instant) -> usize {
        (0..10_000).filter(|_| limit.admits_source(source.parse().unwrap(), now)).count()
    }

    #[test]
    fn a_source_gets_a_burst_and_then_its_rate() {
        let mut limit = ResponseLimit::new(50);
        assert_eq!(admitted(&mut limit, "192.0.2.1", at(100_000)), 201);
        assert_eq!(admitted(&mut limit, "192.0.2.1", at(101_000)), 50);
        assert_eq!(admitted(&mut limit, "192.0.2.1", at(101_000)), 0);
        assert_eq!(admitted(&mut limit, "192.0.2.1", at(900_000)), 201);
    }

    #[test]
    fn each_source_has_its_own_limit_and_an_ipv6_network_is_one_source() {
        let mut limit = ResponseLimit::new(50);
        assert_eq!(admitted(&mut limit, "2001:db8::1", at(0)), 201);
        assert_eq!(admitted(&mut limit, "2001:db8::ffff:1", at(0)), 0);
        // One of these may share its bucket with another source.
        let others = (1..=9).filter(|n| admitted(&mut limit, &format!("192.0.2.{n}"), at(0)) == 201).count();
        assert!(others >= 8, "{others}");
    }

    #[test]
    fn zero_is_no_limit() {
        assert_eq!(admitted(&mut ResponseLimit::new(0), "192.0.2.1", at(0)), 10_000);
    }

    #[test]
    fn rates_need_not_divide_a_second() {
        assert_eq!(admitted(&mut ResponseLimit::new(700), "192.0.2.1", at(0)), 2_802);
    }
}
