//! Classification of addresses by their range.

use std::net::IpAddr;

use crate::special_purpose::{self, Reach};

/// From where an address can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reachability {
    /// From everywhere, according to its range.
    Global,
    /// At most from some networks. The text names the kind of range, as an adjective before "address" in a message.
    Private(&'static str),
    /// From the same link.
    LinkLocal,
    /// From this machine.
    Loopback,
}

use Reachability::{Global, LinkLocal, Loopback, Private};

/// Classifies an address according to IANA's registries of special-purpose addresses.
pub(super) fn reachability(ip: IpAddr) -> Reachability {
    let Some(range) = special_purpose::find(ip.to_canonical()) else { return Global };
    match range.reach {
        Reach::Machine => Loopback,
        Reach::Link => LinkLocal,
        Reach::Limited | Reach::Mapped => Private(range.kind),
        Reach::Global => Global,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_is_classified_at_both_of_its_ends() {
        let table = [
            (Global, &["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"][..]),
            (Global, &["172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255"]),
            (Global, &["198.17.255.255", "198.20.0.0", "169.253.255.255", "126.255.255.255", "128.0.0.0"]),
            (Global, &["2000::", "2001:200::1", "2001:db7::1", "2001:db9::1", "2a00::1", "3ffe::1", "3fff:1000::1"]),
            (Global, &["::ffff:1.1.1.1", "192.88.98.255", "192.88.100.0", "2001:3::1", "2001:4:112::1"]),
            (Private("private"), &["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255"]),
            (Private("private"), &["192.168.0.0", "192.168.255.255", "::ffff:10.0.0.1"]),
            (Private("carrier-grade NAT"), &["100.64.0.0", "100.127.255.255"]),
            (Private("documentation"), &["192.0.2.255", "198.51.100.0", "203.0.113.7", "2001:db8::1", "3fff:fff::1"]),
            (Private("benchmarking"), &["198.18.0.0", "198.19.255.255", "2001:2::1"]),
            (Private("multicast"), &["224.0.0.0", "239.255.255.255", "ff02::1"]),
            (Private("reserved"), &["0.0.0.0", "0.255.255.255", "192.0.0.8", "240.0.0.0", "255.255.255.255"]),
            (Private("reserved"), &["::", "64:ff9b::1", "64:ff9b:1::1", "100::1", "2001:1::1", "4000::", "5f00::"]),
            (Private("unique local"), &["fc00::", "fdff:ffff::1"]),
            (Private("site-local"), &["fec0::1", "feff::1"]),
            (Private("Teredo"), &["2001:0:1::1"]),
            (Private("6to4"), &["2002:101:101::1"]),
            (Private("6to4 relay"), &["192.88.99.0", "192.88.99.255"]),
            (Private("non-routable"), &["2001:20::1", "2001:2f:ffff::1", "2001:30::1", "2001:3f:ffff::1"]),
            (LinkLocal, &["169.254.0.0", "169.254.255.255", "fe80::1", "febf::1"]),
            (Loopback, &["127.0.0.0", "127.255.255.255", "::1", "::ffff:127.0.0.1"]),
        ];
        for (expected, addresses) in table {
            for address in addresses {
                assert_eq!(reachability(address.parse().unwrap()), expected, "{address}");
            }
        }
    }
}
