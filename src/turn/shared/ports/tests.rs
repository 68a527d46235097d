use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;

fn at(second: u64) -> Instant {
    Instant::from_elapsed(Duration::from_secs(second))
}

/// Takes a port as the server does: one that rests only if no other is free.
fn take(ports: &Ports, now: Instant, preference: PortPreference, rng: &mut StdRng) -> Option<u16> {
    let rested = ports.take(now, preference, Resting::Excluded, rng);
    rested.or_else(|| ports.take(now, preference, Resting::Included, rng))
}

/// Takes ports until none is left.
fn take_all(ports: &Ports, preference: PortPreference, rng: &mut StdRng) -> Vec<u16> {
    std::iter::from_fn(|| take(ports, at(0), preference, rng)).collect()
}

fn set(ports: impl IntoIterator<Item = u16>) -> BTreeSet<u16> {
    ports.into_iter().collect()
}

#[test]
fn every_port_of_the_range_is_taken_once() {
    for range in [50_000..=50_099, 49_999..=50_000, 1..=63, 1..=64, 63..=65, 65_535..=65_535, 1..=65_535] {
        let mut rng = StdRng::seed_from_u64(1);
        let ports = Ports::new(&range);
        assert_eq!(ports.taken(), 0);
        let taken = take_all(&ports, PortPreference::Any, &mut rng);
        assert_eq!((taken.len(), set(taken)), (range.len(), set(range.clone())));
        assert_eq!(ports.taken(), range.len());
    }
}

// RFC 8656 §7.2: EVEN-PORT with the R bit 0 takes one even port. The next odd port stays free.
#[test]
fn every_even_port_is_found_and_no_odd_port_is_taken() {
    let mut rng = StdRng::seed_from_u64(1);
    let ports = Ports::new(&(49_999..=50_099));
    assert_eq!(set(take_all(&ports, PortPreference::Even, &mut rng)), set((50_000..=50_098).step_by(2)));
    assert_eq!(take_all(&ports, PortPreference::Any, &mut rng).len(), 51);
}

// RFC 8656 §7.2: random ports (RFC 6056), so that a port does not predict other ports.
#[test]
fn a_port_does_not_predict_the_next() {
    let pairs: Vec<(u16, u16)> = (0..500)
        .map(|seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            let ports = Ports::new(&(49_152..=65_535));
            let mut next = || take(&ports, at(0), PortPreference::Any, &mut rng).unwrap();
            (next(), next())
        })
        .collect();
    let distinct = |values: Vec<u16>| values.into_iter().collect::<BTreeSet<u16>>().len();
    assert!(distinct(pairs.iter().map(|(first, _)| *first).collect()) > 450);
    assert!(distinct(pairs.iter().map(|(first, next)| next.wrapping_sub(*first)).collect()) > 450);
    // All parts of the range are used.
    let quarters: BTreeSet<u16> = pairs.iter().map(|(first, _)| (first - 49_152) / 4_096).collect();
    assert_eq!(quarters.len(), 4);
}

// When few ports are left, each of them may be the next.
#[test]
fn the_last_ports_of_a_range_are_taken_in_any_order() {
    let next = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let ports = Ports::new(&(49_152..=65_535));
        take_all(&ports, PortPreference::Any, &mut rng);
        (50_000..50_008).for_each(|port| ports.release(port));
        take(&ports, at(0), PortPreference::Any, &mut rng).unwrap()
    };
    assert_eq!((0..100).map(next).collect::<BTreeSet<u16>>(), (50_000..50_008).collect());
}

#[test]
fn a_released_port_can_be_taken_again() {
    let mut rng = StdRng::seed_from_u64(1);
    let ports = Ports::new(&(65_535..=65_535));
    for _ in 0..3 {
        let port = take(&ports, at(0), PortPreference::Any, &mut rng).unwrap();
        assert_eq!(take(&ports, at(0), PortPreference::Any, &mut rng), None);
        ports.release(port);
    }
}

#[test]
fn a_port_set_aside_is_retried_after_a_minute() {
    let mut rng = StdRng::seed_from_u64(1);
    let ports = Ports::new(&(50_000..=50_000));
    let port = take(&ports, at(0), PortPreference::Any, &mut rng).unwrap();
    ports.set_aside(port, at(0));
    assert_eq!((ports.taken(), ports.in_use_elsewhere(at(59))), (0, 1));
    assert_eq!(take(&ports, at(59), PortPreference::Any, &mut rng), None);
    assert_eq!(ports.in_use_elsewhere(at(60)), 0);
    assert_eq!(take(&ports, at(60), PortPreference::Any, &mut rng), Some(port));
}

// A port that was used a moment ago is taken only if no other is free, and never excluded: a small range serves as
// many clients as it has ports.
#[test]
fn a_released_port_rests_while_others_are_free() {
    let mut rng = StdRng::seed_from_u64(1);
    let ports = Ports::new(&(50_000..=50_039));
    take_all(&ports, PortPreference::Any, &mut rng);
    (50_000..50_020).for_each(|port| ports.release(port));
    (50_020..50_040).for_each(|port| {
        ports.rest(port, at(100));
        ports.release(port);
    });
    let mut next =
        |count, second| set((0..count).map(|_| take(&ports, at(second), PortPreference::Any, &mut rng).unwrap()));
    assert_eq!(next(20, 105), set(50_000..50_020), "the others come first");
    assert_eq!(next(20, 105), set(50_020..50_040), "no client is rejected for a port that rests");
    (50_000..50_040).for_each(|port| ports.release(port));
    assert!(!next(20, 106).is_disjoint(&set(50_020..50_040)), "after its rest a port is like the others");
}

// R = 1 takes pairs whose ports are both free.
#[test]
fn every_free_pair_is_found() {
    let mut rng = StdRng::seed_from_u64(1);
    let ports = Ports::new(&(50_001..=50_100));
    let evens = take_all(&ports, PortPreference::EvenAndNext, &mut rng);
    assert_eq!(set(evens), set((50_002..=50_098).step_by(2)), "the ports at the ends of the range are not in a pair");
    assert_eq!(ports.taken(), 98);
    assert_eq!(set(take_all(&ports, PortPreference::Any, &mut rng)), set([50_001, 50_100]));
}

// Threads take and release ports as workers do: no port is given twice, and none is lost.
#[test]
fn threads_never_hold_the_same_port_and_lose_none() {
    const ROUNDS: usize = 20_000;
    let ports = Ports::new(&(50_001..=50_140));
    let holders: Vec<AtomicUsize> = (0..=u16::MAX).map(|_| AtomicUsize::new(0)).collect();
    let swap = |port: u16, from: usize, to: usize| {
        let before = holders[usize::from(port)].swap(to, Ordering::Relaxed);
        assert_eq!(before, from, "port {port} has one holder");
    };
    std::thread::scope(|scope| {
        for thread in 1..=4 {
            let (ports, swap) = (&ports, &swap);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(thread as u64);
                let mut held: Vec<u16> = Vec::new();
                for round in 0..ROUNDS {
                    let now = at(round as u64 / 100);
                    let preference =
                        [PortPreference::Any, PortPreference::Even, PortPreference::EvenAndNext][round % 3];
                    if let Some(port) = take(ports, now, preference, &mut rng) {
                        let pair = preference == PortPreference::EvenAndNext;
                        for port in port..=port + u16::from(pair) {
                            swap(port, 0, thread);
                            held.push(port);
                        }
                    }
                    while held.len() > rng.random_range(0..60) {
                        let port = held.swap_remove(rng.random_range(0..held.len()));
                        swap(port, thread, 0);
                        match rng.random_range(0..20) {
                            0 => ports.set_aside(port, now),
                            1..10 => ports.release(port),
                            _ => {
                                ports.rest(port, now);
                                ports.release(port);
                            }
                        }
                    }
                }
                held.into_iter().for_each(|port| {
                    swap(port, thread, 0);
                    ports.release(port);
                });
            });
        }
    });
    assert_eq!(ports.taken(), 0);
    let mut rng = StdRng::seed_from_u64(9);
    let later = at(ROUNDS as u64);
    assert_eq!(std::iter::from_fn(|| take(&ports, later, PortPreference::Any, &mut rng)).count(), 140);
}

#[test]
fn a_new_range_keeps_the_state_of_every_port() {
    let mut rng = StdRng::seed_from_u64(1);
    let ports = Ports::new(&(50_000..=50_009));
    assert_eq!(set(take_all(&ports, PortPreference::Any, &mut rng)), set(50_000..=50_009));
    ports.rest(50_001, at(0));
    ports.release(50_001);
    ports.set_aside(50_002, at(0));
    // Every free port rests. The ports that are new do not.
    assert_eq!(ports.take(at(0), PortPreference::Any, Resting::Excluded, &mut rng), None);
    ports.set_range(&(50_000..=51_999));
    assert_eq!((ports.taken(), ports.untaken(), ports.quarantined(at(0))), (8, 1_992, 2));
    let new = std::iter::from_fn(|| ports.take(at(0), PortPreference::Any, Resting::Excluded, &mut rng));
    assert_eq!(set(new), set(50_010..=51_999));
    assert_eq!(take_all(&ports, PortPreference::Any, &mut rng), [50_001], "another program uses the other one");

    ports.set_range(&(1_000..=1_001));
    assert_eq!((ports.untaken(), ports.quarantined(at(0)), ports.in_use_elsewhere(at(0))), (2, 0, 0));
    (50_000..=51_999).filter(|port| *port != 50_002).for_each(|port| ports.release(port));
    assert_eq!(ports.taken(), 0);
    assert!(!ports.take_exactly(50_000));
    assert_eq!(set(take_all(&ports, PortPreference::Any, &mut rng)), set(1_000..=1_001));

    ports.set_range(&(50_002..=50_003));
    assert_eq!(ports.in_use_elsewhere(at(59)), 1);
    assert_eq!(take(&ports, at(59), PortPreference::EvenAndNext, &mut rng), None);
    assert_eq!(take(&ports, at(60), PortPreference::EvenAndNext, &mut rng), Some(50_002));
}

// Another thread changes the range as a reload does, while threads take and release ports as workers do.
#[test]
fn threads_lose_no_port_while_the_range_changes() {
    let ranges = [50_001..=50_060, 50_031..=50_090, 50_050..=50_051, 49_000..=50_140];
    let ports = Ports::new(&ranges[0]);
    let holders = PortMap::<AtomicUsize, 1>::new(&(1..=u16::MAX));
    std::thread::scope(|scope| {
        let (ports, holders) = (&ports, &holders);
        let workers = [1, 2, 3, 4].map(|thread| {
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(thread as u64);
                let mut held = Vec::new();
                for round in 0..20_000 {
                    if let Some(port) = take(ports, at(round / 100), PortPreference::Any, &mut rng) {
                        assert_eq!(holders.get(port).unwrap().swap(thread, Ordering::Relaxed), 0, "port {port}");
                        held.push(port);
                    }
                    let most = if round < 19_999 { rng.random_range(0..20) } else { 0 };
                    while held.len() > most {
                        let port = held.swap_remove(rng.random_range(0..held.len()));
                        assert_eq!(holders.get(port).unwrap().swap(0, Ordering::Relaxed), thread, "port {port}");
                        ports.release(port);
                    }
                }
            })
        });
        let mut next = ranges.iter().cycle();
        while !workers.iter().all(|worker| worker.is_finished()) {
            next.next().into_iter().for_each(|range| ports.set_range(range));
        }
    });
    assert_eq!(ports.taken(), 0);
    for range in ranges {
        ports.set_range(&range);
        let all = take_all(&ports, PortPreference::Any, &mut StdRng::seed_from_u64(9));
        assert_eq!(set(all.iter().copied()), set(range));
        all.into_iter().for_each(|port| ports.release(port));
    }
}

/// The state of a port in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ModelState {
    Free,
    /// Free, and resting until this second.
    Resting(u64),
    Taken,
    Aside(u64),
}

proptest! {
    // Every port always has exactly one state, whatever the range.
    #[test]
    fn behaves_like_a_map(steps in prop::collection::vec((0..9u8, 0..16u16, 0..30u64), 1..300)) {
        use ModelState::*;
        let mut rng = StdRng::seed_from_u64(1);
        let mut range = 50_039..=50_050;
        let ports = Ports::new(&range);
        let mut model: BTreeMap<u16, ModelState> = (50_030..=50_060).map(|port| (port, Free)).collect();
        let mut second = 0;
        for (step, which, pause) in steps {
            second += pause;
            for place in model.values_mut() {
                if let Resting(until) | Aside(until) = *place && until <= second {
                    *place = Free;
                }
            }
            let taken: Vec<u16> = model.iter().filter(|(_, state)| **state == Taken).map(|(port, _)| *port).collect();
            let one = (!taken.is_empty()).then(|| taken[usize::from(which) % taken.len()]);
            match step {
                0..=3 => {
                    let preference = match step {
                        0 => PortPreference::Any,
                        1 => PortPreference::Even,
                        _ => PortPreference::EvenAndNext,
                    };
                    let fits = |port: u16, free: &dyn Fn(ModelState) -> bool| {
                        let free = |port: u16| range.contains(&port) && free(model[&port]);
                        free(port)
                            && (preference == PortPreference::Any || port.is_multiple_of(2))
                            && (preference != PortPreference::EvenAndNext || free(port + 1))
                    };
                    let rested = |port: u16| fits(port, &|state| state == Free);
                    let any = |port: u16| fits(port, &|state| matches!(state, Free | Resting(_)));
                    match take(&ports, at(second), preference, &mut rng) {
                        Some(port) => {
                            let some_rested = model.keys().any(|port| rested(*port));
                            prop_assert!(any(port) && (rested(port) || !some_rested));
                            model.insert(port, Taken);
                            if preference == PortPreference::EvenAndNext {
                                model.insert(port + 1, Taken);
                            }
                        }
                        None => prop_assert!(!model.keys().any(|port| any(*port))),
                    }
                }
                4 => if let Some(port) = one {
                    ports.release(port);
                    model.insert(port, Free);
                }
                5 => if let Some(port) = one {
                    ports.set_aside(port, at(second));
                    model.insert(port, Aside(second + 60));
                }
                6 => if let Some(port) = one {
                    ports.rest(port, at(second));
                    ports.release(port);
                    model.insert(port, Resting(second + 6));
                }
                7 => {
                    let port = 50_039 + which % 12;
                    let free = range.contains(&port) && matches!(model[&port], Free | Resting(_));
                    if !matches!(model[&port], Aside(_)) {
                        prop_assert_eq!(ports.take_exactly(port), free);
                        if free {
                            model.insert(port, Taken);
                        }
                    }
                }
                _ => {
                    range = 50_030 + which..=50_045 + which.wrapping_mul(7) % 16;
                    ports.set_range(&range);
                }
            }
            let count = |wanted: &dyn Fn(&ModelState) -> bool| model.values().filter(|state| wanted(state)).count();
            prop_assert_eq!(ports.taken(), count(&|state| *state == Taken));
            let within = |wanted: &dyn Fn(ModelState) -> bool| range.clone().filter(|port| wanted(model[port])).count();
            prop_assert_eq!(ports.in_use_elsewhere(at(second)), within(&|state| matches!(state, Aside(_))));
            prop_assert_eq!(ports.quarantined(at(second)), within(&|state| matches!(state, Aside(_) | Resting(_))));
            prop_assert_eq!(ports.untaken(), within(&|state| state != Taken));
            for (port, place) in &model {
                prop_assert_eq!(ports.is_taken(*port), *place == Taken);
            }
        }
    }
}
