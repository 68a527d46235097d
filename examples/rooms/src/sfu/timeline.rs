//! The timestamps that a viewer gets when it receives another stream.

use std::time::Instant;

use str0m::media::MediaTime;

/// Makes one timeline of several streams, whose timestamps begin anywhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timeline {
    /// What is added to the timestamps of the present stream. `None` before its first frame.
    offset: Option<u64>,
    /// The last timestamp, and when its frame came.
    last: Option<(u64, Instant)>,
}

impl Timeline {
    /// The next frame is of another stream.
    pub(super) fn switch(&mut self) {
        self.offset = None;
    }

    /// Returns the timestamp of a frame that came at `now`.
    pub(super) fn map(&mut self, time: MediaTime, now: Instant) -> MediaTime {
        let frequency = time.frequency();
        let offset = *self.offset.get_or_insert_with(|| {
            let Some((last, at)) = self.last else { return 0 };
            let passed = now.saturating_duration_since(at).as_micros() * u128::from(frequency.get()) / 1_000_000;
            let next = last.wrapping_add(u64::try_from(passed).unwrap_or_default().max(1));
            next.wrapping_sub(time.numer())
        });
        let mapped = time.numer().wrapping_add(offset);
        self.last = Some((mapped, now));
        MediaTime::new(mapped, frequency)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn timestamps_go_on_from_one_stream_to_the_next_by_the_time_that_passes() {
        let start = tokio::time::Instant::now().into_std();
        let at = |millis| start + Duration::from_millis(millis);
        let mut timeline = Timeline::default();
        let mut map = |ticks, millis, switch: bool| {
            if switch {
                timeline.switch();
            }
            timeline.map(MediaTime::from_90khz(ticks), at(millis)).numer()
        };
        assert_eq!(map(1_000, 0, false), 1_000);
        assert_eq!(map(4_000, 33, false), 4_000);
        assert_eq!(map(900_000, 133, true), 4_000 + 9_000);
        assert_eq!(map(903_000, 166, false), 16_000);
        assert_eq!(map(5, 166, true), 16_001, "never the same timestamp twice");
    }
}
