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
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() {
        return false;
    }
    // Connecting to the own address refuses broadcast addresses; it sends nothing.
    let bound = UdpSocket::bind((ip, 0)).and_then(|socket| socket.connect(socket.local_addr()?));
    bound.is_ok()
}

/// The source address that the kernel would use towards `destination`; `None` where there is no route. It sends nothing.
pub fn source_for(destination: IpAddr) -> Option<IpAddr> {
    let destination = destination.to_canonical();
    let wildcard: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((wildcard, 0)).ok()?;
    // The port plays no part in the choice of a route.
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
    fn addresses_of_others_and_of_nobody_are_not_local() {
        for text in
            ["fe80::1", "203.0.113.77", "2001:db8::77", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"]
        {
            assert!(!is_local(ip(text)), "{text}");
        }
        // The broadcast address of the loopback network can be bound.
        assert!(!is_local(ip("127.255.255.255")));
    }

    #[test]
    fn the_source_towards_this_machine_is_an_address_of_it() {
        assert_eq!(source_for(ip("127.0.0.1")), Some(ip("127.0.0.1")));
        assert_eq!(source_for(ip("::ffff:127.0.0.1")), Some(ip("127.0.0.1")));
        for entry in addresses().unwrap().iter().filter(|entry| entry.address == ip("::1")) {
            assert_eq!(source_for(entry.address), Some(entry.address));
        }
    }

    #[test]
    fn there_is_no_source_towards_a_link_local_address_without_its_scope() {
        assert_eq!(source_for(ip("fe80::1")), None);
    }
}
