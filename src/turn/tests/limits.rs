//! Rates: new peers, application data, new allocations. A limit is counted under its own name, and told.

use std::time::Duration;

use crate::stun::attribute::{ChannelNumber, Data, Lifetime, RequestedTransport, XorPeerAddress};
use crate::stun::{Class, EncodeAttribute, Method};
use crate::turn::tests::support::*;
use crate::turn::{DropReason, Event, Limit, Outcome, Rate, UserRates};

const UDP: RequestedTransport = RequestedTransport::UDP;
const CREATE_PERMISSION: Method = Method::CREATE_PERMISSION;
const CHANNEL_BIND: Method = Method::CHANNEL_BIND;

fn send(payload: &[u8]) -> Vec<u8> {
    plain(Class::Indication, Method::SEND, &[&XorPeerAddress(peer(1)), &Data(payload)])
}

/// Two clients of alice's, each with an allocation, a permission for peer 1 and a channel to it.
fn talking(change: impl FnOnce(&mut crate::test_world::Blueprint)) -> (World, [Client; 2], [Relay; 2]) {
    let mut world = World::with(change);
    let clients = [world.client(1), world.client(2)];
    let relays = [0, 1].map(|at| {
        let relay = world.allocate_with(&clients[at], &[&Lifetime(3_600)]);
        world.accept(&clients[at], CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
        relay
    });
    (world, clients, relays)
}

// RFC 8656 §10.2: 508, all or nothing; what is there is refreshed for nothing, by either request.
#[test]
fn new_peers_beyond_their_rate_are_508_and_known_ones_are_not() {
    let mut world = World::with(|setup| setup.limits.peer_rate = Rate::new(1, 3));
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
    let peers: Vec<XorPeerAddress> = (1..=6).map(|host| XorPeerAddress(peer(host))).collect();
    let all: Vec<&dyn EncodeAttribute> = peers.iter().map(|peer| peer as &dyn EncodeAttribute).collect();
    world.accept(&client, CREATE_PERMISSION, &all[..2]);

    let answer = world.ask(&client, CREATE_PERMISSION, &all[..4]);
    assert_eq!((answer.code(), answer.outcome), (Some(508), Outcome::RejectedByLimit(Limit::PeerRate)));
    assert_eq!(answer.reason(), "Insufficient Capacity: new peers per second");
    let (user, tuple) = ("alice".to_owned(), client.tuple);
    assert_eq!(world.event(), Event::LimitReached { user, tuple, limit: Limit::PeerRate });
    assert_eq!(world.peer_packet(relay.id, peer(3), b"in"), Err(DropReason::NoPermission));

    for _ in 0..10 {
        world.accept(&client, CREATE_PERMISSION, &all[..2]);
        world.accept(&client, CHANNEL_BIND, &[&ChannelNumber(0x4000), &peers[0]]);
    }
    world.accept(&client, CHANNEL_BIND, &[&ChannelNumber(0x4001), &peers[2]]);
    let answer = world.ask(&client, CHANNEL_BIND, &[&ChannelNumber(0x4002), &peers[3]]);
    assert_eq!(answer.outcome, Outcome::RejectedByLimit(Limit::PeerRate));
    assert_eq!(world.limit(), Limit::PeerRate);
    world.pass(seconds(1));
    world.accept(&client, CREATE_PERMISSION, &all[..4]);
    assert_eq!(world.refusal(&client, CREATE_PERMISSION, &all[4..5]), 508);
    assert_eq!(world.limit(), Limit::PeerRate);
}

// Whoever is refused for another reason has used up nothing of the rate.
#[test]
fn peers_that_are_refused_otherwise_cost_nothing_of_the_rate() {
    let mut world = World::with(|setup| {
        setup.limits.peer_rate = Rate::new(1, 2);
        setup.limits.permissions_per_allocation = 2;
    });
    let client = world.client(1);
    world.allocate(&client);
    let [one, two, three] = [1, 2, 3].map(|host| XorPeerAddress(peer(host)));
    assert_eq!(world.refusal(&client, CREATE_PERMISSION, &[&one, &two, &three]), 508);
    assert_eq!(world.limit(), Limit::Permissions);
    let forbidden = XorPeerAddress(address("127.0.0.1:22"));
    assert_eq!(world.refusal(&client, CREATE_PERMISSION, &[&one, &forbidden]), 403);
    assert!(matches!(world.event(), Event::PeerDenied { .. }));
    world.accept(&client, CREATE_PERMISSION, &[&one, &two]);
}

#[test]
fn data_beyond_an_allocations_rate_is_dropped_each_direction_and_each_allocation_apart() {
    let (mut world, clients, relays) = talking(|setup| setup.limits.byte_rate = Rate::new(100, 1_000));
    let payload = [7; 250];
    for at in [0, 1] {
        let tuple = clients[at].tuple;
        for _ in 0..2 {
            world.relayed(&tuple, &send(&payload));
            world.relayed(&tuple, &channel_data(0x4000, &payload));
        }
        assert_eq!(world.dropped(&tuple, &send(&payload)), DropReason::AllocationBandwidth);
        assert_eq!(world.limit(), Limit::AllocationBandwidth);
        assert_eq!(world.dropped(&tuple, &channel_data(0x4000, &payload)), DropReason::AllocationBandwidth);
        // An empty datagram is no data, and smaller ones may fit.
        world.relayed(&tuple, &channel_data(0x4000, b""));
        let mut other_port = peer(1);
        other_port.set_port(7_001);
        for source in [peer(1), other_port].repeat(2) {
            assert!(world.peer_packet(relays[at].id, source, &payload).is_ok());
        }
        for source in [peer(1), other_port] {
            let dropped = world.peer_packet(relays[at].id, source, &payload);
            assert_eq!(dropped, Err(DropReason::AllocationBandwidth));
        }
    }
    world.pass(Duration::from_millis(2_500));
    world.relayed(&clients[0].tuple, &channel_data(0x4000, &payload));
    assert_eq!(world.dropped(&clients[0].tuple, &channel_data(0x4000, b"x")), DropReason::AllocationBandwidth);
    assert!(world.peer_packet(relays[0].id, peer(1), &payload).is_ok());

    // Only what has been relayed is counted.
    world.accept(&clients[0], Method::REFRESH, &[&Lifetime(0)]);
    let summary = world.ended(&relays[0]);
    assert_eq!((summary.traffic.bytes_to_peers, summary.traffic.bytes_to_client), (1_250, 1_250));
}

// A burst is routed once.
#[test]
fn every_datagram_of_a_burst_counts() {
    let (mut world, clients, relays) = talking(|setup| setup.limits.byte_rate = Rate::new(1, 1_000));
    let message = channel_data(0x4000, &[7; 400]);
    let decisions = world.client_burst(&clients[0].tuple, &message.repeat(3), message.len());
    let too_much = Err(DropReason::AllocationBandwidth);
    assert_eq!(decisions, [Ok(400), Ok(400), too_much]);
    assert_eq!(world.limit(), Limit::AllocationBandwidth);
    world.relayed(&clients[0].tuple, &channel_data(0x4000, &[7; 200]));
    assert_eq!(world.peer_burst(relays[0].id, peer(1), 999, 500), [Ok(500), Ok(499)]);
    assert_eq!(world.peer_burst(relays[0].id, peer(1), 4, 2), [too_much, too_much]);
    world.accept(&clients[0], Method::REFRESH, &[&Lifetime(0)]);
    let summary = world.ended(&relays[0]);
    assert_eq!((summary.traffic.bytes_to_peers, summary.traffic.bytes_to_client), (1_000, 999));
    assert_eq!(world.peer_burst(relays[0].id, peer(1), 1, 1), [Err(DropReason::AllocationEnded)]);
}

#[test]
fn dropped_data_is_told_once_a_minute() {
    let (mut world, clients, _) = talking(|setup| setup.limits.byte_rate = Rate::new(1, 2));
    let tuple = clients[0].tuple;
    for _ in 0..3 {
        for millisecond in 0..600 {
            assert_eq!(world.dropped(&tuple, &channel_data(0x4000, b"three")), DropReason::AllocationBandwidth);
            if millisecond == 0 {
                assert_eq!(world.limit(), Limit::AllocationBandwidth);
            }
            assert_eq!(world.action(), None);
            world.pass(Duration::from_millis(100));
        }
    }
}

#[test]
fn data_beyond_a_users_rate_is_dropped_whichever_allocation_it_is_on() {
    // A limit that counts nobody does not keep the users from being told apart.
    let (mut world, clients, relays) = talking(|setup| {
        setup.limits.allocations_per_user = 0;
        setup.limits.user_rates = UserRates { bytes: Rate::new(100, 1_000), ..UserRates::default() };
    });
    let bob = world.client(3).as_user(1);
    world.allocate(&bob);
    world.permit(&bob, peer(1));
    let half = [7; 500];
    world.relayed(&clients[0].tuple, &send(&half));
    world.relayed(&clients[1].tuple, &channel_data(0x4000, &half));
    for client in &clients {
        assert_eq!(world.dropped(&client.tuple, &send(b"x")), DropReason::UserBandwidth);
        let (user, tuple) = ("alice".to_owned(), client.tuple);
        assert_eq!(world.event(), Event::LimitReached { user, tuple, limit: Limit::UserBandwidth });
    }
    world.relayed(&bob.tuple, &send(&half));
    for relay in &relays {
        assert!(world.peer_packet(relay.id, peer(1), &half).is_ok());
    }
    for relay in &relays {
        assert_eq!(world.peer_packet(relay.id, peer(1), b"x"), Err(DropReason::UserBandwidth));
    }
    // What is owed is not forgotten with the allocations.
    for (client, relay) in clients.iter().zip(&relays) {
        world.accept(client, Method::REFRESH, &[&Lifetime(0)]);
        world.ended(relay);
    }
    world.allocate(&clients[0]);
    world.permit(&clients[0], peer(1));
    assert_eq!(world.dropped(&clients[0].tuple, &send(b"x")), DropReason::UserBandwidth);
    assert_eq!(world.limit(), Limit::UserBandwidth);
    world.pass(seconds(5));
    world.relayed(&clients[0].tuple, &send(&half));
}

#[test]
fn what_the_users_rate_drops_costs_the_allocation_nothing() {
    let (mut world, clients, _) = talking(|setup| {
        setup.limits.byte_rate = Rate::new(1, 1_000);
        setup.limits.user_rates.bytes = Rate::new(1_000, 1_000);
    });
    world.relayed(&clients[1].tuple, &send(&[7; 1_000]));
    assert_eq!(world.dropped(&clients[0].tuple, &send(&[7; 1_000])), DropReason::UserBandwidth);
    assert_eq!(world.limit(), Limit::UserBandwidth);
    world.pass(seconds(1));
    world.relayed(&clients[0].tuple, &send(&[7; 1_000]));
    assert_eq!(world.dropped(&clients[0].tuple, &send(b"x")), DropReason::AllocationBandwidth);
    // Both limits are told, although the other one was a second ago.
    assert_eq!(world.limit(), Limit::AllocationBandwidth);
}

// RFC 8656 §7.2 step 10: 486. Neither retransmissions nor what fails otherwise is counted, and deleting does not help.
#[test]
fn allocations_beyond_the_users_rate_are_486() {
    let mut world = World::with(|setup| setup.limits.user_rates.allocations = Rate::new(1, 2));
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    let answer = world.opened(&request, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    for _ in 0..5 {
        assert_eq!(world.answer_to(&client.tuple, &request), answer);
    }
    assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP]), 437);
    let second = world.client(2);
    let relay = world.allocate(&second);
    world.accept(&second, Method::REFRESH, &[&Lifetime(0)]);
    world.ended(&relay);

    let before = world.footprint();
    let answer = world.ask(&second, Method::ALLOCATE, &[&UDP]);
    assert_eq!((answer.code(), answer.outcome), (Some(486), Outcome::RejectedByLimit(Limit::AllocationRate)));
    assert_eq!(answer.reason(), "Allocation Quota Reached: allocations per second");
    assert_eq!(world.limit(), Limit::AllocationRate);
    assert_eq!((world.footprint(), world.ledger.quota.of_user("alice")), (before, 1));
    world.allocate(&world.client(3).as_user(1));
    world.pass(seconds(1));
    world.allocate(&second);
}
