//! The credentials of test links: what they reach, how much they relay, and when their allocations end.

use crate::auth::{Secret, TestLink, time_limited};
use crate::stun::attribute::{ChannelNumber, Data, Lifetime, RequestedTransport, XorPeerAddress};
use crate::stun::{Class, Method};
use crate::test_world::Blueprint;
use crate::turn::tests::support::*;
use crate::turn::{ChannelRoute, Denial, Direction, DropReason, EndReason, Event, Limit, NotOffloaded};

const LINK_SECRET: &str = "one of the test links";
const CHANNEL: u16 = 0x4000;

fn link(place: usize) -> TestLink {
    TestLink::at(place).unwrap()
}

fn with_links(setup: &mut Blueprint) {
    setup.test_links = Some(Secret::new(LINK_SECRET).unwrap());
}

/// Returns a client with the credential of a link, which expires in `lifetime` seconds.
fn client_of(world: &World, host: u8, place: usize, lifetime: u64) -> Client {
    let user = link(place).user("id");
    let credential = time_limited::mint(&Secret::new(LINK_SECRET).unwrap(), Some(&user), world.unix + lifetime);
    Client { username: credential.username, password: credential.password.to_string(), ..world.client(host) }
}

fn send(peer: std::net::SocketAddr, data: &[u8]) -> Vec<u8> {
    plain(Class::Indication, Method::SEND, &[&XorPeerAddress(peer), &Data(data)])
}

/// Returns a world with two clients of a link, each with a channel for the relayed transport address of the other.
fn call(change: impl FnOnce(&mut Blueprint)) -> (World, [Client; 2], [Relay; 2]) {
    let mut world = World::with(|setup| {
        with_links(setup);
        change(setup);
    });
    world.ledger.test_links.open(link(3), 10_000);
    let clients = [1, 2].map(|host| client_of(&world, host, 3, 300));
    let relays = [0, 1].map(|at: usize| world.allocate(&clients[at]));
    for (client, other) in clients.iter().zip(relays.iter().rev()) {
        let bind: [&dyn crate::stun::EncodeAttribute; 2] = [&ChannelNumber(CHANNEL), &XorPeerAddress(other.relayed)];
        world.accept(client, Method::CHANNEL_BIND, &bind);
    }
    (world, clients, relays)
}

#[test]
fn two_clients_of_a_link_reach_each_other() {
    let (mut world, clients, relays) = call(|_| {});
    for (at, other) in [(0, 1), (1, 0)] {
        let sent = world.relayed(&clients[at].tuple, &channel_data(CHANNEL, b"ping"));
        assert_eq!(sent, (relays[at].id, relays[other].bind, b"ping".to_vec()));
        let sent = world.relayed(&clients[at].tuple, &send(relays[other].relayed, b"ping"));
        assert_eq!(sent.1, relays[other].bind);
        assert!(world.peer_packet(relays[other].id, relays[at].bind, b"ping").is_ok());
    }
    assert_eq!(world.server.gauges().test_links, 2);
}

// `peers.allow` and public addresses are for other clients only.
#[test]
fn nothing_but_a_live_relayed_address_is_reachable() {
    let (mut world, clients, relays) = call(|setup| setup.policy.allow.push("203.0.113.9/32".parse().unwrap()));
    let mut beside = relays[1].relayed;
    beside.set_port(22);
    for outside in [peer(1), address("8.8.8.8:53"), address("127.0.0.1:80")] {
        let peer = XorPeerAddress(outside);
        assert_eq!(world.error_code(&clients[0], Method::CREATE_PERMISSION, &[&peer]), 403, "{outside}");
        let Event::PeerDenied { denial: Denial::TestLink, .. } = world.event() else { panic!("{outside}") };
        assert_eq!(world.error_code(&clients[0], Method::CHANNEL_BIND, &[&ChannelNumber(0x4001), &peer]), 403);
        world.event();
        assert_eq!(world.dropped(&clients[0].tuple, &send(outside, b"out")), DropReason::NoPermission);
        assert_eq!(world.peer_packet(relays[0].id, outside, b"in"), Err(DropReason::NoPermission));
    }
    // The permission is for the address, which an entry of `peers.allow` opens to other clients.
    let bind = world.error_code(&clients[0], Method::CHANNEL_BIND, &[&ChannelNumber(0x4001), &XorPeerAddress(beside)]);
    assert_eq!(bind, 403);
    world.event();
    assert_eq!(world.dropped(&clients[0].tuple, &send(beside, b"out")), DropReason::PeerForbidden);
    assert_eq!(world.peer_packet(relays[0].id, beside, b"in"), Err(DropReason::PeerForbidden));
    let alice = world.client(9);
    world.allocate(&alice);
    world.permit(&alice, beside);
    assert_eq!(world.relayed(&alice.tuple, &send(beside, b"out")).1, beside);
}

#[test]
fn a_channel_ends_its_use_with_the_relayed_address_of_its_peer() {
    let (mut world, clients, relays) = call(|setup| setup.policy.allow.push("203.0.113.9/32".parse().unwrap()));
    world.accept(&clients[1], Method::REFRESH, &[&Lifetime(0)]);
    world.expect_end(&relays[1]);
    assert_eq!(world.dropped(&clients[0].tuple, &channel_data(CHANNEL, b"out")), DropReason::PeerForbidden);
    assert_eq!(world.peer_packet(relays[0].id, relays[1].relayed, b"in"), Err(DropReason::PeerForbidden));
}

#[test]
fn all_allocations_of_a_link_share_its_bytes() {
    let (mut world, clients, relays) = call(|_| {});
    let data = [7; 1_000];
    for at in [0, 1] {
        for _ in 0..3 {
            world.relayed(&clients[at].tuple, &channel_data(CHANNEL, &data));
        }
    }
    assert!(world.peer_packet(relays[0].id, relays[1].bind, &data).is_ok());
    assert_eq!(world.ledger.test_links.left(link(3)), 10_000 - 7 * (1_000 + 48));
    // What was not sent is given back.
    world.server.refund(relays[0].id, Direction::ToPeers, 1_000);
    for _ in 0..3 {
        world.relayed(&clients[1].tuple, &send(relays[0].relayed, &data));
    }
    // Empty datagrams cost something as well.
    let left = world.ledger.test_links.left(link(3));
    for _ in 0..left / 48 {
        world.relayed(&clients[1].tuple, &send(relays[0].relayed, b""));
    }
    for data in [&b""[..], b"x"] {
        assert_eq!(world.dropped(&clients[0].tuple, &channel_data(CHANNEL, data)), DropReason::TestLinkBytes);
    }
    assert_eq!(world.peer_packet(relays[0].id, relays[1].bind, b"x"), Err(DropReason::TestLinkBytes));
    // Other users have no such limit.
    let alice = world.client(9);
    world.allocate(&alice);
    world.permit(&alice, peer(1));
    world.relayed(&alice.tuple, &send(peer(1), &data));
    // Neither a new allocation nor another worker has a share of its own.
    let mut other = world.other_worker();
    let third = client_of(&other, 5, 3, 300);
    other.allocate(&third);
    other.permit(&third, relays[0].relayed);
    assert_eq!(other.dropped(&third.tuple, &send(relays[0].relayed, b"x")), DropReason::TestLinkBytes);
}

#[test]
fn an_allocation_of_a_link_ends_with_its_credential() {
    let mut world = World::with(with_links);
    let client = client_of(&world, 1, 0, 90);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&RequestedTransport::UDP, &Lifetime(3_600)]);
    let open = world.open_for(&client.tuple, &request);
    let response = world.opened(&request, &open, Ok(()));
    assert_eq!(response.lifetime(), Some(90));
    world.event();
    world.pass(seconds(30));
    let refreshed = world.send_request(&client, Method::REFRESH, &[&Lifetime(600)]);
    assert_eq!(refreshed.lifetime(), Some(60), "the grace period is for other credentials");
    world.advance(seconds(60));
    assert!(matches!(world.action(), Some(crate::turn::Action::Close { .. })));
    let Event::AllocationEnded(summary) = world.event() else { panic!("a log entry about the end is expected") };
    assert_eq!(summary.reason, EndReason::Expired);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401);
    world.event();
    assert_eq!(world.server.gauges().test_links, 0);
}

#[test]
fn only_the_secret_of_the_links_makes_a_credential_of_a_link() {
    let mut world = World::with(with_links);
    let name = link(1).user("id");
    // An application may have a user of this name.
    let client = world.client(1).with_credential(&name, world.unix + 900);
    world.allocate(&client);
    world.permit(&client, peer(1));
    assert_eq!(world.server.gauges().test_links, 0);
    // With the secret of the links, no other name is a user.
    let credential = |name: &str| time_limited::mint(&Secret::new(LINK_SECRET).unwrap(), Some(name), UNIX + 900);
    for name in ["alice", "test-link-64-a", "test-link-1"] {
        let credential = credential(name);
        let (username, password) = (credential.username, credential.password.to_string());
        let client = Client { username, password, ..world.client(2) };
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&RequestedTransport::UDP]), 401, "{name}");
        world.event();
    }
}

// Their rights differ, so an allocation of one is not that of the other.
#[test]
fn a_user_with_the_name_of_a_link_cannot_continue_its_allocation_nor_the_reverse() {
    let mut world = World::with(with_links);
    world.ledger.test_links.open(link(3), 10_000);
    let of_link = client_of(&world, 1, 3, 900);
    let of_application = world.client(1).with_credential(&link(3).user("id"), world.unix + 900);
    assert_eq!(of_link.username, of_application.username);
    for (one, other) in [(&of_link, &of_application), (&of_application, &of_link)] {
        let relay = world.allocate(one);
        assert_eq!(world.error_code(other, Method::REFRESH, &[&Lifetime(600)]), 441);
        assert_eq!(world.error_code(other, Method::CREATE_PERMISSION, &[&XorPeerAddress(relay.relayed)]), 441);
        world.accept(one, Method::REFRESH, &[&Lifetime(0)]);
        world.expect_end(&relay);
    }
    assert_eq!(world.server.gauges().test_links, 0);
}

#[test]
fn a_channel_to_a_relay_address_that_has_gone_ends_at_once() {
    let (mut world, clients, relays) = call(|_| {});
    let mut without = blueprint();
    with_links(&mut without);
    without.policy.allow.push("203.0.113.9/32".parse().unwrap());
    without.relays.remove(0);
    let snapshot = without.snapshot_with(world.relays().iter().skip(1).cloned().collect());
    world.server.reconfigure(snapshot);
    // Before the review.
    assert_eq!(world.dropped(&clients[0].tuple, &channel_data(CHANNEL, b"out")), DropReason::PeerForbidden);
    assert_eq!(world.peer_packet(relays[0].id, relays[1].relayed, b"in"), Err(DropReason::PeerForbidden));
    while world.server.review(world.now, 16) {}
    while world.action().is_some() {}
}

// Even if other users have no limit.
#[test]
fn a_link_has_a_limit_on_its_allocations() {
    let mut world = World::with(|setup| {
        with_links(setup);
        setup.ports = 50_000..=50_099;
    });
    for host in 0..u8::try_from(TestLink::ALLOCATIONS).unwrap() {
        world.allocate(&client_of(&world, host, 0, 900));
    }
    let further = client_of(&world, 200, 0, 900);
    assert_eq!(world.error_code(&further, Method::ALLOCATE, &[&RequestedTransport::UDP]), 486);
    assert_eq!(world.logged_limit(), Limit::AllocationsPerUser);
    world.allocate(&client_of(&world, 201, 1, 900));
}

// Without any secret in the configuration.
#[test]
fn a_link_needs_no_shared_secret_and_survives_a_reload() {
    let setup = |setup: &mut Blueprint| {
        with_links(setup);
        setup.secrets.clear();
    };
    let mut world = World::with(setup);
    let client = client_of(&world, 1, 0, 900);
    let relay = world.allocate(&client);
    let mut next = blueprint();
    setup(&mut next);
    let snapshot = next.snapshot_with(world.relays().clone());
    world.server.reconfigure(snapshot);
    assert!(!world.server.review(world.now, 16));
    world.accept(&client, Method::REFRESH, &[&Lifetime(600)]);
    world.permit(&client, relay.relayed);
    let mut without = blueprint();
    without.secrets.clear();
    let snapshot = without.snapshot_with(world.relays().clone());
    world.server.reconfigure(snapshot);
    world.server.review(world.now, 16);
    assert_eq!(world.error_code(&client, Method::REFRESH, &[&Lifetime(600)]), 401);
    assert_eq!(world.expect_end(&relay).reason, EndReason::CredentialsRemoved);
}

#[test]
fn traffic_of_a_link_is_relayed_by_the_core_only() {
    let (mut world, _, _) = call(|_| {});
    assert_eq!(world.action(), None);
    let route = world.routes[0];
    assert_eq!(world.server.why_not_offloaded(&route), Some(NotOffloaded::OwnPeer));
    // Not because of the peer alone.
    assert_eq!(world.server.why_not_offloaded(&ChannelRoute { peer: peer(1), ..route }), Some(NotOffloaded::TestLink));
}
