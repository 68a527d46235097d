//! The clock of the load generator. The kernel uses it for the arrival times of datagrams, and all processes share it.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// Nanoseconds in a second.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Nanoseconds in a millisecond.
pub(crate) const MILLISECOND: u64 = 1_000_000;

/// Returns the nanoseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    // The call does not fail for this clock on Linux.
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, nanoseconds)
}

/// Sleeps until [`now`] reaches `deadline`.
pub(crate) fn sleep_until(deadline: u64) {
    let at = TimeSpec::from_duration(Duration::from_nanos(deadline));
    while clock_nanosleep(ClockId::CLOCK_REALTIME, ClockNanosleepFlags::TIMER_ABSTIME, &at) == Err(Errno::EINTR) {}
}

/// Converts a kernel time to nanoseconds since the Unix epoch.
pub(crate) fn nanoseconds(at: TimeSpec) -> u64 {
    let (seconds, rest) = (u64::try_from(at.tv_sec()), u64::try_from(at.tv_nsec()));
    seconds.unwrap_or(0) * SECOND + rest.unwrap_or(0)
}

/// Disables the timer slack, which delays wakeups of this thread by up to 50 µs.
pub(crate) fn sleep_precisely() {
    // If this fails, packets are sent slightly late.
    let _ = nix::sys::prctl::set_timerslack(1);
}
