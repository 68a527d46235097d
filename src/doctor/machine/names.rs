//! The public name and address of the server.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;

use crate::client::{Request, Success};
use crate::config::Config;
use crate::control::{Choice, RelayAddress};
use crate::doctor::finding::Finding;
use crate::doctor::link::Link;
use crate::doctor::remote::Report;
use crate::doctor::session::Session;
use crate::net::interfaces;
use crate::special_purpose::{self, Reach};

/// The port of STUN.
const STUN_PORT: u16 = 3478;

/// Public addresses of each family. Nothing is sent to them.
const ELSEWHERE: [(&str, IpAddr); 2] = [
    ("IPv4", IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1))),
    ("IPv6", IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111))),
];

/// Examines `hostname`, and the public address as a STUN server elsewhere sees it. `root` is `/`.
pub(super) fn examine(root: &Path, config: &Config, choice: &Choice, stun: Option<&str>, report: Report<'_>) {
    let advertised: BTreeSet<IpAddr> = choice.addresses.iter().map(|relay| relay.advertised).collect();
    let inner: BTreeSet<IpAddr> =
        choice.addresses.iter().map(|relay| relay.bind).filter(|ip| !advertised.contains(ip)).collect();
    if let Some(hostname) = config.hostname.as_deref().filter(|host| needs_dns(host)) {
        let local = in_hosts(&fs::read_to_string(root.join("etc/hosts")).unwrap_or_default(), hostname);
        for finding in compare(hostname, resolve(hostname), &Known { local, inner, advertised }) {
            report(finding.of(hostname));
        }
    }
    if let Some(server) = stun {
        for finding in public_addresses(server, choice) {
            report(finding.of(server));
        }
    }
}

/// Examines whether packets to other networks have a route.
pub(super) fn examine_routes(choice: &Choice, report: Report<'_>) {
    for (name, elsewhere) in ELSEWHERE {
        let is_public = |ip: &IpAddr| {
            ip.is_ipv4() == elsewhere.is_ipv4()
                && special_purpose::find(*ip).is_none_or(|range| range.reach == Reach::Global)
        };
        if !choice.addresses.iter().any(|relay| is_public(&relay.advertised)) {
            continue;
        }
        report(if interfaces::source_for(elsewhere).is_some() {
            Finding::ok("route", format!("{name} has a route to other networks"))
        } else {
            Finding::fault(
                "route",
                format!("{name} has no route to other networks, so peers there cannot be reached"),
                format!("configure a default route for {name}, or remove its address from relay.addresses"),
            )
        });
    }
}

/// Whether a host is a name: an address needs no DNS.
fn needs_dns(host: &str) -> bool {
    !host.starts_with('[') && host.parse::<IpAddr>().is_err()
}

/// Returns the addresses that a file like `/etc/hosts` gives a name.
fn in_hosts(text: &str, name: &str) -> BTreeSet<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let of_name = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    lines.filter_map(of_name).collect()
}

fn resolve(host: &str) -> std::io::Result<BTreeSet<IpAddr>> {
    Ok((host, STUN_PORT).to_socket_addrs()?.map(|address| address.ip().to_canonical()).collect())
}

/// Addresses with which those of a name are compared.
struct Known {
    /// Those that the name has in `/etc/hosts`.
    local: BTreeSet<IpAddr>,
    /// Those of this machine that a router maps to others.
    inner: BTreeSet<IpAddr>,
    advertised: BTreeSet<IpAddr>,
}

/// Compares the addresses of a name with those that the server advertises.
fn compare(
    host: &str,
    resolved: std::io::Result<BTreeSet<IpAddr>>,
    Known { local, inner, advertised }: &Known,
) -> Vec<Finding> {
    let none = |why: String| {
        let advice = "add an A record with the public address of this machine";
        vec![Finding::fault("dns", format!("{host} has no address{why}"), advice)]
    };
    let all = match resolved {
        Ok(resolved) if resolved.is_empty() => return none(String::new()),
        Ok(resolved) => resolved,
        Err(error) => return none(format!(": {error}")),
    };
    // Debian gives the name of a machine the address 127.0.1.1 there.
    let is_own = |ip: &IpAddr| ip.is_loopback() && local.contains(ip);
    let resolved: BTreeSet<IpAddr> = all.into_iter().filter(|ip| !is_own(ip)).collect();
    if resolved.is_empty() {
        return vec![Finding::ok("dns", format!("/etc/hosts of this machine has {host}; DNS was not examined"))];
    }
    let list = |addresses: &mut dyn Iterator<Item = &IpAddr>| {
        addresses.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let mut findings = Vec::new();
    for (record, is_family) in [("A", IpAddr::is_ipv4 as fn(&IpAddr) -> bool), ("AAAA", IpAddr::is_ipv6)] {
        let named: BTreeSet<&IpAddr> = resolved.iter().filter(|ip| is_family(ip)).collect();
        let own: BTreeSet<&IpAddr> = advertised.iter().filter(|ip| is_family(ip)).collect();
        let (shown, ours) = (list(&mut named.iter().copied()), list(&mut own.iter().copied()));
        let loops = list(&mut named.iter().copied().filter(|ip| ip.is_loopback() && !own.contains(ip)));
        if !loops.is_empty() {
            findings.push(Finding::fault(
                "dns",
                format!("the {record} record names {loops}: clients look for the server on their own machine"),
                format!("name the public address of the server in the {record} record"),
            ));
            continue;
        }
        findings.push(match (named.is_empty(), own.is_empty()) {
            (true, true) => continue,
            (true, false) => Finding::warning(
                "dns",
                format!("there is no {record} record, so clients do not use {ours}"),
                format!("add an {record} record with this address"),
            ),
            (false, true) => Finding::warning(
                "dns",
                format!("the {record} record names {shown}, but the server relays no such family"),
                format!("remove the {record} record, or give the machine an address of that family"),
            ),
            // As clients in the network of the server need it, if the router does not return their packets.
            (false, false) if named.iter().all(|ip| inner.contains(ip)) => Finding::ok(
                "dns",
                format!("the {record} record names {shown}, the inner address; DNS outside was not examined"),
            ),
            (false, false) if named.is_disjoint(&own) => Finding::fault(
                "dns",
                format!("the {record} record names {shown}, but the server is at {ours}"),
                format!("correct the {record} record, or set relay.external if the router maps one to the other"),
            ),
            (false, false) => Finding::ok("dns", format!("the {record} record names {shown}")),
        });
    }
    findings
}

/// Compares the addresses that a STUN server sees with those that this server advertises.
fn public_addresses(server: &str, choice: &Choice) -> Vec<Finding> {
    let server = server.strip_prefix("stun:").unwrap_or(server);
    let has_port =
        server.parse::<Ipv6Addr>().is_err() && server.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with(':');
    let host = server.trim_start_matches('[').trim_end_matches(']');
    let resolved = if has_port { server.to_socket_addrs() } else { (host, STUN_PORT).to_socket_addrs() };
    let resolved: Vec<SocketAddr> = match resolved {
        Ok(found) => found.collect(),
        Err(error) => {
            return vec![Finding::fault("public-address", error.to_string(), "correct the name of the STUN server")];
        }
    };
    let of_relay = |relay: &RelayAddress| {
        if relay.bind.is_loopback() {
            return None;
        }
        let address = resolved.iter().find(|address| address.is_ipv4() == relay.bind.is_ipv4())?;
        Some(public_address(ask(*address, relay.bind), relay, choice))
    };
    let findings: Vec<Finding> = choice.addresses.iter().filter_map(of_relay).collect();
    if !findings.is_empty() {
        return findings;
    }
    let what = "the STUN server has no address of a family that this server relays";
    vec![Finding::fault("public-address", what, "use another one")]
}

/// Judges the address that a STUN server sees for a relay address.
fn public_address(mapped: Result<IpAddr, String>, relay: &RelayAddress, choice: &Choice) -> Finding {
    let RelayAddress { bind, advertised, .. } = relay;
    let is_own = |ip: &IpAddr| choice.addresses.iter().any(|other| other.bind == *ip);
    match mapped {
        Err(error) => Finding::warning(
            "public-address",
            format!("the STUN server does not report the public address of {bind}: {error}"),
            "check that UDP leaves this machine, or use another STUN server",
        ),
        Ok(mapped) if mapped == *advertised => {
            Finding::ok("public-address", format!("{bind} is {mapped} outside, which the server advertises"))
        }
        Ok(mapped) => Finding::fault(
            "public-address",
            format!("{bind} is {mapped} outside, but the server advertises {advertised}"),
            if is_own(&mapped) {
                "look for a rule of the firewall that changes the source address of packets".to_owned()
            } else {
                format!("set relay.external = {{ \"{bind}\" = \"{mapped}\" }} if the router maps one to the other")
            },
        ),
    }
}

/// Asks a STUN server for the address that it sees for an address of this machine.
fn ask(server: SocketAddr, bind: IpAddr) -> Result<IpAddr, String> {
    let link = Link::udp_from(bind, server).map_err(|error| error.to_string())?;
    let mut session = Session::new(link, None).map_err(|error| error.to_string())?;
    match session.request(Request::Binding) {
        Ok(Success::Binding(mapped)) => Ok(mapped.ip().to_canonical()),
        Ok(_) => Err("the response is not one to a Binding request".to_owned()),
        Err(problem) => Err(problem.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Status;

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn records_are_compared_with_the_advertised_addresses_of_their_family() {
        let check = |resolved: &[&str], advertised: &[&str]| {
            let known = Known { local: set(&["127.0.1.1"]), inner: set(&["10.0.0.5"]), advertised: set(advertised) };
            let found = compare("turn.example.org", Ok(set(resolved)), &known);
            found.into_iter().map(|finding| (finding.status, finding.what)).collect::<Vec<_>>()
        };
        let ok_text = "the A record names 203.0.113.1";
        let ok = (Status::Ok, ok_text.to_owned());
        assert_eq!(check(&["203.0.113.1"], &["203.0.113.1"]), std::slice::from_ref(&ok));
        let wrong = check(&["203.0.113.2"], &["203.0.113.1"]);
        assert_eq!(
            wrong,
            [(Status::Fault, "the A record names 203.0.113.2, but the server is at 203.0.113.1".to_owned())]
        );
        let inner = check(&["10.0.0.5"], &["203.0.113.1"]);
        assert!(matches!(inner.as_slice(), [(Status::Ok, text)] if text.contains("the inner address")), "{inner:?}");
        assert_eq!(check(&["10.0.0.5", "203.0.113.9"], &["203.0.113.1"])[0].0, Status::Fault);
        let missing = check(&["203.0.113.1"], &["203.0.113.1", "2001:db8::1"]);
        let text = "there is no AAAA record, so clients do not use 2001:db8::1".to_owned();
        assert_eq!(missing, [ok.clone(), (Status::Warning, text)]);
        let useless = check(&["203.0.113.1", "2001:db8::1"], &["203.0.113.1"]);
        let text = "the AAAA record names 2001:db8::1, but the server relays no such family".to_owned();
        assert_eq!(useless, [ok, (Status::Warning, text)]);
        let hosts = check(&["127.0.1.1"], &["203.0.113.1"]);
        assert!(matches!(hosts.as_slice(), [(Status::Ok, text)] if text.starts_with("/etc/hosts")), "{hosts:?}");
        assert_eq!(check(&["127.0.1.1", "203.0.113.1"], &["203.0.113.1"]), [(Status::Ok, ok_text.to_owned())]);
        // Another loopback address comes from DNS.
        for resolved in [&["127.0.0.1"][..], &["127.0.0.1", "203.0.113.1"], &["127.0.0.1", "127.0.1.1"]] {
            let found = check(resolved, &["203.0.113.1"]);
            assert!(
                matches!(found.as_slice(), [(Status::Fault, text)] if text.starts_with("the A record names 127.0.0.1:")),
                "{found:?}"
            );
        }
        assert_eq!(check(&["127.0.0.1"], &["127.0.0.1"])[0].0, Status::Ok, "the server is only for this machine");
        for resolved in [Err(std::io::Error::other("no")), Ok(set(&[]))] {
            let known = Known { local: set(&[]), inner: set(&[]), advertised: set(&["203.0.113.1"]) };
            let none = compare("turn.example.org", resolved, &known);
            assert!(matches!(none.as_slice(), [Finding { status: Status::Fault, .. }]), "{none:?}");
        }
    }

    #[test]
    fn a_name_has_the_addresses_that_the_hosts_file_gives_it() {
        let text = "127.0.0.1 localhost\n127.0.1.1\tTURN.example.org turn # turn2.example.org\nbad turn\n::1 turn\n";
        assert_eq!(in_hosts(text, "turn.example.org"), set(&["127.0.1.1"]));
        assert_eq!(in_hosts(text, "turn"), set(&["127.0.1.1", "::1"]));
        assert_eq!([in_hosts(text, "turn2.example.org"), in_hosts("", "turn")], [set(&[]), set(&[])]);
    }

    #[test]
    fn an_address_as_hostname_needs_no_dns() {
        for (host, expected) in
            [("turn.example.org", true), ("192.0.2.1", false), ("[2001:db8::1]", false), ("2001:db8::1", false)]
        {
            assert_eq!(needs_dns(host), expected, "{host}");
        }
    }
}
