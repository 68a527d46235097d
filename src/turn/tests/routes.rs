//! Channel routes: announced, refreshed and removed with their channel, permission and allocation.

use crate::stun::Method;
use crate::stun::attribute::{ChannelNumber, Lifetime, XorPeerAddress};
use crate::turn::tests::support::*;
use crate::turn::{ChannelRoute, Deadline};

/// Binds a channel to a peer.
fn bind(world: &mut World, client: &Client, number: u16, host: u8) {
    world.accept(client, Method::CHANNEL_BIND, &[&ChannelNumber(number), &XorPeerAddress(peer(host))]);
}

/// Returns the announced routes.
fn routes(world: &mut World) -> Vec<ChannelRoute> {
    assert_eq!(world.action(), None);
    world.routes.clone()
}

// RFC 8656 §12: a channel lasts 600 seconds and its permission 300.
#[test]
fn a_bound_channel_is_a_route_until_its_permission_expires() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    bind(&mut world, &client, 0x4000, 1);
    let expires = Deadline::after(world.now, seconds(300));
    let route = ChannelRoute {
        tuple: client.tuple,
        channel: 0x4000,
        socket: relay.id,
        relay: relay.bind,
        peer: peer(1),
        expires,
    };
    assert_eq!(routes(&mut world), [route]);
    world.advance(seconds(301));
    assert_eq!(routes(&mut world), []);
    world.permit(&client, peer(1));
    // The channel has 299 seconds left.
    let again = ChannelRoute { expires: Deadline::after(world.now, seconds(299)), ..route };
    assert_eq!(routes(&mut world), [again]);
    world.accept(&client, Method::REFRESH, &[&Lifetime(0)]);
    world.expect_end(&relay);
    assert_eq!(routes(&mut world), []);
}

#[test]
fn a_refresh_of_the_channel_or_the_permission_moves_the_expiry_of_the_route() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    bind(&mut world, &client, 0x4000, 1);
    for _ in 0..3 {
        world.advance(seconds(100));
        bind(&mut world, &client, 0x4000, 1);
        let expires = Deadline::after(world.now, seconds(300));
        assert_eq!(routes(&mut world).iter().map(|route| route.expires).collect::<Vec<_>>(), [expires]);
    }
    // After 100 more seconds the allocation has 200 seconds left, and so has the route.
    world.advance(seconds(100));
    bind(&mut world, &client, 0x4000, 1);
    let expires = Deadline::after(world.now, seconds(200));
    assert_eq!(routes(&mut world).iter().map(|route| route.expires).collect::<Vec<_>>(), [expires]);
    world.accept(&client, Method::REFRESH, &[]);
    let expires = Deadline::after(world.now, seconds(300));
    assert_eq!(routes(&mut world).iter().map(|route| route.expires).collect::<Vec<_>>(), [expires]);
}

#[test]
fn a_repeated_request_announces_no_route() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    bind(&mut world, &client, 0x4000, 1);
    let before = routes(&mut world);
    bind(&mut world, &client, 0x4000, 1);
    world.permit(&client, peer(1));
    world.permit(&client, peer(2));
    assert!(!world.server.has_actions());
    assert_eq!(routes(&mut world), before);
}
