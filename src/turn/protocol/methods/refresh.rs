//! Refresh (RFC 8656 §8.2).

use std::rc::Rc;
use std::time::Duration;

use crate::stun::AttributeError;
use crate::stun::attribute::{Lifetime, RequestedAddressFamily};
use crate::turn::contract::{Action, AllocationId, Context};
use crate::turn::event::{EndReason, Event};
use crate::turn::protocol::rejection::Rejection;
use crate::turn::protocol::request::{Accepted, Authenticated, optional};
use crate::turn::protocol::response::Success;
use crate::turn::server::Server;
use crate::turn::tables::allocation::Allocation;
use crate::turn::tables::relays::Relay;
use crate::turn::time::Deadline;
use crate::turn::{DEFAULT_LIFETIME, MAXIMUM_LIFETIME};

impl Server {
    pub(crate) fn refresh(
        &mut self,
        cx: &mut Context<'_>,
        request: &Authenticated<'_, '_>,
    ) -> Result<Accepted, Rejection> {
        let (id, allocation) = self.table.allocation_of(cx.now, request)?;
        // §8.1: without a family the request applies to all relayed transport addresses.
        let family = match request.message.get::<RequestedAddressFamily>() {
            Ok(None) => None,
            Ok(Some(RequestedAddressFamily(family))) if allocation.has(family, cx.now) => Some(family),
            Ok(Some(_)) | Err(AttributeError::UnknownFamily) => return Err(Rejection::PeerAddressFamilyMismatch),
            Err(_) => return Err(Rejection::BadRequest("Malformed Attribute")),
        };
        let desired = optional(request.message)?.map_or(DEFAULT_LIFETIME, |Lifetime(seconds)| seconds);
        if desired == 0 {
            if self.snapshot.refresh_events {
                self.actions.push_back(refreshed(id, allocation, 0));
            }
            match family {
                Some(family) => self.end_relay(id, family, cx.now, EndReason::Deleted),
                None => self.end(id, cx.now, EndReason::Deleted),
            }
            return Ok(Accepted::Success(Success::Refreshed { lifetime: 0 }));
        }
        // The same username with another password: the request shows that the configuration has it.
        let is_new_identity = !Rc::ptr_eq(&allocation.identity, &request.identity);
        if allocation.credentials_removed && !is_new_identity {
            self.end(id, cx.now, EndReason::CredentialsRemoved);
            return Err(Rejection::Unauthenticated);
        }
        let desired = desired.clamp(DEFAULT_LIFETIME, MAXIMUM_LIFETIME);
        let desired = Deadline::after(cx.now, Duration::from_secs(desired.into()));
        // After its credential expires, an allocation lasts at most until the end of the grace period, or until the
        // deadline that it already has if that is later.
        let last = match request.identity.expires() {
            Some(expires) => {
                let left = self.snapshot.last_use(&request.identity, expires).saturating_sub(cx.unix);
                if left == 0 {
                    return Err(self.expired(cx, request));
                }
                Deadline::after(cx.now, Duration::from_secs(left))
            }
            None => Deadline::NEVER,
        };
        if is_new_identity {
            allocation.identity = Rc::clone(&request.identity);
            allocation.credentials_removed = false;
        }
        let requested = |relay: &&mut Relay| family.is_none_or(|family| relay.family() == family);
        let mut earliest = Deadline::NEVER;
        for relay in allocation.relays.iter_mut().filter(|relay| relay.is_live(cx.now)).filter(requested) {
            relay.deadline = desired.earlier(last.later(relay.deadline));
            earliest = earliest.earlier(relay.deadline);
        }
        let lifetime = earliest.seconds_left(cx.now);
        if self.snapshot.refresh_events {
            self.actions.push_back(refreshed(id, allocation, lifetime));
        }
        self.announce_routes(id, cx.now);
        self.table.reschedule(id);
        Ok(Accepted::Success(Success::Refreshed { lifetime }))
    }
}

fn refreshed(id: AllocationId, allocation: &Allocation, lifetime: u32) -> Action {
    let user = allocation.identity.user().to_owned();
    Action::Log(Event::AllocationRefreshed { id, user, tuple: allocation.tuple, lifetime })
}
