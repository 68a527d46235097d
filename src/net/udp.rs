//! UDP sockets: binds listeners and relay sockets, reads their error queues, and sends datagrams without fragmentation.
//!
//! This module returns canonical addresses: an IPv4-mapped IPv6 address is returned as IPv4, whatever the family of the
//! socket, so that a client has only one 5-tuple.

use std::io;
use std::net::{SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::sys::{self, Outgoing};
use crate::ip_fields::IpFields;

#[cfg(test)]
mod tests;

/// The size requested for each kernel buffer of a listener, in bytes.
///
/// With the kernel's overhead it holds about 3600 packets of 1200 bytes. It buffers a burst while the worker is busy.
pub(crate) const LISTENER_BUFFER: usize = 4 << 20;

/// The size requested for each kernel buffer of a relay socket, in bytes.
///
/// With the kernel's overhead it holds about 900 packets of 1200 bytes, ten times the usual default. A peer that sends
/// 40 Mbit/s fills it in 0.2 s. The kernel uses memory only for queued packets, and `net.ipv4.udp_mem` limits the
/// memory of all UDP sockets together.
pub(crate) const RELAY_BUFFER: usize = 1 << 20;

/// The most attempts of a call that fails with the error of an earlier datagram.
///
/// Each attempt clears one pending error, so a further one is needed only if another error arrives in the meantime. Under
/// a flood of forged ICMP messages from another CPU, nine attempts in a row were seen to fail.
pub(super) const MAX_ATTEMPTS: usize = 64;

/// Binds the listener of one worker.
///
/// It does not block, shares its port with the listeners of the other workers (`SO_REUSEPORT`), and has buffers of
/// `LISTENER_BUFFER` if the system allows it. `[::]` also accepts IPv4; every other IPv6 address accepts only IPv6. A
/// wildcard listener reports the [`Datagram::destination`](super::batch::Datagram::destination) of each datagram.
///
/// This function does not detect another server of the same user on the port; `claim_listener` does.
///
/// # Errors
///
/// Those of `socket`, `bind` and `setsockopt`. A failure to grow the buffers is ignored. See also `no_ipv6`.
pub fn bind_listener(addr: SocketAddr) -> io::Result<UdpSocket> {
    unbound_listener(addr)?.bind()
}

/// A listener that gets packets as soon as it is bound.
#[derive(Debug)]
pub(crate) struct UnboundListener {
    socket: Socket,
    addr: SocketAddr,
}

/// Creates the listener of one worker, which is not bound yet.
///
/// # Errors
///
/// Those of `socket` and `setsockopt`, as for [`bind_listener`].
pub(crate) fn unbound_listener(addr: SocketAddr) -> io::Result<UnboundListener> {
    let socket = new_listener(addr)?;
    socket.set_reuse_port(true)?;
    Ok(UnboundListener { socket, addr })
}

impl UnboundListener {
    /// Binds it.
    ///
    /// # Errors
    ///
    /// Those of `bind`.
    pub(crate) fn bind(self) -> io::Result<UdpSocket> {
        self.socket.bind(&self.addr.into())?;
        Ok(self.socket.into())
    }
}

/// Binds the first listener of an address, which no other socket may use yet.
///
/// The socket is configured as in [`bind_listener`], which binds the further listeners of the address. Port 0 selects a
/// free port. Until the socket is closed, no other server can claim the address, so of two servers that start at the
/// same time only one succeeds.
///
/// # Errors
///
/// `AddrInUse` if another socket is bound to the port, otherwise as [`bind_listener`].
pub(crate) fn claim_listener(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new_listener(addr)?;
    socket.bind(&addr.into())?;
    // Set after `bind`: if it were set before, `bind` would succeed on a port that another server uses.
    socket.set_reuse_port(true)?;
    Ok(socket.into())
}

/// Returns whether binding `[::]` failed because the kernel has no IPv6 or IPv6 is disabled.
///
/// `0.0.0.0` can be used in that case. For a specific address, the same error can mean that no interface has the
/// address.
pub(crate) fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Binds the socket of one relayed transport address.
///
/// It does not block, does not share its port, carries one address family, and has buffers of [`RELAY_BUFFER`] if the
/// system allows it. Its datagrams may be fragmented (RFC 8656 §14: DF is 0) unless [`send_unfragmented`] sends them.
///
/// # Errors
///
/// Those of `socket` and `bind`: `AddrInUse` if the port is in use.
pub(crate) fn bind_relay(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new_socket(addr, false)?;
    socket.bind(&addr.into())?;
    grow_buffers(&socket, RELAY_BUFFER);
    Ok(socket.into())
}

/// Sets the TTL or Hop Limit of the datagrams that a relay socket sends without one of their own.
///
/// # Errors
///
/// Those of `getsockopt` and `setsockopt`.
pub(crate) fn set_hop_limit(socket: &impl AsFd, limit: u8) -> io::Result<()> {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    if socket.domain()? == Domain::IPV6 {
        socket.set_unicast_hops_v6(limit.into())
    } else {
        socket.set_ttl_v4(limit.into())
    }
}

/// Enables generic receive offload (`UDP_GRO`, since Linux 5.0). Returns whether the kernel supports it.
///
/// The kernel then merges consecutive datagrams of one sender and of equal length into one datagram of up to 64 KiB;
/// the last may be shorter. [`Datagram::segment`](super::batch::Datagram::segment) is then the length of each.
pub fn enable_gro(socket: &impl AsFd) -> bool {
    setsockopt(&socket.as_fd(), sockopt::UdpGroSegment, &true).is_ok()
}

/// Returns whether the kernel can split one message into datagrams (`UDP_SEGMENT`, since Linux 4.18).
///
/// An older kernel ignores the option and sends the message as one datagram.
pub(super) fn segmentation_supported() -> bool {
    let socket = |domain| Socket::new(domain, Type::DGRAM, Some(Protocol::UDP));
    let socket = socket(Domain::IPV4).or_else(|_| socket(Domain::IPV6));
    socket.is_ok_and(|socket| getsockopt(&socket, sockopt::UdpGsoSegment).is_ok())
}

/// Makes the kernel queue the ICMP errors that this socket's datagrams cause, for [`receive_error`].
///
/// The queue uses the memory of the receive buffer, so the caller must read it or errors will fill the buffer. `epoll`
/// reports an error as `EPOLLERR` without `EPOLLIN`.
///
/// # Errors
///
/// Those of `getsockopt` and `setsockopt`.
pub(crate) fn enable_error_queue(socket: &impl AsFd) -> io::Result<()> {
    let fd = socket.as_fd();
    if SockRef::from(&fd).domain()? == Domain::IPV6 {
        setsockopt(&fd, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?;
    }
    Ok(())
}

/// The sizes of a socket's kernel buffers in bytes, comparable to [`LISTENER_BUFFER`] and [`RELAY_BUFFER`].
///
/// The kernel reserves twice as much, for packets and its own overhead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BufferSizes {
    /// The receive buffer. `net.core.rmem_max` limits it for a process without `CAP_NET_ADMIN`.
    pub(crate) receive: usize,
    /// The send buffer. `net.core.wmem_max` limits it for a process without `CAP_NET_ADMIN`.
    pub(crate) send: usize,
}

/// Returns the actual sizes of the buffers, which are smaller than requested if the limits of the system are lower.
///
/// # Errors
///
/// Those of `getsockopt`.
pub(crate) fn buffer_sizes(socket: &impl AsFd) -> io::Result<BufferSizes> {
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    // The kernel reports twice the requested size.
    Ok(BufferSizes { receive: socket.recv_buffer_size()? / 2, send: socket.send_buffer_size()? / 2 })
}

/// Returns the number of datagrams that the kernel has dropped at this socket (`SO_MEMINFO`, since Linux 4.12), for
/// [`DropCounter::advance`](super::batch::DropCounter::advance). Unlike the counter that arrives with a datagram, it
/// includes the latest drops. Returns `None` if an old kernel does not report it.
pub(crate) fn dropped(socket: &impl AsFd) -> Option<u32> {
    sys::dropped(socket.as_fd())
}

/// Sends one datagram from a relay socket without fragmentation (RFC 8656 §14, §15): with DF set, or without a Fragment
/// header to an IPv6 peer.
///
/// A datagram longer than the MTU of the interface is not sent. An IPv4 datagram may exceed the path MTU that the
/// kernel knows, because the client performs its own path MTU discovery.
///
/// # Errors
///
/// `EMSGSIZE` if the datagram is too long; [`receive_error`] then returns an error as well if [`enable_error_queue`]
/// was called. `WouldBlock` if the buffer of the socket is full, otherwise those of `sendmsg` and `setsockopt`.
pub(crate) fn send_unfragmented(
    socket: &impl AsFd,
    payload: &[u8],
    to: SocketAddr,
    fields: IpFields,
) -> io::Result<()> {
    let fd = socket.as_fd();
    let outgoing = Outgoing { to: canonical(to), from: None, fields, segment: None, unfragmented: true };
    // A pending error is cleared first, because repeating the call would queue its own EMSGSIZE twice. An error that
    // arrives in the meantime is skipped if the call cannot have caused it.
    let _ = SockRef::from(&fd).take_error();
    let send = || repeat_while(is_always_pending, || sys::send(fd, payload, &outgoing));
    if outgoing.to.is_ipv6() {
        return send().map(|_| ());
    }
    set_discovery(fd, libc::IP_PMTUDISC_PROBE)?;
    let sent = send();
    set_discovery(fd, FRAGMENT_V4)?;
    sent.map(|_| ())
}

/// Lets a socket send datagrams only without fragments (DF), whatever path MTU the kernel knows. Longer datagrams than
/// the MTU of the interface then fail with `EMSGSIZE`.
///
/// # Errors
///
/// Those of `setsockopt`.
pub(crate) fn forbid_fragments(socket: &UdpSocket) -> io::Result<()> {
    let fd = socket.as_fd();
    if socket.local_addr()?.is_ipv4() {
        set_discovery(fd, libc::IP_PMTUDISC_PROBE)
    } else {
        sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    }
}

/// Why a datagram sent to a peer was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreachable {
    /// The destination of the datagram. The port is 0 if the kernel does not report it: for an IPv4 datagram that was
    /// too long for the interface.
    pub(crate) peer: SocketAddr,
    /// The type in the ICMP message, or in the ICMPv6 message if `peer` is an IPv6 address.
    pub(crate) kind: u8,
    /// The code in the ICMP message.
    pub(crate) code: u8,
    /// The Error Data of RFC 8656 §18.13: the MTU of the next hop in bytes for ICMP type 3, code 4 and ICMPv6 type 2,
    /// otherwise 0.
    pub(crate) info: u32,
    /// Where the error was detected.
    pub(crate) origin: Origin,
}

/// Where an error was detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In the network: an ICMP or ICMPv6 message reported it.
    Network,
    /// On this machine: the datagram was too long for the interface and must not be fragmented. Type, code and MTU are
    /// those that a router would have sent.
    Local,
}

/// Takes the oldest error from the error queue of a socket without allocating; `None` if the queue is empty.
///
/// The queue is filled after [`enable_error_queue`].
///
/// # Errors
///
/// Those of `recvmsg`. An interrupted call is repeated.
pub(crate) fn receive_error(socket: &impl AsFd) -> io::Result<Option<Unreachable>> {
    loop {
        match sys::receive_error(socket.as_fd()) {
            // Entries of other kinds are ignored.
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

/// Repeats a call while it fails with an error that an ICMP message left on the socket. An error of the call itself
/// persists and is returned.
pub(super) fn skip_pending_errors<T>(call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    repeat_while(may_be_pending, call)
}

fn repeat_while<T>(pending: fn(&io::Error) -> bool, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut result = call();
    for _ in 1..MAX_ATTEMPTS {
        match &result {
            Err(error) if pending(error) => result = call(),
            _ => break,
        }
    }
    result
}

/// Returns whether an ICMP message can leave this error on a socket after [`enable_error_queue`].
pub(crate) fn may_be_pending(error: &io::Error) -> bool {
    is_always_pending(error)
        || matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EMSGSIZE | libc::EACCES))
}

/// Returns whether only an ICMP message can leave this error on an unconnected UDP socket; a call does not cause it.
pub(super) fn is_always_pending(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EPROTO | libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EHOSTDOWN | libc::ENONET)
    )
}

fn new_listener(addr: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(addr, dual_stack(addr))?;
    allow_missing_address(&socket, addr);
    set_listener_options(&socket, addr)?;
    Ok(socket)
}

fn set_listener_options(socket: &impl AsFd, addr: SocketAddr) -> io::Result<()> {
    if addr.ip().is_unspecified() {
        if addr.is_ipv6() {
            setsockopt(&socket.as_fd(), sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        if addr.is_ipv4() || dual_stack(addr) {
            setsockopt(&socket.as_fd(), sockopt::Ipv4PacketInfo, &true)?;
        }
    }
    grow_buffers(socket, LISTENER_BUFFER);
    Ok(())
}

/// Gives a socket that another process has bound the options of [`bind_listener`]. It may then share its port with
/// other sockets of the user who made it.
///
/// # Errors
///
/// Those of `setsockopt`.
pub(super) fn adopt_listener(socket: &UdpSocket, addr: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    set_options(socket, addr, dual_stack(addr))?;
    set_listener_options(socket, addr)?;
    SockRef::from(socket).set_reuse_port(true)
}

fn new_socket(addr: SocketAddr, dual_stack: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    set_options(&socket, addr, dual_stack)?;
    Ok(socket)
}

fn set_options(socket: &impl AsFd, addr: SocketAddr, dual_stack: bool) -> io::Result<()> {
    let socket = socket.as_fd();
    if addr.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)?;
        sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
        sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, FRAGMENT_V6)?;
    }
    if addr.is_ipv4() || dual_stack {
        setsockopt(&socket, sockopt::IpRecvTos, &true)?;
        sys::set_option(socket, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
        set_discovery(socket, FRAGMENT_V4)?;
    }
    // A kernel that does not count drops is supported, too.
    let _ = setsockopt(&socket, sockopt::RxqOvfl, &1);
    Ok(())
}

/// Lets a listener be bound to an address that this machine does not have yet. It receives packets as soon as the
/// machine has the address.
pub(crate) fn allow_missing_address(socket: &Socket, addr: SocketAddr) {
    if addr.ip().is_unspecified() {
        return;
    }
    // Without the option, which old kernels lack for IPv6, binding to a missing address fails.
    let _ = match addr {
        SocketAddr::V4(_) => sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_FREEBIND, 1),
        SocketAddr::V6(_) => sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1),
    };
}

/// Returns whether a listener on this address accepts clients of both families.
pub(super) fn dual_stack(addr: SocketAddr) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified()
}

/// Grows both buffers to `size`, or to the limits of the system without `CAP_NET_ADMIN`.
fn grow_buffers(socket: &impl AsFd, size: usize) {
    let Ok(current) = buffer_sizes(socket) else { return };
    let fd = socket.as_fd();
    let socket = SockRef::from(&fd);
    if current.receive < size && setsockopt(&fd, sockopt::RcvBufForce, &size).is_err() {
        let _ = socket.set_recv_buffer_size(size);
    }
    if current.send < size && setsockopt(&fd, sockopt::SndBufForce, &size).is_err() {
        let _ = socket.set_send_buffer_size(size);
    }
}

/// DF is 0, and a datagram longer than the MTU of the interface is fragmented. Unlike `IP_PMTUDISC_DONT`, this reports
/// the ICMP messages that datagrams with DF cause, and a forged ICMP message cannot make fragments smaller.
const FRAGMENT_V4: libc::c_int = libc::IP_PMTUDISC_OMIT;

/// A datagram longer than the path MTU known from ICMPv6 messages is fragmented, because routers do not fragment IPv6.
const FRAGMENT_V6: libc::c_int = libc::IPV6_PMTUDISC_DONT;

fn set_discovery(fd: BorrowedFd<'_>, mode: libc::c_int) -> io::Result<()> {
    sys::set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)
}

/// Returns the canonical form of an address: a mapped address as IPv4, and no flow label.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(ip.into(), v6.port()),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}
