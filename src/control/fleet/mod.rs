//! The fleet: the thread `fleet` connects this node with others over an engine (NATS).
//!
//! Nothing here is on the way of a packet or of an Allocate request. If the engine is away, the last view of the nodes,
//! the revocations and the secrets stay in use. docs/fleet.md describes the subjects and buckets.

mod agent;
mod beat;
mod check;
mod common;
mod copy;
mod diagnosis;
pub(super) mod engine;
mod leases;
mod orders;
mod reading;
mod requests;
mod state;
pub(super) mod stream;

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::api::Published;
use super::commands::Commands;
use super::outbound;
use super::start::WorkerControl;
use crate::clock::{self, Clock};
use crate::config::{self, Config};
use crate::fleet::{Heartbeat, Nodes};
use crate::http::InternalRequest;
use crate::net::background;
use crate::turn::{Instant, Ledger};
use agent::Agent;
use engine::Connection;

pub(crate) use check::{Found, check};
pub(super) use state::FleetInUse;

/// The most requests of the operator that wait.
const REQUESTS: usize = 16;

/// What the thread needs of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) fleet: config::Fleet,
    /// A hash of `fleet.ca-file`.
    authorities: Option<[u8; 32]>,
    pub(super) node: String,
    /// Where a copy of the state is kept, if anywhere.
    pub(super) state_file: Option<PathBuf>,
    /// Whether clients are redirected to other nodes.
    pub(super) alternates: bool,
    pub(super) allocations_per_user: u32,
}

impl Settings {
    /// Whether both are about one fleet on one engine, which may have got or lost servers.
    fn is_same_fleet(&self, other: &Self) -> bool {
        let has_common_server = self.fleet.servers.iter().any(|server| other.fleet.servers.contains(server));
        self.fleet.name == other.fleet.name && has_common_server
    }
}

/// What the HTTP server reads of the fleet.
#[derive(Debug)]
pub(super) struct View {
    /// The name of this node.
    pub(super) node: String,
    /// `None` if this server is not part of a fleet.
    pub(super) settings: Option<Arc<Settings>>,
    nodes: Arc<Mutex<Nodes>>,
    pub(super) connection: watch::Receiver<Connection>,
    counts: Arc<Mutex<Counts>>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            node: String::new(),
            settings: None,
            nodes: Arc::default(),
            connection: watch::channel(Connection::default()).1,
            counts: Arc::default(),
        }
    }
}

impl View {
    /// Returns the nodes. The HTTP thread and that of the fleet hold them for a moment at a time.
    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_counts(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }
}

/// What the thread has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Connections to the engine that were made.
    pub(super) connections: u64,
    /// Heartbeats that the engine has stored.
    pub(super) beats: u64,
    /// Heartbeats that it has not stored in time.
    pub(super) failed_beats: u64,
    /// Orders that this node has carried out or refused.
    pub(super) orders: u64,
    /// Messages that could not be understood.
    pub(super) malformed: u64,
    /// Users with a lease.
    pub(super) leases: u64,
}

/// A request of the operator at this node.
pub(super) struct Request {
    pub(super) order: Value,
    pub(super) response: oneshot::Sender<Result<Value, String>>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The order may have a secret or the name of a user.
        f.debug_struct("Request").field("order", &self.order.get("order")).finish_non_exhaustive()
    }
}

/// The ends of the thread that the HTTP server has.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) requests: mpsc::Sender<Request>,
    /// What the stream of events counts.
    pub(super) stream: Arc<stream::Statistics>,
}

#[cfg(any(test, feature = "fuzzing"))]
impl Handle {
    /// Returns the ends of a thread that does not run.
    pub(super) fn none() -> Self {
        Self { view: watch::channel(Arc::default()).1, requests: mpsc::channel(1).0, stream: Arc::default() }
    }
}

/// What the thread reads and commands.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) workers: Vec<WorkerControl>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) published: watch::Receiver<Published>,
    pub(super) commands: Commands,
    /// To the HTTP server, which carries out orders as those on the control socket.
    pub(super) internal: mpsc::Sender<InternalRequest>,
    /// The users whose number of allocations has changed.
    pub(super) users: tokio::sync::Mutex<mpsc::Receiver<String>>,
    pub(super) clock: Clock,
    /// Identifies this run of the process.
    pub(super) boot: u64,
}

impl Inputs {
    fn now(&self) -> Instant {
        Instant::from_elapsed(self.clock.elapsed())
    }
}

/// The thread `fleet`, which runs from the first configuration with `[fleet]` until the process ends.
#[derive(Debug)]
pub(super) struct Fleet {
    settings: watch::Sender<Option<Arc<Settings>>>,
    handle: Handle,
    /// Until the thread is started.
    agent: Option<(Inputs, AgentParts)>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct AgentParts {
    view: watch::Sender<Arc<View>>,
    requests: mpsc::Receiver<Request>,
}

impl Fleet {
    pub(super) fn new(inputs: Inputs, stream: Arc<stream::Statistics>) -> Self {
        let (view, seen) = watch::channel(Arc::default());
        let (sender, requests) = mpsc::channel(REQUESTS);
        Self {
            settings: watch::Sender::new(None),
            handle: Handle { view: seen, requests: sender, stream },
            agent: Some((inputs, AgentParts { view, requests })),
            thread: None,
        }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Follows the configuration.
    pub(super) fn configure(&mut self, config: &Config) {
        let settings = settings(config).map(Arc::new);
        let is_wanted = settings.is_some();
        self.settings.send_if_modified(|present| {
            let changed = *present != settings;
            *present = settings;
            changed
        });
        let Some((inputs, parts)) = self.agent.take_if(|_| is_wanted) else { return };
        let settings = self.settings.subscribe();
        // Until the thread has begun.
        let node = config.node_name();
        parts.view.send_replace(Arc::new(View { node, settings: settings.borrow().clone(), ..View::default() }));
        match background::start("fleet", move || Agent::new(inputs, settings, parts).run()) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::error!(
                event = "fleet-failed", %error,
                "cannot start the thread of the fleet, so this node is not part of it until a restart"
            ),
        }
    }

    /// Says to the other nodes that this one ends, and waits for that for a moment.
    pub(super) fn finish(self) {
        drop(self.settings);
        // A panic of it has been logged.
        let _ = self.thread.map(std::thread::JoinHandle::join);
    }
}

/// Returns what the server uses of the common state at its start, before the engine says more.
pub(super) fn at_start(config: &Config) -> FleetInUse {
    let Some(settings) = settings(config) else { return FleetInUse::default() };
    // The thread reads it again, and logs a failure.
    let known = settings.state_file.as_deref().and_then(|file| copy::read(file, &settings).ok().flatten());
    known.map(|known| known.state.at(clock::unix_seconds())).unwrap_or_default()
}

fn state_file(config: &Config) -> Option<PathBuf> {
    config.state_directory.as_ref().map(|directory| directory.join("fleet-state"))
}

fn settings(config: &Config) -> Option<Settings> {
    let fleet = config.fleet.clone()?;
    Some(Settings {
        authorities: outbound::authorities(fleet.ca_file.as_deref()),
        node: config.node_name(),
        state_file: state_file(config),
        alternates: config.alternate.from_fleet,
        allocations_per_user: config.limits.allocations_per_user,
        fleet,
    })
}

thread_local! {
    static RNG: RefCell<StdRng> = RefCell::new(StdRng::from_seed(seed()));
}

fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    // Without randomness, choices are not spread, but valid.
    let _ = getrandom::getrandom(&mut seed);
    seed
}

/// Calls `with` with the random generator of this thread.
pub(super) fn with_rng<T>(with: impl FnOnce(&mut StdRng) -> T) -> T {
    RNG.with_borrow_mut(with)
}

impl View {
    /// Returns what the status of this node says of the fleet; `None` if it is part of none.
    pub(super) fn summary(&self, now: Instant) -> Option<Value> {
        let fleet = &self.settings.as_ref()?.fleet;
        let (nodes, connection) = (self.nodes(), self.connection.borrow().clone());
        Some(json!({
            "name": fleet.name,
            "node": self.node,
            "connected": connection.is_up,
            "error": connection.why(),
            "nodes": nodes.live(now).count(),
            "is_member": nodes.get(&self.node, now).is_some(),
        }))
    }

    /// Returns the view as JSON for the operator.
    pub(super) fn to_json(&self, now: Instant) -> Value {
        let node = |beat: &Heartbeat| {
            let load = &beat.load;
            json!({
                "name": beat.name,
                "region": beat.region,
                "weight": beat.weight,
                "draining": beat.draining,
                "version": beat.version,
                "allocations": load.allocations,
                "free_ports": load.free_ports,
                "capacity": load.capacity,
                "bits_per_second": load.bits_per_second,
                "cpu": (load.cpu * 1_000.0).round() / 1_000.0,
                "urls": beat.urls,
                "state": beat.state,
            })
        };
        let (view, connection) = (self.nodes(), self.connection.borrow().clone());
        let mut nodes: Vec<&Heartbeat> = view.live(now).collect();
        nodes.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        let sum = |value: fn(&Heartbeat) -> u64| nodes.iter().map(|beat| value(beat)).fold(0, u64::saturating_add);
        json!({
            "node": self.node,
            "fleet": self.settings.as_ref().map(|settings| settings.fleet.name.as_str()),
            "connected": connection.is_up,
            "error": connection.why(),
            "nodes": nodes.iter().map(|beat| node(beat)).collect::<Vec<_>>(),
            "totals": {
                "nodes": nodes.len(),
                "draining": nodes.iter().filter(|beat| beat.draining).count(),
                "allocations": sum(|beat| beat.load.allocations.into()),
                "free_ports": sum(|beat| beat.load.free_ports.into()),
                "capacity": sum(|beat| beat.load.capacity.into()),
                "bits_per_second": sum(|beat| beat.load.bits_per_second),
            },
        })
    }
}
