//! Changes of the path to a peer or a client while the kernel relays.

use std::process::Command;

use serde_json::Value;

use crate::call::Call;
use crate::hosts::{FAR, Host, link_address, set, text};
use crate::interfaces::{prepare, run, wait_until};
use crate::network::ip;
use crate::world::{CLIENTS, PEERS, assert_silent, config_on, in_host, socket_of, waiting, with_network, with_server};

/// Returns the number of packets that an interface of a host has received.
fn received_by(host: &Host, interface: &'static str) -> u64 {
    let shown = in_host(host, move || run("ip", &format!("-s -j link show {interface}")));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

/// Sends data to the peer until it arrives.
fn send_until_it_arrives(call: &Call<'_>) {
    wait_until(|| {
        call.send_to_peer(b"does it arrive?");
        // It may go through user space.
        call.client.binding();
        if call.arrived_at_peer().0 > 0 { Ok(()) } else { Err("nothing arrives at the peer".to_owned()) }
    });
}

/// Receives what is still on its way, of which user space may have some.
fn receive_the_rest(call: &Call<'_>) {
    wait_until(|| {
        let counted = call.counted();
        let (to_peer, _) = call.arrived_at_peer();
        let to_client = std::iter::from_fn(|| waiting(call.client.socket())).count();
        if (to_peer, to_client) == (0, 0) && call.counted() == counted {
            Ok(())
        } else {
            Err("data still arrives".to_owned())
        }
    });
}

#[test]
fn a_peer_that_announces_another_link_address_gets_its_data_there() {
    for versions in [[0, 0], [1, 1]] {
        with_server("", |world| {
            let call = Call::start_over(world, versions);
            call.exchange_in_kernel();
            world.network.peer.run(|| {
                set("ipv4/conf/n2/arp_notify", "1");
                set("ipv6/conf/n2/ndisc_notify", "1");
                ip("link set n2 address 02:00:00:00:02:09");
            });
            for peer in PEERS {
                wait_until(|| {
                    let neighbour = run("ip", &format!("neigh show {peer} dev n2"));
                    if neighbour.is_empty() || neighbour.contains("02:09") { Ok(()) } else { Err(neighbour) }
                });
            }
            send_until_it_arrives(&call);
            call.wait_for_kernel();
            call.exchange_in_kernel();
            call.end();
        });
    }
}

#[test]
fn another_gateway_of_the_client_gets_its_data() {
    with_server("", |world| {
        let client = &world.network.client;
        let other = text(link_address(1, 3));
        let macvlan = other.clone();
        client.run(move || {
            ip(&format!("addr add {FAR}/32 dev lo"));
            ip(&format!("link add m1 link n1 address {macvlan} type macvlan mode bridge"));
            ip("link set m1 up");
            set("ipv4/conf/m1/rp_filter", "0");
        });
        ip(&format!("neigh replace 10.0.1.3 lladdr {other} dev n1 nud permanent"));
        ip(&format!("route add {FAR} via {}", CLIENTS[0]));
        let call = Call::start_with(world, socket_of(client, FAR), socket_of(&world.network.peer, PEERS[0]));
        // Both gateways get a few packets of other protocols.
        let before = received_by(client, "m1");
        call.exchange_in_kernel();
        assert!(received_by(client, "m1") < before + 8);
        ip(&format!("route replace {FAR} via 10.0.1.3"));
        let before = received_by(client, "m1");
        wait_until(|| {
            (0..8).for_each(|_| call.exchange(&[b"which way?"]));
            let received = received_by(client, "m1");
            if received >= before + 8 { Ok(()) } else { Err("the former gateway gets the data".to_owned()) }
        });
        call.wait_for_kernel();
        let before = received_by(client, "m1");
        call.exchange_in_kernel();
        assert!(received_by(client, "m1") >= before + 8);
        call.end();
    });
}

#[test]
fn a_route_that_moves_to_another_interface_takes_the_data_along() {
    with_network(|network| {
        let peer = &network.peer;
        for number in [3, 4] {
            peer.connect(number);
            prepare(peer, number);
        }
        peer.ip(&format!("addr add {FAR}/32 dev lo"));
        // The program is not on n4.
        let world = network.start(&config_on(&["n1", "n2", "n3"], ""));
        ip(&format!("route add {FAR} via 10.0.2.2"));
        let call = Call::start_with(&world, socket_of(&network.client, CLIENTS[0]), socket_of(peer, FAR));
        call.exchange_in_kernel();
        let change_to = |interface: &'static str, gateway: &str| {
            let before = received_by(peer, interface);
            ip(&format!("route replace {FAR} via {gateway}"));
            // The data arrives on each way.
            wait_until(|| {
                (0..8).for_each(|_| call.exchange(&[b"which way?"]));
                if received_by(peer, interface) >= before + 8 { Ok(()) } else { Err(interface.to_owned()) }
            });
        };
        for (interface, gateway) in [("n3", "10.0.3.2"), ("n2", "10.0.2.2"), ("n3", "10.0.3.2")] {
            change_to(interface, gateway);
            let before = received_by(peer, interface);
            call.exchange_in_kernel();
            assert!(received_by(peer, interface) >= before + 8, "{interface}");
        }
        change_to("n4", "10.0.4.2");
        call.wait_for_user_space("the program is not attached to the interface");
        let before = (world.in_kernel(), received_by(peer, "n4"));
        (0..5).for_each(|_| call.to_peer(&[1; 500]));
        assert_eq!(world.in_kernel(), before.0);
        assert!(received_by(peer, "n4") >= before.1 + 5);
        call.check();
        change_to("n2", "10.0.2.2");
        call.exchange_in_kernel();
        call.end();
    });
}

#[test]
fn an_interface_that_goes_down_stops_the_data_and_one_that_comes_up_brings_it_back() {
    with_server("", |world| {
        let call = Call::start(world);
        call.exchange_in_kernel();
        for (interface, of_peer) in [("n2", true), ("n1", false)] {
            let in_kernel = world.in_kernel();
            ip(&format!("link set {interface} down"));
            if of_peer {
                call.wait_for_user_space("");
                // The kernel has no route, so user space cannot send it.
                call.try_to_peer(&[1; 100]);
                call.client.binding();
                assert_silent(&call.peer);
            }
            assert_eq!(world.in_kernel(), in_kernel);
            ip(&format!("link set {interface} up"));
            wait_until(|| {
                let shown = run("ip", &format!("-o link show {interface}"));
                if shown.contains("state UP") { Ok(()) } else { Err(shown) }
            });
            wait_until(|| {
                call.try_to_peer(b"does it arrive?");
                call.client.binding();
                if call.arrived_at_peer().0 > 0 { Ok(()) } else { Err("nothing arrives".to_owned()) }
            });
            wait_until(|| {
                call.peer.send_to(b"and back?", call.relay).unwrap();
                world.network.fence();
                if waiting(call.client.socket()).is_some() { Ok(()) } else { Err("nothing arrives".to_owned()) }
            });
            call.wait_for_kernel();
            receive_the_rest(&call);
            let before = world.in_kernel();
            call.exchange(&[&[2; 300], &[3; 1000]]);
            assert_eq!(world.in_kernel().since(before).packets, [2, 2]);
        }
        let counted = call.counted();
        let line = {
            call.client.delete(&call.session);
            call.logged_end()
        };
        assert_eq!(crate::call::logged_bytes(&line), counted.bytes);
    });
}

#[test]
fn data_that_is_longer_than_a_smaller_mtu_goes_through_user_space() {
    with_server("", |world| {
        let call = Call::start(world);
        call.exchange(&[&[1; 1_400]]);
        ip("link set n2 mtu 1280");
        wait_until(|| {
            let before = world.outcome("too-long");
            call.to_peer(&[2; 1_400]);
            if world.outcome("too-long") > before { Ok(()) } else { Err("in one packet".to_owned()) }
        });
        let before = world.in_kernel();
        call.to_peer(&[3; 1_253]);
        call.to_peer(&[4; 1_300]);
        assert_eq!(world.in_kernel(), before);
        call.to_peer(&[5; 1_252]);
        call.to_client(&[6; 1_000]);
        assert_eq!(world.in_kernel().since(before).packets, [1, 1]);
        ip("link set n2 mtu 1500");
        wait_until(|| {
            let before = world.in_kernel();
            call.to_peer(&[7; 1_400]);
            if world.in_kernel().since(before).packets == [1, 0] { Ok(()) } else { Err("in user space".to_owned()) }
        });
        call.exchange_in_kernel();
        call.end();
    });
}

// Client and peer are behind one bond, as everything is on a machine with two network cards.
#[test]
fn data_goes_through_the_members_of_a_bond() {
    with_network(|network| {
        let made =
            Command::new("ip").args("link add bond0 type bond mode active-backup miimon 100".split(' ')).status();
        if !made.unwrap().success() {
            println!("skipped: this kernel has no bonds");
            return;
        }
        for command in [
            "link set n1 down".to_owned(),
            "addr flush dev n1".to_owned(),
            "link set n1 master bond0".to_owned(),
            format!("link set bond0 address {}", text(link_address(1, 1))),
            "link set bond0 up".to_owned(),
            "addr add 10.0.1.1/24 dev bond0".to_owned(),
            "addr add fd00:1::1/64 dev bond0 nodad".to_owned(),
        ] {
            ip(&command);
        }
        network.client.ip("route add 10.0.2.0/24 via 10.0.1.1");
        wait_until(|| {
            let shown = run("ip", "-o link show dev bond0");
            if shown.contains("state UP") { Ok(()) } else { Err(shown) }
        });
        let world = network.start(&config_on(&["bond0"], ""));
        let sockets = [socket_of(&network.client, CLIENTS[0]), socket_of(&network.client, CLIENTS[0])];
        let [client, peer] = sockets;
        let call = Call::start_with(&world, client, peer);
        call.exchange_in_kernel();
        call.end();
        world.assert_checksums();
    });
}
