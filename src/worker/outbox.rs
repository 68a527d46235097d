//! Datagrams that wait to be sent together at the end of a batch or of a step of a task.
//!
//! An outbox refers to a buffer by ranges. [`Staged`] keeps both together, so that no range is ever applied to another
//! buffer.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;

use crate::net::batch::{Piece, RecvBatch, SendBatch, SendStatus, Target};
use crate::turn::{DropReason, Outcome, SocketId};

/// Datagrams for one socket, or for one socket per flow. Those of one flow are sent in order. Flows are sorted, so that
/// the datagrams of a flow are adjacent and can be sent as one message (see [`SendBatch`]).
#[derive(Debug, Default)]
pub(super) struct Outbox {
    batch: SendBatch,
    waiting: Vec<Waiting>,
    /// The number of datagrams that wait.
    count: usize,
    /// Indices into `waiting`, sorted by flow, then by arrival.
    order: Vec<(Flow, u32)>,
}

/// Datagrams that are sent in order: the data of a relay socket in one direction, or responses. Responses are sent
/// first, so that relayed data does not fill the socket buffer before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flow {
    /// Responses to clients.
    Responses,
    /// The data of a relay socket.
    Relay(SocketId),
}

/// The number of datagrams after which those of a batch are sent before the batch ends, so that an outbox takes a bounded
/// amount of memory. Only short datagrams that the kernel has merged become so many.
const MOST_WAITING: usize = 1_024;

/// The maximum number of pieces of a datagram: a header, the payload, padding.
const MAX_PIECES: usize = 3;

/// Datagrams of one flow that have the same target and differ only in their payloads, which have equal lengths and
/// equal distances in the arena.
#[derive(Debug)]
struct Waiting {
    target: Target,
    pieces: [Piece; MAX_PIECES],
    piece_count: usize,
    /// The place of the first payload in the arena.
    payload: Range<usize>,
    /// The number of datagrams.
    count: usize,
    /// The distance between the payloads in bytes.
    stride: usize,
    /// The outcome that is counted for each datagram that is sent.
    outcome: Outcome,
}

impl Waiting {
    /// Adds a datagram with this payload if it has the right length and place. Returns whether it does.
    fn append(&mut self, payload: &Range<usize>) -> bool {
        let Some(distance) = payload.start.checked_sub(self.payload.start) else { return false };
        let stride = if self.count == 1 { distance } else { self.stride };
        let fits = payload.len() == self.payload.len() && distance == self.count * stride;
        if fits {
            self.stride = stride;
            self.count += 1;
        }
        fits
    }
}

/// The result of sending consecutive datagrams of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SendResult {
    pub(super) flow: Flow,
    pub(super) outcome: Outcome,
    /// The destination, which is the same for all packets if they were rejected or dropped.
    pub(super) to: SocketAddr,
    pub(super) packets: u64,
    /// Bytes of application data.
    pub(super) bytes: u64,
}

impl Outbox {
    /// Returns the number of waiting datagrams.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Keeps a copy of some bytes until the next flush.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Piece {
        self.batch.keep(bytes)
    }

    /// Adds a datagram of up to three pieces. `payload` is the place of the application data in the arena.
    pub(super) fn push(
        &mut self,
        flow: Flow,
        target: Target,
        parts: &[Piece],
        payload: Range<usize>,
        outcome: Outcome,
    ) {
        debug_assert!(parts.len() <= MAX_PIECES, "a datagram has a header, a payload and padding");
        let mut pieces = [Piece::of_arena(0..0); MAX_PIECES];
        let piece_count = parts.len().min(MAX_PIECES);
        for (place, part) in pieces.iter_mut().zip(parts) {
            *place = *part;
        }
        self.order.push((flow, u32::try_from(self.waiting.len()).unwrap_or(u32::MAX)));
        self.waiting.push(Waiting { target, pieces, piece_count, payload, count: 1, stride: 0, outcome });
        self.count += 1;
    }

    /// Adds a datagram that consists of a copied `header` and a payload to the last ones, if it differs from these only
    /// in the payload. Returns whether it does.
    fn append(&mut self, flow: Flow, target: &Target, header: &[u8], payload: &Range<usize>) -> bool {
        let (Some(last), Some((last_flow, _))) = (self.waiting.last_mut(), self.order.last()) else { return false };
        let same = *last_flow == flow
            && match last.pieces.get(..last.piece_count).unwrap_or_default() {
                [_] => header.is_empty(),
                [first, _] => self.batch.kept(first) == header,
                _ => false,
            }
            && last.target == *target
            && last.append(payload);
        self.count += usize::from(same);
        same
    }

    /// Sends everything through one socket. The pieces are ranges of `arena`.
    fn flush(&mut self, socket: &impl AsFd, arena: &[u8], mut report: impl FnMut(SendResult)) {
        if self.waiting.is_empty() {
            return;
        }
        self.order.sort_unstable();
        self.send(socket, arena, 0..self.order.len(), &mut report);
        self.clear();
    }

    /// Sends everything, each flow through its own socket. Datagrams without a socket are dropped.
    fn flush_each<'s, S: AsFd + 's>(
        &mut self,
        socket_of: impl Fn(SocketId) -> Option<&'s S>,
        arena: &[u8],
        mut report: impl FnMut(SendResult),
    ) {
        self.order.sort_unstable();
        let mut start = 0;
        while let Some((flow, _)) = self.order.get(start).copied() {
            let others = self.order.get(start..).unwrap_or_default();
            let end = start + others.partition_point(|(other, _)| *other == flow);
            let socket = match flow {
                Flow::Relay(socket) => socket_of(socket),
                Flow::Responses => None,
            };
            match socket {
                Some(socket) => self.send(socket, arena, start..end, &mut report),
                None => {
                    let outcome = Outcome::Dropped(DropReason::AllocationEnded);
                    let these = self.order.get(start..end).unwrap_or_default();
                    for Waiting { target, count, .. } in
                        these.iter().filter_map(|(_, at)| self.waiting.get(*at as usize))
                    {
                        report(SendResult { flow, outcome, to: target.to(), packets: *count as u64, bytes: 0 });
                    }
                }
            }
            start = end;
        }
        self.clear();
    }

    fn send(&mut self, socket: &impl AsFd, arena: &[u8], these: Range<usize>, report: &mut impl FnMut(SendResult)) {
        let (waiting, order) = (&self.waiting, self.order.get(these).unwrap_or_default());
        let datagrams = || order.iter().filter_map(|(flow, at)| Some((*flow, waiting.get(*at as usize)?)));
        for (_, Waiting { target, pieces, piece_count, count, stride, .. }) in datagrams() {
            self.batch.push_run(target, pieces.get(..*piece_count).unwrap_or_default(), *count, *stride);
        }
        let mut statuses = self.batch.flush(socket, arena);
        let mut run: Option<SendResult> = None;
        for (flow, Waiting { target, payload, count, outcome, .. }) in datagrams() {
            let (own, rest) = statuses.split_at(statuses.len().min(*count));
            statuses = rest;
            for same in own.chunk_by(|one, next| one == next) {
                let outcome = match same.first() {
                    Some(SendStatus::Sent) => *outcome,
                    Some(SendStatus::Failed(_)) => Outcome::Dropped(DropReason::SendFailed),
                    Some(SendStatus::BufferFull) | None => Outcome::Dropped(DropReason::SendBufferFull),
                };
                let (to, packets) = (target.to(), same.len() as u64);
                let next = SendResult { flow, outcome, to, packets, bytes: packets * payload.len() as u64 };
                match &mut run {
                    Some(run)
                        if run.flow == flow && run.outcome == outcome && (run.to == to || !outcome.is_failure()) =>
                    {
                        run.packets += next.packets;
                        run.bytes += next.bytes;
                    }
                    _ => run.replace(next).into_iter().for_each(&mut *report),
                }
            }
        }
        run.into_iter().for_each(report);
    }

    fn clear(&mut self) {
        self.order.clear();
        self.waiting.clear();
        self.count = 0;
    }

    /// Returns the memory that it keeps, in bytes.
    #[cfg(test)]
    fn memory(&self) -> usize {
        let waiting = self.waiting.capacity() * size_of::<Waiting>();
        waiting + self.order.capacity() * size_of::<(Flow, u32)>() + self.batch.memory()
    }
}

/// A buffer that datagrams refer to.
pub(super) trait Arena {
    /// Returns the whole buffer.
    fn bytes(&self) -> &[u8];
}

impl Arena for RecvBatch {
    fn bytes(&self) -> &[u8] {
        self.arena()
    }
}

impl Arena for Box<[u8]> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A buffer, and the datagrams for peers that consist of parts of it and wait to be sent.
#[derive(Debug)]
pub(super) struct Staged<B> {
    pub(super) buffer: B,
    outbox: Outbox,
}

impl<B: Arena> Staged<B> {
    pub(super) fn new(buffer: B) -> Self {
        Self { buffer, outbox: Outbox::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.outbox.len() == 0
    }

    /// Whether so many datagrams wait that they are sent before the batch ends.
    pub(super) fn is_full(&self) -> bool {
        self.outbox.len() >= MOST_WAITING
    }

    /// Returns the memory of the datagrams without the buffer, in bytes.
    #[cfg(test)]
    pub(super) fn outbox_memory(&self) -> usize {
        self.outbox.memory()
    }

    /// Adds a part of the buffer, which a relay socket sends at the next flush.
    pub(super) fn push(&mut self, socket: SocketId, target: Target, payload: Range<usize>) {
        let flow = Flow::Relay(socket);
        if !self.outbox.append(flow, &target, &[], &payload) {
            let piece = Piece::of_arena(payload.clone());
            self.outbox.push(flow, target, &[piece], payload, Outcome::RelayedToPeer);
        }
    }

    /// Sends everything through the relay sockets that `socket_of` returns.
    pub(super) fn flush<'s, S: AsFd + 's>(
        &mut self,
        socket_of: impl Fn(SocketId) -> Option<&'s S>,
        report: impl FnMut(SendResult),
    ) {
        self.outbox.flush_each(socket_of, self.buffer.bytes(), report);
    }
}

/// The buffer into which datagrams from peers are received, and for each listener the datagrams that wait to be sent to
/// clients.
#[derive(Debug)]
pub(super) struct StagedForClients {
    pub(super) batch: RecvBatch,
    /// The number of slots, counted from the first, that are in use until the next flush.
    pub(super) filled: usize,
    outboxes: Vec<Outbox>,
}

impl StagedForClients {
    /// Creates an empty value without listeners.
    pub(super) fn new(batch: RecvBatch) -> Self {
        Self { batch, filled: 0, outboxes: Vec::new() }
    }

    /// Adds a listener after the others.
    pub(super) fn add_listener(&mut self) {
        self.outboxes.push(Outbox::default());
    }

    /// Removes a listener for which nothing waits. The index of each later one becomes lower by one.
    pub(super) fn remove_listener(&mut self, listener: usize) {
        if listener < self.outboxes.len() {
            self.outboxes.remove(listener);
        }
    }

    /// Returns the number of datagrams that wait.
    pub(super) fn len(&self) -> usize {
        self.outboxes.iter().map(Outbox::len).sum()
    }

    /// Whether so many datagrams wait that they are sent before the batch ends.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= MOST_WAITING
    }

    /// Returns the memory of the datagrams of all listeners without the buffer, in bytes.
    #[cfg(test)]
    pub(super) fn outbox_memory(&self) -> usize {
        self.outboxes.iter().map(Outbox::memory).sum()
    }

    /// Adds a response, which a listener sends at the next flush. Returns whether the listener exists.
    pub(super) fn push_response(&mut self, listener: usize, target: Target, bytes: &[u8], outcome: Outcome) -> bool {
        let Some(outbox) = self.outboxes.get_mut(listener) else { return false };
        let piece = outbox.keep(bytes);
        outbox.push(Flow::Responses, target, &[piece], 0..0, outcome);
        true
    }

    /// Adds a peer's datagram with a header and padding, which a listener sends at the next flush. The payload is a
    /// part of the batch. If it has a slot of its own, the header and the padding are written around it. Returns
    /// whether the listener exists.
    pub(super) fn push_data(
        &mut self,
        listener: usize,
        socket: SocketId,
        target: Target,
        message: Message<'_>,
        slot: Option<usize>,
    ) -> bool {
        let Some(outbox) = self.outboxes.get_mut(listener) else { return false };
        let Message { header, payload, padding } = message;
        let (flow, outcome) = (Flow::Relay(socket), Outcome::RelayedToClient);
        if let Some(slot) = slot
            && let Some(whole) = self.batch.surround(slot, payload.clone(), header, padding.len())
        {
            outbox.push(flow, target, &[Piece::of_arena(whole)], payload, outcome);
            return true;
        }
        if padding.is_empty() {
            if !outbox.append(flow, &target, header, &payload) {
                let pieces = [outbox.keep(header), Piece::of_arena(payload.clone())];
                outbox.push(flow, target, &pieces, payload, outcome);
            }
        } else {
            let pieces = [outbox.keep(header), Piece::of_arena(payload.clone()), outbox.keep(padding)];
            outbox.push(flow, target, &pieces, payload, outcome);
        }
        true
    }

    /// Sends everything through the socket of each listener, and frees the batch.
    pub(super) fn flush<'s, S: AsFd + 's>(
        &mut self,
        sockets: impl Iterator<Item = &'s S>,
        mut report: impl FnMut(SendResult),
    ) {
        for (outbox, socket) in self.outboxes.iter_mut().zip(sockets) {
            outbox.flush(socket, self.batch.arena(), &mut report);
        }
        self.filled = 0;
    }
}

/// A message to a client.
#[derive(Clone, Debug)]
pub(super) struct Message<'a> {
    pub(super) header: &'a [u8],
    pub(super) payload: Range<usize>,
    pub(super) padding: &'a [u8],
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::ip_fields::IpFields;
    use crate::turn::RequestMethod;

    fn socket_id(slot: u32) -> SocketId {
        SocketId::for_tests(slot)
    }

    #[test]
    fn responses_are_sent_first_and_each_flow_keeps_its_order() {
        let (socket, client) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let target = Target::new(client.local_addr().unwrap(), None, IpFields::default());
        let mut outbox = Outbox::default();
        for (at, slot) in [7, 3, 7].into_iter().enumerate() {
            let piece = Piece::of_arena(at..at + 1);
            outbox.push(Flow::Relay(socket_id(slot)), target, &[piece], at..at + 1, Outcome::RelayedToClient);
        }
        let response = outbox.keep(b"a response");
        let outcome = Outcome::Answered(RequestMethod::Binding);
        outbox.push(Flow::Responses, target, &[response], 0..0, outcome);
        let mut sent = Vec::new();
        outbox.flush(&socket, b"abc", |run| sent.push(run));
        assert_eq!(outbox.len(), 0);
        let data = |slot, packets| SendResult {
            flow: Flow::Relay(socket_id(slot)),
            outcome: Outcome::RelayedToClient,
            to: target.to(),
            packets,
            bytes: packets,
        };
        let response = SendResult { flow: Flow::Responses, outcome, to: target.to(), packets: 1, bytes: 0 };
        assert_eq!(sent, [response, data(3, 1), data(7, 2)]);

        client.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        let received = [(); 4].map(|()| {
            let mut buffer = [0; 16];
            let length = client.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        });
        assert_eq!(received, ["a response", "b", "a", "c"]);
    }

    #[test]
    fn payloads_at_equal_distances_are_one_run_and_are_counted_one_by_one() {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = client.local_addr().unwrap();
        let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
        let arena: Box<[u8]> = (b'a'..=b'z').collect();
        let mut staged = Staged::new(arena);
        let (first, second, marked) = (
            Target::new(to, None, IpFields::default()),
            socket_id(1),
            Target::new(to, None, IpFields { tos: 0x80, ..IpFields::default() }),
        );
        // Two at distance 4, one of another length, one at another distance, one with another TOS, one of another flow.
        for (socket, target, payload) in [
            (socket_id(0), first, 1..3),
            (socket_id(0), first, 5..7),
            (socket_id(0), first, 9..12),
            (socket_id(0), first, 13..16),
            (socket_id(0), first, 20..23),
            (socket_id(0), marked, 24..25),
            (second, first, 25..26),
        ] {
            staged.push(socket, target, payload);
        }
        assert_eq!((staged.outbox.len(), staged.outbox.waiting.len()), (7, 5));
        let mut sent = Vec::new();
        staged.flush(|_| Some(&relay), |result| sent.push((result.flow, result.packets, result.bytes)));
        assert_eq!(sent, [(Flow::Relay(socket_id(0)), 6, 14), (Flow::Relay(second), 1, 1)]);
        assert_eq!(staged.outbox.len(), 0);

        client.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        let received = [(); 7].map(|()| {
            let mut buffer = [0; 16];
            let length = client.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        });
        assert_eq!(received, ["bc", "fg", "jkl", "nop", "uvw", "y", "z"]);
    }
}
