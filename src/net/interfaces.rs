//! The addresses of this machine.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use super::local_routes;

/// The network interfaces of this machine.
#[derive(Debug, Default)]
pub struct Interfaces {
    /// Every IPv4 and IPv6 address of every interface, in the order of the system.
    pub addresses: Vec<InterfaceAddress>,
    /// Whether there is an interface that is not a loopback interface, even if it is down or has no address.
    pub beyond_loopback: bool,
    /// Further prefixes and addresses that are routed to this machine. No interface lists their addresses.
    pub routed: Vec<IpNet>,
    /// Why the states of the IPv6 addresses are unknown, if so. All of them are then [`AddressState::Stable`].
    pub unknown_states: Option<io::Error>,
}

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
    /// How long the address can be used.
    pub state: AddressState,
}

/// How long an address can be used, from the best to the worst. IPv4 addresses are [`Stable`](Self::Stable).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressState {
    /// For new communication, for as long as the machine has it.
    Stable,
    /// A privacy extension address (RFC 8981). The kernel replaces it after hours or days.
    Temporary,
    /// Only for existing communication (RFC 4862 §5.5.4). The kernel may remove it soon.
    Deprecated,
    /// Not yet: the kernel still looks for duplicates (RFC 4862 §5.4).
    Tentative,
    /// Never: another machine has the address.
    Failed,
}

impl AddressState {
    /// Whether a socket can be bound to the address.
    #[must_use]
    pub fn is_usable(self) -> bool {
        self < Self::Tentative
    }

    /// Returns the state for the flags of the kernel.
    fn of(flags: u8) -> Self {
        const TEMPORARY: u8 = 0x01;
        const FAILED: u8 = 0x08;
        const DEPRECATED: u8 = 0x20;
        const TENTATIVE: u8 = 0x40;
        let states = [
            (FAILED, Self::Failed),
            (TENTATIVE, Self::Tentative),
            (DEPRECATED, Self::Deprecated),
            (TEMPORARY, Self::Temporary),
        ];
        states.into_iter().find(|(flag, _)| flags & flag != 0).map_or(Self::Stable, |(_, state)| state)
    }
}

/// Reads the interfaces.
///
/// # Errors
///
/// Those of `getifaddrs` and of netlink sockets.
pub fn read() -> io::Result<Interfaces> {
    let mut interfaces = Interfaces::default();
    for entry in getifaddrs()? {
        let Some(address) = &entry.address else { continue };
        let loopback = entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        if let Some(link) = address.as_link_addr() {
            interfaces.beyond_loopback |= !loopback && !is_tunnel(link.hatype());
        }
        if let Some(address) = ip(address) {
            interfaces.addresses.push(InterfaceAddress {
                name: entry.interface_name,
                address,
                loopback,
                up: entry.flags.contains(InterfaceFlags::IFF_UP),
                state: AddressState::Stable,
            });
        }
    }
    if interfaces.addresses.iter().any(|entry| entry.address.is_ipv6()) {
        // `thread-self` is the network namespace of this thread. A sandbox that hides the rest of `/proc` still has it.
        match fs::read_to_string("/proc/thread-self/net/if_inet6") {
            Ok(table) => set_states(&mut interfaces.addresses, &table),
            Err(error) => interfaces.unknown_states = Some(error),
        }
    }
    let is_listed = |net: &IpNet| interfaces.addresses.iter().any(|entry| IpNet::from(entry.address) == *net);
    interfaces.routed = local_routes::read()?.into_iter().filter(|net| !is_listed(net)).collect();
    Ok(interfaces)
}

/// Whether the hardware type is that of a tunnel. The kernel adds unused tunnels to each network namespace.
fn is_tunnel(hardware: u16) -> bool {
    // `ARPHRD_IP6GRE`, which `libc` does not define.
    const IP6GRE: u16 = 823;
    matches!(hardware, libc::ARPHRD_TUNNEL | libc::ARPHRD_TUNNEL6 | libc::ARPHRD_SIT | libc::ARPHRD_IPGRE | IP6GRE)
}

/// Sets the states of IPv6 addresses from the kernel's table: address, index, prefix length, scope, flags and interface
/// per line.
fn set_states(addresses: &mut [InterfaceAddress], table: &str) {
    let row = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let address = Ipv6Addr::from_bits(u128::from_str_radix(fields.next()?, 16).ok()?);
        let flags = u8::from_str_radix(fields.nth(3)?, 16).ok()?;
        Some(((IpAddr::from(address), fields.next()?.to_owned()), AddressState::of(flags)))
    };
    let states: HashMap<(IpAddr, String), AddressState> = table.lines().filter_map(row).collect();
    for entry in addresses {
        if let Some(state) = states.get(&(entry.address, entry.name.clone())) {
            entry.state = *state;
        }
    }
}

/// Returns whether `ip` is an address of this machine: an interface has it, or it is routed to this machine.
///
/// Wildcard, multicast and broadcast addresses are not local, although a socket can be bound to them. A link-local IPv6
/// address is not local either, because it is incomplete without a scope id.
///
/// # Errors
///
/// If the kernel does not tell, for example because no file can be opened.
pub(crate) fn is_local(ip: IpAddr) -> io::Result<bool> {
    let ip = ip.to_canonical();
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    if ip.is_unspecified() || ip.is_multicast() || is_link_local {
        return Ok(false);
    }
    // Connecting to the bound address fails for broadcast addresses. It sends nothing.
    is_success(UdpSocket::bind((ip, 0)).and_then(|socket| socket.connect(socket.local_addr()?)))
}

/// Whether a socket could be bound to an address and connected to it, or else the kernel refused the address.
fn is_success(bound: io::Result<()>) -> io::Result<bool> {
    const NOT_LOCAL: [i32; 5] =
        [libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT, libc::EACCES, libc::ENETUNREACH, libc::EHOSTUNREACH];
    match bound {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error().is_some_and(|code| NOT_LOCAL.contains(&code)) => Ok(false),
        Err(error) => Err(error),
    }
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
    use crate::net::testing::in_own_network;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_loopback_interface_is_listed() {
        let addresses = read().unwrap().addresses;
        let loopback = addresses.iter().find(|entry| entry.address == ip("127.0.0.1")).unwrap();
        assert!(loopback.loopback && loopback.up && !loopback.name.is_empty());
    }

    #[test]
    fn every_listed_ipv4_address_is_local() {
        for entry in read().unwrap().addresses.iter().filter(|entry| entry.up && entry.address.is_ipv4()) {
            assert!(is_local(entry.address).unwrap(), "{entry:?}");
        }
    }

    #[test]
    fn an_address_of_a_local_route_is_local() {
        assert!(is_local(ip("127.8.7.6")).unwrap());
    }

    #[test]
    fn remote_and_special_addresses_are_not_local() {
        for text in
            ["fe80::1", "203.0.113.77", "2001:db8::77", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"]
        {
            assert!(!is_local(ip(text)).unwrap(), "{text}");
        }
        // The broadcast address of the loopback network can be bound.
        assert!(!is_local(ip("127.255.255.255")).unwrap());
    }

    #[test]
    fn a_lack_of_resources_does_not_make_an_address_remote() {
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRINUSE] {
            assert_eq!(is_success(Err(io::Error::from_raw_os_error(code))).unwrap_err().raw_os_error(), Some(code));
        }
        assert!(!is_success(Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))).unwrap());
    }

    #[test]
    fn source_for_a_local_destination_is_that_address() {
        assert_eq!(source_for(ip("127.0.0.1")), Some(ip("127.0.0.1")));
        assert_eq!(source_for(ip("::ffff:127.0.0.1")), Some(ip("127.0.0.1")));
        for entry in read().unwrap().addresses.iter().filter(|entry| entry.address == ip("::1")) {
            assert_eq!(source_for(entry.address), Some(entry.address));
        }
    }

    #[test]
    fn there_is_no_source_for_a_link_local_destination_without_scope_id() {
        assert_eq!(source_for(ip("fe80::1")), None);
    }

    #[test]
    fn the_states_of_ipv6_addresses_are_those_of_the_kernels_table() {
        let table = "\
            20010db8000000000000000000000001 02 40 00 80     eth0\n\
            20010db8000000000000000000000002 02 40 00 01     eth0\n\
            20010db8000000000000000000000003 02 40 00 21     eth0\n\
            20010db8000000000000000000000004 02 40 00 40     eth0\n\
            20010db8000000000000000000000005 02 40 00 c8     eth0\n\
            20010db8000000000000000000000006 03 40 00 20     eth1\n\
            incomplete 02\n";
        let entry = |number: u16| InterfaceAddress {
            name: "eth0".to_owned(),
            address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number).into(),
            loopback: false,
            up: true,
            state: AddressState::Stable,
        };
        let mut addresses: Vec<_> = (1..=6).map(entry).collect();
        set_states(&mut addresses, table);
        let states: Vec<_> = addresses.iter().map(|entry| entry.state).collect();
        // The last one is an address of another interface.
        use AddressState as State;
        let expected =
            [State::Stable, State::Temporary, State::Deprecated, State::Tentative, State::Failed, State::Stable];
        assert_eq!(states, expected);
        assert_eq!(states.iter().filter(|state| state.is_usable()).count(), 4);
    }

    #[test]
    fn an_interface_without_an_address_is_seen() {
        in_own_network(&["link set lo up"], || assert!(!read().unwrap().beyond_loopback));
        in_own_network(&["link set lo up", "link add d0 type veth peer name d1"], || {
            assert!(read().unwrap().beyond_loopback);
        });
    }

    #[test]
    fn a_deprecated_address_is_recognized() {
        let setup = [
            "link add d0 type veth peer name d1",
            "link set d0 up",
            "link set d1 up",
            "addr add 2001:db8::1/64 dev d0 nodad",
            "addr add 2001:db8::2/64 dev d0 nodad preferred_lft 0",
        ];
        in_own_network(&setup, || {
            let read = read().unwrap();
            let state_of = |text: &str| read.addresses.iter().find(|entry| entry.address == ip(text)).unwrap().state;
            assert_eq!(state_of("2001:db8::1"), AddressState::Stable);
            assert_eq!(state_of("2001:db8::2"), AddressState::Deprecated);
            assert!(read.unknown_states.is_none(), "{read:?}");
        });
    }
}
