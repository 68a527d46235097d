//! The work of the thread `fleet`: one session with the engine after the other, with one task for each duty.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::kv::{Operation, Store};
use futures_util::StreamExt as _;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::beat::Pulse;
use super::common::{self, Revision};
use super::copy::{self, Known};
use super::engine::{Bucket, Connection, Engine};
use super::reading::Common;
use super::state::FleetState;
use super::{AgentParts, Counts, Inputs, Request, Settings, View, leases, orders, requests};
use crate::clock;
use crate::control::commands::Command;
use crate::control::random;
use crate::fleet::{Family, Heard, Heartbeat, Leases, Nodes, alternates};
use crate::transport::TurnUri;
use crate::turn::Operator;

/// The pause before a further attempt, if the engine refuses something.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// The longest time without a heartbeat of any node until they are asked for again.
const SILENCE: Duration = Duration::from_secs(6);
/// The least time from one heartbeat to the next.
const LEAST_INTERVAL: Duration = Duration::from_millis(200);
/// The interval at which a node that begins looks whether it knows the common state.
const STATE_CHECK: Duration = Duration::from_millis(20);
/// The time after which an earlier one has to do.
const STATE_PATIENCE: Duration = Duration::from_secs(10);
/// The interval at which the node looks whether a drain has begun or ended.
const DRAIN_CHECK: Duration = Duration::from_millis(100);
/// The interval at which the node looks why the engine cannot be reached.
const DIAGNOSIS: Duration = Duration::from_secs(15);
/// The most orders at a time.
const ORDERS: usize = 16;
/// The most alternate servers of each kind.
const ALTERNATES: usize = 4;
/// The longest time to say to the other nodes that this one ends.
const FAREWELL: Duration = Duration::from_millis(500);

/// The thread before it has a session.
pub(super) struct Agent {
    inputs: Rc<Inputs>,
    settings: watch::Receiver<Option<Arc<Settings>>>,
    parts: AgentParts,
    view: Arc<View>,
    known: Known,
    /// Whether what the copy of the state has is known.
    is_copy_known: bool,
    /// The leases of the last session, which end by themselves unless the next one goes on with them.
    leases: Option<Leases>,
    /// Its heartbeats, whose numbers go on.
    pulse: Pulse,
}

/// What the tasks of a session share.
pub(super) struct Session {
    pub(super) settings: Arc<Settings>,
    pub(super) engine: Engine,
    pub(super) inputs: Rc<Inputs>,
    pub(super) view: Arc<View>,
    pub(super) connection: watch::Receiver<Connection>,
    pub(super) common: RefCell<Common>,
    /// Whether the copy may be replaced: it was read, or the bucket was.
    pub(super) is_copy_known: Cell<bool>,
    /// Whether the bucket was read in this session.
    pub(super) is_read: Cell<bool>,
    /// Whether control may not have got the present state.
    pub(super) is_changed: Cell<bool>,
    /// The revision of the state that this node uses.
    pub(super) revision: Cell<Revision>,
    /// The entries that could not be used, by their keys and revisions.
    pub(super) refused: RefCell<BTreeMap<String, u64>>,
    /// The other process with the name of this node, and how often it was heard.
    twin: Cell<(u64, u32)>,
    /// The bucket about whose loss was logged.
    pub(super) lost: Cell<u32>,
    /// By how many seconds the clock of the engine is ahead of that of this node.
    pub(super) engine_ahead: Cell<Option<i64>>,
    /// The leases, if limits apply to all nodes together.
    pub(super) leases: RefCell<Option<Leases>>,
    pulse: RefCell<Pulse>,
    pub(super) counts: Cell<Counts>,
    /// Something has changed that the next heartbeat says.
    pub(super) beat: Notify,
    /// The state has changed.
    pub(super) changed: Notify,
    /// The engine may have lost the state, which has to be read as a whole.
    pub(super) reread: Notify,
}

impl Agent {
    pub(super) fn new(inputs: Inputs, settings: watch::Receiver<Option<Arc<Settings>>>, parts: AgentParts) -> Self {
        let (view, known) = (Arc::default(), Known::default());
        Self {
            inputs: Rc::new(inputs),
            settings,
            parts,
            view,
            known,
            is_copy_known: true,
            leases: None,
            pulse: Pulse::default(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut of: Option<Arc<Settings>> = None;
        loop {
            let settings = self.settings.borrow_and_update().clone();
            let Some(settings) = settings else {
                if of.take().is_some() {
                    self.leave().await;
                }
                if self.settings.changed().await.is_err() {
                    return;
                }
                continue;
            };
            if of.as_ref().is_none_or(|of| !of.is_same_fleet(&settings)) {
                // The nodes and the state of another fleet are not those of this one.
                self.view = Arc::new(View { counts: Arc::clone(&self.view.counts), ..View::default() });
                (self.known, self.is_copy_known) = match &settings.state_file {
                    Some(file) => copy::read_or_log(file, &settings),
                    None => (Known::default(), true),
                };
                self.leases = None;
                self.use_state(&self.known.state).await;
            }
            of = Some(Arc::clone(&settings));
            if !self.session(settings).await {
                return;
            }
        }
    }

    /// Uses nothing of the fleet any more.
    async fn leave(&mut self) {
        (self.known, self.leases) = (Known::default(), None);
        self.view = Arc::default();
        self.parts.view.send_replace(Arc::clone(&self.view));
        self.inputs.ledger.quota.set_first_share(None);
        self.use_state(&self.known.state).await;
        let nothing = Command::Alternates { servers: Vec::new(), tls_servers: Vec::new() };
        let _ = self.inputs.commands.send(nothing, Operator::FLEET).await;
    }

    async fn use_state(&self, state: &FleetState) {
        let in_use = state.at(clock::unix_seconds());
        // Control may have ended.
        let _ = self.inputs.commands.send(Command::Fleet(in_use), Operator::FLEET).await;
    }

    /// Runs until the settings change. Returns whether the thread goes on.
    async fn session(&mut self, settings: Arc<Settings>) -> bool {
        let (connected, connection) = watch::channel(Connection::default());
        let name = format!("turnserver {}", settings.node);
        let engine = match Engine::connect(&settings.fleet, name, connected).await {
            Ok(engine) => engine,
            Err(error) => {
                tracing::error!(event = "fleet-unusable", error, "the settings of [fleet] cannot be used");
                return self.wait_for_settings(&error).await;
            }
        };
        self.view = Arc::new(View {
            node: settings.node.clone(),
            settings: Some(Arc::clone(&settings)),
            nodes: Arc::clone(&self.view.nodes),
            connection: connection.clone(),
            counts: Arc::clone(&self.view.counts),
        });
        self.parts.view.send_replace(Arc::clone(&self.view));
        let session = Rc::new(Session {
            settings,
            engine,
            inputs: Rc::clone(&self.inputs),
            view: Arc::clone(&self.view),
            connection,
            common: RefCell::new(Common::new(std::mem::take(&mut self.known.state), self.known.origin)),
            is_copy_known: Cell::new(self.is_copy_known),
            is_read: Cell::new(false),
            // The last session may have ended before control got it.
            is_changed: Cell::new(true),
            revision: Cell::default(),
            refused: RefCell::default(),
            twin: Cell::default(),
            lost: Cell::default(),
            engine_ahead: Cell::default(),
            leases: RefCell::new(self.leases.take()),
            pulse: RefCell::new(std::mem::take(&mut self.pulse)),
            counts: Cell::new(self.view.counts()),
            beat: Notify::new(),
            changed: Notify::new(),
            reread: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn_local(beat(Rc::clone(&session)));
        tasks.spawn_local(follow_nodes(Rc::clone(&session)));
        tasks.spawn_local(common::follow_state(Rc::clone(&session)));
        tasks.spawn_local(common::catch_up(Rc::clone(&session)));
        tasks.spawn_local(common::purge_ended(Rc::clone(&session)));
        tasks.spawn_local(follow_time(Rc::clone(&session)));
        tasks.spawn_local(copy::keep(Rc::clone(&session)));
        tasks.spawn_local(follow_orders(Rc::clone(&session)));
        tasks.spawn_local(log_connection(Rc::clone(&session)));
        if session.settings.alternates {
            tasks.spawn_local(follow_alternates(Rc::clone(&session)));
        }
        leases::start(&session, &mut tasks);
        let goes_on = loop {
            tokio::select! {
                changed = self.settings.changed() => break changed.is_ok(),
                Some(Request { order, response }) = self.parts.requests.recv() => {
                    let session = Rc::clone(&session);
                    spawn_local(async move {
                        // A client that has gone needs no response.
                        let _ = response.send(requests::carry_out(&session, &order).await);
                    });
                }
                // A task that panics is a bug, which has been logged. The others go on.
                Some(_) = tasks.join_next() => {}
            }
        };
        tasks.shutdown().await;
        let stays = goes_on
            && self
                .settings
                .borrow()
                .as_ref()
                .is_some_and(|next| next.is_same_fleet(&session.settings) && next.node == session.settings.node);
        if !stays {
            let _ = timeout(FAREWELL, farewell(&session)).await;
        }
        let common = session.common.take();
        self.known = Known { state: common.state, origin: common.origin };
        (self.is_copy_known, self.leases) = (session.is_copy_known.get(), session.leases.take());
        self.pulse = session.pulse.take();
        goes_on
    }

    /// Waits for settings that can be used, and refuses requests meanwhile. Returns whether the thread goes on.
    async fn wait_for_settings(&mut self, why: &str) -> bool {
        loop {
            tokio::select! {
                changed = self.settings.changed() => return changed.is_ok(),
                Some(Request { response, .. }) = self.parts.requests.recv() => {
                    // A client that has gone needs no response.
                    let _ = response.send(Err(format!("the settings of [fleet] cannot be used: {why}")));
                }
            }
        }
    }
}

impl Session {
    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
        self.view.set_counts(counts);
    }

    /// Opens a bucket, as soon as the engine makes that possible.
    pub(super) async fn open(&self, bucket: Bucket) -> Store {
        let mut logged = false;
        loop {
            match self.engine.bucket(bucket).await {
                Ok(store) => return store,
                // While there is no connection, its absence is logged.
                Err(error) if self.connection.borrow().is_up && !logged => {
                    logged = true;
                    tracing::warn!(
                        event = "fleet-bucket-unusable",
                        error,
                        "the engine does not give this node what it needs; the server tries again. Check the \
                         permissions of its user, and JetStream"
                    );
                }
                Err(_) => {}
            }
            sleep(PAUSE).await;
        }
    }

    /// Lets control use the common state.
    pub(super) async fn use_state(&self) {
        let in_use = self.common.borrow().state.at(clock::unix_seconds());
        // Control may have ended.
        let _ = self.inputs.commands.send(Command::Fleet(in_use), Operator::FLEET).await;
    }

    fn malformed(&self, what: &str, key: &str, why: &str) {
        self.count(|counts| counts.malformed += 1);
        // A node of a later version may make many of them.
        tracing::debug!(
            event = "fleet-message-malformed",
            key = crate::printable::shown(key),
            error = why,
            "{what} that cannot be used"
        );
    }
}

/// Says to the other nodes that this one ends.
async fn farewell(session: &Session) {
    if let Ok(store) = session.engine.bucket(Bucket::Nodes).await {
        let _ = store.delete(&session.settings.node).await;
    }
    let _ = session.engine.client.flush().await;
}

/// Sends heartbeats.
async fn beat(session: Rc<Session>) {
    // Before this node knows the revocations and secrets, it gets no clients. Those of its copy have to do if the bucket
    // cannot be read.
    let mut waited = Duration::ZERO;
    while !session.is_read.get() && (waited < STATE_PATIENCE || !session.common.borrow().is_known()) {
        sleep(STATE_CHECK).await;
        if session.connection.borrow().is_up {
            waited += STATE_CHECK;
        }
    }
    let mut ticks = interval(Heartbeat::INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_draining = false;
    let mut has_failed = false;
    loop {
        // If the engine has lost its memory, the bucket is made again.
        let store = session.open(Bucket::Nodes).await;
        if std::mem::replace(&mut has_failed, true) {
            session.reread.notify_one();
        }
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = session.beat.notified() => {}
                () = drain_changes(&session, was_draining) => {}
            }
            let state = session.revision.get().number();
            let beat = session.pulse.borrow_mut().next(&session.inputs, &session.settings, state);
            was_draining = beat.draining;
            match store.put(&session.settings.node, Bytes::from(beat.to_json())).await {
                Ok(_) => session.count(|counts| counts.beats += 1),
                Err(_) => {
                    session.count(|counts| counts.failed_beats += 1);
                    sleep(PAUSE).await;
                    break;
                }
            }
            // Many changes of the common state make few heartbeats.
            sleep(LEAST_INTERVAL).await;
        }
    }
}

/// Waits until a drain begins or ends, so that the other nodes learn of it at once.
async fn drain_changes(session: &Session, before: bool) {
    while session.inputs.ledger.is_draining() == before {
        sleep(DRAIN_CHECK).await;
    }
}

/// Follows the heartbeats of all nodes.
async fn follow_nodes(session: Rc<Session>) {
    let mut is_full = false;
    loop {
        let store = session.open(Bucket::Nodes).await;
        let Ok(mut entries) = store.watch_with_history(">").await else {
            sleep(PAUSE).await;
            continue;
        };
        // The own heartbeat is among them, so the silence of all means that something is lost.
        while let Ok(Some(Ok(entry))) = timeout(SILENCE, entries.next()).await {
            let now = session.inputs.now();
            let mut nodes = session.view.nodes();
            if entry.operation != Operation::Put {
                nodes.gone(&entry.key);
                continue;
            }
            match Heartbeat::from_json(&entry.value) {
                Ok(mut beat) if beat.name == entry.key => {
                    // One bad URL would keep a browser from using the others.
                    beat.urls.retain(|url| url.parse::<TurnUri>().is_ok());
                    let is_own = beat.name == session.settings.node;
                    if is_own && beat.boot != session.inputs.boot {
                        drop(nodes);
                        warn_of_twin(&session, beat.boot);
                        continue;
                    }
                    let heard = nodes.heard(beat, now);
                    if is_own {
                        let engine = entry.created.unix_timestamp();
                        session.engine_ahead.set(i64::try_from(clock::unix_seconds()).ok().map(|own| engine - own));
                        nodes.own_beat_observed(now);
                    }
                    drop(nodes);
                    if heard == Heard::Full && !std::mem::replace(&mut is_full, true) {
                        tracing::warn!(
                            event = "fleet-full",
                            most = Nodes::CAPACITY,
                            "the fleet has more nodes than this one can follow, so it ignores the others"
                        );
                    }
                }
                Ok(_) => session.malformed("a heartbeat", &entry.key, "it has another name than its key"),
                Err(why) => session.malformed("a heartbeat", &entry.key, &why.to_string()),
            }
        }
        sleep(PAUSE.mul_f64(random::fraction())).await;
    }
}

/// Warns of another process with the name of this node. The last heartbeat of an earlier run of this node is none.
fn warn_of_twin(session: &Session, boot: u64) {
    let (last, count) = session.twin.get();
    let count = if last == boot { count.saturating_add(1) } else { 1 };
    session.twin.set((boot, count));
    if count == 3 {
        tracing::warn!(
            event = "fleet-node-twice",
            node = session.settings.node,
            "another server has the name of this node: set `node` to distinct names, because each hides the other"
        );
    }
}

/// Uses secrets and ends revocations at their times, and forgets what has ended long ago.
async fn follow_time(session: Rc<Session>) {
    let mut used = clock::unix_seconds();
    loop {
        let next = session.common.borrow().state.next_change(used);
        sleep(Duration::from_secs(next.map_or(5, |next| next.saturating_sub(used).clamp(1, 5)))).await;
        let now = clock::unix_seconds();
        // It may have come meanwhile, and the clock may have been set.
        let next = session.common.borrow().state.next_change(used);
        if now < used || next.is_some_and(|next| next <= now) {
            session.use_state().await;
        }
        used = now;
        if session.common.borrow_mut().state.forget_ended(now) {
            session.changed.notify_one();
        }
    }
}

/// Carries out orders.
async fn follow_orders(session: Rc<Session>) {
    let (client, fleet, node) = (&session.engine.client, &session.settings.fleet.name, &session.settings.node);
    let [to_all, to_this] = [format!("{fleet}.order.*.all"), format!("{fleet}.order.*.node.{node}")];
    let subscriptions = (
        client.subscribe(to_all).await,
        client.subscribe(to_this).await,
        client.queue_subscribe(format!("{fleet}.order.*"), "state".to_owned()).await,
    );
    let (Ok(mut to_all), Ok(mut to_this), Ok(mut of_state)) = subscriptions else {
        tracing::error!(event = "fleet-orders-unusable", "this node cannot receive orders; restart the server");
        return;
    };
    let mut running = JoinSet::new();
    loop {
        let (message, is_of_state) = tokio::select! {
            Some(message) = to_all.next() => (message, false),
            Some(message) = to_this.next() => (message, false),
            Some(message) = of_state.next() => (message, true),
            else => return,
        };
        while running.try_join_next().is_some() {}
        if message.reply.as_deref().is_some_and(|reply| !orders::is_inbox(reply)) {
            session.malformed("an order", &message.subject, "its reply subject is no inbox");
            continue;
        }
        if running.len() >= ORDERS {
            if let Some(reply) = message.reply {
                respond(&session, reply, Err("the node carries out too many orders at present: try again".to_owned()))
                    .await;
            }
            continue;
        }
        let session = Rc::clone(&session);
        running.spawn_local(async move {
            let result = order(&session, &message, is_of_state).await;
            session.count(|counts| counts.orders += 1);
            if let Some(reply) = message.reply {
                respond(&session, reply, result).await;
            }
        });
    }
}

/// Responds to an order.
async fn respond(session: &Session, reply: Subject, result: Result<Value, String>) {
    let (client, node) = (&session.engine.client, &session.settings.node);
    let mut response = orders::response(node, &result).to_string();
    let most = client.max_payload();
    if response.len() > most {
        let why = format!("the result is longer than the {most} bytes that the engine takes: lower `limit`");
        response = orders::response(node, &Err(why)).to_string();
    }
    // If the engine is away, the response is lost.
    let _ = client.publish(reply, response.into()).await;
}

async fn order(session: &Session, message: &async_nats::Message, is_of_state: bool) -> Result<Value, String> {
    let verb = orders::verb(&message.subject, &session.settings.fleet.name).unwrap_or_default();
    let arguments = orders::arguments(&message.payload)?;
    if is_of_state {
        return requests::change_state(session, verb, &arguments).await;
    }
    orders::carry_out(&session.inputs.internal, orders::request(verb, &arguments)?).await
}

/// Logs the state of the connection to the engine.
async fn log_connection(session: Rc<Session>) {
    let mut connection = session.connection.clone();
    let servers = || {
        let servers = session.settings.fleet.servers.iter().map(ToString::to_string);
        servers.collect::<Vec<_>>().join(", ")
    };
    // The first attempt needs a moment.
    let _ = timeout(Duration::from_secs(5), connection.wait_for(|connection| connection.is_up)).await;
    let log = |is_up: bool, error: Option<&str>| {
        if is_up {
            tracing::info!(
                event = "fleet-connected",
                node = session.settings.node,
                servers = servers(),
                "this node is connected to the engine of the fleet"
            );
        } else {
            tracing::warn!(
                event = "fleet-disconnected",
                error,
                servers = servers(),
                "the engine of the fleet cannot be reached. Calls and new allocations go on, with the last view of the \
                 fleet; the server tries again"
            );
        }
    };
    let (mut logged, mut made) = (None, 0);
    loop {
        let Connection { is_up, made: now_made, .. } = *connection.borrow_and_update();
        session.count(|counts| counts.connections += now_made - std::mem::replace(&mut made, now_made));
        if !is_up {
            let mut again = connection.clone();
            tokio::select! {
                () = session.engine.diagnose(&session.settings.fleet) => {}
                // Another server of the engine has taken over.
                again = again.wait_for(|connection| connection.is_up) => match again {
                    Ok(_) => continue,
                    Err(_) => return,
                },
            }
        }
        if logged.replace(is_up) != Some(is_up) {
            let error = connection.borrow().why();
            log(is_up, error.as_deref());
        }
        let changed = connection.wait_for(|connection| connection.is_up != is_up);
        // Later, there may be another reason.
        let changed = timeout(if is_up { Duration::MAX } else { DIAGNOSIS }, changed).await;
        if changed.is_ok_and(|changed| changed.is_err()) {
            return;
        }
    }
}

/// Lets control use other nodes as alternate servers.
async fn follow_alternates(session: Rc<Session>) {
    // Control may have those of an earlier session.
    let mut used = None;
    let mut ticks = interval(Duration::from_secs(2));
    loop {
        ticks.tick().await;
        let found = {
            let (nodes, now) = (session.view.nodes(), session.inputs.now());
            let of = |tls| {
                let (own, region) = (&session.settings.node, &session.settings.fleet.region);
                let of = |family| alternates(&nodes, family, tls, own, region, ALTERNATES, now);
                let mut all = [of(Family::V4), of(Family::V6)].concat();
                // The order changes with each heartbeat, and a client gets a random one.
                all.sort_unstable();
                all
            };
            [of(false), of(true)]
        };
        if used.as_ref() != Some(&found) {
            used = Some(found.clone());
            let [servers, tls_servers] = found;
            let _ = session.inputs.commands.send(Command::Alternates { servers, tls_servers }, Operator::FLEET).await;
        }
    }
}
