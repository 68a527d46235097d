//! CreatePermission (RFC 8656 §10.2).

use crate::stun::ErrorCode;
use crate::stun::attribute::XorPeerAddress;
use crate::turn::protocol::methods::{FORBIDDEN, admit_permissions, check_family, refused};
use crate::turn::protocol::request::{Accepted, Authenticated};
use crate::turn::protocol::response::{Reject, Success};
use crate::turn::server::Server;
use crate::turn::time::Instant;

impl Server {
    pub(crate) fn create_permission(
        &mut self,
        now: Instant,
        request: &Authenticated<'_, '_>,
    ) -> Result<Accepted, Reject> {
        let (id, allocation) = self.table.allocation_of(now, request)?;
        // None of them, or any that is malformed → 400. Nothing is installed before all are found good.
        let mut peers = request.message.all::<XorPeerAddress>().peekable();
        if peers.peek().is_none() {
            return Err(Reject::new(ErrorCode::BAD_REQUEST, "No XOR-PEER-ADDRESS"));
        }
        if peers.any(|peer| peer.is_err()) {
            return Err(Reject::new(ErrorCode::BAD_REQUEST, "Bad XOR-PEER-ADDRESS"));
        }
        let peers = || request.message.all::<XorPeerAddress>().flatten().map(|XorPeerAddress(peer)| peer);
        for peer in peers() {
            check_family(allocation, peer, now)?;
        }
        for peer in peers() {
            if let Err(denial) = self.shared.policy.permission_allowed(&self.shared.live, peer.ip()) {
                self.actions.push_back(refused(allocation, peer, denial));
                return Err(FORBIDDEN);
            }
        }
        allocation.expire(now);
        if let Err(limit) = admit_permissions(allocation, peers().map(|peer| peer.ip()), &self.settings, now) {
            self.actions.push_back(limit.reached(allocation.identity.user(), allocation.tuple));
            return Err(Reject::limited(limit));
        }
        for peer in peers() {
            allocation.permissions.install(peer.ip(), now);
        }
        self.table.reschedule(id);
        Ok(Accepted::Success(Success::Done))
    }
}
