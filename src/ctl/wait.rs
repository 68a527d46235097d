//! Waiting for a state of the server.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use turnserver::clock;

use super::client::{Client, Failure, NoServer};
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
            Err(Failure::NoServer { why: NoServer::Gone | NoServer::Other, .. }) => {}
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What distinguishes the run of a server from others. In a container, the process ID is the same after each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    pid: u64,
    /// When it started, in seconds since the Unix epoch.
    started: u64,
}

impl Run {
    fn of(status: &Value) -> Self {
        Self { pid: number(status, "pid"), started: number(status, "started") }
    }
}

/// The process of a server.
#[derive(Debug)]
pub(crate) struct RunningServer {
    /// Its run according to its own status.
    run: Run,
    /// `None` if the process is not visible here, for example because it runs in a container.
    process: Option<Process>,
}

impl RunningServer {
    /// Returns the server at the other end of a connection.
    pub(crate) async fn behind(client: &mut Client) -> Result<Self, Failure> {
        let process = client.process().and_then(Process::running);
        Ok(Self { run: Run::of(&client.get("/v1/status").await?), process })
    }

    /// Waits until the process of a draining server has ended. Fails if the drain ends before. If the process is not
    /// visible, it waits until the server has closed its socket, shortly before its end. `report` gets the status of the
    /// server, with the remaining sessions, at first and from time to time.
    pub(crate) async fn until_stopped(&self, socket: &Path, mut report: impl FnMut(&Value)) -> Result<(), Failure> {
        let mut reported: Option<Duration> = None;
        loop {
            let is_due = reported.is_none_or(|at| clock::monotonic().saturating_sub(at) >= REPORT);
            let Some(status) = self.while_open(socket, is_due).await? else { break };
            if is_due {
                report(&status);
                reported = Some(clock::monotonic());
            }
            tokio::time::sleep(INTERVAL).await;
        }
        while self.process.as_ref().is_some_and(Process::still_runs) {
            tokio::time::sleep(INTERVAL).await;
        }
        Ok(())
    }

    /// Returns the status of the draining server; `None` if it has closed its socket.
    async fn while_open(&self, socket: &Path, with_sessions: bool) -> Result<Option<Value>, Failure> {
        match look_at(socket, if with_sessions { "/v1/status" } else { WITHOUT_SESSIONS }).await {
            // The service manager has started it again.
            Ok(status) if Run::of(&status) != self.run => Ok(None),
            Ok(status) if status.get("draining").and_then(Value::as_bool) == Some(false) => {
                Err(Failure::Refused("the drain has been ended with `turnserver ctl resume`".to_owned()))
            }
            Ok(status) => Ok(Some(status)),
            Err(Failure::NoServer { why: NoServer::Gone, .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

/// A process of this machine.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    /// In clock ticks since the boot. It distinguishes the process from a later one with the same ID.
    start: u64,
}

impl Process {
    /// Returns a process that runs; `None` if there is none with this ID, or if it is not visible.
    fn running(pid: i32) -> Option<Self> {
        Self::parse(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads `/proc/PID/stat` (proc_pid_stat(5)).
    fn parse(pid: i32, stat: &str) -> Option<Self> {
        // The name before the last parenthesis may contain anything. The state is field 3, the start time field 22.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        // A process that has ended keeps its ID until its parent has asked for the exit code.
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start: fields.nth(18)?.parse().ok()? })
    }

    fn still_runs(&self) -> bool {
        Self::running(self.pid).as_ref() == Some(self)
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn a_process_runs_until_it_has_ended() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::running(child.id().try_into().unwrap()).unwrap();
        assert!(process.still_runs());
        // Another process that got the same ID later.
        assert!(!Process { start: process.start - 1, pid: process.pid }.still_runs());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!process.still_runs());
    }

    // In a container, the server is always process 1.
    #[tokio::test]
    async fn a_server_that_was_started_again_with_the_same_process_id_is_another_one() {
        let path = std::env::temp_dir().join(format!("turnserver-wait-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1_024];
                assert_ne!(stream.read(&mut request).await.unwrap(), 0);
                let status = r#"{"pid":1,"started":1700000100,"draining":false}"#;
                let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{status}", status.len());
                stream.write_all(response.as_bytes()).await.unwrap();
            }
        };
        let server = RunningServer { run: Run { pid: 1, started: 1_700_000_000 }, process: None };
        let result = tokio::select! {
            () = serve => None,
            result = server.until_stopped(&path, |_| {}) => Some(result),
        };
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(result, Some(Ok(()))), "{result:?}");
    }

    #[test]
    fn the_state_of_a_process_is_read_whatever_its_name() {
        let stat = |state: &str| {
            format!("7 (a) Z (b)) {state} 1 7 7 0 -1 4194304 96 0 0 0 0 0 0 0 20 0 1 0 4711 2473984 208 18446744073")
        };
        assert_eq!(Process::parse(7, &stat("S")), Some(Process { pid: 7, start: 4_711 }));
        assert_eq!(["Z", "X"].map(|state| Process::parse(7, &stat(state))), [None, None]);
    }
}
