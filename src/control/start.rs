//! From a configuration to everything that the workers are started with. Whatever can fail fails here, before the first
//! thread runs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::watch;

use super::addresses::{self, AddressError, Choice};
use super::alternate::own_server;
use super::listeners::{self, ListenError, Listeners};
use super::snapshot::{Surroundings, snapshot};
use super::tls::{Certificates, TlsError};
use crate::auth::Secret;
use crate::clock::Clock;
use crate::config::{Config, RelayAddresses};
use crate::net::{interfaces, limits};
use crate::setting::{self, CONNECTIONS, OPEN_FILES, WORKERS};
use crate::transport::Endpoint;
use crate::turn::{self, Ledger, RelayRange};
use crate::worker::{self, Handle, Plan, Snapshot, Statistics};

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
    #[error("{key}: {0} is an address of this server, so clients would be redirected in a loop", key = setting::ALTERNATE_SERVERS)]
    Alternate(SocketAddr),
    /// The system's random source failed.
    #[error("the random number generator of the system failed: {0}")]
    Random(#[from] getrandom::Error),
    /// A thread or its runtime could not be made.
    #[error(
        "cannot start a worker: {0}{advice}",
        advice = advice(.0)
    )]
    Worker(io::Error),
}

/// What control has of a worker.
#[derive(Clone, Debug)]
pub(super) struct WorkerControl {
    pub(super) handle: Handle,
    pub(super) statistics: Arc<Statistics>,
}

/// Everything that is decided before the first worker runs.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) plans: Vec<Plan>,
    /// What control has of each worker.
    pub(super) controls: Vec<WorkerControl>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) ledger: Arc<Ledger>,
    /// Where clients are served, with the real ports.
    pub(super) endpoints: Vec<Endpoint>,
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
    let mut listeners = Listeners::claim(&config.listen)?;
    let workers = worker_count(config);
    let own_secret = if config.auth.secrets.is_empty() && config.auth.users.is_empty() {
        let text = URL_SAFE_NO_PAD.encode(random_key()?);
        // 43 characters are not empty.
        Secret::new(text).ok()
    } else {
        None
    };
    let surroundings = Surroundings {
        own_secret: own_secret.as_ref(),
        nonce_key: random_key()?,
        own_addresses: own_addresses(config, &choice)?,
        connections,
        tls: certificates.as_ref().map(|certificates| certificates.subscribe().borrow().clone()),
    };
    let snapshot = Arc::new(snapshot(config, surroundings));
    let addresses = choice.addresses.iter().map(|relay| (relay.bind, relay.advertised));
    let ledger = Arc::new(Ledger::new(addresses, &config.relay.ports, [random_key()?, random_key()?]));
    let (mut plans, mut controls) = (Vec::with_capacity(workers), Vec::with_capacity(workers));
    for index in 0..workers {
        let (handle, mailbox) = worker::mailbox();
        let statistics = Arc::<Statistics>::default();
        controls.push(WorkerControl { handle, statistics: Arc::clone(&statistics) });
        plans.push(Plan {
            listeners: listeners.for_next_worker()?,
            relays: relay_ranges(config, &choice, workers, index),
            snapshot: Arc::clone(&snapshot),
            ledger: Arc::clone(&ledger),
            statistics,
            mailbox,
            clock,
            rng: StdRng::from_seed(random_key()?),
            stop: stop.clone(),
        });
    }
    let endpoints = listeners.endpoints().to_vec();
    Ok(Prepared { plans, controls, snapshot, ledger, endpoints, choice, certificates, own_secret })
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
    Ok(listeners::check_addresses(&config.listen)?)
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

/// The relay addresses with the ports of one worker.
fn relay_ranges(config: &Config, choice: &Choice, workers: usize, index: usize) -> Vec<RelayRange> {
    let ports = turn::slice_of(&config.relay.ports, workers, index);
    let relays = choice.addresses.iter().zip(std::iter::repeat(ports)).filter_map(|(relay, ports)| {
        Some(RelayRange { bind: relay.bind, advertised: relay.advertised, ports: ports? })
    });
    relays.collect()
}

/// What the operator can do about an error of a worker, as the end of its message.
fn advice(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            format!("; raise the limit of open files ({OPEN_FILES}), or set fewer {WORKERS}")
        }
        _ => String::new(),
    }
}

/// What the process has open besides: listeners, the runtimes of the workers, standard streams, files that are read.
const OTHER_FILES: u64 = 16;

/// Raises the limit of open files, and returns how many connections there may be in all: each is one, and must leave room
/// for the relay sockets.
fn share_open_files(config: &Config, choice: &Choice) -> u32 {
    let wanted = config.limits.connections;
    let no_connections = !config.listen.iter().any(|endpoint| endpoint.transport.is_connection());
    let limit = match limits::raise_open_files() {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            return wanted;
        }
    };
    let relay_ports = (config.relay.ports.len() * choice.addresses.len()) as u64;
    let relay_sockets = match config.limits.allocations {
        0 => relay_ports,
        allocations => relay_ports.min(u64::from(allocations) * choice.addresses.len() as u64),
    };
    let others = OTHER_FILES + (worker_count(config) * (config.listen.len() + 4)) as u64;
    let room = limit.saturating_sub(others);
    let most = most_connections(room, relay_sockets);
    let enough = room >= relay_sockets.saturating_add(if no_connections { 0 } else { wanted.into() });
    if no_connections {
        if !enough {
            tracing::warn!(
                limit,
                relay_sockets,
                "the limit of open files is lower than the number of relay sockets. Raise {OPEN_FILES}, or allocations \
                 will fail"
            );
        }
        return wanted;
    }
    if !enough {
        tracing::warn!(
            limit,
            relay_sockets,
            connections = most.min(if wanted == 0 { u32::MAX } else { wanted }),
            "the limit of open files is too low for the relay sockets and {CONNECTIONS}, so fewer connections are \
             accepted. Raise {OPEN_FILES}"
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
