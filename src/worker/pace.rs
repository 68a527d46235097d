//! How long a worker waits before it looks for packets again, as a network card does that moderates its interrupts.
//!
//! Under load a thread that sleeps until something arrives wakes up for nearly every packet, and the waking costs as
//! much as the packet. A pause lets several arrive, and one wake-up serves them all. But a pause sets a timer, which costs
//! twice as much as being woken by a packet: where it would gather only one or two, there is none.

use std::time::Duration;

use crate::net::timer;
use crate::turn::Instant;

/// The longest pause. With what the kernel takes to wake the thread a packet waits up to 180 µs, half of that on average.
const LONGEST: Duration = timer::MAX_PAUSE;

/// How many packets a pause is to gather: with more the waking is a small part of the cost.
const GATHER: u32 = 32;

/// Over how long the load is measured.
const WINDOW: Duration = Duration::from_millis(1);

/// The load from which on the longest pause gathers three packets: packets in a [`WINDOW`].
const LOADED: u32 = 17;

/// Measures the load of a worker and says how long it may pause.
#[derive(Debug)]
pub(super) struct Pace {
    /// Packets since the window began.
    packets: u32,
    began: Instant,
    pause: Option<Duration>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { packets: 0, began: now, pause: None }
    }

    /// Takes note of packets that were moved.
    pub(super) fn moved(&mut self, packets: usize) {
        self.packets = self.packets.saturating_add(u32::try_from(packets).unwrap_or(u32::MAX));
    }

    /// How long to pause before the next look, at the end of a turn of the loop.
    pub(super) fn pause(&mut self, now: Instant) -> Option<Duration> {
        let elapsed = now.since(self.began);
        if elapsed >= WINDOW {
            let loaded = u128::from(self.packets) * WINDOW.as_micros() >= u128::from(LOADED) * elapsed.as_micros();
            self.pause = loaded.then(|| (elapsed / self.packets * GATHER).min(LONGEST));
            self.packets = 0;
            self.began = now;
        }
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs packets that are `gap` apart through a loop that takes `work` for each, and returns the share of wake-ups
    /// among packets and the longest pause.
    fn run(gap: Duration, work: Duration) -> (f64, Duration) {
        let mut now = Instant::from_elapsed(Duration::from_secs(1));
        let mut pace = Pace::new(now);
        let mut next = now.plus(gap);
        let (mut packets, mut turns, mut longest) = (0_u32, 0_u32, Duration::ZERO);
        while packets < 10_000 {
            if next.since(now) > Duration::ZERO {
                now = next;
            }
            turns += 1;
            while next.since(now) == Duration::ZERO {
                packets += 1;
                pace.moved(1);
                now = now.plus(work);
                next = next.plus(gap);
            }
            let pause = pace.pause(now).unwrap_or_default();
            longest = longest.max(pause);
            now = now.plus(pause);
        }
        (f64::from(turns) / f64::from(packets), longest)
    }

    #[test]
    fn light_traffic_is_never_kept_waiting() {
        let (turns, longest) = run(Duration::from_micros(500), Duration::from_micros(10));
        assert_eq!((turns, longest), (1.0, Duration::ZERO));
    }

    #[test]
    fn ordinary_load_wakes_the_thread_for_several_packets_at_once() {
        let (turns, longest) = run(Duration::from_micros(25), Duration::from_micros(5));
        assert!(turns < 0.4, "{turns} wake-ups a packet");
        assert!(longest <= LONGEST);
    }

    #[test]
    fn heavy_load_gathers_so_many_and_no_more() {
        let gap = Duration::from_micros(2);
        let (turns, longest) = run(gap, Duration::from_nanos(500));
        assert!(turns < 0.1, "{turns} wake-ups a packet");
        assert!((gap * (GATHER - 4)..gap * (GATHER + 4)).contains(&longest), "{longest:?}");
    }

    #[test]
    fn the_pause_ends_with_the_load() {
        let start = Instant::from_elapsed(Duration::from_secs(1));
        let mut pace = Pace::new(start);
        pace.moved(1_000);
        let later = start.plus(WINDOW);
        assert!(pace.pause(later).is_some());
        assert_eq!(pace.pause(later.plus(WINDOW)), None);
    }

    #[test]
    fn a_long_silence_is_no_load() {
        let start = Instant::from_elapsed(Duration::from_secs(1));
        let mut pace = Pace::new(start);
        pace.moved(50);
        assert_eq!(pace.pause(start.plus(Duration::from_secs(10))), None);
        assert_eq!(pace.pause(start.plus(Duration::from_secs(20))), None);
    }
}
