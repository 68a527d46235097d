//! The listeners: claimed once for the process, and bound again for each further worker.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use crate::net::{interfaces, tcp, udp};
use crate::transport::{Endpoint, Transport};
use crate::worker::{BoundListener, ListenerSocket};

/// Why a listener cannot be bound. Each message is one line with advice.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program uses the port.
    #[error(
        "cannot listen on {0}: another program uses the port. Find it with `ss -{flag}lpn sport = :{port}`, or set \
         another port in listen.{transport}",
        flag = if .0.transport.is_connection() { 't' } else { 'u' },
        port = .0.address.port(),
        transport = .0.transport
    )]
    InUse(Endpoint),
    /// The machine does not have the address.
    #[error(
        "cannot listen on {endpoint}: this machine does not have the address. Change it in listen.{transport}; the \
         addresses of this machine are {available}",
        transport = .endpoint.transport
    )]
    NotLocal {
        /// The endpoint.
        endpoint: Endpoint,
        /// The addresses that the machine has.
        available: String,
    },
    /// The port is below 1024, and the process lacks the privilege for it.
    #[error(
        "cannot listen on {0}: ports below 1024 require CAP_NET_BIND_SERVICE. The systemd unit grants it with \
         AmbientCapabilities=CAP_NET_BIND_SERVICE"
    )]
    NotPermitted(Endpoint),
    /// Another error of the kernel.
    #[error("cannot listen on {endpoint}: {error}")]
    Other {
        /// The endpoint.
        endpoint: Endpoint,
        /// What the kernel reported.
        error: io::Error,
    },
}

impl ListenError {
    fn new(endpoint: Endpoint, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(endpoint),
            io::ErrorKind::PermissionDenied => Self::NotPermitted(endpoint),
            io::ErrorKind::AddrNotAvailable => {
                let own = interfaces::read().unwrap_or_default().addresses;
                let own: Vec<String> = own.iter().map(|own| format!("{} ({})", own.address, own.name)).collect();
                let available = if own.is_empty() { "none".to_owned() } else { own.join(", ") };
                Self::NotLocal { endpoint, available }
            }
            _ => Self::Other { endpoint, error },
        }
    }
}

/// The endpoints of the listeners, and the sockets that claim their ports until the first worker takes them.
#[derive(Debug)]
pub(super) struct Listeners {
    endpoints: Vec<Endpoint>,
    /// The endpoints with a socket, and whether they serve clients without TLS.
    bound: Vec<(Endpoint, bool)>,
    claimed: Option<Vec<BoundListener>>,
}

impl Listeners {
    /// Claims each endpoint. Port 0 selects a free port.
    pub(super) fn claim(wanted: &[Endpoint]) -> Result<Self, ListenError> {
        let mut order: Vec<(usize, Endpoint)> = wanted.iter().copied().enumerate().collect();
        // A TCP listener also serves TLS, so a TLS endpoint with the same address needs no socket.
        let tcp_of = |endpoint: &Endpoint| {
            let twin = Endpoint::new(Transport::Tcp, endpoint.address);
            let shares = endpoint.transport == Transport::Tls && endpoint.address.port() != 0;
            if shares { wanted.iter().position(|other| *other == twin) } else { None }
        };
        order.retain(|(_, endpoint)| tcp_of(endpoint).is_none());
        // Wildcards first: they hold their port on every address, so that specific addresses can share it.
        order.sort_by_key(|(_, endpoint)| {
            (endpoint.transport.is_connection(), !endpoint.address.ip().is_unspecified(), endpoint.transport)
        });
        let mut claimed: Vec<(usize, BoundListener)> = Vec::with_capacity(wanted.len());
        for (index, endpoint) in order {
            let shared = claimed.iter().any(|(_, own)| covers(own.endpoint, endpoint));
            let plain = endpoint.transport != Transport::Tls
                || wanted.iter().any(|other| other.transport == Transport::Tcp && covers(*other, endpoint));
            let listener = if shared { bind(endpoint, plain, Ports::Shared) } else { claim_one(endpoint, plain) };
            claimed.push((index, listener.map_err(|error| ListenError::new(endpoint, error))?));
        }
        claimed.sort_by_key(|(index, _)| *index);
        let actual = |(index, endpoint): (usize, &Endpoint)| {
            let of = tcp_of(endpoint).unwrap_or(index);
            let listener = claimed.iter().find(|(own, _)| *own == of);
            listener.map(|(_, listener)| Endpoint::new(endpoint.transport, listener.endpoint.address))
        };
        let endpoints = wanted.iter().enumerate().filter_map(actual).collect();
        let claimed: Vec<BoundListener> = claimed.into_iter().map(|(_, listener)| listener).collect();
        let bound = claimed.iter().map(|listener| (listener.endpoint, listener.plain)).collect();
        Ok(Self { endpoints, bound, claimed: Some(claimed) })
    }

    /// Returns the endpoints with their actual ports, in the order of the configuration.
    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Returns the listeners of the next worker. The first worker gets the claiming sockets, the others share their
    /// ports.
    pub(super) fn for_next_worker(&mut self) -> Result<Vec<BoundListener>, ListenError> {
        let bind_shared = |(endpoint, plain): &(Endpoint, bool)| {
            bind(*endpoint, *plain, Ports::Shared).map_err(|error| ListenError::new(*endpoint, error))
        };
        match self.claimed.take() {
            Some(listeners) => Ok(listeners),
            None => self.bound.iter().map(bind_shared).collect(),
        }
    }
}

/// How a listener gets its port.
#[derive(Clone, Copy, Debug)]
enum Ports {
    /// No other socket may use the port yet.
    Claimed,
    /// A listener of this process has claimed the port.
    Shared,
}

fn bind(endpoint: Endpoint, plain: bool, ports: Ports) -> io::Result<BoundListener> {
    let Endpoint { transport, address } = endpoint;
    let socket = match (transport.is_connection(), ports) {
        (false, Ports::Claimed) => ListenerSocket::Udp(udp::claim_listener(address)?),
        (false, Ports::Shared) => ListenerSocket::Udp(udp::bind_listener(address)?),
        (true, Ports::Claimed) => ListenerSocket::Tcp(tcp::claim_listener(address)?),
        (true, Ports::Shared) => ListenerSocket::Tcp(tcp::bind_listener(address)?),
    };
    Ok(BoundListener { endpoint: Endpoint::new(transport, socket.local_addr()?), socket, plain })
}

/// Claims an endpoint; `0.0.0.0` in place of `[::]` if the kernel has no IPv6.
fn claim_one(endpoint: Endpoint, plain: bool) -> io::Result<BoundListener> {
    let Endpoint { transport, address } = endpoint;
    match bind(endpoint, plain, Ports::Claimed) {
        Err(error) if udp::no_ipv6(&error) && address.is_ipv6() && address.ip().is_unspecified() => {
            tracing::warn!(
                event = "ipv6-missing", transport = transport.as_str(),
                %address,
                "the kernel has no IPv6, so the server listens only on 0.0.0.0"
            );
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            bind(Endpoint::new(transport, address), plain, Ports::Claimed)
        }
        other => other,
    }
}

/// A listener whose address this machine does not have. Clients can reach it as soon as the machine has the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MissingListener {
    pub(super) endpoint: Endpoint,
}

impl fmt::Display for MissingListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint } = self;
        write!(
            f,
            "clients cannot reach the server at {endpoint} yet, because this machine does not have the address. The \
             server waits for it. If that is a mistake, change it in listen.{}",
            endpoint.transport
        )
    }
}

/// Returns the listeners whose addresses this machine does not have.
///
/// # Errors
/// If the kernel does not tell whether the machine has an address.
pub(super) fn missing(wanted: &[Endpoint]) -> io::Result<Vec<MissingListener>> {
    let mut missing = Vec::new();
    for endpoint in wanted.iter().filter(|endpoint| !endpoint.address.ip().is_unspecified()) {
        if !interfaces::is_local(endpoint.address.ip())? {
            missing.push(MissingListener { endpoint: *endpoint });
        }
    }
    Ok(missing)
}

/// Returns whether `own` is a wildcard that includes `other`, so that both can share a port.
fn covers(own: Endpoint, other: Endpoint) -> bool {
    let (wildcard, address) = (own.address, other.address);
    own.transport.port_protocol() == other.transport.port_protocol()
        && wildcard.ip().is_unspecified()
        && wildcard.port() == address.port()
        && (wildcard.is_ipv6() || address.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Transport;

    fn each(text: &str) -> [ListenError; 4] {
        let [udp, tcp] =
            [Transport::Udp, Transport::Tcp].map(|transport| Endpoint::new(transport, text.parse().unwrap()));
        let available = "10.0.0.5 (eth0)".to_owned();
        [
            ListenError::InUse(udp),
            ListenError::InUse(tcp),
            ListenError::NotLocal { endpoint: tcp, available },
            ListenError::NotPermitted(tcp),
        ]
    }

    #[test]
    fn each_error_names_the_transport_and_what_to_do() {
        let lines = each("192.0.2.7:80").map(|error| error.to_string());
        for (line, (begin, part)) in lines.iter().zip([
            ("cannot listen on udp 192.0.2.7:80: ", "`ss -ulpn sport = :80`, or set another port in listen.udp"),
            ("cannot listen on tcp 192.0.2.7:80: ", "`ss -tlpn sport = :80`, or set another port in listen.tcp"),
            ("cannot listen on tcp 192.0.2.7:80: ", "in listen.tcp; the addresses of this machine are 10.0.0.5 (eth0)"),
            ("cannot listen on tcp 192.0.2.7:80: ", "CAP_NET_BIND_SERVICE"),
        ]) {
            assert!(line.starts_with(begin) && line.contains(part), "{line}");
        }
    }

    #[test]
    fn tcp_and_tls_share_a_socket_on_one_address() {
        let free = Listeners::claim(&[Endpoint::new(Transport::Tcp, "127.0.0.1:0".parse().unwrap())]).unwrap();
        let port = free.endpoints()[0].address.port();
        drop(free);
        let at = |transport, ip: &str| Endpoint::new(transport, SocketAddr::new(ip.parse().unwrap(), port));
        let of = |wanted: &[Endpoint]| {
            let mut listeners = Listeners::claim(wanted).unwrap();
            assert_eq!(listeners.endpoints(), wanted);
            let workers = [listeners.for_next_worker().unwrap(), listeners.for_next_worker().unwrap()];
            workers.map(|bound| bound.iter().map(|own| (own.endpoint, own.plain)).collect::<Vec<_>>())
        };
        let (tcp, tls) = (at(Transport::Tcp, "0.0.0.0"), at(Transport::Tls, "0.0.0.0"));
        assert_eq!(of(&[tcp, tls]), [vec![(tcp, true)], vec![(tcp, true)]]);
        // A socket of its own, on which `listen.tcp` admits clients without TLS.
        let tls = at(Transport::Tls, "127.0.0.1");
        assert_eq!(of(&[tcp, tls]), [vec![(tcp, true), (tls, true)], vec![(tcp, true), (tls, true)]]);
        let (tcp, tls) = (at(Transport::Tcp, "127.0.0.1"), at(Transport::Tls, "0.0.0.0"));
        assert_eq!(of(&[tcp, tls]), [vec![(tcp, true), (tls, false)], vec![(tcp, true), (tls, false)]]);
    }

    #[test]
    fn every_worker_has_a_socket_for_each_address_in_the_order_of_the_configuration() {
        // Another program may take the port between two steps.
        assert!((0..100).any(|_| claim_for_three_workers().is_ok()), "other programs have every port");
    }

    /// Fails if another program has the port.
    fn claim_for_three_workers() -> Result<(), ListenError> {
        let endpoints = |transport, ips: &[&str], port| -> Vec<Endpoint> {
            let addresses = ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
            addresses.map(|address| Endpoint::new(transport, address)).collect()
        };
        let free = Listeners::claim(&endpoints(Transport::Tcp, &["0.0.0.0"], 0)).unwrap();
        let port = free.endpoints()[0].address.port();
        drop(free);
        // The specific address shares the port of the wildcard that follows it.
        let wanted = endpoints(Transport::Tcp, &["127.0.0.2", "0.0.0.0"], port);
        let mut listeners = Listeners::claim(&wanted)?;
        assert_eq!(listeners.endpoints(), wanted);
        let workers: Vec<_> = (0..3).map(|_| listeners.for_next_worker().unwrap()).collect();
        for worker in &workers {
            assert_eq!(worker.iter().map(|listener| listener.endpoint).collect::<Vec<_>>(), wanted);
            assert!(worker.iter().all(|listener| matches!(listener.socket, ListenerSocket::Tcp(_))));
            let local = |listener: &BoundListener| listener.socket.local_addr().unwrap();
            let addresses: Vec<SocketAddr> = wanted.iter().map(|endpoint| endpoint.address).collect();
            assert_eq!(worker.iter().map(local).collect::<Vec<_>>(), addresses);
        }
        drop(listeners);
        for endpoint in wanted {
            assert!(matches!(Listeners::claim(&[endpoint]), Err(ListenError::InUse(taken)) if taken == endpoint));
        }
        Listeners::claim(&endpoints(Transport::Udp, &["127.0.0.2", "0.0.0.0"], port)).map(drop)
    }
}
