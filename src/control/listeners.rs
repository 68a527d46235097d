//! The listeners: each endpoint is claimed for the process by one socket, and each further worker gets a socket of its
//! own for it.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use crate::net::{interfaces, tcp, udp};
use crate::transport::{Endpoint, Transport};
use crate::worker::{BoundListener, ListenerChange, ListenerSocket};

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

/// The listeners of the process.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    endpoints: Vec<Endpoint>,
    /// The endpoints with a socket, in the order of the configuration.
    bound: Vec<Bound>,
}

/// An endpoint for which each worker has a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// As in the configuration.
    wanted: Endpoint,
    /// With the actual port.
    actual: Endpoint,
    /// Whether it serves clients without TLS.
    plain: bool,
}

/// The listeners of a new configuration. Their sockets are bound; nothing else has changed.
#[derive(Debug)]
pub(super) struct NewListeners {
    pub(super) listeners: Listeners,
    /// What each worker has to open and to close.
    pub(super) changes: Vec<ListenerChange>,
}

impl Listeners {
    /// Returns the endpoints with their actual ports, in the order of the configuration.
    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Binds the sockets of the listeners in `wanted` for each worker, except those that these listeners have. Port 0
    /// selects a free port. If it is `only_check`, no socket is bound that would share a port of this process, because it
    /// would take packets.
    ///
    /// # Errors
    /// If a socket cannot be bound. Then none is.
    pub(super) fn preview(
        &self,
        wanted: &[Endpoint],
        workers: usize,
        only_check: bool,
    ) -> Result<NewListeners, ListenError> {
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
        let mut all: Vec<(usize, Bound, Vec<BoundListener>)> = Vec::with_capacity(wanted.len());
        for (index, endpoint) in order {
            let plain = endpoint.transport != Transport::Tls
                || wanted.iter().any(|other| other.transport == Transport::Tcp && covers(*other, endpoint));
            if let Some(own) = self.bound.iter().find(|own| own.wanted == endpoint && own.plain == plain) {
                all.push((index, *own, Vec::new()));
                continue;
            }
            let mut others = self.bound.iter().chain(all.iter().map(|(_, own, _)| own));
            let is_shared = others.any(|own| overlap(own.actual, endpoint));
            let sockets = if is_shared && only_check { Vec::new() } else { open(endpoint, plain, is_shared, workers)? };
            let actual = sockets.first().map_or(endpoint, |socket| socket.endpoint);
            all.push((index, Bound { wanted: endpoint, actual, plain }, sockets));
        }
        all.sort_by_key(|(index, ..)| *index);
        let actual = |(index, endpoint): (usize, &Endpoint)| {
            let of = tcp_of(endpoint).unwrap_or(index);
            let found = all.iter().find(|(own, ..)| *own == of);
            found.map(|(_, own, _)| Endpoint::new(endpoint.transport, own.actual.address))
        };
        let endpoints = wanted.iter().enumerate().filter_map(actual).collect();
        let bound: Vec<Bound> = all.iter().map(|(_, own, _)| *own).collect();
        let close: Vec<Endpoint> = self.bound.iter().filter(|own| !bound.contains(own)).map(|own| own.actual).collect();
        let change = |_| ListenerChange { open: Vec::new(), close: close.clone() };
        let mut changes: Vec<ListenerChange> = (0..workers).map(change).collect();
        for (_, _, sockets) in all {
            changes.iter_mut().zip(sockets).for_each(|(change, socket)| change.open.push(socket));
        }
        Ok(NewListeners { listeners: Self { endpoints, bound }, changes })
    }
}

/// Binds the sockets of an endpoint, one for each worker. `is_shared`: this process has another socket at its port.
fn open(endpoint: Endpoint, plain: bool, is_shared: bool, workers: usize) -> Result<Vec<BoundListener>, ListenError> {
    let failed = |error| ListenError::new(endpoint, error);
    let first = if is_shared { bind(endpoint, plain, Ports::Shared) } else { claim_one(endpoint, plain) };
    let first = first.map_err(failed)?;
    let actual = first.endpoint;
    let others = (1..workers).map(|_| bind(actual, plain, Ports::Shared).map_err(failed));
    std::iter::once(Ok(first)).chain(others).collect()
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

/// Returns whether two sockets could get the same packets, so that they have to share the port.
fn overlap(own: Endpoint, other: Endpoint) -> bool {
    let same = own.transport.port_protocol() == other.transport.port_protocol() && own.address == other.address;
    same || covers(own, other) || covers(other, own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(wanted: &[Endpoint], workers: usize) -> Result<NewListeners, ListenError> {
        Listeners::default().preview(wanted, workers, false)
    }

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
        let free = claim(&[Endpoint::new(Transport::Tcp, "127.0.0.1:0".parse().unwrap())], 1).unwrap();
        let port = free.listeners.endpoints()[0].address.port();
        drop(free);
        let at = |transport, ip: &str| Endpoint::new(transport, SocketAddr::new(ip.parse().unwrap(), port));
        let of = |wanted: &[Endpoint]| {
            let NewListeners { listeners, changes } = claim(wanted, 2).unwrap();
            assert_eq!(listeners.endpoints(), wanted);
            let sockets = |change: &ListenerChange| -> Vec<(Endpoint, bool)> {
                change.open.iter().map(|own| (own.endpoint, own.plain)).collect()
            };
            [sockets(&changes[0]), sockets(&changes[1])]
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
        let free = claim(&endpoints(Transport::Tcp, &["0.0.0.0"], 0), 1).unwrap();
        let port = free.listeners.endpoints()[0].address.port();
        drop(free);
        // The specific address shares the port of the wildcard that follows it.
        let wanted = endpoints(Transport::Tcp, &["127.0.0.2", "0.0.0.0"], port);
        let NewListeners { listeners, changes } = claim(&wanted, 3)?;
        assert_eq!(listeners.endpoints(), wanted);
        for worker in changes.iter().map(|change| &change.open) {
            assert_eq!(worker.iter().map(|listener| listener.endpoint).collect::<Vec<_>>(), wanted);
            assert!(worker.iter().all(|listener| matches!(listener.socket, ListenerSocket::Tcp(_))));
            let local = |listener: &BoundListener| listener.socket.local_addr().unwrap();
            let addresses: Vec<SocketAddr> = wanted.iter().map(|endpoint| endpoint.address).collect();
            assert_eq!(worker.iter().map(local).collect::<Vec<_>>(), addresses);
        }
        for endpoint in wanted {
            assert!(matches!(claim(&[endpoint], 1), Err(ListenError::InUse(taken)) if taken == endpoint));
        }
        claim(&endpoints(Transport::Udp, &["127.0.0.2", "0.0.0.0"], port), 1).map(drop)
    }

    #[test]
    fn only_what_differs_is_opened_and_closed() {
        let at = |transport, text: &str| Endpoint::new(transport, text.parse().unwrap());
        let start = [at(Transport::Udp, "127.0.0.1:0"), at(Transport::Tcp, "127.0.0.1:0")];
        let NewListeners { listeners, changes: _sockets } = claim(&start, 2).unwrap();
        let actual = listeners.endpoints().to_vec();
        let of = |wanted: &[Endpoint]| {
            let new = listeners.preview(wanted, 2, false).unwrap();
            let opened = |change: &ListenerChange| change.open.iter().map(|own| own.endpoint).collect::<Vec<_>>();
            assert_eq!(opened(&new.changes[0]), opened(&new.changes[1]));
            (opened(&new.changes[0]), new.changes[0].close.clone(), new.listeners.endpoints().to_vec())
        };
        assert_eq!(of(&start), (vec![], vec![], actual.clone()));
        assert_eq!(of(&start[..1]), (vec![], vec![actual[1]], vec![actual[0]]));
        // The wildcard shares the port with the listener that it replaces.
        let wildcard =
            Endpoint::new(Transport::Udp, SocketAddr::from((Ipv4Addr::UNSPECIFIED, actual[0].address.port())));
        assert_eq!(of(&[wildcard, start[1]]), (vec![wildcard], vec![actual[0]], vec![wildcard, actual[1]]));
        // A socket for TLS alone begins to serve TCP as well.
        let (tcp, tls) =
            (Endpoint::new(Transport::Tcp, actual[1].address), Endpoint::new(Transport::Tls, actual[1].address));
        let new = listeners.preview(&[start[0], tls], 1, false).unwrap();
        assert_eq!((new.changes[0].open[0].plain, &new.changes[0].close), (false, &vec![actual[1]]));
        assert_eq!(of(&[start[0], tcp, tls]), (vec![tcp], vec![actual[1]], vec![actual[0], tcp, tls]));
    }

    #[test]
    fn a_port_of_another_program_is_refused_and_the_listeners_stay() {
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = Endpoint::new(Transport::Udp, other.local_addr().unwrap());
        let start = [Endpoint::new(Transport::Udp, "127.0.0.1:0".parse().unwrap())];
        let NewListeners { listeners, .. } = claim(&start, 1).unwrap();
        let refused = listeners.preview(&[start[0], taken], 1, false);
        assert!(matches!(refused, Err(ListenError::InUse(endpoint)) if endpoint == taken));
        assert!(listeners.preview(&start, 1, false).is_ok_and(|new| new.changes[0].open.is_empty()));
    }
}
