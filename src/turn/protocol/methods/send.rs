//! The Send indication (RFC 8656 §11.2). It has no response.

use crate::ip_fields::IpFields;
use crate::stun::attribute::{AddressFamily, XorPeerAddress};
use crate::stun::{AttributeType, Message};
use crate::turn::contract::{FiveTuple, FromClient, ToPeer};
use crate::turn::outcome::DropReason;
use crate::turn::protocol::control::is_turn_message;
use crate::turn::protocol::request::is_understood;
use crate::turn::server::Server;
use crate::turn::shared::quota::Direction;
use crate::turn::time::Instant;

impl Server {
    pub(crate) fn send_indication(
        &mut self,
        now: Instant,
        tuple: &FiveTuple,
        packet: &[u8],
        message: &Message<'_>,
        fields: IpFields,
    ) -> FromClient {
        match self.route_send(now, tuple, packet, message, fields) {
            Ok(route) => FromClient::Relay(route),
            Err(reason) => FromClient::Drop(self.send_dropped(tuple, reason)),
        }
    }

    /// Counts a Send indication that is dropped, if the client has an allocation.
    #[cold]
    fn send_dropped(&mut self, tuple: &FiveTuple, reason: DropReason) -> DropReason {
        if reason != DropReason::NoAllocation
            && let Some(allocation) = self.table.find(tuple).and_then(|id| self.table.get_mut(id))
        {
            allocation.dropped(reason);
        }
        reason
    }

    fn route_send(
        &mut self,
        now: Instant,
        tuple: &FiveTuple,
        packet: &[u8],
        message: &Message<'_>,
        fields: IpFields,
    ) -> Result<ToPeer, DropReason> {
        let (id, allocation) = self.table.find_open(tuple, now).ok_or(DropReason::NoAllocation)?;
        if message.unknown_required(is_understood).next().is_some() {
            return Err(DropReason::MalformedIndication);
        }
        let peer = message.get::<XorPeerAddress>().ok().flatten().map(|XorPeerAddress(peer)| peer);
        let peer = peer.filter(|peer| peer.port() != 0).ok_or(DropReason::MalformedIndication)?;
        let payload = message.data_range().ok_or(DropReason::MalformedIndication)?;
        let family = AddressFamily::from(&peer);
        let (index, _) = allocation.relays.of_family(family, now).ok_or(DropReason::MalformedIndication)?;
        if !allocation.permissions.allows(peer.ip(), now) {
            return Err(DropReason::NoPermission);
        }
        let allowed = self.review.permitted_peer_allowed(&self.snapshot, &allocation.identity, peer);
        let peer = allowed.map_err(|_| DropReason::PeerForbidden)?;
        if is_turn_message(packet.get(payload.clone()).unwrap_or_default()) {
            return Err(DropReason::RelayedTurn);
        }
        let fields = tuple.transport.relayed_fields(fields).ok_or(DropReason::HopLimit)?;
        let socket = id.socket(index);
        self.admit_data(now, socket, Direction::ToPeers, payload.len())?;
        // RFC 8656 §13: DONT-FRAGMENT MUST be ignored between two address families and within IPv6. §15: for data that
        // came on a connection, it always applies.
        let is_ipv4_only = tuple.client.is_ipv4() && family == AddressFamily::V4;
        let dont_fragment =
            message.contains(AttributeType::DONT_FRAGMENT) && (is_ipv4_only || !tuple.transport.carries_ip_fields());
        Ok(ToPeer { socket, peer, payload, fields, dont_fragment })
    }
}
