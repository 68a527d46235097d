//! Whether the engine can be reached, for `turnserver doctor`.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::diagnosis::diagnose;
use super::engine::{Connection, Engine};
use crate::config::{Config, Fleet};
use crate::control::outbound;

/// The longest time to connect. Servers that do not respond take 3 seconds each.
const CONNECT_TIME: Duration = Duration::from_secs(10);

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
    // The first error comes when all servers were tried.
    let tried = connection.wait_for(|connection| connection.is_up || connection.error.is_some());
    let is_up = matches!(timeout(CONNECT_TIME, tried).await, Ok(Ok(connection)) if connection.is_up);
    drop(engine);
    let said = connection.borrow().error.clone();
    Found { is_up, wrong: diagnose(fleet).await.or(said) }
}
