//! Prepares everything that the workers need. Errors of the configuration and of sockets are found before the first
//! worker runs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ipnet::IpNet;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};

use super::addresses::{self, AddressError, Choice};
use super::alternate::own_server;
use super::fleet;
use super::follow::Follower;
use super::listeners::{self, ListenError, Listeners, Neighbours, NewListeners};
use super::offload::Offload;
use super::passed::{self, Users};
use super::service_listeners::{NewServiceListeners, Service, ServiceListeners, control_socket};
use super::snapshot::{SnapshotInputs, policy, snapshot};
use super::tls::{Certificates, TlsError};
use crate::auth::{Revocations, Secret};
use crate::clock::Clock;
use crate::config::{Config, Front, RelayAddresses};
use crate::front;
use crate::http::{self, BindError, UnixSocket};
use crate::net::interfaces::{self, Interfaces};
use crate::net::limits::{self, SpareFiles};
use crate::net::passed::PassedSockets;
use crate::setting::{
    ADDRESS_SPACE, ALLOCATIONS, CONTROL_SOCKET, OFFLOAD_MODE, OPEN_FILES, PEERS_ALLOW, WORKERS, name_for_operator,
};
use crate::turn::Ledger;
use crate::worker::{self, FeedReader, Handle, Lookup, OtherWorkers, Plan, Snapshot, Statistics};

/// Why the server does not start. Each message is one line with advice.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// The relay addresses are unusable.
    #[error("{0}")]
    Addresses(#[from] AddressError),
    /// The certificate is unusable.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// An alternate server is this server.
    #[error("[alternate]: {0} is an address of this server, so clients would be redirected in a loop")]
    Alternate(SocketAddr),
    /// The system's random source failed.
    #[error("the random number generator of the system failed: {0}")]
    Random(#[from] getrandom::Error),
    /// The address space is too small for the workers and their allocations.
    #[error(
        "the limit of address space, {limit} MiB, is too low: {workers} workers and {allocations} allocations need \
         {needed} MiB in addition to what is in use, and connections need more; raise the limit ({ADDRESS_SPACE}), or \
         set fewer {WORKERS} or a lower {ALLOCATIONS}"
    )]
    AddressSpace {
        /// The limit in MiB.
        limit: u64,
        /// What the workers and the allocations need, in MiB.
        needed: usize,
        /// The number of workers.
        workers: usize,
        /// The greatest number of allocations.
        allocations: usize,
    },
    /// An HTTP listener or a front cannot be bound.
    #[error(
        "cannot listen on {address} ({setting}): {error}{advice}",
        advice = privilege_advice(error)
    )]
    Service {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the kernel reported.
        error: io::Error,
    },
    /// The service manager has passed several sockets for an HTTP listener or a front.
    #[error(
        "cannot listen on {address} ({setting}): the service manager has passed {passed} sockets with this address, and \
         only one can be served. List the address once in the .socket unit"
    )]
    TooManyPassed {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// The number of sockets.
        passed: usize,
    },
    /// The thread of the HTTP server or of the fronts has ended. This is a bug; the log has the message.
    #[error("{0} has ended at its start. This is a bug; please report the preceding log lines")]
    ServiceEnded(&'static str),
    /// Another TCP listener of this process uses the port of an HTTP listener or of a front.
    #[error(
        "cannot listen on {address} ({setting}): another TCP or TLS listener of this server uses {other}. Set another \
         port in one of the two"
    )]
    ServiceInUse {
        /// The setting that names the address.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// The address of the other listener, with its actual port.
        other: SocketAddr,
    },
    /// The control socket cannot be bound.
    #[error("cannot create the control socket {} ({CONTROL_SOCKET}): {error}", .path.display())]
    Control {
        /// The path.
        path: PathBuf,
        /// Why not.
        error: BindError,
    },
    /// The configuration requires the offload, which cannot be used.
    #[error("the kernel cannot relay channels ({OFFLOAD_MODE} is \"require\"): {0}")]
    Offload(String),
    /// A thread or its runtime could not be created.
    #[error(
        "cannot start a worker: {0}{advice}",
        advice = advice(.0)
    )]
    Worker(io::Error),
}

/// The handle and the statistics of a worker.
#[derive(Clone, Debug)]
pub(super) struct WorkerControl {
    pub(super) handle: Handle,
    pub(super) statistics: Arc<Statistics>,
}

/// The result of [`prepare`].
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) plans: Vec<Plan>,
    /// One entry per worker, in the order of `plans`.
    pub(super) controls: Vec<WorkerControl>,
    /// The records of each worker.
    pub(super) feeds: Vec<FeedReader>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) listeners: Listeners,
    pub(super) addresses: Follower,
    /// Builds later snapshots.
    pub(super) inputs: SnapshotInputs,
    pub(super) spare: Spare,
    /// `Some` if `[tls]` is set.
    pub(super) certificates: Option<Certificates>,
    pub(super) control_socket: Option<UnixSocket>,
    pub(super) http: NewServiceListeners,
    pub(super) fronts: NewServiceListeners,
    /// What the workers want to know of the user database.
    pub(super) lookups: mpsc::Receiver<Lookup>,
    pub(super) offload: Arc<Offload>,
}

/// Prepares the workers.
pub(super) fn prepare(
    config: &Arc<Config>,
    clock: Clock,
    stop: &watch::Receiver<bool>,
    passed: PassedSockets,
) -> Result<Prepared, StartError> {
    let passed = Arc::new(passed);
    let addresses = Follower::start(Arc::clone(config))?;
    let choice = addresses.choice();
    check_alternate(config, choice)?;
    let hostname = config.hostname.as_deref();
    let certificates = config.tls.as_ref().map(|tls| Certificates::load(tls, hostname)).transpose()?;
    let (certificates, acceptor) = certificates.unzip();
    let limit = open_files();
    let workers = worker_count(config);
    let none = Neighbours::default();
    let present = Listeners::with(Arc::clone(&passed));
    let NewListeners { listeners, changes } = present.preview(&config.listen, workers, &none, false)?;
    // After that, because attaching may interrupt a link.
    let (offload, offloading) = Offload::start(config, workers).map_err(StartError::Offload)?;
    let connections = connection_limit(config, choice, limit, offload.open_files());
    let spare = Spare::of(limit);
    let inputs = SnapshotInputs {
        generated_secret: generate_secret(config)?,
        test_links: generated()?,
        nonce_key: random_key()?,
        log_key: random_key()?,
        revoked: Revocations::default(),
        connections,
        former_realms: Vec::new(),
        redis_secrets: Arc::default(),
        offload_interfaces: offloading.interfaces,
        challenges: Arc::default(),
        fleet: fleet::at_start(config),
        alternates: [Vec::new(), Vec::new()],
    };
    let snapshot = Arc::new(snapshot(config, &inputs, &addresses, acceptor));
    // Addresses of a second family may come later.
    let room = room(config, choice);
    check_address_space(config, workers, room)?;
    let ledger = Arc::new(Ledger::new(room, connections, [random_key()?, random_key()?]));
    let (mut plans, mut controls) = (Vec::with_capacity(workers), Vec::with_capacity(workers));
    let mut feeds = Vec::with_capacity(workers);
    let (lookups, wanted_lookups) = worker::lookups();
    let mailboxes: Vec<_> = (0..workers).map(|_| worker::mailbox()).collect();
    let mut next: Vec<_> = mailboxes.iter().map(|(handle, _)| handle.clone()).collect();
    next.rotate_left(1);
    let mut offload_plans = offloading.plans.into_iter();
    for (index, (((handle, mailbox), next), change)) in mailboxes.into_iter().zip(next).zip(changes).enumerate() {
        let statistics = Arc::<Statistics>::default();
        let (feed, reader) = worker::feed();
        feeds.push(reader);
        controls.push(WorkerControl { handle, statistics: Arc::clone(&statistics) });
        plans.push(Plan {
            index,
            listeners: change.open,
            snapshot: Arc::clone(&snapshot),
            ledger: Arc::clone(&ledger),
            statistics,
            mailbox,
            feed,
            others: OtherWorkers::new(next, workers - 1),
            lookups: lookups.clone(),
            spare: spare.all.clone(),
            clock,
            rng: StdRng::from_seed(random_key()?),
            offload: offload_plans.next(),
            stop: stop.clone(),
        });
    }
    let control_socket = control_socket(config, &passed)?;
    let mut neighbours = listeners.tcp_neighbours(&config.listen);
    let http = ServiceListeners::new(Service::Http, Arc::clone(&passed));
    let http = http.preview(&config.http.listen, config.http.tls, &neighbours)?;
    neighbours.stay.extend(http.listeners.addresses());
    let fronts = ServiceListeners::new(Service::Front, Arc::clone(&passed));
    let fronts = fronts.preview(&front_addresses(config), false, &neighbours)?;
    let of_services: Vec<SocketAddr> = [http.listeners.addresses(), fronts.listeners.addresses()].concat();
    passed::report(&passed, &Users::new(config, listeners.endpoints(), &of_services));
    Ok(Prepared {
        plans,
        controls,
        feeds,
        snapshot,
        ledger,
        listeners,
        addresses,
        inputs,
        spare,
        certificates,
        control_socket,
        http,
        fronts,
        lookups: wanted_lookups,
        offload: Arc::new(offload),
    })
}

/// Returns the addresses of the fronts in a configuration.
pub(super) fn front_addresses(config: &Config) -> Vec<SocketAddr> {
    config.fronts.iter().map(|front| front.listen).collect()
}

/// Creates a secret for a configuration without any.
pub(super) fn generate_secret(config: &Config) -> Result<Option<Secret>, getrandom::Error> {
    let auth = &config.auth;
    // A fleet and a Redis server have secrets of their own.
    let has_others = config.fleet.is_some() || auth.redis.is_some();
    if !auth.secrets.is_empty() || !auth.users.is_empty() || has_others {
        return Ok(None);
    }
    generated().map(Some)
}

#[expect(clippy::expect_used, reason = "a text of 43 characters is a valid secret")]
fn generated() -> Result<Secret, getrandom::Error> {
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(random_key()?)).expect("a text of 43 characters is a valid secret"))
}

/// Returns the number of allocations for which the tables need room. Addresses of a second family may come later.
pub(super) fn room(config: &Config, choice: &Choice) -> usize {
    config.relay.ports.len() * relay_count(choice).max(2)
}

/// Returns the relay addresses, with the reasons for them.
///
/// # Errors
/// If a configured address is unusable.
pub fn choose_addresses(config: &Config) -> Result<Choice, AddressError> {
    choose_again(config, &read_interfaces()?, &[])
}

/// Returns the relay addresses. Those in `current` precede equally good ones.
pub(super) fn choose_again(
    config: &Config,
    interfaces: &Interfaces,
    current: &[IpAddr],
) -> Result<Choice, AddressError> {
    let given = match &config.relay.addresses {
        RelayAddresses::Auto => None,
        RelayAddresses::Given(given) => Some(given.as_slice()),
    };
    addresses::detect(given, &config.relay.external, interfaces, current)
}

/// Returns a warning for each listener whose address this machine does not have. It does not check the ports, which a
/// running server may use.
///
/// # Errors
/// If the kernel does not tell whether the machine has an address.
pub fn missing_listeners(config: &Config) -> Result<Vec<String>, AddressError> {
    Ok(listeners::missing(config)?.iter().map(ToString::to_string).collect())
}

/// Checks that no alternate server is this server.
///
/// # Errors
/// The first alternate server that is this server.
pub fn check_alternate(config: &Config, choice: &Choice) -> Result<(), StartError> {
    own_server(config, &own_addresses(config, &read_interfaces()?, choice))
        .map_or(Ok(()), |server| Err(StartError::Alternate(server)))
}

/// Warns of addresses of this machine in ranges of `peers.allow`: they stay denied as peers.
///
/// # Errors
/// If the interfaces cannot be read.
pub fn denied_own_addresses(config: &Config, choice: &Choice) -> Result<Option<String>, AddressError> {
    let interfaces = read_interfaces()?;
    Ok(denied_among(config, own_addresses(config, &interfaces, choice), interfaces.routed))
}

/// Warns of own addresses in ranges of `peers.allow`.
pub(super) fn denied_among(config: &Config, own: Vec<IpAddr>, own_networks: Vec<IpNet>) -> Option<String> {
    let policy = policy(config, own, own_networks);
    let mut list: Vec<String> = policy.own_in_allowed_ranges().map(|(own, net)| format!("{own} ({net})")).collect();
    list.extend(policy.own_networks_in_allowed_ranges().map(|(own, net)| format!("{own} ({net})")));
    list.sort_unstable();
    list.dedup();
    (!list.is_empty()).then(|| {
        format!(
            "{PEERS_ALLOW} has ranges with addresses of this machine, which stay denied as peers: {}. To let clients \
             reach the services of this machine, add such an address itself",
            list.join(", ")
        )
    })
}

fn read_interfaces() -> Result<Interfaces, AddressError> {
    interfaces::read().map_err(AddressError::Interfaces)
}

/// Returns the addresses of this machine, including its outside addresses behind 1:1 NAT. Link-local IPv6 addresses are
/// missing, because a peer's address has no scope ID and so cannot name one.
pub(super) fn own_addresses(config: &Config, interfaces: &Interfaces, choice: &Choice) -> Vec<IpAddr> {
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let listen = config.listen.iter().map(|endpoint| endpoint.address).chain(config.http.listen.iter().copied());
    let listen = listen.chain(config.fronts.iter().map(|front| front.listen));
    let mut addresses: Vec<IpAddr> = interfaces
        .addresses
        .iter()
        .map(|interface| interface.address)
        .filter(|ip| !is_link_local(ip))
        .chain(choice.addresses.iter().flat_map(|relay| [relay.bind, relay.advertised]))
        .chain(choice.missing.iter().flat_map(|(bind, advertised)| [*bind, *advertised]))
        .chain(config.relay.external.iter().map(|(_, outside)| *outside))
        .chain(listen.map(|address| address.ip()).filter(|ip| !ip.is_unspecified()))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Returns the number of workers.
pub(crate) fn worker_count(config: &Config) -> usize {
    match config.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        wanted => wanted,
    }
}

/// The address space of the ledger, apart from what depends on the number of relay ports: an estimate.
const LEDGER: usize = 8 << 20;
/// The part of the ledger for each relay port: an estimate.
const LEDGER_PER_PORT: usize = 256;
/// The state of an allocation with a few permissions and channels.
const PER_ALLOCATION: usize = 1 << 10;

/// Checks that a limited address space is sufficient for the workers and their allocations.
///
/// Connections and the relayed data that waits for their clients are not included, because most servers with a limit
/// never need as much as they may use. A server that runs out of address space under load is aborted.
fn check_address_space(config: &Config, workers: usize, room: usize) -> Result<(), StartError> {
    let Some(limit) = limits::address_space() else { return Ok(()) };
    let allocations = match config.limits.allocations {
        0 => room,
        limit => room.min(usize::try_from(limit).unwrap_or(usize::MAX)),
    };
    let needed = workers * worker::address_space() + LEDGER + room * LEDGER_PER_PORT + allocations * PER_ALLOCATION;
    if limits::can_allocate(needed) {
        return Ok(());
    }
    Err(StartError::AddressSpace { limit: limit >> 20, needed: needed >> 20, workers, allocations })
}

/// Returns the number of relay addresses for all clients, at least one.
fn relay_count(choice: &Choice) -> usize {
    (choice.for_all().count() + choice.missing.len()).max(1)
}

/// Returns advice about an error of a service's listener, as the end of the message.
fn privilege_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            ". Ports below 1024 require CAP_NET_BIND_SERVICE, which the systemd unit grants. Without it, a .socket unit can \
             pass the socket (docs/install.md)"
        }
        _ => "",
    }
}

/// Returns advice about an error of a worker, as the end of the message.
fn advice(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            let setting = name_for_operator(OPEN_FILES, limits::is_service());
            format!("; raise the limit of open files ({setting}), or set fewer {WORKERS}")
        }
        Some(libc::ENOMEM | libc::EAGAIN) => {
            format!("; raise the limit of memory ({ADDRESS_SPACE}) or of threads, or set fewer {WORKERS}")
        }
        _ => String::new(),
    }
}

/// The number of open files that depend neither on workers nor on clients, such as the standard streams.
const OTHER_FILES: u64 = 16;

/// The open files of a worker without its listeners.
const FILES_PER_WORKER: usize = 6;

/// The open files that clients leave to the operator: for two listeners of HTTP with all of their connections, one of
/// them the control socket, and for a reload.
const SPARE_FILES: u64 = 2 * http::limits::CONNECTIONS as u64 + 32;

/// Returns how many of `limit` open files clients leave: fewer than [`SPARE_FILES`] if the limit is low.
fn spare_files(limit: u64) -> u64 {
    SPARE_FILES.min(limit / 8)
}

/// The open files of a connection between a visitor and a web site: two sockets.
const FILES_PER_VISITOR: u64 = 2;

/// Returns the most connections to a front for which there are open files: all fronts together get at most half of
/// `limit`, whatever visitors do.
pub(super) fn visitors(config: &Config, front: &Front, limit: u64) -> u64 {
    let share = limit / 2 / config.fronts.len().max(1) as u64;
    u64::from(front.connections).min((share / FILES_PER_VISITOR).max(1))
}

/// Returns the number of open files that fronts use: their listeners, their connections, and the pipes of all.
fn of_fronts(config: &Config, limit: u64) -> u64 {
    let of_front = |front| 1 + visitors(config, front, limit) * FILES_PER_VISITOR;
    let pipes = if config.fronts.is_empty() { 0 } else { 2 * front::PIPES as u64 };
    config.fronts.iter().map(of_front).sum::<u64>() + pipes
}

/// Returns a warning for each front that has fewer connections than configured.
fn limited_fronts(config: &Config, limit: u64) -> Vec<String> {
    let setting = name_for_operator(OPEN_FILES, limits::is_service());
    let limited = config.fronts.iter().filter_map(|front| {
        let most = visitors(config, front, limit);
        (most < front.connections.into()).then(|| {
            format!(
                "the front at {} accepts at most {most} connections in place of {}, because all fronts together get half \
                 of the limit of open files, {limit}, and a connection takes {FILES_PER_VISITOR}. Raise the limit \
                 ({setting}), or set fewer `connections`",
                front.listen, front.connections
            )
        })
    });
    limited.collect()
}

/// Raises the limit of open files, and returns it.
pub(super) fn open_files() -> u64 {
    limits::raise_open_files().unwrap_or_else(|error| {
        tracing::warn!(event = "open-files-unknown", %error, "cannot raise the limit of open files");
        limits::open_files().unwrap_or(u64::MAX)
    })
}

/// The open files that clients leave to the operator.
#[derive(Clone, Debug)]
pub(super) struct Spare {
    /// Those that clients of TURN leave.
    pub(super) all: SpareFiles,
    /// Those that clients of HTTP over TCP leave: for the control socket and for a reload.
    pub(super) control: SpareFiles,
}

impl Spare {
    fn of(limit: u64) -> Self {
        let count = spare_files(limit);
        Self { all: SpareFiles::new(limit, count), control: SpareFiles::new(limit, count / 2) }
    }

    /// Adapts to another limit of open files.
    pub(super) fn adapt(&self, limit: u64) {
        let count = spare_files(limit);
        self.all.set(limit, count);
        self.control.set(limit, count / 2);
    }
}

/// Returns the limit on connections that leaves enough of `limit` open files for the relay sockets. `of_offload` are the
/// open files of the offload.
pub(super) fn connection_limit(config: &Config, choice: &Choice, limit: u64, of_offload: u64) -> u32 {
    let wanted = config.limits.connections;
    let has_listener = config.listen.iter().any(|endpoint| endpoint.transport.is_connection());
    let no_connections = !has_listener && config.fronts.is_empty();
    let relay_count = relay_count(choice);
    let relay_ports = (config.relay.ports.len() * relay_count) as u64;
    let files = OpenFiles {
        limit,
        relay_sockets: match config.limits.allocations {
            0 => relay_ports,
            allocations => relay_ports.min(u64::from(allocations) * relay_count as u64),
        },
        connections: (!no_connections).then_some(wanted),
        others: OTHER_FILES
            + (worker_count(config) * (config.listen.len() + FILES_PER_WORKER)) as u64
            + of_fronts(config, limit)
            + of_offload,
    };
    if let Some(warning) = files.warning(limits::is_service()) {
        tracing::warn!(
            event = "open-files-limited",
            open_files = limit,
            connections = files.connections_accepted(),
            "{warning}"
        );
    }
    for warning in limited_fronts(config, limit) {
        tracing::warn!(event = "open-files-limited", open_files = limit, "{warning}");
    }
    if no_connections { wanted } else { files.connections_accepted() }
}

/// The limit of open files, and what needs them.
#[derive(Clone, Copy, Debug)]
struct OpenFiles {
    limit: u64,
    relay_sockets: u64,
    /// The configured limit, where 0 means none. `None` without listeners for connections.
    connections: Option<u32>,
    /// Without the spare files.
    others: u64,
}

impl OpenFiles {
    fn available(&self) -> u64 {
        self.limit.saturating_sub(self.others + spare_files(self.limit))
    }

    /// Returns the number of open files that connections may use: those that relay sockets do not need, but at least
    /// half of all, because a client on a connection needs two files: one for the connection and one for its relay
    /// socket. The number is never 0, because 0 means no limit.
    fn max_connections(&self) -> u32 {
        let available = self.available();
        u32::try_from(available.saturating_sub(self.relay_sockets).max(available / 2).max(1)).unwrap_or(u32::MAX)
    }

    /// Returns the limit on connections that applies.
    fn connections_accepted(&self) -> u32 {
        match self.connections {
            None => 0,
            Some(0) => self.max_connections(),
            Some(connections) => connections.min(self.max_connections()),
        }
    }

    /// Warns if the limit is too low for the configuration.
    fn warning(&self, is_service: bool) -> Option<String> {
        let Self { limit, relay_sockets, connections, .. } = *self;
        let others = self.others + SPARE_FILES;
        let needed = relay_sockets.saturating_add(connections.unwrap_or_default().into()).saturating_add(others);
        if limit >= needed {
            return None;
        }
        let most = self.connections_accepted();
        let rest = self.available().saturating_sub(most.into());
        let need = match connections {
            None | Some(0) => String::new(),
            Some(connections) => format!(", {connections} connections"),
        };
        let so = match connections {
            None => format!("only {rest} relay sockets can be open; further allocations are rejected"),
            Some(_) => format!(
                "at most {most} connections are accepted, and while all of them are open, {rest} relay sockets can be \
                 open"
            ),
        };
        let remedy = if is_service {
            format!("set {OPEN_FILES}={needed} in the unit; in a container, the container's limit applies, too")
        } else {
            format!(
                "run in the shell that starts the server: `{} {needed}` as root, or `sudo prlimit --pid $$ \
                 --nofile={needed}` as another user",
                name_for_operator(OPEN_FILES, false)
            )
        };
        Some(format!(
            "the limit of open files is {limit}, but the configuration needs {needed} (for {relay_sockets} relay \
             sockets{need} and {others} other files): {so}. To raise the limit, {remedy}"
        ))
    }
}

fn random_key() -> Result<[u8; 32], getrandom::Error> {
    let mut key = [0; 32];
    getrandom::getrandom(&mut key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(limit: u64, connections: u32) -> OpenFiles {
        OpenFiles { limit, relay_sockets: 16_384, connections: Some(connections), others: 0 }
    }

    // Peers may reach none of them, except with an entry of `peers.allow` that consists of the address alone.
    #[test]
    fn the_own_addresses_are_those_of_interfaces_relays_mappings_and_listeners() {
        let text = "[listen]\nudp = [\"192.0.2.1:3478\"]\ntcp = [\"[::]:3478\"]\n[relay]\nexternal = { \"10.0.0.1\" = \"203.0.113.1\", \"10.0.0.3\" = \"203.0.113.3\" }\n[http]\nlisten = [\"192.0.2.9:9641\"]\n[[front]]\nlisten = \"192.0.2.10:443\"\nweb = \"127.0.0.1:8443\"\nnames = [\"turn.example.org\"]\n";
        let config = Config::parse(text, "t.toml").unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (bind, advertised, reason) = (ip("10.0.0.1"), ip("203.0.113.1"), String::new());
        let choice = Choice {
            addresses: vec![addresses::RelayAddress { bind, advertised, reason, for_all: true }],
            missing: vec![(ip("10.0.0.2"), ip("203.0.113.2"))],
            unusable: Vec::new(),
            warnings: Vec::new(),
        };
        let interface = |address: &str| interfaces::InterfaceAddress {
            name: "eth0".to_owned(),
            address: ip(address),
            loopback: false,
            up: true,
            state: interfaces::AddressState::Stable,
        };
        let addresses = ["172.16.0.1", "fe80::1", "2001:db8::1"].map(interface).to_vec();
        let machine = Interfaces { addresses, ..Interfaces::default() };
        let expected = [
            "10.0.0.1",
            "10.0.0.2",
            "172.16.0.1",
            "192.0.2.1",
            "192.0.2.9",
            "192.0.2.10",
            "203.0.113.1",
            "203.0.113.2",
            "203.0.113.3",
            "2001:db8::1",
        ];
        assert_eq!(own_addresses(&config, &machine, &choice), expected.map(ip));
    }

    #[test]
    fn connections_leave_open_files_for_relay_sockets() {
        assert_eq!(files(100_000, 10_000).max_connections(), 83_456);
        assert_eq!(files(20_000, 10_000).max_connections(), 9_920);
        assert_eq!(files(1_000, 10_000).max_connections(), 437);
        assert_eq!(files(0, 10_000).max_connections(), 1);
        assert_eq!(OpenFiles { relay_sockets: 1, ..files(u64::MAX, 0) }.max_connections(), u32::MAX);
    }

    #[test]
    fn a_low_limit_of_open_files_is_a_warning_whose_figures_add_up() {
        let low = OpenFiles { others: 28, ..files(500, 10_000) };
        let begin = "the limit of open files is 500, but the configuration needs 26572 (for 16384 relay sockets, 10000 \
                     connections and 188 other files): at most 205 connections are accepted, and while all of them are \
                     open, 205 relay sockets can be open. To raise the limit, ";
        let shell = "run in the shell that starts the server: `ulimit -n 26572` as root, or `sudo prlimit --pid $$ \
                     --nofile=26572` as another user";
        assert_eq!(low.warning(false), Some(format!("{begin}{shell}")));
        assert_eq!(
            low.warning(true),
            Some(format!(
                "{begin}set LimitNOFILE=26572 in the unit; in a container, the container's limit applies, too"
            ))
        );
        let udp = OpenFiles { connections: None, ..low };
        assert!(udp.warning(true).unwrap().contains("(for 16384 relay sockets and 188 other files): only 410 relay"));
        let unlimited = OpenFiles { connections: Some(0), ..low };
        assert!(
            unlimited.warning(true).unwrap().contains("needs 16572 (for 16384 relay sockets and 188 other files): at")
        );
        assert_eq!(files(26_544, 10_000).warning(true), None);
        assert!(files(26_543, 10_000).warning(true).is_some());
    }
}
