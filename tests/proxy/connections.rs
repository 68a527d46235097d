//! PROXY headers on TCP and TLS connections.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use tokio_rustls::rustls::StreamOwned;
use turnserver::clock::unix_seconds;
use turnserver::stun::attribute::{Data, XorMappedAddress};
use turnserver::stun::{Class, Message, Method, TransactionId};

use crate::common::{behind_proxies, connect, connect_from, headers, is, local, proxy_for, stopped, v1, v2};
use crate::support::certificates::Authority;
use crate::support::client::{Client, Login, message, receive, socket};
use crate::support::tls::{ANY, session};
use crate::support::{Controlled, Server, TempDir, config, has_ipv6, with_tls};

const CLIENT: &str = "198.51.100.7:4711";
const FRONT: &str = "203.0.113.1:443";

fn binding() -> Vec<u8> {
    message(Class::Request, Method::BINDING, TransactionId::new([7; 12]), &|_| {})
}

/// Connects from a proxy and sends bytes.
fn sending(server: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(server);
    stream.write_all(bytes).unwrap();
    stream
}

fn mapped(frame: &[u8]) -> SocketAddr {
    Message::parse(frame).unwrap().get::<XorMappedAddress>().unwrap().unwrap().0
}

/// Waits until the server closes the connection, which sends nothing before.
fn assert_closed(mut stream: &TcpStream) {
    let read = stream.read(&mut [0; 64]);
    let reset = read.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
    assert!(reset || matches!(read, Ok(0)), "{read:?}");
}

#[test]
fn the_client_of_a_header_is_that_of_the_connection() {
    for ip in ["127.0.0.1", "::1"] {
        if ip == "::1" && !has_ipv6() {
            continue;
        }
        let server = Server::start(&behind_proxies(ip, ""));
        for (header, client) in headers() {
            let stream = sending(server.tcp_address(), &header);
            assert_eq!(Client::on_tcp(stream).binding(), client);
        }
    }
}

#[test]
fn a_header_precedes_a_tls_handshake() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    let files = authority.write(&authority.issue(&["localhost"]), directory.path());
    let server = Server::start(&with_tls(&behind_proxies("127.0.0.1", ""), &["127.0.0.1"], &files));
    for (listener, transport) in [(server.tls_address(), "tls"), (server.tcp_address(), "tcp")] {
        for (header, client) in headers() {
            let mut stream = StreamOwned::new(session(&authority, &ANY), sending(listener, &header));
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock).unwrap();
            }
            assert_eq!(Client::on_tls(stream).binding(), client, "{transport}");
        }
    }
    // TLS first is no header.
    let refused = sending(server.tls_address(), &[0x16, 3, 1, 0, 5]);
    assert_closed(&refused);
    assert!(stopped(server, "connection_ends").contains("proxy-header-missing: 1"));
}

#[test]
fn a_header_is_found_however_the_stream_is_split() {
    let server = Server::start(&behind_proxies("127.0.0.1", ""));
    for (header, expected) in headers() {
        let whole = [header, binding()].concat();
        let mut together = sending(server.tcp_address(), &whole);
        let mut response = [0; 64];
        let length = together.read(&mut response).unwrap();
        assert_eq!(mapped(&response[..length]), expected);
        let mut apart = connect(server.tcp_address());
        whole.chunks(1).for_each(|byte| apart.write_all(byte).unwrap());
        let length = apart.read(&mut response).unwrap();
        assert_eq!(mapped(&response[..length]), expected);
    }
    // A header of 4 KiB is longer than one step.
    let mut long = v2(CLIENT, FRONT);
    long[14..16].copy_from_slice(&4_096_u16.to_be_bytes());
    long.push(0x04);
    long.extend((4_096 - 12 - 3_u16).to_be_bytes());
    long.resize(16 + 4_096, 0);
    let client = Client::on_tcp(sending(server.tcp_address(), &long));
    assert_eq!(client.binding().to_string(), CLIENT);
}

// proxy-protocol.txt §2.1, §2.2
#[test]
fn local_and_unknown_clients_have_the_addresses_of_the_connection() {
    let server = Server::start(&behind_proxies("127.0.0.1", ""));
    for header in [local(), b"PROXY UNKNOWN\r\n".to_vec(), b"PROXY UNKNOWN ::1 ::2 3 4\r\n".to_vec()] {
        let stream = sending(server.tcp_address(), &header);
        let real = stream.local_addr().unwrap();
        assert_eq!(Client::on_tcp(stream).binding(), real);
    }
}

#[test]
fn a_missing_or_bad_header_closes_the_connection_and_is_counted() {
    let server = Server::start(&behind_proxies("127.0.0.1", ""));
    let mut too_long = v2(CLIENT, FRONT);
    too_long[14..16].copy_from_slice(&4_097_u16.to_be_bytes());
    for (bytes, reason) in [
        (binding(), "proxy-header-missing"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "proxy-header-missing"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n".to_vec(), "proxy-header-malformed"),
        ([b"PROXY TCP4 ", &[b'1'; 100][..]].concat(), "proxy-header-too-long"),
        (too_long, "proxy-header-too-long"),
    ] {
        let stream = sending(server.tcp_address(), &bytes);
        assert_closed(&stream);
        let line = server
            .wait_for_log(|line| is(line, "proxy-header-failed") && line.field("reason").as_deref() == Some(reason));
        assert!(line.field("proxy").unwrap().starts_with("127.0.0.2:"), "{line:?}");
        assert!(line.message().contains("listen.proxies"), "{line:?}");
    }
    // A proxy sees whether the server lives.
    drop(connect(server.tcp_address()));
    server.wait_for_log(|line| line.field("reason").as_deref() == Some("closed-by-client"));
    let ends = stopped(server, "connection_ends");
    for expected in
        ["proxy-header-missing: 2", "proxy-header-malformed: 1", "proxy-header-too-long: 2", "closed-by-client: 1"]
    {
        assert!(ends.contains(expected), "{expected} in {ends}");
    }
}

#[test]
fn a_header_from_another_source_closes_the_connection_and_names_the_setting() {
    for config in [behind_proxies("127.0.0.1", ""), config(&["127.0.0.1"], "")] {
        let server = Server::start(&config);
        for (header, _) in headers() {
            for split in [false, true] {
                let mut stream = connect_from([127, 0, 0, 1].into(), server.tcp_address());
                if split {
                    // The server may close it before the last byte.
                    let _ = header.chunks(1).try_for_each(|byte| stream.write_all(byte));
                } else {
                    stream.write_all(&[&header[..], &binding()].concat()).unwrap();
                }
                assert_closed(&stream);
            }
        }
        let line = server.wait_for_log(|line| is(line, "proxy-not-listed"));
        assert!(line.message().contains("add its address to listen.proxies"), "{line:?}");
        assert!(line.field("client").unwrap().starts_with("127.0.0.1:"), "{line:?}");
        // What begins like a header and is none has the reason that it has always had.
        let other = connect_from([127, 0, 0, 1].into(), server.tcp_address());
        (&other).write_all(b"POST / HTTP/1.1\r\n\r\n").unwrap();
        assert_closed(&other);
        let ends = stopped(server, "connection_ends");
        assert!(ends.contains("proxy-header-unexpected: 8") && ends.contains("not-turn: 1"), "{ends}");
    }
}

#[test]
fn a_client_without_a_proxy_is_served_as_without_proxies() {
    let server = Server::start(&behind_proxies("127.0.0.1", ""));
    let client = Client::connect(server.tcp_address());
    assert_eq!(client.binding(), client.address());
    client.allocate(&Login::mint("alice", 600)).unwrap();
}

#[test]
fn an_incomplete_header_ends_at_the_deadline() {
    let server = Server::start(&behind_proxies("127.0.0.1", "[timeouts]\nfirst-request = \"1s\"\n"));
    let (silent, half) = (connect(server.tcp_address()), sending(server.tcp_address(), &v2(CLIENT, FRONT)[..20]));
    assert_closed(&silent);
    assert_closed(&half);
    // After its header, a client has what is left of the time.
    let idle = sending(server.tcp_address(), &v1(CLIENT, FRONT));
    assert_closed(&idle);
    let ends = stopped(server, "connection_ends");
    assert!(ends.contains("proxy-header-timeout: 2") && ends.contains("idle: 1"), "{ends}");
}

#[test]
fn thousands_of_connections_without_a_header_do_not_keep_clients_out() {
    const WAITING: usize = 2_000;
    const KEPT: usize = 512;
    let server = Server::start(&behind_proxies("127.0.0.1", "[timeouts]\nfirst-request = \"5m\"\n"));
    // Of this process, as many as descriptors allow.
    let mut waiting = std::collections::VecDeque::new();
    for _ in 0..WAITING {
        waiting.push_back(connect(server.tcp_address()));
        if waiting.len() > KEPT {
            assert_closed(&waiting.pop_front().unwrap());
        }
    }
    let client = Client::on_tcp(sending(server.tcp_address(), &v2(CLIENT, FRONT)));
    assert_eq!(client.binding().to_string(), CLIENT);
    client.allocate(&Login::mint("alice", 600)).unwrap();
    let direct = Client::connect(server.tcp_address());
    assert_eq!(direct.binding(), direct.address());
    let ends = stopped(server, "connection_ends");
    // The client with a header took a place for a moment.
    assert!(ends.contains(&format!("proxy-header-evicted: {}", WAITING - KEPT + 1)), "{ends}");
}

#[test]
fn each_client_behind_a_proxy_has_the_limits_of_a_source() {
    let server = Server::start(&behind_proxies("127.0.0.1", "[limits]\nconnections-per-source = 2\n"));
    let client = |client: &str| Client::on_tcp(sending(server.tcp_address(), &v2(client, FRONT)));
    let other = client("198.51.100.8:1");
    assert_eq!(other.binding().to_string(), "198.51.100.8:1");
    let own: Vec<Client> = (1..=3)
        .map(|port| {
            let own = client(&format!("198.51.100.7:{port}"));
            assert_eq!(own.binding().port(), port);
            own
        })
        .collect();
    assert_eq!(own[0].frame(), None, "the oldest of the source gives way");
    for kept in [&own[1], &own[2], &other] {
        kept.binding();
    }
    // Connections that wait for a header have no limit of their own.
    let waiting: Vec<TcpStream> = (0..10).map(|_| connect(server.tcp_address())).collect();
    for (number, mut stream) in (20..).zip(waiting) {
        let client = format!("198.51.100.{number}:4711");
        stream.write_all(&v2(&client, FRONT)).unwrap();
        assert_eq!(Client::on_tcp(stream).binding().to_string(), client);
    }
}

#[test]
fn an_allocation_behind_a_proxy_shows_its_client_and_relays() {
    let controlled = Controlled::start_with(&behind_proxies("127.0.0.1", "[peers]\nallow = [\"127.0.0.1\"]\n"));
    let server = &controlled.server;
    let client = Client::on_tcp(sending(server.tcp_address(), &v1(CLIENT, FRONT)));
    let peer = socket("127.0.0.1:0".parse().unwrap());
    let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
    client.permit(&session, peer.local_addr().unwrap());
    client.send_to_peer(peer.local_addr().unwrap(), b"to the peer");
    assert_eq!(receive(&peer), (b"to the peer".to_vec(), relayed));
    peer.send_to(b"to the client", relayed).unwrap();
    assert_eq!(client.receive().get::<Data<'_>>(), Some(Data(b"to the client")));
    let created = server.wait_for_log(|line| is(line, "allocation-created"));
    assert_eq!(created.field("client").as_deref(), Some(CLIENT));
    assert_eq!(created.field("server").as_deref(), Some(FRONT));
    let sessions = controlled.lines(&["sessions"]).join("\n");
    assert!(
        sessions.contains(CLIENT) && !sessions.contains(&proxy_for(server.tcp_address()).to_string()),
        "{sessions}"
    );
}

// The core prefers the relay address at which a client reaches the server. Behind a proxy, that is not the address of
// the connection.
#[test]
fn clients_behind_a_proxy_and_others_are_told_apart_by_all_addresses() {
    let server = Server::start(&behind_proxies("127.0.0.1", ""));
    let of = |front: &str| Client::on_tcp(sending(server.tcp_address(), &v2(CLIENT, front)));
    // One port of a client, two addresses of the proxy.
    let (one, two) = (of("203.0.113.1:443"), of("203.0.113.1:3478"));
    one.allocate(&Login::mint("alice", 600)).unwrap();
    two.allocate(&Login::mint("alice", 600)).unwrap();
    assert_eq!([&one, &two].map(|client| client.binding().to_string()), [CLIENT, CLIENT]);
}
