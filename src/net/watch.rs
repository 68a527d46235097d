//! Readiness of many sockets for reading, through one descriptor of the runtime.
//!
//! The sockets of the runtime are registered for reading and writing. A UDP socket becomes writable again after each
//! datagram that it has sent, which would wake the event loop once more per datagram. The runtime also needs a record
//! and a task per socket. An edge-triggered epoll instance that is registered for reading avoids both.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;

use super::sys;

/// The most sockets that one call reports.
const MAX_EVENTS: usize = 64;

/// A descriptor that is registered with the runtime for reading.
pub(crate) type Readable = AsyncFd<OwnedFd>;

/// Registers a descriptor with the runtime for reading.
///
/// # Errors
/// Those of `epoll_ctl`.
///
/// # Panics
/// If called outside a runtime.
pub(crate) fn readable(fd: impl Into<OwnedFd>) -> io::Result<Readable> {
    sys::watch_reading(fd.into())
}

/// An edge-triggered epoll instance.
#[derive(Debug)]
pub(crate) struct Watch(Epoll);

/// The events that [`Watch::ready`] returned last.
#[derive(Debug)]
pub(crate) struct Events {
    all: Vec<EpollEvent>,
    count: usize,
}

/// An event of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    /// The number passed to [`Watch::add`].
    pub(crate) token: u64,
    /// The error queue of the socket is not empty (see [`enable_error_queue`](super::udp::enable_error_queue)), or the
    /// socket has failed.
    pub(crate) error: bool,
}

impl Default for Events {
    fn default() -> Self {
        Self { all: vec![EpollEvent::empty(); MAX_EVENTS], count: 0 }
    }
}

impl Events {
    /// Takes the events of the last call.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Ready> + '_ {
        let failed = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        let events = self.all.iter().take(std::mem::take(&mut self.count));
        events.map(move |event| Ready { token: event.data(), error: event.events().intersects(failed) })
    }
}

impl Watch {
    /// Creates an instance without sockets.
    ///
    /// # Errors
    /// Those of `epoll_create1`: the limit of open files is reached.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches a socket until it is closed.
    ///
    /// Events are edge-triggered: the caller must read until the socket is empty. Data that is already available causes
    /// an event as well.
    ///
    /// # Errors
    /// Those of `epoll_ctl`: `ENOSPC` if the limit `fs.epoll.max_user_watches` is reached.
    pub(crate) fn add(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.0.add(socket, EpollEvent::new(readable, token))?)
    }

    /// Registers the instance itself with the runtime. It is readable while a socket has an event.
    ///
    /// # Errors
    /// Those of [`readable`] and `dup`.
    ///
    /// # Panics
    /// If called outside a runtime.
    pub(crate) fn readable(&self) -> io::Result<Readable> {
        readable(self.0.0.try_clone()?)
    }

    /// Takes events of sockets without waiting. Returns whether it took all pending events.
    ///
    /// # Errors
    /// Those of `epoll_wait`.
    pub(crate) fn ready(&self, events: &mut Events) -> io::Result<bool> {
        events.count = 0;
        events.count = self.0.wait(&mut events.all, EpollTimeout::ZERO)?;
        Ok(events.count < events.all.len())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::net::testing::{closed_port, ip, wait_for};
    use crate::net::udp;
    use nix::poll::PollFlags;

    fn ready(watch: &Watch) -> (Vec<Ready>, bool) {
        let mut events = Events::default();
        let all = watch.ready(&mut events).unwrap();
        (events.drain().collect(), all)
    }

    fn bound() -> UdpSocket {
        udp::bind_relay((ip("127.0.0.1"), 0).into()).unwrap()
    }

    #[test]
    fn each_arrival_is_reported_once() {
        let (watch, socket, idle, peer) = (Watch::new().unwrap(), bound(), bound(), bound());
        watch.add(&socket, 7).unwrap();
        watch.add(&idle, 8).unwrap();
        assert_eq!(ready(&watch), (vec![], true));
        for _ in 0..2 {
            peer.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            wait_for(&watch.0.0, PollFlags::POLLIN);
            assert_eq!(ready(&watch), (vec![Ready { token: 7, error: false }], true));
            assert_eq!(ready(&watch), (vec![], true));
        }
    }

    #[test]
    fn sending_causes_no_event() {
        let (watch, socket, peer) = (Watch::new().unwrap(), bound(), bound());
        watch.add(&socket, 7).unwrap();
        socket.send_to(b"x", peer.local_addr().unwrap()).unwrap();
        wait_for(&peer, PollFlags::POLLIN);
        peer.recv(&mut [0; 1]).unwrap();
        assert_eq!(ready(&watch), (vec![], true));
    }

    #[test]
    fn an_icmp_error_is_reported_as_an_error() {
        let (watch, socket) = (Watch::new().unwrap(), bound());
        udp::enable_error_queue(&socket).unwrap();
        watch.add(&socket, 7).unwrap();
        socket.send_to(b"x", closed_port(ip("127.0.0.1")).local_addr().unwrap()).unwrap();
        wait_for(&watch.0.0, PollFlags::POLLIN);
        assert_eq!(ready(&watch), (vec![Ready { token: 7, error: true }], true));
    }

    #[test]
    fn events_beyond_the_limit_of_one_call_are_reported_by_the_next() {
        let (watch, peer) = (Watch::new().unwrap(), bound());
        let sockets: Vec<_> = (0..=MAX_EVENTS).map(|_| bound()).collect();
        for (socket, token) in sockets.iter().zip(0..) {
            watch.add(socket, token).unwrap();
            peer.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            wait_for(socket, PollFlags::POLLIN);
        }
        let (first, all) = ready(&watch);
        assert_eq!((first.len(), all), (MAX_EVENTS, false));
        let (rest, all) = ready(&watch);
        assert_eq!((rest.len(), all), (1, true));
        assert!(!first.contains(&rest[0]));
    }

    #[test]
    fn a_closed_socket_causes_no_event() {
        let (watch, socket, peer) = (Watch::new().unwrap(), bound(), bound());
        watch.add(&socket, 7).unwrap();
        peer.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        wait_for(&socket, PollFlags::POLLIN);
        drop(socket);
        assert_eq!(ready(&watch), (vec![], true));
    }
}
