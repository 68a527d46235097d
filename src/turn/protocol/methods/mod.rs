//! The handlers: one file per method, each with the steps of its section of RFC 8656.

mod allocate;
mod binding;
mod channel_bind;
mod create_permission;
mod refresh;
mod send;

use std::net::{IpAddr, SocketAddr};

use crate::stun::attribute::AddressFamily;
use crate::turn::contract::{Action, AllocationId};
use crate::turn::event::Event;
use crate::turn::limit::Limit;
use crate::turn::protocol::rejection::Rejection;
use crate::turn::shared::policy::Denial;
use crate::turn::shared::snapshot::Limits;
use crate::turn::tables::allocation::Allocation;
use crate::turn::time::Instant;

pub(crate) use allocate::AllocateFailure;

/// RFC 8656 §10.2, §12.2: the peer must be of the family of a relayed transport address, else 443.
fn check_family(allocation: &Allocation, peer: SocketAddr, now: Instant) -> Result<(), Rejection> {
    if allocation.has(AddressFamily::from(&peer), now) { Ok(()) } else { Err(Rejection::PeerAddressFamilyMismatch) }
}

/// Checks the limits on permissions and charges new addresses to the peer rate. Existing permissions are not charged.
/// Expired permissions must have been removed.
fn admit_permissions(
    allocation: &mut Allocation,
    addresses: impl Iterator<Item = IpAddr>,
    limits: &Limits,
    now: Instant,
) -> Result<(), Limit> {
    let missing = allocation.permissions.missing(addresses);
    if missing == 0 {
        return Ok(());
    }
    if allocation.permissions.len() + missing > limits.permissions_per_allocation {
        return Err(Limit::Permissions);
    }
    match &limits.peer_rate {
        Some(rate) if !allocation.meter.peers.take(rate, now, missing) => Err(Limit::PeerRate),
        _ => Ok(()),
    }
}

/// Returns the log entry for a 403.
fn denied(id: AllocationId, allocation: &Allocation, peer: SocketAddr, denial: Denial) -> Action {
    let (user, tuple) = (allocation.identity.user().to_owned(), allocation.tuple);
    Action::Log(Event::PeerDenied { id, user, tuple, peer, denial })
}
