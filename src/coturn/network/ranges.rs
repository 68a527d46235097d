//! Ranges of addresses, as coturn writes them, and the ranges that the server denies by default.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::super::value::address;
use crate::special_purpose;

/// An inclusive range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl Range {
    /// Parses `ADDRESS`, `FIRST-LAST` or a prefix. Returns also whether coturn knows this form: it has neither prefixes
    /// nor comments. As there, blanks are permitted around each address.
    pub(super) fn parse(value: &str) -> Result<(Self, bool), String> {
        let text = value.split(['#', ';']).next().unwrap_or_default().trim();
        let wrong = || format!("`{text}` is not a range of addresses: correct `peers`");
        let single = |part: &str| match part.trim() {
            part if part.contains([' ', '\t']) => Err(wrong()),
            part => address(part),
        };
        let network = text.parse::<IpNet>().ok().filter(|_| text.contains('/'));
        let range = match (network, text.split_once('-')) {
            (Some(network), _) => Self::of(&network),
            (None, Some((first, last))) => Self { first: single(first)?, last: single(last)? },
            (None, None) => single(text).map(|address| Self { first: address, last: address })?,
        };
        if range.first.is_ipv4() != range.last.is_ipv4() || range.first > range.last {
            return Err(wrong());
        }
        Ok((range, network.is_none() && value.trim() == text))
    }

    pub(super) fn of(network: &IpNet) -> Self {
        Self { first: network.network(), last: network.broadcast() }
    }

    pub(super) fn contains(&self, other: &Self) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4() && self.first <= other.first && other.last <= self.last
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.contains(&Self { first: address, last: address })
    }

    /// Whether the range has IPv4-mapped addresses only.
    pub(super) fn is_mapped(&self) -> bool {
        self.unmapped().is_some()
    }

    /// Whether the range has all IPv4-mapped addresses, and no others.
    pub(super) fn is_all_mapped(&self) -> bool {
        let all = Self { first: Ipv4Addr::UNSPECIFIED.into(), last: Ipv4Addr::BROADCAST.into() };
        self.unmapped() == Some(all)
    }

    /// Returns the IPv4 range of a range of IPv4-mapped addresses.
    pub(super) fn unmapped(&self) -> Option<Self> {
        let v4 = |address| match address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        Some(Self { first: v4(self.first)?, last: v4(self.last)? })
    }

    /// Returns the parts of the range that are not in another one.
    pub(super) fn without(&self, other: &Self) -> Vec<Self> {
        if !self.overlaps(other) {
            return vec![*self];
        }
        let before = previous(other.first).filter(|last| *last >= self.first && self.first < other.first);
        let after = next(other.last).filter(|first| *first <= self.last && self.last > other.last);
        let before = before.map(|last| Self { first: self.first, last });
        before.into_iter().chain(after.map(|first| Self { first, last: self.last })).collect()
    }

    /// Returns the parts of the range that are in none of the others.
    pub(super) fn without_all(&self, others: &[Self]) -> Vec<Self> {
        others.iter().fold(vec![*self], |rest, other| rest.iter().flat_map(|range| range.without(other)).collect())
    }

    /// Returns the fewest prefixes that make up the range.
    pub(super) fn networks(&self) -> Vec<IpNet> {
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
            (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
            _ => Vec::new(),
        }
    }
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// Returns the special-purpose ranges, and whether they are globally reachable.
fn special() -> impl Iterator<Item = (IpNet, bool)> {
    let v4 = special_purpose::V4.iter().map(|(net, range)| (IpNet::V4(*net), range.is_globally_reachable()));
    v4.chain(special_purpose::V6.iter().map(|(net, range)| (IpNet::V6(*net), range.is_globally_reachable())))
}

/// Whether all addresses of a network are denied by default.
pub(super) fn is_denied_by_default(network: &IpNet) -> bool {
    special().any(|(range, is_reachable)| !is_reachable && range.contains(network))
        && !special().any(|(range, is_reachable)| is_reachable && overlap(&range, network))
}

/// Whether some addresses of a network are denied by default.
pub(super) fn touches_default(network: &IpNet) -> bool {
    special().any(|(range, is_reachable)| !is_reachable && overlap(&range, network))
}

/// Whether an entry of `peers.allow` opens addresses of a network, also those that it contains in another form.
pub(super) fn opens(entry: &IpNet, network: &IpNet) -> bool {
    let has_forms = |entry: &IpNet| matches!(entry, IpNet::V6(v6) if !special_purpose::embedded_forms(*v6).is_empty());
    overlap(entry, network) || matches!(network, IpNet::V4(_)) && has_forms(entry)
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Returns a prefix as text, and one address without its length.
pub(super) fn short(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        Range::parse(text).unwrap().0
    }

    fn networks(ranges: &[Range]) -> Vec<String> {
        ranges.iter().flat_map(Range::networks).map(|network| short(&network)).collect()
    }

    #[test]
    fn a_range_becomes_the_fewest_prefixes() {
        for (text, expected) in [
            ("10.0.0.0-10.255.255.255", &["10.0.0.0/8"][..]),
            ("192.0.2.1 # one", &["192.0.2.1"]),
            ("192.0.2.0/24", &["192.0.2.0/24"]),
            ("192.0.2.1-192.0.2.4", &["192.0.2.1", "192.0.2.2/31", "192.0.2.4"]),
            ("0.0.0.0-255.255.255.255", &["0.0.0.0/0"]),
            ("192.0.2.0 - 192.0.2.255", &["192.0.2.0/24"]),
            ("192.0.2.0 -192.0.2.255", &["192.0.2.0/24"]),
            ("192.0.2.0-\t192.0.2.255 # all", &["192.0.2.0/24"]),
            ("fc00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", &["fc00::/7"]),
        ] {
            assert_eq!(networks(&[range(text)]), expected, "{text}");
        }
        for wrong in [
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-::1",
            "8.8.8.0-8.8.8.2x",
            "10.0.0.0/33",
            "example.org",
            "8.8.8.0 8.8.8.255",
            "8.8.8.0 - 8.8.8.255 all",
            "",
        ] {
            assert!(Range::parse(wrong).is_err(), "{wrong}");
        }
        for (text, is_of_coturn) in [
            ("192.0.2.1", true),
            ("::1-::2", true),
            ("192.0.2.0 - 192.0.2.9", true),
            ("192.0.2.0/24", false),
            ("192.0.2.1 # one", false),
        ] {
            assert_eq!(Range::parse(text).unwrap().1, is_of_coturn, "{text}");
        }
    }

    #[test]
    fn a_range_is_cut_out_of_another_one() {
        let all = range("0.0.0.0-255.255.255.255");
        assert_eq!(all.without(&all), []);
        assert_eq!(all.without(&range("::1")), [all]);
        assert_eq!(all.without(&range("0.0.0.0-127.255.255.255")), [range("128.0.0.0-255.255.255.255")]);
        let small = range("192.0.2.0-192.0.2.7");
        assert_eq!(small.without(&range("192.0.2.3")), [range("192.0.2.0-192.0.2.2"), range("192.0.2.4-192.0.2.7")]);
        assert_eq!(small.without(&range("192.0.2.6-192.0.2.9")), [range("192.0.2.0-192.0.2.5")]);
    }

    #[test]
    fn the_ranges_of_guides_are_denied_by_default() {
        for text in [
            "0.0.0.0-0.255.255.255",
            "10.0.0.0-10.255.255.255",
            "100.64.0.0-100.127.255.255",
            "127.0.0.0-127.255.255.255",
            "169.254.0.0-169.254.255.255",
            "172.16.0.0-172.31.255.255",
            "192.0.0.0-192.0.0.255",
            "192.0.2.0-192.0.2.255",
            "192.88.99.0-192.88.99.255",
            "192.168.0.0-192.168.255.255",
            "198.18.0.0-198.19.255.255",
            "203.0.113.0-203.0.113.255",
            "240.0.0.0-255.255.255.255",
            "::1",
            "fc00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            assert!(range(text).networks().iter().all(is_denied_by_default), "{text}");
        }
        assert!(!range("8.8.8.8").networks().iter().any(touches_default));
        let all = range("0.0.0.0-255.255.255.255").networks();
        assert!(all.iter().all(touches_default) && !all.iter().any(is_denied_by_default));
    }
}
