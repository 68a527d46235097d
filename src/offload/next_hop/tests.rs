//! The logic of the table, with messages as the kernel writes them, and no sockets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{DefaultNla, Emitable as _};
use proptest::prelude::*;

use super::judge::{Hop, Link, Neighbour, Response, Route, Rule, Selector};
use super::message::{self, Message, Raw};
use super::table::{AUDIT, Table, USE_AFTER};
use super::{NextHop, Notice, Obstacle, Pair, Resolution};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ETHERNET: u32 = 2;
const START: Duration = Duration::from_secs(1000);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pair(number: u8) -> Pair {
    Pair { source: ip("192.0.2.1"), destination: IpAddr::from([203, 0, 113, number]) }
}

fn gateway() -> Hop {
    Hop { interface: ETHERNET, address: ip("192.0.2.2") }
}

fn link() -> Link {
    Link {
        name: "eth0".into(),
        ethernet: true,
        up: true,
        running: true,
        address: Some(OWN),
        mtu: 1500,
        ..Link::default()
    }
}

fn neighbour(state: u16) -> Neighbour {
    Neighbour { state, link_address: Some(GATEWAY) }
}

fn route() -> Route {
    Route {
        kind: libc::RTN_UNICAST,
        interface: ETHERNET,
        gateway: Some(gateway().address),
        mtu: None,
        encapsulated: false,
    }
}

fn next_hop() -> NextHop {
    NextHop {
        interface: ETHERNET,
        is_redirected: false,
        link_destination: GATEWAY,
        link_source: OWN,
        longest_packet: 1500,
    }
}

/// A table with one interface, whose gateway is in the given state.
fn table(state: u16) -> Table {
    let mut table = Table::default();
    let lists = vec![Message::Link(ETHERNET, link()), Message::Neighbour(gateway(), neighbour(state))];
    table.replace(lists, START);
    table
}

/// Responds to all lookups with the route, and returns how many there were.
fn respond_to_all(table: &mut Table, route: Route) -> usize {
    let pairs = table.take_lookups(usize::MAX);
    pairs.iter().for_each(|pair| table.enter_response(*pair, Response::Route(route), START));
    pairs.len()
}

/// Applies a message and returns the new resolutions, without a lookup.
fn after(table: &mut Table, message: Message) -> Vec<Resolution> {
    table.apply(message, START);
    table.review_some(usize::MAX);
    changes(table)
}

fn changes(table: &mut Table) -> Vec<Resolution> {
    let resolution = |notice| match notice {
        Notice::Changed { resolution, .. } => resolution,
        Notice::Use { .. } => panic!("no use is due"),
    };
    table.take_notices().into_iter().map(resolution).collect()
}

#[test]
fn each_owner_gets_the_first_resolution() {
    let mut table = table(libc::NUD_REACHABLE);
    assert_eq!(table.ask(1, pair(1)), None);
    assert_eq!(table.ask(2, pair(1)), None);
    assert_eq!(table.ask(2, pair(1)), None);
    assert_eq!(respond_to_all(&mut table, route()), 1);
    let changed = |owner| Notice::Changed { owner, pair: pair(1), resolution: Ok(next_hop()) };
    assert_eq!(table.take_notices(), [changed(1), changed(2)]);
    assert_eq!(table.ask(3, pair(1)), Some(Ok(next_hop())));
    assert!(!table.has_work());
}

#[test]
fn a_released_pair_leaves_nothing() {
    let mut table = table(libc::NUD_STALE);
    for owner in [1, 1, 2] {
        table.ask(owner, pair(1));
    }
    respond_to_all(&mut table, route());
    table.take_notices();
    for owner in [1, 2, 1] {
        assert_eq!(table.len(), 1);
        table.release(owner, pair(1));
    }
    assert_eq!(table.len(), 0);
    assert_eq!(after(&mut table, Message::NeighbourGone(gateway())), []);
    table.tick(START + AUDIT);
    assert_eq!(table.take_notices(), []);
    assert!(!table.has_work());
    // The response to a lookup that was under way has no effect.
    table.enter_response(pair(1), Response::Route(route()), START);
    assert_eq!(table.take_notices(), []);
}

#[test]
fn an_owner_gets_no_notice_about_a_pair_that_it_has_released() {
    let mut table = table(libc::NUD_STALE);
    for (owner, number) in [(1, 1), (1, 1), (1, 2), (2, 1)] {
        table.ask(owner, pair(number));
    }
    respond_to_all(&mut table, route());
    table.tick(START + USE_AFTER);
    table.release(1, pair(1));
    table.release(1, pair(1));
    // An owner that has not asked for the pair ends nothing.
    table.release(1, pair(1));
    table.release(3, pair(1));
    let about = |notice: &Notice| match notice {
        Notice::Changed { owner, pair, .. } => (*owner, *pair, "changed"),
        Notice::Use { owner, pair } => (*owner, *pair, "use"),
    };
    let notices: Vec<_> = table.take_notices().iter().map(about).collect();
    let expected = [(2, pair(1), "changed"), (1, pair(2), "changed"), (2, pair(1), "use"), (1, pair(2), "use")];
    assert_eq!(notices, expected);
    // One of two requests is left.
    table.ask(2, pair(1));
    table.apply(Message::Link(ETHERNET, Link { mtu: 1400, ..link() }), START);
    respond_to_all(&mut table, route());
    table.release(2, pair(1));
    assert_eq!(table.take_notices().iter().map(about).filter(|(owner, ..)| *owner == 2).count(), 1);
}

#[test]
fn sources_that_are_no_addresses_of_interfaces_are_unknown() {
    let mut table = table(libc::NUD_REACHABLE);
    table.apply(Message::Address(ETHERNET, ip("2001:db8::1")), START);
    let to = |source: &str| Pair { source: ip(source), destination: ip("2001:db8:1::1") };
    let pairs = [to("2001:db8::1"), to("2001:db8::2"), to("2001:db8::3"), to("2001:db8::2"), pair(1)];
    let unknown: Vec<IpAddr> = table.unknown_sources(&pairs).into_iter().collect();
    assert_eq!(unknown, [ip("2001:db8::2"), ip("2001:db8::3")]);
    table.apply(Message::AddressGone(ETHERNET, ip("2001:db8::1")), START);
    assert_eq!(table.unknown_sources(&pairs).len(), 3);
    assert!(table.unknown_sources(&[pair(1)]).is_empty(), "the kernel checks IPv4 sources");
}

#[test]
fn the_state_of_the_neighbour_decides() {
    let mut table = table(libc::NUD_INCOMPLETE);
    table.ask(1, pair(1));
    respond_to_all(&mut table, route());
    let unresolved = Err(Obstacle::Unresolved { neighbour: gateway().address, interface: "eth0".into() });
    let failed = Err(Obstacle::Failed { neighbour: gateway().address, interface: "eth0".into() });
    assert_eq!(changes(&mut table), std::slice::from_ref(&unresolved));
    let mut apply =
        |state, link_address| after(&mut table, Message::Neighbour(gateway(), Neighbour { state, link_address }));
    assert_eq!(apply(libc::NUD_REACHABLE, Some(GATEWAY)), [Ok(next_hop())]);
    for state in [libc::NUD_STALE, libc::NUD_DELAY, libc::NUD_PROBE, libc::NUD_PERMANENT, libc::NUD_NOARP] {
        assert_eq!(apply(state, Some(GATEWAY)), []);
    }
    let other = [2, 0, 0, 0, 0, 9];
    assert_eq!(apply(libc::NUD_STALE, Some(other)), [Ok(NextHop { link_destination: other, ..next_hop() })]);
    assert_eq!(apply(libc::NUD_FAILED, Some(other)), [failed]);
    assert_eq!(apply(libc::NUD_INCOMPLETE, None), std::slice::from_ref(&unresolved));
    // No single host has these link addresses.
    for address in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        assert_eq!(apply(libc::NUD_NOARP, Some(address)), []);
    }
    assert_eq!(apply(libc::NUD_REACHABLE, Some(GATEWAY)), [Ok(next_hop())]);
    assert_eq!(after(&mut table, Message::NeighbourGone(gateway())), [unresolved]);
}

#[test]
fn the_interface_decides() {
    let name = || "eth0".into();
    let kind = |kind: &str| Link { kind: Some(kind.into()), ..link() };
    let cases = [
        (link(), Ok(next_hop())),
        (kind("veth"), Ok(NextHop { is_redirected: true, ..next_hop() })),
        (kind("vlan"), Err(Obstacle::Kind { interface: name(), kind: "vlan".into() })),
        (kind("bond"), Err(Obstacle::Bond { interface: name() })),
        (Link { bond_permits_xdp: true, ..kind("bond") }, Ok(next_hop())),
        (Link { ethernet: false, ..link() }, Err(Obstacle::NotEthernet { interface: name() })),
        (Link { address: None, ..link() }, Err(Obstacle::NotEthernet { interface: name() })),
        (Link { up: false, running: false, ..link() }, Err(Obstacle::Down { interface: name() })),
        (Link { running: false, ..link() }, Err(Obstacle::NoCarrier { interface: name() })),
        (Link { ipv6_mtu: Some(1280), ..link() }, Ok(next_hop())),
        (Link { mtu: 100_000, ..link() }, Ok(NextHop { longest_packet: u16::MAX, ..next_hop() })),
    ];
    for (link, expected) in cases {
        let mut table = table(libc::NUD_REACHABLE);
        table.apply(Message::Link(ETHERNET, link.clone()), START);
        table.ask(1, pair(1));
        respond_to_all(&mut table, route());
        assert_eq!(changes(&mut table), [expected], "{link:?}");
    }
}

#[test]
fn the_route_decides() {
    let of_kind = |kind| Response::Route(Route { kind, ..route() });
    let cases = [
        (of_kind(libc::RTN_LOCAL), Err(Obstacle::ThisMachine)),
        (of_kind(libc::RTN_BROADCAST), Err(Obstacle::NotUnicast)),
        (of_kind(libc::RTN_ANYCAST), Err(Obstacle::NotUnicast)),
        (of_kind(libc::RTN_MULTICAST), Err(Obstacle::NotUnicast)),
        (of_kind(libc::RTN_UNREACHABLE), Err(Obstacle::Unreachable)),
        (of_kind(libc::RTN_PROHIBIT), Err(Obstacle::Prohibited)),
        (of_kind(libc::RTN_BLACKHOLE), Err(Obstacle::Blackhole)),
        (of_kind(libc::RTN_NAT), Err(Obstacle::Unread)),
        (Response::Refused(libc::ENETUNREACH), Err(Obstacle::NoRoute)),
        (Response::Refused(libc::EHOSTUNREACH), Err(Obstacle::Unreachable)),
        (Response::Refused(libc::EACCES), Err(Obstacle::Prohibited)),
        (Response::Refused(libc::EINVAL), Err(Obstacle::Blackhole)),
        (Response::Refused(libc::ENOMEM), Err(Obstacle::Refused(libc::ENOMEM))),
        (Response::Unread, Err(Obstacle::Unread)),
        (Response::Route(Route { encapsulated: true, ..route() }), Err(Obstacle::Encapsulated)),
        (Response::Route(Route { interface: 9, ..route() }), Err(Obstacle::NoInterface)),
        (Response::Route(Route { mtu: Some(1400), ..route() }), Ok(NextHop { longest_packet: 1400, ..next_hop() })),
        (Response::Route(Route { mtu: Some(9000), ..route() }), Ok(next_hop())),
    ];
    for (response, expected) in cases {
        let mut table = table(libc::NUD_REACHABLE);
        table.ask(1, pair(1));
        table.take_lookups(1);
        table.enter_response(pair(1), response, START);
        assert_eq!(changes(&mut table), [expected], "{response:?}");
    }
}

#[test]
fn a_pair_that_can_have_no_route_is_never_looked_up() {
    let mut table = table(libc::NUD_REACHABLE);
    for (source, destination, obstacle) in [
        ("192.0.2.1", "2001:db8::1", Obstacle::Addresses),
        ("2001:db8::1", "fe80::1", Obstacle::Addresses),
        ("fe80::1", "2001:db8::1", Obstacle::Addresses),
        ("2001:db8::1", "::ffff:192.0.2.1", Obstacle::Addresses),
        ("192.0.2.1", "169.254.1.1", Obstacle::Addresses),
        ("0.0.0.0", "192.0.2.1", Obstacle::Addresses),
        ("192.0.2.1", "224.0.0.1", Obstacle::NotUnicast),
    ] {
        let pair = Pair { source: ip(source), destination: ip(destination) };
        assert_eq!(table.ask(1, pair), Some(Err(obstacle)));
    }
    table.apply(Message::NextHopObject, START);
    table.tick(START + AUDIT);
    assert!(!table.has_work());
}

#[test]
fn a_change_causes_lookups_of_the_pairs_that_it_concerns() {
    let mut table = table(libc::NUD_REACHABLE);
    for number in 0..100 {
        table.ask(1, pair(number));
    }
    let v6 = Pair { source: ip("2001:db8::1"), destination: ip("2001:db8:1::1") };
    table.ask(1, v6);
    assert_eq!(table.take_lookups(1), [pair(0)]);
    table.enter_response(pair(0), Response::Unread, START);
    assert_eq!(respond_to_all(&mut table, route()), 100);
    let net = |text: &str| text.parse().unwrap();
    let address = || ip("192.0.2.7");
    let mtu = |mtu| Message::Link(ETHERNET, Link { mtu, ..link() });
    let rule = |v4| Rule { v4, selector: None };
    let cases = [
        (Message::Route(net("0.0.0.0/0")), 100),
        (Message::Route(net("203.0.113.16/28")), 16),
        (Message::Route(net("203.0.113.7/32")), 1),
        (Message::Route(net("198.51.100.0/24")), 0),
        (Message::Route(net("::/0")), 1),
        // Sources in the prefix may have become addresses of this machine.
        (Message::LocalRoute(net("192.0.2.0/24")), 100),
        (Message::LocalRoute(net("2001:db8:7::/64")), 1),
        (Message::Address(ETHERNET, address()), 100),
        // Only its lifetime has changed.
        (Message::Address(ETHERNET, address()), 0),
        (Message::AddressGone(ETHERNET, address()), 100),
        (Message::AddressGone(ETHERNET, address()), 0),
        (Message::Rule(rule(true)), 100),
        (Message::RuleGone(rule(true)), 100),
        (Message::Rule(rule(false)), 1),
        (Message::NextHopObject, 101),
        (Message::Link(ETHERNET, link()), 0),
        // The first response was no route, so that pair uses no interface.
        (mtu(1400), 100),
        (Message::Link(ETHERNET, Link { running: false, ..link() }), 101),
        (Message::Link(7, link()), 101),
        (Message::Link(7, Link { mtu: 1400, ..link() }), 0),
        (Message::LinkGone(7), 101),
        (Message::LinkGone(7), 0),
        (Message::Neighbour(gateway(), neighbour(libc::NUD_PROBE)), 0),
    ];
    for (message, expected) in cases {
        table.apply(message.clone(), START);
        let pairs = table.take_lookups(usize::MAX);
        for looked_up in &pairs {
            let response = if *looked_up == pair(0) { Response::Unread } else { Response::Route(route()) };
            table.enter_response(*looked_up, response, START);
        }
        assert_eq!(pairs.len(), expected, "{message:?}");
    }
}

#[test]
fn a_rule_that_depends_on_the_packet_is_an_obstacle() {
    let net = |text: &str| Some(text.parse().unwrap());
    let cases = [
        (None, None, true),
        (net("192.0.2.0/24"), None, true),
        (net("198.51.100.0/24"), None, false),
        (None, net("203.0.113.1/32"), true),
        (None, net("203.0.113.2/32"), false),
    ];
    for (source, destination, concerned) in cases {
        let mut table = table(libc::NUD_REACHABLE);
        table.ask(1, pair(1));
        respond_to_all(&mut table, route());
        changes(&mut table);
        let rule = Rule { v4: true, selector: Some(Selector { priority: 5, source, destination }) };
        table.apply(Message::Rule(rule), START);
        table.apply(Message::Rule(Rule { v4: false, ..rule }), START);
        respond_to_all(&mut table, route());
        let expected = if concerned { vec![Err(Obstacle::Rule { priority: 5 })] } else { Vec::new() };
        assert_eq!(changes(&mut table), expected, "{rule:?}");
        table.apply(Message::RuleGone(rule), START);
        respond_to_all(&mut table, route());
        let expected = if concerned { vec![Ok(next_hop())] } else { Vec::new() };
        assert_eq!(changes(&mut table), expected, "{rule:?}");
    }
}

#[test]
fn new_lists_replace_what_was_known() {
    let mut table = table(libc::NUD_REACHABLE);
    table.ask(1, pair(1));
    respond_to_all(&mut table, route());
    assert_eq!(changes(&mut table), [Ok(next_hop())]);
    table.replace(vec![Message::Link(ETHERNET, link())], START);
    // The resolution stays until the lookup.
    assert_eq!(table.ask(2, pair(1)), Some(Ok(next_hop())));
    assert_eq!(respond_to_all(&mut table, route()), 1);
    assert!(matches!(changes(&mut table)[..], [Err(Obstacle::Unresolved { .. }), Err(Obstacle::Unresolved { .. })]));
    table.replace(Vec::new(), START);
    respond_to_all(&mut table, route());
    assert_eq!(changes(&mut table)[0], Err(Obstacle::NoInterface));
}

/// The pairs that are asked for a packet at a time.
fn uses(table: &mut Table, now: Duration) -> Vec<Pair> {
    table.tick(now);
    let pair = |notice| match notice {
        Notice::Use { owner: 1, pair } => Some(pair),
        _ => None,
    };
    table.take_notices().into_iter().filter_map(pair).collect()
}

#[test]
fn pairs_of_a_stale_neighbour_are_asked_for_packets_in_turn() {
    let mut table = table(libc::NUD_STALE);
    for number in 0..10 {
        table.ask(1, pair(number));
    }
    respond_to_all(&mut table, route());
    table.take_notices();
    let short = Duration::from_millis(1);
    assert_eq!(uses(&mut table, START + USE_AFTER - short), []);
    let first: Vec<Pair> = (0..8).map(pair).collect();
    assert_eq!(uses(&mut table, START + USE_AFTER), first);
    assert_eq!(uses(&mut table, START + USE_AFTER), []);
    let second: Vec<Pair> = [8, 9, 0, 1, 2, 3, 4, 5].map(pair).into();
    assert_eq!(uses(&mut table, START + 2 * USE_AFTER), second);
    // The kernel has examined the neighbour.
    assert_eq!(after(&mut table, Message::Neighbour(gateway(), neighbour(libc::NUD_REACHABLE))), []);
    assert_eq!(uses(&mut table, START + 3 * USE_AFTER), []);
    let stale = Message::Neighbour(gateway(), neighbour(libc::NUD_STALE));
    table.apply(stale, START + 10 * USE_AFTER);
    assert_eq!(uses(&mut table, START + 11 * USE_AFTER - short), []);
    assert_eq!(uses(&mut table, START + 11 * USE_AFTER).len(), 8);
    (0..10).for_each(|number| table.release(1, pair(number)));
    assert_eq!(uses(&mut table, START + 12 * USE_AFTER), []);
}

#[test]
fn a_stale_neighbour_whose_pairs_come_and_go_is_used_no_more_often() {
    let mut table = table(libc::NUD_STALE);
    for _ in 0..10 {
        table.ask(1, pair(1));
        respond_to_all(&mut table, route());
        table.release(1, pair(1));
    }
    let soon = START + USE_AFTER / 2;
    table.ask(1, pair(1));
    table.take_lookups(1);
    table.enter_response(pair(1), Response::Route(route()), soon);
    table.take_notices();
    assert_eq!(uses(&mut table, START + USE_AFTER), []);
    assert_eq!(uses(&mut table, soon + USE_AFTER), [pair(1)]);
    assert_eq!(uses(&mut table, soon + USE_AFTER), []);
    assert_eq!(uses(&mut table, soon + 2 * USE_AFTER), [pair(1)]);
    // A pair without next hop needs no neighbour.
    table.apply(Message::Link(ETHERNET, Link { up: false, ..link() }), START);
    respond_to_all(&mut table, route());
    table.take_notices();
    assert_eq!(uses(&mut table, soon + 3 * USE_AFTER), []);
}

#[test]
fn a_pair_that_goes_another_way_does_not_use_the_old_neighbour() {
    let mut table = table(libc::NUD_STALE);
    table.ask(1, pair(1));
    respond_to_all(&mut table, route());
    let other = Hop { interface: ETHERNET, address: ip("192.0.2.3") };
    table.apply(Message::Neighbour(other, neighbour(libc::NUD_REACHABLE)), START);
    table.apply(Message::NextHopObject, START);
    respond_to_all(&mut table, Route { gateway: Some(other.address), ..route() });
    table.take_notices();
    assert_eq!(uses(&mut table, START + USE_AFTER), []);
    assert_eq!(after(&mut table, Message::NeighbourGone(gateway())), []);
    assert!(matches!(after(&mut table, Message::NeighbourGone(other))[..], [Err(Obstacle::Unresolved { .. })]));
}

#[test]
fn a_lookup_with_an_early_response_is_not_repeated() {
    let mut table = table(libc::NUD_REACHABLE);
    table.ask(1, pair(1));
    table.enter_response(pair(1), Response::Route(route()), START);
    assert_eq!(table.take_lookups(usize::MAX), []);
    assert!(!table.has_work());
}

#[test]
fn the_ipv6_mtu_of_the_interface_limits_ipv6_packets() {
    let mut table = Table::default();
    let gateway = Hop { interface: ETHERNET, address: ip("fe80::1") };
    let link = Link { ipv6_mtu: Some(1280), ..link() };
    table.replace(vec![Message::Link(ETHERNET, link), Message::Neighbour(gateway, neighbour(libc::NUD_STALE))], START);
    table.ask(1, Pair { source: ip("2001:db8::1"), destination: ip("2001:db8:1::1") });
    respond_to_all(&mut table, Route { gateway: Some(gateway.address), ..route() });
    assert_eq!(changes(&mut table), [Ok(NextHop { longest_packet: 1280, ..next_hop() })]);
    table.apply(Message::Ipv6Mtu(ETHERNET, 1400), START);
    respond_to_all(&mut table, Route { gateway: Some(gateway.address), ..route() });
    assert_eq!(changes(&mut table), [Ok(NextHop { longest_packet: 1400, ..next_hop() })]);
    table.apply(Message::Ipv6Mtu(9, 1400), START);
    assert!(!table.has_work());
}

/// The first owner may have no packets for the pair.
#[test]
fn every_owner_of_a_pair_is_asked_for_a_packet() {
    let mut table = table(libc::NUD_STALE);
    (1..=3).for_each(|owner| drop(table.ask(owner, pair(1))));
    table.ask(2, pair(2));
    respond_to_all(&mut table, route());
    table.take_notices();
    table.tick(START + USE_AFTER);
    let request = |owner, number| Notice::Use { owner, pair: pair(number) };
    assert_eq!(table.take_notices(), [request(1, 1), request(2, 1), request(3, 1), request(2, 2)]);
}

#[test]
fn fewer_pairs_than_uses_are_asked_for_once_each() {
    let mut table = table(libc::NUD_STALE);
    (1..=3).for_each(|number| drop(table.ask(1, pair(number))));
    respond_to_all(&mut table, route());
    table.take_notices();
    for turn in 1..4 {
        let mut pairs = uses(&mut table, START + turn * USE_AFTER);
        pairs.sort_unstable();
        assert_eq!(pairs, [1, 2, 3].map(pair));
    }
}

#[test]
fn the_audit_looks_all_pairs_up_in_its_time() {
    let mut table = table(libc::NUD_REACHABLE);
    (0..200).for_each(|number| drop(table.ask(1, pair(number))));
    respond_to_all(&mut table, route());
    // The time without pairs does not count.
    table.tick(START);
    assert!(!table.has_work());
    let mut times: BTreeMap<Pair, usize> = BTreeMap::new();
    let second = Duration::from_secs(1);
    for step in 1..=2 * AUDIT.as_secs() {
        table.tick(START + second * u32::try_from(step).unwrap());
        let pairs = table.take_lookups(usize::MAX);
        assert!(pairs.len() <= 4, "{}", pairs.len());
        pairs.into_iter().for_each(|pair| *times.entry(pair).or_default() += 1);
    }
    assert_eq!(times.len(), 200);
    assert!(times.values().all(|times| (1..=3).contains(times)), "{times:?}");
}

/// 119 pairs are not a multiple of the steps of an audit.
#[test]
fn the_audit_looks_each_pair_up_again_within_its_time() {
    let mut table = table(libc::NUD_REACHABLE);
    (0..119).for_each(|number| drop(table.ask(1, pair(number))));
    respond_to_all(&mut table, route());
    let step = Duration::from_millis(1003);
    let mut last: BTreeMap<Pair, Duration> = (0..119).map(|number| (pair(number), START)).collect();
    for number in 0..300 {
        let now = START + step * number;
        table.tick(now);
        for pair in table.take_lookups(usize::MAX) {
            table.enter_response(pair, Response::Route(route()), now);
            last.insert(pair, now);
        }
        let longest = last.values().map(|then| now - *then).max().unwrap();
        assert!(longest <= AUDIT + step, "{longest:?}");
    }
}

/// A message: its type, the fixed structure and attributes.
fn written(kind: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = fixed.to_vec();
    body.extend(nest(attributes));
    let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend([kind.to_ne_bytes(), [0; 2]].concat());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn nest(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in attributes {
        let attribute = DefaultNla::new(*kind, value.to_vec());
        let start = bytes.len();
        bytes.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut bytes[start..]);
    }
    bytes
}

fn read(bytes: &[u8]) -> Option<Message> {
    message::split(bytes).find_map(message::message)
}

fn interface(family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut fixed = vec![family, 0, 1, 0, 2, 0, 0, 0];
    fixed.extend((libc::IFF_UP | libc::IFF_RUNNING).to_ne_bytes());
    fixed.extend([0; 4]);
    written(libc::RTM_NEWLINK, &fixed, attributes)
}

/// The bonding driver permits XDP in four modes, and in two of them not with the hash policy 5 (vlan+srcmac).
#[test]
fn the_modes_of_a_bond_that_permit_xdp_are_known() {
    for (mode, policy, permitted) in [
        (0, 5, true),
        (1, 5, true),
        (2, 0, true),
        (2, 5, false),
        (3, 0, false),
        (4, 1, true),
        (4, 5, false),
        (5, 0, false),
        (6, 0, false),
    ] {
        let data = nest(&[(1, &[mode]), (14, &[policy])]);
        let info = nest(&[(libc::IFLA_INFO_KIND, b"bond\0"), (libc::IFLA_INFO_DATA, &data)]);
        let bytes = interface(0, &[(libc::IFLA_IFNAME, b"bond0\0"), (libc::IFLA_LINKINFO, &info)]);
        let Some(Message::Link(2, link)) = read(&bytes) else { panic!() };
        assert_eq!((&*link.name, link.kind.as_deref(), link.bond_permits_xdp), ("bond0", Some("bond"), permitted));
    }
}

#[test]
fn an_interface_is_read_with_its_ipv6_mtu() {
    let values: Vec<u8> = [0_u32, 64, 1480, 1].iter().flat_map(|value| value.to_ne_bytes()).collect();
    let inet6 = nest(&[(2, &values)]);
    let families = nest(&[(2, &[0; 8]), (10, &inet6)]);
    let attributes: [(u16, &[u8]); 5] = [
        (libc::IFLA_IFNAME, b"eth0\0"),
        (libc::IFLA_ADDRESS, &OWN),
        (libc::IFLA_MTU, &1500_u32.to_ne_bytes()),
        // A new attribute.
        (200, &[1, 2, 3]),
        (libc::IFLA_AF_SPEC, &families),
    ];
    let expected = Link { ipv6_mtu: Some(1480), ..link() };
    assert_eq!(read(&interface(0, &attributes)), Some(Message::Link(ETHERNET, expected)));
    // IPv6 reports what a router has changed with a message of its own.
    let changed = interface(10, &[(libc::IFLA_IFNAME, b"eth0\0"), (libc::IFLA_PROTINFO, &inet6)]);
    assert_eq!(read(&changed), Some(Message::Ipv6Mtu(ETHERNET, 1480)));
    // A bridge reports its ports with the same message.
    assert_eq!(read(&interface(7, &attributes)), None);
}

#[test]
fn entries_of_a_bridge_and_proxy_entries_are_no_neighbours() {
    let entry = |family: u8, flags: u8| {
        let fixed = [family, 0, 0, 0, 2, 0, 0, 0, 2, 0, flags, 0];
        read(&written(libc::RTM_NEWNEIGH, &fixed, &[(1, &[192, 0, 2, 2]), (2, &GATEWAY)]))
    };
    assert_eq!(entry(2, 0), Some(Message::Neighbour(gateway(), neighbour(libc::NUD_REACHABLE))));
    assert_eq!(entry(7, 0), None);
    assert_eq!(entry(2, libc::NTF_PROXY), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2048) })]

    #[test]
    fn no_bytes_cause_a_panic(
        kind in prop_oneof![2..4_u16, 16..40_u16, 104..106_u16],
        mut body in prop::collection::vec(any::<u8>(), 0..200),
        family in prop_oneof![Just(0_u8), Just(2), Just(10)],
    ) {
        if let Some(first) = body.first_mut() {
            *first = family;
        }
        let raw = Raw { kind, sequence: 0, interrupted: false, payload: &body };
        let _ = (message::message(raw), message::response(raw), message::status(raw));
        for raw in message::split(&body) {
            let _ = message::message(raw);
        }
    }

    /// Whatever happens in whatever order, resolutions are those of a table that is built anew.
    #[test]
    fn a_table_that_follows_changes_equals_a_new_one(steps in prop::collection::vec((0..8_u8, 0..4_u8, 0..3_u16), 0..60)) {
        let mut table = table(libc::NUD_REACHABLE);
        let mut kernel = Kernel { link: Some(link()), neighbours: BTreeMap::from([(2, libc::NUD_REACHABLE)]), gateway: 2 };
        let mut known: BTreeMap<(u16, Pair), Resolution> = BTreeMap::new();
        let mut asked: BTreeMap<(u16, Pair), usize> = BTreeMap::new();
        for (step, number, owner) in steps {
            let now = START;
            let target = pair(number);
            match step {
                0 => {
                    if let Some(resolution) = table.ask(owner, target) {
                        known.insert((owner, target), resolution);
                    }
                    *asked.entry((owner, target)).or_default() += 1;
                }
                1 => {
                    table.release(owner, target);
                    if let Some(count) = asked.get_mut(&(owner, target)) {
                        *count -= 1;
                        if *count == 0 {
                            asked.remove(&(owner, target));
                            known.remove(&(owner, target));
                        }
                    }
                }
                2 => {
                    let state = [libc::NUD_REACHABLE, libc::NUD_STALE, libc::NUD_FAILED, libc::NUD_INCOMPLETE][usize::from(number)];
                    kernel.neighbours.insert(2 + u8::from(owner == 1), state);
                    let hop = Hop { interface: ETHERNET, address: IpAddr::from([192, 0, 2, 2 + u8::from(owner == 1)]) };
                    table.apply(Message::Neighbour(hop, neighbour(state)), now);
                }
                3 => {
                    kernel.neighbours.remove(&(2 + u8::from(owner == 1)));
                    let hop = Hop { interface: ETHERNET, address: IpAddr::from([192, 0, 2, 2 + u8::from(owner == 1)]) };
                    table.apply(Message::NeighbourGone(hop), now);
                }
                4 => {
                    kernel.gateway = 2 + number % 2;
                    table.apply(Message::Route("0.0.0.0/0".parse().unwrap()), now);
                }
                5 => {
                    let link = Link { mtu: 1400 + u32::from(number), running: owner != 0, ..link() };
                    kernel.link = Some(link.clone());
                    table.apply(Message::Link(ETHERNET, link), now);
                }
                6 => {
                    kernel.link = None;
                    // The kernel removes the neighbours as well.
                    kernel.neighbours.clear();
                    table.apply(Message::LinkGone(ETHERNET), now);
                }
                _ => {
                    // Some of the work that waits.
                    table.review_some(1);
                    for pair in table.take_lookups(1) {
                        table.enter_response(pair, kernel.response(), now);
                    }
                }
            }
            for notice in table.take_notices() {
                if let Notice::Changed { owner, pair, resolution } = notice {
                    prop_assert!(asked.contains_key(&(owner, pair)));
                    known.insert((owner, pair), resolution);
                }
            }
        }
        table.review_some(usize::MAX);
        for pair in table.take_lookups(usize::MAX) {
            table.enter_response(pair, kernel.response(), START);
        }
        for notice in table.take_notices() {
            if let Notice::Changed { owner, pair, resolution } = notice {
                known.insert((owner, pair), resolution);
            }
        }
        prop_assert!(!table.has_work());
        prop_assert_eq!(known.len(), asked.len());
        for ((_, pair), resolution) in known {
            let mut new = Table::default();
            new.replace(kernel.lists(), START);
            new.ask(0, pair);
            new.take_lookups(1);
            new.enter_response(pair, kernel.response(), START);
            prop_assert_eq!(new.resolution(0, &pair), Some(resolution));
        }
    }
}

/// What the kernel would report.
struct Kernel {
    link: Option<Link>,
    /// The states of 192.0.2.n.
    neighbours: BTreeMap<u8, u16>,
    gateway: u8,
}

impl Kernel {
    fn response(&self) -> Response {
        Response::Route(Route { gateway: Some(IpAddr::from([192, 0, 2, self.gateway])), ..route() })
    }

    fn lists(&self) -> Vec<Message> {
        let hop = |number: u8| Hop { interface: ETHERNET, address: IpAddr::from([192, 0, 2, number]) };
        let link = self.link.iter().map(|link| Message::Link(ETHERNET, link.clone()));
        let neighbours =
            self.neighbours.iter().map(|(number, state)| Message::Neighbour(hop(*number), neighbour(*state)));
        link.chain(neighbours).collect()
    }
}
