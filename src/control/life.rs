//! From "ready" to the end: signals, the drain, and what the service manager is told meanwhile.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, Sleep, interval, sleep};

use super::WorkerEvent;
use super::service::{Service, Watchdog};
use super::start::WorkerControl;
use super::tls::{self, Certificates};
use crate::clock;
use crate::net::tls::Acceptor;
use crate::setting::DRAIN_DEADLINE;
use crate::turn::Ledger;
use crate::worker::Snapshot;

/// How often a drain looks whether the last allocation has ended.
const LOOK: Duration = Duration::from_millis(100);

/// How often a drain says in the log how many allocations are left.
const PROGRESS: Duration = Duration::from_secs(30);

/// How often the service manager is told how many clients there are.
const STATUS: Duration = Duration::from_secs(5);

/// What the end takes besides the drain: the last answers, and the log.
const FAREWELL: Duration = Duration::from_secs(10);

/// The signals that the process listens to.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user: Signal,
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP.
    Hangup,
    /// SIGUSR1.
    Drain,
}

impl Signals {
    /// Listens from here on, within a tokio runtime.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Sent {
        tokio::select! {
            _ = self.interrupt.recv() => Sent::Interrupt,
            _ = self.terminate.recv() => Sent::Terminate,
            _ = self.hangup.recv() => Sent::Hangup,
            _ = self.user.recv() => Sent::Drain,
        }
    }
}

/// How far the process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Serving,
    /// Ends with the last allocation.
    Draining,
    /// Ends with the last allocation, or at the deadline.
    Stopping,
}

impl Stage {
    /// What a signal leads to; `None` is the end.
    fn after(self, sent: Sent) -> Option<Self> {
        match (self, sent) {
            (_, Sent::Interrupt) | (Self::Stopping, Sent::Terminate) => None,
            (Self::Serving | Self::Draining, Sent::Terminate) => Some(Self::Stopping),
            (Self::Serving, Sent::Drain) => Some(Self::Draining),
            (stage, Sent::Hangup | Sent::Drain) => Some(stage),
        }
    }
}

/// A server that is ready.
pub(super) struct Life<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) workers: &'a [WorkerControl],
    /// The configuration that the workers read.
    pub(super) snapshot: Arc<Snapshot>,
    /// How long SIGTERM waits for the last allocation.
    pub(super) drain_deadline: Duration,
    /// Kept up to date until the end.
    pub(super) certificates: Option<Certificates>,
    pub(super) service: Service,
}

impl Life<'_> {
    /// Waits for the end. If a worker ended unexpectedly, it is the end and says which.
    pub(super) async fn run(
        mut self,
        signals: &mut Signals,
        events: &mut mpsc::Receiver<WorkerEvent>,
    ) -> Option<usize> {
        let mut stage = Stage::Serving;
        let snapshots = self.distribute_snapshots();
        let mut acceptors = self.certificates.as_ref().map(Certificates::subscribe);
        let mut deadline: Option<Pin<Box<Sleep>>> = None;
        let period = self.service.watchdog_period();
        let statistics = self.workers.iter().map(|worker| Arc::clone(&worker.statistics));
        let mut watchdog = period.map(|period| Watchdog::new(statistics, period));
        let (mut ping, mut status) = (period.map(every), self.service.is_connected().then(|| every(STATUS)));
        // The first check is one whole period after the start.
        ping.iter_mut().for_each(Interval::reset);
        let (mut look, mut progress): (Option<Interval>, Option<Interval>) = (None, None);
        self.service.ready();
        let early = loop {
            tokio::select! {
                biased;
                sent = signals.next() => {
                    let Some(next) = stage.after(sent) else { break None };
                    if sent == Sent::Hangup {
                        self.reload();
                    }
                    if next != stage {
                        stage = next;
                        deadline = self.begin(stage);
                        (look, progress) = (Some(every(LOOK)), Some(every(PROGRESS)));
                        // The beginning is in the log already.
                        progress.iter_mut().for_each(Interval::reset);
                        status.iter_mut().for_each(Interval::reset_immediately);
                    }
                }
                Some(WorkerEvent::Ended(index)) = events.recv() => break Some(index),
                () = tick(&mut look) => {
                    if self.allocations() == 0 {
                        break None;
                    }
                }
                () = async { match &mut deadline { Some(sleep) => sleep.await, None => pending().await } } => {
                    tracing::info!(allocations = self.allocations(), "drain deadline reached");
                    break None;
                }
                () = tls::due(&mut self.certificates) => {
                    if let Some(certificates) = &mut self.certificates {
                        certificates.poll();
                    }
                }
                acceptor = replaced(&mut acceptors) => {
                    self.snapshot = Arc::new(Snapshot { tls: Some(acceptor), ..(*self.snapshot).clone() });
                    snapshots.send_replace(Arc::clone(&self.snapshot));
                }
                () = tick(&mut progress) => tracing::info!(allocations = self.allocations(), "draining"),
                () = tick(&mut status) => {
                    let status = self.status(stage);
                    self.service.status(status);
                }
                () = tick(&mut ping) => self.ping_watchdog(watchdog.as_mut()),
            }
        };
        self.service.stopping(FAREWELL);
        early
    }

    /// Sends each worker every snapshot that is put into the channel, or only the latest if the worker is slow. Control does not
    /// wait for workers.
    fn distribute_snapshots(&self) -> watch::Sender<Arc<Snapshot>> {
        let sender = watch::Sender::new(Arc::clone(&self.snapshot));
        for worker in self.workers {
            let (handle, mut snapshots) = (worker.handle.clone(), sender.subscribe());
            tokio::spawn(async move {
                while snapshots.changed().await.is_ok() {
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    if handle.reconfigure(snapshot).await.is_err() {
                        return;
                    }
                }
            });
        }
        sender
    }

    /// Begins a drain; the answer is its deadline.
    fn begin(&self, stage: Stage) -> Option<Pin<Box<Sleep>>> {
        self.ledger.set_draining(true);
        let allocations = self.allocations();
        if stage != Stage::Stopping {
            // A service manager that knew of it would set a limit to it.
            tracing::info!(
                allocations,
                "SIGUSR1: draining. No new allocations are made; the server stops when the last allocation ends"
            );
            return None;
        }
        self.service.stopping(self.drain_deadline + FAREWELL);
        if allocations > 0 {
            tracing::info!(
                allocations,
                deadline = self.drain_deadline.as_secs(),
                "SIGTERM: draining. No new allocations are made; the server stops when the last allocation ends or at \
                 the deadline ({DRAIN_DEADLINE}, in seconds). A second SIGTERM stops it at once"
            );
        }
        Some(Box::pin(sleep(self.drain_deadline)))
    }

    /// Reads again what can be read again.
    fn reload(&mut self) {
        self.service.reloading(clock::monotonic());
        const RESTART: &str =
            "SIGHUP does not reload the configuration in this version. Restart the server to apply changes";
        match &mut self.certificates {
            Some(certificates) => {
                certificates.reload();
                tracing::info!("SIGHUP: certificate checked. {RESTART}");
            }
            None => tracing::warn!("{RESTART}"),
        }
        self.service.ready();
    }

    fn ping_watchdog(&self, watchdog: Option<&mut Watchdog>) {
        match watchdog.and_then(Watchdog::stalled) {
            None => self.service.ping_watchdog(),
            Some(worker) => tracing::error!(
                worker,
                "the worker is stalled, so no watchdog ping is sent to the service manager. This is a bug; please \
                 report it"
            ),
        }
    }

    fn status(&self, stage: Stage) -> String {
        let (allocations, connections) = (self.allocations(), self.ledger.connections.allocations());
        let clients = format!("{}, {}", plural(allocations, "allocation"), plural(connections, "connection"));
        match stage {
            Stage::Serving => clients,
            Stage::Draining | Stage::Stopping => format!("draining: {clients}"),
        }
    }

    fn allocations(&self) -> u32 {
        self.ledger.quota.allocations()
    }
}

/// An interval that leaves out what it is too late for. Its first tick is due at once.
fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Waits until the certificate was replaced, and returns what serves it.
async fn replaced(acceptors: &mut Option<watch::Receiver<Acceptor>>) -> Acceptor {
    if let Some(acceptors) = acceptors
        && acceptors.changed().await.is_ok()
    {
        return acceptors.borrow_and_update().clone();
    }
    pending().await
}

/// The next tick, if there are any.
async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => pending().await,
    }
}

fn plural(count: u32, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_leads_on_or_to_the_end() {
        use Sent::{Drain, Hangup, Interrupt, Terminate};
        use Stage::{Draining, Serving, Stopping};
        for (stage, sent, next) in [
            (Serving, Hangup, Some(Serving)),
            (Serving, Drain, Some(Draining)),
            (Serving, Terminate, Some(Stopping)),
            (Serving, Interrupt, None),
            (Draining, Hangup, Some(Draining)),
            (Draining, Drain, Some(Draining)),
            (Draining, Terminate, Some(Stopping)),
            (Draining, Interrupt, None),
            (Stopping, Hangup, Some(Stopping)),
            // A drain without an end does not take the place of one that has been asked to end.
            (Stopping, Drain, Some(Stopping)),
            (Stopping, Terminate, None),
            (Stopping, Interrupt, None),
        ] {
            assert_eq!(stage.after(sent), next, "{stage:?} {sent:?}");
        }
    }
}
