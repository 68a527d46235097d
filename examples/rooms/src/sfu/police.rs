//! The ceiling of what a participant may send. Each of its bits goes to all viewers.

use std::time::Duration;

use tokio::time::Instant;

use crate::rate::{Bucket, Rate};

/// The kilobits per second of a video section that participants are asked not to exceed: all layers of a camera take
/// 2,150, and a screen takes 2,500.
const ASKED: u32 = 4_000;

/// The bits per second that the forwarding unit takes from one participant.
pub(super) const CEILING: u64 = 8_000_000;

/// How long a participant may send at any rate after a pause: key frames come all at once.
const BURST: Duration = Duration::from_secs(1);

/// How many connectivity checks of a participant are taken. Each costs a hash and a response. Both connections together
/// send far fewer, and without any a connection ends, so they have a rate of their own.
const CHECKS: Rate = Rate { burst: 1_000, interval: Duration::from_millis(5) };

/// The interval of reports.
const REPORT: Duration = Duration::from_secs(10);

/// Drops what exceeds the ceiling: media, reports on them, and all that DTLS carries. A datagram counts before it is
/// authenticated, because decryption is what the others have to be protected from. So whoever forges the source address of a
/// participant can use up its ceiling.
#[derive(Debug)]
pub(super) struct Police {
    /// When all that has passed would have been sent at the ceiling.
    sent: Instant,
    checks: Bucket,
    dropped: u64,
    report: Instant,
}

impl Police {
    pub(super) fn new(now: Instant) -> Self {
        Self { sent: now, checks: Bucket::new(now), dropped: 0, report: now }
    }

    /// Whether a datagram passes. Others are counted, except checks.
    pub(super) fn pass(&mut self, datagram: &[u8], now: Instant) -> bool {
        if is_check(datagram) {
            return self.checks.take(CHECKS, now).is_ok();
        }
        let sent = self.sent.max(now) + Duration::from_nanos(datagram.len() as u64 * 8 * 1_000_000_000 / CEILING);
        if sent > now + BURST {
            self.dropped += 1;
            return false;
        }
        self.sent = sent;
        true
    }

    /// Returns the number of datagrams that were dropped since the last report, if it is time for the next one.
    pub(super) fn report(&mut self, now: Instant) -> Option<u64> {
        if self.dropped == 0 || now < self.report {
            return None;
        }
        self.report = now + REPORT;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// Whether a datagram is STUN (RFC 7983 §7).
fn is_check(datagram: &[u8]) -> bool {
    matches!(datagram, [0..=3, ..])
}

/// Writes the ceiling into an answer (RFC 8866 §5.8). Browsers adapt their encoders to it.
pub(super) fn with_ceiling(answer: &str) -> String {
    let (mut result, mut is_video) = (String::with_capacity(answer.len() + 64), false);
    for line in answer.split_inclusive('\n') {
        result.push_str(line);
        is_video = if line.starts_with("m=") { line.starts_with("m=video") } else { is_video };
        if is_video && line.starts_with("c=") {
            result.push_str(&format!("b=AS:{ASKED}\r\n"));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn media_beyond_the_ceiling_are_dropped_and_counted() {
        let (start, datagram) = (Instant::now(), [[0x80, 96].as_slice(), &[0; 998]].concat());
        let mut police = Police::new(start);
        // 8 kbit each, twice the ceiling for 10 s.
        let passed = (0..20_000).filter(|i| police.pass(&datagram, start + Duration::from_micros(500 * i))).count();
        assert_eq!(passed, 11_000 - 1, "10 s at the ceiling, and the burst");
        assert_eq!(police.report(start + Duration::from_secs(10)), Some(20_000 - 10_999));
        assert_eq!(police.report(start + Duration::from_secs(30)), None);
        while police.pass(&datagram, start + Duration::from_secs(10)) {}
        assert_eq!(police.report(start + Duration::from_secs(11)), None, "too soon");
        assert_eq!(police.report(start + Duration::from_secs(20)), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn reports_and_data_count_as_media_do_and_connectivity_checks_do_not() {
        let start = Instant::now();
        for first in [[0x80, 96], [0x80, 200], [0x81, 205], [22, 254], [23, 254]] {
            let (mut police, datagram) = (Police::new(start), [first.as_slice(), &[0; 998]].concat());
            let passed = (0..2_000).filter(|_| police.pass(&datagram, start)).count();
            assert_eq!(passed, 1_000, "{first:?}");
            assert!(police.pass(&[0, 1], start), "a check");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connectivity_checks_have_a_rate_of_their_own() {
        let (start, mut police) = (Instant::now(), Police::new(Instant::now()));
        assert_eq!((0..2_000).filter(|_| police.pass(&[0, 1], start)).count(), 1_000);
        assert!(police.pass(&[0x80, 96], start), "media pass");
        assert!(police.pass(&[0, 1], start + CHECKS.interval));
    }

    #[test]
    fn only_video_sections_have_a_ceiling_of_their_own() {
        let answer =
            "v=0\r\nm=audio 9 X 111\r\nc=IN IP4 0.0.0.0\r\na=x\r\nm=video 9 X 96\r\nc=IN IP4 0.0.0.0\r\na=y\r\n";
        let expected = "v=0\r\nm=audio 9 X 111\r\nc=IN IP4 0.0.0.0\r\na=x\r\nm=video 9 X 96\r\nc=IN IP4 0.0.0.0\r\n\
                        b=AS:4000\r\na=y\r\n";
        assert_eq!(with_ceiling(answer), expected);
    }
}
