//! The command as an operator starts it: with any arguments, any log format, and any way to end it.

use std::net::SocketAddr;
use std::process::Command;

use crate::support::{Finished, LogLine, PATIENCE, Process, TempDir, config, run};

/// So that every packet of a test that sends many has an answer to wait for.
pub(crate) const ANSWER_ALL: &str = "[limits]\nunverified-replies = 0\n";

/// A `turnserver` that has said that it is ready. Dropping it kills it.
pub(crate) struct Running {
    pub(crate) process: Process,
    _directory: TempDir,
}

impl Running {
    /// Starts the server in a directory whose `turnserver.toml` is `config`.
    pub(crate) fn start(config: &str, arguments: &[&str]) -> Self {
        let running = Self::begin(config, arguments);
        running.wait_for_line(is_ready);
        running
    }

    /// The same without waiting, for a server that does not log that it is ready.
    pub(crate) fn begin(config: &str, arguments: &[&str]) -> Self {
        Self::begin_in(TempDir::new(), config, arguments, &[])
    }

    /// The same in a directory that has more in it, with more in the environment.
    pub(crate) fn begin_in(directory: TempDir, config: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        directory.write("turnserver.toml", config);
        let process = Process::start(command(&directory, arguments).envs(environment.iter().copied()), None);
        Self { process, _directory: directory }
    }

    /// Waits for a line on standard error, be it written already or still to come.
    pub(crate) fn wait_for_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        let line = self.process.stderr.wait_for(PATIENCE, |lines| lines.iter().find(|line| wanted(line)).cloned());
        line.unwrap_or_else(|| panic!("the awaited line did not come; the server said:\n{}", self.process.said()))
    }

    /// The addresses of the `listening` lines of a transport, of either log format.
    pub(crate) fn listening(&self, transport: &str) -> Vec<SocketAddr> {
        let of_text = |line: &str| {
            let (name, address) = line.split_once(" listening ")?.1.split_once(" address=")?;
            (name == format!("transport={transport:?}")).then(|| address.parse().ok()).flatten()
        };
        let of_json = |line: &str| {
            let line = LogLine::parse(line);
            let wanted = line.message() == "listening" && line.field("transport").as_deref() == Some(transport);
            wanted.then(|| line.field("address")?.parse().ok()).flatten()
        };
        self.process.stderr.so_far().iter().filter_map(|line| of_text(line).or_else(|| of_json(line))).collect()
    }

    /// The UDP address of a server that has one.
    pub(crate) fn address(&self) -> SocketAddr {
        let listening = self.listening("udp");
        assert_eq!(listening.len(), 1, "{}", self.process.said());
        listening[0]
    }

    pub(crate) fn terminate(self) -> Finished {
        self.process.terminate();
        self.process.finish(PATIENCE)
    }

    pub(crate) fn interrupt(self) -> Finished {
        self.process.interrupt();
        self.process.finish(PATIENCE)
    }
}

/// Whether a line, of either log format, says that the server is ready.
pub(crate) fn is_ready(line: &str) -> bool {
    line.contains(" INFO ready ") || LogLine::parse(line).message() == "ready"
}

/// Runs the command to its end in `directory`.
pub(crate) fn turnserver(directory: &TempDir, arguments: &[&str]) -> Finished {
    run(&mut command(directory, arguments), None, PATIENCE)
}

/// The line of a command that fails: the last one, and the only one that is not of the log.
#[track_caller]
pub(crate) fn failure(finished: &Finished) -> &str {
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(finished.stdout, [""; 0], "{finished:?}");
    let of_log = |line: &&String| line.contains(" INFO ") || line.contains(" WARN ");
    let (last, before) = finished.stderr.split_last().unwrap();
    assert!(before.iter().all(|line| of_log(&line)), "{finished:?}");
    last.strip_prefix("turnserver: ").unwrap_or_else(|| panic!("{finished:?}"))
}

/// A test configuration with a log for people.
pub(crate) fn text_config(addresses: &[&str], more: &str) -> String {
    as_text(&config(addresses, more))
}

pub(crate) fn as_text(config: &str) -> String {
    config.replace("format = \"json\"", "format = \"text\"")
}

fn command(directory: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
    command.args(arguments).current_dir(directory.path());
    command
}
