//! Shared by the integration tests: the real binaries as processes, their logs, configurations and credentials.
//!
//! Nothing sleeps. Every wait is for an event (a log line, the end of a process) and has a timeout. On a timeout it
//! panics with the output of the process.
#![allow(dead_code, unused_imports, reason = "each test binary compiles this module and uses a part of it")]

pub(crate) mod any_certificate;
pub(crate) mod blocked_ports;
pub(crate) mod certificates;
pub(crate) mod client;
mod config;
mod controlled;
mod finally;
mod log;
pub(crate) mod network;
mod process;
mod server;
mod skip;
mod temp_dir;
pub(crate) mod tls;

use std::io;
use std::time::Duration;

pub(crate) use config::{REALM, SECRET, config, config_for, config_without_secret, with_tls};
pub(crate) use controlled::Controlled;
pub(crate) use finally::Finally;
pub(crate) use log::LogLine;
pub(crate) use process::{Finished, Process, run};
pub(crate) use server::{Credential, Ended, Server};
pub(crate) use skip::skip;
pub(crate) use temp_dir::TempDir;

/// Timeout of every wait. It is long because the machine may be busy.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Repeats a system call until no signal interrupts it. The kernel does not restart a receive with a timeout after a
/// signal, which a debugger or a suspended process also causes.
pub(crate) fn unless_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Returns whether this machine has `::1`. Tests that need it are [skipped](skip) otherwise.
pub(crate) fn has_ipv6() -> bool {
    let has = std::net::UdpSocket::bind("[::1]:0").is_ok();
    if !has {
        skip("there is no IPv6");
    }
    has
}
