//! TCP: binds listeners, and detects clients that are no longer reachable.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{sys, udp};

#[cfg(test)]
mod tests;

/// The most connections that wait to be accepted while a worker is busy. The system may allow fewer.
pub(crate) const BACKLOG: i32 = 1024;

/// The most retries of a claim that may have collided with a concurrent one.
const MAX_RETRIES: usize = 16;

/// Binds the listener of one worker. The kernel gives it connections after [`listen`].
///
/// It does not block and shares its port with the listeners of the other workers (`SO_REUSEPORT`); the kernel
/// distributes the connections among them. `[::]` also accepts IPv4; every other IPv6 address accepts only IPv6.
///
/// This function does not detect another server of the same user on the port; [`claim_listener`] does.
///
/// # Errors
///
/// Those of `socket`, `setsockopt` and `bind`. See also [`udp::no_ipv6`].
pub(crate) fn bind_listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(addr)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Makes the kernel accept connections for a listener. Those that wait already are not affected.
///
/// # Errors
///
/// Those of `listen`.
pub(crate) fn listen(listener: &impl AsFd) -> io::Result<()> {
    SockRef::from(listener).listen(BACKLOG)
}

/// Accepts a connection that waits at a listener. It does not block, like the connection that it returns.
///
/// # Errors
///
/// `WouldBlock` if no connection waits, and those of `accept` and `fcntl`.
pub(crate) fn accept_now(listener: &impl AsFd) -> io::Result<TcpStream> {
    let (stream, _) = SockRef::from(listener).accept()?;
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

/// Binds the first listener of an address, on which no other socket may listen yet, and listens.
///
/// The socket is configured as in [`bind_listener`], which binds the further listeners of the address. Port 0 selects a
/// free port. Connections of an earlier server, open or in TIME-WAIT, do not prevent the claim. Until the socket is
/// closed, no other server can claim the address, so of two servers that start at the same time only one succeeds.
///
/// # Errors
///
/// `AddrInUse` if another socket listens on the port, otherwise as [`bind_listener`] and [`listen`].
pub(crate) fn claim_listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let mut retries = 0;
    let listener = loop {
        let socket = new_socket(addr)?;
        match socket.bind(&addr.into()).and_then(|()| socket.listen(BACKLOG)) {
            // If several claims are concurrent, the kernel may let all of them fail.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && retries < MAX_RETRIES => {
                retries += 1;
                thread::yield_now();
            }
            listening => break listening.map(|()| TcpListener::from(socket))?,
        }
    };
    // Set after `listen`: if it were set before, this socket would share a port that another server uses.
    SockRef::from(&listener).set_reuse_port(true)?;
    Ok(listener)
}

fn new_socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!udp::dual_stack(addr))?;
    }
    udp::allow_missing_address(&socket, addr);
    // On Linux, `bind` then ignores the connections of a closed listener, but not another listener.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The number of bytes that the kernel takes before it sends them.
const MAX_UNSENT: u32 = 32 * 1024;

/// Limits the data that waits in the kernel before it is sent for the first time. More data waits in the server, which
/// drops it when it is old, except for about one TLS record and the rest of a message that was begun. The send buffer
/// keeps its size, which the kernel adapts to the path.
///
/// # Errors
///
/// Those of `setsockopt`.
pub(crate) fn limit_unsent_data(stream: &impl AsFd) -> io::Result<()> {
    SockRef::from(stream).set_tcp_notsent_lowat(MAX_UNSENT)
}

/// Makes the kernel detect a visitor of a web site that has gone, after about an hour without data. One who stops to read
/// keeps the connection.
///
/// # Errors
///
/// Those of `setsockopt`.
pub(crate) fn detect_lost_visitor(stream: &impl AsFd) -> io::Result<()> {
    const MINUTE: Duration = Duration::from_secs(60);
    let probes = TcpKeepalive::new().with_time(30 * MINUTE).with_interval(10 * MINUTE).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// Reads the first bytes of a connection, which stay in the socket. Returns their number.
///
/// # Errors
///
/// `WouldBlock` if there are none, and those of `recv`.
pub(crate) fn peek(stream: &impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let fd = stream.as_fd().as_raw_fd();
    Ok(recv(fd, into, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?)
}

/// Makes a connection readable only when so many bytes can be read, or when no more come.
///
/// # Errors
///
/// Those of `setsockopt`.
pub(crate) fn set_receive_low_water(stream: &impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    sys::set_option(stream.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

/// Makes the kernel end a connection whose client has not acknowledged data or keepalive probes for 30 s.
///
/// # Errors
///
/// Those of `setsockopt`.
pub(crate) fn enable_dead_peer_detection(stream: &impl AsFd) -> io::Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(30);
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(TIMEOUT).with_interval(TIMEOUT / 3).with_retries(3);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(TIMEOUT))
}
