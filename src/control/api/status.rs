//! `GET /v1/status`.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use serde_json::json;

use super::Api;
use crate::clock;
use crate::http::response;

impl Api {
    pub(super) async fn status(&self) -> Response<Full<Bytes>> {
        self.publish_gauges().await;
        let totals = self.totals();
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "started": self.started,
            "uptime": clock::unix_seconds().saturating_sub(self.started),
            "ready": self.obstacle().is_none(),
            "not_ready_because": self.obstacle(),
            "draining": self.ledger.is_draining(),
            "workers": self.workers.len(),
            "allocations": totals.allocations(),
            "channels": totals.gauges.channels,
            "connections": totals.connections.open(),
            "bytes_to_peers": totals.bytes_to_peers,
            "bytes_to_clients": totals.bytes_to_clients,
        });
        response::json(StatusCode::OK, &status)
    }
}
