//! System calls and TLS: sockets, datagrams, interface addresses and certificates. Nothing here is specific to TURN.

pub(crate) mod background;
pub mod batch;
pub(crate) mod changes;
pub mod interfaces;
pub mod limits;
mod local_routes;
pub mod passed;
pub(crate) mod splice;
mod sys;
pub(crate) mod tcp;
pub mod terminal;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod timer;
pub(crate) mod tls;
pub mod udp;
pub(crate) mod watch;

#[cfg(feature = "offload")]
pub(crate) use sys::bpf::{PerCpuArray, detach_pinned_link};

/// Returns whether a time service keeps the clock of this machine right.
///
/// # Errors
/// Those of `adjtimex`.
pub(crate) fn clock_state() -> std::io::Result<bool> {
    sys::is_clock_synchronized()
}
