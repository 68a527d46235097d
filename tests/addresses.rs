//! Addresses that come, go and change while the server runs. Each test has a network namespace of its own.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod addresses {
    use std::fs;
    use std::net::{IpAddr, SocketAddr};
    use std::thread;

    use turnserver::net::interfaces::{self, AddressState, InterfaceAddress};
    use turnserver::stun::Method;
    use turnserver::stun::attribute::{Data, XorPeerAddress};

    use crate::client::Http;
    use crate::support::client::{Client, Login, socket};
    use crate::support::network::{in_own_network, ip};
    use crate::support::{LogLine, Server, config_for, config_without_secret};

    /// An interface that is up and has no address.
    const BARE: [&str; 5] = [
        "link set lo up",
        "link add w0 type veth peer name w1",
        "link set w0 addrgenmode none",
        "link set w0 up",
        "link set w1 up",
    ];

    fn with<'s>(more: &[&'s str]) -> Vec<&'s str> {
        BARE.iter().copied().chain(more.iter().copied()).collect()
    }

    /// Returns a configuration that listens everywhere and detects the relay addresses.
    fn auto(more: &str) -> String {
        config_for(&["::"], &["127.0.0.1"], more).replace("addresses = [\"127.0.0.1\"]", "addresses = \"auto\"")
    }

    /// Returns a client that sends to this address of the server.
    fn client(server: &Server, to: &str) -> Client {
        let ip: IpAddr = to.parse().unwrap();
        Client::on(socket(SocketAddr::new(ip, 0)), SocketAddr::new(ip, server.udp_address().port()))
    }

    fn allocate(server: &Server, to: &str) -> Result<String, u16> {
        client(server, to).allocate(&Login::mint("alice", 600)).map(|(_, relayed)| relayed.ip().to_string())
    }

    /// Waits until the server has logged that it relays on this address, `count` times.
    fn wait_for_relay(server: &Server, address: &str, count: usize) {
        let of_address =
            |line: &&LogLine| line.message() == "relay address" && line.field("address").as_deref() == Some(address);
        server.wait_for_logs(|lines| lines.iter().filter(of_address).count() >= count);
    }

    fn wait_for_message(server: &Server, part: &str) {
        server.wait_for_log(|line| line.message().contains(part));
    }

    // A unit that starts before the network. RFC 8656 §19: 508, because no relayed transport address is available at
    // that time.
    #[test]
    fn a_server_without_an_address_starts_and_serves_each_family_when_its_address_comes() {
        in_own_network(&BARE, || {
            let server = Server::start(&auto(""));
            wait_for_message(&server, "the server waits for a relay address");
            let waiting = client(&server, "127.0.0.1");
            assert_eq!(waiting.binding(), waiting.address());
            assert_eq!(allocate(&server, "127.0.0.1"), Err(508));
            ip("addr add 203.0.114.1/24 dev w0");
            wait_for_relay(&server, "203.0.114.1", 1);
            assert_eq!(allocate(&server, "127.0.0.1").as_deref(), Ok("203.0.114.1"));
            assert_eq!(allocate(&server, "::1"), Err(440));
            ip("addr add 2a01:4f8::1/64 dev w0 nodad");
            wait_for_relay(&server, "2a01:4f8::1", 1);
            assert_eq!(allocate(&server, "::1").as_deref(), Ok("2a01:4f8::1"));
            assert_eq!(allocate(&server, "127.0.0.1").as_deref(), Ok("203.0.114.1"));
        });
    }

    #[test]
    fn loopback_is_used_only_while_there_is_no_other_interface() {
        in_own_network(&["link set lo up"], || {
            let server = Server::start(&auto(""));
            assert_eq!(allocate(&server, "127.0.0.1").as_deref(), Ok("127.0.0.1"));
            BARE[1..].iter().for_each(|line| ip(line));
            ip("addr add 203.0.114.1/24 dev w0");
            wait_for_relay(&server, "203.0.114.1", 1);
            assert_eq!(allocate(&server, "127.0.0.1").as_deref(), Ok("203.0.114.1"));
        });
    }

    #[test]
    fn a_configured_address_and_a_listener_on_it_are_waited_for() {
        in_own_network(&BARE, || {
            let server = Server::start(&config_for(&["203.0.114.1"], &["203.0.114.1"], ""));
            wait_for_message(&server, "203.0.114.1 is not among the addresses of this machine");
            wait_for_message(&server, "clients cannot reach the server at udp 203.0.114.1:");
            ip("addr add 203.0.114.1/24 dev w0");
            wait_for_relay(&server, "203.0.114.1", 1);
            assert_eq!(allocate(&server, "203.0.114.1").as_deref(), Ok("203.0.114.1"));
            let connected = Client::connect(server.tcp_address());
            assert!(connected.allocate(&Login::mint("alice", 600)).is_ok());
        });
    }

    // A unit that starts before the network, with HTTP for Prometheus on an address of this machine.
    #[test]
    fn an_address_in_http_listen_is_waited_for() {
        in_own_network(&BARE, || {
            let http = "[http]\nlisten = [\"203.0.114.1:0\", \"[2a01:4f8::1]:0\"]\n\
                        metrics-from = [\"203.0.114.1\", \"2a01:4f8::1\"]\n";
            let server = Server::start(&config_for(&["127.0.0.1"], &["127.0.0.1"], http));
            for (address, own) in [("203.0.114.1", "203.0.114.1/24"), ("[2a01:4f8::1]", "2a01:4f8::1/64 nodad")] {
                let missing = format!("HTTP cannot be reached at {address}:0 yet");
                let line = server.wait_for_log(|line| line.message().contains(&missing));
                assert_eq!(line.level(), "WARN");
                assert!(line.message().contains("change it in http.listen"), "{line:?}");
                ip(&format!("addr add {own} dev w0"));
                let is_here = |line: &&LogLine, event: &str| {
                    let starts = |text: String| text.starts_with(&format!("{address}:"));
                    line.field("event").as_deref() == Some(event) && line.field("address").is_some_and(starts)
                };
                server.wait_for_log(|line| is_here(&line, "http-listener-reachable"));
                let line = server.wait_for_log(|line| is_here(&line, "http-listening"));
                let bound: SocketAddr = line.field("address").unwrap().parse().unwrap();
                assert_eq!(Http::tcp(bound).get("/healthz").status, 200, "{address}");
            }
        });
    }

    #[test]
    fn an_allocation_ends_when_its_address_goes_and_the_address_is_used_again_when_it_returns() {
        for addresses in ["\"auto\"", "[\"203.0.114.1\"]"] {
            in_own_network(&with(&["addr add 203.0.114.1/24 dev w0"]), || {
                let server = Server::start(&auto("").replace("\"auto\"", addresses));
                let held = client(&server, "127.0.0.1");
                held.allocate(&Login::mint("alice", 600)).unwrap();
                ip("addr del 203.0.114.1/24 dev w0");
                let ended = server.wait_for_log(|line| line.message() == "allocation ended");
                assert_eq!(ended.field("reason").as_deref(), Some("the relay address has gone"));
                wait_for_message(&server, "this machine no longer has the relay address");
                assert_eq!(allocate(&server, "127.0.0.1"), Err(508));
                ip("addr add 203.0.114.1/24 dev w0");
                wait_for_relay(&server, "203.0.114.1", 2);
                assert_eq!(allocate(&server, "127.0.0.1").as_deref(), Ok("203.0.114.1"));
            });
        }
    }

    #[test]
    fn a_call_survives_while_the_interface_of_its_address_is_down_and_up_again() {
        for addresses in ["\"auto\"", "[\"203.0.114.1\"]"] {
            in_own_network(&with(&["addr add 203.0.114.1/24 dev w0"]), || {
                let server = Server::start(&auto("").replace("\"auto\"", addresses));
                let held = client(&server, "127.0.0.1");
                let (session, relayed) = held.allocate(&Login::mint("alice", 600)).unwrap();
                // The peer is another allocation of this server.
                let other = client(&server, "127.0.0.1");
                let (other_session, peer) = other.allocate(&Login::mint("bob", 600)).unwrap();
                held.permit(&session, peer);
                other.permit(&other_session, relayed);
                let assert_call = |data: &[u8]| {
                    held.send_to_peer(peer, data);
                    assert_eq!(other.receive().get(), Some(Data(data)));
                    other.send_to_peer(relayed, data);
                    assert_eq!(held.receive().get(), Some(Data(data)));
                };
                assert_call(b"before");
                ip("link set w0 down");
                wait_for_message(&server, "gets no new allocations, because its interface is down");
                assert_eq!(allocate(&server, "127.0.0.1"), Err(508));
                assert_call(b"down");
                ip("link set w0 up");
                wait_for_relay(&server, "203.0.114.1", 2);
                assert_eq!(allocate(&server, "127.0.0.1").as_deref(), Ok("203.0.114.1"));
                assert_call(b"up again");
                assert_eq!(held.request(&session, Method::REFRESH, &|_| {}).error(), None);
            });
        }
    }

    #[test]
    fn an_address_whose_interface_goes_down_beside_another_is_not_called_worse() {
        let two = ["addr add 203.0.114.1/24 dev w0", "addr add 203.0.115.1/24 dev w1"];
        in_own_network(&with(&two), || {
            let server = Server::start(&auto(""));
            assert_eq!(allocate(&server, "203.0.114.1").as_deref(), Ok("203.0.114.1"));
            // w1 keeps its address and stays up without a carrier.
            ip("link set w0 down");
            let is_about = |line: &&LogLine| line.field("address").as_deref() == Some("203.0.114.1");
            let left = |line: &&LogLine| line.message().contains("gets no new allocations");
            let line = server.wait_for_log(|line| is_about(&line) && left(&line));
            assert!(line.message().contains("because its interface is down"), "{line:?}");
            assert_eq!(allocate(&server, "203.0.115.1").as_deref(), Ok("203.0.115.1"));
        });
    }

    #[test]
    fn a_replaced_address_is_followed_and_the_entry_for_browsers_is_printed_again() {
        in_own_network(&with(&["addr add 203.0.114.1/24 dev w0"]), || {
            let config = config_without_secret(&["::"], "");
            let server = Server::start(&config.replace("addresses = [\"::\"]", "addresses = \"auto\""));
            assert!(server.wait_for_stdout(1)[0].contains("turn:203.0.114.1:"), "{:?}", server.stdout());
            ip("addr add 203.0.114.2/32 dev w0");
            ip("addr del 203.0.114.1/24 dev w0");
            wait_for_relay(&server, "203.0.114.2", 1);
            let printed = server.wait_for_stdout(2);
            assert!(printed[1].contains("turn:203.0.114.2:") && !printed[1].contains("203.0.114.1:"), "{printed:?}");
        });
    }

    #[test]
    fn a_deprecated_address_keeps_its_allocations_and_gets_no_new_ones() {
        in_own_network(&with(&["addr add 2a01:4f8::1/64 dev w0 nodad"]), || {
            let server = Server::start(&auto(""));
            let running = client(&server, "::1");
            let (session, relayed) = running.allocate(&Login::mint("alice", 600)).unwrap();
            assert_eq!(relayed.ip().to_string(), "2a01:4f8::1");
            ip("addr add 2a01:4f8::2/64 dev w0 nodad");
            ip("addr change 2a01:4f8::1/64 dev w0 preferred_lft 0");
            wait_for_relay(&server, "2a01:4f8::2", 1);
            assert_eq!(allocate(&server, "::1").as_deref(), Ok("2a01:4f8::2"));
            // The peer is another allocation of this server.
            let peer = client(&server, "::1");
            let (other, at) = peer.allocate(&Login::mint("bob", 600)).unwrap();
            running.permit(&session, at);
            peer.permit(&other, relayed);
            running.send_to_peer(at, b"still here");
            assert_eq!(peer.receive().get(), Some(Data(b"still here")));
        });
    }

    // RFC 8981: with privacy extensions, the kernel prefers the temporary address as the source.
    #[test]
    fn a_temporary_address_is_not_detected_beside_a_stable_one() {
        in_own_network(&BARE, || {
            for (key, value) in [("use_tempaddr", "2"), ("accept_dad", "0")] {
                fs::write(format!("/proc/sys/net/ipv6/conf/w0/{key}"), value).unwrap();
            }
            ip("addr add 2a01:4f8::1/64 dev w0 mngtmpaddr nodad");
            ip("route add default dev w0");
            let server = Server::start(&auto(""));
            let is_temporary = |entry: &InterfaceAddress| entry.state == AddressState::Temporary;
            let temporary = || interfaces::read().unwrap().addresses.iter().any(is_temporary);
            let created = (0..100_000).any(|_| {
                thread::yield_now();
                temporary()
            });
            assert!(created, "the kernel creates no temporary address");
            // The marker is read together with the temporary address or after it.
            ip("addr add 203.0.114.1/24 dev w0");
            wait_for_relay(&server, "203.0.114.1", 1);
            assert_eq!(allocate(&server, "::1").as_deref(), Ok("2a01:4f8::1"));
            drop(server);
            let server = Server::start(&auto(""));
            assert_eq!(allocate(&server, "::1").as_deref(), Ok("2a01:4f8::1"));
        });
    }

    #[test]
    fn a_client_gets_the_relay_address_at_which_it_reaches_the_server() {
        let networks = ["addr add 10.1.1.1/24 dev w0", "addr add 192.168.178.1/24 dev w1"];
        for addresses in ["\"auto\"", "[\"10.1.1.1\", \"192.168.178.1\"]"] {
            in_own_network(&with(&networks), || {
                let server = Server::start(&auto("").replace("\"auto\"", addresses));
                for round in 0..8 {
                    for own in ["10.1.1.1", "192.168.178.1"] {
                        assert_eq!(allocate(&server, own).as_deref(), Ok(own), "{addresses}, round {round}");
                    }
                }
            });
        }
    }

    #[test]
    fn a_prefix_that_is_routed_to_this_machine_is_denied_also_if_it_comes_later() {
        let prefix = "route add local 203.0.114.0/24 dev lo";
        in_own_network(&with(&[prefix]), || {
            let server = Server::start(&config_for(&["::"], &["203.0.114.1"], ""));
            let running = client(&server, "127.0.0.1");
            let (session, relayed) = running.allocate(&Login::mint("alice", 600)).unwrap();
            assert_eq!(relayed.ip().to_string(), "203.0.114.1");
            let permission = |peer: &str| {
                let peer = XorPeerAddress(peer.parse().unwrap());
                running.request(&session, Method::CREATE_PERMISSION, &|writer| writer.push(&peer)).error()
            };
            assert_eq!((permission("203.0.114.9:7000"), permission("203.0.115.9:7000")), (Some(403), None));
            ip("route add local 203.0.115.0/24 dev lo");
            wait_for_message(&server, "permissions or channels removed");
            assert_eq!(permission("203.0.115.9:7000"), Some(403));
        });
    }

    // The service behind a new address must not become reachable through a permission that is older than the address.
    #[test]
    fn a_new_own_address_is_denied_at_once_and_its_permissions_end() {
        in_own_network(&with(&["addr add 203.0.114.1/24 dev w0"]), || {
            let server = Server::start(&config_for(&["::"], &["203.0.114.1"], ""));
            let running = client(&server, "127.0.0.1");
            let (session, _) = running.allocate(&Login::mint("alice", 600)).unwrap();
            let peer: SocketAddr = "203.0.114.9:7000".parse().unwrap();
            running.permit(&session, peer);
            ip("addr add 203.0.114.9/32 dev w1");
            wait_for_message(&server, "permissions or channels removed");
            let response =
                running.request(&session, Method::CREATE_PERMISSION, &|writer| writer.push(&XorPeerAddress(peer)));
            assert_eq!(response.error(), Some(403));
            let service = socket(peer);
            service.set_nonblocking(true).unwrap();
            running.send_to_peer(peer, b"to the service");
            assert_eq!(running.binding(), running.address());
            assert!(service.recv(&mut [0; 64]).is_err());
        });
    }
}
