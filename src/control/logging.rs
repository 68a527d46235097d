//! The log: output and format.
//!
//! Lines go through a bounded queue to a thread that writes them to standard error. If standard error is not read fast
//! enough, lines are lost; the relay does not wait.

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

/// The maximum number of queued lines.
const QUEUE_LENGTH: usize = 4096;

/// How long the process waits for the last lines before it exits.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The running log. Call [`finish`](Self::finish) before the process exits.
#[derive(Debug)]
pub struct Logging {
    queue: SyncSender<Entry>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Asks for a message when all preceding lines are written.
    Flush(SyncSender<()>),
}

/// Starts the log of this process on standard error. Must be called only once.
///
/// # Errors
/// If the writer thread cannot be started.
pub fn start(log: &crate::config::Log) -> io::Result<Logging> {
    let (queue, lines) = sync_channel(QUEUE_LENGTH);
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
    /// Waits until all lines are written, for one second at most.
    pub fn finish(&self) {
        let (written, wait) = sync_channel(1);
        // If the queue is full, standard error is not being read.
        if self.queue.try_send(Entry::Flush(written)).is_ok() {
            // Lines that are not read in time are lost.
            let _ = wait.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// The writer of the subscriber: puts lines into the queue.
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
    /// The subscriber writes one whole line per call.
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

/// Writes lines until the process exits. A line that cannot be written is lost; the failure cannot be reported.
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
                // The receiver may have timed out.
                let _ = written.try_send(());
            }
        }
    }
}

fn notice(lost: u64, format: LogFormat) -> String {
    let message = "log lines were lost here because standard error is not read fast enough";
    match format {
        LogFormat::Text => format!("WARN {message} count={lost}\n"),
        LogFormat::Json => format!("{}\n", json!({ "level": "WARN", "fields": { "message": message, "count": lost } })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_lines_and_logs_their_number() {
        let (queue, lines) = sync_channel(2);
        let queued = Queued { queue, lost: Arc::default() };
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            (&queued).write_all(line.as_bytes()).unwrap();
        }
        let lost = Arc::clone(&queued.lost);
        drop(queued);
        let mut out = Vec::new();
        write(&lines, &lost, LogFormat::Text, &mut out);
        let notice = "WARN log lines were lost here because standard error is not read fast enough count=2\n";
        assert_eq!(String::from_utf8(out).unwrap(), format!("one\n{notice}two\n"));
    }

    #[test]
    fn a_closed_reader_is_not_an_error() {
        let (queue, lines) = sync_channel(2);
        let queued = Queued { queue, lost: Arc::default() };
        (&queued).write_all(b"one\n").unwrap();
        drop(queued);
        let (reader, mut out) = io::pipe().unwrap();
        drop(reader);
        write(&lines, &AtomicU64::new(0), LogFormat::Text, &mut out);
    }
}
