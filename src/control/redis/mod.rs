//! Users and secrets of a Redis or Valkey server, as coturn keeps them, on a thread of its own: a server that does not
//! respond must hold up neither packets nor control.
//!
//! A worker asks for a user over a bounded channel, and gets the response through its mailbox. The secrets go to control,
//! which puts them into the snapshot.

mod agent;
mod check;
mod connection;
mod protocol;
pub(super) mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::auth::Secret;
use crate::config::{Config, RedisAccess};
use crate::net::background;
use crate::worker::{Handle, Lookup};
use agent::{Agent, Log};

pub(crate) use check::{Found, check, check_status};

/// What the thread needs of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    access: RedisAccess,
    time_limit: Duration,
    realm: String,
    /// Identifies the database and the realm.
    source: Arc<str>,
}

impl Settings {
    fn of(config: &Config) -> Option<Self> {
        let redis = config.auth.redis.as_ref()?;
        Some(Self {
            access: redis.access.clone(),
            time_limit: redis.time_limit,
            realm: config.realm.clone(),
            source: source(config)?,
        })
    }

    /// Returns the name of the key of a user.
    fn user_key(&self, username: &str) -> String {
        format!("turn/realm/{}/user/{username}/key", self.realm)
    }

    /// Returns the name of the set of secrets.
    fn secrets_key(&self) -> String {
        format!("turn/realm/{}/secret", self.realm)
    }
}

/// Returns what identifies the database and the realm of a configuration.
pub(super) fn source(config: &Config) -> Option<Arc<str>> {
    let redis = config.auth.redis.as_ref()?;
    Some(format!("{} {} {}", redis.access.server, redis.access.database, config.realm).into())
}

/// The secrets of a database, and what identifies it.
pub(super) type Secrets = (Arc<str>, Vec<Secret>);

/// What the thread has done. It alone writes.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    found: AtomicU64,
    absent: AtomicU64,
    failed: AtomicU64,
    connected: AtomicBool,
}

impl Statistics {
    /// Returns the number of look-ups by their result.
    pub(super) fn lookups(&self) -> [(&'static str, u64); 3] {
        [("found", &self.found), ("absent", &self.absent), ("failed", &self.failed)]
            .map(|(label, counter)| (label, counter.load(Ordering::Relaxed)))
    }

    /// Returns whether there is a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }
}

/// The thread `redis`, which runs from the first configuration with `[auth.redis]` until the process ends.
#[derive(Debug)]
pub(super) struct Redis {
    settings: watch::Sender<Option<Arc<Settings>>>,
    secrets: mpsc::Receiver<Secrets>,
    /// Until the thread is started.
    agent: Option<Agent>,
}

impl Redis {
    pub(super) fn new(lookups: mpsc::Receiver<Lookup>, workers: Vec<Handle>, statistics: Arc<Statistics>) -> Self {
        let (settings, received) = watch::channel(None);
        let (sender, secrets) = mpsc::channel(1);
        let log = Log::default();
        let agent = Agent { settings: received, lookups, workers, secrets: sender, statistics, log };
        Self { settings, secrets, agent: Some(agent) }
    }

    /// Follows the configuration of the start, and then each one that the operator loads.
    pub(super) fn configure(&mut self, config: &Config) {
        let settings = Settings::of(config).map(Arc::new);
        if settings.is_some()
            && let Some(agent) = self.agent.take()
            && let Err(error) = background::start("redis", move || run(agent))
        {
            tracing::error!(event = "redis-ended", %error, "cannot start the thread for Redis; restart the server");
        }
        self.settings.send_if_modified(|current| {
            let is_other = *current != settings;
            *current = settings;
            is_other
        });
    }

    /// Waits for secrets that the workers have to accept. Cancel-safe.
    pub(super) async fn secrets(&mut self) -> Secrets {
        match self.secrets.recv().await {
            Some(secrets) => secrets,
            // The thread has ended.
            None => std::future::pending().await,
        }
    }
}

async fn run(agent: Agent) {
    if let Err(error) = tokio::spawn(agent.run()).await {
        tracing::error!(
            event = "redis-ended", %error,
            "the thread for Redis has ended, so that users are no longer looked up; restart the server"
        );
    }
}
