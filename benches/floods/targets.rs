//! What the call and the server have to keep during each flood.

use crate::measure::Ends;

/// The loss of the call, in percent, and the 99th percentile of its latency, in microseconds, stay below.
const LOSS: f64 = 1.0;
const P99: f64 = 10_000.0;

/// The memory of the server grows by at most this many bytes: by the fixed tables and, in the floods with connections,
/// by what docs/threat-model.md names for 1024 unfinished handshakes.
const GROWTH: u64 = 52 << 20;

/// The log has at most as many lines per second.
const LINES: f64 = 250.0;

/// What a flood did.
pub(crate) struct Observed<'o> {
    pub(crate) udp: &'o Ends,
    pub(crate) tcp: &'o Ends,
    /// In bytes.
    pub(crate) growth: u64,
    pub(crate) lines_per_second: f64,
    /// The IP bytes that unverified sources drew, compared with those that they sent.
    pub(crate) drawn: Option<f64>,
}

impl Observed<'_> {
    /// Returns the targets that were missed.
    pub(crate) fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for (part, ends) in [("UDP", self.udp), ("TCP", self.tcp)] {
            if ends.loss >= LOSS {
                missed.push(format!("{part} lost {:.2} % of its packets, with a limit of {LOSS} %", ends.loss));
            }
            if ends.p99 >= P99 {
                missed.push(format!("the p99 of {part} was {:.0} µs, with a limit of {P99} µs", ends.p99));
            }
        }
        if self.growth > GROWTH {
            missed.push(format!(
                "the memory grew by {} KiB, with a limit of {} KiB",
                self.growth / 1024,
                GROWTH / 1024
            ));
        }
        if self.lines_per_second > LINES {
            missed.push(format!("the log had {:.0} lines/s, with a limit of {LINES}", self.lines_per_second));
        }
        if let Some(drawn) = self.drawn.filter(|drawn| *drawn >= 1.0) {
            missed.push(format!("unverified sources drew {drawn:.2} times the bytes that they sent"));
        }
        missed
    }
}
