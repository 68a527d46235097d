//! What the relays of a fleet agree on: who is there, which relay a client should use, and what a user may use over all.
//!
//! It is pure: messages, times and random numbers come in, decisions and messages go out. `docs/fleet.md` describes the
//! fleet, and has the figures of a simulation of it (`benches/fleet`).

mod fields;
pub mod lease;
pub mod node;
pub mod prefixes;
mod record;
pub mod select;
pub mod sums;

#[cfg(test)]
mod lease_tests;

pub use fields::Malformed;
pub use lease::{Key, Leases, Output, Share};
pub use node::{Heard, Heartbeat, Load, Nodes};
pub use prefixes::Prefixes;
pub use record::{Holder, Record};
pub use select::{Family, alternates, choose};
pub use sums::Sums;
