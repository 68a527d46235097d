//! Pauses between the iterations of a worker, similar to the interrupt moderation of a network card.
//!
//! Under load, a thread that sleeps until a packet arrives wakes up for almost every packet, and each wake-up costs as
//! much as serving the packet. During a pause several packets arrive, which one wake-up then serves. A pause needs a
//! timer, which costs twice as much as a wake-up by a packet, so the worker does not pause if a pause would gather only
//! one or two packets.

use std::time::Duration;

use crate::net::timer;
use crate::turn::Instant;

/// The longest pause. Including the wake-up of the thread, a packet waits up to 180 µs, and half of that on average.
const LONGEST: Duration = timer::MAX_PAUSE;

/// The number of packets that a pause gathers. With this number, the wake-up is a small part of the cost.
const GATHER: u32 = 32;

/// The interval over which the load is measured.
const WINDOW: Duration = Duration::from_millis(1);

/// The minimum load for pauses, in packets per [`WINDOW`]. At this load, the longest pause gathers three packets.
const LOADED: u32 = 17;

/// Measures the load of a worker and determines its pauses.
#[derive(Debug)]
pub(super) struct Pace {
    /// The number of packets since the start of the window.
    packets: u32,
    start: Instant,
    pause: Option<Duration>,
    /// Whether a packet was served in this iteration.
    served: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { packets: 0, start: now, pause: None, served: false }
    }

    /// Counts packets that were served.
    pub(super) fn count(&mut self, packets: usize) {
        self.served |= packets > 0;
        self.packets = self.packets.saturating_add(u32::try_from(packets).unwrap_or(u32::MAX));
    }

    /// Returns whether a packet was served in the iteration that ends.
    pub(super) fn take_served(&mut self) -> bool {
        std::mem::take(&mut self.served)
    }

    /// Returns how long to pause at the end of an iteration of the event loop.
    pub(super) fn pause(&mut self, now: Instant) -> Option<Duration> {
        let elapsed = now.since(self.start);
        if elapsed >= WINDOW {
            let loaded = u128::from(self.packets) * WINDOW.as_micros() >= u128::from(LOADED) * elapsed.as_micros();
            self.pause = loaded.then(|| (elapsed / self.packets * GATHER).min(LONGEST));
            self.packets = 0;
            self.start = now;
        }
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates an event loop. A packet arrives every `gap`, and serving it takes `work`. Returns the number of
    /// iterations per packet and the longest pause.
    fn run(gap: Duration, work: Duration) -> (f64, Duration) {
        let mut now = Instant::from_elapsed(Duration::from_secs(1));
        let mut pace = Pace::new(now);
        let mut next = now.plus(gap);
        let (mut packets, mut iterations, mut longest) = (0_u32, 0_u32, Duration::ZERO);
        while packets < 10_000 {
            if next.since(now) > Duration::ZERO {
                now = next;
            }
            iterations += 1;
            while next.since(now) == Duration::ZERO {
                packets += 1;
                pace.count(1);
                now = now.plus(work);
                next = next.plus(gap);
            }
            let pause = pace.pause(now).unwrap_or_default();
            longest = longest.max(pause);
            now = now.plus(pause);
        }
        (f64::from(iterations) / f64::from(packets), longest)
    }

    #[test]
    fn light_traffic_causes_no_pause() {
        let (iterations, longest) = run(Duration::from_micros(500), Duration::from_micros(10));
        assert_eq!((iterations, longest), (1.0, Duration::ZERO));
    }

    #[test]
    fn each_wake_up_under_ordinary_load_serves_several_packets() {
        let (iterations, longest) = run(Duration::from_micros(25), Duration::from_micros(5));
        assert!(iterations < 0.4, "{iterations} iterations per packet");
        assert!(longest <= LONGEST);
    }

    #[test]
    fn under_heavy_load_a_pause_gathers_a_fixed_number_of_packets() {
        let gap = Duration::from_micros(2);
        let (iterations, longest) = run(gap, Duration::from_nanos(500));
        assert!(iterations < 0.1, "{iterations} iterations per packet");
        assert!((gap * (GATHER - 4)..gap * (GATHER + 4)).contains(&longest), "{longest:?}");
    }

    #[test]
    fn without_load_there_is_no_pause() {
        let start = Instant::from_elapsed(Duration::from_secs(1));
        let mut pace = Pace::new(start);
        pace.count(1_000);
        let later = start.plus(WINDOW);
        assert!(pace.pause(later).is_some());
        assert_eq!(pace.pause(later.plus(WINDOW)), None);
    }

    #[test]
    fn packets_before_a_long_idle_time_are_not_load() {
        let start = Instant::from_elapsed(Duration::from_secs(1));
        let mut pace = Pace::new(start);
        pace.count(50);
        assert_eq!(pace.pause(start.plus(Duration::from_secs(10))), None);
        assert_eq!(pace.pause(start.plus(Duration::from_secs(20))), None);
    }
}
