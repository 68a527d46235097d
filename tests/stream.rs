//! Clients on TCP connections to the real server (RFC 8489 §6.2.2, RFC 8656 §12.5).

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
mod support;

#[cfg(test)]
mod stream {
    use std::io::{Read as _, Write as _};
    use std::net::SocketAddr;
    use std::process::Command;
    use std::time::Duration;

    use turnserver::stun::attribute::{
        ChannelNumber, Data, Lifetime, RequestedTransport, XorMappedAddress, XorPeerAddress,
    };
    use turnserver::stun::{Class, Message, Method, TransactionId};

    use crate::support::client::{Client, Login, allocate, message, receive, socket};
    use crate::support::{Server, TIMEOUT, TempDir, config, run};

    const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\", \"::1\"]\n";

    fn server(more: &str) -> Server {
        Server::start(&config(&["127.0.0.1"], more))
    }

    /// The connections of all clients belong to one worker.
    fn one_worker(more: &str) -> Server {
        Server::start(&format!("workers = 1\n{}", config(&["127.0.0.1"], more)))
    }

    fn binding(number: u8) -> Vec<u8> {
        message(Class::Request, Method::BINDING, TransactionId::new([number; 12]), &|_| {})
    }

    fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = [number.to_be_bytes(), u16::try_from(payload.len()).unwrap().to_be_bytes()].concat();
        frame.extend(payload);
        frame.resize(frame.len().next_multiple_of(4), 0);
        frame
    }

    fn mapped(frame: &[u8]) -> SocketAddr {
        Message::parse(frame).unwrap().get::<XorMappedAddress>().unwrap().unwrap().0
    }

    #[test]
    fn binding_works_over_ipv4_and_ipv6() {
        for ip in ["127.0.0.1", "::1"] {
            let server = Server::start(&config(&[ip], ""));
            let client = Client::connect(server.tcp_address());
            assert_eq!(client.binding(), client.address());
        }
    }

    #[test]
    fn messages_are_found_however_the_stream_is_split() {
        let server = server("");
        let client = Client::connect(server.tcp_address());
        let requests: Vec<u8> = (0..5).flat_map(binding).collect();
        client.send(&requests);
        for byte in binding(5) {
            client.send(&[byte]);
        }
        let last = binding(6);
        let (front, back) = last.split_at(7);
        client.send(&[&binding(7)[..], front].concat());
        client.send(back);
        for number in [0, 1, 2, 3, 4, 5, 7, 6] {
            let response = client.frame().unwrap();
            assert_eq!(Message::parse(&response).unwrap().transaction_id(), TransactionId::new([number; 12]));
            assert_eq!(mapped(&response), client.address());
        }
    }

    #[test]
    fn data_flows_both_ways_in_indications_and_padded_channel_data() {
        let server = server(LOOPBACK_PEERS);
        let client = Client::connect(server.tcp_address());
        let peer = socket("127.0.0.1:0".parse().unwrap());
        let peer_address = peer.local_addr().unwrap();
        let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        client.permit(&session, peer_address);

        client.send_to_peer(peer_address, b"to the peer");
        assert_eq!(receive(&peer), (b"to the peer".to_vec(), relayed));
        peer.send_to(b"to the client", relayed).unwrap();
        let response = client.receive();
        assert_eq!(response.get::<Data<'_>>(), Some(Data(b"to the client")));
        assert_eq!(response.get::<XorPeerAddress>(), Some(XorPeerAddress(peer_address)));

        let bound = client.request(&session, Method::CHANNEL_BIND, &|writer| {
            writer.push(&ChannelNumber(0x4001));
            writer.push(&XorPeerAddress(peer_address));
        });
        assert_eq!(bound.error(), None);
        for payload in [&b""[..], b"1", b"22", b"333", b"4444"] {
            client.send(&channel_data(0x4001, payload));
            assert_eq!(receive(&peer), (payload.to_vec(), relayed));
            peer.send_to(payload, relayed).unwrap();
            assert_eq!(client.frame().unwrap()[4..], *payload);
        }
    }

    #[test]
    fn a_client_on_tcp_and_one_on_udp_reach_each_other() {
        let server = server("");
        let (tcp, udp) = (Client::connect(server.tcp_address()), Client::new(server.udp_address()));
        let (tcp_session, tcp_relayed) = tcp.allocate(&Login::mint("alice", 600)).unwrap();
        let (udp_session, udp_relayed) = udp.allocate(&Login::mint("bob", 600)).unwrap();
        tcp.permit(&tcp_session, udp_relayed);
        udp.permit(&udp_session, tcp_relayed);
        tcp.send_to_peer(udp_relayed, b"from tcp");
        assert_eq!(udp.receive().get::<Data<'_>>(), Some(Data(b"from tcp")));
        udp.send_to_peer(tcp_relayed, b"from udp");
        assert_eq!(tcp.receive().get::<Data<'_>>(), Some(Data(b"from udp")));
    }

    #[test]
    fn an_allocation_ends_with_its_connection_and_its_port_is_free() {
        let server = server("");
        let client = Client::connect(server.tcp_address());
        let (_, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        let held = std::net::UdpSocket::bind(relayed);
        assert!(held.is_err());
        drop(client);
        let ended = server.wait_for_log(|line| line.message() == "allocation ended");
        assert_eq!(ended.field("reason").as_deref(), Some("the connection was closed"));
        // The server closes the socket before it logs the end.
        std::net::UdpSocket::bind(relayed).unwrap();
    }

    #[test]
    fn data_that_is_not_turn_ends_the_connection() {
        let server = server("");
        for garbage in [&b"\x16\x03\x01\x02\x00"[..], b"PUT / HTTP/1.1\r\n\r\n", &[0, 1, 0, 0, 9, 9, 9, 9]] {
            let client = Client::connect(server.tcp_address());
            client.send(garbage);
            assert_eq!(client.frame(), None);
        }
        assert_eq!(Client::connect(server.tcp_address()).allocate(&Login::mint("alice", 600)).map(drop), Ok(()));
    }

    #[test]
    fn the_idle_timeout_starts_with_the_first_request() {
        let server = server("[timeouts]\nfirst-request = \"5m\"\nidle = \"1s\"\n");
        let (silent, active) = (Client::connect(server.tcp_address()), Client::connect(server.tcp_address()));
        assert_eq!(active.binding(), active.address());
        assert_eq!(active.frame(), None);
        assert_eq!(silent.binding(), silent.address());
    }

    #[test]
    fn an_incomplete_first_request_ends_at_the_deadline() {
        let server = server("[timeouts]\nfirst-request = \"1s\"\n");
        let half = Client::connect(server.tcp_address());
        half.send(&binding(1)[..10]);
        let mut slow = std::net::TcpStream::connect(server.tcp_address()).unwrap();
        // At this rate the request would take more than a minute.
        let request = [&[0, 1, 0x0f, 0xfc, 0x21, 0x12, 0xa4, 0x42][..], &[0; 4092]].concat();
        slow.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let sent = request.iter().position(|byte| {
            let closed = slow.write_all(&[*byte]).is_err();
            // The read timeout is the pause between two bytes.
            closed || slow.read(&mut [0; 8]).is_ok()
        });
        assert!(sent.is_some());
        assert_eq!(half.frame(), None);
    }

    #[test]
    fn an_unauthenticated_client_gets_responses_until_garbage_and_cannot_send_long_messages() {
        let server = server("");
        let client = Client::connect(server.tcp_address());
        client.send(&[&binding(1)[..], &[0xff; 9]].concat());
        assert_eq!(mapped(&client.frame().unwrap()), client.address());
        assert_eq!(client.frame(), None);
        // ChannelData, and a request longer than any that an unauthenticated client needs.
        for start in [&[0x40, 0, 0, 4, 1, 2, 3, 4][..], &[0, 3, 0x20, 0, 0x21, 0x12, 0xa4, 0x42]] {
            let client = Client::connect(server.tcp_address());
            client.send(start);
            assert_eq!(client.frame(), None);
        }
    }

    #[test]
    fn channel_data_can_follow_an_allocate_request_in_one_segment() {
        let server = server("");
        let client = Client::connect(server.tcp_address());
        let session = client.challenge(&Login::mint("alice", 600));
        let request = client.signed(&session, Method::ALLOCATE, &|writer| writer.push(&RequestedTransport::UDP));
        // RFC 8656 §12.6: data for an unbound channel is discarded. The connection stays open.
        client.send(&[&request[..], &channel_data(0x4000, b"early")].concat());
        assert_eq!(client.receive().error(), None);
        assert_eq!(client.binding(), client.address());
    }

    #[test]
    fn more_requests_than_one_iteration_serves_get_responses_in_order() {
        let server = server("");
        let client = Client::connect(server.tcp_address());
        let requests: Vec<u8> = (0..250).flat_map(binding).collect();
        client.send(&requests);
        for number in 0..250 {
            let response = client.frame().unwrap();
            assert_eq!(Message::parse(&response).unwrap().transaction_id(), TransactionId::new([number; 12]));
        }
    }

    #[test]
    fn a_client_that_does_not_read_loses_data_and_keeps_its_allocation() {
        let server = server(LOOPBACK_PEERS);
        let client = Client::connect(server.tcp_address());
        let peer = socket("127.0.0.1:0".parse().unwrap());
        let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        client.permit(&session, peer.local_addr().unwrap());
        let other = Client::new(server.udp_address());
        for round in 0..2_000 {
            peer.send_to(&[7; 10_000], relayed).unwrap();
            // Waiting for a response lets the server catch up.
            if round % 10 == 0 {
                assert_eq!(other.binding(), other.address());
            }
        }
        // The queued data arrives, followed by the response, which is never dropped.
        client.send(&allocate(TransactionId::new([9; 12])));
        let mut data = 0;
        loop {
            let frame = client.frame().unwrap();
            let message = Message::parse(&frame).unwrap();
            match message.class() {
                Class::Indication => data += 1,
                _ => break assert_eq!(message.transaction_id(), TransactionId::new([9; 12])),
            }
        }
        assert!(data > 0 && data < 2_000, "{data}");
        assert_eq!(client.request(&session, Method::REFRESH, &|writer| writer.push(&Lifetime(600))).error(), None);
        let logs = server.terminate().logs;
        let stopped = logs.iter().find(|line| line.message() == "stopped").unwrap();
        // A slow machine drops all of it for its age.
        let outcomes = stopped.field("outcomes").unwrap();
        let dropped = ["dropped send-buffer-full", "dropped outdated"];
        assert!(dropped.iter().any(|dropped| outcomes.contains(dropped)), "{stopped:?}");
    }

    // A few datagrams that the limit in bytes permits. No later packet and no write drops the rest.
    #[test]
    fn data_that_waits_too_long_is_dropped_without_further_traffic() {
        let debug = config(&["127.0.0.1"], LOOPBACK_PEERS).replace("[log]\n", "[log]\nlevel = \"debug\"\n");
        let server = Server::start(&debug);
        let client = Client::connect(server.tcp_address());
        let peer = socket("127.0.0.1:0".parse().unwrap());
        let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        client.permit(&session, peer.local_addr().unwrap());
        for _ in 0..60 {
            peer.send_to(&[7; 10_000], relayed).unwrap();
        }
        let line = server.wait_for_log(|line| line.message() == "dropped outdated");
        assert_eq!(line.field("client"), Some(client.address().to_string()));
    }

    #[test]
    fn every_packet_for_a_client_that_does_not_read_is_counted_when_the_server_stops() {
        const ROUNDS: u64 = 200;
        let server = one_worker(LOOPBACK_PEERS);
        let clients = [Client::connect(server.tcp_address()), Client::new(server.udp_address())];
        let peer = socket("127.0.0.1:0".parse().unwrap());
        let [unread, read] = clients.each_ref().map(|client| {
            let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
            client.permit(&session, peer.local_addr().unwrap());
            relayed
        });
        for _ in 0..ROUNDS {
            for _ in 0..10 {
                peer.send_to(&[7; 10_000], unread).unwrap();
            }
            // The worker has read the others when this one arrives.
            peer.send_to(b"last", read).unwrap();
            receive(clients[1].socket());
        }
        let logs = server.terminate().logs;
        let stopped = logs.iter().find(|line| line.message() == "stopped").unwrap();
        let count = |field| stopped.field(field).unwrap().parse::<u64>().unwrap();
        assert_eq!(count("relayed") + count("dropped"), 11 * ROUNDS, "{stopped:?}");
    }

    // The server runs out of descriptors and recovers.
    #[test]
    fn connections_that_cannot_be_accepted_wait_while_other_service_continues() {
        let server = Server::start_with_open_files(&format!("workers = 2\n{}", config(&["127.0.0.1"], "")), 48);
        let login = Login::mint("alice", 600);
        let allocate = || {
            let udp = Client::new(server.udp_address());
            let (session, _) = udp.allocate(&login)?;
            Ok::<_, u16>((udp, session))
        };
        let mut allocated = Vec::new();
        let rejected = loop {
            match allocate() {
                Ok(new) => allocated.push(new),
                Err(code) => break code,
            }
        };
        assert!(rejected == 508 && (5..32).contains(&allocated.len()), "{rejected} after {}", allocated.len());
        let waiting = Client::connect(server.tcp_address());
        server.wait_for_log(|line| line.message().starts_with("a connection could not be accepted"));
        let udp = Client::new(server.udp_address());
        assert_eq!(udp.binding(), udp.address());
        for (udp, session) in &allocated {
            udp.delete(session);
        }
        assert_eq!(waiting.binding(), waiting.address());
    }

    #[test]
    fn clients_leave_descriptors_to_the_operator() {
        let directory = TempDir::new();
        let socket = directory.path().join("control.sock");
        let more = format!("[control]\nsocket = {socket:?}\n[http]\nlisten = [\"127.0.0.1:0\"]\n");
        let server = Server::start_with_open_files(&format!("workers = 2\n{}", config(&["127.0.0.1"], &more)), 160);
        let http = server.wait_for_log(|line| line.message() == "HTTP listening").field("address").unwrap();
        let mut clients = Vec::new();
        loop {
            let client = Client::new(server.udp_address());
            match client.allocate(&Login::mint(&format!("user{}", clients.len()), 600)) {
                Ok(_) => clients.push(client),
                Err(code) => break assert_eq!(code, 508),
            }
        }
        // More than the spare files.
        let waiting: Vec<Client> = (0..40).map(|_| Client::connect(server.tcp_address())).collect();
        let idle: Vec<std::net::TcpStream> = (0..40).map(|_| std::net::TcpStream::connect(&http).unwrap()).collect();
        server.wait_for_log(|line| line.message().starts_with("a connection could not be accepted"));
        for command in [&["status"] as &[&str], &["sessions"], &["reload", "--dry-run"]] {
            let mut ctl = Command::new(env!("CARGO_BIN_EXE_turnserver"));
            let finished = run(ctl.arg("ctl").args(command).arg("--socket").arg(&socket), None, TIMEOUT);
            assert_eq!(finished.code, Some(0), "{command:?}: {finished:?}");
        }
        drop((waiting, idle));
    }

    #[test]
    fn connections_leave_descriptors_for_relay_sockets() {
        let server = Server::start_with_open_files(&format!("workers = 2\n{}", config(&["127.0.0.1"], "")), 60);
        let warned = server.wait_for_log(|line| line.message().starts_with("the limit of open files is 60,"));
        // The server does not run as a service.
        assert!(warned.message().contains("`ulimit -n "), "{warned:?}");
        let most: usize = warned.field("connections").unwrap().parse().unwrap();
        let connections: Vec<Client> = (0..60).map(|_| Client::connect(server.tcp_address())).collect();
        for _ in 0..5 {
            assert!(Client::new(server.udp_address()).allocate(&Login::mint("alice", 600)).is_ok());
        }
        let logs = server.terminate().logs;
        assert!(!logs.iter().any(|line| line.message().starts_with("a connection could not be accepted")), "{logs:#?}");
        let counts = logs.last().unwrap().field("connection_ends").unwrap();
        let open: usize = counts.rsplit_once("server-stopped: ").unwrap().1.parse().unwrap();
        assert!((1..=most).contains(&open) && counts.contains("evicted"), "{most}: {counts}");
        drop(connections);
    }

    #[test]
    fn connections_are_limited_per_source_and_in_total() {
        let server = one_worker("[limits]\nconnections = 3\nconnections-per-source = 2\n");
        let connect = || {
            let client = Client::connect(server.tcp_address());
            assert_eq!(client.binding(), client.address());
            client
        };
        let [first, second, third, fourth] = [(); 4].map(|()| connect());
        // The oldest connection of the source gives way to each further one.
        assert_eq!((first.frame(), second.frame()), (None, None));
        for client in [&third, &fourth] {
            assert_eq!(client.binding(), client.address());
        }
        let login = Login::mint("alice", 600);
        for client in [&third, &fourth] {
            client.allocate(&login).unwrap();
        }
        let fifth = connect();
        fifth.allocate(&login).unwrap();
        // All three places are those of clients with an allocation.
        assert_eq!(Client::connect(server.tcp_address()).frame(), None);
        let rejected = server.wait_for_log(|line| line.message().starts_with("connection rejected"));
        assert_eq!(rejected.field("limit").as_deref(), Some("limits.connections"));
    }

    /// Returns connected clients with an allocation, after each has received a response.
    fn served_clients(server: &Server, count: usize) -> Vec<Client> {
        let allocate = |_| {
            let client = Client::connect(server.tcp_address());
            client.allocate(&Login::mint("alice", 600)).unwrap();
            client
        };
        let clients: Vec<_> = (0..count).map(allocate).collect();
        for client in &clients {
            assert_eq!(client.binding(), client.address());
        }
        clients
    }

    #[test]
    fn clients_are_served_while_another_behind_their_nat_opens_idle_connections() {
        let server = one_worker("[limits]\nconnections-per-source = 5\n[timeouts]\nfirst-request = \"5m\"\n");
        let idle: Vec<_> = (0..5).map(|_| std::net::TcpStream::connect(server.tcp_address()).unwrap()).collect();
        served_clients(&server, 5);
        drop(idle);
    }

    #[test]
    fn connections_with_an_allocation_do_not_count_against_the_limit_per_source() {
        let server = server("[limits]\nconnections-per-source = 2\nallocated-connections-per-source = 4\n");
        let login = Login::mint("alice", 600);
        let connect = || {
            let client = Client::connect(server.tcp_address());
            (client.allocate(&login).unwrap(), client)
        };
        let clients: Vec<_> = (0..4).map(|_| connect()).collect();
        // The fifth gets its allocation, but the connection ends.
        let (_, fifth) = connect();
        assert_eq!(fifth.frame(), None);
        let closed = server.wait_for_log(|line| line.message() == "connection closed: the limit is reached");
        assert_eq!(closed.field("limit").as_deref(), Some("limits.allocated-connections-per-source"));
        // Without its allocation, a connection counts as one without an allocation again.
        let ((session, _), first) = &clients[0];
        first.delete(session);
        let (_, sixth) = connect();
        assert_eq!(sixth.binding(), sixth.address());
        for ((session, _), client) in &clients[1..] {
            assert_eq!(client.request(session, Method::REFRESH, &|writer| writer.push(&Lifetime(600))).error(), None);
        }
    }

    #[test]
    fn clients_are_served_while_others_fill_all_places_with_idle_connections() {
        let server =
            server("[limits]\nconnections = 60\nconnections-per-source = 25\n[timeouts]\nfirst-request = \"5m\"\n");
        let idle: Vec<_> = (0..60)
            .map(|number| {
                let flood = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                flood.bind(&SocketAddr::from(([127, 0, 1, 1 + number % 3], 0)).into()).unwrap();
                flood.connect(&server.tcp_address().into()).unwrap();
                flood
            })
            .collect();
        let clients = served_clients(&server, 20);
        drop((idle, clients));
        let logs = server.terminate().logs;
        let counts = logs.iter().find_map(|line| line.field("connection_ends")).unwrap();
        assert!(counts.starts_with("accepted: 80,") && counts.contains("evicted: 20"), "{counts}");
    }

    #[test]
    fn a_tls_handshake_without_a_certificate_is_logged() {
        let server = server("");
        let client = Client::connect(server.tcp_address());
        client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
        assert_eq!(client.frame(), None);
        let logged = server.wait_for_log(|line| line.message().contains("the server has no certificate"));
        assert_eq!(logged.field("client"), Some(client.address().to_string()));
    }
}
