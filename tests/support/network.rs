//! A network namespace of its own for a test.

use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::skip;

/// Runs a test in its own network namespace. Each line of `setup` has the arguments of one `ip` command, which
/// configures the namespace. The processes and sockets of the test's thread are in the namespace.
///
/// [Skips](skip) the test without the privilege to create a namespace or without the `ip` command.
pub(crate) fn in_own_network(setup: &[&str], test: impl FnOnce() + Send) {
    if Command::new("ip").arg("-V").output().is_err() {
        return skip("the `ip` command is missing");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                return skip(&format!("no privilege to create a network namespace ({error})"));
            }
            setup.iter().for_each(|line| ip(line));
            test();
        });
    });
}

/// Runs one `ip` command in the namespace of this thread.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}
