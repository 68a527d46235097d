//! Listeners: families, wildcards, port 0.

use std::net::SocketAddr;

use turnserver::stun::attribute::XorPeerAddress;
use turnserver::stun::{Class, Method, TransactionId};

use super::running::UNLIMITED_RESPONSES;
use crate::support::client::{Client, Login, message, receive, socket};
use crate::support::{Server, config, config_for, has_ipv6};

#[test]
fn a_binding_response_has_the_clients_address_over_ipv4_and_ipv6() {
    if !has_ipv6() {
        return;
    }
    let server = Server::start(&config(&["127.0.0.1", "::1"], ""));
    for ip in ["127.0.0.1", "::1"] {
        let client = Client::new(server.udp_address_on(ip.parse().unwrap()));
        assert_eq!(client.binding(), client.address());
    }
}

#[test]
fn two_listeners_of_one_family_both_serve() {
    let server = Server::start(&config_for(&["127.0.0.1", "127.0.0.2"], &["127.0.0.1"], ""));
    for ip in ["127.0.0.1", "127.0.0.2"] {
        let client = Client::new(server.udp_address_on(ip.parse().unwrap()));
        let (_, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        assert_eq!(relayed.ip().to_string(), "127.0.0.1");
    }
}

#[test]
fn udp_and_tcp_can_share_a_port_and_either_can_be_absent() {
    // Another program may have a port over one of the transports.
    assert!((0..100).any(|_| share_a_port().is_some()), "other programs have every port");
}

/// Starts servers on one port over TCP, over UDP and over both. Returns `None` if another program has the port.
fn share_a_port() -> Option<()> {
    let config = config_for(&["127.0.0.5"], &["127.0.0.1"], "");
    let (_, lists) = config.split_once("udp = ").unwrap();
    let (lists, _) = lists.split_once("\n[relay]").unwrap();
    let first = Server::start(&config.replace(lists, "[]\ntcp = [\"127.0.0.5:0\"]"));
    let address = first.tcp_address();
    // The same port over UDP only.
    let second = Server::start_unless_in_use(&config.replace(lists, &format!("[\"{address}\"]\ntcp = []")))?;
    assert_eq!(second.udp_address(), address);
    let client = Client::new(address);
    assert_eq!(client.binding(), client.address());
    assert_eq!(first.terminate().code, Some(0));
    drop(second);
    // The port over UDP and TCP, right after the first server has stopped.
    let both = config.replace(lists, &format!("[\"{address}\"]\ntcp = [\"{address}\"]"));
    let both = Server::start_unless_in_use(&both)?;
    assert_eq!((both.udp_address(), both.tcp_address()), (address, address));
    Some(())
}

/// Sends a Binding request from an unconnected socket and returns the source of the response.
fn response_source(from: &str, to: SocketAddr) -> SocketAddr {
    let socket = socket(from.parse().unwrap());
    socket.send_to(&message(Class::Request, Method::BINDING, TransactionId::new([7; 12]), &|_| {}), to).unwrap();
    receive(&socket).1
}

#[test]
fn a_wildcard_listener_responds_from_the_address_that_the_client_sent_to() {
    if !has_ipv6() {
        return;
    }
    for (listen, own) in [("0.0.0.0", &["127.0.0.1", "127.0.0.2"][..]), ("::", &["127.0.0.1", "127.0.0.2", "::1"])] {
        let server = Server::start(&config_for(&[listen], &["127.0.0.1"], ""));
        for ip in own {
            let to = SocketAddr::new(ip.parse().unwrap(), server.udp_address().port());
            let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            assert_eq!(response_source(from, to), to, "on {listen}");
        }
    }
}

#[test]
fn a_wildcard_listener_separates_allocations_by_server_address() {
    let server = Server::start(&config_for(&["0.0.0.0"], &["127.0.0.1"], ""));
    let socket = socket("127.0.0.1:0".parse().unwrap());
    // Both requests have the same source and the same transaction ID.
    let [first, second] = ["127.0.0.1", "127.0.0.2"].map(|ip| {
        let to = SocketAddr::new(ip.parse().unwrap(), server.udp_address().port());
        Client::on(socket.try_clone().unwrap(), to).allocate(&Login::mint("alice", 600)).unwrap().1
    });
    assert_ne!(first, second);
}

#[test]
fn all_workers_share_the_port_chosen_for_port_0() {
    const WORKERS: usize = 4;
    // The number of failed authentications that a worker logs individually per minute. The number of logged failures
    // shows how many workers had clients.
    const FAILURES_LOGGED: usize = 5;
    let server = Server::start(&format!("workers = {WORKERS}\n{}", config(&["127.0.0.1"], UNLIMITED_RESPONSES)));
    assert_ne!(server.udp_address().port(), 0);
    let ready = server.wait_for_log(|line| line.message() == "ready");
    assert_eq!(ready.field("workers"), Some(WORKERS.to_string()));

    let wrong = Login::new(&Login::mint("alice", 600).username, "wrong");
    // The kernel spreads clients over the workers. With this many, every worker gets one.
    for _ in 0..100 {
        let client = Client::new(server.udp_address());
        assert_eq!(client.binding(), client.address());
        for _ in 0..FAILURES_LOGGED {
            assert_eq!(client.allocate(&wrong).map(drop), Err(401));
        }
    }
    let logs = server.terminate().logs;
    let failures = logs.iter().filter(|line| line.message() == "authentication failed").count();
    assert_eq!(failures, WORKERS * FAILURES_LOGGED);
}

// The DNS resolver of this machine, for example, is at 127.0.0.53.
#[test]
fn an_allowed_range_does_not_open_the_services_of_this_machine() {
    for (allow, expected) in [("127.0.0.0/8", Some(403)), ("127.0.0.3", None)] {
        let policy = format!("[peers]\nallow = [{allow:?}]\n");
        let server = Server::start(&config_for(&["127.0.0.1"], &["127.0.0.2"], &policy));
        let warned = server.logs().iter().any(|line| line.message().contains("127.0.0.1 (127.0.0.0/8)"));
        assert_eq!(warned, expected.is_some(), "{:?}", server.logs());
        let client = Client::new(server.udp_address());
        let (session, _) = client.allocate(&Login::mint("alice", 600)).unwrap();
        let service = socket("127.0.0.3:0".parse().unwrap()).local_addr().unwrap();
        let response =
            client.request(&session, Method::CREATE_PERMISSION, &|writer| writer.push(&XorPeerAddress(service)));
        assert_eq!(response.error(), expected, "{allow}");
    }
}
