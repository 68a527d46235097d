//! The changes that wait for Redis, in memory. The ends of allocations are dropped last.

use std::collections::VecDeque;

use super::change::{Change, Sent};
use crate::control::events::lost::since;
use crate::control::events::reported::Reported;
use crate::turn::Traffic;

/// The most changes that wait.
const MOST: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The ends of allocations, and all other changes, each with its place in the order.
    ends: VecDeque<(u64, Change)>,
    others: VecDeque<(u64, Change)>,
    next: u64,
    /// The traffic of each allocation that was sent. It is not sent again if Redis does not respond, because a receiver
    /// that adds it up would count it twice.
    pub(super) reported: Reported,
}

impl Queue {
    /// Returns the number of changes that wait.
    pub(super) fn len(&self) -> u64 {
        (self.ends.len() + self.others.len()) as u64
    }

    /// Adds a change. Returns how many were dropped for lack of space, possibly this one.
    pub(super) fn push(&mut self, change: Change) -> u64 {
        match &change {
            Change::Traffic { session, .. } if !self.reported.list(*session) => return 0,
            Change::Ended { session, .. } => self.reported.end(*session),
            _ => {}
        }
        let is_full = self.ends.len() + self.others.len() >= MOST;
        let is_end = matches!(change, Change::Ended { .. });
        if is_full && (!is_end || self.others.pop_front().is_none()) {
            self.forget(&change);
            return 1;
        }
        let number = self.next;
        self.next += 1;
        let queue = if is_end { &mut self.ends } else { &mut self.others };
        queue.push_back((number, change));
        u64::from(is_full)
    }

    /// Removes the oldest changes, at most `most`.
    pub(super) fn take(&mut self, most: usize) -> Vec<Sent> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let number = |queue: &VecDeque<(u64, Change)>| queue.front().map_or(u64::MAX, |(number, _)| *number);
            let queue = if number(&self.ends) < number(&self.others) { &mut self.ends } else { &mut self.others };
            let Some((number, change)) = queue.pop_front() else { break };
            let since = match &change {
                Change::Status { .. } => Traffic::default(),
                Change::Traffic { session, traffic, .. } | Change::Ended { session, traffic, .. } => {
                    since(traffic, &self.reported.insert(*session, *traffic))
                }
            };
            taken.push(Sent { number, change, since });
        }
        taken
    }

    /// Notes that Redis has responded to a change.
    pub(super) fn done(&mut self, sent: &Sent) {
        self.forget(&sent.change);
    }

    /// Forgets the allocation of an end that is not sent.
    pub(super) fn forget(&mut self, change: &Change) {
        if let Change::Ended { session, .. } = change {
            self.reported.end(*session);
            self.reported.remove(*session);
        }
    }

    /// Drops all changes.
    pub(super) fn clear(&mut self) {
        self.others.clear();
        for (_, change) in std::mem::take(&mut self.ends) {
            self.forget(&change);
        }
    }

    /// Puts changes back that Redis has not taken, in their order.
    pub(super) fn put_back(&mut self, changes: impl IntoIterator<Item = Sent, IntoIter: DoubleEndedIterator>) {
        for Sent { number, change, .. } in changes.into_iter().rev() {
            let queue = if matches!(change, Change::Ended { .. }) { &mut self.ends } else { &mut self.others };
            queue.push_front((number, change));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::SessionId;

    fn traffic(bytes_to_peers: u64) -> Traffic {
        Traffic { bytes_to_peers, ..Traffic::default() }
    }

    fn session(number: usize) -> SessionId {
        format!("0-{number}-1").parse().unwrap()
    }

    fn usage(number: usize, bytes: u64) -> Change {
        Change::Traffic { session: session(number), user: "ann".into(), traffic: traffic(bytes) }
    }

    fn ended(number: usize, bytes: u64) -> Change {
        Change::Ended { session: session(number), user: "ann".into(), traffic: traffic(bytes) }
    }

    #[test]
    fn changes_that_redis_has_not_taken_come_again_in_order_but_not_their_traffic() {
        let mut queue = Queue::default();
        let changes = [usage(1, 10), ended(2, 5), usage(1, 30), ended(1, 40)];
        assert_eq!(changes.iter().cloned().map(|change| queue.push(change)).sum::<u64>(), 0);
        let first = queue.take(2);
        assert_eq!(first.iter().map(|sent| sent.since.bytes_to_peers).collect::<Vec<_>>(), [10, 5]);
        queue.put_back(first);
        let all = queue.take(10);
        assert_eq!(all.iter().map(|sent| sent.change.clone()).collect::<Vec<_>>(), changes);
        assert_eq!(all.iter().map(|sent| sent.since.bytes_to_peers).collect::<Vec<_>>(), [0, 0, 20, 10]);
        all.iter().for_each(|sent| queue.done(sent));
        assert_eq!((queue.reported.len(), queue.len()), (0, 0));
    }

    #[test]
    fn traffic_after_the_end_is_not_sent_and_nothing_of_the_allocation_stays() {
        let mut queue = Queue::default();
        for change in [usage(1, 10), ended(1, 20)] {
            queue.push(change);
        }
        queue.push(usage(1, 15));
        queue.take(10).iter().for_each(|sent| queue.done(sent));
        queue.push(usage(1, 20));
        assert_eq!((queue.reported.len(), queue.len()), (0, 0));
    }

    #[test]
    fn what_was_sent_is_known_after_the_changes_were_dropped() {
        let mut queue = Queue::default();
        for change in [usage(1, 10), usage(2, 10)] {
            queue.push(change);
        }
        queue.take(10).iter().for_each(|sent| queue.done(sent));
        queue.push(ended(2, 20));
        queue.clear();
        assert_eq!((queue.reported.len(), queue.len()), (1, 0));
        queue.push(ended(1, 25));
        assert_eq!(queue.take(10).first().unwrap().since.bytes_to_peers, 15);
    }

    #[test]
    fn an_end_that_does_not_fit_takes_the_place_of_another_change() {
        let mut queue = Queue::default();
        (0..MOST - 1).for_each(|number| assert_eq!(queue.push(ended(number, 1)), 0));
        assert_eq!(queue.push(usage(MOST, 1)), 0);
        assert_eq!(queue.push(usage(1, 1)), 1);
        assert_eq!((queue.push(ended(MOST, 1)), queue.others.len()), (1, 0));
        assert_eq!((queue.push(ended(MOST + 1, 1)), queue.ends.len()), (1, MOST));
    }

    #[test]
    fn a_change_takes_what_is_documented() {
        let longest_user = 509;
        assert!(size_of::<(u64, Change)>() + longest_user <= 700, "{}", size_of::<(u64, Change)>());
        const { assert!(2 * Reported::ENTRY <= 200) };
    }
}
