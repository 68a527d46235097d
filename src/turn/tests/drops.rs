//! The dropped packets of each allocation.

use std::net::SocketAddr;

use crate::stun::attribute::{ChannelNumber, Data, XorPeerAddress};
use crate::stun::{Class, Method};
use crate::turn::tests::support::*;
use crate::turn::{Direction, DropReason, IcmpError, Limit, Rate, SocketId};

/// Returns a world in which client 1 has an allocation with channel 0x4000 to peer 1, and client 2 has one, too.
fn world(rate: Option<Rate>) -> (World, [Client; 2], [SocketId; 2]) {
    let mut world = World::with(|setup| setup.limits.byte_rate = rate);
    let clients = [1, 2].map(|host| world.client(host));
    let relays = [0, 1].map(|at| world.allocate(&clients[at]).id);
    world.accept(&clients[0], Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
    (world, clients, relays)
}

fn send(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    plain(Class::Indication, Method::SEND, &[&XorPeerAddress(peer), &Data(payload)])
}

fn drops(world: &World, relay: SocketId) -> Vec<(DropReason, u64)> {
    world.server.describe(world.now, relay.allocation()).unwrap().drops
}

#[test]
fn each_dropped_packet_is_counted_for_its_allocation_and_for_no_other() {
    let (mut world, [client, _], [relay, other]) = world(None);
    let tuple = client.tuple;
    let turn = plain(Class::Request, Method::ALLOCATE, &[]);
    assert_eq!(world.dropped(&tuple, &channel_data(0x4001, b"x")), DropReason::ChannelNotBound);
    assert_eq!(world.dropped(&tuple, &channel_data(0x4000, &turn)), DropReason::RelayedTurn);
    assert_eq!(world.dropped(&tuple, &send(peer(1), &turn)), DropReason::RelayedTurn);
    assert_eq!(world.dropped(&tuple, &send(peer(2), b"x")), DropReason::NoPermission);
    let empty = plain(Class::Indication, Method::SEND, &[]);
    assert_eq!(world.dropped(&tuple, &empty), DropReason::MalformedIndication);
    for _ in 0..3 {
        assert_eq!(world.peer_packet(relay, peer(2), b"x"), Err(DropReason::NoPermission));
    }
    assert_eq!(world.peer_packet(relay, peer(1), &turn), Err(DropReason::RelayedTurn));
    assert_eq!(world.peer_packet(relay, peer(1), &[0; 65_536]), Err(DropReason::TooLarge));
    let unreachable = IcmpError { kind: 3, code: 3, mtu: 0 };
    assert_eq!(world.peer_unreachable(relay, peer(1), unreachable), Err(DropReason::IcmpWithheld));
    // Relayed packets are not counted.
    world.relayed(&tuple, &channel_data(0x4000, b"x"));
    world.peer_packet(relay, peer(1), b"x").unwrap();
    let mut expected = [
        (DropReason::ChannelNotBound, 1),
        (DropReason::MalformedIndication, 1),
        (DropReason::NoPermission, 4),
        (DropReason::RelayedTurn, 3),
        (DropReason::IcmpWithheld, 1),
        (DropReason::TooLarge, 1),
    ];
    expected.sort_by_key(|(reason, _)| *reason as usize);
    assert_eq!(drops(&world, relay), expected);
    assert_eq!(drops(&world, other), []);
}

// The server decides about a burst once, but counts every datagram.
#[test]
fn every_datagram_of_a_burst_above_a_limit_is_counted() {
    let (mut world, [client, _], [relay, _]) = world(Rate::new(1, 1_000));
    let message = channel_data(0x4000, &[7; 400]);
    let too_much = Err(DropReason::AllocationBandwidth);
    let decisions = world.client_burst(&client.tuple, &message.repeat(4), message.len());
    assert_eq!(decisions, [Ok(400), Ok(400), too_much, too_much]);
    assert_eq!(world.logged_limit(), Limit::AllocationBandwidth);
    assert_eq!(world.peer_burst(relay, peer(2), &[7; 30], 10).len(), 3);
    let expected = [(DropReason::NoPermission, 3), (DropReason::AllocationBandwidth, 2)];
    assert_eq!(drops(&world, relay), expected);
}

#[test]
fn what_the_shell_drops_is_counted_until_the_allocation_has_ended() {
    let (mut world, _, [relay, other]) = world(None);
    world.server.count_drops(relay, DropReason::SendFailed, 5);
    world.server.count_drops(relay, DropReason::SendFailed, 2);
    assert_eq!((drops(&world, relay), drops(&world, other)), (vec![(DropReason::SendFailed, 7)], Vec::new()));
    world.server.credit(relay, Direction::ToPeers, 1, 1);
    world.advance(seconds(600));
    assert_eq!(world.server.describe(world.now, relay.allocation()), None);
    world.server.count_drops(relay, DropReason::SendFailed, 1);
    while world.action().is_some() {}
}
