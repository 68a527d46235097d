//! Processes that end with the benchmark, and their resource use.

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

    /// Returns its process ID.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
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

    /// Returns the number of IPv4 packets that the network stack of its namespace has received.
    pub(crate) fn received_packets(&self) -> Outcome<u64> {
        let text = fs::read_to_string(format!("/proc/{}/net/netstat", self.0.id()))?;
        // This counter counts each packet of a merged datagram, unlike those of UDP.
        Ok(netstat(&text, "IpExt:", "InNoECTPkts").ok_or("netstat has no InNoECTPkts")?)
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

/// Returns a counter of `/proc/net/netstat`: a line with the names of a group is followed by one with the values.
fn netstat(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group)).map(str::split_whitespace);
    let (mut names, mut values) = (lines.next()?, lines.next()?);
    values.nth(names.position(|one| one == name)?)?.parse().ok()
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
        let mut last = self.take_lines();
        last.drain(..last.len().saturating_sub(KEPT_LINES));
        last.join("\n")
    }

    /// Returns the lines since the last call.
    pub(crate) fn take_lines(&self) -> Vec<String> {
        self.lines.try_iter().collect()
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

/// The CPU time of the whole machine so far, in nanoseconds, with a resolution of 10 ms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MachineCpu {
    /// Time in processes and interrupts. The kernel attributes each tick to what it interrupts, so short activities are
    /// counted wrongly if timers start them.
    pub(crate) sampled: u64,
    /// Idle time. A kernel without ticks while idle measures its beginning and end, and so what remains of the wall-clock
    /// time is the exact time of processes and interrupts.
    pub(crate) idle: u64,
    /// Time that the hypervisor took. It is not idle time.
    pub(crate) stolen: u64,
    /// The number of CPUs.
    pub(crate) cpus: u64,
}

/// The unit of CPU times in `/proc`, in nanoseconds.
const TICK: u64 = 10_000_000;

impl MachineCpu {
    pub(crate) fn read() -> Outcome<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?).ok_or_else(|| "/proc/stat has no CPU times".into())
    }

    fn parse(stat: &str) -> Option<Self> {
        // proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal in hundredths of a second.
        let fields: Vec<u64> = stat.lines().next()?.split_whitespace().skip(1).flat_map(str::parse).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal] = *fields.first_chunk::<8>()?;
        let cpus = stat.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
        Some(Self {
            sampled: (user + nice + system + irq + softirq) * TICK,
            idle: (idle + iowait) * TICK,
            stolen: steal * TICK,
            cpus: u64::try_from(cpus).ok()?,
        })
    }
}

/// Returns the CPU time of all processes so far, except for kernel threads and the processes `own`, in nanoseconds.
pub(crate) fn other_processes_cpu(own: &[u32]) -> Outcome<u64> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if !own.contains(&id) {
            // The process may have ended. Then its parent has its time.
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            ticks += ticks_of(&stat).unwrap_or(0);
        }
    }
    Ok(ticks * TICK)
}

/// Returns the CPU time of a process and of its ended children. `None` for a kernel thread, which may handle packets.
fn ticks_of(stat: &str) -> Option<u64> {
    const KERNEL_THREAD: u64 = 0x20_0000;
    // The name in parentheses may contain spaces. After it follow: state, ppid, pgrp, session, tty, tpgid, flags.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(6).map(|field| field.parse::<u64>().ok());
    let flags = fields.next()??;
    // minflt, cminflt, majflt, cmajflt, utime, stime, cutime, cstime
    let ticks = fields.skip(4).take(4).sum::<Option<u64>>()?;
    (flags & KERNEL_THREAD == 0).then_some(ticks)
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_the_machine_are_read() {
        let stat = "cpu  1 2 4 100 50 8 16 32 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5 0\n";
        let expected = MachineCpu { sampled: 310_000_000, idle: 1_500_000_000, stolen: 320_000_000, cpus: 2 };
        assert_eq!(MachineCpu::parse(stat), Some(expected));
        assert_eq!(MachineCpu::parse("cpu  1 2 4\n"), None);
    }

    #[test]
    fn the_time_of_a_process_includes_its_children() {
        let stat = |flags| format!("7 (a ) b) S 1 7 7 0 -1 {flags} 10 20 30 40 1 2 4 8 20 0 1 0 99");
        assert_eq!(ticks_of(&stat(0x40_0000)), Some(15));
        assert_eq!(ticks_of(&stat(0x20_8040)), None);
        assert_eq!(ticks_of(""), None);
    }

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InOctets InNoECTPkts\nIpExt: 3 4\n";
        assert_eq!(netstat(text, "IpExt:", "InNoECTPkts"), Some(4));
        assert_eq!(netstat(text, "IpExt:", "B"), None);
    }
}
