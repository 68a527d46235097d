//! One clock reading, one deadline type, one comparison.

use std::time::Duration;

/// In a second.
const MICROS: u64 = 1_000_000;

/// A moment on the monotonic clock, in microseconds since the process started.
///
/// It has no order of its own: whoever wants to know whether something is over asks a [`Deadline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant(u64);

impl Instant {
    /// The moment `elapsed` after the start of the process.
    #[must_use]
    pub fn from_elapsed(elapsed: Duration) -> Self {
        Self(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    /// The moment `later` after this one.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(Self::from_elapsed(later).0))
    }

    /// The moment `earlier` before this one, or the start of the process.
    #[must_use]
    pub fn minus(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(Self::from_elapsed(earlier).0))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Microseconds since the process started.
    pub(crate) fn micros(self) -> u64 {
        self.0
    }

    /// Whole seconds since the process started, rounded down.
    pub(crate) fn second(self) -> u64 {
        self.0 / MICROS
    }

    /// The same in 32 bits, which last for 136 years.
    pub(crate) fn second_u32(self) -> u32 {
        u32::try_from(self.second()).unwrap_or(u32::MAX)
    }
}

/// The moment at which something is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(u64);

impl Deadline {
    pub(crate) const NEVER: Self = Self(u64::MAX);
    /// Has passed at every moment.
    pub(crate) const PASSED: Self = Self(0);

    /// `lifetime` from `now`.
    #[must_use]
    pub fn after(now: Instant, lifetime: Duration) -> Self {
        Self(now.plus(lifetime).0)
    }

    /// Whether the deadline has come: true from the very microsecond on.
    #[must_use]
    pub fn has_passed(self, now: Instant) -> bool {
        self.0 <= now.0
    }

    /// What is left, rounded up to whole seconds as LIFETIME wants it; zero once the deadline has passed.
    #[must_use]
    pub fn seconds_left(self, now: Instant) -> u32 {
        u32::try_from(self.0.saturating_sub(now.0).div_ceil(MICROS)).unwrap_or(u32::MAX)
    }

    /// What is left; zero once the deadline has passed.
    #[must_use]
    pub fn left(self, now: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(now.0))
    }

    /// Whether this one comes first.
    #[must_use]
    pub fn is_before(self, other: Self) -> bool {
        self.0 < other.0
    }

    /// The earlier of two deadlines.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// The later of two deadlines.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    /// The deadline `later` after this one.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self(Instant(self.0).plus(later).0)
    }

    /// The first whole second at which the deadline has passed.
    pub(crate) fn second(self) -> u64 {
        self.0.div_ceil(MICROS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_at_its_very_millisecond() {
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
