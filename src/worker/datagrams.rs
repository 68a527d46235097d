//! The fast path: datagrams in batches from clients to peers and back.
//!
//! ```text
//!   listener ──▶ from_clients ──▶ core ──▶ to_peers ──▶ relay sockets      at the end of each batch
//!   relay    ──▶ from_peers   ──▶ core ──▶ Listener::outbox ──▶ listener   at the end of the turn
//! ```
//!
//! What comes from peers stays in its arena until the turn of the loop is over or the arena is full, so that the packets
//! of all allocations leave through the listener together. Answers go with them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use tokio::io::Interest;

use super::outbox::{Flow, Outbox};
use super::{Listener, Now, Worker};
use crate::net::batch::{Datagram, Piece, RecvBatch, Target};
use crate::net::udp::{self, Origin};
use crate::net::watch::{Readable, Ready};
use crate::turn::{
    Context, DropReason, FiveTuple, FromClient, FromPeer, HEADROOM, IcmpError, Instant, Outcome, PeerRoute, RelayId,
    Reply, TAILROOM, ToPeer, Transport,
};

/// How many datagrams of clients are served before their payloads are sent on: under load there are several of each
/// client among them by then, which leave as one message.
pub(super) const FROM_CLIENTS: usize = 256;

/// How many datagrams one call takes from a listener.
const FROM_ONE_LISTENER: usize = 32;

/// How many bytes a listener may have the worker busy with at a time, but for those of one call: merged datagrams are
/// long, and each is many packets.
const MOST_BYTES: usize = 256 * 1024;

/// How many datagrams of peers there is room for until the end of the turn.
pub(super) const FROM_PEERS: usize = 256;

/// How many datagrams one call takes from a relay socket.
const FROM_ONE_PEER: usize = 16;

/// How many packets of peers the worker sees to before others get their turn, but for those of one call.
const MOST_AT_A_TIME: usize = 512;

/// How many tasks run before what waits is sent, should the turn have no end.
const MOST_TASKS: u32 = 128;

/// How many datagrams wait for clients at most before they are sent, but for those of one batch.
const MOST_WAITING: usize = 256;

/// How many ICMP errors one relay socket may keep the worker busy with at a time.
const MOST_ERRORS: usize = 16;

/// Where a client's packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arena {
    /// In the batch that a listener received.
    Datagrams,
    /// In the buffer that connections are read into.
    Stream,
}

/// What became of a client's packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It waits to be sent to a peer.
    ToPeer(ToPeer),
    /// It is seen to; no outcome is known yet of an answer that waits.
    Done(Option<Outcome>),
}

/// What a relay socket had.
#[derive(Clone, Copy, Debug, Default)]
struct FromRelay {
    /// Packets seen to, each of those that the kernel had merged.
    packets: usize,
    /// There may be more of them.
    more: bool,
    /// There may be more ICMP errors.
    error: bool,
}

/// What one call received.
#[derive(Clone, Copy, Debug)]
struct Batch {
    count: usize,
    /// The kernel's counter of drops.
    dropped: Option<u32>,
    more: bool,
}

/// What pads a message: three bytes at most.
const PADDING: [u8; TAILROOM] = [0; TAILROOM];

/// Receives what is there. A batch that is not full has drained the socket, which is told to the runtime without another
/// call.
fn receive(into: &mut RecvBatch, socket: &Readable, first: usize, most: usize) -> io::Result<Batch> {
    let mut received = None;
    let tried = socket.try_io(Interest::READABLE, |socket| {
        let batch = into.receive(socket, first, most)?;
        received = Some(batch);
        if batch.count < most { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (received, tried) {
        (Some(batch), tried) => Ok(Batch { count: batch.count, dropped: batch.dropped, more: tried.is_ok() }),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// A route that holds for the next ChannelData message as well if it looks like this one.
struct Alike {
    header: [u8; 4],
    length: usize,
    route: ToPeer,
}

impl Worker {
    /// Receives what clients have sent, not too much of it, and sees each packet to its end. True if there may be more.
    ///
    /// # Errors
    /// Those of receiving, [`io::ErrorKind::WouldBlock`] if nothing is there.
    pub(super) fn serve_clients(&mut self, now: Now, listener: &Listener) -> io::Result<bool> {
        let (mut first, mut bytes) = (0, 0);
        let more = loop {
            let batch = match receive(&mut self.from_clients, &listener.socket, first, FROM_ONE_LISTENER) {
                Ok(batch) => batch,
                Err(error) if first == 0 => return Err(error),
                Err(_) => break false,
            };
            let mut lost = listener.lost.get();
            let dropped = lost.advance(batch.dropped);
            listener.lost.set(lost);
            self.count_lost(dropped);
            for slot in first..first + batch.count {
                let Some(datagram) = self.from_clients.datagram(slot).cloned() else { continue };
                let server = datagram.destination.unwrap_or(listener.address.ip());
                let server = SocketAddr::new(server, listener.address.port());
                let tuple = FiveTuple { client: datagram.source, server, transport: Transport::Udp };
                self.serve_client(now, &tuple, &datagram);
                bytes += datagram.payload.len();
            }
            first += batch.count;
            if !batch.more || first + FROM_ONE_LISTENER > FROM_CLIENTS || bytes > MOST_BYTES {
                break batch.more;
            }
        };
        self.flush_to_peers(Arena::Datagrams);
        self.carry_out(now);
        self.end_task(more);
        Ok(more)
    }

    /// Sees a datagram from a client to its end, or each of several that the kernel has merged.
    fn serve_client(&mut self, now: Now, tuple: &FiveTuple, datagram: &Datagram) {
        if datagram.truncated {
            return self.settle(tuple.client, Outcome::Dropped(DropReason::Truncated));
        }
        let mut alike: Option<Alike> = None;
        for segment in datagram.segments() {
            self.pace.moved(1);
            let packet = self.from_clients.arena().get(segment.clone()).unwrap_or_default();
            let (header, length) = (packet.first_chunk().copied().unwrap_or_default(), packet.len());
            match alike.as_ref().filter(|last| last.header == header && last.length == length) {
                Some(Alike { route, .. }) => {
                    let route = route.clone();
                    match self.server.admit_to_peer(now.monotonic, route.relay, route.payload.len()) {
                        Ok(()) => self.queue_to_peer(&route, segment.start),
                        Err(reason) => self.settle(tuple.client, Outcome::Dropped(reason)),
                    }
                }
                None => {
                    let served = self.serve_packet(now, tuple, Arena::Datagrams, segment, datagram.tos);
                    alike = match served {
                        Served::ToPeer(route) if header[0] >= 0x40 => Some(Alike { header, length, route }),
                        _ => None,
                    };
                }
            }
        }
    }

    /// Asks the core about a client's packet, which is at `place` in the arena, and does what it says.
    pub(super) fn serve_packet(
        &mut self,
        now: Now,
        tuple: &FiveTuple,
        arena: Arena,
        place: Range<usize>,
        tos: u8,
    ) -> Served {
        let start = place.start;
        let bytes = match arena {
            Arena::Datagrams => self.from_clients.arena(),
            Arena::Stream => &self.buffer,
        };
        let packet = bytes.get(place).unwrap_or_default();
        let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
        let outcome = match self.server.client_packet(&mut cx, tuple, packet, tos, &mut self.reply) {
            FromClient::Relay(route) if route.dont_fragment => Some(self.send_unfragmented(now, arena, &route, start)),
            FromClient::Relay(route) => {
                self.queue_to_peer(&route, start);
                return Served::ToPeer(route);
            }
            FromClient::Reply(reply) => self.send_reply(tuple, &reply),
            FromClient::Open(open) => {
                // The slot may have been another socket's, which is to be closed first, and not before what is queued for
                // it is sent.
                self.flush_to_peers(arena);
                self.carry_out(now);
                self.open_relay(now, open)
            }
            FromClient::Drop(reason) => Some(Outcome::Dropped(reason)),
        };
        if let Some(outcome) = outcome {
            self.settle(tuple.client, outcome);
        }
        Served::Done(outcome)
    }

    fn queue_to_peer(&mut self, route: &ToPeer, start: usize) {
        let payload = Piece::of_arena(start + route.payload.start..start + route.payload.end);
        let target = Target::new(route.peer, None, route.tos);
        self.to_peers.push(Flow::of_relay(route.relay.slot()), target, &[payload], Outcome::RelayedToPeer);
    }

    /// Sends a packet's payload on at once, whole or not at all: a client that looks for the path MTU does so now and then.
    fn send_unfragmented(&mut self, now: Now, arena: Arena, route: &ToPeer, start: usize) -> Outcome {
        // What came before it goes before it.
        self.flush_to_peers(arena);
        let bytes = match arena {
            Arena::Datagrams => self.from_clients.arena(),
            Arena::Stream => &self.buffer,
        };
        let payload = bytes.get(start + route.payload.start..start + route.payload.end).unwrap_or_default();
        let Some(relay) = self.relays.get(route.relay.slot()).and_then(Option::as_ref) else {
            return Outcome::Dropped(DropReason::AllocationEnded);
        };
        match udp::send_unfragmented(&relay.socket, payload, route.peer, route.tos) {
            Ok(()) => Outcome::RelayedToPeer,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Dropped(DropReason::SendBufferFull),
            Err(error) => {
                if error.raw_os_error() == Some(libc::EMSGSIZE) {
                    self.serve_errors(now, route.relay, Some(route.peer));
                }
                Outcome::Dropped(DropReason::SendFailed)
            }
        }
    }

    /// Tells the client of the ICMP errors that a relay socket has learnt of (RFC 8656 §11.5). `peer` is whom the datagram
    /// was for that this machine itself has just found too long. True if there may be more.
    fn serve_errors(&mut self, now: Now, relay: RelayId, peer: Option<SocketAddr>) -> bool {
        for _ in 0..MOST_ERRORS {
            let socket = self.relays.get(relay.slot()).and_then(Option::as_ref).map(|relay| &relay.socket);
            let Some(Ok(Some(error))) = socket.map(udp::receive_error) else { return false };
            let peer = match (error.origin, peer) {
                (Origin::Network, _) => error.peer,
                // The kernel may leave the port out, never the address.
                (Origin::Local, Some(peer)) if peer.ip() == error.peer.ip() => peer,
                // It has been told when it happened, or was not to be told.
                (Origin::Local, _) => continue,
            };
            let error = IcmpError { kind: error.kind, code: error.code, mtu: error.info };
            let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
            let outcome = match self.server.peer_unreachable(&mut cx, relay, peer, error, &mut self.reply) {
                FromPeer::Relay(route) => self.send_message(&route.tuple, route.message, route.outcome),
                FromPeer::Drop(reason) => Some(Outcome::Dropped(reason)),
            };
            if let Some(outcome) = outcome {
                self.settle(peer, outcome);
            }
        }
        true
    }

    /// Sends what is queued for peers; `arena` is where it stands.
    pub(super) fn flush_to_peers(&mut self, arena: Arena) {
        let bytes = match arena {
            Arena::Datagrams => self.from_clients.arena(),
            Arena::Stream => &self.buffer,
        };
        let (relays, counters) = (&self.relays, &mut self.counters);
        let socket = |flow: Flow| relays.get(flow.slot())?.as_ref().map(|relay| &relay.socket);
        self.to_peers.flush_each(socket, bytes, |outcome| counters.count(outcome));
    }

    /// Takes note that a relay socket has something. It stands in the queue once, however often it is told of.
    pub(super) fn relay_ready(&mut self, ready: Ready) {
        let slot = usize::try_from(ready.token).unwrap_or(usize::MAX);
        // It may have been closed since.
        let Some(relay) = self.relays.get_mut(slot).and_then(Option::as_mut) else { return };
        relay.error |= ready.error;
        if !std::mem::replace(&mut relay.due, true) {
            self.due.push_back(slot);
        }
    }

    /// Serves the relay sockets that are due, each once at most. True if some have more, or must wait for the next turn.
    pub(super) fn serve_relays(&mut self, now: Now) -> bool {
        let mut left = MOST_AT_A_TIME;
        for _ in 0..self.due.len() {
            let Some(slot) = self.due.pop_front() else { break };
            let Some(relay) = self.relays.get_mut(slot).and_then(Option::as_mut) else { continue };
            relay.due = false;
            let (relay, error) = (relay.id, std::mem::take(&mut relay.error));
            let served = self.serve_relay(now, relay, error);
            if served.more || served.error {
                self.relay_ready(Ready { token: slot as u64, error: served.error });
            }
            left = left.saturating_sub(served.packets);
            if left == 0 {
                break;
            }
        }
        let more = !self.due.is_empty();
        self.end_task(more);
        more
    }

    /// Serves a relay socket: word of ICMP errors, then what one call receives from peers.
    fn serve_relay(&mut self, now: Now, relay: RelayId, error: bool) -> FromRelay {
        let error = error && self.serve_errors(now, relay, None);
        match self.serve_peers(now, relay) {
            Ok(served) => FromRelay { error, ..served },
            Err(failure) => {
                if failure.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(error = %failure, "cannot receive from peers");
                    self.receive_later(relay);
                }
                FromRelay { error, ..FromRelay::default() }
            }
        }
    }

    /// Leaves a relay socket alone until the next tick. Its buffer may be full, and then nothing arrives that would tell of it.
    fn receive_later(&mut self, relay: RelayId) {
        let Some(relay) = self.relays.get_mut(relay.slot()).and_then(Option::as_mut) else { return };
        if !std::mem::replace(&mut relay.due, true) {
            self.unread.push(relay.id.slot());
        }
    }

    /// Tries those again that could not be received from. What is left of them waits for the next tick, or for news.
    pub(super) fn receive_again(&mut self, now: Now) {
        self.due.extend(self.unread.drain(..));
        self.serve_relays(now);
    }

    /// Receives from peers, and queues for the client what is for it.
    fn serve_peers(&mut self, now: Now, relay: RelayId) -> io::Result<FromRelay> {
        if self.filled + FROM_ONE_PEER > FROM_PEERS {
            self.flush_to_clients();
        }
        let first = self.filled;
        let Some(source) = self.relays.get_mut(relay.slot()).and_then(Option::as_mut) else {
            return Ok(FromRelay::default());
        };
        let batch = self.from_peers.receive(&source.socket, first, FROM_ONE_PEER)?;
        self.filled += batch.count;
        let dropped = source.lost.advance(batch.dropped);
        self.count_lost(dropped);
        let mut served = FromRelay { packets: 0, more: batch.count == FROM_ONE_PEER, error: false };
        for slot in first..first + batch.count {
            let Some(datagram) = self.from_peers.datagram(slot).cloned() else { continue };
            served.packets += datagram.segments().count();
            if datagram.truncated {
                self.settle(datagram.source, Outcome::Dropped(DropReason::Truncated));
                continue;
            }
            match self.server.peer_route(now.monotonic, relay, datagram.source, datagram.tos) {
                Ok(route) => self.serve_peer(now, relay, &route, slot, &datagram),
                Err(reason) => {
                    datagram.segments().for_each(|_| self.settle(datagram.source, Outcome::Dropped(reason)));
                }
            }
        }
        self.carry_out(now);
        self.end_task(false);
        Ok(served)
    }

    /// Queues a datagram of a peer for the client, or each of several that the kernel has merged.
    fn serve_peer(&mut self, now: Now, relay: RelayId, route: &PeerRoute, slot: usize, datagram: &Datagram) {
        for payload in datagram.segments() {
            self.pace.moved(1);
            let queued = if datagram.segment.is_none() && !route.tuple.transport.is_stream() {
                self.queue_in_place(now, relay, route, slot, payload)
            } else {
                self.queue_in_pieces(now, relay, route, payload)
            };
            if let Err(reason) = queued {
                self.settle(datagram.source, Outcome::Dropped(reason));
            }
        }
    }

    /// Makes the message around a payload that has a slot for itself.
    fn queue_in_place(
        &mut self,
        now: Now,
        relay: RelayId,
        route: &PeerRoute,
        slot: usize,
        payload: Range<usize>,
    ) -> Result<(), DropReason> {
        let room = self.from_peers.slot_mut(slot);
        let message = route.framing.wrap(room, payload.len(), &mut self.rng).ok_or(DropReason::TooLarge)?;
        self.server.admit_to_client(now.monotonic, relay, payload.len())?;
        let start = payload.start - HEADROOM;
        let message = Piece::of_arena(start + message.start..start + message.end);
        self.queue_to_client(relay, route, |_| [message])
    }

    /// Puts a header in front of a payload that stands right behind another one, or is for a connection.
    fn queue_in_pieces(
        &mut self,
        now: Now,
        relay: RelayId,
        route: &PeerRoute,
        payload: Range<usize>,
    ) -> Result<(), DropReason> {
        let mut room = [0; HEADROOM];
        let length = route.framing.write_header(payload.len(), &mut self.rng, &mut room).ok_or(DropReason::TooLarge)?;
        self.server.admit_to_client(now.monotonic, relay, payload.len())?;
        let header = room.get(HEADROOM - length..).unwrap_or_default();
        let padding = PADDING.get(..route.framing.padding(payload.len())).unwrap_or_default();
        if route.tuple.transport.is_stream() {
            let payload = self.from_peers.arena().get(payload).unwrap_or_default();
            self.data_on_connection(&route.tuple, [header, payload, padding])?;
            self.counters.count(Outcome::RelayedToClient);
            return Ok(());
        }
        self.queue_to_client(relay, route, |outbox| {
            [outbox.keep(header), Piece::of_arena(payload), outbox.keep(padding)]
        })
    }

    fn queue_to_client<const N: usize>(
        &mut self,
        relay: RelayId,
        route: &PeerRoute,
        pieces: impl FnOnce(&mut Outbox) -> [Piece; N],
    ) -> Result<(), DropReason> {
        let (listener, from) = self.listener_of(&route.tuple).ok_or(DropReason::SendFailed)?;
        let mut outbox = listener.outbox.borrow_mut();
        let pieces = pieces(&mut outbox);
        let target = Target::new(route.tuple.client, from, route.tos);
        outbox.push(Flow::of_relay(relay.slot()), target, &pieces, Outcome::RelayedToClient);
        Ok(())
    }

    /// Sends an answer: over UDP at the end of the turn. `None` if it is counted when it is sent.
    pub(super) fn send_reply(&mut self, tuple: &FiveTuple, reply: &Reply) -> Option<Outcome> {
        self.send_message(tuple, 0..reply.length, reply.outcome)
    }

    /// Sends what stands in the reply buffer, as [`send_reply`](Self::send_reply) does.
    fn send_message(&mut self, tuple: &FiveTuple, message: Range<usize>, outcome: Outcome) -> Option<Outcome> {
        let message = self.reply.get(message).unwrap_or_default();
        if tuple.transport.is_stream() {
            return Some(self.answer_on_connection(tuple, message, outcome));
        }
        let Some((listener, from)) = self.listener_of(tuple) else {
            return Some(Outcome::Dropped(DropReason::SendFailed));
        };
        let mut outbox = listener.outbox.borrow_mut();
        let message = outbox.keep(message);
        outbox.push(Flow::ANSWERS, Target::new(tuple.client, from, 0), &[message], outcome);
        None
    }

    /// The listener that serves a client's 5-tuple, and the address to send from if the listener has several.
    fn listener_of(&self, tuple: &FiveTuple) -> Option<(&Listener, Option<IpAddr>)> {
        let find = |exactly| self.listeners.iter().find(|listener| listener.serves(tuple.server, exactly));
        let listener = find(true).or_else(|| find(false))?;
        Some((listener, listener.address.ip().is_unspecified().then(|| tuple.server.ip())))
    }

    /// Sends what waits for clients, and makes room for more of what peers send.
    pub(super) fn flush_to_clients(&mut self) {
        let (arena, counters) = (self.from_peers.arena(), &mut self.counters);
        for listener in &self.listeners {
            listener.outbox.borrow_mut().flush(listener.socket.get_ref(), arena, |outcome| counters.count(outcome));
        }
        self.filled = 0;
        self.tasks = 0;
    }

    /// At the end of each task that may have queued something. While a task has `more` to do, the turn of the loop may
    /// have no end, and what waits is sent.
    pub(super) fn end_task(&mut self, more: bool) {
        self.tasks += 1;
        let waiting: usize = self.listeners.iter().map(|listener| listener.outbox.borrow().len()).sum();
        if more || self.tasks >= MOST_TASKS || waiting >= MOST_WAITING {
            self.flush_to_clients();
        }
    }

    /// At the end of a turn of the loop: sends what waits, and says for how long the loop may pause.
    pub(super) fn end_turn(&mut self) -> Option<Duration> {
        self.flush_to_clients();
        let now = Instant::from_elapsed(self.clock.elapsed());
        self.pace.pause(now)
    }

    fn count_lost(&mut self, dropped: u32) {
        for _ in 0..dropped {
            self.counters.count(Outcome::Dropped(DropReason::ReceiveBufferFull));
        }
    }
}
