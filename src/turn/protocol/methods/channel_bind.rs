//! ChannelBind (RFC 8656 §12.2).

use crate::stun::ErrorCode;
use crate::stun::attribute::{ChannelNumber, XorPeerAddress};
use crate::turn::contract::{Action, Event};
use crate::turn::limit::Limit;
use crate::turn::protocol::methods::{FORBIDDEN, admit_permissions, check_family, refused};
use crate::turn::protocol::request::{Accepted, Authenticated, required};
use crate::turn::protocol::response::{Reject, Success};
use crate::turn::server::Server;
use crate::turn::tables::channels::BindConflict;
use crate::turn::time::Instant;

impl Server {
    pub(crate) fn channel_bind(&mut self, now: Instant, request: &Authenticated<'_, '_>) -> Result<Accepted, Reject> {
        let bad = |reason| Reject::new(ErrorCode::BAD_REQUEST, reason);
        let (id, allocation) = self.table.allocation_of(now, request)?;
        let ChannelNumber(number) = required(request.message)?;
        let XorPeerAddress(peer) = required(request.message)?;
        match number {
            0x4000..=0x4fff => {}
            0x5000..=0x7fff if self.settings.rfc5766_channels => {}
            0x5000..=0x7fff => {
                let (user, tuple) = (allocation.identity.user().to_owned(), allocation.tuple);
                self.actions.push_back(Action::Log(Event::Rfc5766Channel { user, tuple, number }));
                return Err(bad("Channel Above 0x4FFF: see compat.rfc5766-channels"));
            }
            _ => return Err(bad("Channel Number Out of Range")),
        }
        allocation.expire(now);
        match allocation.channels.conflict(number, peer, now) {
            None => {}
            Some(BindConflict::NumberBoundToOtherPeer) => return Err(bad("Channel Bound to Another Peer")),
            Some(BindConflict::PeerBoundToOtherNumber) => return Err(bad("Peer Bound to Another Channel")),
        }
        check_family(allocation, peer, now)?;
        // Nothing can be sent there.
        if peer.port() == 0 {
            return Err(FORBIDDEN);
        }
        if let Err(denial) = self.shared.policy.peer_allowed(&self.shared.live, peer) {
            self.actions.push_back(refused(allocation, peer, denial));
            return Err(FORBIDDEN);
        }
        let new_channel = usize::from(allocation.channels.peer(number, now).is_none());
        let admitted = if allocation.channels.len() + new_channel > self.settings.channels_per_allocation {
            Err(Limit::Channels)
        } else {
            admit_permissions(allocation, std::iter::once(peer.ip()), &self.settings, now)
        };
        if let Err(limit) = admitted {
            self.actions.push_back(limit.reached(allocation.identity.user(), allocation.tuple));
            return Err(Reject::limited(limit));
        }
        allocation.channels.bind(number, peer, now);
        allocation.permissions.install(peer.ip(), now);
        self.table.reschedule(id);
        Ok(Accepted::Success(Success::Done))
    }
}
