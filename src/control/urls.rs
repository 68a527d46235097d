//! The URLs at which clients reach the server.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::addresses::{Choice, advertised_hosts};
use super::start::{StartError, choose_addresses};
use super::tls;
use crate::clock;
use crate::config::{Config, Http};
use crate::net::tls::Certificate;
use crate::transport::{Endpoint, TurnUri};

/// Returns the URIs at which clients reach a server that runs on this machine with this configuration, for an
/// application that makes credentials itself. Listeners with port 0 have none: only the server knows their ports.
///
/// # Errors
/// If a configured address or the certificate is unusable.
pub fn client_urls(config: &Config) -> Result<Vec<String>, StartError> {
    let choice = choose_addresses(config)?;
    let now = clock::unix_seconds();
    let certificate = config.tls.as_ref().map(|tls| tls::load_default(tls, now)).transpose()?.flatten();
    let endpoints: Vec<Endpoint> =
        config.listen.iter().filter(|endpoint| endpoint.address.port() != 0).copied().collect();
    let of_listeners = urls(config, &endpoints, &choice, certificate.as_ref());
    Ok(without_duplicates(of_listeners.into_iter().chain(config.front_urls(Some))))
}

/// Returns the URIs of the listeners without duplicates: a wildcard and one of its addresses may share a port.
pub(super) fn urls(
    config: &Config,
    endpoints: &[Endpoint],
    choice: &Choice,
    certificate: Option<&Certificate>,
) -> Vec<String> {
    let urls = endpoints.iter().flat_map(|Endpoint { transport, address }| {
        let tls = transport.is_encrypted().then_some(certificate);
        let hosts = hosts(config, address.ip(), choice, tls);
        hosts.into_iter().map(move |host| TurnUri::new(*transport, &host, address.port()).to_string())
    });
    without_duplicates(urls)
}

/// Returns the URLs of the HTTP listeners, or the one that the configuration names.
pub(super) fn pages(
    config: &Config,
    listeners: &[SocketAddr],
    choice: &Choice,
    certificate: Option<&Certificate>,
) -> Vec<String> {
    let Http { url, tls, .. } = &config.http;
    let urls = listeners.iter().flat_map(|address| {
        // The name of the server is not that of its loopback addresses.
        let hosts = if address.ip().is_loopback() {
            vec![address.ip().to_string()]
        } else {
            hosts(config, address.ip(), choice, tls.then_some(certificate))
        };
        let scheme = if *tls { "https" } else { "http" };
        hosts.into_iter().map(move |host| {
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            format!("{scheme}://{host}:{}", address.port())
        })
    });
    match url {
        Some(_) if listeners.is_empty() => Vec::new(),
        Some(url) => vec![url.clone()],
        None => without_duplicates(urls),
    }
}

/// Returns the names or addresses at which clients reach a listener. `tls` has the default certificate of a TLS
/// listener.
///
/// A TLS client compares the host with the certificate. If no `hostname` is configured, the hosts of a TLS listener are
/// those of its addresses that the certificate covers, otherwise the first name in the certificate that is not a
/// wildcard. Without either, there is no host.
fn hosts(config: &Config, address: IpAddr, choice: &Choice, tls: Option<Option<&Certificate>>) -> Vec<String> {
    if let Some(name) = &config.hostname {
        return vec![name.clone()];
    }
    let addresses = advertised_hosts(address, &config.relay.external, choice);
    let mut hosts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if let Some(certificate) = tls {
        hosts.retain(|host| certificate.is_some_and(|certificate| certificate.covers(host)));
        if hosts.is_empty() {
            let mut names = certificate.into_iter().flat_map(|certificate| &certificate.names);
            hosts.extend(names.find(|name| !name.starts_with('*')).cloned());
        }
        // The certificate that the server orders. Only its user may read the file.
        if let (true, Some(acme)) = (hosts.is_empty(), config.tls.as_ref().and_then(|tls| tls.acme.as_ref())) {
            hosts.extend(acme.domains.first().cloned());
        }
    }
    hosts
}

fn without_duplicates(urls: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    urls.filter(|url| seen.insert(url.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::addresses::RelayAddress;
    use crate::transport::Transport;

    fn choice(bind: &str) -> Choice {
        let bind = bind.parse().unwrap();
        let relay = RelayAddress { bind, advertised: bind, reason: String::new(), for_all: true };
        Choice { addresses: vec![relay], missing: Vec::new(), unusable: Vec::new(), warnings: Vec::new() }
    }

    #[test]
    fn listeners_with_the_same_uri_share_one_entry() {
        let choice = choice("127.0.0.1");
        let endpoints = [
            (Transport::Udp, "0.0.0.0:3478"),
            (Transport::Udp, "127.0.0.1:3478"),
            (Transport::Udp, "127.0.0.1:443"),
            (Transport::Tcp, "127.0.0.1:3478"),
            (Transport::Tcp, "0.0.0.0:3478"),
        ]
        .map(|(transport, text)| Endpoint::new(transport, text.parse().unwrap()));

        let mut config = Config::default();
        let expected = [
            "turn:127.0.0.1:3478?transport=udp",
            "turn:127.0.0.1:443?transport=udp",
            "turn:127.0.0.1:3478?transport=tcp",
        ];
        assert_eq!(urls(&config, &endpoints, &choice, None), expected);
        config.hostname = Some("turn.example.org".to_owned());
        let expected = [
            "turn:turn.example.org:3478?transport=udp",
            "turn:turn.example.org:443?transport=udp",
            "turn:turn.example.org:3478?transport=tcp",
        ];
        assert_eq!(urls(&config, &endpoints, &choice, None), expected);
    }

    #[test]
    fn an_application_gets_the_uris_of_the_configured_listeners_with_a_known_port() {
        let text = "hostname = 'turn.example.org'\n[relay]\naddresses = ['127.0.0.1']\n[listen]\nudp = ['127.0.0.1:3478', \
                    '127.0.0.1:0']\ntcp = ['127.0.0.1:0']\n";
        let config = Config::parse(text, "turnserver.toml").unwrap();
        assert_eq!(client_urls(&config).unwrap(), ["turn:turn.example.org:3478?transport=udp"]);
    }

    #[test]
    fn pages_have_the_configured_url_or_that_of_each_listener() {
        let choice = choice("192.0.2.7");
        let listeners = ["0.0.0.0:9641", "127.0.0.1:80", "[::1]:8080"].map(|text| text.parse().unwrap());
        let mut config = Config::default();
        let of = |config: &Config, listeners: &[SocketAddr]| pages(config, listeners, &choice, None);
        assert_eq!(of(&config, &listeners), ["http://192.0.2.7:9641", "http://127.0.0.1:80", "http://[::1]:8080"]);
        config.hostname = Some("turn.example.org".to_owned());
        config.http.tls = true;
        let expected = ["https://turn.example.org:9641", "https://127.0.0.1:80", "https://[::1]:8080"];
        assert_eq!(of(&config, &listeners), expected);
        config.http.url = Some("https://example.org/turn".to_owned());
        assert_eq!(of(&config, &listeners), ["https://example.org/turn"]);
        assert_eq!(of(&config, &[]), [""; 0], "nothing serves the page");
    }
}
