//! What visitors can take from the server: nothing that belongs to the relay.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::common::{Fixture, exchange, read_all, read_to_reset, visit_from, visitors};
use crate::site::{GREETING, Site};
use crate::support::client::{Client, Login};

#[test]
fn five_thousand_open_connections_to_the_web_site_leave_the_limits_of_the_relay_alone() {
    let visitors = visitors(5_000);
    let limits = "[limits]\nconnections = 20\nconnections-per-source = 20\nallocations = 100\n";
    let front = Fixture::new(&Site::echo(), "", limits);
    let open: Vec<TcpStream> = (0..visitors).map(|_| visit_from("127.0.0.1", &front, b"")).collect();
    front.wait_for_metric(&format!("turnserver_front_connections{{to=\"web_site\"}} {visitors}"));
    let clients: Vec<Client> = (0..20).map(|_| front.allocate_over_tls()).collect();
    front.wait_for_metric("turnserver_connections{transport=\"tls\"} 20");
    front.wait_for_metric("turnserver_rejected_connections_total{cause=\"connections\"} 0");
    clients.iter().for_each(|client| assert_eq!(client.binding(), client.address()));
    // The limits of the relay apply to its own connections.
    let mut further = front.visit();
    further.write_all(&[0, 1]).unwrap();
    assert_eq!(read_all(&mut further), b"");
    front.wait_for_metric("turnserver_rejected_connections_total{cause=\"connections\"} 1");
    assert_eq!(open.len(), visitors);
}

#[test]
fn above_the_limit_the_oldest_connection_of_the_source_with_the_most_is_evicted() {
    let front = Fixture::new(&Site::echo(), "connections = 3\n", "");
    let visit = |ip: &str| visit_from(ip, &front, b"");
    let (oldest, mut older, newer) = (visit("127.0.0.3"), visit("127.0.0.1"), visit("127.0.0.1"));
    let last = visit("127.0.0.4");
    // It may have been in the middle of something.
    assert_eq!(read_to_reset(&mut older), b"");
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"evicted\"} 1");
    for stream in [oldest, newer, last] {
        assert_eq!(exchange(stream, b" more"), b" more");
    }
}

#[test]
fn connections_whose_first_bytes_do_not_come_end_in_time_and_keep_no_others_out() {
    let count = visitors(3_000);
    let timeouts = "[timeouts]\ntls-handshake = \"5s\"\n";
    let front = Fixture::new(&Site::echo(), "", timeouts);
    let hello = front.hello("www.example.org", &[]);
    let mut slow: Vec<TcpStream> = (0..count).map(|_| front.visit()).collect();
    for (number, stream) in slow.iter_mut().enumerate() {
        // Nothing, the beginning of a record, or all but one byte.
        let sent = [0, 3, 5, 6, 100, hello.len() - 1][number % 6];
        stream.write_all(&hello[..sent]).unwrap();
    }
    let client = front.allocate_over_tls();
    assert_eq!(exchange(front.visit(), &hello), [GREETING, &hello].concat());
    for stream in &mut slow {
        assert_eq!(read_all(stream), b"");
    }
    front.wait_for_metric(&format!("turnserver_front_closed_connections_total{{reason=\"first-bytes-late\"}} {count}"));
    front.wait_for_metric("turnserver_front_connections{to=\"none\"} 0");
    assert_eq!(client.binding(), client.address());
}

#[test]
fn a_client_hello_that_is_too_long_or_never_ends_is_refused_at_once() {
    let front = Fixture::new(&Site::echo(), "", "");
    // The length of the message, and too many records.
    let long = [0x16, 3, 1, 0x40, 0, 1, 0, 0x40, 0];
    let mut split = vec![0x16, 3, 1, 0, 4, 1, 0, 0x20, 0];
    split.extend([[0x16, 3, 1, 0, 1, 0]; 140].concat());
    for bytes in [&long[..], &split] {
        let mut stream = front.visit();
        stream.write_all(bytes).unwrap();
        assert_eq!(read_all(&mut stream), b"");
    }
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"client-hello-too-long\"} 2");
}

// Each of them ends where nothing more is needed, in the middle of a record.
#[test]
fn an_empty_client_hello_holds_up_no_other_visitor() {
    let front = Fixture::new(&Site::echo(), "", "");
    let cut = [&[0x16, 3, 1, 0, 20, 1, 0, 0, 0][..], &[0x16, 3, 1, 0, 20, 1, 0, 0, 0, 7]];
    let split = [[1_u8], [0], [0], [0]].map(|[byte]| [0x16, 3, 1, 0, 1, byte]).concat();
    let split = [&split[..], &[0x16, 3, 1, 0, 1]].concat();
    for bytes in [cut[0], cut[1], &split] {
        let mut stream = front.visit();
        stream.write_all(bytes).unwrap();
        // The web site says what it thinks of it.
        let mut greeting = [0; GREETING.len()];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(exchange(front.visit(), b"GET /"), [GREETING, b"GET /"].concat());
    }
}

#[test]
fn a_client_that_goes_before_it_is_known_leaves_nothing() {
    let front = Fixture::new(&Site::echo(), "", "");
    let hello = front.hello("localhost", &[]);
    for sent in [0, 1, 100] {
        let mut stream = front.visit();
        stream.write_all(&hello[..sent]).unwrap();
        drop(stream);
    }
    front.wait_for_metric("turnserver_front_closed_connections_total{reason=\"broken-by-visitor\"} 3");
    front.wait_for_metric("turnserver_front_connections{to=\"none\"} 0");
    let client = Client::on_tcp(front.visit());
    assert!(client.allocate(&Login::mint("alice", 600)).is_ok());
}
