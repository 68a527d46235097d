//! Routing sockets (rtnetlink). They need no capability.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};

use super::Pair;
use super::judge::Response;
use super::message::{self, List, Message};

/// The most that the kernel sends at a time.
const BUFFER: usize = 32 << 10;
/// The memory for notifications. The kernel grants what `net.core.rmem_max` allows.
const NOTIFICATIONS: usize = 2 << 20;

/// How often a list is requested that changes while the kernel writes it.
const ATTEMPTS: u32 = 10;

/// The groups of notifications: bit n - 1 for the group n of linux/rtnetlink.h.
const GROUPS: u32 = group(libc::RTNLGRP_LINK)
    | group(libc::RTNLGRP_NEIGH)
    | group(libc::RTNLGRP_IPV4_IFADDR)
    | group(libc::RTNLGRP_IPV4_ROUTE)
    | group(libc::RTNLGRP_IPV4_RULE)
    | group(libc::RTNLGRP_IPV6_IFINFO)
    | group(libc::RTNLGRP_IPV6_IFADDR)
    | group(libc::RTNLGRP_IPV6_ROUTE)
    | group(libc::RTNLGRP_IPV6_RULE)
    | group(libc::RTNLGRP_NEXTHOP);

const fn group(number: libc::c_uint) -> u32 {
    1 << (number - 1)
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?)
}

/// Subscribes to the notifications of the network namespace of this thread.
pub(super) fn subscribe() -> io::Result<OwnedFd> {
    let socket = open()?;
    let _ = setsockopt(&socket, sockopt::RcvBuf, &NOTIFICATIONS);
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(socket)
}

/// What a read of notifications has found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Messages(Vec<Message>),
    /// The kernel has dropped notifications, so nothing is known.
    Overrun,
    Nothing,
}

/// Reads one datagram of notifications.
pub(super) fn notifications(socket: &OwnedFd) -> io::Result<Received> {
    let mut buffer = [0; BUFFER];
    // With `MSG_TRUNC`, the length is that of the datagram.
    let length = loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
            Ok(length) => break length,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Received::Nothing),
            Err(Errno::ENOBUFS) => return Ok(Received::Overrun),
            Err(error) => return Err(error.into()),
        }
    };
    Ok(match buffer.get(..length) {
        Some(bytes) => Received::Messages(message::split(bytes).filter_map(message::message).collect()),
        None => Received::Overrun,
    })
}

/// A socket for requests. The kernel responds while it receives the request, so reading does not wait.
#[derive(Debug)]
pub(super) struct Requests {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { socket: open()?, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Looks the routes of some pairs up. A pair without response is not in the result: the socket was full.
    pub(super) fn routes(&mut self, pairs: &[Pair]) -> io::Result<Vec<(Pair, Response)>> {
        let first = self.sequence;
        let mut requests = Vec::new();
        for pair in pairs {
            requests.extend(message::route_request(pair, self.sequence));
            requests.resize(requests.len().next_multiple_of(4), 0);
            self.sequence = self.sequence.wrapping_add(1);
        }
        self.send(&requests)?;
        let mut responses = Vec::with_capacity(pairs.len());
        while responses.len() < pairs.len()
            && let Some(length) = self.receive()?
        {
            for raw in message::split(self.buffer.get(..length).unwrap_or_default()) {
                // The response to an earlier request has another number.
                let index = usize::try_from(raw.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if let Some(pair) = pairs.get(index) {
                    responses.push((*pair, message::response(raw)));
                }
            }
        }
        Ok(responses)
    }

    /// Requests a list.
    fn request(&mut self, list: List) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&message::list_request(list, self.sequence))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop).map_err(Into::into),
            }
        }
    }

    /// Receives one datagram. Returns its length, or `None` if there is none.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EAGAIN) => return Ok(None),
                // `ENOBUFS`: a response was dropped; the next call reads the others.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The reading of all lists, in steps.
#[derive(Debug)]
pub(super) struct Reading {
    requests: Requests,
    /// The lists that are not complete; the last one is being read.
    missing: Vec<List>,
    requested: bool,
    /// How often the current list was requested.
    attempts: u32,
    /// The current list changed while the kernel wrote it.
    interrupted: bool,
    /// The start of the current list in `messages`.
    start: usize,
    messages: Vec<Message>,
}

impl Reading {
    /// Reads all lists.
    pub(super) fn start() -> io::Result<Self> {
        Self::of(&[List::Neighbours, List::Rules, List::Addresses, List::Links])
    }

    /// Reads some lists, the last one first.
    pub(super) fn of(lists: &[List]) -> io::Result<Self> {
        Ok(Self {
            requests: Requests::open()?,
            missing: lists.to_vec(),
            requested: false,
            attempts: 0,
            interrupted: false,
            start: 0,
            messages: Vec::new(),
        })
    }

    /// Reads everything that is missing.
    pub(super) fn complete(mut self) -> io::Result<Vec<Message>> {
        loop {
            if let Some(messages) = self.step()? {
                return Ok(messages);
            }
        }
    }

    /// Reads the next part. Returns all lists when they are complete.
    pub(super) fn step(&mut self) -> io::Result<Option<Vec<Message>>> {
        let Some(list) = self.missing.last() else { return Ok(Some(std::mem::take(&mut self.messages))) };
        if !self.requested {
            self.requests.request(*list)?;
            self.requested = true;
            self.attempts += 1;
            self.interrupted = false;
            self.messages.truncate(self.start);
        }
        let Some(length) = self.requests.receive()? else {
            // The end of the list was dropped.
            self.requested = false;
            if self.attempts < ATTEMPTS {
                return Ok(None);
            }
            self.attempts = 0;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not complete a list"));
        };
        let bytes = self.requests.buffer.get(..length).unwrap_or_default();
        for raw in message::split(bytes).filter(|raw| raw.sequence == self.requests.sequence) {
            self.interrupted |= raw.interrupted;
            match i32::from(raw.kind) {
                libc::NLMSG_ERROR => {
                    (self.requested, self.attempts) = (false, 0);
                    return Err(io::Error::from_raw_os_error(message::status(raw).saturating_neg()));
                }
                libc::NLMSG_DONE => {
                    self.requested = false;
                    // Whatever such a list lacks is found at the next change or overrun.
                    if !self.interrupted || self.attempts >= ATTEMPTS {
                        self.attempts = 0;
                        self.missing.pop();
                        self.start = self.messages.len();
                    }
                    break;
                }
                _ => self.messages.extend(message::message(raw)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::socketpair;

    use super::*;

    /// A reading of interfaces, and the socket of a kernel that the test plays.
    fn reading() -> (Reading, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (socket, kernel) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags).unwrap();
        let mut reading = Reading::of(&[List::Links]).unwrap();
        reading.requests.socket = socket;
        (reading, kernel)
    }

    /// Sends a message without attributes as the response to the last request.
    fn respond(kernel: &OwnedFd, reading: &Reading, kind: libc::c_int, flags: libc::c_int, body: &[u8]) {
        let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend([kind, flags].map(|number| u16::try_from(number).unwrap().to_ne_bytes()).concat());
        bytes.extend(reading.requests.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        send(kernel.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
    }

    fn request(reading: &mut Reading, kernel: &OwnedFd) {
        reading.requests.request(List::Links).unwrap();
        reading.requested = true;
        reading.attempts += 1;
        recv(kernel.as_raw_fd(), &mut [0; 64], MsgFlags::empty()).unwrap();
    }

    #[test]
    fn a_list_that_always_changes_is_accepted_at_the_last_attempt_even_after_errors() {
        let (mut reading, kernel) = reading();
        for _ in 0..3 {
            // The kernel does not respond.
            let attempts = (1..).find(|_| reading.step().is_err()).unwrap();
            assert_eq!(attempts, ATTEMPTS);
        }
        while recv(kernel.as_raw_fd(), &mut [0; 64], MsgFlags::empty()).is_ok() {}
        request(&mut reading, &kernel);
        respond(&kernel, &reading, libc::NLMSG_ERROR, 0, &(-libc::EBUSY).to_ne_bytes());
        assert_eq!(reading.step().unwrap_err().raw_os_error(), Some(libc::EBUSY));
        for attempt in 1..=ATTEMPTS {
            assert!(!reading.missing.is_empty(), "accepted before attempt {attempt}");
            request(&mut reading, &kernel);
            respond(&kernel, &reading, libc::NLMSG_DONE, libc::NLM_F_DUMP_INTR, &[0; 4]);
            assert_eq!(reading.step().unwrap(), None);
        }
        assert!(reading.missing.is_empty());
        assert_eq!(reading.step().unwrap(), Some(Vec::new()));
    }
}
