//! A STUN/TURN relay for WebRTC.
//!
//! The protocol core ([`stun`], [`auth`], [`turn`]) is pure: time and randomness are passed as arguments, and it owns
//! no socket. `worker` runs the event loop around one core; [`control`] starts and stops the process.
//! `docs/architecture.md` describes the threads and the path of a packet.

pub mod auth;
mod by_source;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod coturn;
pub mod doctor;
pub mod file;
pub mod fleet;
mod front;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod generate;
pub mod http;
pub mod ip_fields;
pub mod net;
#[cfg(feature = "offload")]
pub mod offload;
pub mod printable;
pub mod privacy;
pub mod proxy_protocol;
pub mod setting;
pub mod special_purpose;
pub mod stun;
pub mod transport;
pub mod turn;
mod worker;

// `cargo test` runs the code of the document.
#[cfg(doctest)]
#[doc = include_str!("../docs/webrtc.md")]
struct DocsWebrtc;

// The test support refers to the library by its name, as in integration tests.
#[cfg(any(test, feature = "fuzzing"))]
extern crate self as turnserver;
#[cfg(test)]
#[path = "../tests/support/certificates.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod test_certificates;
#[cfg(test)]
#[path = "../tests/support/memory_table.rs"]
mod test_memory_table;
#[cfg(any(test, feature = "fuzzing"))]
#[path = "../tests/support/messages.rs"]
#[allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "for tests and fuzz targets"
)]
mod test_messages;
#[cfg(any(test, feature = "fuzzing"))]
#[path = "../tests/support/world.rs"]
#[allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "for tests and fuzz targets"
)]
mod test_world;
