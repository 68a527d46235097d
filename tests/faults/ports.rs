//! Relay ports that another program uses.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use super::call::Call;
use super::clock::{Jumping, Shifted};
use super::inventory::{Inventory, Metrics, settings, wait_for_sum};
use crate::support::Controlled;
use crate::support::client::{Client, Login};

const PORTS: std::ops::RangeInclusive<u16> = 15_100..=15_131;

/// Returns a configuration with a relay address that no other program uses, and the address.
fn config() -> (String, Ipv4Addr) {
    let random = RandomState::new().hash_one(std::process::id()).to_be_bytes();
    let relay = Ipv4Addr::new(127, 1 + random[0] % 250, random[1], 1 + random[2] % 250);
    let replaced = |line: &str| match line.split_once(" = ") {
        Some(("addresses", _)) => format!("addresses = [\"{relay}\"]\n"),
        Some(("ports", _)) => format!("ports = \"{}-{}\"\n", PORTS.start(), PORTS.end()),
        _ => format!("{line}\n"),
    };
    (settings(&["127.0.0.1"]).lines().map(replaced).collect(), relay)
}

fn use_ports(relay: Ipv4Addr, ports: impl Iterator<Item = u16>) -> Vec<UdpSocket> {
    ports.map(|port| UdpSocket::bind((relay, port)).unwrap()).collect()
}

fn allocate(controlled: &Controlled, number: usize) -> Result<(Client, SocketAddr), u16> {
    let client = Client::new(controlled.server.udp_address());
    let (_, relayed) = client.allocate(&Login::mint(&format!("user-{number}"), 600))?;
    Ok((client, relayed))
}

#[test]
fn ports_of_another_program_are_skipped_and_the_others_all_serve_clients() {
    let (config, relay) = config();
    let controlled = Controlled::start_with(&config);
    let used = use_ports(relay, PORTS.step_by(2));
    let call = Call::start(&controlled.server);
    let clients: Vec<_> = (0..15).map(|number| allocate(&controlled, number).unwrap()).collect();
    assert!(clients.iter().all(|(_, relayed)| relayed.port() % 2 == 1), "{PORTS:?}");
    assert_eq!(allocate(&controlled, 15).map(drop), Err(508));
    let line = controlled.event("limit-reached");
    assert!(line.message().contains("other programs use some of them"), "{line:?}");
    assert_eq!(Metrics::of(&controlled).sum("turnserver_failed_relay_sockets_total{cause=\"port-in-use\"}"), 16);
    drop(used);
    call.end();
}

// A port in use is tried again after a minute. The clock of the server jumps over it.
#[test]
fn while_another_program_uses_every_port_clients_get_508_and_a_minute_after_its_end_they_are_served() {
    let (config, relay) = config();
    let Some(shifted) = Shifted::start(Jumping::Both, &config) else { return };
    let controlled = &shifted.controlled;
    let inventory = Inventory::of(controlled);
    let used = use_ports(relay, PORTS);
    for number in 0..8 {
        assert_eq!(allocate(controlled, number).map(drop), Err(508));
    }
    wait_for_sum(controlled, "turnserver_relay_ports{state=\"quarantined\"}", 32);
    controlled.event("limit-reached");
    drop(used);
    assert_eq!(allocate(controlled, 8).map(drop), Err(508));
    shifted.shift(62);
    inventory.assert_kept(controlled);
    Call::start(&controlled.server).end();
}
