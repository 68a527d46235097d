//! RFC 8656 §11.2. An indication never has a response.

use std::net::SocketAddr;

use crate::stun::attribute::{
    AddressFamily, Data, Lifetime, RequestedAddressFamily, Software, Username, XorPeerAddress,
};
use crate::stun::{AttributeType, Class, EncodeAttribute, Method};
use crate::turn::DropReason;
use crate::turn::tests::support::*;

fn indication(attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
    plain(Class::Indication, Method::SEND, attributes)
}

fn send(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    indication(&[&XorPeerAddress(peer), &Data(payload)])
}

/// Returns a world in which client 1 has an allocation and a permission for peer 1.
fn permitted() -> (World, Client, Relay) {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.permit(&client, peer(1));
    (world, client, relay)
}

#[test]
fn send_relays_only_the_data() {
    let (mut world, client, relay) = permitted();
    for payload in [&b""[..], b"a", b"abcd", b"abcde", &[9; 60_000]] {
        let expected = (relay.id, peer(1), payload.to_vec());
        assert_eq!(world.relayed(&client.tuple, &send(peer(1), payload)), expected);
        let reversed = indication(&[&Software("client"), &Data(payload), &XorPeerAddress(peer(1))]);
        assert_eq!(world.relayed(&client.tuple, &reversed), expected);
    }
    // If an attribute appears twice, the first one is used (RFC 8489 §14).
    let twice = indication(&[&XorPeerAddress(peer(1)), &Data(b"one"), &XorPeerAddress(peer(2)), &Data(b"two")]);
    assert_eq!(world.relayed(&client.tuple, &twice), (relay.id, peer(1), b"one".to_vec()));
}

#[test]
fn send_without_peer_or_data_or_with_a_malformed_peer_is_dropped() {
    let (mut world, client, _) = permitted();
    let mut port_zero = peer(1);
    port_zero.set_port(0);
    for attributes in [
        &[][..],
        &[&XorPeerAddress(peer(1)) as &dyn EncodeAttribute],
        &[&Data(b"out")],
        &[&Raw(AttributeType::XOR_PEER_ADDRESS, &[0, 1, 0, 0]), &Data(b"out")],
        &[&Raw(AttributeType::XOR_PEER_ADDRESS, &[0, 9, 0, 0, 1, 2, 3, 4]), &Data(b"out")],
        &[&XorPeerAddress(port_zero), &Data(b"out")],
        &[&XorPeerAddress(peer_v6(1)), &Data(b"out")],
    ] {
        assert_eq!(world.dropped(&client.tuple, &indication(attributes)), DropReason::MalformedIndication);
    }
}

// An indication with unknown comprehension-required attributes is discarded (RFC 8489 §6.3.2).
#[test]
fn send_with_unknown_attributes_is_dropped() {
    let (mut world, client, _) = permitted();
    let (one, data) = (XorPeerAddress(peer(1)), Data(b"out"));
    let unknown = indication(&[&one, &data, &Raw(AttributeType::new(0x7abc), &[])]);
    assert_eq!(world.dropped(&client.tuple, &unknown), DropReason::MalformedIndication);
    let optional = indication(&[&one, &data, &Raw(AttributeType::new(0x8abc), &[]), &Username("alice")]);
    assert_eq!(world.relayed(&client.tuple, &optional).1, peer(1));
}

#[test]
fn send_without_a_permission_is_dropped_and_installs_none() {
    let (mut world, client, relay) = permitted();
    assert_eq!(world.dropped(&client.tuple, &send(peer(2), b"out")), DropReason::NoPermission);
    assert_eq!(world.dropped(&client.tuple, &send(peer(2), b"out")), DropReason::NoPermission);
    assert_eq!(world.peer_packet(relay.id, peer(2), b"in"), Err(DropReason::NoPermission));
}

// A Send indication never refreshes the permission.
#[test]
fn send_does_not_refresh_the_permission() {
    let (mut world, client, _) = permitted();
    for _ in 0..299 {
        world.advance(seconds(1));
        assert_eq!(world.relayed(&client.tuple, &send(peer(1), b"out")).1, peer(1));
    }
    world.pass(seconds(1));
    assert_eq!(world.dropped(&client.tuple, &send(peer(1), b"out")), DropReason::NoPermission);
}

// §5: no allocation → drop.
#[test]
fn send_without_an_allocation_is_dropped() {
    let (mut world, client, relay) = permitted();
    let other = world.client(2);
    assert_eq!(world.dropped(&other.tuple, &send(peer(1), b"out")), DropReason::NoAllocation);
    world.accept(&client, Method::REFRESH, &[&Lifetime(0)]);
    world.expect_end(&relay);
    assert_eq!(world.dropped(&client.tuple, &send(peer(1), b"out")), DropReason::NoAllocation);
}

// A permission covers all ports of an address, but only live ports of this server's relay addresses are allowed.
#[test]
fn send_to_a_port_of_a_relay_address_that_is_not_live_is_dropped() {
    let (mut world, client, relay) = permitted();
    let mut neighbour = relay.relayed;
    neighbour.set_port(22);
    world.permit(&client, neighbour);
    assert_eq!(world.dropped(&client.tuple, &send(neighbour, b"out")), DropReason::PeerForbidden);
    assert_eq!(world.relayed(&client.tuple, &send(relay.relayed, b"out")), (relay.id, relay.bind, b"out".to_vec()));
}

#[test]
fn send_reaches_ipv6_peers_from_an_ipv6_allocation() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&RequestedAddressFamily(AddressFamily::V6)]);
    world.permit(&client, peer_v6(1));
    assert_eq!(world.relayed(&client.tuple, &send(peer_v6(1), b"out")), (relay.id, peer_v6(1), b"out".to_vec()));
    assert_eq!(world.dropped(&client.tuple, &send(peer(1), b"out")), DropReason::MalformedIndication);
}

// A DATA length beyond the message → drop.
#[test]
fn send_with_a_wrong_data_length_is_dropped() {
    let (mut world, client, _) = permitted();
    let good = send(peer(1), b"abcd");
    let length_at = good.len() - 4 - 2;
    for length in [5_u16, 8, 735, 0x7fff, 0xfffc, 0xffff] {
        let mut packet = good.clone();
        packet[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        assert_eq!(world.dropped(&client.tuple, &packet), DropReason::MalformedStun, "{length}");
    }
    // With a shorter length the rest is padding.
    let mut packet = good;
    packet[length_at + 1] = 3;
    assert_eq!(world.relayed(&client.tuple, &packet).2, b"abc");
}
