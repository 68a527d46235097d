//! The peer policy: which peers clients may reach (RFC 8656 §10.2, §11.2, §12.2: the server MAY restrict them).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::special_purpose::{self, Destinations, Nat64Prefix};
use crate::turn::shared::relay_address::RelayAddresses;

/// The operator's rules, and the server's own addresses.
#[derive(Clone, Debug, Default)]
pub struct PeerPolicy {
    /// Peers to allow even if the built-in list denies them. An address of this machine is allowed only if an entry
    /// consists of this address alone.
    pub allow: Vec<IpNet>,
    /// Peers to deny even if `allow` allows them.
    pub deny: Vec<IpNet>,
    /// The addresses of this machine's interfaces, and their advertised addresses.
    pub own: Vec<IpAddr>,
    /// Prefixes that are routed to this machine as a whole. Their addresses are own addresses too.
    pub own_networks: Vec<IpNet>,
    /// Prefixes of gateways to IPv4, in addition to the well-known one of NAT64. None contains another.
    pub nat64: Vec<Nat64Prefix>,
}

/// Why a peer is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It matches `peers.deny`.
    Operator,
    /// It is an address of this server, and not a live relayed transport address.
    OwnAddress,
    /// The client has the credential of a test link, and this is not a relayed transport address of this server.
    TestLink,
    /// It is in the special-purpose range with this name.
    Special(&'static str),
}

impl Denial {
    /// Returns the name in logs and counters.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::OwnAddress => "own-address",
            Self::TestLink => "test-link",
            Self::Special(name) => name,
        }
    }
}

impl PeerPolicy {
    /// Checks whether a client may exchange data with `peer`. Returns the destination of datagrams for the peer.
    ///
    /// # Errors
    /// Returns the rule that denies the peer.
    pub fn peer_allowed(&self, relays: &RelayAddresses, peer: SocketAddr) -> Result<SocketAddr, Denial> {
        match relays.live(peer) {
            Some(wire) => Ok(wire),
            None => self.address_allowed(peer.ip()).map(|()| peer),
        }
    }

    /// Checks whether a permission for `address` may be installed. A permission has no port, so the relay addresses of
    /// this server are allowed. The port is checked when data is relayed.
    ///
    /// # Errors
    /// Returns the rule that denies the address.
    pub fn permission_allowed(&self, relays: &RelayAddresses, address: IpAddr) -> Result<(), Denial> {
        if relays.is_relay_address(address) { Ok(()) } else { self.address_allowed(address) }
    }

    fn address_allowed(&self, address: IpAddr) -> Result<(), Denial> {
        // A peer must not be denied in one notation and allowed in another.
        let translated = self.nat64.iter().find_map(|prefix| prefix.ipv4(address)).map(IpAddr::V4);
        let destinations =
            translated.map_or_else(|| Destinations::of(address), |v4| Destinations::through(address, v4));
        let matches = |nets: &[IpNet], address: IpAddr| nets.iter().any(|net| net.contains(&address));
        if destinations.iter().any(|destination| matches(&self.deny, destination)) {
            return Err(Denial::Operator);
        }
        let allowed = |allows: &dyn Fn(IpAddr) -> bool| allows(address) || destinations.iter().all(allows);
        if allowed(&|address| self.allow.iter().any(|net| is_exactly(net, address))) {
            return Ok(());
        }
        let in_allowed_range = allowed(&|address| matches(&self.allow, address));
        // A gateway's prefix may be in any range. The IPv4 address decides.
        let judged = translated.map_or(destinations, Destinations::of);
        if !in_allowed_range && let Some(name) = judged.iter().find_map(special_range) {
            return Err(Denial::Special(name));
        }
        // A range that contains an own address does not open the services of this machine. The machine has every
        // loopback address, and Linux delivers packets for the unspecified address to the machine itself.
        let is_own = |address: IpAddr| {
            let is_listed = self.own.contains(&address) || matches(&self.own_networks, address);
            is_listed || in_allowed_range && (address.is_unspecified() || address.is_loopback())
        };
        if destinations.iter().any(is_own) { Err(Denial::OwnAddress) } else { Ok(()) }
    }

    /// Returns the own addresses in ranges of `allow`, which stay denied, with their range.
    pub fn own_in_allowed_ranges(&self) -> impl Iterator<Item = (IpAddr, &IpNet)> {
        let exact = |own: IpAddr| self.allow.iter().any(|net| is_exactly(net, own));
        let own = self.own.iter().filter(move |own| !exact(**own));
        own.filter_map(|own| Some((*own, self.allow.iter().find(|net| net.contains(own))?)))
    }

    /// Returns the own networks with a range of `allow` that contains addresses of them, which stay denied.
    pub fn own_networks_in_allowed_ranges(&self) -> impl Iterator<Item = (&IpNet, &IpNet)> {
        let overlaps =
            |own: &IpNet, net: &IpNet| !is_exactly(net, net.addr()) && (net.contains(own) || own.contains(net));
        let pair = move |own| Some((own, self.allow.iter().find(|net| overlaps(own, net))?));
        self.own_networks.iter().filter_map(pair)
    }
}

/// Whether `net` consists of `address` alone.
fn is_exactly(net: &IpNet, address: IpAddr) -> bool {
    net.prefix_len() == net.max_prefix_len() && net.addr() == address
}

/// Returns the name of the special-purpose range that `address` is in, unless the range is globally reachable. For
/// NAT64 the embedded IPv4 address decides. Tunnel addresses are denied (RFC 8656 §21.4).
fn special_range(address: IpAddr) -> Option<&'static str> {
    special_purpose::find(address).filter(|range| !range.is_globally_reachable()).map(|range| range.name)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::special_purpose::is_tunneled;
    use crate::turn::shared::relay_address::RelayAddress;

    fn policy(allow: &[&str], deny: &[&str], own: &[&str]) -> PeerPolicy {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let own = own.iter().map(|text| text.parse().unwrap()).collect();
        PeerPolicy { allow: nets(allow), deny: nets(deny), own, ..PeerPolicy::default() }
    }

    fn check(policy: &PeerPolicy, address: &str) -> Result<(), Denial> {
        policy.address_allowed(address.parse().unwrap())
    }

    /// Returns every notation of an IPv4 address in IPv6.
    fn notations(v4: Ipv4Addr) -> Vec<IpAddr> {
        let [a, b, c, d] = v4.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        [
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 1, high, u16::from(c), u16::from_be_bytes([d, 0]), 0x0808, 0x0808),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, 0x0808, 0x0808, 0, 0, !high, !low),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !0x0808, !0x0808),
        ]
        .map(IpAddr::V6)
        .to_vec()
    }

    #[test]
    fn public_addresses_are_allowed() {
        let policy = policy(&[], &[], &[]);
        for address in ["8.8.8.8", "1.1.1.1", "192.0.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"] {
            assert_eq!(check(&policy, address), Ok(()), "{address}");
        }
    }

    #[test]
    fn special_purpose_addresses_are_denied_by_name() {
        let policy = policy(&[], &[], &[]);
        for (address, name) in [
            ("0.0.0.0", "this-network"),
            ("10.255.255.255", "private"),
            ("100.127.255.255", "shared"),
            ("127.0.0.1", "loopback"),
            ("169.254.169.254", "link-local"),
            ("172.31.255.255", "private"),
            ("192.0.0.8", "protocol-assignments"),
            ("192.168.0.0", "private"),
            ("198.19.255.255", "benchmarking"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("100::1", "discard-only"),
            ("2001:2::1", "protocol-assignments"),
            ("2001:0:808:808::f7f7:f7f7", "teredo"),
            ("2002:808:808::1", "6to4"),
            ("2001:db8::1", "documentation"),
            ("3fff:fff::1", "documentation"),
            ("5f00::1", "unassigned"),
            ("fd12::1", "unique-local"),
            ("fe80::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
            ("1::1", "unassigned"),
        ] {
            assert_eq!(check(&policy, address), Err(Denial::Special(name)), "{address}");
        }
    }

    #[test]
    fn every_notation_of_a_denied_ipv4_address_is_denied() {
        let policy = policy(&[], &["9.9.9.0/24"], &["8.8.4.4"]);
        for v4 in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "9.9.9.9", "8.8.4.4"] {
            for notation in notations(v4.parse().unwrap()) {
                assert!(policy.address_allowed(notation).is_err(), "{v4} as {notation}");
            }
        }
    }

    #[test]
    fn an_own_address_is_allowed_only_if_an_entry_names_it_exactly() {
        let own = ["10.1.1.1", "2001:db8::5", "8.8.4.4"];
        let wide = policy(&["0.0.0.0/0", "::/0", "10.1.1.0/31", "8.8.4.4/31"], &[], &own);
        for address in own.into_iter().chain(["127.0.0.1", "127.8.7.6", "0.0.0.0", "::", "::1"]) {
            assert_eq!(check(&wide, address), Err(Denial::OwnAddress), "{address}");
        }
        for v4 in ["10.1.1.1", "8.8.4.4", "127.0.0.53"] {
            for notation in notations(v4.parse().unwrap()) {
                assert_eq!(wide.address_allowed(notation), Err(Denial::OwnAddress), "{v4} as {notation}");
            }
        }
        for address in ["10.1.1.2", "10.1.1.0", "2001:db8::6", "8.8.4.5", "169.254.169.254"] {
            assert_eq!(check(&wide, address), Ok(()), "{address}");
        }
        let exact = policy(&["10.0.0.0/8", "10.1.1.1/32", "2001:db8::5/128", "127.0.0.1/32"], &[], &own);
        for address in ["10.1.1.1", "2001:db8::5", "127.0.0.1", "::ffff:10.1.1.1"] {
            assert_eq!(check(&exact, address), Ok(()), "{address}");
        }
        assert_eq!(check(&exact, "127.0.0.2"), Err(Denial::Special("loopback")));
        let denied: Vec<_> = wide.own_in_allowed_ranges().map(|(own, net)| format!("{own} in {net}")).collect();
        assert_eq!(denied, ["10.1.1.1 in 0.0.0.0/0", "2001:db8::5 in ::/0", "8.8.4.4 in 0.0.0.0/0"]);
        assert_eq!(exact.own_in_allowed_ranges().count(), 0);
    }

    #[test]
    fn each_address_of_an_own_network_is_an_own_address() {
        let nets = ["8.8.4.0/24", "10.1.0.0/16", "2a00::/64"].map(|net| net.parse().unwrap()).to_vec();
        let own = |allow: &[&str]| PeerPolicy { own_networks: nets.clone(), ..policy(allow, &[], &[]) };
        for address in ["8.8.4.0", "8.8.4.255", "2a00::7", "::ffff:8.8.4.9"] {
            assert_eq!(check(&own(&[]), address), Err(Denial::OwnAddress), "{address}");
        }
        assert_eq!((check(&own(&[]), "8.8.5.0"), check(&own(&[]), "2a00:0:0:1::")), (Ok(()), Ok(())));
        let wide = own(&["10.0.0.0/8", "8.8.4.0/24", "2a00::5/128"]);
        assert_eq!(check(&wide, "10.1.1.1"), Err(Denial::OwnAddress));
        assert_eq!((check(&wide, "10.2.1.1"), check(&wide, "2a00::5")), (Ok(()), Ok(())));
        let denied: Vec<_> =
            wide.own_networks_in_allowed_ranges().map(|(own, net)| format!("{own} in {net}")).collect();
        assert_eq!(denied, ["8.8.4.0/24 in 8.8.4.0/24", "10.1.0.0/16 in 10.0.0.0/8"]);
        let exact = PeerPolicy { own_networks: vec!["2a00::5/128".parse().unwrap()], ..own(&["2a00::5/128"]) };
        assert_eq!(exact.own_networks_in_allowed_ranges().count(), 0);
    }

    #[test]
    fn deny_precedes_allow_and_allow_precedes_the_built_in_list() {
        let policy = policy(&["10.0.0.0/8", "fd00::/8", "8.8.4.4/32"], &["10.1.0.0/16", "8.8.8.0/24"], &["8.8.4.4"]);
        assert_eq!(check(&policy, "10.2.0.1"), Ok(()));
        assert_eq!(check(&policy, "::ffff:10.2.0.1"), Ok(()));
        assert_eq!(check(&policy, "10.1.0.1"), Err(Denial::Operator));
        assert_eq!(check(&policy, "::ffff:10.1.0.1"), Err(Denial::Operator));
        assert_eq!(check(&policy, "8.8.8.8"), Err(Denial::Operator));
        assert_eq!(check(&policy, "8.8.4.4"), Ok(()));
        assert_eq!(check(&policy, "fd12::1"), Ok(()));
        assert_eq!(check(&policy, "127.0.0.1"), Err(Denial::Special("loopback")));
    }

    // RFC 8656 §21.4: tunnel addresses are denied regardless of their IPv4 address, unless the operator allows them.
    #[test]
    fn tunnel_addresses_are_denied_even_if_their_ipv4_address_is_public() {
        let (denied, allowed) = (policy(&["8.0.0.0/8"], &[], &[]), policy(&["2002:808::/32"], &[], &[]));
        for address in ["2001:0:808:808::f7f7:f7f7", "2002:808:808::1", "2002:101:101::1"] {
            assert!(check(&denied, address).is_err() && is_tunneled(address.parse().unwrap()), "{address}");
        }
        assert_eq!(check(&allowed, "2002:808:808::1"), Ok(()));
        for address in ["2001:1::1", "2003::1", "8.8.8.8", "64:ff9b::808:808"] {
            assert!(!is_tunneled(address.parse().unwrap()), "{address}");
        }
    }

    // Platform addresses of clouds that are not in the registries, and metadata services that are.
    #[test]
    fn platform_and_metadata_addresses_of_clouds_are_denied() {
        let policy = policy(&[], &[], &[]);
        for address in ["168.63.129.16", "161.26.0.10", "161.26.255.255", "166.8.0.0", "166.11.255.255"] {
            let v4 = address.parse().unwrap();
            assert_eq!(check(&policy, address), Err(Denial::Special("cloud-platform")));
            assert!(notations(v4).into_iter().all(|notation| policy.address_allowed(notation).is_err()));
        }
        for address in ["168.63.129.15", "168.63.129.17", "161.25.255.255", "161.27.0.0", "166.7.255.255", "166.12.0.0"]
        {
            assert_eq!(check(&policy, address), Ok(()), "{address}");
        }
        for address in [
            "169.254.169.254",
            "169.254.0.23",
            "192.0.0.192",
            "100.100.100.200",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fe80::1234:5678:9abc",
        ] {
            assert!(check(&policy, address).is_err(), "{address}");
        }
    }

    #[test]
    fn addresses_with_a_listed_nat64_prefix_are_judged_by_their_ipv4_address() {
        let prefix = |text: &str| Nat64Prefix::new(text.parse().unwrap()).unwrap();
        let mut policy = policy(&["10.2.0.0/16"], &["9.9.9.0/24", "2a00:64::808:404/128"], &["8.8.4.4"]);
        for address in ["2a00:64::10.0.0.1", "2a00:64::9.9.9.9"] {
            assert_eq!(check(&policy, address), Ok(()), "{address} is an ordinary address without the list");
        }
        policy.nat64 = vec![prefix("2a00:64::/96"), prefix("fd00:64::/96"), prefix("2a00:48:1::/48")];
        for (address, expected) in [
            ("2a00:64::8.8.8.8", Ok(())),
            ("2a00:64::10.0.0.1", Err(Denial::Special("private"))),
            ("2a00:64::168.63.129.16", Err(Denial::Special("cloud-platform"))),
            ("2a00:64::9.9.9.9", Err(Denial::Operator)),
            ("2a00:64::8.8.4.4", Err(Denial::Operator)),
            ("fd00:64::8.8.4.4", Err(Denial::OwnAddress)),
            ("fd00:64::8.8.8.8", Ok(())),
            ("fd00:65::8.8.8.8", Err(Denial::Special("unique-local"))),
            // 10.0.0.1 around bits 64 to 71.
            ("2a00:48:1:a00:0:100::", Err(Denial::Special("private"))),
            ("2a00:48:1:808:8:800::", Ok(())),
        ] {
            assert_eq!(check(&policy, address), expected, "{address}");
        }
        // As for each form, the operator has to allow both notations.
        assert_eq!(check(&policy, "2a00:64::10.2.0.1"), Err(Denial::Special("private")));
        policy.allow.push("2a00:64::a02:0/112".parse().unwrap());
        assert_eq!(check(&policy, "2a00:64::10.2.0.1"), Ok(()));
    }

    // An allowed IPv4 range must not allow a local-use NAT64 address whose other embedded IPv4 address is private.
    #[test]
    fn an_address_with_two_embedded_ipv4_addresses_needs_both_to_be_allowed() {
        let policy = policy(&["8.0.0.0/8"], &[], &[]);
        assert!(check(&policy, "64:ff9b:1:a00:0:100:808:808").is_err());
    }

    #[test]
    fn a_live_relayed_address_is_allowed_and_its_neighbour_port_is_not() {
        let [bind, advertised] = ["127.0.0.1", "203.0.113.9"].map(|text| text.parse().unwrap());
        let address = Arc::new(RelayAddress::new(bind, advertised, &(50_000..=50_001)));
        let relays: RelayAddresses = [Arc::clone(&address)].into_iter().collect();
        let policy = policy(&[], &["127.0.0.0/8"], &["127.0.0.1", "203.0.113.9"]);
        let relay: SocketAddr = "127.0.0.1:50000".parse().unwrap();
        address.set_live(relay.port(), true);
        assert_eq!(policy.peer_allowed(&relays, "203.0.113.9:50000".parse().unwrap()), Ok(relay));
        assert_eq!(policy.peer_allowed(&relays, relay), Err(Denial::Operator));
        assert!(policy.peer_allowed(&relays, "203.0.113.9:22".parse().unwrap()).is_err());
        assert!(policy.peer_allowed(&relays, "127.0.0.1:50001".parse().unwrap()).is_err());
        assert_eq!(policy.permission_allowed(&relays, "203.0.113.9".parse().unwrap()), Ok(()));
        assert!(policy.permission_allowed(&relays, "127.0.0.2".parse().unwrap()).is_err());
    }

    #[test]
    fn the_servers_own_addresses_are_denied() {
        let policy = policy(&[], &[], &["198.51.99.1", "2a00::7"]);
        assert_eq!(check(&policy, "198.51.99.1"), Err(Denial::OwnAddress));
        assert_eq!(check(&policy, "2a00::7"), Err(Denial::OwnAddress));
        assert_eq!(check(&policy, "2a00::8"), Ok(()));
    }

    /// Whether an address is allowed, by an independent list of the ranges as numbers.
    fn naive_v4(address: Ipv4Addr) -> bool {
        let n = u32::from(address);
        let within = |first: u32, last: u32| (first..=last).contains(&n);
        !(within(0x0000_0000, 0x00ff_ffff)
            || within(0x0a00_0000, 0x0aff_ffff)
            || within(0x6440_0000, 0x647f_ffff)
            || within(0x7f00_0000, 0x7fff_ffff)
            || within(0xa11a_0000, 0xa11a_ffff)
            || within(0xa608_0000, 0xa60b_ffff)
            || within(0xa83f_8110, 0xa83f_8110)
            || within(0xa9fe_0000, 0xa9fe_ffff)
            || within(0xac10_0000, 0xac1f_ffff)
            || within(0xc000_0000, 0xc000_00ff)
            || within(0xc000_0200, 0xc000_02ff)
            || within(0xc058_6300, 0xc058_63ff)
            || within(0xc0a8_0000, 0xc0a8_ffff)
            || within(0xc612_0000, 0xc613_ffff)
            || within(0xc633_6400, 0xc633_64ff)
            || within(0xcb00_7100, 0xcb00_71ff)
            || within(0xe000_0000, 0xffff_ffff))
    }

    /// Generates addresses at and around the boundaries of ranges.
    fn edgy_v4() -> impl Strategy<Value = Ipv4Addr> {
        let edges =
            special_purpose::V4.iter().flat_map(|(net, _)| [u32::from(net.network()), u32::from(net.broadcast())]);
        let near = (prop::sample::select(edges.collect::<Vec<u32>>()), -2..=2_i32)
            .prop_map(|(edge, step)| Ipv4Addr::from(edge.wrapping_add_signed(step)));
        prop_oneof![near, any::<u32>().prop_map(Ipv4Addr::from)]
    }

    fn naive_v6(address: Ipv6Addr) -> bool {
        let n = u128::from(address);
        let prefix = |length: u32| n >> (128 - length);
        let global = prefix(3) == 1;
        let protocol = prefix(23) == 0x2001_0000 >> 9;
        let exception = [prefix(32) == 0x2001_0003, prefix(48) == 0x2001_0004_0112]
            .into_iter()
            .chain([prefix(28) == 0x200_1002, prefix(28) == 0x200_1003])
            .any(|yes| yes);
        let documentation = prefix(32) == 0x2001_0db8 || prefix(20) == 0x3fff0;
        let tunnel = prefix(32) == 0x2001_0000 || prefix(16) == 0x2002;
        prefix(96) == 0x0064_ff9b_u128 << 64 || global && !tunnel && !documentation && (!protocol || exception)
    }

    fn edgy_v6() -> impl Strategy<Value = Ipv6Addr> {
        let edges =
            special_purpose::V6.iter().flat_map(|(net, _)| [u128::from(net.network()), u128::from(net.broadcast())]);
        let near = (prop::sample::select(edges.collect::<Vec<u128>>()), -2..=2_i128)
            .prop_map(|(edge, step)| Ipv6Addr::from(edge.wrapping_add_signed(step)));
        prop_oneof![near, any::<u128>().prop_map(Ipv6Addr::from)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn ipv4_agrees_with_a_naive_oracle_in_every_notation(address in edgy_v4()) {
            let policy = policy(&[], &[], &[]);
            prop_assert_eq!(policy.address_allowed(IpAddr::V4(address)).is_ok(), naive_v4(address));
            if !naive_v4(address) {
                for notation in notations(address) {
                    prop_assert!(policy.address_allowed(notation).is_err(), "{} as {}", address, notation);
                }
            }
        }

        #[test]
        fn ipv6_agrees_with_a_naive_oracle(address in edgy_v6()) {
            prop_assert_eq!(special_range(IpAddr::V6(address)).is_none(), naive_v6(address));
        }
    }
}
