//! The sending side of a load: when which flow sends, and what the receiving
//! side says to it.

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
    let (interval, start, count) = (clock::SECOND / rate, flows.window.start, flows.next.len() as u64);
    // How many packets were due by what has been sent or left out.
    let mut done = 0;
    let mut packets = Vec::new();
    loop {
        let now = clock::now();
        if now >= flows.window.to {
            return flows.counted;
        }
        let due = now.saturating_sub(start) / interval + 1;
        if due == done {
            clock::sleep_until(start + done * interval);
            continue;
        }
        if due - done > HOPELESS / interval + BURST {
            done = due - BURST;
        }
        packets.clear();
        let until = due.min(done + BURST);
        packets.extend((done..until).map(|turn| flows.packet(usize::try_from(turn % count).unwrap_or(0), now)));
        done = until;
        outlet.send(&packets);
    }
}

fn windowed(room: u64, shape: Shape, mut flows: Flows, outlet: &mut dyn Outlet, feedback: Feedback) -> Outcome<u64> {
    let together = if shape == Shape::Single { 1 } else { TRAIN as u64 };
    let mut progress: Vec<Progress> = vec![Progress::default(); flows.next.len()];
    let mut packets = Vec::new();
    loop {
        let now = clock::now();
        if now >= flows.window.to {
            return Ok(flows.counted);
        }
        feedback.read(&mut progress, false)?;
        packets.clear();
        for (flow, progress) in progress.iter_mut().enumerate() {
            let sent = flows.next.get(flow).copied().unwrap_or(0);
            if progress.on_their_way(sent, now) + together <= room {
                packets.extend((0..together).map(|_| flows.packet(flow, now)));
            }
        }
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

    /// Keeps what it is given.
    #[derive(Default)]
    struct Kept(Vec<Packet>);

    impl Outlet for Kept {
        fn send(&mut self, packets: &[Packet]) {
            self.0.extend_from_slice(packets);
        }
    }

    fn soon() -> Window {
        let start = clock::now();
        Window { start, from: start + 10 * clock::MILLISECOND, to: start + 60 * clock::MILLISECOND }
    }

    fn load(flows: usize, pace: Pace, shape: Shape) -> Load {
        Load { flows, pace, shape, ..crate::scenario::ALL[0].work.loads()[0] }
    }

    #[test]
    fn a_paced_load_sends_its_flows_in_turn() {
        let (mut kept, window) = (Kept::default(), soon());
        let load = load(3, Pace::Rate(2_000), Shape::Single);
        let sent = run(&load, &mut kept, window, Feedback(None)).unwrap();
        assert_eq!(sent, kept.0.iter().filter(|packet| window.counts(packet.sent)).count() as u64);
        for (number, packets) in kept.0.chunks(3).enumerate() {
            for packet in packets {
                assert_eq!(packet.sequence, number as u64);
            }
        }
        // 60 ms of 2 000 packets a second; fewer where the machine is busy, but never more.
        assert!(kept.0.len() <= 121, "{}", kept.0.len());
    }

    #[test]
    fn a_window_is_filled_and_not_more() {
        let directory = tempfile();
        let load = load(2, Pace::Window(TRAIN as u64 + 5), Shape::Train);
        let mut kept = Kept::default();
        let mut window = soon();
        // Before anything would be given up.
        window.to = window.start + 20 * clock::MILLISECOND;
        run(&load, &mut kept, window, Feedback::open(&load, &directory).unwrap()).unwrap();
        std::fs::remove_file(&directory).unwrap();
        assert_eq!(kept.0.len(), 2 * TRAIN);
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
