//! Handshakes, data and the end of connections.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use socket2::SockRef;
use tokio_rustls::rustls::{AlertDescription, Error, ProtocolVersion};
use turnserver::clock::unix_seconds;
use turnserver::stun::attribute::{ChannelNumber, Data, Lifetime, XorMappedAddress, XorPeerAddress};
use turnserver::stun::{Class, Message, Method, TransactionId};

use crate::common::{Fixture, assert_connections};
use crate::support::certificates::Authority;
use crate::support::client::{Client, Login, allocate, message, receive, socket};
use crate::support::has_ipv6;
use crate::support::tls::{ANY, Offer, TLS12, TLS13, handshake, read_to_end, session, tcp};

const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\", \"::1\"]\n";

fn binding(number: u8) -> Vec<u8> {
    message(Class::Request, Method::BINDING, TransactionId::new([number; 12]), &|_| {})
}

fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [number.to_be_bytes(), u16::try_from(payload.len()).unwrap().to_be_bytes()].concat();
    frame.extend(payload);
    frame.resize(frame.len().next_multiple_of(4), 0);
    frame
}

fn transaction(frame: &[u8]) -> TransactionId {
    Message::parse(frame).unwrap().transaction_id()
}

// RFC 8489 §6.2.3
#[test]
fn tls_1_2_and_1_3_are_served_over_ipv4_and_ipv6() {
    for ip in ["127.0.0.1", "::1"] {
        if ip == "::1" && !has_ipv6() {
            continue;
        }
        let fixture = Fixture::on(ip, "");
        for (version, expected) in [(TLS12, ProtocolVersion::TLSv1_2), (TLS13, ProtocolVersion::TLSv1_3)] {
            let stream = fixture.offering(&Offer { versions: &[version], alpn: &[], ..ANY });
            assert_eq!(stream.conn.protocol_version(), Some(expected));
            let client = Client::on_tls(stream);
            assert_eq!(client.binding(), client.address());
        }
    }
}

// RFC 7443 §2, RFC 7301 §3.2
#[test]
fn alpn_selects_our_protocols_and_prefers_turn_to_nat_discovery() {
    let fixture = Fixture::new("");
    for version in [TLS12, TLS13] {
        for (alpn, selected) in [
            (&[][..], None),
            (&["stun.turn"], Some("stun.turn")),
            (&["stun.nat-discovery"], Some("stun.nat-discovery")),
            (&["h2", "stun.nat-discovery", "stun.turn"], Some("stun.turn")),
        ] {
            let stream = fixture.offering(&Offer { versions: &[version], alpn, ..ANY });
            assert_eq!(stream.conn.alpn_protocol(), selected.map(str::as_bytes));
            let client = Client::on_tls(stream);
            assert_eq!(client.binding(), client.address());
        }
        let rejected =
            handshake(fixture.address(), &fixture.authority, &Offer { versions: &[version], alpn: &["h2"], ..ANY });
        assert_eq!(rejected.err(), Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)));
    }
    let ended = fixture.finish(10);
    assert_connections(&ended, &[("accepted", 10), ("closed-without-notify", 8), ("no-application-protocol", 2)]);
}

#[test]
fn a_nat_discovery_connection_allows_binding_only() {
    let fixture = Fixture::new("");
    let offer = Offer { versions: &[TLS13], alpn: &["stun.nat-discovery"], ..ANY };
    let client = Client::on_tls(fixture.offering(&offer));
    assert_eq!(client.binding(), client.address());
    client.send(&allocate(TransactionId::new([1; 12])));
    assert_eq!(client.frame(), None);
    let ended = fixture.finish(1);
    assert_connections(&ended, &[("accepted", 1), ("not-nat-discovery", 1)]);
    let stopped = ended.logs.iter().find(|line| line.message() == "stopped").unwrap();
    assert_eq!(stopped.field("outcomes").as_deref(), Some("answered Binding: 1, dropped unsupported-method: 1"));
}

#[test]
fn data_flows_both_ways_in_indications_and_padded_channel_data() {
    let fixture = Fixture::new(LOOPBACK_PEERS);
    for version in [TLS12, TLS13] {
        let client = Client::on_tls(fixture.offering(&Offer { versions: &[version], alpn: &["stun.turn"], ..ANY }));
        let peer = socket("127.0.0.1:0".parse().unwrap());
        let peer_address = peer.local_addr().unwrap();
        let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        client.permit(&session, peer_address);

        client.send_to_peer(peer_address, b"to the peer");
        assert_eq!(receive(&peer), (b"to the peer".to_vec(), relayed));
        peer.send_to(b"to the client", relayed).unwrap();
        let response = client.receive();
        assert_eq!(response.get::<Data<'_>>(), Some(Data(b"to the client")));

        let bound = client.request(&session, Method::CHANNEL_BIND, &|writer| {
            writer.push(&ChannelNumber(0x4001));
            writer.push(&XorPeerAddress(peer_address));
        });
        assert_eq!(bound.error(), None);
        for payload in [&b""[..], b"1", b"22", b"333", b"4444"] {
            client.send(&channel_data(0x4001, payload));
            assert_eq!(receive(&peer), (payload.to_vec(), relayed));
            peer.send_to(payload, relayed).unwrap();
            assert_eq!(client.frame().unwrap()[4..], *payload);
        }
    }
    let created = fixture.server.wait_for_log(|line| line.message() == "allocation created");
    assert_eq!(created.field("transport").as_deref(), Some("tls"));
}

#[test]
fn messages_are_found_however_they_are_split_into_records() {
    let fixture = Fixture::new("");
    let client = fixture.client();
    let message = binding(1);
    for cut in 1..message.len() {
        let (front, back) = message.split_at(cut);
        client.send(front);
        client.send(back);
        assert_eq!(transaction(&client.frame().unwrap()), TransactionId::new([1; 12]));
    }
    // One byte per record, then many messages in one record.
    for byte in &message {
        client.send(&[*byte]);
    }
    client.frame().unwrap();
    let many: Vec<u8> = (0..200).flat_map(binding).collect();
    client.send(&many);
    for number in 0..200 {
        assert_eq!(transaction(&client.frame().unwrap()), TransactionId::new([number; 12]));
    }
}

#[test]
fn records_are_found_however_they_are_split_into_segments() {
    let fixture = Fixture::new("");
    let mut session = session(&fixture.authority, &Offer { versions: &[TLS13], alpn: &["stun.turn"], ..ANY });
    let mut stream = tcp(fixture.address());
    let mut requested = false;
    loop {
        let mut flight = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut flight).unwrap();
        }
        for byte in flight {
            stream.write_all(&[byte]).unwrap();
        }
        if session.is_handshaking() {
            session.read_tls(&mut stream).unwrap();
            session.process_new_packets().unwrap();
        } else if !std::mem::replace(&mut requested, true) {
            session.writer().write_all(&binding(9)).unwrap();
        } else {
            break;
        }
    }
    let mut response = [0; 256];
    let length = loop {
        session.read_tls(&mut stream).unwrap();
        session.process_new_packets().unwrap();
        if let Ok(length) = session.reader().read(&mut response) {
            break length;
        }
    };
    let mapped = Message::parse(&response[..length]).unwrap().get::<XorMappedAddress>().unwrap().unwrap();
    assert_eq!(mapped.0, stream.local_addr().unwrap());
}

#[test]
fn data_that_is_not_tls_ends_the_connection_at_once() {
    let fixture = Fixture::new("");
    for garbage in [&binding(1)[..], b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut stream = tcp(fixture.address());
        stream.write_all(garbage).unwrap();
        // The server sends a TLS alert and closes.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 32, "{rest:?}");
    }
    assert_connections(&fixture.finish(2), &[("accepted", 2), ("not-tls", 2)]);
}

#[test]
fn a_client_that_does_not_trust_the_certificate_is_counted() {
    let fixture = Fixture::new("");
    let untrusted = Authority::new(unix_seconds());
    assert!(handshake(fixture.address(), &untrusted, &Offer { versions: &[TLS12], alpn: &[], ..ANY }).is_err());
    assert_connections(&fixture.finish(1), &[("accepted", 1), ("tls-alert-from-client", 1)]);
}

#[test]
fn an_incomplete_handshake_ends_at_its_deadline() {
    let fixture = Fixture::new("[timeouts]\ntls-handshake = \"1s\"\n");
    let mut session = session(&fixture.authority, &Offer { versions: &[TLS13], alpn: &[], ..ANY });
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    let mut waiting: Vec<_> = [0, 1, 5, 6, hello.len() / 2, hello.len()]
        .into_iter()
        .map(|length| {
            let mut stream = tcp(fixture.address());
            stream.write_all(&hello[..length]).unwrap();
            stream
        })
        .collect();
    // Other clients are served in the meantime.
    let client = fixture.client();
    assert_eq!(client.binding(), client.address());
    for stream in &mut waiting {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    drop((waiting, client));
    let ended = fixture.finish(7);
    assert_connections(&ended, &[("accepted", 7), ("closed-without-notify", 1), ("tls-handshake-timeout", 6)]);
}

#[test]
fn a_handshake_that_is_too_long_ends_the_connection() {
    let fixture = Fixture::new("");
    let mut stream = tcp(fixture.address());
    // A ClientHello of 60 000 bytes, in records of 1000.
    let mut hello = vec![1, 0, 0xea, 0x60];
    hello.resize(4 + 60_000, 0);
    for part in hello.chunks(1000) {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        let record = [&[22, 3, 1, length[0], length[1]], part].concat();
        if stream.write_all(&record).is_err() {
            break;
        }
    }
    let _ = stream.read_to_end(&mut Vec::new());
    assert_connections(&fixture.finish(1), &[("accepted", 1), ("tls-handshake-too-long", 1)]);
}

#[test]
fn a_silent_connection_is_closed_with_close_notify() {
    let fixture = Fixture::new("[timeouts]\nfirst-request = \"1s\"\nidle = \"1s\"\n");
    let mut silent = fixture.stream();
    let active = fixture.client();
    active.binding();
    assert!(read_to_end(&mut silent));
    assert!(read_to_end(&mut active.into_tls()));
    assert_connections(&fixture.finish(2), &[("accepted", 2), ("idle", 2)]);
}

#[test]
fn a_connection_with_binding_requests_only_is_closed_at_its_deadline() {
    let fixture = Fixture::new("[timeouts]\nunauthenticated = \"2s\"\n[limits]\nunverified-responses = 0\n");
    let client = fixture.client();
    let allocated = fixture.client();
    let (session, _) = allocated.allocate(&Login::mint("alice", 600)).unwrap();
    while {
        client.send(&binding(1));
        client.frame().is_some()
    } {
        std::thread::yield_now();
    }
    let refreshed = allocated.request(&session, Method::REFRESH, &|writer| writer.push(&Lifetime(600)));
    assert_eq!(refreshed.error(), None);
    let ended = fixture.server.terminate();
    assert_connections(&ended, &[("accepted", 2), ("unauthenticated", 1), ("server-stopped", 1)]);
}

/// Allocates, ends the connection with `end`, and waits until the allocation has ended and its port is free.
fn assert_ends(fixture: &Fixture, end: impl FnOnce(crate::support::tls::TlsStream)) {
    let client = fixture.client();
    let (_, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
    assert!(std::net::UdpSocket::bind(relayed).is_err());
    end(client.into_tls());
    let ended = fixture
        .server
        .wait_for_log(|line| line.message() == "allocation ended" && line.field("relay") == Some(relayed.to_string()));
    assert_eq!(ended.field("reason").as_deref(), Some("the connection was closed"));
    std::net::UdpSocket::bind(relayed).unwrap();
}

#[test]
fn an_allocation_ends_however_its_connection_ends() {
    let fixture = Fixture::new("");
    assert_ends(&fixture, |mut stream| {
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        // The server sends close_notify too.
        assert!(read_to_end(&mut stream));
    });
    assert_ends(&fixture, drop);
    assert_ends(&fixture, |mut stream| {
        stream.sock.shutdown(Shutdown::Write).unwrap();
        read_to_end(&mut stream);
    });
    assert_ends(&fixture, |stream| SockRef::from(&stream.sock).set_linger(Some(std::time::Duration::ZERO)).unwrap());
    assert_ends(&fixture, |mut stream| {
        stream.sock.write_all(b"\x17\x03\x03\x00\x20 these are not thirty-two bytes!").unwrap();
        let _ = stream.sock.read_to_end(&mut Vec::new());
    });
    let ended = fixture.finish(5);
    let expected =
        [("accepted", 5), ("closed-by-client", 1), ("closed-without-notify", 2), ("broken", 1), ("tls-violation", 1)];
    assert_connections(&ended, &expected);
    assert!(ended.logs.iter().all(|line| !matches!(line.level(), "WARN" | "ERROR") || is_about_the_machine(line)));
}

/// Returns whether a warning is about the machine on which the test runs.
fn is_about_the_machine(line: &crate::support::LogLine) -> bool {
    line.message().contains("open files") || line.message().contains("loopback")
}

#[test]
fn a_client_that_does_not_read_loses_data_and_keeps_its_allocation() {
    let fixture = Fixture::new(LOOPBACK_PEERS);
    let client = fixture.client();
    let peer = socket("127.0.0.1:0".parse().unwrap());
    let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
    client.permit(&session, peer.local_addr().unwrap());
    let other = Client::new(fixture.server.udp_address());
    for round in 0..2_000 {
        peer.send_to(&[7; 10_000], relayed).unwrap();
        // Waiting for a response lets the server catch up.
        if round % 10 == 0 {
            assert_eq!(other.binding(), other.address());
        }
    }
    client.send(&allocate(TransactionId::new([9; 12])));
    let mut data = 0;
    loop {
        let frame = client.frame().unwrap();
        match Message::parse(&frame).unwrap().class() {
            Class::Indication => data += 1,
            _ => break assert_eq!(transaction(&frame), TransactionId::new([9; 12])),
        }
    }
    assert!(data > 0 && data < 2_000, "{data}");
    assert_eq!(client.request(&session, Method::REFRESH, &|writer| writer.push(&Lifetime(600))).error(), None);
    let logs = fixture.server.terminate().logs;
    let stopped = logs.iter().find(|line| line.message() == "stopped").unwrap();
    // A slow machine drops all of it for its age.
    let outcomes = stopped.field("outcomes").unwrap();
    let dropped = ["dropped send-buffer-full", "dropped outdated"];
    assert!(dropped.iter().any(|dropped| outcomes.contains(dropped)), "{stopped:?}");
}

#[test]
fn unfinished_handshakes_count_as_connections() {
    let fixture = Fixture::one_worker("[limits]\nconnections = 3\nconnections-per-source = 2\n");
    let mut waiting = [tcp(fixture.address()), tcp(fixture.address())];
    // TCP connections share the limit.
    let client = Client::connect(fixture.server.tcp_address());
    assert_eq!(client.binding(), client.address());
    assert_eq!(waiting[0].read(&mut [0; 8]).unwrap_or_default(), 0);
    // The other one is still open.
    waiting[1].set_nonblocking(true).unwrap();
    assert_eq!(waiting[1].read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn clients_on_tls_and_udp_reach_each_other() {
    let fixture = Fixture::new("");
    let (tls, udp) = (fixture.client(), Client::new(fixture.server.udp_address()));
    let (tls_session, tls_relayed) = tls.allocate(&Login::mint("alice", 600)).unwrap();
    let (udp_session, udp_relayed) = udp.allocate(&Login::mint("bob", 600)).unwrap();
    tls.permit(&tls_session, udp_relayed);
    udp.permit(&udp_session, tls_relayed);
    tls.send_to_peer(udp_relayed, b"from tls");
    assert_eq!(udp.receive().get::<Data<'_>>(), Some(Data(b"from tls")));
    udp.send_to_peer(tls_relayed, b"from udp");
    assert_eq!(tls.receive().get::<Data<'_>>(), Some(Data(b"from udp")));
}

#[test]
fn a_tcp_port_serves_clients_with_and_without_tls() {
    let fixture = Fixture::new("");
    let address = fixture.server.tcp_address();
    let tls = Client::on_tls(
        handshake(address, &fixture.authority, &Offer { versions: &[TLS13], alpn: &[], ..ANY }).unwrap(),
    );
    let plain = Client::connect(address);
    for (client, transport) in [(&tls, "tls"), (&plain, "tcp")] {
        assert_eq!(client.binding(), client.address());
        let (session, _) = client.allocate(&Login::mint("alice", 600)).unwrap();
        let created = fixture.server.wait_for_log(|line| {
            line.message() == "allocation created" && line.field("client") == Some(client.address().to_string())
        });
        assert_eq!(created.field("transport").as_deref(), Some(transport));
        client.delete(&session);
    }
}

#[test]
fn turn_without_tls_on_a_tls_port_is_logged_with_the_client() {
    let fixture = Fixture::new("");
    let client = Client::connect(fixture.address());
    client.send(&allocate(TransactionId::new([1; 12])));
    let logged = fixture.server.wait_for_log(|line| line.message().contains("without TLS to a port of listen.tls"));
    assert_eq!(logged.field("client"), Some(client.address().to_string()));
    let ended = fixture.finish(1);
    assert_connections(&ended, &[("accepted", 1), ("not-tls", 1)]);
}
