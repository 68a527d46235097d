//! Relay addresses that come and go while the server runs.

use std::sync::Arc;

use crate::stun::Method;
use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, EvenPort, RequestedAddressFamily, RequestedTransport, ReservationToken,
};
use crate::turn::tests::support::*;
use crate::turn::{
    Action, EndReason, Event, FromClient, OpenError, Opened, RelayAddress, RelayAddresses, SocketId, SocketSpec,
};

const UDP: RequestedTransport = RequestedTransport::UDP;
const V6: RequestedAddressFamily = RequestedAddressFamily(AddressFamily::V6);

/// Replaces the relay addresses, and reviews every allocation.
fn reconfigure(world: &mut World, relays: RelayAddresses) {
    world.server.reconfigure(blueprint().snapshot_with(relays));
    while world.server.review(world.now, 1) {}
}

/// Returns the relay addresses of one family.
fn only(world: &World, family: AddressFamily) -> RelayAddresses {
    world.relays().iter().filter(|address| AddressFamily::of(address.bind()) == family).cloned().collect()
}

/// Returns the sockets that are closed and the reasons of the allocations that end, and reports the sockets closed.
fn ended(world: &mut World) -> (Vec<SocketId>, Vec<EndReason>) {
    let (mut sockets, mut reasons) = (Vec::new(), Vec::new());
    while let Some(action) = world.action() {
        match action {
            Action::Close { socket, bind } => {
                sockets.push(socket);
                world.server.socket_closed(bind);
            }
            Action::Log(Event::AllocationEnded(summary)) => reasons.push(summary.reason),
            other => panic!("{other:?}"),
        }
    }
    world.server.check_invariants(0);
    (sockets, reasons)
}

#[test]
fn a_relay_address_that_comes_serves_new_allocations_at_once() {
    let mut world = World::new();
    let all = world.relays().clone();
    let v4 = only(&world, AddressFamily::V4);
    reconfigure(&mut world, v4);
    let client = world.client(1);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &V6]), 440);
    let other = world.allocate(&world.client(2));
    reconfigure(&mut world, all);
    assert_eq!(ended(&mut world), (vec![], vec![]), "an allocation on an address that stays is not affected");
    assert_eq!(world.allocate_with(&client, &[&V6]).bind.ip().to_string(), RELAY_V6);
    assert_eq!(world.relays().live(other.relayed), Some(other.bind));
}

#[test]
fn allocations_and_reservations_on_a_relay_address_that_has_gone_end() {
    let mut world = World::new();
    let all = world.relays().clone();
    let (v4, v6) = (world.client(1), world.client(2));
    let request = v4.request(world.transaction(), Method::ALLOCATE, &[&UDP, &EvenPort { reserve_next: true }]);
    let open = world.open_for(&v4.tuple, &request);
    let token: ReservationToken = world.opened(&request, &open, Ok(())).get().unwrap();
    world.event();
    world.allocate_with(&v6, &[&V6]);
    assert_eq!(all.taken_count(), 3);

    let left = only(&world, AddressFamily::V6);
    reconfigure(&mut world, left);
    assert_eq!(all.taken_count(), 2, "the reservation ends at once, the port when its socket is closed");
    assert_eq!(ended(&mut world), (vec![open.socket], vec![EndReason::RelayAddressGone]));
    assert_eq!((all.taken_count(), all.live_count(), all.reservation_count()), (1, 1, 0));
    assert_eq!(world.footprint(), Footprint { allocations: 1, counted: 1, live: 1, ports_taken: 1 });
    let client = world.client(3);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP]), 440);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &token]), 508);

    // It comes back with its tables, in which nothing is left.
    reconfigure(&mut world, all);
    for host in 4..4 + PORTS {
        world.allocate(&world.client(u8::try_from(host).unwrap()));
    }
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP]), 508);
    rejection_note(&mut world);
}

// RFC 8656 §7.2: an allocation with two addresses keeps the other one.
#[test]
fn an_allocation_with_two_addresses_keeps_the_one_that_is_left() {
    let mut world = World::new();
    let client = world.client(1);
    let request =
        client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &AdditionalAddressFamily(AddressFamily::V6)]);
    let open = world.open_for(&client.tuple, &request);
    let socket = open.socket;
    world.all_opened(&request, open);
    world.event();
    let left = only(&world, AddressFamily::V4);
    reconfigure(&mut world, left);
    let (sockets, reasons) = ended(&mut world);
    assert_eq!((sockets.len(), reasons), (1, vec![]));
    assert_eq!(world.footprint(), Footprint { allocations: 1, counted: 1, live: 1, ports_taken: 1 });
    reconfigure(&mut world, RelayAddresses::default());
    assert_eq!(ended(&mut world), (vec![socket], vec![EndReason::RelayAddressGone]));
    assert_eq!(world.footprint(), EMPTY);
}

#[test]
fn an_address_that_goes_while_a_socket_opens_loses_no_port() {
    for pair in [false, true] {
        for result in [Ok(()), Err(OpenError::PortInUse), Err(OpenError::Other)] {
            let mut world = World::new();
            let all = world.relays().clone();
            let client = world.client(1);
            let even = EvenPort { reserve_next: pair };
            let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &even]);
            let open: SocketSpec = world.open_for(&client.tuple, &request);
            world.server.reconfigure(blueprint().snapshot_with(RelayAddresses::default()));
            while world.server.review(world.now, 1) {}
            assert_eq!(all.taken_count(), 1);
            assert_eq!(world.socket_opened(&open, result).0, Opened::Abandoned);
            if result.is_ok() {
                world.server.socket_closed(open.bind);
            }
            assert_eq!((all.taken_count(), world.footprint()), (0, EMPTY));
        }
    }
}

// The snapshot arrives before the result of the socket, and the review after it.
#[test]
fn a_socket_that_opens_on_an_address_that_has_gone_is_closed_in_the_review() {
    let mut world = World::new();
    let all = world.relays().clone();
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    world.server.reconfigure(blueprint().snapshot_with(RelayAddresses::default()));
    world.opened(&request, &open, Ok(()));
    assert!(matches!(world.event(), Event::AllocationCreated { .. }));
    while world.server.review(world.now, 1) {}
    assert_eq!(ended(&mut world), (vec![open.socket], vec![EndReason::RelayAddressGone]));
    assert_eq!(all.taken_count(), 0);
}

// An address with the same tables in two snapshots is one address, whatever its place.
#[test]
fn allocations_survive_another_order_of_the_relay_addresses() {
    let mut world = World::new();
    let relay = world.allocate(&world.client(1));
    let mut reversed: Vec<Arc<RelayAddress>> = world.relays().iter().cloned().collect();
    reversed.reverse();
    reconfigure(&mut world, reversed.into_iter().collect());
    assert_eq!(ended(&mut world), (vec![], vec![]));
    assert_eq!(world.relays().live(relay.relayed), Some(relay.bind));
}

#[test]
fn an_unusable_relay_address_gets_no_new_allocations_and_keeps_its_own() {
    let mut world = World::new();
    let relay = world.allocate(&world.client(1));
    world.relays().iter().for_each(|address| address.set_usable(address.bind().is_ipv6()));
    let client = world.client(2);
    let packet = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let (decision, _) = world.client_packet(&client.tuple, &packet);
    assert!(matches!(decision, FromClient::Respond(_)), "{decision:?}");
    assert!(rejection_note(&mut world).contains("does not have a relay address of this address family"));
    world.allocate_with(&client, &[&V6]);
    world.accept(&world.client(1), Method::REFRESH, &[]);
    assert_eq!(world.relays().live(relay.relayed), Some(relay.bind));
    world.relays().iter().for_each(|address| address.set_usable(true));
    world.allocate(&world.client(3));
}

// §19: 508, because no relayed transport address is available at this time. 440 would say that it never will be.
#[test]
fn a_server_without_any_relay_address_rejects_both_families_with_508() {
    let mut world = World::new();
    reconfigure(&mut world, RelayAddresses::default());
    let client = world.client(1);
    for family in [AddressFamily::V4, AddressFamily::V6] {
        assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &RequestedAddressFamily(family)]), 508);
        assert!(rejection_note(&mut world).contains("The server waits for one"));
    }
}

#[test]
fn a_relay_address_that_the_machine_lost_is_508_and_open_files_are_not_blamed() {
    let mut world = World::new();
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    let response = world.opened(&request, &open, Err(OpenError::AddressGone));
    assert_eq!(response.code(), Some(508));
    let note = rejection_note(&mut world);
    assert!(note.contains("does not have the relay address") && !note.contains("open files"), "{note}");
    assert_eq!(world.footprint(), EMPTY);
    world.allocate(&client);
}

/// Returns a world with three IPv4 relay addresses. Those in `only_own` are for clients that reach the server there.
fn three_addresses(only_own: &[&str]) -> World {
    let all = ["192.0.2.200", "192.0.2.201", "192.0.2.202"];
    let world =
        World::with(|setup| setup.relays = all.map(|own| (own.parse().unwrap(), own.parse().unwrap())).to_vec());
    for relay in world.relays().iter() {
        relay.set_for_all(!only_own.contains(&relay.bind().to_string().as_str()));
    }
    world
}

// The address of the 5-tuple, which is the first choice, and then any other.
#[test]
fn other_relay_addresses_are_used_in_place_of_those_that_the_machine_lost() {
    for server in ["192.0.2.77", "192.0.2.201"] {
        let mut world = three_addresses(&[]);
        let mut client = world.client(1);
        client.tuple.server.set_ip(server.parse().unwrap());
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
        let mut open = world.open_for(&client.tuple, &request);
        let mut tried = vec![open.bind.ip()];
        for _ in 0..2 {
            match world.socket_opened(&open, Err(OpenError::AddressGone)).0 {
                Opened::Open(next) => open = next,
                other => panic!("{other:?}"),
            }
            assert!(!tried.contains(&open.bind.ip()), "{tried:?}");
            tried.push(open.bind.ip());
        }
        let response = world.opened(&request, &open, Ok(()));
        assert_eq!(response.code(), None);
        world.event();
        assert_eq!(world.footprint(), Footprint { allocations: 1, counted: 1, live: 1, ports_taken: 1 });
    }
}

#[test]
fn an_address_for_its_own_clients_does_not_replace_one_that_the_machine_lost() {
    let mut world = three_addresses(&["192.0.2.201", "192.0.2.202"]);
    let mut client = world.client(1);
    client.tuple.server.set_ip("192.0.2.77".parse().unwrap());
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP]);
    let open = world.open_for(&client.tuple, &request);
    let response = world.opened(&request, &open, Err(OpenError::AddressGone));
    assert_eq!(response.code(), Some(508));
    assert!(rejection_note(&mut world).contains("does not have the relay address"));
    assert_eq!(world.footprint(), EMPTY);
}

/// Allocates for a client that reaches the server at this address, and returns the relay address.
fn relay_at(world: &mut World, host: u8, server: &str) -> String {
    let mut client = world.client(host);
    client.tuple.server.set_ip(server.parse().unwrap());
    world.allocate(&client).bind.ip().to_string()
}

// A machine in two networks without a route between them: the peers of a client may reach only this address.
#[test]
fn a_client_gets_the_relay_address_at_which_it_reaches_the_server() {
    let mut world = three_addresses(&[]);
    for (_, host) in (0..PORTS).zip(1..) {
        assert_eq!(relay_at(&mut world, host, "192.0.2.201"), "192.0.2.201");
    }
    // Its ports are taken.
    assert_ne!(relay_at(&mut world, 100, "192.0.2.201"), "192.0.2.201");
}

#[test]
fn an_address_for_its_own_clients_is_given_to_no_other() {
    let mut world = three_addresses(&["192.0.2.201", "192.0.2.202"]);
    assert_eq!(relay_at(&mut world, 1, "192.0.2.202"), "192.0.2.202");
    for (_, host) in (0..PORTS).zip(2..) {
        assert_eq!(relay_at(&mut world, host, "192.0.2.77"), "192.0.2.200");
    }
}
