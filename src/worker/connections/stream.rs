//! Clients on connections: one task each, which reads messages, passes them to the core, and writes the queue.

use std::cell::RefCell;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

use super::outbound::Outbound;
use super::places::Place;
use super::{Admitted, CloseReason, Timeouts};
use crate::ip_fields::IpFields;
use crate::net::tls::{Failure, Usage};
use crate::turn::{self, ClientBurst, Deadline, DropReason, FiveTuple, Frame, Instant, Outcome};
use crate::worker::event_log::Host;
use crate::worker::tasks::yield_to_tasks;
use crate::worker::{LARGEST_READ, Now, Worker};

/// The longest request of a client that has had no allocation on the connection, in bytes without its header. One read of
/// its connection returns at most as many, because the server may have to keep what it has read.
const MAX_UNAUTHENTICATED_REQUEST: usize = 4 * 1024;

/// The number of messages of a connection after which other tasks run.
const BUDGET: usize = 64;

/// The received bytes of a connection that are not served yet, and its deadlines.
#[derive(Debug)]
struct Inbound {
    /// The place of the connection in the quota.
    place: Place,
    /// The application protocol of the connection.
    usage: Usage,
    bytes: Vec<u8>,
    /// `bytes` contains complete messages. They are served before the next read.
    more: bool,
    /// A request was served. It may have created or ended the allocation.
    requested: bool,
    /// The client has had an allocation on this connection.
    authenticated: bool,
    /// The deadline for the first allocation.
    unauthenticated_until: Deadline,
    /// The deadline for the next request.
    until: Deadline,
}

impl Inbound {
    fn new(began: Instant, timeouts: &Timeouts, usage: Usage, place: Place) -> Self {
        Self {
            place,
            usage,
            bytes: Vec::new(),
            more: false,
            requested: false,
            authenticated: false,
            unauthenticated_until: Deadline::after(began, timeouts.unauthenticated),
            until: Deadline::after(began, timeouts.first_request),
        }
    }

    /// Returns the next deadline.
    fn deadline(&self) -> Deadline {
        if self.authenticated { self.until } else { self.until.earlier(self.unauthenticated_until) }
    }

    /// Replaces the kept bytes with these: a message without its end, or the rest of one read. They may wait for long, so
    /// they take no more memory than their length.
    fn keep(&mut self, bytes: &[u8]) {
        // The earlier ones are freed first.
        self.bytes = Vec::new();
        self.bytes = bytes.to_vec();
    }
}

/// Returns whether bytes cannot be a request of an unauthenticated client: too long, or neither
/// STUN nor a method below 0x100.
fn is_not_a_request(bytes: &[u8]) -> bool {
    let length = |high: &u8, low: &u8| usize::from(u16::from_be_bytes([*high, *low]));
    match bytes {
        [first, ..] if *first > 3 => true,
        [_, _, high, low, ..] => length(high, low) > MAX_UNAUTHENTICATED_REQUEST,
        _ => false,
    }
}

/// Serves a client until its connection ends. The time for the first request is measured from `began`.
pub(super) async fn serve<S>(
    worker: Weak<RefCell<Worker>>,
    Admitted { tuple, place, .. }: Admitted,
    mut stream: S,
    usage: Usage,
    began: Instant,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(this) = worker.upgrade() else { return };
    let queues = Rc::clone(&this.borrow().shell.connections.queues);
    let outbound = Rc::new(RefCell::new(Outbound::new(&tuple, queues)));
    this.borrow_mut().connected(tuple, Rc::clone(&outbound));
    let inbound = Inbound::new(began, &this.borrow().shell.snapshot.timeouts, usage, place);
    drop(this);
    let close = serve_until_closed(&worker, &tuple, &outbound, &mut stream, inbound).await;
    // With TLS this sends close_notify, if the socket buffer has space for it.
    let _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_shutdown(cx))).await;
    if let Some(worker) = worker.upgrade() {
        worker.borrow_mut().disconnected(&tuple, &outbound, close);
    }
}

async fn serve_until_closed<S>(
    worker: &Weak<RefCell<Worker>>,
    tuple: &FiveTuple,
    outbound: &RefCell<Outbound>,
    stream: &mut S,
    mut inbound: Inbound,
) -> CloseReason
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut armed, timer) = match worker.upgrade() {
        Some(worker) => {
            let worker = worker.borrow();
            let now = worker.shell.now().monotonic;
            let armed = inbound.deadline();
            (armed, sleep(armed.left(now)))
        }
        None => return CloseReason::ServerStopped,
    };
    let evicted = inbound.place.evicted();
    let evicted = evicted.notified();
    tokio::pin!(timer, evicted);
    loop {
        let step = poll_fn(|cx| {
            let Some(this) = worker.upgrade() else { return Poll::Ready(Err(CloseReason::ServerStopped)) };
            let now = this.borrow().shell.now().monotonic;
            let written = outbound.borrow_mut().poll_write(cx, now, stream);
            this.borrow_mut().shell.settle(outbound);
            if let Poll::Ready(close) = written {
                return Poll::Ready(Err(close));
            }
            if evicted.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(CloseReason::Evicted));
            }
            if outbound.borrow_mut().take_resumed()
                && let Err(close) = this.borrow_mut().count_resumed(now, tuple, &mut inbound)
            {
                return Poll::Ready(Err(close));
            }
            let read = this.borrow_mut().poll_read(cx, tuple, &mut inbound, stream);
            match read {
                Poll::Ready(Err(close)) => {
                    // Writes the responses to earlier requests, as far as possible without waiting.
                    let _ = outbound.borrow_mut().poll_write(cx, now, stream);
                    this.borrow_mut().shell.settle(outbound);
                    Poll::Ready(Err(close))
                }
                // A request usually postpones the deadline, which leaves the timer unchanged. Only an earlier deadline
                // rearms it.
                _ if inbound.deadline().is_before(armed) => Poll::Ready(Ok(Step::Timer)),
                Poll::Ready(Ok(more)) => Poll::Ready(Ok(Step::Read(more))),
                Poll::Pending => timer.as_mut().poll(cx).map(|()| Ok(Step::Timer)),
            }
        });
        match step.await {
            Ok(Step::Read(false)) => {}
            // Other tasks run before this one continues.
            Ok(Step::Read(true)) => yield_to_tasks().await,
            Ok(Step::Timer) => {
                let Some(worker) = worker.upgrade() else { return CloseReason::ServerStopped };
                match worker.borrow().remaining_time(tuple, &mut inbound) {
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

/// Why the task of a connection woke up.
enum Step {
    /// Bytes were read. The flag says whether there may be more.
    Read(bool),
    /// A deadline may have passed.
    Timer,
}

impl Worker {
    /// Returns the time until the next deadline, or the reason to close the connection.
    fn remaining_time(&self, tuple: &FiveTuple, inbound: &mut Inbound) -> Result<Duration, CloseReason> {
        let now = self.shell.now().monotonic;
        if !inbound.authenticated && inbound.unauthenticated_until.has_passed(now) {
            return Err(CloseReason::Unauthenticated);
        }
        if inbound.until.has_passed(now) {
            if self.shell.server.allocation_of(tuple).is_none() {
                return Err(CloseReason::Idle);
            }
            inbound.until = Deadline::after(now, self.shell.snapshot.timeouts.idle);
        }
        Ok(inbound.deadline().left(now))
    }

    /// Follows the effect of a request that was resumed.
    fn count_resumed(&mut self, now: Instant, tuple: &FiveTuple, inbound: &mut Inbound) -> Result<(), CloseReason> {
        inbound.authenticated = inbound.authenticated || self.shell.server.allocation_of(tuple).is_some();
        inbound.until = Deadline::after(now, self.shell.snapshot.timeouts.idle);
        self.count_allocation(tuple, &mut inbound.place)
    }

    /// Reads from a connection and serves complete messages, within a budget. The result says whether there may be
    /// more.
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        inbound: &mut Inbound,
        stream: &mut S,
    ) -> Poll<Result<bool, CloseReason>> {
        let kept = inbound.bytes.len();
        let (mut end, mut full) = (kept, false);
        if !inbound.more {
            let room = self.stream.buffer.get_mut(kept..).unwrap_or_default();
            let largest = if inbound.authenticated { LARGEST_READ } else { MAX_UNAUTHENTICATED_REQUEST };
            let most = room.len().min(largest);
            let mut read = ReadBuf::new(room.get_mut(..most).unwrap_or_default());
            match ready!(Pin::new(stream).poll_read(cx, &mut read)) {
                Ok(()) if read.filled().is_empty() => return Poll::Ready(Err(CloseReason::ByClient)),
                Ok(()) => (end, full) = (kept + read.filled().len(), read.remaining() == 0),
                Err(error) => return Poll::Ready(Err(Failure::of(&error).into())),
            }
        }
        if let Some(start) = self.stream.buffer.get_mut(..kept) {
            start.copy_from_slice(&inbound.bytes);
        }
        let now = self.shell.now();
        let mut served = 0..end;
        let received = self.serve_frames(now, tuple, inbound, &mut served);
        // The waiting datagrams are sent now, because the next connection is read into the same buffer.
        self.shell.flush_to_peers(&mut self.stream);
        self.shell.carry_out(now);
        inbound.keep(self.stream.buffer.get(served).unwrap_or_default());
        received?;
        if std::mem::take(&mut inbound.requested) {
            self.count_allocation(tuple, &mut inbound.place)?;
        }
        // The timer is not polled while bytes keep arriving, so the deadline is checked here as well.
        if inbound.deadline().has_passed(now.monotonic) {
            self.remaining_time(tuple, inbound)?;
        }
        Poll::Ready(Ok(full || inbound.more))
    }

    /// Serves the complete messages in the range `left` of the buffer, and removes them from it.
    fn serve_frames(
        &mut self,
        now: Now,
        tuple: &FiveTuple,
        inbound: &mut Inbound,
        left: &mut Range<usize>,
    ) -> Result<(), CloseReason> {
        inbound.more = false;
        for served in 0.. {
            let bytes = self.stream.buffer.get(left.clone()).unwrap_or_default();
            // One of the preceding messages may have created the allocation.
            inbound.authenticated = inbound.authenticated || self.shell.server.allocation_of(tuple).is_some();
            if !inbound.authenticated && is_not_a_request(bytes) {
                return Err(CloseReason::Garbage);
            }
            match self.shell.server.next_frame(bytes) {
                Frame::Complete { .. } if served == BUDGET => {
                    inbound.more = true;
                    break;
                }
                Frame::Complete { message, .. }
                    if inbound.usage == Usage::NatDiscovery
                        && !turn::is_binding(bytes.get(..message).unwrap_or_default()) =>
                {
                    // RFC 7443 §2: the client has negotiated a connection for Binding.
                    self.shell
                        .count_outcome(Host::Client(tuple.client), Outcome::Dropped(DropReason::UnsupportedMethod));
                    return Err(CloseReason::OtherUsage);
                }
                Frame::Complete { message, length } => {
                    let burst = ClientBurst::new(left.start..left.start + message, None, IpFields::default());
                    if self.shell.serve_burst(now, tuple, &mut self.stream, burst) {
                        inbound.requested = true;
                        inbound.until = Deadline::after(now.monotonic, self.shell.snapshot.timeouts.idle);
                    }
                    left.start += length;
                }
                Frame::Partial => break,
                Frame::Invalid => return Err(CloseReason::Garbage),
            }
        }
        Ok(())
    }
}
