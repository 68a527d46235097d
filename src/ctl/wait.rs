//! Waiting for a state of the server.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use turnserver::clock;

use super::client::{Client, Failure};
use super::text::number;

/// The interval between two looks at the server.
const INTERVAL: Duration = Duration::from_millis(200);

/// The interval at which a wait for a drain shows who is left.
const REPORT: Duration = Duration::from_secs(10);

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

/// Waits until the process of a draining server has ended. Fails if the drain ends before. `report` gets the status of
/// the server, with the remaining sessions, at first and from time to time.
pub(crate) async fn until_stopped(socket: &Path, pid: u64, mut report: impl FnMut(&Value)) -> Result<(), Failure> {
    let mut reported: Option<Duration> = None;
    loop {
        let is_due = reported.is_none_or(|at| clock::monotonic().saturating_sub(at) >= REPORT);
        match look_at(socket, if is_due { "/v1/status" } else { WITHOUT_SESSIONS }).await {
            // The service manager has started it again.
            Ok(status) if number(&status, "pid") != pid => return Ok(()),
            Ok(status) if status.get("draining").and_then(Value::as_bool) == Some(false) => {
                return Err(Failure::Refused("the drain has been ended with `turnserver ctl resume`".to_owned()));
            }
            Ok(status) if is_due => {
                report(&status);
                reported = Some(clock::monotonic());
            }
            Ok(_) => {}
            Err(Failure::NoServer { is_permanent: false, .. }) => return Ok(()),
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The status without the sessions that are left while the server drains, for which it would have to search.
const WITHOUT_SESSIONS: &str = "/v1/status?remaining=0";

async fn look(socket: &Path) -> Result<Value, Failure> {
    look_at(socket, WITHOUT_SESSIONS).await
}

async fn look_at(socket: &Path, path: &str) -> Result<Value, Failure> {
    Client::connect(socket).await?.get(path).await
}
