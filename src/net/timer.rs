//! Short pauses of the calling thread.

use std::thread;
use std::time::Duration;

/// The longest duration of a [`pause`].
pub(crate) const MAX_PAUSE: Duration = Duration::from_micros(150);

/// Minimizes the timer slack of the calling thread (`PR_SET_TIMERSLACK`). Threads that it starts later inherit this.
///
/// By default, the kernel lets timers fire up to 50 µs late in order to wake up less often.
///
/// # Errors
/// Those of `prctl`. None is expected.
pub(crate) fn minimize_timer_slack() -> std::io::Result<()> {
    Ok(nix::sys::prctl::set_timerslack(1)?)
}

/// Lets the calling thread sleep for at most [`MAX_PAUSE`].
///
/// It returns about 30 µs late because the thread has to be woken, or 70 µs late without [`minimize_timer_slack`].
pub(crate) fn pause(duration: Duration) {
    thread::sleep(duration.min(MAX_PAUSE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_slack_changes_only_for_the_calling_thread() {
        let slack = || nix::sys::prctl::get_timerslack().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                minimize_timer_slack().unwrap();
                assert_eq!(slack(), 1);
            });
        });
        assert!(slack() > 1);
    }
}
