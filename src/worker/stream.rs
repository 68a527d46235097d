//! Clients on connections: one task each, which reads messages, has the worker decide, and writes what is due.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::Worker;
use crate::turn::{Deadline, FiveTuple, Ticket};

/// Relayed data that waits for a slow client, in bytes. What exceeds it is dropped, as a full socket buffer drops it.
const MOST_DATA: usize = 256 * 1024;

/// All that waits for a slow client, in bytes. Answers are never dropped; a client that leaves so many unread is.
const MOST_IN_ALL: usize = MOST_DATA + 64 * 1024;

/// The same for a client without an allocation.
const MOST_FOR_STRANGER: usize = 16 * 1024;

/// The longest request of a client that has had no allocation on the connection, in bytes.
const LONGEST_OF_STRANGER: usize = 4 * 1024;

/// What one read takes at most, in bytes.
pub(super) const LARGEST_READ: usize = 16 * 1024;

/// How many messages one connection may keep the worker busy with before the others get their turn.
pub(super) const BUDGET: usize = 64;

/// How long a client has for its first request, from the connection on.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// How long a connection without an allocation is kept after the last request.
const IDLE: Duration = Duration::from_secs(60);

/// How long a connection is kept that has had no allocation, whatever is asked on it.
const STRANGER: Duration = Duration::from_secs(300);

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
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
}

impl Close {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::ByClient => "closed by the client",
            Self::Garbage => "not TURN",
            Self::Unread => "answers left unread",
            Self::Idle => "idle without an allocation",
            Self::Broken => "connection broken",
        }
    }
}

/// What the bytes of one read came to.
pub(super) enum Received {
    /// A message that was not dropped.
    Request,
    /// Nothing that counts.
    Nothing,
}

/// What has come from a client and is not served.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    pub(super) bytes: Vec<u8>,
    /// There are whole messages in it, to be served before more is read.
    pub(super) more: bool,
    /// The client has had an allocation on this connection.
    pub(super) proven: bool,
}

impl Inbound {
    /// Replaces what is kept.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() && self.bytes.capacity() > LARGEST_READ {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
    }
}

/// Whether bytes are more, or other, than the request that a stranger can make: then they are none.
pub(super) fn exceeds_stranger(bytes: &[u8]) -> bool {
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
}

impl Outbound {
    /// Takes relayed data; false if there is no room.
    pub(super) fn push_data(&mut self, message: &[u8]) -> bool {
        let fits = !self.overflowed && self.queue.len() + message.len() <= MOST_DATA;
        if fits {
            self.push(message);
        }
        fits
    }

    /// Takes an answer. If the client leaves too many unread, the connection ends.
    pub(super) fn push_answer(&mut self, message: &[u8], has_allocation: bool) {
        let most = if has_allocation { MOST_IN_ALL } else { MOST_FOR_STRANGER };
        self.overflowed |= self.queue.len() + message.len() > most;
        self.push(if self.overflowed { &[] } else { message });
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
