//! The TURN URLs (RFC 7065) of a configuration.

use std::net::IpAddr;

use turnserver::config::{Config, RelayAddresses};
use turnserver::setting::{HOSTNAME, RELAY_ADDRESSES};
use turnserver::transport::{Endpoint, TurnUri};

/// Why the URLs are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlsUnknown {
    #[error(
        "the configuration does not contain the address of the server: set `{HOSTNAME}`, or pass --host HOST. Without \
         either, a UDP or TCP URL needs a specific address in `[listen]` or `{RELAY_ADDRESSES}`, and there is no TLS \
         URL"
    )]
    Host,
    #[error("the configuration does not contain the port of the server: `[listen]` has only port 0")]
    Port,
}

/// Returns the URLs of all listeners and fronts without duplicates: UDP, TCP, TLS, then the fronts.
///
/// Without a hostname, a wildcard listener has one URL per address family of the configured relay addresses. A TLS
/// listener has a URL only with a hostname: TLS clients check it, and few certificates are valid for an address. The
/// hosts of a front are its names, because the front passes any other name to the web site.
pub(crate) fn urls(config: &Config, host: Option<&str>) -> Result<Vec<String>, UrlsUnknown> {
    let host = host.or(config.hostname.as_deref());
    let listeners: Vec<&Endpoint> = config.listen.iter().filter(|endpoint| endpoint.address.port() != 0).collect();
    let of_fronts = config.front_urls(Some);
    if listeners.is_empty() && of_fronts.is_empty() {
        return Err(UrlsUnknown::Port);
    }
    let (mut urls, has_listeners) = (Vec::new(), !listeners.is_empty());
    for Endpoint { transport, address } in listeners {
        let hosts = match host {
            Some(host) => vec![host.to_owned()],
            None if transport.is_encrypted() => Vec::new(),
            None => addresses(config, address.ip()).into_iter().map(|address| address.to_string()).collect(),
        };
        for host in hosts {
            let url = TurnUri::new(*transport, &host, address.port()).to_string();
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
    }
    // Their URLs alone would lead every client to TLS.
    if urls.is_empty() && has_listeners {
        return Err(UrlsUnknown::Host);
    }
    for url in of_fronts {
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok(urls)
}

/// Returns the public addresses of a listener, as far as the configuration contains them.
fn addresses(config: &Config, listener: IpAddr) -> Vec<IpAddr> {
    if !listener.is_unspecified() {
        return vec![advertised(config, listener)];
    }
    let given = match &config.relay.addresses {
        RelayAddresses::Given(addresses) => addresses.as_slice(),
        RelayAddresses::Auto => &[],
    };
    // A listener on [::] also accepts IPv4.
    let families: &[fn(&IpAddr) -> bool] =
        if listener.is_ipv4() { &[IpAddr::is_ipv4] } else { &[IpAddr::is_ipv4, IpAddr::is_ipv6] };
    families
        .iter()
        .filter_map(|family| given.iter().copied().find(family))
        .map(|address| advertised(config, address))
        .collect()
}

/// Returns the public address if `relay.external` maps `address`, otherwise `address`.
fn advertised(config: &Config, address: IpAddr) -> IpAddr {
    config.relay.external.iter().find(|(inside, _)| *inside == address).map_or(address, |(_, outside)| *outside)
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
    fn the_host_argument_overrides_the_configured_hostname() {
        let text = "hostname = \"turn.example.org\"\n[listen]\nudp = [\"192.0.2.7:3478\"]\ntcp = []";
        assert_eq!(urls_of(text, Some("other.example")), ["turn:other.example:3478?transport=udp"]);
        assert_eq!(urls_of(text, None), ["turn:turn.example.org:3478?transport=udp"]);
    }

    #[test]
    fn listeners_that_differ_only_in_their_address_share_one_url() {
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
    fn udp_urls_precede_tcp_urls() {
        let urls = urls_of("[relay]\naddresses = [\"192.0.2.7\", \"2001:db8::7\"]", None);
        let hosts = ["turn:192.0.2.7:3478", "turn:[2001:db8::7]:3478"];
        let expected = ["udp", "tcp"].map(|transport| hosts.map(|host| format!("{host}?transport={transport}")));
        assert_eq!(urls, expected.concat());
        let tcp_only = "[listen]\nudp = []\ntcp = [\"192.0.2.7:443\"]";
        assert_eq!(urls_of(tcp_only, None), ["turn:192.0.2.7:443?transport=tcp"]);
    }

    #[test]
    fn a_specific_listener_uses_its_address_or_its_mapping() {
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
    fn a_wildcard_listener_uses_the_configured_relay_addresses_of_its_families() {
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
    fn a_tls_listener_has_a_url_only_with_a_hostname() {
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
    fn a_front_has_a_url_for_each_of_its_names() {
        let front =
            |port: u16, names: &str| format!("[[front]]\nlisten = \"[::]:{port}\"\nweb = \"127.0.0.1:8443\"\n{names}");
        let (names, tls) =
            ("names = [\"a.example.org\", \"b.example.org\"]\n", "[tls]\ncertificate = \"c\"\nprivate-key = \"k\"\n");
        let host = "hostname = \"turn.example.org\"\n[listen]\nudp = [\"[::]:3478\"]\ntcp = []\n";
        let udp = "turn:turn.example.org:3478?transport=udp";
        let of_front = "turns:turn.example.org:443?transport=tcp";
        assert_eq!(urls_of(&format!("{host}{tls}{}", front(443, "")), None), [udp, of_front]);
        let of_names = ["a", "b"].map(|name| format!("turns:{name}.example.org:443?transport=tcp"));
        assert_eq!(urls_of(&format!("{host}{tls}{}", front(443, names)), None)[1..], of_names);
        // Its names decide, not the argument.
        assert_eq!(
            urls_of(&format!("{host}{tls}{}", front(443, "")), Some("other.example")),
            ["turn:other.example:3478?transport=udp", of_front]
        );
        // Nothing else has a known port.
        let alone = format!("[listen]\nudp = [\"[::]:0\"]\ntcp = []\n{tls}{}", front(443, names));
        assert_eq!(urls_of(&alone, None), of_names);
        // Without a certificate, at the port of HTTP, and at a port that is not known, there is none.
        for without in [front(443, ""), format!("{tls}{}", front(80, "")), format!("{tls}{}", front(0, ""))] {
            assert_eq!(urls_of(&format!("{host}{without}"), None), [udp], "{without}");
        }
    }

    #[test]
    fn a_wildcard_listener_without_further_addresses_is_an_error() {
        assert_eq!(urls(&Config::default(), None), Err(UrlsUnknown::Host));
        assert_eq!(urls_of("", Some("[::1]")), ["turn:[::1]:3478?transport=udp", "turn:[::1]:3478?transport=tcp"]);
    }

    #[test]
    fn a_listener_on_port_0_has_no_url() {
        let any = config("[listen]\nudp = [\"127.0.0.1:0\"]\ntcp = [\"127.0.0.1:0\"]");
        assert_eq!(urls(&any, Some("turn.example.org")), Err(UrlsUnknown::Port));
        let tcp = "[listen]\nudp = [\"127.0.0.1:0\"]\ntcp = [\"127.0.0.1:80\"]";
        assert_eq!(urls_of(tcp, None), ["turn:127.0.0.1:80?transport=tcp"]);
    }
}
