//! Who may be reached as a peer (RFC 8656 §10.2, §11.2, §12.2: the server MAY restrict it).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::turn::shared::live_relays::LiveRelays;

/// The operator's rules, and the server's own addresses.
#[derive(Clone, Debug, Default)]
pub struct PeerPolicy {
    /// Peers to admit though the built-in list refuses them.
    pub allow: Vec<IpNet>,
    /// Peers to refuse whatever else says.
    pub deny: Vec<IpNet>,
    /// Addresses of this machine's interfaces, and the addresses that the world knows them by.
    pub own: Vec<IpAddr>,
}

/// Why a peer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It matches `peers.deny`.
    Operator,
    /// It is an address of this server, and no live relayed address.
    OwnAddress,
    /// It lies in a special-purpose range; the name of the range.
    Special(&'static str),
}

impl Denial {
    /// A fixed name, for logs and counters.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::OwnAddress => "own-address",
            Self::Special(name) => name,
        }
    }
}

impl PeerPolicy {
    /// Whether a client may exchange data with `peer`. Gives the address that datagrams for it go to.
    ///
    /// # Errors
    /// Says which rule refuses it.
    pub fn peer_allowed(&self, live: &LiveRelays, peer: SocketAddr) -> Result<SocketAddr, Denial> {
        match live.live(peer) {
            Some(wire) => Ok(wire),
            None => self.address_allowed(peer.ip()).map(|()| peer),
        }
    }

    /// Whether a permission for `address` may be installed. Any port will do for that, so a relay address of ours is
    /// admitted here; that the port is live is asked again when data flows.
    ///
    /// # Errors
    /// Says which rule refuses it.
    pub fn permission_allowed(&self, live: &LiveRelays, address: IpAddr) -> Result<(), Denial> {
        if live.is_relay_address(address) { Ok(()) } else { self.address_allowed(address) }
    }

    fn address_allowed(&self, address: IpAddr) -> Result<(), Denial> {
        let views = Views::of(address);
        let matches = |nets: &[IpNet], view: IpAddr| nets.iter().any(|net| net.contains(&view));
        if views.iter().any(|view| matches(&self.deny, view)) {
            return Err(Denial::Operator);
        }
        if matches(&self.allow, address) || views.iter().all(|view| matches(&self.allow, view)) {
            return Ok(());
        }
        if let Some(name) = views.iter().find_map(special_range) {
            return Err(Denial::Special(name));
        }
        if views.iter().any(|view| self.own.contains(&view)) {
            return Err(Denial::OwnAddress);
        }
        Ok(())
    }
}

/// Every address that a packet for one address may end at: IPv6 has many ways to write an IPv4 address, and whichever
/// the network understands must not be refused in one spelling and admitted in another.
#[derive(Clone, Copy, Debug)]
struct Views([Option<IpAddr>; 3]);

impl Views {
    fn of(address: IpAddr) -> Self {
        let IpAddr::V6(v6) = address else { return Self([Some(address), None, None]) };
        let segments = v6.segments();
        let v4 = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        };
        let outer = Some(address);
        match segments {
            // IPv4-mapped, RFC 4291 §2.5.5.2: the same address by another name.
            [0, 0, 0, 0, 0, 0xffff, high, low] => Self([v4(high, low), None, None]),
            // IPv4-translated, RFC 2765 §2.1.
            [0, 0, 0, 0, 0xffff, 0, high, low] => Self([v4(high, low), None, None]),
            // IPv4-compatible, RFC 4291 §2.5.5.1; :: and ::1 are what they are.
            [0, 0, 0, 0, 0, 0, high, low] if !(high == 0 && low <= 1) => Self([v4(high, low), None, None]),
            // NAT64, RFC 6052 §2.1.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Self([outer, v4(high, low), None]),
            // Local-use NAT64, RFC 8215: with a /48 prefix the address lies around bits 64..72, with /96 at the end.
            [0x64, 0xff9b, 1, high, middle, low, end_high, end_low] => {
                let ([_, second], [third, _]) = (middle.to_be_bytes(), low.to_be_bytes());
                Self([outer, v4(high, u16::from_be_bytes([second, third])), v4(end_high, end_low)])
            }
            // Teredo, RFC 4380 §4: the server's address, and the client's with all bits inverted.
            [0x2001, 0, server_high, server_low, _, _, high, low] => {
                Self([outer, v4(server_high, server_low), v4(!high, !low)])
            }
            // 6to4, RFC 3056 §2.
            [0x2002, high, low, ..] => Self([outer, v4(high, low), None]),
            _ => Self([outer, None, None]),
        }
    }

    fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.0.into_iter().flatten()
    }
}

/// Whether `address` is at the end of a Teredo or 6to4 tunnel. Clients and peers there could make a packet circle between
/// the server and the tunnel's other end, and grow on its way (RFC 8656 §21.4).
pub(crate) fn is_tunneled(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if [TEREDO, SIX_TO_FOUR].iter().any(|net| net.contains(&v6)))
}

/// The name of the special-purpose range that `address` lies in.
fn special_range(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => SPECIAL_V4.iter().find(|(net, _)| net.contains(&v4)).map(|(_, name)| *name),
        IpAddr::V6(v6) => SPECIAL_V6.iter().find(|(net, _)| net.contains(&v6)).and_then(|(_, name)| *name),
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(segments: [u16; 8], length: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

/// What the IANA IPv4 Special-Purpose Address Registry does not call globally reachable, and multicast.
const SPECIAL_V4: &[(Ipv4Net, &str)] = &[
    (v4(0, 0, 0, 0, 8), "this-network"),
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(100, 64, 0, 0, 10), "shared"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    // The metadata services of cloud providers are here.
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 0, 0, 0, 24), "protocol-assignments"),
    (v4(192, 0, 2, 0, 24), "documentation"),
    (v4(192, 88, 99, 0, 24), "6to4-relay"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(198, 18, 0, 0, 15), "benchmarking"),
    (v4(198, 51, 100, 0, 24), "documentation"),
    (v4(203, 0, 113, 0, 24), "documentation"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    // With the limited broadcast address.
    (v4(240, 0, 0, 0, 4), "reserved"),
];

const TEREDO: Ipv6Net = v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32);
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);

/// The same for IPv6; the first match counts, and `None` admits. What NAT64 carries is admitted here and judged by its
/// IPv4 address; what a tunnel carries is refused (RFC 8656 §21.4).
const SPECIAL_V6: &[(Ipv6Net, Option<&str>)] = &[
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), Some("unspecified")),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), Some("loopback")),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), None),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), Some("local-nat64")),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), Some("discard-only")),
    (v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64), Some("dummy")),
    (TEREDO, Some("teredo")),
    (v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32), None),
    (v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48), None),
    (v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28), None),
    (v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28), None),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), Some("protocol-assignments")),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), Some("documentation")),
    (SIX_TO_FOUR, Some("6to4")),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), Some("documentation")),
    (v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3), None),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), Some("unique-local")),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), Some("link-local")),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), Some("site-local")),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), Some("multicast")),
    // Only 2000::/3 is global unicast (RFC 4291 §2.4, as IANA assigns it).
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 0), Some("unassigned")),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(allow: &[&str], deny: &[&str], own: &[&str]) -> PeerPolicy {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        PeerPolicy { allow: nets(allow), deny: nets(deny), own: own.iter().map(|text| text.parse().unwrap()).collect() }
    }

    fn judge(policy: &PeerPolicy, address: &str) -> Result<(), Denial> {
        policy.address_allowed(address.parse().unwrap())
    }

    /// Every way to write an IPv4 address into an IPv6 one that some network understands.
    fn spellings(v4: Ipv4Addr) -> Vec<IpAddr> {
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
    fn public_addresses_are_admitted() {
        let policy = policy(&[], &[], &[]);
        for address in ["8.8.8.8", "1.1.1.1", "192.0.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"] {
            assert_eq!(judge(&policy, address), Ok(()), "{address}");
        }
    }

    #[test]
    fn special_purpose_addresses_are_refused_by_name() {
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
            assert_eq!(judge(&policy, address), Err(Denial::Special(name)), "{address}");
        }
    }

    #[test]
    fn every_spelling_of_a_refused_ipv4_address_is_refused() {
        let policy = policy(&[], &["9.9.9.0/24"], &["8.8.4.4"]);
        for v4 in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "9.9.9.9", "8.8.4.4"] {
            for spelling in spellings(v4.parse().unwrap()) {
                assert!(policy.address_allowed(spelling).is_err(), "{v4} as {spelling}");
            }
        }
    }

    #[test]
    fn deny_goes_before_allow_and_allow_before_the_built_in_list() {
        let policy = policy(&["10.0.0.0/8", "fd00::/8", "8.8.4.4/32"], &["10.1.0.0/16", "8.8.8.0/24"], &["8.8.4.4"]);
        assert_eq!(judge(&policy, "10.2.0.1"), Ok(()));
        assert_eq!(judge(&policy, "::ffff:10.2.0.1"), Ok(()));
        assert_eq!(judge(&policy, "10.1.0.1"), Err(Denial::Operator));
        assert_eq!(judge(&policy, "::ffff:10.1.0.1"), Err(Denial::Operator));
        assert_eq!(judge(&policy, "8.8.8.8"), Err(Denial::Operator));
        assert_eq!(judge(&policy, "8.8.4.4"), Ok(()));
        assert_eq!(judge(&policy, "fd12::1"), Ok(()));
        assert_eq!(judge(&policy, "127.0.0.1"), Err(Denial::Special("loopback")));
    }

    // RFC 8656 §21.4: tunnels are refused whatever IPv4 address they lead to, unless the operator says otherwise.
    #[test]
    fn tunnel_ends_are_refused_though_their_ipv4_address_is_public() {
        let (refused, asked_for) = (policy(&["8.0.0.0/8"], &[], &[]), policy(&["2002:808::/32"], &[], &[]));
        for address in ["2001:0:808:808::f7f7:f7f7", "2002:808:808::1", "2002:101:101::1"] {
            assert!(judge(&refused, address).is_err() && is_tunneled(address.parse().unwrap()), "{address}");
        }
        assert_eq!(judge(&asked_for, "2002:808:808::1"), Ok(()));
        for address in ["2001:1::1", "2003::1", "8.8.8.8", "64:ff9b::808:808"] {
            assert!(!is_tunneled(address.parse().unwrap()), "{address}");
        }
    }

    // An admitted IPv4 range must not admit a local-use NAT64 address whose other reading is private.
    #[test]
    fn an_address_with_two_readings_needs_both_to_be_allowed() {
        let policy = policy(&["8.0.0.0/8"], &[], &[]);
        assert!(judge(&policy, "64:ff9b:1:a00:0:100:808:808").is_err());
    }

    #[test]
    fn a_live_relayed_address_of_ours_is_admitted_and_its_neighbour_is_not() {
        let live = LiveRelays::new([("127.0.0.1".parse().unwrap(), "203.0.113.9".parse().unwrap())]);
        let policy = policy(&[], &["127.0.0.0/8"], &["127.0.0.1", "203.0.113.9"]);
        let relay: SocketAddr = "127.0.0.1:50000".parse().unwrap();
        live.set(relay, true);
        assert_eq!(policy.peer_allowed(&live, "203.0.113.9:50000".parse().unwrap()), Ok(relay));
        assert_eq!(policy.peer_allowed(&live, relay), Err(Denial::Operator));
        assert!(policy.peer_allowed(&live, "203.0.113.9:22".parse().unwrap()).is_err());
        assert!(policy.peer_allowed(&live, "127.0.0.1:50001".parse().unwrap()).is_err());
        assert_eq!(policy.permission_allowed(&live, "203.0.113.9".parse().unwrap()), Ok(()));
        assert!(policy.permission_allowed(&live, "127.0.0.2".parse().unwrap()).is_err());
    }

    #[test]
    fn the_servers_own_addresses_are_refused() {
        let policy = policy(&[], &[], &["198.51.99.1", "2a00::7"]);
        assert_eq!(judge(&policy, "198.51.99.1"), Err(Denial::OwnAddress));
        assert_eq!(judge(&policy, "2a00::7"), Err(Denial::OwnAddress));
        assert_eq!(judge(&policy, "2a00::8"), Ok(()));
    }

    /// The prefixes again, as numbers and written down apart from the tables above.
    fn naive_v4(address: Ipv4Addr) -> bool {
        let n = u32::from(address);
        let within = |first: u32, last: u32| (first..=last).contains(&n);
        !(within(0x0000_0000, 0x00ff_ffff)
            || within(0x0a00_0000, 0x0aff_ffff)
            || within(0x6440_0000, 0x647f_ffff)
            || within(0x7f00_0000, 0x7fff_ffff)
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

    /// Addresses at and around the edges of ranges, where a wrong comparison shows.
    fn edgy_v4() -> impl Strategy<Value = Ipv4Addr> {
        let edges = SPECIAL_V4.iter().flat_map(|(net, _)| [u32::from(net.network()), u32::from(net.broadcast())]);
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
        let edges = SPECIAL_V6.iter().flat_map(|(net, _)| [u128::from(net.network()), u128::from(net.broadcast())]);
        let near = (prop::sample::select(edges.collect::<Vec<u128>>()), -2..=2_i128)
            .prop_map(|(edge, step)| Ipv6Addr::from(edge.wrapping_add_signed(step)));
        prop_oneof![near, any::<u128>().prop_map(Ipv6Addr::from)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn ipv4_agrees_with_a_naive_oracle_in_every_spelling(address in edgy_v4()) {
            let policy = policy(&[], &[], &[]);
            prop_assert_eq!(policy.address_allowed(IpAddr::V4(address)).is_ok(), naive_v4(address));
            if !naive_v4(address) {
                for spelling in spellings(address) {
                    prop_assert!(policy.address_allowed(spelling).is_err(), "{} as {}", address, spelling);
                }
            }
        }

        #[test]
        fn ipv6_agrees_with_a_naive_oracle(address in edgy_v6()) {
            prop_assert_eq!(special_range(IpAddr::V6(address)).is_none(), naive_v6(address));
        }
    }
}
