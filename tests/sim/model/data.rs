//! Application data, both ways (RFC 8656 §11, §12).

use std::net::SocketAddr;

use turnserver::stun::Message;
use turnserver::stun::attribute::{Data, XorPeerAddress};
use turnserver::turn::{DropReason, FiveTuple, RelayId};

use super::requests::unknown;
use super::{Expect, ExpectPeer, Model, Now};

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
        let Some((_, peer, _)) = channel else { return Expect::Drop(DropReason::ChannelNotBound) };
        match self.peer(*peer) {
            Ok(wire) => self.relay_data(at, wire, payload),
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
        if peer.port() == 0 || peer.is_ipv6() != self.allocs[at].bind.is_ipv6() {
            return malformed;
        }
        if !self.is_permitted(now, at, peer) {
            return Expect::Drop(DropReason::NoPermission);
        }
        match self.peer(peer) {
            Ok(wire) => self.relay_data(at, wire, payload),
            Err(_) => Expect::Drop(DropReason::PeerForbidden),
        }
    }

    fn relay_data(&mut self, at: usize, peer: SocketAddr, payload: &[u8]) -> Expect {
        let alloc = &mut self.allocs[at];
        alloc.to_peers += payload.len() as u64;
        Expect::ToPeer { relay: alloc.id, peer, payload: payload.to_vec() }
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
        let at = self.allocs.iter().position(|alloc| alloc.worker == worker && alloc.id == relay);
        let Some(at) = at.filter(|at| self.allocs[*at].deadline > now.ms) else {
            return ExpectPeer::Drop(DropReason::AllocationEnded);
        };
        // A relay socket of ours is known to clients by the address that they were told.
        let own = self.allocs.iter().find(|alloc| alloc.open && alloc.bind == source);
        let peer = own.map_or(source, |alloc| alloc.relayed);
        if !self.is_permitted(now, at, peer) {
            return ExpectPeer::Drop(DropReason::NoPermission);
        }
        if self.peer(peer).is_err() {
            return ExpectPeer::Drop(DropReason::PeerForbidden);
        }
        let alloc = &mut self.allocs[at];
        let channel = alloc.channels.iter().find(|(_, bound, until)| *bound == peer && *until > now.ms);
        if channel.is_none() {
            // The message's length field has 16 bits, and is a multiple of four.
            let address = if peer.is_ipv6() { 24 } else { 12 };
            if address + 4 + length.next_multiple_of(4) > 0xffff {
                return ExpectPeer::Drop(DropReason::TooLarge);
            }
        }
        alloc.to_client += length as u64;
        match channel {
            Some((number, _, _)) => ExpectPeer::Channel(alloc.tuple, *number),
            None => ExpectPeer::Indication(alloc.tuple, peer),
        }
    }
}
