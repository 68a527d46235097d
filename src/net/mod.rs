//! System calls and TLS: sockets, datagrams, interface addresses, certificates. This module knows no TURN.

pub mod batch;
pub mod interfaces;
pub mod limits;
mod sys;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod timer;
pub mod tls;
pub mod udp;
pub mod watch;
