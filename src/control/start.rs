//! From a configuration to everything that the workers are started with. Whatever can fail fails here, before the first
//! thread runs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::{StdRng, SysRng};
use rand::{SeedableRng as _, TryRng as _};
use tokio::sync::watch;

use super::addresses::{self, AddressError, Choice};
use super::listeners::{self, ListenError, Listeners};
use crate::auth::{Authenticator, NonceMint, Secret};
use crate::clock::Clock;
use crate::config::{Config, RelayAddresses};
use crate::net::{interfaces, limits};
use crate::turn::{self, LiveRelays, PeerPolicy, Quota, RelayRange, Reservations, Settings, Shared};
use crate::worker::Plan;

/// Why the server does not start. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listen address cannot be used.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// No usable relay address.
    #[error("{0}")]
    Addresses(#[from] AddressError),
    /// The system's random source failed.
    #[error("the random source of the system does not work: {0}")]
    Random(#[from] rand::rngs::SysError),
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
    /// The secret that was made for this run, if none is configured.
    pub(super) own_secret: Option<Secret>,
}

/// Prepares the workers.
pub(super) fn prepare(config: &Config, clock: Clock, stop: &watch::Receiver<bool>) -> Result<Prepared, StartError> {
    let choice = choose_addresses(config)?;
    raise_open_files(config, &choice);
    let mut udp = Listeners::udp(&config.listen.udp)?;
    let mut tcp = Listeners::tcp(&config.listen.tcp)?;
    let workers = worker_count(config);
    let own_secret = if config.auth.secrets.is_empty() && config.auth.users.is_empty() {
        let text = URL_SAFE_NO_PAD.encode(random_key()?);
        // 43 characters are not empty.
        Secret::new(text).ok()
    } else {
        None
    };
    let shared = Arc::new(share(config, &choice, own_secret.as_ref())?);
    let mut plans = Vec::with_capacity(workers);
    for index in 0..workers {
        plans.push(Plan {
            listeners: udp.for_next_worker()?,
            tcp_listeners: tcp.for_next_worker()?,
            settings: settings(config, &choice, workers, index),
            shared: Arc::clone(&shared),
            clock,
            rng: StdRng::try_from_rng(&mut SysRng)?,
            stop: stop.clone(),
            heartbeat: Arc::default(),
        });
    }
    let listeners = udp.addresses().chain(tcp.addresses()).collect();
    Ok(Prepared { plans, shared, listeners, choice, own_secret })
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
    Ok(listeners::check_addresses("tcp", &config.listen.tcp)?)
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

fn share(config: &Config, choice: &Choice, own_secret: Option<&Secret>) -> Result<Shared, StartError> {
    let secrets: Vec<Secret> = config.auth.secrets.iter().chain(own_secret).cloned().collect();
    let users = config.auth.users.iter().map(|user| (user.name.clone(), user.password.clone()));
    let nonce_lifetime = config.auth.nonce_lifetime.as_secs();
    let nonces = match NonceMint::from_secrets(&secrets, nonce_lifetime) {
        Some(nonces) => nonces,
        None => NonceMint::from_random(random_key()?, nonce_lifetime),
    };
    let interfaces = interfaces::addresses().map_err(AddressError::Interfaces)?;
    let own: Vec<IpAddr> = interfaces
        .iter()
        .map(|interface| interface.address)
        .chain(choice.addresses.iter().flat_map(|relay| [relay.bind, relay.advertised]))
        .chain(config.relay.external.iter().map(|(_, outside)| *outside))
        .collect();
    Ok(Shared {
        authenticator: Authenticator::new(config.realm.clone(), secrets, users),
        nonces,
        policy: PeerPolicy { allow: config.peers.allow.clone(), deny: config.peers.deny.clone(), own },
        live: LiveRelays::new(choice.addresses.iter().map(|relay| (relay.bind, relay.advertised))),
        reservations: Reservations::new(
            choice.addresses.iter().map(|relay| (relay.bind, relay.advertised)),
            &config.relay.ports,
        ),
        quota: Quota::new(config.limits.allocations_per_user, config.limits.allocations, random_key()?),
        connections: Quota::new(config.limits.connections_per_source, config.limits.connections, random_key()?),
        draining: AtomicBool::new(false),
    })
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
        unverified_replies: config.limits.unverified_replies,
        rfc5766_channels: config.compat.rfc5766_channels,
        expiry_grace: config.auth.expiry_grace.as_secs(),
    }
}

fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Each allocation has a socket and each connection is one; says so if this user may not have as many as there can be.
fn raise_open_files(config: &Config, choice: &Choice) {
    let relay_ports = config.relay.ports.len() * choice.addresses.len();
    let connections = if config.listen.tcp.is_empty() { 0 } else { config.limits.connections };
    let wanted = relay_ports as u64 + u64::from(connections);
    match limits::raise_open_files() {
        Ok(limit) if limit >= wanted => {}
        Ok(limit) => tracing::warn!(
            limit,
            relay_ports,
            connections,
            "fewer open files are allowed than relay ports and limits.connections together: raise LimitNOFILE, or \
             allocations and connections will fail"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

fn random_key() -> Result<[u8; 32], rand::rngs::SysError> {
    let mut key = [0; 32];
    SysRng.try_fill_bytes(&mut key)?;
    Ok(key)
}
