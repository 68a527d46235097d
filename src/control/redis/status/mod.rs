//! `[redis-status]`: the status and the traffic of allocations, in the keys and channels of coturn's `redis-statsdb`.
//!
//! It is a sink of the thread `events`. A change waits in memory until Redis has taken it. While Redis is away, changes that
//! do not fit are dropped, the ends of allocations last.

mod change;
mod queue;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::connection::{self, Connection, describe};
use super::protocol::Reply;
use crate::config::{Config, RedisAccess};
use crate::control::events::event::{Event, Kind};
use crate::control::events::{Refresh, Sink};
use crate::control::log_interval::is_due;
use change::{Change, Sent};
use queue::Queue;

/// The most changes whose replies are awaited at a time.
const BATCH: usize = 128;
/// The longest wait for a reply.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// The wait after the first failure, and the longest one.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The time for the last changes when the process stops. The caller waits a little longer.
const LAST_CHANGES: Duration = Duration::from_secs(4);
/// The time from one log line about the same trouble to the next.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What the sink needs of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) struct Settings {
    access: RedisAccess,
    realm: String,
}

impl Settings {
    /// Returns the settings; `None` without `[redis-status]`.
    pub(in crate::control) fn of(config: &Config) -> Option<Self> {
        Some(Self { access: config.redis_status.clone()?, realm: config.realm.clone() })
    }
}

/// What the sink counts. The HTTP server reads it.
#[derive(Debug, Default)]
pub(in crate::control) struct Statistics {
    is_configured: AtomicBool,
    is_connected: AtomicBool,
    queued: AtomicU64,
    sent: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
}

/// The numbers at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct Counts {
    pub(in crate::control) is_connected: bool,
    /// Changes that wait.
    pub(in crate::control) queued: u64,
    /// Changes that Redis has taken.
    pub(in crate::control) sent: u64,
    /// Changes for which Redis has refused a command.
    pub(in crate::control) refused: u64,
    /// Changes that did not fit.
    pub(in crate::control) dropped: u64,
}

impl Statistics {
    /// Returns the numbers; `None` without `[redis-status]`.
    pub(in crate::control) fn read(&self) -> Option<Counts> {
        self.is_configured.load(Ordering::Relaxed).then(|| Counts {
            is_connected: self.is_connected.load(Ordering::Relaxed),
            queued: self.queued.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        })
    }
}

/// The sink of the thread `events`.
pub(in crate::control) struct Status {
    shared: Rc<Shared>,
    sender: JoinHandle<()>,
}

/// Changes the settings of a sink that runs.
pub(in crate::control) struct Handle(Rc<Shared>);

struct Shared {
    settings: watch::Sender<Option<Rc<Settings>>>,
    queue: RefCell<Queue>,
    /// What Redis has not taken of the last batch.
    sent: RefCell<VecDeque<Sent>>,
    is_stopping: watch::Sender<bool>,
    /// Wakes the task that sends.
    wake: Notify,
    statistics: Arc<Statistics>,
    log: RefCell<Log>,
}

/// What was logged when.
#[derive(Default)]
struct Log {
    unavailable: Option<Instant>,
    /// The server was a replica when it was last used.
    is_replica: bool,
    /// The last line said that the server is not available.
    is_unavailable: bool,
    refused: Option<Instant>,
    dropped: Option<Instant>,
    /// Changes that were dropped since then.
    dropped_since: u64,
}

impl Status {
    /// Starts the task that sends. Must be called within a `LocalSet`.
    pub(in crate::control) fn start(statistics: Arc<Statistics>) -> (Self, Handle) {
        let shared = Rc::new(Shared {
            settings: watch::Sender::new(None),
            queue: RefCell::default(),
            sent: RefCell::default(),
            is_stopping: watch::Sender::new(false),
            wake: Notify::new(),
            statistics,
            log: RefCell::default(),
        });
        let sender = tokio::task::spawn_local(send(Rc::clone(&shared)));
        (Self { shared: Rc::clone(&shared), sender }, Handle(shared))
    }
}

impl Handle {
    /// Follows the configuration. Without `[redis-status]`, what waits is dropped.
    pub(in crate::control) fn configure(&self, settings: Option<Settings>) {
        self.0.statistics.is_configured.store(settings.is_some(), Ordering::Relaxed);
        if settings.is_none() {
            self.0.put_back();
            self.0.queue.borrow_mut().clear();
            self.0.publish();
        }
        self.0.settings.send_if_modified(|present| {
            let is_other = present.as_deref() != settings.as_ref();
            if is_other {
                *present = settings.map(Rc::new);
            }
            is_other
        });
    }
}

impl Sink for Status {
    fn take(&mut self, event: &Rc<Event>) {
        let Some(session) = event.session else { return };
        let user = || event.user.as_str().into();
        let change = match (event.kind, event.start) {
            (Kind::Started, Some((tuple, lifetime))) => {
                Change::Status { session, user: user(), is_new: true, tuple, lifetime }
            }
            (Kind::Usage, _) => Change::Traffic { session, user: user(), traffic: event.traffic },
            (Kind::Ended, _) => Change::Ended { session, user: user(), traffic: event.traffic },
            _ => return,
        };
        self.shared.push(change);
    }

    fn take_refresh(&mut self, refresh: &Refresh) {
        let Refresh { session, ref user, tuple, lifetime } = *refresh;
        self.shared.push(Change::Status { session, user: user.as_str().into(), is_new: false, tuple, lifetime });
    }

    fn wants_usage(&self) -> bool {
        self.shared.statistics.is_connected.load(Ordering::Relaxed)
    }

    fn usage_is_complete(&mut self) {
        self.shared.queue.borrow_mut().reported.complete();
    }

    fn finish(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()>>> {
        self.shared.is_stopping.send_replace(true);
        Box::pin(async move {
            let Self { shared, mut sender } = *self;
            if timeout(LAST_CHANGES, &mut sender).await.is_err() {
                sender.abort();
            }
            shared.put_back();
            let count = shared.queue.borrow().len();
            if count > 0 {
                tracing::warn!(
                    event = "redis-status-unsent",
                    count,
                    "Redis has not taken all changes of the status of allocations; they are lost"
                );
            }
        })
    }
}

/// The pauses before the next connection.
struct Waits {
    failure: Duration,
    /// Of a server that is a replica, which takes a part of the changes.
    replica: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { failure: FIRST_WAIT, replica: FIRST_WAIT }
    }
}

/// Why a server is no longer used.
enum Ended {
    /// There are other settings, or none.
    Settings,
    /// The process stops.
    Stop,
}

impl Shared {
    fn push(&self, change: Change) {
        if self.settings.borrow().is_none() {
            self.queue.borrow_mut().forget(&change);
            return;
        }
        let dropped = self.queue.borrow_mut().push(change);
        if dropped > 0 {
            self.statistics.dropped.fetch_add(dropped, Ordering::Relaxed);
            let mut log = self.log.borrow_mut();
            log.dropped_since += dropped;
            if is_due(&mut log.dropped, LOG_INTERVAL) {
                tracing::warn!(
                    event = "redis-status-dropped",
                    count = std::mem::take(&mut log.dropped_since),
                    "changes of the status of allocations do not fit, because Redis does not take them"
                );
            }
        }
        self.publish();
        self.wake.notify_one();
    }

    fn publish(&self) {
        self.statistics.queued.store(self.queue.borrow().len(), Ordering::Relaxed);
    }

    fn unavailable(&self, settings: &Settings, why: &str) {
        let mut log = self.log.borrow_mut();
        if is_due(&mut log.unavailable, LOG_INTERVAL) {
            log.is_unavailable = true;
            tracing::warn!(
                event = "redis-status-unavailable", redis = %settings.access.server, reason = why,
                "the Redis server does not take the status of allocations; changes wait for it"
            );
        }
    }

    fn refused(&self, settings: &Settings, why: &str) {
        self.statistics.refused.fetch_add(1, Ordering::Relaxed);
        if is_due(&mut self.log.borrow_mut().refused, LOG_INTERVAL) {
            tracing::warn!(
                event = "redis-status-refused", redis = %settings.access.server, reason = why,
                "the Redis server refuses commands for the status of allocations, which are not sent again: with OOM raise \
                 its `maxmemory`, with NOPERM allow its user SET, DEL and PUBLISH on turn/realm/*, with READONLY name \
                 the primary server"
            );
        }
    }

    fn connected(&self, settings: &Settings) {
        let mut log = self.log.borrow_mut();
        if log.is_replica {
            // A change that it takes will show that it is none any more.
            return;
        }
        if log.unavailable.is_none() || std::mem::take(&mut log.is_unavailable) {
            tracing::info!(
                event = "redis-status-connected", redis = %settings.access.server,
                database = settings.access.database, "the status of allocations is written to Redis"
            );
        }
    }

    /// Sends changes over a connection.
    ///
    /// # Errors
    /// Why it cannot be used any more. The changes without a response are in `sent`. A response resets the `waits` for the
    /// next connection.
    async fn serve(&self, connection: &mut Connection, settings: &Settings, waits: &mut Waits) -> Result<(), String> {
        let opened = Instant::now();
        loop {
            self.put_back();
            let batch = self.queue.borrow_mut().take(BATCH);
            if batch.is_empty() {
                if *self.is_stopping.borrow() {
                    return Ok(());
                }
                let mut is_stopping = self.is_stopping.subscribe();
                tokio::select! {
                    () = self.wake.notified() => continue,
                    _ = is_stopping.wait_for(|is_stopping| *is_stopping) => continue,
                    reply = connection.reply() => {
                        reply?;
                        return Err("it has sent a reply without a command".to_owned());
                    }
                }
            }
            let replies: Vec<(bool, usize)> =
                batch.iter().map(|sent| (sent.has_key(), sent.write(connection, &settings.realm))).collect();
            self.sent.replace(batch.into());
            let mut is_replica = false;
            for (has_key, count) in replies {
                let refusal = replies_of_one(connection, count).await?;
                waits.failure = FIRST_WAIT;
                if let Some(sent) = self.sent.borrow_mut().pop_front() {
                    self.queue.borrow_mut().done(&sent);
                }
                match refusal {
                    None => {
                        self.statistics.sent.fetch_add(1, Ordering::Relaxed);
                        if has_key {
                            waits.replica = FIRST_WAIT;
                            self.is_primary(settings);
                        }
                    }
                    Some(why) => {
                        is_replica |= why == "READONLY";
                        self.refused(settings, &why);
                    }
                }
            }
            self.publish();
            if is_replica && opened.elapsed() >= waits.replica && !*self.is_stopping.borrow() {
                // It may have become one a moment ago, and a new connection leads to the primary server.
                self.log.borrow_mut().is_replica = true;
                waits.replica = (2 * waits.replica).min(LONGEST_WAIT);
                return Err("it is a replica (READONLY)".to_owned());
            }
        }
    }

    /// Notes that the server takes changes of keys.
    fn is_primary(&self, settings: &Settings) {
        if std::mem::take(&mut self.log.borrow_mut().is_replica) {
            self.connected(settings);
        }
    }

    /// Lets changes wait again that were sent and have no response.
    fn put_back(&self) {
        self.queue.borrow_mut().put_back(self.sent.take());
        self.publish();
    }

    /// Uses a server until there are other settings or the process stops.
    async fn follow(&self, settings: &Settings, changes: &mut watch::Receiver<Option<Rc<Settings>>>) -> Ended {
        let mut waits = Waits::default();
        let mut is_stopping = self.is_stopping.subscribe();
        loop {
            let opened = tokio::select! {
                _ = changes.changed() => return Ended::Settings,
                opened = Connection::open(&settings.access, &connection::STATUS) => opened,
            };
            let why = match opened {
                Ok(mut connection) => {
                    self.connected(settings);
                    self.statistics.is_connected.store(true, Ordering::Relaxed);
                    let served = tokio::select! {
                        _ = changes.changed() => None,
                        result = self.serve(&mut connection, settings, &mut waits) => Some(result),
                    };
                    self.statistics.is_connected.store(false, Ordering::Relaxed);
                    self.queue.borrow_mut().reported.interrupt();
                    self.put_back();
                    match served {
                        None => return Ended::Settings,
                        Some(Ok(())) => return Ended::Stop,
                        Some(Err(why)) => why,
                    }
                }
                Err(why) => why,
            };
            self.unavailable(settings, &why);
            if *is_stopping.borrow() {
                return Ended::Stop;
            }
            tokio::select! {
                _ = changes.changed() => return Ended::Settings,
                // The last changes get one more attempt.
                _ = is_stopping.changed() => {}
                () = sleep(waits.failure) => {}
            }
            waits.failure = (2 * waits.failure).min(LONGEST_WAIT);
        }
    }
}

/// Waits for the replies to the commands of one change. Returns why Redis has refused one: the others of the change were
/// carried out, so that none is sent again.
///
/// # Errors
/// Why the connection cannot be used, or not yet.
async fn replies_of_one(connection: &mut Connection, count: usize) -> Result<Option<String>, String> {
    let mut refusal = None;
    for _ in 0..count {
        match timeout(TIME_LIMIT, connection.reply()).await {
            Ok(Ok(reply @ Reply::Error(_))) => {
                let why = describe(&reply);
                if ["NOAUTH", "LOADING", "BUSY", "MASTERDOWN"].contains(&why.as_str()) {
                    return Err(format!("it refuses all commands ({why})"));
                }
                // A replica has to be left, whatever else is wrong.
                if why == "READONLY" || refusal.is_none() {
                    refusal = Some(why);
                }
            }
            Ok(reply) => drop(reply?),
            Err(_) => return Err(format!("it does not respond within {} seconds", TIME_LIMIT.as_secs())),
        }
    }
    Ok(refusal)
}

impl Shared {
    /// The next failure is logged at once.
    fn forget_logged(&self) {
        let mut log = self.log.borrow_mut();
        (log.unavailable, log.is_unavailable, log.is_replica, log.refused) = Default::default();
    }
}

/// Sends what waits until the process stops.
async fn send(shared: Rc<Shared>) {
    let mut changes = shared.settings.subscribe();
    let mut is_stopping = shared.is_stopping.subscribe();
    loop {
        let settings = changes.borrow_and_update().clone();
        // They may be about another server.
        shared.forget_logged();
        let ended = match settings {
            Some(settings) => shared.follow(&settings, &mut changes).await,
            None => tokio::select! {
                _ = changes.changed() => Ended::Settings,
                _ = is_stopping.wait_for(|is_stopping| *is_stopping) => Ended::Stop,
            },
        };
        if let Ended::Stop = ended {
            return;
        }
    }
}
