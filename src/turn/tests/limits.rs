//! Rate limits on new peers, application data and new allocations. Each limit has its own outcome and log entry.

use std::time::Duration;

use crate::stun::attribute::{ChannelNumber, Data, Lifetime, RequestedTransport, XorPeerAddress};
use crate::stun::{Class, EncodeAttribute, Method};
use crate::turn::tests::support::*;
use crate::turn::{Direction, DropReason, Event, Limit, Outcome, Rate, UserRates};

const UDP: RequestedTransport = RequestedTransport::UDP;
const CREATE_PERMISSION: Method = Method::CREATE_PERMISSION;
const CHANNEL_BIND: Method = Method::CHANNEL_BIND;

fn send(payload: &[u8]) -> Vec<u8> {
    plain(Class::Indication, Method::SEND, &[&XorPeerAddress(peer(1)), &Data(payload)])
}

/// Returns two clients of alice, each with an allocation, a permission for peer 1 and a channel to it.
fn two_clients(change: impl FnOnce(&mut crate::test_world::Blueprint)) -> (World, [Client; 2], [Relay; 2]) {
    let mut world = World::with(change);
    let clients = [world.client(1), world.client(2)];
    let relays = [0, 1].map(|at| {
        let relay = world.allocate_with(&clients[at], &[&Lifetime(3_600)]);
        world.accept(&clients[at], CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
        relay
    });
    (world, clients, relays)
}

// RFC 8656 §10.2: 508, and nothing is installed. Refreshing existing permissions is not charged.
#[test]
fn new_peers_above_the_rate_are_508_and_existing_ones_are_accepted() {
    let mut world = World::with(|setup| setup.limits.peer_rate = Rate::new(1, 3));
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
    let peers: Vec<XorPeerAddress> = (1..=6).map(|host| XorPeerAddress(peer(host))).collect();
    let all: Vec<&dyn EncodeAttribute> = peers.iter().map(|peer| peer as &dyn EncodeAttribute).collect();
    world.accept(&client, CREATE_PERMISSION, &all[..2]);

    let response = world.send_request(&client, CREATE_PERMISSION, &all[..4]);
    assert_eq!((response.code(), response.outcome), (Some(508), Outcome::RejectedByLimit(Limit::PeerRate)));
    assert_eq!(response.reason(), "Insufficient Capacity: new peers per second");
    let (id, user, tuple) = (Some(relay.id.allocation()), "alice".to_owned(), client.tuple);
    assert_eq!(world.event(), Event::LimitReached { id, user, tuple, limit: Limit::PeerRate });
    assert_eq!(world.peer_packet(relay.id, peer(3), b"in"), Err(DropReason::NoPermission));

    for _ in 0..10 {
        world.accept(&client, CREATE_PERMISSION, &all[..2]);
        world.accept(&client, CHANNEL_BIND, &[&ChannelNumber(0x4000), &peers[0]]);
    }
    world.accept(&client, CHANNEL_BIND, &[&ChannelNumber(0x4001), &peers[2]]);
    let response = world.send_request(&client, CHANNEL_BIND, &[&ChannelNumber(0x4002), &peers[3]]);
    assert_eq!(response.outcome, Outcome::RejectedByLimit(Limit::PeerRate));
    assert_eq!(world.logged_limit(), Limit::PeerRate);
    world.pass(seconds(1));
    world.accept(&client, CREATE_PERMISSION, &all[..4]);
    assert_eq!(world.error_code(&client, CREATE_PERMISSION, &all[4..5]), 508);
    assert_eq!(world.logged_limit(), Limit::PeerRate);
}

// A request that is rejected for another reason is not charged.
#[test]
fn peers_rejected_for_another_reason_are_not_charged_to_the_rate() {
    let mut world = World::with(|setup| {
        setup.limits.peer_rate = Rate::new(1, 2);
        setup.limits.permissions_per_allocation = 2;
    });
    let client = world.client(1);
    world.allocate(&client);
    let [one, two, three] = [1, 2, 3].map(|host| XorPeerAddress(peer(host)));
    assert_eq!(world.error_code(&client, CREATE_PERMISSION, &[&one, &two, &three]), 508);
    assert_eq!(world.logged_limit(), Limit::Permissions);
    let forbidden = XorPeerAddress(address("127.0.0.1:22"));
    assert_eq!(world.error_code(&client, CREATE_PERMISSION, &[&one, &forbidden]), 403);
    assert!(matches!(world.event(), Event::PeerDenied { .. }));
    world.accept(&client, CREATE_PERMISSION, &[&one, &two]);
}

#[test]
fn data_above_the_allocation_rate_is_dropped_per_direction_and_allocation() {
    let (mut world, clients, relays) = two_clients(|setup| setup.limits.byte_rate = Rate::new(100, 1_000));
    let payload = [7; 250];
    for at in [0, 1] {
        let tuple = clients[at].tuple;
        for _ in 0..2 {
            world.relayed(&tuple, &send(&payload));
            world.relayed(&tuple, &channel_data(0x4000, &payload));
        }
        assert_eq!(world.dropped(&tuple, &send(&payload)), DropReason::AllocationBandwidth);
        assert_eq!(world.logged_limit(), Limit::AllocationBandwidth);
        assert_eq!(world.dropped(&tuple, &channel_data(0x4000, &payload)), DropReason::AllocationBandwidth);
        // An empty datagram is not charged.
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

    // Only relayed data is counted.
    world.accept(&clients[0], Method::REFRESH, &[&Lifetime(0)]);
    let summary = world.expect_end(&relays[0]);
    assert_eq!((summary.traffic.bytes_to_peers, summary.traffic.bytes_to_client), (1_250, 1_250));
}

// The server decides about a burst once, but charges every datagram.
#[test]
fn every_datagram_of_a_burst_is_charged() {
    let (mut world, clients, relays) = two_clients(|setup| setup.limits.byte_rate = Rate::new(1, 1_000));
    let message = channel_data(0x4000, &[7; 400]);
    let decisions = world.client_burst(&clients[0].tuple, &message.repeat(3), message.len());
    let too_much = Err(DropReason::AllocationBandwidth);
    assert_eq!(decisions, [Ok(400), Ok(400), too_much]);
    assert_eq!(world.logged_limit(), Limit::AllocationBandwidth);
    world.relayed(&clients[0].tuple, &channel_data(0x4000, &[7; 200]));
    assert_eq!(world.peer_burst(relays[0].id, peer(1), &[0; 999], 500), [Ok(500), Ok(499)]);
    assert_eq!(world.peer_burst(relays[0].id, peer(1), &[0; 4], 2), [too_much, too_much]);
    world.accept(&clients[0], Method::REFRESH, &[&Lifetime(0)]);
    let summary = world.expect_end(&relays[0]);
    assert_eq!((summary.traffic.bytes_to_peers, summary.traffic.bytes_to_client), (1_000, 999));
    assert_eq!(world.peer_burst(relays[0].id, peer(1), &[0; 1], 1), [Err(DropReason::AllocationEnded)]);
}

#[test]
fn dropped_data_is_logged_once_a_minute() {
    let (mut world, clients, _) = two_clients(|setup| setup.limits.byte_rate = Rate::new(1, 2));
    let tuple = clients[0].tuple;
    for _ in 0..3 {
        for millisecond in 0..600 {
            assert_eq!(world.dropped(&tuple, &channel_data(0x4000, b"three")), DropReason::AllocationBandwidth);
            if millisecond == 0 {
                assert_eq!(world.logged_limit(), Limit::AllocationBandwidth);
            }
            assert_eq!(world.action(), None);
            world.pass(Duration::from_millis(100));
        }
    }
}

#[test]
fn data_above_the_user_rate_is_dropped_on_every_allocation() {
    // The rates apply per user even without a limit on allocations per user.
    let (mut world, clients, relays) = two_clients(|setup| {
        setup.limits.allocations_per_user = 0;
        setup.limits.user_rates = UserRates { bytes: Rate::new(100, 1_000), ..UserRates::default() };
    });
    let bob = world.client(3).as_user(1);
    world.allocate(&bob);
    world.permit(&bob, peer(1));
    let half = [7; 500];
    world.relayed(&clients[0].tuple, &send(&half));
    world.relayed(&clients[1].tuple, &channel_data(0x4000, &half));
    for (client, relay) in clients.iter().zip(&relays) {
        assert_eq!(world.dropped(&client.tuple, &send(b"x")), DropReason::UserBandwidth);
        let (id, user, tuple) = (Some(relay.id.allocation()), "alice".to_owned(), client.tuple);
        assert_eq!(world.event(), Event::LimitReached { id, user, tuple, limit: Limit::UserBandwidth });
    }
    world.relayed(&bob.tuple, &send(&half));
    for relay in &relays {
        assert!(world.peer_packet(relay.id, peer(1), &half).is_ok());
    }
    for relay in &relays {
        assert_eq!(world.peer_packet(relay.id, peer(1), b"x"), Err(DropReason::UserBandwidth));
    }
    // Rate usage outlasts the allocations.
    for (client, relay) in clients.iter().zip(&relays) {
        world.accept(client, Method::REFRESH, &[&Lifetime(0)]);
        world.expect_end(relay);
    }
    world.allocate(&clients[0]);
    world.permit(&clients[0], peer(1));
    assert_eq!(world.dropped(&clients[0].tuple, &send(b"x")), DropReason::UserBandwidth);
    assert_eq!(world.logged_limit(), Limit::UserBandwidth);
    world.pass(seconds(5));
    world.relayed(&clients[0].tuple, &send(&half));
}

#[test]
fn data_dropped_by_the_user_rate_is_not_charged_to_the_allocation() {
    let (mut world, clients, _) = two_clients(|setup| {
        setup.limits.byte_rate = Rate::new(1, 1_000);
        setup.limits.user_rates.bytes = Rate::new(1_000, 1_000);
    });
    world.relayed(&clients[1].tuple, &send(&[7; 1_000]));
    assert_eq!(world.dropped(&clients[0].tuple, &send(&[7; 1_000])), DropReason::UserBandwidth);
    assert_eq!(world.logged_limit(), Limit::UserBandwidth);
    world.pass(seconds(1));
    world.relayed(&clients[0].tuple, &send(&[7; 1_000]));
    assert_eq!(world.dropped(&clients[0].tuple, &send(b"x")), DropReason::AllocationBandwidth);
    // Each of the two limits is logged once a minute, independently of the other.
    assert_eq!(world.logged_limit(), Limit::AllocationBandwidth);
}

#[test]
fn data_that_was_not_sent_is_not_charged() {
    for of_user in [false, true] {
        let (mut world, clients, relays) = two_clients(|setup| {
            let rate = Rate::new(1, 1_000);
            if of_user {
                setup.limits.user_rates.bytes = rate;
            } else {
                setup.limits.byte_rate = rate;
            }
        });
        let (tuple, payload) = (clients[0].tuple, [7; 1_000]);
        let reason = if of_user { DropReason::UserBandwidth } else { DropReason::AllocationBandwidth };
        for _ in 0..3 {
            world.relayed(&tuple, &send(&payload));
            world.server.refund(relays[0].id, Direction::ToPeers, 1_000);
            assert!(world.peer_packet(relays[0].id, peer(1), &payload).is_ok());
            world.server.refund(relays[0].id, Direction::ToClient, 1_000);
        }
        // A refund fills no bucket above its burst, and gives nothing to the other direction.
        world.server.refund(relays[0].id, Direction::ToPeers, 1_000);
        assert!(world.peer_packet(relays[0].id, peer(1), &payload).is_ok());
        assert_eq!(world.peer_packet(relays[0].id, peer(1), b"x"), Err(reason));
        world.logged_limit();
        world.relayed(&tuple, &send(&payload));
        assert_eq!(world.dropped(&tuple, &send(b"x")), reason);
    }
}

// RFC 8656 §7.2 step 10: 486. Neither a retransmission nor a request that is rejected before the rate is checked is
// charged. Deleting an allocation does not undo its charge.
#[test]
fn allocations_above_the_user_rate_are_486() {
    let mut world = World::with(|setup| setup.limits.user_rates.allocations = Rate::new(1, 2));
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    let response = world.opened(&request, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    for _ in 0..5 {
        assert_eq!(world.response_to(&client.tuple, &request), response);
    }
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP]), 437);
    let second = world.client(2);
    let relay = world.allocate(&second);
    world.accept(&second, Method::REFRESH, &[&Lifetime(0)]);
    world.expect_end(&relay);

    let before = world.footprint();
    let response = world.send_request(&second, Method::ALLOCATE, &[&UDP]);
    assert_eq!((response.code(), response.outcome), (Some(486), Outcome::RejectedByLimit(Limit::AllocationRate)));
    assert_eq!(response.reason(), "Allocation Quota Reached: allocations per second");
    assert_eq!(world.logged_limit(), Limit::AllocationRate);
    assert_eq!((world.footprint(), world.ledger.quota.of_user("alice")), (before, 1));
    world.allocate(&world.client(3).as_user(1));
    world.pass(seconds(1));
    world.allocate(&second);
}
