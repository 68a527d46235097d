//! Malformed packets, and packets of unauthenticated clients.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, ChannelNumber, Data, Lifetime, Nonce, Realm, RequestedTransport, Software,
    UnknownAttributes, Username, XorPeerAddress,
};
use crate::stun::{AttributeType, Class, EncodeAttribute, Method, TransactionId};
use crate::turn::RequestMethod;
use crate::turn::tests::support::*;
use crate::turn::{Action, DropReason, Event, FromClient, Limit, Outcome, SocketSpec};

// RFC 8656 §12, Table 3: packets are demultiplexed by the first byte. Reserved values are dropped.
#[test]
fn the_first_byte_selects_the_protocol() {
    let mut world = World::new();
    let tuple = world.client(1).tuple;
    assert_eq!(world.dropped(&tuple, &[]), DropReason::UnknownProtocol);
    for first in 0..=255_u8 {
        let reason = match first {
            0..=3 => DropReason::MalformedStun,
            0x40..=0x4f => DropReason::MalformedChannelData,
            _ => DropReason::UnknownProtocol,
        };
        for length in 1..4 {
            assert_eq!(world.dropped(&tuple, &[first, 0, 0][..length]), reason, "{first:#x}");
        }
    }
    assert_eq!(world.footprint(), EMPTY);
}

// RFC 8489 §6.3: a message that violates §5 is silently discarded.
#[test]
fn malformed_messages_are_dropped() {
    let mut world = World::new();
    let tuple = world.client(1).tuple;
    let good = plain(Class::Request, Method::BINDING, &[&Software("client")]);
    assert_eq!(world.response_to(&tuple, &good).outcome, Outcome::Answered(RequestMethod::Binding));
    for length in 1..good.len() {
        assert_eq!(world.dropped(&tuple, &good[..length]), DropReason::MalformedStun, "cut to {length}");
    }
    let mut changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        assert_eq!(world.dropped(&tuple, &packet), DropReason::MalformedStun);
    };
    changed(&|packet| packet[4] ^= 1);
    changed(&|packet| packet[3] += 1);
    changed(&|packet| packet[3] += 4);
    changed(&|packet| packet[2] = 0xff);
    changed(&|packet| packet[23] = 200);
    changed(&|packet| packet[22] = 0xff);
    changed(&|packet| packet.push(0));
    changed(&|packet| packet.extend([0; 4]));
}

// A message of 735 bytes has crashed another server. 65 535 is the maximum of a length field.
#[test]
fn long_messages_are_parsed() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    world.permit(&client, peer(1));
    for length in [735, 736, 1_472, 65_000] {
        let payload = vec![7; length];
        let send = plain(Class::Indication, Method::SEND, &[&XorPeerAddress(peer(1)), &Data(&payload)]);
        assert_eq!(world.relayed(&client.tuple, &send).2, payload);
        let padded = Raw(AttributeType::new(0x8fff), &payload);
        world.accept(&client, Method::REFRESH, &[&padded]);
        let binding = plain(Class::Request, Method::BINDING, &[&padded]);
        assert_eq!(world.response_to(&client.tuple, &binding).code(), None);
    }
    for first in [0, 1, 0x40] {
        let mut packet = vec![0xff; 65_535];
        packet[0] = first;
        let reason = world.dropped(&client.tuple, &packet);
        assert!(matches!(reason, DropReason::MalformedStun | DropReason::MalformedChannelData));
        assert!(matches!(world.client_packet(&client.tuple, &packet[..735]).0, FromClient::Drop(_)));
    }
    let mut packet = vec![0; 65_535];
    packet[..4].copy_from_slice(&[0x40, 0, 0xff, 0xff]);
    assert_eq!(world.dropped(&client.tuple, &packet), DropReason::MalformedChannelData);
}

// RFC 7635 §4.1: ACCESS-TOKEN. There is no authorization by tokens here, so a token is never decoded.
#[test]
fn an_access_token_is_an_unknown_attribute_however_long_it_is() {
    let mut world = World::new();
    let client = world.client(1);
    let access_token = AttributeType::new(0x001b);
    for length in [0, 2, 256, 735, 65_000] {
        let token = vec![0xff; length];
        let response =
            world.send_request(&client, Method::ALLOCATE, &[&RequestedTransport::UDP, &Raw(access_token, &token)]);
        let unknown: Vec<_> = response.get::<UnknownAttributes<'_>>().unwrap().iter().collect();
        assert_eq!((response.code(), unknown), (Some(420), vec![access_token]));
    }
    assert_eq!(world.footprint(), EMPTY);
}

// RFC 8489 §14: attributes may be repeated. §6.3.1: comprehension-optional ones that are not understood are ignored.
#[test]
fn a_message_with_far_more_attributes_than_a_client_sends_is_dropped() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let empty = Raw(AttributeType::new(0x8fff), &[]);
    world.accept(&client, Method::REFRESH, &[&empty as &dyn EncodeAttribute; 300]);
    for (method, count) in [(Method::REFRESH, 320), (Method::REFRESH, 16_000), (Method::CREATE_PERMISSION, 16_000)] {
        let many = vec![&empty as &dyn EncodeAttribute; count];
        let request = client.request(world.transaction(), method, &many);
        assert_eq!(world.dropped(&client.tuple, &request), DropReason::TooManyAttributes);
    }
    for (class, method) in [(Class::Request, Method::BINDING), (Class::Indication, Method::SEND)] {
        let packet = plain(class, method, &vec![&empty as &dyn EncodeAttribute; 321]);
        assert_eq!(world.dropped(&client.tuple, &packet), DropReason::TooManyAttributes);
    }
}

// RFC 8656 §10.2. An allocation may have eight permissions here.
#[test]
fn more_peers_than_permissions_are_rejected_before_any_is_checked() {
    let mut world = World::new();
    let client = world.client(1);
    world.allocate(&client);
    let denied = XorPeerAddress(SocketAddr::from(([127, 0, 0, 1], 9)));
    let peers: Vec<_> = (1..=250).map(|last| XorPeerAddress(SocketAddr::from(([198, 51, 100, last], 9)))).collect();
    let mut attributes: Vec<&dyn EncodeAttribute> = vec![&denied];
    attributes.extend(peers.iter().map(|peer| peer as &dyn EncodeAttribute));
    assert_eq!(world.error_code(&client, Method::CREATE_PERMISSION, &attributes), 508);
    assert_eq!(world.logged_limit(), Limit::Permissions);
    assert_eq!(world.error_code(&client, Method::CREATE_PERMISSION, &attributes[..2]), 403);
    assert!(matches!(world.event(), Event::PeerDenied { .. }));
    // Clients repeat an address for each port of it.
    let repeated: Vec<_> = (1..=250).map(|port| XorPeerAddress(SocketAddr::from(([198, 51, 100, 7], port)))).collect();
    let repeated: Vec<_> = repeated.iter().map(|peer| peer as &dyn EncodeAttribute).collect();
    world.accept(&client, Method::CREATE_PERMISSION, &repeated);
    // 64 kB of addresses are not even parsed.
    let most: Vec<_> = (0..5_000).map(|_| attributes[1]).collect();
    let request = client.request(world.transaction(), Method::CREATE_PERMISSION, &most);
    assert_eq!(world.dropped(&client.tuple, &request), DropReason::TooManyAttributes);
}

// RFC 8489 §14.3, §14.9, §14.10: a receiver parses up to 763 bytes.
#[test]
fn the_longest_username_realm_and_nonce_are_parsed() {
    let mut world = World::new();
    let client = world.client(1);
    let name = "u".repeat(763);
    let request = write(Class::Request, Method::ALLOCATE, TransactionId::new([1; 12]), |writer| {
        writer.push(&Username(&name));
        writer.push(&Realm(&"r".repeat(763)));
        writer.push(&Nonce(&"n".repeat(763)));
        writer.message_integrity(b"some key");
    });
    assert_eq!(world.response_to(&client.tuple, &request).code(), Some(438));
}

// RFC 8489 §6.1: at most 576 bytes with the IPv4 and UDP headers, for realms of up to 127 ASCII characters.
#[test]
fn responses_fit_the_smallest_path_mtu() {
    let mut world = World::new();
    let client = world.client(1);
    let unknown: Vec<_> = (0x7000..0x7100).map(|kind| Raw(AttributeType::new(kind), &[])).collect();
    let unknown: Vec<&dyn EncodeAttribute> = unknown.iter().map(|raw| raw as &dyn EncodeAttribute).collect();
    let udp = RequestedTransport::UDP;
    let sealed = |world: &mut World, client: &Client, method, attributes: &[&dyn EncodeAttribute]| {
        let request = client.request_sealed(world.transaction(), method, attributes, |writer, key| {
            writer.message_integrity(key);
            writer.fingerprint();
        });
        match world.client_packet(&client.tuple, &request) {
            (FromClient::Open(open), _) => world.all_opened(&request, open),
            (FromClient::Respond(response), buffer) => CheckedResponse::new(&request, &buffer, &response),
            (other, _) => panic!("a response is expected, not {other:?}"),
        }
    };
    let stale = Client { nonce: "an invalid nonce".to_owned(), ..client.clone() };
    let beginning: Vec<&dyn EncodeAttribute> = unknown.iter().copied().chain([&udp as &dyn EncodeAttribute]).collect();
    let everything: [&dyn EncodeAttribute; 3] = [&udp, &Lifetime(700), &AdditionalAddressFamily(AddressFamily::V6)];
    let responses = [
        world.response_to(&client.tuple, &plain(Class::Request, Method::ALLOCATE, &beginning)),
        sealed(&mut world, &stale, Method::ALLOCATE, &[&udp]),
        sealed(&mut world, &client, Method::BINDING, &unknown),
        sealed(&mut world, &client, Method::ALLOCATE, &unknown),
        sealed(&mut world, &client, Method::ALLOCATE, &everything),
        sealed(&mut world, &client, Method::CHANNEL_BIND, &[&ChannelNumber(0x5000), &XorPeerAddress(peer(1))]),
    ];
    assert_eq!(
        responses.each_ref().map(CheckedResponse::code),
        [Some(401), Some(438), Some(420), Some(420), None, Some(400)]
    );
    for response in responses {
        assert!(response.bytes.len() + 128 - REALM.len() <= 576 - 20 - 8, "{} bytes", response.bytes.len());
    }
    while world.action().is_some() {}
}

/// Returns valid packets of a client, for mutation.
fn valid_packets(client: &Client) -> Vec<Vec<u8>> {
    let (udp, zero, hour) = (RequestedTransport::UDP, Lifetime(0), Lifetime(3_600));
    let (one, two, number) = (XorPeerAddress(peer(1)), XorPeerAddress(peer(2)), ChannelNumber(0x4000));
    let requests: [(Method, &[&dyn EncodeAttribute]); 6] = [
        (Method::ALLOCATE, &[&udp, &hour]),
        (Method::REFRESH, &[&hour]),
        (Method::REFRESH, &[&zero]),
        (Method::CREATE_PERMISSION, &[&one, &two]),
        (Method::CHANNEL_BIND, &[&number, &one]),
        (Method::BINDING, &[]),
    ];
    let mut packets: Vec<_> = (0..)
        .zip(requests)
        .map(|(id, (method, attributes))| client.request(TransactionId::new([id; 12]), method, attributes))
        .collect();
    packets.push(plain(Class::Indication, Method::SEND, &[&one, &Data(b"out")]));
    packets.push(plain(Class::Request, Method::ALLOCATE, &[&udp]));
    packets.push(channel_data(0x4000, b"out"));
    packets
}

/// A mutation of a packet.
#[derive(Clone, Debug)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Append(Vec<u8>),
    /// Writes a plausible 16-bit length.
    Length(prop::sample::Index, u16),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => any::<prop::sample::Index>().prop_map(Mutation::Cut),
        1 => vec(any::<u8>(), 1..40).prop_map(Mutation::Append),
        2 => (any::<prop::sample::Index>(), 0..100_u16).prop_map(|(at, length)| Mutation::Length(at, length)),
    ]
}

fn mutated(mut packet: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        match mutation {
            _ if packet.is_empty() => {}
            Mutation::Set(at, byte) => {
                let at = at.index(packet.len());
                packet[at] = *byte;
            }
            Mutation::Cut(at) => packet.truncate(at.index(packet.len() + 1)),
            Mutation::Append(bytes) => packet.extend(bytes),
            Mutation::Length(at, length) => {
                let at = at.index(packet.len()) & !1;
                for (place, byte) in packet[at..].iter_mut().zip(length.to_be_bytes()) {
                    *place = byte;
                }
            }
        }
    }
    packet
}

/// Generates random bytes, valid headers with random attributes, and mutated packets.
fn packet(packets: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let attributes = vec((any::<u16>(), vec(any::<u8>(), 0..24)), 0..6);
    let known = prop::sample::select(vec![0x06, 0x08, 0x0c, 0x0d, 0x12, 0x13, 0x14, 0x15, 0x17, 0x19, 0x1c, 0x8028]);
    let message = (0..12_u16, 0..4_usize, attributes, known).prop_map(|(method, class, attributes, known)| {
        let class = [Class::Request, Class::Indication, Class::Success, Class::Error][class];
        write(class, Method::new(method).unwrap(), TransactionId::new([9; 12]), |writer| {
            for (at, (kind, value)) in attributes.iter().enumerate() {
                let kind = if at % 2 == 0 { known } else { *kind };
                writer.push(&Raw(AttributeType::new(kind), value));
            }
        })
    });
    prop_oneof![
        1 => vec(any::<u8>(), 0..120),
        2 => message,
        4 => (prop::sample::select(packets), vec(mutation(), 1..4))
            .prop_map(|(packet, mutations)| mutated(packet, &mutations)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    // A packet of an unauthenticated client creates no state.
    #[test]
    fn no_packet_of_an_unauthenticated_client_creates_state(
        packets in vec(
            // An attacker can copy the packets of a client, but does not know its password or receive at its address.
            packet(valid_packets(&Client { password: "guess".to_owned(), ..World::new().client(1) })),
            1..12,
        ),
    ) {
        let mut world = World::new();
        let tuple = world.client(2).tuple;
        for packet in &packets {
            match world.client_packet(&tuple, packet).0 {
                FromClient::Drop(_) => {}
                FromClient::Respond(response) => {
                    let is_binding = response.outcome == Outcome::Answered(RequestMethod::Binding);
                    prop_assert!(is_binding || matches!(response.outcome, Outcome::Rejected(_)));
                    // With the IP and UDP headers, a response is at most 2.1 times as long as its request.
                    let (sent, received) = (response.length + 28, packet.len() + 28);
                    prop_assert!(10 * sent <= 21 * received, "{} for {}", sent, received);
                }
                other => prop_assert!(false, "{other:?}"),
            }
            prop_assert_eq!(world.action(), None);
        }
        prop_assert_eq!(world.footprint(), EMPTY);
    }

    #[test]
    fn no_packet_of_a_client_breaks_the_server(
        packets in vec((packet(valid_packets(&World::new().client(1))), 0..400_u64), 1..24),
        datagrams in vec((0..4_u8, any::<u16>(), vec(any::<u8>(), 0..80)), 0..24),
    ) {
        let mut world = World::new();
        let client = world.client(1);
        let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
        world.permit(&client, peer(1));
        world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4001), &XorPeerAddress(peer(2))]);
        let mut datagrams = datagrams.into_iter();
        let mut opening: Option<SocketSpec> = None;
        for (packet, pause) in packets {
            if let FromClient::Open(open) = world.client_packet(&client.tuple, &packet).0 {
                opening = Some(open);
            }
            if let Some((host, port, payload)) = datagrams.next() {
                let mut source = peer(host);
                source.set_port(port);
                if let Ok((_, message)) = world.peer_packet(relay.id, source, &payload) {
                    prop_assert!(host == 1 || host == 2);
                    prop_assert!(message.len() >= payload.len() + 4);
                }
            }
            world.advance(Duration::from_millis(pause));
            if let Some(open) = opening.take() {
                world.socket_opened(&open, Ok(()));
            }
            prop_assert!(world.server.allocation_count() <= 1);
            let actions: Vec<Action> = std::iter::from_fn(|| world.action()).collect();
            if actions.contains(&Action::Close { socket: relay.id, bind: relay.bind }) {
                world.server.socket_closed(relay.bind);
                return Ok(());
            }
        }
    }
}
