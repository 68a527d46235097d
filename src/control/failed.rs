//! The listeners that workers could not open, although their sockets were bound.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::transport::Endpoint;
use crate::worker::FailedListener;

/// A listener that could not be opened, with the index of the worker.
type Failure = (usize, FailedListener);

/// The failures of all reloads, as long as the configuration has the listeners.
#[derive(Debug)]
pub(super) struct FailedListeners {
    reporter: Reporter,
    reports: mpsc::UnboundedReceiver<Failure>,
    failures: Vec<Failure>,
}

/// Reports what a worker could not open, also after the reload has stopped waiting for the worker.
#[derive(Clone, Debug)]
pub(super) struct Reporter(mpsc::UnboundedSender<Failure>);

impl Reporter {
    pub(super) fn report(&self, worker: usize, failed: Vec<FailedListener>) {
        // After the server has stopped, there is no receiver.
        failed.into_iter().for_each(|listener| drop(self.0.send((worker, listener))));
    }
}

impl Default for FailedListeners {
    fn default() -> Self {
        let (reporter, reports) = mpsc::unbounded_channel();
        Self { reporter: Reporter(reporter), reports, failures: Vec::new() }
    }
}

impl FailedListeners {
    pub(super) fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// Adds what has been reported, and forgets the listeners that the configuration no longer has.
    pub(super) fn update(&mut self, present: &[Endpoint]) {
        self.failures.extend(std::iter::from_fn(|| self.reports.try_recv().ok()));
        // A TCP listener may have become one for TLS.
        let is_same = |one: &Endpoint, other: &Endpoint| {
            one.address == other.address && one.transport.port_protocol() == other.transport.port_protocol()
        };
        self.failures.retain(|(_, failed)| present.iter().any(|own| is_same(own, &failed.endpoint)));
    }

    /// Returns the failures for the operator.
    pub(super) fn shown(&self) -> Vec<Value> {
        let shown = |(worker, FailedListener { endpoint, error }): &Failure| {
            let (transport, address) = (endpoint.transport.as_str(), endpoint.address.to_string());
            json!({ "worker": worker, "transport": transport, "address": address, "error": error.to_string() })
        };
        self.failures.iter().map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::transport::Transport;

    #[test]
    fn a_listener_that_a_worker_could_not_open_is_shown_until_the_configuration_no_longer_has_it() {
        let at = |transport, text: &str| Endpoint::new(transport, text.parse().unwrap());
        let [tcp, other] = [at(Transport::Tcp, "192.0.2.1:3478"), at(Transport::Udp, "192.0.2.1:3478")];
        let mut failed = FailedListeners::default();
        failed.update(&[tcp, other]);
        assert!(failed.shown().is_empty());
        let reporter = failed.reporter();
        reporter.report(1, vec![FailedListener { endpoint: tcp, error: io::Error::other("no room") }]);
        let expected = json!({ "worker": 1, "transport": "tcp", "address": "192.0.2.1:3478", "error": "no room" });
        for present in [vec![tcp, other], vec![tcp], vec![at(Transport::Tls, "192.0.2.1:3478")]] {
            failed.update(&present);
            assert_eq!(failed.shown(), std::slice::from_ref(&expected), "{present:?}");
        }
        failed.update(&[other]);
        assert!(failed.shown().is_empty());
        failed.update(&[tcp]);
        assert!(failed.shown().is_empty());
    }
}
