//! Clients on connections: one task each, which reads messages, has the worker decide, and writes what is due.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::datagrams::{Arena, Served};
use super::{Close, LARGEST_READ, Now, Timeouts, Worker};
use crate::net::tcp;
use crate::net::tls::{Failure, Usage};
use crate::turn::{self, Deadline, DropReason, FiveTuple, Frame, Instant, Outcome, Ticket, Transport};

/// Relayed data that waits for a slow client, in bytes. What exceeds it is dropped, as a full socket buffer drops it.
const MOST_DATA: usize = 256 * 1024;

/// All that waits for a slow client, in bytes. Answers are never dropped; a client that leaves so many unread is.
const MOST_IN_ALL: usize = MOST_DATA + 64 * 1024;

/// The same for a client without an allocation.
const MOST_FOR_STRANGER: usize = 16 * 1024;

/// The longest request of a client that has had no allocation on the connection, in bytes.
const LONGEST_OF_STRANGER: usize = 4 * 1024;

/// How many messages one connection may keep the worker busy with before the others get their turn.
const BUDGET: usize = 64;

/// What has come from a client and is not served.
#[derive(Debug)]
struct Inbound {
    /// What the connection is for.
    usage: Usage,
    bytes: Vec<u8>,
    /// There are whole messages in it, to be served before more is read.
    more: bool,
    /// The client has had an allocation on this connection.
    proven: bool,
    /// Until when it has to have one.
    stranger_until: Deadline,
    /// Until when it has to make a request.
    until: Deadline,
}

impl Inbound {
    fn new(now: Instant, timeouts: &Timeouts, usage: Usage) -> Self {
        let until = Deadline::after(now, timeouts.first_request);
        let stranger_until = Deadline::after(now, timeouts.unauthenticated);
        Self { usage, bytes: Vec::new(), more: false, proven: false, stranger_until, until }
    }

    /// The next moment at which something is over.
    fn deadline(&self) -> Deadline {
        if self.proven { self.until } else { self.until.earlier(self.stranger_until) }
    }

    /// Replaces what is kept.
    fn keep(&mut self, bytes: &[u8]) {
        // Buffers are the worker's: a connection has only what is not served.
        if bytes.is_empty() {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
            self.bytes.extend_from_slice(bytes);
        }
    }
}

/// Whether bytes are more, or other, than the request that a stranger can make: then they are none.
fn exceeds_stranger(bytes: &[u8]) -> bool {
    let claimed = |high: &u8, low: &u8| usize::from(u16::from_be_bytes([*high, *low]));
    match bytes {
        [first, ..] if *first > 3 => true,
        [_, _, high, low, ..] => claimed(high, low) > LONGEST_OF_STRANGER,
        _ => false,
    }
}

/// What waits to be written to a client.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    queue: VecDeque<u8>,
    /// Of the task that writes.
    writer: Option<Waker>,
    overflowed: bool,
    /// The connection is to be closed when the queue is written.
    finishing: bool,
    /// A write takes one message at most, so that TLS puts it into a record of its own: clients that read a record and
    /// take it for a message, as coturn's own does, lose what else is in it.
    single: bool,
    /// What has not been written of a message that has been begun.
    begun: usize,
}

impl Outbound {
    fn new(transport: Transport) -> Self {
        Self { single: transport == Transport::Tls, ..Self::default() }
    }

    /// What is to be written next.
    fn piece(&mut self) -> &[u8] {
        if !self.single {
            return self.queue.as_slices().0;
        }
        if self.begun == 0 {
            let mut header = [0; 4];
            for (place, byte) in header.iter_mut().zip(&self.queue) {
                *place = *byte;
            }
            self.begun = turn::written_length(header);
        }
        if self.queue.as_slices().0.len() < self.begun {
            self.queue.make_contiguous();
        }
        let front = self.queue.as_slices().0;
        front.get(..self.begun).unwrap_or(front)
    }

    /// Takes relayed data; false if there is no room.
    fn push_data(&mut self, parts: [&[u8]; 3]) -> bool {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let fits = !self.overflowed && self.queue.len() + length <= MOST_DATA;
        if fits {
            parts.iter().for_each(|part| self.push(part));
        }
        fits
    }

    /// Takes an answer. If the client leaves too many unread, the connection ends.
    fn push_answer(&mut self, message: &[u8], has_allocation: bool) {
        let most = if has_allocation { MOST_IN_ALL } else { MOST_FOR_STRANGER };
        self.overflowed |= self.queue.len() + message.len() > most;
        self.push(if self.overflowed { &[] } else { message });
    }

    /// Has the connection closed once what waits is written.
    pub(super) fn finish(&mut self) {
        self.finishing = true;
        self.push(&[]);
    }

    fn push(&mut self, message: &[u8]) {
        self.queue.extend(message);
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Writes as much as the connection takes. Ready only if the connection has to be closed.
    fn poll_write<S: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> Poll<Close> {
        if self.overflowed {
            return Poll::Ready(Close::Unread);
        }
        if !self.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
            self.writer = Some(cx.waker().clone());
        }
        while !self.queue.is_empty() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, self.piece())) {
                Ok(written) if written > 0 => {
                    self.queue.drain(..written);
                    self.begun = self.begun.saturating_sub(written);
                }
                Ok(_) => return Poll::Ready(Close::Broken),
                Err(error) => return Poll::Ready(Failure::of(&error).into()),
            }
        }
        // A connection has only what waits.
        self.queue = VecDeque::new();
        match ready!(Pin::new(stream).poll_flush(cx)) {
            Ok(()) if self.finishing => Poll::Ready(Close::ServerStopped),
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Failure::of(&error).into()),
        }
    }
}

/// Serves one client until its connection ends.
pub(super) async fn serve<S>(
    worker: Weak<RefCell<Worker>>,
    tuple: FiveTuple,
    ticket: Ticket,
    mut stream: S,
    usage: Usage,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let outbound = Rc::new(RefCell::new(Outbound::new(tuple.transport)));
    match worker.upgrade() {
        Some(worker) => worker.borrow_mut().connected(tuple, Rc::clone(&outbound)),
        None => return,
    }
    let close = converse(&worker, &tuple, &outbound, &mut stream, usage).await;
    // TLS: close_notify, and then the end of our half; a client that has no room for it does without.
    let _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_shutdown(cx))).await;
    if let Some(worker) = worker.upgrade() {
        worker.borrow_mut().disconnected(&tuple, &outbound, ticket, close);
    }
}

async fn converse<S>(
    worker: &Weak<RefCell<Worker>>,
    tuple: &FiveTuple,
    outbound: &RefCell<Outbound>,
    stream: &mut S,
    usage: Usage,
) -> Close
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut inbound, mut armed, timer) = match worker.upgrade() {
        Some(worker) => {
            let worker = worker.borrow();
            let now = worker.now().monotonic;
            let inbound = Inbound::new(now, &worker.timeouts, usage);
            let armed = inbound.deadline();
            (inbound, armed, sleep(armed.left(now)))
        }
        None => return Close::ServerStopped,
    };
    tokio::pin!(timer);
    loop {
        let step = poll_fn(|cx| {
            if let Poll::Ready(close) = outbound.borrow_mut().poll_write(cx, stream) {
                return Poll::Ready(Err(close));
            }
            let Some(worker) = worker.upgrade() else { return Poll::Ready(Err(Close::ServerStopped)) };
            let read = worker.borrow_mut().poll_read(cx, tuple, &mut inbound, stream);
            match read {
                Poll::Ready(Err(close)) => {
                    // The answers to what came before the end; what cannot be written at once is not waited for.
                    let _ = outbound.borrow_mut().poll_write(cx, stream);
                    Poll::Ready(Err(close))
                }
                // As a rule each request moves the deadline on, and the timer need not be touched.
                _ if inbound.deadline().is_before(armed) => Poll::Ready(Ok(Step::Timer)),
                Poll::Ready(Ok(more)) => Poll::Ready(Ok(Step::Read(more))),
                Poll::Pending => timer.as_mut().poll(cx).map(|()| Ok(Step::Timer)),
            }
        });
        match step.await {
            Ok(Step::Read(false)) => {}
            // A client that sends without end does not keep the others waiting.
            Ok(Step::Read(true)) => yield_now().await,
            Ok(Step::Timer) => {
                let Some(worker) = worker.upgrade() else { return Close::ServerStopped };
                match worker.borrow().patience(tuple, &mut inbound) {
                    Ok(left) => {
                        timer.as_mut().reset(tokio::time::Instant::now() + left);
                        armed = inbound.deadline();
                    }
                    Err(close) => return close,
                }
            }
            Err(close) => return close,
        }
    }
}

/// What woke a connection's task.
enum Step {
    /// Something was read, and perhaps there is more.
    Read(bool),
    /// A deadline may have passed.
    Timer,
}

impl Worker {
    /// The 5-tuple of a new connection and its place in the count, or `None` if it is to be closed.
    pub(super) fn admit(&mut self, stream: &TcpStream, transport: Transport) -> Option<(FiveTuple, Ticket)> {
        if self.stopping {
            return None;
        }
        let Ok((client, server)) = prepare(stream) else {
            // Who is gone already needs no answer.
            self.connection_counters.admitted();
            self.connection_counters.ended(Close::Broken);
            return None;
        };
        let tuple = FiveTuple { client: canonical(client), server: canonical(server), transport };
        let source = match tuple.client.ip() {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => (u128::from(v6) >> 64).to_string(),
        };
        match self.shared.connections.admit(&source) {
            Ok(ticket) => {
                self.connection_counters.admitted();
                Some((tuple, ticket))
            }
            Err(exceeded) => {
                self.connection_counters.refused(exceeded);
                let now = self.now();
                self.events.connection_refused(now.monotonic, tuple.client, exceeded);
                None
            }
        }
    }

    pub(super) fn accept_failed(&mut self, error: &io::Error) {
        self.connection_counters.not_accepted();
        let now = self.now();
        self.events.accept_failed(now.monotonic, error);
    }

    /// Takes note of a connection.
    fn connected(&mut self, tuple: FiveTuple, outbound: Rc<RefCell<Outbound>>) {
        if self.stopping {
            outbound.borrow_mut().finish();
        }
        if self.connections.insert(tuple, outbound).is_some() {
            // The client has the same port again, and its old connection is broken; nobody has told its task yet.
            self.end_allocation(&tuple);
        }
    }

    /// Ends what a connection had.
    fn disconnected(&mut self, tuple: &FiveTuple, outbound: &Rc<RefCell<Outbound>>, ticket: Ticket, close: Close) {
        if self.connections.get(tuple).is_some_and(|current| Rc::ptr_eq(current, outbound)) {
            self.connections.remove(tuple);
            self.end_allocation(tuple);
        }
        if self.connections.is_empty() {
            self.disconnected.notify_one();
        }
        self.connection_ended(tuple, ticket, close);
    }

    /// Counts a connection that is over.
    pub(super) fn connection_ended(&mut self, tuple: &FiveTuple, ticket: Ticket, close: Close) {
        self.shared.connections.release(ticket);
        self.connection_counters.ended(close);
        tracing::debug!(client = %tuple.client, transport = %tuple.transport, reason = %close, "connection ended");
    }

    fn end_allocation(&mut self, tuple: &FiveTuple) {
        let now = self.now();
        self.server.connection_closed(now.monotonic, tuple);
        self.carry_out(now);
    }

    /// How long a client has from now on to make a request, or that it has had its time.
    fn patience(&self, tuple: &FiveTuple, inbound: &mut Inbound) -> Result<Duration, Close> {
        let now = self.now().monotonic;
        if !inbound.proven && inbound.stranger_until.has_passed(now) {
            return Err(Close::Unauthenticated);
        }
        if inbound.until.has_passed(now) {
            if !self.server.has_allocation(tuple) {
                return Err(Close::Idle);
            }
            inbound.until = Deadline::after(now, self.timeouts.idle);
        }
        Ok(inbound.deadline().left(now))
    }

    /// Reads from a client's connection and sees complete messages to their ends, not many at a time. Ready with whether
    /// there may be more.
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        inbound: &mut Inbound,
        stream: &mut S,
    ) -> Poll<Result<bool, Close>> {
        let kept = inbound.bytes.len();
        let (mut end, mut full) = (kept, false);
        if !inbound.more {
            let room = self.buffer.get_mut(kept..).unwrap_or_default();
            let most = room.len().min(LARGEST_READ);
            let mut read = ReadBuf::new(room.get_mut(..most).unwrap_or_default());
            match ready!(Pin::new(stream).poll_read(cx, &mut read)) {
                Ok(()) if read.filled().is_empty() => return Poll::Ready(Err(Close::ByClient)),
                Ok(()) => (end, full) = (kept + read.filled().len(), read.remaining() == 0),
                Err(error) => return Poll::Ready(Err(Failure::of(&error).into())),
            }
        }
        if let Some(begun) = self.buffer.get_mut(..kept) {
            begun.copy_from_slice(&inbound.bytes);
        }
        let now = self.now();
        let mut served = 0..end;
        let received = self.serve_frames(now, tuple, inbound, &mut served);
        // What is queued for peers lies in the buffer, which the next connection is read into.
        self.flush_to_peers(Arena::Stream);
        self.carry_out(now);
        self.end_task(full || inbound.more);
        inbound.keep(self.buffer.get(served).unwrap_or_default());
        received?;
        // A client that says much and asks nothing runs out of time as well.
        if inbound.deadline().has_passed(now.monotonic) {
            self.patience(tuple, inbound)?;
        }
        Poll::Ready(Ok(full || inbound.more))
    }

    /// Sees the complete messages in these bytes of the buffer to their ends; what is left begins a message.
    fn serve_frames(
        &mut self,
        now: Now,
        tuple: &FiveTuple,
        inbound: &mut Inbound,
        left: &mut Range<usize>,
    ) -> Result<(), Close> {
        inbound.more = false;
        for served in 0.. {
            let bytes = self.buffer.get(left.clone()).unwrap_or_default();
            // One of the messages just served may have made the allocation.
            inbound.proven = inbound.proven || self.server.has_allocation(tuple);
            if !inbound.proven && exceeds_stranger(bytes) {
                return Err(Close::Garbage);
            }
            match self.server.next_frame(bytes) {
                Frame::Complete { .. } if served == BUDGET => {
                    inbound.more = true;
                    break;
                }
                Frame::Complete { message, .. }
                    if inbound.usage == Usage::NatDiscovery
                        && !turn::is_binding(bytes.get(..message).unwrap_or_default()) =>
                {
                    // RFC 7443 §2: the client has said that this connection is for Binding.
                    self.settle(tuple.client, Outcome::Dropped(DropReason::UnsupportedMethod));
                    return Err(Close::OtherUsage);
                }
                Frame::Complete { message, length } => {
                    self.pace.moved(1);
                    let served = self.serve_packet(now, tuple, Arena::Stream, left.start..left.start + message, 0);
                    if !matches!(served, Served::Done(Some(Outcome::Dropped(_)))) {
                        inbound.until = Deadline::after(now.monotonic, self.timeouts.idle);
                    }
                    left.start += length;
                }
                Frame::Partial => break,
                Frame::Invalid => return Err(Close::Garbage),
            }
        }
        Ok(())
    }

    /// Queues an answer for a client, or word of an ICMP error, which is as rare.
    pub(super) fn answer_on_connection(&self, tuple: &FiveTuple, message: &[u8], outcome: Outcome) -> Outcome {
        let Some(outbound) = self.connections.get(tuple) else { return Outcome::Dropped(DropReason::SendFailed) };
        outbound.borrow_mut().push_answer(message, self.server.has_allocation(tuple));
        outcome
    }

    /// Queues relayed data, which consists of a few parts.
    pub(super) fn data_on_connection(&self, tuple: &FiveTuple, parts: [&[u8]; 3]) -> Result<(), DropReason> {
        let outbound = self.connections.get(tuple).ok_or(DropReason::SendFailed)?;
        if outbound.borrow_mut().push_data(parts) { Ok(()) } else { Err(DropReason::SendBufferFull) }
    }
}

/// Both ends of a new connection, which is made to send at once and to notice when the client has vanished.
fn prepare(stream: &TcpStream) -> io::Result<(SocketAddr, SocketAddr)> {
    // An answer is written whole; waiting for more would only delay it.
    stream.set_nodelay(true)?;
    tcp::notice_vanished(stream)?;
    Ok((stream.peer_addr()?, stream.local_addr()?))
}

/// A client has one 5-tuple, whatever the family of the socket that it connected to.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::from((v4, address.port())),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that takes `room` more bytes, and then none.
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
    fn at_the_end_of_the_server_a_connection_ends_when_its_answers_are_written() {
        let (mut outbound, mut stream) = (Outbound::default(), Slow { room: 3, ..Slow::default() });
        let mut cx = Context::from_waker(Waker::noop());
        outbound.push_answer(b"answer", false);
        outbound.finish();
        assert!(outbound.poll_write(&mut cx, &mut stream).is_pending());
        stream.room = 100;
        assert_eq!(outbound.poll_write(&mut cx, &mut stream), Poll::Ready(Close::ServerStopped));
        assert_eq!(stream.taken, b"answer");
    }

    #[test]
    fn a_connection_on_which_nothing_is_due_ends_at_once() {
        let (mut outbound, mut cx) = (Outbound::default(), Context::from_waker(Waker::noop()));
        assert!(outbound.poll_write(&mut cx, &mut Slow::default()).is_pending());
        outbound.finish();
        assert_eq!(outbound.poll_write(&mut cx, &mut Slow::default()), Poll::Ready(Close::ServerStopped));
    }
}
