//! RFC 8656 §13 to §16: the IP header fields of relayed data.

use std::net::SocketAddr;

use crate::ip_fields::IpFields;
use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, ChannelNumber, Data, DontFragment, EvenPort, RequestedAddressFamily,
    RequestedTransport, ReservationToken, UnknownAttributes, XorPeerAddress,
};
use crate::stun::{AttributeType, Class, EncodeAttribute, Method};
use crate::turn::tests::support::*;
use crate::turn::{DropReason, FromClient, ToPeer, Transport};

/// Expedited Forwarding, Congestion Experienced.
const TOS: u8 = 0xbb;

/// Returns a client on this transport with a dual allocation and a permission for the first peer of each family.
fn dual(transport: Transport, v6: bool) -> (World, Client) {
    let mut world = World::new();
    let mut client = world.client(1);
    client.tuple.transport = transport;
    if v6 {
        client.tuple.client = address("[2001:db8::1]:5000");
        client.tuple.server = address("[2001:db8::200]:3478");
        client.nonce = world.nonce(client.tuple.client);
    }
    let additional = AdditionalAddressFamily(AddressFamily::V6);
    world.accept(&client, Method::ALLOCATE, &[&RequestedTransport::UDP, &additional]);
    world.event();
    world.permit(&client, peer(1));
    world.permit(&client, peer_v6(1));
    (world, client)
}

fn fields(tos: u8, hop_limit: u8) -> IpFields {
    IpFields { tos, hop_limit: Some(hop_limit) }
}

fn route(world: &mut World, client: &Client, packet: &[u8]) -> ToPeer {
    match world.client_packet(&client.tuple, packet) {
        (FromClient::Relay(route), _) => route,
        (other, _) => panic!("a route is expected, not {other:?}"),
    }
}

fn send(peer: SocketAddr, attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
    let peer = XorPeerAddress(peer);
    let mut all: Vec<&dyn EncodeAttribute> = vec![&peer, &Data(b"out")];
    all.extend(attributes);
    plain(Class::Indication, Method::SEND, &all)
}

// §14: DSCP and ECN are copied from the received datagram, also between address families (§13, RFC 7915 §4 and §5), and
// the hop limit goes down by one.
#[test]
fn ip_header_fields_are_relayed_between_datagrams() {
    for v6 in [false, true] {
        let (mut world, client) = dual(Transport::Udp, v6);
        for (number, peer) in [(0x4000, peer(1)), (0x4001, peer_v6(1))] {
            let relay = route(&mut world, &client, &send(peer, &[])).socket;
            for (arrived, sent) in [(IpFields::default(), IpFields::default()), (fields(TOS, 64), fields(TOS, 63))] {
                world.fields = arrived;
                assert_eq!(route(&mut world, &client, &send(peer, &[])).fields, sent);
                world.peer_packet(relay, peer, b"in").unwrap();
                assert_eq!(world.fields_sent, sent);
            }
            world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(number), &XorPeerAddress(peer)]);
            world.fields = fields(TOS, 2);
            assert_eq!(route(&mut world, &client, &channel_data(number, b"out")).fields, fields(TOS, 1));
            world.peer_packet(relay, peer, b"in").unwrap();
            assert_eq!(world.fields_sent, fields(TOS, 1));
        }
    }
}

// A datagram that a router would not forward is not relayed. Requests get a response.
#[test]
fn a_datagram_whose_hop_limit_has_run_out_is_dropped() {
    let (mut world, client) = dual(Transport::Udp, false);
    let relay = route(&mut world, &client, &send(peer(1), &[])).socket;
    world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
    for hop_limit in [1, 0] {
        world.fields = fields(TOS, hop_limit);
        for packet in [send(peer(1), &[]), channel_data(0x4000, b"out")] {
            assert_eq!(world.dropped(&client.tuple, &packet), DropReason::HopLimit);
        }
        for source in [peer(1), SocketAddr::new(peer(1).ip(), 9)] {
            assert_eq!(world.peer_packet(relay, source, b"in"), Err(DropReason::HopLimit));
        }
    }
    world.accept(&client, Method::REFRESH, &[]);
}

// §15: Not-ECT and Best Effort to the peer. §16: the fields of datagrams from peers are ignored.
#[test]
fn ip_header_fields_are_not_copied_to_or_from_a_connection() {
    let (mut world, client) = dual(Transport::Tcp, false);
    world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
    for limit in [64, 1] {
        world.fields = fields(TOS, limit);
        let sent = route(&mut world, &client, &send(peer(1), &[]));
        assert_eq!(sent.fields, IpFields::default());
        assert_eq!(route(&mut world, &client, &channel_data(0x4000, b"out")).fields, IpFields::default());
        world.peer_packet(sent.socket, peer(1), b"in").unwrap();
        assert_eq!(world.fields_sent, IpFields::default());
    }
}

// §3.7: DONT-FRAGMENT in an Allocate request → 420, if datagrams with an unknown DF may be relayed from IPv4 to IPv6.
#[test]
fn dont_fragment_from_ipv4_to_ipv6_is_420_over_udp() {
    let (v6, both) = (RequestedAddressFamily(AddressFamily::V6), AdditionalAddressFamily(AddressFamily::V6));
    let mut world = World::new();
    let (reserving, client) = (world.client(1), world.client(2));
    let reserve = EvenPort { reserve_next: true };
    let response = world.accept(&reserving, Method::ALLOCATE, &[&RequestedTransport::UDP, &v6, &reserve]);
    world.event();
    let token: ReservationToken = response.get().unwrap();
    let before = world.footprint();
    for wanted in [&v6 as &dyn EncodeAttribute, &both, &token] {
        let response =
            world.send_request(&client, Method::ALLOCATE, &[&RequestedTransport::UDP, wanted, &DontFragment]);
        let unknown: Vec<_> = response.get::<UnknownAttributes<'_>>().unwrap().iter().collect();
        assert_eq!((response.code(), unknown), (Some(420), vec![AttributeType::DONT_FRAGMENT]));
    }
    assert_eq!(world.footprint(), before);
    // There is no such translation from a connection or from an IPv6 client.
    let (mut stream, mut six) = (world.client(3), world.client(4));
    stream.tuple.transport = Transport::Tcp;
    six.tuple.client = address("[2001:db8::4]:5000");
    six.nonce = world.nonce(six.tuple.client);
    for client in [&stream, &six] {
        world.accept(client, Method::ALLOCATE, &[&RequestedTransport::UDP, &both, &DontFragment]);
        world.event();
    }
    let mut only_v4 = World::with(|setup| setup.relays.truncate(1));
    let client = only_v4.client(1);
    only_v4.accept(&client, Method::ALLOCATE, &[&RequestedTransport::UDP, &both, &DontFragment]);
    only_v4.event();
}

// §14: DONT-FRAGMENT sets DF from IPv4 to IPv4. §13.1 to §13.3: between other datagrams it MUST be ignored. §15: it
// applies to data from a connection.
#[test]
fn dont_fragment_applies_from_ipv4_to_ipv4_and_from_connections() {
    for (transport, v6, to_v4, to_v6) in [
        (Transport::Udp, false, true, false),
        (Transport::Udp, true, false, false),
        (Transport::Tcp, false, true, true),
        (Transport::Tcp, true, true, true),
    ] {
        let (mut world, client) = dual(transport, v6);
        for (peer, expected) in [(peer(1), to_v4), (peer_v6(1), to_v6)] {
            let requested = route(&mut world, &client, &send(peer, &[&DontFragment]));
            assert_eq!(requested.dont_fragment, expected, "{transport}, {} to {peer}", client.tuple.client);
            assert!(!route(&mut world, &client, &send(peer, &[])).dont_fragment);
        }
        world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(peer(1))]);
        assert!(!route(&mut world, &client, &channel_data(0x4000, b"out")).dont_fragment);
    }
}
