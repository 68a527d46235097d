//! RFC 8656 §12.

use std::net::SocketAddr;

use crate::setting;
use crate::stun::attribute::{AddressFamily, ChannelNumber, Data, Lifetime, RequestedAddressFamily, XorPeerAddress};
use crate::stun::{AttributeType, Class, Method};
use crate::turn::ChannelNumbers;
use crate::turn::tests::support::*;
use crate::turn::{DropReason, Event, IcmpError, IcmpIndications, Limit};

const CHANNEL_BIND: Method = Method::CHANNEL_BIND;

fn bind(world: &mut World, client: &Client, number: u16, peer: SocketAddr) -> CheckedResponse {
    world.send_request(client, CHANNEL_BIND, &[&ChannelNumber(number), &XorPeerAddress(peer)])
}

/// Returns a world in which client 1 has an allocation for an hour.
fn allocated() -> (World, Client, Relay) {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
    (world, client, relay)
}

#[test]
fn channel_bind_gets_an_empty_signed_response_and_installs_a_permission() {
    let (mut world, client, relay) = allocated();
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).kinds(), [AttributeType::MESSAGE_INTEGRITY]);
    // Data from the bound peer becomes ChannelData. Data from another port of its address becomes a Data indication.
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Ok((client.tuple, channel_data(0x4000, b"in"))));
    let mut other_port = peer(1);
    other_port.set_port(7_001);
    assert!(world.peer_packet(relay.id, other_port, b"in").is_ok());
}

// §12.2: both attributes must be present and well-formed.
#[test]
fn missing_or_malformed_number_or_peer_is_400() {
    let (mut world, client, relay) = allocated();
    let (number, one) = (ChannelNumber(0x4000), XorPeerAddress(peer(1)));
    assert_eq!(world.error_code(&client, CHANNEL_BIND, &[]), 400);
    assert_eq!(world.error_code(&client, CHANNEL_BIND, &[&number]), 400);
    assert_eq!(world.error_code(&client, CHANNEL_BIND, &[&one]), 400);
    for value in [&[][..], &[0x40, 0], &[0x40, 0, 0], &[0x40, 0, 0, 0, 0]] {
        let bad = Raw(AttributeType::CHANNEL_NUMBER, value);
        assert_eq!(world.error_code(&client, CHANNEL_BIND, &[&bad, &one]), 400);
    }
    for value in [&[][..], &[0, 1, 0, 0], &[0, 7, 0, 0, 1, 2, 3, 4]] {
        let bad = Raw(AttributeType::XOR_PEER_ADDRESS, value);
        assert_eq!(world.error_code(&client, CHANNEL_BIND, &[&number, &bad]), 400);
    }
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
}

#[test]
fn unknown_attributes_in_channel_bind_are_420() {
    let (mut world, client, relay) = allocated();
    let (number, one, unknown) = (ChannelNumber(0x4000), XorPeerAddress(peer(1)), Raw(AttributeType::new(0x7abc), &[]));
    assert_eq!(world.error_code(&client, CHANNEL_BIND, &[&number, &one, &unknown]), 420);
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
}

// §12.2: 0x4000 through 0x4FFF.
#[test]
fn channel_number_out_of_range_is_400() {
    let (mut world, client, _) = allocated();
    for number in [0, 1, 0x3fff, 0x8000, 0xffff] {
        let response = bind(&mut world, &client, number, peer(1));
        assert_eq!((response.code(), response.reason().as_str()), (Some(400), "Channel Number Out of Range"));
    }
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    assert_eq!(bind(&mut world, &client, 0x4fff, peer(2)).code(), None);
}

// Clients of RFC 5766 choose such numbers. The response names the setting that allows them.
#[test]
fn channel_number_of_rfc_5766_is_400_that_names_the_setting() {
    let (mut world, client, relay) = allocated();
    for number in [0x5000, 0x7fff] {
        let response = bind(&mut world, &client, number, peer(1));
        assert_eq!(response.code(), Some(400));
        assert!(response.reason().contains(setting::RFC5766_CHANNELS));
        let (id, user, tuple) = (relay.id.allocation(), "alice".to_owned(), client.tuple);
        assert_eq!(world.event(), Event::Rfc5766Channel { id, user, tuple, number });
        assert_eq!(world.dropped(&client.tuple, &channel_data(number, b"out")), DropReason::UnknownProtocol);
    }
}

#[test]
fn channel_numbers_of_rfc_5766_are_accepted_if_the_setting_allows_them() {
    let mut world = World::with(|setup| setup.compat.channels = ChannelNumbers::Rfc5766);
    let client = world.client(1);
    let relay = world.allocate(&client);
    for (number, host) in [(0x5000, 1), (0x7fff, 2)] {
        assert_eq!(bind(&mut world, &client, number, peer(host)).code(), None);
        assert_eq!(world.relayed(&client.tuple, &channel_data(number, b"out")).1, peer(host));
        let (_, message) = world.peer_packet(relay.id, peer(host), b"in").unwrap();
        assert_eq!(message, channel_data(number, b"in"));
    }
    assert_eq!(bind(&mut world, &client, 0x8000, peer(3)).code(), Some(400));
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x8000, b"out")), DropReason::UnknownProtocol);
}

// §12.2: neither may be in another binding. The same binding again is accepted.
#[test]
fn number_or_peer_bound_elsewhere_is_400() {
    let (mut world, client, _) = allocated();
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    let response = bind(&mut world, &client, 0x4000, peer(2));
    assert_eq!((response.code(), response.reason().as_str()), (Some(400), "Channel Bound to Another Peer"));
    let response = bind(&mut world, &client, 0x4001, peer(1));
    assert_eq!((response.code(), response.reason().as_str()), (Some(400), "Peer Bound to Another Channel"));
    // A peer is a transport address: another port is another peer.
    let mut other_port = peer(1);
    other_port.set_port(7_001);
    assert_eq!(bind(&mut world, &client, 0x4000, other_port).code(), Some(400));
    assert_eq!(bind(&mut world, &client, 0x4001, other_port).code(), None);
    assert_eq!(world.relayed(&client.tuple, &channel_data(0x4000, b"out")).1, peer(1));
}

// §12: the bindings of one allocation have no impact on another.
#[test]
fn two_allocations_may_bind_the_same_channel() {
    let (mut world, client, _) = allocated();
    let second = world.client(2);
    let relay = world.allocate(&second);
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    assert_eq!(world.dropped(&second.tuple, &channel_data(0x4000, b"out")), DropReason::ChannelNotBound);
    assert_eq!(bind(&mut world, &second, 0x4000, peer(2)).code(), None);
    assert_eq!(world.relayed(&second.tuple, &channel_data(0x4000, b"out")), (relay.id, peer(2), b"out".to_vec()));
}

#[test]
fn peer_of_the_other_address_family_is_443() {
    let (mut world, client, _) = allocated();
    let second = world.client(2);
    world.allocate_with(&second, &[&RequestedAddressFamily(AddressFamily::V6)]);
    assert_eq!(bind(&mut world, &client, 0x4000, peer_v6(1)).code(), Some(443));
    assert_eq!(bind(&mut world, &second, 0x4000, peer(1)).code(), Some(443));
    assert_eq!(bind(&mut world, &second, 0x4000, peer_v6(1)).code(), None);
}

#[test]
fn denied_peers_are_403_and_logged_with_the_rule() {
    let (mut world, client, _) = allocated();
    let second = world.client(2);
    world.allocate_with(&second, &[&RequestedAddressFamily(AddressFamily::V6)]);
    for (client, denied) in [
        (&client, "127.0.0.1:7000"),
        (&client, "169.254.169.254:80"),
        (&client, "10.0.0.5:49999"),
        (&client, "203.0.113.9:22"),
        (&second, "[::ffff:127.0.0.1]:7000"),
        (&second, "[64:ff9b::10.0.0.1]:7000"),
        (&second, "[2002:808:808::1]:7000"),
        (&second, "[2001:0:808:808::f7f7:f7f7]:7000"),
        (&second, "[2001:db8:1::5]:22"),
    ] {
        let peer = address(denied);
        assert_eq!(bind(&mut world, client, 0x4000, peer).code(), Some(403), "{denied}");
        assert!(matches!(world.event(), Event::PeerDenied { peer: logged, .. } if logged == peer));
        assert_eq!(world.dropped(&client.tuple, &channel_data(0x4000, b"out")), DropReason::ChannelNotBound);
    }
}

#[test]
fn channels_and_permissions_above_the_limits_are_508() {
    let mut world = World::with(|setup| {
        (setup.limits.channels_per_allocation, setup.limits.permissions_per_allocation) = (2, 2);
    });
    let client = world.client(1);
    world.allocate_with(&client, &[&Lifetime(3_600)]);
    let mut other_port = peer(1);
    other_port.set_port(7_001);
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    assert_eq!(bind(&mut world, &client, 0x4001, other_port).code(), None);
    let response = bind(&mut world, &client, 0x4002, peer(2));
    assert_eq!((response.code(), response.reason().as_str()), (Some(508), "Insufficient Capacity: channels"));
    assert_eq!(world.logged_limit(), Limit::Channels);
    // An existing channel can be refreshed.
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    world.pass(seconds(600));
    world.permit(&client, peer(2));
    world.permit(&client, peer(3));
    let response = bind(&mut world, &client, 0x4000, peer(1));
    assert_eq!((response.code(), response.reason().as_str()), (Some(508), "Insufficient Capacity: permissions"));
    assert_eq!(world.logged_limit(), Limit::Permissions);
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x4000, b"out")), DropReason::ChannelNotBound);
    assert_eq!(bind(&mut world, &client, 0x4000, peer(2)).code(), None);
}

// This holds even if `advance` was not called since they expired.
#[test]
fn expired_channels_and_permissions_do_not_count_against_the_limits() {
    let mut world = World::with(|setup| {
        (setup.limits.channels_per_allocation, setup.limits.permissions_per_allocation) = (2, 2);
    });
    let client = world.client(1);
    world.allocate_with(&client, &[&Lifetime(3_600)]);
    for round in 0..3 {
        for host in [1, 2] {
            let number = 0x4000 + 2 * round + u16::from(host);
            assert_eq!(bind(&mut world, &client, number, peer(2 * u8::try_from(round).unwrap() + host)).code(), None);
        }
        world.pass(seconds(600));
    }
}

// §12: a channel lasts ten minutes and its permission five. ChannelData refreshes neither (§12.6).
#[test]
fn a_channel_lasts_600_seconds_both_ways_and_its_permission_300_regardless_of_traffic() {
    let mut world = World::with(|setup| setup.compat.icmp_indications = IcmpIndications::Always);
    let client = world.client(1);
    let relay = world.allocate_with(&client, &[&Lifetime(3_600)]);
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    for second in 1..600 {
        world.advance(seconds(1));
        assert_eq!(world.relayed(&client.tuple, &channel_data(0x4000, b"out")).1, peer(1));
        assert_eq!(world.peer_packet(relay.id, peer(1), b"in").unwrap().1, channel_data(0x4000, b"in"));
        let error = IcmpError { kind: 3, code: 3, mtu: 0 };
        assert!(world.peer_unreachable(relay.id, peer(1), error).is_ok());
        // Another port of the address, a Send indication and an ICMP error without a port need the permission.
        let mut other_port = peer(1);
        other_port.set_port(7_001);
        let permitted = second < 300;
        assert_eq!(world.peer_packet(relay.id, other_port, b"in").is_ok(), permitted);
        assert_eq!(world.peer_unreachable(relay.id, other_port, error).is_ok(), permitted);
        other_port.set_port(0);
        assert_eq!(world.peer_unreachable(relay.id, other_port, error).is_ok(), permitted);
        if !permitted {
            let send = plain(Class::Indication, Method::SEND, &[&XorPeerAddress(peer(1)), &Data(b"out")]);
            assert_eq!(world.dropped(&client.tuple, &send), DropReason::NoPermission);
        }
    }
    world.pass(seconds(1));
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in"), Err(DropReason::NoPermission));
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x4000, b"out")), DropReason::ChannelNotBound);
    world.advance(seconds(0));
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x4000, b"out")), DropReason::ChannelNotBound);
}

#[test]
fn channel_bind_refreshes_channel_and_permission() {
    let (mut world, client, relay) = allocated();
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    world.advance(seconds(599));
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    world.advance(seconds(299));
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in").unwrap().1, channel_data(0x4000, b"in"));
    world.advance(seconds(300));
    assert_eq!(world.relayed(&client.tuple, &channel_data(0x4000, b"out")).1, peer(1));
    world.advance(seconds(1));
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x4000, b"out")), DropReason::ChannelNotBound);
}

// §9: both methods refresh the same permission. CreatePermission does not refresh a channel.
#[test]
fn create_permission_refreshes_the_permission_of_a_channel_but_not_the_channel() {
    let (mut world, client, relay) = allocated();
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    world.advance(seconds(299));
    world.permit(&client, peer(1));
    world.advance(seconds(299));
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in").unwrap().1, channel_data(0x4000, b"in"));
    world.permit(&client, peer(1));
    world.advance(seconds(2));
    // The channel has expired, so the data comes in a Data indication.
    assert_ne!(world.peer_packet(relay.id, peer(1), b"in").unwrap().1, channel_data(0x4000, b"in"));
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x4000, b"out")), DropReason::ChannelNotBound);
}

// §12: after the expiry, number and peer can be bound to others.
#[test]
fn an_expired_binding_does_not_block_a_new_one() {
    let (mut world, client, relay) = allocated();
    assert_eq!(bind(&mut world, &client, 0x4000, peer(1)).code(), None);
    world.pass(seconds(600));
    assert_eq!(bind(&mut world, &client, 0x4001, peer(1)).code(), None);
    assert_eq!(bind(&mut world, &client, 0x4000, peer(2)).code(), None);
    assert_eq!(world.peer_packet(relay.id, peer(1), b"in").unwrap().1, channel_data(0x4001, b"in"));
    assert_eq!(world.peer_packet(relay.id, peer(2), b"in").unwrap().1, channel_data(0x4000, b"in"));
}

// §12.4 to §12.6: 0 is a valid length. Over UDP there may be padding, which is not data.
#[test]
fn channel_data_is_relayed_without_its_padding() {
    let (mut world, client, relay) = allocated();
    bind(&mut world, &client, 0x4000, peer(1));
    assert_eq!(world.relayed(&client.tuple, &channel_data(0x4000, b"")), (relay.id, peer(1), Vec::new()));
    let padded = [&channel_data(0x4000, b"abcde")[..], &[0; 3]].concat();
    assert_eq!(world.relayed(&client.tuple, &padded), (relay.id, peer(1), b"abcde".to_vec()));
    let long = vec![7; 65_503];
    assert_eq!(world.relayed(&client.tuple, &channel_data(0x4000, &long)).2, long);
}

// §12.6: a length beyond the datagram, or a channel that is not bound → drop.
#[test]
fn invalid_channel_data_is_dropped() {
    let (mut world, client, _) = allocated();
    bind(&mut world, &client, 0x4000, peer(1));
    let tuple = client.tuple;
    for length in 1..4 {
        assert_eq!(world.dropped(&tuple, &channel_data(0x4000, b"")[..length]), DropReason::MalformedChannelData);
    }
    for packet in [&[0x40, 0, 0, 1][..], &[0x40, 0, 0, 5, 1, 2, 3, 4], &[0x40, 0, 0xff, 0xff, 1]] {
        assert_eq!(world.dropped(&tuple, packet), DropReason::MalformedChannelData);
    }
    assert_eq!(world.dropped(&tuple, &channel_data(0x4001, b"out")), DropReason::ChannelNotBound);
    assert_eq!(world.dropped(&tuple, &channel_data(0x4fff, b"out")), DropReason::ChannelNotBound);
    assert_eq!(world.dropped(&tuple, &channel_data(0x5000, b"out")), DropReason::UnknownProtocol);
}

// §5: a 5-tuple without an allocation → drop.
#[test]
fn channel_data_without_an_allocation_is_dropped() {
    let (mut world, client, relay) = allocated();
    bind(&mut world, &client, 0x4000, peer(1));
    let other = world.client(2);
    assert_eq!(world.dropped(&other.tuple, &channel_data(0x4000, b"out")), DropReason::NoAllocation);
    world.accept(&client, Method::REFRESH, &[&Lifetime(0)]);
    world.expect_end(&relay);
    assert_eq!(world.dropped(&client.tuple, &channel_data(0x4000, b"out")), DropReason::NoAllocation);
}
