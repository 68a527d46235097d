//! The interfaces to which the program is attached with `interfaces = "auto"`. Needs no capability.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use thiserror::Error;

use super::next_hop::{self, Link};

/// An interface, and whether it is selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The name of the interface.
    pub name: String,
    /// The index of the interface.
    pub index: u32,
    /// Whether it is selected, or why not.
    pub verdict: Result<(), NotChosen>,
}

/// Why an interface is not selected. The text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotChosen {
    /// It is a member of another interface.
    #[error("it is a member of {of}, to which its packets belong")]
    Member {
        /// The name of the bond, bridge or similar.
        of: String,
    },
    /// It drops redirected packets unless its other end, which is not visible here, has a program or NAPI.
    #[error(
        "it is a veth interface, which drops relayed packets unless its other end has an XDP program or GRO \
         (`ethtool -K … gro on`): if it has one of them, name the interface in `offload.interfaces`"
    )]
    Veth,
    /// The mode or the hash policy of the bond does not permit XDP.
    #[error(
        "it is a bond in a mode without XDP: balance-rr, active-backup, balance-xor and 802.3ad have it, unless \
         xmit_hash_policy is vlan+srcmac"
    )]
    Bond,
    /// It is virtual.
    #[error("it is of the kind {kind}, which has no driver in which the program could run or send")]
    Kind {
        /// Its kind as `ip -details link` shows it.
        kind: String,
    },
    /// It is not Ethernet.
    #[error("it is not Ethernet")]
    NotEthernet,
    /// It is down.
    #[error("it is down")]
    Down,
    /// It has no address to which clients or peers could send.
    #[error("it has no IP address other than link-local ones")]
    NoAddress,
}

impl NotChosen {
    /// Returns whether the interface may be selected later, without a change of the configuration.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Down | Self::NoAddress)
    }
}

/// Returns all interfaces of the network namespace of this thread except loopback, in the order of their indices.
///
/// # Errors
/// Those of netlink sockets, which a sandbox may deny.
pub fn automatic() -> io::Result<Vec<Candidate>> {
    let interfaces = next_hop::interfaces()?;
    let names: BTreeMap<u32, &str> = interfaces.iter().map(|(index, (link, _))| (*index, &*link.name)).collect();
    let others = interfaces.iter().filter(|(_, (link, _))| !link.loopback);
    let candidate = |(index, (link, addresses)): (&u32, &(Link, Vec<IpAddr>))| Candidate {
        name: link.name.to_string(),
        index: *index,
        verdict: verdict(link, addresses, |master| {
            names.get(&master).map_or("another interface", |name| *name).to_owned()
        }),
    };
    Ok(others.map(candidate).collect())
}

/// Decides about an interface with these addresses. `name` returns the name of another one.
fn verdict(link: &Link, addresses: &[IpAddr], name: impl Fn(u32) -> String) -> Result<(), NotChosen> {
    if let Some(master) = link.master {
        return Err(NotChosen::Member { of: name(master) });
    }
    match link.kind.as_deref() {
        None => {}
        Some("bond") if link.bond_permits_xdp => {}
        Some("bond") => return Err(NotChosen::Bond),
        Some("veth") => return Err(NotChosen::Veth),
        Some(kind) => return Err(NotChosen::Kind { kind: kind.to_owned() }),
    }
    if !link.ethernet {
        return Err(NotChosen::NotEthernet);
    }
    if !link.up {
        return Err(NotChosen::Down);
    }
    if addresses.iter().all(is_link_local) { Err(NotChosen::NoAddress) } else { Ok(()) }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An interface with a driver that is selected.
    fn driver() -> Link {
        Link { name: "eth0".into(), ethernet: true, up: true, ..Link::default() }
    }

    fn of_kind(kind: &str) -> Link {
        Link { kind: Some(kind.into()), ..driver() }
    }

    fn judge(link: &Link, addresses: &[&str]) -> Result<(), NotChosen> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        verdict(link, &addresses, |index| format!("interface {index}"))
    }

    #[test]
    fn drivers_and_bonds_that_permit_xdp_are_selected() {
        for addresses in [&["192.0.2.1"][..], &["2001:db8::1"], &["fe80::1", "192.0.2.1"], &["10.0.0.1", "fe80::1"]] {
            assert_eq!(judge(&driver(), addresses), Ok(()));
            assert_eq!(judge(&Link { bond_permits_xdp: true, ..of_kind("bond") }, addresses), Ok(()));
        }
    }

    #[test]
    fn each_property_that_prevents_the_selection_is_named() {
        let kind = |kind: &str| NotChosen::Kind { kind: kind.to_owned() };
        for (link, expected) in [
            (Link { master: Some(7), ..driver() }, NotChosen::Member { of: "interface 7".to_owned() }),
            (Link { master: Some(7), ..of_kind("veth") }, NotChosen::Member { of: "interface 7".to_owned() }),
            (of_kind("veth"), NotChosen::Veth),
            (of_kind("bond"), NotChosen::Bond),
            (of_kind("bridge"), kind("bridge")),
            (Link { up: false, ..of_kind("vlan") }, kind("vlan")),
            (Link { ethernet: false, ..driver() }, NotChosen::NotEthernet),
            (Link { up: false, ..driver() }, NotChosen::Down),
        ] {
            assert_eq!(judge(&link, &["192.0.2.1"]), Err(expected), "{link:?}");
        }
        for addresses in [&[][..], &["fe80::1"], &["169.254.1.1", "fe80::1"]] {
            assert_eq!(judge(&driver(), addresses), Err(NotChosen::NoAddress));
        }
    }
}
