//! What a machine may lack: `/proc`, `/etc`, IPv6, a file system that can be written.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::libc::{AF_INET6, SYS_socket, c_long};
use nix::mount::{MsFlags, mount};

use super::call::Call;
use super::errors::Failing;
use super::inventory::{Inventory, settings, wait_for_allocations};
use super::log::with_small_disk;
use crate::support::client::Client;
use crate::support::network::{in_own_network, set};
use crate::support::{Controlled, Server, TIMEOUT, TempDir, run, skip};

/// Returns a command that runs the server in a mount namespace of its own, after a script. `None` without the privilege;
/// the test is [skipped](skip) then.
fn after(script: &str) -> Option<Command> {
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        skip("no privilege to create a mount namespace");
        return None;
    }
    let mut command = Command::new("unshare");
    let script = format!("set -e\n{script}\nexec \"$0\" \"$@\"");
    command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_turnserver")]);
    Some(command)
}

fn assert_serves(controlled: &Controlled) {
    let inventory = Inventory::of(controlled);
    let call = Call::start(&controlled.server);
    let connected = Client::connect(controlled.server.tcp_address());
    assert_eq!(connected.binding(), connected.address());
    drop(connected);
    wait_for_allocations(controlled, 1);
    controlled.lines(&["status"]);
    controlled.lines(&["reload"]);
    call.end();
    inventory.assert_kept(controlled);
}

// Without `/etc` there are neither names nor a resolver nor users. The server resolves no names.
#[test]
fn a_server_on_a_machine_without_proc_sys_and_etc_serves_calls() {
    let Some(mut command) = after("for d in /sys /etc /proc; do mount -t tmpfs none $d; done") else { return };
    let config = settings(&["127.0.0.1"]).replace("addresses = [\"127.0.0.1\"]", "addresses = \"auto\"");
    let controlled = Controlled::start_by(&mut command, &config);
    // The addresses of the machine may not be reachable from loopback, so this is about the start.
    assert_eq!(Client::new(controlled.server.udp_address()).binding().ip().to_string(), "127.0.0.1");
    let Some(mut command) = after("for d in /sys /etc /proc; do mount -t tmpfs none $d; done") else { return };
    assert_serves(&Controlled::start_by(&mut command, &settings(&["127.0.0.1"])));
}

#[test]
fn without_ipv6_addresses_a_server_for_all_addresses_serves_ipv4() {
    in_own_network(&["link set lo up"], || {
        set("ipv6/conf/all/disable_ipv6", "1");
        assert!(UdpSocket::bind("[::1]:0").is_err());
        let config = settings(&["127.0.0.1"]).replace("[\"127.0.0.1:0\"]", "[\"[::]:0\"]");
        let config = config.replace("addresses = [\"127.0.0.1\"]", "addresses = \"auto\"");
        assert_serves_ipv4(&Controlled::start_with(&config));
    });
}

/// Asserts that a server with wildcard listeners serves calls over IPv4.
fn assert_serves_ipv4(controlled: &Controlled) {
    let port = controlled.server.listeners("udp")[0].port();
    let client = Client::new(([127, 0, 0, 1], port).into());
    assert_eq!(client.binding(), client.address());
    let peer = crate::support::client::socket("127.0.0.1:0".parse().unwrap());
    Call::between(client, peer).end();
}

// A kernel without IPv6 refuses the sockets.
#[test]
fn with_a_kernel_without_ipv6_a_server_for_all_addresses_serves_ipv4_and_says_so() {
    let directory = TempDir::new();
    let (id, start) = (directory.path().join("id"), directory.path().join("start"));
    let fifo = run(Command::new("mkfifo").arg(&start), None, TIMEOUT);
    assert_eq!(fifo.code, Some(0), "{fifo:?}");
    let script = format!(
        "echo $$ > {0}.new; mv {0}.new {0}; read line < {1}; exec \"$0\" \"$@\"",
        id.display(),
        start.display()
    );
    let config = settings(&["127.0.0.1"]).replace("[\"127.0.0.1:0\"]", "[\"[::]:0\"]");
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut command = Command::new("sh");
            Controlled::start_by(command.args(["-c", &script, env!("CARGO_BIN_EXE_turnserver")]), &config)
        });
        while !id.exists() {
            thread::yield_now();
        }
        let process = fs::read_to_string(&id).unwrap().trim().parse().unwrap();
        let calls = |call: super::errors::Call| call.number == SYS_socket && call.argument == c_long::from(AF_INET6);
        let failing = Failing::start(process, "sh", calls, Errno::EAFNOSUPPORT);
        fs::write(&start, "\n").unwrap();
        let controlled = server.join().unwrap();
        let Some(failing) = failing else { return };
        let line = controlled.event("ipv6-missing");
        assert!(line.level() == "WARN" && line.field("address").is_some(), "{line:?}");
        assert_serves_ipv4(&controlled);
        drop(failing);
    });
}

// The control socket cannot be removed at the end.
#[test]
fn a_server_whose_file_system_can_no_longer_be_written_goes_on_and_stops_normally() {
    with_small_disk(|disk| {
        let (config, socket) = (settings(&["127.0.0.1"]), disk.join("control.sock"));
        let server = Server::start(&format!("{config}[control]\nsocket = {socket:?}\n"));
        let controlled = Controlled { server, config, socket, directory: TempDir::new() };
        let none: Option<&str> = None;
        mount(none, disk, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
        assert!(fs::write(disk.join("file"), "").is_err());
        assert_serves(&controlled);
        assert_eq!(controlled.server.terminate().code, Some(0));
    });
}

#[test]
fn with_a_file_system_that_cannot_be_written_a_configured_control_socket_prevents_the_start() {
    let Some(mut command) =
        after("mount -o remount,ro,bind / 2>/dev/null || { mount --bind / /; mount -o remount,ro,bind /; }")
    else {
        return;
    };
    let directory = TempDir::new();
    let socket = directory.path().join("control.sock");
    let output =
        Server::try_start_by(&mut command, &format!("{}[control]\nsocket = {socket:?}\n", settings(&["127.0.0.1"])));
    let output = output.err().expect("the start fails");
    let lines: Vec<&str> = output.lines().filter(|line| line.starts_with("turnserver: ")).collect();
    assert!(
        matches!(lines[..], [line] if line.contains("control.sock") && line.contains("Read-only file system")),
        "{output}"
    );
}
