//! Ctrl-C: kills the started processes. The benchmark's waits then end, and it cleans up.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Processes that were started and not yet waited for.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Makes SIGINT, SIGTERM and SIGHUP kill the started processes instead of this one. Call it before starting a thread.
pub(crate) fn catch() -> io::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            with_running(|running| running.iter().for_each(|id| kill_process(*id)));
        }
    })?;
    Ok(())
}

/// Returns whether the benchmark was interrupted.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Registers a started process.
pub(crate) fn started(id: u32) {
    if let Ok(id) = i32::try_from(id) {
        with_running(|running| running.insert(id));
        if interrupted() {
            kill_process(id);
        }
    }
}

/// Removes a process. Call it before waiting for the process, because its id may be reused afterwards.
pub(crate) fn ended(id: u32) {
    if let Ok(id) = i32::try_from(id) {
        with_running(|running| running.remove(&id));
    }
}

fn with_running<T>(change: impl FnOnce(&mut BTreeSet<i32>) -> T) -> T {
    change(&mut RUNNING.lock().unwrap_or_else(PoisonError::into_inner))
}

fn kill_process(id: i32) {
    // It may have ended already.
    let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
}
