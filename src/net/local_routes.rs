//! The prefixes whose packets the kernel delivers to this machine: its local routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::sys;

/// The most that the kernel sends at a time.
const BUFFER: usize = 32 << 10;

/// Reads the destinations of the local routes, apart from loopback addresses.
///
/// It returns none if the kernel refuses to list the local routes alone (before Linux 4.20).
///
/// # Errors
/// Those of sockets.
pub(super) fn read() -> io::Result<Vec<IpNet>> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    // Without this option, the kernel sends the routes of all tables: a million on a router.
    if sys::set_option(socket.as_fd(), libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1).is_err() {
        return Ok(Vec::new());
    }
    let mut networks = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        send(socket.as_raw_fd(), &request(family), MsgFlags::empty())?;
        receive(&socket, &mut networks)?;
    }
    networks.retain(|network| !network.addr().is_loopback());
    networks.sort_unstable();
    networks.dedup();
    Ok(networks)
}

/// Returns a request for the routes of the local table: `struct nlmsghdr` and `struct rtmsg`.
fn request(family: libc::c_int) -> Vec<u8> {
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or_default();
    let mut message = 28_u32.to_ne_bytes().to_vec();
    message.extend([libc::RTM_GETROUTE.to_ne_bytes(), flags.to_ne_bytes()].concat());
    // The sequence number and the sender.
    message.extend([0; 8]);
    message.extend([u8::try_from(family).unwrap_or_default(), 0, 0, 0, libc::RT_TABLE_LOCAL, 0, 0, 0]);
    message.extend([0; 4]);
    message
}

/// Receives the routes of one request.
fn receive(socket: &OwnedFd, networks: &mut Vec<IpNet>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            length => length?,
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, body, next)) = message(rest) {
            // An error means that the family has no such table.
            if [libc::NLMSG_DONE, libc::NLMSG_ERROR].contains(&kind.into()) {
                return Ok(());
            }
            networks.extend(route(body).filter(|_| kind == libc::RTM_NEWROUTE));
            rest = next;
        }
    }
}

/// Splits off a message: its type, its content, and the remaining bytes.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    Some((kind, bytes.get(16..length)?, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Returns the destination of a local route. An anycast address (RFC 4291 §2.6) is delivered to this machine, too.
fn route(body: &[u8]) -> Option<IpNet> {
    let &[family, length, _, _, _, _, _, kind] = body.first_chunk()?;
    let is_local = [libc::RTN_LOCAL, libc::RTN_ANYCAST].contains(&kind);
    let mut attributes = body.get(12..)?;
    let mut destination: Option<&[u8]> = None;
    while let Some((&size, after)) = attributes.split_first_chunk() {
        let size = usize::from(u16::from_ne_bytes(size));
        if u16::from_ne_bytes(*after.first_chunk()?) == libc::RTA_DST {
            destination = attributes.get(4..size);
        }
        attributes = attributes.get(size.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    let address = if libc::c_int::from(family) == libc::AF_INET {
        IpAddr::from(destination.map_or(Some([0; 4]), |bytes| bytes.try_into().ok()).map(Ipv4Addr::from)?)
    } else {
        IpAddr::from(destination.map_or(Some([0; 16]), |bytes| bytes.try_into().ok()).map(Ipv6Addr::from)?)
    };
    IpNet::new(address, length).ok().filter(|_| is_local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::in_own_network;

    #[test]
    fn prefixes_and_addresses_that_are_routed_to_this_machine_are_read() {
        let setup = [
            "link set lo up",
            "route add local 203.0.114.0/24 dev lo",
            "route add local 203.0.115.7/32 dev lo",
            "route add local 2a01:4f8::/64 dev lo",
            "addr add 203.0.116.1/24 dev lo",
            // Of another table: it concerns only packets that a rule selects.
            "route add local 0.0.0.0/0 dev lo table 100",
        ];
        in_own_network(&setup, || {
            let read: Vec<String> = read().unwrap().iter().map(ToString::to_string).collect();
            let expected = ["203.0.114.0/24", "203.0.115.7/32", "203.0.116.0/24", "203.0.116.1/32", "2a01:4f8::/64"];
            assert_eq!(read, expected);
        });
    }

    #[test]
    fn more_routes_than_one_message_holds_are_read() {
        let routes: Vec<String> =
            (0..=255).map(|number| format!("route add local 203.0.{number}.0/25 dev lo")).collect();
        let setup: Vec<&str> = std::iter::once("link set lo up").chain(routes.iter().map(String::as_str)).collect();
        in_own_network(&setup, || assert_eq!(read().unwrap().len(), 256));
    }

    #[test]
    fn an_incomplete_message_is_not_read() {
        let complete = request(libc::AF_INET);
        assert!(message(&complete).is_some());
        for length in 0..complete.len() {
            assert!(message(&complete[..length]).is_none());
            assert!(route(&complete[..length.min(11)]).is_none());
        }
    }
}
