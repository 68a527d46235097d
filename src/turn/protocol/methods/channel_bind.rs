//! ChannelBind (RFC 8656 §12.2).

use crate::stun::attribute::{ChannelNumber, XorPeerAddress};
use crate::turn::contract::{Action, Context};
use crate::turn::event::Event;
use crate::turn::limit::Limit;
use crate::turn::protocol::channel_numbers::ChannelNumbers;
use crate::turn::protocol::rejection::Rejection;
use crate::turn::protocol::request::{Accepted, Authenticated, required};
use crate::turn::protocol::response::Success;
use crate::turn::server::Server;
use crate::turn::tables::channels::BindConflict;

use super::{admit_permissions, check_family, denied};

impl Server {
    pub(crate) fn channel_bind(
        &mut self,
        cx: &mut Context<'_>,
        request: &Authenticated<'_, '_>,
    ) -> Result<Accepted, Rejection> {
        let (now, bad) = (cx.now, |reason| Err(Rejection::BadRequest(reason)));
        let (id, allocation) = self.table.allocation_of(now, request)?;
        let ChannelNumber(number) = required(request.message)?;
        let XorPeerAddress(peer) = required(request.message)?;
        if !self.snapshot.compat.channels.contains(number) {
            if !ChannelNumbers::Rfc5766.contains(number) {
                return bad("Channel Number Out of Range");
            }
            let (user, tuple) = (allocation.identity.user().to_owned(), allocation.tuple);
            self.actions.push_back(Action::Log(Event::Rfc5766Channel { id, user, tuple, number }));
            return bad("Channel Above 0x4FFF: see compat.rfc5766-channels");
        }
        self.remove_expired(id, now);
        let (id, allocation) = self.table.allocation_of(now, request)?;
        match allocation.channels.conflict(number, peer, now) {
            None => {}
            Some(BindConflict::NumberBoundToOtherPeer) => return bad("Channel Bound to Another Peer"),
            Some(BindConflict::PeerBoundToOtherNumber) => return bad("Peer Bound to Another Channel"),
        }
        check_family(allocation, peer, now)?;
        // Datagrams cannot be sent to port 0.
        if peer.port() == 0 {
            return Err(Rejection::Forbidden);
        }
        if let Err(denial) = self.snapshot.peer_allowed(&allocation.identity, peer) {
            self.actions.push_back(denied(id, allocation, peer, denial));
            return Err(Rejection::Forbidden);
        }
        let limits = &self.snapshot.limits;
        let is_new = allocation.channels.peer(number, now).is_none();
        let within_limits = if is_new && allocation.channels.len() >= limits.channels_per_allocation {
            Err(Limit::Channels)
        } else {
            admit_permissions(allocation, std::iter::once(peer.ip()), limits, now)
        };
        if let Err(limit) = within_limits {
            self.actions.push_back(allocation.limit_reached(id, limit));
            return Err(Rejection::Limit(limit));
        }
        allocation.channels.bind(number, peer, now);
        self.gauges.subtract(allocation);
        allocation.permissions.install(peer.ip(), now);
        self.gauges.add(allocation);
        self.announce_routes(id, now);
        self.table.reschedule(id);
        Ok(Accepted::Success(Success::Done))
    }
}
