//! System calls and nothing else: sockets, datagrams and interface addresses. This module knows no TURN.

pub mod interfaces;
pub mod limits;
mod sys;
pub mod tcp;
pub mod udp;
