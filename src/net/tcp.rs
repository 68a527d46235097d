//! TCP: how listeners are bound, and how connections end whose client is gone.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::udp;

#[cfg(test)]
mod tests;

/// How many connections wait to be accepted while a worker is busy with something else; the system may allow fewer.
const BACKLOG: i32 = 1024;

/// How often a claim is repeated, in case it has met another one of the same moment.
const MOST_RIVALS: usize = 16;

/// Binds one worker's listener: non-blocking, sharing its port with the listeners of the other workers
/// (`SO_REUSEPORT`), each of which gets its part of the connections.
///
/// `[::]` takes IPv4 clients too, every other IPv6 address takes only IPv6.
///
/// It would join the port of another server of the same user: only [`claim_listener`] learns of that.
///
/// # Errors
///
/// Those of `socket`, `setsockopt`, `bind` and `listen`. See also [`udp::no_ipv6`].
pub fn bind_listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(addr)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds the first listener of an address, which nobody else may have: as [`bind_listener`], which the others that
/// share the port come from. Port 0 becomes a free one.
///
/// Connections that an earlier server left behind, open or waiting out their time, do not hold the address. From here
/// to the end of the socket no other server can claim it, so two that start at once cannot both have it.
///
/// # Errors
///
/// `AddrInUse` where anybody listens on the port, otherwise as [`bind_listener`].
pub fn claim_listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let mut rivals = 0;
    let listener = loop {
        let socket = new_socket(addr)?;
        match socket.bind(&addr.into()).and_then(|()| socket.listen(BACKLOG)) {
            // Of several that come in the same moment the kernel may refuse all.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && rivals < MOST_RIVALS => {
                rivals += 1;
                thread::yield_now();
            }
            listening => break listening.map(|()| TcpListener::from(socket))?,
        }
    };
    // Not before: a listener that may share would join whoever is there.
    SockRef::from(&listener).set_reuse_port(true)?;
    Ok(listener)
}

fn new_socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!udp::dual_stack(addr))?;
    }
    // Linux: past the connections of an ended listener, never past a listener.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Makes the kernel notice that a client has vanished: after 30 s in which it acknowledges nothing, or answers no probe.
///
/// # Errors
///
/// Those of `setsockopt`.
pub fn notice_vanished(stream: &impl AsFd) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(PATIENCE).with_interval(PATIENCE / 3).with_retries(3);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(PATIENCE))
}
