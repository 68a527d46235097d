//! Durations with a unit: `90s`, `10m`, `1h`, `1d`.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Digits without a unit.
    #[error("the unit is missing: append s, m, h or d, for example \"90s\" or \"1h\"")]
    NoUnit,
    /// Not a number with a known unit.
    #[error("a duration is a whole number with a unit (s, m, h or d), for example \"90s\", \"10m\", \"1h\" or \"1d\"")]
    Malformed,
    /// More seconds than fit into 64 bits.
    #[error("the duration is too long")]
    TooLong,
}

/// Parses a whole number with a unit: `s`, `m`, `h` or `d` (seconds, minutes, hours, days of 86 400 seconds).
///
/// # Errors
///
/// If the text is not a duration. The error does not contain the text.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or(DurationError::Malformed)?;
    if number.is_empty() {
        return Err(DurationError::Malformed);
    }
    let seconds_per_unit = match unit.trim_start() {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "" => return Err(DurationError::NoUnit),
        _ => return Err(DurationError::Malformed),
    };
    let number: u64 = number.parse().map_err(|_| DurationError::TooLong)?;
    number.checked_mul(seconds_per_unit).map(Duration::from_secs).ok_or(DurationError::TooLong)
}

/// Formats whole seconds in the largest unit that divides them: `1h`, `90m`, `61s`.
///
/// [`parse_duration`] parses the result. Fractions of a second are truncated.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
        if seconds != 0 && seconds.is_multiple_of(length) {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}
