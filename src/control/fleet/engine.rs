//! The connection to the engine (NATS), and what the fleet keeps in it.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::context::{ContextBuilder, CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::kv::Store;
use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, ConnectOptions, ServerAddr};
use tokio::sync::watch;
use tokio_rustls::rustls::ClientConfig;

use super::diagnosis;
use crate::config::{Fleet, FleetAccess};
use crate::control::outbound;
use crate::control::random;
use crate::setting::FLEET_CA_FILE;

/// The longest time for a request to the engine.
const REQUEST_TIME: Duration = Duration::from_secs(3);
/// The longest time to connect to a server.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// The interval at which the connection is checked.
const PING: Duration = Duration::from_secs(2);
/// The pause before a further attempt, and the longest one.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

/// The age at which the engine forgets a heartbeat.
const BEAT_AGE: Duration = Duration::from_secs(10);
/// The age at which it forgets the leases of a user.
const LEASE_AGE: Duration = Duration::from_secs(600);

/// What a bucket of the fleet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bucket {
    /// The heartbeat of each node.
    Nodes,
    /// Revoked usernames and secrets.
    State,
    /// The leases of each user.
    Leases,
}

impl Bucket {
    /// Returns the name of the bucket of a fleet.
    pub(super) fn name(self, fleet: &str) -> String {
        let what = match self {
            Self::Nodes => "nodes",
            Self::State => "state",
            Self::Leases => "leases",
        };
        format!("{fleet}_{what}")
    }

    /// Returns the stream that is the bucket. The library would first ask for the account, and does not understand the
    /// response of servers before 2.10.
    fn config(self, fleet: &str, replicas: usize) -> stream::Config {
        // The most bytes: 10 000 nodes, 40 000 entries, and the users of ten minutes of a fleet with 10 million sessions a day.
        let (storage, max_age, max_bytes) = match self {
            Self::Nodes => (StorageType::Memory, BEAT_AGE, 32 << 20),
            Self::State => (StorageType::File, Duration::ZERO, 128 << 20),
            Self::Leases => (StorageType::Memory, LEASE_AGE, 256 << 20),
        };
        let bucket = self.name(fleet);
        stream::Config {
            name: format!("KV_{bucket}"),
            subjects: vec![format!("$KV.{bucket}.>")],
            max_messages_per_subject: 1,
            max_bytes,
            max_age,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            storage,
            num_replicas: replicas,
            ..stream::Config::default()
        }
    }
}

/// A connection to the engine. It connects again by itself.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    pub(crate) client: Client,
    pub(crate) jetstream: Context,
    fleet: String,
    replicas: Option<u8>,
    connected: watch::Sender<Connection>,
}

impl Engine {
    /// Begins to connect. `connected` gets the state of the connection, and its last error.
    ///
    /// # Errors
    /// If the settings cannot be used. An engine that is away is no error.
    pub(crate) async fn connect(
        fleet: &Fleet,
        name: String,
        connected: watch::Sender<Connection>,
    ) -> Result<Self, String> {
        let changes = connected.clone();
        let mut options = ConnectOptions::new()
            .name(name)
            .custom_inbox_prefix(inbox_prefix(&fleet.name))
            .retry_on_initial_connect()
            .connection_timeout(CONNECT_TIME)
            .request_timeout(Some(REQUEST_TIME))
            .ping_interval(PING)
            .require_tls(fleet.servers.iter().any(|server| server.tls))
            .tls_client_config(tls(fleet.ca_file.as_deref())?)
            .reconnect_delay_callback(|attempts| {
                let [first, longest] = PAUSES;
                // Nodes that lose the engine at once come back one by one.
                let pause = first.saturating_mul(1 << attempts.min(10)).min(longest);
                if attempts == 0 { Duration::ZERO } else { pause.mul_f64(0.5 + random::fraction() / 2.0) }
            })
            .event_callback(move |event| {
                match event {
                    async_nats::Event::Connected => {
                        changes.send_modify(|connection| {
                            *connection =
                                Connection { is_up: true, made: connection.made + 1, ..Connection::default() };
                        });
                    }
                    async_nats::Event::Disconnected | async_nats::Event::Closed => {
                        changes.send_modify(|connection| connection.is_up = false);
                    }
                    async_nats::Event::ServerError(error) => note(&changes, &error),
                    async_nats::Event::ClientError(error) => note(&changes, &error),
                    _ => {}
                }
                std::future::ready(())
            });
        options = match &fleet.access {
            FleetAccess::Open => options,
            FleetAccess::Password(user, password) => {
                let password = String::from_utf8_lossy(password.as_bytes()).into_owned();
                options.user_and_password(user.clone(), password)
            }
        };
        let servers: Result<Vec<ServerAddr>, _> =
            fleet.servers.iter().map(|server| server.to_string().parse()).collect();
        let servers = servers.map_err(|error| error.to_string())?;
        let client = options.connect(servers).await.map_err(|error| error.to_string())?;
        let jetstream = ContextBuilder::new().timeout(REQUEST_TIME).ack_timeout(REQUEST_TIME).build(client.clone());
        Ok(Self { client, jetstream, fleet: fleet.name.clone(), replicas: fleet.replicas, connected })
    }

    /// Finds out why there is no connection.
    pub(super) async fn diagnose(&self, fleet: &Fleet) {
        let wrong = diagnosis::diagnose(fleet).await;
        self.connected.send_if_modified(|connection| {
            let is_other = !connection.is_up && connection.servers != wrong;
            if is_other {
                connection.servers = wrong;
            }
            is_other
        });
    }

    /// Opens a bucket, which it creates if there is none.
    pub(super) async fn bucket(&self, bucket: Bucket) -> Result<Store, String> {
        let name = bucket.name(&self.fleet);
        if let Ok(store) = self.jetstream.get_key_value(&name).await {
            return Ok(store);
        }
        let created = self.create(|replicas| bucket.config(&self.fleet, replicas)).await;
        // Another node may have created it meanwhile.
        match (self.jetstream.get_key_value(&name).await, created) {
            (Ok(store), _) => Ok(store),
            (Err(_), Err(error)) => Err(format!("the bucket {name} can neither be opened nor created: {error}")),
            (Err(error), Ok(())) => Err(format!("the bucket {name} cannot be opened: {}", with_source(&error))),
        }
    }

    /// Opens the stream of events, which it creates if there is none.
    pub(crate) async fn event_stream(&self) -> Result<(), String> {
        let name = format!("{}_events", self.fleet);
        if self.jetstream.get_stream(&name).await.is_ok() {
            return Ok(());
        }
        let config = |replicas| stream::Config {
            name: name.clone(),
            subjects: vec![format!("{}.events.>", self.fleet)],
            storage: StorageType::File,
            duplicate_window: DUPLICATE_WINDOW,
            num_replicas: replicas,
            ..stream::Config::default()
        };
        match self.create(config).await {
            Ok(()) => Ok(()),
            // Another node may have created it meanwhile.
            Err(error) => match self.jetstream.get_stream(&name).await {
                Ok(_) => Ok(()),
                Err(_) => Err(format!("the stream {name} can neither be opened nor created: {error}")),
            },
        }
    }

    /// Creates a stream with the configured number of copies. By default, it has 3 in a cluster, and one copy on a server
    /// that is in none.
    async fn create(&self, config: impl Fn(usize) -> stream::Config) -> Result<(), String> {
        let create = async |replicas| self.jetstream.create_stream(config(replicas)).await.map(drop);
        let created = match self.replicas {
            Some(replicas) => create(replicas.into()).await,
            None => match create(3).await {
                Err(error) if is_alone(&error) => create(1).await,
                created => created,
            },
        };
        created.map_err(|error| {
            // Part of the cluster may not have been started yet.
            let advice =
                if lacks_servers(&error) { "; a cluster of fewer than 3 servers needs `fleet.replicas`" } else { "" };
            format!("{}{advice}", with_source(&error))
        })
    }
}

/// Whether the server is not in a cluster.
fn is_alone(error: &CreateStreamError) -> bool {
    has_code(error, ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED)
}

fn lacks_servers(error: &CreateStreamError) -> bool {
    has_code(error, ErrorCode::CLUSTER_NO_PEERS)
}

fn has_code(error: &CreateStreamError, code: ErrorCode) -> bool {
    matches!(error.kind(), CreateStreamErrorKind::JetStream(of) if of.error_code() == code)
}

/// The time in which the engine recognizes an event that comes twice.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// The ends of the library's errors that do not say what has happened.
const NOTHING_SAID: [&str; 4] = ["IO error", "TLS error", "DNS error", "timed out"];

/// The state of the connection to the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) is_up: bool,
    /// How often it was made.
    pub(super) made: u64,
    /// How often that has failed since.
    pub(super) failed: u64,
    /// The last error since the connection was up.
    error: Option<String>,
    /// What is wrong with the servers.
    servers: Option<String>,
}

impl Connection {
    /// Returns why there is no connection, as far as that is known.
    pub(crate) fn why(&self) -> Option<String> {
        match (&self.error, &self.servers) {
            (Some(error), Some(servers)) if !says_nothing(error) => Some(format!("{error}; {servers}")),
            (_, Some(servers)) => Some(servers.clone()),
            (error, None) => error.clone(),
        }
    }
}

/// Whether an error of the library says no more than that there is no connection.
fn says_nothing(error: &str) -> bool {
    NOTHING_SAID.iter().any(|text| error.ends_with(text))
}

/// Returns the prefix of the inboxes of nodes, so that permissions can keep other users from them: the common state,
/// with its secrets, is delivered to such an inbox.
fn inbox_prefix(fleet: &str) -> String {
    format!("_INBOX_{fleet}_node")
}

fn note(connected: &watch::Sender<Connection>, error: &impl Display) {
    let error = crate::printable::shown(&error.to_string());
    connected.send_if_modified(|connection| {
        // While it is up, an error is about something else.
        if connection.is_up {
            return false;
        }
        connection.failed += 1;
        // Some servers may refuse, and others be away.
        if !says_nothing(&error) || connection.error.is_none() {
            connection.error = Some(error);
        }
        true
    });
}

fn tls(ca: Option<&Path>) -> Result<ClientConfig, String> {
    outbound::client_config(ca).map_err(|why| format!("`{FLEET_CA_FILE}`: {why}"))
}

/// Returns an error with its causes, in one line.
pub(super) fn with_source(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
