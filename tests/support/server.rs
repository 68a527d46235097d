//! The server under test as a process.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Finished, LogLine, Process, TIMEOUT, TempDir, run};

/// A running `turnserver` that is ready. Dropping it kills it.
pub(crate) struct Server {
    process: Process,
    /// Transport and address of each listener.
    listening: Vec<(String, SocketAddr)>,
    /// The configuration that the server reads.
    config_file: PathBuf,
    /// The configuration with the ports that the kernel picked, for `turn-credential`.
    resolved_config: PathBuf,
    _directory: TempDir,
}

/// A server that was terminated.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    /// The signal that ended the process.
    pub(crate) signal: Option<Signal>,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) stdout: Vec<String>,
}

/// A credential as printed by `turn-credential mint`.
pub(crate) struct Credential {
    pub(crate) username: String,
    pub(crate) password: String,
    /// The argument of `new RTCPeerConnection(...)`.
    pub(crate) configuration: Value,
}

impl Server {
    /// Starts the server with `config` (TOML) and waits until it is ready.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_by(&mut Command::new(env!("CARGO_BIN_EXE_turnserver")), config)
    }

    /// Like `start`, with at most `open_files` descriptors.
    pub(crate) fn start_with_open_files(config: &str, open_files: u32) -> Self {
        let mut shell = Command::new("sh");
        let limited = format!("ulimit -n {open_files} && exec \"$0\" \"$@\"");
        Self::start_by(shell.args(["-c", &limited, env!("CARGO_BIN_EXE_turnserver")]), config)
    }

    /// Like `start`, with a limited address space in KiB. The error is the output of a server that does not start.
    pub(crate) fn try_start_with_address_space(config: &str, kib: u64) -> Result<Self, String> {
        let mut shell = Command::new("sh");
        let limited = format!("ulimit -v {kib} && exec \"$0\" \"$@\"");
        Self::try_start_by(shell.args(["-c", &limited, env!("CARGO_BIN_EXE_turnserver")]), config)
    }

    /// Like `start`. Returns `None` if another program uses a port of the configuration.
    pub(crate) fn start_unless_in_use(config: &str) -> Option<Self> {
        match Self::try_start_by(&mut Command::new(env!("CARGO_BIN_EXE_turnserver")), config) {
            Ok(server) => Some(server),
            Err(output) if output.contains("another program uses the port") => None,
            Err(output) => panic!("the server is not ready; its output:\n{output}"),
        }
    }

    /// Like `start`. The error is the output of a server that does not start.
    pub(crate) fn try_start_alone(config: &str) -> Result<Self, String> {
        Self::try_start_by(&mut Command::new(env!("CARGO_BIN_EXE_turnserver")), config)
    }

    /// Like `start`, by a command that runs the server, to which the arguments of the server are added.
    pub(crate) fn start_by(command: &mut Command, config: &str) -> Self {
        let started = Self::try_start_by(command, config);
        started.unwrap_or_else(|output| panic!("the server is not ready; its output:\n{output}"))
    }

    /// Like `start_by`. The error is the output of a server that is not ready.
    pub(crate) fn try_start_by(command: &mut Command, config: &str) -> Result<Self, String> {
        let directory = TempDir::new();
        let path = directory.write("turnserver.toml", config);
        let process = Process::start(command.arg("--config").arg(&path), None);
        let ready = process.stderr.wait_for(TIMEOUT, |lines| {
            lines.iter().any(|line| LogLine::parse(line).message() == "ready").then_some(())
        });
        if ready.is_none() {
            return Err(process.output());
        }

        let listening: Vec<_> = parse(&process.stderr.so_far()).iter().filter_map(listener).collect();
        let resolved_config = directory.write("resolved.toml", &with_listeners(config, &listening));
        Ok(Self { process, listening, config_file: path, resolved_config, _directory: directory })
    }

    /// Returns the UDP address of a server with one UDP listener.
    pub(crate) fn udp_address(&self) -> SocketAddr {
        self.only("udp")
    }

    /// Returns the TCP address of a server with one TCP listener.
    pub(crate) fn tcp_address(&self) -> SocketAddr {
        self.only("tcp")
    }

    /// Returns the addresses of a transport.
    pub(crate) fn listeners(&self, transport: &str) -> Vec<SocketAddr> {
        addresses(&self.listening, transport)
    }

    /// Returns the UDP address with this IP address.
    pub(crate) fn udp_address_on(&self, ip: IpAddr) -> SocketAddr {
        self.on("udp", ip)
    }

    /// Returns the TCP address with this IP address.
    pub(crate) fn tcp_address_on(&self, ip: IpAddr) -> SocketAddr {
        self.on("tcp", ip)
    }

    /// Returns the TLS address of a server with one TLS listener.
    pub(crate) fn tls_address(&self) -> SocketAddr {
        self.only("tls")
    }

    fn only(&self, transport: &str) -> SocketAddr {
        match addresses(&self.listening, transport).as_slice() {
            [address] => *address,
            _ => panic!("the server does not listen on one {transport} address:\n{}", self.process.output()),
        }
    }

    fn on(&self, transport: &str, ip: IpAddr) -> SocketAddr {
        let address = addresses(&self.listening, transport).into_iter().find(|address| address.ip() == ip);
        address.unwrap_or_else(|| panic!("the server does not listen on {transport} {ip}:\n{}", self.process.output()))
    }

    /// Returns the path of the server's configuration, with the real ports instead of port 0.
    pub(crate) fn config_path(&self) -> &Path {
        &self.resolved_config
    }

    /// Replaces the configuration, as an operator does before a reload.
    pub(crate) fn write_config(&self, config: &str) {
        std::fs::write(&self.config_file, config).unwrap();
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns every line logged so far.
    pub(crate) fn logs(&self) -> Vec<LogLine> {
        parse(&self.process.stderr.so_far())
    }

    /// Returns the lines of standard output so far.
    pub(crate) fn stdout(&self) -> Vec<String> {
        self.process.stdout.so_far()
    }

    /// Waits for this many lines of standard output.
    pub(crate) fn wait_for_stdout(&self, count: usize) -> Vec<String> {
        let printed = self.process.stdout.wait_for(TIMEOUT, |lines| (lines.len() >= count).then(|| lines.to_vec()));
        printed.unwrap_or_else(|| panic!("fewer than {count} lines were printed; {}", self.process.output()))
    }

    /// Waits for a log line that `wanted` accepts, which may already be written.
    pub(crate) fn wait_for_log(&self, wanted: impl Fn(&LogLine) -> bool) -> LogLine {
        let found = self.process.stderr.wait_for(TIMEOUT, |lines| parse(lines).into_iter().find(|line| wanted(line)));
        found.unwrap_or_else(|| panic!("no such log line; server output:\n{}", self.process.output()))
    }

    /// Waits until `wanted` accepts the lines logged so far.
    pub(crate) fn wait_for_logs(&self, wanted: impl Fn(&[LogLine]) -> bool) {
        let found = self.process.stderr.wait_for(TIMEOUT, |lines| wanted(&parse(lines)).then_some(()));
        found.unwrap_or_else(|| panic!("no such log lines; server output:\n{}", self.process.output()));
    }

    /// Mints a time-limited credential for `user` from the server's configuration.
    pub(crate) fn credential(&self, user: &str) -> Credential {
        let host = self.listening[0].1.ip().to_string();
        let mut mint = Command::new(env!("CARGO_BIN_EXE_turn-credential"));
        mint.args(["mint", "--format", "ice-servers", "--user", user, "--host", &host]);
        let minted = run(mint.arg("--config").arg(&self.resolved_config), None, TIMEOUT);
        assert_eq!(minted.code, Some(0), "turn-credential mint: {minted:?}");
        Credential::parse(&minted.stdout.join("\n"))
    }

    /// Returns the credential that a server without a secret prints at its start.
    pub(crate) fn printed_credential(&self) -> Credential {
        let printed = self.process.stdout.wait_for(TIMEOUT, |lines| lines.first().cloned());
        Credential::parse(&printed.unwrap_or_else(|| panic!("no credential was printed; {}", self.process.output())))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for the end.
    pub(crate) fn finish(self) -> Ended {
        let finished = self.process.finish(TIMEOUT);
        let Finished { code, signal, stdout, stderr } = finished;
        Ended { code, signal, logs: parse(&stderr), stdout }
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn terminate(self) -> Ended {
        self.process.terminate();
        self.finish()
    }
}

impl Credential {
    fn parse(json: &str) -> Self {
        let configuration: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error} in: {json}"));
        let text = |name: &str| configuration["iceServers"][0][name].as_str().map(str::to_owned);
        match (text("username"), text("credential")) {
            (Some(username), Some(password)) => Self { username, password, configuration },
            _ => panic!("no username and credential in: {json}"),
        }
    }
}

fn parse(lines: &[String]) -> Vec<LogLine> {
    lines.iter().map(|line| LogLine::parse(line)).collect()
}

fn listener(line: &LogLine) -> Option<(String, SocketAddr)> {
    let fields = || Some((line.field("transport")?, line.field("address")?.parse().ok()?));
    if line.message() == "listening" { fields() } else { None }
}

fn addresses(listening: &[(String, SocketAddr)], transport: &str) -> Vec<SocketAddr> {
    listening.iter().filter(|(of, _)| of == transport).map(|(_, address)| *address).collect()
}

/// Replaces the listeners in `config` by the real addresses, so that `turn-credential` prints working URLs.
fn with_listeners(config: &str, listening: &[(String, SocketAddr)]) -> String {
    let mut table: toml::Table = config.parse().unwrap();
    let listen = table.entry("listen").or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
    for transport in ["udp", "tcp"] {
        let real: Vec<String> = addresses(listening, transport).iter().map(SocketAddr::to_string).collect();
        listen.insert(transport.to_owned(), real.into());
    }
    let tls = addresses(listening, "tls");
    if !tls.is_empty() {
        let tls: Vec<String> = tls.iter().map(SocketAddr::to_string).collect();
        listen.insert("tls".to_owned(), tls.into());
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(transport: &str, address: &str) -> LogLine {
        LogLine::parse(&format!(
            r#"{{"level":"INFO","fields":{{"message":"listening","transport":"{transport}","address":"{address}"}}}}"#
        ))
    }

    #[test]
    fn listeners_are_found_by_transport() {
        let lines = [
            listening("udp", "[::1]:40123"),
            listening("tcp", "127.0.0.1:40124"),
            LogLine::parse(r#"{"fields":{"message":"ready"}}"#),
        ];
        let listening: Vec<_> = lines.iter().filter_map(listener).collect();
        assert_eq!(addresses(&listening, "udp"), ["[::1]:40123".parse().unwrap()]);
        assert_eq!(addresses(&listening, "tcp"), ["127.0.0.1:40124".parse().unwrap()]);
    }

    #[test]
    fn the_resolved_configuration_names_the_real_ports_and_keeps_the_rest() {
        let config = "realm = \"r\"\n[listen]\nudp = [\"127.0.0.1:0\"]\n[auth]\nsecrets = [\"s\"]\n";
        let listening = [("udp", "127.0.0.1:40123"), ("tcp", "127.0.0.1:40124")]
            .map(|(transport, address)| (transport.to_owned(), address.parse().unwrap()));
        let resolved = with_listeners(config, &listening).parse::<toml::Table>().unwrap();
        assert_eq!(resolved["listen"]["udp"][0].as_str(), Some("127.0.0.1:40123"));
        assert_eq!(resolved["listen"]["tcp"][0].as_str(), Some("127.0.0.1:40124"));
        assert_eq!(resolved["auth"]["secrets"][0].as_str(), Some("s"));
        assert_eq!(resolved["realm"].as_str(), Some("r"));
    }

    #[test]
    fn a_credential_is_read_from_the_ice_servers_object() {
        let json =
            r#"{"iceServers":[{"urls":["turn:127.0.0.1:3478?transport=udp"],"username":"1:a","credential":"p"}]}"#;
        let credential = Credential::parse(json);
        assert_eq!((credential.username.as_str(), credential.password.as_str()), ("1:a", "p"));
    }
}
