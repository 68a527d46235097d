//! The receiving side of a load: counts, latencies and order.

use serde_json::{Value, json};

use super::histogram::Histogram;
use super::source::Reporter;
use super::stamp::{PRIMER, Stamp};
use super::{Outcome, Window, clock};
use crate::scenario::{Load, Pace};

/// Time to wait for packets in flight after the end of the load.
const GRACE_PERIOD: u64 = 300 * clock::MILLISECOND;

/// Receives payloads.
pub(crate) trait Inlet {
    /// Waits for payloads until `tick` at the latest.
    fn wait(&mut self, tick: u64) -> Outcome<()>;

    /// Calls `each` with each available payload and its arrival time. Skips messages without a payload.
    fn drain(&mut self, each: &mut dyn FnMut(&[u8], u64)) -> Outcome<()>;
}

/// Counts of the packets that were sent within the window.
#[derive(Default)]
pub(crate) struct Received {
    delivered: u64,
    /// Packets that arrived after a later one of their flow, and duplicates.
    reordered: u64,
    /// Payloads that differ from what was sent.
    damaged: u64,
    latencies: Histogram,
    /// The next expected sequence number of each flow.
    expected: Vec<u64>,
}

/// Receives a load until its end.
pub(crate) fn run(
    load: &Load,
    inlet: &mut dyn Inlet,
    window: Window,
    mut reporter: Option<Reporter>,
) -> Outcome<Received> {
    // The receiver sleeps between ticks, and the kernel records the arrival times. Otherwise the CPU time of the server
    // would include waking the receiver for each packet. A receiver on another machine would not cause that cost.
    let tick = match load.pace {
        Pace::Rate(_) => 500_000,
        Pace::Window(_) => 100_000,
    };
    let mut received = Received { expected: vec![0; load.flows], ..Received::default() };
    loop {
        let now = clock::now();
        if now > window.to + GRACE_PERIOD {
            return Ok(received);
        }
        inlet.wait(now + tick)?;
        inlet.drain(&mut |payload, arrival| {
            if let Some(stamp) = received.count(payload, load.payload, arrival, window)
                && let Some(reporter) = &mut reporter
            {
                reporter.record(usize::try_from(stamp.flow).unwrap_or(usize::MAX), stamp.sequence);
            }
        })?;
        if let Some(reporter) = &mut reporter {
            reporter.report();
        }
    }
}

impl Received {
    fn count(&mut self, payload: &[u8], length: usize, arrival: u64, window: Window) -> Option<Stamp> {
        let Some(stamp) = Stamp::read(payload).filter(|_| payload.len() == length) else {
            self.damaged += 1;
            return None;
        };
        if stamp.sequence == PRIMER {
            return None;
        }
        let expected = usize::try_from(stamp.flow).ok().and_then(|flow| self.expected.get_mut(flow));
        let Some(expected) = expected else {
            self.damaged += 1;
            return None;
        };
        let in_order = stamp.sequence >= *expected;
        *expected = (*expected).max(stamp.sequence + 1);
        if window.counts(stamp.sent) {
            self.reordered += u64::from(!in_order);
            self.delivered += 1;
            self.latencies.add(arrival.saturating_sub(stamp.sent));
        }
        Some(stamp)
    }

    /// Returns the counts as JSON.
    pub(crate) fn result(&self) -> Value {
        json!({
            "delivered": self.delivered,
            "reordered": self.reordered,
            "damaged": self.damaged,
            "p50": self.latencies.quantile(0.5),
            "p99": self.latencies.quantile(0.99),
        })
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    const WINDOW: Window = Window { start: 0, from: 1_000, to: 2_000 };

    fn receiver() -> Received {
        Received { expected: vec![0; 2], ..Received::default() }
    }

    fn payload(flow: u32, sequence: u64, sent: u64) -> Vec<u8> {
        let mut payload = Stamp::blank(100);
        Stamp { flow, sequence, sent }.write(&mut payload);
        payload
    }

    fn counts(received: &Received) -> [u64; 3] {
        [received.delivered, received.reordered, received.damaged]
    }

    #[test]
    fn packets_sent_within_the_window_count() {
        let mut received = receiver();
        for (sequence, sent) in [999, 1_000, 1_999, 2_000].into_iter().enumerate() {
            received.count(&payload(0, sequence as u64, sent), 100, 5_000, WINDOW).unwrap();
        }
        assert_eq!(counts(&received), [2, 0, 0]);
        assert_eq!(received.result()["delivered"], 2);
    }

    #[test]
    fn order_is_checked_per_flow() {
        let mut received = receiver();
        for (flow, sequence) in [(0, 0), (1, 0), (0, 2), (1, 1), (0, 1), (0, 2), (0, 3)] {
            received.count(&payload(flow, sequence, 1_500), 100, 1_510, WINDOW).unwrap();
        }
        assert_eq!(counts(&received), [7, 2, 0]);
    }

    #[test]
    fn damaged_payloads_are_not_delivered() {
        let mut received = receiver();
        let mut cut = payload(0, 0, 1_500);
        cut.truncate(99);
        for wrong in [cut, payload(2, 0, 1_500), vec![0; 100]] {
            assert!(received.count(&wrong, 100, 1_510, WINDOW).is_none());
        }
        // Undamaged, but not of the load's length.
        assert!(received.count(&payload(0, 0, 1_500), 101, 1_510, WINDOW).is_none());
        assert_eq!(counts(&received), [0, 0, 4]);
    }

    #[test]
    fn primers_are_neither_delivered_nor_damaged() {
        let mut received = receiver();
        assert!(received.count(&payload(0, PRIMER, 1_500), 100, 1_510, WINDOW).is_none());
        assert_eq!(counts(&received), [0, 0, 0]);
    }
}
