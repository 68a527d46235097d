//! The consumer of the events, which applies the rule of `turnserver::fleet::Sums`.

use std::collections::{HashMap, VecDeque};

use turnserver::fleet::Sums;
use turnserver::fleet::sums::{Kind, Totals};

/// An event in the outbox of a node.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    pub(crate) session: u32,
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
}

/// How long an ended session is kept for late events: longer than an outage.
const KEPT: u64 = 2 * 3600 * 1_000_000;

#[derive(Default)]
pub(crate) struct Consumer {
    sums: Sums<u32>,
    ended: VecDeque<(u64, u32)>,
    /// Events that have arrived.
    pub(crate) arrived: u64,
    /// Of these, events that changed nothing.
    pub(crate) repeated: u64,
    /// Sessions whose end has arrived, and their bytes.
    pub(crate) finished: u64,
    pub(crate) bytes: u64,
    /// Finished sessions without a `started` event.
    pub(crate) without_start: u64,
}

impl Consumer {
    pub(crate) fn apply(&mut self, event: Event, now: u64) {
        self.arrived += 1;
        let totals = Totals { bytes_to_peers: event.bytes, ..Totals::default() };
        let was_ended = self.sums.get(&event.session).is_some_and(|session| session.ended);
        if !self.sums.apply(event.session, event.kind, totals) {
            self.repeated += 1;
        } else if event.kind == Kind::Ended && !was_ended {
            self.ended.push_back((now, event.session));
        }
    }

    /// Bills the sessions that ended some time ago.
    pub(crate) fn bill(&mut self, now: u64) {
        while let Some((at, session)) = self.ended.front().copied()
            && at + KEPT <= now
        {
            self.ended.pop_front();
            if let Some(session) = self.sums.remove(&session) {
                self.finished += 1;
                self.bytes += session.totals.bytes_to_peers;
                self.without_start += u64::from(!session.started);
            }
        }
    }

    /// Returns how many of the sessions of dead nodes are known, and the bytes of theirs that are not.
    pub(crate) fn of_dead_nodes(&self, truth: &HashMap<u32, u64>) -> (usize, u64) {
        let known = truth.keys().filter(|session| self.sums.get(session).is_some()).count();
        let missing = truth
            .iter()
            .map(|(session, bytes)| bytes - self.sums.get(session).map_or(0, |session| session.totals.bytes_to_peers));
        (known, missing.sum())
    }

    /// Returns the number of sessions that have not ended.
    pub(crate) fn open(&self) -> usize {
        self.sums.len()
    }
}
