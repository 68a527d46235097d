//! Fronts behind a proxy.

use std::io::Write as _;
use std::net::Ipv4Addr;

use crate::common::{Fixture, connect_from, exchange, read_all, read_to_reset, visit_from};
use crate::site::{GREETING, Site};
use crate::support::client::Client;

/// Returns the header for a client.
fn header(version: usize, client: &str) -> Vec<u8> {
    match version {
        1 => format!("PROXY TCP4 {client} 198.51.100.1 4711 443\r\n").into_bytes(),
        _ => {
            let ip: Ipv4Addr = client.parse().unwrap();
            let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c";
            [&fixed[..], &ip.octets(), &[198, 51, 100, 1], &4711_u16.to_be_bytes(), &443_u16.to_be_bytes()].concat()
        }
    }
}

#[test]
fn behind_a_proxy_the_addresses_are_those_of_its_header() {
    let front = Fixture::with_keys(&Site::echo(), "proxy-protocol = true\n", "proxies = [\"127.0.0.2\"]\n");
    for version in [1, 2] {
        let mut stream = connect_from("127.0.0.2", &front);
        stream.write_all(&header(version, "203.0.113.7")).unwrap();
        let client = Client::on_tcp(stream);
        assert_eq!(client.binding(), "203.0.113.7:4711".parse().unwrap());
        // The web site gets the same header, in version 2.
        let sent = [header(version, "203.0.113.8"), b"GET /".to_vec()].concat();
        let expected = [header(2, "203.0.113.8"), b"GET /".to_vec()].concat();
        assert_eq!(exchange(connect_from("127.0.0.2", &front), &sent), [GREETING, &expected].concat());
    }
    // In single bytes, and for a browser whose request begins like a header.
    let mut stream = connect_from("127.0.0.2", &front);
    for byte in header(1, "203.0.113.9") {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(Client::on_tcp(stream).binding(), "203.0.113.9:4711".parse().unwrap());
    assert!(exchange(front.visit(), b"PROPFIND / HTTP/1.1\r\n\r\n").ends_with(b"PROPFIND / HTTP/1.1\r\n\r\n"));
    let local = [&b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"[..], &[0, 1]].concat();
    connect_from("127.0.0.2", &front).write_all(&local).unwrap();
    front.wait_for_metric("turnserver_front_decisions_total{destination=\"relay\"} 4");
}

#[test]
fn a_header_that_is_missing_malformed_or_forged_ends_the_connection_and_is_counted() {
    let front = Fixture::with_keys(&Site::echo(), "", "proxies = [\"127.0.0.2\"]\n");
    let header = b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\nGET /";
    for (ip, sent, reason, event) in [
        ("127.0.0.2", &b"GET / HTTP/1.1\r\n\r\n"[..], "missing", "proxy-header-failed"),
        ("127.0.0.2", b"PROXY TCP9 1 2 3 4\r\n", "malformed", "proxy-header-failed"),
        ("127.0.0.1", header, "unexpected", "proxy-not-listed"),
        ("127.0.0.1", b"\r\n\r\n\0\r\nQUIT\n\x21\x99\x00\x00", "unexpected", "proxy-not-listed"),
    ] {
        let mut stream = connect_from(ip, &front);
        stream.write_all(sent).unwrap();
        assert_eq!(read_all(&mut stream), b"", "{reason}");
        front.server.event(event);
    }
    let count = |reason: &str| format!("turnserver_front_closed_connections_total{{reason=\"proxy-header-{reason}\"}}");
    for (reason, number) in [("missing", 1), ("malformed", 1), ("unexpected", 2)] {
        front.wait_for_metric(&format!("{} {number}", count(reason)));
    }
    front.wait_for_metric("turnserver_front_decisions_total{destination=\"web\"} 0");
}

#[test]
fn a_header_may_name_an_ipv6_client_or_none() {
    let front = Fixture::with_keys(&Site::echo(), "", "proxies = [\"127.0.0.2\"]\n");
    let v6 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24"[..],
        &"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        &"2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        &[0x12, 0x67, 1, 0xbb],
    ];
    for (header, client) in [
        (&b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n"[..], Some("[2001:db8::7]:4711")),
        (&v6.concat(), Some("[2001:db8::7]:4711")),
        (b"PROXY UNKNOWN\r\n", None),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00", None),
    ] {
        let mut stream = connect_from("127.0.0.2", &front);
        let own = stream.local_addr().unwrap();
        stream.write_all(header).unwrap();
        // Without a client, the connection is the proxy's own.
        assert_eq!(Client::on_tcp(stream).binding(), client.map_or(own, |client| client.parse().unwrap()));
    }
}

#[test]
fn a_second_header_is_refused() {
    let front = Fixture::with_keys(&Site::echo(), "", "proxies = [\"127.0.0.2\"]\n");
    let mut stream = connect_from("127.0.0.2", &front);
    stream.write_all(&[header(2, "203.0.113.7"), header(1, "203.0.113.8"), b"GET /".to_vec()].concat()).unwrap();
    assert_eq!(read_all(&mut stream), b"");
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"proxy-header-malformed\"} 1");
    front.server.event("proxy-header-failed");
}

#[test]
fn a_header_that_does_not_come_ends_the_connection_in_time() {
    let site = Site::echo();
    let web = site.address().to_string();
    let front = Fixture::start(&web, "", "[timeouts]\ntls-handshake = \"1s\"\n", "proxies = [\"127.0.0.2\"]\n");
    let whole = header(2, "203.0.113.7");
    for sent in [&b""[..], &whole[..whole.len() - 1]] {
        let mut stream = connect_from("127.0.0.2", &front);
        stream.write_all(sent).unwrap();
        assert_eq!(read_all(&mut stream), b"");
    }
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"first-bytes-late\"} 2");
}

// Otherwise all clients of a proxy would share one place, and one of them could evict all others.
#[test]
fn above_the_limit_a_connection_of_the_client_with_the_most_is_evicted_and_not_of_the_proxy() {
    let front = Fixture::with_keys(&Site::echo(), "connections = 3\n", "proxies = [\"127.0.0.2\"]\n");
    let visit = |client: &str| visit_from("127.0.0.2", &front, &header(2, client));
    let (oldest, mut older, newer) = (visit("203.0.113.1"), visit("203.0.113.2"), visit("203.0.113.2"));
    let last = visit("203.0.113.3");
    assert_eq!(read_to_reset(&mut older), b"");
    for stream in [oldest, newer, last] {
        assert_eq!(exchange(stream, b" more"), b" more");
    }
}
