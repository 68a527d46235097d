//! With the identity cache, the server does not derive a key again (RFC 8489 §9.2.2). It still authenticates every
//! request.

use std::rc::Rc;

use crate::auth::DERIVATIONS;
use crate::stun::attribute::{ChannelNumber, Lifetime, RequestedTransport, XorPeerAddress};
use crate::stun::{EncodeAttribute, Method};
use crate::turn::tests::support::*;
use crate::turn::{AuthCause, Event};

/// Returns how many keys the server derives to respond to a packet.
fn derivations(world: &mut World, client: &Client, packet: &[u8]) -> usize {
    let before = DERIVATIONS.get();
    world.response_to(&client.tuple, packet);
    DERIVATIONS.get() - before
}

fn request(world: &mut World, client: &Client, method: Method, attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
    client.request(world.transaction(), method, attributes)
}

fn cached_identities(world: &World) -> usize {
    world.server.identity_cache.len()
}

fn assert_expired(world: &mut World) {
    let event = world.event();
    assert!(matches!(event, Event::AuthenticationFailed { cause: AuthCause::Expired { .. }, .. }), "{event:?}");
}

#[test]
fn the_key_of_a_user_is_derived_only_for_the_first_request() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 1_000);
    // No allocation yet: 437.
    let first = request(&mut world, &client, Method::REFRESH, &[]);
    assert_eq!(derivations(&mut world, &client, &first), 1);
    assert_eq!(derivations(&mut world, &client, &first), 0);

    world.allocate(&client);
    let bind: [&dyn EncodeAttribute; 2] = [&ChannelNumber(0x4000), &XorPeerAddress(peer(1))];
    for (method, attributes) in [
        (Method::REFRESH, &[][..]),
        (Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1)) as &dyn EncodeAttribute]),
        (Method::CHANNEL_BIND, &bind),
    ] {
        let packet = request(&mut world, &client, method, attributes);
        assert_eq!(derivations(&mut world, &client, &packet), 0, "{method:?}");
    }
    assert_eq!(cached_identities(&world), 1);
}

#[test]
fn the_allocations_of_a_user_share_one_identity() {
    let mut world = World::new();
    for host in 1..=3 {
        let client = world.client(host).with_credential("carol", UNIX + 1_000);
        world.allocate(&client);
    }
    let mut identities = world.server.table.iter().map(|allocation| &allocation.identity);
    let first = identities.next().unwrap();
    assert!(identities.all(|identity| Rc::ptr_eq(identity, first)));
}

// An allocation holds a reference to its identity, so it does not matter if other requests evict the identity from the
// cache.
#[test]
fn requests_on_an_allocation_derive_no_key() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 1_000);
    world.allocate(&client);
    world.server.identity_cache = Default::default();
    let packet = request(&mut world, &client, Method::REFRESH, &[]);
    assert_eq!(derivations(&mut world, &client, &packet), 0);
    assert_eq!(cached_identities(&world), 0);
}

#[test]
fn a_rejected_request_caches_no_identity() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 1_000);
    let wrong = Client { password: "wrong".to_owned(), ..client.clone() };
    let foreign = Client { nonce: world.nonce(world.client(2).tuple.client), ..client.clone() };
    for (client, code, logs) in [(&wrong, 401, true), (&foreign, 438, false)] {
        assert_eq!(world.error_code(client, Method::ALLOCATE, &[&RequestedTransport::UDP]), code);
        if logs {
            world.event();
        }
    }
    let expired = client.with_credential("carol", UNIX - 1);
    assert_eq!(world.error_code(&expired, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401);
    assert_expired(&mut world);
    assert_eq!(cached_identities(&world), 0);
}

#[test]
fn a_wrong_password_for_a_cached_user_is_401() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 1_000);
    world.allocate(&client);
    let wrong = Client { password: "wrong".to_owned(), ..client.clone() };
    let other_client = Client { tuple: world.client(2).tuple, nonce: world.client(2).nonce, ..wrong.clone() };
    for client in [wrong, other_client] {
        assert_eq!(world.error_code(&client, Method::REFRESH, &[&Lifetime(0)]), 401);
        world.event();
    }
    assert_eq!(world.server.allocation_count(), 1);
}

#[test]
fn a_cached_user_is_rejected_after_the_expiry() {
    let mut world = World::new();
    let client = world.client(1).with_credential("carol", UNIX + 10);
    let other_client = world.client(2).with_credential("carol", UNIX + 10);
    world.allocate(&client);
    world.pass(seconds(10));
    assert_eq!(world.error_code(&other_client, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401);
    assert_expired(&mut world);
    assert_eq!(world.accept(&client, Method::REFRESH, &[&Lifetime(3_600)]).lifetime(), Some(700));
    world.pass(seconds(699));
    assert_eq!(world.accept(&client, Method::REFRESH, &[]).lifetime(), Some(1));
}
