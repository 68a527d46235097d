//! The allocation table.

use crate::stun::Method;
use crate::stun::attribute::Lifetime;
use crate::turn::tables::table::Table;
use crate::turn::tests::support::*;

// All 5-tuples share one hash. The invariants are checked after every packet.
#[test]
fn five_tuples_with_the_same_hash_are_distinguished() {
    for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 0, 3, 1, 4]] {
        let mut world = World::new();
        world.server.table = Table::new(1);
        let clients: Vec<Client> = (1..=6).map(|host| world.client(host)).collect();
        let mut relays: Vec<_> = clients.iter().map(|client| Some(world.allocate(client))).collect();
        for (gone, at) in order.into_iter().enumerate() {
            world.accept(&clients[at], Method::REFRESH, &[&Lifetime(0)]);
            let summary = world.expect_end(&relays[at].take().unwrap());
            assert_eq!(summary.tuple, clients[at].tuple);
            assert_eq!(world.server.allocation_count(), 5 - gone);
            for (client, relay) in clients.iter().zip(&relays) {
                let allocation = world.server.allocation_of(&client.tuple);
                assert_eq!(allocation, relay.as_ref().map(|relay| relay.id.allocation()));
            }
        }
    }
}
