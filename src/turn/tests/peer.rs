//! RFC 8656 §11.3 and §12.7, and data between two relayed transport addresses of this server.

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

// §11.3: XOR-PEER-ADDRESS and DATA, on the allocation's 5-tuple. Previous content of the buffer is not sent.
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
fn every_data_indication_has_its_own_transaction_id() {
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

// A length field has 16 bits.
#[test]
fn a_datagram_too_long_for_a_message_is_dropped() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.permit(&client, peer(1));
    let too_long = vec![7; 65_535];
    assert_eq!(world.peer_packet(relay.id, peer(1), &too_long), Err(DropReason::TooLarge));
    assert!(world.peer_packet(relay.id, peer(1), &too_long[..65_507]).is_ok());
}

// §9: no permission → drop, even for a peer that the policy allows.
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
    world.expect_end(&old);
    // The slot is reused, and the old identifier does not refer to the new socket.
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
    let summary = world.expect_end(&relay);
    assert_eq!((summary.traffic.bytes_to_peers, summary.traffic.bytes_to_client), (110, 7));
    assert_eq!((summary.duration, summary.reason), (seconds(5), EndReason::Deleted));
}

/// Returns two clients, each with an allocation on the relay address behind 1:1 NAT.
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

// Two browsers that use only this server must reach each other, even if the policy denies all peers.
#[test]
fn two_live_relays_exchange_indications_by_their_advertised_addresses() {
    for denied in [false, true] {
        let (mut world, clients, relays) = two_relays(denied);
        world.permit(&clients[0], relays[1].relayed);
        world.permit(&clients[1], relays[0].relayed);
        for (from, to) in [(0, 1), (1, 0)] {
            // The destination is the bind address of the other relay socket.
            let sent = world.relayed(&clients[from].tuple, &send(relays[to].relayed, b"hello"));
            assert_eq!(sent, (relays[from].id, relays[to].bind, b"hello".to_vec()));
            // The source is the bind address, and the indication has the advertised address.
            let (tuple, bytes) = world.peer_packet(relays[to].id, relays[from].bind, b"hello").unwrap();
            assert_eq!(tuple, clients[to].tuple);
            assert_eq!(Message::parse(&bytes).unwrap().get(), Ok(Some(XorPeerAddress(relays[from].relayed))));
        }
    }
}

#[test]
fn two_live_relays_exchange_channel_data_by_their_advertised_addresses() {
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

// The IPv6 relay address is not behind NAT.
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

// The next port may belong to another service of this machine.
#[test]
fn the_port_next_to_a_live_relay_is_denied_in_both_directions() {
    let (mut world, clients, relays) = two_relays(false);
    world.permit(&clients[0], relays[1].relayed);
    let live = relays.map(|relay| relay.bind.port());
    let free = (50_000..50_000 + PORTS).find(|port| !live.contains(port)).unwrap();
    for port in [free, 22, 3_478] {
        let (mut advertised, mut bound) = (relays[1].relayed, relays[1].bind);
        advertised.set_port(port);
        bound.set_port(port);
        assert_eq!(world.dropped(&clients[0].tuple, &send(advertised, b"out")), DropReason::PeerForbidden);
        let bind =
            world.error_code(&clients[0], Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(advertised)]);
        assert_eq!(bind, 403);
        world.event();
        assert_eq!(world.peer_packet(relays[0].id, bound, b"in"), Err(DropReason::NoPermission));
        assert_eq!(world.peer_packet(relays[0].id, advertised, b"in"), Err(DropReason::PeerForbidden));
    }
}

#[test]
fn an_ended_relay_is_denied_as_a_peer() {
    let (mut world, clients, relays) = two_relays(false);
    let second = XorPeerAddress(relays[1].relayed);
    world.accept(&clients[0], Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &second]);
    world.accept(&clients[1], Method::REFRESH, &[&Lifetime(0)]);
    world.expect_end(&relays[1]);
    assert_eq!(world.dropped(&clients[0].tuple, &channel_data(0x4000, b"out")), DropReason::PeerForbidden);
    assert_eq!(world.dropped(&clients[0].tuple, &send(relays[1].relayed, b"out")), DropReason::PeerForbidden);
    assert!(world.peer_packet(relays[0].id, relays[1].bind, b"in").is_err());
    assert!(world.peer_packet(relays[0].id, relays[1].relayed, b"in").is_err());
}

// A relayed transport address whose socket is being opened is not live.
#[test]
fn a_relay_is_live_once_its_socket_is_open() {
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
