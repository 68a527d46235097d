//! The wait after a failed request.

use std::time::Duration;

use super::request::Refusal;

/// The wait after the first failure. It doubles with each further one.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait that the server chooses.
const LONGEST: Duration = Duration::from_secs(60);
/// The wait after a response that another try will hardly change.
const PERMANENT: Duration = Duration::from_secs(300);
/// The longest wait that the receiver can demand.
const LONGEST_DEMAND: Duration = Duration::from_secs(3_600);

/// Returns the wait after a number of failures. `fraction`, between 0 and 1, spreads the requests of many servers.
pub(super) fn wait(failures: u32, refusal: &Refusal, fraction: f64) -> Duration {
    let doubled = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST);
    let own = if refusal.is_permanent && failures > 1 { PERMANENT } else { doubled };
    let demanded = refusal.wait.map_or(Duration::ZERO, Duration::from_secs).min(LONGEST_DEMAND);
    // At most a quarter longer or shorter; never shorter than what the receiver demands.
    own.mul_f64(0.75 + fraction / 2.0).max(demanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_minute_and_is_spread() {
        let refusal = Refusal::default();
        let of = |failures| wait(failures, &refusal, 0.5);
        assert_eq!([1, 2, 3, 7, 100].map(of), [1, 2, 4, 60, 60].map(Duration::from_secs));
        assert_eq!(wait(1, &refusal, 0.0), Duration::from_millis(750));
        assert_eq!(wait(1, &refusal, 1.0), Duration::from_millis(1250));
    }

    #[test]
    fn the_receiver_can_demand_up_to_an_hour() {
        let demanding = |seconds| Refusal { wait: Some(seconds), ..Refusal::default() };
        assert_eq!(wait(1, &demanding(30), 0.0), Duration::from_secs(30));
        assert_eq!(wait(1, &demanding(u64::MAX), 0.0), Duration::from_secs(3600));
        assert_eq!(wait(7, &demanding(1), 0.5), Duration::from_secs(60));
    }

    #[test]
    fn what_another_try_will_hardly_change_is_tried_slowly_but_not_the_first_time() {
        let permanent = Refusal { is_permanent: true, ..Refusal::default() };
        assert_eq!([1, 2, 3].map(|failures| wait(failures, &permanent, 0.5)), [1, 300, 300].map(Duration::from_secs));
    }
}
