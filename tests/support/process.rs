//! Processes that do not outlive the test. Their output is collected while they run.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// The lines that a process has written to one of its outputs.
#[derive(Clone)]
pub(crate) struct Lines(Arc<(Mutex<Written>, Condvar)>);

#[derive(Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn collect(output: impl Read + Send + 'static) -> Self {
        let lines = Self(Arc::default());
        let sink = lines.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
                sink.lock().lines.push(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned());
                sink.0.1.notify_all();
                line.clear();
            }
            sink.lock().ended = true;
            sink.0.1.notify_all();
        });
        lines
    }

    pub(crate) fn so_far(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// Waits until `find` returns a value for the lines written so far. `None` if the output ends or `limit` passes
    /// first.
    pub(crate) fn wait_for<T>(&self, limit: Duration, mut find: impl FnMut(&[String]) -> Option<T>) -> Option<T> {
        let mut found = None;
        let pending = |written: &mut Written| {
            found = find(&written.lines);
            found.is_none() && !written.ended
        };
        drop(self.0.1.wait_timeout_while(self.lock(), limit, pending).unwrap());
        found
    }

    /// Waits until the process closes the output. Returns `false` if `limit` passes first.
    pub(crate) fn wait_for_end(&self, limit: Duration) -> bool {
        self.0.1.wait_timeout_while(self.lock(), limit, |written| !written.ended).unwrap().0.ended
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.0.lock().unwrap()
    }
}

/// A running program. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    name: String,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The exit code. `None` if a signal ended the process.
    pub(crate) code: Option<i32>,
    /// The signal that ended the process.
    pub(crate) signal: Option<Signal>,
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

impl Process {
    /// Starts `command`. `package` is its Debian package, for the error message if it is missing.
    pub(crate) fn start(command: &mut Command, package: Option<&str>) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| match package {
            Some(package) => panic!("{name} does not start ({error}): apt-get install {package}"),
            None => panic!("{name} does not start: {error}"),
        });
        let stdout = Lines::collect(child.stdout.take().unwrap());
        let stderr = Lines::collect(child.stderr.take().unwrap());
        Self { child, name, stdout, stderr }
    }

    /// Starts a program whose standard output and standard error are one terminal. `stdout` has the lines of both.
    pub(crate) fn start_on_terminal(mut command: Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let child = command.stdin(Stdio::piped()).stdout(slave.try_clone().unwrap()).stderr(slave).spawn().unwrap();
        // The command has the program's side of the terminal. The output ends when nothing has it open.
        drop(command);
        Self { child, name, stdout: Lines::collect(File::from(master)), stderr: Lines::collect(io::empty()) }
    }

    /// Starts a program with these outputs. An output has lines only if it is piped.
    pub(crate) fn start_with(command: &mut Command, stdout: Stdio, stderr: Stdio) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command.stdin(Stdio::piped()).stdout(stdout).stderr(stderr).spawn().unwrap();
        let none = || Lines::collect(io::empty());
        let stdout = child.stdout.take().map_or_else(none, Lines::collect);
        let stderr = child.stderr.take().map_or_else(none, Lines::collect);
        Self { child, name, stdout, stderr }
    }

    /// Takes the standard input. Dropping it closes the input.
    pub(crate) fn take_stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        signal::kill(self.pid(), Signal::SIGTERM).unwrap();
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        signal::kill(self.pid(), Signal::SIGINT).unwrap();
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        signal::kill(self.pid(), signal).unwrap();
    }

    /// Waits for the end. Panics, and thereby kills the process, if `limit` passes first.
    pub(crate) fn finish(mut self, limit: Duration) -> Finished {
        drop(self.child.stdin.take());
        if !(self.stdout.wait_for_end(limit) && self.stderr.wait_for_end(limit)) {
            panic!("{} did not end within {limit:?}; its output:\n{}", self.name, self.output());
        }
        let status = self.child.wait().unwrap();
        let signal = status.signal().map(|signal| Signal::try_from(signal).unwrap());
        Finished { code: status.code(), signal, stdout: self.stdout.so_far(), stderr: self.stderr.so_far() }
    }

    /// Returns everything written so far, for error messages.
    pub(crate) fn output(&self) -> String {
        let mut lines = self.stdout.so_far();
        lines.extend(self.stderr.so_far());
        lines.join("\n")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.id().try_into().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program to its end, within `limit`, with an empty standard input.
pub(crate) fn run(command: &mut Command, package: Option<&str>, limit: Duration) -> Finished {
    Process::start(command, package).finish(limit)
}
