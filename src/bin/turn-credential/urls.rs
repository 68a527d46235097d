//! The TURN URLs (RFC 7065) of a configuration.

use std::net::{IpAddr, SocketAddr};

use turnserver::config::{Config, RelayAddresses};

/// Why the URLs cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlsUnknown {
    #[error(
        "the address of the server is not in the configuration: set `hostname` in it, or pass --host HOST (the \
         listeners take any address, and the relay addresses are detected by the server; a client of TLS needs the name \
         that the certificate is for)"
    )]
    Host,
    #[error("the port of the server is not in the configuration: `[listen]` has only port 0, which is any free port")]
    Port,
}

/// One URL for each listener, UDP before TCP before TLS, without repetitions; where a listener takes every address and the configuration has
/// no name, one for each family in which it gives an address.
///
/// A client of TLS compares the host with the certificate, which is hardly ever for an address: without a host that was
/// given as such, TLS listeners have no URL.
pub(crate) fn urls(config: &Config, host: Option<&str>) -> Result<Vec<String>, UrlsUnknown> {
    let host = host.or(config.hostname.as_deref());
    let of = |transport, listeners| std::iter::repeat(transport).zip(listeners);
    let listeners: Vec<(&str, &SocketAddr)> = of("udp", &config.listen.udp)
        .chain(of("tcp", &config.listen.tcp))
        .chain(of("tls", &config.listen.tls))
        .filter(|(_, listener)| listener.port() != 0)
        .collect();
    if listeners.is_empty() {
        return Err(UrlsUnknown::Port);
    }
    let mut urls = Vec::new();
    for (transport, listener) in listeners {
        let hosts = match host {
            Some(host) => vec![host.to_owned()],
            None if transport == "tls" => Vec::new(),
            None => addresses(config, listener.ip()).into_iter().map(literal).collect(),
        };
        for host in hosts {
            let (scheme, transport) = if transport == "tls" { ("turns", "tcp") } else { ("turn", transport) };
            let url = format!("{scheme}:{host}:{}?transport={transport}", listener.port());
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
    }
    if urls.is_empty() { Err(UrlsUnknown::Host) } else { Ok(urls) }
}

/// The addresses at which the world reaches a listener, as far as the configuration tells.
fn addresses(config: &Config, listener: IpAddr) -> Vec<IpAddr> {
    if !listener.is_unspecified() {
        return vec![as_seen_outside(config, listener)];
    }
    let given = match &config.relay.addresses {
        RelayAddresses::Given(addresses) => addresses.as_slice(),
        RelayAddresses::Auto => &[],
    };
    // A listener on [::] takes IPv4 as well.
    let families: &[fn(&IpAddr) -> bool] =
        if listener.is_ipv4() { &[IpAddr::is_ipv4] } else { &[IpAddr::is_ipv4, IpAddr::is_ipv6] };
    families
        .iter()
        .filter_map(|family| given.iter().copied().find(family))
        .map(|address| as_seen_outside(config, address))
        .collect()
}

/// Through the 1:1 NAT of `relay.external`, where there is one.
fn as_seen_outside(config: &Config, address: IpAddr) -> IpAddr {
    config.relay.external.iter().find(|(ours, _)| *ours == address).map_or(address, |(_, world)| *world)
}

/// RFC 3986 §3.2.2: an IPv6 address stands in brackets.
fn literal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, "test.toml").unwrap()
    }

    fn urls_of(text: &str, host: Option<&str>) -> Vec<String> {
        urls(&config(text), host).unwrap()
    }

    #[test]
    fn the_host_that_is_passed_goes_before_every_other() {
        let text = "hostname = \"turn.example.org\"\n[listen]\nudp = [\"192.0.2.7:3478\"]\ntcp = []";
        assert_eq!(urls_of(text, Some("other.example")), ["turn:other.example:3478?transport=udp"]);
        assert_eq!(urls_of(text, None), ["turn:turn.example.org:3478?transport=udp"]);
    }

    #[test]
    fn listeners_that_differ_in_their_address_only_make_one_url() {
        let text = "hostname = \"turn.example.org\"\n[listen]\n\
                    udp = [\"192.0.2.7:3478\", \"[2001:db8::7]:3478\", \"192.0.2.7:443\"]\n\
                    tcp = [\"192.0.2.7:80\", \"[2001:db8::7]:80\"]";
        assert_eq!(
            urls_of(text, None),
            [
                "turn:turn.example.org:3478?transport=udp",
                "turn:turn.example.org:443?transport=udp",
                "turn:turn.example.org:80?transport=tcp"
            ]
        );
    }

    #[test]
    fn every_udp_url_is_before_every_tcp_url() {
        let urls = urls_of("[relay]\naddresses = [\"192.0.2.7\", \"2001:db8::7\"]", None);
        let hosts = ["turn:192.0.2.7:3478", "turn:[2001:db8::7]:3478"];
        let expected = ["udp", "tcp"].map(|transport| hosts.map(|host| format!("{host}?transport={transport}")));
        assert_eq!(urls, expected.concat());
        let tcp_only = "[listen]\nudp = []\ntcp = [\"192.0.2.7:443\"]";
        assert_eq!(urls_of(tcp_only, None), ["turn:192.0.2.7:443?transport=tcp"]);
    }

    #[test]
    fn a_listener_on_one_address_is_reached_there_or_at_its_mapping() {
        let text = "[listen]\nudp = [\"10.0.0.5:3478\", \"[2001:db8::7]:3479\"]\n\
                    tcp = [\"10.0.0.5:443\"]\n[relay]\naddresses = [\"10.0.0.5\"]\n\
                    external = { \"10.0.0.5\" = \"203.0.113.9\" }";
        assert_eq!(
            urls_of(text, None),
            [
                "turn:203.0.113.9:3478?transport=udp",
                "turn:[2001:db8::7]:3479?transport=udp",
                "turn:203.0.113.9:443?transport=tcp"
            ]
        );
    }

    #[test]
    fn a_wildcard_listener_is_reached_at_the_given_relay_addresses_of_its_families() {
        let relay = "[relay]\naddresses = [\"10.0.0.5\", \"10.0.0.6\", \"2001:db8::7\"]\n\
                     external = { \"10.0.0.5\" = \"203.0.113.9\" }";
        let (v4, v6) = ("turn:203.0.113.9:3478", "turn:[2001:db8::7]:3478");
        let listen = "[listen]\nudp = [\"[::]:3478\"]\ntcp = [\"0.0.0.0:3478\"]\n";
        assert_eq!(
            urls_of(&format!("{listen}{relay}"), None),
            [format!("{v4}?transport=udp"), format!("{v6}?transport=udp"), format!("{v4}?transport=tcp")]
        );
    }

    // RFC 7065 §3.1
    #[test]
    fn a_tls_listener_is_named_by_what_the_certificate_is_for() {
        let text = "[listen]\nudp = []\ntcp = [\"192.0.2.7:3478\"]\ntls = [\"192.0.2.7:5349\", \"[::]:443\"]\n\
                    [tls]\ncertificate = \"c\"\nprivate-key = \"k\"";
        let expected = [
            "turn:turn.example.org:3478?transport=tcp",
            "turns:turn.example.org:5349?transport=tcp",
            "turns:turn.example.org:443?transport=tcp",
        ];
        assert_eq!(urls_of(text, Some("turn.example.org")), expected);
        assert_eq!(urls_of(&format!("hostname = \"turn.example.org\"\n{text}"), None), expected);
        assert_eq!(urls_of(text, None), ["turn:192.0.2.7:3478?transport=tcp"]);
        let only_tls = text.replace("tcp = [\"192.0.2.7:3478\"]", "tcp = []");
        assert_eq!(urls(&config(&only_tls), None), Err(UrlsUnknown::Host));
    }

    #[test]
    fn a_wildcard_listener_alone_does_not_tell_the_address() {
        assert_eq!(urls(&Config::default(), None), Err(UrlsUnknown::Host));
        assert_eq!(urls_of("", Some("[::1]")), ["turn:[::1]:3478?transport=udp", "turn:[::1]:3478?transport=tcp"]);
    }

    #[test]
    fn port_zero_does_not_tell_the_port() {
        let any = config("[listen]\nudp = [\"127.0.0.1:0\"]\ntcp = [\"127.0.0.1:0\"]");
        assert_eq!(urls(&any, Some("turn.example.org")), Err(UrlsUnknown::Port));
        let tcp = "[listen]\nudp = [\"127.0.0.1:0\"]\ntcp = [\"127.0.0.1:80\"]";
        assert_eq!(urls_of(tcp, None), ["turn:127.0.0.1:80?transport=tcp"]);
    }
}
