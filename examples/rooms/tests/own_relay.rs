//! The relay that `rooms` starts for a configuration without a secret.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rooms::connect::Trust;
use rooms::message::Ice;
use rooms::relay::{Relay, RelayEvent};
use serde_json::{Value, json};
use support::{At, PATIENCE, file};
use tokio::sync::watch;
use tokio::time::timeout;

/// `rooms` with the configuration of a relay on a port that was free.
struct Program {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

/// Returns the process that a process has started.
fn child(parent: &Child) -> Pid {
    let threads = std::fs::read_dir(format!("/proc/{}/task", parent.id())).unwrap();
    let children = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).unwrap());
    Pid::from_raw(children.collect::<String>().trim().parse().unwrap())
}

fn config() -> (PathBuf, u16) {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "[listen]\nudp = ['127.0.0.1:{port}']\ntcp = []\n[relay]\naddresses = ['127.0.0.1']\n[control]\nsocket = ''\n"
    );
    (file("own.toml", &text), port)
}

impl Program {
    fn start(config: &PathBuf) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_rooms"))
            .args(["--listen", "127.0.0.1:0", "--config"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        Self { process, lines }
    }

    /// Reads the log up to a line with this text.
    fn line(&mut self, text: &str) -> String {
        self.lines.by_ref().map(Result::unwrap).find(|line| line.contains(text)).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_configuration_without_a_secret_gets_a_relay_with_one_and_both_stop_together() {
    let (config, port) = config();
    let mut program = Program::start(&config);
    let line = program.line("open http://");
    let address = line.split("http://localhost:").nth(1).unwrap().trim_end_matches('/');
    let site = At { address: format!("127.0.0.1:{address}").parse().unwrap() };
    let (_socket, joined) = site.join(&site.room().await, "a").await;
    let ice: Value = joined["ice"].clone();
    assert_eq!(ice["iceServers"][0]["urls"], json!([format!("turn:127.0.0.1:{port}?transport=udp")]));
    let (_credentials, receiver) = watch::channel(serde_json::from_value::<Ice>(ice).unwrap());
    let event = timeout(PATIENCE, Relay::start(receiver.clone(), Trust::Authorities).next()).await.unwrap().unwrap();
    assert!(matches!(event, RelayEvent::Allocated(_)), "{event:?}");

    // The secret of this run outlives a reload.
    kill(child(&program.process), Signal::SIGHUP).unwrap();
    program.line(r#"event="reload-done""#);
    let event = timeout(PATIENCE, Relay::start(receiver, Trust::Authorities).next()).await.unwrap().unwrap();
    assert!(matches!(event, RelayEvent::Allocated(_)), "{event:?}");

    kill(Pid::from_raw(program.process.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    // The log ends when both have ended.
    let rest: Vec<String> = program.lines.by_ref().map(Result::unwrap).collect();
    assert!(rest.iter().any(|line| line.contains("stopping")), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains(r#"event="stopped""#)), "{rest:?}");
    assert!(!rest.iter().any(|line| line.contains("service manager")), "{rest:?}");
    assert!(program.process.wait().unwrap().success());
    UdpSocket::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn without_its_relay_the_program_fails() {
    let (config, _port) = config();
    let mut program = Program::start(&config);
    program.line("open http://");
    kill(child(&program.process), Signal::SIGKILL).unwrap();
    program.line("the relay has ended");
    assert!(!program.process.wait().unwrap().success());
}

#[test]
fn the_relay_does_not_outlive_a_killed_parent() {
    let (config, port) = config();
    let mut program = Program::start(&config);
    program.line("open http://");
    program.process.kill().unwrap();
    program.line(r#"event="stopped""#);
    assert_eq!(program.lines.by_ref().count(), 0, "the log ends");
    UdpSocket::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn a_port_in_use_stops_the_start_with_advice() {
    let (config, port) = config();
    let _taken = UdpSocket::bind(("127.0.0.1", port)).unwrap();
    let mut program = Program::start(&config);
    program.line(&format!("127.0.0.1:{port}"));
    assert!(program.line("did not start").contains("set auth.secrets"));
    assert!(!program.process.wait().unwrap().success());
}
