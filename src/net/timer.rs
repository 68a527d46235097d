//! Short pauses of the calling thread.

use std::thread;
use std::time::Duration;

/// The longest [`pause`].
pub const LONGEST_PAUSE: Duration = Duration::from_micros(150);

/// Makes the timers of the calling thread fire when they should: by default the kernel lets them be up to 50 µs late in
/// order to wake up less often (`PR_SET_TIMERSLACK`). Threads that it starts afterwards inherit this.
///
/// # Errors
/// Those of `prctl`; there are none that a thread could do anything about.
pub fn make_precise() -> std::io::Result<()> {
    Ok(nix::sys::prctl::set_timerslack(1)?)
}

/// Lets the calling thread sleep, for [`LONGEST_PAUSE`] at most. It takes some 30 µs longer than asked for, since the
/// thread has to be woken, and 70 µs longer without [`make_precise`].
pub fn pause(duration: Duration) {
    thread::sleep(duration.min(LONGEST_PAUSE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_is_a_matter_of_the_calling_thread() {
        let slack = || nix::sys::prctl::get_timerslack().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                make_precise().unwrap();
                assert_eq!(slack(), 1);
            });
        });
        assert!(slack() > 1);
    }
}
