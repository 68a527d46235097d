//! Health, for load balancers.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode};

use super::Api;
use crate::http::response;

impl Api {
    /// Whether the event loop of each worker turns.
    pub(super) fn health(&self) -> Response<Full<Bytes>> {
        match self.published.borrow().stalled.first() {
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
        if !published.stalled.is_empty() {
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
