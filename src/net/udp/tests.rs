//! Real sockets on the loopback interface. On a machine without IPv6, the tests that need IPv6 are skipped.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use nix::poll::PollFlags;

use super::*;
use crate::ip_fields::IpFields;
use crate::net::batch::{RecvBatch, SendStatus, SlotLayout, Target};
use crate::net::testing::{
    addr, closed_port, has_ipv6, in_own_network, ip, loopbacks, marked, receive, send, unless_interrupted, wait_for,
};

/// Returns a listener on a free port, and the port.
fn listener(text: &str) -> (UdpSocket, u16) {
    let listener = bind_listener(addr(text)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Returns a client that waits for at most ten seconds for a response.
fn client(text: &str) -> UdpSocket {
    let client = UdpSocket::bind(text).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    client
}

/// Sends a datagram from the client to `destination`, and a response from `destination` to the client.
fn echo(listener: &UdpSocket, client: &UdpSocket, destination: SocketAddr, expected: Option<IpAddr>) {
    client.send_to(b"ping", destination).unwrap();
    let (received, payload) = receive(listener, 64);
    assert_eq!(payload, b"ping");
    assert_eq!((received.source, received.destination), (client.local_addr().unwrap(), expected));
    assert_eq!((received.truncated, received.fields.tos), (false, 0));

    let mut buffer = [0; 64];
    let target = Target::new(received.source, received.destination, IpFields::default());
    assert_eq!(send(listener, b"pong", &target), SendStatus::Sent);
    let (len, from) = unless_interrupted(|| client.recv_from(&mut buffer)).unwrap();
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
fn an_ipv4_wildcard_responds_from_the_destination_address() {
    let (listener, port) = listener("0.0.0.0:0");
    for text in ["127.0.0.1", "127.0.0.2"] {
        echo(&listener, &client("127.0.0.1:0"), SocketAddr::new(ip(text), port), Some(ip(text)));
    }
}

#[test]
fn a_dual_stack_wildcard_responds_from_the_destination_address_in_both_families() {
    if has_ipv6() {
        let (listener, port) = listener("[::]:0");
        for text in ["127.0.0.1", "127.0.0.2"] {
            echo(&listener, &client("127.0.0.1:0"), SocketAddr::new(ip(text), port), Some(ip(text)));
        }
        echo(&listener, &client("[::1]:0"), SocketAddr::new(ip("::1"), port), Some(ip("::1")));
    }
}

#[test]
fn a_link_local_client_keeps_its_scope_id_and_receives_a_response() {
    let link_local_address = nix::ifaddrs::getifaddrs().unwrap().find_map(|entry| {
        let v6 = *entry.address?.as_sockaddr_in6()?;
        (v6.ip().is_unicast_link_local()).then(|| (v6.ip(), v6.scope_id()))
    });
    let Some((link_local, scope)) = link_local_address else { return };
    let (listener, port) = listener("[::]:0");
    let Ok(client) = UdpSocket::bind(SocketAddrV6::new(link_local, 0, 0, scope)) else { return };
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let destination = SocketAddrV6::new(link_local, port, 0, scope);
    echo(&listener, &client, destination.into(), Some(link_local.into()));
}

#[test]
fn mapped_addresses_are_sent_as_ipv4() {
    let (listener, port) = listener("0.0.0.0:0");
    let client = client("127.0.0.1:0");
    let to = SocketAddr::new(ip("::ffff:127.0.0.1"), client.local_addr().unwrap().port());
    let target = Target::new(to, Some(ip("::ffff:127.0.0.3")), IpFields::default());
    assert_eq!(send(&listener, b"hello", &target), SendStatus::Sent);
    let mut buffer = [0; 64];
    assert_eq!(
        unless_interrupted(|| client.recv_from(&mut buffer)).unwrap(),
        (5, SocketAddr::new(ip("127.0.0.3"), port))
    );
}

#[test]
fn an_impossible_source_address_is_an_error_and_sends_nothing() {
    let (listener, _) = listener("0.0.0.0:0");
    let client = client("127.0.0.1:0");
    let to = client.local_addr().unwrap();
    let send_from = |from| send(&listener, b"hello", &Target::new(to, Some(ip(from)), IpFields::default()));
    assert_eq!(send_from("::1"), SendStatus::Failed(libc::EINVAL));
    // The error differs between kernel versions.
    assert!(matches!(send_from("203.0.113.77"), SendStatus::Failed(_)));
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.recv(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_datagram_longer_than_the_buffer_is_reported_as_truncated() {
    let (listener, port) = listener("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    for (sent, truncated) in [(8, false), (9, true)] {
        client.send_to(&vec![7; sent], ("127.0.0.1", port)).unwrap();
        let (received, payload) = receive(&listener, 8);
        assert_eq!((payload.len(), received.truncated), (8, truncated));
    }
}

#[test]
fn an_empty_datagram_is_a_datagram() {
    let (listener, port) = listener("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    client.send_to(&[], ("127.0.0.1", port)).unwrap();
    assert!(receive(&listener, 8).1.is_empty());
    assert_eq!(
        send(&listener, &[], &Target::new(client.local_addr().unwrap(), None, IpFields::default())),
        SendStatus::Sent
    );
    assert_eq!(unless_interrupted(|| client.recv(&mut [0; 8])).unwrap(), 0);
}

#[test]
fn the_largest_datagram_arrives_complete() {
    let (listener, port) = listener("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    let payload: Vec<u8> = (0..65_507_u32).map(|i| i.to_le_bytes()[0]).collect();
    let target = Target::new(SocketAddr::new(ip("127.0.0.1"), port), None, IpFields::default());
    assert_eq!(send(&client, &payload, &target), SendStatus::Sent);
    assert_eq!(receive(&listener, 65_535).1, payload);
}

// RFC 8656 §14: the IP header fields of a received datagram can be those of a sent one.
#[test]
fn ip_header_fields_are_received_and_sent_in_both_families() {
    let mut cases = vec![("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.1")];
    if has_ipv6() {
        cases.extend([("[::1]:0", "::1"), ("[::]:0", "::1"), ("[::]:0", "127.0.0.1")]);
    }
    for (listen, host) in cases {
        let (listener, port) = listener(listen);
        let peer = bind_relay(SocketAddr::new(ip(host), 0)).unwrap();
        for (tos, hop_limit) in [(0, 7), (0b1011_1010, 255), (0b0000_0011, 1), (0xff, 64)] {
            let fields = IpFields { tos, hop_limit: Some(hop_limit) };
            let target = Target::new(SocketAddr::new(ip(host), port), None, fields);
            assert_eq!(send(&peer, b"there", &target), SendStatus::Sent);
            let (received, _) = receive(&listener, 8);
            assert_eq!(received.fields, fields, "{listen} from {host}");
            let target = Target::new(received.source, received.destination, fields);
            assert_eq!(send(&listener, b"back", &target), SendStatus::Sent);
            assert_eq!(receive(&peer, 8).0.fields, fields, "{listen} to {host}");
            send_unfragmented(&peer, b"whole", SocketAddr::new(ip(host), port), fields).unwrap();
            assert_eq!(receive(&listener, 8).0.fields, fields, "{listen} from {host}");
        }
    }
}

#[test]
fn sockets_do_not_block() {
    let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
    let (listener, _) = listener("127.0.0.1:0");
    for socket in [relay, listener] {
        assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn listeners_can_share_a_claimed_port_but_no_one_can_claim_it_again() {
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
fn a_wildcard_claim_fails_if_a_specific_address_is_in_use() {
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
fn a_relay_port_is_not_shared() {
    let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
    let taken = relay.local_addr().unwrap();
    assert_eq!(bind_relay(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(bind_listener(taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn an_ipv6_relay_socket_does_not_use_the_ipv4_port() {
    if has_ipv6() {
        let relay = bind_relay(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0)).unwrap();
        assert!(SockRef::from(&relay).only_v6().unwrap());
    }
}

#[test]
fn no_ipv6_is_true_only_for_errors_of_missing_ipv6() {
    for (code, expected) in [(libc::EAFNOSUPPORT, true), (libc::EADDRNOTAVAIL, true), (libc::EADDRINUSE, false)] {
        assert_eq!(no_ipv6(&io::Error::from_raw_os_error(code)), expected);
    }
}

#[test]
fn listener_buffers_are_not_smaller_than_relay_buffers() {
    let (listener, _) = listener("127.0.0.1:0");
    let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
    let (listener, relay) = (SockRef::from(&listener), SockRef::from(&relay));
    assert!(listener.recv_buffer_size().unwrap() >= relay.recv_buffer_size().unwrap());
    assert!(listener.send_buffer_size().unwrap() >= relay.send_buffer_size().unwrap());
}

#[test]
fn buffer_sizes_are_those_that_the_system_allows() {
    let (listener, _) = listener("127.0.0.1:0");
    let relay = bind_relay(addr("127.0.0.1:0")).unwrap();
    SockRef::from(&relay).set_recv_buffer_size(8_192).unwrap();
    assert_eq!(buffer_sizes(&relay).unwrap().receive, 8_192);
    let limit = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap();
        text.trim().parse::<usize>().unwrap()
    };
    let sizes = buffer_sizes(&listener).unwrap();
    assert!(sizes.receive >= LISTENER_BUFFER.min(limit("rmem_max")), "{sizes:?}");
    assert!(sizes.send >= LISTENER_BUFFER.min(limit("wmem_max")), "{sizes:?}");
}

fn port_unreachable(peer: SocketAddr) -> Unreachable {
    let (kind, code) = if peer.is_ipv4() { (3, 3) } else { (1, 4) };
    Unreachable { peer, kind, code, info: 0, origin: Origin::Network }
}

// RFC 8656 §11.5
#[test]
fn a_closed_port_is_reported_with_its_peer() {
    for host in loopbacks() {
        let relay = bind_relay(SocketAddr::new(host, 0)).unwrap();
        enable_error_queue(&relay).unwrap();
        assert_eq!(receive_error(&relay).unwrap(), None);
        let nowhere = [closed_port(host), closed_port(host)].map(|socket| (socket.local_addr().unwrap(), socket));
        for (address, _socket) in &nowhere {
            assert_eq!(send(&relay, b"lost", &Target::new(*address, None, IpFields::default())), SendStatus::Sent);
        }
        for (address, _socket) in &nowhere {
            wait_for(&relay, PollFlags::POLLERR);
            assert_eq!(receive_error(&relay).unwrap(), Some(port_unreachable(*address)));
        }
        assert_eq!(receive_error(&relay).unwrap(), None);
    }
}

#[test]
fn an_error_of_an_earlier_datagram_does_not_affect_sending_or_receiving() {
    for host in loopbacks() {
        let relay = bind_relay(SocketAddr::new(host, 0)).unwrap();
        enable_error_queue(&relay).unwrap();
        let (peer, closed_port) = (client(&SocketAddr::new(host, 0).to_string()), closed_port(host));
        let nowhere = closed_port.local_addr().unwrap();
        let [to_nowhere, to_peer] =
            [nowhere, peer.local_addr().unwrap()].map(|to| Target::new(to, None, IpFields::default()));
        let mut batch = RecvBatch::new(1, SlotLayout { headroom: 0, payload: 8, tailroom: 0 });
        let mut buffer = [0; 8];
        for _ in 0..3 {
            assert_eq!(send(&relay, b"lost", &to_nowhere), SendStatus::Sent);
            wait_for(&relay, PollFlags::POLLERR);
            assert_eq!(batch.receive(&relay, 0, 1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            send_unfragmented(&relay, b"lost", nowhere, IpFields::default()).unwrap();
            wait_for(&relay, PollFlags::POLLERR);
            send_unfragmented(&relay, b"arrives", peer.local_addr().unwrap(), IpFields::default()).unwrap();
            assert_eq!(send(&relay, b"lost", &to_nowhere), SendStatus::Sent);
            wait_for(&relay, PollFlags::POLLERR);
            assert_eq!(send(&relay, b"arrives", &to_peer), SendStatus::Sent);
            for _ in 0..2 {
                let (len, from) = unless_interrupted(|| peer.recv_from(&mut buffer)).unwrap();
                assert_eq!((&buffer[..len], from), (&b"arrives"[..], relay.local_addr().unwrap()));
            }
        }
        for _ in 0..9 {
            assert_eq!(receive_error(&relay).unwrap(), Some(port_unreachable(nowhere)));
        }
        assert_eq!(receive_error(&relay).unwrap(), None);
    }
}

// RFC 8656 §14, §15
#[test]
fn a_datagram_longer_than_the_mtu_is_fragmented_unless_df_is_set() {
    in_own_network(&["link set lo up mtu 1280"], || {
        for host in loopbacks() {
            let relay = bind_relay(SocketAddr::new(host, 0)).unwrap();
            enable_error_queue(&relay).unwrap();
            let peer = client(&SocketAddr::new(host, 0).to_string());
            let to = peer.local_addr().unwrap();
            let headers = if host.is_ipv4() { 20 + 8 } else { 40 + 8 };
            let mut buffer = [0; 2_000];
            for _ in 0..2 {
                send_unfragmented(&relay, &vec![1; 1_280 - headers], to, marked(0b10)).unwrap();
                assert_eq!(unless_interrupted(|| peer.recv(&mut buffer)).unwrap(), 1_280 - headers);

                let error = send_unfragmented(&relay, &vec![2; 1_281 - headers], to, IpFields::default()).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
                let error = receive_error(&relay).unwrap().unwrap();
                assert_eq!((error.peer.ip(), error.info, error.origin), (host, 1_280, Origin::Local));
                assert_eq!((error.kind, error.code), if host.is_ipv4() { (3, 4) } else { (2, 0) });
                assert_eq!(receive_error(&relay).unwrap(), None);

                assert_eq!(send(&relay, &[3; 2_000], &Target::new(to, None, IpFields::default())), SendStatus::Sent);
                assert_eq!(unless_interrupted(|| peer.recv(&mut buffer)).unwrap(), 2_000);
            }
        }
    });
}
