//! `[listen]`, `[relay]` and `[peers]`: addresses and ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::Spanned;
use toml::de::DeValue;

use super::problem::{Report, quoted};
use super::reader::Section;
use super::{Limits, Peers, Relay, RelayAddresses, address_hint, schema};
use crate::special_purpose::{self, Nat64Prefix};
use crate::transport::{Endpoint, Transport};

/// The default ports of RFC 8656 §19: 3478, and 5349 for TLS.
const DEFAULT_PORT: u16 = 3478;
const DEFAULT_TLS_PORT: u16 = 5349;

/// The listeners of a configuration without `[listen]`.
pub(super) fn default_listen() -> Vec<Endpoint> {
    let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT));
    [Transport::Udp, Transport::Tcp].map(|transport| Endpoint::new(transport, everywhere)).to_vec()
}

/// The addresses of the listeners of one transport.
pub(super) fn addresses_of(listen: &[Endpoint], transport: Transport) -> impl Iterator<Item = SocketAddr> {
    listen.iter().filter(move |endpoint| endpoint.transport == transport).map(|endpoint| endpoint.address)
}

/// `[listen]`: the listeners and the proxies.
pub(super) fn listen(top: &Section<'_>, report: &mut Report<'_>) -> (Vec<Endpoint>, Vec<IpNet>) {
    let default = default_listen();
    let Some(section) = top.section("listen", &schema::LISTEN, report) else { return (default, Vec::new()) };
    let mut listen = Vec::new();
    for transport in Transport::ALL {
        let addresses =
            listeners(&section, transport, report).unwrap_or_else(|| addresses_of(&default, transport).collect());
        listen.extend(addresses.into_iter().map(|address| Endpoint::new(transport, address)));
    }
    for tls in addresses_of(&listen, Transport::Tls) {
        if let Some(tcp) = addresses_of(&listen, Transport::Tcp).find(|tcp| *tcp != tls && collide(*tcp, tls)) {
            report.error(
                &section.span("tls"),
                format!(
                    "`listen.tls` has {tls} and `listen.tcp` has {tcp}, which conflict, because [::] also accepts \
                     IPv4: use the same address in both"
                ),
            );
        }
    }
    let empty = |key| section.value(key)?.get_ref().as_array().map(|list| list.is_empty());
    if empty("udp") == Some(true) && empty("tcp") == Some(true) && empty("tls") != Some(false) {
        report.error(
            &section.span("udp"),
            "`listen.udp` and `listen.tcp` are empty, so no client can reach the server: \
             omit one to use its default",
        );
    }
    let proxies = proxies(&section, report);
    (listen, proxies)
}

/// `listen.proxies`.
fn proxies(section: &Section<'_>, report: &mut Report<'_>) -> Vec<IpNet> {
    let mut proxies: Vec<IpNet> = Vec::new();
    for network in networks(section, "proxies", report) {
        let (span, network) = (network.span(), network.into_inner());
        if network.prefix_len() == 0 {
            report.warn(
                &span,
                format!(
                    "`listen.proxies` contains {network}: everybody is a proxy, so every client can choose the address \
                     that the limits and the log see. List the addresses of your proxies only"
                ),
            );
        }
        if proxies.contains(&network) {
            report.error(&span, format!("`listen.proxies` contains {} twice", short(&network)));
        } else {
            proxies.push(network);
        }
    }
    proxies
}

/// The addresses of one transport.
fn listeners(section: &Section<'_>, transport: Transport, report: &mut Report<'_>) -> Option<Vec<SocketAddr>> {
    let key = transport.as_str();
    let name = section.name(key);
    let default_port = if transport.is_encrypted() { DEFAULT_TLS_PORT } else { DEFAULT_PORT };
    let mut listeners: Vec<SocketAddr> = Vec::new();
    for text in section.strings(key, report)? {
        let (span, text) = (text.span(), *text.get_ref());
        let Some(address) = listen_address(&name, text, default_port, &span, report) else { continue };
        match listeners.iter().find(|other| collide(**other, address)) {
            Some(other) if *other == address => report.error(&span, format!("{name} contains {} twice", quoted(text))),
            Some(other) => report.error(
                &span,
                format!("{name}: {address} and {other} conflict, because [::] also accepts IPv4: keep one"),
            ),
            None => listeners.push(address),
        }
    }
    Some(listeners)
}

/// Returns whether two listeners of one transport use the same address and port. Each port 0 is a different port.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.port() != 0 && (a == b || (a.ip().is_unspecified() && b.ip().is_unspecified()))
}

pub(super) fn listen_address(
    name: &str,
    text: &str,
    default_port: u16,
    span: &Range<usize>,
    report: &mut Report<'_>,
) -> Option<SocketAddr> {
    let reason = match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_multicast() || is_broadcast(address.ip()) => {
            "is not a unicast address".to_owned()
        }
        Ok(address) if matches!(address.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local()) => {
            "is link-local and reachable only from its own link; use [::] or another address".to_owned()
        }
        Ok(SocketAddr::V6(address)) if address.scope_id() != 0 => {
            address_hint::zone(*address.ip(), &|ip| format!("`{}`", SocketAddr::new(ip, address.port())))
        }
        Ok(address) => match mapped(address.ip()) {
            Some(v4) => format!("is IPv4-mapped; use `{v4}:{}`", address.port()),
            None => return Some(address),
        },
        Err(_) => {
            let number = text.trim_start_matches(':');
            if let Ok(port) = number.parse::<u16>() {
                format!("has no address; did you mean `[::]:{port}`?")
            } else if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
                format!("has no port; did you mean `{}`?", SocketAddr::new(ip, default_port))
            } else {
                address_hint::not_an_endpoint(text, default_port).unwrap_or_else(|| {
                    format!(
                        "is not an address with a port, for example \"[::]:{default_port}\" or \
                         \"192.0.2.7:{default_port}\""
                    )
                })
            }
        }
    };
    report.error(span, format!("{name}: {} {reason}", quoted(text)));
    None
}

pub(super) fn relay(top: &Section<'_>, limits: &Limits, report: &mut Report<'_>) -> Relay {
    let default = Relay::default();
    let Some(section) = top.section("relay", &schema::RELAY, report) else { return default };
    let addresses = relay_addresses(&section, report).unwrap_or(default.addresses);
    let external = external(&section, &addresses, report);
    let ports = match port_range(&section, report) {
        Some(ports) => {
            check_port_range(&section.span("ports"), &ports, report);
            ports
        }
        None => default.ports,
    };
    if let RelayAddresses::Given(given) = &addresses {
        let capacity = given.len() as u64 * count(&ports);
        if u64::from(limits.allocations) > capacity {
            report.warn(
                &section.span("addresses"),
                format!("`limits.allocations` is {}, but there are only {capacity} relay ports", limits.allocations),
            );
        }
    }
    Relay { addresses, external, ports }
}

fn relay_addresses(section: &Section<'_>, report: &mut Report<'_>) -> Option<RelayAddresses> {
    const EXPECTED: &str = "`relay.addresses` must be \"auto\" or a list of addresses";
    let value = section.value("addresses")?;
    match value.get_ref() {
        DeValue::String(word) if word == "auto" => return Some(RelayAddresses::Auto),
        DeValue::String(word) => {
            let hint = match word.parse::<IpAddr>() {
                Ok(address) => format!("; did you mean [\"{address}\"]?"),
                Err(_) => format!(", not {}", quoted(word)),
            };
            report.error(&value.span(), format!("{EXPECTED}{hint}"));
            return None;
        }
        DeValue::Array(elements) if elements.is_empty() => {
            report.error(&value.span(), format!("{EXPECTED}, not an empty list"));
            return None;
        }
        DeValue::Array(_) => {}
        other => {
            section.mismatch("addresses", value.span(), "\"auto\" or a list of addresses", other, report);
            return None;
        }
    }
    let mut given = Vec::new();
    for text in section.strings("addresses", report)? {
        let Some(address) = relay_address("`relay.addresses`", text.get_ref(), &text.span(), report) else { continue };
        if given.contains(&address) {
            report.error(&text.span(), format!("`relay.addresses` contains {} twice", quoted(text.get_ref())));
        } else {
            given.push(address);
        }
    }
    Some(RelayAddresses::Given(given))
}

/// Parses an address that peers can reach.
fn relay_address(name: &str, text: &str, span: &Range<usize>, report: &mut Report<'_>) -> Option<IpAddr> {
    let reason = match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => "is the unspecified address; use a specific one".to_owned(),
        Ok(ip) if ip.is_multicast() || is_broadcast(ip) => "is not a unicast address".to_owned(),
        Ok(IpAddr::V6(ip)) if ip.is_unicast_link_local() => "is link-local, so peers cannot reach it".to_owned(),
        Ok(ip) => match mapped(ip) {
            Some(v4) => format!("is IPv4-mapped; use `{v4}`"),
            None => return Some(ip),
        },
        Err(_) => match text.parse::<SocketAddr>() {
            Ok(address) => format!("has a port; did you mean `{}`? Ports belong in `relay.ports`", address.ip()),
            Err(_) => address_hint::not_an_ip(text).unwrap_or_else(|| "is not an IP address".to_owned()),
        },
    };
    report.error(span, format!("{name}: {} {reason}", quoted(text)));
    None
}

fn external(section: &Section<'_>, addresses: &RelayAddresses, report: &mut Report<'_>) -> Vec<(IpAddr, IpAddr)> {
    let Some(table) = section.table("external", report) else { return Vec::new() };
    let mut pairs: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (key, value) in table.get_ref().iter() {
        let span = key.span();
        let inside = relay_address("`relay.external`", key.get_ref(), &span, report);
        let outside = match value.get_ref() {
            DeValue::String(text) => relay_address("`relay.external`", text, &value.span(), report),
            other => {
                section.mismatch("external", value.span(), "a table of quoted addresses", other, report);
                None
            }
        };
        let (Some(inside), Some(outside)) = (inside, outside) else { continue };
        if inside.is_ipv4() != outside.is_ipv4() {
            report.error(
                &span,
                format!("`relay.external`: `{inside}` and `{outside}` are of different address families"),
            );
        }
        if let RelayAddresses::Given(given) = addresses
            && !given.is_empty()
            && !given.contains(&inside)
        {
            let suggestion = if given.contains(&outside) {
                format!("; did you mean {{ \"{outside}\" = \"{inside}\" }}?")
            } else {
                "; the address on the left must be one of this machine".to_owned()
            };
            report.error(&span, format!("`relay.external`: `{inside}` is not in `relay.addresses`{suggestion}"));
        }
        if pairs.iter().any(|(other, _)| *other == inside) {
            report.error(&span, format!("`relay.external` contains `{inside}` twice"));
        } else if pairs.iter().any(|(_, other)| *other == outside) {
            report.error(
                &value.span(),
                format!("`relay.external` maps two addresses to `{outside}`; 1:1 NAT needs a different one for each"),
            );
        }
        pairs.push((inside, outside));
    }
    pairs.sort_unstable();
    pairs
}

/// Parses the inclusive range `"FIRST-LAST"`.
fn port_range(section: &Section<'_>, report: &mut Report<'_>) -> Option<RangeInclusive<u16>> {
    let text = section.string("ports", report)?;
    let (span, text) = (text.span(), *text.get_ref());
    let numbers = text.split_once('-').and_then(|(first, last)| {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        Some((number(first)?, number(last)?))
    });
    let Some((first, last)) = numbers else {
        report
            .error(&span, format!("`relay.ports`: {} is not a port range, for example \"49152-65535\"", quoted(text)));
        return None;
    };
    let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else {
        report.error(&span, format!("`relay.ports`: {} contains a port above 65535", quoted(text)));
        return None;
    };
    if first == 0 || last == 0 {
        report.error(&span, format!("`relay.ports`: {} contains port 0, which cannot be used", quoted(text)));
        return None;
    }
    if first > last {
        report
            .error(&span, format!("`relay.ports`: {} is an empty range; did you mean `{last}-{first}`?", quoted(text)));
        return None;
    }
    Some(first..=last)
}

fn check_port_range(span: &Range<usize>, ports: &RangeInclusive<u16>, report: &mut Report<'_>) {
    if *ports.start() < 1024 {
        report.warn(
            span,
            "`relay.ports` starts below 1024: these ports need a privilege, \
             and peers may mistake them for well-known services",
        );
    }
}

/// Warns if the relay ports contain the port of a UDP listener: a relay socket cannot use it on the same address.
pub(super) fn warn_of_port_overlap(top: &Section<'_>, listen: &[Endpoint], relay: &Relay, report: &mut Report<'_>) {
    let mut ports = addresses_of(listen, Transport::Udp).map(|address| address.port());
    let Some(port) = ports.find(|port| *port != 0 && relay.ports.contains(port)) else { return };
    let span_of = |section: &str, key: &str| top.value(section)?.get_ref().get(key).map(Spanned::span);
    let span = span_of("relay", "ports").or_else(|| span_of("listen", "udp")).unwrap_or_default();
    report.warn(&span, format!("`relay.ports` contains {port}, the port of a UDP listener"));
}

fn count(ports: &RangeInclusive<u16>) -> u64 {
    u64::from(*ports.end()).saturating_sub(u64::from(*ports.start())) + 1
}

pub(super) fn peers(top: &Section<'_>, report: &mut Report<'_>) -> Peers {
    let Some(section) = top.section("peers", &schema::PEERS, report) else { return Peers::default() };
    let allow = networks(&section, "allow", report);
    let deny = networks(&section, "deny", report);
    for allowed in &allow {
        let range = allowed.get_ref();
        if let Some(denied) = deny.iter().map(Spanned::get_ref).find(|denied| denied.contains(range)) {
            let denied = short(denied);
            report.error(
                &allowed.span(),
                format!(
                    "`peers.allow`: `{}` has no effect, because `peers.deny` contains `{denied}` and takes precedence",
                    short(range)
                ),
            );
        }
    }
    let nat64_prefixes = nat64_prefixes(&section, report);
    for allowed in &allow {
        let IpNet::V6(range) = *allowed.get_ref() else { continue };
        let gateway = nat64_prefixes.iter().map(|prefix| prefix.network()).find(|prefix| overlap(*prefix, range));
        if let Some(gateway) = gateway.filter(|_| range.prefix_len() < 128) {
            report.warn(
                &allowed.span(),
                format!(
                    "`peers.allow`: `{range}` also allows the IPv4 addresses behind the gateway `{gateway}` \
                     (`peers.nat64-prefixes`), even if they are private"
                ),
            );
        }
    }
    let bare = |networks: Vec<Spanned<IpNet>>| networks.into_iter().map(Spanned::into_inner).collect();
    Peers { allow: bare(allow), deny: bare(deny), nat64_prefixes }
}

/// Whether two ranges have addresses in common.
fn overlap(one: Ipv6Net, other: Ipv6Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn nat64_prefixes(section: &Section<'_>, report: &mut Report<'_>) -> Vec<Nat64Prefix> {
    let mut prefixes: Vec<Nat64Prefix> = Vec::new();
    for text in networks(section, "nat64-prefixes", report) {
        let network = *text.get_ref();
        let prefix = match network {
            IpNet::V6(v6) => Nat64Prefix::new(v6),
            IpNet::V4(_) => None,
        };
        let Some(prefix) = prefix else {
            report.error(
                &text.span(),
                format!(
                    "`peers.nat64-prefixes`: `{network}` must be an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits (RFC \
                     6052 §2.2), for example \"2001:db8:64::/96\""
                ),
            );
            continue;
        };
        let own = prefix.network();
        let first = own.addr();
        if first.is_unspecified() || first.is_multicast() || first.is_unicast_link_local() {
            report.error(
                &text.span(),
                format!("`peers.nat64-prefixes`: `{own}` is in a range of local or multicast addresses, which no gateway uses"),
            );
            continue;
        }
        if let Some(other) = prefixes.iter().find(|other| overlap(other.network(), own)) {
            let other = other.network();
            report.error(&text.span(), format!("`peers.nat64-prefixes`: `{own}` overlaps `{other}`"));
            continue;
        }
        prefixes.push(prefix);
    }
    prefixes
}

pub(super) fn networks(section: &Section<'_>, key: &str, report: &mut Report<'_>) -> Vec<Spanned<IpNet>> {
    let mut networks = Vec::new();
    for text in section.strings(key, report).unwrap_or_default() {
        match network(text.get_ref()) {
            Ok(network) => {
                if let (IpNet::V6(v6), "allow") = (network, key)
                    && v6.prefix_len() < 128
                    && let Some((last, others)) = special_purpose::embedded_forms(v6).split_last()
                {
                    let forms = if others.is_empty() {
                        (*last).to_owned()
                    } else {
                        format!("{} and {last}", others.join(", "))
                    };
                    let (name, what) = (section.name(key), quoted(text.get_ref()));
                    report.warn(
                        &text.span(),
                        format!(
                            "{name}: {what} also allows the IPv4 addresses that it contains in {forms} form, even if \
                             they are private"
                        ),
                    );
                }
                networks.push(Spanned::new(text.span(), network));
            }
            Err(why) => {
                report.error(&text.span(), format!("{}: {} {why}", section.name(key), quoted(text.get_ref())));
            }
        }
    }
    networks
}

/// Parses a prefix, or an address as a prefix of full length. The error completes a message that begins with the text.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let network = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(network), _) => network,
        (_, Ok(address)) => IpNet::from(address),
        _ => {
            return Err(address_hint::not_a_prefix(text).unwrap_or_else(|| {
                "is neither an address nor a prefix, for example \"192.0.2.7\" or \"10.0.0.0/8\"".to_owned()
            }));
        }
    };
    if network.trunc() != network {
        return Err(format!("has bits set after the prefix; did you mean `{}`?", network.trunc()));
    }
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = Ipv4Net::new(v4, length)
    {
        return Err(format!("is IPv4-mapped; use `{}`", short(&IpNet::V4(v4))));
    }
    Ok(network)
}

/// A single address without its prefix length.
pub(super) fn short(network: &IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
}

pub(super) fn mapped(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => ip.to_ipv4_mapped(),
    }
}

pub(super) fn is_broadcast(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}
