//! Messages of the kernel's routing socket (rtnetlink): requests, and the parts of responses and notifications that
//! the next hop needs. Attributes that it does not need are not read, so that new ones do no harm.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Emitable as _, NetlinkBuffer, NlasIterator, parse_i32, parse_u32};

use super::Pair;
use super::judge::{Hop, Link, Neighbour, Response, Route, Rule, Selector};

// Constants that the crate `libc` lacks, from linux/{rtnetlink,fib_rules,if_link,ipv6}.h.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTA_IP_PROTO: u16 = 27;
const RTAX_MTU: u16 = 2;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FIB_RULE_INVERT: u32 = 2;
const IFLA_INET6_CONF: u16 = 2;
const DEVCONF_MTU6: usize = 2;
const IFLA_BOND_MODE: u16 = 1;
const IFLA_BOND_XMIT_HASH_POLICY: u16 = 14;
const BOND_MODE_BROADCAST: u8 = 3;
const BOND_MODE_8023AD: u8 = 4;
const BOND_XMIT_POLICY_VLAN_SRCMAC: u8 = 5;

const UDP: u8 = 17;

/// A change, or an element of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// An interface exists.
    Link(u32, Link),
    /// An interface does not exist any more.
    LinkGone(u32),
    /// The MTU of IPv6 of an interface, which a router can lower (RFC 4861 §4.6.4).
    Ipv6Mtu(u32, u32),
    /// A neighbour and its state.
    Neighbour(Hop, Neighbour),
    /// The kernel does not have the neighbour any more.
    NeighbourGone(Hop),
    /// An interface has an address.
    Address(u32, IpAddr),
    /// An interface does not have the address any more.
    AddressGone(u32, IpAddr),
    /// A route to this prefix was added, replaced or removed.
    Route(IpNet),
    /// The same with a local route: other addresses are those of this machine.
    LocalRoute(IpNet),
    /// A policy rule exists.
    Rule(Rule),
    /// A policy rule does not exist any more.
    RuleGone(Rule),
    /// A next-hop object, which routes of both families may use, has changed.
    NextHopObject,
}

/// What the kernel lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Links,
    Neighbours,
    Addresses,
    Rules,
}

/// A message of which only the header was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    /// The list changed while the kernel wrote it.
    pub(super) interrupted: bool,
    pub(super) payload: &'a [u8],
}

/// Splits received bytes into messages.
pub(super) fn split(mut bytes: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(bytes).ok()?;
        let length = usize::try_from(buffer.length()).ok()?;
        let raw = Raw {
            kind: buffer.message_type(),
            sequence: buffer.sequence_number(),
            interrupted: libc::c_int::from(buffer.flags()) & libc::NLM_F_DUMP_INTR != 0,
            payload: buffer.payload(),
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(raw)
    })
}

/// Returns the request for a list.
pub(super) fn list_request(list: List, sequence: u32) -> Vec<u8> {
    // The structures `ifinfomsg`, `ndmsg`, `ifaddrmsg` and `fib_rule_hdr`: zeros mean all families and interfaces.
    let (kind, length) = match list {
        List::Links => (libc::RTM_GETLINK, 16),
        List::Neighbours => (libc::RTM_GETNEIGH, 12),
        List::Addresses => (libc::RTM_GETADDR, 8),
        List::Rules => (libc::RTM_GETRULE, 12),
    };
    request(kind, libc::NLM_F_DUMP, sequence, &vec![0; length])
}

/// Returns the request for the route of a packet that this process sends.
pub(super) fn route_request(pair: &Pair, sequence: u32) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (destination, source) = (octets(pair.destination), octets(pair.source));
    let bits = |octets: &[u8]| u8::try_from(octets.len() * 8).unwrap_or_default();
    let family = if pair.destination.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // `struct rtmsg`.
    let mut body = vec![u8::try_from(family).unwrap_or_default(), bits(&destination), bits(&source)];
    body.resize(12, 0);
    for (kind, value) in [(libc::RTA_DST, destination), (libc::RTA_SRC, source), (RTA_IP_PROTO, vec![UDP])] {
        let attribute = DefaultNla::new(kind, value);
        let start = body.len();
        body.resize(start + attribute.buffer_len(), 0);
        attribute.emit(body.get_mut(start..).unwrap_or_default());
    }
    request(libc::RTM_GETROUTE, 0, sequence, &body)
}

/// Returns a request: `struct nlmsghdr` and the body. The length of the body is a multiple of four.
fn request(kind: u16, flags: libc::c_int, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or_default();
    let flags = u16::try_from(libc::NLM_F_REQUEST | flags).unwrap_or_default();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// Reads a notification or an element of a list. Returns `None` for what does not matter here.
pub(super) fn message(raw: Raw<'_>) -> Option<Message> {
    let body = raw.payload;
    match raw.kind {
        libc::RTM_NEWLINK => {
            let link = || link(body).map(|(index, link)| Message::Link(index, link));
            ipv6_interface(body).or_else(link)
        }
        libc::RTM_DELLINK => link(body).map(|(index, _)| Message::LinkGone(index)),
        libc::RTM_NEWNEIGH => neighbour(body).map(|(hop, neighbour)| Message::Neighbour(hop, neighbour)),
        libc::RTM_DELNEIGH => neighbour(body).map(|(hop, _)| Message::NeighbourGone(hop)),
        libc::RTM_NEWADDR => address(body).map(|(index, ip)| Message::Address(index, ip)),
        libc::RTM_DELADDR => address(body).map(|(index, ip)| Message::AddressGone(index, ip)),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => changed_route(body),
        libc::RTM_NEWRULE => rule(body).map(Message::Rule),
        libc::RTM_DELRULE => rule(body).map(Message::RuleGone),
        RTM_NEWNEXTHOP | RTM_DELNEXTHOP => Some(Message::NextHopObject),
        _ => None,
    }
}

/// Reads the response to a [`route_request`].
pub(super) fn response(raw: Raw<'_>) -> Response {
    let error = || parse_i32(raw.payload.get(..4)?).ok();
    match i32::from(raw.kind) {
        libc::NLMSG_ERROR => error().map_or(Response::Unread, |errno| Response::Refused(errno.saturating_neg())),
        _ if raw.kind == libc::RTM_NEWROUTE => route(raw.payload).map_or(Response::Unread, Response::Route),
        _ => Response::Unread,
    }
}

/// Returns the error of an `NLMSG_ERROR` or the status of an `NLMSG_DONE`; 0 means success.
pub(super) fn status(raw: Raw<'_>) -> i32 {
    raw.payload.get(..4).and_then(|bytes| parse_i32(bytes).ok()).unwrap_or_default()
}

/// Returns the attributes after a structure of `length` bytes, up to the first malformed one.
fn attributes(body: &[u8], length: usize) -> impl Iterator<Item = (u16, &[u8])> {
    nested(body.get(length..).unwrap_or_default())
}

fn nested(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    // The value of an `NlaBuffer` borrows from it, so the bytes are taken by position.
    let mut rest = bytes;
    NlasIterator::new(bytes).map_while(move |attribute| {
        let attribute = attribute.ok()?;
        let length = usize::from(attribute.length());
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((attribute.kind(), value))
    })
}

fn number(value: &[u8]) -> Option<u32> {
    parse_u32(value.get(..4)?).ok()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|v6| Ipv6Addr::from(v6).into())
}

fn text(value: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into()
}

fn is_ip(family: u8) -> bool {
    [libc::AF_INET, libc::AF_INET6].contains(&family.into())
}

/// Reads `struct ifinfomsg`. Bridges and IPv6 send messages of their own families about an interface: these are not
/// read.
fn link(body: &[u8]) -> Option<(u32, Link)> {
    let &[family, _, type_low, type_high, i0, i1, i2, i3, f0, f1, f2, f3] = body.first_chunk()?;
    if libc::c_int::from(family) != libc::AF_UNSPEC {
        return None;
    }
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let mut link = Link {
        loopback: flags & libc::IFF_LOOPBACK.cast_unsigned() != 0,
        ethernet: u16::from_ne_bytes([type_low, type_high]) == libc::ARPHRD_ETHER,
        up: flags & libc::IFF_UP.cast_unsigned() != 0,
        running: flags & libc::IFF_RUNNING.cast_unsigned() != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(body, 16) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.address = value.try_into().ok(),
            libc::IFLA_MTU => link.mtu = number(value)?,
            libc::IFLA_MASTER => link.master = number(value).filter(|master| *master > 0),
            libc::IFLA_LINKINFO => info(value, &mut link),
            libc::IFLA_AF_SPEC => link.ipv6_mtu = ipv6_mtu(value),
            _ => {}
        }
    }
    Some((u32::from_ne_bytes([i0, i1, i2, i3]), link))
}

/// Reads the kind of an interface, and whether the bonding driver permits XDP in its mode (Linux 5.15:
/// `bond_xdp_check`).
fn info(value: &[u8], link: &mut Link) {
    let (mut mode, mut policy) = (0, 0);
    for (kind, value) in nested(value) {
        match kind {
            libc::IFLA_INFO_KIND => link.kind = Some(text(value)),
            libc::IFLA_INFO_DATA => {
                for (kind, value) in nested(value) {
                    match (kind, value) {
                        (IFLA_BOND_MODE, [value, ..]) => mode = *value,
                        (IFLA_BOND_XMIT_HASH_POLICY, [value, ..]) => policy = *value,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.bond_permits_xdp =
        mode <= BOND_MODE_8023AD && mode != BOND_MODE_BROADCAST && (mode < 2 || policy != BOND_XMIT_POLICY_VLAN_SRCMAC);
}

/// Returns the MTU of IPv6 from `IFLA_AF_SPEC`.
fn ipv6_mtu(value: &[u8]) -> Option<u32> {
    let (_, parameters) = nested(value).find(|(kind, _)| i32::from(*kind) == libc::AF_INET6)?;
    configured_mtu(parameters)
}

/// Reads the message about an interface that IPv6 sends.
fn ipv6_interface(body: &[u8]) -> Option<Message> {
    let &[family, _, _, _, i0, i1, i2, i3] = body.first_chunk()?;
    let (_, parameters) = attributes(body, 16).find(|(kind, _)| *kind == libc::IFLA_PROTINFO)?;
    let mtu = configured_mtu(parameters).filter(|_| libc::c_int::from(family) == libc::AF_INET6)?;
    Some(Message::Ipv6Mtu(u32::from_ne_bytes([i0, i1, i2, i3]), mtu))
}

fn configured_mtu(parameters: &[u8]) -> Option<u32> {
    let (_, values) = nested(parameters).find(|(kind, _)| *kind == IFLA_INET6_CONF)?;
    number(values.get(4 * DEVCONF_MTU6..)?).filter(|mtu| *mtu > 0)
}

/// Reads `struct ndmsg`.
fn neighbour(body: &[u8]) -> Option<(Hop, Neighbour)> {
    let &[family, _, _, _, i0, i1, i2, i3, s0, s1, flags, _] = body.first_chunk()?;
    // Bridges report their forwarding tables with the same messages.
    if !is_ip(family) || flags & libc::NTF_PROXY != 0 {
        return None;
    }
    let (mut address, mut link_address) = (None, None);
    for (kind, value) in attributes(body, 12) {
        match kind {
            libc::NDA_DST => address = ip(value),
            libc::NDA_LLADDR => link_address = value.try_into().ok(),
            _ => {}
        }
    }
    let hop = Hop { interface: u32::from_ne_bytes([i0, i1, i2, i3]), address: address? };
    Some((hop, Neighbour { state: u16::from_ne_bytes([s0, s1]), link_address }))
}

/// Reads `struct ifaddrmsg`.
fn address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let &[family, _, _, _, i0, i1, i2, i3] = body.first_chunk()?;
    let (mut local, mut remote) = (None, None);
    for (kind, value) in attributes(body, 8) {
        match kind {
            libc::IFA_LOCAL => local = ip(value),
            // The other end of a point-to-point interface if there is `IFA_LOCAL`.
            libc::IFA_ADDRESS => remote = ip(value),
            _ => {}
        }
    }
    Some((u32::from_ne_bytes([i0, i1, i2, i3]), local.or(remote)?)).filter(|_| is_ip(family))
}

/// Reads the destination and the type in `struct rtmsg`.
fn changed_route(body: &[u8]) -> Option<Message> {
    let &[family, length, _, _, _, _, _, kind] = body.first_chunk()?;
    if !is_ip(family) {
        return None;
    }
    let destination = attributes(body, 12).find(|(kind, _)| *kind == libc::RTA_DST);
    let any: IpAddr = if libc::c_int::from(family) == libc::AF_INET {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let prefix = IpNet::new(destination.map_or(Some(any), |(_, value)| ip(value))?, length).ok()?;
    Some(if kind == libc::RTN_LOCAL { Message::LocalRoute(prefix) } else { Message::Route(prefix) })
}

/// Reads a route in `struct rtmsg`.
fn route(body: &[u8]) -> Option<Route> {
    let &[_, _, _, _, _, _, _, kind] = body.first_chunk()?;
    let mut route = Route { kind, interface: 0, gateway: None, mtu: None, encapsulated: false };
    for (kind, value) in attributes(body, 12) {
        match kind {
            libc::RTA_OIF => route.interface = number(value)?,
            libc::RTA_GATEWAY => route.gateway = Some(ip(value)?),
            // `struct rtvia`: the family in two bytes, then the address.
            libc::RTA_VIA => route.gateway = Some(ip(value.get(2..)?)?),
            libc::RTA_METRICS => {
                let mtu = nested(value).find(|(kind, _)| *kind == RTAX_MTU);
                route.mtu = mtu.and_then(|(_, value)| number(value)).filter(|mtu| *mtu > 0);
            }
            libc::RTA_ENCAP_TYPE | libc::RTA_ENCAP | libc::RTA_NEWDST => route.encapsulated = true,
            // The kernel has not chosen one of several ways.
            libc::RTA_MULTIPATH => return None,
            _ => {}
        }
    }
    Some(route)
}

/// Reads `struct fib_rule_hdr`.
fn rule(body: &[u8]) -> Option<Rule> {
    let &[family, destination_length, source_length, tos, _, _, _, _, f0, f1, f2, f3] = body.first_chunk()?;
    if !is_ip(family) {
        return None;
    }
    let (mut source, mut destination, mut priority) = (None, None, 0);
    // All selectors since `FRA_SPORT_RANGE` depend on the packet: ports, DSCP, flow label.
    let mut depends_on_packet = tos != 0;
    let mut applies = true;
    for (kind, value) in attributes(body, 12) {
        match kind {
            FRA_DST => destination = IpNet::new(ip(value)?, destination_length).ok(),
            FRA_SRC => source = IpNet::new(ip(value)?, source_length).ok(),
            FRA_PRIORITY => priority = number(value)?,
            FRA_SPORT_RANGE.. => depends_on_packet = true,
            // Packets of this machine have the input interface `lo`.
            FRA_IIFNAME => applies &= &*text(value) == "lo",
            FRA_IP_PROTO => applies &= value.first() == Some(&UDP),
            _ => {}
        }
    }
    let inverted = u32::from_ne_bytes([f0, f1, f2, f3]) & FIB_RULE_INVERT != 0;
    if inverted {
        (source, destination, applies) = (None, None, true);
    }
    let selector = (depends_on_packet && applies).then_some(Selector { priority, source, destination });
    Some(Rule { v4: libc::c_int::from(family) == libc::AF_INET, selector })
}
