//! From a configuration to everything that the workers are started with. Whatever can fail fails here, before the first
//! thread runs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;

use super::addresses::{self, AddressError, Choice};
use super::alternate::{alternate, own_server};
use super::listeners::{self, ListenError, Listeners};
use super::tls::{Certificates, TlsError};
use crate::auth::{Authenticator, NonceMint, Secret};
use crate::clock::Clock;
use crate::config::{Config, RelayAddresses};
use crate::net::{interfaces, limits};
use crate::turn::{self, LiveRelays, PeerPolicy, Quota, Rate, RelayRange, Reservations, Settings, Shared, UserRates};
use crate::worker::{Plan, Timeouts};

/// Why the server does not start. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listen address cannot be used.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// No usable relay address.
    #[error("{0}")]
    Addresses(#[from] AddressError),
    /// TLS is configured and cannot be served.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// An alternate server is this server.
    #[error("alternate.servers: {0} is this server itself, and clients would go round in circles")]
    Alternate(SocketAddr),
    /// The system's random source failed.
    #[error("the random source of the system does not work: {0}")]
    Random(#[from] getrandom::Error),
    /// A thread or its runtime could not be made.
    #[error(
        "cannot start a worker: {0}{advice}",
        advice = if is_out_of_files(.0) { "; raise the limit of open files (LimitNOFILE), or set fewer workers" } else { "" }
    )]
    Worker(io::Error),
}

/// Everything that is decided before the first worker runs.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) plans: Vec<Plan>,
    pub(super) shared: Arc<Shared>,
    /// The transports and addresses that are listened on, with their real ports.
    pub(super) listeners: Vec<(&'static str, SocketAddr)>,
    pub(super) choice: Choice,
    /// `Some` if there are TLS listeners.
    pub(super) certificates: Option<Certificates>,
    /// The secret that was made for this run, if none is configured.
    pub(super) own_secret: Option<Secret>,
}

/// Prepares the workers.
pub(super) fn prepare(config: &Config, clock: Clock, stop: &watch::Receiver<bool>) -> Result<Prepared, StartError> {
    let choice = choose_addresses(config)?;
    check_alternate(config, &choice)?;
    let hostname = config.hostname.as_deref();
    let certificates = config.tls.as_ref().map(|tls| Certificates::load(tls, hostname)).transpose()?;
    let connections = share_open_files(config, &choice);
    let mut udp = Listeners::udp(&config.listen.udp)?;
    let mut tcp = Listeners::tcp(&config.listen.tcp)?;
    let mut tls = Listeners::tls(&config.listen.tls)?;
    let workers = worker_count(config);
    let own_secret = if config.auth.secrets.is_empty() && config.auth.users.is_empty() {
        let text = URL_SAFE_NO_PAD.encode(random_key()?);
        // 43 characters are not empty.
        Secret::new(text).ok()
    } else {
        None
    };
    let shared = Arc::new(share(config, &choice, own_secret.as_ref(), connections)?);
    let mut plans = Vec::with_capacity(workers);
    for index in 0..workers {
        plans.push(Plan {
            listeners: udp.for_next_worker()?,
            tcp_listeners: tcp.for_next_worker()?,
            tls_listeners: tls.for_next_worker()?,
            tls: certificates.as_ref().map(Certificates::subscribe),
            timeouts: timeouts(config),
            settings: settings(config, &choice, workers, index),
            shared: Arc::clone(&shared),
            clock,
            rng: StdRng::from_seed(random_key()?),
            stop: stop.clone(),
            heartbeat: Arc::default(),
        });
    }
    let listeners = udp.addresses().chain(tcp.addresses()).chain(tls.addresses()).collect();
    Ok(Prepared { plans, shared, listeners, choice, certificates, own_secret })
}

/// The relay addresses, with the reasons for them.
///
/// # Errors
/// If there is none that could be used.
pub fn choose_addresses(config: &Config) -> Result<Choice, AddressError> {
    let given = match &config.relay.addresses {
        RelayAddresses::Auto => None,
        RelayAddresses::Given(given) => Some(given.as_slice()),
    };
    addresses::detect(given, &config.relay.external)
}

/// Whether this machine has the addresses to listen on. Whether their ports are free is known at the start only: a
/// server that runs already has them.
///
/// # Errors
/// Names the first one that it does not have.
pub fn check_listeners(config: &Config) -> Result<(), StartError> {
    listeners::check_addresses("udp", &config.listen.udp)?;
    listeners::check_addresses("tcp", &config.listen.tcp)?;
    Ok(listeners::check_addresses("tls", &config.listen.tls)?)
}

/// Whether the alternate servers are other servers.
///
/// # Errors
/// Names the first one that is this server.
pub fn check_alternate(config: &Config, choice: &Choice) -> Result<(), StartError> {
    own_server(config, &own_addresses(config, choice)?).map_or(Ok(()), |server| Err(StartError::Alternate(server)))
}

/// The addresses of this machine, as it knows them and as the world does.
fn own_addresses(config: &Config, choice: &Choice) -> Result<Vec<IpAddr>, AddressError> {
    let interfaces = interfaces::addresses().map_err(AddressError::Interfaces)?;
    let addresses = interfaces
        .iter()
        .map(|interface| interface.address)
        .chain(choice.addresses.iter().flat_map(|relay| [relay.bind, relay.advertised]))
        .chain(config.relay.external.iter().map(|(_, outside)| *outside));
    Ok(addresses.collect())
}

/// How many workers run: never more than there are relay ports to divide.
fn worker_count(config: &Config) -> usize {
    let wanted = match config.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        wanted => wanted,
    };
    // Two ports each, since a worker's ports begin with an even one.
    wanted.min(config.relay.ports.len() / 2).max(1)
}

fn share(
    config: &Config,
    choice: &Choice,
    own_secret: Option<&Secret>,
    connections: u32,
) -> Result<Shared, StartError> {
    let secrets: Vec<Secret> = config.auth.secrets.iter().chain(own_secret).cloned().collect();
    let users = config.auth.users.iter().map(|user| (user.name.clone(), user.password.clone()));
    let nonce_lifetime = config.auth.nonce_lifetime.as_secs();
    let nonces = match NonceMint::from_secrets(&secrets, nonce_lifetime) {
        Some(nonces) => nonces,
        None => NonceMint::from_random(random_key()?, nonce_lifetime),
    };
    let own = own_addresses(config, choice)?;
    let authenticator = Authenticator::new(config.realm.clone(), secrets, users);
    Ok(Shared {
        nonces: nonces.announcing(authenticator.features()),
        authenticator,
        policy: PeerPolicy { allow: config.peers.allow.clone(), deny: config.peers.deny.clone(), own },
        live: LiveRelays::new(choice.addresses.iter().map(|relay| (relay.bind, relay.advertised))),
        reservations: Reservations::new(
            choice.addresses.iter().map(|relay| (relay.bind, relay.advertised)),
            &config.relay.ports,
        ),
        quota: quota(config, choice)?,
        connections: Quota::new(config.limits.connections_per_source, connections, random_key()?),
        draining: AtomicBool::new(false),
        alternate: alternate(&config.alternate),
    })
}

fn quota(config: &Config, choice: &Choice) -> Result<Quota, StartError> {
    let limits = &config.limits;
    let rates = UserRates {
        allocations: Rate::of_allocations(limits.allocations_per_second_per_user),
        bytes: Rate::of_bytes(limits.bytes_per_second_per_user),
    };
    let ports = config.relay.ports.len() * choice.addresses.len();
    Ok(Quota::with_rates(limits.allocations_per_user, limits.allocations, rates, ports, random_key()?))
}

fn settings(config: &Config, choice: &Choice, workers: usize, index: usize) -> Settings {
    let ports = turn::slice_of(&config.relay.ports, workers, index);
    let relays = choice.addresses.iter().zip(std::iter::repeat(ports)).filter_map(|(relay, ports)| {
        Some(RelayRange { bind: relay.bind, advertised: relay.advertised, ports: ports? })
    });
    Settings {
        relays: relays.collect(),
        permissions_per_allocation: config.limits.permissions_per_allocation.into(),
        channels_per_allocation: config.limits.channels_per_allocation.into(),
        peer_rate: Rate::of_peers(config.limits.peers_per_second),
        byte_rate: Rate::of_bytes(config.limits.bytes_per_second_per_allocation),
        unverified_replies: config.limits.unverified_replies,
        rfc5766_channels: config.compat.rfc5766_channels,
        draft_dual_allocation: config.compat.draft_dual_allocation,
        expiry_grace: config.auth.expiry_grace.as_secs(),
    }
}

fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn timeouts(config: &Config) -> Timeouts {
    let crate::config::Timeouts { tls_handshake, first_request, idle, unauthenticated } = config.timeouts;
    Timeouts { tls_handshake, first_request, idle, unauthenticated }
}

/// What the process has open besides: listeners, the runtimes of the workers, standard streams, files that are read.
const OTHER_FILES: u64 = 16;

/// Raises the limit of open files, and returns how many connections there may be in all: each is one, and must leave room
/// for the relay sockets.
fn share_open_files(config: &Config, choice: &Choice) -> u32 {
    let wanted = config.limits.connections;
    let no_streams = config.listen.tcp.is_empty() && config.listen.tls.is_empty();
    let limit = match limits::raise_open_files() {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            return wanted;
        }
    };
    let relay_ports = (config.relay.ports.len() * choice.addresses.len()) as u64;
    let relay_sockets = match config.limits.allocations {
        0 => relay_ports,
        allocations => relay_ports.min(u64::from(allocations) * choice.addresses.len() as u64),
    };
    let listeners = config.listen.udp.len() + config.listen.tcp.len() + config.listen.tls.len();
    let others = OTHER_FILES + (worker_count(config) * (listeners + 4)) as u64;
    let room = limit.saturating_sub(others);
    let most = most_connections(room, relay_sockets);
    let enough = room >= relay_sockets.saturating_add(if no_streams { 0 } else { wanted.into() });
    if no_streams {
        if !enough {
            tracing::warn!(
                limit,
                relay_sockets,
                "fewer open files are allowed than there may be relay sockets: raise LimitNOFILE, or allocations will fail"
            );
        }
        return wanted;
    }
    if !enough {
        tracing::warn!(
            limit,
            relay_sockets,
            connections = most.min(if wanted == 0 { u32::MAX } else { wanted }),
            "fewer open files are allowed than relay sockets and limits.connections together: only that many connections are \
             admitted, to leave room for relay sockets; raise LimitNOFILE"
        );
    }
    // 0 is no limit, and then the limit of open files is the only one.
    if wanted == 0 { most } else { wanted.min(most) }
}

/// How many of so many files may be connections: those that no relay socket needs, and at least half, since a client
/// on a connection needs one of each. Never 0, which would be no limit.
fn most_connections(room: u64, relay_sockets: u64) -> u32 {
    u32::try_from(room.saturating_sub(relay_sockets).max(room / 2).max(1)).unwrap_or(u32::MAX)
}

fn random_key() -> Result<[u8; 32], getrandom::Error> {
    let mut key = [0; 32];
    getrandom::getrandom(&mut key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_relay_sockets_their_share_of_the_open_files() {
        assert_eq!(most_connections(100_000, 16_384), 83_616);
        assert_eq!(most_connections(20_000, 16_384), 10_000);
        assert_eq!(most_connections(1_000, 16_384), 500);
        assert_eq!(most_connections(0, 16_384), 1);
        assert_eq!(most_connections(u64::MAX, 1), u32::MAX);
    }
}
