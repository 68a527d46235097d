//! A link that goes, whose MTU shrinks, and whose address goes.

use super::call::Call;
use super::descriptors::{can_limit, limit, open_files};
use super::inventory::{Inventory, settings};
use crate::support::client::{Client, Login, socket};
use crate::support::network::{Host, in_own_network, ip};
use crate::support::{Controlled, LogLine};

/// Runs a test with a server on one end of a link and a call of a client and a peer on the other end.
fn with_link(addresses: &'static [&'static str], test: impl FnOnce(&Host, &Controlled, &dyn Fn(&str) -> Call) + Send) {
    in_own_network(&["link set lo up"], || {
        let host = Host::new(1);
        let controlled = Controlled::start_with(&settings(addresses));
        let start = |server: &str| {
            let other = server.strip_suffix('1').unwrap().to_owned() + "2";
            let [client, peer] =
                host.run(move || [(); 2].map(|()| socket((other.parse::<std::net::IpAddr>().unwrap(), 0).into())));
            let listener = controlled.server.udp_address_on(server.parse().unwrap());
            Call::between(Client::on(client, listener), peer)
        };
        test(&host, &controlled, &start);
    });
}

fn is_about(line: &LogLine, event: &str, address: &str) -> bool {
    line.field("event").as_deref() == Some(event) && line.field("address").as_deref() == Some(address)
}

fn wait_for_relay(controlled: &Controlled, address: &str, count: usize) {
    let is = |line: &&LogLine| is_about(line, "relay-address", address);
    controlled.server.wait_for_logs(|lines| lines.iter().filter(is).count() >= count);
}

#[test]
fn a_call_goes_on_after_its_link_was_down() {
    with_link(&["10.0.1.1"], |host, controlled, start| {
        let inventory = Inventory::of(controlled);
        let call = start("10.0.1.1");
        for (round, here) in [true, false].into_iter().enumerate() {
            let set = |state: &str| {
                if here { ip(&format!("link set n1 {state}")) } else { host.ip(&format!("link set n1 {state}")) }
            };
            set("down");
            if here {
                controlled.server.wait_for_log(|line| is_about(line, "relay-address-unusable", "10.0.1.1"));
            }
            // The peer may have no route meanwhile.
            (0..20).for_each(|_| drop(call.peer.send_to(&[7; 100], call.relayed)));
            set("up");
            host.wait_for_link(1);
            if here {
                wait_for_relay(controlled, "10.0.1.1", 2 + round);
            }
            call.settle();
            call.refresh();
        }
        call.end();
        inventory.assert_kept(controlled);
    });
}

// IPv6 needs an MTU of 1280 bytes (RFC 8200 §5): below, the kernel removes the IPv6 addresses of the interface.
#[test]
fn a_small_mtu_ends_what_uses_ipv6_and_ipv4_goes_on_in_fragments() {
    with_link(&["10.0.1.1", "fd00:1::1"], |host, controlled, start| {
        let inventory = Inventory::of(controlled);
        let (v4, mut v6) = (start("10.0.1.1"), start("fd00:1::1"));
        let large = vec![7; 1_300];
        v4.exchange_data(&large);
        v6.exchange_data(&large);
        ip("link set n1 mtu 600");
        host.ip("link set n1 mtu 600");
        let of_v6 = |line: &LogLine| line.field("relay").is_some_and(|relay| relay.starts_with('['));
        controlled
            .server
            .wait_for_log(|line| of_v6(line) && line.field("reason").as_deref() == Some("the relay address has gone"));
        v4.exchange_data(&large);
        // The kernel cannot split a segmented message whose segments exceed the MTU.
        for _ in 0..4 {
            (0..32).for_each(|_| v4.to_peer(&large));
            for _ in 0..32 {
                assert_eq!(crate::support::client::receive(&v4.peer).0, large);
            }
        }
        ip("link set n1 mtu 1500");
        host.ip("link set n1 mtu 1500");
        v4.exchange_data(&large);
        v4.end();
        // An administrator adds the addresses again.
        ip("addr add fd00:1::1/64 dev n1 nodad");
        host.ip("addr add fd00:1::2/64 dev n1 nodad");
        wait_for_relay(controlled, "fd00:1::1", 2);
        v6.start_again();
        v6.end();
        inventory.assert_kept(controlled);
    });
}

#[test]
fn after_its_address_was_removed_and_added_a_client_allocates_again_and_its_call_goes_on() {
    with_link(&["10.0.1.1"], |_, controlled, start| {
        let inventory = Inventory::of(controlled);
        let mut call = start("10.0.1.1");
        ip("addr del 10.0.1.1/24 dev n1");
        let ended = controlled.server.wait_for_log(|line| {
            line.field("event").as_deref() == Some("allocation-ended")
                && line.field("reason").as_deref() == Some("the relay address has gone")
        });
        assert_eq!(ended.field("relay"), Some(call.relayed.to_string()));
        controlled.server.wait_for_log(|line| is_about(line, "relay-address-gone", "10.0.1.1"));
        ip("addr add 10.0.1.1/24 dev n1");
        wait_for_relay(controlled, "10.0.1.1", 2);
        assert_eq!(call.refreshed(), Err(437));
        call.start_again();
        call.end();
        assert!(Client::connect(controlled.server.tcp_address()).allocate(&Login::mint("tcp", 600)).is_ok());
        inventory.assert_kept(controlled);
    });
}

// The server reads its addresses again as soon as it can.
#[test]
fn an_address_that_goes_while_there_is_no_descriptor_is_noticed_afterwards() {
    if !can_limit() {
        return;
    }
    with_link(&["10.0.1.1"], |_, controlled, start| {
        let inventory = Inventory::of(controlled);
        let mut call = start("10.0.1.1");
        let process = controlled.server.id();
        let most = open_files(process);
        limit(process, &format!("--nofile=3:{most}"));
        ip("addr del 10.0.1.1/24 dev n1");
        controlled.event("addresses-unusable");
        limit(process, &format!("--nofile={most}:{most}"));
        controlled.event("relay-address-gone");
        ip("addr add 10.0.1.1/24 dev n1");
        wait_for_relay(controlled, "10.0.1.1", 2);
        call.start_again();
        call.end();
        inventory.assert_kept(controlled);
    });
}
