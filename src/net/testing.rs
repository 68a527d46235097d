//! Helpers that the tests of this module share.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use super::batch::{Datagram, Piece, RecvBatch, SendBatch, SendStatus, SlotLayout, Target};
use super::udp::no_ipv6;

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
            false
        }
    }
}

/// Returns the loopback addresses of this machine.
pub(super) fn loopbacks() -> Vec<IpAddr> {
    let all = [("127.0.0.1", true), ("::1", has_ipv6())];
    all.into_iter().filter(|(_, available)| *available).map(|(text, _)| ip(text)).collect()
}

/// Waits until `poll` reports one of `events`, for at most ten seconds.
pub(super) fn wait_for(socket: &impl AsFd, events: PollFlags) {
    let mut polled = [PollFd::new(socket.as_fd(), events)];
    assert_eq!(poll(&mut polled, PollTimeout::from(10_000_u16)), Ok(1), "timed out");
    assert!(polled[0].revents().unwrap().intersects(events));
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

/// Runs a test in its own network namespace. Each line of `setup` has the arguments of one `ip` command, which
/// configures the namespace.
///
/// Does nothing without the privilege to create a namespace or without the `ip` command.
pub(super) fn in_own_network(setup: &[&str], test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            for line in setup {
                match Command::new("ip").args(line.split(' ')).status() {
                    Ok(status) => assert!(status.success(), "ip {line}"),
                    Err(_) => return,
                }
            }
            test();
        });
    });
}
