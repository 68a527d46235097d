//! Threads that give way to the workers.

use std::future::Future;
use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::task::LocalSet;

use super::sys;

/// The time at the end for calls that block, such as a file that is being written. A name that is being resolved may take
/// much longer.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Starts a thread with a runtime of its own for one future. Where threads compete for a CPU, it gets about a tenth of
/// what a worker gets.
///
/// # Errors
/// If the thread or its runtime cannot be created.
pub(crate) fn start<F: Future<Output = ()>>(
    name: &'static str,
    run: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        if let Err(error) = sys::lower_priority() {
            tracing::debug!(
                event = "priority-unchanged", thread = name, %error, "a thread competes with the workers for the CPU"
            );
        }
        LocalSet::new().block_on(&runtime, async { run().await });
        runtime.shutdown_timeout(LAST_CALLS);
    };
    Builder::new().name(name.to_owned()).spawn(run)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_call_that_blocks_does_not_hold_up_the_end_of_a_thread() {
        let (release, blocked) = mpsc::channel::<()>();
        let thread = start("test", || async {
            drop(tokio::task::spawn_blocking(move || blocked.recv()));
        });
        thread.unwrap().join().unwrap();
        // The call is still there.
        release.send(()).unwrap();
    }
}
