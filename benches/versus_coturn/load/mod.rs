//! The load generator: clients and peers, each a process of one thread that is told what to do line by line.
//!
//! | the benchmark says | a role says | when |
//! |---|---|---|
//! | | `address ADDRESS` | a peer has its socket |
//! | | `reachable` | a client has had an answer from the server |
//! | `begin` | | a client may allocate |
//! | | `ready` | its allocations stand and the way through each is open |
//! | `window START FROM TO` | | send from START on, count from FROM to TO (nanoseconds since the Unix epoch) |
//! | | `result JSON` | all is counted |

mod allocation;
mod binding;
mod churn;
mod client;
pub(crate) mod clock;
mod datagrams;
mod frame;
mod histogram;
mod link;
mod peer;
mod sink;
mod source;
mod stamp;
mod standing;

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

use serde_json::Value;

use crate::scenario::{Load, Scenario, Work};

pub(crate) use peer::run as peer;

/// What stops a role; a sentence for the person who started the benchmark.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The user that both servers know.
pub(crate) const USER: &str = "bench";

/// The password of [`USER`]. It protects nothing: the servers are reachable from the benchmark alone.
pub(crate) const PASSWORD: &str = "for-the-benchmark-only";

/// The realm of both servers.
pub(crate) const REALM: &str = "bench.example";

/// What a role has to do, and where.
pub(crate) struct Job {
    pub(crate) scenario: &'static Scenario,
    /// Which of the scenario's loads.
    pub(crate) load: usize,
    /// The role's own address.
    pub(crate) own: IpAddr,
    /// The server's listener for the transport of the load.
    pub(crate) server: SocketAddr,
    /// The peer that clients send to.
    pub(crate) peer: SocketAddr,
    /// The socket over which a receiver tells its sender how far it is; outside of all networks.
    pub(crate) feedback: PathBuf,
    /// The PEM file of the server's certificate.
    pub(crate) certificate: PathBuf,
}

/// The time of a measurement, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Window {
    /// When the load begins.
    pub(crate) start: u64,
    /// From when on it counts.
    pub(crate) from: u64,
    /// When it ends.
    pub(crate) to: u64,
}

/// The lines that a role is told.
pub(crate) struct Orders(pub(crate) Receiver<String>);

/// Where a role says something.
pub(crate) type Say<'s> = &'s mut dyn FnMut(&str);

impl Job {
    fn load(&self) -> Outcome<&'static Load> {
        Ok(self.scenario.work.loads().get(self.load).ok_or("the scenario has no such load")?)
    }
}

impl Window {
    /// Whether what happens at `time` counts.
    pub(crate) fn counts(&self, time: u64) -> bool {
        (self.from..self.to).contains(&time)
    }

    /// The order that names this window.
    pub(crate) fn order(&self) -> String {
        format!("window {} {} {}", self.start, self.from, self.to)
    }

    /// Reads the order.
    pub(crate) fn parse(order: &str) -> Option<Self> {
        let mut words = order.strip_prefix("window ")?.split(' ').map(str::parse);
        let window = Self { start: words.next()?.ok()?, from: words.next()?.ok()?, to: words.next()?.ok()? };
        words.next().is_none().then_some(window)
    }
}

impl Orders {
    /// Waits for the next order, which has to be `wanted`.
    fn expect(&self, wanted: &str) -> Outcome<()> {
        let order = self.0.recv().map_err(|_| "the benchmark has ended")?;
        if order == wanted { Ok(()) } else { Err(format!("expected {wanted:?}, was told {order:?}").into()) }
    }

    /// Waits for the window of the measurement.
    fn window(&self) -> Outcome<Window> {
        let order = self.0.recv().map_err(|_| "the benchmark has ended")?;
        Ok(Window::parse(&order).ok_or_else(|| format!("expected a window, was told {order:?}"))?)
    }

    /// The window, if it has been told by now.
    fn window_by_now(&self) -> Outcome<Option<Window>> {
        match self.0.try_recv() {
            Ok(order) => Ok(Some(Window::parse(&order).ok_or("expected a window")?)),
            Err(std::sync::mpsc::TryRecvError::Empty) => Ok(None),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => Err("the benchmark has ended".into()),
        }
    }
}

/// Plays the clients of a job to its end.
pub(crate) fn client(job: &Job, orders: &Orders, say: Say<'_>) -> Outcome<()> {
    clock::sleep_precisely();
    turnserver::net::limits::raise_open_files()?;
    link::await_server(job)?;
    say("reachable");
    orders.expect("begin")?;
    let result = match job.scenario.work {
        Work::Relay(_) => client::run(job, orders, say)?,
        Work::Churn { clients } => churn::run(job, clients, orders, say)?,
        Work::Binding { clients, window } => binding::run(job, clients, window, orders, say)?,
        Work::Standing { allocations, refreshed } => standing::run(job, allocations, refreshed, orders, say)?,
    };
    tell(say, &result);
    Ok(())
}

fn tell(say: Say<'_>, result: &Value) {
    say(&format!("result {result}"));
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read_as_it_was_told() {
        let window = Window { start: 1_790_000_000_000_000_000, from: 1_790_000_001_000_000_000, to: u64::MAX };
        assert_eq!(Window::parse(&window.order()), Some(window));
        for wrong in ["window 1 2", "window 1 2 3 4", "window 1 2 x", "begin", ""] {
            assert_eq!(Window::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_sent_at_the_end_of_a_window_does_not_count() {
        let window = Window { start: 0, from: 10, to: 20 };
        assert_eq!([9, 10, 19, 20].map(|time| window.counts(time)), [false, true, true, false]);
    }
}
