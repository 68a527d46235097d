//! Sends and receives many datagrams per system call, with arrival times.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage, recvmmsg, sendmmsg, sendmsg,
    setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;

use super::clock;

/// Length of the longest datagram, in bytes.
const LONGEST: usize = 65_536;

/// Size of a socket's receive buffer, in bytes. It holds the packets that arrive while a role sleeps.
const BUFFER: usize = 8 << 20;

/// Prepares a socket for [`Receiver`]: a large receive buffer, arrival times, and merged datagrams (`UDP_GRO`).
pub(crate) fn prepare(socket: &UdpSocket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &BUFFER)?;
    }
    setsockopt(socket, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(socket, sockopt::UdpGroSegment, &true)?;
    Ok(())
}

/// Sends consecutive `messages` of `length` bytes each in one call, to the addresses `to` or to the connected address.
///
/// Messages that the kernel rejects are lost and counted as such.
pub(crate) fn send_each(socket: &UdpSocket, messages: &[u8], length: usize, to: &[SocketAddr]) {
    let messages: Vec<[IoSlice<'_>; 1]> = messages.chunks(length).map(|message| [IoSlice::new(message)]).collect();
    let mut addresses: Vec<Option<SockaddrStorage>> = to.iter().map(|to| Some(SockaddrStorage::from(*to))).collect();
    addresses.resize(messages.len(), None);
    let mut headers = MultiHeaders::preallocate(messages.len(), None);
    let _ = sendmmsg(socket.as_raw_fd(), &mut headers, &messages, &addresses, [], MsgFlags::empty());
}

/// Sends `messages` as one datagram, which the kernel splits into segments of `length` bytes as late as possible
/// (`UDP_SEGMENT`). Messages that the kernel rejects are lost.
pub(crate) fn send_merged(socket: &UdpSocket, messages: &[u8], length: u16, to: Option<SocketAddr>) {
    let (message, to) = ([IoSlice::new(messages)], to.map(SockaddrStorage::from));
    let segments = [ControlMessage::UdpGsoSegments(&length)];
    let _ = sendmsg(socket.as_raw_fd(), &message, &segments, MsgFlags::empty(), to.as_ref());
}

/// Receives from prepared sockets.
pub(crate) struct Receiver {
    buffers: Vec<Vec<u8>>,
}

impl Receiver {
    /// Creates a receiver of up to `batch` datagrams at a time.
    pub(crate) fn new(batch: usize) -> Self {
        Self { buffers: vec![vec![0; LONGEST]; batch] }
    }

    /// Calls `each` with every available datagram (or segment of a merged one) and its arrival time.
    pub(crate) fn drain(&mut self, socket: &UdpSocket, each: &mut dyn FnMut(&[u8], u64)) -> io::Result<()> {
        loop {
            match self.receive(socket, each) {
                Ok(received) if received < self.buffers.len() => return Ok(()),
                Err(Errno::EAGAIN) => return Ok(()),
                // An ICMP error for an earlier packet. Reporting it has cleared it.
                Ok(_) | Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive(&mut self, socket: &UdpSocket, each: &mut dyn FnMut(&[u8], u64)) -> Result<usize, Errno> {
        let mut slices: Vec<_> = self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        // The kernel overwrites the buffer sizes in the headers, so they cannot be reused.
        let space = nix::cmsg_space!(TimeSpec, i32);
        let mut headers: MultiHeaders<()> = MultiHeaders::preallocate(slices.len(), Some(space));
        let messages = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        let mut received = 0;
        for message in messages {
            received += 1;
            let (arrival, segment) = control_of(&message);
            for datagram in message.iovs().flat_map(|bytes| bytes.chunks(segment)) {
                each(datagram, arrival);
            }
        }
        Ok(received)
    }
}

/// Returns the arrival time of a datagram and the length of its segments.
fn control_of(message: &RecvMsg<'_, '_, ()>) -> (u64, usize) {
    let (mut arrival, mut segment) = (None, LONGEST);
    for control in message.cmsgs().into_iter().flatten() {
        match control {
            ControlMessageOwned::ScmTimestampns(at) => arrival = Some(clock::nanoseconds(at)),
            ControlMessageOwned::UdpGroSegments(length) => segment = usize::try_from(length).unwrap_or(LONGEST).max(1),
            _ => {}
        }
    }
    (arrival.unwrap_or_else(clock::now), segment)
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let (from, to) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        prepare(&to).unwrap();
        (from, to)
    }

    fn received(socket: &UdpSocket, batch: usize) -> Vec<(Vec<u8>, u64)> {
        let mut all = Vec::new();
        Receiver::new(batch).drain(socket, &mut |datagram, arrival| all.push((datagram.to_vec(), arrival))).unwrap();
        all
    }

    const MESSAGES: [u8; 12] = [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];

    #[test]
    fn datagrams_sent_in_one_call_arrive_one_by_one() {
        let (from, to) = pair();
        let before = clock::now();
        send_each(&from, &MESSAGES, 4, &[to.local_addr().unwrap(); 3]);
        for batch in [2, 8] {
            let all = received(&to, batch);
            assert_eq!(all.iter().map(|(bytes, _)| bytes.clone()).collect::<Vec<_>>(), [[1; 4], [2; 4], [3; 4]]);
            assert!(all.iter().all(|(_, arrival)| (before..=clock::now()).contains(arrival)));
            send_each(&from, &MESSAGES, 4, &[to.local_addr().unwrap(); 3]);
        }
    }

    #[test]
    fn a_segmented_datagram_arrives_as_its_segments() {
        let (from, to) = pair();
        send_merged(&from, &MESSAGES[..11], 4, Some(to.local_addr().unwrap()));
        let all: Vec<_> = received(&to, 1).into_iter().map(|(bytes, _)| bytes).collect();
        assert_eq!(all, [vec![1; 4], vec![2; 4], vec![3; 3]]);
    }

    #[test]
    fn connected_sockets_need_no_address() {
        let (from, to) = pair();
        from.connect(to.local_addr().unwrap()).unwrap();
        send_each(&from, &MESSAGES, 6, &[]);
        send_merged(&from, &MESSAGES, 6, None);
        assert_eq!(received(&to, 8).len(), 4);
    }

    #[test]
    fn an_empty_socket_gives_nothing() {
        assert!(received(&pair().1, 4).is_empty());
    }
}
