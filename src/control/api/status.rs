//! `GET /v1/status`.

use serde_json::{Value, json};

use super::Api;
use crate::clock;

impl Api {
    pub(super) async fn status(&self) -> Value {
        self.publish_gauges().await;
        let totals = self.totals();
        json!({
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
        })
    }
}
