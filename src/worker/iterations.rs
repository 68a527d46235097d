//! Measures the iterations of an event loop: how long each takes, and for how much of the time the loop is busy.
//!
//! An iteration begins when the runtime has looked for events. It ends when the thread waits for more or, on a busy
//! worker, when a task continues that had yielded: the runtime has looked for events in between. All times are those
//! of the process's clock.

use std::time::Duration;

/// The time after which the longest iteration is forgotten, at the earliest. After twice the time, it is forgotten. A
/// monitoring system that reads it once in this time misses none.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The shortest time over which the busy ratio is measured. The first tick of a worker is at its start.
const SHORTEST: Duration = Duration::from_millis(100);

/// The iterations of a worker.
#[derive(Debug)]
pub(super) struct Iterations {
    /// When the thread last stopped waiting; `None` while it waits.
    awake: Option<Duration>,
    /// When the current iteration began, and its number.
    began: Duration,
    number: u64,
    /// The time in which the thread did not wait, without that since `awake`.
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
            awake: Some(now),
            began: now,
            number: 0,
            busy: Duration::ZERO,
            longest: Duration::ZERO,
            before: Duration::ZERO,
            since: now,
            ticked: (now, Duration::ZERO),
            busy_per_million: 0,
        }
    }

    /// Begins an iteration: the thread has waited.
    pub(super) fn begin(&mut self, now: Duration) {
        self.awake = Some(now);
        self.began = now;
    }

    /// Returns the number of the current iteration, for [`Iterations::next`].
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Ends an iteration, and begins the next one without a wait: a task continues that yielded in the iteration of
    /// this number. Of several, the first one ends it.
    pub(super) fn next(&mut self, number: u64, now: Duration) {
        if number == self.number {
            self.number += 1;
            self.longest = self.longest.max(now.saturating_sub(self.began));
            self.began = now;
        }
    }

    /// Ends the iteration: the thread waits.
    pub(super) fn end(&mut self, now: Duration) {
        let Some(awake) = self.awake.take() else { return };
        self.busy += now.saturating_sub(awake);
        self.longest = self.longest.max(now.saturating_sub(self.began));
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
        self.busy + self.awake.map_or(Duration::ZERO, |awake| now.saturating_sub(awake))
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
    fn an_iteration_of_a_loop_that_never_waits_ends_when_tasks_continue() {
        let mut iterations = Iterations::new(ms(0));
        // Two tasks that take 10 ms each and yield, and then continue in the same order.
        for iteration in 0..100 {
            iterations.next(iteration, ms(20 * (iteration + 1)));
            iterations.next(iteration, ms(20 * (iteration + 1) + 10));
        }
        assert_eq!((iterations.number(), iterations.longest()), (100, ms(20)));
        assert_eq!(iterations.busy(ms(2_050)), ms(2_050));
        // The last one waits.
        iterations.end(ms(2_090));
        assert_eq!((iterations.busy(ms(3_000)), iterations.longest()), (ms(2_090), ms(90)));
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
