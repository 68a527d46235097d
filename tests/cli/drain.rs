//! Stopping with allocations: SIGUSR1, SIGTERM with its deadline, and immediate stops.

use std::net::{SocketAddr, UdpSocket};

use nix::sys::signal::Signal;
use turnserver::stun::Method;

use super::running::Running;
use crate::support::client::{Client, Login, Session, receive, socket};
use crate::support::{Finished, LogLine, TIMEOUT, config};

const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\"]\n";

/// Starts a server with this `drain-deadline` (TOML).
fn server(drain_deadline: &str) -> Running {
    let config = config(&["127.0.0.1"], LOOPBACK_PEERS);
    Running::start(&format!("drain-deadline = {drain_deadline:?}\n{config}"), &[])
}

/// A client with an allocation and a peer.
struct Call {
    client: Client,
    session: Session,
    relayed: SocketAddr,
    peer: UdpSocket,
}

impl Call {
    fn begin(client: Client) -> Self {
        let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        let peer = socket("127.0.0.1:0".parse().unwrap());
        client.permit(&session, peer.local_addr().unwrap());
        Self { client, session, relayed, peer }
    }

    fn over_udp(server: &Running) -> Self {
        Self::begin(Client::new(server.address()))
    }

    fn over_tcp(server: &Running) -> Self {
        Self::begin(Client::connect(server.listening("tcp")[0]))
    }

    /// Asserts that data flows both ways and that the allocation can be refreshed.
    fn assert_works(&self) {
        self.client.send_to_peer(self.peer.local_addr().unwrap(), b"there");
        assert_eq!(receive(&self.peer), (b"there".to_vec(), self.relayed));
        self.peer.send_to(b"back", self.relayed).unwrap();
        self.client.receive();
        self.client.permit(&self.session, self.peer.local_addr().unwrap());
        assert_eq!(self.client.request(&self.session, Method::REFRESH, &|_| {}).error(), None);
    }

    fn end(&self) {
        self.client.delete(&self.session);
    }
}

/// Sends a signal and waits until its effect is logged.
fn signal(server: &Running, signal: Signal) {
    server.process.signal(signal);
    server.wait_for_line(|line| LogLine::parse(line).message().starts_with(&format!("{signal}: draining")));
}

fn assert_rejects_new_clients(server: &Running) {
    let login = Login::mint("bob", 600);
    assert_eq!(Client::new(server.address()).allocate(&login).map(drop), Err(508));
    assert_eq!(Client::connect(server.listening("tcp")[0]).allocate(&login).map(drop), Err(508));
    // Binding still works without an allocation.
    let client = Client::new(server.address());
    assert_eq!(client.binding(), client.address());
}

/// Waits for a successful stop and returns the reasons for which allocations ended.
fn reasons(server: Running) -> Vec<String> {
    let ended: Finished = server.process.finish(TIMEOUT);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<LogLine> = ended.stderr.iter().map(|line| LogLine::parse(line)).collect();
    assert_eq!(lines.last().map(LogLine::message), Some("stopped"), "{ended:?}");
    let ends = lines.iter().filter(|line| line.message() == "allocation ended");
    ends.map(|line| line.field("reason").unwrap()).collect()
}

// RFC 8489 §10.
#[test]
fn a_draining_server_redirects_new_clients_to_its_alternate() {
    let alternate = "[alternate]\nservers = [\"203.0.113.5:3478\"]\n";
    let server = Running::start(&config(&["127.0.0.1"], &format!("{LOOPBACK_PEERS}{alternate}")), &[]);
    let call = Call::over_udp(&server);
    signal(&server, Signal::SIGUSR1);
    let login = Login::mint("bob", 600);
    assert_eq!(Client::new(server.address()).allocate(&login).map(drop), Err(300));
    server.wait_for_line(|line| LogLine::parse(line).message() == "allocation redirected");
    call.assert_works();
    call.end();
    assert_eq!(reasons(server), ["deleted by the client"]);
}

#[test]
fn sigusr1_rejects_new_allocations_and_stops_the_server_after_the_last_one() {
    let server = server("0s");
    let (first, last) = (Call::over_udp(&server), Call::over_tcp(&server));
    signal(&server, Signal::SIGUSR1);
    assert_rejects_new_clients(&server);
    first.assert_works();
    first.end();
    last.assert_works();
    // A second SIGUSR1 changes nothing.
    server.process.signal(Signal::SIGUSR1);
    assert_rejects_new_clients(&server);
    last.assert_works();
    last.end();
    assert_eq!(last.client.frame(), None, "the connection is closed after the last response");
    assert_eq!(reasons(server), ["deleted by the client", "deleted by the client"]);
}

#[test]
fn sigterm_waits_for_the_last_allocation_before_the_deadline() {
    let server = server("1h");
    let call = Call::over_udp(&server);
    signal(&server, Signal::SIGTERM);
    assert_rejects_new_clients(&server);
    call.assert_works();
    call.end();
    assert_eq!(reasons(server), ["deleted by the client"]);
}

#[test]
fn sigterm_ends_remaining_allocations_at_the_deadline() {
    let server = server("1s");
    let call = Call::over_tcp(&server);
    signal(&server, Signal::SIGTERM);
    call.assert_works();
    server.wait_for_line(|line| LogLine::parse(line).message() == "drain deadline reached");
    assert_eq!(call.client.frame(), None);
    assert_eq!(reasons(server), ["the server stopped"]);
}

#[test]
fn sigterm_during_a_sigusr1_drain_sets_the_deadline() {
    let server = server("1s");
    let _call = Call::over_udp(&server);
    signal(&server, Signal::SIGUSR1);
    signal(&server, Signal::SIGTERM);
    server.wait_for_line(|line| LogLine::parse(line).message() == "drain deadline reached");
    assert_eq!(reasons(server), ["the server stopped"]);
}

#[test]
fn a_second_sigterm_or_a_sigint_ends_a_drain_at_once() {
    for (first, second) in
        [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGTERM, Signal::SIGINT), (Signal::SIGUSR1, Signal::SIGINT)]
    {
        let server = server("1h");
        let _call = Call::over_udp(&server);
        signal(&server, first);
        server.process.signal(second);
        assert_eq!(reasons(server), ["the server stopped"], "{first} {second}");
    }
}

#[test]
fn sigint_does_not_drain() {
    let server = server("1h");
    let _call = Call::over_udp(&server);
    server.process.interrupt();
    assert_eq!(reasons(server), ["the server stopped"]);
}

#[test]
fn without_an_allocation_a_drain_ends_at_once_and_closes_the_connections() {
    for signal in [Signal::SIGTERM, Signal::SIGUSR1] {
        let server = server("1h");
        let client = Client::connect(server.listening("tcp")[0]);
        client.binding();
        server.process.signal(signal);
        assert_eq!(client.frame(), None);
        assert_eq!(reasons(server), [""; 0], "{signal}");
    }
}
