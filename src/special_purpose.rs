//! The special-purpose address ranges of IANA's registries (RFC 6890), and the IPv4 addresses in IPv6 addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// The properties of the addresses of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The name in logs and counters.
    pub name: &'static str,
    /// The kind of the addresses in messages. It precedes the word "address".
    pub kind: &'static str,
    /// From where an interface with such an address can be reached.
    pub reach: Reach,
    /// The form of the addresses, if they contain IPv4 addresses.
    pub embedding: Option<Embedding>,
}

/// From where an interface can be reached, according to the range of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only from this machine.
    Machine,
    /// Only from the same link.
    Link,
    /// From some networks, or from none.
    Limited,
    /// From some networks, or from none, although the registry says that the range is globally reachable: a translator
    /// or an overlay network maps its addresses to others, so they do not locate an interface.
    Mapped,
    /// From everywhere.
    Global,
}

impl Range {
    /// Whether the registry says that the range is globally reachable. "N/A" counts as no.
    #[must_use]
    pub fn is_globally_reachable(&self) -> bool {
        matches!(self.reach, Mapped | Global)
    }

    const fn new(name: &'static str, kind: &'static str, reach: Reach) -> Self {
        Self { name, kind, reach, embedding: None }
    }

    const fn embedding(self, embedding: Embedding) -> Self {
        Self { embedding: Some(embedding), ..self }
    }
}

/// A form of IPv6 addresses that contain IPv4 addresses. A gateway forwards a packet for such an address to an IPv4
/// address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embedding {
    /// RFC 6052 §2.1: the well-known prefix of NAT64.
    Nat64,
    /// RFC 8215: the local-use prefix of NAT64.
    LocalNat64,
    /// RFC 4380 §4.
    Teredo,
    /// RFC 3056 §2.
    SixToFour,
}

impl Embedding {
    /// Returns the name for a message.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat64 | Self::LocalNat64 => "NAT64",
            Self::Teredo => "Teredo",
            Self::SixToFour => "6to4",
        }
    }

    /// Whether the gateway is the end of a tunnel.
    #[must_use]
    pub fn is_tunnel(self) -> bool {
        match self {
            Self::Nat64 | Self::LocalNat64 => false,
            Self::Teredo | Self::SixToFour => true,
        }
    }

    /// Returns the IPv4 addresses that `address` may contain.
    fn ipv4(self, address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
        let [_, a, b, c, d, e, g, h] = address.segments();
        match self {
            Self::Nat64 => [Some(join(g, h)), None],
            // RFC 6052 §2.2: with a /48 prefix the IPv4 address is around bits 64 to 71, with a /96 prefix at the end.
            Self::LocalNat64 => {
                let ([_, third], [fourth, _]) = (d.to_be_bytes(), e.to_be_bytes());
                [Some(join(c, u16::from_be_bytes([third, fourth]))), Some(join(g, h))]
            }
            // The server's address, and the client's with all bits inverted.
            Self::Teredo => [Some(join(b, c)), Some(join(!g, !h))],
            Self::SixToFour => [Some(join(a, b)), None],
        }
    }
}

fn join(high: u16, low: u16) -> Ipv4Addr {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Ipv4Addr::new(a, b, c, d)
}

/// A network-specific prefix whose IPv6 addresses contain IPv4 addresses (RFC 6052 §2.2): that of a NAT64 gateway, or of
/// ISATAP routers, whose addresses have the same form with 96 bits (RFC 5214 §6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat64Prefix(Ipv6Net);

impl Nat64Prefix {
    /// The lengths of prefixes that RFC 6052 §2.2 defines.
    pub const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

    /// Creates a prefix; `None` if RFC 6052 does not define its length.
    #[must_use]
    pub fn new(prefix: Ipv6Net) -> Option<Self> {
        Self::LENGTHS.contains(&prefix.prefix_len()).then_some(Self(prefix))
    }

    /// Returns the prefix.
    #[must_use]
    pub fn network(self) -> Ipv6Net {
        self.0
    }

    /// Returns the IPv4 address that `address` contains; `None` if it does not have this prefix.
    #[must_use]
    pub fn ipv4(self, address: IpAddr) -> Option<Ipv4Addr> {
        let IpAddr::V6(address) = address else { return None };
        if !self.0.contains(&address) {
            return None;
        }
        let octets = address.octets();
        // Octet 8 is reserved and not part of the IPv4 address.
        let start = usize::from(self.0.prefix_len() / 8);
        let mut embedded = octets.iter().enumerate().skip(start).filter(|(at, _)| *at != 8).map(|(_, octet)| *octet);
        let mut next = || embedded.next();
        Some(Ipv4Addr::new(next()?, next()?, next()?, next()?))
    }
}

/// The addresses at which a packet for one address may arrive: the address itself and the IPv4 addresses that it
/// contains. If the address is another notation of an IPv4 address, that IPv4 address is the only one.
#[derive(Clone, Copy, Debug)]
pub struct Destinations([Option<IpAddr>; 3]);

impl Destinations {
    /// Returns the addresses at which a packet for `address` may arrive.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let IpAddr::V6(v6) = address else { return Self([Some(address), None, None]) };
        if let Some(v4) = notation_of_ipv4(v6) {
            return Self([Some(IpAddr::V4(v4)), None, None]);
        }
        let embedding = find(address).and_then(|range| range.embedding);
        let [first, second] = embedding.map_or([None; 2], |embedding| embedding.ipv4(v6)).map(|v4| v4.map(IpAddr::V4));
        Self([Some(address), first, second])
    }

    /// Returns the addresses at which a packet for `address` may arrive that a gateway forwards to `v4`.
    #[must_use]
    pub fn through(address: IpAddr, v4: IpAddr) -> Self {
        Self([Some(address), Some(v4), None])
    }

    /// Returns each address.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.0.into_iter().flatten()
    }
}

/// Returns the IPv4 address of which `address` is another notation.
fn notation_of_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        // IPv4-mapped, RFC 4291 §2.5.5.2.
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(join(high, low)),
        // IPv4-translated, RFC 2765 §2.1.
        [0, 0, 0, 0, 0xffff, 0, high, low] => Some(join(high, low)),
        // IPv4-compatible, RFC 4291 §2.5.5.1; :: and ::1 are addresses of IPv6.
        [0, 0, 0, 0, 0, 0, high, low] if !(high == 0 && low <= 1) => Some(join(high, low)),
        _ => None,
    }
}

/// Returns the range that `address` is in; `None` if it is an IPv4 address without a special purpose.
#[must_use]
pub fn find(address: IpAddr) -> Option<&'static Range> {
    match address {
        IpAddr::V4(v4) => V4.iter().find(|(prefix, _)| prefix.contains(&v4)).map(|(_, range)| range),
        IpAddr::V6(v6) => V6.iter().find(|(prefix, _)| prefix.contains(&v6)).map(|(_, range)| range),
    }
}

/// The prefixes of other notations of IPv4 addresses, and the names of these notations.
const NOTATIONS: [(Ipv6Net, &str); 3] = [
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4-mapped"),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), "IPv4-translated"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "IPv4-compatible"),
];

/// Returns the names of the forms in which addresses of `network` contain IPv4 addresses, each once.
#[must_use]
pub fn embedded_forms(network: Ipv6Net) -> Vec<&'static str> {
    // :: and ::1 are addresses of IPv6.
    if network.prefix_len() == 128
        && notation_of_ipv4(network.addr()).is_none()
        && find(network.addr().into()).is_some_and(|range| range.embedding.is_none())
    {
        return Vec::new();
    }
    let embeddings = V6.iter().filter_map(|(prefix, range)| Some((*prefix, range.embedding?.name())));
    let overlaps = |prefix: &Ipv6Net| prefix.contains(&network) || network.contains(prefix);
    let mut names: Vec<_> =
        NOTATIONS.into_iter().chain(embeddings).filter(|(prefix, _)| overlaps(prefix)).map(|(_, name)| name).collect();
    names.dedup();
    names
}

/// Whether `address` is at the end of a Teredo or 6to4 tunnel. A packet could loop between the server and the tunnel's
/// other end and grow on its way (RFC 8656 §21.4).
#[must_use]
pub fn is_tunneled(address: IpAddr) -> bool {
    find(address).and_then(|range| range.embedding).is_some_and(Embedding::is_tunnel)
}

use Reach::{Global, Limited, Link, Machine, Mapped};

/// The IPv4 ranges that are not globally reachable, and multicast. The ranges named `cloud-platform` are in no registry.
/// Cloud providers use them for services that only their customers' machines can reach.
///
/// The metadata services and platform addresses of other large clouds are in the ranges of the registries:
/// 169.254.169.254 (AWS, Google, Azure, Oracle, DigitalOcean, Hetzner and others), 169.254.0.23 (Tencent),
/// 192.0.0.192 (Oracle), 100.100.100.200 (Alibaba), fd00:ec2::254 (AWS), fd20:ce::254 (Google), fd00:c1::a9fe:a9fe
/// (Oracle), fe80::1234:5678:9abc (Azure).
///
/// The globally reachable addresses in 192.0.0.0/24 have no row of their own, so they count as not globally
/// reachable. They are anycast addresses for server discovery (RFC
/// 7723, RFC 8155), and never the address of a peer.
pub static V4: &[(Ipv4Net, Range)] = &[
    (v4(0, 0, 0, 0, 8), Range::new("this-network", "reserved", Limited)),
    (v4(10, 0, 0, 0, 8), Range::new("private", "private", Limited)),
    (v4(100, 64, 0, 0, 10), Range::new("shared", "carrier-grade NAT", Limited)),
    (v4(127, 0, 0, 0, 8), Range::new("loopback", "loopback", Machine)),
    // IBM Cloud: DNS, mirrors, time and storage inside of a VPC, "IaaS endpoints" in
    // https://cloud.ibm.com/docs/vpc?topic=vpc-service-endpoints-for-vpc.
    (v4(161, 26, 0, 0, 16), Range::new("cloud-platform", "cloud platform", Limited)),
    // IBM Cloud: "cloud service endpoints", same document.
    (v4(166, 8, 0, 0, 14), Range::new("cloud-platform", "cloud platform", Limited)),
    // Azure: the platform of each virtual machine, with DNS, the agent's configuration and DHCP.
    // https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16.
    (v4(168, 63, 129, 16, 32), Range::new("cloud-platform", "cloud platform", Limited)),
    // The metadata services of cloud providers are here.
    (v4(169, 254, 0, 0, 16), Range::new("link-local", "link-local", Link)),
    (v4(172, 16, 0, 0, 12), Range::new("private", "private", Limited)),
    (v4(192, 0, 0, 0, 24), Range::new("protocol-assignments", "reserved", Limited)),
    (v4(192, 0, 2, 0, 24), Range::new("documentation", "documentation", Limited)),
    // The anycast prefix of 6to4 relays, deprecated by RFC 7526; N/A in the registry.
    (v4(192, 88, 99, 0, 24), Range::new("6to4-relay", "6to4 relay", Limited)),
    (v4(192, 168, 0, 0, 16), Range::new("private", "private", Limited)),
    (v4(198, 18, 0, 0, 15), Range::new("benchmarking", "benchmarking", Limited)),
    (v4(198, 51, 100, 0, 24), Range::new("documentation", "documentation", Limited)),
    (v4(203, 0, 113, 0, 24), Range::new("documentation", "documentation", Limited)),
    (v4(224, 0, 0, 0, 4), Range::new("multicast", "multicast", Limited)),
    // Contains the limited broadcast address.
    (v4(240, 0, 0, 0, 4), Range::new("reserved", "reserved", Limited)),
];

/// All IPv6 ranges. The first match applies.
///
/// The globally reachable addresses in 2001:1::/32 have no row of their own either, for the same reason as in IPv4.
pub static V6: &[(Ipv6Net, Range)] = &[
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), Range::new("unspecified", "reserved", Limited)),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), Range::new("loopback", "loopback", Machine)),
    // A translator maps these to IPv4 hosts.
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), Range::new("nat64", "reserved", Mapped).embedding(Embedding::Nat64)),
    (
        v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
        Range::new("local-nat64", "reserved", Limited).embedding(Embedding::LocalNat64),
    ),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), Range::new("discard-only", "reserved", Limited)),
    (v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64), Range::new("dummy", "reserved", Limited)),
    // N/A in the registry: a Teredo relay is needed, and few are left.
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), Range::new("teredo", "Teredo", Limited).embedding(Embedding::Teredo)),
    // Counted as part of 2001::/23.
    (v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48), Range::new("protocol-assignments", "benchmarking", Limited)),
    (v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32), Range::new("amt", "multicast relay", Global)),
    (v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48), Range::new("as112", "AS112", Global)),
    // RFC 7343: ORCHIDs identify hosts and do not locate them. Only an overlay network routes them.
    (v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28), Range::new("orchid", "non-routable", Mapped)),
    // RFC 9374: ORCHIDs of drones.
    (v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28), Range::new("drone-id", "non-routable", Mapped)),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), Range::new("protocol-assignments", "reserved", Limited)),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), Range::new("documentation", "documentation", Limited)),
    // N/A in the registry, like Teredo.
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), Range::new("6to4", "6to4", Limited).embedding(Embedding::SixToFour)),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), Range::new("documentation", "documentation", Limited)),
    (v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3), Range::new("global-unicast", "global", Global)),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), Range::new("unique-local", "unique local", Limited)),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), Range::new("link-local", "link-local", Link)),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), Range::new("site-local", "site-local", Limited)),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), Range::new("multicast", "multicast", Limited)),
    // IANA assigns global unicast addresses only from 2000::/3 (RFC 4291 §2.4). SRv6 SIDs (5f00::/16) are in this row.
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 0), Range::new("unassigned", "reserved", Limited)),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(segments: [u16; 8], length: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range_of(address: &str) -> Option<&'static Range> {
        find(address.parse().unwrap())
    }

    fn destinations(address: &str) -> Vec<String> {
        Destinations::of(address.parse().unwrap()).iter().map(|address| address.to_string()).collect()
    }

    #[test]
    fn an_ipv4_address_of_no_special_purpose_has_no_range() {
        for address in ["1.1.1.1", "192.0.1.0", "192.88.98.255", "192.88.100.0", "223.255.255.255"] {
            assert_eq!(range_of(address), None, "{address}");
        }
    }

    #[test]
    fn every_prefix_is_truncated_and_precedes_wider_ones() {
        for (index, (prefix, _)) in V4.iter().enumerate() {
            assert_eq!(*prefix, prefix.trunc());
            assert!(V4[..index].iter().all(|(earlier, _)| !earlier.contains(prefix)), "{prefix}");
        }
        for (index, (prefix, _)) in V6.iter().enumerate() {
            assert_eq!(*prefix, prefix.trunc());
            assert!(V6[..index].iter().all(|(earlier, _)| !earlier.contains(prefix)), "{prefix}");
        }
    }

    // The column "Globally Reachable" of the registries.
    #[test]
    fn ranges_are_globally_reachable_as_the_registry_says() {
        let globally_reachable = |address| range_of(address).is_none_or(Range::is_globally_reachable);
        for address in ["64:ff9b::1", "2001:3::1", "2001:4:112::1", "2001:20::1", "2001:3f:ffff::1", "2620:4f:8000::1"]
        {
            assert!(globally_reachable(address), "{address}");
        }
        for address in ["64:ff9b:1::1", "100::1", "100:0:0:1::1", "2001::1", "2001:2::1", "2001:10::1", "2001:db8::1"] {
            assert!(!globally_reachable(address), "{address}");
        }
        for address in ["2002::1", "3fff::1", "5f00::1", "fc00::1", "fe80::1", "192.88.99.1", "240.0.0.1", "10.0.0.1"] {
            assert!(!globally_reachable(address), "{address}");
        }
    }

    #[test]
    fn addresses_that_do_not_locate_an_interface_are_mapped() {
        for address in ["64:ff9b::808:808", "2001:20::1", "2001:2f:ffff::1", "2001:30::1"] {
            assert_eq!(range_of(address).map(|range| range.reach), Some(Mapped), "{address}");
        }
    }

    #[test]
    fn another_notation_of_an_ipv4_address_is_that_address() {
        for address in ["10.0.0.1", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "::10.0.0.1"] {
            assert_eq!(destinations(address), ["10.0.0.1"]);
        }
        assert_eq!(destinations("::"), ["::"]);
        assert_eq!(destinations("::1"), ["::1"]);
    }

    #[test]
    fn destinations_include_each_embedded_ipv4_address() {
        for (address, expected) in [
            ("64:ff9b::10.0.0.1", &["64:ff9b::a00:1", "10.0.0.1"][..]),
            ("64:ff9b:1:a00:0:100:808:808", &["64:ff9b:1:a00:0:100:808:808", "10.0.0.1", "8.8.8.8"]),
            ("2001:0:808:404::f5ff:fffe", &["2001:0:808:404::f5ff:fffe", "8.8.4.4", "10.0.0.1"]),
            ("2002:a00:1::7", &["2002:a00:1::7", "10.0.0.1"]),
            ("2001:db8::7", &["2001:db8::7"]),
        ] {
            assert_eq!(destinations(address), expected);
        }
    }

    #[test]
    fn a_network_has_the_forms_of_the_ipv4_addresses_in_it() {
        for (network, expected) in [
            ("2002:808::/32", &["6to4"][..]),
            ("2001::/32", &["Teredo"]),
            ("2001::/23", &["Teredo"]),
            ("2000::/3", &["Teredo", "6to4"]),
            ("64:ff9b::/96", &["NAT64"]),
            ("64:ff9b::/32", &["NAT64"]),
            ("64:ff9b:1:2::/64", &["NAT64"]),
            ("::/96", &["IPv4-compatible"]),
            ("::a00:1/128", &["IPv4-compatible"]),
            ("::ffff:0:0:0/96", &["IPv4-translated"]),
            ("::ffff:0:0:0/80", &["IPv4-translated"]),
            ("::/64", &["IPv4-mapped", "IPv4-translated", "IPv4-compatible"]),
            ("::/0", &["IPv4-mapped", "IPv4-translated", "IPv4-compatible", "NAT64", "Teredo", "6to4"]),
            ("::1/128", &[]),
            ("::/128", &[]),
            ("2a00::/16", &[]),
            ("fd00::/8", &[]),
        ] {
            assert_eq!(embedded_forms(network.parse().unwrap()), expected, "{network}");
        }
    }

    // RFC 6052 §2.4, Table 1.
    #[test]
    fn a_network_specific_address_contains_the_ipv4_address_of_the_rfc() {
        for (prefix, address) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::c000:221"),
            // RFC 5214 §6.1.
            ("2001:db8:1:2:0:5efe::/96", "2001:db8:1:2:0:5efe:192.0.2.33"),
        ] {
            let prefix = Nat64Prefix::new(prefix.parse().unwrap()).unwrap();
            assert_eq!(prefix.ipv4(address.parse().unwrap()), Some(Ipv4Addr::new(192, 0, 2, 33)), "{address}");
            for other in ["2001:db9::1", "192.0.2.33"] {
                assert_eq!(prefix.ipv4(other.parse().unwrap()), None);
            }
        }
        for length in (0..=128).filter(|length| !Nat64Prefix::LENGTHS.contains(length)) {
            assert_eq!(Nat64Prefix::new(Ipv6Net::new("::".parse().unwrap(), length).unwrap()), None);
        }
    }
}
