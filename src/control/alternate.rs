//! The alternate servers, and the check that this server is not one of them.

use std::net::{IpAddr, SocketAddr};

use crate::config::{self, AlternateWhen, Config};
use crate::transport::Transport;
use crate::turn::{Alternate, RedirectWhen};

/// Returns the alternate servers as the workers read them; `None` if there are none. `of_fleet` has the other nodes of the
/// fleet, for clients over UDP and TCP and for those over TLS.
pub(super) fn alternate(config: &config::Alternate, of_fleet: &[Vec<SocketAddr>; 2]) -> Option<Alternate> {
    let when = match config.when {
        AlternateWhen::Draining => RedirectWhen::Draining,
        AlternateWhen::Full => RedirectWhen::Full,
        AlternateWhen::Always => RedirectWhen::Always,
    };
    let config::Alternate { mut servers, mut tls_servers, domain, from_fleet, .. } = config.clone();
    if from_fleet {
        [servers, tls_servers] = of_fleet.clone();
    }
    (!servers.is_empty() || !tls_servers.is_empty()).then_some(Alternate { servers, tls_servers, domain, when })
}

/// Returns an alternate server that is this server itself. It would redirect clients to itself in a loop.
///
/// An alternate server is this server if its address is the address of a listener, or the address to which `external`
/// maps the address of a listener. A wildcard listener has every address in `own` (the addresses of this machine).
pub(super) fn own_server(config: &Config, own: &[IpAddr]) -> Option<SocketAddr> {
    let reaches = |listener: SocketAddr, server: SocketAddr| {
        let (here, there) = (listener.ip(), server.ip());
        let mapped = |(inside, outside): &(IpAddr, IpAddr)| *inside == here && *outside == there;
        let wildcard = here.is_unspecified() && (here.is_ipv6() || there.is_ipv4()) && own.contains(&there);
        listener.port() == server.port() && (wildcard || here == there || config.relay.external.iter().any(mapped))
    };
    let serves = |transport: Transport, over_tls: bool| match transport {
        // With a certificate, a TCP listener serves both.
        Transport::Tcp => !over_tls || config.tls.is_some(),
        _ => transport.is_encrypted() == over_tls,
    };
    let find = |servers: &[SocketAddr], over_tls: bool| {
        let listeners = config.listen.iter().filter(|endpoint| serves(endpoint.transport, over_tls));
        let reached = |server: &SocketAddr| listeners.clone().any(|endpoint| reaches(endpoint.address, *server));
        servers.iter().copied().find(reached)
    };
    find(&config.alternate.servers, false).or_else(|| find(&config.alternate.tls_servers, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CertificateFiles;
    use crate::transport::Endpoint;

    fn found(listen: &str, server: &str) -> bool {
        let text = format!(
            "listen = {{ udp = [\"{listen}\"], tcp = [] }}\nalternate = {{ servers = [\"{server}\"] }}\n\
             relay = {{ external = {{ \"10.0.0.5\" = \"203.0.113.9\" }} }}"
        );
        let own = ["10.0.0.5", "203.0.113.9", "2001:db8::7"].map(|ip| ip.parse().unwrap());
        let server = server.parse().ok();
        match own_server(&Config::parse(&text, "t.toml").unwrap(), &own) {
            None => false,
            found => {
                assert_eq!(found, server);
                true
            }
        }
    }

    #[test]
    fn a_wildcard_listener_has_every_address_of_this_machine() {
        assert!(found("[::]:3478", "10.0.0.5:3478"));
        assert!(found("[::]:3478", "203.0.113.9:3478"));
        assert!(found("[::]:3478", "[2001:db8::7]:3478"));
        assert!(found("0.0.0.0:3478", "10.0.0.5:3478"));
        assert!(!found("0.0.0.0:3478", "[2001:db8::7]:3478"));
        assert!(!found("[::]:3478", "10.0.0.5:3479"));
        assert!(!found("[::]:3478", "198.51.100.1:3478"));
    }

    #[test]
    fn tls_servers_are_compared_only_with_tls_listeners() {
        let tls = Endpoint::new(Transport::Tls, "[::]:5349".parse().unwrap());
        let with = |servers: &[&str], tls_servers: &[&str]| {
            let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            let mut config = Config::default();
            config.listen.push(tls);
            (config.alternate.servers, config.alternate.tls_servers) = (parse(servers), parse(tls_servers));
            own_server(&config, &["10.0.0.5".parse().unwrap()])
        };
        assert_eq!(with(&["10.0.0.5:5349"], &["10.0.0.5:3478"]), None);
        assert_eq!(with(&[], &["10.0.0.5:5349"]), "10.0.0.5:5349".parse().ok());
        assert_eq!(with(&["10.0.0.5:3478"], &[]), "10.0.0.5:3478".parse().ok());
    }

    #[test]
    fn with_a_certificate_a_tcp_listener_is_compared_with_tls_servers() {
        let text =
            "listen = { udp = [], tcp = [\"10.0.0.5:443\"] }\nalternate = { tls-servers = [\"10.0.0.6:443\"] }\n";
        let mut config = Config::parse(text, "t.toml").unwrap();
        config.alternate.tls_servers = vec!["10.0.0.5:443".parse().unwrap()];
        assert_eq!(own_server(&config, &[]), None);
        let [certificate, private_key] = ["c.pem", "k.pem"].map(Into::into);
        let files = CertificateFiles { certificate, private_key, is_further: false, is_ordered: false };
        config.tls = Some(config::Tls { certificates: vec![files], acme: None });
        assert_eq!(own_server(&config, &[]), "10.0.0.5:443".parse().ok());
    }

    #[test]
    fn a_specific_listener_has_its_own_address_and_the_mapped_one() {
        assert!(found("10.0.0.5:3478", "203.0.113.9:3478"));
        assert!(!found("10.0.0.5:3478", "10.0.0.6:3478"));
        assert!(!found("[2001:db8::7]:3478", "203.0.113.9:3478"));
    }
}
