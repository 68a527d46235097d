//! Real sockets on the loopback interface. On a machine without IPv6, the tests that need IPv6 are skipped.

use std::collections::HashSet;
use std::io::Read as _;
use std::net::IpAddr;
use std::sync::Barrier;
use std::thread;

use super::*;
use crate::net::testing::has_ipv6;

/// The maximum number of polls for a connection. Together they take seconds.
const TRIES: usize = 5_000_000;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

/// Waits for the next connection to any of the listeners. Returns the index of the listener and the connection.
fn accept(listeners: &[&TcpListener]) -> (usize, TcpStream) {
    for _ in 0..TRIES {
        for (index, listener) in listeners.iter().enumerate() {
            match listener.accept() {
                Ok((connection, _)) => return (index, connection),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        thread::yield_now();
    }
    panic!("no connection");
}

fn in_use<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Returns whether a socket without `SO_REUSEADDR` could be bound to the port.
fn is_vacant(addr: SocketAddr) -> bool {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
    !in_use(socket.bind(&addr.into()))
}

fn bind_and_listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = bind_listener(addr)?;
    listen(&listener)?;
    Ok(listener)
}

#[test]
fn listeners_can_share_a_claimed_port_but_no_one_can_claim_it_again() {
    let wildcard = if has_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    for text in ["127.0.0.1:0", wildcard] {
        let claimed = claim_listener(addr(text)).unwrap();
        let shared = claimed.local_addr().unwrap();
        assert_ne!(shared.port(), 0);
        assert!(in_use(claim_listener(shared)), "{text}");
        let joined = bind_and_listen(shared).unwrap();
        assert_eq!(joined.local_addr().unwrap(), shared);
        drop(claimed);
        assert!(in_use(claim_listener(shared)), "{text}");
    }
}

#[test]
fn a_claim_fails_if_a_listener_uses_the_wildcard_or_a_specific_address() {
    let any: &[&str] = if has_ipv6() { &["0.0.0.0", "::"] } else { &["0.0.0.0"] };
    for wildcard in any {
        // `TcpListener::bind` sets SO_REUSEADDR; `bind_and_listen` also sets SO_REUSEPORT.
        for bind in [|addr| TcpListener::bind(addr), bind_and_listen as fn(SocketAddr) -> _] {
            let specific = bind(at("127.0.0.1", 0)).unwrap();
            assert!(in_use(claim_listener(at(wildcard, port(&specific)))), "{wildcard}");
            let general = bind(at(wildcard, 0)).unwrap();
            assert!(in_use(claim_listener(at("127.0.0.1", port(&general)))), "{wildcard}");
        }
    }
}

#[test]
fn exactly_one_of_several_concurrent_claims_succeeds() {
    const CLAIMS: usize = 4;
    // No other test uses this address, so that no one takes the port while it is free.
    const IP: &str = "127.0.0.77";
    for _ in 0..50 {
        let free = port(&claim_listener(at(IP, 0)).unwrap());
        let (start, end) = (Barrier::new(CLAIMS), Barrier::new(CLAIMS));
        let claim = || {
            start.wait();
            let claimed = claim_listener(at(IP, free));
            end.wait();
            claimed.is_ok()
        };
        let succeeded: usize = thread::scope(|scope| {
            let claims: Vec<_> = (0..CLAIMS).map(|_| scope.spawn(claim)).collect();
            claims.into_iter().map(|claim| usize::from(claim.join().unwrap())).sum()
        });
        assert_eq!(succeeded, 1);
    }
}

#[test]
fn a_restart_can_claim_its_port_while_old_connections_are_in_time_wait() {
    // Another program may take the port between two steps.
    assert!((0..100).any(|_| claim_in_time_wait().is_ok()), "other programs have every port");
}

fn claim_in_time_wait() -> io::Result<()> {
    let listener = claim_listener(addr("127.0.0.1:0")).unwrap();
    let own = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(own).unwrap();
    // The end that closes first enters TIME-WAIT.
    drop(accept(&[&listener]));
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    drop((client, listener));

    assert!(!is_vacant(own));
    let claimed = claim_listener(own)?;
    bind_and_listen(own).unwrap();
    assert!(in_use(claim_listener(own)));
    drop(claimed);
    Ok(())
}

#[test]
fn a_restart_can_claim_its_port_while_an_old_connection_is_open() {
    assert!((0..100).any(|_| claim_beside_a_connection().is_ok()), "other programs have every port");
}

fn claim_beside_a_connection() -> io::Result<()> {
    let listener = claim_listener(addr("127.0.0.1:0")).unwrap();
    let own = listener.local_addr().unwrap();
    let _client = TcpStream::connect(own).unwrap();
    let (_, _connection) = accept(&[&listener]);
    drop(listener);
    assert!(!is_vacant(own));
    claim_listener(own).map(drop)
}

#[test]
fn connections_are_distributed_among_the_listeners_of_a_port() {
    let claimed = claim_listener(addr("127.0.0.1:0")).unwrap();
    let own = claimed.local_addr().unwrap();
    let joined = [bind_and_listen(own).unwrap(), bind_and_listen(own).unwrap()];
    let all = [&claimed, &joined[0], &joined[1]];
    // With 200 connections, the probability that a listener gets none is negligible.
    let _clients: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(own).unwrap()).collect();
    let reached: HashSet<usize> = (0..200).map(|_| accept(&all).0).collect();
    assert_eq!(reached.len(), all.len());
}

#[test]
fn a_specific_listener_takes_precedence_over_the_wildcard() {
    let wildcard = claim_listener(addr(if has_ipv6() { "[::]:0" } else { "0.0.0.0:0" })).unwrap();
    let specific = bind_and_listen(at("127.0.0.1", port(&wildcard))).unwrap();
    for (ip, expected) in [("127.0.0.1", 1), ("127.0.0.2", 0)] {
        let _client = TcpStream::connect(at(ip, port(&wildcard))).unwrap();
        assert_eq!(accept(&[&wildcard, &specific]).0, expected, "{ip}");
    }
}

#[test]
fn a_dual_stack_wildcard_accepts_both_families() {
    if has_ipv6() {
        let listener = claim_listener(addr("[::]:0")).unwrap();
        for ip in ["127.0.0.1", "::1"] {
            let client = TcpStream::connect(at(ip, port(&listener))).unwrap();
            let (_, connection) = accept(&[&listener]);
            let (own, peer) = (connection.local_addr().unwrap().ip(), connection.peer_addr().unwrap());
            assert_eq!(own.to_canonical(), ip.parse::<IpAddr>().unwrap());
            let source = client.local_addr().unwrap();
            assert_eq!((peer.ip().to_canonical(), peer.port()), (source.ip(), source.port()));
        }
    }
}

#[test]
fn a_specific_ipv6_listener_does_not_use_the_ipv4_port() {
    if has_ipv6() {
        let listener = claim_listener(addr("[::1]:0")).unwrap();
        assert!(SockRef::from(&listener).only_v6().unwrap());
    }
}

#[test]
fn listeners_do_not_block() {
    for listener in [claim_listener(addr("127.0.0.1:0")).unwrap(), bind_and_listen(addr("127.0.0.1:0")).unwrap()] {
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

// A user timeout would also end a connection whose other end does not read for a while.
#[test]
fn a_visitor_who_stops_to_read_is_not_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    detect_lost_visitor(&client).unwrap();
    let socket = SockRef::from(&client);
    assert!(socket.keepalive().unwrap() && socket.tcp_user_timeout().unwrap().is_none());
}
