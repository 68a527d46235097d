//! The server as a service: notifications to the service manager, and the shipped unit.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use turnserver::config::Config;

use super::running::{Running, is_ready, turnserver};
use crate::support::client::{Client, Login};
use crate::support::{LogLine, Process, SECRET, TIMEOUT, TempDir, config, unless_interrupted};

/// The service manager's end of the notification socket.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("turnserver-cli-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { socket, name: format!("@{name}") }
    }

    fn start(&self, config: &str, environment: &[(&str, &str)]) -> Running {
        let environment = [&[("NOTIFY_SOCKET", self.name.as_str())], environment].concat();
        let server = Running::begin_in(TempDir::new(), config, &[], &environment);
        server.wait_for_line(is_ready);
        server
    }

    /// Waits for the next message.
    fn receive(&self) -> String {
        let mut buffer = [0; 1024];
        let length = unless_interrupted(|| self.socket.recv(&mut buffer)).expect("a notification");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// Waits for the next message with this prefix.
    fn wait_for(&self, start: &str) -> String {
        std::iter::repeat_with(|| self.receive()).find(|message| message.starts_with(start)).unwrap()
    }
}

#[test]
fn the_service_manager_is_notified_of_start_status_and_stop() {
    let manager = Manager::new();
    let server = manager.start(&format!("drain-deadline = \"1h\"\n{}", config(&["127.0.0.1"], "")), &[]);
    assert_eq!(manager.receive(), "READY=1\n");
    // The server accepts clients once it has notified READY.
    let client = Client::connect(server.listening("tcp")[0]);
    let (session, _) = client.allocate(&Login::mint("alice", 600)).unwrap();
    manager.wait_for("STATUS=1 allocation, 1 connection\n");

    server.process.terminate();
    // The drain deadline of one hour, and ten seconds to stop.
    manager.wait_for("STOPPING=1\nEXTEND_TIMEOUT_USEC=3610000000\n");
    manager.wait_for("STATUS=draining: 1 allocation, 1 connection\n");
    client.delete(&session);
    manager.wait_for("STOPPING=1\n");
    assert_eq!(server.process.finish(TIMEOUT).code, Some(0));
}

#[test]
fn the_service_manager_is_notified_of_what_the_server_waits_for() {
    let manager = Manager::new();
    let config = config(&["127.0.0.1"], "").replace("addresses = [\"127.0.0.1\"]", "addresses = [\"203.0.113.7\"]");
    let _server = manager.start(&config, &[]);
    assert_eq!(manager.receive(), "READY=1\n");
    manager.wait_for("STATUS=0 allocations, 0 connections; waiting for 203.0.113.7\n");
}

// The service manager limits the time after STOPPING.
#[test]
fn a_drain_without_a_deadline_is_not_notified_as_stopping() {
    let manager = Manager::new();
    let server = manager.start(&config(&["127.0.0.1"], ""), &[]);
    assert_eq!(manager.receive(), "READY=1\n");
    let client = Client::new(server.address());
    let (session, _) = client.allocate(&Login::mint("alice", 600)).unwrap();
    server.process.signal(Signal::SIGUSR1);
    loop {
        let message = manager.receive();
        assert!(message.starts_with("STATUS="), "{message}");
        if message.starts_with("STATUS=draining: 1 allocation") {
            break;
        }
    }
    client.delete(&session);
    assert!(manager.receive().starts_with("STOPPING=1\n"));
}

#[test]
fn a_reload_is_notified_at_its_start_with_the_time_and_at_its_end() {
    let manager = Manager::new();
    let server = manager.start(&config(&["127.0.0.1"], ""), &[]);
    manager.wait_for("READY=1\n");
    server.process.signal(Signal::SIGHUP);
    let reloading = manager.wait_for("RELOADING=1\n");
    let micros: u64 = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end().parse().unwrap();
    // The monotonic clock, which the service manager uses.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    let now = u64::try_from(now.tv_sec()).unwrap() * 1_000_000;
    assert!((now - 60_000_000..=now + 1_000_000).contains(&micros), "{micros} of {now}");
    assert_eq!(manager.receive(), "READY=1\n");
    server.terminate();
}

#[test]
fn watchdog_pings_are_sent_while_the_watchdog_is_enabled() {
    let manager = Manager::new();
    let server = manager.start(&config(&["127.0.0.1"], ""), &[("WATCHDOG_USEC", "200000")]);
    // More pings than the server would send without the heartbeats of the workers.
    for _ in 0..60 {
        assert_eq!(manager.wait_for("WATCHDOG="), "WATCHDOG=1\n");
    }
    let finished = server.terminate();
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

// With a long period there is only one check of the heartbeats.
#[test]
fn no_worker_is_reported_stalled_before_its_first_heartbeat() {
    let manager = Manager::new();
    let server = manager.start(&config(&["127.0.0.1"], ""), &[("WATCHDOG_USEC", "30000000")]);
    manager.wait_for("STATUS=");
    let finished = server.terminate();
    assert!(finished.stderr.iter().all(|line| LogLine::parse(line).level() != "ERROR"), "{finished:?}");
}

#[test]
fn without_a_watchdog_no_pings_are_sent() {
    let manager = Manager::new();
    // The watchdog of process 1, which is not the server.
    let server = manager.start(&config(&["127.0.0.1"], ""), &[("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", "1")]);
    assert_eq!(manager.receive(), "READY=1\n");
    server.process.signal(Signal::SIGHUP);
    loop {
        let message = manager.receive();
        assert!(!message.contains("WATCHDOG"), "{message}");
        if message == "READY=1\n" {
            break;
        }
    }
}

// By default, SIGXFSZ ends a process that writes beyond the limit.
#[test]
fn a_log_file_that_has_reached_the_limit_of_its_size_does_not_end_the_server() {
    let (manager, directory) = (Manager::new(), TempDir::new());
    directory.write("turnserver.toml", &config(&["127.0.0.1"], ""));
    let full = "a line of an earlier run\n".repeat(50);
    let log = directory.write("log", &full);
    let mut shell = Command::new("sh");
    // One block of 512 or 1024 bytes.
    shell.args(["-c", "ulimit -f 1 && exec \"$0\"", env!("CARGO_BIN_EXE_turnserver")]);
    shell.current_dir(directory.path()).env("NOTIFY_SOCKET", &manager.name);
    let appended = fs::File::options().append(true).open(&log).unwrap();
    let process = Process::start_with(&mut shell, Stdio::null(), appended.into());
    assert_eq!(manager.receive(), "READY=1\n");
    process.signal(Signal::SIGUSR2);
    process.terminate();
    assert_eq!(process.finish(TIMEOUT).code, Some(0));
    assert_eq!(fs::read_to_string(&log).unwrap(), full);
}

#[test]
fn a_missing_service_manager_is_a_warning() {
    let environment = [("NOTIFY_SOCKET", "@turnserver-cli-missing"), ("WATCHDOG_USEC", "1000")];
    let server = Running::begin_in(TempDir::new(), &config(&["127.0.0.1"], ""), &[], &environment);
    server.wait_for_line(|line| {
        let line = LogLine::parse(line);
        line.level() == "WARN" && line.message().contains("NOTIFY_SOCKET")
    });
    server.wait_for_line(is_ready);
    assert_eq!(server.terminate().code, Some(0));
}

#[test]
fn secrets_are_read_from_the_service_credentials() {
    let directory = TempDir::new();
    directory.write("secrets", SECRET);
    let path = directory.path().display().to_string();
    let inline = format!("secrets = [{SECRET:?}]");
    let config = config(&["127.0.0.1"], "").replace(&inline, "secrets-file = \"$CREDENTIALS_DIRECTORY/secrets\"");
    let server = Running::begin_in(directory, &config, &[], &[("CREDENTIALS_DIRECTORY", &path)]);
    server.wait_for_line(is_ready);
    assert!(Client::new(server.address()).allocate(&Login::mint("alice", 600)).is_ok());
    server.process.interrupt();

    // The unit's default for a missing file.
    let directory = TempDir::new();
    directory.write("secrets", "# /etc/turnserver/secrets did not exist when the service was started.");
    let path = directory.path().display().to_string();
    let rejected = Running::begin_in(directory, &config, &[], &[("CREDENTIALS_DIRECTORY", &path)]);
    let rejected = rejected.process.finish(TIMEOUT);
    let expected = "(copied at the start from `LoadCredential=secrets:` of the unit) cannot be read: \
                    /etc/turnserver/secrets did not exist when the service was started";
    assert_eq!(rejected.code, Some(1));
    assert!(rejected.stderr[0].contains(expected), "{rejected:?}");

    let directory = TempDir::new();
    directory.write("turnserver.toml", &config);
    let rejected = turnserver(&directory, &[]);
    assert_eq!(rejected.code, Some(1));
    assert!(rejected.stderr[0].contains("`$CREDENTIALS_DIRECTORY` is not set"), "{rejected:?}");
}

fn unit() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/turnserver.service")).unwrap()
}

/// Returns the values of a setting of the unit.
fn settings(name: &str) -> Vec<String> {
    let unit = unit();
    let assignments = unit.lines().filter_map(|line| line.split_once('='));
    assignments.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).collect()
}

// One descriptor per relay port of both families and per connection, two per visitor of a front, and some for everything
// else.
#[test]
fn the_unit_allows_as_many_open_files_as_the_defaults_need() {
    let config = Config::default();
    let visitors = 2 * 10_000;
    let needed = 2 * config.relay.ports.len() + usize::try_from(config.limits.connections).unwrap() + visitors + 1_000;
    let allowed: usize = settings("LimitNOFILE")[0].parse().unwrap();
    assert!((needed..2 * needed).contains(&allowed), "{allowed} allowed, {needed} needed");
}

// Without a default, the unit does not start if a file is missing.
#[test]
fn each_credential_that_the_unit_loads_has_a_default() {
    let name = |value: String| value.split_once(':').unwrap().0.to_owned();
    let loaded: Vec<String> = settings("LoadCredential").into_iter().map(name).collect();
    assert!(loaded.contains(&"secrets".to_owned()), "{loaded:?}");
    assert_eq!(loaded, settings("SetCredential").into_iter().map(name).collect::<Vec<_>>());
}
