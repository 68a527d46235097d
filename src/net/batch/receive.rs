//! Receiving with `recvmmsg`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;

use crate::ip_fields::IpFields;
use crate::net::sys;
use crate::net::udp::{canonical, skip_pending_errors};

#[cfg(test)]
mod tests;

/// The layout of a slot of the arena, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLayout {
    /// Space before the payload, for a header.
    pub headroom: usize,
    /// Space for the payload. 65 536 bytes hold the longest UDP payload, merged or not.
    pub payload: usize,
    /// Space after the payload, for padding.
    pub tailroom: usize,
}

impl SlotLayout {
    pub(crate) const fn size(self) -> usize {
        self.headroom + self.payload + self.tailroom
    }
}

/// A datagram, or several that the kernel merged (see [`enable_gro`](crate::net::udp::enable_gro)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The range of its payload in the arena.
    pub payload: Range<usize>,
    /// The sender. Only a link-local IPv6 address has a scope id.
    pub source: SocketAddr,
    /// The destination address; `None` on a socket that is bound to a specific address.
    pub destination: Option<IpAddr>,
    /// The datagram was longer than [`SlotLayout::payload`] and was truncated.
    pub truncated: bool,
    /// The fields of the IP header that are relayed.
    pub fields: IpFields,
    /// If the kernel merged datagrams, the length of each in bytes. The last may be shorter.
    pub segment: Option<NonZeroUsize>,
}

/// The result of one call that received datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// The number of slots filled. The socket is empty if it is less than the requested maximum.
    pub count: usize,
    /// The drop counter of the socket, for `DropCounter::advance`; `None` if the socket has dropped nothing.
    pub dropped: Option<u32>,
}

/// Counts the datagrams that the kernel dropped because the receive buffer of a socket was full.
///
/// The kernel reports its counter with a datagram that is received later (`SO_RXQ_OVFL`), as it was when the datagram
/// arrived, and on request ([`udp::dropped`](crate::net::udp::dropped)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DropCounter(u32);

impl DropCounter {
    /// Returns how many datagrams were dropped since the last call. `counter` is the counter of the kernel, which wraps
    /// around. A value from before the last call counts nothing.
    pub(crate) fn advance(&mut self, counter: Option<u32>) -> u32 {
        let Some(counter) = counter else { return 0 };
        let more = counter.wrapping_sub(self.0);
        if more > u32::MAX / 2 {
            return 0;
        }
        self.0 = counter;
        more
    }
}

/// A reusable arena of slots for received datagrams. Receiving allocates nothing.
pub struct RecvBatch {
    layout: SlotLayout,
    slots: usize,
    receiver: sys::Receiver,
    datagrams: Vec<Option<Datagram>>,
}

impl std::fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBatch").field("layout", &self.layout).field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl RecvBatch {
    /// Creates an arena of `slots` slots.
    ///
    /// The system provides the memory zeroed, page by page as it is used: a slot that receives only small datagrams
    /// uses one or two pages.
    ///
    /// # Panics
    /// If the arena does not fit into the address space.
    #[must_use]
    pub fn new(slots: usize, layout: SlotLayout) -> Self {
        Self::try_new(slots, layout).expect("the arena fits into the address space")
    }

    /// Like [`new`](Self::new), but fails if the arena does not fit into the address space.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn try_new(slots: usize, layout: SlotLayout) -> io::Result<Self> {
        let receiver = sys::Receiver::new(slots, layout.size(), layout.headroom, layout.payload)?;
        Ok(Self { layout, slots, receiver, datagrams: vec![None; slots] })
    }

    /// Receives datagrams of a socket into at most `max` slots, starting with `first`, without waiting.
    ///
    /// Slots before `first` are not changed, so that the arena can hold datagrams of several sockets.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if no datagram is available, `InvalidInput` if `max` is 0 or `first` is not a slot, otherwise those
    /// of `recvmmsg`. The call is repeated if a signal interrupts it or if it reports the error of a datagram sent
    /// earlier (see `udp::enable_error_queue`).
    pub fn receive(&mut self, socket: &impl AsFd, first: usize, max: usize) -> io::Result<Filled> {
        if max == 0 || first >= self.slots {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (receiver, datagrams) = (&mut self.receiver, &mut self.datagrams);
        let (size, headroom) = (self.layout.size(), self.layout.headroom);
        let mut dropped = None;
        let count = skip_pending_errors(|| {
            receiver.receive(socket.as_fd(), first, max, |slot, meta| {
                let start = slot * size + headroom;
                dropped = meta.dropped.or(dropped);
                if let Some(place) = datagrams.get_mut(slot) {
                    *place = meta.source.map(|source| Datagram {
                        payload: start..start + meta.len,
                        source: canonical(source),
                        destination: meta.destination.map(|address| address.to_canonical()),
                        truncated: meta.truncated,
                        fields: meta.fields,
                        segment: meta.segment,
                    });
                }
            })
        })?;
        Ok(Filled { count, dropped })
    }

    /// Returns the datagram that was last received into a slot.
    #[must_use]
    pub fn datagram(&self, slot: usize) -> Option<&Datagram> {
        self.datagrams.get(slot)?.as_ref()
    }

    /// Writes `header` before a payload that is alone in its slot, and `padding` zero bytes after it. Returns the range
    /// of all three in the arena; `None` if they do not fit into the slot.
    pub(crate) fn surround(
        &mut self,
        slot: usize,
        payload: Range<usize>,
        header: &[u8],
        padding: usize,
    ) -> Option<Range<usize>> {
        let whole = payload.start.checked_sub(header.len())?..payload.end.checked_add(padding)?;
        let place = slot * self.layout.size()..(slot + 1) * self.layout.size();
        if whole.start < place.start || whole.end > place.end {
            return None;
        }
        let arena = self.receiver.arena_mut();
        arena.get_mut(whole.start..payload.start)?.copy_from_slice(header);
        arena.get_mut(payload.end..whole.end)?.fill(0);
        Some(whole)
    }

    /// Returns the bytes of all slots, in order.
    #[must_use]
    pub fn arena(&self) -> &[u8] {
        self.receiver.arena()
    }
}
