//! Threads that give way to the workers.

use std::future::Future;
use std::io;
use std::thread::{Builder, JoinHandle};

use tokio::task::LocalSet;

use super::sys;

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
    };
    Builder::new().name(name.to_owned()).spawn(run)
}
