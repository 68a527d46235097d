//! What the forwarding unit and the bot share: candidates, sockets and connections of `str0m`, which has neither
//! sockets nor clocks.

mod connection;
mod network;

pub(crate) use connection::{Connection, configuration, fingerprint, ice_user, remote_candidate, split_candidates};
pub(crate) use network::{Datagram, Network, NetworkEvent};
