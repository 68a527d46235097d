//! The sending side of a load: the pace, and the progress that the receiver reports.

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::stamp::Stamp;
use super::{Outcome, Window, clock};
use crate::scenario::{Load, Pace, Shape, TRAIN};

/// Time without progress after which a flow regards all packets in flight as lost.
const LOSS_TIMEOUT: u64 = 50 * clock::MILLISECOND;

/// A sender that is later than this skips packets instead of sending all at once.
const MAX_LATENESS: u64 = 5 * clock::MILLISECOND;

/// Maximum number of packets sent at a time.
const BURST: u64 = 64;

/// A packet to send, as the stamp of its payload.
pub(crate) type Packet = Stamp;

/// Sends packets.
pub(crate) trait Outlet {
    /// Sends packets in this order. Packets that cannot be sent are lost.
    fn send(&mut self, packets: &[Packet]);
}

/// Assigns the sequence numbers of each flow.
struct Flows {
    next: Vec<u64>,
    window: Window,
    /// Packets sent within the window.
    counted: u64,
}

impl Flows {
    fn new(flows: usize, window: Window) -> Self {
        Self { next: vec![0; flows], window, counted: 0 }
    }

    fn packet(&mut self, flow: usize, sent: u64) -> Packet {
        let sequence = match self.next.get_mut(flow) {
            Some(next) => {
                *next += 1;
                *next - 1
            }
            None => 0,
        };
        self.counted += u64::from(self.window.counts(sent));
        Stamp { flow: u32::try_from(flow).unwrap_or(u32::MAX), sequence, sent }
    }

    /// Appends the next `batch` packets of each flow whose window `limit` allows them.
    fn fill(&mut self, limit: u64, batch: u64, progress: &mut [Progress], now: u64, packets: &mut Vec<Packet>) {
        for (flow, progress) in progress.iter_mut().enumerate() {
            let sent = self.next.get(flow).copied().unwrap_or(0);
            if progress.in_flight(sent, now) + batch <= limit {
                packets.extend((0..batch).map(|_| self.packet(flow, now)));
            }
        }
    }
}

/// Sends a load through `outlet` and returns the number of packets sent within the window.
pub(crate) fn run(load: &Load, outlet: &mut dyn Outlet, window: Window, feedback: Feedback) -> Outcome<u64> {
    clock::sleep_until(window.start);
    let flows = Flows::new(load.flows, window);
    match load.pace {
        Pace::Rate(rate) => Ok(paced(rate, flows, outlet)),
        Pace::Window(limit) => windowed(limit, load.shape, flows, outlet, feedback),
    }
}

fn paced(rate: u64, mut flows: Flows, outlet: &mut dyn Outlet) -> u64 {
    let mut pacer = Pacer { interval: clock::SECOND / rate, start: flows.window.start, done: 0 };
    let (count, mut packets) = (flows.next.len() as u64, Vec::new());
    loop {
        let now = clock::now();
        if now >= flows.window.to {
            return flows.counted;
        }
        packets.clear();
        packets.extend(pacer.due(now).map(|number| flows.packet(usize::try_from(number % count).unwrap_or(0), now)));
        if packets.is_empty() {
            clock::sleep_until(pacer.next());
        } else {
            outlet.send(&packets);
        }
    }
}

/// Computes when packets are due.
struct Pacer {
    /// Nanoseconds between two packets.
    interval: u64,
    start: u64,
    /// Packets that were sent or skipped.
    done: u64,
}

impl Pacer {
    /// Returns the numbers of the packets that are due.
    fn due(&mut self, now: u64) -> Range<u64> {
        let due = if now < self.start { 0 } else { (now - self.start) / self.interval + 1 };
        if due.saturating_sub(self.done) > MAX_LATENESS / self.interval + BURST {
            self.done = due - BURST;
        }
        let first = self.done;
        self.done = due.clamp(first, first + BURST);
        first..self.done
    }

    /// Returns the time at which the next packet is due.
    fn next(&self) -> u64 {
        self.start + self.done * self.interval
    }
}

fn windowed(limit: u64, shape: Shape, mut flows: Flows, outlet: &mut dyn Outlet, feedback: Feedback) -> Outcome<u64> {
    let batch = if shape == Shape::Single { 1 } else { TRAIN as u64 };
    let mut progress = vec![Progress::default(); flows.next.len()];
    let mut packets = Vec::new();
    loop {
        let now = clock::now();
        if now >= flows.window.to {
            return Ok(flows.counted);
        }
        feedback.read(&mut progress, false)?;
        packets.clear();
        flows.fill(limit, batch, &mut progress, now, &mut packets);
        if packets.is_empty() {
            feedback.read(&mut progress, true)?;
        } else {
            outlet.send(&packets);
        }
    }
}

/// The progress of a flow's receiver.
#[derive(Clone, Default)]
struct Progress {
    /// The next expected sequence number.
    expected: u64,
    /// Time of the last change, or the last time without packets in flight.
    since: u64,
}

impl Progress {
    fn in_flight(&mut self, sent: u64, now: u64) -> u64 {
        if sent <= self.expected {
            self.since = now;
        } else if now.saturating_sub(self.since) > LOSS_TIMEOUT {
            *self = Self { expected: sent, since: now };
        }
        sent.saturating_sub(self.expected)
    }

    fn update(&mut self, expected: u64, now: u64) {
        if expected > self.expected {
            *self = Self { expected, since: now };
        }
    }
}

/// The sender's end of the progress reports, which do not use the measured network.
pub(crate) struct Feedback(Option<UnixDatagram>);

impl Feedback {
    /// Opens the socket if the load needs it.
    pub(crate) fn open(load: &Load, path: &Path) -> Outcome<Self> {
        if matches!(load.pace, Pace::Rate(_)) {
            return Ok(Self(None));
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        Ok(Self(Some(socket)))
    }

    /// Reads all reports. With `wait` it waits briefly for the first one.
    fn read(&self, progress: &mut [Progress], wait: bool) -> Outcome<()> {
        let Some(socket) = &self.0 else { return Ok(()) };
        let mut report = vec![0; 8 * progress.len()];
        let mut flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        loop {
            match recv(socket.as_raw_fd(), &mut report, flags) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let now = clock::now();
            for (progress, expected) in progress.iter_mut().zip(report.as_chunks::<8>().0) {
                progress.update(u64::from_le_bytes(*expected), now);
            }
            flags = MsgFlags::MSG_DONTWAIT;
        }
    }
}

/// The receiver's end of the progress reports.
pub(crate) struct Reporter {
    socket: UnixDatagram,
    /// The next expected sequence number of each flow.
    expected: Vec<u64>,
    unreported: bool,
}

impl Reporter {
    /// Connects to the sender if the load needs it.
    pub(crate) fn connect(load: &Load, path: &Path) -> Outcome<Option<Self>> {
        if matches!(load.pace, Pace::Rate(_)) {
            return Ok(None);
        }
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Some(Self { socket, expected: vec![0; load.flows], unreported: false }))
    }

    /// Records a received packet.
    pub(crate) fn record(&mut self, flow: usize, sequence: u64) {
        if let Some(expected) = self.expected.get_mut(flow) {
            *expected = (*expected).max(sequence + 1);
            self.unreported = true;
        }
    }

    /// Reports the progress of all flows if it has changed. A report that cannot be sent is repeated the next time.
    pub(crate) fn report(&mut self) {
        if self.unreported {
            let report: Vec<u8> = self.expected.iter().flat_map(|expected| expected.to_le_bytes()).collect();
            self.unreported = self.socket.send(&report).is_err();
        }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    const WINDOW: Window = Window { start: 0, from: 1_000, to: 2_000 };

    fn load(flows: usize, pace: Pace, shape: Shape) -> Load {
        Load { flows, pace, shape, ..crate::scenario::ALL[0].work.loads()[0] }
    }

    #[test]
    fn packets_are_not_due_before_their_time() {
        let mut pacer = Pacer { interval: 1_000, start: 10_000, done: 0 };
        for (now, due) in [(9_999, 0..0), (10_000, 0..1), (10_999, 1..1), (11_000, 1..2), (13_500, 2..4)] {
            assert_eq!(pacer.due(now), due, "{now}");
        }
        assert_eq!(pacer.next(), 14_000);
    }

    // A slightly late sender sends in several bursts. A very late one skips the oldest packets.
    #[test]
    fn a_late_sender_catches_up_or_skips() {
        let (interval, late) = (1_000, MAX_LATENESS / 1_000 + BURST);
        let mut pacer = Pacer { interval, start: 0, done: 0 };
        assert_eq!(pacer.due((late - 1) * interval), 0..BURST);
        assert_eq!(pacer.due((late - 1) * interval), BURST..2 * BURST);

        let mut pacer = Pacer { interval, start: 0, done: 0 };
        assert_eq!(pacer.due(late * interval), late + 1 - BURST..late + 1);
    }

    #[test]
    fn a_flow_numbers_its_packets_and_the_window_counts_them() {
        let mut flows = Flows::new(2, WINDOW);
        let sent = [(0, 999), (1, 1_000), (0, 1_999), (0, 2_000)].map(|(flow, sent)| flows.packet(flow, sent));
        assert_eq!(sent.map(|packet| (packet.flow, packet.sequence)), [(0, 0), (1, 0), (0, 1), (0, 2)]);
        assert_eq!(flows.counted, 2);
    }

    #[test]
    fn a_window_is_filled_and_not_exceeded() {
        let (mut flows, mut progress, mut packets) = (Flows::new(2, WINDOW), vec![Progress::default(); 2], Vec::new());
        let (limit, batch) = (TRAIN as u64 + 5, TRAIN as u64);
        for _ in 0..2 {
            flows.fill(limit, batch, &mut progress, 1_000, &mut packets);
            assert_eq!(packets.len(), 2 * TRAIN);
        }
        // The first flow has received one packet too few, the second enough.
        progress[0].update(batch - 6, 1_001);
        progress[1].update(batch - 5, 1_001);
        packets.clear();
        flows.fill(limit, batch, &mut progress, 1_002, &mut packets);
        assert_eq!(packets.iter().map(|packet| packet.flow).collect::<Vec<_>>(), [1; TRAIN]);
        assert_eq!(packets[0].sequence, batch);
    }

    #[test]
    fn reported_progress_frees_the_window() {
        let directory = tempfile();
        let load = load(2, Pace::Window(8), Shape::Single);
        let feedback = Feedback::open(&load, &directory).unwrap();
        let mut reporter = Reporter::connect(&load, &directory).unwrap().unwrap();
        reporter.record(1, 4);
        reporter.record(1, 2);
        reporter.report();
        let mut progress = vec![Progress::default(); 2];
        feedback.read(&mut progress, true).unwrap();
        std::fs::remove_file(&directory).unwrap();
        let now = clock::now();
        assert_eq!(progress.iter_mut().map(|flow| flow.in_flight(8, now)).collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn a_flow_without_progress_times_out_and_restarts() {
        let mut progress = Progress::default();
        assert_eq!(progress.in_flight(0, 1_000), 0);
        assert_eq!(progress.in_flight(8, 2_000), 8);
        progress.update(2, 3_000);
        assert_eq!(progress.in_flight(8, 3_000 + LOSS_TIMEOUT), 6);
        assert_eq!(progress.in_flight(8, 3_001 + LOSS_TIMEOUT), 0);
        assert_eq!(progress.in_flight(10, 3_002 + LOSS_TIMEOUT), 2);
    }

    fn tempfile() -> std::path::PathBuf {
        use std::hash::{BuildHasher, RandomState};
        std::env::temp_dir().join(format!("load-{:016x}.sock", RandomState::new().hash_one(std::process::id())))
    }
}
