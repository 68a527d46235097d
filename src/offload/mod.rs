//! The XDP program that relays ChannelData in the driver of an interface.

pub mod layout;
