//! Selection of the relay addresses and their advertised addresses, with reasons.
//!
//! [`choose`] is the pure selection; [`detect`] reads the addresses of this machine.

mod reachability;
#[cfg(test)]
mod tests;
mod warnings;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reachability::{Reachability, reachability};

use crate::net::interfaces::{self, AddressState, InterfaceAddress, Interfaces};
use crate::setting::{RELAY_ADDRESSES, RELAY_EXTERNAL};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    const BOTH: [Family; 2] = [Family::V4, Family::V6];

    fn of(ip: IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// An address that relay sockets are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayAddress {
    /// The address of this machine.
    pub bind: IpAddr,
    /// The address that clients receive and peers see: the same one, or the outside address of a 1:1 NAT.
    pub advertised: IpAddr,
    /// The reason for the choice, for the log.
    pub reason: String,
    /// Whether any client may get it. Otherwise it is only for clients that reach the server at this address.
    pub for_all: bool,
}

impl RelayAddress {
    /// Whether two values are the same for clients and peers. The reasons may differ.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.bind, self.advertised, self.for_all) == (other.bind, other.advertised, other.for_all)
    }
}

/// The relay addresses of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The configured addresses in their order, or the detected ones: at most one per family for all clients, IPv4
    /// first, and then those for clients that reach the server there. Empty while the server waits for an address.
    pub addresses: Vec<RelayAddress>,
    /// The configured addresses that the machine does not have at present, with their advertised addresses.
    pub missing: Vec<(IpAddr, IpAddr)>,
    /// The addresses that the machine has and cannot use at present, for example because the interface is down.
    pub unusable: Vec<IpAddr>,
    /// Warnings for the operator; they do not prevent the start.
    pub warnings: Vec<String>,
}

/// Why the relay addresses are unusable. Each message is one line with advice.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// A configured address is unspecified, multicast or link-local IPv6, so it cannot be advertised.
    #[error("{RELAY_ADDRESSES}: {0} cannot be a relay address; use an address of an interface, or \"auto\"")]
    Unusable(IpAddr),
    /// The list of addresses is empty.
    #[error("{RELAY_ADDRESSES}: the list is empty; use at least one address of this machine, or \"auto\"")]
    Empty,
    /// `external` maps an address to one of the other family.
    #[error("{RELAY_EXTERNAL}: {0} cannot be mapped to {1}; map IPv4 to IPv4 and IPv6 to IPv6")]
    MixedFamilies(IpAddr, IpAddr),
    /// Two relay addresses have the same advertised address.
    #[error(
        "relay addresses {0} and {1} are both advertised as {2}; map them to different addresses in {RELAY_EXTERNAL}, \
         or remove one from {RELAY_ADDRESSES}"
    )]
    SharedAddress(IpAddr, IpAddr, IpAddr),
    /// The interfaces could not be read.
    #[error("cannot read the addresses of the network interfaces: {0}")]
    Interfaces(#[from] io::Error),
}

impl Choice {
    /// Returns the addresses for all clients.
    pub fn for_all(&self) -> impl Iterator<Item = &RelayAddress> {
        self.addresses.iter().filter(|address| address.for_all)
    }
}

/// Selects the relay addresses of this machine. `configured` is `None` for "auto"; `external` maps addresses of this
/// machine to their outside addresses. `current` has the addresses in use, which precede equally good ones.
///
/// # Errors
///
/// As for [`choose`], and if it cannot be determined whether the machine has an address.
pub(super) fn detect(
    configured: Option<&[IpAddr]>,
    external: &[(IpAddr, IpAddr)],
    interfaces: &Interfaces,
    current: &[IpAddr],
) -> Result<Choice, AddressError> {
    let mut addresses = interfaces.addresses.clone();
    // A whole network can be routed to a machine, as 127.0.0.0/8 is. No interface then lists its addresses.
    for ip in configured.unwrap_or_default().iter().chain(external.iter().map(|(inside, _)| inside)) {
        let ip = ip.to_canonical();
        let known = addresses.iter().any(|known| known.address == ip);
        if !known && interfaces::is_local(ip)? {
            let name = "a local route".to_owned();
            let state = AddressState::Stable;
            addresses.push(InterfaceAddress { name, address: ip, loopback: false, up: true, state });
        }
    }
    let interfaces = Interfaces { addresses, beyond_loopback: interfaces.beyond_loopback, ..Interfaces::default() };
    choose(configured, external, &interfaces, current, &|family| interfaces::source_for(internet_address(family)))
}

/// Selects the relay addresses from the addresses of a machine. `preferred` returns the source address that the kernel
/// would use towards the internet.
///
/// Without configured addresses, it selects one per family: an address that `external` maps, otherwise a global one,
/// otherwise a private one with a warning; a loopback address only if the machine has no other interface; never a
/// link-local one. Further addresses of the same reach are for the clients that reach the server there: a machine can be
/// in two networks without a route between them.
/// Among addresses of the same reach, a stable one is selected before a temporary one, and a deprecated one last. The
/// kernel's source address is often a temporary one, so a stable address of its interface comes next.
///
/// # Errors
///
/// If a configured address can never be a relay address, or a mapping is unusable.
pub(super) fn choose(
    configured: Option<&[IpAddr]>,
    external: &[(IpAddr, IpAddr)],
    interfaces: &Interfaces,
    current: &[IpAddr],
    preferred: &dyn Fn(Family) -> Option<IpAddr>,
) -> Result<Choice, AddressError> {
    if let Some(&(inside, outside)) = external
        .iter()
        .find(|(inside, outside)| Family::of(inside.to_canonical()) != Family::of(outside.to_canonical()))
    {
        return Err(AddressError::MixedFamilies(inside, outside));
    }
    let preferred = Family::BOTH.map(preferred);
    let mut candidates: Vec<Candidate<'_>> =
        interfaces.addresses.iter().map(|interface| Candidate::new(interface, external, preferred)).collect();
    mark_preferred_interfaces(&mut candidates);
    for candidate in &mut candidates {
        candidate.current = current.contains(&candidate.ip);
    }
    let candidates = without_duplicates(candidates);
    let detected = configured.is_none();
    let (chosen, further, missing) = match configured {
        Some(configured) => {
            let (chosen, missing) = configured_among(configured, &candidates)?;
            (chosen, Vec::new(), missing)
        }
        None => {
            let (chosen, further) = detect_among(&candidates, interfaces.beyond_loopback);
            (chosen, further, Vec::new())
        }
    };
    let mut warnings = warnings::of_mappings(external, &candidates);
    warnings.extend(warnings::of_missing(&missing, chosen.is_empty(), &candidates));
    warnings.extend(warnings::of_limited_reach(&chosen, detected));
    let for_all = chosen.iter().map(|candidate| candidate.relay_address(detected, true));
    let for_own = further.iter().map(|candidate| candidate.relay_address(detected, false));
    let mut addresses: Vec<RelayAddress> = for_all.collect();
    for further in for_own {
        // No further address may make the choice ambiguous.
        if addresses.iter().all(|known| known.advertised != further.advertised) {
            addresses.push(further);
        }
    }
    let missing: Vec<(IpAddr, IpAddr)> =
        missing.into_iter().map(|ip| (ip, mapped(external, ip).unwrap_or(ip))).collect();
    let mut advertised = HashMap::new();
    let pairs = addresses.iter().map(|relay| (relay.bind, relay.advertised));
    for (bind, outside) in pairs.chain(missing.iter().copied()) {
        if let Some(other) = advertised.insert(outside, bind) {
            return Err(AddressError::SharedAddress(other, bind, outside));
        }
    }
    let unusable = candidates.iter().filter(|candidate| !candidate.is_usable()).map(|candidate| candidate.ip).collect();
    Ok(Choice { addresses, missing, unusable, warnings })
}

/// Returns the addresses at which clients reach a listener, for the URIs that are printed at start.
///
/// For a specific address, this is the address that `external` maps it to, or the address itself. For a wildcard, these
/// are the advertised relay addresses of its families, IPv4 first; none if these families have no relay address.
pub(super) fn advertised_hosts(listener: IpAddr, external: &[(IpAddr, IpAddr)], choice: &Choice) -> Vec<IpAddr> {
    let ip = listener.to_canonical();
    let mut hosts: Vec<IpAddr> = if ip.is_unspecified() {
        let advertised = choice.for_all().map(|address| address.advertised);
        advertised.filter(|advertised| ip.is_ipv6() || advertised.is_ipv4()).collect()
    } else {
        vec![mapped(external, ip).unwrap_or(ip)]
    };
    hosts.sort_by_key(IpAddr::is_ipv6);
    hosts
}

/// An address of the machine, with the criteria for its selection.
struct Candidate<'a> {
    ip: IpAddr,
    interface: &'a InterfaceAddress,
    /// It is in use already.
    current: bool,
    reachability: Reachability,
    external: Option<IpAddr>,
    /// It is the kernel's source address for the internet.
    preferred: bool,
    /// Its interface has the kernel's source address of its family.
    on_preferred_interface: bool,
}

impl<'a> Candidate<'a> {
    fn new(interface: &'a InterfaceAddress, external: &[(IpAddr, IpAddr)], preferred: [Option<IpAddr>; 2]) -> Self {
        let ip = interface.address.to_canonical();
        Self {
            ip,
            interface,
            current: false,
            reachability: reachability(ip),
            external: mapped(external, ip),
            preferred: preferred.contains(&Some(ip)),
            on_preferred_interface: false,
        }
    }

    fn is_routable(&self) -> bool {
        matches!(self.reachability, Reachability::Global | Reachability::Private(_))
    }

    /// Whether a socket can be bound to it.
    fn is_usable(&self) -> bool {
        self.interface.up && self.interface.state.is_usable()
    }

    /// Returns why it is not usable.
    fn obstacle(&self) -> Option<&'static str> {
        match self.interface.state {
            _ if !self.interface.up => Some("down"),
            AddressState::Tentative => Some("being checked for duplicates"),
            AddressState::Failed => Some("a duplicate of another machine's"),
            AddressState::Stable | AddressState::Temporary | AddressState::Deprecated => None,
        }
    }

    /// Returns the rank for the selection; the lowest is the best.
    fn rank(&self) -> impl Ord + use<> {
        let private = matches!(self.reachability, Reachability::Private(_));
        // Among loopback addresses, 127.0.0.1 is preferred.
        let unusual = self.reachability == Reachability::Loopback && self.ip != IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (preferred, on_preferred_interface) = (self.preferred, self.on_preferred_interface);
        let place = (!preferred, !on_preferred_interface, self.interface.loopback, unusual);
        (self.external.is_none(), private, self.interface.state, place, !self.current)
    }

    fn relay_address(&self, detected: bool, for_all: bool) -> RelayAddress {
        let mut reason = format!("{} address of {}", self.kind(), self.interface.name);
        if self.external.is_some() {
            reason += &format!(", mapped by {RELAY_EXTERNAL}");
        }
        if !detected {
            reason.push_str(&format!(", configured in {RELAY_ADDRESSES}"));
        } else if self.reachability == Reachability::Loopback {
            reason.push_str(", because the machine has no other interface");
        } else if self.preferred {
            reason.push_str(", the kernel's source address for the internet");
        } else if self.on_preferred_interface && self.interface.state == AddressState::Stable {
            reason.push_str(", stable, on the kernel's interface for the internet");
        }
        match self.interface.state {
            AddressState::Temporary => reason.push_str(", temporary, because there is no stable one"),
            AddressState::Deprecated => reason.push_str(", deprecated, because there is no better one"),
            AddressState::Stable | AddressState::Tentative | AddressState::Failed => {}
        }
        if !for_all {
            reason.push_str(", for clients that reach the server at it");
        }
        RelayAddress { bind: self.ip, advertised: self.external.unwrap_or(self.ip), reason, for_all }
    }

    fn kind(&self) -> &'static str {
        match self.reachability {
            Reachability::Global => "global",
            Reachability::Private(kind) => kind,
            Reachability::LinkLocal => "link-local",
            Reachability::Loopback => "loopback",
        }
    }
}

fn mark_preferred_interfaces(candidates: &mut [Candidate<'_>]) {
    let preferred = candidates.iter().filter(|candidate| candidate.preferred);
    let preferred: Vec<(Family, &str)> =
        preferred.map(|candidate| (Family::of(candidate.ip), candidate.interface.name.as_str())).collect();
    for candidate in candidates {
        let place = (Family::of(candidate.ip), candidate.interface.name.as_str());
        candidate.on_preferred_interface = preferred.contains(&place);
    }
}

/// Keeps the best candidate of each address. Several interfaces can have the same address, for example those of PPP
/// connections.
fn without_duplicates(candidates: Vec<Candidate<'_>>) -> Vec<Candidate<'_>> {
    let rank = |candidate: &Candidate<'_>| (!candidate.is_usable(), candidate.rank());
    let mut unique: Vec<Candidate<'_>> = Vec::new();
    for candidate in candidates {
        match unique.iter_mut().find(|known| known.ip == candidate.ip) {
            Some(known) if rank(&candidate) < rank(known) => *known = candidate,
            Some(_) => {}
            None => unique.push(candidate),
        }
    }
    unique
}

/// The maximum number of further addresses, because each has tables of its ports.
const MAX_FURTHER: usize = 16;

/// Returns the best address of each family, and further ones of the same reach.
fn detect_among<'c, 'a>(
    candidates: &'c [Candidate<'a>],
    beyond_loopback: bool,
) -> (Vec<&'c Candidate<'a>>, Vec<&'c Candidate<'a>>) {
    let usable = |candidate: &&Candidate<'_>| candidate.is_usable();
    let best_of_each_family = |admitted: fn(&Candidate<'_>) -> bool| -> Vec<_> {
        let best = |family| {
            let of_family = candidates.iter().filter(|candidate| Family::of(candidate.ip) == family);
            of_family.filter(usable).filter(|candidate| admitted(candidate)).min_by_key(|best| best.rank())
        };
        Family::BOTH.into_iter().filter_map(best).collect()
    };
    let chosen = best_of_each_family(|candidate| candidate.is_routable());
    if chosen.is_empty() && !beyond_loopback {
        return (best_of_each_family(|candidate| candidate.reachability == Reachability::Loopback), Vec::new());
    }
    let further = candidates.iter().filter(usable).filter(|candidate| {
        let like = |best: &&Candidate<'_>| {
            let kind = |candidate: &Candidate<'_>| {
                let global = candidate.reachability == Reachability::Global;
                (Family::of(candidate.ip), global, candidate.external.is_some(), candidate.interface.state)
            };
            best.ip != candidate.ip && kind(best) == kind(candidate)
        };
        candidate.is_routable() && !candidate.interface.loopback && chosen.iter().any(like)
    });
    let further = further.take(MAX_FURTHER).collect();
    (chosen, further)
}

type Configured<'c, 'a> = (Vec<&'c Candidate<'a>>, Vec<IpAddr>);

/// Returns the configured addresses that the machine has, and those that it does not have.
fn configured_among<'c, 'a>(
    configured: &[IpAddr],
    candidates: &'c [Candidate<'a>],
) -> Result<Configured<'c, 'a>, AddressError> {
    if configured.is_empty() {
        return Err(AddressError::Empty);
    }
    let mut chosen: Vec<&Candidate<'_>> = Vec::new();
    let mut missing: Vec<IpAddr> = Vec::new();
    for ip in configured.iter().map(IpAddr::to_canonical) {
        let link_local = ip.is_ipv6() && reachability(ip) == Reachability::LinkLocal;
        if ip.is_unspecified() || ip.is_multicast() || link_local {
            return Err(AddressError::Unusable(ip));
        }
        match candidates.iter().find(|candidate| candidate.ip == ip && candidate.is_usable()) {
            None if missing.contains(&ip) => {}
            None => missing.push(ip),
            Some(_) if chosen.iter().any(|known| known.ip == ip) => {}
            Some(candidate) => chosen.push(candidate),
        }
    }
    Ok((chosen, missing))
}

/// Lists the addresses with their interfaces, for example "10.0.0.5 (eth0), ::1 (lo), 10.0.0.6 (eth1, down)".
fn available(candidates: &[Candidate<'_>]) -> String {
    let listed = candidates.iter().filter(|candidate| candidate.reachability != Reachability::LinkLocal);
    let place = |candidate: &Candidate<'_>| match candidate.obstacle() {
        Some(obstacle) => format!("{} ({}, {obstacle})", candidate.ip, candidate.interface.name),
        None => format!("{} ({})", candidate.ip, candidate.interface.name),
    };
    let names: Vec<_> = listed.map(place).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn enumerate(addresses: &[IpAddr]) -> String {
    let names: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    names.join(" and ")
}

fn mapped(external: &[(IpAddr, IpAddr)], ip: IpAddr) -> Option<IpAddr> {
    let found = external.iter().find(|(inside, _)| inside.to_canonical() == ip);
    found.map(|(_, outside)| outside.to_canonical())
}

/// Returns the address of a root name server, to look up the route to the internet. Nothing is sent to it.
fn internet_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 41, 0, 4).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30).into(),
    }
}
