//! CreatePermission (RFC 8656 §10.2).

use std::collections::BTreeSet;

use crate::stun::attribute::XorPeerAddress;
use crate::turn::contract::Context;
use crate::turn::limit::Limit;
use crate::turn::protocol::rejection::Rejection;
use crate::turn::protocol::request::{Accepted, Authenticated};
use crate::turn::protocol::response::Success;
use crate::turn::server::Server;

use super::{admit_permissions, check_family, denied};

impl Server {
    pub(crate) fn create_permission(
        &mut self,
        cx: &mut Context<'_>,
        request: &Authenticated<'_, '_>,
    ) -> Result<Accepted, Rejection> {
        let now = cx.now;
        let (id, allocation) = self.table.allocation_of(now, request)?;
        // No address, or a malformed one → 400. Nothing is installed before all of them are checked.
        let given = request.message.all::<XorPeerAddress>();
        let count = given.map(|peer| peer.map(|_| 1)).sum::<Result<usize, _>>();
        let count = count.map_err(|_| Rejection::BadRequest("Bad XOR-PEER-ADDRESS"))?;
        if count == 0 {
            return Err(Rejection::BadRequest("No XOR-PEER-ADDRESS"));
        }
        let peers = || request.message.all::<XorPeerAddress>().flatten().map(|XorPeerAddress(peer)| peer);
        // RFC 8656 §10.2 allows a limit. More addresses than an allocation may have are counted and not checked further.
        // Clients repeat an address, with different ports, so each counts once.
        let most = self.snapshot.limits.permissions_per_allocation;
        if count > most && peers().map(|peer| peer.ip()).collect::<BTreeSet<_>>().len() > most {
            self.actions.push_back(allocation.limit_reached(id, Limit::Permissions));
            return Err(Rejection::Limit(Limit::Permissions));
        }
        for peer in peers() {
            check_family(allocation, peer, now)?;
        }
        for peer in peers() {
            if let Err(denial) = self.snapshot.permission_allowed(&allocation.identity, peer.ip()) {
                self.actions.push_back(denied(id, allocation, peer, denial));
                return Err(Rejection::Forbidden);
            }
        }
        self.remove_expired(id, now);
        let (id, allocation) = self.table.allocation_of(now, request)?;
        let limits = &self.snapshot.limits;
        let within_limits = admit_permissions(allocation, peers().map(|peer| peer.ip()), limits, now);
        if let Err(limit) = within_limits {
            self.actions.push_back(allocation.limit_reached(id, limit));
            return Err(Rejection::Limit(limit));
        }
        self.gauges.subtract(allocation);
        for peer in peers() {
            allocation.permissions.install(peer.ip(), now);
        }
        self.gauges.add(allocation);
        self.announce_routes(id, now);
        self.table.reschedule(id);
        Ok(Accepted::Success(Success::Done))
    }
}
