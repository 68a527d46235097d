//! Refresh (RFC 8656 §8.2).

use std::time::Duration;

use super::super::contract::{Context, EndReason};
use super::super::reply::{Reject, Success};
use super::super::request::{Accepted, Authenticated, optional};
use super::super::server::Server;
use super::super::time::Deadline;
use super::super::{DEFAULT_LIFETIME, MAXIMUM_LIFETIME};
use crate::stun::attribute::{AddressFamily, Lifetime, RequestedAddressFamily};
use crate::stun::{AttributeError, ErrorCode};

impl Server {
    pub(in crate::turn) fn refresh(
        &mut self,
        cx: &Context<'_>,
        request: &Authenticated<'_, '_>,
    ) -> Result<Accepted, Reject> {
        let (id, allocation) = self.table.allocation_of(cx.now, request)?;
        let family = AddressFamily::from(&allocation.relayed);
        match request.message.get::<RequestedAddressFamily>() {
            Ok(None) => {}
            Ok(Some(RequestedAddressFamily(requested))) if requested == family => {}
            Ok(Some(_)) | Err(AttributeError::UnknownFamily) => {
                return Err(Reject::new(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH, "Peer Address Family Mismatch"));
            }
            Err(_) => return Err(Reject::new(ErrorCode::BAD_REQUEST, "Malformed Attribute")),
        }
        let desired = optional(request.message)?.map_or(DEFAULT_LIFETIME, |Lifetime(seconds)| seconds);
        if desired == 0 {
            self.end(id, cx.now, EndReason::Deleted);
            return Ok(Accepted::Success(Success::Refreshed { lifetime: 0 }));
        }
        let desired = desired.clamp(DEFAULT_LIFETIME, MAXIMUM_LIFETIME);
        let mut deadline = Deadline::after(cx.now, Duration::from_secs(desired.into()));
        // A credential that is over may keep its allocation for the grace period, and for what it was given before.
        if let Some(expires) = request.identity.expires {
            let left = expires.saturating_add(self.settings.expiry_grace).saturating_sub(cx.unix);
            if left == 0 {
                return Err(self.expired(cx, request));
            }
            let last = Deadline::after(cx.now, Duration::from_secs(left)).later(allocation.deadline);
            deadline = deadline.earlier(last);
        }
        allocation.deadline = deadline;
        let lifetime = deadline.seconds_left(cx.now);
        self.table.reschedule(id);
        Ok(Accepted::Success(Success::Refreshed { lifetime }))
    }
}
