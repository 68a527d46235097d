//! The Send indication (RFC 8656 §11.2). Nothing in it is ever answered.

use super::super::contract::{FiveTuple, FromClient, ToPeer};
use super::super::outcome::DropReason;
use super::super::request::is_understood;
use super::super::server::Server;
use super::super::time::Instant;
use super::check_family;
use crate::stun::Message;
use crate::stun::attribute::XorPeerAddress;

impl Server {
    pub(in crate::turn) fn send_indication(
        &mut self,
        now: Instant,
        tuple: &FiveTuple,
        message: &Message<'_>,
    ) -> FromClient {
        self.route_send(now, tuple, message).map_or_else(FromClient::Drop, FromClient::Relay)
    }

    fn route_send(&mut self, now: Instant, tuple: &FiveTuple, message: &Message<'_>) -> Result<ToPeer, DropReason> {
        let (relay, allocation) = self.table.find_open(tuple, now).ok_or(DropReason::NoAllocation)?;
        // DONT-FRAGMENT is among what is not understood.
        if message.unknown_required(is_understood).next().is_some() {
            return Err(DropReason::MalformedIndication);
        }
        let peer = message.get::<XorPeerAddress>().ok().flatten().map(|XorPeerAddress(peer)| peer);
        let peer = peer.filter(|peer| peer.port() != 0).ok_or(DropReason::MalformedIndication)?;
        let payload = message.data_range().ok_or(DropReason::MalformedIndication)?;
        check_family(allocation, peer).map_err(|_| DropReason::MalformedIndication)?;
        if !allocation.permissions.allows(peer.ip(), now) {
            return Err(DropReason::NoPermission);
        }
        let wire = self.shared.policy.peer_allowed(&self.shared.live, peer).map_err(|_| DropReason::PeerForbidden)?;
        allocation.bytes_to_peers += payload.len() as u64;
        Ok(ToPeer { relay, peer: wire, payload })
    }
}
