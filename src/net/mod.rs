//! System calls and nothing else: sockets, datagrams and interface addresses. This module knows no TURN.

pub mod interfaces;
mod sys;
pub mod udp;
