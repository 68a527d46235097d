//! Processes that end with the benchmark, and their resource use.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::interrupt;
use crate::load::Outcome;

/// Lines of a server's output that are kept for error messages.
const KEPT_LINES: usize = 20;

/// A process that is killed on drop.
pub(crate) struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Outcome<Self> {
        let child =
            command.spawn().map_err(|error| format!("{:?} cannot be started: {error}", command.get_program()))?;
        interrupt::started(child.id());
        Ok(Self(child))
    }

    /// Returns the CPU time of its threads so far, in nanoseconds.
    pub(crate) fn cpu(&self) -> Outcome<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            // A thread may have ended.
            let Ok(line) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            sum += first_number(&line).ok_or("schedstat has no number")?;
        }
        Ok(sum)
    }

    /// Returns its proportional set size, in bytes.
    pub(crate) fn memory(&self) -> Outcome<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id()))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("smaps_rollup has no Pss")?;
        Ok(1024 * first_number(line).ok_or("Pss has no number")?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already. It must be waited for in either case.
        let _ = self.0.kill();
        interrupt::ended(self.0.id());
        let _ = self.0.wait();
    }
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// A server and its output.
pub(crate) struct Server {
    pub(crate) process: Process,
    lines: Receiver<String>,
}

impl Server {
    /// Starts a server. Its clients wait until it is ready.
    pub(crate) fn start(command: &mut Command) -> Outcome<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::start(command)?;
        let (send, lines) = channel();
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            process.0.stdout.take().map(|stream| Box::new(stream) as _),
            process.0.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let send = send.clone();
            std::thread::spawn(move || forward(stream, |line| send.send(line).is_ok()));
        }
        Ok(Self { process, lines })
    }

    /// Returns the last lines of its output.
    pub(crate) fn last_lines(&self) -> String {
        let mut last = VecDeque::new();
        while let Ok(line) = self.lines.try_recv() {
            last.push_back(line);
            if last.len() > KEPT_LINES {
                last.pop_front();
            }
        }
        Vec::from(last).join("\n")
    }
}

/// A part of the load generator, in its own process.
pub(crate) struct Role {
    pub(crate) process: Process,
    name: &'static str,
    commands: ChildStdin,
    lines: Receiver<String>,
}

impl Role {
    /// Starts a role.
    pub(crate) fn start(name: &'static str, command: &mut Command) -> Outcome<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command)?;
        let commands = process.0.stdin.take().ok_or("the role has no input")?;
        let stdout = process.0.stdout.take().ok_or("the role has no output")?;
        let (send, lines) = channel();
        std::thread::spawn(move || forward(stdout, |line| send.send(line).is_ok()));
        Ok(Self { process, name, commands, lines })
    }

    /// Sends a command to the role.
    pub(crate) fn send_command(&mut self, command: &str) -> Outcome<()> {
        writeln!(self.commands, "{command}")
            .map_err(|error| format!("cannot send to the {}: {error}", self.name).into())
    }

    /// Waits for a line that starts with `wanted` and returns the rest of it.
    pub(crate) fn wait_for(&self, wanted: &str, timeout: Duration) -> Outcome<String> {
        let line = self.lines.recv_timeout(timeout).map_err(|error| match error {
            _ if interrupt::interrupted() => "interrupted".to_owned(),
            RecvTimeoutError::Timeout => format!("the {} did not report `{wanted}` in time", self.name),
            RecvTimeoutError::Disconnected => format!("the {} ended before it reported `{wanted}`", self.name),
        })?;
        match (line.strip_prefix(wanted), line.strip_prefix("error ")) {
            (Some(rest), _) => Ok(rest.trim().to_owned()),
            (None, Some(error)) => Err(format!("the {} failed: {error}", self.name).into()),
            (None, None) => Err(format!("the {} reported {line:?} instead of `{wanted}`", self.name).into()),
        }
    }
}

fn forward(stream: impl Read, send: impl Fn(String) -> bool) {
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        if !send(line) {
            return;
        }
    }
}

/// Returns the CPU time of the whole machine so far, in nanoseconds.
pub(crate) fn machine_cpu() -> Outcome<u64> {
    // proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal in hundredths of a second.
    let stat = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> = stat.lines().next().unwrap_or("").split_whitespace().skip(1).flat_map(str::parse).collect();
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|index| fields.get(*index)).sum::<u64>();
    Ok(busy * 10_000_000)
}
