//! Application data, both ways (RFC 8656 §11, §12).

use std::net::SocketAddr;

use turnserver::stun::attribute::{Data, XorPeerAddress};
use turnserver::stun::{AttributeType, Message};
use turnserver::turn::{DropReason, FiveTuple, IcmpError, RelayId};

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
                // RFC 8656 §13: between two families, or within IPv6, it is ignored.
                let v4_only = tuple.client.is_ipv4() && peer.is_ipv4();
                let dont_fragment = v4_only && message.contains(AttributeType::DONT_FRAGMENT);
                self.relay_data(now, at, wire, payload, dont_fragment)
            }
            Err(_) => Expect::Drop(DropReason::PeerForbidden),
        }
    }

    fn relay_data(&mut self, now: Now, at: usize, peer: SocketAddr, payload: &[u8], dont_fragment: bool) -> Expect {
        if let Err(reason) = self.pass(now, at, 0, payload.len()) {
            return Expect::Drop(reason);
        }
        let alloc = &mut self.allocs[at];
        alloc.to_peers += payload.len() as u64;
        let relay = alloc.address(peer.is_ipv6()).unwrap().id;
        Expect::ToPeer { relay, peer, payload: payload.to_vec(), dont_fragment }
    }

    fn is_permitted(&self, now: Now, at: usize, peer: SocketAddr) -> bool {
        self.allocs[at].permissions.iter().any(|(address, until)| *address == peer.ip() && *until > now.ms)
    }

    /// RFC 8656 §11.3, §12.7.
    pub(crate) fn peer_packet(
        &mut self,
        now: Now,
        worker: usize,
        relay: RelayId,
        source: SocketAddr,
        length: usize,
    ) -> ExpectPeer {
        let Some(at) = self.alloc_of(now, worker, relay) else {
            return ExpectPeer::Drop(DropReason::AllocationEnded);
        };
        let peer = self.known_as(source);
        if !self.is_permitted(now, at, peer) {
            return ExpectPeer::Drop(DropReason::NoPermission);
        }
        if self.peer(peer).is_err() {
            return ExpectPeer::Drop(DropReason::PeerForbidden);
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
        if let Err(reason) = self.pass(now, at, 1, length) {
            return ExpectPeer::Drop(reason);
        }
        self.allocs[at].to_client += length as u64;
        match channel {
            Some((number, _, _)) => ExpectPeer::Channel(tuple, number),
            None => ExpectPeer::Indication(tuple, peer),
        }
    }

    /// The allocation whose relay socket that is.
    fn alloc_of(&self, now: Now, worker: usize, relay: RelayId) -> Option<usize> {
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
        relay: RelayId,
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
        let peer = self.known_as(sent_to);
        if !self.is_permitted(now, at, peer) {
            return ExpectPeer::Drop(DropReason::NoPermission);
        }
        let alloc = &mut self.allocs[at];
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
