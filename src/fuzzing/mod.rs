//! The bodies of the fuzz targets. `fuzz/run TARGET` runs one, and the unit tests run all of them over their corpus.
//!
//! Each takes any bytes, and panics if the code under test breaks an invariant. docs/fuzzing.md lists what each checks.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a broken invariant has to panic, and a panic here is a finding, too"
)]

mod authenticated;
mod client;
mod client_hello;
mod config;
mod credentials;
mod framing;
mod import;
mod input;
mod proxy;
mod requests;
mod responses;
mod stun;
mod texts;
mod unauthenticated;
mod world;

#[cfg(test)]
mod tests;

pub use authenticated::core_authenticated;
pub use client::client;
pub use client_hello::client_hello;
pub use config::config;
pub use framing::framing;
pub use import::import;
pub use proxy::proxy;
pub use stun::stun;
pub use texts::texts;
pub use unauthenticated::core_unauthenticated;

pub use crate::control::http;
