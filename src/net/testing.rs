//! What the tests of this module share.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

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

/// The loopback addresses of this machine.
pub(super) fn loopbacks() -> Vec<IpAddr> {
    let all = [("127.0.0.1", true), ("::1", has_ipv6())];
    all.into_iter().filter(|(_, there)| *there).map(|(text, _)| ip(text)).collect()
}

/// Waits until `poll` tells one of `events`, though not for ever.
pub(super) fn wait_for(socket: &impl AsFd, events: PollFlags) {
    let mut polled = [PollFd::new(socket.as_fd(), events)];
    assert_eq!(poll(&mut polled, PollTimeout::from(10_000_u16)), Ok(1), "nothing came");
    assert!(polled[0].revents().unwrap().intersects(events));
}

/// A socket that nobody but itself can write to: the answer to others is that its port is unreachable.
pub(super) fn deaf(ip: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.connect(socket.local_addr().unwrap()).unwrap();
    socket
}

/// Runs a test in a network of its own, where the interfaces are as `setup` makes them: lines for `ip`. Does nothing for
/// a user who may not have one.
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
