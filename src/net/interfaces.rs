//! The addresses of this machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

/// One address of one network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The name of the interface.
    pub name: String,
    /// The address, without its scope id.
    pub address: IpAddr,
    /// The interface is a loopback interface. It often has routed addresses as well as loopback addresses.
    pub loopback: bool,
    /// The interface is up.
    pub up: bool,
}

/// Returns every IPv4 and IPv6 address of every interface, in the order of the system.
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

/// Returns whether `ip` is an address of this machine: an interface has it, or it is routed to this machine.
///
/// Wildcard, multicast and broadcast addresses are not local, although a socket can be bound to them. A link-local IPv6
/// address is not local either, because it is incomplete without a scope id.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() {
        return false;
    }
    // Connecting to the bound address fails for broadcast addresses. It sends nothing.
    let bound = UdpSocket::bind((ip, 0)).and_then(|socket| socket.connect(socket.local_addr()?));
    bound.is_ok()
}

/// Returns the source address that the kernel would use to send to `destination`; `None` if there is no route.
///
/// It sends nothing.
pub(crate) fn source_for(destination: IpAddr) -> Option<IpAddr> {
    let destination = destination.to_canonical();
    let wildcard: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((wildcard, 0)).ok()?;
    // The port does not affect the route.
    socket.connect(SocketAddr::new(destination, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|source| !source.is_unspecified())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_loopback_interface_is_listed() {
        let addresses = addresses().unwrap();
        let loopback = addresses.iter().find(|entry| entry.address == ip("127.0.0.1")).unwrap();
        assert!(loopback.loopback && loopback.up && !loopback.name.is_empty());
    }

    #[test]
    fn every_listed_ipv4_address_is_local() {
        for entry in addresses().unwrap().iter().filter(|entry| entry.up && entry.address.is_ipv4()) {
            assert!(is_local(entry.address), "{entry:?}");
        }
    }

    #[test]
    fn an_address_of_a_local_route_is_local() {
        assert!(is_local(ip("127.8.7.6")));
    }

    #[test]
    fn remote_and_special_addresses_are_not_local() {
        for text in
            ["fe80::1", "203.0.113.77", "2001:db8::77", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"]
        {
            assert!(!is_local(ip(text)), "{text}");
        }
        // The broadcast address of the loopback network can be bound.
        assert!(!is_local(ip("127.255.255.255")));
    }

    #[test]
    fn source_for_a_local_destination_is_that_address() {
        assert_eq!(source_for(ip("127.0.0.1")), Some(ip("127.0.0.1")));
        assert_eq!(source_for(ip("::ffff:127.0.0.1")), Some(ip("127.0.0.1")));
        for entry in addresses().unwrap().iter().filter(|entry| entry.address == ip("::1")) {
            assert_eq!(source_for(entry.address), Some(entry.address));
        }
    }

    #[test]
    fn there_is_no_source_for_a_link_local_destination_without_scope_id() {
        assert_eq!(source_for(ip("fe80::1")), None);
    }
}
