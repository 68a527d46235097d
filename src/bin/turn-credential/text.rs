//! Time formatting.

const DAY: u64 = 86_400;

/// Formats seconds since the Unix epoch as RFC 3339 in UTC, for example `2023-11-14T22:13:20Z`.
pub(crate) fn rfc3339(unix_seconds: u64) -> String {
    let (mut days, second_of_day) = (unix_seconds / DAY, unix_seconds % DAY);
    let mut year = 1970;
    while days >= days_of_year(year) {
        days -= days_of_year(year);
        year += 1;
    }
    let mut month = 1;
    for length in days_of_months(year) {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

fn days_of_year(year: u64) -> u64 {
    days_of_months(year).iter().sum()
}

fn days_of_months(year: u64) -> [u64; 12] {
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
}

#[cfg(test)]
mod tests {
    use super::*;

    // Generated with: date -u -d @SECONDS +%Y-%m-%dT%H:%M:%SZ
    #[test]
    fn times_match_those_of_date() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(rfc3339(99_999_999_999), "5138-11-16T09:46:39Z");
    }
}
