//! The Send indication (RFC 8656 §11.2). Nothing in it is ever answered.

use crate::stun::attribute::{AddressFamily, XorPeerAddress};
use crate::stun::{AttributeType, Message};
use crate::turn::contract::{FiveTuple, FromClient, ToPeer};
use crate::turn::outcome::DropReason;
use crate::turn::protocol::request::is_understood;
use crate::turn::server::{Server, over};
use crate::turn::shared::quota::Direction;
use crate::turn::time::Instant;

impl Server {
    pub(crate) fn send_indication(
        &mut self,
        now: Instant,
        tuple: &FiveTuple,
        message: &Message<'_>,
        tos: u8,
    ) -> FromClient {
        self.route_send(now, tuple, message, tos).map_or_else(FromClient::Drop, FromClient::Relay)
    }

    fn route_send(
        &mut self,
        now: Instant,
        tuple: &FiveTuple,
        message: &Message<'_>,
        tos: u8,
    ) -> Result<ToPeer, DropReason> {
        let (id, allocation) = self.table.find_open(tuple, now).ok_or(DropReason::NoAllocation)?;
        if message.unknown_required(is_understood).next().is_some() {
            return Err(DropReason::MalformedIndication);
        }
        let peer = message.get::<XorPeerAddress>().ok().flatten().map(|XorPeerAddress(peer)| peer);
        let peer = peer.filter(|peer| peer.port() != 0).ok_or(DropReason::MalformedIndication)?;
        let payload = message.data_range().ok_or(DropReason::MalformedIndication)?;
        let family = AddressFamily::from(&peer);
        if !allocation.has(family, now) {
            return Err(DropReason::MalformedIndication);
        }
        if !allocation.permissions.allows(peer.ip(), now) {
            return Err(DropReason::NoPermission);
        }
        let wire = self.shared.policy.peer_allowed(&self.shared.live, peer).map_err(|_| DropReason::PeerForbidden)?;
        let (rate, quota) = (self.settings.byte_rate.as_ref(), &self.shared.quota);
        allocation
            .pass(Direction::ToPeers, payload.len(), now, rate, quota)
            .map_err(|limit| over(limit, allocation, now, &mut self.actions))?;
        // RFC 8656 §13: between datagrams of two families, or of IPv6, DONT-FRAGMENT MUST be ignored; §15: for data that
        // came on a connection it counts.
        let is_ipv4_relay = tuple.client.is_ipv4() && family == AddressFamily::V4;
        let dont_fragment =
            message.contains(AttributeType::DONT_FRAGMENT) && (is_ipv4_relay || tuple.transport.is_stream());
        let tos = tuple.transport.relayed_tos(tos);
        Ok(ToPeer { relay: id.relay(family), peer: wire, payload, tos, dont_fragment })
    }
}
