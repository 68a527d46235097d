//! Health, for load balancers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode};

use super::Api;
use crate::control::service::{WORKER_CHECK, Watchdog};
use crate::control::start::WorkerControl;
use crate::http::response;

/// Watches the workers on the thread of HTTP: that of control may wait for a slow file during a reload.
#[derive(Debug)]
pub(super) struct Health(Rc<RefCell<Watchdog>>);

impl Health {
    /// Watches the workers until the thread ends. Must be called within a `LocalSet`.
    pub(super) fn watch(workers: &[WorkerControl]) -> Self {
        let statistics = workers.iter().map(|worker| Arc::clone(&worker.statistics));
        let watchdog = Rc::new(RefCell::new(Watchdog::new(statistics, WORKER_CHECK)));
        let watched = Rc::clone(&watchdog);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(WORKER_CHECK).await;
                watched.borrow_mut().check();
            }
        });
        Self(watchdog)
    }

    /// Returns the workers that are stalled.
    pub(super) fn stalled(&self) -> Vec<usize> {
        self.0.borrow().stalled()
    }
}

impl Api {
    /// Whether the event loop of each worker turns.
    pub(super) fn health(&self) -> Response<Full<Bytes>> {
        match self.health.stalled().first() {
            None => response::text(StatusCode::OK, "ok\n"),
            Some(worker) => response::text(StatusCode::SERVICE_UNAVAILABLE, format!("worker {worker} is stalled\n")),
        }
    }

    /// Whether the server makes new allocations.
    pub(super) fn readiness(&self) -> Response<Full<Bytes>> {
        match self.obstacle() {
            None => response::text(StatusCode::OK, "ready\n"),
            Some(obstacle) => response::text(StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
        }
    }

    /// Returns why the server makes no new allocations.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        let published = self.published.borrow();
        let core = &published.snapshot.core;
        let most = core.limits.allocations;
        if !self.health.stalled().is_empty() {
            Some("a worker is stalled")
        } else if self.ledger.is_draining() {
            Some("draining")
        } else if most > 0 && self.ledger.quota.allocations() >= most {
            Some("full: limits.allocations is reached")
        } else if !core.relays.iter().any(|address| address.is_usable()) {
            Some("this machine has no relay address")
        } else if core.relays.iter().filter(|address| address.is_usable()).all(|address| address.is_full()) {
            Some("full: no relay port is free")
        } else {
            None
        }
    }
}
