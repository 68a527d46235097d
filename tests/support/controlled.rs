//! A server with a control socket, and the commands of `turnserver ctl` to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::client::{Client, Login, Session};
use super::{Finished, LogLine, Server, TIMEOUT, TempDir, config, run};

/// A server with a control socket.
pub(crate) struct Controlled {
    pub(crate) server: Server,
    /// The configuration that it has been started with.
    pub(crate) config: String,
    pub(crate) socket: PathBuf,
    pub(crate) directory: TempDir,
}

impl Controlled {
    /// Starts a server. `more` is added to its configuration: tables, or keys that precede them.
    pub(crate) fn start(more: &str) -> Self {
        let (keys, tables) = if more.starts_with('[') { ("", more) } else { (more, "") };
        Self::start_with(&format!("{keys}{}", config(&["127.0.0.1"], tables)))
    }

    /// Starts a server with a configuration, to which the control socket is added.
    pub(crate) fn start_with(config: &str) -> Self {
        Self::start_by(&mut Command::new(env!("CARGO_BIN_EXE_turnserver")), config)
    }

    /// The same, by a command that runs the server.
    pub(crate) fn start_by(command: &mut Command, config: &str) -> Self {
        let directory = TempDir::new();
        let socket = directory.path().join("control.sock");
        let config = format!("{config}[control]\nsocket = {socket:?}\n");
        Self { server: Server::start_by(command, &config), config, socket, directory }
    }

    /// Returns a command line with the socket.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        command.arg("ctl").arg("--socket").arg(&self.socket).args(arguments);
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        run(&mut self.command(arguments), None, TIMEOUT)
    }

    /// Runs a command that succeeds, and returns its lines.
    pub(crate) fn lines(&self, arguments: &[&str]) -> Vec<String> {
        let finished = self.run(arguments);
        assert_eq!((finished.code, &finished.stderr), (Some(0), &Vec::new()), "{arguments:?}: {finished:?}");
        finished.stdout
    }

    /// Runs a command that succeeds, and returns its JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.lines(&[&["--json"], arguments].concat()).join("\n")).unwrap()
    }

    /// Runs a command that fails, and returns its exit code and its message.
    pub(crate) fn failure(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let finished = self.run(arguments);
        assert!(finished.stdout.is_empty(), "{finished:?}");
        (finished.code, finished.stderr.join("\n"))
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.server.udp_address())
    }

    /// Makes an allocation of a user. Its client, session, and relayed address.
    pub(crate) fn allocate(&self, user: &str) -> (Client, Session, SocketAddr) {
        let client = self.client();
        let (session, relay) = client.allocate(&Login::mint(user, 600)).unwrap();
        (client, session, relay)
    }

    /// Waits for a log line of an event.
    pub(crate) fn event(&self, event: &str) -> LogLine {
        self.server.wait_for_log(|line| line.field("event").as_deref() == Some(event))
    }

    /// Returns the number of log lines of an event so far.
    pub(crate) fn events(&self, event: &str) -> usize {
        self.server.logs().iter().filter(|line| line.field("event").as_deref() == Some(event)).count()
    }
}
