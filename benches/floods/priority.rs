//! Priorities of the processes, so that the scheduler does not decide about the call.
//!
//! On a server of its own, the network delivers packets whatever the server does, and the ends of the call are elsewhere.
//! Here, they share the CPUs. The call's ends go first, then the server, then the kernel's threads for packets
//! (`ksoftirqd`, niceness 0), then the attacker, which has one CPU.

use std::process::{Command, Stdio};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::load::Outcome;

/// The niceness of the ends of the call.
pub(crate) const CALL: i32 = -15;

/// That of the server.
pub(crate) const SERVER: i32 = -5;

/// That of the attacker.
pub(crate) const ATTACKER: i32 = 10;

/// Sets the niceness of this process, which must have one thread.
pub(crate) fn set(nice: i32) -> Outcome<()> {
    let mut command = Command::new("renice");
    command.args(["-n", &nice.to_string(), "-p", &std::process::id().to_string()]).stdout(Stdio::null());
    if command.status()?.success() { Ok(()) } else { Err("renice failed: apt-get install bsdutils".into()) }
}

/// Keeps this process on the last CPU.
pub(crate) fn stay_on_last_cpu() -> Outcome<()> {
    let last = std::thread::available_parallelism()?.get().saturating_sub(1);
    let mut set = CpuSet::new();
    set.set(last)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
