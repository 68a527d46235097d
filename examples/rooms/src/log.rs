//! The log: one line per event on standard error. Names and addresses of users appear at the level `debug` only.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts the log. Lines below `level` are not written.
pub fn start(level: LevelFilter) {
    // The WebRTC library names candidates in its lines, and has much to say.
    let of_libraries = if level >= LevelFilter::DEBUG { level } else { LevelFilter::ERROR };
    let targets = Targets::new().with_default(of_libraries).with_target("rooms", level);
    let lines = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // A second start, as in tests, keeps the first log.
    let _ = tracing_subscriber::registry().with(lines).with(targets).try_init();
}
