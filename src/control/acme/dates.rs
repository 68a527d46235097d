//! The dates of HTTP and of renewal information, in seconds since the Unix epoch.

use der::DateTime;

/// Parses the value of a `Date` or `Retry-After` field, as in `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
pub(in crate::control) fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.trim().split_once(", ")?;
    let mut parts = rest.split(' ');
    let mut next = || parts.next();
    let day = next()?.parse().ok()?;
    let name = next()?;
    let month = MONTHS.iter().zip(1..).find(|(month, _)| **month == name)?.1;
    let year = next()?.parse().ok()?;
    let (hour, minute, second) = clock_time(next()?)?;
    (next() == Some("GMT")).then(|| seconds(year, month, day, hour, minute, second))?
}

/// Parses a time as in `2026-01-02T04:00:00.5+01:00` (RFC 3339 §5.6).
pub(super) fn rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', 't'])?;
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let at = time.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = time.split_at_checked(at)?;
    let (hour, minute, second) = clock_time(time.split('.').next()?)?;
    let local = seconds(year, month, day, hour, minute, second)?;
    if zone.eq_ignore_ascii_case("z") {
        return Some(local);
    }
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let offset = hours.parse::<u64>().ok().filter(|hours| *hours < 24)? * 3_600
        + minutes.parse::<u64>().ok().filter(|minutes| *minutes < 60)? * 60;
    if zone.starts_with('-') { local.checked_add(offset) } else { local.checked_sub(offset) }
}

fn clock_time(text: &str) -> Option<(u8, u8, u8)> {
    let mut parts = text.split(':');
    let mut next = || parts.next()?.parse().ok();
    Some((next()?, next()?, next()?))
}

fn seconds(year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Option<u64> {
    // A leap second.
    let second = second.min(59);
    DateTime::new(year, month, day, hour, minute, second).ok().map(|at| at.unix_duration().as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    // From `date -u -d TEXT +%s`.
    #[test]
    fn dates_are_parsed_and_nonsense_is_not() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for text in ["", "Sun, 06 Nov 1994 08:49:37", "Sun, 99 Nov 1994 08:49:37 GMT", "120", "Sun, 06 Nov 1994 x GMT"]
        {
            assert_eq!(http_date(text), None, "{text}");
        }
        for (text, expected) in [
            ("2025-01-02T04:00:00Z", 1_735_790_400),
            ("2025-01-02t04:00:00.123456z", 1_735_790_400),
            ("2025-01-02T04:00:00+01:30", 1_735_785_000),
            ("2025-01-02T04:00:00-01:00", 1_735_794_000),
        ] {
            assert_eq!(rfc3339(text), Some(expected), "{text}");
        }
        for text in
            ["", "2025-01-02", "2025-01-02T04:00:00", "2025-13-02T04:00:00Z", "2025-01-02T04:00:00+99:00", "T+é"]
        {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }
}
