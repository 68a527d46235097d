//! Tests of the real server over loopback with an independent client: that of the `turn` crate.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "relay/client.rs"]
mod client;
#[cfg(test)]
#[path = "relay/ports.rs"]
mod ports;
#[cfg(test)]
mod support;

#[cfg(test)]
mod relay {
    use std::net::{IpAddr, SocketAddr};

    use tokio::net::UdpSocket;
    use tokio::time::timeout;
    use turnserver::stun::attribute::Data;

    use crate::client::{Client, mapped_address};
    use crate::support::{Ended, Server, TIMEOUT, client as plain, config, config_for, has_ipv6};

    /// Allows peers that are plain sockets on this machine.
    const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\", \"::1\"]\n";

    /// Upper limit for the loops that wait for a channel binding.
    const ROUNDS: usize = 10_000;

    fn pattern(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from((i * 7 + seed) % 251).unwrap()).collect()
    }

    async fn peer_on(ip: &str) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((ip, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    async fn receive(peer: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 2048];
        let (len, from) = timeout(TIMEOUT, peer.recv_from(&mut buffer)).await.expect("the peer gets data").unwrap();
        buffer.truncate(len);
        (buffer, from)
    }

    /// Exchanges data between `client` and a peer on `ip`, first in indications and then through a channel.
    async fn exchange_with_peer(client: &Client, ip: &str) {
        let (peer, peer_address) = peer_on(ip).await;
        let relayed = client.relayed_address();

        client.send(b"by indication", peer_address).await;
        assert_eq!(receive(&peer).await, (b"by indication".to_vec(), relayed));
        assert_eq!(client.socket.sent.indications(), 1);

        // A permission ignores the peer's port, and a channel does not (RFC 8656 §9, §12). Data from another port comes
        // in a Data indication.
        let (neighbour, neighbour_address) = peer_on(ip).await;
        neighbour.send_to(b"by Data indication", relayed).await.unwrap();
        assert_eq!(client.receive().await, (b"by Data indication".to_vec(), neighbour_address));
        assert_eq!(client.socket.received.indications(), 1);

        for round in 0.. {
            assert!(round < ROUNDS, "the channel is not bound");
            let channel_data = client.socket.sent.channel_data();
            let payload = pattern(1 + round % 1200, round);
            client.send(&payload, peer_address).await;
            assert_eq!(receive(&peer).await, (payload, relayed));
            if channel_data > 0 {
                break;
            }
        }

        let received = client.socket.received.channel_data();
        for len in (0..=1200).step_by(37) {
            let payload = pattern(len, 1);
            client.send(&payload, peer_address).await;
            assert_eq!(receive(&peer).await, (payload, relayed));
            let payload = pattern(len, 2);
            peer.send_to(&payload, relayed).await.unwrap();
            assert_eq!(client.receive().await, (payload, peer_address));
        }
        assert_eq!(client.socket.received.channel_data(), received + 33);
    }

    // RFC 8656 §7 to §12, over IPv4.
    #[tokio::test]
    async fn data_flows_both_ways_in_indications_and_channels_over_ipv4() {
        let server = Server::start(&config(&["127.0.0.1"], LOOPBACK_PEERS));
        let client = Client::allocate(server.udp_address(), &server.credential("alice")).await.unwrap();
        assert_eq!(client.relayed_address().ip(), server.udp_address().ip());
        exchange_with_peer(&client, "127.0.0.1").await;
    }

    // RFC 8656 §7.1: REQUESTED-ADDRESS-FAMILY asks for an IPv6 relayed address.
    #[tokio::test]
    async fn data_flows_both_ways_in_indications_and_channels_over_ipv6() {
        if !has_ipv6() {
            return;
        }
        let server = Server::start(&config(&["::1"], LOOPBACK_PEERS));
        let client = Client::allocate(server.udp_address(), &server.credential("alice")).await.unwrap();
        assert_eq!(client.relayed_address().ip(), server.udp_address().ip());
        exchange_with_peer(&client, "::1").await;
    }

    #[tokio::test]
    async fn a_dual_stack_listener_serves_both_families() {
        if !has_ipv6() {
            return;
        }
        let server = Server::start(&config_for(&["::"], &["127.0.0.1", "::1"], LOOPBACK_PEERS));
        let credential = server.credential("alice");
        for ip in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(ip.parse::<IpAddr>().unwrap(), server.udp_address().port());
            let (mapped, local) = mapped_address(address, &credential).await;
            assert_eq!(mapped, local);
            let client = Client::allocate(address, &credential).await.unwrap();
            assert_eq!(client.relayed_address().ip(), address.ip());
            exchange_with_peer(&client, ip).await;
        }
    }

    // Clients of RFC 5766 do not expect a Data indication without DATA: the crate's client stops receiving at the first
    // one (RFC 8656 §11.5). A peer port that is closed, for example of an ICE candidate, must not end the call.
    #[tokio::test]
    async fn a_closed_peer_port_does_not_end_the_call_of_an_rfc_5766_client() {
        let server = Server::start(&config(&["127.0.0.1"], LOOPBACK_PEERS));
        let client = Client::allocate(server.udp_address(), &server.credential("alice")).await.unwrap();
        let (peer, peer_address) = peer_on("127.0.0.1").await;
        let (closed, closed_address) = peer_on("127.0.0.1").await;
        drop(closed);
        for round in 0..10 {
            client.send(b"to a closed port", closed_address).await;
            client.send(&pattern(100, round), peer_address).await;
            let (echo, relayed) = receive(&peer).await;
            peer.send_to(&echo, relayed).await.unwrap();
            assert_eq!(client.receive().await, (pattern(100, round), peer_address));
        }
        client.close().await;
        let Ended { logs, .. } = server.terminate();
        let stopped = logs.iter().find(|line| line.message() == "stopped").expect("a line about the end");
        assert!(stopped.field("outcomes").unwrap().contains("icmp-withheld"), "{stopped:?}");
    }

    // RFC 8656 §9: data from a peer without a permission is dropped.
    #[tokio::test]
    async fn a_peer_without_permission_does_not_reach_the_client() {
        let server = Server::start(&config(&["127.0.0.1"], LOOPBACK_PEERS));
        let client = Client::allocate(server.udp_address(), &server.credential("alice")).await.unwrap();
        let (peer, peer_address) = peer_on("127.0.0.1").await;
        client.send(b"permits 127.0.0.1", peer_address).await;
        receive(&peer).await;

        let (other, _) = peer_on("127.0.0.2").await;
        other.send_to(b"not permitted", client.relayed_address()).await.unwrap();
        // The relay socket preserves the order, so the other peer's datagram would come first.
        peer.send_to(b"from the peer", client.relayed_address()).await.unwrap();
        assert_eq!(client.receive().await, (b"from the peer".to_vec(), peer_address));
    }

    #[tokio::test]
    async fn a_peer_on_loopback_is_403_unless_the_operator_allows_it() {
        let server = Server::start(&config(&["127.0.0.1"], ""));
        let client = Client::allocate(server.udp_address(), &server.credential("alice")).await.unwrap();
        let (_peer, peer_address) = peer_on("127.0.0.2").await;
        let rejected = client.try_send(b"data", peer_address).await.unwrap_err().to_string();
        assert!(rejected.contains("403"), "{rejected}");
    }

    // A permission covers all ports of an address (RFC 8656 §9). The server allows a permission for its own relay
    // address, because other clients have relayed addresses there. Other services on that address stay unreachable.
    #[tokio::test]
    async fn a_peer_on_the_relay_address_gets_nothing_unless_it_is_a_live_relayed_address() {
        let server = Server::start(&config(&["127.0.0.1"], ""));
        let credential = server.credential("alice");
        let client = Client::allocate(server.udp_address(), &credential).await.unwrap();
        let other = Client::allocate(server.udp_address(), &credential).await.unwrap();
        let service = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        service.set_nonblocking(true).unwrap();

        other.send(b"permits the client's address", client.relayed_address()).await;
        client.send(b"to a local service", service.local_addr().unwrap()).await;
        client.send(b"to the other client", other.relayed_address()).await;
        // The server preserves the order, so the service would have received its datagram by now.
        assert_eq!(other.receive().await, (b"to the other client".to_vec(), client.relayed_address()));
        let nothing = service.recv_from(&mut [0; 64]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    }

    /// Exchanges data between two clients' relayed addresses, first in indications and then through channels.
    async fn talk_relay_to_relay(ip: &str) {
        let server = Server::start(&config(&[ip], ""));
        // The kernel spreads clients over the workers, so some pairs share a worker and some do not.
        for pair in 0..6 {
            let credential = server.credential(&format!("pair-{pair}"));
            let alice = Client::allocate(server.udp_address(), &credential).await.unwrap();
            let bob = Client::allocate(server.udp_address(), &credential).await.unwrap();

            // Data from Alice may be dropped until Bob permits her address.
            alice.send(b"knock", bob.relayed_address()).await;
            bob.send(b"permitted", alice.relayed_address()).await;
            assert_eq!(alice.receive().await, (b"permitted".to_vec(), bob.relayed_address()));

            for round in 0.. {
                assert!(round < ROUNDS, "the channels are not bound");
                let channels = alice.socket.sent.channel_data() > 0 && bob.socket.sent.channel_data() > 0;
                let payload = pattern(1000, round);
                send_and_expect(&alice, &bob, &payload).await;
                send_and_expect(&bob, &alice, &payload).await;
                if channels {
                    break;
                }
            }
            assert!(alice.socket.received.channel_data() > 0 && bob.socket.received.channel_data() > 0);
        }
    }

    async fn send_and_expect(from: &Client, to: &Client, payload: &[u8]) {
        from.send(payload, to.relayed_address()).await;
        let mut received = to.receive().await;
        if received.0 == b"knock" {
            received = to.receive().await;
        }
        assert_eq!(received, (payload.to_vec(), from.relayed_address()));
    }

    #[tokio::test]
    async fn two_clients_reach_each_other_relay_to_relay_on_loopback_over_ipv4() {
        talk_relay_to_relay("127.0.0.1").await;
    }

    #[tokio::test]
    async fn two_clients_reach_each_other_relay_to_relay_on_loopback_over_ipv6() {
        if !has_ipv6() {
            return;
        }
        talk_relay_to_relay("::1").await;
    }

    // RFC 8489 §9.2.4: a wrong password is a 401. The log has the reason.
    #[tokio::test]
    async fn a_wrong_password_is_401_and_logged_without_the_password() {
        let server = Server::start(&config(&["127.0.0.1"], ""));
        let mut credential = server.credential("mallory");
        credential.password = "not-the-minted-password".to_owned();
        let rejected = Client::allocate(server.udp_address(), &credential).await.map(drop).unwrap_err().to_string();
        assert!(rejected.contains("401"), "{rejected}");
        server.wait_for_log(|line| line.text().contains("mallory"));
        assert!(server.logs().iter().all(|line| !line.text().contains(&credential.password)));
    }

    // RFC 8489 §6.3.1, §14.2.
    #[tokio::test]
    async fn a_binding_response_has_the_clients_address() {
        if !has_ipv6() {
            return;
        }
        let server = Server::start(&config(&["127.0.0.1", "::1"], ""));
        for ip in ["127.0.0.1", "::1"] {
            let address = server.udp_address_on(ip.parse().unwrap());
            let (mapped, local) = mapped_address(address, &server.credential("alice")).await;
            assert_eq!(mapped, local);
        }
    }

    #[tokio::test]
    async fn an_allocation_is_logged_from_its_creation_to_its_end() {
        let server = Server::start(&config(&["127.0.0.1"], LOOPBACK_PEERS));
        let client = Client::allocate(server.udp_address(), &server.credential("alice")).await.unwrap();
        let relayed = client.relayed_address().to_string();
        let created = server.wait_for_log(|line| line.message() == "allocation created");
        assert_eq!(created.field("relay"), Some(relayed.clone()));
        assert_eq!(created.field("user").as_deref(), Some("alice"));
        assert!(created.field("client").is_some(), "{created:?}");

        let (peer, peer_address) = peer_on("127.0.0.1").await;
        client.send(b"seventeen letters", peer_address).await;
        receive(&peer).await;
        peer.send_to(b"eleven back", client.relayed_address()).await.unwrap();
        client.receive().await;

        client.close().await;
        let ended = server.wait_for_log(|line| line.message() == "allocation ended");
        assert_eq!(ended.field("relay"), Some(relayed));
        assert_eq!(ended.field("bytes_to_peers").as_deref(), Some("17"));
        assert_eq!(ended.field("bytes_to_client").as_deref(), Some("11"));
        assert!(ended.field("reason").is_some() && ended.field("duration").is_some(), "{ended:?}");
    }

    #[tokio::test]
    async fn sigterm_ends_a_server_that_has_allocations_with_exit_code_0() {
        let server = Server::start(&config(&["127.0.0.1"], LOOPBACK_PEERS));
        let client = Client::allocate(server.udp_address(), &server.credential("alice")).await.unwrap();
        let (peer, peer_address) = peer_on("127.0.0.1").await;
        client.send(b"hello", peer_address).await;
        receive(&peer).await;

        let ended = server.terminate();
        assert_eq!(ended.code, Some(0), "{:?}", ended.logs);
        assert!(ended.logs.iter().any(|line| line.message() == "stopped"), "{:?}", ended.logs);
        assert_eq!(ended.stdout, Vec::<String>::new());
    }

    /// Returns the count of an outcome in the log of a stopped server.
    fn counted(ended: &Ended, outcome: &str) -> usize {
        let stopped = ended.logs.iter().find(|line| line.message() == "stopped").unwrap();
        let outcomes = stopped.field("outcomes").unwrap();
        let count = outcomes.split(", ").find_map(|part| part.strip_prefix(outcome)?.strip_prefix(": "));
        count.map_or(0, |count| count.parse().unwrap())
    }

    /// Receives all datagrams that are queued at a socket and returns their number.
    fn receive_all(socket: &std::net::UdpSocket) -> usize {
        socket.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| socket.recv_from(&mut [0; 2048]).ok()).count()
    }

    /// The payload of a datagram. The burst of 64 KiB allows `BURST` of them. At 10 bytes per second, the limit allows
    /// no further one during the test.
    const PAYLOAD: [u8; 1000] = [7; 1000];
    const BURST: usize = 65;
    /// A number of datagrams that fits into the buffer of every socket.
    const EACH: usize = 40;
    const ROUNDS_OF_DATA: usize = 5;
    const SENT: usize = EACH * ROUNDS_OF_DATA;

    fn limited_to_10_bytes_per_second(key: &str) -> Server {
        let more = format!("{LOOPBACK_PEERS}[limits]\n{key} = 10\n");
        Server::start(&config(&["127.0.0.1"], &more))
    }

    #[test]
    fn data_over_an_allocations_rate_limit_is_dropped_and_counted() {
        let server = limited_to_10_bytes_per_second("bytes-per-second-per-allocation");
        let client = plain::Client::new(server.udp_address());
        let (session, relayed) = client.allocate(&plain::Login::mint("alice", 600)).unwrap();
        let peer = plain::socket("127.0.0.1:0".parse().unwrap());
        let peer_address = peer.local_addr().unwrap();
        client.permit(&session, peer_address);

        let (mut to_peer, mut to_client) = (0, 0);
        for _ in 0..ROUNDS_OF_DATA {
            (0..EACH).for_each(|_| client.send_to_peer(peer_address, &PAYLOAD));
            // The response shows that the server has handled all preceding packets.
            client.binding();
            to_peer += receive_all(&peer);

            (0..EACH).for_each(|_| _ = peer.send_to(&PAYLOAD, relayed).unwrap());
            // An empty datagram is within every limit.
            peer.send_to(b"", relayed).unwrap();
            let lengths = std::iter::from_fn(|| Some(client.receive().get::<Data<'_>>().unwrap().0.len()));
            to_client += lengths.take_while(|length| *length > 0).count();
        }
        assert_eq!((to_peer, to_client), (BURST, BURST));

        let logged = server.wait_for_log(|line| line.message().starts_with("data dropped"));
        assert_eq!(logged.field("limit").as_deref(), Some("limits.bytes-per-second-per-allocation"));
        assert_eq!(logged.field("user").as_deref(), Some("alice"));
        assert_eq!(logged.field("client"), Some(client.address().to_string()));
        let ended = server.terminate();
        assert_eq!(counted(&ended, "dropped allocation-bandwidth"), 2 * (SENT - BURST));
        assert_eq!(
            (counted(&ended, "relayed-to-peer"), counted(&ended, "relayed-to-client")),
            (BURST, BURST + ROUNDS_OF_DATA)
        );
        let logged = ended.logs.iter().filter(|line| line.message().starts_with("data dropped")).count();
        assert_eq!(logged, 1, "once for both directions");
    }

    // The kernel spreads the clients over several workers.
    #[test]
    fn all_allocations_of_a_user_share_its_rate_limit_across_workers() {
        let server = limited_to_10_bytes_per_second("bytes-per-second-per-user");
        let peer = plain::socket("127.0.0.1:0".parse().unwrap());
        let peer_address = peer.local_addr().unwrap();
        let clients: Vec<plain::Client> = (0..8).map(|_| plain::Client::new(server.udp_address())).collect();
        for client in &clients {
            let (session, _) = client.allocate(&plain::Login::mint("alice", 600)).unwrap();
            client.permit(&session, peer_address);
        }
        let mut passed = 0;
        for _ in 0..SENT / clients.len() {
            clients.iter().for_each(|client| client.send_to_peer(peer_address, &PAYLOAD));
            clients.iter().for_each(|client| _ = client.binding());
            passed += receive_all(&peer);
        }
        assert_eq!(passed, BURST);
        let ended = server.terminate();
        assert_eq!(counted(&ended, "dropped user-bandwidth"), SENT - BURST);
    }
}
