//! The packet filter of this machine: whether it drops what the server has to receive.

mod filter;
mod iptables;
mod nftables;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::process::Command;

use nix::unistd::geteuid;

use self::filter::{Filter, Outcome, Packet};
use crate::config::Config;
use crate::control::Choice;
use crate::doctor::finding::Finding;
use crate::stun::attribute::AddressFamily;

/// Ports that have to be open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Needed {
    family: AddressFamily,
    /// `udp` or `tcp`.
    protocol: &'static str,
    first: u16,
    last: u16,
}

/// Examines the rules of nftables and iptables, as far as they can be read. `None` if they drop nothing, or if this process
/// is not root.
pub(super) fn examine(config: &Config, choice: &Choice) -> Option<Finding> {
    if !geteuid().is_root() {
        return None;
    }
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let mut filters = Vec::new();
    for (program, family) in [("iptables-save", AddressFamily::V4), ("ip6tables-save", AddressFamily::V6)] {
        filters.extend(output(program, &[]).map(|rules| iptables::parse(&rules, family)).unwrap_or_default());
    }
    let by_nftables = output("nft", &["--json", "list", "ruleset"]).map(|rules| nftables::parse(&rules));
    // Tables of iptables may be those of nftables.
    let is_new = |own: &Filter| !filters.iter().any(|other| (&other.entry, other.family) == (&own.entry, own.family));
    let by_nftables: Vec<Filter> = by_nftables.unwrap_or_default().into_iter().filter(is_new).collect();
    filters.extend(by_nftables);
    judge(&filters, &needed(config, choice), &interfaces(choice))
}

/// Returns the interfaces with the relay addresses, except the loopback interface.
fn interfaces(choice: &Choice) -> Vec<String> {
    let all = crate::net::interfaces::read().unwrap_or_default().addresses;
    let is_used = |ip| choice.addresses.iter().any(|relay| relay.bind == ip);
    let names = all.into_iter().filter(|own| is_used(own.address) && own.name != "lo").map(|own| own.name);
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Returns the ports of the listeners and of the relay addresses, without those that only this machine uses.
fn needed(config: &Config, choice: &Choice) -> BTreeSet<Needed> {
    let mut needed = BTreeSet::new();
    for endpoint in config.listen.iter().filter(|endpoint| endpoint.address.port() > 0) {
        let (ip, port) = (endpoint.address.ip(), endpoint.address.port());
        if ip.is_loopback() {
            continue;
        }
        let own = AddressFamily::of(ip);
        for family in [AddressFamily::V4, AddressFamily::V6] {
            // A socket of [::] also receives IPv4.
            let is_received = own == family || (ip.is_unspecified() && ip.is_ipv6());
            let is_used = choice.addresses.iter().any(|relay| AddressFamily::of(relay.bind) == family);
            if is_received && (is_used || !ip.is_unspecified()) {
                let protocol = endpoint.transport.port_protocol();
                needed.insert(Needed { family, protocol, first: port, last: port });
            }
        }
    }
    for relay in choice.addresses.iter().filter(|relay| !relay.bind.is_loopback()) {
        let (first, last) = (*config.relay.ports.start(), *config.relay.ports.end());
        needed.insert(Needed { family: AddressFamily::of(relay.bind), protocol: "udp", first, last });
    }
    needed
}

/// Returns what the filters do with new packets from elsewhere. `None` if they can drop none.
fn judge(filters: &[Filter], needed: &BTreeSet<Needed>, interfaces: &[String]) -> Option<Finding> {
    let filters: Vec<&Filter> = filters.iter().filter(|filter| filter.can_drop()).collect();
    let programs: BTreeSet<&str> = filters.iter().map(|filter| filter.program).collect();
    if programs.is_empty() {
        return None;
    }
    let drop = if programs.len() == 1 { "drops" } else { "drop" };
    let programs = programs.into_iter().collect::<Vec<_>>().join(" and ");
    let bounds: BTreeSet<u16> = filters.iter().flat_map(|filter| filter.bounds()).collect();
    let (mut closed, mut uncertain) = (Vec::new(), Vec::new());
    for needed in needed {
        let outcome = |port: u16| {
            let packet = Packet { family: needed.family, protocol: needed.protocol, port, interfaces };
            filters.iter().map(|filter| filter.judge(&packet)).max().unwrap_or(Outcome::Open)
        };
        for (ports, outcome) in ranges(needed.first..=needed.last, &bounds, outcome) {
            let version = if needed.family == AddressFamily::V4 { "IPv4" } else { "IPv6" };
            let ports = match (ports.start(), ports.end()) {
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            };
            let shown = format!("{} {ports} ({version})", needed.protocol);
            match outcome {
                Outcome::Open => {}
                Outcome::Uncertain => uncertain.push(shown),
                Outcome::Closed => closed.push(shown),
            }
        }
    }
    let advice = |ports: &str| {
        format!(
            "accept {ports} from everywhere (ufw: `ufw allow PORT/udp`; firewalld: `firewall-cmd --permanent \
             --add-port=PORT/udp` and `firewall-cmd --reload`)"
        )
    };
    Some(if !closed.is_empty() {
        let closed = closed.join(", ");
        Finding::fault("firewall", format!("{programs} of this machine {drop} {closed}"), advice(&closed))
    } else if !uncertain.is_empty() {
        let uncertain = uncertain.join(", ");
        Finding::warning(
            "firewall",
            format!(
                "{programs} of this machine {drop} {uncertain}, unless a rule about addresses or rates accepts them"
            ),
            advice(&uncertain),
        )
    } else {
        Finding::ok(
            "firewall",
            format!("the rules of {programs} that depend on no address and no rate accept all ports of the server"),
        )
    })
}

/// Returns the parts of a range of ports with their outcomes, which change at `bounds` only.
fn ranges(
    ports: RangeInclusive<u16>,
    bounds: &BTreeSet<u16>,
    outcome: impl Fn(u16) -> Outcome,
) -> Vec<(RangeInclusive<u16>, Outcome)> {
    let (first, last) = (*ports.start(), *ports.end());
    let mut ranges: Vec<(RangeInclusive<u16>, Outcome)> = Vec::new();
    let starts = bounds.range(first..=last).copied().filter(|bound| *bound > first);
    for start in std::iter::once(first).chain(starts) {
        let found = outcome(start);
        if let Some((range, _)) = ranges.last_mut() {
            *range = *range.start()..=start - 1;
        }
        match ranges.last_mut() {
            Some((_, before)) if *before == found => {}
            _ => ranges.push((start..=last, found)),
        }
    }
    if let Some((range, _)) = ranges.last_mut() {
        *range = *range.start()..=last;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Status;

    fn needed() -> BTreeSet<Needed> {
        let of = |family, protocol, first, last| Needed { family, protocol, first, last };
        [
            of(AddressFamily::V4, "udp", 3478, 3478),
            of(AddressFamily::V4, "tcp", 3478, 3478),
            of(AddressFamily::V4, "udp", 49_152, 65_535),
        ]
        .into()
    }

    fn check(rules: &str) -> Option<Finding> {
        let text = format!("*filter\n:INPUT DROP [0:0]\n:own - [0:0]\n{rules}COMMIT\n");
        judge(&iptables::parse(&text, AddressFamily::V4), &needed(), &["eth0".to_owned()])
    }

    #[test]
    fn closed_ports_are_named_with_their_ranges() {
        let found = check("-A INPUT -p udp -m udp --dport 49152:60000 -j ACCEPT\n").unwrap();
        assert_eq!(
            (found.status, found.what.as_str()),
            (Status::Fault, "iptables of this machine drops tcp 3478 (IPv4), udp 3478 (IPv4), udp 60001-65535 (IPv4)")
        );
        let open = "-A INPUT -p udp -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 3478 -j ACCEPT\n";
        let found = check(open).unwrap();
        assert_eq!((found.status, found.what.ends_with("accept all ports of the server")), (Status::Ok, true));
        let some = check("-A INPUT -s 192.0.2.0/24 -j ACCEPT\n").unwrap();
        assert_eq!(some.status, Status::Warning);
        assert!(some.what.contains("udp 49152-65535 (IPv4), unless a rule about addresses"), "{some:?}");
        // Only packets through other interfaces, and from all but one network.
        let other =
            "-A INPUT -i docker0 -j ACCEPT\n-A INPUT ! -s 192.168.0.0/16 -p udp -j DROP\n-A INPUT -i eth+ -j ACCEPT\n";
        assert!(check(other).unwrap().what.ends_with("drops udp 3478 (IPv4), udp 49152-65535 (IPv4)"));
    }

    #[test]
    fn a_filter_that_drops_nothing_is_not_mentioned() {
        let text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n";
        assert_eq!(judge(&iptables::parse(text, AddressFamily::V4), &needed(), &[]), None);
        assert_eq!(judge(&[], &needed(), &[]), None);
    }

    #[test]
    fn outcomes_are_joined_between_the_ports_at_which_they_change() {
        let outcome = |port| if (100..200).contains(&port) { Outcome::Closed } else { Outcome::Open };
        let bounds = [1, 50, 100, 150, 200, 900].into();
        assert_eq!(
            ranges(10..=300, &bounds, outcome),
            [(10..=99, Outcome::Open), (100..=199, Outcome::Closed), (200..=300, Outcome::Open)]
        );
        assert_eq!(ranges(120..=120, &bounds, outcome), [(120..=120, Outcome::Closed)]);
    }
}
