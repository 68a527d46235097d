//! Helpers that the tests of this module share.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::{io, thread};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use super::batch::{Datagram, Piece, RecvBatch, SendBatch, SendStatus, SlotLayout, Target};
use super::udp::no_ipv6;
use crate::ip_fields::IpFields;

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn has_ipv6() -> bool {
    match UdpSocket::bind("[::1]:0") {
        Ok(_) => true,
        Err(error) => {
            assert!(no_ipv6(&error), "{error}");
            skip("there is no IPv6");
            false
        }
    }
}

pub(super) fn marked(tos: u8) -> IpFields {
    IpFields { tos, ..IpFields::default() }
}

/// Returns the loopback addresses of this machine.
pub(super) fn loopbacks() -> Vec<IpAddr> {
    let all = [("127.0.0.1", true), ("::1", has_ipv6())];
    all.into_iter().filter(|(_, available)| *available).map(|(text, _)| ip(text)).collect()
}

/// Waits until `poll` reports one of `events`, for at most a minute.
pub(super) fn wait_for(socket: &impl AsFd, events: PollFlags) {
    let mut polled = [PollFd::new(socket.as_fd(), events)];
    let reported = unless_interrupted(|| Ok(poll(&mut polled, PollTimeout::from(60_000_u16))?)).unwrap();
    assert_eq!(reported, 1, "timed out");
    assert!(polled[0].revents().unwrap().intersects(events));
}

/// Repeats a system call until no signal interrupts it.
pub(super) fn unless_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Sends one datagram.
pub(super) fn send(socket: &UdpSocket, payload: &[u8], target: &Target) -> SendStatus {
    let mut batch = SendBatch::new();
    batch.push(target, &[Piece::of_arena(0..payload.len())]);
    batch.flush(socket, payload)[0]
}

/// Waits for a datagram, and receives at most `size` bytes of it.
pub(super) fn receive(socket: &UdpSocket, size: usize) -> (Datagram, Vec<u8>) {
    wait_for(socket, PollFlags::POLLIN);
    let mut batch = RecvBatch::new(1, SlotLayout { headroom: 0, payload: size, tailroom: 0 });
    assert_eq!(batch.receive(socket, 0, 1).unwrap().count, 1);
    let datagram = batch.datagram(0).unwrap().clone();
    let payload = batch.arena()[datagram.payload.clone()].to_vec();
    (datagram, payload)
}

/// Returns a socket that receives only from itself: others that send to its port receive an ICMP port unreachable.
pub(super) fn closed_port(ip: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.connect(socket.local_addr().unwrap()).unwrap();
    socket
}

/// Reports on standard error, which the test runner does not capture here, that a test does not run, or not as a whole.
/// It fails the test if `REQUIRE_ALL_TESTS` is set, as in `.ci/run`.
pub(crate) fn skip(reason: &str) {
    let required = std::env::var_os("REQUIRE_ALL_TESTS").is_some();
    report_skipped(required, reason);
}

fn report_skipped(required: bool, reason: &str) {
    assert!(!required, "REQUIRE_ALL_TESTS is set, but this test cannot run: {reason}");
    let thread = thread::current();
    record(thread.name().unwrap_or("?"));
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(io::stderr(), "skipped: {test}: {reason}");
}

/// Adds the name of a skipped test to the file in `SKIPPED_TESTS`, from which `.ci/run` reads what it has to run again.
fn record(test: &str) {
    let Some(file) = std::env::var_os("SKIPPED_TESTS") else { return };
    let mut file = std::fs::OpenOptions::new().append(true).open(file).unwrap();
    file.write_all(format!("turnserver\t{test}\n").as_bytes()).unwrap();
}

#[test]
#[should_panic(expected = "this test cannot run: no privilege")]
fn a_skipped_test_fails_where_all_tests_are_required() {
    report_skipped(true, "no privilege");
}

/// Runs a test in its own network namespace. Each line of `setup` has the arguments of one `ip` command, which
/// configures the namespace.
///
/// Skips the test without the privilege to create a namespace or without the `ip` command.
pub(super) fn in_own_network(setup: &[&str], test: impl FnOnce() + Send) {
    let skipped = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                return Some(format!("no network namespace can be created: {error}"));
            }
            for line in setup {
                match Command::new("ip").args(line.split(' ')).status() {
                    Ok(status) => assert!(status.success(), "ip {line}"),
                    Err(error) => return Some(format!("the command `ip` cannot be run: {error}")),
                }
            }
            test();
            None
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    if let Some(reason) = skipped {
        skip(&reason);
    }
}
