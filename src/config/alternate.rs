//! `[alternate]`: the servers to which clients are redirected.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::addresses::{is_broadcast, mapped};
use super::general::{check_host, one_of};
use super::problem::{Report, quoted};
use super::reader::Section;
use super::{Alternate, AlternateWhen, schema};
use crate::transport::{Endpoint, Transport};

/// One of the two server lists. A redirected client keeps its transport, and TLS has a separate port.
struct List {
    key: &'static str,
    /// The port in a hint for an address without a port.
    port: u16,
    /// The listeners whose clients are redirected to these servers.
    listeners: Vec<SocketAddr>,
    /// The keys of these listeners, for messages.
    listen: &'static str,
    /// Their clients, for messages.
    clients: &'static str,
}

pub(super) fn alternate(top: &Section<'_>, listen: &[Endpoint], report: &mut Report<'_>) -> Alternate {
    let default = Alternate::default();
    let Some(section) = top.section("alternate", &schema::ALTERNATE, report) else { return default };
    if section.value("servers").is_some_and(|value| value.get_ref().as_str().is_some()) {
        return from_fleet(top, &section, report);
    }
    // With a certificate, TCP listeners serve TLS clients too.
    let serves_tls = |endpoint: &Endpoint| {
        endpoint.transport.is_encrypted() || endpoint.transport == Transport::Tcp && top.value("tls").is_some()
    };
    let addresses = |serves: &dyn Fn(&Endpoint) -> bool| {
        listen.iter().filter(|endpoint| serves(endpoint)).map(|endpoint| endpoint.address).collect()
    };
    let plain = List {
        key: "servers",
        port: 3478,
        listeners: addresses(&|endpoint| !endpoint.transport.is_encrypted()),
        listen: "`listen.udp` and `listen.tcp`",
        clients: "clients of `listen.udp` and `listen.tcp`",
    };
    let tls = List {
        key: "tls-servers",
        port: 5349,
        listeners: addresses(&serves_tls),
        listen: "`listen.tls` or, with `[tls]`, in `listen.tcp`",
        clients: "TLS clients",
    };
    let (servers, tls_servers) = (plain.servers(&section, report), tls.servers(&section, report));
    let domain = section.string("domain", report).and_then(|domain| match check_domain(domain.get_ref()) {
        Ok(()) => Some((*domain.get_ref()).to_owned()),
        Err(why) => {
            report.error(&domain.span(), format!("`alternate.domain`: {} {why}", quoted(domain.get_ref())));
            None
        }
    });
    let when = section.string("when", report).and_then(|word| {
        let found = one_of("`alternate.when`", &word, &AlternateWhen::ALL, AlternateWhen::as_str, report);
        found.map(|when| (when, word.span()))
    });
    if let (true, true, Some((when, span))) = (plain.is_empty(&section), tls.is_empty(&section), &when)
        && *when != default.when
    {
        let without = "has no effect without `alternate.servers`: list the alternate servers there";
        report.error(span, format!("`alternate.when` {without}"));
    }
    if domain.is_some() && tls.is_empty(&section) {
        let without = "has no effect without `alternate.tls-servers`: only TLS clients use it";
        report.warn(&section.span("domain"), format!("`alternate.domain` {without}"));
    }
    for (list, own, others) in [(&plain, &servers, &tls_servers), (&tls, &tls_servers, &servers)] {
        list.warn_of_missing_servers(&section, own, !others.is_empty(), report);
    }
    Alternate { servers, tls_servers, domain, from_fleet: false, when: when.map_or(default.when, |(when, _)| when) }
}

/// Reads `servers = "fleet"`.
fn from_fleet(top: &Section<'_>, section: &Section<'_>, report: &mut Report<'_>) -> Alternate {
    let span = section.span("servers");
    if section.string("servers", report).is_none_or(|text| *text.get_ref() != "fleet") {
        report.error(
            &span,
            "`alternate.servers` must be a list of addresses, for example [\"203.0.113.5:3478\"], or \"fleet\" for the \
             other nodes of `[fleet]`",
        );
    } else if top.value("fleet").is_none() {
        report.error(&span, "`alternate.servers` is \"fleet\", but there is no `[fleet]`: add it, or list addresses");
    }
    for key in ["tls-servers", "domain"] {
        if section.value(key).is_some() {
            let name = section.name(key);
            report.error(
                &section.span(key),
                format!("{name} cannot be set if `alternate.servers` is \"fleet\": the nodes say what they serve"),
            );
        }
    }
    let word = section.string("when", report);
    let when =
        word.and_then(|word| one_of("`alternate.when`", &word, &AlternateWhen::ALL, AlternateWhen::as_str, report));
    let when = when.unwrap_or_default();
    if when == AlternateWhen::Always {
        report.error(
            &section.span("when"),
            "`alternate.when` cannot be \"always\" if `alternate.servers` is \"fleet\": the nodes would redirect \
             clients to each other",
        );
    }
    Alternate { from_fleet: true, when, ..Alternate::default() }
}

impl List {
    /// Returns whether the list has no entries, valid or not.
    fn is_empty(&self, section: &Section<'_>) -> bool {
        let value = section.value(self.key);
        value.is_none_or(|value| value.get_ref().as_array().is_some_and(|list| list.is_empty()))
    }

    fn servers(&self, section: &Section<'_>, report: &mut Report<'_>) -> Vec<SocketAddr> {
        let mut servers = Vec::new();
        let name = section.name(self.key);
        for text in section.strings(self.key, report).unwrap_or_default() {
            let (span, text) = (text.span(), *text.get_ref());
            match check_server(text, self.port) {
                Err(why) => report.error(&span, format!("{name}: {} {why}", quoted(text))),
                Ok(server) if servers.contains(&server) => {
                    report.error(&span, format!("{name} contains {} twice", quoted(text)));
                }
                Ok(server) if self.listeners.contains(&server) => report.error(
                    &span,
                    format!(
                        "{name}: `{server}` is an address of this server, so clients would be redirected in a loop"
                    ),
                ),
                Ok(server) => servers.push(server),
            }
        }
        servers
    }

    /// Warns of clients without an alternate server. RFC 8489 §10: a client keeps its address family and transport.
    fn warn_of_missing_servers(
        &self,
        section: &Section<'_>,
        servers: &[SocketAddr],
        others: bool,
        report: &mut Report<'_>,
    ) {
        let (name, listen, clients) = (section.name(self.key), self.listen, self.clients);
        if servers.is_empty() {
            if others && !self.listeners.is_empty() && self.is_empty(section) {
                let header = section.span(if self.key == "servers" { "tls-servers" } else { "servers" });
                report.warn(&header, format!("{name} is empty, so {clients} are not redirected"));
            }
            return;
        }
        if self.listeners.is_empty() {
            report.warn(&section.span(self.key), format!("{name} has no effect without listeners in {listen}"));
        }
        for (family, is_ipv4) in [("IPv4", true), ("IPv6", false)] {
            let accepts =
                |listener: &SocketAddr| listener.is_ipv4() == is_ipv4 || listener.ip() == Ipv6Addr::UNSPECIFIED;
            if self.listeners.iter().any(accepts) && servers.iter().all(|server| server.is_ipv4() != is_ipv4) {
                let missing = format!("{name} has no {family} address");
                report.warn(&section.span(self.key), format!("{missing}, so {family} clients are not redirected"));
            }
        }
    }
}

/// Parses the address of a server, or returns why it is invalid.
fn check_server(text: &str, default_port: u16) -> Result<SocketAddr, String> {
    Err(match text.parse::<SocketAddr>() {
        Ok(server) if server.port() == 0 => "has port 0, which cannot be used".to_owned(),
        Ok(server) if server.ip().is_unspecified() => "is the unspecified address; use a specific one".to_owned(),
        Ok(server) if server.ip().is_multicast() || is_broadcast(server.ip()) => "is not a unicast address".to_owned(),
        Ok(server) if matches!(server.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local()) => {
            "is link-local and reachable only from its own link".to_owned()
        }
        Ok(server) => match mapped(server.ip()) {
            Some(v4) => format!("is IPv4-mapped; use `{v4}:{}`", server.port()),
            None => return Ok(server),
        },
        Err(_) => match text.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => format!("has no port; did you mean `{}`?", SocketAddr::new(ip, default_port)),
            // RFC 8489 §14.15: the attribute carries an address.
            Err(_) => {
                "is not an address with a port, for example \"203.0.113.5:3478\"; names are not supported".to_owned()
            }
        },
    })
}

/// Checks the domain. RFC 8489 §14.16: a DNS name, not an address.
fn check_domain(domain: &str) -> Result<(), String> {
    const INVALID_LABEL: &str = "is not a valid name: a label consists of letters, digits and hyphens, and does not \
                                 start or end with a hyphen (RFC 1123 §2.1)";
    let host = check_host(domain)?;
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return Err("is an address; set the DNS name in the certificate of the alternate servers".to_owned());
    }
    let is_valid = |label: &str| !label.starts_with('-') && !label.ends_with('-') && !label.contains('_');
    if !domain.split('.').all(is_valid) {
        return Err(INVALID_LABEL.to_owned());
    }
    Ok(())
}
