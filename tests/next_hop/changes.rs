//! What the watcher reports when something changes.

use turnserver::offload::next_hop::{NextHop, Notice, Obstacle, resolve};

use crate::hosts::{
    FAR, FAR6, OWNER, index, link_address, pair, send, set, text, through, unresolved, with_hosts, with_neighbours,
};
use crate::network::ip;

#[test]
fn a_gateway_is_resolved_by_the_first_packet_that_the_kernel_sends() {
    with_hosts([1], |_, server| {
        ip("route add default via 10.0.1.2");
        ip("-6 route add default via fe80::2 dev n1");
        for (pair, gateway) in [(pair("10.0.1.1", FAR), "10.0.1.2"), (pair("fd00:1::1", FAR6), "fe80::2")] {
            assert_eq!(server.ask(pair), unresolved(1, gateway));
            send(pair);
            server.wait_for(pair, &Ok(through(1)));
            // It is known to all who ask.
            assert_eq!(server.watcher().ask(OWNER + 1, pair).unwrap(), Ok(through(1)));
        }
    });
}

#[test]
fn a_destination_on_the_link_is_its_own_neighbour() {
    with_hosts([1], |_, server| {
        for pair in [pair("10.0.1.1", "10.0.1.2"), pair("fd00:1::1", "fd00:1::2")] {
            assert_eq!(server.ask(pair), unresolved(1, &pair.destination.to_string()));
            send(pair);
            server.wait_for(pair, &Ok(through(1)));
        }
    });
}

#[test]
fn a_neighbour_that_does_not_respond_is_reported() {
    with_hosts([1], |_, server| {
        for (family, pair) in [("ipv4", pair("10.0.1.1", "10.0.1.77")), ("ipv6", pair("fd00:1::1", "fd00:1::77"))] {
            set(&format!("{family}/neigh/n1/retrans_time_ms"), "20");
            server.ask(pair).unwrap_err();
            send(pair);
            server.wait_for(pair, &Err(Obstacle::Failed { neighbour: pair.destination, interface: "n1".into() }));
        }
    });
}

#[test]
fn rules_select_the_uplink_by_the_source() {
    with_neighbours([1, 2], |_, server| {
        for network in [1, 2] {
            for (version, source, gateway) in [("-4", "10.0.", ".2"), ("-6", "fd00:", "::2")] {
                let source_end = if version == "-4" { ".1" } else { "::1" };
                ip(&format!("{version} route add default via {source}{network}{gateway} table 10{network}"));
                ip(&format!("{version} rule add from {source}{network}{source_end} lookup 10{network}"));
            }
        }
        let pairs = [1, 2].map(|network| {
            [(pair(&format!("10.0.{network}.1"), FAR), network), (pair(&format!("fd00:{network}::1"), FAR6), network)]
        });
        for (pair, network) in pairs.into_iter().flatten() {
            assert_eq!(server.ask(pair), Ok(through(network)));
        }
        // Without its rule, a source has no route.
        for (version, pair) in [("-4", pair("10.0.2.1", FAR)), ("-6", pair("fd00:2::1", FAR6))] {
            let source = pair.source;
            ip(&format!("{version} rule del from {source} lookup 102"));
            server.wait_for(pair, &Err(Obstacle::NoRoute));
            ip(&format!("{version} rule add from {source} lookup 101"));
            server.wait_for(pair, &Ok(through(1)));
        }
    });
}

#[test]
fn a_rule_that_depends_on_ports_is_an_obstacle_for_the_pairs_that_it_selects() {
    with_neighbours([1], |_, server| {
        ip("route add default via 10.0.1.2");
        let pair = pair("10.0.1.1", FAR);
        assert_eq!(server.ask(pair), Ok(through(1)));
        // These do not concern the pair.
        ip("rule add pref 90 iif n1 ipproto udp dport 20000-30000 blackhole");
        ip("rule add pref 91 from 10.0.7.0/24 ipproto udp sport 5000 blackhole");
        ip("rule add pref 92 ipproto tcp dport 80 blackhole");
        ip("rule add pref 93 ipproto udp dport 50000 blackhole");
        server.wait_for(pair, &Err(Obstacle::Rule { priority: 93 }));
        ip("rule del pref 93");
        server.wait_for(pair, &Ok(through(1)));
        ip("rule add pref 94 tos 10 blackhole");
        server.wait_for(pair, &Err(Obstacle::Rule { priority: 94 }));
    });
}

#[test]
fn another_gateway_of_the_same_route_replaces_the_next_hop() {
    with_neighbours([1], |_, server| {
        ip("neigh add 10.0.1.3 lladdr 02:00:00:00:01:03 dev n1 nud permanent");
        ip("neigh add fe80::3 lladdr 02:00:00:00:01:03 dev n1 nud permanent");
        let other = NextHop { link_destination: link_address(1, 3), ..through(1) };
        ip("route add default via 10.0.1.2");
        ip("-6 route add default via fe80::2 dev n1");
        let pairs = [pair("10.0.1.1", FAR), pair("fd00:1::1", FAR6)];
        pairs.into_iter().for_each(|pair| assert_eq!(server.ask(pair), Ok(through(1))));
        ip("route replace default via 10.0.1.3");
        ip("-6 route replace default via fe80::3 dev n1");
        pairs.into_iter().for_each(|pair| server.wait_for(pair, &Ok(other)));
        // A more specific route applies to its destinations only.
        ip("route add 203.0.113.0/24 via 10.0.1.2");
        server.wait_for(pairs[0], &Ok(through(1)));
        ip("route del 203.0.113.0/24");
        server.wait_for(pairs[0], &Ok(other));
        ip("route del default");
        server.wait_for(pairs[0], &Err(Obstacle::NoRoute));
    });
}

#[test]
fn a_gratuitous_announcement_of_another_link_address_is_followed() {
    with_hosts([1], |[host], server| {
        host.run(|| {
            set("ipv4/conf/n1/arp_notify", "1");
            set("ipv6/conf/n1/ndisc_notify", "1");
        });
        let pairs = [pair("10.0.1.1", "10.0.1.2"), pair("fd00:1::1", "fd00:1::2")];
        for pair in pairs {
            server.ask(pair).unwrap_err();
            send(pair);
            server.wait_for(pair, &Ok(through(1)));
        }
        host.ip("link set n1 address 02:00:00:00:01:09");
        for pair in pairs {
            server.wait_for(pair, &Ok(NextHop { link_destination: link_address(1, 9), ..through(1) }));
        }
    });
}

#[test]
fn a_neighbour_that_the_kernel_forgets_is_not_used() {
    with_neighbours([1], |_, server| {
        let pair = pair("10.0.1.1", "10.0.1.2");
        assert_eq!(server.ask(pair), Ok(through(1)));
        ip("neigh del 10.0.1.2 dev n1");
        server.wait(pair, Result::is_err);
        let again = text(link_address(1, 2));
        ip(&format!("neigh replace 10.0.1.2 lladdr {again} dev n1 nud stale"));
        server.wait_for(pair, &Ok(through(1)));
    });
}

#[test]
fn an_interface_without_link_and_one_that_is_down_are_obstacles() {
    with_neighbours([1], |[host], server| {
        ip("route add default via 10.0.1.2");
        let pair = pair("10.0.1.1", FAR);
        assert_eq!(server.ask(pair), Ok(through(1)));
        host.ip("link set n1 down");
        server.wait_for(pair, &Err(Obstacle::NoCarrier { interface: "n1".into() }));
        host.ip("link set n1 up");
        server.wait_for(pair, &Ok(through(1)));
        // The kernel removes the routes of the interface without a notification, and its neighbours.
        ip("link set n1 down");
        server.wait_for(pair, &Err(Obstacle::NoRoute));
        ip("link set n1 up");
        ip("route add default via 10.0.1.2");
        send(pair);
        server.wait_for(pair, &Ok(through(1)));
        ip("link del n1");
        server.wait(pair, |resolution| *resolution == Err(Obstacle::NoRoute));
    });
}

#[test]
fn the_longest_packet_is_that_of_interface_and_route() {
    with_neighbours([1], |_, server| {
        ip("route add default via 10.0.1.2");
        ip("-6 route add default via fd00:1::2");
        let pairs = [pair("10.0.1.1", FAR), pair("fd00:1::1", FAR6)];
        pairs.into_iter().for_each(|pair| assert_eq!(server.ask(pair), Ok(through(1))));
        let long = |longest_packet| Ok(NextHop { longest_packet, ..through(1) });
        ip("link set n1 mtu 1400");
        pairs.into_iter().for_each(|pair| server.wait_for(pair, &long(1400)));
        ip("route replace default via 10.0.1.2 mtu 1350");
        ip("-6 route replace default via fd00:1::2 mtu 1350");
        pairs.into_iter().for_each(|pair| server.wait_for(pair, &long(1350)));
        ip("route replace default via 10.0.1.2 mtu lock 1300");
        server.wait_for(pairs[0], &long(1300));
        ip("route replace default via 10.0.1.2 mtu 9000");
        server.wait_for(pairs[0], &long(1400));
        // As if a router had announced it.
        ip("-6 route replace default via fd00:1::2");
        server.wait_for(pairs[1], &long(1400));
        set("ipv6/conf/n1/mtu", "1290");
        assert_eq!(resolve(pairs[1]).unwrap(), long(1290));
        assert_eq!(resolve(pairs[0]).unwrap(), long(1400));
        // The kernel reports the parameters of IPv6 with the next change of the interface, such as this.
        ip("token set ::7 dev n1");
        server.wait_for(pairs[1], &long(1290));
    });
}

#[test]
fn another_link_address_of_the_interface_is_used() {
    with_neighbours([1], |_, server| {
        let pair = pair("10.0.1.1", "10.0.1.2");
        assert_eq!(server.ask(pair), Ok(through(1)));
        // The kernel forgets all neighbours at the interface.
        ip("link set n1 address 02:00:00:00:01:05");
        send(pair);
        server.wait_for(pair, &Ok(NextHop { link_source: link_address(1, 5), ..through(1) }));
    });
}

#[test]
fn an_ipv4_route_can_have_an_ipv6_gateway() {
    with_neighbours([1], |_, server| {
        ip("route add 203.0.113.0/24 via inet6 fe80::2 dev n1");
        let pair = pair("10.0.1.1", FAR);
        assert_eq!(server.ask(pair), Ok(through(1)));
        ip("neigh replace fe80::2 lladdr 02:00:00:00:01:07 dev n1 nud permanent");
        server.wait_for(pair, &Ok(NextHop { link_destination: link_address(1, 7), ..through(1) }));
    });
}

#[test]
fn one_of_several_ways_is_chosen() {
    with_neighbours([1, 2], |_, server| {
        ip("route add default nexthop via 10.0.1.2 nexthop via 10.0.2.2");
        ip("-6 route add default nexthop via fd00:1::2 nexthop via fd00:2::2");
        let ways = [through(1), through(2)];
        let mut first_way = None;
        for number in 1..=50 {
            for pair in
                [pair("10.0.1.1", &format!("203.0.113.{number}")), pair("fd00:1::1", &format!("2001:db8:9::{number}"))]
            {
                let chosen = server.ask(pair).unwrap();
                assert!(ways.contains(&chosen));
                first_way = first_way.or(Some(pair).filter(|_| pair.source.is_ipv4() && chosen == ways[0]));
            }
        }
        // The source stays an address of this machine without the first interface.
        ip("addr add 10.0.1.1/32 dev lo");
        ip("link set n1 down");
        server.wait_for(first_way.unwrap(), &Ok(ways[1]));
    });
}

#[test]
fn a_next_hop_object_can_be_replaced() {
    with_neighbours([1, 2], |_, server| {
        // Otherwise, the kernel also reports the routes that use the object.
        set("ipv4/nexthop_compat_mode", "0");
        ip("nexthop add id 7 via 10.0.1.2 dev n1");
        ip("route add default nhid 7");
        let pair = pair("10.0.1.1", FAR);
        assert_eq!(server.ask(pair), Ok(through(1)));
        ip("nexthop replace id 7 via 10.0.2.2 dev n2");
        server.wait_for(pair, &Ok(through(2)));
    });
}

#[test]
fn a_source_is_used_while_it_is_an_address_of_this_machine() {
    with_neighbours([1], |_, server| {
        ip("route add default via 10.0.1.2");
        ip("-6 route add default via fd00:1::2");
        for (pair, address) in [(pair("10.0.9.1", FAR), "10.0.9.1/32"), (pair("fd00:9::1", FAR6), "fd00:9::1/128")] {
            assert_eq!(server.ask(pair), Err(Obstacle::NoRoute));
            ip(&format!("addr add {address} dev lo"));
            server.wait_for(pair, &Ok(through(1)));
            assert_eq!(resolve(pair).unwrap(), Ok(through(1)));
            ip(&format!("addr del {address} dev lo"));
            server.wait_for(pair, &Err(Obstacle::NoRoute));
            assert_eq!(resolve(pair).unwrap(), Err(Obstacle::NoRoute));
        }
    });
}

#[test]
fn a_source_in_the_prefix_of_a_local_route_is_used() {
    with_neighbours([1], |_, server| {
        ip("route add default via 10.0.1.2");
        ip("-6 route add default via fd00:1::2");
        for (pair, prefix) in [(pair("10.0.9.1", FAR), "10.0.9.0/24"), (pair("fd00:9::1", FAR6), "fd00:9::/64")] {
            assert_eq!(server.ask(pair), Err(Obstacle::NoRoute));
            ip(&format!("route add local {prefix} dev lo"));
            server.wait_for(pair, &Ok(through(1)));
            ip(&format!("route del local {prefix} dev lo"));
            server.wait_for(pair, &Err(Obstacle::NoRoute));
        }
    });
}

#[test]
fn a_pair_is_reported_to_its_owners_until_they_release_it() {
    with_neighbours([1], |_, server| {
        let (released, kept) = (pair("10.0.1.1", "10.0.1.2"), pair("fd00:1::1", "fd00:1::2"));
        for pair in [released, released, kept] {
            server.ask(pair).unwrap();
        }
        server.watcher().ask(OWNER + 1, released).unwrap().unwrap();
        server.watcher().release(OWNER, released);
        ip("link set n1 mtu 1400");
        let mut owners = Vec::new();
        let mut seen = false;
        while !seen || owners.len() < 2 {
            for notice in server.notices() {
                let Notice::Changed { owner, pair, .. } = notice else { continue };
                seen |= pair == kept;
                owners.extend((pair == released).then_some(owner));
            }
        }
        owners.sort_unstable();
        assert_eq!(owners, [OWNER, OWNER + 1]);
        server.watcher().release(OWNER, released);
        server.watcher().release(OWNER + 1, released);
        assert_eq!(server.watcher().pairs(), 1);
        ip("link set n1 mtu 1300");
        loop {
            for notice in server.notices() {
                let Notice::Changed { pair, .. } = notice else { continue };
                assert_eq!(pair, kept);
                assert_eq!(index("n1"), through(1).interface);
                return;
            }
        }
    });
}

#[test]
fn a_neighbour_that_has_gone_is_found_by_the_use_that_is_asked_for() {
    with_hosts([1], |[host], server| {
        // The kernel suspects a neighbour after this time, and examines it as soon as it sends a packet to it.
        set("ipv4/neigh/n1/base_reachable_time_ms", "50");
        set("ipv4/neigh/n1/delay_first_probe_time", "0");
        set("ipv4/neigh/n1/retrans_time_ms", "20");
        let pair = pair("10.0.1.1", "10.0.1.2");
        server.ask(pair).unwrap_err();
        send(pair);
        server.wait_for(pair, &Ok(through(1)));
        host.ip("link set n1 arp off");
        assert_eq!(server.notices(), [Notice::Use { owner: OWNER, pair }]);
        send(pair);
        server.wait_for(pair, &Err(Obstacle::Failed { neighbour: pair.destination, interface: "n1".into() }));
        host.ip("link set n1 arp on");
        send(pair);
        server.wait_for(pair, &Ok(through(1)));
    });
}
