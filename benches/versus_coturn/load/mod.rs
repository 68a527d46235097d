//! The load generator: clients and peers, each a single-threaded process that is controlled by lines of text.
//!
//! | command | report | meaning |
//! |---|---|---|
//! | | `address ADDRESS` | the peer has its socket |
//! | | `reachable` | the client has received a response from the server |
//! | `begin` | | the client may allocate |
//! | | `ready` | the setup of the clients is complete |
//! | `window START FROM TO` | | send from START on, count from FROM to TO (nanoseconds since the Unix epoch) |
//! | | `result JSON` | the counts |

pub(crate) mod allocation;
mod binding;
pub(crate) mod churn;
mod client;
pub(crate) mod clock;
pub(crate) mod datagrams;
pub(crate) mod frame;
mod histogram;
mod idle;
pub(crate) mod link;
mod peer;
mod sink;
mod source;
pub(crate) mod stamp;

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

use serde_json::Value;

use crate::scenario::{Load, Scenario, Work};

pub(crate) use peer::run as peer;

/// The result of a role. The error is a message for the user of the benchmark.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The user that both servers know.
pub(crate) const USER: &str = "bench";

/// The password of [`USER`]. It protects nothing: only the benchmark can reach the servers.
pub(crate) const PASSWORD: &str = "for-the-benchmark-only";

/// The realm of both servers.
pub(crate) const REALM: &str = "bench.example";

/// The work of a role.
pub(crate) struct Job {
    pub(crate) scenario: &'static Scenario,
    /// Index of the load in the scenario.
    pub(crate) load: usize,
    /// The role's own address.
    pub(crate) own: IpAddr,
    /// The server's address for the transport of the load.
    pub(crate) server: SocketAddr,
    /// The address to which clients send.
    pub(crate) peer: SocketAddr,
    /// The Unix socket through which a receiver reports its progress to its sender.
    pub(crate) feedback: PathBuf,
    /// The PEM file of the server's certificate.
    pub(crate) certificate: PathBuf,
    /// Whether clients and peer exchange messages without a server, through the kernel's forwarding.
    pub(crate) forwarded: bool,
    /// Whether packets are paced and counted, but not sent.
    pub(crate) unsent: bool,
}

/// The times of a measurement, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Window {
    /// Start of the load.
    pub(crate) start: u64,
    /// Start of the measurement.
    pub(crate) from: u64,
    /// End of the load and the measurement.
    pub(crate) to: u64,
}

/// Receives the commands of a role.
pub(crate) struct Commands(pub(crate) Receiver<String>);

/// Sends the reports of a role.
pub(crate) type Report<'s> = &'s mut dyn FnMut(&str);

impl Job {
    fn load(&self) -> Outcome<&'static Load> {
        Ok(self.scenario.work.loads().get(self.load).ok_or("the scenario has no such load")?)
    }

    /// Returns the payload of a message that a client has received.
    fn payload_for_client<'m>(&self, message: &'m [u8]) -> Option<&'m [u8]> {
        if self.forwarded { Some(frame::forwarded_payload(message)) } else { frame::payload_of(message) }
    }

    /// Returns the payload of a datagram that a peer has received.
    fn payload_for_peer<'m>(&self, datagram: &'m [u8]) -> &'m [u8] {
        if self.forwarded { frame::forwarded_payload(datagram) } else { datagram }
    }
}

impl Window {
    /// Returns whether `time` is within the measurement.
    pub(crate) fn counts(&self, time: u64) -> bool {
        (self.from..self.to).contains(&time)
    }

    /// Returns the command for this window.
    pub(crate) fn command(&self) -> String {
        format!("window {} {} {}", self.start, self.from, self.to)
    }

    /// Parses the command.
    pub(crate) fn parse(command: &str) -> Option<Self> {
        let mut words = command.strip_prefix("window ")?.split(' ').map(str::parse);
        let window = Self { start: words.next()?.ok()?, from: words.next()?.ok()?, to: words.next()?.ok()? };
        words.next().is_none().then_some(window)
    }
}

impl Commands {
    /// Waits for the next command, which has to be `wanted`.
    fn expect(&self, wanted: &str) -> Outcome<()> {
        let command = self.0.recv().map_err(|_| "the benchmark has ended")?;
        if command == wanted { Ok(()) } else { Err(format!("expected {wanted:?}, received {command:?}").into()) }
    }

    /// Waits for the window of the measurement.
    pub(crate) fn window(&self) -> Outcome<Window> {
        let command = self.0.recv().map_err(|_| "the benchmark has ended")?;
        Ok(Window::parse(&command).ok_or_else(|| format!("expected a window, received {command:?}"))?)
    }

    /// Returns the window if it was received already.
    fn try_window(&self) -> Outcome<Option<Window>> {
        match self.0.try_recv() {
            Ok(command) => Ok(Some(Window::parse(&command).ok_or("expected a window")?)),
            Err(std::sync::mpsc::TryRecvError::Empty) => Ok(None),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => Err("the benchmark has ended".into()),
        }
    }
}

/// Runs the clients of a job.
pub(crate) fn client(job: &Job, commands: &Commands, report: Report<'_>) -> Outcome<()> {
    clock::sleep_precisely();
    turnserver::net::limits::raise_open_files()?;
    if !job.forwarded {
        link::await_server(job)?;
    }
    report("reachable");
    commands.expect("begin")?;
    let result = match job.scenario.work {
        Work::Relay(_) => client::run(job, commands, report)?,
        Work::Churn { clients } => churn::run(job, clients, commands, report)?,
        Work::Binding { clients, window } => binding::run(job, clients, window, commands, report)?,
        Work::Idle { allocations, refreshed } => idle::run(job, allocations, refreshed, commands, report)?,
    };
    send_result(report, &result);
    Ok(())
}

fn send_result(report: Report<'_>, result: &Value) {
    report(&format!("result {result}"));
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    #[test]
    fn a_window_command_is_parsed() {
        let window = Window { start: 1_790_000_000_000_000_000, from: 1_790_000_001_000_000_000, to: u64::MAX };
        assert_eq!(Window::parse(&window.command()), Some(window));
        for wrong in ["window 1 2", "window 1 2 3 4", "window 1 2 x", "begin", ""] {
            assert_eq!(Window::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_end_of_a_window_is_exclusive() {
        let window = Window { start: 0, from: 10, to: 20 };
        assert_eq!([9, 10, 19, 20].map(|time| window.counts(time)), [false, true, true, false]);
    }
}
