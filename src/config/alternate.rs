//! `[alternate]`: the servers that clients are sent to.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::addresses::{is_broadcast, mapped};
use super::general::{check_host, one_of};
use super::problem::{Report, quoted};
use super::reader::Section;
use super::{Alternate, AlternateWhen, Listen, schema};

const DEFAULT_PORT: u16 = 3478;

pub(super) fn alternate(top: &Section<'_>, listen: &Listen, report: &mut Report<'_>) -> Alternate {
    let default = Alternate::default();
    let Some(section) = top.section("alternate", &schema::ALTERNATE, report) else { return default };
    let servers = servers(&section, listen, report).unwrap_or_default();
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
    let none_listed =
        section.value("servers").is_none_or(|value| value.get_ref().as_array().is_some_and(|list| list.is_empty()));
    if none_listed {
        let without = "has no effect without `alternate.servers`: list the other servers there";
        match &when {
            Some((when, span)) if *when != default.when => report.error(span, format!("`alternate.when` {without}")),
            _ if domain.is_some() => report.warn(&section.span("domain"), format!("`alternate.domain` {without}")),
            _ => {}
        }
    }
    Alternate { servers, domain, when: when.map_or(default.when, |(when, _)| when) }
}

fn servers(section: &Section<'_>, listen: &Listen, report: &mut Report<'_>) -> Option<Vec<SocketAddr>> {
    let mut servers = Vec::new();
    for text in section.strings("servers", report)? {
        let (span, text) = (text.span(), *text.get_ref());
        let Some(server) = server(text, &span, report) else { continue };
        if servers.contains(&server) {
            report.error(&span, format!("`alternate.servers` has {} twice", quoted(text)));
        } else if listen.addresses().any(|listener| listener == server) {
            report.error(
                &span,
                format!("`alternate.servers`: `{server}` is this server's own, and clients would go round in circles"),
            );
        } else {
            servers.push(server);
        }
    }
    // RFC 8489 §10: a client is only ever sent to an address of its own family.
    for (family, is_ipv4) in [("IPv4", true), ("IPv6", false)] {
        let listened = listen
            .addresses()
            .any(|listener| listener.is_ipv4() == is_ipv4 || listener.ip() == IpAddr::from([0_u16; 8]));
        if listened && !servers.is_empty() && servers.iter().all(|server| server.is_ipv4() != is_ipv4) {
            report.warn(
                &section.span("servers"),
                format!("`alternate.servers` has no {family} address, so clients that come over {family} are not sent anywhere"),
            );
        }
    }
    Some(servers)
}

fn server(text: &str, span: &Range<usize>, report: &mut Report<'_>) -> Option<SocketAddr> {
    let why = match text.parse::<SocketAddr>() {
        Ok(server) if server.port() == 0 => "has port 0, which no client can reach".to_owned(),
        Ok(server) if server.ip().is_unspecified() => "stands for every address; name one".to_owned(),
        Ok(server) if server.ip().is_multicast() || is_broadcast(server.ip()) => {
            "is not an address of one machine".to_owned()
        }
        Ok(server) if matches!(server.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local()) => {
            "is link-local, and no client outside of its network has a route to it".to_owned()
        }
        Ok(server) => match mapped(server.ip()) {
            Some(v4) => format!("is an IPv4 address in disguise; write `{v4}:{}`", server.port()),
            None => return Some(server),
        },
        Err(_) => match text.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => format!("has no port; did you mean `{}`?", SocketAddr::new(ip, DEFAULT_PORT)),
            // RFC 8489 §14.15: the attribute carries an address.
            Err(_) => "is not an address and a port, as in \"203.0.113.5:3478\"; a name cannot be sent".to_owned(),
        },
    };
    report.error(span, format!("`alternate.servers`: {} {why}", quoted(text)));
    None
}

/// RFC 8489 §14.16: a DNS name. An address has no place there.
fn check_domain(domain: &str) -> Result<(), String> {
    let host = check_host(domain)?;
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return Err("is an address; write the name in the other servers' certificate".to_owned());
    }
    let inner = |label: &str| !label.starts_with('-') && !label.ends_with('-') && !label.contains('_');
    if !domain.split('.').all(inner) {
        return Err(
            "is no name for a certificate: letters, digits and hyphens within each part (RFC 1123 §2.1)".to_owned()
        );
    }
    Ok(())
}
