//! Whether the engine can be reached, for `turnserver doctor`.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::diagnosis::diagnose;
use super::engine::{Connection, Engine};
use crate::config::{Config, Fleet};
use crate::control::outbound;

/// The longest time to connect to one server, with the pauses between attempts.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// The longest time to connect to any.
const LONGEST_TIME: Duration = Duration::from_secs(20);

/// What was found out about the engine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Whether a server accepts the user of this node.
    pub(crate) is_up: bool,
    /// What is wrong with some of the servers, or with all.
    pub(crate) wrong: Option<String>,
}

/// Connects to the engine as a node does. `None` without `[fleet]`.
pub(crate) fn check(config: &Config) -> Option<Found> {
    let fleet = config.fleet.as_ref()?;
    let connected = outbound::runtime().map(|runtime| runtime.block_on(connect(fleet)));
    Some(connected.unwrap_or_else(|error| Found { is_up: false, wrong: Some(error) }))
}

async fn connect(fleet: &Fleet) -> Found {
    let (connected, mut connection) = watch::channel(Connection::default());
    let engine = match Engine::connect(fleet, "turnserver doctor".to_owned(), connected).await {
        Ok(engine) => engine,
        Err(error) => return Found { is_up: false, wrong: Some(error) },
    };
    let servers = fleet.servers.len();
    let time = CONNECT_TIME.saturating_mul(u32::try_from(servers).unwrap_or(u32::MAX)).min(LONGEST_TIME);
    // One that refuses ends an attempt, and the next one may begin with another.
    let tried = connection.wait_for(|connection| connection.is_up || connection.failed > servers as u64);
    let is_up = matches!(timeout(time, tried).await, Ok(Ok(connection)) if connection.is_up);
    engine.diagnose(fleet).await;
    let why = connection.borrow().why();
    // Some servers may be away although there is a connection.
    Found { is_up, wrong: if is_up { diagnose(fleet).await } else { why } }
}
