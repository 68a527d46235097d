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

/// How long a client has for its first request, from the connection on.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// How long a connection without an allocation is kept after the last request.
const IDLE: Duration = Duration::from_secs(60);

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
        let fits = self.queue.len() + message.len() <= MOST_DATA;
        if fits {
            self.push(message);
        }
        fits
    }

    /// Takes an answer.
    pub(super) fn push(&mut self, message: &[u8]) {
        self.overflowed |= self.queue.len() + message.len() > MOST_IN_ALL;
        if !self.overflowed {
            self.queue.extend(message);
        }
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
        // A memory that a burst has filled is not kept for the rest of the connection.
        self.queue.shrink_to(4096);
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
    // The beginning of a message whose rest has not arrived.
    let mut rest = Vec::new();
    let mut patience = FIRST_REQUEST;
    let mut deadline = None;
    loop {
        let now = match worker.upgrade() {
            Some(worker) => worker.borrow().now().monotonic,
            None => return Close::Broken,
        };
        let until = *deadline.get_or_insert_with(|| Deadline::after(now, patience));
        let step = poll_fn(|cx| {
            if let Poll::Ready(close) = outbound.borrow_mut().poll_write(cx, stream) {
                return Poll::Ready(Err(close));
            }
            let Some(worker) = worker.upgrade() else { return Poll::Ready(Err(Close::Broken)) };
            worker.borrow_mut().poll_read(cx, tuple, &mut rest, stream)
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
