//! A client that nobody here wrote, the `turn` crate's, uses the real server over loopback.

// `cfg(test)` tells clippy that helpers in a test binary are test code too.
#[cfg(test)]
#[path = "relay/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod relay {
    use std::net::{IpAddr, SocketAddr};

    use tokio::net::UdpSocket;
    use tokio::time::timeout;
    use turnserver::stun::attribute::Data;

    use crate::client::{Client, mapped_address};
    use crate::support::{Ended, PATIENCE, Server, client as plain, config, config_for, has_ipv6};

    /// For peers that are plain sockets on this machine.
    const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.0/8\", \"::1/128\"]\n";

    /// More than the binding of a channel can take; the loops that wait for one end long before.
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
        let (len, from) = timeout(PATIENCE, peer.recv_from(&mut buffer)).await.expect("the peer gets data").unwrap();
        buffer.truncate(len);
        (buffer, from)
    }

    /// Data flows both ways between `client` and a peer on `ip`, first in indications and then through a channel.
    async fn exchange_with_peer(client: &Client, ip: &str) {
        let (peer, peer_address) = peer_on(ip).await;
        let relayed = client.relayed_address();

        client.send(b"by indication", peer_address).await;
        assert_eq!(receive(&peer).await, (b"by indication".to_vec(), relayed));
        assert_eq!(client.socket.sent.indications(), 1);

        // The permission is for the peer's IP address and the channel for its port too (RFC 8656 §9, §12), so what
        // another port sends comes in a Data indication.
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

    // RFC 8656 §9: without a permission for its address, what a peer sends is dropped.
    #[tokio::test]
    async fn a_peer_without_permission_does_not_reach_the_client() {
        let server = Server::start(&config(&["127.0.0.1"], LOOPBACK_PEERS));
        let client = Client::allocate(server.udp_address(), &server.credential("alice")).await.unwrap();
        let (peer, peer_address) = peer_on("127.0.0.1").await;
        client.send(b"permits 127.0.0.1", peer_address).await;
        receive(&peer).await;

        let (stranger, _) = peer_on("127.0.0.2").await;
        stranger.send_to(b"from a stranger", client.relayed_address()).await.unwrap();
        // The relay's socket keeps the order, so the stranger's datagram would come first.
        peer.send_to(b"from the peer", client.relayed_address()).await.unwrap();
        assert_eq!(client.receive().await, (b"from the peer".to_vec(), peer_address));
    }

    #[tokio::test]
    async fn a_peer_on_loopback_is_403_unless_the_operator_allows_it() {
        let server = Server::start(&config(&["127.0.0.1"], ""));
        let client = Client::allocate(server.udp_address(), &server.credential("alice")).await.unwrap();
        let (_peer, peer_address) = peer_on("127.0.0.2").await;
        let refused = client.try_send(b"let me in", peer_address).await.unwrap_err().to_string();
        assert!(refused.contains("403"), "{refused}");
    }

    // A permission is for an address with all its ports (RFC 8656 §9), so one for the relay's own address, which other
    // clients' relayed addresses have, is granted. What else listens there stays out of reach.
    #[tokio::test]
    async fn a_peer_on_the_relays_own_address_gets_nothing_unless_it_is_a_live_relayed_address() {
        let server = Server::start(&config(&["127.0.0.1"], ""));
        let credential = server.credential("alice");
        let client = Client::allocate(server.udp_address(), &credential).await.unwrap();
        let other = Client::allocate(server.udp_address(), &credential).await.unwrap();
        let service = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        service.set_nonblocking(true).unwrap();

        other.send(b"permits the client's address", client.relayed_address()).await;
        client.send(b"to a local service", service.local_addr().unwrap()).await;
        client.send(b"to the other client", other.relayed_address()).await;
        // The server keeps the order, so the service's datagram would be there before this one.
        assert_eq!(other.receive().await, (b"to the other client".to_vec(), client.relayed_address()));
        let nothing = service.recv_from(&mut [0; 64]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    }

    /// Two clients send to each other's relayed addresses, first in indications and then through channels.
    async fn talk_relay_to_relay(ip: &str) {
        let server = Server::start(&config(&[ip], ""));
        // The kernel spreads clients over the workers; of several pairs some are on one worker, some on two.
        for pair in 0..6 {
            let credential = server.credential(&format!("pair-{pair}"));
            let alice = Client::allocate(server.udp_address(), &credential).await.unwrap();
            let bob = Client::allocate(server.udp_address(), &credential).await.unwrap();

            // Before Bob permits Alice's address, what she sends may be dropped.
            alice.send(b"knock", bob.relayed_address()).await;
            bob.send(b"come in", alice.relayed_address()).await;
            assert_eq!(alice.receive().await, (b"come in".to_vec(), bob.relayed_address()));

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

    // RFC 8489 §9.2.4: a wrong password is a 401, and the operator learns why.
    #[tokio::test]
    async fn a_wrong_password_is_401_and_logged_without_the_password() {
        let server = Server::start(&config(&["127.0.0.1"], ""));
        let mut credential = server.credential("mallory");
        credential.password = "not-what-was-minted".to_owned();
        let refused = Client::allocate(server.udp_address(), &credential).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("401"), "{refused}");
        server.wait_for_log(|line| line.text().contains("mallory"));
        assert!(server.logs().iter().all(|line| !line.text().contains(&credential.password)));
    }

    // RFC 8489 §6.3.1, §14.2.
    #[tokio::test]
    async fn a_binding_request_is_answered_with_the_clients_address() {
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

    /// What the log of a server that has ended says of an outcome.
    fn counted(ended: &Ended, outcome: &str) -> usize {
        let stopped = ended.logs.iter().find(|line| line.message() == "stopped").unwrap();
        let detail = stopped.field("detail").unwrap();
        let count = detail.split(", ").find_map(|part| part.strip_prefix(outcome)?.strip_prefix(": "));
        count.map_or(0, |count| count.parse().unwrap())
    }

    /// As many datagrams as wait at a socket.
    fn waiting(socket: &std::net::UdpSocket) -> usize {
        socket.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| socket.recv_from(&mut [0; 2048]).ok()).count()
    }

    /// A datagram, and as many of them as a burst of 64 KiB holds. At 10 bytes a second it takes minutes to earn another.
    const PAYLOAD: [u8; 1000] = [7; 1000];
    const BURST: usize = 65;
    /// So few at a time that every socket's buffer holds them.
    const EACH: usize = 40;
    const ROUNDS_OF_DATA: usize = 5;
    const SENT: usize = EACH * ROUNDS_OF_DATA;

    fn limited_to_10_bytes_a_second(key: &str) -> Server {
        let more = format!("{LOOPBACK_PEERS}[limits]\n{key} = 10\n");
        Server::start(&config(&["127.0.0.1"], &more))
    }

    #[test]
    fn as_much_passes_an_allocation_as_its_limit_allows_and_the_rest_is_counted() {
        let server = limited_to_10_bytes_a_second("bytes-per-second-per-allocation");
        let client = plain::Client::new(server.udp_address());
        let (session, relayed) = client.allocate(&plain::Login::mint("alice", 600)).unwrap();
        let peer = plain::socket("127.0.0.1:0".parse().unwrap());
        let peer_address = peer.local_addr().unwrap();
        client.permit(&session, peer_address);

        let (mut to_peer, mut to_client) = (0, 0);
        for _ in 0..ROUNDS_OF_DATA {
            (0..EACH).for_each(|_| client.send_to_peer(peer_address, &PAYLOAD));
            // The answer comes when all before it has been looked at.
            client.binding();
            to_peer += waiting(&peer);

            (0..EACH).for_each(|_| _ = peer.send_to(&PAYLOAD, relayed).unwrap());
            // An empty datagram is within every limit.
            peer.send_to(b"", relayed).unwrap();
            let lengths = std::iter::from_fn(|| Some(client.receive().get::<Data<'_>>().unwrap().0.len()));
            to_client += lengths.take_while(|length| *length > 0).count();
        }
        assert_eq!((to_peer, to_client), (BURST, BURST));

        let told = server.wait_for_log(|line| line.message().starts_with("data dropped"));
        assert_eq!(told.field("limit").as_deref(), Some("limits.bytes-per-second-per-allocation"));
        assert_eq!(told.field("user").as_deref(), Some("alice"));
        assert_eq!(told.field("client"), Some(client.address().to_string()));
        let ended = server.terminate();
        assert_eq!(counted(&ended, "dropped allocation-bandwidth"), 2 * (SENT - BURST));
        assert_eq!(
            (counted(&ended, "relayed-to-peer"), counted(&ended, "relayed-to-client")),
            (BURST, BURST + ROUNDS_OF_DATA)
        );
        let told = ended.logs.iter().filter(|line| line.message().starts_with("data dropped")).count();
        assert_eq!(told, 1, "once for both directions");
    }

    // Wherever the kernel has put them: the clients are on several workers.
    #[test]
    fn all_allocations_of_a_user_share_its_limit_over_the_workers() {
        let server = limited_to_10_bytes_a_second("bytes-per-second-per-user");
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
            passed += waiting(&peer);
        }
        assert_eq!(passed, BURST);
        let ended = server.terminate();
        assert_eq!(counted(&ended, "dropped user-bandwidth"), SENT - BURST);
    }
}
