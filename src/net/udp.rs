//! UDP sockets: how listeners and relay sockets are bound, and how one datagram is received and sent.
//!
//! Addresses that leave this module are canonical: an IPv4-mapped IPv6 address comes out as IPv4, whatever the family
//! of the socket. So a client has one 5-tuple, not two.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::sys;

#[cfg(test)]
mod tests;

/// What a listener's kernel buffers are grown to, in bytes: some ten thousand packets, so that a burst outlives the
/// time that the worker is busy with something else.
const LISTENER_BUFFER: usize = 4 << 20;

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

/// Binds the socket of one relayed transport address: non-blocking, sharing its port with nobody, one family only. Its
/// datagrams may be fragmented on their way (RFC 8656 §14: DF is 0), since no peer is told where they got stuck.
///
/// # Errors
///
/// Those of `socket` and `bind`: `AddrInUse` where the port is taken.
pub fn bind_relay(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new_socket(addr, false)?;
    sys::let_fragment(socket.as_fd(), addr.is_ipv6())?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Receives one datagram into `buffer`. It allocates nothing.
///
/// # Errors
///
/// `WouldBlock` where nothing is there, otherwise those of `recvmsg`; an interrupted call is repeated.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let arrival = sys::receive(socket.as_fd(), buffer)?;
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
/// those of `sendmsg`, among them that `from` is no address of this machine; an interrupted call is repeated.
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
    // Linux takes an IPv4 destination on a dual-stack socket, so that nobody has to know the family of the socket. The
    // reverse, a mapped one on an IPv4 socket, it refuses.
    let to = canonical(to);
    let from = from.map(|address| address.to_canonical());
    if from.is_some_and(|from| from.is_ipv4() != to.is_ipv4()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // A datagram is sent whole or not at all.
    sys::send(socket.as_fd(), payload, to, from, tos).map(|_| ())
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
    grow_buffers(&socket);
    Ok(socket)
}

fn new_socket(addr: SocketAddr, dual_stack: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
        setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)?;
    }
    if addr.is_ipv4() || dual_stack {
        setsockopt(&socket, sockopt::IpRecvTos, &true)?;
    }
    Ok(socket)
}

/// Whether a listener on this address takes clients of both families.
pub(super) fn dual_stack(addr: SocketAddr) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified()
}

/// Grows both buffers as far as the system lets us: past its limits with `CAP_NET_ADMIN`, up to them without.
fn grow_buffers(socket: &Socket) {
    // The kernel reports twice the size that was asked for.
    let small = |size: io::Result<usize>| size.is_ok_and(|size| size < 2 * LISTENER_BUFFER);
    if small(socket.recv_buffer_size()) && setsockopt(socket, sockopt::RcvBufForce, &LISTENER_BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(LISTENER_BUFFER);
    }
    if small(socket.send_buffer_size()) && setsockopt(socket, sockopt::SndBufForce, &LISTENER_BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(LISTENER_BUFFER);
    }
}

/// The same address written in one way: IPv4 where it is mapped, no flow label.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(ip.into(), v6.port()),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}
