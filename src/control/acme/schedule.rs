//! When a certificate is renewed, and when a failed order is tried again. All times are in seconds.

/// One minute.
pub(super) const MINUTE: u64 = 60;
/// One hour.
pub(super) const HOUR: u64 = 3_600;
/// One day.
pub(super) const DAY: u64 = 24 * HOUR;

/// The wait after the first failure. An authority permits few failures per hour: Let's Encrypt five for each name.
const FIRST_WAIT: u64 = MINUTE;
/// Each wait is this many times as long as the one before.
const FACTOR: u64 = 3;
/// The longest wait after a failure.
const LONGEST_WAIT: u64 = 6 * HOUR;
/// The longest wait that an authority can demand. It is shorter near the end of the present certificate.
pub(super) const LONGEST_DEMAND: u64 = 7 * DAY;
/// What it can demand in any case.
const SHORTEST_DEMAND: u64 = HOUR;
/// The wait after an authority has limited the rate of orders without saying for how long.
pub(super) const RATE_LIMITED: u64 = HOUR;

/// The bounds of the shortest time between two orders that succeed. So an authority cannot make the server order in a
/// loop.
const SHORTEST_INTERVAL: std::ops::RangeInclusive<u64> = 10..=LONGEST_INTERVAL;
/// The upper one.
pub(super) const LONGEST_INTERVAL: u64 = HOUR;

/// The time from one look at the suggestion of the authority to the next (RFC 9773 §4.3), if it does not name one.
pub(super) const ARI_INTERVAL: u64 = 6 * HOUR;
/// The bounds of the time that it names.
const ARI_BOUNDS: std::ops::RangeInclusive<u64> = MINUTE..=LONGEST_ARI_INTERVAL;
/// The upper one.
pub(super) const LONGEST_ARI_INTERVAL: u64 = DAY;

/// A validity period in seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: u64,
    pub(super) to: u64,
}

/// The time in which an authority suggests to renew a certificate (RFC 9773 §4.2), in seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Validity {
    fn length(self) -> u64 {
        self.to.saturating_sub(self.from)
    }
}

/// Returns when a certificate is renewed: when a third of its life is left, or up to a tenth of that third earlier, by
/// `fraction`, which is between 0 and 1. So many servers do not renew at the same time.
///
/// A suggestion of the authority takes precedence, but not one for the last tenth of the life, because an order may fail.
pub(super) fn renewal(validity: Validity, suggested: Option<Window>, fraction: f64) -> u64 {
    let third = validity.length() / 3;
    let own = validity.to.saturating_sub(third).saturating_sub(part(third / 10, fraction));
    let Some(Window { start, end }) = suggested else { return own };
    let chosen = start.saturating_add(part(end.saturating_sub(start), fraction));
    let last = validity.to.saturating_sub(validity.length() / 10);
    // An authority that revokes the certificate suggests a time in the past.
    chosen.min(last).max(validity.from.saturating_add(shortest_interval(validity)))
}

/// Returns the shortest time from an order that succeeds to the next one: an hour, or less for a short-lived certificate.
pub(super) fn shortest_interval(validity: Validity) -> u64 {
    (validity.length() / 3).clamp(*SHORTEST_INTERVAL.start(), *SHORTEST_INTERVAL.end())
}

/// Returns the part of a time.
fn part(time: u64, fraction: f64) -> u64 {
    // Both are small enough for an exact result, and a second more or less does not matter.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "see above"
    )]
    let part = (time as f64 * fraction.clamp(0.0, 1.0)) as u64;
    part
}

/// Returns how long to wait after this many failures, at least one: a minute after the first, later hours. It is up to a
/// quarter longer, by `fraction`. `demanded` is what the authority demands (RFC 8555 §6.6), `left` the life that the
/// present certificate has left, if there is one that has not expired.
pub(super) fn wait(failures: u32, demanded: Option<u64>, left: Option<u64>, fraction: f64) -> u64 {
    let own = FACTOR.saturating_pow(failures.saturating_sub(1)).saturating_mul(FIRST_WAIT).min(LONGEST_WAIT);
    (own + part(own / 4, fraction)).max(demand(demanded, left))
}

/// Returns the part of a wait that the authority can demand: all of it, but not for ever. Zero if it demands none.
pub(super) fn demand(demanded: Option<u64>, left: Option<u64>) -> u64 {
    let longest = left.map_or(LONGEST_DEMAND, |left| (left / 2).clamp(SHORTEST_DEMAND, LONGEST_DEMAND));
    demanded.unwrap_or_default().min(longest)
}

/// Returns when to look at the suggestion of the authority again. `demanded` is the time that it names.
pub(super) fn ari_interval(demanded: Option<u64>) -> u64 {
    demanded.map_or(ARI_INTERVAL, |seconds| seconds.clamp(*ARI_BOUNDS.start(), *ARI_BOUNDS.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: u64 = 1_800_000_000;
    const LIFE: Validity = Validity { from: FROM, to: FROM + 90 * DAY };

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_life_is_left_or_a_little_earlier() {
        assert_eq!(renewal(LIFE, None, 0.0), FROM + 60 * DAY);
        assert_eq!(renewal(LIFE, None, 1.0), FROM + 57 * DAY);
        assert_eq!(renewal(LIFE, None, 7.0), FROM + 57 * DAY);
        let short = Validity { from: FROM, to: FROM + 6 * DAY };
        assert_eq!(renewal(short, None, 0.0), FROM + 4 * DAY);
        let backwards = Validity { from: FROM, to: FROM - 1 };
        assert_eq!(renewal(backwards, None, 0.5), FROM - 1);
    }

    // RFC 9773 §4.2
    #[test]
    fn the_authority_chooses_the_time_of_renewal_within_limits() {
        let suggest = |start: u64, end: u64, fraction| {
            renewal(LIFE, Some(Window { start: FROM + start, end: FROM + end }), fraction) - FROM
        };
        assert_eq!(suggest(50 * DAY, 52 * DAY, 0.5), 51 * DAY);
        // The certificate will be revoked.
        assert_eq!(suggest(0, 0, 0.5), HOUR);
        // Nonsense does not make the certificate expire.
        assert_eq!(suggest(400 * DAY, 300 * DAY, 0.5), 81 * DAY);
        let window = Window { start: u64::MAX, end: u64::MAX };
        assert_eq!(renewal(LIFE, Some(window), 1.0), FROM + 81 * DAY);
    }

    #[test]
    fn waits_grow_from_a_minute_to_hours_and_five_tries_take_more_than_half_an_hour() {
        let waits: Vec<u64> = (1..=8).map(|failures| wait(failures, None, None, 0.0)).collect();
        assert_eq!(waits, [60, 180, 540, 1_620, 4_860, 14_580, 21_600, 21_600]);
        assert_eq!(wait(1, None, None, 1.0), 75);
        assert_eq!(wait(u32::MAX, None, None, 0.0), LONGEST_WAIT);
        assert_eq!(wait(0, None, None, 0.0), FIRST_WAIT);
    }

    // RFC 8555 §6.6
    #[test]
    fn the_authority_can_demand_a_longer_wait_but_not_for_ever() {
        assert_eq!(wait(1, Some(2 * DAY), None, 0.0), 2 * DAY);
        assert_eq!(wait(6, Some(5), None, 0.0), 14_580);
        assert_eq!(wait(1, Some(u64::MAX), None, 0.0), LONGEST_DEMAND);
        assert_eq!(wait(1, Some(u64::MAX), Some(30 * DAY), 0.0), LONGEST_DEMAND);
        // A certificate for six days does not expire because of it.
        assert_eq!(wait(1, Some(7 * DAY), Some(2 * DAY), 0.0), DAY);
        assert_eq!(wait(1, Some(7 * DAY), Some(60), 0.0), HOUR);
        assert_eq!([ari_interval(None), ari_interval(Some(0)), ari_interval(Some(u64::MAX))], [ARI_INTERVAL, 60, DAY]);
    }
}
