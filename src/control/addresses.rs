//! Which addresses relayed transport addresses are made of, what clients are told about them, and why.
//!
//! [`choose`] decides, from what it is told about the machine; [`detect`] asks the machine.

mod reachability;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reachability::{Reachability, reachability};

use crate::net::interfaces::{self, InterfaceAddress};

/// An address family, for the one question that is asked per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
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

    /// An outside address for an example in a message, from the documentation ranges.
    fn example(self) -> &'static str {
        match self {
            Family::V4 => "203.0.113.9",
            Family::V6 => "2001:db8::9",
        }
    }
}

/// An address that relay sockets are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayAddress {
    /// The address of this machine.
    pub bind: IpAddr,
    /// The address that clients are told and peers see: the same one, or the outside one of a 1:1 NAT.
    pub advertised: IpAddr,
    /// Why this address, in a few words for the log.
    pub reason: String,
}

/// The relay addresses of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The given addresses in their order, or the detected ones: at most one per family, IPv4 first. Never empty.
    pub addresses: Vec<RelayAddress>,
    /// What the operator has to know about them, one sentence or two each; they do not stop the start.
    pub warnings: Vec<String>,
}

/// Why the relay addresses cannot be used. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Given addresses that this machine does not have.
    #[error("relay.addresses: {missing} not among the addresses of this machine, {available}; {advice}")]
    NotLocal {
        /// Which, with the verb: "192.0.2.7 is", "192.0.2.7 and 192.0.2.8 are".
        missing: String,
        /// Those that could be given, with their interfaces.
        available: String,
        /// What to write for a server behind 1:1 NAT.
        advice: String,
    },
    /// A given address is a wildcard, a multicast or a link-local IPv6 address: no client could be told to use it.
    #[error("relay.addresses: {0} cannot be a relay address; give an address of one interface, or \"auto\"")]
    Unusable(IpAddr),
    /// An empty list was given.
    #[error("relay.addresses: the list is empty; give at least one address of this machine, or \"auto\"")]
    Empty,
    /// `external` maps an address to one of the other family.
    #[error("relay.external: {0} cannot stand for {1}; map IPv4 to IPv4 and IPv6 to IPv6")]
    MixedFamilies(IpAddr, IpAddr),
    /// No interface that is up has an address that could be used.
    #[error(
        "no relay address found, because no network interface that is up has an address other than link-local ones"
    )]
    NoneFound,
    /// Two relay addresses would be told to clients as one.
    #[error(
        "relay addresses {0} and {1} are both advertised as {2}, and peers could not tell them apart; map them to \
         different addresses in relay.external, or leave one out of relay.addresses"
    )]
    SharedAddress(IpAddr, IpAddr, IpAddr),
    /// The interfaces could not be read.
    #[error("cannot read the addresses of the network interfaces: {0}")]
    Interfaces(#[from] io::Error),
}

/// Chooses the relay addresses of this machine. `given` is `None` for "auto"; `external` maps addresses of this machine
/// to those that the world sees.
///
/// # Errors
///
/// As [`choose`], and where the interfaces cannot be read.
pub fn detect(given: Option<&[IpAddr]>, external: &[(IpAddr, IpAddr)]) -> Result<Choice, AddressError> {
    let mut addresses = interfaces::addresses()?;
    // Whole networks can be routed to a machine (127.0.0.0/8 is) without an interface that lists their addresses.
    for ip in given.unwrap_or_default().iter().chain(external.iter().map(|(inside, _)| inside)) {
        let ip = ip.to_canonical();
        if addresses.iter().all(|known| known.address != ip) && interfaces::is_local(ip) {
            let name = "a local route".to_owned();
            addresses.push(InterfaceAddress { name, address: ip, loopback: false, up: true });
        }
    }
    choose(given, external, &addresses, &|family| interfaces::source_for(far_away(family)))
}

/// Chooses the relay addresses from the addresses that a machine has. `preferred` tells the address that the kernel
/// would use towards the internet.
///
/// Detection takes for each family an address that `external` maps, else a global one, else one of another range with
/// a warning; loopback addresses only on a machine that has nothing else; link-local ones never.
///
/// # Errors
///
/// Where a given address or a mapping cannot work, or nothing is found.
pub fn choose(
    given: Option<&[IpAddr]>,
    external: &[(IpAddr, IpAddr)],
    interfaces: &[InterfaceAddress],
    preferred: &dyn Fn(Family) -> Option<IpAddr>,
) -> Result<Choice, AddressError> {
    if let Some(&(inside, outside)) = external
        .iter()
        .find(|(inside, outside)| Family::of(inside.to_canonical()) != Family::of(outside.to_canonical()))
    {
        return Err(AddressError::MixedFamilies(inside, outside));
    }
    let preferred = Family::BOTH.map(preferred);
    let candidates: Vec<Candidate<'_>> =
        interfaces.iter().map(|interface| Candidate::new(interface, external, preferred)).collect();
    let chosen = match given {
        Some(given) => take_given(given, &candidates)?,
        None => detect_among(&candidates)?,
    };
    let mut warnings = unused_mappings(external, &candidates);
    warnings.extend(limited_reach(&chosen, given.is_none()));
    let addresses: Vec<RelayAddress> =
        chosen.iter().map(|candidate| candidate.relay_address(given.is_none())).collect();
    let mut advertised = HashMap::new();
    for RelayAddress { bind, advertised: outside, .. } in &addresses {
        if let Some(other) = advertised.insert(outside, bind) {
            return Err(AddressError::SharedAddress(*other, *bind, *outside));
        }
    }
    Ok(Choice { addresses, warnings })
}

/// Where clients reach `listener`, as `host:port` for the urls that are printed at start: a specific address or what
/// `external` makes of it; for a wildcard the advertised relay addresses that it takes packets for, IPv4 first.
///
/// It is empty where a wildcard listens for a family that has no relay address.
pub fn advertised_hosts(listener: SocketAddr, external: &[(IpAddr, IpAddr)], choice: &Choice) -> Vec<String> {
    let ip = listener.ip().to_canonical();
    let mut hosts: Vec<IpAddr> = if ip.is_unspecified() {
        let advertised = choice.addresses.iter().map(|address| address.advertised);
        advertised.filter(|advertised| ip.is_ipv6() || advertised.is_ipv4()).collect()
    } else {
        vec![mapped(external, ip).unwrap_or(ip)]
    };
    hosts.sort_by_key(IpAddr::is_ipv6);
    hosts.iter().map(|&host| SocketAddr::new(host, listener.port()).to_string()).collect()
}

/// An address of the machine, and what speaks for and against it.
struct Candidate<'a> {
    ip: IpAddr,
    interface: &'a InterfaceAddress,
    reachability: Reachability,
    external: Option<IpAddr>,
    preferred: bool,
}

impl<'a> Candidate<'a> {
    fn new(interface: &'a InterfaceAddress, external: &[(IpAddr, IpAddr)], preferred: [Option<IpAddr>; 2]) -> Self {
        let ip = interface.address.to_canonical();
        Self {
            ip,
            interface,
            reachability: reachability(ip),
            external: mapped(external, ip),
            preferred: preferred.contains(&Some(ip)),
        }
    }

    fn is_routable(&self) -> bool {
        matches!(self.reachability, Reachability::Global | Reachability::Private(_))
    }

    /// The smallest is the best.
    fn rank(&self) -> impl Ord + use<> {
        let private = matches!(self.reachability, Reachability::Private(_));
        // Among loopback addresses the one that everybody knows.
        let unusual = self.reachability == Reachability::Loopback && self.ip != IpAddr::V4(Ipv4Addr::LOCALHOST);
        (self.external.is_none(), private, !self.preferred, self.interface.loopback, unusual)
    }

    fn relay_address(&self, detected: bool) -> RelayAddress {
        let mut reason = format!("{} address of {}", self.kind(), self.interface.name);
        if self.external.is_some() {
            reason.push_str(", mapped by relay.external");
        }
        if !detected {
            reason.push_str(", given in relay.addresses");
        } else if self.reachability == Reachability::Loopback {
            reason.push_str(", because the machine has no other");
        } else if self.preferred {
            reason.push_str(", the kernel's source towards the internet");
        }
        RelayAddress { bind: self.ip, advertised: self.external.unwrap_or(self.ip), reason }
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

fn detect_among<'c, 'a>(candidates: &'c [Candidate<'a>]) -> Result<Vec<&'c Candidate<'a>>, AddressError> {
    let best_of_each_family = |usable: fn(&Candidate<'_>) -> bool| -> Vec<_> {
        let best = |family| {
            let of_family = candidates.iter().filter(|candidate| Family::of(candidate.ip) == family);
            of_family.filter(|candidate| candidate.interface.up && usable(candidate)).min_by_key(|best| best.rank())
        };
        Family::BOTH.into_iter().filter_map(best).collect()
    };
    let mut chosen = best_of_each_family(|candidate| candidate.is_routable());
    if chosen.is_empty() {
        chosen = best_of_each_family(|candidate| candidate.reachability == Reachability::Loopback);
    }
    if chosen.is_empty() { Err(AddressError::NoneFound) } else { Ok(chosen) }
}

fn take_given<'c, 'a>(
    given: &[IpAddr],
    candidates: &'c [Candidate<'a>],
) -> Result<Vec<&'c Candidate<'a>>, AddressError> {
    let mut chosen: Vec<&Candidate<'_>> = Vec::new();
    let mut missing: Vec<IpAddr> = Vec::new();
    for ip in given.iter().map(IpAddr::to_canonical) {
        let link_local = ip.is_ipv6() && reachability(ip) == Reachability::LinkLocal;
        if ip.is_unspecified() || ip.is_multicast() || link_local {
            return Err(AddressError::Unusable(ip));
        }
        match candidates.iter().find(|candidate| candidate.ip == ip) {
            None => missing.push(ip),
            Some(_) if chosen.iter().any(|known| known.ip == ip) => {}
            Some(candidate) => chosen.push(candidate),
        }
    }
    match missing.first() {
        Some(&outside) => Err(not_local(&missing, outside, candidates)),
        None if chosen.is_empty() => Err(AddressError::Empty),
        None => Ok(chosen),
    }
}

fn not_local(missing: &[IpAddr], outside: IpAddr, candidates: &[Candidate<'_>]) -> AddressError {
    let same_family = candidates.iter().filter(|candidate| Family::of(candidate.ip) == Family::of(outside));
    let inside = same_family.filter(|candidate| candidate.is_routable()).min_by_key(|candidate| candidate.rank());
    let example = inside.map_or(String::new(), |inside| {
        format!(": addresses = [\"{0}\"] and external = {{ \"{0}\" = \"{outside}\" }}", inside.ip)
    });
    AddressError::NotLocal {
        missing: format!("{} {}", enumerate(missing), if missing.len() == 1 { "is" } else { "are" }),
        available: available(candidates),
        advice: format!(
            "behind 1:1 NAT the inside address goes into `addresses`, the outside one into `external`{example}"
        ),
    }
}

/// A mapping of an address that the machine does not have does nothing, and is most likely a slip.
fn unused_mappings(external: &[(IpAddr, IpAddr)], candidates: &[Candidate<'_>]) -> Vec<String> {
    let insides = external.iter().map(|(inside, _)| inside.to_canonical());
    let unused = insides.filter(|inside| candidates.iter().all(|candidate| candidate.ip != *inside));
    let warning = |inside| {
        let available = available(candidates);
        format!("relay.external maps {inside}, which is not among the addresses of this machine, {available}")
    };
    unused.map(warning).collect()
}

/// Warns of addresses that some clients cannot reach, except where the operator has mapped them.
fn limited_reach(chosen: &[&Candidate<'_>], detected: bool) -> Vec<String> {
    let (mut warnings, mut loopback) = (Vec::new(), Vec::new());
    for candidate in chosen.iter().filter(|candidate| candidate.external.is_none()) {
        let Candidate { ip, interface: InterfaceAddress { name, .. }, .. } = candidate;
        match candidate.reachability {
            Reachability::Global => {}
            Reachability::Loopback => loopback.push(*ip),
            Reachability::LinkLocal => {
                warnings
                    .push(format!("relay address {ip} of {name} is link-local: only its own network link reaches it"));
            }
            Reachability::Private(kind) => {
                let outside = Family::of(*ip).example();
                let mut warning = format!(
                    "relay address {ip} of {name} is a {kind} address: browsers elsewhere cannot reach it. Behind 1:1 NAT \
                     set in [relay] external = {{ \"{ip}\" = \"{outside}\" }} with the outside address; otherwise set \
                     relay.addresses to a public address of this machine"
                );
                let other = chosen
                    .iter()
                    .find(|other| detected && (other.external.is_some() || other.reachability == Reachability::Global));
                if let Some(other) = other {
                    warning.push_str(&format!(", or do without this one: addresses = [\"{}\"]", other.ip));
                }
                warnings.push(warning);
            }
        }
    }
    if !loopback.is_empty() {
        let them = enumerate(&loopback);
        warnings.push(if detected {
            format!("only programs on this machine can use the relay, because it has only loopback addresses: {them}")
        } else {
            format!("only programs on this machine can use the relay at its loopback address {them}")
        });
    }
    warnings
}

/// The addresses that could be used, as "10.0.0.5 (eth0), ::1 (lo)".
fn available(candidates: &[Candidate<'_>]) -> String {
    let usable = candidates.iter().filter(|candidate| candidate.reachability != Reachability::LinkLocal);
    let names: Vec<_> = usable.map(|usable| format!("{} ({})", usable.ip, usable.interface.name)).collect();
    if names.is_empty() { "which has none".to_owned() } else { names.join(", ") }
}

fn enumerate(addresses: &[IpAddr]) -> String {
    let names: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    names.join(" and ")
}

fn mapped(external: &[(IpAddr, IpAddr)], ip: IpAddr) -> Option<IpAddr> {
    let found = external.iter().find(|(inside, _)| inside.to_canonical() == ip);
    found.map(|(_, outside)| outside.to_canonical())
}

/// A root name server, which only a route to the internet leads to. Nothing is sent to it.
fn far_away(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 41, 0, 4).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30).into(),
    }
}
