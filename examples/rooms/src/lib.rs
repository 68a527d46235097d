//! `rooms`: calls, broadcasts, files and a game over WebRTC, with turnserver as the relay.
//!
//! [`serve`] is the web application: pages, signalling and the credentials of the relay. [`arguments`] has the command
//! line. README.md shows how to run it.

pub mod arguments;
pub mod bot;
pub mod connect;
mod headers;
mod http;
pub mod ice_servers;
pub mod id;
pub mod log;
pub mod message;
mod outbox;
pub mod own_relay;
mod pages;
mod places;
mod rate;
pub mod relay;
pub mod room;
mod rooms;
pub mod serve;
mod sfu;
mod signalling;
pub mod tls;
mod webrtc;
