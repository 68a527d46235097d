//! Tests of small ranges of relay ports with many workers, as in containers.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr};

use turnserver::stun::Method;
use turnserver::stun::attribute::{EvenPort, RequestedTransport, ReservationToken, XorRelayedAddress};

use crate::support::client::{Client, Login};
use crate::support::{Server, config_for};

/// Starts a server with 16 workers and these relay ports. No other program uses ports of its relay address.
fn server(ports: &str) -> Server {
    let random = RandomState::new().hash_one(std::process::id()).to_be_bytes();
    let relay = Ipv4Addr::new(127, 1 + random[0] % 250, random[1], 1 + random[2] % 250).to_string();
    let config = config_for(&["127.0.0.1"], &[&relay], "[limits]\nunverified-responses = 0\n");
    let replaced = |line: &str| match line.starts_with("ports = ") {
        true => format!("ports = {ports:?}\n"),
        false => format!("{line}\n"),
    };
    Server::start(&format!("workers = 16\n{}", config.lines().map(replaced).collect::<String>()))
}

fn login(number: usize) -> Login {
    Login::mint(&format!("user-{number}"), 600)
}

fn client(server: &Server) -> Client {
    Client::new(server.udp_address())
}

// The kernel spreads the clients over the workers. Each port of the process serves a client, whatever its worker.
#[test]
fn every_port_of_a_small_range_serves_a_client_of_any_worker() {
    let server = server("15000-15040");
    let mut clients: Vec<Client> = (0..41).map(|_| client(&server)).collect();
    let served: Vec<_> =
        clients.iter().enumerate().filter_map(|(number, client)| client.allocate(&login(number)).ok()).collect();
    assert_eq!(served.len(), 41);
    let ports: BTreeSet<u16> = served.iter().map(|(_, relayed)| relayed.port()).collect();
    assert_eq!(ports, (15_000..=15_040).collect());

    assert_eq!(client(&server).allocate(&login(41)).map(drop), Err(508));
    let logged = server.wait_for_log(|line| line.message().starts_with("allocation rejected"));
    assert!(logged.message().contains("no relay port of the server is free"), "{logged:?}");
    // Each port that a client gives back serves a client of any worker.
    for (number, (session, relayed)) in served.into_iter().enumerate() {
        clients[number].delete(&session);
        clients[number] = client(&server);
        assert_eq!(clients[number].allocate(&login(number)).unwrap().1, relayed);
    }
}

// RFC 8656 §7.2: the pairs of EVEN-PORT and the reserved ports are those of the process, too.
#[test]
fn every_pair_of_a_small_range_serves_two_clients_of_any_workers() {
    let server = server("15001-15041");
    let request = |client: &Client, number, token: Option<&ReservationToken>| {
        let session = client.challenge(&login(number));
        client.request(&session, Method::ALLOCATE, &|writer| {
            writer.push(&RequestedTransport::UDP);
            match token {
                Some(token) => writer.push(token),
                None => writer.push(&EvenPort { reserve_next: true }),
            }
        })
    };
    let relayed = |response: &crate::support::client::Response| -> SocketAddr {
        assert_eq!(response.error(), None);
        response.get::<XorRelayedAddress>().unwrap().0
    };
    let pairs: Vec<_> = (0..20)
        .map(|number| {
            let client = client(&server);
            let response = request(&client, number, None);
            let (relayed, token) = (relayed(&response), response.get::<ReservationToken>().unwrap());
            (client, relayed.port(), token)
        })
        .collect();
    let evens: BTreeSet<u16> = pairs.iter().map(|(_, port, _)| *port).collect();
    assert_eq!(evens, (15_002..15_041).step_by(2).collect());
    assert_eq!(request(&client(&server), 20, None).error(), Some(508));

    // The port that is in no pair is free.
    let last = client(&server);
    assert_eq!(last.allocate(&login(21)).unwrap().1.port(), 15_001);
    let claims: Vec<Client> = pairs
        .iter()
        .enumerate()
        .map(|(number, (_, even, token))| {
            let client = client(&server);
            assert_eq!(relayed(&request(&client, number, Some(token))).port(), even + 1);
            client
        })
        .collect();
    assert_eq!(claims.len(), 20);
}
