//! The listeners that workers could not open, although their sockets were bound.
//!
//! A reload opens them again, as far as that is possible without harm: a new socket of UDP would change which worker
//! gets the packets of present clients, unless no worker has one.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::listeners::Listeners;
use crate::transport::Endpoint;
use crate::worker::FailedListener;

/// A listener that a worker could not open.
#[derive(Debug)]
struct Failure {
    worker: usize,
    /// The generation of the listeners that it belongs to.
    generation: u64,
    listener: FailedListener,
    /// Whether an earlier reload has reported it, and none tries again.
    is_old: bool,
}

/// The failures, as long as the configuration has the listeners.
#[derive(Debug)]
pub(super) struct FailedListeners {
    sender: mpsc::UnboundedSender<Failure>,
    reports: mpsc::UnboundedReceiver<Failure>,
    failures: Vec<Failure>,
    /// The number of workers.
    workers: usize,
}

/// Reports what a worker could not open, also after the reload has stopped waiting for the worker.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    sender: mpsc::UnboundedSender<Failure>,
    generation: u64,
}

impl Reporter {
    pub(super) fn report(&self, worker: usize, failed: Vec<FailedListener>) {
        for listener in failed {
            // After the server has stopped, there is no receiver.
            let _ = self.sender.send(Failure { worker, generation: self.generation, listener, is_old: false });
        }
    }
}

impl FailedListeners {
    pub(super) fn new(workers: usize) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        Self { sender, reports, failures: Vec::new(), workers }
    }

    /// Returns a reporter for listeners of a generation.
    pub(super) fn reporter(&self, generation: u64) -> Reporter {
        Reporter { sender: self.sender.clone(), generation }
    }

    /// Adds what has been reported, and forgets the listeners that the configuration no longer has.
    pub(super) fn update(&mut self, listeners: &Listeners) {
        self.failures.extend(std::iter::from_fn(|| self.reports.try_recv().ok()));
        self.failures.retain(|failure| listeners.has(failure.listener.endpoint, failure.generation));
    }

    /// Prepares a reload: listeners that no worker has are forgotten, so that it binds them like new ones.
    pub(super) fn forget_lost(&mut self, listeners: &mut Listeners) {
        self.update(listeners);
        let lost: Vec<Endpoint> = self.failures.iter().map(|failure| failure.listener.endpoint).collect();
        lost.into_iter().filter(|endpoint| self.is_lost(*endpoint)).for_each(|endpoint| listeners.forget(endpoint));
        self.update(listeners);
    }

    /// Returns the listeners that a reload opens again, with the workers.
    pub(super) fn to_retry(&self) -> Vec<(usize, Endpoint)> {
        let retried = self.failures.iter().filter(|failure| self.is_retried(failure));
        retried.map(|failure| (failure.worker, failure.listener.endpoint)).collect()
    }

    /// Begins a reload, which opens the listeners of [`to_retry`](Self::to_retry).
    pub(super) fn begin_reload(&mut self) {
        self.failures.retain(|failure| !failure.listener.endpoint.transport.is_connection());
        self.failures.iter_mut().for_each(|failure| failure.is_old = true);
    }

    /// Whether the reload could open all listeners that it tried to open.
    pub(super) fn is_complete(&self) -> bool {
        self.failures.iter().all(|failure| failure.is_old)
    }

    /// Returns the number of workers that could not open a listener.
    pub(super) fn workers_without(&self, endpoint: Endpoint) -> usize {
        let failed = self.failures.iter().filter(|failure| is_same(failure.listener.endpoint, endpoint));
        failed.map(|failure| failure.worker).collect::<BTreeSet<_>>().len()
    }

    /// Whether no worker has the listener.
    fn is_lost(&self, endpoint: Endpoint) -> bool {
        self.workers_without(endpoint) >= self.workers
    }

    fn is_retried(&self, failure: &Failure) -> bool {
        let endpoint = failure.listener.endpoint;
        endpoint.transport.is_connection() || self.is_lost(endpoint)
    }

    /// Returns the failures for the operator.
    pub(super) fn shown(&self) -> Vec<Value> {
        let shown = |failure: &Failure| {
            let Failure { worker, listener: FailedListener { endpoint, error }, is_old, .. } = failure;
            json!({
                "worker": worker,
                "transport": endpoint.transport.as_str(),
                "address": endpoint.address.to_string(),
                "error": error.to_string(),
                "old": is_old,
                "retried": self.is_retried(failure),
            })
        };
        self.failures.iter().map(shown).collect()
    }

    /// Logs the failures.
    pub(super) fn log(&self) {
        for failure in &self.failures {
            let Failure { worker, listener: FailedListener { endpoint, error }, is_old, .. } = failure;
            let (transport, address) = (endpoint.transport.as_str(), endpoint.address);
            if *is_old {
                tracing::warn!(
                    event = "listener-missing", worker, transport, %address, %error,
                    "since an earlier reload, a worker cannot serve clients at a listener; the other workers do. To \
                     open it at all workers, restart the server"
                );
                continue;
            }
            let advice = if self.is_retried(failure) { "reload again" } else { "restart the server" };
            tracing::warn!(
                event = "reload-incomplete", worker, transport, %address, %error,
                "a worker cannot serve clients at a listener; {advice}"
            );
        }
    }
}

/// Whether two endpoints are those of one socket. A TCP listener may have become one for TLS.
pub(super) fn is_same(one: Endpoint, other: Endpoint) -> bool {
    one.address == other.address && one.transport.port_protocol() == other.transport.port_protocol()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::control::listeners::Neighbours;
    use crate::transport::Transport;

    const WORKERS: usize = 2;

    fn at(transport: Transport, text: &str) -> Endpoint {
        Endpoint::new(transport, text.parse().unwrap())
    }

    fn error(endpoint: Endpoint) -> Vec<FailedListener> {
        vec![FailedListener { endpoint, error: io::Error::other("no room") }]
    }

    /// Returns listeners that follow `before`, and the number of listeners that each worker opens.
    fn next(before: &Listeners, wanted: &[Endpoint], retry: &[(usize, Endpoint)]) -> (Listeners, [usize; WORKERS]) {
        let mut new = before.preview(wanted, WORKERS, &Neighbours::default(), false).unwrap();
        new.open_again(retry).unwrap();
        (new.listeners, [0, 1].map(|worker| new.changes[worker].open.len()))
    }

    /// Reloads a configuration. Returns the number of listeners that each worker opens.
    fn reload(failed: &mut FailedListeners, listeners: &mut Listeners, wanted: &[Endpoint]) -> [usize; WORKERS] {
        failed.forget_lost(listeners);
        let (new, opened) = next(listeners, wanted, &failed.to_retry());
        failed.begin_reload();
        *listeners = new;
        failed.update(listeners);
        opened
    }

    #[test]
    fn a_reload_opens_a_tcp_listener_again_that_a_worker_could_not_open() {
        let wanted = [at(Transport::Tcp, "127.0.0.1:0"), at(Transport::Udp, "127.0.0.1:0")];
        let mut failed = FailedListeners::new(WORKERS);
        let (mut listeners, opened) = next(&Listeners::default(), &wanted, &[]);
        assert_eq!(opened, [2, 2]);
        let tcp = listeners.endpoints()[0];
        failed.reporter(listeners.generation()).report(1, error(tcp));
        failed.update(&listeners);
        let expected = json!({
            "worker": 1, "transport": "tcp", "address": tcp.address.to_string(), "error": "no room", "old": false,
            "retried": true,
        });
        assert_eq!((failed.shown(), failed.is_complete()), (vec![expected], false));
        assert_eq!(reload(&mut failed, &mut listeners, &wanted), [0, 1]);
        assert!(failed.is_complete() && failed.shown().is_empty());
        assert_eq!(reload(&mut failed, &mut listeners, &wanted), [0, 0]);
        // It fails again, also as a listener for TLS.
        let as_tls = [at(Transport::Tls, &tcp.address.to_string()), wanted[1]];
        failed.reporter(listeners.generation()).report(1, error(tcp));
        assert_eq!(reload(&mut failed, &mut listeners, &as_tls), [0, 1]);
        assert!(failed.is_complete());
    }

    // A new socket would change which worker the kernel gives the packets of present clients to.
    #[test]
    fn a_udp_listener_is_opened_again_only_if_no_worker_has_it_and_is_reported_once_as_incomplete() {
        let wanted = [at(Transport::Udp, "127.0.0.1:0")];
        let mut failed = FailedListeners::new(WORKERS);
        let (mut listeners, _) = next(&Listeners::default(), &wanted, &[]);
        let udp = listeners.endpoints()[0];
        failed.reporter(listeners.generation()).report(0, error(udp));
        failed.update(&listeners);
        assert!(!failed.is_complete());
        for _ in 0..2 {
            assert_eq!(reload(&mut failed, &mut listeners, &wanted), [0, 0]);
            let shown = failed.shown();
            assert_eq!((&shown[0]["old"], &shown[0]["retried"]), (&json!(true), &json!(false)));
            assert!(failed.is_complete());
        }
        failed.reporter(listeners.generation()).report(1, error(udp));
        failed.update(&listeners);
        assert_eq!(failed.workers_without(udp), 2);
        assert_eq!(reload(&mut failed, &mut listeners, &wanted), [1, 1]);
        assert!(failed.is_complete() && failed.shown().is_empty());
    }

    #[test]
    fn a_failure_is_forgotten_with_its_listener_and_does_not_concern_a_newer_one_at_its_address() {
        // No other test uses this address, so none takes the port while no listener has it.
        let wanted = [at(Transport::Udp, "127.31.7.2:0"), at(Transport::Tcp, "127.31.7.2:0")];
        let mut failed = FailedListeners::new(WORKERS);
        let (mut listeners, _) = next(&Listeners::default(), &wanted, &[]);
        let [udp, tcp] = [listeners.endpoints()[0], listeners.endpoints()[1]];
        let late = failed.reporter(listeners.generation());
        late.report(1, error(udp));
        failed.update(&listeners);
        assert_eq!(failed.shown().len(), 1);
        reload(&mut failed, &mut listeners, &[tcp]);
        assert!(failed.shown().is_empty());
        reload(&mut failed, &mut listeners, &[udp, tcp]);
        late.report(0, error(udp));
        late.report(1, error(tcp));
        failed.update(&listeners);
        let workers: Vec<Value> = failed.shown().iter().map(|failure| failure["transport"].clone()).collect();
        assert_eq!(workers, [json!("tcp")], "the TCP listener is the same as before");
    }
}
