//! The rule by which a consumer of the events of allocations computes what was used.
//!
//! Events arrive at least once and in any order. Each has the sums of its session so far, which only grow, so the sums of a
//! session are the greatest that have arrived. Repetitions and late events change nothing, and of lost `usage` events the
//! next one makes up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

/// What a session has relayed since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of application data from the client to its peers.
    pub bytes_to_peers: u64,
    /// Bytes of application data from peers to the client.
    pub bytes_to_client: u64,
    /// Packets from the client to its peers.
    pub packets_to_peers: u64,
    /// Packets from peers to the client.
    pub packets_to_client: u64,
}

impl Totals {
    /// Returns the greater of each sum.
    #[must_use]
    pub fn latest(self, other: Self) -> Self {
        Self {
            bytes_to_peers: self.bytes_to_peers.max(other.bytes_to_peers),
            bytes_to_client: self.bytes_to_client.max(other.bytes_to_client),
            packets_to_peers: self.packets_to_peers.max(other.packets_to_peers),
            packets_to_client: self.packets_to_client.max(other.packets_to_client),
        }
    }
}

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The session has started.
    Started,
    /// The sums so far.
    Usage,
    /// The session has ended with these sums.
    Ended,
}

/// What is known about a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The greatest sums of its events.
    pub totals: Totals,
    /// Whether its `started` event has arrived.
    pub started: bool,
    /// Whether its `ended` event has arrived.
    pub ended: bool,
}

/// The sessions of a fleet, by their id: the node, its run and the allocation.
#[derive(Clone, Debug)]
pub struct Sums<K> {
    sessions: HashMap<K, Session>,
}

impl<K> Default for Sums<K> {
    fn default() -> Self {
        Self { sessions: HashMap::new() }
    }
}

impl<K: Eq + Hash> Sums<K> {
    /// Applies an event. Returns whether it has changed anything: a repetition does not.
    pub fn apply(&mut self, session: K, kind: Kind, totals: Totals) -> bool {
        let entry = self.sessions.entry(session);
        let new = matches!(entry, Entry::Vacant(_));
        let session = entry.or_default();
        let before = *session;
        session.totals = session.totals.latest(totals);
        session.started |= kind == Kind::Started;
        session.ended |= kind == Kind::Ended;
        new || *session != before
    }

    /// Returns a session.
    pub fn get(&self, session: &K) -> Option<&Session> {
        self.sessions.get(session)
    }

    /// Returns all sessions, in no particular order.
    pub fn sessions(&self) -> impl Iterator<Item = (&K, &Session)> {
        self.sessions.iter()
    }

    /// Removes a session, for example after it was billed. An event that arrives later begins it again, so keep an ended
    /// session for as long as its events may be repeated.
    pub fn remove(&mut self, session: &K) -> Option<Session> {
        self.sessions.remove(session)
    }

    /// Returns the number of sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are no sessions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn totals(bytes: u64) -> Totals {
        Totals { bytes_to_peers: bytes, bytes_to_client: 2 * bytes, packets_to_peers: bytes / 10, packets_to_client: 1 }
    }

    #[test]
    fn a_repeated_or_overtaken_event_changes_nothing() {
        let mut sums = Sums::default();
        assert!(sums.apply("a", Kind::Started, totals(0)));
        assert!(sums.apply("a", Kind::Usage, totals(20)));
        assert!(!sums.apply("a", Kind::Usage, totals(20)));
        assert!(!sums.apply("a", Kind::Usage, totals(10)));
        assert!(sums.apply("a", Kind::Ended, totals(30)));
        assert!(!sums.apply("a", Kind::Ended, totals(30)));
        assert!(!sums.apply("a", Kind::Started, totals(0)));
        let expected = Session { totals: totals(30), started: true, ended: true };
        assert_eq!(sums.get(&"a"), Some(&expected));
        assert_eq!(sums.remove(&"a"), Some(expected));
        assert!(sums.is_empty());
    }

    proptest! {
        // A session has started, usage events with growing sums, and ended. They arrive in any order, any number of times.
        #[test]
        fn events_give_the_same_sums_in_any_order_and_number(
            steps in prop::collection::vec(0..1000u64, 0..20),
            arrivals in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let mut events = vec![(Kind::Started, 0)];
            for step in steps {
                events.push((Kind::Usage, events.last().map_or(0, |(_, sum)| sum + step)));
            }
            let last = events.last().map_or(0, |(_, sum)| sum + 1);
            events.push((Kind::Ended, last));
            let mut sums = Sums::default();
            for arrival in arrivals {
                let (kind, sum) = events[arrival.index(events.len())];
                sums.apply(7, kind, totals(sum));
            }
            // At least once: in the end each event has arrived.
            for (kind, sum) in events.iter().rev() {
                sums.apply(7, *kind, totals(*sum));
            }
            let expected = Session { totals: totals(last), started: true, ended: true };
            prop_assert_eq!(sums.get(&7), Some(&expected));
        }
    }
}
