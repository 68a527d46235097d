//! Where there is no next hop.

use std::process::Command;

use turnserver::offload::next_hop::{Obstacle, resolve};

use crate::hosts::{FAR, FAR6, pair, through, with_neighbours};
use crate::network::ip;

#[test]
fn routes_that_do_not_send_are_obstacles() {
    with_neighbours([1], |_, server| {
        for (kind, obstacle) in [
            ("blackhole", Obstacle::Blackhole),
            ("unreachable", Obstacle::Unreachable),
            ("prohibit", Obstacle::Prohibited),
        ] {
            ip(&format!("route add {kind} {FAR}"));
            ip(&format!("-6 route add {kind} {FAR6}"));
            for pair in [pair("10.0.1.1", FAR), pair("fd00:1::1", FAR6)] {
                assert_eq!(server.ask(pair), Err(obstacle.clone()));
                assert_eq!(resolve(pair).unwrap(), Err(obstacle.clone()));
                server.watcher().release(crate::hosts::OWNER, pair);
            }
            ip(&format!("route del {kind} {FAR}"));
            ip(&format!("-6 route del {kind} {FAR6}"));
        }
        assert_eq!(server.ask(pair("10.0.1.1", FAR)), Err(Obstacle::NoRoute));
        assert_eq!(server.ask(pair("fd00:1::1", FAR6)), Err(Obstacle::NoRoute));
    });
}

#[test]
fn addresses_without_next_hop_are_obstacles() {
    with_neighbours([1], |_, server| {
        ip("-6 route add anycast fd00:1::77 dev n1 table local");
        for (source, destination, obstacle) in [
            ("10.0.1.1", "10.0.1.1", Obstacle::ThisMachine),
            ("10.0.1.1", "127.0.0.1", Obstacle::ThisMachine),
            ("fd00:1::1", "fd00:1::1", Obstacle::ThisMachine),
            ("fd00:1::1", "::1", Obstacle::ThisMachine),
            ("10.0.1.1", "10.0.1.255", Obstacle::NotUnicast),
            ("10.0.1.1", "255.255.255.255", Obstacle::NotUnicast),
            ("10.0.1.1", "224.0.0.1", Obstacle::NotUnicast),
            ("fd00:1::1", "ff02::1", Obstacle::NotUnicast),
            ("fd00:1::1", "fd00:1::77", Obstacle::NotUnicast),
            ("10.0.1.1", "fd00:1::2", Obstacle::Addresses),
            ("fd00:1::1", "10.0.1.2", Obstacle::Addresses),
            ("fd00:1::1", "fe80::2", Obstacle::Addresses),
            ("10.0.1.1", "0.0.0.0", Obstacle::Addresses),
            ("::", "fd00:1::2", Obstacle::Addresses),
            ("10.0.7.7", "10.0.1.2", Obstacle::NoRoute),
            // The kernel has an IPv6 route for any source.
            ("fd00:7::7", "fd00:1::2", Obstacle::NoRoute),
        ] {
            let pair = pair(source, destination);
            assert_eq!(server.ask(pair), Err(obstacle.clone()), "{pair:?}");
            assert_eq!(resolve(pair).unwrap(), Err(obstacle), "{pair:?}");
        }
        assert_eq!(resolve(pair("10.0.1.1", "10.0.1.2")).unwrap(), Ok(through(1)));
    });
}

#[test]
fn interfaces_of_other_kinds_are_obstacles() {
    with_neighbours([1], |_, server| {
        let kinds = [
            ("bridge", "link add x type bridge"),
            ("macvlan", "link add x link n1 type macvlan"),
            ("vlan", "link add x link n1 type vlan id 7"),
            ("vxlan", "link add x type vxlan id 7 dstport 4789 remote 10.0.1.2"),
            ("dummy", "link add x type dummy"),
            ("ipip", "link add x type ipip local 10.0.1.1 remote 10.0.1.2"),
            ("wireguard", "link add x type wireguard"),
            ("tun", "tuntap add dev x mode tun"),
            ("tun", "tuntap add dev x mode tap"),
        ];
        let mut tried = 0;
        for (kind, command) in kinds {
            if !Command::new("ip").args(command.split(' ')).output().unwrap().status.success() {
                println!("this kernel cannot make interfaces of the kind {kind}");
                continue;
            }
            tried += 1;
            ip("link set x up");
            ip("addr add 10.0.5.1/24 dev x");
            let pair = pair("10.0.5.1", "10.0.5.2");
            let obstacle = Obstacle::Kind { interface: "x".into(), kind: kind.into() };
            // The watcher may not have read the notification of the new interface yet.
            let _ = server.ask(pair);
            server.wait_for(pair, &Err(obstacle.clone()));
            let text = format!("the route leads through the interface x of the kind {kind}");
            assert_eq!(obstacle.to_string(), text);
            ip("link del x");
            server.wait(pair, |resolution| *resolution != Err(obstacle.clone()));
            server.watcher().release(crate::hosts::OWNER, pair);
        }
        assert!(tried > 0);
    });
}

#[test]
fn a_route_with_encapsulation_is_an_obstacle() {
    with_neighbours([1], |_, server| {
        for route in
            ["encap ip id 7 dst 10.0.1.2 dev n1", "encap mpls 100 via 10.0.1.2", "encap ip6 id 7 dst fd00:1::2 dev n1"]
        {
            let command = format!("route add {FAR} {route}");
            if !Command::new("ip").args(command.split(' ')).output().unwrap().status.success() {
                println!("this kernel has no route with `{route}`");
                continue;
            }
            let pair = pair("10.0.1.1", FAR);
            assert_eq!(server.ask(pair), Err(Obstacle::Encapsulated));
            ip(&format!("route del {FAR}"));
            server.wait_for(pair, &Err(Obstacle::NoRoute));
            server.watcher().release(crate::hosts::OWNER, pair);
        }
    });
}
