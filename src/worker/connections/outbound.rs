//! The bounded queue of bytes for a client on a connection.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::AsyncWrite;

use super::CloseReason;
use crate::net::tls::Failure;
use crate::transport::Transport;
use crate::turn;

/// The length of the queue, in bytes, up to which relayed data is added. Data that would exceed it is dropped.
const MAX_DATA: usize = 256 * 1024;

/// The length of the queue, in bytes, up to which responses are added. If a response would exceed it, the connection
/// ends.
const MAX_IN_ALL: usize = MAX_DATA + 64 * 1024;

/// Like [`MAX_IN_ALL`], for a client without an allocation.
const MAX_WITHOUT_ALLOCATION: usize = 16 * 1024;

/// The queue for a client.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    queue: VecDeque<u8>,
    /// Wakes the task that writes.
    writer: Option<Waker>,
    overflowed: bool,
    /// The connection is closed once the queue is written.
    finishing: bool,
    /// Each write has one message, so that each message has its own TLS record. Some clients, such as coturn's, expect
    /// one message per record and lose any further ones in it.
    single: bool,
    /// The number of unwritten bytes of the first message.
    remaining: usize,
}

impl Outbound {
    pub(super) fn new(transport: Transport) -> Self {
        Self { single: transport.is_encrypted(), ..Self::default() }
    }

    /// Returns what to write next.
    fn piece(&mut self) -> &[u8] {
        if !self.single {
            return self.queue.as_slices().0;
        }
        if self.remaining == 0 {
            let mut header = [0; 4];
            for (place, byte) in header.iter_mut().zip(&self.queue) {
                *place = *byte;
            }
            self.remaining = turn::written_length(header);
        }
        if self.queue.as_slices().0.len() < self.remaining {
            self.queue.make_contiguous();
        }
        let front = self.queue.as_slices().0;
        front.get(..self.remaining).unwrap_or(front)
    }

    /// Queues relayed data. Returns whether there was room.
    pub(super) fn push_data(&mut self, parts: [&[u8]; 3]) -> bool {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let fits = !self.overflowed && self.queue.len() + length <= MAX_DATA;
        if fits {
            parts.iter().for_each(|part| self.push(part));
        }
        fits
    }

    /// Queues a response. If the client leaves too many responses unread, the connection ends.
    pub(super) fn push_response(&mut self, message: &[u8], has_allocation: bool) {
        let most = if has_allocation { MAX_IN_ALL } else { MAX_WITHOUT_ALLOCATION };
        self.overflowed |= self.queue.len() + message.len() > most;
        self.push(if self.overflowed { &[] } else { message });
    }

    /// Closes the connection once the queue is written.
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

    /// Writes as much as the connection accepts. Returns `Ready` only if the connection has to be closed.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<CloseReason> {
        if self.overflowed {
            return Poll::Ready(CloseReason::Unread);
        }
        if !self.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
            self.writer = Some(cx.waker().clone());
        }
        while !self.queue.is_empty() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, self.piece())) {
                Ok(written) if written > 0 => {
                    self.queue.drain(..written);
                    self.remaining = self.remaining.saturating_sub(written);
                }
                Ok(_) => return Poll::Ready(CloseReason::Broken),
                Err(error) => return Poll::Ready(Failure::of(&error).into()),
            }
        }
        // An idle connection keeps no buffer.
        self.queue = VecDeque::new();
        match ready!(Pin::new(stream).poll_flush(cx)) {
            Ok(()) if self.finishing => Poll::Ready(CloseReason::ServerStopped),
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Failure::of(&error).into()),
        }
    }
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
        let (mut outbound, mut stream) = (Outbound::default(), Slow { room: 3, ..Slow::default() });
        let mut cx = Context::from_waker(Waker::noop());
        outbound.push_response(b"response", false);
        outbound.finish();
        assert!(outbound.poll_write(&mut cx, &mut stream).is_pending());
        stream.room = 100;
        assert_eq!(outbound.poll_write(&mut cx, &mut stream), Poll::Ready(CloseReason::ServerStopped));
        assert_eq!(stream.taken, b"response");
    }

    #[test]
    fn a_connection_without_queued_responses_ends_at_once() {
        let (mut outbound, mut cx) = (Outbound::default(), Context::from_waker(Waker::noop()));
        assert!(outbound.poll_write(&mut cx, &mut Slow::default()).is_pending());
        outbound.finish();
        assert_eq!(outbound.poll_write(&mut cx, &mut Slow::default()), Poll::Ready(CloseReason::ServerStopped));
    }
}
