//! UDP sockets: how listeners and relay sockets are bound, and how one datagram is received and sent.
//!
//! Addresses that leave this module are canonical: an IPv4-mapped IPv6 address comes out as IPv4, whatever the family
//! of the socket. So a client has one 5-tuple, not two.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::sys::{self, Outgoing};

#[cfg(test)]
mod tests;

/// What a listener's kernel buffers are grown to, in bytes: some ten thousand packets, so that a burst outlives the
/// time that the worker is busy with something else.
pub const LISTENER_BUFFER: usize = 4 << 20;

/// What the kernel buffers of a relay socket are grown to, in bytes: some 900 packets of 1200 bytes as the kernel counts
/// them, ten times what the usual default holds. That is a fifth of a second of a peer that sends 40 Mbit/s, or a few
/// milliseconds of one that sends as fast as it can. The memory is taken only while packets are in it, and for all sockets
/// of the machine together it is never more than `net.ipv4.udp_mem` says.
pub const RELAY_BUFFER: usize = 1 << 20;

/// How often a call is repeated that reports an earlier datagram's error. Each time takes one such error away, and
/// another one has to arrive in the moment between.
const PENDING_ERRORS: usize = 8;

/// One received datagram; the payload is at the start of the buffer that [`receive`] was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// The sender. A link-local IPv6 address keeps its scope id, every other one has none.
    pub source: SocketAddr,
    /// The address that the sender wrote to; `None` on a socket bound to a specific address.
    pub destination: Option<IpAddr>,
    /// The datagram was longer than the buffer, and its end is lost.
    pub truncated: bool,
    /// DSCP (upper six bits) and ECN: the second byte of the IPv4 header, the traffic class of IPv6.
    pub tos: u8,
}

/// Binds one worker's listener: non-blocking, sharing its port with the listeners of the other workers
/// (`SO_REUSEPORT`), with large buffers where the system allows it.
///
/// `[::]` takes IPv4 clients too, every other IPv6 address takes only IPv6. A wildcard listener learns the
/// [`Received::destination`] of each datagram.
///
/// It would join the port of another server of the same user: only [`claim_listener`] learns of that.
///
/// # Errors
///
/// Those of `socket`, `bind` and `setsockopt`; that the buffers could not grow is none. See also [`no_ipv6`].
pub fn bind_listener(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new_listener(addr)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Binds the first listener of an address, which nobody else may have: as [`bind_listener`], which the others that
/// share the port come from. Port 0 becomes a free one.
///
/// From here to the end of the socket no other server can claim the address, so two that start at once cannot both have
/// it.
///
/// # Errors
///
/// `AddrInUse` where anybody holds the port, otherwise as [`bind_listener`].
pub fn claim_listener(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new_listener(addr)?;
    socket.bind(&addr.into())?;
    // Not before: a bind that may share would join whoever is there.
    socket.set_reuse_port(true)?;
    Ok(socket.into())
}

/// Whether binding `[::]` failed because this kernel has no IPv6 or has it switched off, so that `0.0.0.0` can stand in
/// for it. For a specific address the same error may mean that the machine does not have it.
pub fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Binds the socket of one relayed transport address: non-blocking, sharing its port with nobody, one family only, with
/// buffers of [`RELAY_BUFFER`] where the system allows it. Its datagrams may be fragmented on their way (RFC 8656 §14:
/// DF is 0) except by [`send_unfragmented`].
///
/// # Errors
///
/// Those of `socket` and `bind`: `AddrInUse` where the port is taken.
pub fn bind_relay(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new_socket(addr, false)?;
    socket.bind(&addr.into())?;
    grow_buffers(&socket, RELAY_BUFFER);
    Ok(socket.into())
}

/// Lets the kernel merge consecutive datagrams of one sender, of equal size but for a shorter last one, into one of up to
/// 64 KiB (`UDP_GRO`), as [`RecvBatch`](super::batch::RecvBatch) can tell them apart; [`receive`] cannot. Returns
/// whether the kernel does it: since Linux 5.0.
pub fn merge_received(socket: &impl AsFd) -> bool {
    setsockopt(&socket.as_fd(), sockopt::UdpGroSegment, &true).is_ok()
}

/// Whether the kernel can cut one message into datagrams (`UDP_SEGMENT`): since Linux 4.18. An older one would send it
/// whole.
pub(super) fn segmentation_supported() -> bool {
    let socket = |domain| Socket::new(domain, Type::DGRAM, Some(Protocol::UDP));
    let socket = socket(Domain::IPV4).or_else(|_| socket(Domain::IPV6));
    socket.is_ok_and(|socket| getsockopt(&socket, sockopt::UdpGsoSegment).is_ok())
}

/// Lets the kernel queue the ICMP errors that this socket's datagrams cause, for [`receive_error`].
///
/// The queue shares the memory of the receive buffer: whoever calls this has to read the queue, or errors will fill it.
/// `epoll` tells of an error by `EPOLLERR` alone, which is no readiness to read.
///
/// # Errors
///
/// Those of `getsockopt` and `setsockopt`.
pub fn report_errors(socket: &impl AsFd) -> io::Result<()> {
    let fd = socket.as_fd();
    if SockRef::from(&fd).domain()? == Domain::IPV6 {
        setsockopt(&fd, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?;
    }
    Ok(())
}

/// Sizes of a socket's kernel buffers in bytes, in the unit of [`LISTENER_BUFFER`] and [`RELAY_BUFFER`]: what packets
/// and the kernel's notes on them may take is twice as much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSizes {
    /// Of the receive buffer. `net.core.rmem_max` limits it for a process without `CAP_NET_ADMIN`.
    pub receive: usize,
    /// Of the send buffer. `net.core.wmem_max` limits it.
    pub send: usize,
}

/// The sizes that the buffers really have: less than what was asked for where the system's limits are lower.
///
/// # Errors
///
/// Those of `getsockopt`.
pub fn buffer_sizes(socket: &impl AsFd) -> io::Result<BufferSizes> {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    // The kernel reports twice the size that was asked for.
    Ok(BufferSizes { receive: socket.recv_buffer_size()? / 2, send: socket.send_buffer_size()? / 2 })
}

/// Receives one datagram into `buffer`. It allocates nothing.
///
/// # Errors
///
/// `WouldBlock` where nothing is there, otherwise those of `recvmsg`; an interrupted call is repeated, and so is one that
/// reports the error of a datagram sent earlier (see [`report_errors`]).
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let arrival = past_pending_errors(|| sys::receive(socket.as_fd(), buffer))?;
    let source = arrival.source.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Received {
        len: arrival.len,
        source: canonical(source),
        destination: arrival.destination.map(|address| address.to_canonical()),
        truncated: arrival.truncated,
        tos: arrival.tos,
    })
}

/// Sends one datagram to `to`, with the source address `from` where one is named, else the one that the kernel picks.
/// It allocates nothing.
///
/// A dual-stack socket takes IPv4 destinations as they are.
///
/// # Errors
///
/// `InvalidInput` where `from` is not of the family of `to`, `WouldBlock` where the socket's buffer is full, otherwise
/// those of `sendmsg`, among them that `from` is no address of this machine; an interrupted call is repeated, and so is
/// one that reports the error of an earlier datagram (see [`report_errors`]).
pub fn send(socket: &impl AsFd, payload: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
    send_marked(socket, payload, to, from, 0)
}

/// Sends one datagram as [`send`] does, with this DSCP and ECN (see [`Received::tos`]).
///
/// # Errors
///
/// As [`send`].
pub fn send_marked(
    socket: &impl AsFd,
    payload: &[u8],
    to: SocketAddr,
    from: Option<IpAddr>,
    tos: u8,
) -> io::Result<()> {
    let outgoing = outgoing(to, from, tos).ok_or(io::ErrorKind::InvalidInput)?;
    // A datagram is sent whole or not at all.
    past_pending_errors(|| sys::send(socket.as_fd(), payload, &outgoing)).map(|_| ())
}

/// Sends one datagram out of a relay socket with the DF bit set (RFC 8656 §14, §15), or to an IPv6 peer without a Fragment
/// header. What the interface cannot take whole is not sent. An IPv4 datagram may be larger than the path MTU that the
/// kernel has heard of: the client wants to find out itself.
///
/// # Errors
///
/// `EMSGSIZE` where the datagram is too long, which [`receive_error`] reports too if [`report_errors`] is on; otherwise
/// as [`send`].
pub fn send_unfragmented(socket: &impl AsFd, payload: &[u8], to: SocketAddr, tos: u8) -> io::Result<()> {
    let fd = socket.as_fd();
    let outgoing = Outgoing { unfragmented: true, ..outgoing(to, None, tos).ok_or(io::ErrorKind::InvalidInput)? };
    // What is pending is taken away first, because repeating the call would report an EMSGSIZE of its own twice.
    let _ = SockRef::from(&fd).take_error();
    if outgoing.to.is_ipv6() {
        return sys::send(fd, payload, &outgoing).map(|_| ());
    }
    set_discovery(fd, libc::IP_PMTUDISC_PROBE)?;
    let sent = sys::send(fd, payload, &outgoing);
    set_discovery(fd, FRAGMENT_V4)?;
    sent.map(|_| ())
}

/// Why a datagram sent to a peer was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Where it was sent to. The port is 0 where the kernel does not tell it: for an IPv4 datagram that this machine
    /// found too long.
    pub peer: SocketAddr,
    /// The ICMP type, of ICMP or ICMPv6 by the family of `peer`.
    pub kind: u8,
    /// The ICMP code.
    pub code: u8,
    /// The next hop's MTU in bytes for an ICMP message of type 3 and code 4 or an ICMPv6 message of type 2, else 0: the
    /// Error Data of RFC 8656 §18.13.
    pub info: u32,
    /// Who found out.
    pub origin: Origin,
}

/// Where an error comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An ICMP or ICMPv6 message.
    Network,
    /// This machine, which would not send so long a datagram unfragmented. Type, code and MTU are those that a router
    /// would have sent.
    Local,
}

/// Takes the oldest error from the queue of a socket that has [`report_errors`] on; `None` when there is none. It
/// allocates nothing.
///
/// # Errors
///
/// Those of `recvmsg`; an interrupted call is repeated.
pub fn receive_error(socket: &impl AsFd) -> io::Result<Option<Unreachable>> {
    loop {
        match sys::receive_error(socket.as_fd()) {
            // Other kinds of entries are passed over: nobody has asked for them.
            Ok(entry) => {
                if let Some(error) = entry.and_then(unreachable) {
                    return Ok(Some(error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn unreachable(entry: sys::QueuedError) -> Option<Unreachable> {
    const FRAGMENTATION_NEEDED: (u8, u8) = (3, 4);
    const PACKET_TOO_BIG: (u8, u8) = (2, 0);
    let peer = canonical(entry.destination?);
    let too_long = if peer.is_ipv4() { FRAGMENTATION_NEEDED } else { PACKET_TOO_BIG };
    let error = entry.error;
    let ((kind, code), origin) = match error.ee_origin {
        libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => ((error.ee_type, error.ee_code), Origin::Network),
        libc::SO_EE_ORIGIN_LOCAL if i32::try_from(error.ee_errno) == Ok(libc::EMSGSIZE) => (too_long, Origin::Local),
        _ => return None,
    };
    let info = if (kind, code) == too_long { error.ee_info } else { 0 };
    Some(Unreachable { peer, kind, code, info, origin })
}

/// Repeats a call as long as it reports errors that ICMP messages have left on the socket. An error of its own comes
/// again each time.
pub(super) fn past_pending_errors<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut result = call();
    for _ in 1..PENDING_ERRORS {
        match &result {
            Err(error) if may_be_pending(error) => result = call(),
            _ => break,
        }
    }
    result
}

/// Whether an ICMP message can leave this error on a socket that has [`report_errors`] on.
pub(super) fn may_be_pending(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EMSGSIZE
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EACCES
        )
    )
}

/// A datagram's destination, source and marking as the kernel takes them; `None` where their families differ.
fn outgoing(to: SocketAddr, from: Option<IpAddr>, tos: u8) -> Option<Outgoing> {
    // Linux takes an IPv4 destination on a dual-stack socket, so that nobody has to know the family of the socket. The
    // reverse, a mapped one on an IPv4 socket, it refuses.
    let to = canonical(to);
    let from = from.map(|address| address.to_canonical());
    let fits = from.is_none_or(|from| from.is_ipv4() == to.is_ipv4());
    fits.then_some(Outgoing { to, from, tos, segment: None, unfragmented: false })
}

fn new_listener(addr: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(addr, dual_stack(addr))?;
    if addr.ip().is_unspecified() {
        if addr.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        if addr.is_ipv4() || dual_stack(addr) {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
    }
    grow_buffers(&socket, LISTENER_BUFFER);
    Ok(socket)
}

fn new_socket(addr: SocketAddr, dual_stack: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
        setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)?;
        sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, FRAGMENT_V6)?;
    }
    if addr.is_ipv4() || dual_stack {
        setsockopt(&socket, sockopt::IpRecvTos, &true)?;
        set_discovery(socket.as_fd(), FRAGMENT_V4)?;
    }
    // A kernel that does not count drops serves as well.
    let _ = setsockopt(&socket, sockopt::RxqOvfl, &1);
    Ok(socket)
}

/// Whether a listener on this address takes clients of both families.
pub(super) fn dual_stack(addr: SocketAddr) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified()
}

/// Grows both buffers as far as the system lets us: past its limits with `CAP_NET_ADMIN`, up to them without.
fn grow_buffers(socket: &Socket, size: usize) {
    let Ok(had) = buffer_sizes(socket) else { return };
    if had.receive < size && setsockopt(socket, sockopt::RcvBufForce, &size).is_err() {
        let _ = socket.set_recv_buffer_size(size);
    }
    if had.send < size && setsockopt(socket, sockopt::SndBufForce, &size).is_err() {
        let _ = socket.set_send_buffer_size(size);
    }
}

/// DF is 0, and too long a datagram is fragmented for the interface. Unlike `IP_PMTUDISC_DONT` this tells of the ICMP
/// messages that datagrams with DF cause, and does not let a forged one make fragments smaller.
const FRAGMENT_V4: libc::c_int = libc::IP_PMTUDISC_OMIT;

/// Too long a datagram is fragmented for its path, as far as ICMPv6 messages have told of that: routers do not fragment
/// IPv6.
const FRAGMENT_V6: libc::c_int = libc::IPV6_PMTUDISC_DONT;

fn set_discovery(fd: BorrowedFd<'_>, mode: libc::c_int) -> io::Result<()> {
    sys::set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)
}

/// The same address written in one way: IPv4 where it is mapped, no flow label.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(ip.into(), v6.port()),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}
