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
const FAILURES: [OpenError; 2] = [OpenError::PortInUse, OpenError::Other];

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
    let answer = world.opened(&request, &open, Ok(()));
    let XorRelayedAddress(relayed) = answer.get().unwrap();
    assert!(relayed.port().is_multiple_of(2));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    (Relay { id: open.socket, bind: open.bind, relayed }, answer.get().expect("a token"))
}

/// Has a socket asked for with a token; what it is opened by is for the caller.
fn claim(world: &mut World, client: &Client, token: &ReservationToken) -> (Vec<u8>, SocketSpec) {
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, token]);
    let open = world.open_for(&client.tuple, &request);
    (request, open)
}

fn delete(world: &mut World, host: u8, relay: &Relay) {
    world.accept(&world.client(host), Method::REFRESH, &[&Lifetime(0)]);
    world.ended(relay);
}

// The token stands for the next higher port on the same address, whoever comes with it, once.
#[test]
fn the_port_next_to_an_even_one_goes_to_who_has_the_token() {
    let mut world = World::new();
    let (relay, token) = reserve(&mut world, 1);
    let second = world.client(2);
    let claimed = world.allocate_with(&second, &[&token]);
    assert_eq!((claimed.bind.ip(), claimed.bind.port()), (relay.bind.ip(), relay.bind.port() + 1));
    assert_eq!((claimed.relayed.ip(), claimed.relayed.port()), (relay.relayed.ip(), relay.relayed.port() + 1));
    assert_eq!(world.footprint(), Footprint { allocations: 2, counted: 2, live: 2, ports_taken: 2, ..NOTHING });
    assert_eq!(world.refusal(&world.client(3), Method::ALLOCATE, &[&UDP, &token]), 508);
    delete(&mut world, 1, &relay);
    delete(&mut world, 2, &claimed);
    world.advance(seconds(30));
    assert_eq!(world.footprint(), NOTHING);
}

// What is reserved nobody else gets.
#[test]
fn a_reserved_port_is_not_handed_out() {
    let mut world = World::new();
    let (_, token) = reserve(&mut world, 1);
    for host in 2..=7 {
        world.allocate(&world.client(host));
    }
    assert_eq!(world.refusal(&world.client(8), Method::ALLOCATE, &[&UDP]), 508);
    limit(&mut world);
    world.allocate_with(&world.client(8), &[&token]);
}

// Step 8: no pair → 508. Step 5: both together → 400.
#[test]
fn no_pair_of_ports_is_508_and_leaves_nothing_behind() {
    let mut world = World::new();
    for host in 1..=4 {
        reserve(&mut world, host);
    }
    let before = world.footprint();
    assert_eq!(before, Footprint { allocations: 4, counted: 8, live: 4, ports_taken: 4, ports_reserved: 4, ..NOTHING });
    assert_eq!(world.refusal(&world.client(5), Method::ALLOCATE, &[&UDP, &RESERVE]), 508);
    limit(&mut world);
    assert_eq!(world.footprint(), before);
}

// Steps 5 and 8: attributes that do not go together, and a token that is none.
#[test]
fn bad_combinations_with_a_token_or_a_reservation_are_400() {
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
        assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP, &token, other]), 400);
    }
    let both = [&UDP as &dyn EncodeAttribute, &RESERVE, &AdditionalAddressFamily(v6)];
    assert_eq!(world.refusal(&client, Method::ALLOCATE, &both), 400);
    for length in [0, 7, 9] {
        let malformed = Raw(AttributeType::RESERVATION_TOKEN, &[0; 9][..length]);
        assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP, &malformed]), 400);
    }
    // A request that comes to nothing costs no reservation.
    world.allocate_with(&client, &[&token]);
}

// Step 5: out of range, of no reservation, or expired → 508.
#[test]
fn a_token_that_is_not_valid_is_508() {
    let mut world = World::new();
    let (_, ReservationToken(token)) = reserve(&mut world, 1);
    let client = world.client(2);
    for at in 0..8 {
        let mut other = token;
        other[at] ^= 1;
        assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP, &ReservationToken(other)]), 508);
    }
    for other in [[0; 8], [0xff; 8], [1, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP, &ReservationToken(other)]), 508);
    }
    world.advance(std::time::Duration::from_millis(29_999));
    assert_eq!(world.ledger.reservations.count(), 1, "it is held for 30 seconds at least");
    world.advance(std::time::Duration::from_millis(1));
    assert_eq!(world.footprint(), Footprint { allocations: 1, counted: 1, live: 1, ports_taken: 1, ..NOTHING });
    assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP, &ReservationToken(token)]), 508);
}

// §7.2: the reservation MUST be held; it is not the allocation's that made it.
#[test]
fn a_reservation_outlives_the_allocation_that_made_it() {
    let mut world = World::new();
    let client = world.client(1);
    let (relay, token) = reserve(&mut world, 1);
    delete(&mut world, 1, &relay);
    assert_eq!(world.footprint(), Footprint { counted: 1, ports_reserved: 1, ..NOTHING });
    let claimed = world.allocate_with(&client, &[&token]);
    assert_eq!(claimed.bind.port(), relay.bind.port() + 1);
}

#[test]
fn stopping_ends_reservations() {
    let mut world = World::new();
    let (relay, _) = reserve(&mut world, 1);
    world.server.stop(world.now);
    world.ended(&relay);
    assert_eq!((world.footprint(), world.ledger.reservations.count()), (NOTHING, 0));
}

// §7.2, the note on the stateless stack approach: the token is told again, and a token is not claimed twice by one
// request.
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
    assert_eq!(world.answer_to(&first.tuple, &reserving), reserved);
    let (claiming, open) = claim(&mut world, &second, &reserved.get().unwrap());
    assert_eq!(world.dropped(&second.tuple, &claiming), DropReason::AllocationPending);
    let claimed = world.opened(&claiming, &open, Ok(()));
    world.event();
    let before = world.footprint();
    for _ in 0..2 {
        assert_eq!(world.answer_to(&second.tuple, &claiming), claimed);
        assert_eq!(world.answer_to(&first.tuple, &reserving), reserved);
    }
    assert_eq!(world.footprint(), before);
}

// The address decides the family, on which a request with a token may say nothing; so too on a server whose IPv4 is gone.
#[test]
fn a_token_for_an_ipv6_address_gets_it() {
    let mut world = World::with(|setup| setup.relays.retain(|(bind, _)| bind.is_ipv6()));
    let v6 = RequestedAddressFamily(AddressFamily::V6);
    let (relay, token) = reserve_with(&mut world, 1, &[&v6]);
    let claimed = world.allocate_with(&world.client(2), &[&token]);
    assert_eq!((claimed.bind.ip(), claimed.bind.port()), (relay.bind.ip(), relay.bind.port() + 1));
}

// §7.2: any 5-tuple, which may be another worker's. The port goes back to the worker whose it is.
#[test]
fn a_token_is_good_at_every_worker() {
    let mut owner = World::new();
    let mut other = owner.sibling();
    let (relay, token) = reserve(&mut owner, 1);
    let client = other.client(2);
    let claimed = other.allocate_with(&client, &[&token]);
    assert_eq!((claimed.bind.ip(), claimed.bind.port()), (relay.bind.ip(), relay.bind.port() + 1));
    assert_eq!(owner.refusal(&owner.client(3), Method::ALLOCATE, &[&UDP, &token]), 508);
    assert_eq!(other.footprint(), Footprint { allocations: 1, counted: 2, live: 2, ports_borrowed: 1, ..NOTHING });
    // Its time as a reservation ends; it stays with the other worker.
    owner.advance(seconds(31));
    assert_eq!(
        owner.footprint(),
        Footprint { allocations: 1, counted: 2, live: 2, ports_taken: 1, ports_reserved: 1, ..NOTHING }
    );
    delete(&mut other, 2, &claimed);
    assert_eq!(other.footprint(), Footprint { counted: 1, live: 1, ..NOTHING });
    assert_eq!(owner.ledger.reservations.returned(), 1);
    owner.advance(seconds(1));
    assert_eq!(owner.footprint(), Footprint { allocations: 1, counted: 1, live: 1, ports_taken: 1, ..NOTHING });
    // It can be reserved and lent again.
    delete(&mut owner, 1, &relay);
    for _ in 0..10 {
        let (relay, token) = reserve(&mut owner, 1);
        let claimed = other.allocate_with(&client, &[&token]);
        delete(&mut other, 2, &claimed);
        delete(&mut owner, 1, &relay);
    }
    owner.advance(seconds(31));
    assert_eq!((owner.footprint(), other.footprint()), (NOTHING, NOTHING));
}

// Who has no port left looks for returned ones before it says so.
#[test]
fn a_returned_port_is_found_when_there_is_no_other() {
    let mut owner = World::new();
    let mut other = owner.sibling();
    let (_, token) = reserve(&mut owner, 1);
    let (client, late) = (other.client(2), owner.client(9));
    let claimed = other.allocate_with(&client, &[&token]);
    for host in 3..=8 {
        owner.allocate(&owner.client(host));
    }
    assert_eq!(owner.refusal(&late, Method::ALLOCATE, &[&UDP]), 508);
    limit(&mut owner);
    delete(&mut other, 2, &claimed);
    assert_eq!(owner.allocate(&late).bind, claimed.bind);
}

// Step 10, and more: whoever makes reservations without end would have all ports.
#[test]
fn a_reservation_counts_as_an_allocation_until_it_is_one() {
    for elsewhere in [false, true] {
        let mut world = World::with(|setup| (setup.limits.allocations_per_user, setup.limits.allocations) = (2, 3));
        let mut sibling = world.sibling();
        let second = world.client(2);
        let (relay, token) = reserve(&mut world, 1);
        assert_eq!(world.refusal(&second, Method::ALLOCATE, &[&UDP]), 486);
        limit(&mut world);
        // The reservation's own place is enough for whoever claims it.
        let worker = if elsewhere { &mut sibling } else { &mut world };
        let claimed = worker.allocate_with(&second, &[&token]);
        assert_eq!(worker.refusal(&worker.client(3), Method::ALLOCATE, &[&UDP]), 486);
        limit(worker);
        delete(worker, 2, &claimed);
        delete(&mut world, 1, &relay);
        world.advance(seconds(30));
        assert_eq!((world.footprint(), sibling.footprint()), (NOTHING, NOTHING));
    }
}

#[test]
fn a_reservation_for_which_there_is_no_place_is_refused_whole() {
    for (per_user, in_all, code) in [(1, 0, 486), (0, 1, 508)] {
        let mut world =
            World::with(|setup| (setup.limits.allocations_per_user, setup.limits.allocations) = (per_user, in_all));
        let client = world.client(1);
        for _ in 0..3 {
            assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP, &RESERVE]), code);
            limit(&mut world);
            assert_eq!(world.footprint(), NOTHING);
        }
        world.allocate(&client);
    }
}

// A token is good for everybody; whoever has the allocation is who it counts for.
#[test]
fn another_user_who_claims_a_reservation_has_it_counted() {
    let mut world = World::with(|setup| setup.limits.allocations_per_user = 2);
    let bob = world.client(2).as_user(1);
    let (relay, token) = reserve(&mut world, 1);
    world.allocate(&bob);
    world.allocate(&world.client(3).as_user(1));
    let before = world.footprint();
    // Bob has no place left, and the reservation stays as it was.
    assert_eq!(world.refusal(&world.client(4).as_user(1), Method::ALLOCATE, &[&UDP, &token]), 486);
    limit(&mut world);
    assert_eq!(world.footprint(), before);
    let carol = world.client(5).with_credential("carol", UNIX + 5_000);
    world.allocate_with(&carol, &[&token]);
    // Alice has her place again.
    world.allocate(&world.client(6));
    assert_eq!(world.refusal(&world.client(7), Method::ALLOCATE, &[&UDP]), 486);
    limit(&mut world);
    delete(&mut world, 1, &relay);
}

// A reservation is no allocation; what is made of it is one, of whoever makes it.
#[test]
fn reserving_costs_nothing_of_the_allocation_rate_and_claiming_does() {
    let mut world = World::with(|setup| setup.limits.user_rates.allocations = Rate::new(1, 2));
    let (_, token) = reserve(&mut world, 1);
    let (_, other) = reserve(&mut world, 2);
    let before = world.footprint();
    let (alice, bob) = (world.client(3), world.client(4).as_user(1));
    let answer = world.ask(&alice, Method::ALLOCATE, &[&UDP, &token]);
    assert_eq!((answer.code(), answer.outcome), (Some(486), Outcome::RejectedByLimit(Limit::AllocationRate)));
    assert_eq!((world.limit(), world.footprint()), (Limit::AllocationRate, before));
    world.allocate_with(&bob, &[&token]);
    assert_eq!((world.ledger.quota.of_user("alice"), world.ledger.quota.of_user("bob")), (3, 1));
    world.allocate(&world.client(5).as_user(1));
    assert_eq!(world.refusal(&world.client(6).as_user(1), Method::ALLOCATE, &[&UDP, &other]), 486);
    assert_eq!(world.limit(), Limit::AllocationRate);
    world.pass(seconds(1));
    world.allocate_with(&alice, &[&other]);
    assert_eq!((world.ledger.quota.of_user("alice"), world.ledger.quota.of_user("bob")), (3, 2));
}

// What is refused for want of a place costs nothing of the rate, and what the rate refuses takes no place.
#[test]
fn a_reservation_that_a_limit_refuses_costs_nothing_of_the_other() {
    let one_a_second = Rate::new(1, 1);
    let mut world = World::with(|setup| {
        (setup.limits.allocations_per_user, setup.limits.user_rates.allocations) = (1, one_a_second);
    });
    let client = world.client(1);
    for _ in 0..3 {
        assert_eq!(world.refusal(&client, Method::ALLOCATE, &[&UDP, &RESERVE]), 486);
        assert_eq!((world.limit(), world.footprint()), (Limit::AllocationsPerUser, NOTHING));
    }
    world.allocate(&client);

    let mut world = World::with(|setup| setup.limits.user_rates.allocations = one_a_second);
    world.allocate(&world.client(1));
    let before = world.footprint();
    for _ in 0..3 {
        assert_eq!(world.refusal(&world.client(2), Method::ALLOCATE, &[&UDP, &RESERVE]), 486);
        assert_eq!((world.limit(), &world.footprint()), (Limit::AllocationRate, &before));
    }
    world.pass(seconds(1));
    reserve(&mut world, 2);
}

// An even port that somebody else has costs neither it nor its neighbour.
#[test]
fn a_pair_whose_even_port_is_in_use_is_given_back() {
    let mut world = World::with(|setup| setup.limits.allocations_per_user = 2);
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &RESERVE]);
    let mut open = world.open_for(&client.tuple, &request);
    for left in (1..=3).rev() {
        assert_eq!(
            world.footprint(),
            Footprint { allocations: 1, counted: 2, ports_taken: 1, ports_reserved: 1, ..NOTHING }
        );
        let (Opened::Open(next), _) = world.socket_opened(&open, Err(OpenError::PortInUse)) else {
            panic!("{left} pairs are left")
        };
        open = next;
    }
    let answer = world.opened(&request, &open, Err(OpenError::PortInUse));
    assert_eq!(answer.code(), Some(508));
    assert!(limit(&mut world).contains("other programs"));
    assert_eq!(world.footprint(), NOTHING);
    // The odd ones are free.
    world.allocate(&client);
    world.pass(seconds(60));
    let client = world.client(2);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    world.opened(&request, &open, Err(OpenError::Other));
    limit(&mut world);
}

#[test]
fn an_allocation_that_ends_while_it_is_opened_reserves_nothing() {
    for result in [Ok(()), Err(OpenError::PortInUse), Err(OpenError::Other)] {
        let mut world = World::new();
        let client = world.client(1);
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &RESERVE]);
        let open = world.open_for(&client.tuple, &request);
        world.server.connection_closed(world.now, &client.tuple);
        assert_eq!(world.footprint(), Footprint { ports_taken: 1, ..NOTHING });
        assert_eq!(world.socket_opened(&open, result).0, Opened::Abandoned);
        if result.is_ok() {
            world.server.socket_closed(open.bind);
        }
        assert_eq!(world.footprint(), NOTHING);
    }
}

// "… or the one that was reserved is no longer available": 508, no other port instead, and nothing is lost.
#[test]
fn a_claimed_port_that_cannot_be_bound_is_508() {
    for elsewhere in [false, true] {
        for failure in FAILURES {
            let mut world = World::with(|setup| setup.limits.allocations_per_user = 2);
            let mut sibling = world.sibling();
            let second = world.client(2);
            let (relay, token) = reserve(&mut world, 1);
            let worker = if elsewhere { &mut sibling } else { &mut world };
            let (request, open) = claim(worker, &second, &token);
            let answer = worker.opened(&request, &open, Err(failure));
            let outcome = match failure {
                OpenError::PortInUse => Outcome::Rejected(RejectionCode::InsufficientCapacity),
                OpenError::Other => Outcome::RejectedByLimit(Limit::Sockets),
            };
            assert_eq!((answer.code(), answer.outcome), (Some(508), outcome));
            limit(worker);
            assert_eq!(worker.refusal(&second, Method::ALLOCATE, &[&UDP, &token]), 508);
            delete(&mut world, 1, &relay);
            world.advance(seconds(1));
            assert_eq!((world.footprint(), sibling.footprint()), (NOTHING, NOTHING));
        }
    }
}

// A client that is gone before its socket is open leaves nothing with either worker.
#[test]
fn a_claim_that_is_abandoned_returns_the_port() {
    for elsewhere in [false, true] {
        for result in [Ok(()), Err(OpenError::PortInUse), Err(OpenError::Other)] {
            let mut world = World::new();
            let mut sibling = world.sibling();
            let second = world.client(2);
            let (relay, token) = reserve(&mut world, 1);
            let worker = if elsewhere { &mut sibling } else { &mut world };
            let (_, open) = claim(worker, &second, &token);
            worker.server.connection_closed(worker.now, &second.tuple);
            assert_eq!(worker.socket_opened(&open, result).0, Opened::Abandoned);
            if result.is_ok() {
                worker.server.socket_closed(open.bind);
            }
            delete(&mut world, 1, &relay);
            world.advance(seconds(1));
            assert_eq!((world.footprint(), sibling.footprint()), (NOTHING, NOTHING));
        }
    }
}

// Nothing tells one token from the next, and a port from its token only who has it.
#[test]
fn tokens_differ_though_the_port_is_the_same() {
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
