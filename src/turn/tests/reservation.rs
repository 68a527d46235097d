//! EVEN-PORT with the R bit and RESERVATION-TOKEN: RFC 8656 §7.2 steps 5 and 8.

use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, EvenPort, Lifetime, RequestedAddressFamily, RequestedTransport,
    ReservationToken, XorRelayedAddress,
};
use crate::stun::{AttributeType, EncodeAttribute, Method};
use crate::turn::RejectionCode;
use crate::turn::tests::support::*;
use crate::turn::{DropReason, Event, Limit, OpenError, Opened, Outcome, Rate, SocketId, SocketSpec};

const UDP: RequestedTransport = RequestedTransport::UDP;
const RESERVE: EvenPort = EvenPort { reserve_next: true };
const FAILURES: [OpenError; 3] = [OpenError::PortInUse, OpenError::AddressGone, OpenError::Other];

/// Makes an allocation that reserves the port next to its own.
fn reserve(world: &mut World, host: u8) -> (Relay, ReservationToken) {
    reserve_with(world, host, &[])
}

fn reserve_with(world: &mut World, host: u8, more: &[&dyn EncodeAttribute]) -> (Relay, ReservationToken) {
    let client = world.client(host);
    let mut attributes: Vec<&dyn EncodeAttribute> = vec![&UDP, &RESERVE];
    attributes.extend(more);
    let request = client.request(world.transaction(), Method::ALLOCATE, &attributes);
    let open = world.open_for(&client.tuple, &request);
    let response = world.opened(&request, &open, Ok(()));
    let XorRelayedAddress(relayed) = response.get().unwrap();
    assert!(relayed.port().is_multiple_of(2));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    (Relay { id: open.socket, bind: open.bind, relayed }, response.get().expect("a token"))
}

/// Passes an Allocate request with a token to the server. Returns the request and the socket that the server requests.
fn claim(world: &mut World, client: &Client, token: &ReservationToken) -> (Vec<u8>, SocketSpec) {
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, token]);
    let open = world.open_for(&client.tuple, &request);
    (request, open)
}

fn delete(world: &mut World, host: u8, relay: &Relay) {
    world.accept(&world.client(host), Method::REFRESH, &[&Lifetime(0)]);
    world.expect_end(relay);
}

// A token claims the next higher port on the same address, once, on any 5-tuple.
#[test]
fn the_token_claims_the_port_next_to_the_even_one() {
    let mut world = World::new();
    let (relay, token) = reserve(&mut world, 1);
    let second = world.client(2);
    let claimed = world.allocate_with(&second, &[&token]);
    assert_eq!((claimed.bind.ip(), claimed.bind.port()), (relay.bind.ip(), relay.bind.port() + 1));
    assert_eq!((claimed.relayed.ip(), claimed.relayed.port()), (relay.relayed.ip(), relay.relayed.port() + 1));
    assert_eq!(world.footprint(), Footprint { allocations: 2, counted: 2, live: 2, ports_taken: 2 });
    assert_eq!(world.error_code(&world.client(3), Method::ALLOCATE, &[&UDP, &token]), 508);
    delete(&mut world, 1, &relay);
    delete(&mut world, 2, &claimed);
    world.advance(seconds(30));
    assert_eq!(world.footprint(), EMPTY);
}

// Allocate requests without the token do not get the reserved port.
#[test]
fn a_reserved_port_is_not_allocated_without_its_token() {
    let mut world = World::new();
    let (_, token) = reserve(&mut world, 1);
    for host in 2..=7 {
        world.allocate(&world.client(host));
    }
    assert_eq!(world.error_code(&world.client(8), Method::ALLOCATE, &[&UDP]), 508);
    rejection_note(&mut world);
    world.allocate_with(&world.client(8), &[&token]);
}

// Step 8: no free pair of ports → 508.
#[test]
fn a_reservation_without_a_free_pair_of_ports_is_508() {
    let mut world = World::new();
    for host in 1..=4 {
        reserve(&mut world, host);
    }
    let before = world.footprint();
    assert_eq!(before, Footprint { allocations: 4, counted: 8, live: 4, ports_taken: 8 });
    assert_eq!(world.error_code(&world.client(5), Method::ALLOCATE, &[&UDP, &RESERVE]), 508);
    rejection_note(&mut world);
    assert_eq!(world.footprint(), before);
}

// Steps 5 and 8: attributes that exclude each other, and a malformed token.
#[test]
fn invalid_combinations_with_a_token_or_a_reservation_are_400() {
    let mut world = World::new();
    let (_, token) = reserve(&mut world, 1);
    let client = world.client(2);
    let [v4, v6] = [AddressFamily::V4, AddressFamily::V6];
    let unknown_family = Raw(AttributeType::REQUESTED_ADDRESS_FAMILY, &[3, 0, 0, 0]);
    for other in [
        &RESERVE as &dyn EncodeAttribute,
        &EvenPort { reserve_next: false },
        &RequestedAddressFamily(v4),
        &RequestedAddressFamily(v6),
        &AdditionalAddressFamily(v6),
        &AdditionalAddressFamily(v4),
        &unknown_family,
    ] {
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &token, other]), 400);
    }
    let both = [&UDP as &dyn EncodeAttribute, &RESERVE, &AdditionalAddressFamily(v6)];
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &both), 400);
    for length in [0, 7, 9] {
        let malformed = Raw(AttributeType::RESERVATION_TOKEN, &[0; 9][..length]);
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &malformed]), 400);
    }
    // A rejected request does not claim the reservation.
    world.allocate_with(&client, &[&token]);
}

// Step 5: a token that is out of range, belongs to no reservation, or has expired → 508.
#[test]
fn an_invalid_token_is_508() {
    let mut world = World::new();
    let (_, ReservationToken(token)) = reserve(&mut world, 1);
    let client = world.client(2);
    for at in 0..8 {
        let mut other = token;
        other[at] ^= 1;
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &ReservationToken(other)]), 508);
    }
    for other in [[0; 8], [0xff; 8], [1, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &ReservationToken(other)]), 508);
    }
    world.advance(std::time::Duration::from_millis(29_999));
    assert_eq!(world.relays().reservation_count(), 1, "it is held for at least 30 seconds");
    world.advance(std::time::Duration::from_millis(1));
    assert_eq!(world.footprint(), Footprint { allocations: 1, counted: 1, live: 1, ports_taken: 1 });
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &ReservationToken(token)]), 508);
}

// §7.2: the reservation MUST be held for 30 seconds, also if its allocation ends before.
#[test]
fn a_reservation_outlives_the_allocation_that_made_it() {
    let mut world = World::new();
    let client = world.client(1);
    let (relay, token) = reserve(&mut world, 1);
    delete(&mut world, 1, &relay);
    assert_eq!(world.footprint(), Footprint { counted: 1, ports_taken: 1, ..EMPTY });
    let claimed = world.allocate_with(&client, &[&token]);
    assert_eq!(claimed.bind.port(), relay.bind.port() + 1);
}

#[test]
fn stopping_ends_reservations() {
    let mut world = World::new();
    let (relay, _) = reserve(&mut world, 1);
    world.server.stop(world.now);
    world.expect_end(&relay);
    assert_eq!((world.footprint(), world.relays().reservation_count()), (EMPTY, 0));
}

// §7.2, the note on the stateless stack approach: the response has the same token, and the retransmission of a claim
// does not claim it again.
#[test]
fn retransmissions_get_the_same_token_and_the_same_address() {
    let mut world = World::with(|setup| setup.limits.allocations_per_user = 2);
    let (first, second) = (world.client(1), world.client(2));
    let reserving = first.request(world.transaction(), Method::ALLOCATE, &[&UDP, &RESERVE]);
    let open = world.open_for(&first.tuple, &reserving);
    assert_eq!(world.dropped(&first.tuple, &reserving), DropReason::AllocationPending);
    let reserved = world.opened(&reserving, &open, Ok(()));
    world.event();
    assert_eq!(
        reserved.kinds(),
        [
            AttributeType::XOR_RELAYED_ADDRESS,
            AttributeType::LIFETIME,
            AttributeType::RESERVATION_TOKEN,
            AttributeType::XOR_MAPPED_ADDRESS,
            AttributeType::SOFTWARE,
            AttributeType::MESSAGE_INTEGRITY,
        ]
    );
    assert_eq!(world.response_to(&first.tuple, &reserving), reserved);
    let (claiming, open) = claim(&mut world, &second, &reserved.get().unwrap());
    assert_eq!(world.dropped(&second.tuple, &claiming), DropReason::AllocationPending);
    let claimed = world.opened(&claiming, &open, Ok(()));
    world.event();
    let before = world.footprint();
    for _ in 0..2 {
        assert_eq!(world.response_to(&second.tuple, &claiming), claimed);
        assert_eq!(world.response_to(&first.tuple, &reserving), reserved);
    }
    assert_eq!(world.footprint(), before);
}

// The reserved address determines the family, because a request with a token must not name one.
#[test]
fn a_token_for_an_ipv6_address_gets_it() {
    let mut world = World::with(|setup| setup.relays.retain(|(bind, _)| bind.is_ipv6()));
    let v6 = RequestedAddressFamily(AddressFamily::V6);
    let (relay, token) = reserve_with(&mut world, 1, &[&v6]);
    let claimed = world.allocate_with(&world.client(2), &[&token]);
    assert_eq!((claimed.bind.ip(), claimed.bind.port()), (relay.bind.ip(), relay.bind.port() + 1));
}

// §7.2: any 5-tuple can claim a token, also one of another worker. The worker that claims it holds the port.
#[test]
fn a_token_is_valid_at_every_worker() {
    let mut first = World::new();
    let mut other = first.other_worker();
    let (relay, token) = reserve(&mut first, 1);
    let client = other.client(2);
    let claimed = other.allocate_with(&client, &[&token]);
    assert_eq!((claimed.bind.ip(), claimed.bind.port()), (relay.bind.ip(), relay.bind.port() + 1));
    assert_eq!(first.error_code(&first.client(3), Method::ALLOCATE, &[&UDP, &token]), 508);
    let both = Footprint { allocations: 1, counted: 2, live: 2, ports_taken: 2 };
    assert_eq!(other.footprint(), both);
    // The time of the reservation ends, and the other worker still has the port.
    first.advance(seconds(31));
    assert_eq!(first.footprint(), both);
    delete(&mut other, 2, &claimed);
    assert_eq!(first.footprint(), Footprint { allocations: 1, counted: 1, live: 1, ports_taken: 1 });
    // The port can be reserved and claimed by the other worker again.
    delete(&mut first, 1, &relay);
    for _ in 0..10 {
        let (relay, token) = reserve(&mut first, 1);
        let claimed = other.allocate_with(&client, &[&token]);
        delete(&mut other, 2, &claimed);
        delete(&mut first, 1, &relay);
    }
    first.advance(seconds(31));
    assert_eq!((first.footprint(), other.footprint()), (EMPTY, EMPTY));
}

// The ports belong to the process: every worker can use all of them, and pairs and claimed ports of another worker are
// available to all workers as soon as they are released.
#[test]
fn every_worker_can_use_every_port() {
    let mut first = World::new();
    let mut others = [first.other_worker(), first.other_worker(), first.other_worker()];
    let (relay, token) = reserve(&mut first, 1);
    let claimed = others[0].allocate_with(&first.client(2), &[&token]);
    for host in 3..=8 {
        let worker = &mut others[usize::from(host) % 3];
        worker.allocate(&worker.client(host));
    }
    for worker in &mut others {
        assert_eq!(worker.error_code(&worker.client(9), Method::ALLOCATE, &[&UDP]), 508);
        assert!(rejection_note(worker).contains("no relay port of the server is free"));
    }
    delete(&mut others[0], 2, &claimed);
    assert_eq!(others[1].allocate(&first.client(9)).bind, claimed.bind);
    delete(&mut first, 1, &relay);
    assert_eq!(others[2].allocate(&first.client(10)).bind, relay.bind);
}

// Step 10: without a limit on reservations, one user could reserve all ports.
#[test]
fn a_reservation_counts_as_an_allocation() {
    for at_other_worker in [false, true] {
        let mut world = World::with(|setup| (setup.limits.allocations_per_user, setup.limits.allocations) = (2, 3));
        let mut other_worker = world.other_worker();
        let second = world.client(2);
        let (relay, token) = reserve(&mut world, 1);
        assert_eq!(world.error_code(&second, Method::ALLOCATE, &[&UDP]), 486);
        rejection_note(&mut world);
        // A claim by the same user needs no further place in the quota.
        let worker = if at_other_worker { &mut other_worker } else { &mut world };
        let claimed = worker.allocate_with(&second, &[&token]);
        assert_eq!(worker.error_code(&worker.client(3), Method::ALLOCATE, &[&UDP]), 486);
        rejection_note(worker);
        delete(worker, 2, &claimed);
        delete(&mut world, 1, &relay);
        world.advance(seconds(30));
        assert_eq!((world.footprint(), other_worker.footprint()), (EMPTY, EMPTY));
    }
}

#[test]
fn an_allocate_with_a_reservation_above_the_quota_is_rejected() {
    for (per_user, in_all, code) in [(1, 0, 486), (0, 1, 508)] {
        let mut world =
            World::with(|setup| (setup.limits.allocations_per_user, setup.limits.allocations) = (per_user, in_all));
        let client = world.client(1);
        for _ in 0..3 {
            assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &RESERVE]), code);
            rejection_note(&mut world);
            assert_eq!(world.footprint(), EMPTY);
        }
        world.allocate(&client);
    }
}

// Any user can claim a token. The allocation counts for the user who claims it.
#[test]
fn a_claimed_reservation_counts_for_the_user_who_claims_it() {
    let mut world = World::with(|setup| setup.limits.allocations_per_user = 2);
    let bob = world.client(2).as_user(1);
    let (relay, token) = reserve(&mut world, 1);
    world.allocate(&bob);
    world.allocate(&world.client(3).as_user(1));
    let before = world.footprint();
    // Bob has reached the limit, and the reservation is unchanged.
    assert_eq!(world.error_code(&world.client(4).as_user(1), Method::ALLOCATE, &[&UDP, &token]), 486);
    rejection_note(&mut world);
    assert_eq!(world.footprint(), before);
    let carol = world.client(5).with_credential("carol", UNIX + 5_000);
    world.allocate_with(&carol, &[&token]);
    // The reservation no longer counts for Alice.
    world.allocate(&world.client(6));
    assert_eq!(world.error_code(&world.client(7), Method::ALLOCATE, &[&UDP]), 486);
    rejection_note(&mut world);
    delete(&mut world, 1, &relay);
}

// A reservation is not charged to the allocation rate. A claim is charged to the user who makes it.
#[test]
fn claiming_is_charged_to_the_allocation_rate_and_reserving_is_not() {
    let mut world = World::with(|setup| setup.limits.user_rates.allocations = Rate::new(1, 2));
    let (_, token) = reserve(&mut world, 1);
    let (_, other) = reserve(&mut world, 2);
    let before = world.footprint();
    let (alice, bob) = (world.client(3), world.client(4).as_user(1));
    let response = world.send_request(&alice, Method::ALLOCATE, &[&UDP, &token]);
    assert_eq!((response.code(), response.outcome), (Some(486), Outcome::RejectedByLimit(Limit::AllocationRate)));
    assert_eq!((world.logged_limit(), world.footprint()), (Limit::AllocationRate, before));
    world.allocate_with(&bob, &[&token]);
    assert_eq!((world.ledger.quota.of_user("alice"), world.ledger.quota.of_user("bob")), (3, 1));
    world.allocate(&world.client(5).as_user(1));
    assert_eq!(world.error_code(&world.client(6).as_user(1), Method::ALLOCATE, &[&UDP, &other]), 486);
    assert_eq!(world.logged_limit(), Limit::AllocationRate);
    world.pass(seconds(1));
    world.allocate_with(&alice, &[&other]);
    assert_eq!((world.ledger.quota.of_user("alice"), world.ledger.quota.of_user("bob")), (3, 2));
}

// A request that the quota rejects is not charged to the rate, and a request that the rate rejects is not counted.
#[test]
fn a_reservation_that_one_limit_rejects_is_not_charged_to_the_other() {
    let one_a_second = Rate::new(1, 1);
    let mut world = World::with(|setup| {
        (setup.limits.allocations_per_user, setup.limits.user_rates.allocations) = (1, one_a_second);
    });
    let client = world.client(1);
    for _ in 0..3 {
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &RESERVE]), 486);
        assert_eq!((world.logged_limit(), world.footprint()), (Limit::AllocationsPerUser, EMPTY));
    }
    world.allocate(&client);

    let mut world = World::with(|setup| setup.limits.user_rates.allocations = one_a_second);
    world.allocate(&world.client(1));
    let before = world.footprint();
    for _ in 0..3 {
        assert_eq!(world.error_code(&world.client(2), Method::ALLOCATE, &[&UDP, &RESERVE]), 486);
        assert_eq!((world.logged_limit(), &world.footprint()), (Limit::AllocationRate, &before));
    }
    world.pass(seconds(1));
    reserve(&mut world, 2);
}

// If another program uses the even port, both ports of the pair are released.
#[test]
fn a_pair_whose_even_port_is_in_use_is_released() {
    let mut world = World::with(|setup| setup.limits.allocations_per_user = 2);
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &RESERVE]);
    let mut open = world.open_for(&client.tuple, &request);
    for left in (1..=3).rev() {
        assert_eq!(world.footprint(), Footprint { allocations: 1, counted: 2, ports_taken: 2, ..EMPTY });
        let (Opened::Open(next), _) = world.socket_opened(&open, Err(OpenError::PortInUse)) else {
            panic!("{left} pairs are left")
        };
        open = next;
    }
    let response = world.opened(&request, &open, Err(OpenError::PortInUse));
    assert_eq!(response.code(), Some(508));
    assert!(rejection_note(&mut world).contains("other programs"));
    assert_eq!(world.footprint(), EMPTY);
    // The odd ports are free.
    world.allocate(&client);
    world.pass(seconds(60));
    let client = world.client(2);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    world.opened(&request, &open, Err(OpenError::Other));
    rejection_note(&mut world);
}

#[test]
fn an_allocation_that_ends_while_its_socket_opens_reserves_nothing() {
    for result in [Ok(()), Err(OpenError::PortInUse), Err(OpenError::Other)] {
        let mut world = World::new();
        let client = world.client(1);
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &RESERVE]);
        let open = world.open_for(&client.tuple, &request);
        world.server.connection_closed(world.now, &client.tuple);
        assert_eq!(world.footprint(), Footprint { ports_taken: 1, ..EMPTY });
        assert_eq!(world.socket_opened(&open, result).0, Opened::Abandoned);
        if result.is_ok() {
            world.server.socket_closed(open.bind);
        }
        assert_eq!(world.footprint(), EMPTY);
    }
}

// Step 5, "no longer available": 508. The server does not try another port, and releases everything.
#[test]
fn a_claimed_port_that_cannot_be_bound_is_508() {
    for at_other_worker in [false, true] {
        for failure in FAILURES {
            let mut world = World::with(|setup| setup.limits.allocations_per_user = 2);
            let mut other_worker = world.other_worker();
            let second = world.client(2);
            let (relay, token) = reserve(&mut world, 1);
            let worker = if at_other_worker { &mut other_worker } else { &mut world };
            let (request, open) = claim(worker, &second, &token);
            let response = worker.opened(&request, &open, Err(failure));
            let outcome = match failure {
                OpenError::PortInUse => Outcome::Rejected(RejectionCode::InsufficientCapacity),
                OpenError::AddressGone => Outcome::RejectedByLimit(Limit::RelayAddress),
                OpenError::Other => Outcome::RejectedByLimit(Limit::Sockets),
            };
            assert_eq!((response.code(), response.outcome), (Some(508), outcome));
            rejection_note(worker);
            assert_eq!(worker.error_code(&second, Method::ALLOCATE, &[&UDP, &token]), 508);
            delete(&mut world, 1, &relay);
            world.advance(seconds(1));
            assert_eq!((world.footprint(), other_worker.footprint()), (EMPTY, EMPTY));
        }
    }
}

// If the connection is closed before the socket is open, neither worker keeps the port.
#[test]
fn a_claim_that_is_abandoned_returns_the_port() {
    for at_other_worker in [false, true] {
        for result in [Ok(()), Err(OpenError::PortInUse), Err(OpenError::Other)] {
            let mut world = World::new();
            let mut other_worker = world.other_worker();
            let second = world.client(2);
            let (relay, token) = reserve(&mut world, 1);
            let worker = if at_other_worker { &mut other_worker } else { &mut world };
            let (_, open) = claim(worker, &second, &token);
            worker.server.connection_closed(worker.now, &second.tuple);
            assert_eq!(worker.socket_opened(&open, result).0, Opened::Abandoned);
            if result.is_ok() {
                worker.server.socket_closed(open.bind);
            }
            delete(&mut world, 1, &relay);
            world.advance(seconds(1));
            assert_eq!((world.footprint(), other_worker.footprint()), (EMPTY, EMPTY));
        }
    }
}

// However fast a user reserves ports and claims them.
#[test]
fn claimed_reservations_are_forgotten_before_others_would_need_more_memory() {
    let mut world = World::new();
    let (_, waiting) = reserve(&mut world, 9);
    let second = world.client(2);
    for _ in 0..200 {
        let (relay, token) = reserve(&mut world, 1);
        let claimed = world.allocate_with(&second, &[&token]);
        delete(&mut world, 1, &relay);
        delete(&mut world, 2, &claimed);
        assert!(world.server.reserved.capacity() <= 32, "{}", world.server.reserved.capacity());
    }
    // The one that was not claimed is not forgotten.
    world.advance(seconds(30));
    assert_eq!(world.error_code(&second, Method::ALLOCATE, &[&UDP, &waiting]), 508);
    assert_eq!(world.footprint(), Footprint { allocations: 1, counted: 1, live: 1, ports_taken: 1 });
}

// A token is random for each reservation.
#[test]
fn tokens_for_the_same_port_differ() {
    let mut world = World::with(|setup| setup.ports = 50_000..=50_001);
    let mut tokens: Vec<(SocketId, [u8; 8])> = Vec::new();
    for _ in 0..20 {
        let (relay, ReservationToken(token)) = reserve(&mut world, 1);
        assert!(tokens.iter().all(|(id, other)| *id != relay.id && *other != token));
        tokens.push((relay.id, token));
        delete(&mut world, 1, &relay);
        world.advance(seconds(30));
    }
}
