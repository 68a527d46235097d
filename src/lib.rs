//! A STUN/TURN relay for WebRTC.
//!
//! The protocol core ([`stun`], [`auth`], [`turn`]) is pure: time and randomness arrive as arguments, and it owns
//! no socket. [`worker`] is the event loop around one core, [`control`] the life of the process. `docs/architecture.md`
//! draws the threads and follows a packet through them.

pub mod auth;
pub mod clock;
pub mod config;
pub mod control;
pub mod net;
pub mod setting;
pub mod special_purpose;
pub mod stun;
pub mod transport;
pub mod turn;
mod worker;

// The test world names the library as integration tests do.
#[cfg(test)]
extern crate self as turnserver;
#[cfg(test)]
#[path = "../tests/support/world.rs"]
mod test_world;
