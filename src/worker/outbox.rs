//! Datagrams that wait for the end of a turn of the loop, or of a batch, to leave through one socket together.

use std::ops::Range;
use std::os::fd::AsFd;

use crate::net::batch::{Fate, Piece, SendBatch, Target};
use crate::turn::{DropReason, Outcome};

/// Datagrams for one socket. Those of one flow leave in their order; flows change places, so that each one's datagrams
/// stand together and can leave as one message (see [`SendBatch`]).
#[derive(Debug, Default)]
pub(super) struct Outbox {
    batch: SendBatch,
    waiting: Vec<Waiting>,
    /// By flow, then by arrival: indices into `waiting`.
    order: Vec<(Flow, usize)>,
}

/// What keeps its order: an allocation's data in one direction, or the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Flow(u32);

impl Flow {
    /// Answers, each on its own. They leave first: relayed data may not cost them their place in a full buffer.
    pub(super) const ANSWERS: Self = Self(0);

    /// The flow of a relay socket, by [`RelayId::slot`](crate::turn::RelayId::slot).
    pub(super) fn of_relay(slot: usize) -> Self {
        Self(u32::try_from(slot).map_or(u32::MAX, |slot| slot.saturating_add(1)))
    }

    /// The slot of the relay socket.
    pub(super) fn slot(self) -> usize {
        self.0.saturating_sub(1) as usize
    }
}

/// A header, the payload, padding.
const MOST_PIECES: usize = 3;

#[derive(Debug)]
struct Waiting {
    target: Target,
    pieces: [Piece; MOST_PIECES],
    count: usize,
    /// Under what it is counted once it is sent.
    outcome: Outcome,
}

impl Outbox {
    /// Datagrams that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Keeps a copy of some bytes until the next flush.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Piece {
        self.batch.keep(bytes)
    }

    /// Adds a datagram of up to three pieces.
    pub(super) fn push(&mut self, flow: Flow, target: Target, parts: &[Piece], outcome: Outcome) {
        debug_assert!(parts.len() <= MOST_PIECES, "a datagram has a header, a payload and padding");
        let mut pieces = [Piece::of_arena(0..0); MOST_PIECES];
        let count = parts.len().min(MOST_PIECES);
        for (place, part) in pieces.iter_mut().zip(parts) {
            *place = *part;
        }
        self.order.push((flow, self.waiting.len()));
        self.waiting.push(Waiting { target, pieces, count, outcome });
    }

    /// Sends everything through one socket; `arena` is what the pieces are ranges of. `settled` is told what became of
    /// each datagram.
    pub(super) fn flush(&mut self, socket: &impl AsFd, arena: &[u8], mut settled: impl FnMut(Outcome)) {
        if self.waiting.is_empty() {
            return;
        }
        self.order.sort_unstable();
        self.send(socket, arena, 0..self.order.len(), &mut settled);
        self.clear();
    }

    /// Sends everything, each flow through its own socket; what has none is dropped. For datagrams that lie in the arena
    /// as a whole.
    pub(super) fn flush_each<'s, S: AsFd + 's>(
        &mut self,
        socket_of: impl Fn(Flow) -> Option<&'s S>,
        arena: &[u8],
        mut settled: impl FnMut(Outcome),
    ) {
        self.order.sort_unstable();
        let mut start = 0;
        while let Some((flow, _)) = self.order.get(start).copied() {
            let others = self.order.get(start..).unwrap_or_default();
            let end = start + others.partition_point(|(other, _)| *other == flow);
            match socket_of(flow) {
                Some(socket) => self.send(socket, arena, start..end, &mut settled),
                None => (start..end).for_each(|_| settled(Outcome::Dropped(DropReason::AllocationEnded))),
            }
            start = end;
        }
        self.clear();
    }

    fn send(&mut self, socket: &impl AsFd, arena: &[u8], these: Range<usize>, settled: &mut impl FnMut(Outcome)) {
        let (waiting, order) = (&self.waiting, self.order.get(these).unwrap_or_default());
        let datagrams = || order.iter().filter_map(|(_, at)| waiting.get(*at));
        for datagram in datagrams() {
            self.batch.push(&datagram.target, datagram.pieces.get(..datagram.count).unwrap_or_default());
        }
        let fates = self.batch.flush(socket, arena);
        for (datagram, fate) in datagrams().zip(fates) {
            settled(match fate {
                Fate::Sent => datagram.outcome,
                Fate::BufferFull => Outcome::Dropped(DropReason::SendBufferFull),
                Fate::Failed(_) => Outcome::Dropped(DropReason::SendFailed),
            });
        }
    }

    fn clear(&mut self) {
        self.order.clear();
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn answers_leave_first_and_each_flow_keeps_its_order() {
        let (socket, client) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let target = Target::new(client.local_addr().unwrap(), None, 0);
        let mut outbox = Outbox::default();
        let flows = [7, 3, 7].map(Flow::of_relay);
        for (at, flow) in flows.into_iter().enumerate() {
            outbox.push(flow, target, &[Piece::of_arena(at..at + 1)], Outcome::RelayedToClient);
        }
        let answer = outbox.keep(b"an answer");
        outbox.push(Flow::ANSWERS, target, &[answer], Outcome::Answered(crate::stun::Method::BINDING));
        let mut settled = 0;
        outbox.flush(&socket, b"abc", |_| settled += 1);
        assert_eq!((settled, outbox.len()), (4, 0));

        client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let received = [(); 4].map(|()| {
            let mut buffer = [0; 16];
            let length = client.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        });
        assert_eq!(received, ["an answer", "b", "a", "c"]);
    }
}
