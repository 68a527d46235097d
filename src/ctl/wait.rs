//! Waiting for a state of the server.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::client::{Client, Failure};
use super::text::number;

/// The interval between two looks at the server.
const INTERVAL: Duration = Duration::from_millis(200);

/// Waits until the server makes new allocations, also if it does not run yet. Returns its status.
pub(crate) async fn until_ready(socket: &Path) -> Result<Value, Failure> {
    loop {
        match look(socket).await {
            Ok(status) if status.get("ready").and_then(Value::as_bool) == Some(true) => return Ok(status),
            Ok(_) => {}
            // Waiting does not change permissions.
            Err(Failure::NoServer { is_permanent: false, .. }) => {}
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Waits until the process of a draining server has ended. Fails if the drain ends before.
pub(crate) async fn until_stopped(socket: &Path, pid: u64) -> Result<(), Failure> {
    loop {
        match look(socket).await {
            // The service manager has started it again.
            Ok(status) if number(&status, "pid") != pid => return Ok(()),
            Ok(status) if status.get("draining").and_then(Value::as_bool) == Some(false) => {
                return Err(Failure::Refused("the drain has been ended with `turnserver ctl resume`".to_owned()));
            }
            Ok(_) => {}
            Err(Failure::NoServer { is_permanent: false, .. }) => return Ok(()),
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn look(socket: &Path) -> Result<Value, Failure> {
    Client::connect(socket).await?.get("/v1/status").await
}
