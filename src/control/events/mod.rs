//! The events of allocations, for billing and analysis: the thread `events` reads the records of the workers, adds
//! running sums once a minute, and gives the events to sinks.
//!
//! A sink never waits when it takes an event. It keeps what its receiver has not acknowledged, or counts what does not
//! fit. [`event`] has the form of an event, which docs/fleet.md describes.

pub(super) mod event;
pub(super) mod lost;
pub(super) mod queue;
pub(super) mod reported;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, timeout};

use super::fleet::stream::{self, EventStream};
use super::random;
use super::redis::status::{self, Status};
use super::start::WorkerControl;
use super::webhook::{self, Webhook};
use crate::config::Config;
use crate::net::background;
use crate::turn::{Cursor, Filter, FiveTuple, Quota};
use crate::worker::{FeedReader, RecordBatch, SessionId, SessionRecord};
use event::{Event, Source};

/// The interval of the running sums.
const USAGE: Duration = Duration::from_secs(60);

/// The time that sinks have for the last events when the process stops.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// A receiver of events.
pub(super) trait Sink {
    /// Takes an event. Must not wait.
    fn take(&mut self, event: &Rc<Event>);

    /// Takes the refresh of an allocation. Must not wait.
    fn take_refresh(&mut self, _refresh: &Refresh) {}

    /// Returns whether running sums are useful at present. If the receiver is away, the next ones make up for them.
    fn wants_usage(&self) -> bool;

    /// Notes that the running sums of all allocations have come, if they were wanted all the time.
    fn usage_is_complete(&mut self) {}

    /// Sends what can be sent before the process ends. The caller stops waiting for it after a few seconds.
    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// A refresh of an allocation.
#[derive(Clone, Debug)]
pub(super) struct Refresh {
    pub(super) session: SessionId,
    pub(super) user: String,
    pub(super) tuple: FiveTuple,
    /// In seconds; 0 if the client deletes the allocation.
    pub(super) lifetime: u32,
}

/// The sinks that a configuration wants. Each is started on the thread `events`, within its `LocalSet`.
pub(super) type Sinks = Vec<Box<dyn Sink>>;

/// What the thread needs of a configuration.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    source: Source,
    webhook: Option<webhook::Settings>,
    stream: Option<stream::Settings>,
    status: Option<status::Settings>,
}

impl Settings {
    /// Returns the settings; `None` if no event is wanted.
    fn of(config: &Config, boot: &str) -> Option<Self> {
        wants_events(config).then(|| {
            let source = Source::new(config, boot);
            let webhook = webhook::Settings::of(config, &source);
            let stream = stream::Settings::of(config, &source);
            let status = status::Settings::of(config);
            Self { source, webhook, stream, status }
        })
    }
}

/// Returns whether a configuration has a sink for events.
pub(super) fn wants_events(config: &Config) -> bool {
    config.fleet.is_some() || config.webhook.is_some() || config.redis_status.is_some()
}

/// What the thread gets at its start.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) readers: Vec<FeedReader>,
    pub(super) workers: Vec<WorkerControl>,
    /// Gets the names of the users whose number of allocations has changed.
    pub(super) users: mpsc::Sender<String>,
    /// Says whether they are wanted.
    pub(super) quota: Arc<Quota>,
    /// What the webhook counts.
    pub(super) webhook: Arc<webhook::Statistics>,
    /// What the stream of the fleet counts.
    pub(super) stream: Arc<stream::Statistics>,
    /// What the sink of the status of allocations counts.
    pub(super) status: Arc<status::Statistics>,
}

/// The thread `events`, which runs from the first configuration with a sink until the process ends.
#[derive(Debug)]
pub(super) struct Events {
    settings: watch::Sender<Option<Arc<Settings>>>,
    /// Identifies this run of the process.
    boot: String,
    /// Until the thread is started.
    inputs: Option<Inputs>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    pub(super) fn new(inputs: Inputs, boot: String) -> Self {
        Self { settings: watch::Sender::new(None), boot, inputs: Some(inputs), thread: None }
    }

    /// Follows a configuration. The workers make records if its snapshot says so.
    pub(super) fn configure(&mut self, config: &Config) {
        let settings = Settings::of(config, &self.boot).map(Arc::new);
        let is_wanted = settings.is_some();
        self.settings.send_replace(settings);
        if let Some(inputs) = self.inputs.take_if(|_| is_wanted) {
            let settings = self.settings.subscribe();
            match background::start("events", move || run(inputs, settings)) {
                Ok(thread) => self.thread = Some(thread),
                Err(error) => tracing::error!(
                    event = "events-failed", %error,
                    "cannot start the thread for events of allocations, so there are none until a restart"
                ),
            }
        }
    }

    /// Waits for the last events. Call it when the workers have ended.
    pub(super) fn finish(self) {
        // The thread sees the end of the feeds. A panic of it has been logged.
        drop(self.settings);
        drop(self.inputs);
        let _ = self.thread.map(JoinHandle::join);
    }
}

/// Tells the thread of the fleet which users it has to count. What does not fit comes with the next running sums.
struct ActiveUsers {
    users: mpsc::Sender<String>,
    quota: Arc<Quota>,
}

impl Sink for ActiveUsers {
    fn take(&mut self, event: &Rc<Event>) {
        if event.session.is_some() && self.quota.is_shared() {
            let _ = self.users.try_send(event.user.clone());
        }
    }

    fn wants_usage(&self) -> bool {
        self.quota.is_shared()
    }

    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(std::future::ready(()))
    }
}

/// The sinks, and what makes events of records.
struct Hub {
    source: Source,
    sinks: Sinks,
}

impl Hub {
    fn give(&mut self, event: Event) {
        let event = Rc::new(event);
        self.sinks.iter_mut().for_each(|sink| sink.take(&event));
    }

    fn take(&mut self, batch: RecordBatch) {
        if !batch.lost.is_empty() {
            tracing::warn!(
                event = "events-lost",
                started = batch.lost.started,
                ended = batch.lost.ended,
                "events of allocations did not fit, because the thread for events was too slow: their sums are in one \
                 `events.lost`"
            );
            self.give(self.source.lost(&batch.lost));
        }
        for record in batch.records {
            match record {
                SessionRecord::Refreshed { session, user, tuple, lifetime } => {
                    let refresh = Refresh { session, user, tuple, lifetime };
                    self.sinks.iter_mut().for_each(|sink| sink.take_refresh(&refresh));
                }
                record => {
                    if let Some(event) = self.source.record(record) {
                        self.give(event);
                    }
                }
            }
        }
    }
}

/// Which receivers of events a configuration has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    webhook: bool,
    stream: bool,
}

impl Wanted {
    fn of(settings: Option<&Settings>) -> Self {
        settings.map_or(Self::default(), |settings| Self {
            webhook: settings.webhook.is_some(),
            stream: settings.stream.is_some(),
        })
    }

    fn has_more_than(self, other: Self) -> bool {
        (self.webhook && !other.webhook) || (self.stream && !other.stream)
    }
}

async fn run(inputs: Inputs, mut settings: watch::Receiver<Option<Arc<Settings>>>) {
    let Inputs { readers, workers, users, quota, webhook, stream, status } = inputs;
    // A reload may have removed the last sink before the thread got here.
    let Ok(first) = settings.wait_for(Option::is_some).await.map(|settings| settings.clone()) else { return };
    let Some(first) = first else { return };
    let (webhook, webhook_settings) = Webhook::start(webhook);
    webhook_settings.configure(first.webhook.clone());
    let (stream, stream_settings) = EventStream::start(stream);
    stream_settings.configure(first.stream.clone());
    let (status, status_settings) = Status::start(status);
    status_settings.configure(first.status.clone());
    let sinks: Sinks =
        vec![Box::new(ActiveUsers { users, quota }), Box::new(webhook), Box::new(stream), Box::new(status)];
    let hub = Rc::new(RefCell::new(Hub { source: first.source.clone(), sinks }));
    let started = hub.borrow().source.node_started();
    hub.borrow_mut().give(started);
    let mut feeds = JoinSet::new();
    for mut reader in readers {
        let hub = Rc::clone(&hub);
        feeds.spawn_local(async move {
            while let Some(batch) = reader.recv().await {
                hub.borrow_mut().take(batch);
            }
        });
    }
    let usage = tokio::task::spawn_local(usage(Rc::clone(&hub), workers));
    let mut known = Wanted::of(Some(&first));
    loop {
        tokio::select! {
            ended = feeds.join_next() => if ended.is_none() { break },
            changed = settings.changed() => {
                if changed.is_err() {
                    // The process stops. The feeds end when the workers have ended.
                    while feeds.join_next().await.is_some() {}
                    break;
                }
                let settings = settings.borrow_and_update().clone();
                let wanted = Wanted::of(settings.as_deref());
                let is_further = wanted.has_more_than(std::mem::replace(&mut known, wanted));
                webhook_settings.configure(settings.as_ref().and_then(|settings| settings.webhook.clone()));
                stream_settings.configure(settings.as_ref().and_then(|settings| settings.stream.clone()));
                status_settings.configure(settings.as_ref().and_then(|settings| settings.status.clone()));
                if let Some(settings) = settings {
                    hub.borrow_mut().source = settings.source.clone();
                }
                if is_further {
                    // It says that the allocations of earlier runs have ended. To the other receivers it is a repetition.
                    let started = hub.borrow().source.node_started();
                    hub.borrow_mut().give(started);
                }
            }
        }
    }
    usage.abort();
    let stopped = hub.borrow().source.node_stopped();
    hub.borrow_mut().give(stopped);
    let sinks = std::mem::take(&mut hub.borrow_mut().sinks);
    let mut last = JoinSet::new();
    for sink in sinks {
        last.spawn_local(sink.finish());
    }
    // What is left stays where the sink keeps it.
    let _ = timeout(LAST_EVENTS, async { while last.join_next().await.is_some() {} }).await;
}

/// Makes running sums once a minute, at another second of the minute for each process.
async fn usage(hub: Rc<RefCell<Hub>>, workers: Vec<WorkerControl>) {
    let first = tokio::time::Instant::now() + USAGE.mul_f64(random::fraction());
    let mut ticks = interval_at(first, USAGE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let all = Arc::new(Filter::default());
    loop {
        ticks.tick().await;
        for (index, worker) in workers.iter().enumerate() {
            let mut cursor = Some(Cursor::default());
            while let Some(at) = cursor
                && hub.borrow().sinks.iter().any(|sink| sink.wants_usage())
            {
                // A worker that has ended has no allocations.
                let Ok(page) = worker.handle.list(at, Arc::clone(&all)).await else { break };
                cursor = page.next;
                let mut hub = hub.borrow_mut();
                for info in &page.allocations {
                    let event = Rc::new(hub.source.usage(index, info));
                    hub.sinks.iter_mut().filter(|sink| sink.wants_usage()).for_each(|sink| sink.take(&event));
                }
            }
        }
        let mut hub = hub.borrow_mut();
        hub.sinks.iter_mut().filter(|sink| sink.wants_usage()).for_each(|sink| sink.usage_is_complete());
    }
}
