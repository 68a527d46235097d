//! Ctrl-C: what runs is ended, so that whoever waits for it goes on, notices and tidies up.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The processes that were started and have not been waited for.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// From now on SIGINT, SIGTERM and SIGHUP end what was started, not this process. To be called before any thread is made.
pub(crate) fn catch() -> io::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            running(|running| running.iter().for_each(|id| end(*id)));
        }
    })?;
    Ok(())
}

/// Whether the benchmark was told to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Notes a process that was started.
pub(crate) fn started(id: u32) {
    if let Ok(id) = i32::try_from(id) {
        running(|running| running.insert(id));
        if interrupted() {
            end(id);
        }
    }
}

/// Forgets a process before it is waited for, after which its id may be another's.
pub(crate) fn ended(id: u32) {
    if let Ok(id) = i32::try_from(id) {
        running(|running| running.remove(&id));
    }
}

fn running<T>(change: impl FnOnce(&mut BTreeSet<i32>) -> T) -> T {
    change(&mut RUNNING.lock().unwrap_or_else(PoisonError::into_inner))
}

fn end(id: i32) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
}
