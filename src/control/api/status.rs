//! `GET /v1/status`.

use serde_json::{Map, Value, json};

use super::Api;
use crate::clock;
use crate::turn::Outcome;
use crate::worker::Totals;

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
            "packets_to_peers": totals.packets.get(Outcome::RelayedToPeer),
            "bytes_to_peers": totals.bytes_to_peers,
            "packets_to_clients": totals.packets.get(Outcome::RelayedToClient),
            "bytes_to_clients": totals.bytes_to_clients,
            "log_level": self.published.borrow().log_level.as_str(),
            "dropped": dropped(&totals),
        })
    }
}

/// Returns the dropped packets by reason.
fn dropped(totals: &Totals) -> Map<String, Value> {
    let occurred = totals.packets.occurred().filter_map(|(outcome, packets)| match outcome {
        Outcome::Dropped(reason) => Some((reason.label().to_owned(), packets.into())),
        _ => None,
    });
    occurred.collect()
}
