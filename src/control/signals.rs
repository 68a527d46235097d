//! The signals of the process.

use std::io;
use std::task::{Context, Poll};

use libc::c_int;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals without an effect, which would otherwise end the process without a log line. The real-time signals are
/// ignored, too.
const IGNORED: [(c_int, &str); 8] = [
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    (libc::SIGSTKFLT, "SIGSTKFLT"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    // The kernel sends it for a write beyond the limit of a file's size. Without its default effect, the write fails.
    (libc::SIGXFSZ, "SIGXFSZ"),
];

/// The signals that the process handles.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user: Signal,
    ignored: Vec<(c_int, Signal)>,
}

/// A signal that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP.
    Hangup,
    /// SIGUSR1.
    Drain,
    /// A signal without an effect.
    Ignored(c_int),
}

impl Signals {
    /// Installs the handlers. It must be called within a tokio runtime.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub(super) fn install() -> io::Result<Self> {
        let numbers = IGNORED.iter().map(|(number, _)| *number).chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
        let ignored = numbers.map(|number| Ok((number, signal(SignalKind::from_raw(number))?)));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
            ignored: ignored.collect::<io::Result<_>>()?,
        })
    }

    /// Waits for a signal. SIGXFSZ is reported only once: if the log file has reached the limit, each log line causes
    /// another one.
    pub(super) async fn next(&mut self) -> Received {
        let Self { interrupt, terminate, hangup, user, ignored } = self;
        tokio::select! {
            _ = interrupt.recv() => Received::Interrupt,
            _ = terminate.recv() => Received::Terminate,
            _ = hangup.recv() => Received::Hangup,
            _ = user.recv() => Received::Drain,
            number = std::future::poll_fn(|cx| poll_ignored(ignored, cx)) => {
                // Its handler stays installed.
                ignored.retain(|(other, _)| number != libc::SIGXFSZ || *other != number);
                Received::Ignored(number)
            }
        }
    }
}

/// Waits for one of the signals without an effect.
fn poll_ignored(ignored: &mut [(c_int, Signal)], cx: &mut Context<'_>) -> Poll<c_int> {
    let received = ignored.iter_mut().find_map(|(number, signal)| signal.poll_recv(cx).is_ready().then_some(*number));
    received.map_or(Poll::Pending, Poll::Ready)
}

/// Logs a signal without an effect.
pub(super) fn log_ignored(number: c_int) {
    let signal = name(number);
    if number == libc::SIGXFSZ {
        return tracing::warn!(
            event = "signal-ignored",
            signal,
            "{signal} has no effect. If the log is a file that has reached the limit of its size (LimitFSIZE, \
             `ulimit -f`), log lines are lost: raise the limit, or empty the file. Further ones are not logged"
        );
    }
    tracing::warn!(
        event = "signal-ignored",
        signal,
        "{signal} has no effect. SIGUSR1 drains the server, and SIGTERM stops it"
    );
}

fn name(number: c_int) -> String {
    let known = IGNORED.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("SIGRTMIN+{}", number - libc::SIGRTMIN()), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_without_an_effect_has_its_name() {
        assert_eq!(name(libc::SIGUSR2), "SIGUSR2");
        assert_eq!([name(libc::SIGRTMIN()), name(libc::SIGRTMIN() + 3)], ["SIGRTMIN+0", "SIGRTMIN+3"]);
    }
}
