//! Refresh (RFC 8656 §8.2).

use std::time::Duration;

use crate::stun::attribute::{Lifetime, RequestedAddressFamily};
use crate::stun::{AttributeError, ErrorCode};
use crate::turn::contract::{Context, EndReason};
use crate::turn::protocol::methods::FAMILY_MISMATCH;
use crate::turn::protocol::request::{Accepted, Authenticated, optional};
use crate::turn::protocol::response::{Reject, Success};
use crate::turn::server::Server;
use crate::turn::tables::relays::Relay;
use crate::turn::time::Deadline;
use crate::turn::{DEFAULT_LIFETIME, MAXIMUM_LIFETIME};

impl Server {
    pub(crate) fn refresh(&mut self, cx: &Context<'_>, request: &Authenticated<'_, '_>) -> Result<Accepted, Reject> {
        let (id, allocation) = self.table.allocation_of(cx.now, request)?;
        // §8.1: without a family the request is about all relayed transport addresses.
        let family = match request.message.get::<RequestedAddressFamily>() {
            Ok(None) => None,
            Ok(Some(RequestedAddressFamily(family))) if allocation.has(family, cx.now) => Some(family),
            Ok(Some(_)) | Err(AttributeError::UnknownFamily) => return Err(FAMILY_MISMATCH),
            Err(_) => return Err(Reject::new(ErrorCode::BAD_REQUEST, "Malformed Attribute")),
        };
        let desired = optional(request.message)?.map_or(DEFAULT_LIFETIME, |Lifetime(seconds)| seconds);
        if desired == 0 {
            match family {
                Some(family) => self.end_relay(id, family, cx.now, EndReason::Deleted),
                None => self.end(id, cx.now, EndReason::Deleted),
            }
            return Ok(Accepted::Success(Success::Refreshed { lifetime: 0 }));
        }
        let desired = desired.clamp(DEFAULT_LIFETIME, MAXIMUM_LIFETIME);
        let desired = Deadline::after(cx.now, Duration::from_secs(desired.into()));
        // A credential that is over may keep its allocation for the grace period, and for what it was given before.
        let last = match request.identity.expires() {
            Some(expires) => {
                let left = expires.saturating_add(self.settings.expiry_grace).saturating_sub(cx.unix);
                if left == 0 {
                    return Err(self.expired(cx, request));
                }
                Deadline::after(cx.now, Duration::from_secs(left))
            }
            None => Deadline::NEVER,
        };
        let concerned = |relay: &&mut Relay| family.is_none_or(|family| relay.family() == family);
        let mut earliest = Deadline::NEVER;
        for relay in allocation.relays.iter_mut().filter(|relay| relay.is_live(cx.now)).filter(concerned) {
            relay.deadline = desired.earlier(last.later(relay.deadline));
            earliest = earliest.earlier(relay.deadline);
        }
        let lifetime = earliest.seconds_left(cx.now);
        self.table.reschedule(id);
        Ok(Accepted::Success(Success::Refreshed { lifetime }))
    }
}
