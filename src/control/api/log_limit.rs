//! The rate limit of log lines that clients cause.

use crate::turn::{Bucket, Instant, Rate};

/// Lines per second, and the burst.
const LINES: (u32, u32) = (1, 10);

/// Limits the lines of one event, and counts those that are not logged.
#[derive(Debug)]
pub(super) struct LogLimit {
    lines: Bucket,
    suppressed: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self { lines: Bucket::FULL, suppressed: 0 }
    }
}

impl LogLimit {
    /// Returns whether a line may be logged, with the number of those before it that were not.
    pub(super) fn may_log(&mut self, now: Instant) -> Option<u64> {
        if Rate::new(LINES.0, LINES.1).is_some_and(|rate| self.lines.take(&rate, now, 1)) {
            return Some(std::mem::take(&mut self.suppressed));
        }
        self.suppressed += 1;
        None
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
    fn the_log_has_the_number_of_suppressed_lines() {
        let mut limit = LogLimit::default();
        let logged: Vec<_> = (0..15).filter_map(|_| limit.may_log(at(0))).collect();
        assert_eq!(logged, [0; 10]);
        assert_eq!(limit.may_log(at(1)), Some(5));
    }
}
