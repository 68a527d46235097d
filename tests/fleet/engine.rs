//! A cluster of NATS servers.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use async_nats::jetstream::{self, Context, stream};
use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt as _;
use serde_json::Value;
use turnserver::clock::Clock;

use crate::support::{Process, TIMEOUT, TempDir};

/// The servers of the cluster. They have fixed ports in the network namespace of the test.
const SERVERS: usize = 3;

/// Returns whether Debian's `nats-server` is there.
pub(crate) fn is_installed() -> bool {
    program().is_some()
}

fn program() -> Option<&'static str> {
    // Debian installs it where only root's PATH may lead.
    ["nats-server", "/usr/sbin/nats-server"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
}

/// The configuration of the first server without users. The others differ in names, ports and directories.
const OPEN: &str = r#"
server_name: engine-1
listen: "127.0.0.1:4222"
jetstream { store_dir: "/var/lib/nats", max_mem: 512M, max_file: 512M }
cluster {
    name: engine
    listen: "127.0.0.1:6222"
    routes: ["nats://127.0.0.1:6222", "nats://127.0.0.1:6223", "nats://127.0.0.1:6224"]
}
"#;

/// A cluster of three servers with JetStream. Dropping it kills them.
pub(crate) struct Engine {
    directory: TempDir,
    servers: Vec<Option<Process>>,
    /// The configuration of the first server.
    config: &'static str,
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
        let mut engine = Self { directory: TempDir::new(), servers: Vec::new(), config, runtime, login };
        for index in 0..SERVERS {
            engine.servers.push(None);
            engine.restart(index);
        }
        engine.wait_until_it_stores();
        engine
    }

    /// Returns the `servers` of `[fleet]`.
    pub(crate) fn servers() -> String {
        let servers: Vec<String> = (0..SERVERS).map(|index| format!("nats://127.0.0.1:{}", 4222 + index)).collect();
        format!("{servers:?}")
    }

    /// Starts a server that does not run.
    pub(crate) fn restart(&mut self, index: usize) {
        let store = self.directory.path().join(format!("js-{index}"));
        let mut config = self.config.to_owned();
        for (first, own) in [
            ("server_name: engine-1", format!("server_name: engine-{index}")),
            ("listen: \"127.0.0.1:4222\"", format!("listen: \"127.0.0.1:{}\"", 4222 + index)),
            ("listen: \"127.0.0.1:6222\"", format!("listen: \"127.0.0.1:{}\"", 6222 + index)),
            ("\"/var/lib/nats\"", format!("{store:?}")),
        ] {
            assert_eq!(config.matches(first).count(), 1, "{first}");
            config = config.replace(first, &own);
        }
        let file = self.directory.write(&format!("engine-{index}.conf"), &config);
        let mut command = Command::new(program().unwrap());
        self.servers[index] = Some(Process::start(command.arg("-c").arg(file), Some("nats-server")));
    }

    /// Kills a server.
    pub(crate) fn kill(&mut self, index: usize) {
        drop(self.servers[index].take());
        while TcpStream::connect(("127.0.0.1", u16::try_from(4222 + index).unwrap())).is_ok() {}
    }

    /// Kills all servers, removes what they have stored, and starts them again.
    pub(crate) fn lose_everything(&mut self) {
        (0..SERVERS).for_each(|index| self.kill(index));
        (0..SERVERS).for_each(|index| fs::remove_dir_all(self.directory.path().join(format!("js-{index}"))).unwrap());
        (0..SERVERS).for_each(|index| self.restart(index));
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
        let logs = self.servers.iter().flatten().flat_map(|server| server.stderr.so_far());
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
            let client = loop {
                match options.clone().connect(servers.clone()).await {
                    Ok(client) => break client,
                    // The servers have just started.
                    Err(_) => tokio::task::yield_now().await,
                }
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
