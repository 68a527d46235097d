//! The listeners: each endpoint is claimed for the process by one socket, and each further worker gets a socket of its
//! own for it.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::failed::is_same;
use crate::config::Config;
use crate::net::passed::PassedSockets;
use crate::net::{interfaces, tcp, udp};
use crate::setting::{FRONT_LISTEN, HTTP_LISTEN};
use crate::transport::{Endpoint, Transport};
use crate::worker::{AlteredListener, BoundListener, ListenerChange, ListenerSocket};

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
    /// The HTTP server or a front of this process uses the port.
    #[error(
        "cannot listen on {endpoint}: http.listen or front.listen of this server uses {other}. Set another port in \
         listen.{transport} or there",
        transport = .endpoint.transport
    )]
    InUseByService {
        /// The endpoint.
        endpoint: Endpoint,
        /// The address in `http.listen` or `front.listen`, with its actual port.
        other: SocketAddr,
    },
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
         AmbientCapabilities=CAP_NET_BIND_SERVICE. Without it, a .socket unit can pass the socket (docs/install.md)"
    )]
    NotPermitted(Endpoint),
    /// The service manager has passed more sockets than there are workers.
    #[error(
        "cannot listen on {endpoint}: the service manager has passed {passed} sockets with this address, but there are \
         only {workers} workers, and clients of the others would get no response. List the address at most {workers} \
         times in the .socket unit, or set more `workers`"
    )]
    TooManyPassed {
        /// The endpoint.
        endpoint: Endpoint,
        /// The number of sockets.
        passed: usize,
        /// The number of workers.
        workers: usize,
    },
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
    /// Counts the configurations.
    generation: u64,
    /// The sockets that the service manager has passed.
    passed: Arc<PassedSockets>,
}

/// An endpoint for which each worker has a socket, or some of them, if the service manager has passed fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// As in the configuration.
    wanted: Endpoint,
    /// With the actual port.
    actual: Endpoint,
    /// Whether it serves clients without TLS.
    plain: bool,
    /// The generation of the listeners that it came with.
    generation: u64,
}

impl Bound {
    /// Whether the socket can serve an endpoint. A TCP socket can also serve TLS, and the other way round.
    fn fits(&self, endpoint: Endpoint) -> bool {
        self.actual.transport.port_protocol() == endpoint.transport.port_protocol()
            && (self.wanted.address == endpoint.address || self.actual.address == endpoint.address)
    }
}

/// The listeners of a new configuration. Their sockets are bound; nothing else has changed.
#[derive(Debug)]
pub(super) struct NewListeners {
    pub(super) listeners: Listeners,
    /// What each worker has to open, to alter and to close.
    pub(super) changes: Vec<ListenerChange>,
}

/// The TCP addresses that other services of this process have now.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// Those that it has after the reload.
    pub(super) stay: Vec<SocketAddr>,
    /// Those that it closes before the new listeners are used.
    pub(super) go: Vec<SocketAddr>,
}

impl Neighbours {
    /// Returns these and others together.
    pub(super) fn and(mut self, others: Self) -> Self {
        self.stay.extend(others.stay);
        self.go.extend(others.go);
        self
    }

    /// Returns an address that prevents a listener.
    pub(super) fn conflict(&self, address: SocketAddr) -> Option<SocketAddr> {
        self.stay.iter().copied().find(|other| overlaps(*other, address))
    }

    /// Whether a listener has to share its port until the reload is complete.
    pub(super) fn share(&self, address: SocketAddr) -> bool {
        self.go.iter().any(|other| overlaps(*other, address))
    }
}

/// An endpoint that needs a new socket for each worker.
#[derive(Clone, Copy, Debug)]
struct Missing {
    /// Its place in the configuration.
    index: usize,
    endpoint: Endpoint,
    plain: bool,
}

/// An endpoint with its place in the configuration, and its new sockets, one for each worker.
type Opened = (usize, Bound, Vec<BoundListener>);

impl Listeners {
    /// Returns no listeners. Those of configurations use sockets that the service manager has passed.
    pub(super) fn with(passed: Arc<PassedSockets>) -> Self {
        Self { passed, ..Self::default() }
    }

    /// Returns the sockets that the service manager has passed.
    pub(super) fn passed(&self) -> &PassedSockets {
        &self.passed
    }

    /// Returns the endpoints with their actual ports, in the order of the configuration.
    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Returns the number of the configuration of these listeners.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a listener that was opened in a generation is one of these.
    pub(super) fn has(&self, endpoint: Endpoint, generation: u64) -> bool {
        self.bound.iter().any(|own| is_same(own.actual, endpoint) && own.generation <= generation)
    }

    /// Forgets a listener that no worker has, so that the next configuration binds it again.
    pub(super) fn forget(&mut self, endpoint: Endpoint) {
        self.bound.retain(|own| !is_same(own.actual, endpoint));
        self.endpoints.retain(|own| !is_same(*own, endpoint));
    }

    /// Returns the addresses of the TCP sockets that stay with the listeners in `wanted`, and of those that go.
    pub(super) fn tcp_neighbours(&self, wanted: &[Endpoint]) -> Neighbours {
        let kept = self.kept(&with_sockets(wanted));
        let is_kept = |own: &&Bound| kept.iter().flatten().any(|kept| kept == *own);
        let of = |all: Vec<&Bound>| all.into_iter().map(|own| own.actual.address).collect();
        let (stay, go) = self.bound.iter().filter(|own| own.actual.transport.is_connection()).partition(is_kept);
        Neighbours { stay: of(stay), go: of(go) }
    }

    /// Returns for each endpoint the present listener whose sockets it keeps.
    fn kept(&self, endpoints: &[(usize, Endpoint)]) -> Vec<Option<Bound>> {
        let mut left = self.bound.clone();
        let mut kept = vec![None; endpoints.len()];
        // Of several with port 0, each keeps its own.
        let matches: [fn(&Bound, Endpoint) -> bool; 2] = [|own, endpoint| own.wanted == endpoint, Bound::fits];
        for is_match in matches {
            for ((_, endpoint), kept) in endpoints.iter().zip(&mut kept).filter(|(_, kept)| kept.is_none()) {
                let found = left.iter().position(|own| is_match(own, *endpoint));
                *kept = found.map(|at| left.remove(at));
            }
        }
        kept
    }

    /// Binds the sockets of the listeners in `wanted` for each worker, except those that these listeners have. Port 0
    /// selects a free port. `services`: the listeners of HTTP and the fronts. If it is `only_check`, no UDP socket is bound that
    /// would share a port of this process, because it would take packets.
    ///
    /// # Errors
    /// If a socket cannot be bound. Then none is.
    pub(super) fn preview(
        &self,
        wanted: &[Endpoint],
        workers: usize,
        services: &Neighbours,
        only_check: bool,
    ) -> Result<NewListeners, ListenError> {
        let endpoints = with_sockets(wanted);
        let (mut all, mut missing, mut alter) = (Vec::new(), Vec::new(), Vec::new());
        for ((index, endpoint), kept) in endpoints.iter().copied().zip(self.kept(&endpoints)) {
            let plain = endpoint.transport != Transport::Tls
                || wanted.iter().any(|other| other.transport == Transport::Tcp && covers(*other, endpoint));
            let Some(own) = kept else {
                missing.push(Missing { index, endpoint, plain });
                continue;
            };
            let actual = Endpoint::new(endpoint.transport, own.actual.address);
            if (actual, plain) != (own.actual, own.plain) {
                alter.push(AlteredListener { endpoint: own.actual, transport: endpoint.transport, plain });
            }
            all.push((index, Bound { wanted: endpoint, actual, plain, generation: own.generation }, Vec::new()));
        }
        self.open_missing(missing, workers, services, only_check, &mut all)?;
        all.sort_by_key(|(index, ..)| *index);
        let bound: Vec<Bound> = all.iter().map(|(_, own, _)| *own).collect();
        let stays = |own: &Bound| bound.iter().any(|new| new.fits(own.actual));
        let close: Vec<Endpoint> = self.bound.iter().filter(|own| !stays(own)).map(|own| own.actual).collect();
        let change = |_| ListenerChange { open: Vec::new(), alter: alter.clone(), close: close.clone() };
        let mut changes: Vec<ListenerChange> = (0..workers).map(change).collect();
        let endpoints = actual_endpoints(wanted, &all);
        for (_, _, sockets) in all {
            changes.iter_mut().zip(sockets).for_each(|(change, socket)| change.open.push(socket));
        }
        let passed = Arc::clone(&self.passed);
        Ok(NewListeners { listeners: Self { endpoints, bound, generation: self.generation + 1, passed }, changes })
    }

    /// Binds the sockets of new listeners.
    fn open_missing(
        &self,
        mut missing: Vec<Missing>,
        workers: usize,
        services: &Neighbours,
        only_check: bool,
        all: &mut Vec<Opened>,
    ) -> Result<(), ListenError> {
        // A UDP socket takes packets from a present listener with the same port as soon as it is bound. If the reload
        // fails, these are lost, so such sockets are bound when nothing but the bind of another one of them can still
        // fail. TCP sockets do not listen yet.
        let takes_packets = |endpoint: Endpoint| {
            !endpoint.transport.is_connection() && self.bound.iter().any(|own| overlap(own.actual, endpoint))
        };
        // Wildcards first: they hold their port on every address, so that specific addresses can share it.
        missing.sort_by_key(|Missing { endpoint, .. }| {
            let is_specific = !endpoint.address.ip().is_unspecified();
            (takes_packets(*endpoint), endpoint.transport.is_connection(), is_specific, endpoint.transport)
        });
        let (mut unbound, generation) = (Vec::new(), self.generation + 1);
        for missing in missing {
            let Missing { index, endpoint, plain } = missing;
            let (is_tcp, address) = (endpoint.transport.is_connection(), endpoint.address);
            if let Some(other) = services.conflict(address).filter(|_| is_tcp) {
                return Err(ListenError::InUseByService { endpoint, other });
            }
            let passed = adopt(endpoint, plain, &self.passed, workers, only_check)?;
            if !passed.is_empty() {
                all.push((index, Bound { wanted: endpoint, actual: endpoint, plain, generation }, passed));
                continue;
            }
            if takes_packets(endpoint) {
                let sockets = (0..workers).map(|_| udp::unbound_listener(endpoint.address));
                let sockets: io::Result<Vec<_>> = sockets.collect();
                unbound.push((missing, sockets.map_err(|error| ListenError::new(endpoint, error))?));
                continue;
            }
            let mut own = self.bound.iter().chain(all.iter().map(|(_, own, _)| own));
            let is_shared = own.any(|own| overlap(own.actual, endpoint)) || (is_tcp && services.share(address));
            let sockets = open(endpoint, plain, is_shared, workers)?;
            let actual = sockets.first().map_or(endpoint, |socket| socket.endpoint);
            all.push((index, Bound { wanted: endpoint, actual, plain, generation }, sockets));
        }
        for (Missing { index, endpoint, plain }, sockets) in unbound {
            let bind = |socket: udp::UnboundListener| {
                let socket = socket.bind().map_err(|error| ListenError::new(endpoint, error))?;
                Ok(BoundListener { endpoint, socket: ListenerSocket::Udp(socket), plain })
            };
            let sockets = if only_check { Vec::new() } else { sockets };
            let sockets: Result<Vec<_>, ListenError> = sockets.into_iter().map(bind).collect();
            all.push((index, Bound { wanted: endpoint, actual: endpoint, plain, generation }, sockets?));
        }
        Ok(())
    }
}

impl NewListeners {
    /// Binds further sockets for workers that could not open one of the listeners that stay. `failed` has the workers
    /// and the listeners.
    ///
    /// # Errors
    /// If a socket cannot be bound.
    pub(super) fn open_again(&mut self, failed: &[(usize, Endpoint)]) -> Result<(), ListenError> {
        for (worker, endpoint) in failed {
            let Listeners { bound, generation, .. } = &self.listeners;
            let stays = bound.iter().find(|own| is_same(own.actual, *endpoint) && own.generation < *generation);
            if let (Some(own), Some(change)) = (stays, self.changes.get_mut(*worker)) {
                let passed = again(own.actual, own.plain, &self.listeners.passed, *worker);
                let socket = passed.transpose().unwrap_or_else(|| bind(own.actual, own.plain, Ports::Shared));
                change.open.push(socket.map_err(|error| ListenError::new(own.actual, error))?);
            }
        }
        Ok(())
    }
}

/// Returns the endpoint whose socket serves a TLS endpoint: a TCP listener with the same address also serves TLS.
fn twin(wanted: &[Endpoint], endpoint: Endpoint) -> Option<usize> {
    let twin = Endpoint::new(Transport::Tcp, endpoint.address);
    let shares = endpoint.transport == Transport::Tls && endpoint.address.port() != 0;
    if shares { wanted.iter().position(|other| *other == twin) } else { None }
}

/// Returns the endpoints that need a socket, with their places in the configuration.
fn with_sockets(wanted: &[Endpoint]) -> Vec<(usize, Endpoint)> {
    wanted.iter().copied().enumerate().filter(|(_, endpoint)| twin(wanted, *endpoint).is_none()).collect()
}

/// Returns the endpoints with their actual ports.
fn actual_endpoints(wanted: &[Endpoint], all: &[Opened]) -> Vec<Endpoint> {
    let actual = |(index, endpoint): (usize, &Endpoint)| {
        let of = twin(wanted, *endpoint).unwrap_or(index);
        let found = all.iter().find(|(own, ..)| *own == of);
        found.map(|(_, own, _)| Endpoint::new(endpoint.transport, own.actual.address))
    };
    wanted.iter().enumerate().filter_map(actual).collect()
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

/// Returns the sockets of an endpoint that the service manager has passed, and further ones for the other workers. None
/// if it has passed none.
///
/// The kernel permits further sockets only to the user who made the first one, so usually not at a socket of systemd.
/// Then the workers share TCP sockets. They cannot share a UDP socket, because each must get all packets of a client.
fn adopt(
    endpoint: Endpoint,
    plain: bool,
    passed: &PassedSockets,
    workers: usize,
    only_check: bool,
) -> Result<Vec<BoundListener>, ListenError> {
    let failed = |error| ListenError::new(endpoint, error);
    let mut all = passed_sockets(endpoint, plain, passed).map_err(failed)?;
    let count = all.len();
    if count > workers {
        return Err(ListenError::TooManyPassed { endpoint, passed: count, workers });
    }
    if count == 0 || only_check {
        return Ok(all);
    }
    while all.len() < workers {
        match bind(endpoint, plain, Ports::Shared) {
            Ok(socket) => all.push(socket),
            Err(_) if endpoint.transport.is_connection() => {
                let more = passed_sockets(endpoint, plain, passed).map_err(failed)?;
                all.extend(more.into_iter().take(workers - all.len()));
            }
            Err(error) => {
                let Endpoint { transport, address } = endpoint;
                tracing::warn!(
                    event = "socket-missing", transport = transport.as_str(), %address, %error,
                    "only {} of {workers} workers serve this listener, because the service manager has passed {count} \
                     sockets with its address, and the server may not bind further ones. List the address {workers} \
                     times in the .socket unit, with ReusePort=yes", all.len()
                );
                break;
            }
        }
    }
    Ok(all)
}

/// Returns the socket that a worker gets again after it could not use it, if the service manager has passed it.
fn again(endpoint: Endpoint, plain: bool, passed: &PassedSockets, worker: usize) -> io::Result<Option<BoundListener>> {
    let sockets = passed_sockets(endpoint, plain, passed)?;
    let at = if endpoint.transport.is_connection() { worker.checked_rem(sockets.len()).unwrap_or(0) } else { worker };
    Ok(sockets.into_iter().nth(at))
}

fn passed_sockets(endpoint: Endpoint, plain: bool, passed: &PassedSockets) -> io::Result<Vec<BoundListener>> {
    let bound = |socket| BoundListener { endpoint, socket, plain };
    Ok(if endpoint.transport.is_connection() {
        passed.tcp(endpoint.address)?.into_iter().map(ListenerSocket::Tcp).map(bound).collect()
    } else {
        passed.udp(endpoint.address)?.into_iter().map(ListenerSocket::Udp).map(bound).collect()
    })
}

/// How a listener gets its port.
#[derive(Clone, Copy, Debug)]
enum Ports {
    /// No other socket may use the port yet.
    Claimed,
    /// A listener of this process has claimed the port. A TCP socket does not listen yet.
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

/// A listener whose address this machine does not have. It can be reached as soon as the machine has the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MissingListener {
    /// One for the clients.
    Clients(Endpoint),
    /// One of `http.listen`.
    Http(SocketAddr),
    /// That of a front.
    Front(SocketAddr),
}

impl MissingListener {
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Clients(endpoint) => endpoint.address,
            Self::Http(address) | Self::Front(address) => *address,
        }
    }

    /// Logs that the machine has the address.
    pub(super) fn log_reachable(&self) {
        match self {
            Self::Clients(Endpoint { transport, address }) => tracing::info!(
                event = "listener-reachable", %address, transport = transport.as_str(),
                "this machine has the address of the listener now, so clients can reach it"
            ),
            Self::Http(address) => tracing::info!(
                event = "http-listener-reachable", %address,
                "this machine has the address of the HTTP listener now, so it can be reached"
            ),
            Self::Front(address) => tracing::info!(
                event = "front-reachable", %address,
                "this machine has the address of the front now, so visitors and clients can reach it"
            ),
        }
    }
}

impl fmt::Display for MissingListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clients(endpoint) => write!(f, "clients cannot reach the server at {endpoint} yet")?,
            Self::Http(address) => write!(f, "HTTP cannot be reached at {address} yet")?,
            Self::Front(address) => write!(f, "visitors and clients cannot reach the front at {address} yet")?,
        }
        f.write_str(
            ", because this machine does not have the address. The server waits for it. If that is a mistake, change \
             it in ",
        )?;
        match self {
            Self::Clients(endpoint) => write!(f, "listen.{}", endpoint.transport),
            Self::Http(_) => f.write_str(HTTP_LISTEN),
            Self::Front(_) => f.write_str(FRONT_LISTEN),
        }
    }
}

/// Returns the listeners whose addresses this machine does not have.
///
/// # Errors
/// If the kernel does not tell whether the machine has an address.
pub(super) fn missing(config: &Config) -> io::Result<Vec<MissingListener>> {
    let clients = config.listen.iter().copied().map(MissingListener::Clients);
    let http = config.http.listen.iter().copied().map(MissingListener::Http);
    let fronts = config.fronts.iter().map(|front| MissingListener::Front(front.listen));
    let mut missing = Vec::new();
    for listener in clients.chain(http).chain(fronts) {
        let ip = listener.address().ip();
        if !ip.is_unspecified() && !interfaces::is_local(ip)? {
            missing.push(listener);
        }
    }
    Ok(missing)
}

/// Returns whether `own` is a wildcard that includes `other`, so that both can share a port.
fn covers(own: Endpoint, other: Endpoint) -> bool {
    own.transport.port_protocol() == other.transport.port_protocol() && includes(own.address, other.address)
}

/// Returns whether two sockets could get the same packets, so that they have to share the port.
fn overlap(own: Endpoint, other: Endpoint) -> bool {
    own.transport.port_protocol() == other.transport.port_protocol() && overlaps(own.address, other.address)
}

/// Returns whether `wildcard` is a wildcard address that includes `address`.
fn includes(wildcard: SocketAddr, address: SocketAddr) -> bool {
    wildcard.ip().is_unspecified() && wildcard.port() == address.port() && (wildcard.is_ipv6() || address.is_ipv4())
}

/// Returns whether two addresses are equal, or one of them is a wildcard that includes the other.
pub(super) fn overlaps(one: SocketAddr, other: SocketAddr) -> bool {
    one == other || includes(one, other) || includes(other, one)
}

#[cfg(test)]
#[path = "listeners/tests.rs"]
mod tests;
