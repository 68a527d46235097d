//! The relay sockets of a worker, and the queue of those that are ready to read.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;

use tokio::sync::Notify;

use crate::ip_fields::IpFields;
use crate::net::batch::DropCounter;
use crate::net::limits::{SpareFiles, too_many_open_files};
use crate::net::udp;
use crate::net::watch::{Ready, Watch};
use crate::turn::{SocketId, SocketKind, SocketSpec};

/// The relay sockets by [`SocketId::slot`]. One descriptor reports which of them can be read from.
#[derive(Debug)]
pub(super) struct RelaySockets {
    sockets: Vec<Option<RelaySocket>>,
    spare: SpareFiles,
    watch: Rc<Watch>,
    /// The slots of the sockets that are ready to read, in order.
    ready: VecDeque<usize>,
    /// The slots of the sockets that could not be read from.
    failed: Vec<usize>,
    /// Wakes the task that serves the sockets if a tick leaves some of them ready.
    left: Rc<Notify>,
    /// The slot whose drops [`Self::count_drops`] counts next.
    next_counted: usize,
}

/// The socket of one relayed transport address.
#[derive(Debug)]
pub(super) struct RelaySocket {
    pub(super) id: SocketId,
    pub(super) socket: UdpSocket,
    /// The address that it is bound to.
    pub(super) address: SocketAddr,
    pub(super) drops: DropCounter,
    /// The TTL or Hop Limit of datagrams that are sent without one of their own; `None` is the default of the system.
    hop_limit: Option<u8>,
    /// Whether it is in [`RelaySockets::ready`] or [`RelaySockets::failed`].
    queued: bool,
    /// Whether it has an ICMP error to report.
    error: bool,
}

impl RelaySocket {
    fn count_drops(&mut self) -> u32 {
        self.drops.advance(udp::dropped(&self.socket))
    }
}

impl RelaySockets {
    pub(super) fn new(spare: SpareFiles) -> io::Result<Self> {
        Ok(Self {
            sockets: Vec::new(),
            spare,
            watch: Rc::new(Watch::new()?),
            ready: VecDeque::new(),
            failed: Vec::new(),
            left: Rc::default(),
            next_counted: 0,
        })
    }

    pub(super) fn watch(&self) -> &Rc<Watch> {
        &self.watch
    }

    pub(super) fn left(&self) -> &Rc<Notify> {
        &self.left
    }

    /// Opens a socket, without adding it.
    pub(super) fn open(&self, spec: &SocketSpec) -> io::Result<UdpSocket> {
        let SocketKind::Udp = spec.kind;
        let socket = udp::bind_relay(spec.bind)?;
        if !self.spare.permit(&socket) {
            return Err(too_many_open_files());
        }
        udp::enable_error_queue(&socket)?;
        udp::enable_gro(&socket);
        let token = u64::try_from(spec.socket.slot()).map_err(io::Error::other)?;
        self.watch.add(&socket, token)?;
        Ok(socket)
    }

    pub(super) fn insert(&mut self, spec: &SocketSpec, socket: UdpSocket) {
        let id = spec.socket;
        let slot = id.slot();
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.sockets.get_mut(slot) {
            debug_assert!(place.is_none(), "a slot's socket is closed before the slot is reused");
            *place = Some(RelaySocket {
                id,
                socket,
                address: spec.bind,
                drops: DropCounter::default(),
                hop_limit: None,
                queued: false,
                error: false,
            });
        }
    }

    /// Closes a socket. Returns the number of datagrams that it has dropped and that were not counted yet; `None` if it
    /// was not open.
    pub(super) fn close(&mut self, id: SocketId) -> Option<u32> {
        let mut relay = self.sockets.get_mut(id.slot())?.take_if(|relay| relay.id == id)?;
        Some(relay.count_drops())
    }

    /// Returns the sockets that have dropped datagrams, with their addresses, and the number of those that were not counted yet.
    /// A call checks at most `most` sockets, and the next call continues with the next socket.
    pub(super) fn count_drops(&mut self, most: usize) -> Vec<(SocketId, SocketAddr, u32)> {
        let mut all = Vec::new();
        for _ in 0..most.min(self.sockets.len()) {
            let slot = if self.next_counted < self.sockets.len() { self.next_counted } else { 0 };
            self.next_counted = slot + 1;
            let Some(relay) = self.at(slot) else { continue };
            let dropped = relay.count_drops();
            if dropped > 0 {
                all.push((relay.id, relay.address, dropped));
            }
        }
        all
    }

    pub(super) fn socket(&self, id: SocketId) -> Option<&UdpSocket> {
        let relay = self.sockets.get(id.slot())?.as_ref()?;
        (relay.id == id).then_some(&relay.socket)
    }

    /// Removes the hop limit from the fields of a datagram if the socket has it by itself. All datagrams of a client
    /// usually have the same, and sending without control messages costs less.
    ///
    /// With `adopt`, the socket takes over the hop limit. No datagram without a hop limit may wait for the socket then.
    pub(super) fn without_own_fields(&mut self, id: SocketId, fields: IpFields, adopt: bool) -> IpFields {
        let (Some(relay), Some(limit)) = (self.get_mut(id), fields.hop_limit) else { return fields };
        if adopt && relay.hop_limit != Some(limit) && udp::set_hop_limit(&relay.socket, limit).is_ok() {
            relay.hop_limit = Some(limit);
        }
        if relay.hop_limit == Some(limit) { IpFields { hop_limit: None, ..fields } } else { fields }
    }

    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut RelaySocket> {
        self.at(id.slot()).filter(|relay| relay.id == id)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &RelaySocket> {
        self.sockets.iter().flatten()
    }

    fn at(&mut self, slot: usize) -> Option<&mut RelaySocket> {
        self.sockets.get_mut(slot)?.as_mut()
    }

    /// Queues a socket that is ready to read, unless it is already queued.
    pub(super) fn set_ready(&mut self, ready: Ready) {
        let slot = usize::try_from(ready.token).unwrap_or(usize::MAX);
        // The socket may have been closed since the event.
        let Some(relay) = self.at(slot) else { return };
        relay.error |= ready.error;
        if !std::mem::replace(&mut relay.queued, true) {
            self.ready.push_back(slot);
        }
    }

    /// Takes the next socket from the queue. The flag says whether it has an ICMP error. Returns `None` if the queue is
    /// empty or the socket was closed.
    pub(super) fn next_ready(&mut self) -> Option<(SocketId, bool)> {
        let slot = self.ready.pop_front()?;
        let relay = self.at(slot)?;
        relay.queued = false;
        Some((relay.id, std::mem::take(&mut relay.error)))
    }

    pub(super) fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// Marks a socket that could not be read from, so that [`retry_failed`](Self::retry_failed) queues it again. While
    /// its buffer is full, no further datagram arrives, so no event would report it.
    pub(super) fn set_failed(&mut self, id: SocketId) {
        let Some(relay) = self.get_mut(id) else { return };
        if !std::mem::replace(&mut relay.queued, true) {
            self.failed.push(id.slot());
        }
    }

    /// Queues the sockets that could not be read from.
    pub(super) fn retry_failed(&mut self) {
        self.ready.extend(self.failed.drain(..));
    }

    #[cfg(test)]
    pub(super) fn failed(&self) -> &[usize] {
        &self.failed
    }
}
