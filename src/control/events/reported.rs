//! The running sums that a receiver has got.

use std::collections::{HashMap, HashSet};

use crate::turn::Traffic;
use crate::worker::SessionId;

/// The allocations that have ended lately, in each of the two sets.
const MOST_ENDED: usize = 16_384;

/// The latest running sums of each allocation that the receiver has got, or may have got.
///
/// The end of an allocation removes them. It may be lost, so they also go if the allocation has no running sums any more.
#[derive(Debug, Default)]
pub(in crate::control) struct Reported {
    sums: HashMap<SessionId, Sums>,
    /// The allocations that have ended lately: since a change of the two sets, and before.
    ended: [HashSet<SessionId>; 2],
    /// Whether the sums of all allocations came since the last [`complete`](Self::complete).
    is_whole: bool,
}

#[derive(Debug)]
struct Sums {
    traffic: Traffic,
    /// Whether the end is known, and still needs the sums.
    has_ended: bool,
    /// How often the sums of all other allocations came since they last came for this one.
    missed: u8,
}

impl Reported {
    /// Records what the receiver has got of an allocation. Returns what it had before.
    pub(in crate::control) fn insert(&mut self, session: SessionId, traffic: Traffic) -> Traffic {
        let has_ended = self.has_ended(session);
        let before = self.sums.insert(session, Sums { traffic, has_ended, missed: 0 });
        before.map_or(Traffic::default(), |before| before.traffic)
    }

    /// Removes an allocation whose end needs the sums no more. Returns what the receiver has got.
    pub(in crate::control) fn remove(&mut self, session: SessionId) -> Traffic {
        self.sums.remove(&session).map_or(Traffic::default(), |sums| sums.traffic)
    }

    /// Records that there are running sums of an allocation. Returns whether they are of use: they may come later than the
    /// end.
    pub(in crate::control) fn list(&mut self, session: SessionId) -> bool {
        if let Some(sums) = self.sums.get_mut(&session) {
            sums.missed = 0;
        }
        !self.has_ended(session)
    }

    /// Records that an allocation has ended.
    pub(in crate::control) fn end(&mut self, session: SessionId) {
        let [recent, older] = &mut self.ended;
        if recent.len() >= MOST_ENDED {
            *older = std::mem::take(recent);
        }
        recent.insert(session);
        if let Some(sums) = self.sums.get_mut(&session) {
            sums.has_ended = true;
        }
    }

    /// Returns whether an allocation has ended lately.
    pub(in crate::control) fn has_ended(&self, session: SessionId) -> bool {
        self.ended.iter().any(|ended| ended.contains(&session))
    }

    /// Records that running sums may be missing, because they were not wanted.
    pub(in crate::control) fn interrupt(&mut self) {
        self.is_whole = false;
    }

    /// Records that the running sums of all allocations have come, unless they were interrupted.
    pub(in crate::control) fn complete(&mut self) {
        if std::mem::replace(&mut self.is_whole, true) {
            self.sums.retain(|_, sums| {
                sums.missed += 1;
                // An end that is there may be on its way.
                sums.has_ended || sums.missed <= 2
            });
        }
    }

    /// The bytes of an allocation, without the unused places of the table.
    #[cfg(test)]
    pub(in crate::control) const ENTRY: usize = size_of::<(SessionId, Sums)>();

    #[cfg(test)]
    pub(in crate::control) fn len(&self) -> usize {
        self.sums.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: usize) -> SessionId {
        format!("0-{number}-1").parse().unwrap()
    }

    #[test]
    fn an_allocation_whose_end_was_lost_is_forgotten_after_two_whole_passes() {
        let mut reported = Reported::default();
        let traffic = Traffic { bytes_to_peers: 7, ..Traffic::default() };
        for number in 0..3 {
            assert_eq!(reported.insert(session(number), traffic), Traffic::default());
        }
        // The end of the last one waits.
        reported.end(session(2));
        for pass in 0..9 {
            assert!(reported.list(session(0)) && !reported.list(session(2)));
            // The first passes are not whole.
            if pass < 5 {
                reported.interrupt();
            }
            assert_eq!(reported.sums.contains_key(&session(1)), pass < 8, "{pass}");
            reported.complete();
        }
        assert_eq!(reported.len(), 2);
        assert_eq!([reported.remove(session(0)), reported.remove(session(2))], [traffic; 2]);
    }

    #[test]
    fn the_ends_that_are_remembered_are_bounded() {
        let mut reported = Reported::default();
        (0..5 * MOST_ENDED).for_each(|number| reported.end(session(number)));
        assert!(reported.ended.iter().all(|ended| ended.len() == MOST_ENDED));
        assert!(reported.has_ended(session(4 * MOST_ENDED)) && !reported.has_ended(session(0)));
    }
}
