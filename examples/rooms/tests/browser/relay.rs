//! The relay as a process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use turnserver::clock::unix_seconds;

use crate::program::program;
use crate::support::certificates::Authority;
use crate::support::{Process, TIMEOUT, TempDir, run};

/// A relay on 127.0.0.1 with UDP, TCP and TLS. Dropping it kills it.
pub(crate) struct Relay {
    process: Process,
    directory: TempDir,
    config: PathBuf,
    urls: Vec<String>,
}

impl Relay {
    /// Starts a relay and waits until it is ready.
    pub(crate) fn start() -> Self {
        let directory = TempDir::new();
        let authority = Authority::new(unix_seconds());
        let [certificate, key] = authority.write(&authority.issue(&["127.0.0.1"]), directory.path());
        let socket = socket(&directory);
        let any = "['127.0.0.1:0']";
        let config = directory.write(
            "turnserver.toml",
            &format!(
                "[listen]\nudp = {any}\ntcp = {any}\ntls = {any}\n[tls]\ncertificate = {certificate:?}\nprivate-key = \
                 {key:?}\n[relay]\naddresses = ['127.0.0.1']\n[auth]\nsecrets = ['a secret for tests only']\nexpiry-grace = '0s'\n\
                 [control]\nsocket = {socket:?}\n[log]\nformat = 'json'\n"
            ),
        );
        let process = Process::start(Command::new(program()).arg("--config").arg(&config), None);
        let urls = process.stderr.wait_for(TIMEOUT, |lines| {
            let events: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let is_ready = events.iter().any(|event| event["fields"]["event"] == "ready");
            is_ready.then(|| events.iter().filter_map(|event| url(&event["fields"])).collect::<Vec<_>>())
        });
        let urls = urls.unwrap_or_else(|| panic!("the relay is not ready; its output:\n{}", process.output()));
        assert_eq!(urls.len(), 3, "{urls:?}");
        Self { process, directory, config, urls }
    }

    /// Returns the URLs for clients.
    pub(crate) fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Returns the path of the configuration.
    pub(crate) fn config(&self) -> &Path {
        &self.config
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
        "tls" => format!("turns:{address}?transport=tcp"),
        transport => format!("turn:{address}?transport={transport}"),
    })
}
