//! Receiving with `recvmmsg`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;

use crate::net::sys;
use crate::net::udp::{canonical, past_pending_errors};

#[cfg(test)]
mod tests;

/// What a slot of the arena is made of, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In front of what is received, so that a header can be written there.
    pub headroom: usize,
    /// For what is received. 65 536 is more than the longest UDP payload, merged or not.
    pub payload: usize,
    /// Behind it, so that padding can be written there.
    pub tailroom: usize,
}

impl Room {
    const fn size(self) -> usize {
        self.headroom + self.payload + self.tailroom
    }
}

/// A datagram, or several that the kernel has merged (see [`merge_received`](crate::net::udp::merge_received)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Where its payload is in the arena.
    pub payload: Range<usize>,
    /// The sender. A link-local IPv6 address keeps its scope id, every other one has none.
    pub source: SocketAddr,
    /// The address that the sender wrote to; `None` on a socket bound to a specific address.
    pub destination: Option<IpAddr>,
    /// It was longer than its room, and its end is lost.
    pub truncated: bool,
    /// DSCP (upper six bits) and ECN: the second byte of the IPv4 header, the traffic class of IPv6.
    pub tos: u8,
    /// If several were merged, their length in bytes; the last may be shorter.
    pub segment: Option<NonZeroUsize>,
}

impl Datagram {
    /// The payloads that the network carried, in the order in which they came: one, unless they were merged.
    pub fn segments(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Range { start, end } = self.payload;
        let length = self.segment.map_or(usize::MAX, NonZeroUsize::get);
        // An empty datagram is one, too.
        let first = start..end.min(start.saturating_add(length));
        std::iter::successors(Some(first), move |before| {
            (before.end < end).then(|| before.end..end.min(before.end.saturating_add(length)))
        })
    }
}

/// What one call received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Slots filled, from the first on. Fewer than were asked for: the socket is drained.
    pub count: usize,
    /// What the socket's counter of drops stood at, for [`DropCounter::advance`]; `None` if it has dropped nothing.
    pub dropped: Option<u32>,
}

/// Follows the counter of datagrams that the kernel dropped because a socket's receive buffer was full
/// (`SO_RXQ_OVFL`). It is heard of only when a later datagram is received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCounter(u32);

impl DropCounter {
    /// Datagrams dropped since the last call, by the counter that a socket's [`Filled::dropped`] brought. The counter
    /// wraps around.
    pub fn advance(&mut self, counter: Option<u32>) -> u32 {
        let Some(counter) = counter else { return 0 };
        counter.wrapping_sub(std::mem::replace(&mut self.0, counter))
    }
}

/// An arena of slots that datagrams are received into, used again and again. Receiving allocates nothing.
pub struct RecvBatch {
    room: Room,
    slots: usize,
    receiver: sys::Receiver,
    datagrams: Vec<Option<Datagram>>,
}

impl std::fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBatch").field("room", &self.room).field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl RecvBatch {
    /// An arena of so many slots. Its memory is zero, and the system provides it page by page as it is used: slots
    /// that only ever take small datagrams take a page or two.
    ///
    /// # Panics
    /// If so much does not fit into the address space.
    #[must_use]
    pub fn new(slots: usize, room: Room) -> Self {
        let receiver = sys::Receiver::new(slots, room.size(), room.headroom, room.payload);
        Self { room, slots, receiver, datagrams: vec![None; slots] }
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Receives what a socket holds into the slots from `first` on, into `max` of them at most, and never waits. Slots
    /// before `first` stay as they are, so that packets of several sockets can be in the arena at once.
    ///
    /// # Errors
    ///
    /// `WouldBlock` where nothing is there, otherwise those of `recvmmsg`; an interrupted call is repeated, and so is one
    /// that reports the error of a datagram sent earlier (see [`report_errors`](crate::net::udp::report_errors)).
    /// `InvalidInput` where no slot is asked for.
    pub fn receive(&mut self, socket: &impl AsFd, first: usize, max: usize) -> io::Result<Filled> {
        if max == 0 || first >= self.slots {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (receiver, datagrams) = (&mut self.receiver, &mut self.datagrams);
        let (size, headroom) = (self.room.size(), self.room.headroom);
        let mut dropped = None;
        let count = past_pending_errors(|| {
            receiver.receive(socket.as_fd(), first, max, |slot, arrival| {
                let start = slot * size + headroom;
                dropped = arrival.dropped.or(dropped);
                if let Some(place) = datagrams.get_mut(slot) {
                    *place = arrival.source.map(|source| Datagram {
                        payload: start..start + arrival.len,
                        source: canonical(source),
                        destination: arrival.destination.map(|address| address.to_canonical()),
                        truncated: arrival.truncated,
                        tos: arrival.tos,
                        segment: arrival.segment,
                    });
                }
            })
        })?;
        Ok(Filled { count, dropped })
    }

    /// What was last received into a slot.
    #[must_use]
    pub fn datagram(&self, slot: usize) -> Option<&Datagram> {
        self.datagrams.get(slot)?.as_ref()
    }

    /// A whole slot: headroom, what was received, tailroom.
    pub fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        let size = self.room.size();
        self.receiver.arena_mut().chunks_exact_mut(size.max(1)).nth(slot).unwrap_or_default()
    }

    /// All slots, one behind the other.
    #[must_use]
    pub fn arena(&self) -> &[u8] {
        self.receiver.arena()
    }

    /// All slots, to be written to.
    pub fn arena_mut(&mut self) -> &mut [u8] {
        self.receiver.arena_mut()
    }
}
