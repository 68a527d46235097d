//! One method, one file; each carries out the steps of its section of RFC 8656.

mod allocate;
mod binding;
mod channel_bind;
mod create_permission;
mod refresh;
mod send;

use std::net::{IpAddr, SocketAddr};

use crate::stun::ErrorCode;
use crate::stun::attribute::AddressFamily;
use crate::turn::contract::{Action, Event};
use crate::turn::limit::Limit;
use crate::turn::protocol::response::Reject;
use crate::turn::server::Settings;
use crate::turn::shared::policy::Denial;
use crate::turn::tables::allocation::Allocation;
use crate::turn::time::Instant;

pub(crate) use allocate::Obstacle;

/// Whether the peer is of the family of a relayed transport address of the allocation, or else 443.
fn check_family(allocation: &Allocation, peer: SocketAddr, now: Instant) -> Result<(), Reject> {
    if allocation.has(AddressFamily::from(&peer), now) { Ok(()) } else { Err(FAMILY_MISMATCH) }
}

const FAMILY_MISMATCH: Reject = Reject::new(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH, "Peer Address Family Mismatch");

/// Whether the allocation, from which what has expired is gone, may have permissions for these addresses. Those that it
/// has already cost nothing.
fn admit_permissions(
    allocation: &mut Allocation,
    addresses: impl Iterator<Item = IpAddr>,
    settings: &Settings,
    now: Instant,
) -> Result<(), Limit> {
    let missing = allocation.permissions.missing(addresses);
    if allocation.permissions.len() + missing > settings.permissions_per_allocation {
        return Err(Limit::Permissions);
    }
    match &settings.peer_rate {
        Some(rate) if !allocation.meter.peers.take(rate, now, missing) => Err(Limit::PeerRate),
        _ => Ok(()),
    }
}

/// The note for the log that goes with a 403.
fn refused(allocation: &Allocation, peer: SocketAddr, denial: Denial) -> Action {
    let (user, tuple) = (allocation.identity.user().to_owned(), allocation.tuple);
    Action::Log(Event::PeerRefused { user, tuple, peer, denial })
}

const FORBIDDEN: Reject = Reject::new(ErrorCode::FORBIDDEN, "Forbidden");
