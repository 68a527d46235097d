//! Who serves a connection.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use sha2::{Digest as _, Sha256};

use crate::client::Http;
use crate::common::{Fixture, connect, exchange, read_all};
use crate::site::{GREETING, Site};
use crate::support::client::{Client, Login};
use crate::support::tls::{ANY, Offer, handshake, session_with};
use crate::support::{Server, TempDir, config};

/// Returns the response of the web site to bytes that it gets unchanged.
fn echoed(bytes: &[u8]) -> Vec<u8> {
    [GREETING, bytes].concat()
}

#[test]
fn clients_of_turn_over_tcp_and_tls_are_served_by_the_relay() {
    let site = Site::echo();
    let front = Fixture::new(&site, "", "");
    let tcp = Client::on_tcp(front.visit());
    assert_eq!(tcp.binding(), tcp.address());
    tcp.allocate(&Login::mint("alice", 600)).unwrap();
    let tls = front.allocate_over_tls();
    assert_eq!(tls.binding(), tls.address());
    front.wait_for_metric("turnserver_front_decisions_total{destination=\"relay\"} 2");
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"handed-to-relay\"} 2");
    front.wait_for_metric("turnserver_connections{transport=\"tls\"} 1");
    front.wait_for_metric("turnserver_connections{transport=\"tcp\"} 1");
}

#[test]
fn everything_else_reaches_the_web_site_unchanged() {
    let site = Site::echo();
    let front = Fixture::new(&site, "", "");
    let hellos = [
        front.hello("www.example.org", &[]),
        front.hello("www.example.org", &["h2", "http/1.1"]),
        front.hello("192.0.2.7", &[]),
        // Browsers that use the name of the relay, and a challenge for the certificate of the web site.
        front.hello("localhost", &["h2", "http/1.1"]),
        front.hello("localhost", &["acme-tls/1"]),
    ];
    for hello in &hellos {
        assert_eq!(exchange(front.visit(), hello), echoed(hello));
    }
    let others: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\n\r\n", b"POST /", b"\x80\x2e\x01\x03\x01", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", b"S"];
    for other in others {
        assert_eq!(exchange(front.visit(), other), echoed(other));
    }
    let all = hellos.len() + others.len();
    front.wait_for_metric(&format!("turnserver_front_decisions_total{{destination=\"web\"}} {all}"));
    front.wait_for_metric(&format!("turnserver_front_closed_connections_total{{reason=\"complete\"}} {all}"));
    front.wait_for_metric("turnserver_front_connections{to=\"web_site\"} 0");
}

#[test]
fn clients_without_a_server_name_are_those_of_the_relay_if_that_is_configured() {
    let front = Fixture::new(&Site::echo(), "without-name = \"relay\"\n", "");
    let hello = front.hello("127.0.0.1", &[]);
    let mut stream = front.visit();
    stream.write_all(&hello).unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(first, [0x16], "a ServerHello");
}

#[test]
fn browsers_that_use_the_name_of_the_relay_get_its_pages_if_that_is_configured() {
    let front = Fixture::new(&Site::echo(), "http = true\n", "");
    for (alpn, version) in [(&["h2", "http/1.1"][..], "http/1.1"), (&["http/1.1"], "http/1.1")] {
        let mut stream = handshake(front.address(), &front.authority, &Offer { alpn, ..ANY }).unwrap();
        assert_eq!(stream.conn.alpn_protocol(), Some(version.as_bytes()));
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
    front.wait_for_metric("turnserver_front_decisions_total{destination=\"http\"} 2");
    // Other names are those of the web site.
    let hello = front.hello("www.example.org", &["h2", "http/1.1"]);
    assert_eq!(exchange(front.visit(), &hello), echoed(&hello));
}

// A filter on the path may split a ClientHello, and some clients do it to get past such filters.
#[test]
fn a_client_hello_in_single_bytes_or_in_many_records_is_read() {
    let front = Fixture::new(&Site::echo(), "", "");
    let mut session = session_with("localhost", &front.authority, &ANY);
    let mut flight = Vec::new();
    session.write_tls(&mut flight).unwrap();
    let mut stream = front.visit();
    for byte in &flight {
        stream.write_all(&[*byte]).unwrap();
    }
    while session.is_handshaking() {
        session.complete_io(&mut stream).unwrap();
    }
    let fragment = |part: &[u8]| [&[0x16, 3, 1], &u16::try_from(part.len()).unwrap().to_be_bytes()[..], part].concat();
    let hello = front.hello("www.example.org", &[]);
    let split: Vec<u8> = hello[5..].chunks(40).flat_map(fragment).collect();
    assert_eq!(exchange(front.visit(), &split), echoed(&split));
}

#[test]
fn an_unreachable_web_site_gives_a_tls_alert_or_an_error_of_http_and_is_logged_once() {
    // The port is free again, and no other test uses the address.
    let free = TcpListener::bind("127.31.9.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let front = Fixture::at(&address.to_string(), "", "");
    let hello = front.hello("www.example.org", &[]);
    for _ in 0..3 {
        let mut stream = front.visit();
        stream.write_all(&hello).unwrap();
        // A fatal internal_error.
        assert_eq!(read_all(&mut stream), [0x15, 3, 3, 0, 2, 2, 80]);
    }
    let response = exchange(front.visit(), b"GET / HTTP/1.1\r\n\r\n");
    let response = String::from_utf8(response).unwrap();
    assert!(response.starts_with("HTTP/1.1 502 ") && response.ends_with("now.\n"), "{response}");
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"web-site-unreachable\"} 4");
    assert_eq!(front.events("web-site-unreachable").len(), 1);
    // The relay is not affected.
    front.allocate_over_tls();
    Site::start(&address.to_string(), |mut stream| {
        // Unread data make the kernel reset the connection.
        stream.read_to_end(&mut Vec::new())?;
        stream.write_all(GREETING)
    });
    assert_eq!(exchange(front.visit(), b"GET /"), GREETING);
    front.server.event("web-site-reachable");
}

#[test]
fn the_web_site_gets_the_addresses_of_its_visitors_in_a_proxy_header() {
    let front = Fixture::new(&Site::echo(), "proxy-protocol = true\n", "");
    let stream = front.visit();
    let (client, server) = (stream.local_addr().unwrap(), front.address());
    let ports = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
    let header = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c", &[127, 0, 0, 1, 127, 0, 0, 1][..], &ports].concat();
    assert_eq!(exchange(stream, b"GET /"), echoed(&[&header[..], b"GET /"].concat()));
}

#[test]
fn a_web_site_may_listen_at_a_unix_socket() {
    let directory = TempDir::new();
    let path = directory.path().join("web.sock");
    Site::at_path(&path);
    for web in [format!("unix:{}", path.display()), path.display().to_string()] {
        let front = Fixture::at(&web, "", "");
        assert_eq!(exchange(front.visit(), b"GET /"), echoed(b"GET /"));
    }
}

#[test]
fn without_a_certificate_only_turn_without_tls_is_served_at_a_front() {
    let site = Site::echo();
    let more = format!("[[front]]\nlisten = \"127.0.0.1:0\"\nweb = \"{}\"\nnames = [\"localhost\"]\n", site.address());
    let server = Server::start(&config(&["127.0.0.1"], &more));
    let line = server.wait_for_log(|line| line.field("event").as_deref() == Some("front-listening"));
    let address = line.field("address").unwrap().parse().unwrap();
    assert!(Client::connect(address).allocate(&Login::mint("alice", 600)).is_ok());
    let mut stream = connect(address);
    let authority = crate::support::certificates::Authority::new(turnserver::clock::unix_seconds());
    let mut session = session_with("localhost", &authority, &ANY);
    assert!(session.complete_io(&mut stream).is_err());
    server.wait_for_log(|line| line.field("event").as_deref() == Some("tls-without-certificate"));
}

#[test]
fn the_name_of_the_relay_gives_a_url_at_the_front() {
    let key = "a key of an application";
    let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    let http = format!("[http]\nlisten = [\"127.0.0.1:0\"]\n[[http.keys]]\nname = \"app\"\nsha256 = \"{hash}\"\n");
    let front = Fixture::new(&Site::echo(), "", &http);
    let address = front.server.event("http-listening").field("address").unwrap().parse().unwrap();
    let header = format!("Authorization: Bearer {key}\r\n");
    let response = Http::tcp(address).request("POST", "/v1/ice-servers", &header, b"{}").body;
    let url = format!("turns:localhost:{}?transport=tcp", front.address().port());
    assert!(response.contains(&url), "{response}");
}
