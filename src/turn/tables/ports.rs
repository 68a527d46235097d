//! The pool of relay ports of one relay address in one worker.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::RngExt as _;

use crate::turn::time::{Deadline, Instant};

/// How long a port that another process holds is left alone before it is tried again.
const SET_ASIDE: Duration = Duration::from_secs(60);

/// Ports of a range. Picks are random over the free ones (RFC 6056 §3.3.1), so that one port tells nothing about the
/// next.
#[derive(Debug)]
pub(crate) struct PortPool {
    range: RangeInclusive<u16>,
    free: Vec<u16>,
    /// One for each port of the range.
    places: Box<[Place]>,
    /// In the order in which they come back.
    set_aside: VecDeque<(Deadline, u16)>,
    reserved: usize,
}

/// Where a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At this place of the free list.
    Free(u16),
    /// With an allocation.
    Taken,
    /// Reserved for an allocation to come (RFC 8656 §7.2), or with another worker, who has claimed it.
    Reserved,
    /// Found to be in use by somebody else.
    Aside,
}

/// What an Allocate request wants of its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortPreference {
    Any,
    /// RFC 8656 §18.7, R = 0.
    Even,
    /// RFC 8656 §18.7, R = 1: an even one, whose next higher neighbour is reserved.
    EvenAndNext,
}

impl PortPool {
    pub(crate) fn new(range: RangeInclusive<u16>) -> Self {
        let free: Vec<u16> = range.clone().collect();
        let places = (0..).take(free.len()).map(Place::Free).collect();
        Self { free, places, range, set_aside: VecDeque::new(), reserved: 0 }
    }

    /// Takes a random free port that is as wished.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        preference: PortPreference,
        rng: &mut dyn rand::CryptoRng,
    ) -> Option<u16> {
        while let Some((_, port)) = self.set_aside.pop_front_if(|(deadline, _)| deadline.has_passed(now)) {
            self.make_free(port, Place::Aside);
        }
        if self.free.is_empty() {
            return None;
        }
        // From a random place on; the second step finds an even port while there are as many as odd ones.
        let start = rng.random_range(0..self.free.len());
        let (behind, ahead) = self.free.split_at_checked(start)?;
        let fits = |port: &&u16| match preference {
            PortPreference::Any => true,
            PortPreference::Even => port.is_multiple_of(2),
            PortPreference::EvenAndNext => {
                port.is_multiple_of(2) && matches!(self.place(**port | 1), Some(Place::Free(_)))
            }
        };
        let port = *ahead.iter().chain(behind).find(fits)?;
        self.leave_free(port, Place::Taken);
        if preference == PortPreference::EvenAndNext {
            self.leave_free(port | 1, Place::Reserved);
            self.reserved += 1;
        }
        Some(port)
    }

    /// Whether `port` is of this pool, wherever it is.
    pub(crate) fn owns(&self, port: u16) -> bool {
        self.range.contains(&port)
    }

    /// Returns a port that an allocation had.
    pub(crate) fn release(&mut self, port: u16) {
        self.make_free(port, Place::Taken);
    }

    /// Returns a port that was reserved, or that another worker had.
    pub(crate) fn release_reserved(&mut self, port: u16) {
        if self.make_free(port, Place::Reserved) {
            self.reserved -= 1;
        }
    }

    /// Takes this port if it is free.
    pub(crate) fn take_exactly(&mut self, port: u16) -> bool {
        let free = matches!(self.place(port), Some(Place::Free(_)));
        if free {
            self.leave_free(port, Place::Taken);
        }
        free
    }

    /// An allocation of this worker takes a reserved port.
    pub(crate) fn claim(&mut self, port: u16) {
        debug_assert_eq!(self.place(port), Some(Place::Reserved));
        if let Some(place) = self.place_mut(port).filter(|place| **place == Place::Reserved) {
            *place = Place::Taken;
            self.reserved -= 1;
        }
    }

    /// Returns a port that an allocation was to have and that turned out to be in use by somebody else.
    pub(crate) fn set_aside(&mut self, port: u16, now: Instant) {
        debug_assert_eq!(self.place(port), Some(Place::Taken));
        if let Some(place) = self.place_mut(port) {
            *place = Place::Aside;
            self.set_aside.push_back((Deadline::after(now, SET_ASIDE), port));
        }
    }

    /// Whether ports are missing because other programs have them.
    pub(crate) fn has_set_aside(&self) -> bool {
        !self.set_aside.is_empty()
    }

    /// Ports that are with allocations of this worker.
    pub(crate) fn taken(&self) -> usize {
        self.range.len() - self.free.len() - self.set_aside.len() - self.reserved
    }

    /// Ports that are reserved or with other workers.
    pub(crate) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Whether an allocation of this worker may be using `port`.
    pub(crate) fn is_taken(&self, port: u16) -> bool {
        self.place(port) == Some(Place::Taken)
    }

    fn place(&self, port: u16) -> Option<Place> {
        self.places.get(usize::from(port.checked_sub(*self.range.start())?)).copied()
    }

    fn place_mut(&mut self, port: u16) -> Option<&mut Place> {
        self.places.get_mut(usize::from(port.checked_sub(*self.range.start())?))
    }

    fn leave_free(&mut self, port: u16, to: Place) {
        let Some(Place::Free(at)) = self.place(port) else { return };
        self.free.swap_remove(usize::from(at));
        if let Some(moved) = self.free.get(usize::from(at)).copied()
            && let Some(place) = self.place_mut(moved)
        {
            *place = Place::Free(at);
        }
        if let Some(place) = self.place_mut(port) {
            *place = to;
        }
    }

    fn make_free(&mut self, port: u16, from: Place) -> bool {
        debug_assert_eq!(self.place(port), Some(from), "port {port} comes back from where it was, and once");
        let Ok(at) = u16::try_from(self.free.len()) else { return false };
        match self.place_mut(port) {
            Some(place) if *place == from => *place = Place::Free(at),
            _ => return false,
        }
        self.free.push(port);
        true
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
    use std::collections::{BTreeMap, BTreeSet};

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
        let ports: BTreeSet<u16> = std::iter::from_fn(|| pool.take(at(0), PortPreference::Any, &mut rng)).collect();
        assert_eq!(ports, (50_000..=50_099).collect());
        assert_eq!(pool.taken(), 100);
    }

    // RFC 8656 §7.2: EVEN-PORT with the R bit 0 takes one even port and leaves its neighbour free.
    #[test]
    fn even_ports_are_found_to_the_last_and_cost_no_odd_one() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_000..=50_099);
        let ports: BTreeSet<u16> = std::iter::from_fn(|| pool.take(at(0), PortPreference::Even, &mut rng)).collect();
        assert_eq!(ports, (50_000..=50_099).step_by(2).collect());
        assert_eq!(std::iter::from_fn(|| pool.take(at(0), PortPreference::Any, &mut rng)).count(), 50);
    }

    // RFC 8656 §7.2: random ports (RFC 6056), so that a port tells nothing about the one before or after it.
    #[test]
    fn a_port_does_not_tell_the_next() {
        let pairs: Vec<(u16, u16)> = (0..500)
            .map(|seed| {
                let mut rng = StdRng::seed_from_u64(seed);
                let mut pool = PortPool::new(49_152..=65_535);
                (
                    pool.take(at(0), PortPreference::Any, &mut rng).unwrap(),
                    pool.take(at(0), PortPreference::Any, &mut rng).unwrap(),
                )
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
            let port = pool.take(at(0), PortPreference::Any, &mut rng).unwrap();
            assert_eq!(pool.take(at(0), PortPreference::Any, &mut rng), None);
            pool.release(port);
        }
    }

    #[test]
    fn a_port_set_aside_comes_back_after_a_minute() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_000..=50_000);
        let port = pool.take(at(0), PortPreference::Any, &mut rng).unwrap();
        pool.set_aside(port, at(0));
        assert_eq!(pool.take(at(59), PortPreference::Any, &mut rng), None);
        assert_eq!(pool.take(at(60), PortPreference::Any, &mut rng), Some(port));
    }

    // R = 1 takes whole pairs, and only where both are free.
    #[test]
    fn pairs_are_found_to_the_last() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_001..=50_100);
        let evens: BTreeSet<u16> =
            std::iter::from_fn(|| pool.take(at(0), PortPreference::EvenAndNext, &mut rng)).collect();
        assert_eq!(evens, (50_002..=50_098).step_by(2).collect(), "the ends of the range have no neighbours");
        assert_eq!((pool.taken(), pool.reserved()), (49, 49));
        let left: BTreeSet<u16> = std::iter::from_fn(|| pool.take(at(0), PortPreference::Any, &mut rng)).collect();
        assert_eq!(left, [50_001, 50_100].into());
    }

    /// Where the model has a port.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Whereabouts {
        Free,
        Taken,
        Reserved,
        Aside(u64),
    }

    proptest! {
        // Whatever is done with them, every port is in exactly one place.
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0..8u8, 0..16u16, 0..30u64), 1..300)) {
            use Whereabouts::*;
            let mut rng = StdRng::seed_from_u64(1);
            let mut pool = PortPool::new(50_001..=50_012);
            let mut model: BTreeMap<u16, Whereabouts> = (50_001..=50_012).map(|port| (port, Free)).collect();
            let mut second = 0;
            for (step, which, pause) in steps {
                second += pause;
                let among = |model: &BTreeMap<u16, Whereabouts>, wanted| {
                    let ports: Vec<u16> = model.iter().filter(|(_, at)| **at == wanted).map(|(port, _)| *port).collect();
                    (!ports.is_empty()).then(|| ports[usize::from(which) % ports.len()])
                };
                match step {
                    0..=3 => {
                        for place in model.values_mut() {
                            if let Aside(until) = *place && until <= second {
                                *place = Free;
                            }
                        }
                        let preference = [PortPreference::Any, PortPreference::Even, PortPreference::EvenAndNext, PortPreference::EvenAndNext][usize::from(step)];
                        let fits = |port: u16| {
                            model.get(&port) == Some(&Free)
                                && (preference == PortPreference::Any || port.is_multiple_of(2))
                                && (preference != PortPreference::EvenAndNext || model.get(&(port + 1)) == Some(&Free))
                        };
                        match pool.take(at(second), preference, &mut rng) {
                            Some(port) => {
                                prop_assert!(fits(port));
                                model.insert(port, Taken);
                                if preference == PortPreference::EvenAndNext {
                                    model.insert(port + 1, Reserved);
                                }
                            }
                            None => prop_assert!(!model.keys().any(|port| fits(*port))),
                        }
                    }
                    4 => if let Some(port) = among(&model, Taken) {
                        pool.release(port);
                        model.insert(port, Free);
                    }
                    5 => if let Some(port) = among(&model, Taken) {
                        pool.set_aside(port, at(second));
                        model.insert(port, Aside(second + 60));
                    }
                    6 => if let Some(port) = among(&model, Reserved) {
                        pool.release_reserved(port);
                        model.insert(port, Free);
                    }
                    _ => if let Some(port) = among(&model, Reserved) {
                        pool.claim(port);
                        model.insert(port, Taken);
                    }
                }
                let count = |wanted| model.values().filter(|place| **place == wanted).count();
                prop_assert_eq!((pool.taken(), pool.reserved()), (count(Taken), count(Reserved)));
                for (port, place) in &model {
                    prop_assert_eq!(pool.is_taken(*port), *place == Taken);
                }
            }
        }

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
