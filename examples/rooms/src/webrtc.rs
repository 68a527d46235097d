//! What the forwarding unit and the bot share: candidates, sockets and connections of `str0m`, which has neither
//! sockets nor clocks.

mod connection;
mod network;

pub(crate) use connection::{Connection, configuration, fingerprint, remote_candidate};
pub(crate) use network::{Datagram, Network, NetworkEvent};
