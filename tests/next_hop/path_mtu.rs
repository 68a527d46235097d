//! The path MTU that the kernel learns from ICMP errors.

use std::net::UdpSocket;

use turnserver::offload::next_hop::NextHop;

use crate::hosts::{FAR, FAR6, TIMEOUT, pair, set, through, with_neighbours};
use crate::network::ip;

#[test]
fn a_path_with_a_smaller_mtu_is_known_after_a_recheck() {
    with_neighbours([1], |[host], server| {
        host.run(|| {
            set("ipv4/ip_forward", "1");
            set("ipv6/conf/all/forwarding", "1");
            for command in [
                "link add m1 mtu 1300 type veth peer name m2",
                "link set m1 up",
                "link set m2 up",
                "route add 203.0.113.0/24 dev m1",
                "-6 route add 2001:db8:9::/64 dev m1",
            ] {
                ip(command);
            }
        });
        ip("route add default via 10.0.1.2");
        ip("-6 route add default via fd00:1::2");
        for pair in [pair("10.0.1.1", FAR), pair("fd00:1::1", FAR6)] {
            assert_eq!(server.ask(pair), Ok(through(1)));
            let socket = UdpSocket::bind((pair.source, 0)).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect((pair.destination, 9)).unwrap();
            // Sockets of IPv4, too, send with DF unless told otherwise.
            socket.send(&[0; 1400]).unwrap();
            let error = socket.recv(&mut [0; 10]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EMSGSIZE as i32));
            server.watcher().recheck(pair);
            server.wait_for(pair, &Ok(NextHop { longest_packet: 1300, ..through(1) }));
        }
    });
}
