//! System calls and nothing else: sockets, datagrams and interface addresses. This module knows no TURN.

pub mod batch;
pub mod interfaces;
pub mod limits;
mod sys;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod timer;
pub mod udp;
