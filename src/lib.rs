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
pub mod stun;
pub mod turn;
pub mod worker;
