//! The XDP program that relays ChannelData in the driver of an interface: selects interfaces, loads and attaches it,
//! fills its maps, and finds the next hops of packets.
//!
//! `program` and `pinned` need the capabilities `CAP_BPF` and `CAP_NET_ADMIN`, and `ipsec` the latter; `maps` needs only
//! descriptors, and `select` and `next_hop` nothing.
//! docs/offload.md describes the program, the maps and the privileges.

pub mod ipsec;
pub mod layout;
pub mod maps;
pub mod next_hop;
pub mod obstacle;
pub mod pinned;
pub mod program;
pub mod select;
