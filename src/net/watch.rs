//! Which sockets can be read from.
//!
//! The runtime's own sockets ask to be told when they can be written to, too, and a UDP socket can be written to again with
//! every datagram that has left it: whoever asks for that is woken once more for each datagram sent. And the runtime keeps a
//! record and a task for each socket. Here one descriptor stands for many of them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;

use super::sys;

/// How many sockets one call tells of.
const MOST_EVENTS: usize = 64;

/// A descriptor of which the runtime tells when it can be read from.
pub type Readable = AsyncFd<OwnedFd>;

/// Has the runtime watch a descriptor.
///
/// # Errors
/// Those of `epoll_ctl`.
///
/// # Panics
/// Outside a runtime.
pub fn readable(fd: impl Into<OwnedFd>) -> io::Result<Readable> {
    sys::watch_reading(fd.into())
}

/// Sockets that are watched.
#[derive(Debug)]
pub struct Watch(Epoll);

/// What [`Watch::ready`] fills.
#[derive(Debug)]
pub struct Events {
    all: Vec<EpollEvent>,
    count: usize,
}

/// What a socket has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The number that [`Watch::add`] was given.
    pub token: u64,
    /// Its error queue is not empty (see [`report_errors`](super::udp::report_errors)), or it has failed.
    pub error: bool,
}

impl Default for Events {
    fn default() -> Self {
        Self { all: vec![EpollEvent::empty(); MOST_EVENTS], count: 0 }
    }
}

impl Events {
    /// Takes what the last call told of.
    pub fn drain(&mut self) -> impl Iterator<Item = Ready> + '_ {
        let failed = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        let events = self.all.iter().take(std::mem::take(&mut self.count));
        events.map(move |event| Ready { token: event.data(), error: event.events().intersects(failed) })
    }
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// Those of `epoll_create1`: no descriptor is free.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches a socket until it is closed. It is told of once for what arrives (edge-triggered): whoever has been told
    /// reads until nothing is left. What is there already counts as arriving.
    ///
    /// # Errors
    /// Those of `epoll_ctl`: `ENOSPC` where the user watches as many sockets as `fs.epoll.max_user_watches` lets him.
    pub fn add(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        Ok(self.0.add(socket, EpollEvent::new(readable, token))?)
    }

    /// A descriptor that can be read from while a socket has something to tell.
    ///
    /// # Errors
    /// Those of [`readable`], and of `dup`.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn readable(&self) -> io::Result<Readable> {
        readable(self.0.0.try_clone()?)
    }

    /// Takes the sockets that have something to tell, and returns whether those are all. It does not wait.
    ///
    /// # Errors
    /// Those of `epoll_wait`.
    pub fn ready(&self, events: &mut Events) -> io::Result<bool> {
        events.count = 0;
        events.count = self.0.wait(&mut events.all, EpollTimeout::ZERO)?;
        Ok(events.count < events.all.len())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::net::testing::{deaf, ip, wait_for};
    use crate::net::udp;
    use nix::poll::PollFlags;

    fn told(watch: &Watch) -> (Vec<Ready>, bool) {
        let mut events = Events::default();
        let all = watch.ready(&mut events).unwrap();
        (events.drain().collect(), all)
    }

    fn bound() -> UdpSocket {
        udp::bind_relay((ip("127.0.0.1"), 0).into()).unwrap()
    }

    #[test]
    fn a_socket_is_told_of_once_for_what_arrives() {
        let (watch, socket, silent, peer) = (Watch::new().unwrap(), bound(), bound(), bound());
        watch.add(&socket, 7).unwrap();
        watch.add(&silent, 8).unwrap();
        assert_eq!(told(&watch), (vec![], true));
        for _ in 0..2 {
            peer.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            wait_for(&watch.0.0, PollFlags::POLLIN);
            assert_eq!(told(&watch), (vec![Ready { token: 7, error: false }], true));
            assert_eq!(told(&watch), (vec![], true));
        }
    }

    #[test]
    fn sending_tells_nothing() {
        let (watch, socket, peer) = (Watch::new().unwrap(), bound(), bound());
        watch.add(&socket, 7).unwrap();
        socket.send_to(b"x", peer.local_addr().unwrap()).unwrap();
        wait_for(&peer, PollFlags::POLLIN);
        peer.recv(&mut [0; 1]).unwrap();
        assert_eq!(told(&watch), (vec![], true));
    }

    #[test]
    fn an_icmp_error_is_told_as_one() {
        let (watch, socket) = (Watch::new().unwrap(), bound());
        udp::report_errors(&socket).unwrap();
        watch.add(&socket, 7).unwrap();
        socket.send_to(b"x", deaf(ip("127.0.0.1")).local_addr().unwrap()).unwrap();
        wait_for(&watch.0.0, PollFlags::POLLIN);
        assert_eq!(told(&watch), (vec![Ready { token: 7, error: true }], true));
    }

    #[test]
    fn one_call_tells_of_so_many_and_the_next_of_the_rest() {
        let (watch, peer) = (Watch::new().unwrap(), bound());
        let sockets: Vec<_> = (0..=MOST_EVENTS).map(|_| bound()).collect();
        for (socket, token) in sockets.iter().zip(0..) {
            watch.add(socket, token).unwrap();
            peer.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            wait_for(socket, PollFlags::POLLIN);
        }
        let (first, all) = told(&watch);
        assert_eq!((first.len(), all), (MOST_EVENTS, false));
        let (rest, all) = told(&watch);
        assert_eq!((rest.len(), all), (1, true));
        assert!(!first.contains(&rest[0]));
    }

    #[test]
    fn a_closed_socket_is_told_of_no_more() {
        let (watch, socket, peer) = (Watch::new().unwrap(), bound(), bound());
        watch.add(&socket, 7).unwrap();
        peer.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        wait_for(&socket, PollFlags::POLLIN);
        drop(socket);
        assert_eq!(told(&watch), (vec![], true));
    }
}
