//! Requests that wait for their response (RFC 8489 §6.2).

use std::time::Duration;

use super::failure::{Discarded, Failure};
use crate::stun::TransactionId;

/// When a request is repeated, and when it has failed (RFC 8489 §6.2.1, §6.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The interval before the first repetition on UDP. It doubles with each further one.
    pub first: Duration,
    /// How often a request is sent on UDP, Rc. At least 1.
    pub transmissions: u32,
    /// The time for a response after the last transmission on UDP, as a multiple of `first`, Rm.
    pub last: u32,
    /// The time for a response on TCP and TLS, Ti.
    pub connection: Duration,
}

impl Timing {
    /// The recommended times: 7 transmissions within 31.5 s, and failure after 39.5 s.
    pub const RECOMMENDED: Self = Self {
        first: Duration::from_millis(500),
        transmissions: 7,
        last: 16,
        connection: Duration::from_millis(39_500),
    };
}

/// A request that waits for its response.
pub(super) struct Transaction {
    pub(super) id: TransactionId,
    message: Vec<u8>,
    began: Duration,
    sent: u32,
    most: u32,
    interval: Duration,
    last_wait: Duration,
    pub(super) deadline: Duration,
    /// Why the last response was discarded.
    pub(super) discarded: Option<Discarded>,
}

/// What follows when the deadline of a transaction has passed.
#[cfg_attr(test, derive(Debug))]
pub(super) enum Expired {
    /// The message is sent again.
    Repeat(Vec<u8>),
    /// The transaction has failed.
    Failed(Failure),
}

impl Transaction {
    /// Begins when `message` is sent for the first time.
    pub(super) fn new(
        id: TransactionId,
        message: Vec<u8>,
        is_connection: bool,
        timing: &Timing,
        now: Duration,
    ) -> Self {
        let (most, last_wait) = match is_connection {
            true => (1, timing.connection),
            false => (timing.transmissions.max(1), timing.first * timing.last),
        };
        let (began, interval, discarded) = (now, timing.first, None);
        let mut new = Self { id, message, began, sent: 0, most, interval, last_wait, deadline: now, discarded };
        new.sent_at(now);
        new
    }

    fn sent_at(&mut self, now: Duration) {
        self.sent += 1;
        self.deadline = now + if self.sent == self.most { self.last_wait } else { self.interval };
        self.interval *= 2;
    }

    /// Returns what follows from the time. `None` before the deadline.
    pub(super) fn expire(&mut self, now: Duration) -> Option<Expired> {
        if now < self.deadline {
            return None;
        }
        if self.sent < self.most {
            self.sent_at(now);
            return Some(Expired::Repeat(self.message.clone()));
        }
        let silence = Failure::NoResponse { transmissions: self.sent, waited: now.saturating_sub(self.began) };
        Some(Expired::Failed(self.discarded.take().map_or(silence, Failure::NotAuthentic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the times of the transmissions and of the failure in milliseconds.
    fn times(is_connection: bool) -> (Vec<u128>, u128) {
        let id = TransactionId::new([7; 12]);
        let mut transaction = Transaction::new(id, vec![1], is_connection, &Timing::RECOMMENDED, Duration::ZERO);
        let mut sent = vec![0];
        loop {
            let now = transaction.deadline;
            assert!(transaction.expire(now - Duration::from_millis(1)).is_none());
            match transaction.expire(now) {
                Some(Expired::Repeat(message)) => {
                    assert_eq!(message, [1]);
                    sent.push(now.as_millis());
                }
                Some(Expired::Failed(failure)) => {
                    let transmissions = u32::try_from(sent.len()).unwrap();
                    assert_eq!(failure, Failure::NoResponse { transmissions, waited: now });
                    return (sent, now.as_millis());
                }
                None => panic!("nothing follows at the deadline"),
            }
        }
    }

    // RFC 8489 §6.2.1, §6.2.2: the examples.
    #[test]
    fn requests_are_repeated_on_udp_only_and_fail_after_the_time_of_the_rfc() {
        assert_eq!(times(false), (vec![0, 500, 1_500, 3_500, 7_500, 15_500, 31_500], 39_500));
        assert_eq!(times(true), (vec![0], 39_500));
    }

    // RFC 8489 §9.2.5
    #[test]
    fn if_only_responses_without_integrity_came_the_failure_says_so() {
        let id = TransactionId::new([7; 12]);
        let timing = Timing { transmissions: 1, ..Timing::RECOMMENDED };
        let mut transaction = Transaction::new(id, vec![], false, &timing, Duration::ZERO);
        transaction.discarded = Some(Discarded::WrongIntegrity);
        let expired = transaction.expire(Duration::from_secs(8));
        assert!(
            matches!(expired, Some(Expired::Failed(Failure::NotAuthentic(Discarded::WrongIntegrity)))),
            "{expired:?}"
        );
    }
}
