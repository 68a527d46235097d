//! Human-readable durations.

use std::fmt;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A duration in seconds. `Display` shows the two largest units: `45 s`, `2 min 5 s`, `11 h 59 min`, `3 d 4 h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanSeconds(pub u64);

impl fmt::Display for HumanSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        let ((large, large_unit), (small, small_unit)) = match seconds {
            0..MINUTE => return write!(f, "{seconds} s"),
            MINUTE..HOUR => ((seconds / MINUTE, "min"), (seconds % MINUTE, "s")),
            HOUR..DAY => ((seconds / HOUR, "h"), (seconds % HOUR / MINUTE, "min")),
            DAY.. => ((seconds / DAY, "d"), (seconds % DAY / HOUR, "h")),
        };
        write!(f, "{large} {large_unit}")?;
        if small == 0 { Ok(()) } else { write!(f, " {small} {small_unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_largest_units_are_shown() {
        let shown = |seconds| HumanSeconds(seconds).to_string();
        assert_eq!(shown(0), "0 s");
        assert_eq!(shown(59), "59 s");
        assert_eq!(shown(60), "1 min");
        assert_eq!(shown(125), "2 min 5 s");
        assert_eq!(shown(3_600), "1 h");
        assert_eq!(shown(43_199), "11 h 59 min");
        assert_eq!(shown(86_400), "1 d");
        assert_eq!(shown(3 * 86_400 + 4 * 3_600 + 59), "3 d 4 h");
    }
}
