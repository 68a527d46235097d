//! The bounded queue of bytes for a client on a connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;

use super::CloseReason;
use crate::net::tls::Failure;
use crate::transport::Transport;
use crate::turn::{self, DropReason, FiveTuple, Instant, Outcome, SocketId};
use crate::worker::outbox::{Flow, SendResult};

/// The number of bytes of relayed data that wait for a client. Data that would exceed it is dropped. A key frame of a
/// video has up to 400 kB.
const MAX_DATA: usize = 512 * 1024;

/// The time for which relayed data waits. Older data is dropped, because real-time media is worthless then.
const MAX_AGE: Duration = Duration::from_millis(300);

/// The number of bytes of responses that wait for a client. If a response would exceed it, the connection ends.
const MAX_CONTROL: usize = 64 * 1024;

/// Like [`MAX_CONTROL`], for a client without an allocation.
const MAX_WITHOUT_ALLOCATION: usize = 16 * 1024;

/// The number of empty buffers that a worker keeps, and the largest one that it keeps, in bytes.
const MAX_SPARE: usize = 64;
const LARGEST_SPARE: usize = 256 * 1024;

/// What the queues of a worker share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The number of bytes of relayed data that wait for clients.
    held: Cell<usize>,
    /// The number of bytes at which the largest queues are emptied next.
    next: Cell<usize>,
    /// Empty buffers, so that a burst needs no new one.
    spare: RefCell<Vec<Buffer>>,
}

impl Shared {
    /// If more than `most` bytes wait in all queues, empties the largest ones until three quarters of it are left.
    /// Messages that were begun are left in any case.
    pub(super) fn limit<'q>(&self, most: usize, queues: impl Iterator<Item = &'q Rc<RefCell<Outbound>>>) {
        if self.held.get() <= self.next.get().max(most) {
            return;
        }
        let mut queues: Vec<_> = queues.map(|queue| (queue.borrow().waiting(), queue)).collect();
        queues.sort_unstable_by_key(|(waiting, _)| std::cmp::Reverse(*waiting));
        for (_, queue) in queues {
            if self.held.get() <= most / 4 * 3 {
                break;
            }
            queue.borrow_mut().drop_all();
        }
        // Sorting the queues is not repeated for each message.
        self.next.set(self.held.get() + most / 4);
    }
}

/// Relayed data.
#[derive(Debug, Default)]
struct Buffer {
    bytes: VecDeque<u8>,
    /// The messages in `bytes`.
    messages: VecDeque<Message>,
}

/// A message of relayed data that waits.
#[derive(Clone, Copy, Debug)]
struct Message {
    length: usize,
    /// The length of the application data in it.
    payload: usize,
    socket: SocketId,
    since: Instant,
}

/// The queue for a client. Responses are written before relayed data.
#[derive(Debug)]
pub(super) struct Outbound {
    client: SocketAddr,
    shared: Rc<Shared>,
    control: VecDeque<u8>,
    data: Buffer,
    /// The number of bytes of the first message of `data` that are written. They are no longer in it.
    begun: usize,
    /// The results for messages that were written or dropped.
    settled: Vec<SendResult>,
    /// Wakes the task that writes.
    writer: Option<Waker>,
    overflowed: bool,
    /// The connection is closed once the queue is written.
    finishing: bool,
    /// Each write has one message, so that each message has its own TLS record. Some clients, such as coturn's, expect
    /// one message per record and lose any further ones in it.
    single: bool,
    /// With `single`, the number of unwritten bytes of the first response.
    remaining: usize,
}

/// Which bytes are written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Control,
    Data,
}

impl Outbound {
    pub(super) fn new(tuple: &FiveTuple, shared: Rc<Shared>) -> Self {
        Self::to(tuple.client, tuple.transport, shared)
    }

    fn to(client: SocketAddr, transport: Transport, shared: Rc<Shared>) -> Self {
        Self {
            client,
            shared,
            control: VecDeque::new(),
            data: Buffer::default(),
            begun: 0,
            settled: Vec::new(),
            writer: None,
            overflowed: false,
            finishing: false,
            single: transport.is_encrypted(),
            remaining: 0,
        }
    }

    /// Returns the number of bytes of relayed data.
    fn waiting(&self) -> usize {
        self.data.bytes.len()
    }

    /// Whether relayed data waits, or results have to be counted.
    pub(super) fn has_data_or_results(&self) -> bool {
        self.waiting() > 0 || !self.settled.is_empty()
    }

    /// Returns the results for messages that were written or dropped since the last call.
    pub(super) fn settled(&mut self) -> std::vec::Drain<'_, SendResult> {
        self.settled.drain(..)
    }

    /// Returns what to write next.
    fn piece(&mut self) -> (Next, &[u8]) {
        let first = self.data.messages.front().map_or(0, |message| message.length - self.begun);
        // A message that was begun is completed first.
        if self.begun == 0 && !self.control.is_empty() {
            if !self.single {
                return (Next::Control, self.control.as_slices().0);
            }
            if self.remaining == 0 {
                let mut header = [0; 4];
                for (place, byte) in header.iter_mut().zip(&self.control) {
                    *place = *byte;
                }
                self.remaining = turn::written_length(header);
            }
            return (Next::Control, front(&mut self.control, self.remaining));
        }
        if self.single || !self.control.is_empty() {
            return (Next::Data, front(&mut self.data.bytes, first));
        }
        (Next::Data, self.data.bytes.as_slices().0)
    }

    fn written(&mut self, next: Next, count: usize) {
        if next == Next::Control {
            self.control.drain(..count);
            self.remaining = self.remaining.saturating_sub(count);
            return;
        }
        self.remove(0..count);
        self.begun += count;
        while let Some(message) = self.data.messages.front().copied()
            && message.length <= self.begun
        {
            self.begun -= message.length;
            self.data.messages.pop_front();
            self.settle(&message, Outcome::RelayedToClient);
        }
    }

    fn remove(&mut self, bytes: std::ops::Range<usize>) {
        self.shared.held.set(self.shared.held.get().saturating_sub(bytes.len()));
        self.data.bytes.drain(bytes);
    }

    fn settle(&mut self, message: &Message, outcome: Outcome) {
        let flow = Flow::Relay(message.socket);
        let bytes = message.payload as u64;
        match self.settled.last_mut() {
            Some(last) if last.flow == flow && last.outcome == outcome => {
                last.packets += 1;
                last.bytes += bytes;
            }
            _ => self.settled.push(SendResult { flow, outcome, to: self.client, packets: 1, bytes }),
        }
    }

    /// Drops the messages that were not begun and that `is_dropped` accepts, up to the first one that it does not.
    fn drop_front(&mut self, reason: DropReason, is_dropped: impl Fn(&Message) -> bool) {
        let kept = usize::from(self.begun > 0);
        let start = if kept == 0 { 0 } else { self.data.messages.front().map_or(0, |first| first.length - self.begun) };
        let mut length = 0;
        while let Some(message) = self.data.messages.get(kept).copied().filter(&is_dropped) {
            length += message.length;
            self.data.messages.remove(kept);
            self.settle(&message, Outcome::Dropped(reason));
        }
        if length > 0 {
            self.remove(start..start + length);
        }
    }

    /// Drops relayed data that has waited for too long.
    pub(super) fn drop_old(&mut self, now: Instant) {
        self.drop_front(DropReason::Outdated, |message| now.since(message.since) > MAX_AGE);
        self.free_if_empty();
    }

    /// Drops all relayed data, except for the rest of a message that was begun.
    pub(super) fn drop_all(&mut self) {
        self.drop_front(DropReason::Outdated, |_| true);
        self.free_if_empty();
    }

    /// Drops everything, because the connection has ended.
    pub(super) fn abandon(&mut self) {
        self.begun = 0;
        while let Some(message) = self.data.messages.pop_front() {
            self.settle(&message, Outcome::Dropped(DropReason::SendFailed));
        }
        self.remove(0..self.data.bytes.len());
        self.free_if_empty();
    }

    /// Gives an empty buffer back, so that an idle connection keeps none.
    fn free_if_empty(&mut self) {
        if self.data.messages.is_empty() && self.data.bytes.capacity() > 0 {
            let buffer = std::mem::take(&mut self.data);
            let mut spare = self.shared.spare.borrow_mut();
            if spare.len() < MAX_SPARE && buffer.bytes.capacity() <= LARGEST_SPARE {
                spare.push(buffer);
            }
        }
    }

    /// Queues relayed data that a relay socket received. Returns whether there was room.
    pub(super) fn push_data(&mut self, now: Instant, socket: SocketId, payload: usize, parts: [&[u8]; 3]) -> bool {
        self.drop_old(now);
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if self.overflowed || self.data.bytes.len() + length > MAX_DATA {
            return false;
        }
        if self.data.bytes.capacity() == 0 {
            self.data = self.shared.spare.borrow_mut().pop().unwrap_or_default();
        }
        self.data.messages.push_back(Message { length, payload, socket, since: now });
        parts.iter().for_each(|part| self.data.bytes.extend(*part));
        self.shared.held.set(self.shared.held.get() + length);
        self.wake();
        true
    }

    /// Queues a response. If the client leaves too many responses unread, the connection ends.
    pub(super) fn push_response(&mut self, message: &[u8], has_allocation: bool) {
        let most = if has_allocation { MAX_CONTROL } else { MAX_WITHOUT_ALLOCATION };
        self.overflowed |= self.control.len() + message.len() > most;
        if !self.overflowed {
            self.control.extend(message);
        }
        self.wake();
    }

    /// Closes the connection once the queue is written.
    pub(super) fn finish(&mut self) {
        self.finishing = true;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Writes as much as the connection accepts. Returns `Ready` only if the connection has to be closed.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        stream: &mut S,
    ) -> Poll<CloseReason> {
        if self.overflowed {
            return Poll::Ready(CloseReason::Unread);
        }
        if !self.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
            self.writer = Some(cx.waker().clone());
        }
        self.drop_old(now);
        while !self.control.is_empty() || !self.data.messages.is_empty() {
            let (next, piece) = self.piece();
            match ready!(Pin::new(&mut *stream).poll_write(cx, piece)) {
                Ok(count) if count > 0 => self.written(next, count),
                Ok(_) => return Poll::Ready(CloseReason::Broken),
                Err(error) => return Poll::Ready(Failure::of(&error).into()),
            }
        }
        // An idle connection keeps no buffer.
        self.control = VecDeque::new();
        self.free_if_empty();
        match ready!(Pin::new(stream).poll_flush(cx)) {
            Ok(()) if self.finishing => Poll::Ready(CloseReason::ServerStopped),
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Failure::of(&error).into()),
        }
    }
}

/// Returns the first `length` bytes in one piece.
fn front(bytes: &mut VecDeque<u8>, length: usize) -> &[u8] {
    if bytes.as_slices().0.len() < length {
        bytes.make_contiguous();
    }
    let front = bytes.as_slices().0;
    front.get(..length).unwrap_or(front)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A connection that accepts `room` bytes and no more.
    #[derive(Default)]
    struct Slow {
        room: usize,
        taken: Vec<u8>,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Poll::Pending;
            }
            self.room -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn when_the_server_stops_a_connection_ends_once_its_responses_are_written() {
        let (mut outbound, mut stream) = (outbound(), Slow { room: 3, ..Slow::default() });
        let mut cx = Context::from_waker(Waker::noop());
        outbound.push_response(b"response", false);
        outbound.finish();
        assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
        stream.room = 100;
        assert_eq!(outbound.poll_write(&mut cx, at(0), &mut stream), Poll::Ready(CloseReason::ServerStopped));
        assert_eq!(stream.taken, b"response");
    }

    #[test]
    fn a_connection_without_queued_responses_ends_at_once() {
        let (mut outbound, mut cx) = (outbound(), Context::from_waker(Waker::noop()));
        assert!(outbound.poll_write(&mut cx, at(0), &mut Slow::default()).is_pending());
        outbound.finish();
        assert_eq!(outbound.poll_write(&mut cx, at(0), &mut Slow::default()), Poll::Ready(CloseReason::ServerStopped));
    }

    fn client() -> SocketAddr {
        "192.0.2.7:4000".parse().unwrap()
    }

    fn outbound() -> Outbound {
        Outbound::to(client(), Transport::Tcp, Rc::default())
    }

    fn at(milliseconds: u64) -> Instant {
        Instant::from_elapsed(Duration::from_millis(milliseconds))
    }

    fn socket() -> SocketId {
        SocketId::for_tests(2)
    }

    /// Returns the number of written and of dropped messages.
    fn counts(outbound: &mut Outbound) -> (u64, u64) {
        let mut counts = (0, 0);
        for settled in outbound.settled() {
            match settled.outcome {
                Outcome::RelayedToClient => counts.0 += settled.packets,
                _ => counts.1 += settled.packets,
            }
        }
        counts
    }

    #[test]
    fn old_data_is_dropped_in_whole_messages_and_responses_are_not() {
        let (mut outbound, mut stream) = (outbound(), Slow { room: 3, ..Slow::default() });
        let mut cx = Context::from_waker(Waker::noop());
        assert!(outbound.push_data(at(0), socket(), 4, [b"@one", b"", b""]));
        assert!(outbound.push_data(at(0), socket(), 4, [b"@two", b"", b""]));
        assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
        outbound.push_response(b"response", true);
        assert!(outbound.push_data(at(200), socket(), 6, [b"@three", b"", b""]));
        stream.room = 100;
        assert!(outbound.poll_write(&mut cx, at(301), &mut stream).is_pending());
        // The first message was begun. The second is too old.
        assert_eq!(stream.taken, b"@oneresponse@three");
        assert_eq!(counts(&mut outbound), (2, 1));
        assert_eq!(outbound.shared.held.get(), 0);
    }

    #[test]
    fn a_burst_of_a_key_frame_loses_nothing() {
        let (mut outbound, mut stream) = (outbound(), Slow::default());
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..400 {
            assert!(outbound.push_data(at(0), socket(), 1_000, [&[7; 1_000], b"", b""]));
        }
        // A client 40 ms away takes the frame in several round trips.
        for (round, room) in [15_000, 30_000, 60_000, 120_000, 240_000].into_iter().enumerate() {
            stream.room = room;
            assert!(outbound.poll_write(&mut cx, at(40 * round as u64), &mut stream).is_pending());
        }
        assert_eq!((stream.taken.len(), counts(&mut outbound)), (400_000, (400, 0)));
    }

    #[test]
    fn a_burst_reuses_the_buffer_of_the_last_one() {
        let (mut outbound, mut stream) = (outbound(), Slow { room: usize::MAX, ..Slow::default() });
        let mut cx = Context::from_waker(Waker::noop());
        let mut burst = |outbound: &mut Outbound| {
            for _ in 0..50 {
                assert!(outbound.push_data(at(0), socket(), 1_000, [&[7; 1_000], b"", b""]));
            }
            let buffer = (outbound.data.bytes.capacity(), outbound.data.bytes.as_slices().0.as_ptr());
            assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
            assert_eq!(outbound.data.bytes.capacity(), 0);
            buffer
        };
        let first = burst(&mut outbound);
        assert_eq!(burst(&mut outbound), first);
        // Another connection uses the same buffer.
        let mut other = Outbound::to(client(), Transport::Tcp, Rc::clone(&outbound.shared));
        assert_eq!(burst(&mut other), first);
    }

    #[test]
    fn every_message_is_settled_when_the_connection_ends() {
        let (mut outbound, mut stream) = (outbound(), Slow { room: 6, ..Slow::default() });
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..3 {
            assert!(outbound.push_data(at(0), socket(), 4, [b"@one", b"", b""]));
        }
        assert!(outbound.poll_write(&mut cx, at(0), &mut stream).is_pending());
        outbound.abandon();
        assert_eq!((counts(&mut outbound), outbound.shared.held.get()), ((1, 2), 0));
    }

    #[test]
    fn the_largest_queues_are_emptied_when_all_together_are_too_long() {
        let shared = Rc::<Shared>::default();
        let queues: Vec<_> =
            (0..4).map(|_| Rc::new(RefCell::new(Outbound::to(client(), Transport::Tcp, Rc::clone(&shared))))).collect();
        for (count, queue) in [1, 4, 2, 3].into_iter().zip(&queues) {
            for _ in 0..count {
                assert!(queue.borrow_mut().push_data(at(0), socket(), 100, [&[7; 100], b"", b""]));
            }
        }
        shared.limit(1_000, queues.iter());
        assert_eq!(shared.held.get(), 1_000);
        assert!(queues[0].borrow_mut().push_data(at(0), socket(), 100, [&[7; 100], b"", b""]));
        shared.limit(1_000, queues.iter());
        let waiting: Vec<usize> = queues.iter().map(|queue| queue.borrow().waiting()).collect();
        assert_eq!((shared.held.get(), waiting), (700, vec![200, 0, 200, 300]));
        assert_eq!(counts(&mut queues[1].borrow_mut()), (0, 4));

        // A message that was begun is completed.
        let (mut stream, mut cx) = (Slow { room: 1, ..Slow::default() }, Context::from_waker(Waker::noop()));
        assert!(queues[3].borrow_mut().poll_write(&mut cx, at(0), &mut stream).is_pending());
        shared.limit(0, queues.iter());
        assert_eq!(shared.held.get(), 699, "it is not tried for each message");
        queues[3].borrow_mut().drop_all();
        assert_eq!(queues[3].borrow().waiting(), 99);
    }
}
