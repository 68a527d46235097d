//! The sums of the events that did not fit into the spool.

use serde_json::{Value, json};

use crate::turn::Traffic;

/// Running sums: the receiver keeps the greatest of each `id`, so that repeats do no harm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// Identifies the sums over restarts; empty if nothing was lost yet.
    pub(super) id: String,
    /// The allocations whose start is missing, and whose end is missing.
    pub(super) started: u64,
    pub(super) ended: u64,
    /// The traffic of the latter, as far as no running sums have reported it. What a worker could not report, it has as a
    /// whole.
    pub(super) traffic: Traffic,
    /// Whether no event has the present sums.
    pub(super) is_pending: bool,
}

impl Lost {
    /// Adds allocations and traffic.
    pub(super) fn add(&mut self, started: u64, ended: u64, traffic: Traffic) {
        if self.id.is_empty() {
            let mut bytes = [0; 8];
            // Without randomness, the time of the start makes it unique.
            if getrandom::getrandom(&mut bytes).is_err() {
                bytes = crate::clock::unix_seconds().to_le_bytes();
            }
            self.id = format!("{:016x}", u64::from_le_bytes(bytes));
        }
        self.started += started;
        self.ended += ended;
        self.traffic += traffic;
        self.is_pending = true;
    }

    /// Returns the text that keeps the sums over restarts.
    pub(super) fn to_note(&self) -> String {
        let Traffic { packets_to_peers, bytes_to_peers, packets_to_client, bytes_to_client } = self.traffic;
        json!({
            "v": 1,
            "id": self.id,
            "started": self.started,
            "ended": self.ended,
            "packets_to_peers": packets_to_peers,
            "bytes_to_peers": bytes_to_peers,
            "packets_to_client": packets_to_client,
            "bytes_to_client": bytes_to_client,
        })
        .to_string()
    }

    /// Reads the text. It is not known whether an event has the sums, so another one will.
    pub(super) fn from_note(note: &str) -> Option<Self> {
        let note: Value = serde_json::from_str(note).ok()?;
        let number = |key: &str| note.get(key)?.as_u64();
        let id = note.get("id")?.as_str().filter(|id| id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let traffic = Traffic {
            packets_to_peers: number("packets_to_peers")?,
            bytes_to_peers: number("bytes_to_peers")?,
            packets_to_client: number("packets_to_client")?,
            bytes_to_client: number("bytes_to_client")?,
        };
        let (started, ended) = (number("started")?, number("ended")?);
        Some(Self { id: id.to_owned(), started, ended, traffic, is_pending: true })
    }
}

/// Returns the traffic after an earlier one.
pub(in crate::control) fn since(traffic: &Traffic, earlier: &Traffic) -> Traffic {
    Traffic {
        packets_to_peers: traffic.packets_to_peers.saturating_sub(earlier.packets_to_peers),
        bytes_to_peers: traffic.bytes_to_peers.saturating_sub(earlier.bytes_to_peers),
        packets_to_client: traffic.packets_to_client.saturating_sub(earlier.packets_to_client),
        bytes_to_client: traffic.bytes_to_client.saturating_sub(earlier.bytes_to_client),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_outlive_the_process_under_the_same_identifier() {
        let mut lost = Lost::default();
        let traffic =
            Traffic { packets_to_peers: 1, bytes_to_peers: 2, packets_to_client: 3, bytes_to_client: u64::MAX / 2 };
        lost.add(1, 0, Traffic::default());
        lost.add(0, 1, traffic);
        assert_eq!(Lost::from_note(&lost.to_note()), Some(lost.clone()));
        let before = lost.id.clone();
        lost.add(1, 1, traffic);
        assert_eq!((lost.id, lost.started, lost.ended, lost.traffic.bytes_to_peers), (before, 2, 2, 4));
        for damaged in ["", "{}", "[1]", "{\"v\":1,\"id\":\"x\"}"] {
            assert_eq!(Lost::from_note(damaged), None, "{damaged}");
        }
    }
}
