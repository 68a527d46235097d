//! System calls and TLS: sockets, datagrams, interface addresses and certificates. Nothing here is specific to TURN.

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
