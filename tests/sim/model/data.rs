//! Application data in both directions (RFC 8656 §11, §12).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use turnserver::stun::attribute::{Data, XorPeerAddress};
use turnserver::stun::{AttributeType, Message};
use turnserver::turn::{
    Action, ChannelRoute, Deadline, Direction, DropReason, Event, FiveTuple, IcmpError, IcmpIndications, Instant,
    SocketId, Traffic,
};

use super::requests::unknown;
use super::{Alloc, Expect, ExpectPeer, Model, Now};

impl Model {
    /// RFC 8656 §12.6.
    pub(super) fn channel_data(&mut self, now: Now, tuple: &FiveTuple, bytes: &[u8]) -> Expect {
        if bytes.len() < 4 || bytes.len() - 4 < usize::from(bytes[2]) * 256 + usize::from(bytes[3]) {
            return Expect::Drop(DropReason::MalformedChannelData);
        }
        let number = u16::from(bytes[0]) * 256 + u16::from(bytes[1]);
        let payload = &bytes[4..4 + usize::from(bytes[2]) * 256 + usize::from(bytes[3])];
        let Some(at) = self.live(now, tuple) else { return Expect::Drop(DropReason::NoAllocation) };
        let channel = self.allocs[at].channels.iter().find(|(bound, _, until)| *bound == number && *until > now.ms);
        let Some((_, peer, _)) = channel.filter(|(_, peer, _)| self.allocs[at].has(now, peer.is_ipv6())) else {
            return Expect::Drop(DropReason::ChannelNotBound);
        };
        match self.peer(*peer) {
            Ok(wire) => self.relay_data(now, at, wire, payload, false),
            Err(_) => Expect::Drop(DropReason::PeerForbidden),
        }
    }

    /// RFC 8656 §11.2.
    pub(super) fn send_indication(&mut self, now: Now, tuple: &FiveTuple, message: &Message<'_>) -> Expect {
        let Some(at) = self.live(now, tuple) else { return Expect::Drop(DropReason::NoAllocation) };
        let malformed = Expect::Drop(DropReason::MalformedIndication);
        if !unknown(message).is_empty() {
            return malformed;
        }
        let (Ok(Some(XorPeerAddress(peer))), Ok(Some(Data(payload)))) = (message.get(), message.get()) else {
            return malformed;
        };
        if peer.port() == 0 || !self.allocs[at].has(now, peer.is_ipv6()) {
            return malformed;
        }
        if !self.is_permitted(now, at, peer) {
            return Expect::Drop(DropReason::NoPermission);
        }
        match self.peer(peer) {
            Ok(wire) => {
                // RFC 8656 §13: DONT-FRAGMENT is ignored between two families and within IPv6.
                let v4_only = tuple.client.is_ipv4() && peer.is_ipv4();
                let dont_fragment = v4_only && message.contains(AttributeType::DONT_FRAGMENT);
                self.relay_data(now, at, wire, payload, dont_fragment)
            }
            Err(_) => Expect::Drop(DropReason::PeerForbidden),
        }
    }

    fn relay_data(&mut self, now: Now, at: usize, peer: SocketAddr, payload: &[u8], dont_fragment: bool) -> Expect {
        if is_turn(payload) {
            return Expect::Drop(DropReason::RelayedTurn);
        }
        if self.hop_limit <= 1 {
            return Expect::Drop(DropReason::HopLimit);
        }
        if let Err(reason) = self.admit_data(now, at, 0, payload.len()) {
            return Expect::Drop(reason);
        }
        let relay = self.allocs[at].address(peer.is_ipv6()).unwrap().id;
        Expect::ToPeer { relay, peer, payload: payload.to_vec(), dont_fragment }
    }

    fn is_permitted(&self, now: Now, at: usize, peer: SocketAddr) -> bool {
        self.allocs[at].permissions.iter().any(|(address, until)| *address == peer.ip() && *until > now.ms)
    }

    /// Whether a channel is bound to exactly this peer.
    fn is_bound(&self, now: Now, at: usize, peer: SocketAddr) -> bool {
        self.allocs[at].channels.iter().any(|(_, bound, until)| *bound == peer && *until > now.ms)
    }

    pub(crate) fn has_channel_without_permission(&self, now: Now, worker: usize) -> bool {
        let allocs = self.allocs.iter().enumerate().filter(|(_, alloc)| alloc.worker == worker);
        let mut channels = allocs.flat_map(|(at, alloc)| alloc.channels.iter().map(move |channel| (at, channel)));
        channels.any(|(at, (_, peer, until))| *until > now.ms && !self.is_permitted(now, at, *peer))
    }

    /// RFC 8656 §11.3, §12.7.
    pub(crate) fn peer_packet(
        &mut self,
        now: Now,
        worker: usize,
        relay: SocketId,
        source: SocketAddr,
        payload: &[u8],
    ) -> ExpectPeer {
        let length = payload.len();
        let Some(at) = self.alloc_of(now, worker, relay) else {
            return ExpectPeer::Drop(DropReason::AllocationEnded);
        };
        let peer = self.advertised_source(source);
        if !self.is_permitted(now, at, peer) && !self.is_bound(now, at, peer) {
            return ExpectPeer::Drop(DropReason::NoPermission);
        }
        if self.peer(peer).is_err() {
            return ExpectPeer::Drop(DropReason::PeerForbidden);
        }
        if self.hop_limit <= 1 {
            return ExpectPeer::Drop(DropReason::HopLimit);
        }
        if is_turn(payload) {
            return ExpectPeer::Drop(DropReason::RelayedTurn);
        }
        let alloc = &self.allocs[at];
        let channel = alloc.channels.iter().find(|(_, bound, until)| *bound == peer && *until > now.ms);
        if channel.is_none() {
            // The message's length field has 16 bits, and is a multiple of four.
            let address = if peer.is_ipv6() { 24 } else { 12 };
            if address + 4 + length.next_multiple_of(4) > 0xffff {
                return ExpectPeer::Drop(DropReason::TooLarge);
            }
        }
        let (tuple, channel) = (alloc.tuple, channel.copied());
        if let Err(reason) = self.admit_data(now, at, 1, length) {
            return ExpectPeer::Drop(reason);
        }
        match channel {
            Some((number, _, _)) => ExpectPeer::Channel(tuple, number),
            None => ExpectPeer::Indication(tuple, peer),
        }
    }

    /// Credits a packet to its allocation, or to the announcement of its end. Returns whether the allocation has ended.
    pub(crate) fn credit(&mut self, worker: usize, relay: SocketId, direction: Direction, bytes: u64) -> bool {
        let id = relay.allocation();
        let has = |alloc: &&mut Alloc| {
            alloc.worker == worker && alloc.addresses.iter().any(|address| address.id.allocation() == id)
        };
        let traffic = match self.allocs.iter_mut().find(has) {
            Some(alloc) => &mut alloc.traffic,
            None => {
                let summary = self.announced.iter_mut().find_map(|action| match action {
                    Action::Log(Event::AllocationEnded(summary)) if summary.id == id => Some(summary),
                    _ => None,
                });
                let Some(summary) = summary else { return false };
                add(&mut summary.traffic, direction, bytes);
                return true;
            }
        };
        add(traffic, direction, bytes);
        false
    }

    /// Returns the bound channels of a worker, and their expiry.
    pub(crate) fn routes(&self, now: Now, worker: usize) -> Vec<ChannelRoute> {
        let mut routes = Vec::new();
        for alloc in self.allocs.iter().filter(|alloc| alloc.worker == worker && alloc.open) {
            for (channel, peer, until) in &alloc.channels {
                let address = alloc.address(peer.is_ipv6()).filter(|_| alloc.has(now, peer.is_ipv6()));
                let Some(address) = address else { continue };
                let expires = *until.min(&address.deadline);
                if expires <= now.ms {
                    continue;
                }
                let start = Instant::from_elapsed(Duration::ZERO);
                routes.push(ChannelRoute {
                    tuple: alloc.tuple,
                    channel: *channel,
                    socket: address.id,
                    relay: address.bind,
                    peer: *peer,
                    expires: Deadline::after(start, Duration::from_millis(expires)),
                });
            }
        }
        routes.sort_by_key(|route| (route.relay, route.channel));
        routes
    }

    /// Removes what a new policy denies.
    pub(crate) fn review(&mut self, now: Now, worker: usize) {
        let setup = self.setup.clone();
        // A relay address is allowed, whether or not it is in use.
        let allowed = |address: IpAddr| setup.is_relay_address(address) || setup.denial(address).is_none();
        for alloc in self.allocs.iter_mut().filter(|alloc| alloc.worker == worker) {
            if !alloc.open || alloc.has_ended(now) {
                continue;
            }
            alloc.purge(now);
            let before = (alloc.permissions.len(), alloc.channels.len());
            alloc.permissions.retain(|(address, _)| allowed(*address));
            alloc.channels.retain(|(_, peer, _)| allowed(peer.ip()));
            let (permissions, channels) = (before.0 - alloc.permissions.len(), before.1 - alloc.channels.len());
            if permissions + channels > 0 {
                let (id, user, tuple) = (alloc.id(), alloc.user.clone(), alloc.tuple);
                self.announced.push(Action::Log(Event::PeersRevoked { id, user, tuple, permissions, channels }));
            }
        }
    }

    /// Returns the allocation of a relay socket.
    fn alloc_of(&self, now: Now, worker: usize, relay: SocketId) -> Option<usize> {
        let has = |alloc: &Alloc| {
            [false, true]
                .iter()
                .any(|v6| alloc.has(now, *v6) && alloc.address(*v6).is_some_and(|address| address.id == relay))
        };
        self.allocs.iter().position(|alloc| alloc.worker == worker && has(alloc))
    }

    /// RFC 8656 §11.5.
    pub(crate) fn peer_unreachable(
        &mut self,
        now: Now,
        worker: usize,
        relay: SocketId,
        sent_to: SocketAddr,
        error: IcmpError,
    ) -> ExpectPeer {
        let types: &[u8] = if sent_to.is_ipv4() { &[3, 11] } else { &[1, 2, 3] };
        if !types.contains(&error.kind) {
            return ExpectPeer::Drop(DropReason::IcmpType);
        }
        let Some(at) = self.alloc_of(now, worker, relay) else {
            return ExpectPeer::Drop(DropReason::AllocationEnded);
        };
        let peer = self.advertised_source(sent_to);
        if !self.is_permitted(now, at, peer) && !self.is_bound(now, at, peer) {
            return ExpectPeer::Drop(DropReason::NoPermission);
        }
        let alloc = &mut self.allocs[at];
        let withheld = match self.setup.icmp_indications {
            IcmpIndications::Auto => !alloc.modern,
            choice => choice == IcmpIndications::Never,
        };
        if withheld {
            return ExpectPeer::Drop(DropReason::IcmpWithheld);
        }
        if alloc.icmp.0 != now.ms / 1_000 {
            alloc.icmp = (now.ms / 1_000, 0);
        }
        alloc.icmp.1 += 1;
        if alloc.icmp.1 > 10 {
            return ExpectPeer::Drop(DropReason::IcmpLimit);
        }
        let too_big = if peer.is_ipv4() { (error.kind, error.code) == (3, 4) } else { error.kind == 2 };
        ExpectPeer::Icmp(alloc.tuple, peer, if too_big { error.mtu } else { 0 })
    }
}

/// Whether a payload is a message of TURN: a STUN header whose method is neither Binding nor unknown.
fn is_turn(payload: &[u8]) -> bool {
    if payload.len() < 8 || payload[0] >= 4 || payload[4..8] != [0x21, 0x12, 0xa4, 0x42] {
        return false;
    }
    // The two bits of the class are between those of the method.
    let (high, low) = (usize::from(payload[0]), usize::from(payload[1]));
    let method = (low & 0xf) + ((low >> 5) << 4) + ((high >> 1) << 7);
    [3, 4, 6, 7, 8, 9, 10, 11, 12].contains(&method)
}

fn add(traffic: &mut Traffic, direction: Direction, bytes: u64) {
    let (packets, count) = match direction {
        Direction::ToPeers => (&mut traffic.packets_to_peers, &mut traffic.bytes_to_peers),
        Direction::ToClient => (&mut traffic.packets_to_client, &mut traffic.bytes_to_client),
    };
    *packets += 1;
    *count += bytes;
}
