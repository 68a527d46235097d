//! The pool of relay ports of one relay address in one worker.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::RngExt as _;

use super::time::{Deadline, Instant};

/// How long a port that another process holds is left alone before it is tried again.
const SET_ASIDE: Duration = Duration::from_secs(60);

/// Ports of a range, each free, taken or set aside. Picks are random over the free ones (RFC 6056 §3.3.1), so that
/// one port tells nothing about the next.
#[derive(Debug)]
pub(super) struct PortPool {
    range: RangeInclusive<u16>,
    free: Vec<u16>,
    /// Found to be in use by somebody else; in the order in which they come back.
    set_aside: VecDeque<(Deadline, u16)>,
}

impl PortPool {
    pub(super) fn new(range: RangeInclusive<u16>) -> Self {
        Self { free: range.clone().collect(), range, set_aside: VecDeque::new() }
    }

    /// Takes a random free port, or a random free even one.
    pub(super) fn take(&mut self, now: Instant, even: bool, rng: &mut dyn rand::CryptoRng) -> Option<u16> {
        while let Some((_, port)) = self.set_aside.pop_front_if(|(deadline, _)| deadline.has_passed(now)) {
            self.free.push(port);
        }
        if self.free.is_empty() {
            return None;
        }
        let start = rng.random_range(0..self.free.len());
        // From a random place on; the second step finds an even port while there are as many as odd ones.
        let fits = |at: &usize| self.free.get(*at).is_some_and(|port| !even || port.is_multiple_of(2));
        let pick = (start..self.free.len()).chain(0..start).find(fits)?;
        Some(self.free.swap_remove(pick))
    }

    /// Returns a port that [`take`](Self::take) gave.
    pub(super) fn give_back(&mut self, port: u16) {
        debug_assert!(self.range.contains(&port), "port {port} is not of this pool");
        debug_assert!(!self.free.contains(&port), "port {port} was given back twice");
        self.free.push(port);
    }

    /// Returns a port that turned out to be in use by somebody else.
    pub(super) fn set_aside(&mut self, port: u16, now: Instant) {
        self.set_aside.push_back((Deadline::after(now, SET_ASIDE), port));
    }

    /// Whether ports are missing because other programs have them.
    pub(super) fn has_set_aside(&self) -> bool {
        !self.set_aside.is_empty()
    }

    /// Ports that are neither free nor set aside.
    pub(super) fn taken(&self) -> usize {
        self.range.len() - self.free.len() - self.set_aside.len()
    }

    /// Whether `port` could be handed out, today or after its time aside.
    pub(super) fn holds(&self, port: u16) -> bool {
        self.free.contains(&port) || self.set_aside.iter().any(|(_, aside)| *aside == port)
    }
}

/// Splits `range` into `parts` disjoint slices that begin at even ports, so that an even port and its odd neighbour
/// stay together, and returns the slice of part `index`. `None` where the range has too few ports for so many parts.
///
/// # Panics
/// If `index` is not below `parts`.
#[must_use]
pub fn slice_of(range: &RangeInclusive<u16>, parts: usize, index: usize) -> Option<RangeInclusive<u16>> {
    assert!(index < parts, "a part's index is below the number of parts");
    let (first, end) = (usize::from(*range.start()), usize::from(*range.end()) + 1);
    let boundary = |part: usize| {
        let at = first + end.saturating_sub(first) * part / parts;
        if part == 0 || part == parts { at } else { at.next_multiple_of(2).min(end) }
    };
    let (from, to) = (boundary(index), boundary(index + 1));
    Some(u16::try_from(from).ok()?..=u16::try_from(to.checked_sub(1)?).ok()?).filter(|slice| !slice.is_empty())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    #[test]
    fn every_port_of_the_range_is_handed_out_once() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_000..=50_099);
        let ports: BTreeSet<u16> = std::iter::from_fn(|| pool.take(at(0), false, &mut rng)).collect();
        assert_eq!(ports, (50_000..=50_099).collect());
        assert_eq!(pool.taken(), 100);
    }

    // RFC 8656 §7.2: EVEN-PORT with the R bit 0 takes one even port and leaves its neighbour free.
    #[test]
    fn even_ports_are_found_to_the_last_and_cost_no_odd_one() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_000..=50_099);
        let ports: BTreeSet<u16> = std::iter::from_fn(|| pool.take(at(0), true, &mut rng)).collect();
        assert_eq!(ports, (50_000..=50_099).step_by(2).collect());
        assert_eq!(std::iter::from_fn(|| pool.take(at(0), false, &mut rng)).count(), 50);
    }

    // RFC 8656 §7.2: random ports (RFC 6056), so that a port tells nothing about the one before or after it.
    #[test]
    fn a_port_does_not_tell_the_next() {
        let pairs: Vec<(u16, u16)> = (0..500)
            .map(|seed| {
                let mut rng = StdRng::seed_from_u64(seed);
                let mut pool = PortPool::new(49_152..=65_535);
                (pool.take(at(0), false, &mut rng).unwrap(), pool.take(at(0), false, &mut rng).unwrap())
            })
            .collect();
        let distinct = |values: Vec<u16>| values.into_iter().collect::<BTreeSet<u16>>().len();
        assert!(distinct(pairs.iter().map(|(first, _)| *first).collect()) > 450);
        assert!(distinct(pairs.iter().map(|(first, next)| next.wrapping_sub(*first)).collect()) > 450);
        // All parts of the range are used.
        let quarters: BTreeSet<u16> = pairs.iter().map(|(first, _)| (first - 49_152) / 4_096).collect();
        assert_eq!(quarters.len(), 4);
    }

    #[test]
    fn the_whole_range_can_be_used_again() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(65_535..=65_535);
        for _ in 0..3 {
            let port = pool.take(at(0), false, &mut rng).unwrap();
            assert_eq!(pool.take(at(0), false, &mut rng), None);
            pool.give_back(port);
        }
    }

    #[test]
    fn a_port_set_aside_comes_back_after_a_minute() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_000..=50_000);
        let port = pool.take(at(0), false, &mut rng).unwrap();
        pool.set_aside(port, at(0));
        assert_eq!(pool.take(at(59), false, &mut rng), None);
        assert_eq!(pool.take(at(60), false, &mut rng), Some(port));
    }

    proptest! {
        #[test]
        fn slices_cover_the_range_and_do_not_overlap(first in 1024..=65_535u16, more in 0..2_000u16, parts in 1..9usize) {
            let range = first..=first.saturating_add(more);
            let mut seen = Vec::new();
            for index in 0..parts {
                if let Some(slice) = slice_of(&range, parts, index) {
                    if index > 0 {
                        prop_assert_eq!(slice.start() % 2, 0);
                    }
                    seen.extend(slice);
                }
            }
            prop_assert_eq!(seen, range.collect::<Vec<u16>>());
        }
    }
}
