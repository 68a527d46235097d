//! RFC 8656 §9 and §10.2.

use std::net::SocketAddr;
use std::time::Duration;

use crate::stun::attribute::{AddressFamily, Lifetime, RequestedAddressFamily, XorPeerAddress};
use crate::stun::{AttributeType, EncodeAttribute, Method};
use crate::turn::tests::support::*;
use crate::turn::{Denial, DropReason, Event, Limit};

const CREATE_PERMISSION: Method = Method::CREATE_PERMISSION;

fn denial(world: &mut World) -> Denial {
    match world.event() {
        Event::PeerDenied { denial, .. } => denial,
        other => panic!("a log entry about a denied peer is expected, not {other:?}"),
    }
}

#[test]
fn create_permission_gets_an_empty_signed_response() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let response = world.accept(&client, CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]);
    assert_eq!(response.kinds(), [AttributeType::MESSAGE_INTEGRITY]);
}

// No peer, or any malformed one → 400, and nothing is installed.
#[test]
fn create_permission_without_a_peer_or_with_a_malformed_one_is_400() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    assert_eq!(world.error_code(&client, CREATE_PERMISSION, &[]), 400);
    let good = XorPeerAddress(peer(1));
    for value in
        [&[][..], &[0, 1, 0, 0], &[0, 3, 0, 0, 1, 2, 3, 4], &[0, 1, 0, 0, 1, 2, 3, 4, 5], &[0, 2, 0, 0, 1, 2, 3, 4]]
    {
        let bad = Raw(AttributeType::XOR_PEER_ADDRESS, value);
        for order in [[&good as &dyn EncodeAttribute, &bad], [&bad, &good]] {
            assert_eq!(world.error_code(&client, CREATE_PERMISSION, &order), 400);
        }
    }
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
}

#[test]
fn unknown_attributes_in_create_permission_are_420() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    let unknown = Raw(AttributeType::new(0x7abc), &[]);
    assert_eq!(world.error_code(&client, CREATE_PERMISSION, &[&XorPeerAddress(peer(1)), &unknown]), 420);
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
}

// §10.2: an address family other than that of the relayed transport address → 443, and nothing is installed.
#[test]
fn peer_of_the_other_address_family_is_443() {
    let mut world = World::new();
    let (first, second) = (world.client(1), world.client(2));
    let relay = world.allocate(&first);
    world.allocate_with(&second, &[&RequestedAddressFamily(AddressFamily::V6)]);
    let (v4, v6) = (XorPeerAddress(peer(1)), XorPeerAddress(peer_v6(1)));
    assert_eq!(world.error_code(&first, CREATE_PERMISSION, &[&v4, &v6]), 443);
    assert_eq!(world.error_code(&second, CREATE_PERMISSION, &[&v6, &v4]), 443);
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
    world.accept(&second, CREATE_PERMISSION, &[&v6]);
}

// §10.2: a denied peer → 403, and nothing is installed.
#[test]
fn denied_peers_are_403_and_logged_with_the_rule() {
    let mut world = World::with(|setup| setup.policy.deny = vec!["198.51.100.66/32".parse().unwrap()]);
    let client = world.client(1);
    let relay = world.allocate(&client);
    for (denied, rule) in [
        ("127.0.0.1", Denial::Special("loopback")),
        ("0.0.0.0", Denial::Special("this-network")),
        ("10.1.2.3", Denial::Special("private")),
        ("172.17.0.1", Denial::Special("private")),
        ("192.168.1.1", Denial::Special("private")),
        ("100.64.0.1", Denial::Special("shared")),
        ("169.254.169.254", Denial::Special("link-local")),
        ("224.0.0.1", Denial::Special("multicast")),
        ("255.255.255.255", Denial::Special("reserved")),
        ("198.18.0.1", Denial::Special("benchmarking")),
        ("198.51.100.66", Denial::Operator),
    ] {
        let denied = SocketAddr::new(denied.parse().unwrap(), 7_000);
        let peers: [&dyn EncodeAttribute; 2] = [&XorPeerAddress(peer(1)), &XorPeerAddress(denied)];
        assert_eq!(world.error_code(&client, CREATE_PERMISSION, &peers), 403, "{denied}");
        let (id, user, tuple, peer) = (relay.id.allocation(), "alice".to_owned(), client.tuple, denied);
        assert_eq!(world.event(), Event::PeerDenied { id, user, tuple, peer, denial: rule });
    }
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
}

// Every notation of loopback and of other denied addresses in IPv6.
#[test]
fn loopback_is_403_in_every_ipv6_notation() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate_with(&client, &[&RequestedAddressFamily(AddressFamily::V6)]);
    for notation in [
        "[::1]:7000",
        "[::]:7000",
        "[::ffff:127.0.0.1]:7000",
        "[::127.0.0.1]:7000",
        "[::ffff:0:127.0.0.1]:7000",
        "[64:ff9b::127.0.0.1]:7000",
        "[64:ff9b:1::127.0.0.1]:7000",
        "[64:ff9b:1:7f00:0:100::]:7000",
        "[2002:7f00:1::1]:7000",
        "[2001:0:7f00:1::f7f7:f7f7]:7000",
        "[2001:0:808:808::80ff:fffe]:7000",
        "[::ffff:10.0.0.5]:7000",
        "[::ffff:203.0.113.9]:50000",
        "[fe80::1]:7000",
        "[fd00::1]:7000",
        "[ff02::1]:7000",
    ] {
        assert_eq!(
            world.error_code(&client, CREATE_PERMISSION, &[&XorPeerAddress(address(notation))]),
            403,
            "{notation}"
        );
        denial(&mut world);
    }
}

// §9: it MUST be 300 seconds.
#[test]
fn a_permission_lasts_300_seconds_and_a_second_request_refreshes_it() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
    world.permit(&client, peer(1));
    world.advance(seconds(299));
    assert!(world.peer_packet(relay.id, peer(1), b"in").is_ok());
    world.permit(&client, peer(1));
    world.advance(Duration::from_millis(299_999));
    assert!(world.peer_packet(relay.id, peer(1), b"in").is_ok());
    // The permission expires to the millisecond, also before `advance` is called.
    world.pass(Duration::from_millis(1));
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
    world.advance(seconds(1));
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
}

// §9: traffic in either direction does not refresh a permission.
#[test]
fn traffic_does_not_refresh_a_permission() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.permit(&client, peer(1));
    for _ in 0..299 {
        world.advance(seconds(1));
        assert!(world.peer_packet(relay.id, peer(1), b"in").is_ok());
    }
    world.advance(seconds(1));
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
}

// §9: only addresses are compared.
#[test]
fn a_permission_applies_to_every_port_of_an_address() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    let mut without_port = peer(1);
    without_port.set_port(0);
    world.permit(&client, without_port);
    for port in [1, 7_000, 65_535] {
        let mut source = peer(1);
        source.set_port(port);
        assert!(world.peer_packet(relay.id, source, b"in").is_ok());
    }
    assert_eq!(world.peer_packet(relay.id, peer(2), b"in"), Err(DropReason::NoPermission));
}

// §9: the permissions of one allocation do not apply to another.
#[test]
fn permissions_belong_to_one_allocation() {
    let mut world = World::new();
    let (first, second) = (world.client(1), world.client(2));
    let (_, other) = (world.allocate(&first), world.allocate(&second));
    world.permit(&first, peer(1));
    assert_eq!(world.peer_packet(other.id, peer(1), b"in"), Err(DropReason::NoPermission));
}

#[test]
fn one_request_installs_permissions_for_all_its_peers() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    let peers = [1, 2, 3].map(|host| XorPeerAddress(peer(host)));
    world.accept(&client, CREATE_PERMISSION, &[&peers[2], &peers[0], &peers[1], &peers[0]]);
    for XorPeerAddress(peer) in peers {
        assert!(world.peer_packet(relay.id, peer, b"in").is_ok());
    }
}

// §10.2: a capacity limit → 508, and nothing is installed. Existing permissions can be refreshed.
#[test]
fn permissions_above_the_limit_are_508() {
    let mut world = World::with(|setup| setup.limits.permissions_per_allocation = 2);
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
    let [one, two, three] = [1, 2, 3].map(|host| XorPeerAddress(peer(host)));
    assert_eq!(world.error_code(&client, CREATE_PERMISSION, &[&one, &two, &three]), 508);
    assert_eq!(world.logged_limit(), Limit::Permissions);
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
    world.accept(&client, CREATE_PERMISSION, &[&one, &one, &two]);
    assert_eq!(world.error_code(&client, CREATE_PERMISSION, &[&three]), 508);
    assert_eq!(world.logged_limit(), Limit::Permissions);
    assert_eq!(world.error_code(&client, CREATE_PERMISSION, &[&one, &three]), 508);
    assert_eq!(world.logged_limit(), Limit::Permissions);
    world.accept(&client, CREATE_PERMISSION, &[&two, &one]);
    // Expired permissions do not count, also before `advance` is called.
    world.pass(seconds(300));
    world.accept(&client, CREATE_PERMISSION, &[&three]);
}
