//! The running server: signals, the drain, and the notifications to the service manager.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep, timeout_at};

use super::acme::{Acme, Pending};
use super::api::Published;
use super::commands::{Command, Request};
use super::events::Events;
use super::failed::FailedListeners;
use super::fleet::{Fleet, FleetInUse};
use super::follow::Follower;
use super::front::Fronts;
use super::listeners::Listeners;
use super::logging::Logging;
use super::offload::Offload;
use super::redis::{self, Redis};
use super::reload::Source;
use super::remaining;
use super::service::{STALL_TIMEOUT, Service, WORKER_CHECK, Watchdog};
use super::service_listeners::{Service as Listening, ServiceChanged, ServiceThread};
use super::signals::{Received, Signals, log_ignored};
use super::snapshot::{SnapshotInputs, snapshot};
use super::start::{Spare, WorkerControl};
use super::tls::{self, Certificates, Replacement};
use super::{BrowserEntry, WorkerEvent};
use crate::clock;
use crate::config::{Config, LogLevel};
use crate::http;
use crate::net::tls::date;
use crate::privacy::Privacy;
use crate::setting::DRAIN_DEADLINE;
use crate::turn::{Ledger, Operator};
use crate::worker::{ListenerChange, Snapshot};

/// The interval at which a drain checks whether the last allocation has ended.
const DRAIN_CHECK: Duration = Duration::from_millis(100);

/// The interval at which a drain logs who is left.
const PROGRESS: Duration = Duration::from_secs(30);

/// The interval at which the service manager is notified of the number of clients.
const STATUS: Duration = Duration::from_secs(5);

/// The interval at which the server looks which interfaces have the XDP program.
const OFFLOAD_CHECK: Duration = Duration::from_secs(5);

/// The maximum time to stop after a drain: for the last responses and the log.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum time to wait until all workers use a new configuration.
const RECONFIGURE_TIMEOUT: Duration = Duration::from_secs(2);

/// The stage of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Serving,
    /// The process stops when the last allocation ends.
    Draining,
    /// The process stops when the last allocation ends, or at the deadline.
    Stopping,
}

impl Stage {
    /// Returns the stage after a signal; `None` if the process stops at once.
    fn after(self, signal: Received) -> Option<Self> {
        match (self, signal) {
            (_, Received::Interrupt) | (Self::Stopping, Received::Terminate) => None,
            (Self::Serving | Self::Draining, Received::Terminate) => Some(Self::Stopping),
            (Self::Serving, Received::Drain) => Some(Self::Draining),
            (stage, Received::Hangup | Received::Drain | Received::Ignored(_)) => Some(stage),
        }
    }
}

/// Why the stage does not change as commanded.
const STOPPING: &str = "the server is stopping because of SIGTERM, so it cannot resume";

impl Stage {
    /// Returns the stage after a drain that the operator commands. A drain without a deadline does not replace one with
    /// a deadline.
    fn drained(self) -> Self {
        match self {
            Self::Serving | Self::Draining => Self::Draining,
            Self::Stopping => Self::Stopping,
        }
    }

    /// Returns the stage after the operator has ended a drain. A stop cannot be ended.
    fn resumed(self) -> Result<Self, &'static str> {
        match self {
            Self::Serving | Self::Draining => Ok(Self::Serving),
            Self::Stopping => Err(STOPPING),
        }
    }
}

/// The stage, and the timers of a drain.
#[derive(Debug)]
struct Progress {
    stage: Stage,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Until the last allocation has ended.
    check: Option<Interval>,
    /// Until the next log line.
    report: Option<Interval>,
}

impl Progress {
    const SERVING: Self = Self { stage: Stage::Serving, deadline: None, check: None, report: None };

    fn draining(stage: Stage, deadline: Option<Duration>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep(deadline)));
        Self { stage, deadline, check: Some(every(DRAIN_CHECK)), report: Some(every(PROGRESS)) }
    }
}

/// A server whose workers run.
pub(super) struct RunningServer<'a> {
    pub(super) source: &'a Source,
    /// The configuration in use.
    pub(super) config: Arc<Config>,
    pub(super) listeners: Listeners,
    pub(super) http: ServiceThread,
    pub(super) fronts: Fronts,
    /// The listeners that workers could not open.
    pub(super) failed: FailedListeners,
    pub(super) inputs: SnapshotInputs,
    pub(super) spare: Spare,
    /// The commands of the operator.
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) log: &'a Logging,
    /// The addresses of this machine.
    pub(super) addresses: Follower,
    pub(super) entry: BrowserEntry<'a>,
    pub(super) ledger: &'a Ledger,
    pub(super) workers: &'a [WorkerControl],
    /// The configuration that the workers read, and what else the HTTP server shows.
    pub(super) published: watch::Sender<Published>,
    /// `Some` if `[tls]` is set.
    pub(super) certificates: Option<Certificates>,
    /// Orders the certificate if `[tls.acme]` is set.
    pub(super) acme: Acme,
    /// Tells others about allocations.
    pub(super) accounting: &'a mut Events,
    /// Connects this server with others.
    pub(super) fleet: &'a mut Fleet,
    /// Looks up users if `[auth.redis]` is set.
    pub(super) redis: Redis,
    pub(super) service: Service,
    pub(super) offload: &'a Offload,
    /// The workers that are stalled.
    pub(super) stalled: Vec<usize>,
}

impl RunningServer<'_> {
    /// Handles signals until the server stops. Returns the index of a worker that ended unexpectedly, if any.
    pub(super) async fn run(
        mut self,
        signals: &mut Signals,
        events: &mut mpsc::Receiver<WorkerEvent>,
    ) -> Option<usize> {
        let mut progress = Progress::SERVING;
        let statistics = self.workers.iter().map(|worker| Arc::clone(&worker.statistics));
        let (mut watchdog, mut check) = (Watchdog::new(statistics, WORKER_CHECK), every(WORKER_CHECK));
        // A worker may have no heartbeat yet.
        check.reset();
        let mut ping = self.service.watchdog_period().map(every);
        let mut status = self.service.is_connected().then(|| every(STATUS));
        let mut offload_check = every(OFFLOAD_CHECK);
        // The first ping is one period after the start.
        ping.iter_mut().for_each(Interval::reset);
        self.service.ready();
        // After that: until the service is ready, systemd watches its sockets, and regards the unit of one that does not
        // listen as failed.
        self.refuse_unused();
        let ended_early = loop {
            tokio::select! {
                biased;
                signal = signals.next() => {
                    let Some(next) = progress.stage.after(signal) else { break None };
                    match signal {
                        // The log has the result.
                        Received::Hangup => drop(self.reload(false, None).await),
                        Received::Ignored(signal) => log_ignored(signal),
                        _ => {}
                    }
                    if next != progress.stage {
                        progress = self.start_drain(next, None);
                        status.iter_mut().for_each(Interval::reset_immediately);
                    }
                }
                Some(WorkerEvent::Ended(index)) = events.recv() => break Some(index),
                () = tick(&mut progress.check) => {
                    if self.allocations() == 0 {
                        break None;
                    }
                }
                () = passed(&mut progress.deadline) => {
                    tracing::info!(
                        event = "drain-deadline-reached", allocations = self.allocations(),
                        "drain deadline reached"
                    );
                    break None;
                }
                () = tls::due(&mut self.certificates) => {
                    let replacement = self.certificates.as_mut().and_then(Certificates::poll);
                    self.replace_certificates(replacement).await;
                }
                pending = self.acme.pending() => self.use_challenges(pending).await,
                secrets = self.redis.secrets() => self.use_redis_secrets(secrets).await,
                () = self.addresses.due() => {
                    self.follow_addresses().await;
                    status.iter_mut().for_each(Interval::reset_immediately);
                }
                () = tick(&mut progress.report) => self.report_drain(),
                () = tick(&mut status) => {
                    let status = self.status(progress.stage);
                    self.service.status(status);
                }
                _ = check.tick() => self.watch_workers(watchdog.check()),
                () = tick(&mut ping) => self.ping_watchdog(),
                _ = offload_check.tick() => self.follow_offload().await,
                // The last one, so that steady commands cannot hold up anything else.
                Some(Request { command, operator, response }) = self.requests.recv() => {
                    let result = self.carry_out(command, operator, &mut progress).await;
                    // A client that has gone needs no response.
                    let _ = response.send(result);
                    status.iter_mut().for_each(Interval::reset_immediately);
                }
            }
        };
        self.service.stopping(STOP_TIMEOUT);
        ended_early
    }

    /// Carries out a command of the operator. The error is why it is refused.
    async fn carry_out(
        &mut self,
        command: Command,
        operator: Operator,
        progress: &mut Progress,
    ) -> Result<Value, String> {
        match command {
            Command::Drain => {
                let next = progress.stage.drained();
                if next != progress.stage {
                    *progress = self.start_drain(next, Some(operator));
                }
                Ok(json!({ "draining": true, "allocations": self.allocations() }))
            }
            Command::Resume => {
                if progress.stage.resumed()? != progress.stage {
                    *progress = self.end_drain(operator);
                }
                Ok(json!({ "draining": false, "allocations": self.allocations() }))
            }
            Command::LogLevel(level) => Ok(self.set_log_level(level, operator)),
            Command::Reload { dry_run } => self.reload(dry_run, Some(operator)).await,
            Command::Revoke { username, until } => self.revoke(&username, until, operator).await,
            Command::Fleet(in_use) => Ok(self.use_fleet(in_use).await),
            Command::Alternates { servers, tls_servers } => Ok(self.use_alternates(servers, tls_servers).await),
        }
    }

    fn set_log_level(&self, level: LogLevel, operator: Operator) -> Value {
        let before = self.published.borrow().log_level;
        // The change itself is logged at every level.
        self.log.set_level(LogLevel::Info);
        let (Operator { process: pid, user: uid }, level_name) = (operator, level.as_str());
        tracing::info!(
            event = "log-level-changed",
            from = before.as_str(),
            to = level_name,
            uid,
            pid,
            "the operator has changed the log level of this run"
        );
        self.log.set_level(level);
        self.published.send_modify(|published| published.log_level = level);
        json!({ "level": level_name, "before": before.as_str() })
    }

    /// Refuses a username until a time, and waits until its allocations have ended. Without a time, ends the revocation.
    async fn revoke(&mut self, username: &str, until: Option<u64>, operator: Operator) -> Result<Value, String> {
        let now = clock::unix_seconds();
        // A revocation until the present time has no effect.
        let revoked = self.inputs.revoked.revoke(username, until.unwrap_or(now), now);
        revoked.map_err(|error| error.to_string())?;
        let tls = self.snapshot().tls.clone();
        let pending = self.reconfigure(snapshot(&self.config, &self.inputs, &self.addresses, tls)).await;
        let is_complete = pending.is_empty();
        log_revocation(&self.snapshot().privacy, username, until, is_complete, operator);
        Ok(json!({
            "username": username,
            "revoked": until.is_some(),
            "until": until,
            "complete": is_complete,
            "pending_workers": pending,
        }))
    }

    /// Uses the secrets and revocations of the fleet.
    async fn use_fleet(&mut self, in_use: FleetInUse) -> Value {
        let before = std::mem::replace(&mut self.inputs.fleet, in_use);
        if before == self.inputs.fleet {
            return Value::Null;
        }
        let secret = self.inputs.minting_secret(&self.config).cloned();
        let tls = self.snapshot().tls.clone();
        let pending = self.reconfigure(snapshot(&self.config, &self.inputs, &self.addresses, tls)).await;
        // After the workers, so that none refuses a new credential.
        self.published.send_modify(|published| published.secret = secret);
        tracing::info!(
            event = "fleet-state-used",
            secrets = self.inputs.fleet.secrets.len(),
            revocations = self.inputs.fleet.revoked.len(),
            complete = pending.is_empty(),
            "this node uses the secrets and revocations of the fleet"
        );
        Value::Null
    }

    /// Redirects clients to other nodes of the fleet.
    async fn use_alternates(&mut self, servers: Vec<SocketAddr>, tls_servers: Vec<SocketAddr>) -> Value {
        self.inputs.alternates = [servers, tls_servers];
        let tls = self.snapshot().tls.clone();
        self.reconfigure(snapshot(&self.config, &self.inputs, &self.addresses, tls)).await;
        Value::Null
    }

    /// Passes new certificates to the workers. They are logged only when the workers use them, because a reader of the
    /// log may connect at once and expect the new certificate.
    async fn replace_certificates(&mut self, replacement: Option<Replacement>) {
        let Some(replacement) = replacement else { return };
        let acceptor = replacement.acceptor().with_challenges(Arc::clone(&self.inputs.challenges));
        self.reconfigure(Snapshot { tls: Some(acceptor), ..(*self.snapshot()).clone() }).await;
        if let Some(certificates) = &self.certificates {
            let current = certificates.published();
            self.published.send_modify(|published| published.certificates = current);
            self.publish_urls();
            certificates.log_replacement(&replacement);
        }
        // The first certificate adds URLs.
        let certificate = self.certificates.as_ref().and_then(Certificates::current);
        self.entry.print(self.addresses.choice(), certificate);
    }

    /// Lets the workers and the HTTP server respond to challenges of an authority, and to no others.
    async fn use_challenges(&mut self, pending: Pending) {
        let Pending { challenges, in_use } = pending;
        self.inputs.challenges = Arc::clone(&challenges);
        let tls = self.snapshot().tls.clone().map(|acceptor| acceptor.with_challenges(Arc::clone(&challenges)));
        self.fronts.use_challenges(&challenges);
        self.reconfigure(Snapshot { tls, challenges, ..(*self.snapshot()).clone() }).await;
        // The thread may have ended.
        let _ = in_use.send(());
    }

    /// Lets the workers accept credentials of the secrets of the Redis server, besides those of the configuration.
    async fn use_redis_secrets(&mut self, (source, secrets): redis::Secrets) {
        // They may be those of an earlier configuration.
        if redis::source(&self.config) != Some(source) || *self.inputs.redis_secrets == *secrets {
            return;
        }
        let count = secrets.len();
        self.inputs.redis_secrets = secrets.into();
        self.reconfigure(snapshot(&self.config, &self.inputs, &self.addresses, self.snapshot().tls.clone())).await;
        tracing::info!(event = "redis-secrets", count, "credentials of the secrets in Redis are accepted");
    }

    /// Reads the addresses of this machine again, and passes a change to the workers.
    async fn follow_addresses(&mut self) {
        let Some(change) = self.addresses.reread() else { return };
        self.reconfigure(snapshot(&self.config, &self.inputs, &self.addresses, self.snapshot().tls.clone())).await;
        self.publish_urls();
        change.log();
        let certificate = self.certificates.as_ref().and_then(Certificates::current);
        self.entry.print(self.addresses.choice(), certificate);
    }

    /// Passes a change of the interfaces that have the XDP program to the workers.
    async fn follow_offload(&mut self) {
        let Some(interfaces) = self.offload.follow_interfaces() else { return };
        self.inputs.offload_interfaces = Arc::clone(&interfaces);
        self.reconfigure(Snapshot { offload_interfaces: interfaces, ..(*self.snapshot()).clone() }).await;
    }

    /// Publishes the URLs of the server at its present addresses, with its present certificate.
    pub(super) fn publish_urls(&self) {
        let (choice, certificate) =
            (self.addresses.choice(), self.certificates.as_ref().and_then(Certificates::current));
        let urls = self.entry.urls(choice, certificate);
        let pages = super::urls::pages(&self.config, &self.http.listeners.addresses(), choice, certificate);
        self.published.send_modify(|published| {
            published.urls = urls;
            published.pages = pages;
        });
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published.borrow().snapshot)
    }

    /// Sends each worker a new configuration, and waits until every worker uses it. After a timeout, it stops waiting;
    /// slow workers use the configuration later. Returns those.
    async fn reconfigure(&mut self, snapshot: Snapshot) -> Vec<usize> {
        self.reconfigure_with(snapshot, Vec::new()).await
    }

    /// Like [`reconfigure`](Self::reconfigure), with a change of the listeners for each worker.
    pub(super) async fn reconfigure_with(&mut self, snapshot: Snapshot, changes: Vec<ListenerChange>) -> Vec<usize> {
        let snapshot = Arc::new(snapshot);
        self.published.send_modify(|published| published.snapshot = Arc::clone(&snapshot));
        let changes = changes.into_iter().chain(std::iter::repeat_with(ListenerChange::default));
        let reconfigure = |(index, (worker, change)): (usize, (&WorkerControl, ListenerChange))| {
            let failed = self.failed.reporter(self.listeners.generation());
            let (handle, snapshot) = (worker.handle.clone(), Arc::clone(&snapshot));
            // A worker that has ended needs no configuration.
            async move { failed.report(index, handle.reconfigure(snapshot, change).await.unwrap_or_default()) }
        };
        let workers = self.workers.iter().zip(changes).enumerate();
        let results = complete_within(RECONFIGURE_TIMEOUT, workers.map(reconfigure)).await;
        self.failed.update(&self.listeners);
        let pending = results.iter().enumerate().filter(|(_, result)| result.is_none());
        let pending: Vec<usize> = pending.map(|(worker, _)| worker).collect();
        if !pending.is_empty() {
            tracing::warn!(
                event = "reconfiguration-delayed",
                timeout = RECONFIGURE_TIMEOUT.as_secs(),
                "a worker does not use the new configuration yet; it will do so when it is less busy"
            );
        }
        pending
    }

    /// Closes HTTP listeners whose ports are needed, and waits until they are closed. If that takes too long, the ports
    /// are shared for a while.
    pub(super) async fn close_http(&mut self, close: Vec<SocketAddr>, is_encrypted: bool) -> ServiceChanged {
        if close.is_empty() {
            return ServiceChanged::nothing(Listening::Http);
        }
        self.http.change(http::ListenerChange { open: Vec::new(), close, is_encrypted }, RECONFIGURE_TIMEOUT).await
    }

    /// Closes listeners of fronts whose ports are needed, and waits until they are closed.
    pub(super) async fn close_fronts(&mut self, close: Vec<SocketAddr>) -> ServiceChanged {
        if close.is_empty() {
            return ServiceChanged::nothing(Listening::Front);
        }
        let change = http::ListenerChange { open: Vec::new(), close, is_encrypted: false };
        self.fronts.change(change, RECONFIGURE_TIMEOUT).await
    }

    /// Changes the listeners of the fronts, and waits until they are open.
    pub(super) async fn change_fronts(&mut self, change: http::ListenerChange) -> ServiceChanged {
        self.fronts.change(change, RECONFIGURE_TIMEOUT).await
    }

    /// Changes the HTTP listeners, and waits until they are open.
    pub(super) async fn change_http(&mut self, change: http::ListenerChange) -> ServiceChanged {
        let changed = self.http.change(change, RECONFIGURE_TIMEOUT).await;
        if changed.is_pending() {
            tracing::warn!(
                event = "reconfiguration-delayed",
                timeout = RECONFIGURE_TIMEOUT.as_secs(),
                "the HTTP server has not changed its listeners yet; it will do so when it is less busy"
            );
        }
        if !changed.is_complete() {
            // Test links do not name a listener that is not open.
            self.publish_urls();
        }
        changed
    }

    /// Starts a drain: because of a signal, or because the operator has commanded it.
    fn start_drain(&self, stage: Stage, operator: Option<Operator>) -> Progress {
        self.ledger.set_draining(true);
        let allocations = self.allocations();
        if stage != Stage::Stopping {
            // The service manager is not notified, because it would limit the duration of the drain.
            let cause = if operator.is_some() { "`turnserver ctl drain`" } else { "SIGUSR1" };
            let (pid, uid) = (operator.and_then(|by| by.process), operator.and_then(|by| by.user));
            tracing::info!(
                event = "drain-started",
                allocations,
                uid,
                pid,
                "{cause}: draining. New allocations are rejected; the server stops when the last allocation ends"
            );
            return Progress::draining(stage, None);
        }
        self.service.stopping(self.config.drain_deadline + STOP_TIMEOUT);
        if allocations > 0 {
            tracing::info!(
                event = "drain-started",
                allocations,
                deadline = self.config.drain_deadline.as_secs(),
                "SIGTERM: draining. New allocations are rejected; the server stops when the last allocation ends or at \
                 the deadline ({DRAIN_DEADLINE}, in seconds). A second SIGTERM stops it at once"
            );
        }
        Progress::draining(stage, Some(self.config.drain_deadline))
    }

    /// Logs who is left. Its own task waits for the workers.
    fn report_drain(&self) {
        let privacy = Arc::clone(&self.snapshot().privacy);
        tokio::spawn(remaining::log(self.workers.to_vec(), self.allocations(), privacy));
    }

    /// Ends a drain, so that there are new allocations again.
    fn end_drain(&self, operator: Operator) -> Progress {
        self.ledger.set_draining(false);
        let (Operator { process: pid, user: uid }, allocations) = (operator, self.allocations());
        tracing::info!(event = "drain-ended", allocations, uid, pid, "the operator has ended the drain");
        Progress::SERVING
    }

    /// Remembers which workers are stalled, and logs changes.
    fn watch_workers(&mut self, stalled: Vec<usize>) {
        let before = std::mem::replace(&mut self.stalled, stalled);
        let consequence = match self.service.watchdog_period() {
            Some(_) => "its clients are not served, and the service manager gets no watchdog ping",
            None => "its clients are not served",
        };
        for worker in self.stalled.iter().copied().filter(|worker| !before.contains(worker)) {
            tracing::error!(
                event = "worker-stalled",
                worker,
                "the worker has completed no iteration for {} s, so {consequence}. If the machine has free CPU and \
                 memory, this is a bug: restart the server, and please report it",
                STALL_TIMEOUT.as_secs()
            );
        }
        for worker in before.into_iter().filter(|worker| !self.stalled.contains(worker)) {
            tracing::warn!(event = "worker-recovered", worker, "the worker is no longer stalled");
        }
    }

    fn ping_watchdog(&self) {
        if self.stalled.is_empty() {
            self.service.ping_watchdog();
        }
    }

    fn status(&self, stage: Stage) -> String {
        let (allocations, connections) = (self.allocations(), self.ledger.connections.allocations());
        let mut clients = format!("{}, {}", plural(allocations, "allocation"), plural(connections, "connection"));
        if let Some(waits) = self.addresses.waits_for() {
            clients = format!("{clients}; {waits}");
        }
        match stage {
            Stage::Serving => clients,
            Stage::Draining | Stage::Stopping => format!("draining: {clients}"),
        }
    }

    fn allocations(&self) -> u32 {
        self.ledger.quota.allocations()
    }
}

/// Runs futures until all of them are complete, and returns their results; `None` for those that take longer than a
/// time. These continue.
async fn complete_within<T: Send + 'static>(
    time: Duration,
    futures: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<Option<T>> {
    // A separate task continues after the timeout.
    let tasks: Vec<_> = futures.map(tokio::spawn).collect();
    let deadline = Instant::now() + time;
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(timeout_at(deadline, task).await.ok().and_then(Result::ok));
    }
    results
}

/// Logs that a username is revoked until a time, or that its revocation has ended.
fn log_revocation(privacy: &Privacy, username: &str, until: Option<u64>, is_complete: bool, operator: Operator) {
    let Operator { process: pid, user: uid } = operator;
    let Some(until) = until else {
        tracing::info!(
            event = "revocation-ended",
            username = privacy.username(username).as_deref(),
            complete = is_complete,
            uid,
            pid,
            "the operator has ended the revocation of a username"
        );
        return;
    };
    let effect = if is_complete {
        "its requests are rejected, and its allocations have ended"
    } else {
        "a worker that is busy still accepts its requests and has not ended its allocations yet; it will do so when it \
         is less busy"
    };
    tracing::info!(
        event = "username-revoked",
        username = privacy.username(username).as_deref(),
        until = date(until),
        complete = is_complete,
        uid,
        pid,
        "the operator has revoked a username: {effect}"
    );
}

/// Returns an interval whose first tick is immediate, and which does not make up for missed ticks.
fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Waits for the next tick; forever if there is no interval.
async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => pending().await,
    }
}

/// Waits until the time has passed; forever if there is none.
async fn passed(time: &mut Option<Pin<Box<Sleep>>>) {
    match time {
        Some(sleep) => sleep.await,
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
    fn each_signal_has_a_defined_effect_in_each_stage() {
        use Received::{Drain, Hangup, Ignored, Interrupt, Terminate};
        use Stage::{Draining, Serving, Stopping};
        for (stage, signal, next) in [
            (Serving, Ignored(libc::SIGUSR2), Some(Serving)),
            (Draining, Ignored(libc::SIGUSR2), Some(Draining)),
            (Stopping, Ignored(libc::SIGUSR2), Some(Stopping)),
            (Serving, Hangup, Some(Serving)),
            (Serving, Drain, Some(Draining)),
            (Serving, Terminate, Some(Stopping)),
            (Serving, Interrupt, None),
            (Draining, Hangup, Some(Draining)),
            (Draining, Drain, Some(Draining)),
            (Draining, Terminate, Some(Stopping)),
            (Draining, Interrupt, None),
            (Stopping, Hangup, Some(Stopping)),
            // A drain without a deadline does not replace one with a deadline.
            (Stopping, Drain, Some(Stopping)),
            (Stopping, Terminate, None),
            (Stopping, Interrupt, None),
        ] {
            assert_eq!(stage.after(signal), next, "{stage:?} {signal:?}");
        }
    }

    #[tokio::test]
    async fn what_takes_too_long_is_not_complete_and_continues() {
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let (done, finished) = tokio::sync::oneshot::channel();
        let slow = async move {
            let _ = receiver.await;
            let _ = done.send(());
        };
        assert_eq!(complete_within(Duration::from_millis(1), std::iter::once(slow)).await, [None]);
        sender.send(()).unwrap();
        finished.await.unwrap();
        let futures = [1, 2].map(|result| async move { result });
        assert_eq!(complete_within(Duration::from_secs(60), futures.into_iter()).await, [Some(1), Some(2)]);
    }

    #[test]
    fn the_operator_can_end_a_drain_but_not_a_stop() {
        use Stage::{Draining, Serving, Stopping};
        assert_eq!([Serving, Draining, Stopping].map(Stage::drained), [Draining, Draining, Stopping]);
        assert_eq!([Serving, Draining, Stopping].map(Stage::resumed), [Ok(Serving), Ok(Serving), Err(STOPPING)]);
    }
}
