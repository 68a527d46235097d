//! A cluster of NATS servers, and what it stores.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use async_nats::jetstream::{self, Context, stream};
use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt as _;
use serde_json::Value;
use turnserver::clock::Clock;

use crate::cluster::{Cluster, OPEN, SERVERS};
use crate::support::TIMEOUT;

/// A cluster of three servers with JetStream. Dropping it kills them.
pub(crate) struct Engine {
    cluster: Cluster,
    runtime: tokio::runtime::Runtime,
    login: Option<(String, String)>,
}

impl Engine {
    /// Starts the cluster, and waits until it stores what it gets.
    pub(crate) fn start() -> Self {
        Self::start_with(OPEN, None)
    }

    /// The same with the configuration of the first server, and the user and password of the test.
    pub(crate) fn start_with(config: &'static str, login: Option<(&str, &str)>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
        let engine = Self { cluster: Cluster::start(config), runtime, login };
        engine.wait_until_it_stores();
        engine
    }

    /// Starts a server that does not run.
    pub(crate) fn restart(&mut self, index: usize) {
        self.cluster.restart(index);
    }

    /// Kills a server.
    pub(crate) fn kill(&mut self, index: usize) {
        self.cluster.kill(index);
    }

    /// Kills all servers, removes what they have stored, and starts them again.
    pub(crate) fn lose_everything(&mut self) {
        self.cluster.lose_everything();
        self.wait_until_it_stores();
    }

    /// Kills all servers, copies what they have stored, and starts them again.
    pub(crate) fn back_up(&mut self) {
        self.cluster.back_up();
        self.wait_until_it_stores();
    }

    /// Kills all servers, puts back what they had stored at the time of the backup, and starts them again.
    pub(crate) fn roll_back(&mut self) {
        self.cluster.roll_back();
        self.wait_until_it_stores();
    }

    /// Kills the leader of a stream. Returns its index.
    pub(crate) fn kill_leader(&mut self, stream: &str) -> usize {
        let leader = self.run(async |jetstream| {
            let mut stream = jetstream.get_stream(stream).await.unwrap();
            stream.info().await.unwrap().cluster.clone().unwrap().leader.unwrap()
        });
        let index = leader.strip_prefix("engine-").unwrap().parse().unwrap();
        self.kill(index);
        index
    }

    /// Returns what the servers have logged about a user who tried what is not permitted.
    pub(crate) fn violations(&self, user: &str) -> Vec<String> {
        let user = format!(" Violation - User \"{user}\"");
        let logs = self.cluster.logs();
        logs.filter(|line| line.contains(&user)).collect()
    }

    fn wait_until_it_stores(&self) {
        let clock = Clock::start();
        loop {
            let stored = self.run(async |jetstream| {
                let config =
                    stream::Config { name: "probe".to_owned(), num_replicas: SERVERS, ..stream::Config::default() };
                jetstream.get_or_create_stream(config).await.map(drop).map_err(|error| error.to_string())
            });
            match stored {
                Ok(()) => break,
                Err(error) => assert!(clock.elapsed() < TIMEOUT, "{error}"),
            }
        }
        self.run(async |jetstream| jetstream.delete_stream("probe").await.map(drop).unwrap());
    }

    /// Runs something with a connection of its own.
    pub(crate) fn run<T>(&self, work: impl AsyncFnOnce(Context) -> T) -> T {
        match &self.login {
            Some((user, password)) => self.run_as(user, password, async |_, jetstream| work(jetstream).await),
            None => self.run_with(options(), async |_, jetstream| work(jetstream).await),
        }
    }

    /// Runs something with a connection of a user, whose inboxes have the prefix of the sample configuration.
    pub(crate) fn run_as<T>(&self, user: &str, password: &str, work: impl AsyncFnOnce(Client, Context) -> T) -> T {
        let options = options().custom_inbox_prefix(format!("_INBOX_turn_{user}"));
        self.run_with(options.user_and_password(user.to_owned(), password.to_owned()), work)
    }

    /// Runs something on the runtime of the connections.
    pub(crate) fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    fn run_with<T>(&self, options: ConnectOptions, work: impl AsyncFnOnce(Client, Context) -> T) -> T {
        self.runtime.block_on(async {
            let servers: Vec<String> = (0..SERVERS).map(|index| format!("127.0.0.1:{}", 4222 + index)).collect();
            let clock = Clock::start();
            let client = loop {
                match options.clone().connect(servers.clone()).await {
                    Ok(client) => break client,
                    // The servers have just started.
                    Err(error) => assert!(clock.elapsed() < TIMEOUT, "{error}"),
                }
                tokio::task::yield_now().await;
            };
            work(client.clone(), jetstream::new(client)).await
        })
    }

    /// Returns the events of the stream so far, each as often as it is there.
    pub(crate) fn events(&self) -> Vec<Value> {
        // After a restart, the engine needs a while to respond.
        self.run(async |jetstream| read(&jetstream).await.unwrap_or_default())
    }

    /// Waits until the events of the stream satisfy a condition, and returns them.
    pub(crate) fn wait_for_events(&self, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let clock = Clock::start();
        loop {
            let events = self.events();
            if wanted(&events) {
                return events;
            }
            assert!(clock.elapsed() < TIMEOUT, "{} events: {:?}", events.len(), kinds(&events));
            thread::yield_now();
        }
    }
}

/// Reads the events of the stream.
pub(crate) async fn read(jetstream: &Context) -> Option<Vec<Value>> {
    let mut stream = jetstream.get_stream("turn_events").await.ok()?;
    let count = stream.info().await.ok()?.state.messages;
    let consumer = stream.create_consumer(jetstream::consumer::pull::OrderedConfig::default()).await.ok()?;
    let mut messages = consumer.messages().await.ok()?;
    let mut events = Vec::new();
    while (events.len() as u64) < count {
        let message = tokio::time::timeout(Duration::from_secs(5), messages.next()).await.ok()??.ok()?;
        events.push(serde_json::from_slice(&message.payload).unwrap());
    }
    Some(events)
}

fn options() -> ConnectOptions {
    ConnectOptions::new().request_timeout(Some(Duration::from_secs(2)))
}

/// Returns the number of events of each type.
pub(crate) fn kinds(events: &[Value]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for event in events {
        *kinds.entry(event["type"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    kinds
}
