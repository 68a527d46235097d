//! One method, one file; each carries out the steps of its section of RFC 8656.

mod allocate;
mod binding;
mod channel_bind;
mod create_permission;
mod refresh;
mod send;

use std::net::SocketAddr;

use super::allocation::Allocation;
use super::contract::{Action, Event};
use super::policy::Denial;
use super::reply::Reject;
use crate::stun::ErrorCode;
use crate::stun::attribute::AddressFamily;

/// Whether the peer is of the family of the allocation's relayed transport address, or else 443.
fn check_family(allocation: &Allocation, peer: SocketAddr) -> Result<(), Reject> {
    if AddressFamily::from(&peer) == AddressFamily::from(&allocation.relayed) {
        Ok(())
    } else {
        Err(Reject::new(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH, "Peer Address Family Mismatch"))
    }
}

/// The note for the log that goes with a 403.
fn refused(allocation: &Allocation, peer: SocketAddr, denial: Denial) -> Action {
    let (user, tuple) = (allocation.user.to_string(), allocation.tuple);
    Action::Log(Event::PeerRefused { user, tuple, peer, denial })
}

const FORBIDDEN: Reject = Reject::new(ErrorCode::FORBIDDEN, "Forbidden");
