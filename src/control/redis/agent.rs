//! Looks up users for the workers: one connection, on which look-ups do not wait for each other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::connection::{self, Connection, describe};
use super::protocol::Reply;
use super::{Secrets, Settings, Statistics};
use crate::auth::{LongTermKey, Secret};
use crate::control::log_interval::is_due;
use crate::turn::{DatabaseReply, DatabaseUnavailable};
use crate::worker::{Handle, LookedUp, Lookup};

/// The most users that are being looked up.
const MOST: usize = 1024;
/// The wait after the first failure, and the longest one.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often the secrets are read.
const SECRETS: Duration = Duration::from_secs(60);
/// The most secrets that are used. Each may be tried for a request.
const MOST_SECRETS: usize = 32;
const MALFORMED_KEY: &str = "the key of a user is not 32 hexadecimal digits";
/// The time from one log line about the same trouble to the next.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Looks up users.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) settings: watch::Receiver<Option<Arc<Settings>>>,
    pub(super) lookups: mpsc::Receiver<Lookup>,
    /// The mailboxes of the workers.
    pub(super) workers: Vec<Handle>,
    pub(super) secrets: mpsc::Sender<Secrets>,
    pub(super) statistics: Arc<Statistics>,
    pub(super) log: Log,
}

/// Why a server is no longer used.
enum Ended {
    /// There are other settings, or none.
    Settings,
    /// Control has ended.
    Control,
}

/// A look-up that waits for its reply.
#[derive(Debug)]
struct Wanted {
    username: Box<str>,
    workers: Vec<usize>,
    since: Instant,
}

/// A command that waits for its reply.
#[derive(Debug)]
enum Sent {
    User(Wanted),
    Secrets { since: Instant },
}

impl Sent {
    fn since(&self) -> Instant {
        match self {
            Self::User(Wanted { since, .. }) | Self::Secrets { since } => *since,
        }
    }
}

/// What was logged when.
#[derive(Debug, Default)]
pub(super) struct Log {
    unavailable: Option<Instant>,
    /// The last line said that the server is not available.
    is_unavailable: bool,
    /// The last line about a reply.
    reply: Option<Instant>,
}

impl Log {
    fn unavailable(&mut self, settings: &Settings, why: &str) {
        if is_due(&mut self.unavailable, LOG_INTERVAL) {
            self.is_unavailable = true;
            tracing::warn!(
                event = "redis-unavailable", redis = %settings.access.server, reason = why,
                "the Redis server cannot be used; users who are known from before go on"
            );
        }
    }

    fn connected(&mut self, settings: &Settings) {
        if self.unavailable.is_none() || std::mem::take(&mut self.is_unavailable) {
            tracing::info!(
                event = "redis-connected", redis = %settings.access.server, database = settings.access.database,
                "users are looked up in Redis"
            );
        }
    }

    fn reply(&mut self, settings: &Settings, what: &'static str, why: &str) {
        if is_due(&mut self.reply, LOG_INTERVAL) {
            tracing::warn!(
                event = "redis-reply", redis = %settings.access.server, what, reason = why,
                "the Redis server has sent something that cannot be used: check what it has, and with NOPERM that the user \
                 may do GET and SMEMBERS on turn/realm/*"
            );
        }
    }
}

impl Agent {
    /// Runs until control ends.
    pub(super) async fn run(mut self) {
        let mut sent = VecDeque::new();
        let mut before: Option<Arc<Settings>> = None;
        loop {
            let settings = self.settings.borrow_and_update().clone();
            if let Some(before) = &before
                && settings.as_ref().is_none_or(|settings| settings.source != before.source)
            {
                self.give_up(before, &mut sent);
            }
            before.clone_from(&settings);
            self.log = Log::default();
            let ended = match settings {
                Some(settings) => self.follow(&settings, &mut sent).await,
                None => self.wait_for_settings().await,
            };
            if let Ended::Control = ended {
                return;
            }
        }
    }

    /// Waits for other settings.
    async fn wait_for_settings(&mut self) -> Ended {
        if self.settings.changed().await.is_ok() { Ended::Settings } else { Ended::Control }
    }

    /// Reports look-ups without a reply as failed. A worker that has another database then asks that one.
    fn give_up(&mut self, settings: &Settings, sent: &mut VecDeque<Sent>) {
        for one in sent.drain(..) {
            if let Sent::User(wanted) = one {
                self.report(settings, wanted, Err(DatabaseUnavailable));
            }
        }
    }

    /// Uses a server until there are other settings. `sent` has the commands without a reply.
    async fn follow(&mut self, settings: &Settings, sent: &mut VecDeque<Sent>) -> Ended {
        let mut wait = FIRST_WAIT;
        // The secrets that control has; `None` if it has those of no server or of another one.
        let mut known: Option<Vec<Secret>> = None;
        loop {
            let opened = tokio::select! {
                ended = self.wait_for_settings() => return ended,
                opened = Connection::open(&settings.access, &connection::USERS) => opened,
            };
            let why = match opened {
                Ok(connection) => {
                    self.log.connected(settings);
                    self.statistics.connected.store(true, Ordering::Relaxed);
                    let result = self.serve(settings, connection, sent, &mut known, &mut wait).await;
                    self.statistics.connected.store(false, Ordering::Relaxed);
                    match result {
                        Ok(ended) => return ended,
                        Err(why) => why,
                    }
                }
                Err(why) => why,
            };
            self.log.unavailable(settings, &why);
            tokio::select! {
                ended = self.wait_for_settings() => return ended,
                () = sleep(wait) => {}
            }
            wait = (2 * wait).min(LONGEST_WAIT);
        }
    }

    /// Looks up users over a connection. The error is why the connection cannot be used any more. What was sent and has no
    /// reply stays in `sent`. A reply resets the `wait` for the next connection.
    async fn serve(
        &mut self,
        settings: &Settings,
        mut connection: Connection,
        sent: &mut VecDeque<Sent>,
        known: &mut Option<Vec<Secret>>,
        wait: &mut Duration,
    ) -> Result<Ended, String> {
        self.send_again(settings, &mut connection, sent);
        let mut secrets = interval(SECRETS);
        secrets.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let overdue = sent.front().map(|first| first.since() + settings.time_limit);
            let timer = async {
                match overdue {
                    Some(overdue) => sleep_until(overdue).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = self.settings.changed() => {
                    return Ok(if ended.is_ok() { Ended::Settings } else { Ended::Control });
                }
                reply = connection.reply() => {
                    let reply = reply?;
                    *wait = FIRST_WAIT;
                    match sent.pop_front() {
                        Some(Sent::User(wanted)) => self.deliver(settings, wanted, reply),
                        Some(Sent::Secrets { .. }) => self.use_secrets(settings, reply, known),
                        None => return Err("it has sent a reply without a command".to_owned()),
                    }
                }
                Some(lookup) = self.lookups.recv(), if sent.len() < MOST => {
                    look_up(settings, &mut connection, sent, lookup);
                }
                _ = secrets.tick() => {
                    connection.queue(&[b"SMEMBERS", settings.secrets_key().as_bytes()]);
                    sent.push_back(Sent::Secrets { since: Instant::now() });
                }
                () = timer => {
                    let seconds = settings.time_limit.as_secs();
                    return Err(format!("it does not respond within {seconds} seconds"));
                }
            }
        }
    }

    /// Sends again what has had no reply on an earlier connection, unless it is too old.
    fn send_again(&self, settings: &Settings, connection: &mut Connection, sent: &mut VecDeque<Sent>) {
        let now = Instant::now();
        let is_wanted =
            |one: &Sent| matches!(one, Sent::User(wanted) if now.duration_since(wanted.since) < settings.time_limit);
        let before = sent.len();
        sent.retain(is_wanted);
        self.statistics.failed.fetch_add((before - sent.len()) as u64, Ordering::Relaxed);
        for one in sent.iter() {
            if let Sent::User(wanted) = one {
                connection.queue(&[b"GET", settings.user_key(&wanted.username).as_bytes()]);
            }
        }
    }

    /// Tells the workers what the server has said about a user.
    fn deliver(&mut self, settings: &Settings, wanted: Wanted, reply: Reply) {
        let result = match &reply {
            Reply::Value(value) => {
                let key = str::from_utf8(value).ok().and_then(|text| LongTermKey::from_hex(text.trim()));
                if key.is_none() {
                    self.log.reply(settings, "key", MALFORMED_KEY);
                }
                Ok(key)
            }
            Reply::Nil => Ok(None),
            Reply::TooLong => {
                self.log.reply(settings, "key", MALFORMED_KEY);
                Ok(None)
            }
            reply => {
                self.log.reply(settings, "key", &describe(reply));
                Err(DatabaseUnavailable)
            }
        };
        self.report(settings, wanted, result);
    }

    fn report(&self, settings: &Settings, wanted: Wanted, result: DatabaseReply) {
        let Wanted { username, workers, .. } = wanted;
        let counter = match &result {
            Ok(Some(_)) => &self.statistics.found,
            Ok(None) => &self.statistics.absent,
            Err(DatabaseUnavailable) => &self.statistics.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        for worker in workers.iter().filter_map(|worker| self.workers.get(*worker)) {
            let (source, result) = (Arc::clone(&settings.source), result.clone());
            worker.looked_up(LookedUp { source, username: username.clone(), result });
        }
    }

    /// Passes the secrets to control if they have changed.
    fn use_secrets(&mut self, settings: &Settings, reply: Reply, known: &mut Option<Vec<Secret>>) {
        let Reply::Array(values) = reply else {
            return self.log.reply(settings, "secrets", &describe(&reply));
        };
        let count = values.len();
        let mut values: Vec<_> = values
            .into_iter()
            .filter_map(|value| match value {
                Reply::Value(value) => Some(value),
                _ => None,
            })
            .collect();
        if values.len() < count {
            self.log.reply(settings, "secrets", "one of them is longer than 4096 bytes, and is not used");
        }
        // The order of a set is arbitrary.
        values.sort_unstable_by(|one, other| one.as_slice().cmp(other.as_slice()));
        if values.len() > MOST_SECRETS {
            self.log.reply(settings, "secrets", "there are more than 32, of which the others are not used");
            values.truncate(MOST_SECRETS);
        }
        let secrets: Vec<Secret> = values.iter().filter_map(|value| Secret::new(value.as_slice()).ok()).collect();
        // Without room, control is busy, and gets them a minute later.
        if known.as_ref() != Some(&secrets)
            && self.secrets.try_send((Arc::clone(&settings.source), secrets.clone())).is_ok()
        {
            *known = Some(secrets);
        }
    }
}

/// Asks the server for a user, unless it has been asked.
fn look_up(settings: &Settings, connection: &mut Connection, sent: &mut VecDeque<Sent>, lookup: Lookup) {
    let Lookup { worker, username } = lookup;
    let asked = sent.iter_mut().find_map(|one| match one {
        Sent::User(wanted) if wanted.username == username => Some(wanted),
        _ => None,
    });
    match asked {
        Some(wanted) if wanted.workers.contains(&worker) => {}
        Some(wanted) => wanted.workers.push(worker),
        None => {
            connection.queue(&[b"GET", settings.user_key(&username).as_bytes()]);
            sent.push_back(Sent::User(Wanted { username, workers: vec![worker], since: Instant::now() }));
        }
    }
}
