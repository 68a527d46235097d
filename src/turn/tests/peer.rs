//! RFC 8656 §11.3 and §12.7, and the way between two relayed addresses of this server.

use std::net::SocketAddr;

use crate::stun::attribute::{
    AddressFamily, ChannelNumber, Data, Lifetime, RequestedAddressFamily, RequestedTransport, XorPeerAddress,
};
use crate::stun::{AttributeType, Class, Message, Method};
use crate::turn::tests::support::*;
use crate::turn::{DropReason, EndReason};

fn send(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    plain(Class::Indication, Method::SEND, &[&XorPeerAddress(peer), &Data(payload)])
}

// §11.3: XOR-PEER-ADDRESS and DATA, on the allocation's 5-tuple. What was in the buffer before stays there.
#[test]
fn a_datagram_becomes_a_data_indication_with_zero_padding() {
    let mut world = World::new();
    let (first, second) = (world.client(1), world.client(2));
    let v4 = world.allocate(&first);
    let v6 = world.allocate_with(&second, &[&RequestedAddressFamily(AddressFamily::V6)]);
    world.permit(&first, peer(1));
    world.permit(&second, peer_v6(1));
    for (client, relay, source) in [(&first, v4, peer(1)), (&second, v6, peer_v6(1))] {
        for length in [0, 1, 2, 3, 4, 5, 735, 1_200, 65_000] {
            let payload: Vec<u8> = (0..=250).cycle().take(length).collect();
            let (tuple, bytes) = world.peer_packet(relay.id, source, &payload).unwrap();
            assert_eq!(tuple, client.tuple);
            let message = Message::parse(&bytes).unwrap();
            assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
            let kinds: Vec<_> = message.attributes().map(|attribute| attribute.kind).collect();
            assert_eq!(kinds, [AttributeType::XOR_PEER_ADDRESS, AttributeType::DATA]);
            assert_eq!(message.get(), Ok(Some(XorPeerAddress(source))));
            assert_eq!(message.get(), Ok(Some(Data(&payload))));
            assert_padding_is_zero(&bytes);
        }
    }
}

#[test]
fn every_data_indication_has_a_transaction_id_of_its_own() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.permit(&client, peer(1));
    let mut next = || world.peer_packet(relay.id, peer(1), b"in").unwrap().1[8..20].to_vec();
    assert_ne!(next(), next());
}

// §12.7: ChannelData where a channel is bound; over UDP without padding.
#[test]
fn a_datagram_from_a_bound_peer_becomes_channel_data() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4abc), &XorPeerAddress(peer(1))]);
    for length in [0, 1, 2, 3, 4, 1_200, 65_507] {
        let payload = vec![7; length];
        let expected = (client.tuple, channel_data(0x4abc, &payload));
        assert_eq!(world.peer_packet(relay.id, peer(1), &payload), Ok(expected));
    }
}

// No length field can say more than 16 bits.
#[test]
fn a_datagram_that_fits_into_no_message_is_dropped() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.permit(&client, peer(1));
    let too_long = vec![7; 65_535];
    assert_eq!(world.peer_packet(relay.id, peer(1), &too_long), Err(DropReason::TooLarge));
    assert!(world.peer_packet(relay.id, peer(1), &too_long[..65_507]).is_ok());
}

// §9: without a permission → silence, even for a peer that the policy would admit.
#[test]
fn a_datagram_without_a_permission_is_dropped() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
}

#[test]
fn a_datagram_for_an_allocation_that_has_ended_is_dropped() {
    let mut world = World::new();
    let client = world.client(1);
    let old = world.allocate(&client);
    world.permit(&client, peer(1));
    world.pass(seconds(600));
    assert_eq!(world.peer_packet(old.id, peer(1), b"in"), Err(DropReason::AllocationEnded));
    world.advance(seconds(0));
    world.ended(&old);
    // The place in the table is used again, and the old name stays the old one's.
    let new = world.allocate(&client);
    world.permit(&client, peer(1));
    assert_eq!(new.id.slot(), old.id.slot());
    assert_eq!(world.peer_packet(old.id, peer(1), b"in"), Err(DropReason::AllocationEnded));
    assert!(world.peer_packet(new.id, peer(1), b"in").is_ok());
}

#[test]
fn the_summary_counts_application_data_in_both_directions() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
    world.relayed(&client.tuple, &channel_data(0x4000, &[1; 100]));
    world.relayed(&client.tuple, &send(peer(1), &[1; 10]));
    world.dropped(&client.tuple, &send(peer(2), &[1; 1_000]));
    world.peer_packet(relay.id, peer(1), &[1; 7]).unwrap();
    world.peer_packet(relay.id, peer(2), &[1; 1_000]).unwrap_err();
    world.pass(seconds(5));
    world.accept(&client, Method::REFRESH, &[&Lifetime(0)]);
    let summary = world.ended(&relay);
    assert_eq!((summary.traffic.bytes_to_peers, summary.traffic.bytes_to_client), (110, 7));
    assert_eq!((summary.duration, summary.reason), (seconds(5), EndReason::Deleted));
}

/// Two clients with an allocation each behind the same 1:1 NAT, who know each other by the outside address.
fn two_relays(denied: bool) -> (World, [Client; 2], [Relay; 2]) {
    let mut world = World::with(|setup| {
        if denied {
            setup.policy.deny = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        }
    });
    let clients = [world.client(1), world.client(2)];
    let relays = [world.allocate(&clients[0]), world.allocate(&clients[1])];
    (world, clients, relays)
}

// Two browsers that may use nothing but this relay must reach each other, however strict the policy.
#[test]
fn two_live_relays_reach_each_other_by_indications_through_their_outside_names() {
    for denied in [false, true] {
        let (mut world, clients, relays) = two_relays(denied);
        world.permit(&clients[0], relays[1].relayed);
        world.permit(&clients[1], relays[0].relayed);
        for (from, to) in [(0, 1), (1, 0)] {
            // Out to the inside address, because that is where the socket is …
            let sent = world.relayed(&clients[from].tuple, &send(relays[to].relayed, b"hello"));
            assert_eq!(sent, (relays[from].id, relays[to].bind, b"hello".to_vec()));
            // … and in from the inside address, by its outside name.
            let (tuple, bytes) = world.peer_packet(relays[to].id, relays[from].bind, b"hello").unwrap();
            assert_eq!(tuple, clients[to].tuple);
            assert_eq!(Message::parse(&bytes).unwrap().get(), Ok(Some(XorPeerAddress(relays[from].relayed))));
        }
    }
}

#[test]
fn two_live_relays_reach_each_other_by_channels_through_their_outside_names() {
    for denied in [false, true] {
        let (mut world, clients, relays) = two_relays(denied);
        for (from, to) in [(0, 1), (1, 0)] {
            let peer = XorPeerAddress(relays[to].relayed);
            world.accept(&clients[from], Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &peer]);
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let sent = world.relayed(&clients[from].tuple, &channel_data(0x4000, b"hello"));
            assert_eq!(sent, (relays[from].id, relays[to].bind, b"hello".to_vec()));
            let received = world.peer_packet(relays[to].id, relays[from].bind, b"hello");
            assert_eq!(received, Ok((clients[to].tuple, channel_data(0x4000, b"hello"))));
        }
    }
}

// An IPv6 relay address that is behind no NAT has one name.
#[test]
fn two_live_ipv6_relays_reach_each_other() {
    let mut world = World::new();
    let clients = [world.client(1), world.client(2)];
    let v6 = RequestedAddressFamily(AddressFamily::V6);
    let relays = [0, 1].map(|at: usize| world.allocate_with(&clients[at], &[&v6]));
    world.permit(&clients[0], relays[1].relayed);
    world.permit(&clients[1], relays[0].relayed);
    let sent = world.relayed(&clients[0].tuple, &send(relays[1].relayed, b"hello"));
    assert_eq!(sent, (relays[0].id, relays[1].bind, b"hello".to_vec()));
    assert!(world.peer_packet(relays[1].id, relays[0].bind, b"hello").is_ok());
}

// The neighbour port of a relay may be any service of this machine.
#[test]
fn the_neighbour_port_of_a_live_relay_is_no_peer_in_either_direction() {
    let (mut world, clients, relays) = two_relays(false);
    world.permit(&clients[0], relays[1].relayed);
    let live = relays.map(|relay| relay.bind.port());
    let free = (50_000..50_000 + PORTS).find(|port| !live.contains(port)).unwrap();
    for port in [free, 22, 3_478] {
        let (mut outside, mut inside) = (relays[1].relayed, relays[1].bind);
        outside.set_port(port);
        inside.set_port(port);
        assert_eq!(world.dropped(&clients[0].tuple, &send(outside, b"out")), DropReason::PeerForbidden);
        let bind =
            world.refusal(&clients[0], Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(outside)]);
        assert_eq!(bind, 403);
        world.event();
        assert_eq!(world.peer_packet(relays[0].id, inside, b"in"), Err(DropReason::NoPermission));
        assert_eq!(world.peer_packet(relays[0].id, outside, b"in"), Err(DropReason::PeerForbidden));
    }
}

#[test]
fn a_relay_that_has_ended_is_no_peer_any_more() {
    let (mut world, clients, relays) = two_relays(false);
    let second = XorPeerAddress(relays[1].relayed);
    world.accept(&clients[0], Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &second]);
    world.accept(&clients[1], Method::REFRESH, &[&Lifetime(0)]);
    world.ended(&relays[1]);
    assert_eq!(world.dropped(&clients[0].tuple, &channel_data(0x4000, b"out")), DropReason::PeerForbidden);
    assert_eq!(world.dropped(&clients[0].tuple, &send(relays[1].relayed, b"out")), DropReason::PeerForbidden);
    assert!(world.peer_packet(relays[0].id, relays[1].bind, b"in").is_err());
    assert!(world.peer_packet(relays[0].id, relays[1].relayed, b"in").is_err());
}

// A socket that is still being opened, or was not opened, is no relay.
#[test]
fn a_relay_is_live_from_the_opening_of_its_socket() {
    let mut world = World::new();
    let (first, second) = (world.client(1), world.client(2));
    world.allocate(&first);
    let request = second.request(world.transaction(), Method::ALLOCATE, &[&RequestedTransport::UDP]);
    let open = world.open_for(&second.tuple, &request);
    let relayed = SocketAddr::new(ADVERTISED_V4.parse().unwrap(), open.bind.port());
    world.permit(&first, relayed);
    assert_eq!(world.dropped(&first.tuple, &send(relayed, b"out")), DropReason::PeerForbidden);
    world.opened(&request, &open, Ok(()));
    world.event();
    assert_eq!(world.relayed(&first.tuple, &send(relayed, b"out")).1, open.bind);
}
