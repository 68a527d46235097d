//! Datagrams from peers: from relay sockets through the core to clients. Responses are sent to clients here as well.
//!
//! ```text
//!   relay socket ──▶ Shell::to_clients ──▶ core ──▶ listener       when all ready sockets are served, or 256 wait
//!                                              └──▶ connection     at once
//! ```
//!
//! Datagrams of peers stay in the buffer until the task has served all ready sockets, or [`MAX_WAITING`] of them wait, so
//! that the listener sends those of all allocations together. Responses are sent with them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::event_log::Host;
use super::outbox::Message;
use super::proxied::Leg;
use super::statistics::SocketRole;
use super::{Now, Shell};
use crate::clock;
use crate::ip_fields::IpFields;
use crate::net::batch::{Datagram, Target};
use crate::net::udp::{self, Origin};
use crate::turn::{
    Context, Direction, DropReason, FiveTuple, FromPeer, HEADROOM, IcmpError, Instant, Outcome, PeerBurst, SocketId,
    TAILROOM, ToClient,
};

/// The number of datagrams from peers that fit into the buffer until they are sent.
pub(super) const BATCH: usize = 256;

/// The number of datagrams that one call receives from a relay socket.
const PER_CALL: usize = 16;

/// The number of packets from peers and ICMP errors after which other tasks run.
const MAX_PACKETS: usize = 512;

/// The number of datagrams for clients after which they are sent, even if more relay sockets are ready.
const MAX_WAITING: usize = 256;

/// The number of ICMP errors of one relay socket after which other sockets are served.
const MAX_ERRORS: usize = 16;

/// The number of relay sockets whose drops are counted per tick, so that a tick stays short.
const COUNTED_PER_TICK: usize = 1_024;

/// The padding of a message.
const PADDING: [u8; TAILROOM] = [0; TAILROOM];

/// The result of serving a relay socket.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// The number of packets and ICMP errors that were served. Packets that the kernel merged are counted one by one.
    packets: usize,
    /// There may be more packets.
    more: bool,
    /// There may be more ICMP errors.
    error: bool,
}

impl Shell {
    /// Serves the relay sockets that are ready, each at most once. Returns whether some are still ready.
    pub(super) fn serve_relays(&mut self, now: Now) -> bool {
        let mut left = MAX_PACKETS;
        for _ in 0..self.relays.ready_count() {
            let Some((socket, error)) = self.relays.next_ready() else { continue };
            let served = self.serve_relay(now, socket, error);
            if served.more || served.error {
                let token = socket.slot() as u64;
                self.relays.set_ready(crate::net::watch::Ready { token, error: served.error });
            }
            left = left.saturating_sub(served.packets);
            if left == 0 {
                break;
            }
        }
        self.flush_to_clients();
        self.relays.ready_count() > 0
    }

    /// Serves a relay socket: first its ICMP errors, then the datagrams that one call receives.
    fn serve_relay(&mut self, now: Now, socket: SocketId, error: bool) -> Served {
        let (errors, error) = if error { self.serve_icmp_errors(now, socket, None) } else { (0, false) };
        match self.serve_peers(now, socket) {
            Ok(served) => Served { packets: served.packets + errors, error, ..served },
            // ICMP errors arrive faster than they are skipped. Other sockets are served first.
            Err(failure) if udp::may_be_pending(&failure) => Served { packets: errors + 1, more: true, error },
            Err(failure) => {
                if failure.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(event = "receive-failed", error = %failure, "cannot receive from peers");
                    self.relays.set_failed(socket);
                }
                Served { packets: errors, more: false, error }
            }
        }
    }

    /// Retries the sockets that could not be read from, with one call each. If datagrams remain after this call, the
    /// task of the relay sockets continues.
    pub(super) fn retry_failed_relays(&mut self, now: Now) {
        self.relays.retry_failed();
        if self.serve_relays(now) {
            self.relays.left().notify_one();
        }
    }

    /// Receives from peers and queues the datagrams for the client.
    fn serve_peers(&mut self, now: Now, socket: SocketId) -> io::Result<Served> {
        if self.to_clients.filled + PER_CALL > BATCH {
            self.flush_to_clients();
        }
        let first = self.to_clients.filled;
        let Some(relay) = self.relays.get_mut(socket) else { return Ok(Served::default()) };
        let batch = self.to_clients.batch.receive(&relay.socket, first, PER_CALL)?;
        self.to_clients.filled += batch.count;
        let (dropped, address) = (relay.drops.advance(batch.dropped), relay.address);
        self.count_relay_drops(socket, address, dropped);
        let mut served = Served { packets: 0, more: batch.count == PER_CALL, error: false };
        for slot in first..first + batch.count {
            let Some(datagram) = self.to_clients.batch.datagram(slot).cloned() else { continue };
            if datagram.truncated {
                served.packets += 1;
                self.server.count_drops(socket, DropReason::Truncated, 1);
                self.count_outcome(Host::Peer(datagram.source), Outcome::Dropped(DropReason::Truncated));
                continue;
            }
            served.packets += self.serve_peer(now, socket, slot, &datagram);
            if self.to_clients.is_full() {
                // The remaining datagrams are in the buffer.
                let filled = self.to_clients.filled;
                self.flush_to_clients();
                self.to_clients.filled = filled;
            }
        }
        self.carry_out(now);
        if self.to_clients.len() >= MAX_WAITING {
            self.flush_to_clients();
        }
        Ok(served)
    }

    /// Queues a datagram of a peer for the client, or each of the datagrams that the kernel merged into it. Returns
    /// their number.
    fn serve_peer(&mut self, now: Now, socket: SocketId, slot: usize, datagram: &Datagram) -> usize {
        let length = datagram.segment.map(std::num::NonZeroUsize::get);
        let mut burst = PeerBurst::new(datagram.source, datagram.payload.clone(), length, datagram.fields);
        // There is no space for a header between merged datagrams.
        let slot = length.is_none().then_some(slot);
        let mut headroom = [0; HEADROOM];
        let mut packets = 0;
        loop {
            let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
            let bytes = self.to_clients.batch.arena();
            let Some(decision) = self.server.peer_packet(&mut cx, socket, bytes, &mut burst, &mut headroom) else {
                return packets;
            };
            packets += 1;
            self.pace.count(1);
            let dropped = match decision {
                FromPeer::Relay(route) => {
                    let bytes = route.payload.len() as u64;
                    let dropped = self.send_data(now, socket, route, &headroom, slot).err();
                    if let Some(reason) = dropped {
                        self.server.refund(socket, Direction::ToClient, bytes);
                        self.server.count_drops(socket, reason, 1);
                    }
                    dropped
                }
                FromPeer::Drop(reason) => Some(reason),
            };
            if let Some(reason) = dropped {
                self.count_outcome(Host::Peer(datagram.source), Outcome::Dropped(reason));
            }
        }
    }

    /// Queues a message for the client: on its connection, or at the listener of its 5-tuple.
    fn send_data(
        &mut self,
        now: Now,
        socket: SocketId,
        route: ToClient,
        headroom: &[u8; HEADROOM],
        slot: Option<usize>,
    ) -> Result<(), DropReason> {
        let ToClient { tuple, header, payload, padding, fields } = route;
        let header = headroom.get(HEADROOM - header..).unwrap_or_default();
        let padding = PADDING.get(..padding).unwrap_or_default();
        if tuple.transport.is_connection() {
            let payload = self.to_clients.batch.arena().get(payload).unwrap_or_default();
            let length = payload.len();
            return self.connections.push_data(now.monotonic, &tuple, socket, length, [header, payload, padding]);
        }
        let (listener, from, to) = self.way_to(&tuple)?;
        let target = Target::new(to, from, fields);
        let queued = self.to_clients.push_data(listener, socket, target, Message { header, payload, padding }, slot);
        if queued { Ok(()) } else { Err(DropReason::SendFailed) }
    }

    /// Sends the client a Data indication for each ICMP error of a relay socket (RFC 8656 §11.5). If the socket has
    /// just failed to send a datagram because it is too long, `peer` is its destination. Returns their
    /// number, and whether there may be more.
    pub(super) fn serve_icmp_errors(&mut self, now: Now, socket: SocketId, peer: Option<SocketAddr>) -> (usize, bool) {
        for served in 0..MAX_ERRORS {
            let Some(Ok(Some(error))) = self.relays.socket(socket).map(udp::receive_error) else {
                return (served, false);
            };
            let peer = match (error.origin, peer) {
                (Origin::Network, _) => error.peer,
                // The kernel may omit the port, but it always reports the address.
                (Origin::Local, Some(peer)) if peer.ip() == error.peer.ip() => peer,
                // The client was notified when the error occurred, or needs no notification.
                (Origin::Local, _) => continue,
            };
            let error = IcmpError { kind: error.kind, code: error.code, mtu: error.info };
            if error.mtu > 0
                && let (Some(offload), Some(relay)) = (&self.offload, self.relays.get_mut(socket))
            {
                offload.recheck(peer, relay.address);
            }
            let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
            let outcome = match self.server.peer_unreachable(&mut cx, socket, peer, error, &mut self.response) {
                Ok(indication) => self.respond(&indication.tuple, indication.length, Outcome::RelayedIcmp),
                Err(reason) => Some(Outcome::Dropped(reason)),
            };
            if let Some(outcome) = outcome {
                self.count_outcome(Host::Peer(peer), outcome);
            }
        }
        (MAX_ERRORS, true)
    }

    /// Sends the first `length` bytes of the response buffer to a client. Over UDP, they wait for
    /// [`flush_to_clients`](Self::flush_to_clients). Returns `None` if the outcome is counted when the response is sent.
    pub(super) fn respond(&mut self, tuple: &FiveTuple, length: usize, outcome: Outcome) -> Option<Outcome> {
        let failed = Some(Outcome::Dropped(DropReason::SendFailed));
        if tuple.transport.is_connection() {
            let message = self.response.get(..length).unwrap_or_default();
            let sent = self.connections.push_response(tuple, message, self.server.allocation_of(tuple).is_some());
            return if sent { Some(outcome) } else { failed };
        }
        let (listener, from, to) = match self.way_to(tuple) {
            Ok(way) => way,
            Err(reason) => return Some(Outcome::Dropped(reason)),
        };
        let target = Target::new(to, from, IpFields::default());
        let message = self.response.get(..length).unwrap_or_default();
        if self.to_clients.push_response(listener, target, message, outcome) { None } else { failed }
    }

    /// Returns the index of the listener that serves a 5-tuple, the address to send from if the listener has several, and
    /// the address to send to.
    fn way_to(&self, tuple: &FiveTuple) -> Result<(usize, Option<IpAddr>, SocketAddr), DropReason> {
        let Leg { proxy: to, local } = self.leg_to(tuple).ok_or(DropReason::ProxyPathLost)?;
        let find = |exactly| self.listeners.iter().position(|listener| listener.serves(local, exactly));
        let index = find(true).or_else(|| find(false)).ok_or(DropReason::SendFailed)?;
        let wildcard = self.listeners.get(index).is_some_and(|listener| listener.address.ip().is_unspecified());
        Ok((index, wildcard.then(|| local.ip()), to))
    }

    /// Sends the datagrams that wait for clients, and frees the buffer for more datagrams of peers.
    ///
    /// Every task that may have queued some calls it before it waits or yields: while clients keep connecting, for
    /// example, the thread never waits.
    pub(super) fn flush_to_clients(&mut self) {
        let Self { to_clients, listeners, statistics, server, packet_log, clock, .. } = self;
        let sockets = listeners.iter().map(|listener| listener.socket.get_ref());
        to_clients.flush(sockets, |result| {
            packet_log.log(clock, Host::Client(result.to), result.outcome, result.packets);
            super::count_sent(server, statistics, Direction::ToClient, result);
        });
    }

    /// Begins an iteration of the event loop.
    pub(super) fn begin_iteration(&mut self) {
        self.iterations.begin(self.clock.elapsed());
    }

    /// Begins the next iteration of the event loop, without a wait: a task continues that yielded in the one of this number.
    pub(super) fn next_iteration(&mut self, number: u64) {
        self.iterations.next(number, self.clock.elapsed());
    }

    /// Ends an iteration of the event loop, and returns how long to pause.
    pub(super) fn end_iteration(&mut self) -> Option<Duration> {
        if !self.pace.take_served() {
            self.connections.worker_is_idle();
        }
        let now = self.clock.elapsed();
        self.iterations.end(now);
        self.pace.pause(Instant::from_elapsed(now), clock::thread_cpu)
    }

    /// Counts the datagrams that the kernel has dropped at the listeners, and at some of the relay sockets.
    pub(super) fn count_drops(&mut self) {
        for listener in self.listeners.clone() {
            let mut drops = listener.drops.get();
            let dropped = drops.advance(udp::dropped(listener.socket.get_ref()));
            listener.drops.set(drops);
            self.count_receive_drops(SocketRole::Listener, listener.address, dropped);
        }
        for (socket, address, dropped) in self.relays.count_drops(COUNTED_PER_TICK) {
            self.count_relay_drops(socket, address, dropped);
        }
    }

    /// Counts the datagrams that the kernel has dropped at a relay socket, also for its allocation.
    fn count_relay_drops(&mut self, socket: SocketId, address: SocketAddr, dropped: u32) {
        if dropped > 0 {
            self.server.count_drops(socket, DropReason::ReceiveBufferFull, dropped.into());
            self.count_receive_drops(SocketRole::Relay, address, dropped);
        }
    }

    /// Counts the datagrams that the kernel has dropped at the socket that is bound to `local`.
    pub(super) fn count_receive_drops(&mut self, role: SocketRole, local: SocketAddr, dropped: u32) {
        if dropped > 0 {
            self.statistics.count_receive_drops(role, dropped.into());
            self.count_packets(Host::Local(local), Outcome::Dropped(DropReason::ReceiveBufferFull), dropped.into());
        }
    }
}
