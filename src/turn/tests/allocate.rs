//! RFC 8656 §7.2 step by step.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, DontFragment, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, UnknownAttributes, XorMappedAddress, XorRelayedAddress,
};
use crate::stun::{AttributeType, EncodeAttribute, Method};
use crate::turn::RequestMethod;
use crate::turn::tests::support::*;
use crate::turn::{Action, DropReason, EndReason, Event, FromClient, OpenError, Opened, Outcome};

const UDP: RequestedTransport = RequestedTransport::UDP;

#[test]
fn allocate_response_has_relayed_address_lifetime_and_mapped_address() {
    let mut world = World::new();
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    assert_eq!(open.bind.ip().to_string(), BIND_V4);
    assert_eq!(world.action(), None, "there is no log entry before the socket is open");
    let response = world.opened(&request, &open, Ok(()));
    assert_eq!(response.outcome, Outcome::Answered(RequestMethod::Allocate));
    assert_eq!(
        response.kinds(),
        [
            AttributeType::XOR_RELAYED_ADDRESS,
            AttributeType::LIFETIME,
            AttributeType::XOR_MAPPED_ADDRESS,
            AttributeType::SOFTWARE,
            AttributeType::MESSAGE_INTEGRITY,
        ]
    );
    // Behind 1:1 NAT the response has the advertised address.
    let relay = SocketAddr::new(ADVERTISED_V4.parse().unwrap(), open.bind.port());
    assert_eq!(response.get(), Some(XorRelayedAddress(relay)));
    assert_eq!(response.get(), Some(XorMappedAddress(client.tuple.client)));
    assert_eq!(response.lifetime(), Some(600));
    assert!(response.is_signed_for(&client));
    let (user, tuple) = ("alice".to_owned(), client.tuple);
    let (id, relay) = (open.socket.allocation(), relay.into());
    assert_eq!(world.event(), Event::AllocationCreated { id, user, tuple, relay, lifetime: 600 });
}

// Step 2: 437 for a second allocation on the 5-tuple, for every user.
#[test]
fn second_allocate_on_a_5_tuple_is_437() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let before = world.footprint();
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP]), 437);
    assert_eq!(world.error_code(&client.as_user(1), Method::ALLOCATE, &[&UDP]), 437);
    // This step precedes the checks of the attributes.
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[]), 437);
    assert_eq!(world.footprint(), before);
}

#[test]
fn second_allocate_while_the_socket_is_being_opened_is_437() {
    let mut world = World::new();
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP]), 437);
    assert_eq!(world.error_code(&client, Method::REFRESH, &[]), 437, "there is no allocation yet");
    world.opened(&request, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
}

#[test]
fn allocate_succeeds_in_the_millisecond_in_which_the_old_allocation_expires() {
    let mut world = World::new();
    let client = world.client(1);
    let old = world.allocate(&client);
    world.pass(seconds(600));
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    assert_eq!(world.expect_end(&old).reason, EndReason::Expired);
    assert_ne!(open.socket, old.id, "the new socket differs from the old one");
    world.opened(&request, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
}

// Step 3: missing or malformed → 400, another protocol → 442.
#[test]
fn requested_transport_is_400_if_missing_or_malformed_and_442_if_not_udp() {
    let mut world = World::new();
    let client = world.client(1);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[]), 400);
    for value in [&[][..], &[17], &[17, 0, 0], &[17, 0, 0, 0, 0]] {
        assert_eq!(
            world.error_code(&client, Method::ALLOCATE, &[&Raw(AttributeType::REQUESTED_TRANSPORT, value)]),
            400
        );
    }
    for protocol in [RequestedTransport::TCP, RequestedTransport(0), RequestedTransport(132)] {
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&protocol]), 442);
    }
    assert_eq!(world.footprint(), EMPTY);
}

// Step 4: DF can be set, so DONT-FRAGMENT is understood. Attributes that are not understood → 420 with the list.
#[test]
fn dont_fragment_is_understood_and_unknown_attributes_are_420() {
    let mut world = World::new();
    let client = world.client(1);
    let attributes = [&DontFragment as &dyn EncodeAttribute, &UDP, &Raw(AttributeType::new(0x7abc), &[])];
    let response = world.send_request(&client, Method::ALLOCATE, &attributes);
    let unknown: Vec<_> = response.get::<UnknownAttributes<'_>>().unwrap().iter().collect();
    assert_eq!((response.code(), unknown), (Some(420), vec![AttributeType::new(0x7abc)]));
    assert_eq!(world.footprint(), EMPTY);
    world.allocate_with(&client, &[&DontFragment]);
}

// Step 8, R = 0: an even port, and the odd one stays free.
#[test]
fn even_port_gets_an_even_port_and_reserves_no_other() {
    let mut world = World::new();
    for host in 1..=4 {
        let relay = world.allocate_with(&world.client(host), &[&EvenPort { reserve_next: false }]);
        assert!(relay.bind.port().is_multiple_of(2));
    }
    let late = world.client(5);
    assert_eq!(world.error_code(&late, Method::ALLOCATE, &[&UDP, &EvenPort { reserve_next: false }]), 508);
    rejection_note(&mut world);
    for host in 5..=8 {
        world.allocate(&world.client(host));
    }
    assert_eq!(world.footprint(), Footprint { allocations: 8, counted: 8, live: 8, ports_taken: 8 });
}

// RFC 8489 §6.3.1: unknown comprehension-optional attributes are ignored.
#[test]
fn unknown_optional_attributes_are_ignored() {
    let mut world = World::new();
    let client = world.client(1);
    let ticket = Raw(AttributeType::MOBILITY_TICKET, &[]);
    world.allocate_with(&client, &[&ticket, &Raw(AttributeType::new(0xffff), &[1, 2, 3])]);
}

// Step 6: both family attributes → 400. Step 9: ADDITIONAL-ADDRESS-FAMILY of IPv4 → 400.
#[test]
fn invalid_combinations_of_address_families_are_400() {
    let mut world = World::new();
    let client = world.client(1);
    for family in [AddressFamily::V4, AddressFamily::V6] {
        for additional in [AddressFamily::V4, AddressFamily::V6] {
            let (family, additional) = (RequestedAddressFamily(family), AdditionalAddressFamily(additional));
            assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &family, &additional]), 400);
        }
    }
    let additional = AdditionalAddressFamily(AddressFamily::V4);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &additional]), 400);
    for kind in [AttributeType::REQUESTED_ADDRESS_FAMILY, AttributeType::ADDITIONAL_ADDRESS_FAMILY] {
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &Raw(kind, &[1])]), 400);
    }
    assert_eq!(world.footprint(), EMPTY);
}

// Step 7: a family that the server does not have → 440, also without a REQUESTED-ADDRESS-FAMILY.
#[test]
fn unsupported_address_family_is_440() {
    let mut only_v4 = World::with(|setup| setup.relays.truncate(1));
    let client = only_v4.client(1);
    let [v4, v6] = [AddressFamily::V4, AddressFamily::V6].map(RequestedAddressFamily);
    assert_eq!(only_v4.error_code(&client, Method::ALLOCATE, &[&UDP, &v6]), 440);
    let unknown = Raw(AttributeType::REQUESTED_ADDRESS_FAMILY, &[3, 0, 0, 0]);
    assert_eq!(only_v4.error_code(&client, Method::ALLOCATE, &[&UDP, &unknown]), 440);
    only_v4.allocate_with(&client, &[&v4]);

    let mut only_v6 = World::with(|setup| setup.relays.retain(|(bind, _)| bind.is_ipv6()));
    let client = only_v6.client(1);
    assert_eq!(only_v6.error_code(&client, Method::ALLOCATE, &[&UDP]), 440);
    assert_eq!(only_v6.error_code(&client, Method::ALLOCATE, &[&UDP, &v4]), 440);
    assert_eq!(only_v6.footprint(), EMPTY);
    only_v6.allocate_with(&client, &[&v6]);
}

#[test]
fn requested_family_selects_the_relay_address() {
    let mut world = World::new();
    let [v4, v6] = [AddressFamily::V4, AddressFamily::V6].map(RequestedAddressFamily);
    let (first, second, third) = (world.client(1), world.client(2), world.client(3));
    assert_eq!(world.allocate(&first).relayed.ip().to_string(), ADVERTISED_V4);
    assert_eq!(world.allocate_with(&second, &[&v4]).relayed.ip().to_string(), ADVERTISED_V4);
    assert_eq!(world.allocate_with(&third, &[&v6]).relayed.ip().to_string(), RELAY_V6);
}

// A shorter requested lifetime is raised to the default, a longer one is lowered to the maximum.
#[test]
fn lifetime_is_between_the_default_and_the_maximum() {
    let mut world = World::new();
    for (host, (requested, given)) in
        (1..).zip([(0, 600), (1, 600), (600, 600), (601, 601), (3_600, 3_600), (3_601, 3_600), (u32::MAX, 3_600)])
    {
        let client = world.client(host);
        let request_with =
            |world: &mut World| world.send_request(&client, Method::ALLOCATE, &[&UDP, &Lifetime(requested)]);
        assert_eq!(request_with(&mut world).lifetime(), Some(given), "requested {requested}");
        assert!(matches!(world.event(), Event::AllocationCreated { lifetime, .. } if lifetime == given));
    }
}

#[test]
fn malformed_lifetime_is_400() {
    let mut world = World::new();
    let client = world.client(1);
    for value in [&[][..], &[0, 0, 2], &[0, 0, 0, 2, 0]] {
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &Raw(AttributeType::LIFETIME, value)]), 400);
    }
    assert_eq!(world.footprint(), EMPTY);
}

#[test]
fn an_allocation_lasts_its_lifetime_to_the_millisecond() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(700)]);
    world.advance(Duration::from_millis(699_999));
    assert_eq!(world.server.allocation_count(), 1);
    world.advance(Duration::from_millis(1));
    let summary = world.expect_end(&relay);
    assert_eq!((summary.reason, summary.duration), (EndReason::Expired, seconds(700)));
    assert_eq!(world.footprint(), EMPTY);
}

// §7.2, the note on the stateless stack approach: the response is the same except for LIFETIME.
#[test]
fn retransmitted_allocate_gets_the_same_response() {
    let mut world = World::with(|setup| (setup.limits.allocations_per_user, setup.limits.allocations) = (1, 1));
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    let first = world.opened(&request, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    let before = world.footprint();
    assert_eq!(world.response_to(&client.tuple, &request), first);
    world.pass(seconds(7));
    let later = world.response_to(&client.tuple, &request);
    assert_eq!(later.lifetime(), Some(593));
    assert_eq!(later.kinds(), first.kinds());
    assert_eq!(later.get::<XorRelayedAddress>(), first.get());
    assert_eq!(later.get::<XorMappedAddress>(), first.get());
    assert_eq!(world.footprint(), before, "a retransmission is counted once");
}

// A request with the same transaction ID from another user is not a retransmission.
#[test]
fn the_same_transaction_id_under_another_username_is_437() {
    let mut world = World::new();
    let client = world.client(1);
    let transaction = world.transaction();
    let request = client.request(transaction, Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    let other = client.as_user(1).request(transaction, Method::ALLOCATE, &[&UDP]);
    assert_eq!(world.response_to(&client.tuple, &other).code(), Some(437));
    world.opened(&request, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    assert_eq!(world.response_to(&client.tuple, &other).code(), Some(437));
}

#[test]
fn retransmission_while_the_socket_is_being_opened_is_dropped() {
    let mut world = World::with(|setup| setup.limits.allocations_per_user = 1);
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    let before = world.footprint();
    assert_eq!(world.dropped(&client.tuple, &request), DropReason::AllocationPending);
    assert_eq!(world.footprint(), before);
    world.opened(&request, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
}

// Step 10: 486. The user is the username without the expiry.
#[test]
fn the_quota_counts_the_user_without_the_expiry() {
    let mut world = World::with(|setup| setup.limits.allocations_per_user = 2);
    let [first, second, third] =
        [1, 2, 3].map(|host| world.client(host).with_credential("carol", UNIX + 5_000 + u64::from(host)));
    let relay = world.allocate(&first);
    world.allocate(&second);
    let full = world.footprint();
    assert_eq!(world.error_code(&third, Method::ALLOCATE, &[&UDP]), 486);
    assert!(rejection_note(&mut world).contains("allocations-per-user"));
    assert_eq!(world.footprint(), full);
    // Another user is not affected.
    let other = world.client(4);
    world.allocate(&other);

    // Released on deletion …
    world.accept(&first, Method::REFRESH, &[&Lifetime(0)]);
    assert_eq!(world.expect_end(&relay).user, "carol");
    let relay = world.allocate(&third);
    assert_eq!(world.error_code(&first, Method::ALLOCATE, &[&UDP]), 486);
    rejection_note(&mut world);
    // … and on expiry.
    for client in [&second, &other] {
        world.accept(client, Method::REFRESH, &[&Lifetime(1_000)]);
    }
    world.advance(seconds(600));
    assert_eq!(world.expect_end(&relay).reason, EndReason::Expired);
    world.allocate(&first);
}

// A rejected allocation does not count.
#[test]
fn a_failed_socket_releases_the_quota() {
    let mut world = World::with(|setup| (setup.limits.allocations_per_user, setup.limits.allocations) = (1, 1));
    let client = world.client(1);
    for _ in 0..3 {
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
        let open = world.open_for(&client.tuple, &request);
        let response = world.opened(&request, &open, Err(OpenError::Other));
        assert_eq!(response.code(), Some(508));
        assert!(response.is_signed_for(&client));
        assert!(rejection_note(&mut world).contains("LimitNOFILE"));
        assert_eq!(world.footprint(), EMPTY);
    }
    world.allocate(&client);
}

#[test]
fn allocations_above_the_server_limit_are_508() {
    let mut world = World::with(|setup| setup.limits.allocations = 2);
    let (first, third) = (world.client(1), world.client(3));
    let relay = world.allocate(&first);
    let second = world.client(2);
    world.allocate(&second);
    let full = world.footprint();
    let response = world.send_request(&third, Method::ALLOCATE, &[&UDP]);
    assert_eq!((response.code(), response.reason().as_str()), (Some(508), "Insufficient Capacity: allocations"));
    assert!(rejection_note(&mut world).contains("limits.allocations"));
    assert_eq!(world.footprint(), full);
    world.accept(&first, Method::REFRESH, &[&Lifetime(0)]);
    world.expect_end(&relay);
    world.allocate(&third);
}

#[test]
fn exhausted_ports_are_508_until_a_socket_is_closed() {
    let mut world = World::new();
    let relays: Vec<Relay> = (1..=8).map(|host| world.allocate(&world.client(host))).collect();
    let ports: BTreeSet<u16> = relays.iter().map(|relay| relay.bind.port()).collect();
    assert_eq!(ports.len(), usize::from(PORTS), "no two allocations share a relayed transport address");
    let late = world.client(9);
    let full = world.footprint();
    let expect_rejection = |world: &mut World| {
        let response = world.send_request(&late, Method::ALLOCATE, &[&UDP]);
        assert_eq!((response.code(), response.reason().as_str()), (Some(508), "Insufficient Capacity: relay ports"));
        assert!(rejection_note(world).contains("relay.ports"));
    };
    expect_rejection(&mut world);
    assert_eq!(world.footprint(), full);
    // The port is released when the socket is closed, not before.
    let first = world.client(1);
    world.accept(&first, Method::REFRESH, &[&Lifetime(0)]);
    assert_eq!(world.action(), Some(Action::Close { socket: relays[0].id, bind: relays[0].bind }));
    assert!(matches!(world.event(), Event::AllocationEnded(_)));
    expect_rejection(&mut world);
    world.server.socket_closed(relays[0].bind);
    assert_eq!(world.allocate(&late).bind.port(), relays[0].bind.port());
}

// A client cannot get a port back that it has released a moment ago.
#[test]
fn a_released_port_is_allocated_after_all_others() {
    let mut world = World::new();
    for _ in 0..4 {
        let first = world.client(1);
        let released = world.allocate(&first);
        world.accept(&first, Method::REFRESH, &[&Lifetime(0)]);
        world.expect_end(&released);
        let relays: Vec<Relay> = (1..=8).map(|host| world.allocate(&world.client(host))).collect();
        assert_eq!(relays.iter().position(|relay| relay.bind == released.bind), Some(7));
        for (host, relay) in (1..).zip(&relays) {
            world.accept(&world.client(host), Method::REFRESH, &[&Lifetime(0)]);
            world.expect_end(relay);
        }
        world.pass(seconds(60));
    }
}

// A port that another program uses is skipped, and retried later.
#[test]
fn ports_in_use_are_skipped_and_retried_after_a_minute() {
    let mut world = World::new();
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let mut open = world.open_for(&client.tuple, &request);
    let mut tried = BTreeSet::new();
    let response = loop {
        assert!(tried.insert(open.bind.port()), "no port is tried twice");
        match world.socket_opened(&open, Err(OpenError::PortInUse)) {
            (Opened::Open(next), _) => {
                assert_eq!(next.socket, open.socket);
                open = next;
            }
            (Opened::Respond(tuple, response), buffer) => {
                assert_eq!(tuple, client.tuple);
                break CheckedResponse::new(&request, &buffer, &response);
            }
            (Opened::Abandoned, _) => panic!("a response is expected"),
        }
    };
    assert_eq!((response.code(), tried.len()), (Some(508), usize::from(PORTS)));
    assert!(rejection_note(&mut world).contains("relay.ports"));
    assert_eq!(world.footprint(), EMPTY);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP]), 508);
    rejection_note(&mut world);
    world.pass(seconds(60));
    world.allocate(&client);
}

#[test]
fn at_most_sixteen_ports_are_tried() {
    let mut world = World::with(|setup| setup.ports = 50_000..=50_999);
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let mut open = world.open_for(&client.tuple, &request);
    let mut tries = 1;
    while let (Opened::Open(next), _) = world.socket_opened(&open, Err(OpenError::PortInUse)) {
        (open, tries) = (next, tries + 1);
    }
    assert_eq!(tries, 16);
    assert!(rejection_note(&mut world).contains("other programs"));
    assert_eq!(world.footprint(), EMPTY);
}

// The allocation expires, or the server stops, before the shell reports the socket.
#[test]
fn a_socket_that_opens_after_the_end_is_abandoned_and_holds_its_port_until_closed() {
    for stopped in [false, true] {
        let mut world = World::new();
        let client = world.client(1);
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
        let opens = [(); 2].map(|()| {
            if stopped {
                let open = world.open_for(&client.tuple, &request);
                world.server.stop(world.now);
                open
            } else {
                let open = world.open_for(&client.tuple, &request);
                world.advance(seconds(600));
                open
            }
        });
        assert_eq!(world.footprint(), Footprint { ports_taken: 2, ..EMPTY });
        assert_eq!(world.socket_opened(&opens[0], Ok(())).0, Opened::Abandoned);
        assert_eq!(world.socket_opened(&opens[1], Err(OpenError::Other)).0, Opened::Abandoned);
        assert_eq!(world.footprint(), Footprint { ports_taken: 1, ..EMPTY });
        world.server.socket_closed(opens[0].bind);
        assert_eq!(world.footprint(), EMPTY);
    }
}

// RFC 8656 §7.2 step 11: no capacity → 508.
#[test]
fn a_draining_server_rejects_new_allocates_with_508_and_responds_to_retransmissions() {
    let mut world = World::new();
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    let first = world.opened(&request, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    let before = world.footprint();
    world.ledger.set_draining(true);
    let new_client = world.client(2);
    assert_eq!(world.error_code(&new_client, Method::ALLOCATE, &[&UDP]), 508);
    assert!(rejection_note(&mut world).contains("shutting down"));
    assert_eq!(world.response_to(&client.tuple, &request), first);
    assert_eq!(world.accept(&client, Method::REFRESH, &[]).lifetime(), Some(600));
    assert_eq!(world.footprint(), before);
}

#[test]
fn stopping_ends_every_allocation() {
    let mut world = World::new();
    let relays = [1, 2, 3].map(|host| world.client(host)).map(|client| world.allocate(&client));
    world.server.stop(world.now);
    for relay in &relays {
        assert_eq!(world.expect_end(relay).reason, EndReason::ServerStopped);
    }
    assert_eq!(world.footprint(), EMPTY);
}

// §21.4: no allocation for a Teredo or 6to4 address, even with valid credentials.
#[test]
fn a_client_with_a_tunnel_address_gets_no_allocation() {
    let mut world = World::new();
    for tunnel in ["[2001:0:808:808::f7f7:f7f7]:5000", "[2002:808:808::1]:5000"] {
        let mut client = world.client(1);
        client.tuple.client = address(tunnel);
        client.nonce = world.nonce(client.tuple.client);
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP]), 403);
        assert!(rejection_note(&mut world).contains("§21.4"));
    }
    assert_eq!(world.footprint(), EMPTY);
}

// The Allocate requests of an unauthenticated client use no socket and no other resource.
#[test]
fn unauthenticated_allocate_opens_no_socket() {
    let mut world = World::new();
    let mut client = world.client(1);
    client.password = "guess".to_owned();
    client.nonce = "guess".to_owned();
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    for _ in 0..50 {
        assert!(matches!(world.client_packet(&client.tuple, &request).0, FromClient::Respond(_)));
    }
    assert_eq!(world.footprint(), EMPTY);
}
