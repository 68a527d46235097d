//! Hints for texts that are not addresses: which mistake was probably made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Returns what is wrong with a text that is not an address with a port. `port` completes a suggestion without one.
pub(super) fn not_an_endpoint(text: &str, port: u16) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        // An IPv6 address without brackets has no port.
        Some((host, digits)) if host.ends_with(']') || !host.contains(':') => (host, digits.parse().ok()?),
        _ => (text, port),
    };
    let suggest = |ip: IpAddr| format!("`{}`", SocketAddr::new(ip, port));
    match host {
        "localhost" => Some(localhost(&suggest)),
        "*" | "any" | "" => Some(format!("is not an address; did you mean {}?", suggest(Ipv6Addr::UNSPECIFIED.into()))),
        _ => zone_or_name(host, &suggest),
    }
}

/// Returns what is wrong with a text that is not an IP address.
pub(super) fn not_an_ip(text: &str) -> Option<String> {
    let suggest = |ip: IpAddr| format!("`{ip}`");
    match text {
        "localhost" => Some(localhost(&suggest)),
        _ => zone_or_name(text, &suggest),
    }
}

/// Returns what is wrong with a text that is neither an address nor a prefix.
pub(super) fn not_a_prefix(text: &str) -> Option<String> {
    if let Some((first, last)) = text.split_once('-')
        && [first, last].iter().all(|end| end.trim().parse::<IpAddr>().is_ok())
    {
        return Some("is a range; write it as one or more prefixes, for example \"10.0.0.0/8\"".to_owned());
    }
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    if address.parse::<IpAddr>().is_ok() && length.parse::<IpAddr>().is_ok() {
        return Some("has a netmask; use a prefix length, for example \"10.0.0.0/8\"".to_owned());
    }
    not_an_ip(address)
}

fn localhost(suggest: &dyn Fn(IpAddr) -> String) -> String {
    let [v4, v6] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].map(suggest);
    format!("is a name; use an address: did you mean {v4} or {v6}?")
}

fn zone_or_name(text: &str, suggest: &dyn Fn(IpAddr) -> String) -> Option<String> {
    let inside_brackets = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Some((address, _)) = inside_brackets.split_once('%') {
        return Some(zone(address.parse().ok()?, suggest));
    }
    let is_name =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (!is_number && text.trim_end_matches('.').split('.').all(is_name))
        .then(|| "is a name; use an IP address".to_owned())
}

/// Returns the message for an address with a zone ID (RFC 4007 §11).
pub(super) fn zone(address: Ipv6Addr, suggest: &dyn Fn(IpAddr) -> String) -> String {
    if address.is_unicast_link_local() {
        "has a zone ID: a link-local address is reachable only from its own link; use another address".to_owned()
    } else {
        format!("has a zone ID, which only link-local addresses need; did you mean {}?", suggest(address.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_id_a_name_and_a_wildcard_have_hints() {
        let endpoint = |text| not_an_endpoint(text, 5349);
        let name = Some("is a name; use an IP address".to_owned());
        for text in ["turn.example.org", "turn.example.org:3478", "eth0", "turn.example.org."] {
            assert_eq!(endpoint(text), name, "{text}");
        }
        let localhost =
            |port| Some(format!("is a name; use an address: did you mean `127.0.0.1:{port}` or `[::1]:{port}`?"));
        assert_eq!(endpoint("localhost:80"), localhost(80));
        assert_eq!(endpoint("localhost"), localhost(5349));
        assert_eq!(endpoint("*:80").unwrap(), "is not an address; did you mean `[::]:80`?");
        for text in ["fe80::1%eth0", "[fe80::1%eth0]", "[fe80::1%eth0]:3478", "fe80::1%25eth0"] {
            assert!(endpoint(text).unwrap().starts_with("has a zone ID: a link-local address"), "{text}");
        }
        let global = "has a zone ID, which only link-local addresses need; did you mean `[2001:db8::1]:80`?";
        assert_eq!(endpoint("[2001:db8::1%eth0]:80").unwrap(), global);
        for text in ["300.1.1.1", "1.2.3.4:x", "1.2.3.4:70000", "a b", "x%y", "[::", "3478/udp", "a..b"] {
            assert_eq!(endpoint(text), None, "{text}");
        }
    }

    #[test]
    fn a_range_and_a_netmask_have_hints() {
        assert!(not_a_prefix("10.0.0.0-10.0.0.255").unwrap().starts_with("is a range"));
        assert!(not_a_prefix("10.0.0.0/255.0.0.0").unwrap().starts_with("has a netmask"));
        assert!(not_a_prefix("fe80::1%eth0/64").unwrap().starts_with("has a zone ID"));
        assert_eq!(not_a_prefix("private").unwrap(), "is a name; use an IP address");
        for text in ["10.0.0.0/33", "a-b/8/8", "1-2", "-"] {
            assert_eq!(not_a_prefix(text).filter(|hint| !hint.contains("name")), None, "{text}");
        }
    }
}
