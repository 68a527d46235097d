//! Clients on connections: one task each, which reads messages, has the worker decide, and writes what is due.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Worker;
use crate::net::tcp;
use crate::turn::{Deadline, DropReason, FiveTuple, Frame, Outcome, Ticket, Transport};

/// Relayed data that waits for a slow client, in bytes. What exceeds it is dropped, as a full socket buffer drops it.
const MOST_DATA: usize = 256 * 1024;

/// All that waits for a slow client, in bytes. Answers are never dropped; a client that leaves so many unread is.
const MOST_IN_ALL: usize = MOST_DATA + 64 * 1024;

/// The same for a client without an allocation.
const MOST_FOR_STRANGER: usize = 16 * 1024;

/// The longest request of a client that has had no allocation on the connection, in bytes.
const LONGEST_OF_STRANGER: usize = 4 * 1024;

/// What one read takes at most, in bytes.
const LARGEST_READ: usize = 16 * 1024;

/// How many messages one connection may keep the worker busy with before the others get their turn.
const BUDGET: usize = 64;

/// How long a client has for its first request, from the connection on.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// How long a connection without an allocation is kept after the last request.
const IDLE: Duration = Duration::from_secs(60);

/// How long a connection is kept that has had no allocation, whatever is asked on it.
const STRANGER: Duration = Duration::from_secs(300);

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// The client closed it, or its half of it.
    ByClient,
    /// What it sent is no TURN.
    Garbage,
    /// It does not read what it asked for.
    Unread,
    /// It made no request in time, and has no allocation.
    Idle,
    /// The connection broke.
    Broken,
    /// The server ends.
    ServerStopped,
}

impl Close {
    fn label(self) -> &'static str {
        match self {
            Self::ByClient => "closed by the client",
            Self::Garbage => "not TURN",
            Self::Unread => "answers left unread",
            Self::Idle => "idle without an allocation",
            Self::Broken => "connection broken",
            Self::ServerStopped => "the server stopped",
        }
    }
}

/// What the bytes of one read came to.
enum Received {
    /// A message that was not dropped.
    Request,
    /// Nothing that counts.
    Nothing,
}

/// What has come from a client and is not served.
#[derive(Debug, Default)]
struct Inbound {
    bytes: Vec<u8>,
    /// There are whole messages in it, to be served before more is read.
    more: bool,
    /// The client has had an allocation on this connection.
    proven: bool,
}

impl Inbound {
    /// Replaces what is kept.
    fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() && self.bytes.capacity() > LARGEST_READ {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
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
}

impl Outbound {
    /// Takes relayed data; false if there is no room.
    fn push_data(&mut self, message: &[u8]) -> bool {
        let fits = !self.overflowed && self.queue.len() + message.len() <= MOST_DATA;
        if fits {
            self.push(message);
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
        self.writer = Some(cx.waker().clone());
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            match ready!(Pin::new(&mut *stream).poll_write(cx, front)) {
                Ok(written) if written > 0 => drop(self.queue.drain(..written)),
                _ => return Poll::Ready(Close::Broken),
            }
        }
        // What a burst took is not kept for the rest of the connection.
        if self.queue.capacity() > MOST_FOR_STRANGER {
            self.queue = VecDeque::new();
        }
        match ready!(Pin::new(stream).poll_flush(cx)) {
            Ok(()) if self.finishing => Poll::Ready(Close::ServerStopped),
            Ok(()) => Poll::Pending,
            Err(_) => Poll::Ready(Close::Broken),
        }
    }
}

/// Serves one client until its connection ends.
pub(super) async fn serve<S>(worker: Weak<RefCell<Worker>>, tuple: FiveTuple, ticket: Ticket, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let outbound = Rc::new(RefCell::new(Outbound::default()));
    match worker.upgrade() {
        Some(worker) => worker.borrow_mut().connected(tuple, Rc::clone(&outbound)),
        None => return,
    }
    let close = converse(&worker, &tuple, &outbound, &mut stream).await;
    if let Some(worker) = worker.upgrade() {
        worker.borrow_mut().disconnected(&tuple, &outbound, ticket, close);
    }
}

async fn converse<S>(
    worker: &Weak<RefCell<Worker>>,
    tuple: &FiveTuple,
    outbound: &RefCell<Outbound>,
    stream: &mut S,
) -> Close
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut inbound = Inbound::default();
    let mut stranger_until = None;
    let mut patience = FIRST_REQUEST;
    let mut deadline = None;
    loop {
        let now = match worker.upgrade() {
            Some(worker) => worker.borrow().now().monotonic,
            None => return Close::Broken,
        };
        if !inbound.proven && stranger_until.get_or_insert_with(|| Deadline::after(now, STRANGER)).has_passed(now) {
            return Close::Idle;
        }
        let until = *deadline.get_or_insert_with(|| Deadline::after(now, patience));
        let step = poll_fn(|cx| {
            if let Poll::Ready(close) = outbound.borrow_mut().poll_write(cx, stream) {
                return Poll::Ready(Err(close));
            }
            let Some(worker) = worker.upgrade() else { return Poll::Ready(Err(Close::Broken)) };
            let read = worker.borrow_mut().poll_read(cx, tuple, &mut inbound, stream);
            if let Poll::Ready(Err(_)) = read {
                // The answers to what came before the end; what cannot be written at once is not waited for.
                let _ = outbound.borrow_mut().poll_write(cx, stream);
            }
            read
        });
        match timeout(Duration::from_secs(until.seconds_left(now).into()), step).await {
            Ok(Ok(Received::Request)) => (patience, deadline) = (IDLE, None),
            Ok(Err(close)) => return close,
            // A client that says much and asks nothing is out of time as well.
            Ok(Ok(Received::Nothing)) | Err(_) => {
                let Some(worker) = worker.upgrade() else { return Close::Broken };
                let worker = worker.borrow();
                if until.has_passed(worker.now().monotonic) {
                    if !worker.server.has_allocation(tuple) {
                        return Close::Idle;
                    }
                    (patience, deadline) = (IDLE, None);
                }
            }
        }
        // A client that sends without end does not keep the others waiting.
        tokio::task::yield_now().await;
    }
}

impl Worker {
    /// The 5-tuple of a new connection and its place in the count, or `None` if it is to be closed.
    pub(super) fn admit(&mut self, stream: &TcpStream) -> Option<(FiveTuple, Ticket)> {
        if self.stopping {
            return None;
        }
        // An answer is written whole; waiting for more would only delay it. Who is gone already needs no answer.
        stream.set_nodelay(true).ok()?;
        tcp::notice_vanished(stream).ok()?;
        let (client, server) = (stream.peer_addr().ok()?, stream.local_addr().ok()?);
        let tuple = FiveTuple { client: canonical(client), server: canonical(server), transport: Transport::Tcp };
        let source = match tuple.client.ip() {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => (u128::from(v6) >> 64).to_string(),
        };
        match self.shared.connections.admit(&source) {
            Ok(ticket) => Some((tuple, ticket)),
            Err(exceeded) => {
                let now = self.now();
                self.events.connection_refused(now.monotonic, tuple.client, exceeded);
                None
            }
        }
    }

    pub(super) fn accept_failed(&mut self, error: &io::Error) {
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
        self.shared.connections.release(ticket);
        if self.connections.get(tuple).is_some_and(|current| Rc::ptr_eq(current, outbound)) {
            self.connections.remove(tuple);
            self.end_allocation(tuple);
        }
        if self.connections.is_empty() {
            self.disconnected.notify_one();
        }
        tracing::debug!(client = %tuple.client, reason = close.label(), "connection ended");
    }

    fn end_allocation(&mut self, tuple: &FiveTuple) {
        let now = self.now();
        self.server.connection_closed(now.monotonic, tuple);
        self.carry_out(now);
    }

    /// Reads from a client's connection and sees complete messages to their ends, not many at a time.
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        inbound: &mut Inbound,
        stream: &mut S,
    ) -> Poll<Result<Received, Close>> {
        let kept = inbound.bytes.len();
        let mut end = kept;
        if !inbound.more {
            let room = self.buffer.get_mut(kept..).unwrap_or_default();
            let most = room.len().min(LARGEST_READ);
            let mut read = ReadBuf::new(room.get_mut(..most).unwrap_or_default());
            match ready!(Pin::new(stream).poll_read(cx, &mut read)) {
                Ok(()) if read.filled().is_empty() => return Poll::Ready(Err(Close::ByClient)),
                Ok(()) => end += read.filled().len(),
                Err(_) => return Poll::Ready(Err(Close::Broken)),
            }
        }
        if let Some(begun) = self.buffer.get_mut(..kept) {
            begun.copy_from_slice(&inbound.bytes);
        }
        let now = self.now();
        let (mut start, mut received) = (0, Received::Nothing);
        inbound.more = false;
        for served in 0.. {
            let bytes = self.buffer.get(start..end).unwrap_or_default();
            // One of the messages just served may have made the allocation.
            inbound.proven = inbound.proven || self.server.has_allocation(tuple);
            if !inbound.proven && exceeds_stranger(bytes) {
                return Poll::Ready(Err(Close::Garbage));
            }
            match self.server.next_frame(bytes) {
                Frame::Complete { .. } if served == BUDGET => {
                    inbound.more = true;
                    break;
                }
                Frame::Complete { message, length } => {
                    if !matches!(self.serve_packet(now, tuple, start..start + message), Outcome::Dropped(_)) {
                        received = Received::Request;
                    }
                    start += length;
                }
                Frame::Partial => break,
                Frame::Invalid => return Poll::Ready(Err(Close::Garbage)),
            }
        }
        inbound.keep(self.buffer.get(start..end).unwrap_or_default());
        Poll::Ready(Ok(received))
    }

    pub(super) fn send_on_connection(&self, tuple: &FiveTuple, message: &[u8], outcome: Outcome) -> Outcome {
        let Some(outbound) = self.connections.get(tuple) else { return Outcome::Dropped(DropReason::SendFailed) };
        let mut outbound = outbound.borrow_mut();
        if !matches!(outcome, Outcome::RelayedToClient | Outcome::RelayedIcmp) {
            outbound.push_answer(message, self.server.has_allocation(tuple));
            outcome
        } else if outbound.push_data(message) {
            outcome
        } else {
            Outcome::Dropped(DropReason::SendBufferFull)
        }
    }
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
