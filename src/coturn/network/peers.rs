//! `[peers]`.
//!
//! coturn denies unspecified, loopback and, with `no-multicast-peers`, multicast addresses before it reads its lists. Then
//! `allowed-peer-ip` takes precedence over `denied-peer-ip`. Here `deny` takes precedence, so the allowed ranges are cut out
//! of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::Verdict::{Default, Dropped, Taken};
use super::super::convert::Converter;
use super::super::write::list;
use super::distinct;
use super::ranges::{self, Range, is_denied_by_default, opens, touches_default};

const UNSPECIFIED: [IpNet; 2] =
    [v4(Ipv4Addr::UNSPECIFIED, 8), IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128))];
const LOOPBACK: [IpNet; 2] = [v4(Ipv4Addr::LOCALHOST, 8), IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128))];
/// coturn counts all IPv4 addresses from 224.0.0.0 on.
const MULTICAST: [IpNet; 2] =
    [v4(Ipv4Addr::new(224, 0, 0, 0), 3), IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8))];

const fn v4(address: Ipv4Addr, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, length))
}

/// The ranges of one of coturn's lists, each with the index of its option.
type Ranges = Vec<(usize, Range)>;

impl Converter<'_> {
    pub(in super::super) fn peers(&mut self) {
        let has_loopback = self.one("allow-loopback-peers");
        let mut always: Vec<Range> = UNSPECIFIED.iter().map(Range::of).collect();
        always.extend(LOOPBACK.iter().filter(|_| has_loopback.is_none()).map(Range::of));
        let no_multicast = self.is_given("no-multicast-peers");
        always.extend(MULTICAST.iter().filter(|_| no_multicast).map(Range::of));

        let allowed = self.parsed_all("allowed-peer-ip", allowed_range);
        let denied = self.denied_ranges();
        let effective: Vec<(usize, Range, Vec<Range>)> =
            allowed.into_iter().map(|(at, range)| (at, range, range.without_all(&always))).collect();
        let exceptions: Vec<Range> = effective.iter().flat_map(|(.., ranges)| ranges.iter().copied()).collect();
        let rest: Vec<(usize, Vec<Range>)> =
            denied.iter().map(|(at, range)| (*at, range.without_all(&exceptions))).collect();

        let mut opened = Vec::new();
        let mut origins = Vec::new();
        for (at, range, ranges) in &effective {
            let pieces = self.allow(*at, range, ranges, &denied);
            origins.extend((!pieces.is_empty()).then_some(*at));
            opened.extend(pieces);
        }
        if let Some(at) = has_loopback {
            let pieces = self.allow_loopback(at, &rest);
            origins.extend((!pieces.is_empty()).then_some(at));
            opened.extend(pieces);
        }
        let opened = distinct(opened);
        for (at, _, ranges) in &effective {
            self.remark_on_allowed(*at, ranges, &opened, no_multicast);
        }
        if !opened.is_empty() {
            let from = self.from(&origins);
            self.out.set("peers.allow", list(opened.iter().map(ranges::short)), from);
        }
        self.deny(&rest, &opened);
        self.compare_private(&denied);
    }

    /// Returns the denied ranges. An IPv4-mapped range becomes its IPv4 range.
    fn denied_ranges(&mut self) -> Ranges {
        let mut denied = Vec::new();
        for (at, (range, is_of_coturn)) in self.parsed_all("denied-peer-ip", Range::parse) {
            if range.is_all_mapped() {
                let text = "an IPv4-mapped address is judged as its IPv4 address, so this notation bypasses nothing";
                self.decide(at, Default, text);
                continue;
            }
            let unmapped = range.unmapped();
            if unmapped.is_some() {
                self.remark(at, "an IPv4-mapped address is judged as its IPv4 address, so that is denied here");
            }
            if !is_of_coturn {
                self.remark(
                    at,
                    "coturn did not apply this line, because it knows only ADDRESS and FIRST-LAST, without a prefix \
                     length or a comment; here it applies",
                );
            }
            denied.push((at, unmapped.unwrap_or(range)));
        }
        denied
    }

    /// Returns what must be allowed, because it is denied by default. `ranges` are the addresses that coturn allows.
    fn allow(&mut self, at: usize, range: &Range, ranges: &[Range], denied: &Ranges) -> Vec<IpNet> {
        if ranges.is_empty() {
            let text = "coturn denies these addresses before it reads `allowed-peer-ip` (loopback addresses unless \
                        `allow-loopback-peers` is set)";
            self.decide(at, Dropped, text);
            return Vec::new();
        }
        let pieces: Vec<_> = ranges.iter().flat_map(Range::networks).filter(touches_default).collect();
        if !pieces.is_empty() {
            self.decide(at, Taken, "`peers.allow`");
        } else if denied.iter().any(|(_, denied)| denied.overlaps(range)) {
            self.decide(at, Taken, "an exception from the ranges of `peers.deny`, which do not contain it");
        } else {
            self.decide(at, Default, "public addresses are allowed");
        }
        if ranges != [*range] {
            self.remark(at, "without the addresses in it that coturn always denies");
        }
        pieces
    }

    /// Returns the loopback addresses that no range in `denied` contains.
    fn allow_loopback(&mut self, at: usize, denied: &[(usize, Vec<Range>)]) -> Vec<IpNet> {
        let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let is_denied = |address: IpAddr| denied.iter().flat_map(|(_, ranges)| ranges).any(|range| range.has(address));
        let allowed: Vec<_> = addresses.into_iter().filter(|address| !is_denied(*address)).map(IpNet::from).collect();
        if allowed.is_empty() {
            self.decide(at, Dropped, "`denied-peer-ip` has the loopback addresses, so coturn denies them");
        } else {
            let text = "`peers.allow`: with it, clients reach the services of this machine that listen on loopback \
                        addresses. Remove it unless you need that";
            self.decide(at, Taken, text);
        }
        if allowed.len() == 1 {
            self.remark(at, "without the loopback addresses in `denied-peer-ip`");
        }
        allowed
    }

    /// Says which addresses of this machine and which multicast addresses an allowed range opens.
    fn remark_on_allowed(&mut self, at: usize, ranges: &[Range], opened: &[IpNet], no_multicast: bool) {
        let own = self.machine.iter().filter(|own| ranges.iter().any(|range| range.has(**own)));
        let (exact, wide): (Vec<&IpAddr>, Vec<&IpAddr>) = own.partition(|own| opened.contains(&IpNet::from(**own)));
        let names = |own: &[&IpAddr]| own.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        if !exact.is_empty() {
            let names = names(&exact);
            self.remark(
                at,
                &format!(
                    "the list then names {names} of this machine, so clients reach the services on it, as with coturn: \
                     remove it unless you need that"
                ),
            );
        }
        if !wide.is_empty() {
            let names = names(&wide);
            self.remark(at, &format!("{names} of this machine stays denied, because the list does not name it alone"));
        }
        let has_multicast =
            MULTICAST.iter().map(Range::of).any(|multicast| ranges.iter().any(|range| range.overlaps(&multicast)));
        if has_multicast && !no_multicast {
            self.remark(
                at,
                "this includes multicast or broadcast addresses, as in coturn without `no-multicast-peers`: remove them \
                 from `peers.allow` unless you need them",
            );
        }
    }

    /// Denies the ranges that are not denied by default, or that an entry of `opened` would open.
    fn deny(&mut self, denied: &[(usize, Vec<Range>)], opened: &[IpNet]) {
        let mut networks = Vec::new();
        let mut origins = Vec::new();
        for (at, ranges) in denied {
            if ranges.is_empty() {
                let text = "`allowed-peer-ip` has all of these addresses, and takes precedence in coturn";
                self.decide(*at, Dropped, text);
                continue;
            }
            let is_needed = |net: &IpNet| !is_denied_by_default(net) || opened.iter().any(|opened| opens(opened, net));
            let pieces: Vec<_> = ranges.iter().flat_map(Range::networks).filter(is_needed).collect();
            if pieces.is_empty() {
                self.decide(*at, Default, "these special-purpose addresses are denied");
                continue;
            }
            self.decide(*at, Taken, "`peers.deny`");
            origins.push(*at);
            networks.extend(pieces);
        }
        if !networks.is_empty() {
            let from = self.from(&origins);
            self.out.set("peers.deny", list(distinct(networks).iter().map(ranges::short)), from);
        }
    }

    fn compare_private(&mut self, denied: &Ranges) {
        let private = [
            v4(Ipv4Addr::new(10, 0, 0, 0), 8),
            v4(Ipv4Addr::new(172, 16, 0, 0), 12),
            v4(Ipv4Addr::new(192, 168, 0, 0), 16),
        ];
        let is_denied = |private: Range| denied.iter().any(|(_, range)| range.contains(&private));
        if !private.iter().map(Range::of).all(is_denied) {
            self.differences.push(
                "coturn relays to private addresses unless `denied-peer-ip` has them; here they are denied. If clients \
                 must reach servers in a private network (a media server, for example), add those to `peers.allow`"
                    .to_owned(),
            );
        }
    }
}

/// Parses a range that coturn would allow, too.
fn allowed_range(value: &str) -> Result<Range, String> {
    let (range, is_of_coturn) = Range::parse(value)?;
    let networks =
        || range.networks().iter().map(|net| format!("{:?}", ranges::short(net))).collect::<Vec<_>>().join(", ");
    if range.is_mapped() {
        Err("an IPv4-mapped address is judged as its IPv4 address: add that to `peers.allow`".to_owned())
    } else if !is_of_coturn {
        Err(format!(
            "coturn did not apply this line, because it knows only ADDRESS and FIRST-LAST, without a prefix length or a \
             comment: if clients should reach these addresses, write `allow = [{}]` in `[peers]`",
            networks()
        ))
    } else {
        Ok(range)
    }
}
