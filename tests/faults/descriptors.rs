//! No descriptors: those of the process, or those of the machine.

use std::cell::Cell;
use std::fs;
use std::process::Command;

use nix::errno::Errno;
use nix::libc::{SYS_accept4, SYS_socket};
use nix::sys::signal::Signal;
use turnserver::clock::Clock;

use super::call::Call;
use super::errors::{self, Failing};
use super::inventory::{Inventory, USER, start, wait_for_sum};
use crate::support::client::{Client, Login};
use crate::support::{Controlled, TIMEOUT, run, skip};

/// The number of Allocate requests that fail.
const REFUSED: u64 = 100;

/// The most lines about one kind of failure that a worker logs in a minute.
const LINES: u64 = 5;

/// Returns whether limits of a running process can be changed. Tests that need it are [skipped](skip) otherwise.
pub(super) fn can_limit() -> bool {
    let can = Command::new("prlimit").arg("--version").output().is_ok();
    if !can {
        skip("the program prlimit is missing");
    }
    can
}

/// Changes limits of a running process.
pub(super) fn limit(process: u32, option: &str) {
    let mut command = Command::new("prlimit");
    let finished = run(command.args(["--pid", &process.to_string(), option]), Some("util-linux"), TIMEOUT);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

/// Returns the limit of open files of a running process.
pub(super) fn open_files(process: u32) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    files.split_whitespace().next().unwrap().parse().unwrap()
}

/// Asserts what happens before, during and after a time in which no file can be opened. `during` calls a function in this
/// time; if it does not, the test cannot run.
fn assert_goes_on(during: impl FnOnce(&Controlled, &dyn Fn())) {
    let controlled = start();
    let (server, clock) = (&controlled.server, Clock::start());
    let inventory = Inventory::of(&controlled);
    let call = Call::start(server);
    let login = Login::mint(USER, 36_000);
    // Each connection waits with its request.
    let connected = || (0..3).map(|_| Client::connect(server.tcp_address())).collect::<Vec<_>>();
    let before = connected();
    before.iter().for_each(|client| assert_eq!(client.binding(), client.address()));
    let waiting = Cell::new(None);
    during(&controlled, &|| {
        for _ in 0..REFUSED {
            assert_eq!(Client::new(server.udp_address()).allocate(&login).map(drop), Err(508));
        }
        let line = controlled.event("relay-socket-failed");
        assert!(line.field("error").unwrap().contains("open files"), "{line:?}");
        waiting.set(Some(connected()));
        let line = controlled.event("accept-failed");
        assert!(line.message().contains("open files"), "{line:?}");
        call.exchange();
        call.refresh();
        before.iter().for_each(|client| assert_eq!(client.binding(), client.address()));
    });
    let Some(waiting) = waiting.take() else { return };
    for client in &waiting {
        assert_eq!(client.binding(), client.address());
        client.allocate(&login).unwrap();
    }
    assert_eq!(wait_for_sum(&controlled, "turnserver_failed_relay_sockets_total{cause=\"other\"}", REFUSED), REFUSED);
    wait_for_sum(&controlled, "turnserver_rejected_connections_total{cause=\"accept-failed\"}", 1);
    // A few lines of both workers, and not one for each attempt.
    let minutes = 1 + clock.elapsed().as_secs() / 60;
    for event in ["accept-failed", "relay-socket-failed"] {
        let lines = controlled.events(event) as u64;
        assert!((1..=2 * LINES * minutes).contains(&lines), "{lines} lines of {event} in {minutes} minutes");
    }
    call.end();
    drop((before, waiting));
    wait_for_sum(&controlled, "turnserver_closed_connections_total", 6);
    inventory.assert_kept(&controlled);
}

// The limit of the process is lowered to what it has open, and raised again.
#[test]
fn a_server_without_a_free_descriptor_goes_on_and_serves_those_who_waited() {
    if !can_limit() {
        return;
    }
    assert_goes_on(|controlled, assert_during| {
        let process = controlled.server.id();
        let most = open_files(process);
        limit(process, &format!("--nofile=3:{most}"));
        assert_during();
        controlled.server.signal(Signal::SIGHUP);
        let line = controlled.event("reload-refused");
        assert!(line.field("error").unwrap().contains("open files"), "{line:?}");
        limit(process, &format!("--nofile={most}:{most}"));
        assert_eq!(controlled.run(&["reload"]).code, Some(0));
    });
}

#[test]
fn a_machine_without_a_free_descriptor_is_no_end_of_the_server() {
    assert_goes_on(|controlled, assert_during| {
        let calls = |call: errors::Call| [SYS_socket, SYS_accept4].contains(&call.number);
        let Some(failing) = Failing::start(controlled.server.id(), "worker-", calls, Errno::ENFILE) else { return };
        assert_during();
        failing.wait_for_failures(REFUSED + 1);
    });
}
