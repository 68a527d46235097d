//! Sending with `sendmmsg`, and with segmentation offload (`UDP_SEGMENT`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;

use crate::ip_fields::IpFields;
use crate::net::sys::{self, Outgoing};
use crate::net::udp::{MAX_ATTEMPTS, canonical, is_always_pending, may_be_pending, segmentation_supported};

#[cfg(test)]
mod tests;

/// The most datagrams into which every version of the kernel can split one message (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;

/// The longest message, whether it is split or not: the longest UDP payload over IPv4.
const MAX_MESSAGE: usize = 65_507;

/// The most pieces of one message (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1_024;

/// The longest segments: the UDP payload that fits into an Ethernet frame, over IPv4 and over IPv6. The kernel fails
/// with `EINVAL` or `EMSGSIZE` on a segment that it would have to fragment.
const MAX_SEGMENT_V4: usize = 1_472;
const MAX_SEGMENT_V6: usize = 1_452;

/// The longest segments that are sent whole on every IPv6 path: the minimum MTU without the headers (RFC 8200 §5).
const MAX_SEGMENT_V6_EVERYWHERE: usize = 1_232;

/// The most messages of one system call.
///
/// After a failed message, the call is repeated with the messages that follow it. The limit bounds the cost of building
/// these again.
const MAX_MESSAGES: usize = 64;

/// The most retries of a call that reported either the error of an earlier datagram or an error of its own.
const RETRIES: usize = 2;

/// The number of consecutive messages that an interface refuses to split after which messages are not split for a
/// while.
const REFUSALS: u32 = 8;

/// The number of flushes without segmentation after [`REFUSALS`]. One refused message costs one system call, so trying
/// again is cheap.
const FLUSHES_WITHOUT: u32 = 1_024;

/// The destination, source address, and IP header fields of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    to: SocketAddr,
    from: Option<IpAddr>,
    fields: IpFields,
}

impl Target {
    /// Creates a target with the destination `to`, the local address `from`, and these fields of the IP header.
    ///
    /// If `from` is `None`, the kernel selects the source address. On a dual-stack socket, IPv4 addresses need not be
    /// mapped.
    #[must_use]
    #[inline]
    pub fn new(to: SocketAddr, from: Option<IpAddr>, fields: IpFields) -> Self {
        Self { to: canonical(to), from: from.map(|address| address.to_canonical()), fields }
    }

    /// Returns the destination.
    #[must_use]
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// Returns whether source and destination are of the same family.
    fn families_match(&self) -> bool {
        self.from.is_none_or(|from| from.is_ipv4() == self.to.is_ipv4())
    }

    /// Returns whether a datagram needs no control messages.
    fn is_plain(&self) -> bool {
        self.from.is_none() && self.fields == IpFields::default()
    }

    fn max_segment(&self) -> usize {
        if self.to.is_ipv4() { MAX_SEGMENT_V4 } else { MAX_SEGMENT_V6 }
    }
}

/// A part of a datagram: a range of the arena, or bytes that the batch has copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    kept: bool,
    start: usize,
    end: usize,
}

impl Piece {
    /// Creates a piece from a range of the arena that will be passed to [`SendBatch::flush`].
    #[must_use]
    pub fn of_arena(range: Range<usize>) -> Self {
        Self { kept: false, start: range.start, end: range.end }
    }

    fn len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Returns the piece of the arena that begins `by` bytes later. Copied bytes stay the same.
    #[inline]
    fn moved(self, by: usize) -> Self {
        if self.kept { self } else { Self { start: self.start + by, end: self.end + by, ..self } }
    }
}

/// The result of sending a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendStatus {
    /// The kernel accepted the datagram.
    Sent,
    /// The datagram was not sent because the buffer of the socket or the queue of the interface was full.
    BufferFull,
    /// The datagram was not sent for another reason, given as `errno`.
    Failed(i32),
}

/// Datagrams for one socket, which are sent together in the order in which they were pushed.
///
/// Consecutive datagrams to the same target and of equal length become one message that the kernel splits; the last may
/// be shorter. A batch allocates nothing once its memory has grown to the largest flush.
pub struct SendBatch {
    segmentation: Segmentation,
    /// Copied bytes that are not in the arena.
    kept: Vec<u8>,
    pieces: Vec<Piece>,
    /// The end of the pieces of each datagram.
    ends: Vec<usize>,
    messages: Vec<Message>,
    /// The minimum length of the arena to which the pieces refer.
    arena: usize,
    statuses: Vec<SendStatus>,
    /// Set by [`Self::flush`]: `statuses` belongs to the datagrams of the last flush.
    flushed: bool,
    sender: sys::Sender,
}

/// One message of `sendmmsg`, which holds one or more datagrams.
struct Message {
    target: Target,
    /// The length of the first datagram in bytes.
    segment: usize,
    /// The length of all datagrams in bytes.
    length: usize,
    /// A further datagram can be appended, because all so far have the length of the first.
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
        f.debug_struct("SendBatch").field("datagrams", &self.ends.len()).finish_non_exhaustive()
    }
}

impl SendBatch {
    /// Creates an empty batch, and detects whether the kernel supports segmentation (since Linux 4.18).
    #[must_use]
    pub fn new() -> Self {
        Self {
            segmentation: Segmentation { supported: segmentation_supported(), ..Segmentation::default() },
            kept: Vec::new(),
            pieces: Vec::new(),
            ends: Vec::new(),
            messages: Vec::new(),
            arena: 0,
            statuses: Vec::new(),
            flushed: false,
            sender: sys::Sender::default(),
        }
    }

    /// Returns the memory that it keeps, in bytes.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        // The sender has a vector for each piece, and headers, addresses and control messages for one call.
        let pieces = self.pieces.capacity() * (size_of::<Piece>() + size_of::<libc::iovec>());
        let datagrams = self.ends.capacity() * size_of::<usize>() + self.statuses.capacity() * size_of::<SendStatus>();
        self.kept.capacity() + pieces + datagrams + self.messages.capacity() * size_of::<Message>() + MAX_MESSAGES * 512
    }

    /// Copies bytes that are not in the arena, such as a header or a whole response, until the next flush.
    pub fn keep(&mut self, bytes: &[u8]) -> Piece {
        let start = self.kept.len();
        self.kept.extend_from_slice(bytes);
        Piece { kept: true, start, end: self.kept.len() }
    }

    /// Returns the bytes that a piece of [`Self::keep`] holds.
    #[must_use]
    pub fn kept(&self, piece: &Piece) -> &[u8] {
        if piece.kept { self.kept.get(piece.start..piece.end).unwrap_or_default() } else { &[] }
    }

    /// Adds a datagram that consists of `pieces`. Returns its index in the result of the next flush.
    pub fn push(&mut self, target: &Target, pieces: &[Piece]) -> usize {
        self.push_run(target, pieces, 1, 0)
    }

    /// Adds `count` datagrams. The first consists of `pieces`. In each further one, the pieces of the arena begin
    /// `stride` bytes later. Returns the index of the first in the result of the next flush.
    pub fn push_run(&mut self, target: &Target, pieces: &[Piece], count: usize, stride: usize) -> usize {
        if std::mem::take(&mut self.flushed) {
            self.statuses.clear();
        }
        debug_assert!(
            pieces.iter().all(|piece| !piece.kept || piece.end <= self.kept.len()),
            "bytes copied before the last flush are not available"
        );
        let (first, mut start) = (self.ends.len(), self.pieces.len());
        let status = if target.families_match() { SendStatus::BufferFull } else { SendStatus::Failed(libc::EINVAL) };
        let mut length = 0;
        for index in 0..count {
            length = 0;
            for piece in pieces {
                let piece = piece.moved(index * stride);
                length += piece.len();
                if !piece.kept {
                    self.arena = self.arena.max(piece.end);
                }
                self.pieces.push(piece);
            }
            self.ends.push(self.pieces.len());
            self.statuses.push(status);
        }
        if status != SendStatus::BufferFull {
            return first;
        }
        let (mut number, end) = (first, first + count);
        while number < end {
            let last = self.messages.last_mut().filter(|_| self.segmentation.is_on());
            match last.filter(|message| message.can_append(target, length, start, pieces.len())) {
                Some(message) => {
                    while number < end && message.has_room(length, pieces.len()) {
                        message.append(length, pieces.len());
                        (number, start) = (number + 1, start + pieces.len());
                    }
                }
                None => {
                    self.messages.push(Message::single(*target, length, number, start..start + pieces.len()));
                    (number, start) = (number + 1, start + pieces.len());
                }
            }
        }
        first
    }

    /// Sends all datagrams and empties the batch. Returns the status of each datagram in the order of [`Self::push`].
    ///
    /// A failed datagram does not affect others. Once the buffer of the socket is full, the remaining datagrams are not
    /// tried. If the kernel or the interface cannot split a message, its datagrams are sent one by one.
    pub fn flush(&mut self, socket: &impl AsFd, arena: &[u8]) -> &[SendStatus] {
        if std::mem::replace(&mut self.flushed, true) {
            self.statuses.clear();
        }
        let (mut next, mut attempts) = (0, 0);
        // The messages that replace a refused one, if none of them has failed, and the error.
        let mut refused: Option<(Range<usize>, io::Error)> = None;
        while next < self.messages.len() {
            let error = match self.transmit(socket, arena, next) {
                Ok(count) => {
                    let sent = next..next + count.max(1);
                    self.set_status(sent.clone(), SendStatus::Sent);
                    if let Some((_, error)) = refused.take_if(|(singles, _)| singles.end <= sent.end) {
                        self.segmentation.refused(&error);
                    }
                    if self.messages.get(sent.clone()).unwrap_or_default().iter().any(Message::is_split) {
                        self.segmentation.refusals = 0;
                    }
                    (next, attempts) = (sent.end, 0);
                    continue;
                }
                Err(error) => error,
            };
            let code = error.raw_os_error().unwrap_or(libc::EINVAL);
            if matches!(code, libc::EAGAIN | libc::ENOBUFS) {
                break;
            }
            let retries = if is_always_pending(&error) { MAX_ATTEMPTS } else { RETRIES };
            if attempts < retries && may_be_pending(&error) {
                attempts += 1;
                continue;
            }
            attempts = 0;
            let split = self.messages.get(next).filter(|message| message.is_split());
            if let Some(message) = split.filter(|_| is_segmentation_error(code)) {
                refused = is_refusal(code, message).then(|| (next..next + message.datagrams.len(), error));
                self.split(next);
            } else {
                refused = None;
                self.set_status(next..next + 1, SendStatus::Failed(code));
                next += 1;
            }
        }
        self.segmentation.paused = self.segmentation.paused.saturating_sub(1);
        self.kept.clear();
        self.pieces.clear();
        self.ends.clear();
        self.messages.clear();
        self.arena = 0;
        &self.statuses
    }

    /// Sends messages, starting with `first`, until one fails. Returns how many were sent.
    fn transmit(&mut self, socket: &impl AsFd, arena: &[u8], first: usize) -> io::Result<usize> {
        if arena.len() < self.arena {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let (pieces, kept) = (&self.pieces, &self.kept);
        let bytes = |piece: &Piece| {
            let area = if piece.kept { kept } else { arena };
            area.get(piece.start..piece.end).unwrap_or_default()
        };
        if let [message] = self.messages.get(first..).unwrap_or_default()
            && let [piece] = pieces.get(message.pieces.clone()).unwrap_or_default()
        {
            let sent = if message.target.is_plain() {
                sys::send_plain(socket.as_fd(), bytes(piece), message.target.to)
            } else {
                sys::send(socket.as_fd(), bytes(piece), &message.outgoing())
            };
            return sent.map(|_| 1);
        }
        let messages = self.messages.iter().skip(first).take(MAX_MESSAGES).map(|message| {
            let pieces = pieces.get(message.pieces.clone()).unwrap_or_default();
            (message.outgoing(), pieces.iter().map(bytes))
        });
        self.sender.send(socket.as_fd(), messages)
    }

    fn set_status(&mut self, messages: Range<usize>, status: SendStatus) {
        for message in self.messages.get(messages).unwrap_or_default() {
            self.statuses.get_mut(message.datagrams.clone()).unwrap_or_default().fill(status);
        }
    }

    /// Replaces a message with one message per datagram.
    fn split(&mut self, index: usize) {
        let Some(Message { target, datagrams, pieces, .. }) = self.messages.get(index) else { return };
        let (target, mut first) = (*target, pieces.start);
        let (ends, pieces) = (&self.ends, &self.pieces);
        let singles = datagrams.clone().map(|number| {
            let end = ends.get(number).copied().unwrap_or(first);
            let own = std::mem::replace(&mut first, end)..end;
            let length = pieces.get(own.clone()).unwrap_or_default().iter().map(Piece::len).sum();
            Message::single(target, length, number, own)
        });
        self.messages.splice(index..=index, singles);
    }
}

/// Whether a message may hold several datagrams.
#[derive(Clone, Copy, Debug, Default)]
struct Segmentation {
    /// The kernel can split messages.
    supported: bool,
    /// The number of consecutive messages that an interface refused to split.
    refusals: u32,
    /// The number of flushes before messages are split again.
    paused: u32,
    /// A pause was logged.
    logged: bool,
}

impl Segmentation {
    fn is_on(self) -> bool {
        self.supported && self.paused == 0
    }

    /// Counts a message that the interface refused to split.
    fn refused(&mut self, error: &io::Error) {
        self.refusals += 1;
        if self.refusals < REFUSALS {
            return;
        }
        (self.refusals, self.paused) = (0, FLUSHES_WITHOUT);
        if !std::mem::replace(&mut self.logged, true) {
            tracing::info!(
                event = "segmentation-refused", %error,
                "an interface refuses UDP segmentation, so datagrams are sent one by one. Segmentation is tried again \
                 from time to time; this is logged only once"
            );
        }
    }
}

impl Message {
    /// Returns whether the kernel splits the message into several datagrams.
    fn is_split(&self) -> bool {
        self.datagrams.len() > 1
    }

    fn single(target: Target, length: usize, number: usize, pieces: Range<usize>) -> Self {
        Self { target, segment: length, length, open: length > 0, datagrams: number..number + 1, pieces }
    }

    /// Returns whether a datagram of `length` bytes in `pieces` pieces can be appended. The first of these is at index
    /// `start`.
    fn can_append(&self, target: &Target, length: usize, start: usize, pieces: usize) -> bool {
        self.has_room(length, pieces)
            && self.pieces.end == start
            && (1..=self.segment).contains(&length)
            && self.segment <= target.max_segment()
            && self.target == *target
    }

    fn has_room(&self, length: usize, pieces: usize) -> bool {
        self.open
            && self.datagrams.len() < MAX_SEGMENTS
            && self.length + length <= MAX_MESSAGE
            && self.pieces.len() + pieces <= MAX_PIECES
    }

    /// Appends a datagram. A shorter one is the last.
    fn append(&mut self, length: usize, pieces: usize) {
        self.open = length == self.segment;
        self.length += length;
        self.datagrams.end += 1;
        self.pieces.end += pieces;
    }

    fn outgoing(&self) -> Outgoing {
        let Target { to, from, fields } = self.target;
        let segment = if self.is_split() { u16::try_from(self.segment).ok() } else { None };
        Outgoing { to, from, fields, segment, unfragmented: false }
    }
}

/// Returns whether segmentation can be the cause of this error, so that sending the datagrams one by one may succeed.
fn is_segmentation_error(code: i32) -> bool {
    matches!(code, libc::EIO | libc::EINVAL | libc::EMSGSIZE)
}

/// Returns whether this error of a message means that the interface refuses to split it, provided that its datagrams
/// can be sent one by one: the interface has no checksum offload (`EIO`), or segments are longer than its MTU
/// (`EINVAL`; later kernels use `EMSGSIZE`).
///
/// A host that forges ICMP must not disable segmentation. A Packet Too Big message causes `EINVAL` or `EMSGSIZE` for
/// segments longer than the path MTU, which is at least 1280 bytes (RFC 8201 §4). IPv4 sockets ignore the path MTU. A
/// source address that has gone also causes `EINVAL`, but for single datagrams as well.
fn is_refusal(code: i32, message: &Message) -> bool {
    let is_below_path_mtu = message.target.to.is_ipv4() || message.segment <= MAX_SEGMENT_V6_EVERYWHERE;
    code == libc::EIO || (code == libc::EINVAL && is_below_path_mtu)
}
