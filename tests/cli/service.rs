//! The server as a service: what it tells the service manager, and the unit that is shipped.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use turnserver::config::Config;

use super::running::{Running, is_ready, turnserver};
use crate::support::client::{Client, Login};
use crate::support::{LogLine, PATIENCE, SECRET, TempDir, config};

/// The end of the conversation that belongs to the service manager.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("turnserver-cli-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, name: format!("@{name}") }
    }

    fn start(&self, config: &str, environment: &[(&str, &str)]) -> Running {
        let environment = [&[("NOTIFY_SOCKET", self.name.as_str())], environment].concat();
        let server = Running::begin_in(TempDir::new(), config, &[], &environment);
        server.wait_for_line(is_ready);
        server
    }

    /// The next message.
    fn hears(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.socket.recv(&mut buffer).expect("the server has something to tell");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The next message that begins so.
    fn waits_for(&self, start: &str) -> String {
        std::iter::repeat_with(|| self.hears()).find(|message| message.starts_with(start)).unwrap()
    }
}

#[test]
fn the_service_manager_is_told_of_the_start_the_clients_and_the_end() {
    let manager = Manager::new();
    let server = manager.start(&format!("drain-deadline = \"1h\"\n{}", config(&["127.0.0.1"], "")), &[]);
    assert_eq!(manager.hears(), "READY=1\n");
    // Whoever is told of it can be a client at once.
    let client = Client::connect(server.listening("tcp")[0]);
    let (session, _) = client.allocate(&Login::mint("alice", 600)).unwrap();
    manager.waits_for("STATUS=1 allocation, 1 connection\n");

    server.process.terminate();
    // The hour of the drain, and ten seconds for the farewell.
    manager.waits_for("STOPPING=1\nEXTEND_TIMEOUT_USEC=3610000000\n");
    manager.waits_for("STATUS=draining: 1 allocation, 1 connection\n");
    client.delete(&session);
    manager.waits_for("STOPPING=1\n");
    assert_eq!(server.process.finish(PATIENCE).code, Some(0));
}

// A service manager that knows of the end sets a limit to it.
#[test]
fn a_drain_without_a_deadline_is_not_told_as_the_end() {
    let manager = Manager::new();
    let server = manager.start(&config(&["127.0.0.1"], ""), &[]);
    assert_eq!(manager.hears(), "READY=1\n");
    let client = Client::new(server.address());
    let (session, _) = client.allocate(&Login::mint("alice", 600)).unwrap();
    server.process.signal(Signal::SIGUSR1);
    loop {
        let message = manager.hears();
        assert!(message.starts_with("STATUS="), "{message}");
        if message.starts_with("STATUS=draining: 1 allocation") {
            break;
        }
    }
    client.delete(&session);
    assert!(manager.hears().starts_with("STOPPING=1\n"));
}

#[test]
fn a_reload_has_a_beginning_with_its_time_and_an_end() {
    let manager = Manager::new();
    let server = manager.start(&config(&["127.0.0.1"], ""), &[]);
    manager.waits_for("READY=1\n");
    server.process.signal(Signal::SIGHUP);
    let reloading = manager.waits_for("RELOADING=1\n");
    let micros: u64 = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end().parse().unwrap();
    // The clock of the manager, which has been running since the machine started.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    let now = u64::try_from(now.tv_sec()).unwrap() * 1_000_000;
    assert!((now - 60_000_000..=now + 1_000_000).contains(&micros), "{micros} of {now}");
    assert_eq!(manager.hears(), "READY=1\n");
    server.terminate();
}

#[test]
fn signs_of_life_come_as_long_as_the_watchdog_wants_them() {
    let manager = Manager::new();
    let server = manager.start(&config(&["127.0.0.1"], ""), &[("WATCHDOG_USEC", "200000")]);
    // More of them than would come if the workers' heartbeats did not.
    for _ in 0..60 {
        assert_eq!(manager.waits_for("WATCHDOG="), "WATCHDOG=1\n");
    }
    let finished = server.terminate();
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

// A long period leaves one look in which the hearts have to have beaten.
#[test]
fn before_the_first_heartbeats_no_worker_is_taken_for_stalled() {
    let manager = Manager::new();
    let server = manager.start(&config(&["127.0.0.1"], ""), &[("WATCHDOG_USEC", "30000000")]);
    manager.waits_for("STATUS=");
    let finished = server.terminate();
    assert!(finished.stderr.iter().all(|line| LogLine::parse(line).level() != "ERROR"), "{finished:?}");
}

#[test]
fn without_a_watchdog_there_are_no_signs_of_life() {
    let manager = Manager::new();
    // The watchdog of the first process of all, which is not the server.
    let server = manager.start(&config(&["127.0.0.1"], ""), &[("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", "1")]);
    assert_eq!(manager.hears(), "READY=1\n");
    server.process.signal(Signal::SIGHUP);
    loop {
        let message = manager.hears();
        assert!(!message.contains("WATCHDOG"), "{message}");
        if message == "READY=1\n" {
            break;
        }
    }
}

#[test]
fn a_service_manager_that_does_not_exist_is_a_warning() {
    let environment = [("NOTIFY_SOCKET", "@turnserver-cli-nobody"), ("WATCHDOG_USEC", "1000")];
    let server = Running::begin_in(TempDir::new(), &config(&["127.0.0.1"], ""), &[], &environment);
    server.wait_for_line(|line| {
        let line = LogLine::parse(line);
        line.level() == "WARN" && line.message().contains("NOTIFY_SOCKET")
    });
    server.wait_for_line(is_ready);
    assert_eq!(server.terminate().code, Some(0));
}

#[test]
fn secrets_come_from_the_credentials_of_the_service() {
    let directory = TempDir::new();
    directory.write("secrets", SECRET);
    let path = directory.path().display().to_string();
    let inline = format!("secrets = [{SECRET:?}]");
    let config = config(&["127.0.0.1"], "").replace(&inline, "secrets-file = \"$CREDENTIALS_DIRECTORY/secrets\"");
    let server = Running::begin_in(directory, &config, &[], &[("CREDENTIALS_DIRECTORY", &path)]);
    server.wait_for_line(is_ready);
    assert!(Client::new(server.address()).allocate(&Login::mint("alice", 600)).is_ok());
    server.process.interrupt();

    // What the unit gives in place of a file that is not there.
    let directory = TempDir::new();
    directory.write("secrets", "# /etc/turnserver/secrets did not exist when the service was started.");
    let path = directory.path().display().to_string();
    let refused = Running::begin_in(directory, &config, &[], &[("CREDENTIALS_DIRECTORY", &path)]);
    let refused = refused.process.finish(PATIENCE);
    let expected = "(the copy, made at the start, of what the unit loads as `LoadCredential=secrets:`) holds no secret";
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr[0].contains(expected), "{refused:?}");

    let directory = TempDir::new();
    directory.write("turnserver.toml", &config);
    let refused = turnserver(&directory, &[]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr[0].contains("`$CREDENTIALS_DIRECTORY` is not set"), "{refused:?}");
}

fn unit() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/turnserver.service")).unwrap()
}

/// The values of a setting of the unit.
fn settings(name: &str) -> Vec<String> {
    let unit = unit();
    let assignments = unit.lines().filter_map(|line| line.split_once('='));
    assignments.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).collect()
}

// A socket for each relay port of both families and for each connection, and some for what else there is.
#[test]
fn the_unit_allows_as_many_open_files_as_the_defaults_need() {
    let config = Config::default();
    let needed = 2 * config.relay.ports.len() + usize::try_from(config.limits.connections).unwrap() + 1_000;
    let allowed: usize = settings("LimitNOFILE")[0].parse().unwrap();
    assert!((needed..2 * needed).contains(&allowed), "{allowed} allowed, {needed} needed");
}

// Without a default the unit does not start where a file is missing.
#[test]
fn each_credential_that_the_unit_loads_has_a_default() {
    let name = |value: String| value.split_once(':').unwrap().0.to_owned();
    let loaded: Vec<String> = settings("LoadCredential").into_iter().map(name).collect();
    assert!(loaded.contains(&"secrets".to_owned()), "{loaded:?}");
    assert_eq!(loaded, settings("SetCredential").into_iter().map(name).collect::<Vec<_>>());
}
