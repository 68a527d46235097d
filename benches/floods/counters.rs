//! Counters of the kernel and of the server.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::load::Outcome;

/// The length of the link header, which is no part of an IP packet.
const LINK_HEADER: u64 = 14;

/// What an interface has sent and received so far, in IP bytes and packets.
#[derive(Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) sent_packets: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

impl Traffic {
    /// Reads the counters of the interface `to-server` in the namespace of a process.
    pub(crate) fn of(process: u32) -> Outcome<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/net/dev"))?;
        Ok(Self::parse(&text).ok_or("the interface has no counters")?)
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix("to-server:"))?;
        let fields: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
        let [received_bytes, received_packets, _, _, _, _, _, _, sent_bytes, sent_packets] = *fields.first_chunk()?;
        Some(Self {
            sent_packets,
            sent_bytes: sent_bytes.saturating_sub(LINK_HEADER * sent_packets),
            received_bytes: received_bytes.saturating_sub(LINK_HEADER * received_packets),
        })
    }
}

/// The page of metrics of the server.
pub(crate) struct Metrics(String);

impl Metrics {
    /// Reads it from the control socket.
    pub(crate) fn read(socket: &Path) -> Outcome<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: floods\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(Self(page))
    }

    /// Returns the longest iteration of an event loop that the server remembers, in milliseconds.
    pub(crate) fn longest_iteration(&self) -> f64 {
        let of = |line: &str| {
            line.strip_prefix("turnserver_event_loop_longest_iteration_seconds{")?.rsplit_once(' ')?.1.parse().ok()
        };
        1000.0 * self.0.lines().filter_map(of).fold(0.0, f64::max)
    }

    /// Returns the sum over the labels of a family.
    pub(crate) fn sum(&self, family: &str) -> u64 {
        self.values(family).map(|(_, value)| value).sum()
    }

    /// Returns the values of a family with their labels.
    pub(crate) fn values<'m>(&'m self, family: &'m str) -> impl Iterator<Item = (&'m str, u64)> {
        self.0.lines().filter_map(move |line| {
            let (labels, value) = line.strip_prefix(family)?.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, value.parse().ok()?))
        })
    }
}

/// Returns the load average of the machine.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
