//! From "ready" to the end: signals, the drain, and what the service manager is told meanwhile.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, Sleep, interval, sleep};

use super::News;
use super::service::{Pulse, Service};
use super::tls::{self, Certificates};
use crate::clock;
use crate::turn::Shared;

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
    pub(super) shared: &'a Shared,
    pub(super) heartbeats: &'a [Arc<AtomicU64>],
    /// How long SIGTERM waits for the last allocation.
    pub(super) drain_deadline: Duration,
    /// Kept up to date until the end.
    pub(super) certificates: Option<Certificates>,
    pub(super) service: Service,
}

impl Life<'_> {
    /// Waits for the end. If a worker ended unexpectedly, it is the end and says which.
    pub(super) async fn run(mut self, signals: &mut Signals, news: &mut mpsc::Receiver<News>) -> Option<usize> {
        let mut stage = Stage::Serving;
        let mut deadline: Option<Pin<Box<Sleep>>> = None;
        let watchdog = self.service.watchdog_period();
        let mut pulse = watchdog.map(|period| Pulse::new(self.heartbeats, period));
        let (mut sign, mut status) = (watchdog.map(every), self.service.listens().then(|| every(STATUS)));
        // So that each look is a whole period behind the one before.
        sign.iter_mut().for_each(Interval::reset);
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
                Some(News::Ended(index)) = news.recv() => break Some(index),
                () = tick(&mut look) => {
                    if self.allocations() == 0 {
                        break None;
                    }
                }
                () = async { match &mut deadline { Some(sleep) => sleep.await, None => pending().await } } => {
                    tracing::info!(allocations = self.allocations(), "the drain deadline has come");
                    break None;
                }
                () = tls::due(&mut self.certificates) => {
                    if let Some(certificates) = &mut self.certificates {
                        certificates.look();
                    }
                }
                () = tick(&mut progress) => tracing::info!(allocations = self.allocations(), "draining"),
                () = tick(&mut status) => {
                    let status = self.status(stage);
                    self.service.status(status);
                }
                () = tick(&mut sign) => self.sign_of_life(pulse.as_mut()),
            }
        };
        self.service.stopping(FAREWELL);
        early
    }

    /// Begins a drain; the answer is its deadline.
    fn begin(&self, stage: Stage) -> Option<Pin<Box<Sleep>>> {
        self.shared.draining.store(true, Ordering::Relaxed);
        let allocations = self.allocations();
        if stage != Stage::Stopping {
            // A service manager that knew of it would set a limit to it.
            tracing::info!(
                allocations,
                "SIGUSR1: draining; no new allocations are made, and the server ends with the last one"
            );
            return None;
        }
        self.service.stopping(self.drain_deadline + FAREWELL);
        if allocations > 0 {
            tracing::info!(
                allocations,
                deadline = self.drain_deadline.as_secs(),
                "SIGTERM: draining; no new allocations are made, and the server ends with the last one, or after the \
                 deadline (drain-deadline, in seconds); a second SIGTERM ends it at once"
            );
        }
        Some(Box::pin(sleep(self.drain_deadline)))
    }

    /// Reads again what can be read again.
    fn reload(&mut self) {
        self.service.reloading(clock::monotonic());
        const RESTART: &str = "the configuration is not reloaded by this version; restart it to apply a change";
        match &mut self.certificates {
            Some(certificates) => {
                certificates.reload();
                tracing::info!("SIGHUP: the certificate was looked at; {RESTART}");
            }
            None => tracing::warn!("SIGHUP: {RESTART}"),
        }
        self.service.ready();
    }

    fn sign_of_life(&self, pulse: Option<&mut Pulse>) {
        match pulse.and_then(Pulse::stalled) {
            None => self.service.alive(),
            Some(worker) => tracing::error!(
                worker,
                "the worker's loop stands still, so the service manager gets no sign of life; this is a bug, please \
                 report it"
            ),
        }
    }

    fn status(&self, stage: Stage) -> String {
        let (allocations, connections) = (self.allocations(), self.shared.connections.allocations());
        let clients = format!("{}, {}", plural(allocations, "allocation"), plural(connections, "connection"));
        match stage {
            Stage::Serving => clients,
            Stage::Draining | Stage::Stopping => format!("draining: {clients}"),
        }
    }

    fn allocations(&self) -> u32 {
        self.shared.quota.allocations()
    }
}

/// An interval that leaves out what it is too late for. Its first tick is due at once.
fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
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
