//! The log: output and format.
//!
//! Lines go through a bounded queue to a thread that writes them to standard error. If standard error is not read fast
//! enough, lines are lost; the relay does not wait, and the process ends nevertheless.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer, format};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, reload};

use super::text_fields::TextFields;
use crate::config::{LogFormat, LogLevel};

/// The maximum number of queued lines.
const QUEUE_LENGTH: usize = 4096;

/// How long a thread waits until lines are written: the last ones of the process, and those that bypass the queue.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// The running log. Call [`flush`](Self::flush) before the process exits.
#[derive(Debug)]
pub struct Logging {
    queue: SyncSender<Entry>,
    level: reload::Handle<LevelFilter, Registry>,
    layout: Layout,
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
    let (layout, count) = (Layout::new(log.format, is_journal(io::stderr())), Arc::clone(&lost));
    let of_writer = layout.clone();
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write(&lines, &count, &of_writer, Output { stream: &mut io::stderr(), torn: &TORN }))?;

    let (filter, level) = reload::Layer::new(filter(log.level));
    let queued = Queued { queue: queue.clone(), lost };
    let no_color = std::env::var_os("NO_COLOR");
    let colored = !layout.journal && is_colored(io::stderr().is_terminal(), no_color.as_deref());
    let lines = fmt::layer().log_internal_errors(false).with_writer(queued).with_ansi(colored);
    let lines = lines.fmt_fields(TextFields).event_format(Lines { layout: layout.clone() });
    // The server logs itself what happens to the connection to the engine of a fleet.
    let own = filter_fn(|metadata| !metadata.target().starts_with("async_nats"));
    tracing_subscriber::registry().with(filter).with(lines.with_filter(own)).init();
    let of_panics = layout.clone();
    std::panic::set_hook(Box::new(move |panic| report_panic(panic, &of_panics)));
    Ok(Logging { queue, level, layout })
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Writes a panic as one line, and a backtrace if `RUST_BACKTRACE` asks for one. It does not use the queue, because the
/// process may end before the queue is empty.
fn report_panic(panic: &PanicHookInfo<'_>, layout: &Layout) {
    let name = thread::current().name().unwrap_or("unnamed").to_owned();
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let mut text = panic_line(&name, &place, panic.payload_as_str().unwrap_or("no message"), layout);
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        let prefix = if layout.journal { priority(Level::ERROR) } else { "" };
        text.extend(backtrace.to_string().lines().map(|line| format!("{prefix}{line}\n")));
    }
    write_directly(text);
}

/// Writes text to standard error without the queue. If standard error is not read, it returns after one second, and the
/// text is lost.
pub fn write_directly(text: String) {
    let text: Arc<str> = text.into();
    let (written, wait) = sync_channel(1);
    // The thread of the log may hold the lock of standard error for as long as it is not read, so another
    // thread waits for it.
    let work = {
        let text = Arc::clone(&text);
        move || {
            write_to_stderr(&text);
            // The receiver may have timed out.
            let _ = written.try_send(());
        }
    };
    match thread::Builder::new().name("error-writer".to_owned()).spawn(work) {
        Ok(_) => drop(wait.recv_timeout(WRITE_TIMEOUT)),
        // The limit of threads may be the error that the text is about.
        Err(_) => write_to_stderr(&text),
    }
}

/// A line that cannot be written is lost; the failure cannot be reported.
fn write_to_stderr(text: &str) {
    let _ = Output { stream: &mut io::stderr(), torn: &TORN }.write_lines(text.as_bytes());
}

/// The form of the lines.
#[derive(Clone, Debug)]
struct Layout {
    /// Otherwise they are text.
    json: Arc<AtomicBool>,
    /// The lines go to systemd's journal.
    journal: bool,
}

impl Layout {
    fn new(format: LogFormat, journal: bool) -> Self {
        Self { json: Arc::new(AtomicBool::new(format == LogFormat::Json)), journal }
    }

    fn format(&self) -> LogFormat {
        if self.json.load(Ordering::Relaxed) { LogFormat::Json } else { LogFormat::Text }
    }
}

/// Returns whether a stream is connected to systemd's journal: `JOURNAL_STREAM` contains its device and inode numbers
/// (systemd.exec(5)).
fn is_journal(stream: impl AsFd) -> bool {
    let Some(journal) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let file = stream.as_fd().try_clone_to_owned().map(File::from);
    file.and_then(|file| file.metadata())
        .is_ok_and(|metadata| journal == *format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// Returns the prefix of a line on standard error that is not a log event but an error of the process, such as a failed
/// start.
#[must_use]
pub fn error_prefix() -> &'static str {
    if is_journal(io::stderr()) { priority(Level::ERROR) } else { "" }
}

/// Returns the prefix of a warning on standard output.
#[must_use]
pub fn warning_prefix() -> &'static str {
    if is_journal(io::stdout()) { priority(Level::WARN) } else { "" }
}

/// Returns the priority that the journal reads from the start of a line (sd-daemon(3)).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Returns whether the level and the fields are colored (<https://no-color.org>).
fn is_colored(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Writes the lines in the present format. In the journal, a priority precedes each line, and the journal has the time.
struct Lines {
    layout: Layout,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, cx: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        if self.layout.journal {
            line.write_str(priority(*event.metadata().level()))?;
        }
        match (self.layout.format(), self.layout.journal) {
            (LogFormat::Text, true) => format().without_time().with_target(false).format_event(cx, line, event),
            (LogFormat::Json, true) => format().json().without_time().with_target(false).format_event(cx, line, event),
            (LogFormat::Text, false) => format().with_target(false).format_event(cx, line, event),
            (LogFormat::Json, false) => format().json().with_target(false).format_event(cx, line, event),
        }
    }
}

impl Logging {
    /// Changes the level.
    pub fn set_level(&self, level: LogLevel) {
        // This fails only after the subscriber is gone, and it is never removed.
        let _ = self.level.modify(|present| *present = filter(level));
    }

    /// Changes the format.
    pub fn set_format(&self, format: LogFormat) {
        self.layout.json.store(format == LogFormat::Json, Ordering::Relaxed);
    }

    /// Waits until all lines are written, for one second at most.
    pub fn flush(&self) {
        let (written, wait) = sync_channel(1);
        // If the queue is full, standard error is not being read.
        if self.queue.try_send(Entry::Flush(written)).is_ok() {
            // Lines that are not read in time are lost.
            let _ = wait.recv_timeout(WRITE_TIMEOUT);
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

/// Writes lines until the process exits. A line that cannot be written is lost, which is reported after the next one
/// that can be written.
fn write(lines: &Receiver<Entry>, lost: &AtomicU64, layout: &Layout, mut log: Output<'_, impl Write>) {
    // The lines that were not read in time, and those that could not be written.
    let (mut unread, mut failed) = (0, 0);
    let mut reason = String::new();
    for entry in lines {
        match entry {
            Entry::Line(line) => {
                if let Err(error) = log.write_lines(&line) {
                    failed += 1;
                    reason = format!("standard error could not be written: {error}");
                    continue;
                }
                unread += lost.swap(0, Ordering::Relaxed);
                for (count, reason) in [(&mut unread, NOT_READ), (&mut failed, reason.as_str())] {
                    // A notice that cannot be written follows a later line.
                    if *count > 0 && log.write_lines(notice(*count, reason, layout).as_bytes()).is_ok() {
                        *count = 0;
                    }
                }
            }
            Entry::Flush(written) => {
                let _ = log.stream.flush();
                // The receiver may have timed out.
                let _ = written.try_send(());
            }
        }
    }
}

/// Whether only the beginning of the last line on standard error was written. A thread holds it while it writes, so that
/// lines that bypass the queue do not become parts of others.
static TORN: Mutex<bool> = Mutex::new(false);

/// Writes whole lines.
struct Output<'w, W> {
    stream: &'w mut W,
    /// Only the beginning of the last line was written.
    torn: &'w Mutex<bool>,
}

impl<W: Write> Output<'_, W> {
    /// Writes one or more lines. They begin on a line of their own, also after one that was cut off when the disk became
    /// full.
    fn write_lines(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut torn = self.torn.lock().unwrap_or_else(PoisonError::into_inner);
        if *torn {
            self.stream.write_all(b"\n")?;
            *torn = false;
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    let (written, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
                    *torn = !written.ends_with(b"\n");
                    rest = after;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The event of the notice, which does not pass through the queue.
const LINES_LOST: &str = "lines-lost";

/// Why the queue was full.
const NOT_READ: &str = "standard error is not read fast enough";

fn notice(lost: u64, reason: &str, layout: &Layout) -> String {
    let message = format!("log lines were lost here because {reason}");
    line(Level::WARN, &message, &[("event", LINES_LOST.into()), ("count", lost.into())], layout)
}

/// The event of a panic, which does not pass through the queue.
const PANIC: &str = "panic";

fn panic_line(thread: &str, place: &str, text: &str, layout: &Layout) -> String {
    let message = "a thread panicked. This is a bug; please report it";
    let fields = [("event", PANIC.into()), ("thread", thread.into()), ("place", place.into()), ("reason", text.into())];
    line(Level::ERROR, message, &fields, layout)
}

/// Returns a line that does not pass through the subscriber, in the form of its lines.
fn line(level: Level, message: &str, fields: &[(&str, Value)], layout: &Layout) -> String {
    let (prefix, time) = if layout.journal { (priority(level), None) } else { ("", Some(timestamp())) };
    match layout.format() {
        LogFormat::Text => {
            let time = time.map(|time| format!("{time} ")).unwrap_or_default();
            let mut line = format!("{prefix}{time}{level:>5} {message}");
            for (name, value) in fields {
                line += &match value {
                    // The same quotes as those of `TextFields`.
                    Value::String(text) => format!(" {name}={text:?}"),
                    value => format!(" {name}={value}"),
                };
            }
            line + "\n"
        }
        LogFormat::Json => {
            let mut all = Map::from_iter([("message".to_owned(), message.into())]);
            all.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
            let mut line =
                Map::from_iter([("level".to_owned(), level.as_str().into()), ("fields".to_owned(), all.into())]);
            line.extend(time.map(|time| ("timestamp".to_owned(), time.into())));
            format!("{prefix}{}\n", Value::Object(line))
        }
    }
}

/// Returns the time as the subscriber writes it.
fn timestamp() -> String {
    let mut time = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_one_line_with_a_priority_in_the_journal() {
        let line = |format, journal| {
            panic_line("worker-0", "src/a.rs:1:2", "left: 1\nright: 2", &Layout::new(format, journal))
        };
        let text = "ERROR a thread panicked. This is a bug; please report it event=\"panic\" thread=\"worker-0\" \
                    place=\"src/a.rs:1:2\" reason=\"left: 1\\nright: 2\"\n";
        assert_eq!(line(LogFormat::Text, true), format!("<3>{text}"));
        let json = line(LogFormat::Json, true);
        assert!(json.starts_with("<3>{") && json.lines().count() == 1, "{json}");
        let json: Value = serde_json::from_str(&json[3..]).unwrap();
        assert_eq!(json["fields"]["reason"], "left: 1\nright: 2");
        assert_eq!(json.get("timestamp"), None);
    }

    #[test]
    fn a_panic_outside_the_journal_has_the_time_like_other_lines() {
        let line = |format| panic_line("worker-0", "src/a.rs:1:2", "why", &Layout::new(format, false));
        let is_time = |text: &str| text.starts_with("20") && text.contains('T') && text.ends_with('Z');
        let text = line(LogFormat::Text);
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(is_time(time) && rest.starts_with("ERROR a thread panicked."), "{text}");
        let json: Value = serde_json::from_str(&line(LogFormat::Json)).unwrap();
        assert!(is_time(json["timestamp"].as_str().unwrap()), "{json}");
    }

    #[test]
    fn a_stalled_standard_error_does_not_keep_a_thread_that_writes_a_panic() {
        // The thread of the log holds the lock for as long as standard error is not read.
        let _stalled = io::stderr().lock();
        write_directly(String::new());
    }

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
        write(
            &lines,
            &lost,
            &Layout::new(LogFormat::Text, true),
            Output { stream: &mut out, torn: &Mutex::new(false) },
        );
        let notice = "<4> WARN log lines were lost here because standard error is not read fast enough \
                      event=\"lines-lost\" count=2\n";
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
        write(
            &lines,
            &AtomicU64::new(0),
            &Layout::new(LogFormat::Text, false),
            Output { stream: &mut out, torn: &Mutex::new(false) },
        );
    }

    /// A file that refuses some writes, like one that has reached the limit of its size until it is emptied.
    struct Refusing {
        /// The number of bytes before the first refusal, if there is one.
        room: usize,
        refusals: u8,
        written: Vec<u8>,
    }

    impl Write for Refusing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.refusals == 0 {
                return self.written.write(bytes);
            }
            if self.room > 0 {
                let count = self.written.write(&bytes[..bytes.len().min(self.room)])?;
                self.room -= count;
                return Ok(count);
            }
            self.refusals -= 1;
            Err(io::Error::from_raw_os_error(libc::EFBIG))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_could_not_be_written_are_counted_when_one_can_be_written_again() {
        let (queue, lines) = sync_channel(4);
        let queued = Queued { queue, lost: Arc::default() };
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            (&queued).write_all(line.as_bytes()).unwrap();
        }
        drop(queued);
        let mut out = Refusing { room: 0, refusals: 2, written: Vec::new() };
        write(
            &lines,
            &AtomicU64::new(0),
            &Layout::new(LogFormat::Text, true),
            Output { stream: &mut out, torn: &Mutex::new(false) },
        );
        let notice = "<4> WARN log lines were lost here because standard error could not be written: File too large \
                      (os error 27) event=\"lines-lost\" count=2\n";
        assert_eq!(String::from_utf8(out.written).unwrap(), format!("three\n{notice}four\n"));
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_spoil_the_next_one_and_counts_as_lost() {
        let (queue, lines) = sync_channel(4);
        let queued = Queued { queue, lost: Arc::default() };
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            (&queued).write_all(line.as_bytes()).unwrap();
        }
        drop(queued);
        // The line break before `three` is refused, too.
        let mut out = Refusing { room: 6, refusals: 2, written: Vec::new() };
        write(
            &lines,
            &AtomicU64::new(0),
            &Layout::new(LogFormat::Text, true),
            Output { stream: &mut out, torn: &Mutex::new(false) },
        );
        let written = String::from_utf8(out.written).unwrap();
        assert!(written.starts_with("one\ntw\nfour\n<4> WARN ") && written.ends_with(" count=2\n"), "{written}");
    }

    #[test]
    fn a_line_that_bypasses_the_queue_begins_on_a_line_of_its_own_after_one_that_was_cut_off() {
        let torn = Mutex::new(false);
        let mut file = Refusing { room: 3, refusals: 1, written: Vec::new() };
        assert!(Output { stream: &mut file, torn: &torn }.write_lines(b"one\n").is_err());
        Output { stream: &mut file, torn: &torn }.write_lines(b"a panic\nits backtrace\n").unwrap();
        Output { stream: &mut file, torn: &torn }.write_lines(b"two\n").unwrap();
        assert_eq!(String::from_utf8(file.written).unwrap(), "one\na panic\nits backtrace\ntwo\n");
    }

    // A call below the level must not reach the subscriber, because some are in the data path.
    #[test]
    fn the_level_is_that_of_the_whole_process_and_can_change() {
        let (filter, level) = reload::Layer::new(filter(LogLevel::Info));
        let subscriber = tracing_subscriber::registry().with(filter).with(fmt::layer());
        assert_eq!(subscriber.max_level_hint(), Some(LevelFilter::INFO));
        let log = Logging { queue: sync_channel(1).0, level, layout: Layout::new(LogFormat::Text, false) };
        log.set_level(LogLevel::Debug);
        assert_eq!(subscriber.max_level_hint(), Some(LevelFilter::DEBUG));
    }

    #[test]
    fn only_a_terminal_without_no_color_is_colored() {
        assert!(is_colored(true, None));
        assert!(is_colored(true, Some(OsStr::new(""))));
        assert!(!is_colored(true, Some(OsStr::new("1"))));
        assert!(!is_colored(false, None));
    }
}
