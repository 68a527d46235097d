//! Where the log goes, and how it looks.
//!
//! Lines go through a bounded queue to a thread that writes them. Whoever reads standard error too slowly, or not at
//! all, loses lines and not calls.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tracing::Level;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, LogLevel};

/// Lines that wait to be written.
const QUEUE: usize = 4096;

/// How long the end of the process waits for the last lines.
const PATIENCE: Duration = Duration::from_secs(1);

/// The running log; [`finish`](Self::finish) it before the process ends.
#[derive(Debug)]
pub struct Logging {
    queue: SyncSender<Entry>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Everything before it is written: say so.
    Flush(SyncSender<()>),
}

/// Sends the log of this process to standard error. To be called once.
///
/// # Errors
/// If the thread that writes cannot be started.
pub fn start(log: &crate::config::Log) -> io::Result<Logging> {
    let (queue, lines) = sync_channel(QUEUE);
    let lost = Arc::new(AtomicU64::new(0));
    let (format, count) = (log.format, Arc::clone(&lost));
    thread::Builder::new().name("log".to_owned()).spawn(move || write(&lines, &count, format, &mut io::stderr()))?;

    let level = match log.level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let queued = Queued { queue: queue.clone(), lost };
    let subscriber = fmt().with_max_level(level).with_target(false).log_internal_errors(false).with_writer(queued);
    match log.format {
        LogFormat::Text => subscriber.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(Logging { queue })
}

impl Logging {
    /// Waits until what has been logged is written, for a second at most.
    pub fn finish(&self) {
        let (written, wait) = sync_channel(1);
        // A full queue means that nobody reads.
        if self.queue.try_send(Entry::Flush(written)).is_ok() {
            // Nothing more can be done for lines that are not read in time.
            let _ = wait.recv_timeout(PATIENCE);
        }
    }
}

/// Makes the subscriber put its lines into the queue.
#[derive(Debug)]
struct Queued {
    queue: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Queued {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Queued {
    /// The subscriber writes a line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Entry::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines until the process ends. A line that cannot be written is gone; there is nowhere to tell it.
fn write(lines: &Receiver<Entry>, lost: &AtomicU64, format: LogFormat, out: &mut impl Write) {
    for entry in lines {
        match entry {
            Entry::Line(line) => {
                let _ = out.write_all(&line);
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _ = out.write_all(notice(lost, format).as_bytes());
                }
            }
            Entry::Flush(written) => {
                let _ = out.flush();
                // Whoever waited may have given up.
                let _ = written.try_send(());
            }
        }
    }
}

fn notice(lost: u64, format: LogFormat) -> String {
    let message = "lines of the log are lost here: standard error is not read fast enough";
    match format {
        LogFormat::Text => format!("WARN {message} count={lost}\n"),
        LogFormat::Json => format!("{}\n", json!({ "level": "WARN", "fields": { "message": message, "count": lost } })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_loses_lines_and_says_how_many() {
        let (queue, lines) = sync_channel(2);
        let queued = Queued { queue, lost: Arc::default() };
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            (&queued).write_all(line.as_bytes()).unwrap();
        }
        let lost = Arc::clone(&queued.lost);
        drop(queued);
        let mut out = Vec::new();
        write(&lines, &lost, LogFormat::Text, &mut out);
        let notice = "WARN lines of the log are lost here: standard error is not read fast enough count=2\n";
        assert_eq!(String::from_utf8(out).unwrap(), format!("one\n{notice}two\n"));
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        let (queue, lines) = sync_channel(2);
        let queued = Queued { queue, lost: Arc::default() };
        (&queued).write_all(b"one\n").unwrap();
        drop(queued);
        let (reader, mut out) = io::pipe().unwrap();
        drop(reader);
        write(&lines, &AtomicU64::new(0), LogFormat::Text, &mut out);
    }
}
