//! The descriptors that the service manager passes to the process, and their variables of the environment.

use std::env;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that the service manager passes (`sd_listen_fds(3)`).
pub(in crate::net) const FIRST: RawFd = 3;

/// Takes the first `count` descriptors that the service manager has passed, and sets close-on-exec. The error of one is
/// that it is not open. A second call returns none.
pub(in crate::net) fn take(count: u16) -> Vec<io::Result<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let take = |number: RawFd| {
        // SAFETY: F_SETFD has an integer as its argument, and fails for a descriptor that is not open.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open. It belongs to the process by the protocol of the service manager, and nothing
        // else in the process has it: this is the first call, and descriptors that the process opened itself are above,
        // because those that were passed were open when it began.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    };
    (FIRST..FIRST + RawFd::from(count)).map(take).collect()
}

/// Removes variables of the environment, so that no program that this one starts gets them. With further threads, which
/// may read the environment, it leaves them.
pub(in crate::net) fn remove_variables(names: &[&str]) {
    if fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1) {
        for name in names {
            // SAFETY: this is the only thread of the process, so no other one reads the environment meanwhile.
            unsafe { env::remove_var(name) };
        }
    }
}
