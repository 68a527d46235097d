//! The model of the engine: a key-value bucket with revisions, its latency, and its failures.

use std::collections::HashMap;

use rand::RngExt as _;
use rand::rngs::StdRng;

use turnserver::fleet::{Key, Output, Record};

/// What the engine says to a request.
pub(crate) enum Response {
    Found(Option<(u64, Record)>),
    Accepted(u64),
    Refused,
}

/// The engine and its traffic.
#[derive(Default)]
pub(crate) struct Engine {
    /// Whether it can be reached.
    pub(crate) up: bool,
    /// Until when an election delays everything, in microseconds.
    pub(crate) stalled_until: u64,
    records: HashMap<Key, (u64, Record)>,
    revision: u64,
    pub(crate) traffic: Traffic,
}

/// Messages and bytes between the engine and all nodes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub(crate) lease_requests: u64,
    pub(crate) lease_conflicts: u64,
    pub(crate) lease_bytes: u64,
    pub(crate) hints: u64,
    pub(crate) heartbeats: u64,
    pub(crate) events: u64,
    pub(crate) most_records: usize,
}

/// The length of the headers and the subject of a message, about.
pub(crate) const HEADER: u64 = 90;
/// The length of the JSON of an event, about.
pub(crate) const EVENT: u64 = 400;

impl Engine {
    pub(crate) fn new() -> Self {
        Self { up: true, ..Self::default() }
    }

    /// Returns the time of a request and its response in microseconds: 2 to 12 ms, and one in a hundred up to 100 ms.
    pub(crate) fn latency(rng: &mut StdRng) -> u64 {
        if rng.random_bool(0.01) { rng.random_range(12_000..100_000) } else { rng.random_range(2000..12_000) }
    }

    pub(crate) fn handle(&mut self, request: &Output) -> Response {
        self.traffic.lease_requests += 1;
        // The length of every 16th record is measured.
        let measured = self.traffic.lease_requests.is_multiple_of(16);
        let response = match request {
            Output::Read { key } => Response::Found(self.records.get(key).cloned()),
            Output::Write { key, revision, record } => {
                if self.records.get(key).map_or(0, |(current, _)| *current) == *revision {
                    self.revision += 1;
                    self.records.insert(*key, (self.revision, record.clone()));
                    Response::Accepted(self.revision)
                } else {
                    Response::Refused
                }
            }
            Output::Delete { key, revision } => {
                if self.records.get(key).map_or(0, |(current, _)| *current) == *revision {
                    self.records.remove(key);
                    Response::Accepted(0)
                } else {
                    Response::Refused
                }
            }
            _ => unreachable!("not a request"),
        };
        if matches!(response, Response::Refused) {
            self.traffic.lease_conflicts += 1;
        }
        if measured {
            let record = match (request, &response) {
                (Output::Write { record, .. }, _) | (_, Response::Found(Some((_, record)))) => record.to_json().len(),
                _ => 0,
            };
            self.traffic.lease_bytes += 16 * (record as u64 + 2 * HEADER);
        }
        self.traffic.most_records = self.traffic.most_records.max(self.records.len());
        response
    }

    /// The records expire during an outage.
    pub(crate) fn lose_records(&mut self) {
        self.records.clear();
    }
}
