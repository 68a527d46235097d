//! The addresses of this machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

/// One address of one network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface as the system names it.
    pub name: String,
    /// The address, without its scope id.
    pub address: IpAddr,
    /// The interface is a loopback interface. Its addresses need not be: routed ones are often put there.
    pub loopback: bool,
    /// The interface is switched on.
    pub up: bool,
}

/// Every IPv4 and IPv6 address of every interface, in the system's order.
///
/// # Errors
///
/// Those of `getifaddrs`.
pub fn addresses() -> io::Result<Vec<InterfaceAddress>> {
    let found = getifaddrs()?.filter_map(|entry| {
        let address = ip(entry.address.as_ref()?)?;
        Some(InterfaceAddress {
            name: entry.interface_name,
            address,
            loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
            up: entry.flags.contains(InterfaceFlags::IFF_UP),
        })
    });
    Ok(found.collect())
}

/// Whether a socket can have `ip` as its own address: an interface has it, or it is routed to this machine.
///
/// Wildcards, multicast and broadcast addresses, which can be bound too, are not local; nor is a link-local IPv6
/// address, which is none without a scope.
pub fn is_local(ip: IpAddr) -> bool {
    if ip.is_unspecified() || ip.is_multicast() {
        return false;
    }
    // Connecting to the own address refuses broadcast addresses; it sends nothing.
    let bound = UdpSocket::bind((ip, 0)).and_then(|socket| socket.connect(socket.local_addr()?));
    bound.is_ok()
}

/// The source address that the kernel would use towards `destination`; `None` where there is no route. It sends nothing.
pub fn source_for(destination: IpAddr) -> Option<IpAddr> {
    let wildcard: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((wildcard, 0)).ok()?;
    // The port plays no part in the choice of a route.
    socket.connect(SocketAddr::new(destination, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical()).filter(|source| !source.is_unspecified())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}
