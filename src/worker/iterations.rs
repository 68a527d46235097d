//! Measures the iterations of an event loop: how long each takes, and for how much of the time the loop is busy.
//!
//! An iteration begins when the thread has waited for events, and ends when it waits again. All times are those of the
//! process's clock.

use std::time::Duration;

/// The time after which the longest iteration is forgotten, at the earliest. After twice the time, it is forgotten. A
/// monitoring system that reads it once in this time misses none.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The shortest time over which the busy ratio is measured. The first tick of a worker is at its start.
const SHORTEST: Duration = Duration::from_millis(100);

/// The iterations of a worker.
#[derive(Debug)]
pub(super) struct Iterations {
    /// When the current iteration began; `None` while the thread waits.
    began: Option<Duration>,
    /// The duration of all iterations that have ended.
    busy: Duration,
    /// The longest iteration since `since`, and the longest of the period before.
    longest: Duration,
    before: Duration,
    since: Duration,
    /// The time and the busy time at the last tick.
    ticked: (Duration, Duration),
    busy_per_million: u64,
}

impl Iterations {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            began: Some(now),
            busy: Duration::ZERO,
            longest: Duration::ZERO,
            before: Duration::ZERO,
            since: now,
            ticked: (now, Duration::ZERO),
            busy_per_million: 0,
        }
    }

    /// Begins an iteration.
    pub(super) fn begin(&mut self, now: Duration) {
        self.began = Some(now);
    }

    /// Ends the iteration.
    pub(super) fn end(&mut self, now: Duration) {
        let Some(began) = self.began.take() else { return };
        let took = now.saturating_sub(began);
        self.busy += took;
        self.longest = self.longest.max(took);
    }

    /// Measures the time since the last tick.
    pub(super) fn tick(&mut self, now: Duration) {
        let (then, busy_then) = self.ticked;
        let (elapsed, busy) = (now.saturating_sub(then), self.busy(now));
        if elapsed >= SHORTEST {
            let part = (busy.saturating_sub(busy_then).as_micros() * 1_000_000) / elapsed.as_micros();
            self.busy_per_million = u64::try_from(part).unwrap_or(u64::MAX).min(1_000_000);
            self.ticked = (now, busy);
        }
        if now.saturating_sub(self.since) >= REMEMBERED {
            (self.before, self.longest, self.since) = (self.longest, Duration::ZERO, now);
        }
    }

    /// Returns the time in which the thread did not wait, including that of the current iteration.
    pub(super) fn busy(&self, now: Duration) -> Duration {
        self.busy + self.began.map_or(Duration::ZERO, |began| now.saturating_sub(began))
    }

    /// Returns the part of the time between the last two ticks in which the thread did not wait, in millionths.
    pub(super) fn busy_per_million(&self) -> u64 {
        self.busy_per_million
    }

    /// Returns the longest iteration that is not forgotten.
    pub(super) fn longest(&self) -> Duration {
        self.longest.max(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_loop_is_busy_from_the_beginning_to_the_end_of_each_iteration() {
        let mut iterations = Iterations::new(ms(0));
        iterations.end(ms(100));
        iterations.begin(ms(400));
        assert_eq!(iterations.busy(ms(450)), ms(150));
        iterations.end(ms(500));
        assert_eq!((iterations.busy(ms(900)), iterations.longest()), (ms(200), ms(100)));
        iterations.begin(ms(950));
        iterations.tick(ms(1_000));
        assert_eq!(iterations.busy_per_million(), 250_000);
        iterations.tick(ms(2_000));
        assert_eq!(iterations.busy_per_million(), 1_000_000);
    }

    #[test]
    fn the_longest_iteration_is_remembered_for_one_to_two_periods() {
        let mut iterations = Iterations::new(ms(0));
        iterations.end(ms(70));
        for second in 1..60 {
            iterations.tick(ms(1_000 * second));
            assert_eq!(iterations.longest(), ms(70), "{second} s");
        }
        iterations.tick(ms(60_000));
        assert_eq!(iterations.longest(), ms(0));
    }

    #[test]
    fn the_ratio_is_measured_over_some_time() {
        let mut iterations = Iterations::new(ms(0));
        iterations.tick(ms(1));
        assert_eq!(iterations.busy_per_million(), 0);
        iterations.end(ms(500));
        iterations.tick(ms(1_000));
        iterations.tick(ms(1_000));
        assert_eq!(iterations.busy_per_million(), 500_000);
    }
}
