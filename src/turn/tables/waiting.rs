//! Requests that wait until the user database has responded.

use std::collections::VecDeque;

use crate::stun::TransactionId;
use crate::turn::contract::FiveTuple;
use crate::turn::time::{Deadline, Instant};

/// The most requests of a worker that wait.
const MOST: usize = 256;
/// The longest request that waits, in bytes. Together they take at most 512 KiB.
const LONGEST: usize = 2048;

/// The result for a request that has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The database has responded.
    Known,
    /// It has not.
    Unavailable,
    /// The client's connection has ended.
    Abandoned,
}

/// A request that has waited. [`Server::resume`](crate::turn::Server::resume) decides about it.
#[derive(Debug)]
pub struct ResumedRequest {
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    pub(crate) packet: Box<[u8]>,
    pub(crate) waited: Waited,
}

#[derive(Debug)]
struct Waiting {
    username: Box<str>,
    tuple: FiveTuple,
    transaction_id: TransactionId,
    packet: Box<[u8]>,
    deadline: Deadline,
}

/// The requests of a worker that wait, in the order of their arrival.
#[derive(Debug, Default)]
pub(crate) struct WaitingRequests {
    waiting: VecDeque<Waiting>,
    resumed: VecDeque<ResumedRequest>,
}

impl WaitingRequests {
    /// Whether this request waits already.
    pub(crate) fn contains(&self, tuple: &FiveTuple, transaction_id: TransactionId) -> bool {
        self.waiting.iter().any(|waiting| waiting.tuple == *tuple && waiting.transaction_id == transaction_id)
    }

    /// Whether a request of this user waits, so that the database has been asked.
    pub(crate) fn is_asked(&self, username: &str) -> bool {
        self.waiting.iter().any(|waiting| *waiting.username == *username)
    }

    /// Whether there is room for a request.
    pub(crate) fn have_room(&self, packet: &[u8]) -> bool {
        self.waiting.len() + self.resumed.len() < MOST && packet.len() <= LONGEST
    }

    /// Adds a request.
    pub(crate) fn push(
        &mut self,
        username: &str,
        tuple: &FiveTuple,
        transaction_id: TransactionId,
        packet: &[u8],
        deadline: Deadline,
    ) {
        let (username, packet) = (username.into(), packet.into());
        self.waiting.push_back(Waiting { username, tuple: *tuple, transaction_id, packet, deadline });
    }

    /// Ends the wait of the requests of a user.
    pub(crate) fn end(&mut self, username: &str, waited: Waited) {
        self.end_if(waited, |waiting| *waiting.username == *username);
    }

    /// Ends the wait of the requests of a client whose connection has ended.
    pub(crate) fn abandon(&mut self, tuple: &FiveTuple) {
        self.end_if(Waited::Abandoned, |waiting| waiting.tuple == *tuple);
        for resumed in self.resumed.iter_mut().filter(|resumed| resumed.tuple == *tuple) {
            resumed.waited = Waited::Abandoned;
        }
    }

    /// Ends the wait of all requests.
    pub(crate) fn abandon_all(&mut self) {
        self.end_if(Waited::Abandoned, |_| true);
    }

    fn end_if(&mut self, waited: Waited, ends: impl Fn(&Waiting) -> bool) {
        if !self.waiting.iter().any(&ends) {
            return;
        }
        let (ended, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(ends);
        self.waiting = waiting;
        let ended: VecDeque<Waiting> = ended;
        let resumed = ended.into_iter().map(|Waiting { tuple, packet, .. }| ResumedRequest { tuple, packet, waited });
        self.resumed.extend(resumed);
    }

    /// Returns a user whose request has waited for as long as it may.
    pub(crate) fn overdue(&self, now: Instant) -> Option<&str> {
        self.waiting.iter().find(|waiting| waiting.deadline.has_passed(now)).map(|waiting| &*waiting.username)
    }

    /// Returns the next request whose wait has ended.
    pub(crate) fn pop(&mut self) -> Option<ResumedRequest> {
        self.resumed.pop_front()
    }

    /// Returns when the next wait ends, if the database does not respond before; `None` if no request waits.
    pub(crate) fn until(&self) -> Option<Deadline> {
        if !self.resumed.is_empty() {
            return Some(Deadline::PASSED);
        }
        self.waiting.iter().map(|waiting| waiting.deadline).reduce(Deadline::earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_take_what_is_documented() {
        let bytes = size_of::<Waiting>() + size_of::<ResumedRequest>() + 508 + LONGEST;
        let documented = crate::test_memory_table::documented("A request that waits for Redis");
        assert!(bytes <= documented && documented < 2 * bytes, "{bytes}");
    }
}
