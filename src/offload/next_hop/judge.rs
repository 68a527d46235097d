//! The next hop that follows from a route, the interfaces and the neighbours.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{NextHop, Obstacle, Pair, Resolution};

/// The states of a neighbour to which the kernel sends at once (linux/neighbour.h).
const USABLE: u16 =
    libc::NUD_REACHABLE | libc::NUD_STALE | libc::NUD_DELAY | libc::NUD_PROBE | libc::NUD_PERMANENT | libc::NUD_NOARP;

/// A neighbour: a gateway, or a destination on the link. The order is that of the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Hop {
    pub(super) interface: u32,
    pub(super) address: IpAddr,
}

/// What the kernel knows about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// One of `NUD_*`.
    pub(super) state: u16,
    /// `None`: unknown, or not of six bytes.
    pub(super) link_address: Option<[u8; 6]>,
}

/// What matters of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Usable([u8; 6]),
    Unresolved,
    Failed,
}

impl Neighbour {
    pub(super) fn reach(self) -> Reach {
        match self.link_address {
            // The lowest bit of the first byte marks groups.
            Some(address @ [first, ..]) if self.state & USABLE != 0 && address != [0; 6] && first & 1 == 0 => {
                Reach::Usable(address)
            }
            _ if self.state & libc::NUD_FAILED != 0 => Reach::Failed,
            _ => Reach::Unresolved,
        }
    }
}

/// What the kernel reports about an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::offload) struct Link {
    pub(in crate::offload) name: Arc<str>,
    /// `None`: a driver of hardware or of a hypervisor.
    pub(in crate::offload) kind: Option<Arc<str>>,
    pub(in crate::offload) bond_permits_xdp: bool,
    pub(in crate::offload) loopback: bool,
    pub(in crate::offload) ethernet: bool,
    pub(in crate::offload) up: bool,
    pub(in crate::offload) running: bool,
    /// The index of the bond, bridge or similar of which the interface is a member.
    pub(in crate::offload) master: Option<u32>,
    pub(in crate::offload) address: Option<[u8; 6]>,
    pub(in crate::offload) mtu: u32,
    pub(in crate::offload) ipv6_mtu: Option<u32>,
}

/// The route that the kernel chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// One of `RTN_*`.
    pub(super) kind: u8,
    pub(super) interface: u32,
    pub(super) gateway: Option<IpAddr>,
    /// Of the route, or of the path to the destination.
    pub(super) mtu: Option<u32>,
    pub(super) encapsulated: bool,
}

/// The kernel's response to the request for a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    Route(Route),
    /// An error number.
    Refused(i32),
    Unread,
}

/// A policy rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) v4: bool,
    /// What the rule selects by properties that are not those of a pair.
    pub(super) selector: Option<Selector>,
}

/// The pairs for which a rule depends on the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) priority: u32,
    pub(super) source: Option<IpNet>,
    pub(super) destination: Option<IpNet>,
}

impl Rule {
    fn concerns(&self, pair: &Pair) -> Option<u32> {
        let Selector { priority, source, destination } = self.selector?;
        let contains = |net: Option<IpNet>, ip: IpAddr| net.is_none_or(|net| net.contains(&ip));
        let concerned = self.v4 == pair.destination.is_ipv4()
            && contains(source, pair.source)
            && contains(destination, pair.destination);
        concerned.then_some(priority)
    }
}

/// Checks whether a pair can have a next hop at all.
pub(super) fn check(pair: &Pair) -> Result<(), Obstacle> {
    let usable = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_link_local(),
        IpAddr::V6(v6) => {
            !v6.is_unspecified() && !v6.is_multicast() && !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none()
        }
    };
    if pair.destination.is_multicast() {
        return Err(Obstacle::NotUnicast);
    }
    let one_version = pair.source.is_ipv4() == pair.destination.is_ipv4();
    if one_version && usable(pair.source) && usable(pair.destination) { Ok(()) } else { Err(Obstacle::Addresses) }
}

/// Returns whether the response to a lookup says that its destination is an address of this machine.
pub(super) fn is_local(response: &Response) -> bool {
    matches!(response, Response::Route(Route { kind: libc::RTN_LOCAL, .. }))
}

/// Returns the neighbour that a route leads to.
pub(super) fn hop(pair: &Pair, response: &Response) -> Option<Hop> {
    let Response::Route(route) = response else { return None };
    (route.kind == libc::RTN_UNICAST)
        .then(|| Hop { interface: route.interface, address: route.gateway.unwrap_or(pair.destination) })
}

/// Returns the next hop of a pair.
pub(super) fn resolution(
    pair: &Pair,
    response: &Response,
    rules: &[Rule],
    links: &HashMap<u32, Link>,
    neighbours: &HashMap<Hop, Neighbour>,
) -> Resolution {
    check(pair)?;
    if let Some(priority) = rules.iter().find_map(|rule| rule.concerns(pair)) {
        return Err(Obstacle::Rule { priority });
    }
    let route = match response {
        Response::Route(route) => route,
        Response::Refused(libc::ENETUNREACH) => return Err(Obstacle::NoRoute),
        Response::Refused(libc::EHOSTUNREACH) => return Err(Obstacle::Unreachable),
        Response::Refused(libc::EACCES) => return Err(Obstacle::Prohibited),
        Response::Refused(libc::EINVAL) => return Err(Obstacle::Blackhole),
        Response::Refused(errno) => return Err(Obstacle::Refused(*errno)),
        Response::Unread => return Err(Obstacle::Unread),
    };
    match route.kind {
        libc::RTN_UNICAST => {}
        libc::RTN_LOCAL => return Err(Obstacle::ThisMachine),
        libc::RTN_BROADCAST | libc::RTN_MULTICAST | libc::RTN_ANYCAST => return Err(Obstacle::NotUnicast),
        libc::RTN_UNREACHABLE => return Err(Obstacle::Unreachable),
        libc::RTN_PROHIBIT => return Err(Obstacle::Prohibited),
        libc::RTN_BLACKHOLE => return Err(Obstacle::Blackhole),
        _ => return Err(Obstacle::Unread),
    }
    if route.encapsulated {
        return Err(Obstacle::Encapsulated);
    }
    let link = links.get(&route.interface).ok_or(Obstacle::NoInterface)?;
    let link_source = usable(link)?;
    let hop = Hop { interface: route.interface, address: route.gateway.unwrap_or(pair.destination) };
    let reach = neighbours.get(&hop).map_or(Reach::Unresolved, |neighbour| neighbour.reach());
    let interface = || Arc::clone(&link.name);
    let link_destination = match reach {
        Reach::Usable(address) => address,
        Reach::Unresolved => {
            return Err(Obstacle::Unresolved { neighbour: hop.address, interface: interface() });
        }
        Reach::Failed => return Err(Obstacle::Failed { neighbour: hop.address, interface: interface() }),
    };
    let ipv6_mtu = link.ipv6_mtu.filter(|_| pair.destination.is_ipv6());
    let longest = [route.mtu, ipv6_mtu].into_iter().flatten().fold(link.mtu, u32::min);
    let longest_packet = u16::try_from(longest).unwrap_or(u16::MAX);
    let is_redirected = link.kind.as_deref() == Some("veth");
    Ok(NextHop { interface: route.interface, is_redirected, link_destination, link_source, longest_packet })
}

/// Returns the link address of an interface through which the program can send.
fn usable(link: &Link) -> Result<[u8; 6], Obstacle> {
    let interface = || Arc::clone(&link.name);
    match link.kind.as_deref() {
        None | Some("veth") => {}
        Some("bond") if link.bond_permits_xdp => {}
        Some("bond") => return Err(Obstacle::Bond { interface: interface() }),
        // The program sends no VLAN tags, and the driver of another kind sends packets that the program does not see.
        Some(kind) => return Err(Obstacle::Kind { interface: interface(), kind: kind.into() }),
    }
    let address =
        link.address.filter(|_| link.ethernet).ok_or_else(|| Obstacle::NotEthernet { interface: interface() })?;
    if !link.up {
        return Err(Obstacle::Down { interface: interface() });
    }
    if !link.running {
        return Err(Obstacle::NoCarrier { interface: interface() });
    }
    Ok(address)
}
