use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;
use crate::test_memory_table::documented;

fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], port))
}

fn leg(port: u16) -> Leg {
    Leg { proxy: address(7, port), local: address(1, 3478) }
}

fn client(port: u16) -> FiveTuple {
    let (client, server) = (SocketAddr::from(([198, 51, 100, 7], port)), SocketAddr::from(([203, 0, 113, 1], 443)));
    FiveTuple { client, server, transport: Transport::Udp }
}

fn at(seconds: u64) -> Instant {
    Instant::from_elapsed(Duration::from_secs(seconds))
}

fn none(_: &FiveTuple) -> bool {
    false
}

impl Proxied {
    /// Checks that the tables and the queue agree.
    fn check(&self) {
        let ordered: HashSet<&Leg> = self.order.iter().collect();
        assert_eq!((ordered.len(), self.order.len()), (self.clients.len(), self.clients.len()));
        assert!(ordered.iter().all(|leg| self.clients.contains_key(leg)));
        assert!(self.displaced.len() <= MAX_DISPLACED);
        assert!(self.displaced.keys().all(|tuple| !self.legs.contains_key(tuple)));
        for (tuple, leg) in &self.legs {
            assert_eq!(self.clients.get(leg).map(|client| client.tuple), Some(*tuple));
        }
    }
}

#[test]
fn idle_clients_without_an_allocation_are_forgotten_and_the_others_are_not() {
    let mut proxied = Proxied::default();
    for port in 1..=3 {
        proxied.assign(leg(port), client(port), at(0), &none).unwrap();
    }
    let has_allocation = |tuple: &FiveTuple| tuple.client.port() == 1;
    assert_eq!(proxied.tick(at(300), &has_allocation, |_| true), []);
    assert_eq!(proxied.client(&leg(2), at(300)), Some(client(2)));
    assert_eq!(proxied.tick(at(301), &has_allocation, |_| true), []);
    assert_eq!([1, 2, 3].map(|port| proxied.leg_to(&client(port)).is_some()), [true, true, false]);
    assert_eq!(proxied.client(&leg(3), at(301)), None);
    proxied.check();
}

#[test]
fn clients_of_a_proxy_that_is_not_listed_any_more_are_forgotten_and_their_allocations_are_returned() {
    let mut proxied = Proxied::default();
    for port in 1..=2 {
        proxied.assign(leg(port), client(port), at(0), &none).unwrap();
    }
    let ended = proxied.tick(at(1), &|tuple| tuple.client.port() == 1, |_| false);
    assert_eq!(ended, [client(1)]);
    assert!(proxied.is_empty());
    proxied.check();
}

#[test]
fn a_full_table_forgets_who_has_been_idle_for_the_longest_time_and_none_with_an_allocation() {
    let mut proxied = Proxied::default();
    let all = u16::try_from(MAX_CLIENTS).unwrap();
    for port in 0..all {
        proxied.assign(leg(port), client(port), at(u64::from(port == 5)), &none).unwrap();
    }
    // The first sixteen are examined. Of these, two have no allocation, and one of the two has sent later.
    let has_allocation = |tuple: &FiveTuple| !matches!(tuple.client.port(), 5 | 9 | 28_672..);
    proxied.assign(leg(all), client(all), at(2), &has_allocation).unwrap();
    assert_eq!([5, 9, all].map(|port| proxied.leg_to(&client(port)).is_some()), [true, false, true]);
    assert_eq!(proxied.clients.len(), MAX_CLIENTS);
    let full = |tuple: &FiveTuple| tuple.client.port() <= all;
    let refused = proxied.assign(leg(all + 1), client(all + 1), at(2), &full);
    assert_eq!(refused, Err(DropReason::TooManyProxied));
    // Whoever is there already is served.
    assert_eq!(proxied.assign(leg(all), client(all), at(3), &full), Ok(()));
    proxied.check();
}

#[test]
fn clients_behind_proxies_take_what_is_documented() {
    let mut proxied = Proxied::default();
    for port in 0..u16::try_from(MAX_CLIENTS).unwrap() {
        proxied.assign(leg(port), client(port), at(0), &none).unwrap();
    }
    let bytes = proxied.memory() / MAX_CLIENTS;
    assert_documented("A client behind a proxy, over UDP", bytes);
}

fn assert_documented(topic: &str, bytes: usize) {
    println!("{topic}: {bytes} bytes");
    let documented = documented(topic);
    assert!(bytes <= documented && documented < 2 * bytes, "{topic}: {bytes}");
}

#[test]
fn allocations_that_wait_for_a_header_take_what_is_documented() {
    let mut proxied = Proxied::default();
    for port in 0..=u16::try_from(MAX_DISPLACED).unwrap() {
        proxied.assign(leg(1), client(port), at(0), &|tuple| tuple.client.port() < port).unwrap();
    }
    assert_eq!(proxied.displaced.len(), MAX_DISPLACED);
    assert_documented(
        "A client behind a proxy, over UDP, whose allocation waits for a header",
        proxied.memory() / MAX_DISPLACED,
    );
}

#[test]
fn a_client_and_its_leg_are_found_by_each_other() {
    let mut proxied = Proxied::default();
    proxied.assign(leg(1), client(1), at(0), &none).unwrap();
    // The proxy sends from another address.
    proxied.assign(leg(2), client(1), at(0), &none).unwrap();
    assert_eq!((proxied.client(&leg(1), at(0)), proxied.client(&leg(2), at(0))), (None, Some(client(1))));
    assert_eq!(proxied.leg_to(&client(1)), Some(leg(2)));
    // The first address is now that of another client.
    proxied.assign(leg(1), client(2), at(0), &none).unwrap();
    assert_eq!(proxied.leg_to(&client(2)), Some(leg(1)));
    // An allocation that was not made through a proxy keeps its 5-tuple.
    assert_eq!(proxied.assign(leg(1), client(3), at(0), &|_| true), Err(DropReason::ProxyConflict));
    proxied.check();
}

#[test]
fn an_allocation_whose_leg_is_given_to_another_client_waits_for_its_next_header() {
    let mut proxied = Proxied::default();
    proxied.assign(leg(1), client(1), at(0), &none).unwrap();
    let has_allocation = |tuple: &FiveTuple| *tuple == client(1);
    proxied.assign(leg(1), client(2), at(1), &has_allocation).unwrap();
    assert_eq!((proxied.leg_to(&client(1)), proxied.last_leg_to(&client(1))), (None, Some(leg(1))));
    assert_eq!(proxied.tick(at(2), &has_allocation, |_| true), []);
    proxied.check();
    assert_eq!(proxied.assign(leg(2), client(1), at(3), &has_allocation), Ok(()));
    assert_eq!((proxied.leg_to(&client(1)), proxied.leg_to(&client(2))), (Some(leg(2)), Some(leg(1))));
    assert!(proxied.displaced.is_empty());
    // Without an allocation, or without its proxy in the configuration, it does not wait.
    proxied.assign(leg(2), client(3), at(4), &has_allocation).unwrap();
    assert_eq!(proxied.tick(at(5), &has_allocation, |_| false), [client(1)]);
    assert!(proxied.is_empty());
    proxied.assign(leg(1), client(1), at(6), &none).unwrap();
    proxied.assign(leg(1), client(2), at(6), &has_allocation).unwrap();
    assert_eq!(proxied.tick(at(7), &none, |_| true), []);
    assert_eq!(proxied.last_leg_to(&client(1)), None);
    proxied.check();
}

#[test]
fn the_number_of_allocations_that_wait_for_a_header_is_limited() {
    let mut proxied = Proxied::default();
    let most = u16::try_from(MAX_DISPLACED).unwrap();
    for port in 0..most {
        proxied.assign(leg(1), client(port), at(0), &|tuple| tuple.client.port() < port).unwrap();
    }
    let everybody_before = |tuple: &FiveTuple| tuple.client.port() <= most;
    proxied.assign(leg(1), client(most), at(0), &|tuple| tuple.client.port() < most).unwrap();
    assert_eq!(proxied.displaced.len(), MAX_DISPLACED);
    let refused = proxied.assign(leg(1), client(most + 1), at(0), &everybody_before);
    assert_eq!(refused, Err(DropReason::TooManyProxied));
    assert_eq!(proxied.client(&leg(1), at(0)), Some(client(most)));
    proxied.check();
}

proptest! {
    #[test]
    fn the_tables_agree_after_any_operations(
        operations in prop::collection::vec((0..4_u8, 0..6_u16, 0..6_u16), 0..64),
    ) {
        let mut proxied = Proxied::default();
        let with_allocation: BTreeSet<u16> = [1, 4].into();
        let has_allocation = |tuple: &FiveTuple| with_allocation.contains(&tuple.client.port());
        for (second, (operation, one, two)) in operations.into_iter().enumerate() {
            let now = at(100 * second as u64);
            match operation {
                0 => {
                    let _ = proxied.assign(leg(one), client(two), now, &|tuple| tuple.client.port() != two && has_allocation(tuple));
                    prop_assert_eq!(proxied.client(&leg(one), now), Some(client(two)));
                }
                1 => drop(proxied.client(&leg(one), now)),
                2 => drop(proxied.tick(now, &has_allocation, |leg| leg.proxy.port() != two)),
                _ => {
                    let before = proxied.clients.len();
                    let forgot = proxied.make_room(now, &has_allocation);
                    prop_assert_eq!(before - usize::from(forgot), proxied.clients.len());
                }
            }
            proxied.check();
        }
    }
}
