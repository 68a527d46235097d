//! The rate limit of log lines that clients cause.

use crate::turn::Instant;
use crate::worker::RateLimit;

/// Limits the lines of one event like those of the relay, and counts those that are not logged.
#[derive(Debug)]
pub(super) struct LogLimit(RateLimit);

impl Default for LogLimit {
    fn default() -> Self {
        Self(RateLimit::of_problems())
    }
}

impl LogLimit {
    /// Returns whether a line may be logged, with the number of those before it that were not.
    pub(super) fn may_log(&mut self, now: Instant) -> Option<u64> {
        self.0.allows(now).then(|| self.0.rest().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    #[test]
    fn five_lines_per_minute_are_logged_with_the_number_of_suppressed_ones() {
        let mut limit = LogLimit::default();
        let logged: Vec<_> = (0..60).filter_map(|second| limit.may_log(at(second))).collect();
        assert_eq!(logged, [0; 5]);
        assert_eq!(limit.may_log(at(60)), Some(55));
        assert_eq!(limit.may_log(at(61)), Some(0));
    }
}
