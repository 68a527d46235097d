//! RFC 8656 §11.5.

use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, ChannelNumber, DraftAdditionalAddressFamily, Icmp, PasswordAlgorithm,
    RequestedAddressFamily, RequestedTransport, Userhash, XorPeerAddress,
};
use crate::stun::{AttributeType, Class, EncodeAttribute, Message, Method};
use crate::turn::contract::SocketIndex;
use crate::turn::protocol::response::PASSWORD_ALGORITHMS;
use crate::turn::tests::support::*;
use crate::turn::{DropReason, IcmpError, IcmpIndications, SocketId, Transport};

/// Returns a world in which every client gets indications about ICMP errors.
fn world() -> World {
    World::with(|setup| setup.compat.icmp_indications = IcmpIndications::Always)
}

const PORT_UNREACHABLE: IcmpError = IcmpError { kind: 3, code: 3, mtu: 0 };

fn v4() -> (World, Client, SocketId) {
    let mut world = world();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.permit(&client, peer(1));
    (world, client, relay.id)
}

fn v6() -> (World, Client, SocketId) {
    let mut world = world();
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&RequestedAddressFamily(AddressFamily::V6)]);
    world.permit(&client, peer_v6(1));
    (world, client, relay.id)
}

// A Data indication with XOR-PEER-ADDRESS, including the port, and ICMP, without DATA. The same applies if a channel is
// bound, and on a connection (§16).
#[test]
fn an_icmp_error_is_sent_to_the_client_in_a_data_indication() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut world = world();
        let mut client = world.client(1);
        client.tuple.transport = transport;
        let relay = world.allocate(&client).id;
        world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
        let (tuple, bytes) = world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE).unwrap();
        assert_eq!(tuple, client.tuple);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
        let kinds: Vec<_> = message.attributes().map(|attribute| attribute.kind).collect();
        assert_eq!(kinds, [AttributeType::XOR_PEER_ADDRESS, AttributeType::ICMP]);
        assert_eq!(message.get(), Ok(Some(XorPeerAddress(peer(1)))));
        assert_eq!(message.get(), Ok(Some(Icmp { kind: 3, code: 3, data: 0 })));
        let (_, next) = world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE).unwrap();
        assert_ne!(next[8..20], bytes[8..20], "every indication has its own transaction ID");
    }
}

// Types 3 and 11 of ICMPv4, and 1, 2 and 3 of ICMPv6. Other types are dropped. §18.13: the data is the MTU for "too
// big", and zero for other errors.
#[test]
fn other_icmp_types_are_dropped_and_only_too_big_has_data() {
    for (v6, (mut world, _, relay), peer) in [(false, v4(), peer(1)), (true, v6(), peer_v6(1))] {
        for kind in 0..=255 {
            for code in [0, 4] {
                let result = world.peer_unreachable(relay, peer, IcmpError { kind, code, mtu: 1_400 });
                let expected = match (v6, kind, code) {
                    (false, 3, 4) | (true, 2, _) => Some(1_400),
                    (false, 3 | 11, _) | (true, 1 | 3, _) => Some(0),
                    _ => None,
                };
                match (result, expected) {
                    (Ok((_, bytes)), Some(data)) => {
                        let icmp = Message::parse(&bytes).unwrap().get().unwrap();
                        assert_eq!(icmp, Some(Icmp { kind, code, data }));
                    }
                    (result, expected) => {
                        assert_eq!((result, expected), (Err(DropReason::IcmpType), None), "type {kind}");
                    }
                }
            }
            world.pass(seconds(1));
            world.permit(&world.client(1), peer);
            let client = world.client(1);
            world.accept(&client, Method::REFRESH, &[]);
        }
    }
}

// Only the peer's address is compared, not its port. The port is 0 if the system does not report it.
#[test]
fn an_error_about_an_address_without_a_permission_is_dropped() {
    let (mut world, _, relay) = v4();
    assert_eq!(world.peer_unreachable(relay, peer(2), PORT_UNREACHABLE), Err(DropReason::NoPermission));
    for port in [0, 9] {
        let mut other = peer(1);
        other.set_port(port);
        let (_, bytes) = world.peer_unreachable(relay, other, PORT_UNREACHABLE).unwrap();
        assert_eq!(Message::parse(&bytes).unwrap().get(), Ok(Some(XorPeerAddress(other))));
    }
    world.pass(seconds(300));
    assert_eq!(world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE), Err(DropReason::NoPermission));
}

#[test]
fn an_error_about_a_datagram_of_an_ended_allocation_is_dropped() {
    let (mut world, _, relay) = v4();
    world.pass(seconds(600));
    assert_eq!(world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE), Err(DropReason::AllocationEnded));
}

// ICMP errors can be forged, so they are rate-limited.
#[test]
fn a_client_gets_at_most_ten_icmp_errors_per_second() {
    let (mut world, ..) = v4();
    let other = world.client(2);
    let relays = [
        world.server.table.find(&world.client(1).tuple).unwrap().socket(SocketIndex::FIRST),
        world.allocate(&other).id,
    ];
    world.permit(&other, peer(1));
    for _ in 0..3 {
        for relay in relays {
            let sent = (0..1_000).filter(|_| world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE).is_ok()).count();
            assert_eq!(sent, 10);
            assert_eq!(world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE), Err(DropReason::IcmpLimit));
        }
        world.pass(seconds(1));
    }
}

// A relay of this server is reported by its advertised address.
#[test]
fn an_error_about_a_relay_of_this_server_has_its_advertised_address() {
    let mut world = world();
    let (first, second) = (world.client(1), world.client(2));
    let (from, to) = (world.allocate(&first), world.allocate(&second));
    world.permit(&first, to.relayed);
    let (_, bytes) = world.peer_unreachable(from.id, to.bind, PORT_UNREACHABLE).unwrap();
    assert_eq!(Message::parse(&bytes).unwrap().get(), Ok(Some(XorPeerAddress(to.relayed))));
}

// The clients of pion/turn and of the `turn` crate stop reading at the first Data indication without DATA. They
// implement RFC 5766.
#[test]
fn a_client_that_shows_nothing_of_rfc_8656_gets_no_icmp_error() {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client).id;
    world.permit(&client, peer(1));
    world.accept(&client, Method::REFRESH, &[]);
    for _ in 0..20 {
        assert_eq!(world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE), Err(DropReason::IcmpWithheld));
    }
    // The type and the permission are checked first.
    let echo = IcmpError { kind: 0, ..PORT_UNREACHABLE };
    assert_eq!(world.peer_unreachable(relay, peer(1), echo), Err(DropReason::IcmpType));
    assert_eq!(world.peer_unreachable(relay, peer(2), PORT_UNREACHABLE), Err(DropReason::NoPermission));
}

// Any authenticated request of the allocation counts, not only Allocate.
#[test]
fn an_attribute_of_rfc_8489_or_8656_enables_icmp_errors_for_its_allocation() {
    let hash = Userhash(&[7; 32]);
    // A client that sends PASSWORD-ALGORITHM may still sign with MESSAGE-INTEGRITY.
    let shown: [&[&dyn EncodeAttribute]; 3] =
        [&[&AdditionalAddressFamily(AddressFamily::V6)], &[&hash], &[&PASSWORD_ALGORITHMS, &PasswordAlgorithm::MD5]];
    for attributes in shown {
        let mut world = World::new();
        let (client, other) = (world.client(1), world.client(2));
        let (relay, other_relay) = (world.allocate(&client).id, world.allocate(&other).id);
        world.permit(&client, peer(1));
        world.permit(&other, peer(1));
        assert_eq!(world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE), Err(DropReason::IcmpWithheld));
        world.accept(&client, Method::REFRESH, attributes);
        assert!(world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE).is_ok());
        world.accept(&client, Method::REFRESH, &[]);
        assert!(world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE).is_ok());
        assert_eq!(world.peer_unreachable(other_relay, peer(1), PORT_UNREACHABLE), Err(DropReason::IcmpWithheld));
    }
    let mut world = World::new();
    let client = world.client(1);
    let request =
        client.request_sealed(world.transaction(), Method::ALLOCATE, &[&RequestedTransport::UDP], |writer, key| {
            writer.message_integrity_sha256(key);
        });
    let open = world.open_for(&client.tuple, &request);
    assert_eq!(world.opened(&request, &open, Ok(())).code(), None);
    world.event();
    world.permit(&client, peer(1));
    assert!(world.peer_unreachable(open.socket, peer(1), PORT_UNREACHABLE).is_ok());
}

// What follows the integrity may come from an attacker (RFC 8489 §14.5). Another user's request changes nothing, nor
// does the draft's number, which clients of RFC 5766 send.
#[test]
fn other_requests_do_not_enable_icmp_errors() {
    let mut world = World::with(|setup| setup.compat.draft_dual_allocation = true);
    let client = world.client(1);
    let relay = world.allocate(&client).id;
    world.permit(&client, peer(1));
    world.accept(&client, Method::REFRESH, &[&DraftAdditionalAddressFamily(AddressFamily::V6)]);
    let after = client.request_sealed(world.transaction(), Method::REFRESH, &[], |writer, key| {
        writer.message_integrity(key);
        writer.push(&PasswordAlgorithm::SHA256);
    });
    assert_eq!(world.response_to(&client.tuple, &after).code(), None);
    let mut bob = client.clone();
    (bob.username, bob.password) = (USERS[1].0.to_owned(), USERS[1].1.to_owned());
    let additional = AdditionalAddressFamily(AddressFamily::V6);
    assert_eq!(world.error_code(&bob, Method::REFRESH, &[&additional]), 441);
    assert_eq!(world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE), Err(DropReason::IcmpWithheld));
}

#[test]
fn icmp_errors_can_be_withheld_from_every_client() {
    let mut world = World::with(|setup| setup.compat.icmp_indications = IcmpIndications::Never);
    let client = world.client(1);
    let relay = world.allocate(&client).id;
    world.permit(&client, peer(1));
    world.accept(&client, Method::REFRESH, &[&AdditionalAddressFamily(AddressFamily::V6)]);
    assert_eq!(world.peer_unreachable(relay, peer(1), PORT_UNREACHABLE), Err(DropReason::IcmpWithheld));
}
