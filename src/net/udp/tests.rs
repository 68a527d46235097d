//! Real sockets on the loopback interface. A machine without IPv6 passes the tests that need it without doing anything.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn has_ipv6() -> bool {
    match UdpSocket::bind("[::1]:0") {
        Ok(_) => true,
        Err(error) => {
            assert!(no_ipv6(&error), "{error}");
            false
        }
    }
}

/// A listener on a free port, and that port.
fn listener(text: &str) -> (UdpSocket, u16) {
    let listener = bind_listener(addr(text)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A client that waits for its answers, though not for ever.
fn client(text: &str) -> UdpSocket {
    let client = UdpSocket::bind(text).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client
}

/// Waits until a datagram is there, then receives it.
fn receive_one(socket: &UdpSocket, buffer: &mut [u8]) -> Received {
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let received = receive(socket, buffer).unwrap();
    socket.set_nonblocking(true).unwrap();
    received
}

/// The client writes to `destination`, the listener answers from where it was written to.
fn echo(listener: &UdpSocket, client: &UdpSocket, destination: SocketAddr, expected: Option<IpAddr>) {
    client.send_to(b"ping", destination).unwrap();
    let mut buffer = [0; 64];
    let received = receive_one(listener, &mut buffer);
    let source = client.local_addr().unwrap();
    assert_eq!(received, Received { len: 4, source, destination: expected, truncated: false, tos: 0 });
    assert_eq!(&buffer[..4], b"ping");

    send(listener, b"pong", received.source, received.destination).unwrap();
    let (len, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (&b"pong"[..], destination));
}

#[test]
fn a_specific_ipv4_listener_echoes_and_reports_no_destination() {
    let (listener, port) = listener("127.0.0.1:0");
    echo(&listener, &client("127.0.0.1:0"), SocketAddr::new(ip("127.0.0.1"), port), None);
}

#[test]
fn a_specific_ipv6_listener_echoes_and_reports_no_destination() {
    if has_ipv6() {
        let (listener, port) = listener("[::1]:0");
        echo(&listener, &client("[::1]:0"), SocketAddr::new(ip("::1"), port), None);
    }
}

#[test]
fn an_ipv4_wildcard_answers_from_the_address_that_was_written_to() {
    let (listener, port) = listener("0.0.0.0:0");
    for text in ["127.0.0.1", "127.0.0.2"] {
        echo(&listener, &client("127.0.0.1:0"), SocketAddr::new(ip(text), port), Some(ip(text)));
    }
}

#[test]
fn a_dual_stack_wildcard_answers_both_families_from_the_address_that_was_written_to() {
    if has_ipv6() {
        let (listener, port) = listener("[::]:0");
        for text in ["127.0.0.1", "127.0.0.2"] {
            echo(&listener, &client("127.0.0.1:0"), SocketAddr::new(ip(text), port), Some(ip(text)));
        }
        echo(&listener, &client("[::1]:0"), SocketAddr::new(ip("::1"), port), Some(ip("::1")));
    }
}

#[test]
fn a_link_local_client_keeps_its_scope_and_is_answered() {
    let link_local_address = nix::ifaddrs::getifaddrs().unwrap().find_map(|entry| {
        let v6 = *entry.address?.as_sockaddr_in6()?;
        (v6.ip().is_unicast_link_local()).then(|| (v6.ip(), v6.scope_id()))
    });
    let Some((link_local, scope)) = link_local_address else { return };
    let (listener, port) = listener("[::]:0");
    let Ok(client) = UdpSocket::bind(SocketAddrV6::new(link_local, 0, 0, scope)) else { return };
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let destination = SocketAddrV6::new(link_local, port, 0, scope);
    echo(&listener, &client, destination.into(), Some(link_local.into()));
}

#[test]
fn mapped_addresses_mean_the_ipv4_ones() {
    let (listener, port) = listener("0.0.0.0:0");
    let client = client("127.0.0.1:0");
    let to = SocketAddr::new(ip("::ffff:127.0.0.1"), client.local_addr().unwrap().port());
    send(&listener, b"hello", to, Some(ip("::ffff:127.0.0.3"))).unwrap();
    let mut buffer = [0; 64];
    assert_eq!(client.recv_from(&mut buffer).unwrap(), (5, SocketAddr::new(ip("127.0.0.3"), port)));
}

#[test]
fn a_source_that_cannot_be_is_an_error_and_sends_nothing() {
    let (listener, _) = listener("0.0.0.0:0");
    let client = client("127.0.0.1:0");
    let to = client.local_addr().unwrap();
    let error = send(&listener, b"hello", to, Some(ip("::1"))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    // Which error it is differs between versions of the kernel.
    send(&listener, b"hello", to, Some(ip("203.0.113.77"))).unwrap_err();
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.recv(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_datagram_longer_than_the_buffer_is_reported_as_truncated() {
    let (listener, port) = listener("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    let mut buffer = [0; 8];
    for (sent, truncated) in [(8, false), (9, true)] {
        client.send_to(&vec![7; sent], ("127.0.0.1", port)).unwrap();
        let received = receive_one(&listener, &mut buffer);
        assert_eq!((received.len, received.truncated), (8, truncated));
    }
}

#[test]
fn an_empty_datagram_is_a_datagram() {
    let (listener, port) = listener("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    client.send_to(&[], ("127.0.0.1", port)).unwrap();
    assert_eq!(receive_one(&listener, &mut [0; 8]).len, 0);
    send(&listener, &[], client.local_addr().unwrap(), None).unwrap();
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn the_largest_datagram_arrives_whole() {
    let (listener, port) = listener("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    let payload: Vec<u8> = (0..65_507_u32).map(|i| i.to_le_bytes()[0]).collect();
    send(&client, &payload, SocketAddr::new(ip("127.0.0.1"), port), None).unwrap();
    let mut buffer = vec![0; 65_535];
    assert_eq!(receive_one(&listener, &mut buffer).len, payload.len());
    assert_eq!(buffer[..payload.len()], payload);
}

// RFC 8656 §14: DSCP and ECN of what comes in are known, and what goes out can have the same.
#[test]
fn dscp_and_ecn_travel_both_ways_in_both_families() {
    let mut cases = vec![("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.1")];
    if has_ipv6() {
        cases.extend([("[::1]:0", "::1"), ("[::]:0", "::1"), ("[::]:0", "127.0.0.1")]);
    }
    for (listen, host) in cases {
        let (listener, port) = listener(listen);
        let peer = bind_relay(SocketAddr::new(ip(host), 0)).unwrap();
        for tos in [0, 0b1011_1010, 0b0000_0011, 0xff] {
            send_marked(&peer, b"there", SocketAddr::new(ip(host), port), None, tos).unwrap();
            let received = receive_one(&listener, &mut [0; 8]);
            assert_eq!(received.tos, tos, "{listen} from {host}");
            send_marked(&listener, b"back", received.source, received.destination, tos).unwrap();
            assert_eq!(receive_one(&peer, &mut [0; 8]).tos, tos, "{listen} to {host}");
        }
    }
}

#[test]
fn no_socket_blocks() {
    let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
    let (listener, _) = listener("127.0.0.1:0");
    for socket in [relay, listener] {
        assert_eq!(receive(&socket, &mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn listeners_join_a_claimed_port_that_nobody_else_can_claim() {
    let wildcard = if has_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    for text in ["127.0.0.1:0", wildcard] {
        let claimed = claim_listener(addr(text)).unwrap();
        let shared = claimed.local_addr().unwrap();
        assert_ne!(shared.port(), 0);
        assert_eq!(claim_listener(shared).unwrap_err().kind(), io::ErrorKind::AddrInUse, "{text}");
        let joined = bind_listener(shared).unwrap();
        assert_eq!(joined.local_addr().unwrap(), shared);
        drop(claimed);
        assert_eq!(claim_listener(shared).unwrap_err().kind(), io::ErrorKind::AddrInUse, "{text}");
    }
}

#[test]
fn a_claim_of_a_wildcard_sees_a_specific_holder() {
    let (_holder, port) = listener("127.0.0.1:0");
    let mut wildcards = vec!["0.0.0.0"];
    if has_ipv6() {
        wildcards.push("::");
    }
    for wildcard in wildcards {
        let error = claim_listener(SocketAddr::new(ip(wildcard), port)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{wildcard}");
    }
}

#[test]
fn a_relay_port_is_shared_with_nobody() {
    let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
    let taken = relay.local_addr().unwrap();
    assert_eq!(bind_relay(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(bind_listener(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn an_ipv6_relay_socket_leaves_the_port_to_ipv4() {
    if has_ipv6() {
        let relay = bind_relay(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0)).unwrap();
        assert!(socket2::SockRef::from(&relay).only_v6().unwrap());
    }
}

#[test]
fn only_the_absence_of_ipv6_counts_as_no_ipv6() {
    for (code, expected) in [(libc::EAFNOSUPPORT, true), (libc::EADDRNOTAVAIL, true), (libc::EADDRINUSE, false)] {
        assert_eq!(no_ipv6(&io::Error::from_raw_os_error(code)), expected);
    }
}

#[test]
fn the_buffers_of_a_listener_are_no_smaller_than_those_of_other_sockets() {
    let (listener, _) = listener("127.0.0.1:0");
    let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
    let (listener, relay) = (socket2::SockRef::from(&listener), socket2::SockRef::from(&relay));
    assert!(listener.recv_buffer_size().unwrap() >= relay.recv_buffer_size().unwrap());
    assert!(listener.send_buffer_size().unwrap() >= relay.send_buffer_size().unwrap());
}
