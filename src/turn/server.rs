//! One worker's TURN server.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::auth::{Authenticator, KnownIdentities, NonceMint};
use crate::stun::attribute::AddressFamily;
use crate::stun::{Class, FingerprintStatus, Message, Method, TransactionId};
use crate::turn::contract::{
    Action, AllocationId, AllocationSummary, Context, EndReason, Event, FiveTuple, FromClient, FromPeer, IcmpError,
    PeerRoute, RelayId, ToClient, ToPeer,
};
use crate::turn::limit::Limit;
use crate::turn::outcome::{DropReason, Outcome};
use crate::turn::protocol::channel_data::{self, Framing};
use crate::turn::protocol::framing::{self, Frame};
use crate::turn::protocol::icmp;
use crate::turn::rate::Rate;
use crate::turn::shared::alternate::Alternate;
use crate::turn::shared::live_relays::LiveRelays;
use crate::turn::shared::policy::{Denial, PeerPolicy};
use crate::turn::shared::quota::{Direction, Quota};
use crate::turn::shared::reservations::{Reservations, Token};
use crate::turn::tables::allocation::{Allocation, State};
use crate::turn::tables::ports::{PortPool, Wish};
use crate::turn::tables::relays::{Relay, Socket};
use crate::turn::tables::reply_limit::ReplyLimit;
use crate::turn::tables::table::Table;
use crate::turn::time::{Deadline, Instant};

/// What all workers of a process share. Nothing in it is ever locked.
#[derive(Debug)]
pub struct Shared {
    /// Who may make allocations.
    pub authenticator: Authenticator,
    /// Makes and checks nonces.
    pub nonces: NonceMint,
    /// Who may be reached. It does not change while the process runs: data on bound channels relies on the answer that
    /// the binding got.
    pub policy: PeerPolicy,
    /// Our own relayed transport addresses.
    pub live: LiveRelays,
    /// Ports that wait for the client with their token.
    pub reservations: Reservations,
    /// How many allocations there are, and what their users use of their rates.
    pub quota: Quota,
    /// How many connections there are; its users are the sources, as text: an IPv4 address or an IPv6 /64.
    pub connections: Quota,
    /// Whether new allocations are refused, because the process is about to end.
    pub draining: AtomicBool,
    /// Where clients are sent that get no allocation here.
    pub alternate: Option<Alternate>,
}

/// One worker's part of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The relay addresses, with the ports of this worker alone.
    pub relays: Vec<RelayRange>,
    /// Peer addresses with a permission, at most.
    pub permissions_per_allocation: usize,
    /// Bound channels, at most.
    pub channels_per_allocation: usize,
    /// New peer addresses of one allocation, each of which is a new permission.
    pub peer_rate: Option<Rate>,
    /// Application data of one allocation in bytes, each direction apart.
    pub byte_rate: Option<Rate>,
    /// Answers per second of this worker to a source that has not shown that it receives them; 0 for no limit.
    pub unverified_replies: u32,
    /// Whether channel numbers 0x5000–0x7FFF are served too, as RFC 5766 had it.
    pub rfc5766_channels: bool,
    /// Whether ADDITIONAL-ADDRESS-FAMILY is also known by the number that coturn's clients have for it.
    pub draft_dual_allocation: bool,
    /// How many seconds past the expiry of its credential an allocation may be extended to.
    pub expiry_grace: u64,
}

/// A relay address and the ports of it that a worker may use.
#[derive(Clone, Debug)]
pub struct RelayRange {
    /// What sockets are bound to.
    pub bind: IpAddr,
    /// What clients are told.
    pub advertised: IpAddr,
    /// Ports that no other worker uses.
    pub ports: RangeInclusive<u16>,
}

/// The TURN server of one worker.
#[derive(Debug)]
pub struct Server {
    pub(crate) shared: Arc<Shared>,
    pub(crate) settings: Settings,
    /// In the order of the settings' relays.
    pub(crate) pools: Vec<PortPool>,
    pub(crate) table: Table,
    pub(crate) actions: VecDeque<Action>,
    /// Relay sockets of ended allocations that the shell has not reported closed.
    closing: usize,
    /// What this worker has reserved, in the order in which it expires; some of it may have been claimed.
    pub(crate) reserved: VecDeque<(Deadline, Token, SocketAddr)>,
    /// Ports of other workers that sockets of this one are bound to, by reservations of theirs.
    pub(crate) borrowed: usize,
    pub(crate) replies: ReplyLimit,
    pub(crate) known: KnownIdentities,
}

impl Server {
    /// A server without allocations.
    #[must_use]
    pub fn new(shared: Arc<Shared>, settings: Settings) -> Self {
        let pools = settings.relays.iter().map(|relay| PortPool::new(relay.ports.clone())).collect();
        let ports = settings.relays.iter().map(|relay| relay.ports.len()).sum();
        let replies = ReplyLimit::new(settings.unverified_replies);
        Self {
            shared,
            settings,
            replies,
            known: KnownIdentities::new(),
            pools,
            table: Table::new(ports),
            actions: VecDeque::new(),
            closing: 0,
            reserved: VecDeque::new(),
            borrowed: 0,
        }
    }

    /// Decides about a packet from a client: one UDP datagram, whole, with the TOS or Traffic Class field that it came
    /// with, or one frame of a stream.
    ///
    /// An answer is written to `reply`, which has room for [`REPLY_BUFFER`](crate::turn::REPLY_BUFFER) bytes.
    pub fn client_packet(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        packet: &[u8],
        tos: u8,
        reply: &mut [u8],
    ) -> FromClient {
        if !is_usable(tuple.client) {
            return FromClient::Drop(DropReason::UnusableSource);
        }
        // RFC 8656 §12, Table 3.
        match packet.first() {
            Some(0..=3) => self.stun_message(cx, tuple, packet, tos, reply),
            Some(0x40..=0x4f) => self.channel_data(cx.now, tuple, packet, tos),
            Some(0x50..=0x7f) if self.settings.rfc5766_channels => self.channel_data(cx.now, tuple, packet, tos),
            _ => FromClient::Drop(DropReason::UnknownProtocol),
        }
    }

    fn stun_message(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        packet: &[u8],
        tos: u8,
        reply: &mut [u8],
    ) -> FromClient {
        let Ok(message) = Message::parse(packet) else { return FromClient::Drop(DropReason::MalformedStun) };
        // RFC 8489 §6.3: checks that do not depend on the class; what fails them is silently discarded.
        if message.fingerprint() == FingerprintStatus::Wrong {
            return FromClient::Drop(DropReason::WrongFingerprint);
        }
        match (message.class(), message.method()) {
            (Class::Success | Class::Error, _) => FromClient::Drop(DropReason::UnexpectedResponse),
            (Class::Indication, Method::SEND) => self.send_indication(cx.now, tuple, &message, tos),
            (Class::Indication, Method::BINDING) => FromClient::Drop(DropReason::Keepalive),
            (Class::Request, Method::BINDING) => self.binding(cx.now, tuple, &message, reply),
            (Class::Request, Method::ALLOCATE | Method::REFRESH | Method::CREATE_PERMISSION | Method::CHANNEL_BIND) => {
                self.authenticated_request(cx, tuple, &message, reply)
            }
            _ => FromClient::Drop(DropReason::UnsupportedMethod),
        }
    }

    /// RFC 8656 §12.6.
    fn channel_data(&mut self, now: Instant, tuple: &FiveTuple, packet: &[u8], tos: u8) -> FromClient {
        let Some((number, payload)) = channel_data::parse(packet) else {
            return FromClient::Drop(DropReason::MalformedChannelData);
        };
        let Some((id, allocation)) = self.table.find_open(tuple, now) else {
            return FromClient::Drop(DropReason::NoAllocation);
        };
        let bound = allocation.channels.peer(number, now).map(|peer| (peer, AddressFamily::from(&peer)));
        let Some((peer, family)) = bound.filter(|(_, family)| allocation.has(*family, now)) else {
            return FromClient::Drop(DropReason::ChannelNotBound);
        };
        match bound_peer_allowed(&self.shared, peer) {
            Ok(wire) => {
                let (rate, quota) = (self.settings.byte_rate.as_ref(), &self.shared.quota);
                if let Err(limit) = allocation.pass(Direction::ToPeers, payload.len(), now, rate, quota) {
                    return FromClient::Drop(over(limit, allocation, now, &mut self.actions));
                }
                // RFC 8656 §14 and §15: DF is 0 but for a Send indication that asks for it.
                let (tos, dont_fragment) = (tuple.transport.relayed_tos(tos), false);
                FromClient::Relay(ToPeer { relay: id.relay(family), peer: wire, payload, tos, dont_fragment })
            }
            Err(_) => FromClient::Drop(DropReason::PeerForbidden),
        }
    }

    /// Decides about a datagram that `source` sent to a relay socket (RFC 8656 §11.3), with the TOS or Traffic Class
    /// field that it came with.
    ///
    /// Its `length` bytes stand in `buffer` behind [`HEADROOM`](crate::turn::HEADROOM) free bytes and in front of
    /// [`TAILROOM`](crate::turn::TAILROOM) more; the message to the client is made around them.
    pub fn peer_packet(
        &mut self,
        cx: &mut Context<'_>,
        relay: RelayId,
        source: SocketAddr,
        tos: u8,
        buffer: &mut [u8],
        length: usize,
    ) -> FromPeer {
        let routed = self.peer_route(cx.now, relay, source, tos).and_then(|PeerRoute { tuple, framing, tos }| {
            let message = framing.wrap(buffer, length, cx.rng).ok_or(DropReason::TooLarge)?;
            self.admit_to_client(cx.now, relay, length)?;
            Ok(ToClient { tuple, message, tos, outcome: Outcome::RelayedToClient })
        });
        routed.map_or_else(FromPeer::Drop, FromPeer::Relay)
    }

    /// How datagrams that `source` sends to a relay socket, with this TOS or Traffic Class field, reach the client (RFC
    /// 8656 §11.3). Each of them is to be [admitted](Self::admit_to_client).
    ///
    /// # Errors
    /// Why they do not.
    pub fn peer_route(
        &mut self,
        now: Instant,
        relay: RelayId,
        source: SocketAddr,
        tos: u8,
    ) -> Result<PeerRoute, DropReason> {
        let shared = &self.shared;
        let allocation = self.table.find_by_relay(relay, now).ok_or(DropReason::AllocationEnded)?;
        let peer = shared.live.advertised(source);
        if !allocation.permissions.allows(peer.ip(), now) {
            return Err(DropReason::NoPermission);
        }
        let tuple = allocation.tuple;
        // RFC 8656 §12.5: the server MUST use ChannelData where a channel is bound.
        let (allowed, framing) = match allocation.channels.number(peer, now) {
            Some(number) => {
                (bound_peer_allowed(shared, peer), Framing::Channel { number, padded: tuple.transport.is_stream() })
            }
            None => (shared.policy.peer_allowed(&shared.live, peer), Framing::Indication(peer)),
        };
        allowed.map_err(|_| DropReason::PeerForbidden)?;
        Ok(PeerRoute { tuple, framing, tos: tuple.transport.relayed_tos(tos) })
    }

    /// Counts a datagram of `length` bytes that goes to the client.
    ///
    /// # Errors
    /// If it is not to be sent.
    pub fn admit_to_client(&mut self, now: Instant, relay: RelayId, length: usize) -> Result<(), DropReason> {
        self.admit_data(now, relay, Direction::ToClient, length)
    }

    /// Counts a datagram of `length` bytes that goes to a peer on the route that one before it got.
    ///
    /// # Errors
    /// If it is not to be sent.
    pub fn admit_to_peer(&mut self, now: Instant, relay: RelayId, length: usize) -> Result<(), DropReason> {
        self.admit_data(now, relay, Direction::ToPeers, length)
    }

    fn admit_data(
        &mut self,
        now: Instant,
        relay: RelayId,
        direction: Direction,
        length: usize,
    ) -> Result<(), DropReason> {
        let allocation = self.table.get_mut(relay.allocation()).ok_or(DropReason::AllocationEnded)?;
        let (rate, quota) = (self.settings.byte_rate.as_ref(), &self.shared.quota);
        let admitted = allocation.pass(direction, length, now, rate, quota);
        admitted.map_err(|limit| over(limit, allocation, now, &mut self.actions))
    }

    /// Decides about an ICMP error that came back for a datagram sent to `peer` (RFC 8656 §11.5). The Data indication
    /// for the client is written to `buffer`, which has room for [`REPLY_BUFFER`](crate::turn::REPLY_BUFFER) bytes.
    pub fn peer_unreachable(
        &mut self,
        cx: &mut Context<'_>,
        relay: RelayId,
        peer: SocketAddr,
        error: IcmpError,
        buffer: &mut [u8],
    ) -> FromPeer {
        let Some(attribute) = icmp::told(peer, error) else { return FromPeer::Drop(DropReason::IcmpType) };
        let Some(allocation) = self.table.find_by_relay(relay, cx.now) else {
            return FromPeer::Drop(DropReason::AllocationEnded);
        };
        let peer = self.shared.live.advertised(peer);
        if !allocation.permissions.allows(peer.ip(), cx.now) {
            return FromPeer::Drop(DropReason::NoPermission);
        }
        if !allocation.icmp.admits(cx.now) {
            return FromPeer::Drop(DropReason::IcmpLimit);
        }
        let mut transaction = [0; 12];
        cx.rng.fill_bytes(&mut transaction);
        let Some(message) = icmp::data_indication(buffer, peer, attribute, TransactionId::new(transaction)) else {
            return FromPeer::Drop(DropReason::TooLarge);
        };
        FromPeer::Relay(ToClient { tuple: allocation.tuple, message, tos: 0, outcome: Outcome::RelayedIcmp })
    }

    /// Looks at what the bytes of a stream begin with.
    #[must_use]
    pub fn next_frame(&self, bytes: &[u8]) -> Frame {
        let channels = if self.settings.rfc5766_channels { 0x4000..=0x7fff } else { 0x4000..=0x4fff };
        framing::next_frame(bytes, &channels)
    }

    /// A client's connection is gone, and its allocation with it (RFC 8656 §3.1).
    pub fn connection_closed(&mut self, now: Instant, tuple: &FiveTuple) {
        if let Some(id) = self.table.find(tuple) {
            self.end(id, now, EndReason::ConnectionClosed);
        }
    }

    /// Whether a 5-tuple has an allocation.
    #[must_use]
    pub fn has_allocation(&self, tuple: &FiveTuple) -> bool {
        self.table.find(tuple).is_some()
    }

    /// Lets time pass: ends what has expired. To be called about once a second.
    pub fn advance(&mut self, now: Instant) {
        while let Some(id) = self.table.pop_due(now) {
            self.expire(id, now);
        }
        while let Some((_, token, bind)) = self.reserved.pop_front_if(|(deadline, ..)| deadline.has_passed(now)) {
            self.unreserve(token, bind);
        }
        (0..self.pools.len()).for_each(|at| self.collect_returned(at));
    }

    fn expire(&mut self, id: AllocationId, now: Instant) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        if allocation.has_ended(now) {
            return self.end(id, now, EndReason::Expired);
        }
        let expired = |relay: &&Relay| relay.socket == Socket::Open && relay.deadline.has_passed(now);
        let over = allocation.relays.iter().find(expired).map(Relay::family);
        match over {
            Some(family) => self.end_relay(id, family, now, EndReason::Expired),
            None => {
                allocation.expire(now);
                self.table.reschedule(id);
            }
        }
    }

    /// Ends every allocation and every reservation.
    pub fn stop(&mut self, now: Instant) {
        while let Some(id) = self.table.any() {
            self.end(id, now, EndReason::ServerStopped);
        }
        while let Some((_, token, bind)) = self.reserved.pop_front() {
            self.unreserve(token, bind);
        }
    }

    /// What the core wants done next, besides the answer to the last input. To be asked after every input until
    /// there is nothing more.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A relay socket is closed, so that its port can be bound again.
    pub fn relay_closed(&mut self, bind: SocketAddr) {
        debug_assert!(self.closing > 0, "a socket is reported closed once");
        self.closing = self.closing.saturating_sub(1);
        self.give_back(bind);
    }

    /// Live allocations of this worker, those included whose relay socket is being opened.
    #[must_use]
    pub fn allocations(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn end(&mut self, id: AllocationId, now: Instant, reason: EndReason) {
        let Some(allocation) = self.table.remove(id) else { return };
        self.shared.quota.release(allocation.ticket);
        for relay in allocation.relays.iter() {
            match (relay.socket, &allocation.state) {
                (Socket::Open, _) => self.close(id, relay),
                // The shell still has the socket to report on; the port next to it is not its business.
                (Socket::Opening, State::Opening(opening)) => self.release_next(opening.wish, relay.bind()),
                _ => {}
            }
        }
        if let State::Opening(opening) = allocation.state {
            // Nobody was told of the allocation.
            return opening.reserve.into_iter().for_each(|ticket| self.shared.quota.release(ticket));
        }
        self.actions.push_back(Action::Log(Event::AllocationEnded(Box::new(AllocationSummary {
            user: allocation.identity.user().to_owned(),
            tuple: allocation.tuple,
            relay: allocation.relays.told(),
            duration: now.since(allocation.created),
            bytes_to_peers: allocation.bytes_to_peers,
            bytes_to_client: allocation.bytes_to_client,
            reason,
        }))));
    }

    /// Ends one relayed transport address with its permissions and channels (RFC 8656 §8.1), and with the last one the
    /// allocation.
    pub(crate) fn end_relay(&mut self, id: AllocationId, family: AddressFamily, now: Instant, reason: EndReason) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        if !allocation.relays.iter().any(|relay| relay.family() != family && relay.is_live(now)) {
            return self.end(id, now, reason);
        }
        if let Some(relay) = allocation.relays.get_mut(family) {
            relay.socket = Socket::Closed;
            let relay = *relay;
            allocation.expire(now);
            self.close(id, &relay);
        }
        self.table.reschedule(id);
    }

    fn close(&mut self, id: AllocationId, relay: &Relay) {
        self.shared.live.set(relay.bind(), false);
        self.closing += 1;
        self.actions.push_back(Action::Close(id.relay(relay.family())));
    }

    /// Returns a port that a socket of this worker was or was to be bound to.
    pub(crate) fn give_back(&mut self, bind: SocketAddr) {
        match self.pool_of(bind) {
            Some(pool) => pool.give_back(bind.port()),
            None => self.return_borrowed(bind),
        }
    }

    /// Returns a port that somebody else turned out to use.
    pub(crate) fn set_aside(&mut self, bind: SocketAddr, now: Instant) {
        match self.pool_of(bind) {
            Some(pool) => pool.set_aside(bind.port(), now),
            None => self.return_borrowed(bind),
        }
    }

    fn return_borrowed(&mut self, bind: SocketAddr) {
        debug_assert!(self.borrowed > 0, "what is no port of this worker was claimed");
        self.borrowed = self.borrowed.saturating_sub(1);
        self.shared.reservations.give_back(bind);
    }

    /// Releases the port next to an even one that was to be reserved with it.
    pub(crate) fn release_next(&mut self, wish: Wish, even: SocketAddr) {
        let next = SocketAddr::new(even.ip(), even.port() | 1);
        if let (Wish::EvenAndNext, Some(pool)) = (wish, self.pool_of(next)) {
            pool.release(next.port());
        }
    }

    /// Ends a reservation of this worker, unless it has been claimed.
    pub(crate) fn unreserve(&mut self, token: Token, bind: SocketAddr) {
        let Some(ticket) = self.shared.reservations.claim(token) else { return };
        self.shared.quota.release(ticket);
        if let Some(pool) = self.pool_of(bind) {
            pool.release(bind.port());
        }
    }

    /// Takes back the ports of one relay address that other workers are done with.
    pub(crate) fn collect_returned(&mut self, at: usize) {
        if let (Some(relay), Some(pool)) = (self.settings.relays.get(at), self.pools.get_mut(at)) {
            self.shared.reservations.collect(relay.bind, &relay.ports, |port| pool.release(port));
        }
    }

    /// The pool of a port, if it is one of this worker's.
    pub(crate) fn pool_of(&mut self, bind: SocketAddr) -> Option<&mut PortPool> {
        let at = self.settings.relays.iter().position(|relay| relay.bind == bind.ip())?;
        self.pools.get_mut(at).filter(|pool| pool.owns(bind.port()))
    }

    /// A socket that the shell opened for an allocation that is gone.
    pub(crate) fn count_abandoned(&mut self) {
        self.closing += 1;
    }

    /// Panics unless the tables agree with each other. For tests, after every step.
    ///
    /// `opening` is the number of sockets that the shell was asked to open and has not reported on.
    ///
    /// # Panics
    /// If an invariant does not hold.
    pub fn check_invariants(&self, opening: usize) {
        self.table.check_invariants();
        let mut open = 0;
        for allocation in self.table.iter() {
            assert!(allocation.permissions.len() <= self.settings.permissions_per_allocation, "permissions are capped");
            assert!(allocation.channels.len() <= self.settings.channels_per_allocation, "channels are capped");
            for relay in allocation.relays.iter().filter(|relay| relay.socket == Socket::Open) {
                open += 1;
                assert!(self.shared.live.live(relay.relayed()).is_some(), "an open relayed transport address is live");
                let at = self.settings.relays.iter().position(|known| known.bind == relay.bind().ip());
                let pool = at.and_then(|at| self.pools.get(at)).expect("it is on a relay address of ours");
                let port = relay.bind().port();
                assert!(pool.is_taken(port) || !pool.owns(port), "a port in use is not in the pool");
            }
        }
        let taken: usize = self.pools.iter().map(PortPool::taken).sum();
        assert_eq!(taken + self.borrowed, open + opening + self.closing, "no port is leaked");
    }

    /// Ports of this worker that are reserved, by allocations that are open or being opened, or with other workers. For
    /// tests.
    #[must_use]
    pub fn reserved_ports(&self) -> usize {
        self.pools.iter().map(PortPool::reserved).sum()
    }

    /// Ports of other workers that this one's sockets are bound to. For tests.
    #[must_use]
    pub fn borrowed_ports(&self) -> usize {
        self.borrowed
    }
}

/// Application data is dropped because of a limit, and that is told now and then.
pub(crate) fn over(
    limit: Limit,
    allocation: &mut Allocation,
    now: Instant,
    actions: &mut VecDeque<Action>,
) -> DropReason {
    actions.extend(allocation.complaint(limit, now));
    match limit {
        Limit::UserBandwidth => DropReason::UserBandwidth,
        _ => DropReason::AllocationBandwidth,
    }
}

/// Whether data may flow between a client and a peer whose channel binding the policy has admitted. What can have
/// changed since is whether a relayed address of our own is live.
fn bound_peer_allowed(shared: &Shared, peer: SocketAddr) -> Result<SocketAddr, Denial> {
    if shared.live.is_relay_address(peer.ip()) { shared.policy.peer_allowed(&shared.live, peer) } else { Ok(peer) }
}

/// Whether an answer can be sent there at all.
fn is_usable(client: SocketAddr) -> bool {
    let ip = client.ip();
    client.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::from([255; 4])
}
