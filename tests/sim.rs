//! A simulation of the TURN core: many clients and peers, a network that loses, doubles and reorders, virtual hours.
//!
//! Each seed makes a world and walks it for some thousand steps. After every step what the servers did is compared
//! with a shadow model that was written from the RFCs. A seed is replayed, with its last steps told, by
//! `SIM_SEED=7 cargo test --test sim`; `SIM_STEPS` changes how many steps a walk has.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a panic is a test's way to fail; clippy.toml allows it in #[test] functions, but not in their helpers"
)]

#[path = "sim/check.rs"]
mod check;
#[path = "sim/dice.rs"]
mod dice;
#[path = "sim/model/mod.rs"]
mod model;
#[path = "sim/packet.rs"]
mod packet;
#[path = "sim/setup.rs"]
mod setup;
#[path = "sim/steps.rs"]
mod steps;
#[path = "sim/world.rs"]
mod world;

use std::ops::Range;
use std::panic::catch_unwind;

use turnserver::turn::Counters;

use crate::world::World;

const STEPS: usize = 3_000;

/// Walks one world to its end; gives the digest of its transcript if it is `told`.
fn walk(seed: u64, steps: usize, told: bool) -> (u64, Counters) {
    let mut world = World::new(seed, told);
    for step in 0..steps {
        world.step();
        world.check(step % 8 == 0);
    }
    world.finish();
    (world.digest(), world.counters)
}

fn walk_all(seeds: Range<u64>) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let steps = number("SIM_STEPS").map_or(STEPS, |steps| steps as usize);
    if let Some(seed) = number("SIM_SEED") {
        if seeds.start == 0 {
            walk(seed, steps, true);
        }
        return;
    }
    let mut counters = Counters::default();
    for seed in seeds {
        match catch_unwind(|| walk(seed, steps, false)) {
            Ok((_, counted)) => counters.add(&counted),
            Err(_) => {
                eprintln!("seed {seed} failed; to replay it: SIM_SEED={seed} cargo test --test sim");
                walk(seed, steps, true);
                panic!("seed {seed} failed once and not again");
            }
        }
    }
    if std::env::var("SIM_SHOW").is_ok() {
        for (outcome, count) in counters.occurred() {
            eprintln!("{count:>8} {outcome}");
        }
    }
}

#[test]
fn the_core_does_what_the_model_does_1() {
    walk_all(0..64);
}

#[test]
fn the_core_does_what_the_model_does_2() {
    walk_all(64..128);
}

#[test]
fn the_core_does_what_the_model_does_3() {
    walk_all(128..192);
}

#[test]
fn the_core_does_what_the_model_does_4() {
    walk_all(192..256);
}

#[test]
fn a_seed_is_one_walk() {
    for seed in 1_000..1_004 {
        assert_eq!(walk(seed, 500, true).0, walk(seed, 500, true).0);
    }
    assert_ne!(walk(1_000, 500, true).0, walk(1_001, 500, true).0);
}
