//! The path of packets: demultiplexing, application data in both directions, ICMP errors.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::burst::{CachedRoute, ClientBurst, PeerBurst, PeerRoute};
use super::contract::{
    Action, Context, FiveTuple, FromClient, FromPeer, IcmpError, IcmpIndication, SocketId, ToClient, ToPeer,
};
use super::event::{Event, Traffic};
use super::limit::Limit;
use super::outcome::DropReason;
use super::protocol::channel_data::{self, Framing, HEADROOM};
use super::protocol::control::is_turn_message;
use super::protocol::icmp;
use super::protocol::request_method::RequestMethod;
use super::server::Server;
use super::shared::quota::Direction;
use super::tables::allocation::Allocation;
use super::time::Instant;
use crate::ip_fields::IpFields;
use crate::stun::attribute::AddressFamily;
use crate::stun::{Class, FingerprintStatus, Message, Method, ParseError, TransactionId};
use crate::transport::Transport;

/// The maximum number of attributes in a message, in addition to one XOR-PEER-ADDRESS for each permission. Clients send
/// fewer than 20. A type may be repeated (RFC 8489 §14).
const MAX_ATTRIBUTES: usize = 64;
/// The minimum number of XOR-PEER-ADDRESS attributes that are read, even if fewer permissions are allowed, so that a
/// request for more of them gets its error response.
const MAX_PEERS: usize = 256;

impl Server {
    /// Decides about the next packet of a burst from a client: a UDP datagram, one segment of a merged datagram, or a
    /// frame of a stream. Returns `None` at the end of the burst.
    ///
    /// The burst and the payload of the decision are in `buffer`. A response is written to `response`, which has room
    /// for [`RESPONSE_BUFFER`](super::RESPONSE_BUFFER) bytes.
    #[inline]
    pub fn client_packet(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        buffer: &[u8],
        burst: &mut ClientBurst,
        response: &mut [u8],
    ) -> Option<FromClient> {
        let place = burst.next()?;
        let packet = buffer.get(place.clone()).unwrap_or_default();
        let header: [u8; 4] = packet.first_chunk().copied().unwrap_or_default();
        if let Some(cached) = burst.cached.as_ref().filter(|last| last.header == header && last.length == packet.len())
        {
            let route = moved(&cached.route, place.start);
            if is_turn_message(buffer.get(route.payload.clone()).unwrap_or_default()) {
                return Some(FromClient::Drop(self.dropped(route.socket, DropReason::RelayedTurn)));
            }
            return Some(match self.admit_data(cx.now, route.socket, Direction::ToPeers, route.payload.len()) {
                Ok(()) => FromClient::Relay(route),
                Err(reason) => FromClient::Drop(self.dropped(route.socket, reason)),
            });
        }
        burst.cached = None;
        let decision = self.decide(cx, tuple, packet, burst.fields, response);
        let FromClient::Relay(route) = decision else { return Some(decision) };
        let absolute = moved(&route, place.start);
        // A STUN message (0–3) has a new transaction ID each time, so its route is not cached.
        if !matches!(header, [0..=3, ..]) {
            burst.cached = Some(CachedRoute { header, length: packet.len(), route });
        }
        Some(FromClient::Relay(absolute))
    }

    /// Decides about one packet. The payload range of a route is relative to the start of the packet.
    pub(crate) fn decide(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        packet: &[u8],
        fields: IpFields,
        response: &mut [u8],
    ) -> FromClient {
        if !is_usable(tuple.client) {
            return FromClient::Drop(DropReason::UnusableSource);
        }
        // RFC 8656 §12, Table 3.
        match packet.first() {
            Some(0..=3) => self.stun_message(cx, tuple, packet, fields, response),
            Some(first) if self.snapshot.compat.channels.contains_first_byte(*first) => {
                self.channel_data(cx.now, tuple, packet, fields)
            }
            _ => FromClient::Drop(DropReason::UnknownProtocol),
        }
    }

    fn stun_message(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        packet: &[u8],
        fields: IpFields,
        response: &mut [u8],
    ) -> FromClient {
        // Each look-up reads the attributes before the one it finds, so every attribute costs time.
        let most = MAX_ATTRIBUTES + self.snapshot.limits.permissions_per_allocation.max(MAX_PEERS);
        let message = match Message::parse_at_most(packet, most) {
            Ok(message) => message,
            Err(ParseError::TooManyAttributes) => return FromClient::Drop(DropReason::TooManyAttributes),
            Err(_) => return FromClient::Drop(DropReason::MalformedStun),
        };
        // RFC 8489 §6.3: checks that do not depend on the class. A message that fails them is silently discarded.
        if message.fingerprint() == FingerprintStatus::Wrong {
            return FromClient::Drop(DropReason::WrongFingerprint);
        }
        match message.class() {
            Class::Success | Class::Error => FromClient::Drop(DropReason::UnexpectedResponse),
            Class::Indication => match message.method() {
                Method::SEND => self.send_indication(cx.now, tuple, packet, &message, fields),
                Method::BINDING => FromClient::Drop(DropReason::Keepalive),
                _ => FromClient::Drop(DropReason::UnsupportedMethod),
            },
            Class::Request
                if tuple.transport == Transport::Udp
                    && message.method() != Method::BINDING
                    && self.snapshot.is_own_socket(tuple.client) =>
            {
                FromClient::Drop(DropReason::RelayedClient)
            }
            Class::Request => match RequestMethod::of(message.method()) {
                Some(method) => self.request(cx, tuple, method, &message, response),
                None => FromClient::Drop(DropReason::UnsupportedMethod),
            },
        }
    }

    /// Relays a ChannelData message (RFC 8656 §12.6).
    fn channel_data(&mut self, now: Instant, tuple: &FiveTuple, packet: &[u8], fields: IpFields) -> FromClient {
        let Some((number, payload)) = channel_data::parse(packet) else {
            return FromClient::Drop(DropReason::MalformedChannelData);
        };
        let Some((id, allocation)) = self.table.find_open(tuple, now) else {
            return FromClient::Drop(DropReason::NoAllocation);
        };
        let Some(peer) = allocation.channels.peer(number, now) else {
            return FromClient::Drop(allocation.dropped(DropReason::ChannelNotBound));
        };
        let Some((index, _)) = allocation.relays.of_family(AddressFamily::from(&peer), now) else {
            return FromClient::Drop(allocation.dropped(DropReason::ChannelNotBound));
        };
        let Ok(peer) = self.review.bound_peer_allowed(&self.snapshot, &allocation.identity, peer) else {
            return FromClient::Drop(allocation.dropped(DropReason::PeerForbidden));
        };
        if is_turn_message(packet.get(payload.clone()).unwrap_or_default()) {
            return FromClient::Drop(allocation.dropped(DropReason::RelayedTurn));
        }
        let Some(fields) = tuple.transport.relayed_fields(fields) else {
            return FromClient::Drop(allocation.dropped(DropReason::HopLimit));
        };
        let socket = id.socket(index);
        if let Err(reason) = self.admit_data(now, socket, Direction::ToPeers, payload.len()) {
            return FromClient::Drop(self.dropped(socket, reason));
        }
        // RFC 8656 §14 and §15: only a Send indication can request DF.
        FromClient::Relay(ToPeer { socket, peer, payload, fields, dont_fragment: false })
    }

    /// Decides about the next datagram of a burst that a relay socket received (RFC 8656 §11.3). Returns `None` at the
    /// end of the burst.
    ///
    /// The burst is in `buffer`. The header of the message to the client is written to the end of `headroom`.
    #[inline]
    pub fn peer_packet(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        buffer: &[u8],
        burst: &mut PeerBurst,
        headroom: &mut [u8; HEADROOM],
    ) -> Option<FromPeer> {
        let payload = burst.next()?;
        let (source, fields) = (burst.source, burst.fields);
        let route = *burst.decided.get_or_insert_with(|| self.peer_route(cx.now, socket, source, fields));
        let route = match route {
            Ok(_) if is_turn_message(buffer.get(payload.clone()).unwrap_or_default()) => Err(DropReason::RelayedTurn),
            route => route,
        };
        Some(match self.message_to_client(cx, socket, route, payload, headroom) {
            Ok(message) => FromPeer::Relay(message),
            Err(reason) => FromPeer::Drop(self.dropped(socket, reason)),
        })
    }

    #[inline]
    fn message_to_client(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        route: Result<PeerRoute, DropReason>,
        payload: Range<usize>,
        headroom: &mut [u8; HEADROOM],
    ) -> Result<ToClient, DropReason> {
        let PeerRoute { tuple, framing, fields } = route?;
        let header = framing.write_header(payload.len(), cx.rng, headroom).ok_or(DropReason::TooLarge)?;
        self.admit_data(cx.now, socket, Direction::ToClient, payload.len())?;
        Ok(ToClient { tuple, header, padding: framing.padding(payload.len()), payload, fields })
    }

    fn peer_route(
        &mut self,
        now: Instant,
        socket: SocketId,
        source: SocketAddr,
        fields: IpFields,
    ) -> Result<PeerRoute, DropReason> {
        let snapshot = &self.snapshot;
        let allocation = self.table.find_by_socket(socket, now).ok_or(DropReason::AllocationEnded)?;
        let peer = snapshot.relays.advertised(source);
        let tuple = allocation.tuple;
        // RFC 8656 §12.5: the server MUST use ChannelData where a channel is bound. §9 also requires a permission, which
        // lasts half as long as the channel. Some clients refresh their channels only, so the channel suffices here.
        let (allowed, framing) = match allocation.channels.number(peer, now) {
            Some(number) => {
                let padded = tuple.transport.is_framed();
                (
                    self.review.bound_peer_allowed(snapshot, &allocation.identity, peer),
                    Framing::Channel { number, padded },
                )
            }
            None if !allocation.permissions.allows(peer.ip(), now) => return Err(DropReason::NoPermission),
            None => {
                (self.review.permitted_peer_allowed(snapshot, &allocation.identity, peer), Framing::Indication(peer))
            }
        };
        allowed.map_err(|_| DropReason::PeerForbidden)?;
        let fields = tuple.transport.relayed_fields(fields).ok_or(DropReason::HopLimit)?;
        Ok(PeerRoute { tuple, framing, fields })
    }

    /// Charges a datagram of `length` bytes to the rates of its allocation and user.
    pub(crate) fn admit_data(
        &mut self,
        now: Instant,
        socket: SocketId,
        direction: Direction,
        length: usize,
    ) -> Result<(), DropReason> {
        let limits = &self.snapshot.limits;
        if limits.byte_rate.is_none() && limits.user_rates.bytes.is_none() && self.gauges.test_links == 0 {
            return Ok(());
        }
        let allocation = self.table.get_mut(socket.allocation()).ok_or(DropReason::AllocationEnded)?;
        allocation.admit_data(direction, length, now, limits, &self.ledger.quota).map_err(|limit| {
            self.actions.extend(allocation.report_limit(socket.allocation(), limit, now));
            match limit {
                Limit::UserBandwidth => DropReason::UserBandwidth,
                _ => DropReason::AllocationBandwidth,
            }
        })?;
        match allocation.identity.test_link() {
            Some(link) if !self.ledger.test_links.take_datagram(link, length as u64) => Err(DropReason::TestLinkBytes),
            _ => Ok(()),
        }
    }

    /// Counts a packet of an allocation that is dropped, and returns the reason.
    #[cold]
    pub(crate) fn dropped(&mut self, socket: SocketId, reason: DropReason) -> DropReason {
        self.count_drops(socket, reason, 1);
        reason
    }

    /// Counts packets of an allocation that the shell has dropped. If the allocation has ended, they are not counted.
    #[cold]
    pub fn count_drops(&mut self, socket: SocketId, reason: DropReason, packets: u64) {
        if let Some(allocation) = self.table.get_mut(socket.allocation()) {
            allocation.drops.add(reason, packets);
        }
    }

    /// Credits relayed packets to an allocation: packets that the shell has sent, or that another program has relayed
    /// with a [`ChannelRoute`](super::ChannelRoute). `bytes` is the amount of application data.
    pub fn credit(&mut self, socket: SocketId, direction: Direction, packets: u64, bytes: u64) {
        let id = socket.allocation();
        let traffic = match self.table.get_mut(id) {
            Some(allocation) => Some(&mut allocation.traffic),
            // The allocation ended after the decision and before the packets were sent.
            None => self.actions.iter_mut().rev().find_map(|action| match action {
                Action::Log(Event::AllocationEnded(summary)) if summary.id == id => Some(&mut summary.traffic),
                _ => None,
            }),
        };
        let Some(Traffic { packets_to_peers, bytes_to_peers, packets_to_client, bytes_to_client }) = traffic else {
            return;
        };
        let (packet_count, byte_count) = match direction {
            Direction::ToPeers => (packets_to_peers, bytes_to_peers),
            Direction::ToClient => (packets_to_client, bytes_to_client),
        };
        *packet_count += packets;
        *byte_count += bytes;
    }

    /// Gives the rates of an allocation and its user back what relayed packets were charged that the shell has not sent.
    /// `bytes` is the amount of application data. If the allocation has ended, the charge remains.
    pub fn refund(&mut self, socket: SocketId, direction: Direction, bytes: u64) {
        let limits = &self.snapshot.limits;
        if limits.byte_rate.is_none() && limits.user_rates.bytes.is_none() && self.gauges.test_links == 0 {
            return;
        }
        let Some(allocation) = self.table.get_mut(socket.allocation()) else { return };
        if let Some(link) = allocation.identity.test_link() {
            self.ledger.test_links.give_back(link, bytes);
        }
        if let Some(rate) = &limits.byte_rate {
            allocation.meter.bucket(direction).give_back(rate, bytes);
        }
        self.ledger.quota.refund_bytes(&allocation.ticket, direction, limits.user_rates.bytes.as_ref(), bytes);
    }

    /// Decides about an ICMP error for a datagram to `peer` (RFC 8656 §11.5). The Data indication for the
    /// client is written to `buffer`, which has room for [`RESPONSE_BUFFER`](super::RESPONSE_BUFFER) bytes.
    ///
    /// # Errors
    /// Returns why the client gets no indication.
    pub fn peer_unreachable(
        &mut self,
        cx: &mut Context<'_>,
        socket: SocketId,
        peer: SocketAddr,
        error: IcmpError,
        buffer: &mut [u8],
    ) -> Result<IcmpIndication, DropReason> {
        let attribute = icmp::attribute(peer, error).ok_or(DropReason::IcmpType)?;
        let allocation = self.table.find_by_socket(socket, cx.now).ok_or(DropReason::AllocationEnded)?;
        let peer = self.snapshot.relays.advertised(peer);
        // As for data: a channel that is bound to exactly this peer suffices.
        let bound = allocation.channels.number(peer, cx.now).is_some();
        if !bound && !allocation.permissions.allows(peer.ip(), cx.now) {
            return Err(allocation.dropped(DropReason::NoPermission));
        }
        if !self.snapshot.compat.icmp_indications.include(allocation.shows_rfc8656) {
            return Err(allocation.dropped(DropReason::IcmpWithheld));
        }
        if !allocation.icmp.admits(cx.now) {
            return Err(allocation.dropped(DropReason::IcmpLimit));
        }
        let mut transaction = [0; 12];
        cx.rng.fill_bytes(&mut transaction);
        let length = icmp::data_indication(buffer, peer, attribute, TransactionId::new(transaction));
        let length = length.ok_or_else(|| allocation.dropped(DropReason::TooLarge))?;
        Ok(IcmpIndication { tuple: allocation.tuple, length })
    }
}

impl Allocation {
    /// Charges application data to the rates, or returns the limit that it exceeds.
    fn admit_data(
        &mut self,
        direction: Direction,
        bytes: usize,
        now: Instant,
        limits: &super::Limits,
        quota: &super::Quota,
    ) -> Result<(), Limit> {
        let bucket = self.meter.bucket(direction);
        let charged = match &limits.byte_rate {
            Some(rate) => bucket.offer(rate, now, bytes).ok_or(Limit::AllocationBandwidth)?,
            None => *bucket,
        };
        // Data above the limit of the user is not charged to the allocation.
        if !quota.admits_bytes(&self.ticket, direction, limits.user_rates.bytes.as_ref(), now, bytes) {
            return Err(Limit::UserBandwidth);
        }
        *bucket = charged;
        Ok(())
    }
}

/// Returns the route with its payload moved by `by` bytes.
fn moved(route: &ToPeer, by: usize) -> ToPeer {
    let Range { start, end } = route.payload;
    ToPeer { payload: by + start..by + end, ..route.clone() }
}

/// Whether a response can be sent to this address.
fn is_usable(client: SocketAddr) -> bool {
    let ip = client.ip();
    client.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::from([255; 4])
}
