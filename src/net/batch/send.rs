//! Sending with `sendmmsg`, and runs of datagrams with `UDP_SEGMENT`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;

use crate::net::sys::{self, Outgoing};
use crate::net::udp::{canonical, may_be_pending, segmentation_supported};

#[cfg(test)]
mod tests;

/// The most datagrams that a kernel of any version cuts one message into (`UDP_MAX_SEGMENTS`).
const MOST_SEGMENTS: usize = 64;

/// The longest UDP payload over IPv4, which a run must not exceed either.
const LONGEST_RUN: usize = 65_507;

/// The most pieces of one message (`UIO_MAXIOV`).
const MOST_PIECES: usize = 1_024;

/// The longest datagrams that are sent in runs: what fits into an Ethernet frame with the headers of either version of IP.
/// The kernel refuses segments that it would have to fragment.
const LONGEST_SEGMENT_V4: usize = 1_472;
const LONGEST_SEGMENT_V6: usize = 1_452;

/// How many messages one call hands to the kernel. What fails is tried again from the one behind it on, so that many
/// failures may not cost the making of all that follow each time.
const MOST_MESSAGES: usize = 64;

/// How often a call is repeated that may have reported the error of an earlier datagram.
const RETRIES: usize = 2;

/// Where datagrams go, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    to: SocketAddr,
    from: Option<IpAddr>,
    tos: u8,
}

impl Target {
    /// To `to`, from the local address `from` where one is named, else the one that the kernel picks, with this DSCP and
    /// ECN (see [`Datagram::tos`](super::Datagram::tos)). A dual-stack socket takes IPv4 addresses as they are.
    #[must_use]
    pub fn new(to: SocketAddr, from: Option<IpAddr>, tos: u8) -> Self {
        Self { to: canonical(to), from: from.map(|address| address.to_canonical()), tos }
    }

    /// Whether source and destination are of one family.
    fn is_possible(&self) -> bool {
        self.from.is_none_or(|from| from.is_ipv4() == self.to.is_ipv4())
    }

    /// Whether a datagram needs nothing but its destination.
    fn is_plain(&self) -> bool {
        self.from.is_none() && self.tos == 0
    }

    fn longest_segment(&self) -> usize {
        if self.to.is_ipv4() { LONGEST_SEGMENT_V4 } else { LONGEST_SEGMENT_V6 }
    }
}

/// A part of a datagram: bytes of the arena, or bytes that the batch keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    kept: bool,
    start: usize,
    end: usize,
}

impl Piece {
    /// These bytes of the arena that [`SendBatch::flush`] will be given.
    #[must_use]
    pub fn of_arena(range: Range<usize>) -> Self {
        Self { kept: false, start: range.start, end: range.end }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The kernel has it.
    Sent,
    /// It was not sent because the socket's buffer or the interface's queue was full.
    BufferFull,
    /// It was not sent for another reason: the system's error number.
    Failed(i32),
}

/// Datagrams that leave through one socket, collected and sent together in the order in which they were pushed.
///
/// Consecutive datagrams to the same target and of equal length, of which the last may be shorter, become one message
/// that the kernel cuts apart. Once its memory has grown to what a flush takes, a batch allocates nothing.
pub struct SendBatch {
    /// Whether runs are made at all.
    segmentation: bool,
    /// Bytes that are not in the arena.
    kept: Vec<u8>,
    pieces: Vec<Piece>,
    /// For each datagram, where its pieces end.
    ends: Vec<usize>,
    runs: Vec<Run>,
    /// How many bytes of the arena are referred to.
    arena: usize,
    fates: Vec<Fate>,
    /// Set by [`Self::flush`]: the fates are those of datagrams that are no longer here.
    flushed: bool,
    sender: sys::Sender,
}

/// Datagrams that make one message.
struct Run {
    target: Target,
    /// Length of the first one.
    segment: usize,
    /// Length of them all.
    length: usize,
    /// Another one may follow: none has been shorter.
    open: bool,
    datagrams: Range<usize>,
    pieces: Range<usize>,
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendBatch").field("datagrams", &self.len()).finish_non_exhaustive()
    }
}

impl SendBatch {
    /// An empty batch. It asks the kernel whether it can cut messages apart: since Linux 4.18.
    #[must_use]
    pub fn new() -> Self {
        Self {
            segmentation: segmentation_supported(),
            kept: Vec::new(),
            pieces: Vec::new(),
            ends: Vec::new(),
            runs: Vec::new(),
            arena: 0,
            fates: Vec::new(),
            flushed: false,
            sender: sys::Sender::default(),
        }
    }

    /// Datagrams that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Keeps a copy of a few bytes that are not in the arena, a header or a whole answer, until the next flush.
    pub fn keep(&mut self, bytes: &[u8]) -> Piece {
        let start = self.kept.len();
        self.kept.extend_from_slice(bytes);
        Piece { kept: true, start, end: self.kept.len() }
    }

    /// Adds a datagram that consists of these pieces. Returns its number, from 0 since the last flush.
    pub fn push(&mut self, target: &Target, pieces: &[Piece]) -> usize {
        if std::mem::take(&mut self.flushed) {
            self.fates.clear();
        }
        debug_assert!(
            pieces.iter().all(|piece| !piece.kept || piece.end <= self.kept.len()),
            "what was kept for an earlier flush is gone"
        );
        let (number, first) = (self.ends.len(), self.pieces.len());
        self.pieces.extend_from_slice(pieces);
        let own = first..self.pieces.len();
        self.ends.push(own.end);
        if !target.is_possible() {
            self.fates.push(Fate::Failed(libc::EINVAL));
            return number;
        }
        self.fates.push(Fate::BufferFull);
        let in_arena = pieces.iter().filter(|piece| !piece.kept);
        self.arena = in_arena.map(|piece| piece.end).fold(self.arena, usize::max);
        let length = pieces.iter().map(Piece::len).sum();
        let last = self.runs.last_mut().filter(|_| self.segmentation);
        match last.filter(|run| run.admits(target, length, &own)) {
            Some(run) => {
                run.open = length == run.segment;
                run.length += length;
                run.datagrams.end = number + 1;
                run.pieces.end = own.end;
            }
            None => self.runs.push(Run::of_one(*target, length, number, own)),
        }
        number
    }

    /// Sends everything, and returns the fate of each datagram by its number. The batch is empty then.
    ///
    /// A datagram that fails holds up no other one. When the socket's buffer is full, the rest is not tried. Where the
    /// kernel or the interface does not cut a message apart, its datagrams are sent one by one.
    pub fn flush(&mut self, socket: &impl AsFd, arena: &[u8]) -> &[Fate] {
        if std::mem::replace(&mut self.flushed, true) {
            self.fates.clear();
        }
        let (mut next, mut attempts) = (0, 0);
        while next < self.runs.len() {
            let error = match self.transmit(socket, arena, next) {
                Ok(count) => {
                    let sent = next..next + count.max(1);
                    self.settle(sent.clone(), Fate::Sent);
                    (next, attempts) = (sent.end, 0);
                    continue;
                }
                Err(error) => error,
            };
            let code = error.raw_os_error().unwrap_or(libc::EINVAL);
            if matches!(code, libc::EAGAIN | libc::ENOBUFS) {
                break;
            }
            if attempts < RETRIES && may_be_pending(&error) {
                attempts += 1;
                continue;
            }
            attempts = 0;
            if refuses_segments(code) && self.runs.get(next).is_some_and(|run| run.datagrams.len() > 1) {
                if refuses_all_segments(code) && std::mem::take(&mut self.segmentation) {
                    tracing::info!(%error, "UDP segmentation is not used: datagrams are sent one by one");
                }
                self.split(next);
            } else {
                self.settle(next..next + 1, Fate::Failed(code));
                next += 1;
            }
        }
        self.kept.clear();
        self.pieces.clear();
        self.ends.clear();
        self.runs.clear();
        self.arena = 0;
        &self.fates
    }

    /// Sends the messages from run `first` on until one fails.
    fn transmit(&mut self, socket: &impl AsFd, arena: &[u8], first: usize) -> io::Result<usize> {
        if arena.len() < self.arena {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let (pieces, kept) = (&self.pieces, &self.kept);
        let bytes = |piece: &Piece| {
            let area = if piece.kept { kept } else { arena };
            area.get(piece.start..piece.end).unwrap_or_default()
        };
        if let [run] = self.runs.get(first..).unwrap_or_default()
            && let [piece] = pieces.get(run.pieces.clone()).unwrap_or_default()
            && run.target.is_plain()
        {
            return sys::send_plain(socket.as_fd(), bytes(piece), run.target.to).map(|_| 1);
        }
        let messages = self.runs.iter().skip(first).take(MOST_MESSAGES).map(|run| {
            let pieces = pieces.get(run.pieces.clone()).unwrap_or_default();
            (run.outgoing(), pieces.iter().map(bytes))
        });
        self.sender.send(socket.as_fd(), messages)
    }

    fn settle(&mut self, runs: Range<usize>, fate: Fate) {
        for run in self.runs.get(runs).unwrap_or_default() {
            self.fates.get_mut(run.datagrams.clone()).unwrap_or_default().fill(fate);
        }
    }

    /// Makes each datagram of a run a message of its own.
    fn split(&mut self, index: usize) {
        let Some(Run { target, datagrams, pieces, .. }) = self.runs.get(index) else { return };
        let (target, mut first) = (*target, pieces.start);
        let (ends, pieces) = (&self.ends, &self.pieces);
        let singles = datagrams.clone().map(|number| {
            let end = ends.get(number).copied().unwrap_or(first);
            let own = std::mem::replace(&mut first, end)..end;
            let length = pieces.get(own.clone()).unwrap_or_default().iter().map(Piece::len).sum();
            Run::of_one(target, length, number, own)
        });
        self.runs.splice(index..=index, singles);
    }
}

impl Run {
    fn of_one(target: Target, length: usize, number: usize, pieces: Range<usize>) -> Self {
        Self { target, segment: length, length, open: length > 0, datagrams: number..number + 1, pieces }
    }

    /// Whether the next datagram, of `length` bytes in these pieces, can go with those that are here.
    fn admits(&self, target: &Target, length: usize, pieces: &Range<usize>) -> bool {
        self.open
            && self.target == *target
            && self.pieces.end == pieces.start
            && (1..=self.segment).contains(&length)
            && self.segment <= target.longest_segment()
            && self.datagrams.len() < MOST_SEGMENTS
            && self.length + length <= LONGEST_RUN
            && self.pieces.len() + pieces.len() <= MOST_PIECES
    }

    fn outgoing(&self) -> Outgoing {
        let Target { to, from, tos } = self.target;
        let segment = if self.datagrams.len() > 1 { u16::try_from(self.segment).ok() } else { None };
        Outgoing { to, from, tos, segment, unfragmented: false }
    }
}

/// Whether a message that is to be cut apart may fail with this error where its datagrams, sent one by one, do not:
/// segments that do not fit the interface, or no checksum offload.
fn refuses_segments(code: i32) -> bool {
    refuses_all_segments(code) || matches!(code, libc::EINVAL | libc::EMSGSIZE)
}

/// Whether the error is about the interface and not about this message.
fn refuses_all_segments(code: i32) -> bool {
    matches!(code, libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
}
