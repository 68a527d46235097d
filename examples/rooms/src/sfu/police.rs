//! The ceiling of what a participant may send. Each of its bits goes to all viewers.

use std::time::Duration;

use tokio::time::Instant;

/// The kilobits per second of a video section that participants are asked not to exceed: all layers of a camera take
/// 2,150, and a screen takes 2,500.
const ASKED: u32 = 4_000;

/// The bits per second of one participant that are forwarded.
pub(super) const CEILING: u64 = 8_000_000;

/// How long a participant may send at any rate after a pause: key frames come all at once.
const BURST: Duration = Duration::from_secs(1);

/// The interval of reports.
const REPORT: Duration = Duration::from_secs(10);

/// Drops the media that exceed the ceiling.
#[derive(Debug)]
pub(super) struct Police {
    /// When all that has passed would have been sent at the ceiling.
    sent: Instant,
    dropped: u64,
    report: Instant,
}

impl Police {
    pub(super) fn new(now: Instant) -> Self {
        Self { sent: now, dropped: 0, report: now }
    }

    /// Whether a datagram passes. Others are counted.
    pub(super) fn pass(&mut self, datagram: &[u8], now: Instant) -> bool {
        if !is_media(datagram) {
            return true;
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

/// Whether a datagram is RTP: neither STUN, DTLS (RFC 7983 §7) nor RTCP (RFC 5761 §4).
fn is_media(datagram: &[u8]) -> bool {
    matches!(datagram, [128..=191, kind, ..] if !(192..=223).contains(kind))
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
    async fn connectivity_checks_handshakes_and_reports_pass_always() {
        let (start, mut police) = (Instant::now(), Police::new(Instant::now()));
        while police.pass(&[0x80; 1_000], start) {}
        assert!([[0, 1], [22, 254], [0x80, 200], [0x81, 205]].iter().all(|other| police.pass(other, start)));
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
