//! The pool of relay ports of one relay address in one worker.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::RngExt as _;

use crate::turn::time::{Deadline, Instant};

/// The time after which a port that another program uses is retried.
const SET_ASIDE: Duration = Duration::from_secs(60);

/// The ports of a range. A free port is selected at random (RFC 6056 §3.3.1), so that ports are not predictable.
#[derive(Debug)]
pub(crate) struct PortPool {
    range: RangeInclusive<u16>,
    free: Vec<u16>,
    /// The state of each port of the range.
    states: Box<[PortState]>,
    /// In the order in which they are retried.
    set_aside: VecDeque<(Deadline, u16)>,
    reserved: usize,
}

/// The state of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortState {
    /// At this index of the free list.
    Free(u16),
    /// Used by an allocation.
    Taken,
    /// Reserved (RFC 8656 §7.2), or claimed by another worker.
    Reserved,
    /// Used by another program.
    Aside,
}

/// The kind of port that an Allocate request requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortPreference {
    Any,
    /// RFC 8656 §18.7, R = 0.
    Even,
    /// RFC 8656 §18.7, R = 1: an even port, and the next higher port is reserved.
    EvenAndNext,
}

impl PortPool {
    pub(crate) fn new(range: RangeInclusive<u16>) -> Self {
        let free: Vec<u16> = range.clone().collect();
        let states = (0..).take(free.len()).map(PortState::Free).collect();
        Self { free, states, range, set_aside: VecDeque::new(), reserved: 0 }
    }

    /// Takes a random free port that matches the preference.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        preference: PortPreference,
        rng: &mut dyn rand::CryptoRng,
    ) -> Option<u16> {
        while let Some((_, port)) = self.set_aside.pop_front_if(|(deadline, _)| deadline.has_passed(now)) {
            self.make_free(port, PortState::Aside);
        }
        if self.free.is_empty() {
            return None;
        }
        // The search starts at a random index. If half of the free ports are even, it takes two steps on average.
        let start = rng.random_range(0..self.free.len());
        let (before, after) = self.free.split_at_checked(start)?;
        let fits = |port: &&u16| match preference {
            PortPreference::Any => true,
            PortPreference::Even => port.is_multiple_of(2),
            PortPreference::EvenAndNext => {
                port.is_multiple_of(2) && matches!(self.state(**port | 1), Some(PortState::Free(_)))
            }
        };
        let port = *after.iter().chain(before).find(fits)?;
        self.leave_free(port, PortState::Taken);
        if preference == PortPreference::EvenAndNext {
            self.leave_free(port | 1, PortState::Reserved);
            self.reserved += 1;
        }
        Some(port)
    }

    /// Whether `port` belongs to this pool, in any state.
    pub(crate) fn owns(&self, port: u16) -> bool {
        self.range.contains(&port)
    }

    /// Releases the port of an allocation.
    pub(crate) fn release(&mut self, port: u16) {
        self.make_free(port, PortState::Taken);
    }

    /// Releases a port that was reserved, or claimed by another worker.
    pub(crate) fn release_reserved(&mut self, port: u16) {
        if self.make_free(port, PortState::Reserved) {
            self.reserved -= 1;
        }
    }

    /// Takes this port if it is free.
    pub(crate) fn take_exactly(&mut self, port: u16) -> bool {
        let free = matches!(self.state(port), Some(PortState::Free(_)));
        if free {
            self.leave_free(port, PortState::Taken);
        }
        free
    }

    /// Takes a reserved port for an allocation of this worker.
    pub(crate) fn claim(&mut self, port: u16) {
        debug_assert_eq!(self.state(port), Some(PortState::Reserved));
        if let Some(place) = self.state_mut(port).filter(|place| **place == PortState::Reserved) {
            *place = PortState::Taken;
            self.reserved -= 1;
        }
    }

    /// Sets aside a port that was taken for an allocation and is used by another program.
    pub(crate) fn set_aside(&mut self, port: u16, now: Instant) {
        debug_assert_eq!(self.state(port), Some(PortState::Taken));
        if let Some(place) = self.state_mut(port) {
            *place = PortState::Aside;
            self.set_aside.push_back((Deadline::after(now, SET_ASIDE), port));
        }
    }

    /// Whether other programs use ports of this pool.
    pub(crate) fn has_set_aside(&self) -> bool {
        !self.set_aside.is_empty()
    }

    /// Returns the number of ports that allocations of this worker use.
    pub(crate) fn taken(&self) -> usize {
        self.range.len() - self.free.len() - self.set_aside.len() - self.reserved
    }

    /// Returns the number of ports that are reserved or claimed by other workers.
    pub(crate) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Whether an allocation of this worker uses `port`.
    pub(crate) fn is_taken(&self, port: u16) -> bool {
        self.state(port) == Some(PortState::Taken)
    }

    fn state(&self, port: u16) -> Option<PortState> {
        self.states.get(usize::from(port.checked_sub(*self.range.start())?)).copied()
    }

    fn state_mut(&mut self, port: u16) -> Option<&mut PortState> {
        self.states.get_mut(usize::from(port.checked_sub(*self.range.start())?))
    }

    fn leave_free(&mut self, port: u16, to: PortState) {
        let Some(PortState::Free(at)) = self.state(port) else { return };
        self.free.swap_remove(usize::from(at));
        if let Some(moved) = self.free.get(usize::from(at)).copied()
            && let Some(place) = self.state_mut(moved)
        {
            *place = PortState::Free(at);
        }
        if let Some(place) = self.state_mut(port) {
            *place = to;
        }
    }

    fn make_free(&mut self, port: u16, from: PortState) -> bool {
        debug_assert_eq!(self.state(port), Some(from), "port {port} is in the state that it is released from");
        let Ok(at) = u16::try_from(self.free.len()) else { return false };
        match self.state_mut(port) {
            Some(place) if *place == from => *place = PortState::Free(at),
            _ => return false,
        }
        self.free.push(port);
        true
    }
}

/// Splits `range` into `parts` disjoint slices and returns slice `index`. All slices except the first begin at an even
/// port, so that an even port and the next odd port are in the same slice. `None` if the range has too few ports.
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
    fn every_port_of_the_range_is_taken_once() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_000..=50_099);
        let ports: BTreeSet<u16> = std::iter::from_fn(|| pool.take(at(0), PortPreference::Any, &mut rng)).collect();
        assert_eq!(ports, (50_000..=50_099).collect());
        assert_eq!(pool.taken(), 100);
    }

    // RFC 8656 §7.2: EVEN-PORT with the R bit 0 takes one even port. The next odd port stays free.
    #[test]
    fn every_even_port_is_found_and_no_odd_port_is_taken() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_000..=50_099);
        let ports: BTreeSet<u16> = std::iter::from_fn(|| pool.take(at(0), PortPreference::Even, &mut rng)).collect();
        assert_eq!(ports, (50_000..=50_099).step_by(2).collect());
        assert_eq!(std::iter::from_fn(|| pool.take(at(0), PortPreference::Any, &mut rng)).count(), 50);
    }

    // RFC 8656 §7.2: random ports (RFC 6056), so that a port does not predict other ports.
    #[test]
    fn a_port_does_not_predict_the_next() {
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
    fn a_released_port_can_be_taken_again() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(65_535..=65_535);
        for _ in 0..3 {
            let port = pool.take(at(0), PortPreference::Any, &mut rng).unwrap();
            assert_eq!(pool.take(at(0), PortPreference::Any, &mut rng), None);
            pool.release(port);
        }
    }

    #[test]
    fn a_port_set_aside_is_retried_after_a_minute() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_000..=50_000);
        let port = pool.take(at(0), PortPreference::Any, &mut rng).unwrap();
        pool.set_aside(port, at(0));
        assert_eq!(pool.take(at(59), PortPreference::Any, &mut rng), None);
        assert_eq!(pool.take(at(60), PortPreference::Any, &mut rng), Some(port));
    }

    // R = 1 takes pairs whose ports are both free.
    #[test]
    fn every_free_pair_is_found() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pool = PortPool::new(50_001..=50_100);
        let evens: BTreeSet<u16> =
            std::iter::from_fn(|| pool.take(at(0), PortPreference::EvenAndNext, &mut rng)).collect();
        assert_eq!(
            evens,
            (50_002..=50_098).step_by(2).collect(),
            "the ports at the ends of the range are not in a pair"
        );
        assert_eq!((pool.taken(), pool.reserved()), (49, 49));
        let left: BTreeSet<u16> = std::iter::from_fn(|| pool.take(at(0), PortPreference::Any, &mut rng)).collect();
        assert_eq!(left, [50_001, 50_100].into());
    }

    /// The state of a port in the model.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum ModelState {
        Free,
        Taken,
        Reserved,
        Aside(u64),
    }

    proptest! {
        // Every port always has exactly one state.
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0..8u8, 0..16u16, 0..30u64), 1..300)) {
            use ModelState::*;
            let mut rng = StdRng::seed_from_u64(1);
            let mut pool = PortPool::new(50_001..=50_012);
            let mut model: BTreeMap<u16, ModelState> = (50_001..=50_012).map(|port| (port, Free)).collect();
            let mut second = 0;
            for (step, which, pause) in steps {
                second += pause;
                let among = |model: &BTreeMap<u16, ModelState>, wanted| {
                    let ports = model.iter().filter(|(_, state)| **state == wanted).map(|(port, _)| *port);
                    let ports: Vec<u16> = ports.collect();
                    (!ports.is_empty()).then(|| ports[usize::from(which) % ports.len()])
                };
                match step {
                    0..=3 => {
                        for place in model.values_mut() {
                            if let Aside(until) = *place && until <= second {
                                *place = Free;
                            }
                        }
                        let preference = match step {
                            0 => PortPreference::Any,
                            1 => PortPreference::Even,
                            _ => PortPreference::EvenAndNext,
                        };
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
        fn slices_cover_the_range_and_do_not_overlap(
            first in 1024..=65_535u16,
            more in 0..2_000u16,
            parts in 1..9usize,
        ) {
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
