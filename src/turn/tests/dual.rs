//! Dual allocations: RFC 8656 §7.2 step 9, §8.1 and §8.2.

use std::net::SocketAddr;

use crate::stun::attribute::{
    AdditionalAddressFamily, AddressErrorCode, AddressFamily, ChannelNumber, Data, DraftAdditionalAddressFamily,
    EvenPort, Lifetime, RequestedAddressFamily, RequestedTransport, ReservationToken, XorPeerAddress,
    XorRelayedAddress,
};
use crate::stun::{AttributeType, Class, EncodeAttribute, ErrorCode, Method};
use crate::turn::tests::support::*;
use crate::turn::{Action, DropReason, Event, IcmpError, Limit, OpenError, Opened, Rate, RelayedAddresses, SocketSpec};

const UDP: RequestedTransport = RequestedTransport::UDP;
const BOTH: AdditionalAddressFamily = AdditionalAddressFamily(AddressFamily::V6);
const V4: RequestedAddressFamily = RequestedAddressFamily(AddressFamily::V4);
const V6: RequestedAddressFamily = RequestedAddressFamily(AddressFamily::V6);
const ONE: Footprint = Footprint { allocations: 1, counted: 1, live: 1, ports_taken: 1 };
const TWO: Footprint = Footprint { allocations: 1, counted: 1, live: 2, ports_taken: 2 };

fn relayed(response: &CheckedResponse) -> Vec<SocketAddr> {
    response.message().all::<XorRelayedAddress>().map(|address| address.unwrap().0).collect()
}

fn address_error(response: &CheckedResponse) -> Option<(AddressFamily, ErrorCode)> {
    response.get().map(|AddressErrorCode { family, code, .. }| (family, code))
}

/// Makes a dual allocation.
fn dual(world: &mut World, client: &Client) -> [Relay; 2] {
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &BOTH]);
    let first = world.open_for(&client.tuple, &request);
    let (Opened::Open(second), _) = world.socket_opened(&first, Ok(())) else { panic!("a second socket is expected") };
    let response = world.opened(&request, &second, Ok(()));
    let addresses = relayed(&response);
    assert_eq!(created(world), RelayedAddresses { v4: Some(addresses[0]), v6: Some(addresses[1]) });
    [(first, addresses[0]), (second, addresses[1])].map(|(open, relayed)| Relay {
        id: open.socket,
        bind: open.bind,
        relayed,
    })
}

/// Returns the relayed transport addresses of the next log entry, which must be about a new allocation.
fn created(world: &mut World) -> RelayedAddresses {
    match world.event() {
        Event::AllocationCreated { relay, .. } => relay,
        other => panic!("a log entry about a new allocation is expected, not {other:?}"),
    }
}

/// Expects that the server closes one of two sockets and requests no other action. Reports the socket closed.
fn expect_close(world: &mut World, relay: &Relay) {
    assert_eq!(world.action(), Some(Action::Close { socket: relay.id, bind: relay.bind }));
    assert_eq!(world.action(), None, "the allocation continues");
    world.server.socket_closed(relay.bind);
}

/// Expects that the server closes the sockets and logs the end of their allocation. Reports the sockets closed.
fn expect_end(world: &mut World, relays: &[Relay]) -> RelayedAddresses {
    for relay in relays {
        assert_eq!(world.action(), Some(Action::Close { socket: relay.id, bind: relay.bind }));
    }
    let Event::AllocationEnded(summary) = world.event() else { panic!("a log entry about the end is expected") };
    relays.iter().for_each(|relay| world.server.socket_closed(relay.bind));
    summary.relay
}

fn send(peer: SocketAddr) -> Vec<u8> {
    plain(Class::Indication, Method::SEND, &[&XorPeerAddress(peer), &Data(b"out")])
}

// Step 9: both families are available → two XOR-RELAYED-ADDRESS attributes, also for a retransmission.
#[test]
fn additional_address_family_gets_one_address_of_each_family() {
    let mut world = World::with(|setup| (setup.limits.allocations_per_user, setup.limits.allocations) = (1, 1));
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &BOTH, &Lifetime(700)]);
    let first = world.open_for(&client.tuple, &request);
    assert_eq!(world.dropped(&client.tuple, &request), DropReason::AllocationPending);
    let (Opened::Open(second), _) = world.socket_opened(&first, Ok(())) else { panic!("a second socket is expected") };
    assert_eq!(world.dropped(&client.tuple, &request), DropReason::AllocationPending);
    assert_ne!(first.socket, second.socket);
    assert_ne!(first.socket.slot(), second.socket.slot());
    let response = world.opened(&request, &second, Ok(()));
    let kinds = [
        AttributeType::XOR_RELAYED_ADDRESS,
        AttributeType::XOR_RELAYED_ADDRESS,
        AttributeType::LIFETIME,
        AttributeType::XOR_MAPPED_ADDRESS,
        AttributeType::SOFTWARE,
        AttributeType::MESSAGE_INTEGRITY,
    ];
    assert_eq!(response.kinds(), kinds);
    let [v4, v6] = [(ADVERTISED_V4, first.bind.port()), (RELAY_V6, second.bind.port())]
        .map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), port));
    assert_eq!((relayed(&response), response.lifetime()), (vec![v4, v6], Some(700)));
    assert_eq!(created(&mut world), RelayedAddresses { v4: Some(v4), v6: Some(v6) });
    assert_eq!(world.footprint(), TWO);
    assert_eq!(world.response_to(&client.tuple, &request), response);
    assert_eq!(world.footprint(), TWO);
}

#[test]
fn even_port_applies_to_both_addresses() {
    let mut world = World::new();
    for host in 1..=4 {
        let client = world.client(host);
        let response = world.accept(&client, Method::ALLOCATE, &[&UDP, &BOTH, &EvenPort { reserve_next: false }]);
        assert!(relayed(&response).iter().all(|address| address.port().is_multiple_of(2)));
        created(&mut world);
    }
}

// Step 9: one family is not available → ADDRESS-ERROR-CODE for it, also for a retransmission.
#[test]
fn an_unsupported_additional_family_is_440_in_address_error_code() {
    let mut world = World::with(|setup| setup.relays.truncate(1));
    let client = world.client(1);
    let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &BOTH]);
    let open = world.open_for(&client.tuple, &request);
    let response = world.opened(&request, &open, Ok(()));
    created(&mut world);
    for response in [response, world.response_to(&client.tuple, &request)] {
        assert_eq!(address_error(&response), Some((AddressFamily::V6, ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED)));
        assert_eq!(response.get::<AddressErrorCode<'_>>().unwrap().reason, "Address Family not Supported");
        assert_eq!(relayed(&response).len(), 1);
    }
    assert_eq!(world.footprint(), ONE);
}

#[test]
fn a_family_without_a_port_or_a_socket_is_508_in_address_error_code() {
    const IN_USE: Result<(), OpenError> = Err(OpenError::PortInUse);
    const FAILED: Result<(), OpenError> = Err(OpenError::Other);
    // The family whose ports are all taken, the results of opening the sockets in order, and the family that fails.
    for (family, results, missing) in [
        (None, &[Ok(()), FAILED][..], AddressFamily::V6),
        (None, &[Ok(()), IN_USE, FAILED], AddressFamily::V6),
        (None, &[FAILED, Ok(())], AddressFamily::V4),
        (None, &[IN_USE, FAILED, IN_USE, Ok(())], AddressFamily::V4),
        (Some(&V4), &[Ok(())], AddressFamily::V4),
        (Some(&V6), &[Ok(())], AddressFamily::V6),
    ] {
        let mut world = World::new();
        if let Some(family) = family {
            for host in 1..=8 {
                world.allocate_with(&world.client(host), &[family]);
            }
        }
        let before = world.footprint();
        let client = world.client(9);
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &BOTH]);
        let mut open = world.open_for(&client.tuple, &request);
        let mut relays = Vec::new();
        let (last, others) = results.split_last().unwrap();
        let mut report = |open: &SocketSpec, result: Result<(), OpenError>| {
            result.iter().for_each(|()| relays.push((open.socket, open.bind)));
            result
        };
        for result in others {
            let result = report(&open, *result);
            let (Opened::Open(next), _) = world.socket_opened(&open, result) else {
                panic!("another socket is expected")
            };
            open = next;
        }
        let response = world.opened(&request, &open, report(&open, *last));
        assert_eq!(address_error(&response), Some((missing, ErrorCode::INSUFFICIENT_CAPACITY)));
        let [address] = relayed(&response)[..] else { panic!("one address is expected") };
        assert_eq!(created(&mut world), address.into());
        assert_eq!(world.response_to(&client.tuple, &request), response);
        world.accept(&client, Method::REFRESH, &[&Lifetime(0)]);
        let relays: Vec<Relay> = relays.into_iter().map(|(id, bind)| Relay { id, bind, relayed: address }).collect();
        assert_eq!(expect_end(&mut world, &relays), address.into());
        assert_eq!(world.footprint(), before);
    }
}

// The clients of coturn use other attribute numbers. The operator can enable them.
#[test]
fn draft_attribute_numbers_are_accepted_if_enabled() {
    let requested = DraftAdditionalAddressFamily(AddressFamily::V6);
    let mut strict = World::new();
    let client = strict.client(1);
    assert_eq!(relayed(&strict.accept(&client, Method::ALLOCATE, &[&UDP, &requested])).len(), 1);
    created(&mut strict);

    let mut world = World::with(|setup| setup.compat.draft_dual_allocation = true);
    let client = world.client(1);
    assert_eq!(relayed(&world.accept(&client, Method::ALLOCATE, &[&UDP, &requested])).len(), 2);
    created(&mut world);
    let client = world.client(2);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &requested, &V6]), 400);
    let v4 = DraftAdditionalAddressFamily(AddressFamily::V4);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &v4]), 400);
    // Step 5: a token excludes an additional family.
    let token = ReservationToken([1; 8]);
    assert_eq!(world.error_code(&client, Method::ALLOCATE, &[&UDP, &token, &requested]), 400);

    let mut world = World::with(|setup| {
        setup.compat.draft_dual_allocation = true;
        setup.relays.truncate(1);
    });
    for (attributes, number) in [
        (&[&UDP as &dyn EncodeAttribute, &requested][..], AttributeType::DRAFT_ADDRESS_ERROR_CODE),
        (&[&UDP as &dyn EncodeAttribute, &BOTH][..], AttributeType::ADDRESS_ERROR_CODE),
        (&[&UDP as &dyn EncodeAttribute, &BOTH, &requested][..], AttributeType::ADDRESS_ERROR_CODE),
    ] {
        let client = world.client(1);
        let response = world.accept(&client, Method::ALLOCATE, attributes);
        assert_eq!(response.kinds()[3], number);
        created(&mut world);
        world.server.connection_closed(world.now, &client.tuple);
        while world.action().is_some() {}
    }
}

// Step 9: no family is available → 508, and nothing stays allocated.
#[test]
fn a_dual_allocation_without_any_address_is_508() {
    let mut world = World::with(|setup| (setup.limits.allocations_per_user, setup.limits.allocations) = (1, 1));
    let client = world.client(1);
    for errors in [[OpenError::Other; 2], [OpenError::Other, OpenError::PortInUse]] {
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &BOTH]);
        let mut open = world.open_for(&client.tuple, &request);
        let (Opened::Open(next), _) = world.socket_opened(&open, Err(errors[0])) else { panic!("IPv6 is expected") };
        open = next;
        let response = loop {
            match world.socket_opened(&open, Err(errors[1])) {
                (Opened::Open(next), _) => open = next,
                (Opened::Respond(_, response), buffer) => break CheckedResponse::new(&request, &buffer, &response),
                (Opened::Abandoned, _) => panic!("a response is expected"),
            }
        };
        assert_eq!(response.code(), Some(508));
        assert!(rejection_note(&mut world).contains("LimitNOFILE"), "the first failure is logged");
        assert_eq!(world.footprint(), EMPTY);
    }
    let mut full = World::new();
    for family in [V4, V6] {
        for host in 1..=8 {
            let mut client = full.client(host);
            client.tuple.client.set_port(if family == V4 { 5_000 } else { 5_001 });
            client.nonce = full.nonce(client.tuple.client);
            full.allocate_with(&client, &[&family]);
        }
    }
    let before = full.footprint();
    assert_eq!(full.error_code(&full.client(9), Method::ALLOCATE, &[&UDP, &BOTH]), 508);
    rejection_note(&mut full);
    assert_eq!(full.footprint(), before);
}

// An open socket is closed if the allocation ends while the other socket is being opened.
#[test]
fn an_allocation_that_ends_while_its_second_socket_opens_releases_both() {
    for expires in [false, true] {
        for result in [Ok(()), Err(OpenError::PortInUse), Err(OpenError::Other)] {
            let mut world = World::new();
            let client = world.client(1);
            let request = client.request(world.transaction(), Method::ALLOCATE, &[&UDP, &BOTH]);
            let first = world.open_for(&client.tuple, &request);
            let (Opened::Open(second), _) = world.socket_opened(&first, Ok(())) else {
                panic!("a second socket is expected")
            };
            if expires {
                world.advance(seconds(600));
            } else {
                world.server.connection_closed(world.now, &client.tuple);
            }
            assert_eq!(world.action(), Some(Action::Close { socket: first.socket, bind: first.bind }));
            assert_eq!(world.action(), None, "the client does not know of the allocation");
            assert_eq!(world.footprint(), Footprint { ports_taken: 2, ..EMPTY });
            assert_eq!(world.socket_opened(&second, result).0, Opened::Abandoned);
            world.server.socket_closed(first.bind);
            if result.is_ok() {
                world.server.socket_closed(second.bind);
            }
            assert_eq!(world.footprint(), EMPTY);
        }
    }
}

#[test]
fn each_address_family_is_relayed_on_its_own_socket() {
    let mut world = World::new();
    let client = world.client(1);
    let [v4, v6] = dual(&mut world, &client);
    world.accept(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1)), &XorPeerAddress(peer_v6(1))]);
    for (number, relay, peer, other) in [(0x4000, v4, peer(1), v6), (0x4001, v6, peer_v6(1), v4)] {
        assert_eq!(world.relayed(&client.tuple, &send(peer)), (relay.id, peer, b"out".to_vec()));
        world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(number), &XorPeerAddress(peer)]);
        let expected = (relay.id, peer, b"out".to_vec());
        assert_eq!(world.relayed(&client.tuple, &channel_data(number, b"out")), expected);
        assert_eq!(world.peer_packet(relay.id, peer, b"in").unwrap().1, channel_data(number, b"in"));
        assert_ne!(relay.id, other.id);
    }
    // The address families of an allocation share its channel numbers.
    let bound = [&ChannelNumber(0x4000) as _, &XorPeerAddress(peer_v6(1)) as _];
    assert_eq!(world.error_code(&client, Method::CHANNEL_BIND, &bound), 400);
}

// §8.1: a request with a family applies to that family only, and a request without one to both.
#[test]
fn refresh_with_a_family_applies_to_that_family_only() {
    let mut world = World::new();
    let client = world.client(1);
    let relays = dual(&mut world, &client);
    world.permit(&client, peer(1));
    world.permit(&client, peer_v6(1));
    assert_eq!(world.accept(&client, Method::REFRESH, &[&V6, &Lifetime(1_000)]).lifetime(), Some(1_000));
    world.advance(seconds(200));
    world.permit(&client, peer_v6(1));
    assert_eq!(world.accept(&client, Method::REFRESH, &[&V4, &Lifetime(600)]).lifetime(), Some(600));
    world.advance(seconds(299));
    world.permit(&client, peer(1));
    world.permit(&client, peer_v6(1));
    world.pass(seconds(301));
    // The address has expired, also before `advance`: 443 for requests about its family (§8.2, §10.2, §12.2).
    assert_eq!(world.error_code(&client, Method::REFRESH, &[&V4]), 443);
    assert_eq!(world.error_code(&client, Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(1))]), 443);
    let bind = [&ChannelNumber(0x4000) as _, &XorPeerAddress(peer(1)) as _];
    assert_eq!(world.error_code(&client, Method::CHANNEL_BIND, &bind), 443);
    assert_eq!(world.dropped(&client.tuple, &send(peer(1))), DropReason::MalformedIndication);
    assert_eq!(world.peer_packet(relays[0].id, peer(1), b"in"), Err(DropReason::AllocationEnded));
    world.advance(seconds(0));
    expect_close(&mut world, &relays[0]);
    assert_eq!(world.footprint(), ONE);
    world.permit(&client, peer_v6(1));
    assert_eq!(world.relayed(&client.tuple, &send(peer_v6(1))).0, relays[1].id);
    assert_eq!(world.accept(&client, Method::REFRESH, &[&V6]).lifetime(), Some(600));
    world.advance(seconds(600));
    // The log lists both addresses, although one ended before.
    let addresses = RelayedAddresses { v4: Some(relays[0].relayed), v6: Some(relays[1].relayed) };
    assert_eq!(expect_end(&mut world, &relays[1..]), addresses);
    assert_eq!(world.footprint(), EMPTY);
}

#[test]
fn refresh_without_a_family_applies_to_both() {
    let mut world = World::new();
    let client = world.client(1);
    let relays = dual(&mut world, &client);
    world.accept(&client, Method::REFRESH, &[&V6, &Lifetime(2_000)]);
    assert_eq!(world.accept(&client, Method::REFRESH, &[&Lifetime(900)]).lifetime(), Some(900));
    world.advance(seconds(899));
    assert_eq!(world.footprint(), TWO);
    world.advance(seconds(1));
    expect_end(&mut world, &relays);
    assert_eq!(world.footprint(), EMPTY);

    let relays = dual(&mut world, &client);
    assert_eq!(world.accept(&client, Method::REFRESH, &[&Lifetime(0)]).lifetime(), Some(0));
    expect_end(&mut world, &relays);
    assert_eq!(world.footprint(), EMPTY);
}

// §8.1: the permissions and channels of the other family MUST NOT be affected. Those of the deleted one are removed.
#[test]
fn deleting_one_family_does_not_affect_the_other() {
    for (requested, deleted, left, gone, stays) in [(V4, 0, 1, peer(1), peer_v6(1)), (V6, 1, 0, peer_v6(1), peer(1))] {
        let mut world = World::new();
        let client = world.client(1);
        let relays = dual(&mut world, &client);
        for (number, peer) in [(0x4000, gone), (0x4001, stays)] {
            world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(number), &XorPeerAddress(peer)]);
        }
        assert_eq!(world.accept(&client, Method::REFRESH, &[&requested, &Lifetime(0)]).lifetime(), Some(0));
        expect_close(&mut world, &relays[deleted]);
        assert_eq!(world.footprint(), ONE);

        assert_eq!(world.dropped(&client.tuple, &channel_data(0x4000, b"out")), DropReason::ChannelNotBound);
        assert_eq!(world.dropped(&client.tuple, &send(gone)), DropReason::MalformedIndication);
        assert_eq!(world.peer_packet(relays[deleted].id, gone, b"in"), Err(DropReason::AllocationEnded));
        assert_eq!(world.error_code(&client, Method::REFRESH, &[&requested, &Lifetime(0)]), 443);
        let expected = (relays[left].id, stays, b"out".to_vec());
        assert_eq!(world.relayed(&client.tuple, &channel_data(0x4001, b"out")), expected);
        assert_eq!(world.relayed(&client.tuple, &send(stays)), expected);
        assert!(world.peer_packet(relays[left].id, stays, b"in").is_ok());
        // The channel number can be bound again.
        let bind = [&ChannelNumber(0x4000) as _, &XorPeerAddress(SocketAddr::new(stays.ip(), 9)) as _];
        world.accept(&client, Method::CHANNEL_BIND, &bind);

        let last = if requested == V4 { V6 } else { V4 };
        world.accept(&client, Method::REFRESH, &[&last, &Lifetime(0)]);
        expect_end(&mut world, &relays[left..=left]);
        assert_eq!(world.footprint(), EMPTY);
    }
}

// §8.2: a family that was never allocated.
#[test]
fn refresh_of_the_family_that_was_not_allocated_is_443() {
    let mut world = World::with(|setup| setup.relays.truncate(1));
    let client = world.client(1);
    world.accept(&client, Method::ALLOCATE, &[&UDP, &BOTH]);
    created(&mut world);
    assert_eq!(world.error_code(&client, Method::REFRESH, &[&V6]), 443);
    world.accept(&client, Method::REFRESH, &[&V4]);
}

// Both addresses belong to one allocation. An ICMP error is not application data.
#[test]
fn the_byte_rate_covers_both_addresses() {
    let mut world = World::with(|setup| setup.limits.byte_rate = Rate::new(1, 4));
    let client = world.client(1);
    let relays = dual(&mut world, &client);
    let peers = [peer(1), peer_v6(1)];
    peers.iter().for_each(|peer| world.permit(&client, *peer));
    world.relayed(&client.tuple, &send(peers[0]));
    assert_eq!(world.dropped(&client.tuple, &send(peers[1])), DropReason::AllocationBandwidth);
    assert_eq!(world.logged_limit(), Limit::AllocationBandwidth);
    assert!(world.peer_packet(relays[0].id, peers[0], b"in!").is_ok());
    assert_eq!(world.peer_packet(relays[1].id, peers[1], b"in!"), Err(DropReason::AllocationBandwidth));
    assert!(world.peer_unreachable(relays[1].id, peers[1], IcmpError { kind: 1, code: 4, mtu: 0 }).is_ok());
}
