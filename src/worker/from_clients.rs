//! Packets from clients: from a listener or a connection through the core to relay sockets.
//!
//! ```text
//!   listener    ──▶ Worker::datagrams ──▶ core ──▶ relay sockets      after each batch
//!   connection  ──▶ Worker::stream    ──▶ core ──▶ relay sockets      after each read
//! ```

use std::io;
use std::net::{SocketAddr, UdpSocket};

use tokio::io::Interest;

use super::event_log::Host;
use super::outbox::{Arena, Staged};
use super::statistics::SocketRole;
use super::{Listener, Now, Shell, Worker};
use crate::net::batch::{Datagram, RecvBatch, Target};
use crate::net::udp;
use crate::net::watch::Readable;
use crate::proxy_protocol;
use crate::transport::Transport;
use crate::turn::{ClientBurst, Context, Direction, DropReason, FiveTuple, FromClient, Outcome, ToPeer};

/// The number of datagrams from clients that are served before their payloads are sent. Under load, a batch has several
/// datagrams of each client, which are sent as one message.
pub(super) const BATCH: usize = 256;

/// The number of datagrams that one call receives from a listener.
const PER_CALL: usize = 32;

/// The number of bytes after which a listener yields to other tasks. A merged datagram consists of many packets.
const MAX_BYTES: usize = 256 * 1024;

/// The result of one call that received datagrams.
#[derive(Clone, Copy, Debug)]
struct Batch {
    count: usize,
    /// The kernel's counter of drops.
    dropped: Option<u32>,
    more: bool,
}

/// Receives datagrams from a socket. A batch that is not full shows that the socket is empty. The runtime is notified
/// of this without another system call.
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

impl Worker {
    /// Receives datagrams of clients, within a budget, and serves them. Returns whether there may be more.
    ///
    /// # Errors
    /// Those of receiving; [`io::ErrorKind::WouldBlock`] if no datagram is available.
    pub(super) fn serve_clients(&mut self, now: Now, listener: &Listener) -> io::Result<bool> {
        let (mut first, mut bytes) = (0, 0);
        let more = loop {
            let batch = match receive(&mut self.datagrams.buffer, &listener.socket, first, PER_CALL) {
                Ok(batch) => batch,
                Err(error) if first == 0 => return Err(error),
                Err(_) => break false,
            };
            let mut drops = listener.drops.get();
            let dropped = drops.advance(batch.dropped);
            self.shell.count_receive_drops(SocketRole::Listener, listener.address, dropped);
            listener.drops.set(drops);
            for slot in first..first + batch.count {
                let Some(datagram) = self.datagrams.buffer.datagram(slot).cloned() else { continue };
                let server = datagram.destination.unwrap_or(listener.address.ip());
                let server = SocketAddr::new(server, listener.address.port());
                let tuple = FiveTuple { client: datagram.source, server, transport: Transport::Udp };
                bytes += datagram.payload.len();
                if self.shell.proxied.is_some() {
                    self.serve_with_proxies(now, tuple, datagram);
                } else {
                    self.serve_client(now, &tuple, datagram);
                }
                if self.datagrams.is_full() {
                    self.shell.flush_to_peers(&mut self.datagrams);
                }
                if self.shell.to_clients.is_full() {
                    self.shell.flush_to_clients();
                }
            }
            first += batch.count;
            if !batch.more || first + PER_CALL > BATCH || bytes > MAX_BYTES {
                break batch.more;
            }
        };
        self.shell.flush_to_peers(&mut self.datagrams);
        self.shell.carry_out(now);
        self.shell.flush_to_clients();
        Ok(more)
    }

    /// Serves a datagram from a client, or each of the datagrams that the kernel merged into it.
    pub(super) fn serve_client(&mut self, now: Now, tuple: &FiveTuple, datagram: Datagram) {
        if datagram.truncated {
            return self.shell.count_outcome(Host::Client(tuple.client), Outcome::Dropped(DropReason::Truncated));
        }
        let length = datagram.segment.map(std::num::NonZeroUsize::get);
        let burst = ClientBurst::new(datagram.payload.clone(), length, datagram.fields);
        if !self.shell.serve_burst(now, tuple, &mut self.datagrams, burst) {
            let bytes = self.datagrams.buffer.bytes().get(datagram.payload).unwrap_or_default();
            // Without proxies in the configuration, a header is a packet like any other.
            if proxy_protocol::begins(bytes) {
                self.shell.events.proxy_not_listed(now.monotonic, *tuple);
            }
        }
    }
}

impl Shell {
    /// Passes the packets of a client, which are in `staged`, to the core and carries out its decisions. Returns
    /// whether at least one packet was not dropped.
    pub(super) fn serve_burst<B: Arena>(
        &mut self,
        now: Now,
        tuple: &FiveTuple,
        staged: &mut Staged<B>,
        mut burst: ClientBurst,
    ) -> bool {
        let mut served = false;
        loop {
            let mut cx = Context { now: now.monotonic, unix: now.unix, rng: &mut self.rng };
            let bytes = staged.buffer.bytes();
            let decision = self.server.client_packet(&mut cx, tuple, bytes, &mut burst, &mut self.response);
            let Some(decision) = decision else { return served };
            self.pace.count(1);
            served |= self.carry_out_decision(now, tuple, staged, decision);
        }
    }

    /// Carries out the decision about a packet of a client, whose payload is in `staged`. Returns whether it was not
    /// dropped.
    pub(super) fn carry_out_decision<B: Arena>(
        &mut self,
        now: Now,
        tuple: &FiveTuple,
        staged: &mut Staged<B>,
        decision: FromClient,
    ) -> bool {
        let outcome = match decision {
            FromClient::Relay(route) if route.dont_fragment => {
                let outcome = self.send_unfragmented(now, staged, &route);
                if let Outcome::Dropped(reason) = outcome {
                    self.server.refund(route.socket, Direction::ToPeers, route.payload.len() as u64);
                    self.server.count_drops(route.socket, reason, 1);
                }
                Some(outcome)
            }
            FromClient::Relay(ToPeer { socket, peer, payload, fields, .. }) => {
                let fields = self.relays.without_own_fields(socket, fields, staged.is_empty());
                staged.push(socket, Target::new(peer, None, fields), payload);
                None
            }
            FromClient::Respond(response) => self.respond(tuple, response.length, response.outcome),
            FromClient::Open(spec) => {
                // A socket in the same slot may have to be closed first. Its waiting datagrams are sent before that.
                self.flush_to_peers(staged);
                self.carry_out(now);
                self.open_relay(now, spec)
            }
            // Its outcome is counted when it is resumed.
            FromClient::Wait => None,
            FromClient::Drop(reason) => Some(Outcome::Dropped(reason)),
        };
        if let Some(outcome) = outcome {
            self.count_outcome(Host::Client(tuple.client), outcome);
        }
        !matches!(outcome, Some(Outcome::Dropped(_)))
    }

    /// Sends a payload at once and without fragmentation. This is rare: clients do it to probe the path MTU.
    fn send_unfragmented<B: Arena>(&mut self, now: Now, staged: &mut Staged<B>, route: &ToPeer) -> Outcome {
        // Earlier packets are sent first, in order.
        self.flush_to_peers(staged);
        let payload = staged.buffer.bytes().get(route.payload.clone()).unwrap_or_default();
        let Some(socket) = self.relays.socket(route.socket) else {
            return Outcome::Dropped(DropReason::AllocationEnded);
        };
        match udp::send_unfragmented(socket, payload, route.peer, route.fields) {
            Ok(()) => {
                self.credit(route.socket, Direction::ToPeers, 1, payload.len() as u64);
                Outcome::RelayedToPeer
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Dropped(DropReason::SendBufferFull),
            Err(error) => {
                if error.raw_os_error() == Some(libc::EMSGSIZE) {
                    self.serve_icmp_errors(now, route.socket, Some(route.peer));
                }
                Outcome::Dropped(DropReason::SendFailed)
            }
        }
    }

    /// Sends the datagrams that wait for peers.
    pub(super) fn flush_to_peers<B: Arena>(&mut self, staged: &mut Staged<B>) {
        let Self { relays, statistics, server, packet_log, clock, .. } = self;
        let socket_of = |id| -> Option<&UdpSocket> { relays.socket(id) };
        staged.flush(socket_of, |result| {
            packet_log.log(clock, Host::Peer(result.to), result.outcome, result.packets);
            super::count_sent(server, statistics, Direction::ToPeers, result);
        });
    }
}
