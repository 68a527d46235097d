//! The XDP program that relays ChannelData in the driver of an interface: loads and attaches it, and fills its maps.
//!
//! `program` and `pinned` need the capabilities `CAP_BPF` and `CAP_NET_ADMIN`; `maps` needs only descriptors.
//! docs/offload.md describes the program, the maps and the privileges.

pub mod layout;
pub mod maps;
pub mod obstacle;
pub mod pinned;
pub mod program;
