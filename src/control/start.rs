//! From a configuration to everything that the workers are started with. Whatever can fail fails here, before the first
//! thread runs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::{StdRng, SysRng};
use rand::{SeedableRng as _, TryRng as _};
use tokio::sync::watch;

use super::addresses::{self, AddressError, Choice};
use crate::auth::{Authenticator, NonceMint, Secret};
use crate::clock::Clock;
use crate::config::{Config, RelayAddresses};
use crate::net::{interfaces, limits, udp};
use crate::turn::{self, LiveRelays, PeerPolicy, Quota, RelayRange, Settings, Shared};
use crate::worker::Plan;

/// Why the server does not start. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listen address is taken.
    #[error(
        "cannot listen on udp {address}: another program has the port; `ss -ulpn sport = :{port}` shows which, \
         listen.udp in the configuration chooses another",
        port = .address.port()
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// A listen address is not of this machine.
    #[error("cannot listen on udp {address}: this machine has no such address, but {available}; listen.udp names it")]
    NotOurs {
        /// The address.
        address: SocketAddr,
        /// Those that it has.
        available: String,
    },
    /// A port below 1024, without the right to it.
    #[error(
        "cannot listen on udp {address}: ports below 1024 need a privilege; the systemd unit grants it with \
         AmbientCapabilities=CAP_NET_BIND_SERVICE"
    )]
    NotPermitted {
        /// The address.
        address: SocketAddr,
    },
    /// Another error of the kernel.
    #[error("cannot listen on udp {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
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
    /// The addresses that are listened on, with their real ports.
    pub(super) listeners: Vec<SocketAddr>,
    pub(super) choice: Choice,
    /// The secret that was made for this run, if none is configured.
    pub(super) own_secret: Option<Secret>,
}

/// Prepares the workers.
pub(super) fn prepare(config: &Config, clock: Clock, stop: &watch::Receiver<bool>) -> Result<Prepared, StartError> {
    let choice = choose_addresses(config)?;
    raise_open_files(config, &choice);
    let claimed = claim_listeners(&config.listen.udp)?;
    let (listeners, sockets): (Vec<SocketAddr>, Vec<UdpSocket>) = claimed.into_iter().unzip();
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
    // The first worker has the sockets that hold the ports, the others join it.
    let mut first = Some(sockets);
    for index in 0..workers {
        let join = |address: &SocketAddr| udp::bind_listener(*address).map_err(|error| refused(*address, error));
        plans.push(Plan {
            listeners: first.take().map_or_else(|| listeners.iter().map(join).collect(), Ok)?,
            settings: settings(config, &choice, workers, index),
            shared: Arc::clone(&shared),
            clock,
            rng: StdRng::try_from_rng(&mut SysRng)?,
            stop: stop.clone(),
        });
    }
    Ok(Prepared { plans, listeners, choice, own_secret })
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
    let foreign = config.listen.udp.iter().find(|address| {
        let ip = address.ip();
        !ip.is_unspecified() && !interfaces::is_local(ip)
    });
    foreign.map_or(Ok(()), |address| Err(refused(*address, io::ErrorKind::AddrNotAvailable.into())))
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

/// Binds a listener to each address, in the order given, if nobody else has it; port 0 becomes a real one.
fn claim_listeners(wanted: &[SocketAddr]) -> Result<Vec<(SocketAddr, UdpSocket)>, StartError> {
    let mut claimed: Vec<(usize, (SocketAddr, UdpSocket))> = Vec::with_capacity(wanted.len());
    // Wildcards first: they hold their port on every address, so that the specific addresses beside them can share it.
    for wildcards in [true, false] {
        let these = wanted.iter().enumerate().filter(|(_, address)| address.ip().is_unspecified() == wildcards);
        for (place, address) in these {
            let shared = claimed.iter().any(|(_, (own, _))| covers(*own, *address));
            let socket = if shared { udp::bind_listener(*address) } else { claim(*address) };
            let local = socket.and_then(|socket| Ok((socket.local_addr()?, socket)));
            claimed.push((place, local.map_err(|error| refused(*address, error))?));
        }
    }
    claimed.sort_by_key(|(place, _)| *place);
    Ok(claimed.into_iter().map(|(_, listener)| listener).collect())
}

/// Whether a socket at the wildcard `own` takes what is sent to `address` unless another is bound to just that.
fn covers(own: SocketAddr, address: SocketAddr) -> bool {
    own.ip().is_unspecified() && own.port() == address.port() && (own.is_ipv6() || address.is_ipv4())
}

fn claim(address: SocketAddr) -> io::Result<UdpSocket> {
    match udp::claim_listener(address) {
        Err(error) if udp::no_ipv6(&error) && address.is_ipv6() && address.ip().is_unspecified() => {
            tracing::warn!(%address, "this kernel has no IPv6: listening on 0.0.0.0 only");
            udp::claim_listener(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        other => other,
    }
}

fn refused(address: SocketAddr, error: io::Error) -> StartError {
    match error.kind() {
        io::ErrorKind::AddrInUse => StartError::InUse { address },
        io::ErrorKind::PermissionDenied => StartError::NotPermitted { address },
        io::ErrorKind::AddrNotAvailable => {
            let own = interfaces::addresses().unwrap_or_default();
            let own: Vec<String> = own.iter().map(|own| format!("{} ({})", own.address, own.name)).collect();
            let available = if own.is_empty() { "no address at all".to_owned() } else { own.join(", ") };
            StartError::NotOurs { address, available }
        }
        _ => StartError::Listen { address, error },
    }
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
        quota: Quota::new(config.limits.allocations_per_user, config.limits.allocations, random_key()?),
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

/// Each allocation has a socket; says so if this user may not have as many as there are ports.
fn raise_open_files(config: &Config, choice: &Choice) {
    let wanted = (config.relay.ports.len() * choice.addresses.len()) as u64;
    match limits::raise_open_files() {
        Ok(limit) if limit >= wanted => {}
        Ok(limit) => tracing::warn!(
            limit,
            relay_ports = wanted,
            "fewer open files are allowed than there are relay ports: raise LimitNOFILE, or allocations will fail"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

fn random_key() -> Result<[u8; 32], rand::rngs::SysError> {
    let mut key = [0; 32];
    SysRng.try_fill_bytes(&mut key)?;
    Ok(key)
}
