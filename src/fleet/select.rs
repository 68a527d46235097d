//! The choice of nodes for a client.
//!
//! Loads are up to two seconds old, and many nodes choose at the same time. If each took the node with the least load, all
//! would take the same one until its next heartbeat. So a choice takes two nodes at random and of them the one with less
//! load (the power of two choices). Each node also counts the clients that it has sent to a node since its last heartbeats.

use std::net::SocketAddr;

use rand::{Rng, RngExt as _};

use super::node::{Entry, Heartbeat, Nodes};
use crate::turn::Instant;

/// The bits per second that a weight of 1 stands for.
const BITS_PER_WEIGHT: f64 = 10_000_000.0;
/// A node with fewer allocations does not show what one of them costs.
const ENOUGH_ALLOCATIONS: u32 = 20;

/// The address family of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// Chooses `count` nodes for a client, the preferred one first, each at most once.
///
/// The nodes of `regions` come first, in this order of regions; if they are too few, the other regions follow. Only live
/// nodes with free ports that do not drain are chosen. If there are none, the result is empty.
pub fn choose<'n>(
    nodes: &'n mut Nodes,
    regions: &[&str],
    count: usize,
    now: Instant,
    rng: &mut impl Rng,
) -> Vec<&'n Heartbeat> {
    let mut chosen: Vec<usize> = Vec::new();
    for region in regions.iter().copied().map(Some).chain([None]) {
        if chosen.len() >= count {
            break;
        }
        let mut candidates = nodes.eligible(region, now);
        candidates.retain(|at| !chosen.contains(at));
        while chosen.len() < count
            && let Some(at) = better_of_two(nodes, &mut candidates, rng)
        {
            chosen.push(at);
        }
    }
    for at in &chosen {
        if let Some(entry) = nodes.entry_mut(*at) {
            entry.handed[0] = entry.handed[0].saturating_add(1);
        }
    }
    let nodes = &*nodes;
    chosen.into_iter().filter_map(|at| nodes.entry(at)).map(|entry| &entry.beat).collect()
}

/// Takes two candidates at random and removes the one with less load.
fn better_of_two(nodes: &Nodes, candidates: &mut Vec<usize>, rng: &mut impl Rng) -> Option<usize> {
    if candidates.is_empty() {
        return None;
    }
    let first = rng.random_range(0..candidates.len());
    let at = if candidates.len() == 1 {
        first
    } else {
        // Another one than the first.
        let second = rng.random_range(0..candidates.len() - 1);
        let second = if second >= first { second + 1 } else { second };
        let load = |at: usize| candidates.get(at).and_then(|at| nodes.entry(*at)).map_or(f64::INFINITY, expected_load);
        if load(second) < load(first) { second } else { first }
    };
    Some(candidates.swap_remove(at))
}

/// Returns the addresses of `count` other nodes for ALTERNATE-SERVER: those of `region` first, and of the rest of each the
/// node with the least load first. Each node has at most one.
#[must_use]
pub fn alternates(
    nodes: &Nodes,
    family: Family,
    tls: bool,
    own: &str,
    region: &str,
    count: usize,
    now: Instant,
) -> Vec<SocketAddr> {
    let suits = |address: &&SocketAddr| address.is_ipv4() == (family == Family::V4);
    let entries = nodes.eligible(None, now).into_iter().filter_map(|at| nodes.entry(at));
    let mut found: Vec<(bool, f64, SocketAddr)> = entries
        .filter(|entry| entry.beat.name != own)
        .filter_map(|entry| {
            let addresses = if tls { &entry.beat.tls_addresses } else { &entry.beat.addresses };
            Some((entry.beat.region != region, expected_load(entry), *addresses.iter().find(suits)?))
        })
        .collect();
    found.sort_by(|(far, load, _), (other_far, other, _)| far.cmp(other_far).then(load.total_cmp(other)));
    found.into_iter().take(count).map(|(.., address)| address).collect()
}

/// Returns the load of a node: the part of its CPU, its ports or its bandwidth that is in use, whichever is greatest.
#[must_use]
pub fn load(beat: &Heartbeat) -> f64 {
    let load = &beat.load;
    let ports = f64::from(load.capacity.saturating_sub(load.free_ports)) / f64::from(load.capacity.max(1));
    #[allow(clippy::cast_precision_loss, reason = "a load needs no more than 53 bits")]
    let bits = load.bits_per_second as f64 / (f64::from(beat.weight) * BITS_PER_WEIGHT);
    load.cpu.max(ports).max(bits)
}

/// Adds the clients of the last two intervals to the load, each with the cost of an average allocation.
fn expected_load(entry: &Entry) -> f64 {
    let handed = entry.handed[0].saturating_add(entry.handed[1]);
    let shown = load(&entry.beat);
    let allocations = entry.beat.load.allocations.max(ENOUGH_ALLOCATIONS);
    let one = (shown / f64::from(allocations)).max(1.0 / f64::from(entry.beat.load.capacity.max(1)));
    shown + f64::from(handed) * one
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::super::node::tests::{at, beat};
    use super::super::node::{Heartbeat, Load};
    use super::*;

    fn in_region(name: &str, region: &str, cpu: f64) -> Heartbeat {
        let beat = beat(name, 1);
        Heartbeat { region: region.to_owned(), load: Load { cpu, ..beat.load }, ..beat }
    }

    fn fleet(beats: impl IntoIterator<Item = Heartbeat>) -> Nodes {
        let mut nodes = Nodes::new();
        for beat in beats {
            nodes.heard(beat, at(0.0));
        }
        nodes
    }

    fn chosen(nodes: &mut Nodes, regions: &[&str], count: usize, seed: u64) -> Vec<String> {
        let rng = &mut StdRng::seed_from_u64(seed);
        choose(nodes, regions, count, at(0.0), rng).iter().map(|beat| beat.name.clone()).collect()
    }

    #[test]
    fn of_two_nodes_the_one_with_less_load_is_chosen() {
        let mut nodes = fleet([in_region("a", "eu", 0.9), in_region("b", "eu", 0.2)]);
        for seed in 0..20 {
            assert_eq!(chosen(&mut nodes, &["eu"], 1, seed), ["b"]);
        }
    }

    #[test]
    fn the_load_is_the_greatest_of_cpu_ports_and_bandwidth() {
        let with = |load: Load, weight: u32| super::load(&Heartbeat { load, weight, ..beat("a", 1) });
        let idle = Load { allocations: 1, free_ports: 1000, capacity: 1000, bits_per_second: 0, cpu: 0.0 };
        assert_eq!(with(Load { cpu: 0.3, ..idle }, 100), 0.3);
        assert_eq!(with(Load { cpu: 0.3, free_ports: 500, ..idle }, 100), 0.5);
        assert_eq!(with(Load { cpu: 0.3, bits_per_second: 800_000_000, ..idle }, 100), 0.8);
        assert_eq!(with(Load { cpu: 0.3, bits_per_second: 800_000_000, ..idle }, 1000), 0.3);
    }

    #[test]
    fn nodes_of_the_region_come_first_and_others_fill_up() {
        let mut nodes = fleet([
            in_region("a", "eu", 0.9),
            in_region("b", "us", 0.1),
            in_region("c", "asia", 0.1),
            in_region("d", "asia", 0.2),
        ]);
        for seed in 0..20 {
            assert_eq!(chosen(&mut nodes, &["eu"], 1, seed), ["a"]);
            let two = chosen(&mut nodes, &["eu", "us"], 2, seed);
            assert_eq!(two, ["a", "b"]);
            let mut all = chosen(&mut nodes, &["eu", "us"], 9, seed);
            assert_eq!(all[..2], ["a", "b"]);
            all.sort_unstable();
            assert_eq!(all, ["a", "b", "c", "d"]);
            assert_eq!(chosen(&mut nodes, &["mars"], 1, seed).len(), 1);
        }
    }

    #[test]
    fn draining_full_and_silent_nodes_are_not_chosen() {
        let full = in_region("full", "eu", 0.0);
        let full = Heartbeat { load: Load { free_ports: 0, ..full.load }, ..full };
        let draining = Heartbeat { draining: true, ..in_region("draining", "eu", 0.0) };
        let mut nodes = fleet([full, draining]);
        assert_eq!(chosen(&mut nodes, &["eu"], 2, 1), [""; 0]);
        nodes.heard(in_region("a", "eu", 0.5), at(0.0));
        for seconds in [0.0, 2.0, 4.0, 6.0, 8.0] {
            nodes.own_beat_observed(at(seconds));
        }
        assert!(choose(&mut nodes, &[], 2, at(8.0), &mut StdRng::seed_from_u64(1)).is_empty());
    }

    #[test]
    fn clients_that_a_heartbeat_does_not_show_yet_are_counted() {
        let idle = |name: &str| in_region(name, "eu", 0.1);
        let mut nodes = fleet((0..10).map(|number| idle(&format!("n{number}"))));
        let mut counts = BTreeMap::<String, u32>::new();
        let rng = &mut StdRng::seed_from_u64(7);
        for _ in 0..1000 {
            *counts.entry(choose(&mut nodes, &["eu"], 1, at(0.0), rng)[0].name.clone()).or_default() += 1;
        }
        assert!(counts.values().all(|count| (95..=105).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_heartbeat_forgets_the_clients_before_the_last_one() {
        let mut nodes = fleet([in_region("a", "eu", 0.1)]);
        chosen(&mut nodes, &["eu"], 1, 1);
        let expected = |nodes: &Nodes| expected_load(nodes.entry(0).unwrap());
        assert!(expected(&nodes) > 0.1);
        nodes.heard(Heartbeat { sequence: 2, ..in_region("a", "eu", 0.1) }, at(2.0));
        assert!(expected(&nodes) > 0.1);
        nodes.heard(Heartbeat { sequence: 3, ..in_region("a", "eu", 0.1) }, at(4.0));
        assert_eq!(expected(&nodes), 0.1);
    }

    #[test]
    fn alternate_servers_are_other_nodes_of_the_region_first_and_those_with_the_least_load() {
        let on = |name: &str, address: &str, cpu: f64| Heartbeat {
            addresses: vec![address.parse().unwrap(), "198.51.100.9:443".parse().unwrap()],
            ..in_region(name, "eu", cpu)
        };
        let nodes = fleet([
            on("own", "192.0.2.1:3478", 0.0),
            on("a", "192.0.2.2:3478", 0.5),
            on("b", "192.0.2.3:3478", 0.3),
            on("six", "[2001:db8::1]:3478", 0.1),
            Heartbeat { region: "us".to_owned(), ..on("far", "192.0.2.4:3478", 0.0) },
        ]);
        let texts = |family, tls, count| -> Vec<String> {
            alternates(&nodes, family, tls, "own", "eu", count, at(0.0)).iter().map(SocketAddr::to_string).collect()
        };
        let near = ["198.51.100.9:443", "192.0.2.3:3478", "192.0.2.2:3478"];
        assert_eq!(texts(Family::V4, false, 3), near);
        assert_eq!(texts(Family::V4, false, 9), [&near[..], &["192.0.2.4:3478"]].concat());
        assert_eq!(texts(Family::V4, false, 1), ["198.51.100.9:443"]);
        assert_eq!(texts(Family::V6, false, 9), ["[2001:db8::1]:3478"]);
        assert_eq!(texts(Family::V6, true, 1), ["[2001:db8::7]:5349"]);
        assert_eq!(texts(Family::V4, true, 9), [""; 0]);
    }

    proptest! {
        #[test]
        fn chosen_nodes_are_eligible_and_distinct(
            states in prop::collection::vec((0..3u8, any::<bool>(), any::<bool>(), 0.0..1.0f64), 0..20),
            count in 0..6usize,
            seed: u64,
        ) {
            let beats = states.iter().enumerate().map(|(number, (region, draining, full, cpu))| {
                let beat = in_region(&format!("n{number}"), &format!("r{region}"), *cpu);
                let load = Load { free_ports: if *full { 0 } else { 1 }, ..beat.load };
                Heartbeat { draining: *draining, load, ..beat }
            });
            let mut nodes = fleet(beats);
            let rng = &mut StdRng::seed_from_u64(seed);
            let chosen: Vec<Heartbeat> =
                choose(&mut nodes, &["r1"], count, at(0.0), rng).into_iter().cloned().collect();
            let may = |of: &dyn Fn(u8) -> bool| {
                states.iter().filter(|(region, draining, full, _)| !draining && !full && of(*region)).count()
            };
            prop_assert_eq!(chosen.len(), count.min(may(&|_| true)));
            prop_assert!(chosen.iter().all(|beat| !beat.draining && beat.load.free_ports > 0));
            let here = chosen.iter().take_while(|beat| beat.region == "r1").count();
            prop_assert_eq!(here, count.min(may(&|region| region == 1)));
            let names: std::collections::BTreeSet<&str> = chosen.iter().map(|beat| beat.name.as_str()).collect();
            prop_assert_eq!(names.len(), chosen.len());
        }
    }
}
