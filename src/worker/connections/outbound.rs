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
use crate::turn::{self, AllocationId, Deadline, DropReason, FiveTuple, Instant, Outcome, SocketId};
use crate::worker::outbox::{Flow, SendResult};

#[cfg(test)]
mod tests;

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
const MAX_SPARE: usize = 16;
const LARGEST_SPARE: usize = 256 * 1024;

/// The largest buffer, in bytes, that may be nearly empty after messages were dropped.
const LARGEST_SPARSE: usize = 16 * 1024;

/// What the queues of a worker share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The memory of all queues and of the empty buffers, in bytes.
    held: Cell<usize>,
    /// Empty buffers, so that a burst needs no new one.
    spare: RefCell<Vec<Buffer>>,
}

impl Shared {
    /// If the queues use more than `most` bytes of memory, frees memory until three quarters of it are left: first the
    /// empty buffers, then the relayed data of the largest queues. If responses and the rests of messages that were
    /// begun exceed that amount alone, the connections with the largest queues end.
    pub(super) fn limit<'q>(&self, most: usize, queues: impl Iterator<Item = &'q Rc<RefCell<Outbound>>>) {
        if self.held.get() <= most {
            return;
        }
        self.spare.take().iter().for_each(|buffer| self.replace(buffer.memory(), 0));
        let mut queues: Vec<_> = queues.collect();
        for free in [Outbound::drop_all, Outbound::give_up] {
            queues.sort_by_cached_key(|queue| std::cmp::Reverse(queue.borrow().counted));
            for queue in &queues {
                if self.held.get() <= most / 4 * 3 {
                    return;
                }
                free(&mut queue.borrow_mut());
            }
        }
    }

    fn replace(&self, before: usize, after: usize) {
        self.held.set((self.held.get() + after).saturating_sub(before));
    }

    fn take_buffer(&self) -> Buffer {
        let buffer = self.spare.borrow_mut().pop().unwrap_or_default();
        self.replace(buffer.memory(), 0);
        buffer
    }

    fn give_back(&self, buffer: Buffer) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < MAX_SPARE && buffer.memory() <= LARGEST_SPARE {
            self.replace(0, buffer.memory());
            spare.push(buffer);
        }
    }
}

/// Relayed data.
#[derive(Debug, Default)]
struct Buffer {
    bytes: VecDeque<u8>,
    /// The messages in `bytes`.
    messages: VecDeque<Message>,
}

impl Buffer {
    /// Returns the memory that it uses, in bytes.
    fn memory(&self) -> usize {
        self.bytes.capacity() + self.messages.capacity() * size_of::<Message>()
    }

    /// Returns the memory that it needs, in bytes.
    fn used(&self) -> usize {
        self.bytes.len() + self.messages.len() * size_of::<Message>()
    }

    fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.messages.shrink_to_fit();
    }
}

/// A message of relayed data that waits.
#[derive(Clone, Copy, Debug)]
struct Message {
    length: usize,
    /// The length of the application data in it.
    payload: usize,
    socket: SocketId,
    /// The message is dropped when this has passed.
    until: Deadline,
}

/// The queue for a client. Responses are written before relayed data.
#[derive(Debug)]
pub(super) struct Outbound {
    client: SocketAddr,
    shared: Rc<Shared>,
    control: VecDeque<u8>,
    data: Buffer,
    /// The memory of `control` and `data` that `shared` includes.
    counted: usize,
    /// The number of bytes of the first message that are written. `data` does not contain them.
    begun: usize,
    /// The results for messages that were written or dropped: one for each outcome of each relay socket, however many
    /// messages there were. They are few, so `counted` does not include them, and a poll frees none.
    settled: Vec<SendResult>,
    /// Wakes the task that writes.
    writer: Option<Waker>,
    overflowed: bool,
    /// A request that waited for the user database was resumed.
    resumed: bool,
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
            counted: 0,
            begun: 0,
            settled: Vec::new(),
            writer: None,
            overflowed: false,
            resumed: false,
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
        self.data.bytes.drain(..count);
        self.begun += count;
        while let Some(message) = self.data.messages.front().copied()
            && message.length <= self.begun
        {
            self.begun -= message.length;
            self.data.messages.pop_front();
            self.settle(&message, Outcome::RelayedToClient);
        }
    }

    /// Updates the memory of all queues.
    fn count_memory(&mut self) {
        let memory = self.control.capacity() + self.data.memory();
        self.shared.replace(self.counted, memory);
        self.counted = memory;
    }

    fn settle(&mut self, message: &Message, outcome: Outcome) {
        let flow = Flow::Relay(message.socket);
        let bytes = message.payload as u64;
        match self.settled.iter_mut().rev().find(|result| result.flow == flow && result.outcome == outcome) {
            Some(result) => {
                result.packets += 1;
                result.bytes += bytes;
            }
            None => self.settled.push(SendResult { flow, outcome, to: self.client, packets: 1, bytes }),
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
            self.data.bytes.drain(start..start + length);
            // The rest of a message that was begun may wait for long.
            if self.data.memory() > LARGEST_SPARSE.max(4 * self.data.used()) && !self.data.messages.is_empty() {
                self.data.shrink();
            }
        }
    }

    /// Drops relayed data that has waited for too long.
    pub(super) fn drop_old(&mut self, now: Instant) {
        self.drop_front(DropReason::Outdated, |message| message.until.has_passed(now));
        self.free_if_empty();
        self.count_memory();
    }

    /// Drops all relayed data, except for the rest of a message that was begun, and frees its memory.
    fn drop_all(&mut self) {
        self.drop_front(DropReason::SendBufferFull, |_| true);
        self.data.shrink();
        self.count_memory();
    }

    /// Drops the relayed data of an allocation that has ended, except for the rest of a message that was begun.
    pub(super) fn drop_data_of(&mut self, allocation: AllocationId) {
        self.drop_front(DropReason::AllocationEnded, |message| message.socket.allocation() == allocation);
        self.free_if_empty();
        self.count_memory();
    }

    /// Says that a request was resumed.
    pub(super) fn resume(&mut self) {
        self.resumed = true;
        self.wake();
    }

    /// Returns whether a request was resumed since the last call.
    pub(super) fn take_resumed(&mut self) -> bool {
        std::mem::take(&mut self.resumed)
    }

    /// Drops everything, and ends the connection.
    fn give_up(&mut self) {
        self.overflowed = true;
        self.control = VecDeque::new();
        self.abandon();
        self.wake();
    }

    /// Drops all relayed data, because the connection has ended.
    pub(super) fn abandon(&mut self) {
        self.begun = 0;
        let data = std::mem::take(&mut self.data);
        data.messages.iter().for_each(|message| self.settle(message, Outcome::Dropped(DropReason::SendFailed)));
        self.count_memory();
    }

    /// Gives an empty buffer back, so that an idle connection keeps none.
    fn free_if_empty(&mut self) {
        if self.data.messages.is_empty() && self.data.bytes.capacity() > 0 {
            self.shared.give_back(std::mem::take(&mut self.data));
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
            self.data = self.shared.take_buffer();
        }
        let until = Deadline::after(now, MAX_AGE);
        self.data.messages.push_back(Message { length, payload, socket, until });
        parts.iter().for_each(|part| self.data.bytes.extend(*part));
        self.count_memory();
        self.wake();
        true
    }

    /// Queues a response. If the client leaves too many responses unread, the connection ends.
    pub(super) fn push_response(&mut self, message: &[u8], has_allocation: bool) {
        let most = if has_allocation { MAX_CONTROL } else { MAX_WITHOUT_ALLOCATION };
        self.overflowed |= self.control.len() + message.len() > most;
        if !self.overflowed {
            self.control.extend(message);
            self.count_memory();
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
        self.count_memory();
        match ready!(Pin::new(stream).poll_flush(cx)) {
            Ok(()) if self.finishing => Poll::Ready(CloseReason::ServerStopped),
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Failure::of(&error).into()),
        }
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.shared.replace(self.counted, 0);
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
