//! The relay as a process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use turnserver::clock::unix_seconds;

use crate::program::program;
use crate::support::certificates::Authority;
use crate::support::{Process, TIMEOUT, TempDir, run};

/// Where a relay listens, and from where it relays. Each is a list in TOML.
pub(crate) struct Listeners {
    pub(crate) udp: &'static str,
    pub(crate) tcp: &'static str,
    pub(crate) tls: &'static str,
    pub(crate) relay: &'static str,
}

/// Free ports of 127.0.0.1.
const LOOPBACK: Listeners =
    Listeners { udp: "['127.0.0.1:0']", tcp: "['127.0.0.1:0']", tls: "['127.0.0.1:0']", relay: "['127.0.0.1']" };

/// A relay with UDP, TCP and TLS. Dropping it kills it.
pub(crate) struct Relay {
    process: Process,
    directory: TempDir,
    config: PathBuf,
    urls: Vec<String>,
}

impl Relay {
    /// Starts a relay on 127.0.0.1 and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::start_on(&LOOPBACK)
    }

    /// Starts a relay on other addresses.
    pub(crate) fn start_on(Listeners { udp, tcp, tls, relay }: &Listeners) -> Self {
        let directory = TempDir::new();
        let authority = Authority::new(unix_seconds());
        let [certificate, key] = authority.write(&authority.issue(&["127.0.0.1", "localhost"]), directory.path());
        directory.write("root.pem", &authority.root());
        let config = format!(
            "[listen]\nudp = {udp}\ntcp = {tcp}\ntls = {tls}\n[tls]\ncertificate = {certificate:?}\nprivate-key = \
             {key:?}\n[relay]\naddresses = {relay}\n[auth]\nsecrets = ['a secret for tests only']\n\
             expiry-grace = '0s'\n[log]\nformat = 'json'\n"
        );
        let relay = Self::start_from(directory, &config);
        assert_eq!(relay.urls.len(), 3, "{:?}", relay.urls);
        relay
    }

    /// Starts a relay with a configuration, to which the control socket is added, and waits until it is ready.
    pub(crate) fn start_from(directory: TempDir, config: &str) -> Self {
        let socket = socket(&directory);
        let config = directory.write("turnserver.toml", &format!("{config}[control]\nsocket = {socket:?}\n"));
        let process = Process::start(Command::new(program()).arg("--config").arg(&config), None);
        let urls = process.stderr.wait_for(TIMEOUT, |lines| {
            let events: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let is_ready = events.iter().any(|event| event["fields"]["event"] == "ready");
            is_ready.then(|| events.iter().filter_map(|event| url(&event["fields"])).collect::<Vec<_>>())
        });
        let urls = urls.unwrap_or_else(|| panic!("the relay is not ready; its output:\n{}", process.output()));
        Self { process, directory, config, urls }
    }

    /// Returns the URLs for clients.
    pub(crate) fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Returns the URL of a transport.
    pub(crate) fn url(&self, transport: &str) -> &str {
        let end = format!("?transport={transport}");
        let is_it = |url: &&String| match transport {
            "tls" => url.starts_with("turns:"),
            _ => url.starts_with("turn:") && url.ends_with(&end),
        };
        self.urls.iter().find(is_it).unwrap_or_else(|| panic!("no URL for {transport}: {:?}", self.urls))
    }

    /// Returns the file with the certificate of the authority that has issued the certificate of the relay.
    pub(crate) fn authority(&self) -> PathBuf {
        self.directory.path().join("root.pem")
    }

    /// Returns the path of the configuration.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// Stops the relay, as systemd does.
    pub(crate) fn stop(&self) {
        self.process.terminate();
        assert!(self.process.stderr.wait_for_end(TIMEOUT), "the relay does not end; its output:\n{}", self.output());
    }

    /// Returns what the relay has logged.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// Runs a command of `turnserver ctl` that succeeds, and returns its JSON.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Value {
        let mut command = Command::new(program());
        command.args(["ctl", "--json", "--socket"]).arg(socket(&self.directory)).args(arguments);
        let finished = run(&mut command, None, TIMEOUT);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        serde_json::from_str(&finished.stdout.join("\n")).unwrap()
    }
}

fn socket(directory: &TempDir) -> PathBuf {
    directory.path().join("control.sock")
}

/// Returns the URL of the listener that a line of the log is about.
fn url(fields: &Value) -> Option<String> {
    if fields["event"] != "listening" {
        return None;
    }
    let address: SocketAddr = fields["address"].as_str()?.parse().ok()?;
    Some(match fields["transport"].as_str()? {
        // Firefox uses TLS only to a name.
        "tls" if address.ip() == Ipv4Addr::LOCALHOST => format!("turns:localhost:{}?transport=tcp", address.port()),
        "tls" => format!("turns:{address}?transport=tcp"),
        transport => format!("turn:{address}?transport={transport}"),
    })
}
