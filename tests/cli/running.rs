//! Runs the command with any arguments and log format.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::support::{Finished, LogLine, Process, TIMEOUT, TempDir, config, run};

/// Disables the rate limit of unauthenticated responses, so that a test can wait for a response to every packet.
pub(crate) const UNLIMITED_RESPONSES: &str = "[limits]\nunverified-responses = 0\nfailed-authentications = 0\n";

/// A running `turnserver`. Dropping it kills it.
pub(crate) struct Running {
    pub(crate) process: Process,
    _directory: TempDir,
}

impl Running {
    /// Starts the server in a directory with `config` as `turnserver.toml`, and waits until it is ready.
    pub(crate) fn start(config: &str, arguments: &[&str]) -> Self {
        let running = Self::begin(config, arguments);
        running.wait_for_line(is_ready);
        running
    }

    /// Like `start`, without waiting.
    pub(crate) fn begin(config: &str, arguments: &[&str]) -> Self {
        Self::begin_in(TempDir::new(), config, arguments, &[])
    }

    /// Like `begin`, in an existing directory and with additional environment variables.
    pub(crate) fn begin_in(directory: TempDir, config: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        directory.write("turnserver.toml", config);
        let process = Process::start(command(&directory, arguments).envs(environment.iter().copied()), None);
        Self { process, _directory: directory }
    }

    /// Takes over a server whose configuration is in the directory.
    pub(crate) fn new(process: Process, directory: TempDir) -> Self {
        Self { process, _directory: directory }
    }

    /// Waits for a line on standard error, which may already be written.
    pub(crate) fn wait_for_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        let line = self.process.stderr.wait_for(TIMEOUT, |lines| lines.iter().find(|line| wanted(line)).cloned());
        line.unwrap_or_else(|| panic!("no such line; server output:\n{}", self.process.output()))
    }

    /// Returns the addresses of a transport's `listening` lines, in either log format.
    pub(crate) fn listening(&self, transport: &str) -> Vec<SocketAddr> {
        let of_text = |line: &str| {
            let (name, address) = line.split_once(" listening event=\"listening\" ")?.1.split_once(" address=")?;
            (name == format!("transport={transport:?}")).then(|| address.parse().ok()).flatten()
        };
        let of_json = |line: &str| {
            let line = LogLine::parse(line);
            let wanted = line.message() == "listening" && line.field("transport").as_deref() == Some(transport);
            wanted.then(|| line.field("address")?.parse().ok()).flatten()
        };
        self.process.stderr.so_far().iter().filter_map(|line| of_text(line).or_else(|| of_json(line))).collect()
    }

    /// Returns the UDP address of a server with one UDP listener.
    pub(crate) fn address(&self) -> SocketAddr {
        let listening = self.listening("udp");
        assert_eq!(listening.len(), 1, "{}", self.process.output());
        listening[0]
    }

    /// Waits for the end of a server that has got a signal.
    pub(crate) fn finish(self) -> Finished {
        self.process.finish(TIMEOUT)
    }

    pub(crate) fn terminate(self) -> Finished {
        self.process.terminate();
        self.process.finish(TIMEOUT)
    }

    pub(crate) fn interrupt(self) -> Finished {
        self.process.interrupt();
        self.process.finish(TIMEOUT)
    }
}

/// Returns whether a line, in either log format, is the `ready` event.
pub(crate) fn is_ready(line: &str) -> bool {
    line.contains(" INFO ready ") || LogLine::parse(line).message() == "ready"
}

/// Runs the command to its end in `directory`.
pub(crate) fn turnserver(directory: &TempDir, arguments: &[&str]) -> Finished {
    run(&mut command(directory, arguments), None, TIMEOUT)
}

/// Returns the error of a failed command: the last line, and the only one that is not a log event.
#[track_caller]
pub(crate) fn failure(finished: &Finished) -> &str {
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(finished.stdout, [""; 0], "{finished:?}");
    let of_log = |line: &&String| line.contains(" INFO ") || line.contains(" WARN ");
    let (last, before) = finished.stderr.split_last().unwrap();
    assert!(before.iter().all(|line| of_log(&line)), "{finished:?}");
    last.strip_prefix("turnserver: ").unwrap_or_else(|| panic!("{finished:?}"))
}

/// Returns a test configuration with a text log.
pub(crate) fn text_config(addresses: &[&str], more: &str) -> String {
    as_text(&config(addresses, more))
}

pub(crate) fn as_text(config: &str) -> String {
    config.replace("format = \"json\"", "format = \"text\"")
}

pub(crate) fn command(directory: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
    command.args(arguments).current_dir(directory.path());
    command
}

/// Returns a stream that is not read, and its other end, to which a write blocks.
pub(crate) fn full_stream() -> (UnixStream, OwnedFd) {
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    for chunk in [&[b'x'; 4096][..], b"x"] {
        while writer.write(chunk).is_ok() {}
    }
    writer.set_nonblocking(false).unwrap();
    (reader, writer.into())
}
