//! The events of allocations in a stream of the engine: at least once, in the order in which they were made.
//!
//! It is a sink of the thread `events`, with a connection of its own. What the engine has not acknowledged stays in a spool
//! in the state directory, also over restarts.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::engine::{Connection, Engine, with_source};
use crate::config::{self, Config};
use crate::control::events::Sink;
use crate::control::events::event::{Event, Kind, Source};
use crate::control::events::queue::Queue;
use crate::control::random;
use crate::control::spool::Spool;
use crate::setting::STATE_DIRECTORY;

/// The most bytes in the spool: about 200 000 events.
const SPOOL: u64 = 64 << 20;
/// The most events that are sent before their acknowledgements are awaited.
const BATCH: usize = 256;
/// The time for the last events when the process stops. The caller waits a little longer.
const LAST_EVENTS: Duration = Duration::from_secs(4);
/// The pauses after a failure, and the longest one.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

/// The least time between two lines about events that do not fit.
const LOG: Duration = Duration::from_secs(60);
/// The interval at which what waits is made to outlive a crash of the machine.
const SYNC: Duration = Duration::from_secs(1);

/// What the sink needs of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::control) struct Settings {
    fleet: config::Fleet,
    node: String,
    source: Source,
    directory: Option<PathBuf>,
}

impl Settings {
    /// Returns the settings; `None` without `[fleet]`.
    pub(in crate::control) fn of(config: &Config, source: &Source) -> Option<Self> {
        Some(Self {
            fleet: config.fleet.clone()?,
            node: config.node_name(),
            source: source.clone(),
            directory: config.state_directory.as_ref().map(|directory| directory.join("fleet-events")),
        })
    }
}

/// The interval at which sums that did not fit into the spool are tried again.
const ROOM: Duration = Duration::from_secs(10);

/// What the sink counts. The HTTP server reads it.
#[derive(Debug, Default)]
pub(in crate::control) struct Statistics {
    /// Events that wait for the engine.
    pub(in crate::control) queued: AtomicU64,
    /// Events that the engine has acknowledged.
    pub(in crate::control) sent: AtomicU64,
    /// Events that did not fit, whose sums are in an `events.lost`.
    pub(in crate::control) dropped: AtomicU64,
}

/// The sink of the thread `events`.
pub(in crate::control) struct EventStream {
    shared: Rc<Shared>,
    publisher: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

/// Changes the settings of a sink that runs.
pub(in crate::control) struct Handle(Rc<Shared>);

struct Shared {
    settings: watch::Sender<Option<Rc<Settings>>>,
    /// Opened with the first settings.
    queue: RefCell<Option<Queue>>,
    /// Whether the engine has acknowledged the last event.
    is_up: Cell<bool>,
    is_stopping: Cell<bool>,
    wake: Notify,
    statistics: Arc<Statistics>,
    /// When it was last logged that events do not fit.
    full_logged: Cell<Option<Instant>>,
}

impl EventStream {
    /// Starts the task. Must be called within a `LocalSet`.
    pub(in crate::control) fn start(statistics: Arc<Statistics>) -> (Self, Handle) {
        let shared = Rc::new(Shared {
            settings: watch::Sender::new(None),
            queue: RefCell::new(None),
            is_up: Cell::new(false),
            is_stopping: Cell::new(false),
            wake: Notify::new(),
            statistics,
            full_logged: Cell::new(None),
        });
        let publisher = tokio::task::spawn_local(publish(Rc::clone(&shared)));
        let kept = Rc::clone(&shared);
        let keeper = tokio::task::spawn_local(async move {
            loop {
                sleep(SYNC).await;
                if let Some(queue) = &mut *kept.queue.borrow_mut() {
                    // The next one tries again.
                    let _ = queue.sync();
                }
            }
        });
        (Self { shared: Rc::clone(&shared), publisher, keeper }, Handle(shared))
    }
}

impl Handle {
    /// Follows the configuration.
    pub(in crate::control) fn configure(&self, settings: Option<Settings>) {
        let mut queue = self.0.queue.borrow_mut();
        if let Some(settings) = &settings {
            queue.get_or_insert_with(|| open(settings));
        } else if let Some(queue) = &mut *queue {
            queue.clear_usage();
        }
        drop(queue);
        self.0.settings.send_if_modified(|present| {
            let changed = present.as_deref() != settings.as_ref();
            if changed {
                *present = settings.map(Rc::new);
            }
            changed
        });
    }
}

/// Opens the spool. If that fails, it is in memory.
fn open(settings: &Settings) -> Queue {
    let (spool, why) = Spool::open_or_in_memory(settings.directory.as_deref(), SPOOL);
    if let Some(error) = why {
        tracing::error!(
            event = "fleet-spool-unusable",
            error,
            "events that wait for the engine of the fleet are in memory only, and lost when the server stops. Remove the \
             cause, and restart the server"
        );
    }
    let (queue, note) = Queue::new(spool);
    if let Err(error) = note {
        tracing::warn!(
            event = "fleet-spool-failed", %error,
            "the sums of events that did not fit into the spool cannot be read, so they are lost"
        );
    }
    queue
}

impl Sink for EventStream {
    fn take(&mut self, event: &Rc<Event>) {
        let mut queue = self.shared.queue.borrow_mut();
        let Some(queue) = &mut *queue else { return };
        if self.shared.settings.borrow().is_none() {
            queue.forget(event);
            return;
        }
        if event.kind == Kind::Usage {
            if self.shared.is_up.get() {
                queue.push_usage(event);
            }
        } else {
            // What does not fit is counted, and its sums are kept.
            if let Err(error) = queue.push(event)
                && self.shared.full_logged.get().is_none_or(|last| last.elapsed() >= LOG)
            {
                self.shared.full_logged.set(Some(Instant::now()));
                tracing::warn!(
                    event = "fleet-events-dropped", %error,
                    "events do not fit into the spool of the fleet's stream, so one `events.lost` gets their sums: make the \
                     engine take them, or free some space"
                );
            }
        }
        self.shared.publish_counts(queue);
        self.shared.wake.notify_one();
    }

    fn wants_usage(&self) -> bool {
        self.shared.is_up.get() && self.shared.settings.borrow().is_some()
    }

    fn usage_is_complete(&mut self) {
        if let Some(queue) = &mut *self.shared.queue.borrow_mut() {
            queue.usage_is_complete();
        }
    }

    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()>>> {
        self.shared.is_stopping.set(true);
        self.shared.wake.notify_one();
        Box::pin(async move {
            let Self { shared, mut publisher, keeper } = *self;
            keeper.abort();
            if timeout(LAST_EVENTS, &mut publisher).await.is_err() {
                publisher.abort();
            }
            let mut queue = shared.queue.borrow_mut();
            let Some(queue) = &mut *queue else { return };
            queue.give_up();
            let _ = queue.sync();
            match queue.waiting() {
                0 => {}
                count if queue.spool().is_on_disk() => tracing::info!(
                    event = "fleet-events-unsent",
                    count,
                    "the engine of the fleet has not taken all events: the next start sends the others"
                ),
                count => tracing::warn!(
                    event = "fleet-events-unsent",
                    count,
                    "the engine of the fleet has not taken all events: the others are lost, because there is no \
                     `{STATE_DIRECTORY}`"
                ),
            }
        })
    }
}

impl Shared {
    fn publish_counts(&self, queue: &Queue) {
        self.statistics.queued.store(queue.waiting(), Ordering::Relaxed);
        self.statistics.dropped.store(queue.dropped(), Ordering::Relaxed);
    }

    /// Waits until the process stops.
    async fn stopping(&self) {
        while !self.is_stopping.get() {
            self.wake.notified().await;
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.borrow().as_ref().is_none_or(|queue| queue.waiting() == 0)
    }

    /// Sends the oldest events. Returns whether there were any.
    async fn send(&self, settings: &Settings, engine: &Engine) -> Result<bool, String> {
        let taken = match &mut *self.queue.borrow_mut() {
            Some(queue) => queue.take(BATCH, &settings.source).map_err(|error| format!("the spool: {error}"))?,
            None => None,
        };
        let Some(taken) = taken else { return Ok(false) };
        let mut acknowledgements = Vec::with_capacity(taken.events.len());
        for event in &taken.events {
            let (subject, id) = address(&settings.fleet.name, &settings.node, event);
            let mut headers = HeaderMap::new();
            if let Some(id) = id {
                headers.insert(NATS_MESSAGE_ID, id);
            }
            let payload = Bytes::copy_from_slice(event);
            let sent = engine.jetstream.publish_with_headers(subject, headers, payload).await;
            acknowledgements.push(sent.map_err(|error| with_source(&error))?);
        }
        for acknowledgement in acknowledgements {
            acknowledgement.await.map_err(|error| with_source(&error))?;
        }
        if let Some(queue) = &mut *self.queue.borrow_mut() {
            // If that cannot be written, they are sent again after a restart.
            let _ = queue.acknowledge(&taken);
            self.publish_counts(queue);
        }
        self.statistics.sent.fetch_add(taken.events.len() as u64, Ordering::Relaxed);
        Ok(true)
    }
}

/// Returns the subject of an event, and the ID by which the engine recognizes a repetition. Running sums need none.
fn address(fleet: &str, node: &str, event: &[u8]) -> (String, Option<String>) {
    let fields: Value = serde_json::from_slice(event).unwrap_or_default();
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let kind = text("type");
    let id = match kind {
        "allocation.started" | "allocation.ended" => Some(format!("{}.{}.{kind}", text("boot"), text("session"))),
        "node.started" | "node.stopped" => Some(format!("{}.{kind}", text("boot"))),
        "events.lost" => {
            let number = |name: &str| fields.get(name).and_then(Value::as_u64).unwrap_or_default();
            // They only grow, so an event with others has another sum of them.
            let sums = ["packets_to_peers", "bytes_to_peers", "packets_to_client", "bytes_to_client"].map(number);
            let sum = sums.into_iter().fold(0, u64::wrapping_add);
            Some(format!("lost.{}.{}.{}.{sum}", text("lost"), number("started"), number("ended")))
        }
        _ => None,
    };
    (format!("{fleet}.events.{kind}.{node}"), id)
}

/// Publishes events until the process stops.
async fn publish(shared: Rc<Shared>) {
    let mut changes = shared.settings.subscribe();
    loop {
        let settings = changes.borrow_and_update().clone();
        let Some(settings) = settings else {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = shared.wake.notified() => if shared.is_stopping.get() { return },
            }
            continue;
        };
        let (connected, connection) = watch::channel(Connection::default());
        let name = format!("turnserver {} events", settings.node);
        // Settings that cannot be used are logged by the thread of the fleet.
        shared.is_up.set(false);
        let Ok(engine) = Engine::connect(&settings.fleet, name, connected).await else {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = shared.stopping() => return,
            }
            continue;
        };
        tokio::select! {
            () = with_engine(&shared, &settings, &engine, connection) => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Publishes events over a connection. Returns when the process stops and there are no more.
async fn with_engine(
    shared: &Shared,
    settings: &Settings,
    engine: &Engine,
    mut connection: watch::Receiver<Connection>,
) {
    let [first, longest] = PAUSES;
    let mut pause = first;
    let mut was_logged = false;
    loop {
        if !connection.borrow().is_up {
            shared.is_up.set(false);
            tokio::select! {
                connected = connection.wait_for(|connection| connection.is_up) => if connected.is_err() { return },
                () = shared.stopping() => return,
            }
        }
        let mut result = shared.send(settings, engine).await;
        if let Err(why) = &result
            && connection.borrow().is_up
        {
            // The stream may be missing. It may also be in another account, in which this node can only publish.
            result = match engine.event_stream().await {
                Ok(()) => shared.send(settings, engine).await,
                Err(opening) => Err(format!("{why}; {opening}")),
            };
        }
        match result {
            Ok(is_more) => {
                shared.is_up.set(true);
                (pause, was_logged) = (first, false);
                if !is_more {
                    if shared.is_stopping.get() {
                        return;
                    }
                    // What is left waits for room in the spool.
                    let time = if shared.is_empty() { Duration::MAX } else { ROOM };
                    let _ = timeout(time, shared.wake.notified()).await;
                }
            }
            Err(error) => {
                shared.is_up.set(false);
                if let Some(queue) = &mut *shared.queue.borrow_mut() {
                    queue.clear_usage();
                    let _ = queue.sync();
                }
                // While there is no connection, its absence is logged.
                if connection.borrow().is_up && !std::mem::replace(&mut was_logged, true) {
                    tracing::warn!(
                        event = "fleet-events-waiting",
                        error,
                        "the engine of the fleet does not take events. They are kept, and sent again later"
                    );
                }
                sleep(pause.mul_f64(0.5 + random::fraction() / 2.0)).await;
                pause = pause.saturating_mul(2).min(longest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_subject_and_an_id_if_a_repetition_would_be_another_event() {
        for (event, subject, id) in [
            (
                r#"{"type":"allocation.ended","boot":"b","session":"0-1-2"}"#,
                "turn.events.allocation.ended.fra-1",
                Some("b.0-1-2.allocation.ended"),
            ),
            (r#"{"type":"node.started","boot":"b"}"#, "turn.events.node.started.fra-1", Some("b.node.started")),
            (
                r#"{"type":"events.lost","lost":"x","started":1,"ended":2,"bytes_to_peers":3,"packets_to_client":4}"#,
                "turn.events.events.lost.fra-1",
                Some("lost.x.1.2.7"),
            ),
            (r#"{"type":"allocation.usage","boot":"b","session":"0-1-2"}"#, "turn.events.allocation.usage.fra-1", None),
        ] {
            let (found, found_id) = address("turn", "fra-1", event.as_bytes());
            assert_eq!((found.as_str(), found_id.as_deref()), (subject, id));
        }
    }
}
