//! Priorities of the processes, so that the scheduler does not decide about the call.
//!
//! On a server of its own, the network delivers packets whatever the server does, and the ends of the call are elsewhere.
//! Here, they share the CPUs, also with other programs. The ends of the call and the server have real-time priorities
//! (`SCHED_RR`), and the attacker gets what is left of one CPU. It has no real-time priority, because the kernel stops all
//! threads with one for 50 ms if they use a CPU for 950 ms (`sched_rt_runtime_us`).

use std::fs;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, setsid};

use crate::load::Outcome;

/// The priority of the ends of the call.
pub(crate) const CALL: u8 = 20;

/// That of the server.
pub(crate) const SERVER: u8 = 10;

/// The niceness of the attacker, so that it goes before other programs.
const ATTACKER: i32 = -10;

/// Sets the priority of this process, which must have one thread.
pub(crate) fn set(priority: u8) -> Outcome<()> {
    run("chrt", &["--rr", "--pid", &priority.to_string(), &std::process::id().to_string()])
}

/// Gives this process, which must have one thread, the priority of the attacker, on the last CPU.
pub(crate) fn set_attacker() -> Outcome<()> {
    // With autogroups, the kernel first divides the time among sessions, by the niceness of each.
    setsid()?;
    match fs::write("/proc/self/autogroup", ATTACKER.to_string()) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    run("renice", &["-n", &ATTACKER.to_string(), "-p", &std::process::id().to_string()])?;
    let last = std::thread::available_parallelism()?.get().saturating_sub(1);
    let mut set = CpuSet::new();
    set.set(last)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn run(program: &str, arguments: &[&str]) -> Outcome<()> {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
    if status.is_ok_and(|status| status.success()) { Ok(()) } else { Err(format!("{program} failed").into()) }
}
