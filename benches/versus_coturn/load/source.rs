//! The sending side of a load: when which flow sends, and what the receiving
//! side says to it.

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

/// How long a flow waits for its oldest packet before it takes all on their way for lost.
const GIVEN_UP: u64 = 50 * clock::MILLISECOND;

/// A sender that is later than this leaves out what it owes, so that it does not flood the server to catch up.
const HOPELESS: u64 = 5 * clock::MILLISECOND;

/// Packets that are handed over at a time at most.
const BURST: u64 = 64;

/// A stamped packet to be sent; its payload begins with the stamp.
pub(crate) type Packet = Stamp;

/// Where packets go out.
pub(crate) trait Outlet {
    /// Sends packets in this order. What cannot be sent is lost.
    fn send(&mut self, packets: &[Packet]);
}

/// Gives out the sequence numbers of each flow.
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

    /// The next `together` packets of each flow that has room for them.
    fn fill(&mut self, room: u64, together: u64, progress: &mut [Progress], now: u64, packets: &mut Vec<Packet>) {
        for (flow, progress) in progress.iter_mut().enumerate() {
            let sent = self.next.get(flow).copied().unwrap_or(0);
            if progress.on_their_way(sent, now) + together <= room {
                packets.extend((0..together).map(|_| self.packet(flow, now)));
            }
        }
    }
}

/// Sends a load through `outlet`; returns how many packets were sent within the window.
pub(crate) fn run(load: &Load, outlet: &mut dyn Outlet, window: Window, feedback: Feedback) -> Outcome<u64> {
    clock::sleep_until(window.start);
    let flows = Flows::new(load.flows, window);
    match load.pace {
        Pace::Rate(rate) => Ok(paced(rate, flows, outlet)),
        Pace::Window(room) => windowed(room, load.shape, flows, outlet, feedback),
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
        packets.extend(pacer.due(now).map(|turn| flows.packet(usize::try_from(turn % count).unwrap_or(0), now)));
        if packets.is_empty() {
            clock::sleep_until(pacer.next());
        } else {
            outlet.send(&packets);
        }
    }
}

/// Says when the next packet is due.
struct Pacer {
    /// Nanoseconds between two packets.
    interval: u64,
    start: u64,
    /// Packets that have been sent or left out.
    done: u64,
}

impl Pacer {
    /// The packets that are to be sent at this time.
    fn due(&mut self, now: u64) -> Range<u64> {
        let due = if now < self.start { 0 } else { (now - self.start) / self.interval + 1 };
        if due.saturating_sub(self.done) > HOPELESS / self.interval + BURST {
            self.done = due - BURST;
        }
        let first = self.done;
        self.done = due.clamp(first, first + BURST);
        first..self.done
    }

    /// When the next packet is due.
    fn next(&self) -> u64 {
        self.start + self.done * self.interval
    }
}

fn windowed(room: u64, shape: Shape, mut flows: Flows, outlet: &mut dyn Outlet, feedback: Feedback) -> Outcome<u64> {
    let together = if shape == Shape::Single { 1 } else { TRAIN as u64 };
    let mut progress = vec![Progress::default(); flows.next.len()];
    let mut packets = Vec::new();
    loop {
        let now = clock::now();
        if now >= flows.window.to {
            return Ok(flows.counted);
        }
        feedback.read(&mut progress, false)?;
        packets.clear();
        flows.fill(room, together, &mut progress, now, &mut packets);
        if packets.is_empty() {
            feedback.read(&mut progress, true)?;
        } else {
            outlet.send(&packets);
        }
    }
}

/// How far a flow's receiver is.
#[derive(Clone, Default)]
struct Progress {
    /// The sequence number that it expects next.
    expected: u64,
    /// When that last changed, or when nothing was on its way.
    since: u64,
}

impl Progress {
    fn on_their_way(&mut self, sent: u64, now: u64) -> u64 {
        if sent <= self.expected {
            self.since = now;
        } else if now.saturating_sub(self.since) > GIVEN_UP {
            *self = Self { expected: sent, since: now };
        }
        sent.saturating_sub(self.expected)
    }

    fn has_received(&mut self, expected: u64, now: u64) {
        if expected > self.expected {
            *self = Self { expected, since: now };
        }
    }
}

/// Where the sender of a window hears from its receiver, outside of the networks that are measured.
pub(crate) struct Feedback(Option<UnixDatagram>);

impl Feedback {
    /// Opens the sender's end, for loads that need it.
    pub(crate) fn open(load: &Load, path: &Path) -> Outcome<Self> {
        if matches!(load.pace, Pace::Rate(_)) {
            return Ok(Self(None));
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        Ok(Self(Some(socket)))
    }

    /// Takes in what has been said so far; with `wait` it waits a little for something to be said.
    fn read(&self, progress: &mut [Progress], wait: bool) -> Outcome<()> {
        let Some(socket) = &self.0 else { return Ok(()) };
        let mut news = vec![0; 8 * progress.len()];
        let mut flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        loop {
            match recv(socket.as_raw_fd(), &mut news, flags) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let now = clock::now();
            for (progress, news) in progress.iter_mut().zip(news.as_chunks::<8>().0) {
                progress.has_received(u64::from_le_bytes(*news), now);
            }
            flags = MsgFlags::MSG_DONTWAIT;
        }
    }
}

/// The receiver's end.
pub(crate) struct Reporter {
    socket: UnixDatagram,
    /// The sequence number that each flow expects next.
    expected: Vec<u64>,
    unsaid: bool,
}

impl Reporter {
    /// Connects to the sender of a load that needs it.
    pub(crate) fn connect(load: &Load, path: &Path) -> Outcome<Option<Self>> {
        if matches!(load.pace, Pace::Rate(_)) {
            return Ok(None);
        }
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Some(Self { socket, expected: vec![0; load.flows], unsaid: false }))
    }

    /// Notes a packet.
    pub(crate) fn note(&mut self, flow: usize, sequence: u64) {
        if let Some(expected) = self.expected.get_mut(flow) {
            *expected = (*expected).max(sequence + 1);
            self.unsaid = true;
        }
    }

    /// Says how far each flow is, if there is news. What finds no room is said the next time.
    pub(crate) fn report(&mut self) {
        if self.unsaid {
            let news: Vec<u8> = self.expected.iter().flat_map(|expected| expected.to_le_bytes()).collect();
            self.unsaid = self.socket.send(&news).is_err();
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
    fn packets_are_due_at_their_time_and_not_before() {
        let mut pacer = Pacer { interval: 1_000, start: 10_000, done: 0 };
        for (now, due) in [(9_999, 0..0), (10_000, 0..1), (10_999, 1..1), (11_000, 1..2), (13_500, 2..4)] {
            assert_eq!(pacer.due(now), due, "{now}");
        }
        assert_eq!(pacer.next(), 14_000);
    }

    // A little late: they are sent in pieces. Hopelessly late: the oldest are left out.
    #[test]
    fn a_late_sender_catches_up_or_leaves_out() {
        let (interval, late) = (1_000, HOPELESS / 1_000 + BURST);
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
    fn a_window_is_filled_and_not_more() {
        let (mut flows, mut progress, mut packets) = (Flows::new(2, WINDOW), vec![Progress::default(); 2], Vec::new());
        let (room, together) = (TRAIN as u64 + 5, TRAIN as u64);
        for _ in 0..2 {
            flows.fill(room, together, &mut progress, 1_000, &mut packets);
            assert_eq!(packets.len(), 2 * TRAIN);
        }
        // One packet too few has arrived of the first flow, enough of the second.
        progress[0].has_received(together - 6, 1_001);
        progress[1].has_received(together - 5, 1_001);
        packets.clear();
        flows.fill(room, together, &mut progress, 1_002, &mut packets);
        assert_eq!(packets.iter().map(|packet| packet.flow).collect::<Vec<_>>(), [1; TRAIN]);
        assert_eq!(packets[0].sequence, together);
    }

    #[test]
    fn what_is_reported_makes_room() {
        let directory = tempfile();
        let load = load(2, Pace::Window(8), Shape::Single);
        let feedback = Feedback::open(&load, &directory).unwrap();
        let mut reporter = Reporter::connect(&load, &directory).unwrap().unwrap();
        reporter.note(1, 4);
        reporter.note(1, 2);
        reporter.report();
        let mut progress = vec![Progress::default(); 2];
        feedback.read(&mut progress, true).unwrap();
        std::fs::remove_file(&directory).unwrap();
        let now = clock::now();
        assert_eq!(progress.iter_mut().map(|flow| flow.on_their_way(8, now)).collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn a_flow_of_which_nothing_is_heard_is_given_up_and_starts_again() {
        let mut progress = Progress::default();
        assert_eq!(progress.on_their_way(0, 1_000), 0);
        assert_eq!(progress.on_their_way(8, 2_000), 8);
        progress.has_received(2, 3_000);
        assert_eq!(progress.on_their_way(8, 3_000 + GIVEN_UP), 6);
        assert_eq!(progress.on_their_way(8, 3_001 + GIVEN_UP), 0);
        assert_eq!(progress.on_their_way(10, 3_002 + GIVEN_UP), 2);
    }

    fn tempfile() -> std::path::PathBuf {
        use std::hash::{BuildHasher, RandomState};
        std::env::temp_dir().join(format!("load-{:016x}.sock", RandomState::new().hash_one(std::process::id())))
    }
}
