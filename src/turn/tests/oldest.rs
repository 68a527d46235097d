//! The search for the oldest allocations.

use crate::stun::Method;
use crate::stun::attribute::Lifetime;
use crate::turn::tests::support::*;
use crate::turn::{AllocationId, Cursor, Oldest};

/// Searches in steps of two allocations. Calls `between` after the first step.
fn search(world: &mut World, most: usize, between: impl FnOnce(&mut World)) -> Vec<AllocationId> {
    let mut oldest = Oldest::new(world.now, most);
    let (mut next, mut between) = (Some(Cursor::default()), Some(between));
    while let Some(cursor) = next {
        next = world.server.seek_oldest(world.now, cursor, 2, &mut oldest);
        if let Some(between) = between.take() {
            between(world);
        }
    }
    world.server.found_oldest(world.now, &oldest).iter().map(|info| info.id).collect()
}

#[test]
fn a_search_in_steps_finds_the_oldest_allocations_that_are_still_open() {
    let mut world = World::new();
    let clients: Vec<Client> = (1..=5).map(|host| world.client(host)).collect();
    let mut ids = Vec::new();
    for client in &clients {
        ids.push(world.allocate(client).id.allocation());
        world.pass(seconds(1));
    }
    assert_eq!(search(&mut world, 3, |_| {}), ids[..3]);
    assert_eq!(search(&mut world, 9, |_| {}), ids);
    // An allocation in the place of an ended one is not older than the others.
    world.accept(&clients[0], Method::REFRESH, &[&Lifetime(0)]);
    while world.action().is_some() {}
    let again = world.allocate(&world.client(6)).id.allocation();
    assert_eq!(search(&mut world, 9, |_| {}), [&ids[1..], &[again]].concat());
    let end = |world: &mut World| {
        world.accept(&clients[1], Method::REFRESH, &[&Lifetime(0)]);
        while world.action().is_some() {}
    };
    assert_eq!(search(&mut world, 2, end), ids[2..3]);
}
