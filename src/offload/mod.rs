//! The XDP program that relays ChannelData in the driver of an interface: selects interfaces, loads and attaches it,
//! fills its maps, and finds the next hops of packets.
//!
//! `program` and `pinned` need the capabilities `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`; `maps` needs only
//! `program` and `pinned` need the capabilities `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`, and `ipsec` needs
//! `CAP_NET_ADMIN`; `maps` needs only descriptors, and `select` and `next_hop` nothing.

pub mod ipsec;
pub mod layout;
pub mod maps;
pub mod next_hop;
pub mod obstacle;
pub mod pinned;
pub mod program;
pub mod select;
