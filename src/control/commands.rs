//! The commands of the operator that change the state of the process.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::fleet::FleetInUse;
use crate::config::LogLevel;
use crate::turn::Operator;

/// The greatest number of commands that wait.
const CAPACITY: usize = 16;

/// A command of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Reject new allocations, and stop when the last one ends.
    Drain,
    /// End a drain.
    Resume,
    /// Change the log level of this run.
    LogLevel(LogLevel),
    /// Read the configuration again, and use it unless it is a trial.
    Reload { dry_run: bool },
    /// Refuse a username until a time, in seconds since the Unix epoch, and end its allocations. Without a time, end the
    /// revocation.
    Revoke { username: String, until: Option<u64> },
    /// Use these secrets and revocations of the fleet beside those of this server.
    Fleet(FleetInUse),
    /// Redirect clients to these other nodes of the fleet.
    Alternates { servers: Vec<SocketAddr>, tls_servers: Vec<SocketAddr> },
}

/// A command, who sent it, and where the result goes: a JSON object, or why the command is refused.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) operator: Operator,
    pub(super) response: oneshot::Sender<Result<Value, String>>,
}

/// The server is stopping and takes no more commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server is stopping")]
pub(super) struct Stopping;

/// Sends commands to the running server.
#[derive(Clone, Debug)]
pub(super) struct Commands(mpsc::Sender<Request>);

/// Creates a channel for commands.
pub(super) fn commands() -> (Commands, mpsc::Receiver<Request>) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (Commands(sender), receiver)
}

impl Commands {
    /// Sends a command, and waits until it is carried out or refused.
    pub(super) async fn send(&self, command: Command, operator: Operator) -> Result<Result<Value, String>, Stopping> {
        let (response, result) = oneshot::channel();
        self.0.send(Request { command, operator, response }).await.map_err(|_| Stopping)?;
        result.await.map_err(|_| Stopping)
    }
}
