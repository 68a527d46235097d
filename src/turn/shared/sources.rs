//! The limits on responses to a source, and what the source has proved. All workers share them.
//!
//! A source is an IPv4 address or an IPv6 /64. Over UDP it can be forged, and the server then responds to a third party.
//! So each source has a few buckets, and an attacker that drains one leaves the others:
//!
//! | bucket | responses | rate, in multiples of `limits.unverified-responses` |
//! |---|---|---|
//! | Binding | to Binding requests, hardly longer than these | 5, or the factor if it is higher |
//! | challenges | to other requests without a nonce that this server made for the client | 1, or the factor |
//! | verified | errors for clients with such a nonce, but without valid credentials | 8, or the factor |
//! | allocated | to Binding requests of clients with an allocation | 8, or the factor |
//!
//! Many clients can share a source: an office, a carrier's NAT, a load balancer. A client that repeats its nonce proves
//! that it receives at the source. This raises the factor of the source from 1 to between 8 and 32, for a minute per
//! request and at most ten, and for at least five minutes after each request of a client with an allocation, since most
//! clients refresh their permissions more often than that. The proof only raises the rates: whoever forges a source never
//! draws more than 32 times `limits.unverified-responses` from each bucket. A source that has proved something has buckets of its own for this, so an attacker that forged it
//! before has not drained them.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::turn::rate::{Rate, SharedBucket};
use crate::turn::shared::quota::zeroed;
use crate::turn::time::Instant;

/// The number of rows of a server. A keyed hash assigns sources to them, so the memory is fixed: 7 MiB, if all of it is
/// used.
const ROWS: usize = 1 << 16;
/// The number of buckets of a row: two for each [`Kind`], those for failed authentications, and those for look-ups in the
/// user database.
const BUCKETS: usize = 2 * Kind::COUNT + 5;
/// The buckets for failed authentications: of a source with one username, of a source, of the /48 of an IPv6 source.
const FAILURES_OF_USER: usize = 2 * Kind::COUNT;
const FAILURES_OF_SOURCE: usize = FAILURES_OF_USER + 1;
const FAILURES_OF_SITE: usize = FAILURES_OF_USER + 2;
/// The buckets for look-ups: of a source, of the /48 of an IPv6 source.
const LOOKUPS_OF_SOURCE: usize = FAILURES_OF_SITE + 1;
const LOOKUPS_OF_SITE: usize = FAILURES_OF_SITE + 2;
/// The look-ups per second of a /48, in multiples of those of a source.
const LOOKUPS_SITE_FACTOR: u32 = 8;
/// The failed authentications per second of a source and of a /48, in multiples of those with one username.
const SOURCE_FACTOR: u32 = 8;
const SITE_FACTOR: u32 = 64;

/// The milliseconds that one repeated nonce adds to the proof of a source.
const PROOF: u64 = 60_000;
/// The milliseconds for which a client with an allocation proves its source at least.
const ALLOCATION_PROOF: u64 = 5 * PROOF;
/// The milliseconds after which the strongest proof has ended.
const LONGEST_PROOF: u64 = 10 * PROOF;
/// The factor of a source with the weakest and with the strongest proof.
const LOWEST_FACTOR: u64 = 8;
const HIGHEST_FACTOR: u64 = 32;
/// The factor of Binding responses. With IP and UDP headers, a success response is up to a third longer than its request,
/// and an error that lists an unknown attribute up to a quarter.
const BINDING_FACTOR: u64 = 5;

/// The seconds over which a source accumulates unused responses, without and with proof.
const BURST: u32 = 4;
const PROVED_BURST: u32 = 2;
/// The seconds over which a source accumulates unused failed authentications.
const FAILURES_BURST: u32 = 20;
/// The seconds over which a source accumulates unused look-ups.
const LOOKUPS_BURST: u32 = 2;

/// The bits of a proof that hold the time of its end, in milliseconds since the start of the process. The bits above
/// them hold a fingerprint of the source.
const TIME_BITS: u32 = 40;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// What a client has proved by a nonce that this server made for its transport address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// That it receives there.
    Nonce,
    /// The same, and it has an allocation. Most of these clients repeat a nonce at least every five minutes, for their
    /// permissions.
    Allocation,
}

/// What a response is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A Binding request.
    Binding,
    /// A request of a client that may have forged its source.
    Challenge,
    /// A request of a verified client without valid credentials.
    Verified,
    /// A Binding request of a client with an allocation.
    Allocated,
}

impl Kind {
    const COUNT: usize = 4;
}

/// Whether a response may be sent to a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may. The source has proved that clients receive there.
    Proved,
    /// It may. The source has proved nothing.
    Unproved,
    /// It may not: the source has had as many responses as its rate allows.
    Denied,
}

/// Whose authentications have failed so often that further ones have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Those with one username at one source.
    User,
    /// Those of one source.
    Source,
    /// Those of the /48 of an IPv6 source.
    Site,
}

/// The place of a source in the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    row: usize,
    /// Distinguishes the source from others in its row.
    tag: u64,
}

/// The table of sources.
#[derive(Debug)]
pub struct Sources {
    /// For each row, the proof of one source; 0 is none.
    proofs: Box<[AtomicU64]>,
    /// [`BUCKETS`] for each row. Sources with the same row share them.
    buckets: Box<[SharedBucket]>,
    /// Its key is random in each process, so no one can choose sources that share a row.
    hasher: RandomState,
}

impl Default for Sources {
    fn default() -> Self {
        Self::with_rows(ROWS)
    }
}

impl Sources {
    /// Creates a table with this number of rows, a power of two. Fewer need less memory, and more sources share one.
    #[must_use]
    pub fn with_rows(rows: usize) -> Self {
        let rows = rows.next_power_of_two();
        Self {
            proofs: zeroed(rows, AtomicU64::new),
            buckets: zeroed(rows * BUCKETS, SharedBucket::new),
            hasher: RandomState::new(),
        }
    }

    /// Returns the place of an IPv4 address or of the /64 network of an IPv6 address.
    pub(crate) fn find(&self, address: IpAddr) -> Source {
        self.place(network(address))
    }

    fn place(&self, key: impl Hash) -> Source {
        let hash = self.hasher.hash_one(key);
        // The number of rows is a power of two.
        let row = usize::try_from(hash & u64::from(u32::MAX)).unwrap_or_default() & (self.proofs.len() - 1);
        Source { row, tag: hash & !TIME_MASK }
    }

    /// Records what a client of the source has proved.
    pub(crate) fn prove(&self, source: Source, proof_of: Proof, now: Instant) {
        let Some(proof) = self.proofs.get(source.row) else { return };
        let (now, word) = (millis(now), proof.load(Ordering::Relaxed));
        let (tag, end) = (word & !TIME_MASK, (word & TIME_MASK).max(now));
        let at_least = match proof_of {
            Proof::Nonce => 0,
            Proof::Allocation => ALLOCATION_PROOF,
        };
        let (tag, end) = if tag == source.tag || end < now + PROOF {
            let start = if tag == source.tag { end } else { now };
            (source.tag, (start + PROOF).max(now + at_least).min(now + LONGEST_PROOF))
        } else {
            // Of two sources in one row, the one with more clients keeps it.
            (tag, end - PROOF)
        };
        // A proof that another worker records at the same time may be lost. The next one is not.
        proof.store(tag | (end & TIME_MASK), Ordering::Relaxed);
    }

    /// Returns the factor of a source that has proved something.
    fn factor(&self, source: Source, now: Instant) -> Option<u64> {
        let word = self.proofs.get(source.row)?.load(Ordering::Relaxed);
        let left = (word & TIME_MASK).saturating_sub(millis(now));
        (word & !TIME_MASK == source.tag && left > 0)
            .then(|| LOWEST_FACTOR + (HIGHEST_FACTOR - LOWEST_FACTOR) * left.min(LONGEST_PROOF) / LONGEST_PROOF)
    }

    /// Charges a response to the source. `per_second` is `limits.unverified-responses`; 0 for no limit.
    pub(crate) fn admit(&self, source: Source, kind: Kind, per_second: u32, now: Instant) -> Admission {
        let factor = self.factor(source, now);
        let (times, burst) = match (kind, factor) {
            (Kind::Challenge, None) => (1, BURST),
            (Kind::Binding, None) => (BINDING_FACTOR, BURST),
            (Kind::Verified | Kind::Allocated, None) => (LOWEST_FACTOR, PROVED_BURST),
            (_, Some(factor)) => (factor, PROVED_BURST),
        };
        let per_second = u32::try_from(u64::from(per_second) * times).unwrap_or(u32::MAX);
        let Some(rate) = Rate::new(per_second, per_second.saturating_mul(burst)) else { return Admission::Proved };
        let bucket = kind as usize * 2 + usize::from(factor.is_some());
        match self.bucket(source, bucket).is_none_or(|bucket| bucket.take(&rate, now, 1)) {
            true if factor.is_some() => Admission::Proved,
            true => Admission::Unproved,
            false => Admission::Denied,
        }
    }

    /// Counts a failed authentication. `per_second` is `limits.failed-authentications`.
    pub(crate) fn count_failure(&self, address: IpAddr, username: &str, per_second: u32, now: Instant) {
        for (_, rate, bucket) in self.failure_buckets(address, username, per_second) {
            bucket.take(&rate, now, 1);
        }
    }

    /// Returns what has to wait, if so many authentications have failed: those with this username at this source, those
    /// of the source, or those of its /48. 0 for no limit. A client with a wrong password does not make the others of
    /// its source wait.
    pub(crate) fn waiting(&self, address: IpAddr, username: &str, per_second: u32, now: Instant) -> Option<Waiting> {
        let mut buckets = self.failure_buckets(address, username, per_second);
        buckets.find_map(|(waiting, rate, bucket)| (!bucket.has(&rate, now, 1)).then_some(waiting))
    }

    /// Charges a request that needs a look-up in the user database to its source, and to the /48 of an IPv6 source.
    /// `per_second` is `auth.redis.lookups-per-second-per-source`; 0 for no limit.
    pub(crate) fn admit_lookup(&self, address: IpAddr, per_second: u32, now: Instant) -> bool {
        let source = (self.place(network(address)), LOOKUPS_OF_SOURCE, 1);
        let site = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some((self.place((48, u128::from(v6) >> 80)), LOOKUPS_OF_SITE, LOOKUPS_SITE_FACTOR)),
        };
        [Some(source), site].into_iter().flatten().all(|(place, bucket, times)| {
            let per_second = per_second.saturating_mul(times);
            let Some(rate) = Rate::new(per_second, per_second.saturating_mul(LOOKUPS_BURST)) else { return true };
            self.bucket(place, bucket).is_none_or(|bucket| bucket.take(&rate, now, 1))
        })
    }

    fn failure_buckets(
        &self,
        address: IpAddr,
        username: &str,
        per_second: u32,
    ) -> impl Iterator<Item = (Waiting, Rate, &SharedBucket)> {
        let network = network(address);
        let site = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => {
                Some((Waiting::Site, self.place((48, u128::from(v6) >> 80)), FAILURES_OF_SITE, SITE_FACTOR))
            }
        };
        let user = (Waiting::User, self.place((network, username)), FAILURES_OF_USER, 1);
        let source = (Waiting::Source, self.place(network), FAILURES_OF_SOURCE, SOURCE_FACTOR);
        [Some(user), Some(source), site].into_iter().flatten().filter_map(move |(waiting, place, bucket, times)| {
            let per_second = per_second.saturating_mul(times);
            let rate = Rate::new(per_second, per_second.saturating_mul(FAILURES_BURST))?;
            Some((waiting, rate, self.bucket(place, bucket)?))
        })
    }

    fn bucket(&self, source: Source, bucket: usize) -> Option<&SharedBucket> {
        self.buckets.get(source.row * BUCKETS + bucket)
    }
}

/// Returns the IPv4 address or the /64 of an IPv6 address.
fn network(address: IpAddr) -> (u8, u128) {
    match address {
        IpAddr::V4(v4) => (4, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => (6, u128::from(v6) >> 64),
    }
}

/// Returns the milliseconds since the start of the process. They fit into a proof for 34 years.
fn millis(now: Instant) -> u64 {
    (now.micros() / 1_000) & TIME_MASK
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millisecond: u64) -> Instant {
        Instant::from_elapsed(Duration::from_millis(millisecond))
    }

    fn source(sources: &Sources, text: &str) -> Source {
        sources.find(text.parse().unwrap())
    }

    /// Returns the number of responses that a source gets at one time.
    fn admitted(sources: &Sources, source: Source, kind: Kind, per_second: u32, now: Instant) -> usize {
        (0..100_000).filter(|_| sources.admit(source, kind, per_second, now) != Admission::Denied).count()
    }

    #[test]
    fn a_source_without_proof_gets_a_burst_and_then_its_rate() {
        let sources = Sources::default();
        let one = source(&sources, "192.0.2.1");
        let challenges = |now| admitted(&sources, one, Kind::Challenge, 50, now);
        assert_eq!([challenges(at(100_000)), challenges(at(101_000)), challenges(at(101_000))], [200, 50, 0]);
        assert_eq!(challenges(at(900_000)), 200);
        // A flood of one kind does not use up another.
        let bindings = |now| admitted(&sources, one, Kind::Binding, 50, now);
        assert_eq!([bindings(at(900_000)), bindings(at(901_000)), bindings(at(901_000))], [1_000, 250, 0]);
    }

    #[test]
    fn a_repeated_nonce_raises_the_rates_and_never_lifts_them() {
        let sources = Sources::default();
        let one = source(&sources, "192.0.2.1");
        assert_eq!(admitted(&sources, one, Kind::Challenge, 50, at(0)), 200);
        sources.prove(one, Proof::Nonce, at(0));
        // The attacker that has drained the first bucket has not drained this one.
        assert_eq!(admitted(&sources, one, Kind::Challenge, 50, at(0)), 2 * 50 * 10);
        (0..100_000).for_each(|_| sources.prove(one, Proof::Nonce, at(1_000)));
        for kind in [Kind::Binding, Kind::Verified, Kind::Allocated] {
            assert_eq!(admitted(&sources, one, kind, 50, at(1_000)), 2 * 50 * 32, "{kind:?}");
            assert_eq!(admitted(&sources, one, kind, 50, at(2_000)), 50 * 31, "{kind:?}");
        }
        // The proof ends.
        assert_eq!(admitted(&sources, one, Kind::Challenge, 50, at(1_000 + LONGEST_PROOF)), 200);
    }

    #[test]
    fn each_source_has_its_own_limit_and_an_ipv6_network_is_one_source() {
        let sources = Sources::default();
        let challenges = |text: &str| admitted(&sources, source(&sources, text), Kind::Challenge, 50, at(0));
        assert_eq!(challenges("2001:db8::1"), 200);
        assert_eq!(challenges("2001:db8::ffff:1"), 0);
        // One of these may share its row with another source.
        let others = (1..=9).filter(|n| challenges(&format!("192.0.2.{n}")) == 200).count();
        assert!(others >= 8, "{others}");
    }

    #[test]
    fn zero_is_no_limit() {
        let sources = Sources::default();
        let one = source(&sources, "192.0.2.1");
        for kind in [Kind::Binding, Kind::Challenge, Kind::Verified, Kind::Allocated] {
            assert_eq!(admitted(&sources, one, kind, 0, at(0)), 100_000);
        }
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        (0..1_000).for_each(|_| sources.count_failure(ip, "ann", 0, at(0)));
        assert_eq!(sources.waiting(ip, "ann", 0, at(0)), None);
    }

    /// Returns how many of 10 000 attempts are not made to wait. All fail.
    fn attempts(sources: &Sources, ip: &str, username: impl Fn(u32) -> String, now: Instant) -> usize {
        let ip: IpAddr = ip.parse().unwrap();
        let failed = (0..10_000).filter(|number| {
            let username = username(*number);
            let admitted = sources.waiting(ip, &username, 5, now).is_none();
            if admitted {
                sources.count_failure(ip, &username, 5, now);
            }
            admitted
        });
        failed.count()
    }

    #[test]
    fn a_user_of_a_source_that_fails_often_waits_and_others_do_not() {
        let sources = Sources::default();
        let ann = |now| attempts(&sources, "192.0.2.1", |_| "ann".to_owned(), now);
        assert_eq!([ann(at(0)), ann(at(0)), ann(at(1_000)), ann(at(60_000))], [100, 0, 5, 100]);
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(sources.waiting(ip, "ann", 5, at(60_000)), Some(Waiting::User));
        assert_eq!(sources.waiting(ip, "ann", 5, at(60_200)), None);
        assert_eq!(sources.waiting(ip, "bob", 5, at(60_000)), None);
        assert_eq!(sources.waiting("192.0.2.2".parse().unwrap(), "ann", 5, at(60_000)), None);
    }

    #[test]
    fn a_source_that_tries_many_users_waits() {
        let sources = Sources::default();
        let spray = |now| attempts(&sources, "192.0.2.1", |number| number.to_string(), now);
        assert_eq!([spray(at(0)), spray(at(1_000))], [8 * 100, 8 * 5]);
        assert_eq!(sources.waiting("192.0.2.1".parse().unwrap(), "ann", 5, at(1_000)), Some(Waiting::Source));
    }

    #[test]
    fn the_networks_of_one_site_have_a_limit_together() {
        let sources = Sources::default();
        let from =
            |network: u32| attempts(&sources, &format!("2001:db8:1:{network:x}::1"), |_| "ann".to_owned(), at(0));
        assert!((0..100).map(from).sum::<usize>() <= 64 * 100);
        let waiting = |ip: &str| sources.waiting(ip.parse().unwrap(), "bob", 5, at(0));
        assert_eq!([waiting("2001:db8:1:ffff::1"), waiting("2001:db8:2::1")], [Some(Waiting::Site), None]);
    }

    #[test]
    fn a_source_and_a_site_have_a_limit_on_look_ups() {
        let sources = Sources::default();
        let from = |ip: &str, now| {
            let ip: IpAddr = ip.parse().unwrap();
            (0..10_000).filter(|_| sources.admit_lookup(ip, 20, now)).count()
        };
        assert_eq!([from("192.0.2.1", at(0)), from("192.0.2.1", at(1_000))], [40, 20]);
        assert_eq!(from("192.0.2.2", at(0)), 40);
        let of_site: usize = (0..100).map(|network: u32| from(&format!("2001:db8:1:{network:x}::1"), at(0))).sum();
        assert_eq!(of_site, 8 * 40);
    }

    #[test]
    fn a_client_with_an_allocation_proves_its_source_until_its_next_request() {
        let sources = Sources::default();
        let one = source(&sources, "192.0.2.1");
        sources.prove(one, Proof::Allocation, at(0));
        assert!(sources.factor(one, at(299_999)).is_some() && sources.factor(one, at(300_000)).is_none());
    }

    #[test]
    fn of_two_sources_in_a_row_the_one_with_more_clients_is_proved() {
        let sources = Sources::default();
        let large = Source { row: 7, tag: 1 << TIME_BITS };
        let small = Source { row: 7, tag: 2 << TIME_BITS };
        for second in 0..20 {
            (0..3).for_each(|_| sources.prove(large, Proof::Nonce, at(second * 1_000)));
            sources.prove(small, Proof::Nonce, at(second * 1_000));
        }
        assert!(sources.factor(large, at(20_000)).is_some() && sources.factor(small, at(20_000)).is_none());
        // The row is free once the proof has ended.
        sources.prove(small, Proof::Nonce, at(1_000_000));
        assert_eq!((sources.factor(large, at(1_000_000)), sources.factor(small, at(1_000_000))), (None, Some(10)));
    }

    #[test]
    fn workers_share_the_limit() {
        let sources = Sources::default();
        let one = source(&sources, "192.0.2.1");
        let taken: usize = std::thread::scope(|scope| {
            let worker = || admitted(&sources, one, Kind::Challenge, 50, at(7));
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, 200);
    }
}
