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

// RFC 8656 §12: a channel lasts 600 seconds, and the route does not depend on the permission.
#[test]
fn a_bound_channel_is_a_route_until_it_expires() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
    bind(&mut world, &client, 0x4000, 1);
    let expires = Deadline::after(world.now, seconds(600));
    let route = ChannelRoute {
        tuple: client.tuple,
        channel: 0x4000,
        socket: relay.id,
        relay: relay.bind,
        peer: peer(1),
        expires,
    };
    assert_eq!(routes(&mut world), [route]);
    world.advance(seconds(599));
    assert_eq!(routes(&mut world), [route]);
    world.advance(seconds(1));
    assert_eq!(routes(&mut world), []);
    world.permit(&client, peer(1));
    assert_eq!(routes(&mut world), []);
    bind(&mut world, &client, 0x4000, 1);
    assert_eq!(routes(&mut world), [ChannelRoute { expires: Deadline::after(world.now, seconds(600)), ..route }]);
    world.accept(&client, Method::REFRESH, &[&Lifetime(0)]);
    world.expect_end(&relay);
    assert_eq!(routes(&mut world), []);
}

#[test]
fn a_refresh_of_the_channel_or_the_allocation_moves_the_expiry_of_the_route() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let start = world.now;
    let expect = |world: &mut World, after| {
        let expires = Deadline::after(start, seconds(after));
        assert_eq!(routes(world).iter().map(|route| route.expires).collect::<Vec<_>>(), [expires]);
    };
    bind(&mut world, &client, 0x4000, 1);
    world.advance(seconds(100));
    bind(&mut world, &client, 0x4000, 1);
    // The allocation ends before the channel.
    expect(&mut world, 600);
    world.advance(seconds(100));
    world.accept(&client, Method::REFRESH, &[]);
    expect(&mut world, 700);
    bind(&mut world, &client, 0x4000, 1);
    expect(&mut world, 800);
    // A permission has no effect on the route.
    world.advance(seconds(1));
    world.permit(&client, peer(1));
    expect(&mut world, 800);
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

#[test]
fn many_expired_routes_are_removed_in_steps() {
    let mut world = World::with(|setup| setup.limits.channels_per_allocation = 300);
    let ports = |number: u16| std::net::SocketAddr::new(peer(1).ip(), 1000 + number);
    for host in 1..=3 {
        let client = world.client(host);
        world.allocate_with(&client, &[&Lifetime(3_600)]);
        for number in 0..300 {
            let attributes: [&dyn crate::stun::EncodeAttribute; 2] =
                [&ChannelNumber(0x4000 + number), &XorPeerAddress(ports(number))];
            world.accept(&client, Method::CHANNEL_BIND, &attributes);
        }
    }
    assert_eq!(routes(&mut world).len(), 900);
    world.pass(seconds(600));
    assert!(world.server.advance(world.now, usize::MAX), "there are more");
    // The third allocation is left, because those before it have more than 512 actions.
    assert_eq!((routes(&mut world).len(), world.server.route_count()), (300, 300));
    assert!(!world.server.advance(world.now, usize::MAX));
    assert_eq!((routes(&mut world).len(), world.server.route_count()), (0, 0));
}
