//! Times on the monotonic clock, and deadlines.

use std::time::Duration;

/// Microseconds per second.
const MICROS: u64 = 1_000_000;

/// A time on the monotonic clock, in microseconds since the process started.
///
/// It has no order. To check whether a time has passed, use a [`Deadline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant(u64);

impl Instant {
    /// Returns the time `elapsed` after the start of the process.
    #[must_use]
    pub fn from_elapsed(elapsed: Duration) -> Self {
        Self(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    /// Returns the time `later` after this one.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(Self::from_elapsed(later).0))
    }

    /// Returns the time `earlier` before this one. The result may be before the start of the process, so only
    /// [`since`](Self::since) may be called with it.
    #[must_use]
    pub fn minus(self, earlier: Duration) -> Self {
        Self(self.0.wrapping_sub(Self::from_elapsed(earlier).0))
    }

    /// Returns the time since `earlier`; zero if `earlier` is later than this.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let micros = self.0.wrapping_sub(earlier.0).cast_signed();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// Returns the microseconds since the process started.
    pub(crate) fn micros(self) -> u64 {
        self.0
    }

    /// Returns the seconds since the process started, rounded down.
    pub(crate) fn second(self) -> u64 {
        self.0 / MICROS
    }

    /// Like [`second`](Self::second), in 32 bits, which suffice for 136 years.
    pub(crate) fn second_u32(self) -> u32 {
        u32::try_from(self.second()).unwrap_or(u32::MAX)
    }
}

/// The time at which something expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(u64);

impl Deadline {
    pub(crate) const NEVER: Self = Self(u64::MAX);
    /// A deadline that has always passed.
    pub(crate) const PASSED: Self = Self(0);

    /// Returns the deadline `lifetime` after `now`.
    #[must_use]
    pub fn after(now: Instant, lifetime: Duration) -> Self {
        Self(now.plus(lifetime).0)
    }

    /// Whether the deadline has passed. At exactly its time, it has passed.
    #[must_use]
    pub fn has_passed(self, now: Instant) -> bool {
        self.0 <= now.0
    }

    /// Returns the remaining time, rounded up to whole seconds as in LIFETIME; zero if the deadline has passed.
    #[must_use]
    pub fn seconds_left(self, now: Instant) -> u32 {
        u32::try_from(self.0.saturating_sub(now.0).div_ceil(MICROS)).unwrap_or(u32::MAX)
    }

    /// Returns the remaining time; zero if the deadline has passed.
    #[must_use]
    pub fn left(self, now: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(now.0))
    }

    /// Whether this deadline is earlier than `other`.
    #[must_use]
    pub fn is_before(self, other: Self) -> bool {
        self.0 < other.0
    }

    /// Returns the earlier of two deadlines.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// Returns the later of two deadlines.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    /// Returns the deadline `later` after this one.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self(Instant(self.0).plus(later).0)
    }

    /// Returns the first whole second at which the deadline has passed.
    pub(crate) fn second(self) -> u64 {
        self.0.div_ceil(MICROS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_exactly_at_its_time() {
        let now = Instant::from_elapsed(Duration::from_millis(1_500));
        let deadline = Deadline::after(now, Duration::from_secs(2));
        assert!(!deadline.has_passed(Instant::from_elapsed(Duration::from_millis(3_499))));
        assert!(deadline.has_passed(Instant::from_elapsed(Duration::from_millis(3_500))));
    }

    #[test]
    fn seconds_left_are_rounded_up() {
        let now = Instant::from_elapsed(Duration::from_millis(100));
        let deadline = Deadline::after(now, Duration::from_secs(600));
        assert_eq!(deadline.seconds_left(now), 600);
        assert_eq!(deadline.seconds_left(now.plus(Duration::from_millis(1))), 600);
        assert_eq!(deadline.seconds_left(now.plus(Duration::from_secs(600))), 0);
        assert_eq!(deadline.seconds_left(now.plus(Duration::from_secs(700))), 0);
    }
}
