//! `[webhook]`: sends the events of allocations to a receiver, in signed batches. docs/webhook.md describes what arrives.
//!
//! Everything runs on the thread `events`. An event goes into the spool at once; a task sends what is there, and removes it
//! when the receiver has taken it. So an event may arrive twice, but none is lost, and each batch is sent until it has
//! arrived before the next one is.

mod back_off;
mod request;
mod statistics;

use std::cell::RefCell;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::events::Sink;
use super::events::event::{Event, Kind, Source};
use super::events::queue::{Queue, Taken};
use super::log_interval::is_due;
use super::outbound;
use super::random;
use super::spool::{PushError, Spool};
use crate::clock;
use crate::config::{self, Config, WebhookEvent};
use crate::setting::{STATE_DIRECTORY, WEBHOOK_SPOOL};
use request::{Batch, Link, Refusal};

pub(super) use statistics::{Counts, Statistics};

/// The interval at which what waits is made to outlive a crash of the machine.
const SYNC: Duration = Duration::from_secs(1);
/// The time for the last events when the process stops. The caller waits a little longer.
const LAST_EVENTS: Duration = Duration::from_secs(4);
/// The wait after the spool could not be read.
const READ_AGAIN: Duration = Duration::from_secs(10);
/// The time after which the server tries batches of twice the size that the receiver has not taken.
const LARGER: Duration = Duration::from_secs(600);
/// The shortest time between two log lines about the same trouble.
const LOG: Duration = Duration::from_secs(60);
/// The time after which a failure that goes on is logged again.
const LOG_AGAIN: Duration = Duration::from_secs(600);

/// What the webhook needs of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    webhook: config::Webhook,
    /// A hash of `webhook.ca-file`.
    authorities: Option<[u8; 32]>,
    node: String,
    source: Source,
    /// The directory of the spool; `None`: it is in memory.
    directory: Option<PathBuf>,
}

impl Settings {
    /// Returns the settings; `None` without `[webhook]`.
    pub(super) fn of(config: &Config, source: &Source) -> Option<Self> {
        let webhook = config.webhook.clone()?;
        Some(Self {
            authorities: outbound::authorities(webhook.ca.as_deref()),
            webhook,
            node: config.node_name(),
            source: source.clone(),
            directory: config.state_directory.as_ref().map(|directory| directory.join("webhook")),
        })
    }

    fn wants(&self, kind: Kind) -> bool {
        let event = match kind {
            Kind::Started => WebhookEvent::Started,
            Kind::Usage => WebhookEvent::Usage,
            Kind::Ended => WebhookEvent::Ended,
            Kind::NodeStarted | Kind::NodeStopped | Kind::Lost => return true,
        };
        self.webhook.events.contains(&event)
    }
}

/// The sink of the thread `events`.
#[derive(Debug)]
pub(super) struct Webhook {
    shared: Rc<Shared>,
    sender: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

/// Changes the settings of a webhook that runs.
#[derive(Clone, Debug)]
pub(super) struct Handle(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    state: RefCell<State>,
    /// Wakes the task that sends.
    wake: Notify,
    statistics: Arc<Statistics>,
}

#[derive(Debug)]
struct State {
    /// `None`: nothing is sent or taken at present.
    settings: Option<Rc<Settings>>,
    /// Counts the changes of the settings.
    version: u64,
    /// Opened with the first settings, and then kept until the process ends.
    queue: Option<Queue>,
    /// Whether the last request has failed.
    is_away: bool,
    is_stopping: bool,
    logged: Logged,
}

/// When each kind of trouble was last logged.
#[derive(Debug, Default)]
struct Logged {
    full: Option<Instant>,
    /// Events that were dropped since then.
    dropped: u64,
    spool: Option<Instant>,
    damaged: u64,
}

impl Webhook {
    /// Starts the tasks. Must be called within a `LocalSet`.
    pub(super) fn start(statistics: Arc<Statistics>) -> (Self, Handle) {
        let state = State {
            settings: None,
            version: 0,
            queue: None,
            is_away: false,
            is_stopping: false,
            logged: Logged::default(),
        };
        let shared = Rc::new(Shared { state: RefCell::new(state), wake: Notify::new(), statistics });
        let sender = tokio::task::spawn_local(send(Rc::clone(&shared)));
        let keeper = tokio::task::spawn_local(keep(Rc::clone(&shared)));
        (Self { shared: Rc::clone(&shared), sender, keeper }, Handle(shared))
    }
}

impl Handle {
    /// Follows the configuration. What waits is kept, also without `[webhook]`.
    pub(super) fn configure(&self, settings: Option<Settings>) {
        let mut state = self.0.state.borrow_mut();
        if state.settings.as_deref() == settings.as_ref() {
            return;
        }
        self.0.statistics.is_configured.store(settings.is_some(), Ordering::Relaxed);
        if let Some(settings) = &settings {
            match &mut state.queue {
                Some(queue) => queue.set_limit(settings.webhook.spool),
                None => state.queue = Some(open(settings)),
            }
        } else if let Some(queue) = &mut state.queue {
            queue.clear_usage();
        }
        state.settings = settings.map(Rc::new);
        state.version += 1;
        state.is_away = false;
        drop(state);
        self.0.publish();
        self.0.wake.notify_one();
    }
}

/// Opens the spool. If that fails, it is in memory.
fn open(settings: &Settings) -> Queue {
    let (spool, why) = Spool::open_or_in_memory(settings.directory.as_deref(), settings.webhook.spool);
    if let Some(error) = why {
        tracing::error!(
            event = "webhook-spool-unusable",
            error,
            "events that wait for the receiver of the webhook are in memory only, and lost when the server stops. Remove \
             the cause, and restart the server"
        );
    }
    let (queue, note) = Queue::new(spool);
    if let Err(error) = note {
        tracing::warn!(
            event = "webhook-spool-failed", %error,
            "the sums of events that did not fit into the spool of the webhook cannot be read, so they are lost"
        );
    }
    queue
}

impl Sink for Webhook {
    fn take(&mut self, event: &Rc<Event>) {
        let mut state = self.shared.state.borrow_mut();
        let State { settings, queue: Some(queue), is_away, logged, .. } = &mut *state else { return };
        if !settings.as_ref().is_some_and(|settings| settings.wants(event.kind)) {
            queue.forget(event);
            return;
        }
        if event.kind == Kind::Usage {
            if !*is_away {
                queue.push_usage(event);
            }
        } else if let Err(error) = queue.push(event) {
            logged.dropped += 1;
            if is_due(&mut logged.full, LOG) {
                let advice = match error {
                    PushError::Full => format!("make the receiver take them, or raise `{WEBHOOK_SPOOL}`"),
                    PushError::Io(_) => "free some space, or remove what else prevents writing".to_owned(),
                };
                tracing::warn!(
                    event = "webhook-dropped", %error, count = std::mem::take(&mut logged.dropped),
                    "events do not fit into the spool of the webhook, so one `events.lost` gets their sums: {advice}"
                );
            }
        }
        drop(state);
        self.shared.wake.notify_one();
    }

    fn wants_usage(&self) -> bool {
        let state = self.shared.state.borrow();
        !state.is_away && state.settings.as_ref().is_some_and(|settings| settings.wants(Kind::Usage))
    }

    fn usage_is_complete(&mut self) {
        if let Some(queue) = &mut self.shared.state.borrow_mut().queue {
            queue.usage_is_complete();
        }
    }

    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()>>> {
        self.shared.state.borrow_mut().is_stopping = true;
        self.shared.keep();
        self.shared.wake.notify_one();
        Box::pin(async move {
            let Self { shared, mut sender, keeper } = *self;
            keeper.abort();
            if timeout(LAST_EVENTS, &mut sender).await.is_err() {
                sender.abort();
            }
            if let Some(queue) = &mut shared.state.borrow_mut().queue {
                queue.give_up();
            }
            shared.keep();
            shared.log_rest();
        })
    }
}

impl Shared {
    /// Makes what waits outlive a crash of the machine, and publishes the numbers.
    fn keep(&self) {
        let mut state = self.state.borrow_mut();
        let State { queue: Some(queue), logged, .. } = &mut *state else { return };
        let result = queue.sync();
        log_spool_failure(result, logged);
        let damage = queue.spool().damage();
        if damage.torn + damage.lost > logged.damaged {
            logged.damaged = damage.torn + damage.lost;
            tracing::warn!(
                event = "webhook-damaged",
                torn = damage.torn,
                lost = damage.lost,
                "events in the spool of the webhook cannot be read, because a crash has interrupted writing or the disk \
                 fails: their allocations have no end at the receiver"
            );
        }
        drop(state);
        self.publish();
    }

    fn publish(&self) {
        let state = self.state.borrow();
        let Some(queue) = &state.queue else { return };
        let set = |counter: &std::sync::atomic::AtomicU64, value| counter.store(value, Ordering::Relaxed);
        set(&self.statistics.queued, queue.waiting());
        set(&self.statistics.queued_bytes, queue.spool().bytes());
        set(&self.statistics.dropped, queue.dropped());
    }

    /// Logs what is left when the process ends.
    fn log_rest(&self) {
        let state = self.state.borrow();
        let Some(queue) = &state.queue else { return };
        match queue.spool().records() {
            0 => {}
            count if queue.spool().is_on_disk() => tracing::info!(
                event = "webhook-unsent",
                count,
                "the receiver of the webhook has not taken all events: the next start sends the others"
            ),
            count => tracing::warn!(
                event = "webhook-unsent",
                count,
                "the receiver of the webhook has not taken all events: the others are lost, because there is no \
                 `{STATE_DIRECTORY}`"
            ),
        }
    }

    /// Returns the settings and their version.
    fn settings(&self) -> (Option<Rc<Settings>>, u64) {
        let state = self.state.borrow();
        (state.settings.clone(), state.version)
    }

    fn is_stopping(&self) -> bool {
        self.state.borrow().is_stopping
    }

    fn waiting(&self) -> u64 {
        self.state.borrow().queue.as_ref().map_or(0, Queue::waiting)
    }

    /// Waits for a time, or until there are other settings or the process stops.
    async fn pause(&self, time: Duration, version: u64) {
        let end = Instant::now() + time;
        while self.state.borrow().version == version && !self.is_stopping() {
            tokio::select! {
                () = sleep_until(end) => return,
                () = self.wake.notified() => {}
            }
        }
    }

    /// Waits until there is a whole batch, or the first event has waited long enough.
    async fn gather(&self, settings: &Settings, version: u64) {
        let end = Instant::now() + settings.webhook.interval;
        let most = settings.webhook.batch as u64;
        while self.waiting() < most && self.state.borrow().version == version && !self.is_stopping() {
            tokio::select! {
                () = sleep_until(end) => return,
                () = self.wake.notified() => {}
            }
        }
    }
}

fn log_spool_failure(result: std::io::Result<()>, logged: &mut Logged) {
    if let Err(error) = result
        && is_due(&mut logged.spool, LOG)
    {
        tracing::warn!(
            event = "webhook-spool-failed", %error,
            "the spool of the webhook cannot be read or written, so events may be lost in a crash, or sent again: check \
             the disk"
        );
    }
}

async fn keep(shared: Rc<Shared>) {
    loop {
        tokio::time::sleep(SYNC).await;
        shared.keep();
    }
}

/// A batch on its way, until the receiver has taken it.
struct Outgoing {
    batch: Batch,
    taken: Taken,
}

/// What the task knows about the failures.
#[derive(Default)]
struct Trouble {
    /// Those since the last success.
    failures: u32,
    /// Whether one of them was logged.
    is_logged: bool,
    /// When one was last logged, and its message.
    logged: Option<Instant>,
    message: String,
}

/// The most events of a batch: fewer than the configured ones if the receiver has not taken as many.
struct Size {
    most: usize,
    /// When more are tried.
    larger: Instant,
}

impl Size {
    fn reduce(&mut self, most: usize) {
        *self = Self { most, larger: Instant::now() + LARGER };
    }

    fn most(&mut self) -> usize {
        if self.most < usize::MAX && Instant::now() >= self.larger {
            self.reduce(self.most.saturating_mul(2));
        }
        self.most
    }
}

/// Sends what waits until the process stops.
async fn send(shared: Rc<Shared>) {
    let mut outgoing: Option<Outgoing> = None;
    let mut trouble = Trouble::default();
    let mut size = Size { most: usize::MAX, larger: Instant::now() };
    let mut link = Link::default();
    let mut known = 0;
    loop {
        let (settings, version) = shared.settings();
        link.follow(version);
        if std::mem::replace(&mut known, version) != version {
            // They may be about another receiver.
            trouble = Trouble::default();
            size.most = usize::MAX;
        }
        let Some(settings) = settings else {
            // What it has is still in the spool.
            outgoing = None;
            if shared.is_stopping() {
                return;
            }
            shared.wake.notified().await;
            continue;
        };
        if outgoing.is_none() {
            if shared.waiting() == 0 {
                if shared.is_stopping() {
                    return;
                }
                tokio::select! {
                    () = shared.wake.notified() => {}
                    never = link.close_when_idle() => match never {},
                }
                continue;
            }
            tokio::select! {
                () = shared.gather(&settings, version) => {}
                never = link.close_when_idle() => match never {},
            }
            let next = shared.next(&settings, size.most());
            outgoing = next.unwrap_or_else(|error| {
                log_spool_failure(Err(error), &mut shared.state.borrow_mut().logged);
                None
            });
        }
        let Some(sent) = &outgoing else {
            if shared.is_stopping() {
                return;
            }
            if shared.waiting() > 0 {
                // The disk fails, or what was there is damaged.
                shared.pause(READ_AGAIN, version).await;
            }
            continue;
        };
        match link.post(&settings.webhook, &sent.batch).await {
            Ok(()) => {
                shared.succeeded(sent, &settings, &mut trouble);
                outgoing = None;
                link.settle().await;
            }
            Err(refusal) if refusal.is_too_large && sent.taken.events.len() > 1 => {
                // The receiver is there, and takes the half at once.
                shared.statistics.failed.fetch_add(1, Ordering::Relaxed);
                size.reduce(sent.taken.events.len() / 2);
                outgoing = None;
            }
            Err(refusal) => {
                trouble.failures = trouble.failures.saturating_add(1);
                let wait = back_off::wait(trouble.failures, &refusal, random::fraction());
                shared.failed(&refusal, &settings, wait, &mut trouble);
                if shared.is_stopping() {
                    return;
                }
                shared.pause(wait, version).await;
            }
        }
    }
}

impl Shared {
    fn next(&self, settings: &Settings, most: usize) -> std::io::Result<Option<Outgoing>> {
        let mut state = self.state.borrow_mut();
        let Some(queue) = &mut state.queue else { return Ok(None) };
        let taken = queue.take(settings.webhook.batch.min(most), &settings.source)?;
        Ok(taken.map(|taken| Outgoing { batch: Batch::new(&settings.node, &taken.events), taken }))
    }

    fn succeeded(&self, sent: &Outgoing, settings: &Settings, trouble: &mut Trouble) {
        let mut state = self.state.borrow_mut();
        state.is_away = false;
        if let State { queue: Some(queue), logged, .. } = &mut *state {
            log_spool_failure(queue.acknowledge(&sent.taken), logged);
        }
        drop(state);
        let statistics = &self.statistics;
        statistics.sent.fetch_add(sent.taken.events.len() as u64, Ordering::Relaxed);
        statistics.succeeded.fetch_add(1, Ordering::Relaxed);
        statistics.failures.store(0, Ordering::Relaxed);
        statistics.last_success.store(clock::unix_seconds(), Ordering::Relaxed);
        self.publish();
        let failures = std::mem::take(&mut trouble.failures);
        if std::mem::take(&mut trouble.is_logged) {
            tracing::info!(
                event = "webhook-recovered",
                receiver = settings.webhook.origin(),
                failures,
                queued = self.waiting(),
                "the receiver of the webhook takes events again"
            );
        }
    }

    fn failed(&self, refusal: &Refusal, settings: &Settings, wait: Duration, trouble: &mut Trouble) {
        let mut state = self.state.borrow_mut();
        state.is_away = true;
        if let Some(queue) = &mut state.queue {
            queue.clear_usage();
        }
        drop(state);
        self.statistics.failed.fetch_add(1, Ordering::Relaxed);
        self.statistics.failures.store(trouble.failures.into(), Ordering::Relaxed);
        self.publish();
        let goes_on = trouble.is_logged && trouble.message == refusal.message;
        if is_due(&mut trouble.logged, if goes_on { LOG_AGAIN } else { LOG }) {
            trouble.is_logged = true;
            trouble.message.clone_from(&refusal.message);
            tracing::warn!(
                event = "webhook-failed",
                receiver = settings.webhook.origin(),
                error = refusal.message,
                failures = trouble.failures,
                queued = self.waiting(),
                wait = wait.as_secs(),
                "the receiver of the webhook has not taken events. They are kept, and sent again later"
            );
        }
    }
}
