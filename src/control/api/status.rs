//! `GET /v1/status`.

use std::sync::atomic::Ordering;

use hyper::Request;
use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use super::Api;
use super::query::Query;
use super::refusal::Refusal;
use super::sessions::session;
use crate::clock;
use crate::control::remaining;
use crate::control::webhook::Counts;
use crate::turn::Outcome;
use crate::worker::Totals;

/// The most sessions that a response names.
const MOST_NAMED: usize = 100;

impl Api {
    pub(super) async fn status(&self, request: &Request<Bytes>) -> Result<Value, Refusal> {
        let mut query = Query::of(request);
        let named = query.value("remaining")?.unwrap_or(remaining::NAMED);
        query.finish()?;
        if named > MOST_NAMED {
            return Err(Refusal::bad_request(format!("remaining must be at most {MOST_NAMED}")));
        }
        self.publish_gauges().await;
        let (totals, remaining) = (self.totals(), self.remaining(named).await);
        Ok(json!({
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
            "remaining": remaining,
            "webhook": self.webhook.read().map(|counts| webhook(&counts)),
            "fleet": self.fleet_summary(),
        }))
    }

    /// Returns what matters of the fleet; `null` if this server is part of none.
    fn fleet_summary(&self) -> Value {
        let fleet = &self.inputs.fleet;
        let Some(mut summary) = fleet.view.borrow().summary(self.now()) else { return Value::Null };
        if let Some(fields) = summary.as_object_mut() {
            fields.insert("events_queued".to_owned(), fleet.stream.queued.load(Ordering::Relaxed).into());
        }
        summary
    }

    /// Returns the oldest sessions while the server drains; `null` otherwise.
    async fn remaining(&self, most: usize) -> Value {
        if most == 0 || !self.ledger.is_draining() {
            return Value::Null;
        }
        remaining::oldest(&self.workers, most).await.iter().map(|(worker, info)| session(*worker, info)).collect()
    }
}

fn webhook(counts: &Counts) -> Value {
    json!({
        "queued": counts.queued,
        "queued_bytes": counts.queued_bytes,
        "sent": counts.sent,
        "dropped": counts.dropped,
        "failures": counts.failures,
        "last_success": counts.last_success,
    })
}

/// Returns the dropped packets by reason.
fn dropped(totals: &Totals) -> Map<String, Value> {
    let occurred = totals.packets.occurred().filter_map(|(outcome, packets)| match outcome {
        Outcome::Dropped(reason) => Some((reason.label().to_owned(), packets.into())),
        _ => None,
    });
    occurred.collect()
}
