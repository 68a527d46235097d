//! IP header fields and ICMP errors through the real server (RFC 8656 §11.5, §14 to §16).

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
mod support;

#[cfg(test)]
mod translation {
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::os::fd::AsFd as _;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use turnserver::ip_fields::IpFields;
    use turnserver::net::batch::{Piece, RecvBatch, SendBatch, SendStatus, SlotLayout, Target};
    use turnserver::net::udp;
    use turnserver::stun::attribute::{
        AdditionalAddressFamily, AddressFamily, ChannelNumber, Data, DontFragment, EvenPort, Icmp, RequestedTransport,
        ReservationToken, XorPeerAddress, XorRelayedAddress,
    };
    use turnserver::stun::{Class, Method, TransactionId};

    use crate::support::client::{Client, Login, message, receive, socket};
    use crate::support::{Server, TIMEOUT, config, config_for, has_ipv6};

    const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\", \"::1\"]\n";

    /// Expedited Forwarding, ECT(0), and a hop limit.
    const SENT: IpFields = fields(0xba, 40);
    const RELAYED: IpFields = fields(0xba, 39);

    const fn fields(tos: u8, hop_limit: u8) -> IpFields {
        IpFields { tos, hop_limit: Some(hop_limit) }
    }

    fn loopback() -> impl Iterator<Item = &'static str> {
        ["127.0.0.1", "::1"].into_iter().filter(|ip| *ip == "127.0.0.1" || has_ipv6())
    }

    /// Returns a socket that reports the IP header fields of received datagrams.
    fn marked_socket(ip: IpAddr) -> UdpSocket {
        let socket = udp::bind_listener(SocketAddr::new(ip, 0)).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket
    }

    fn receive_marked(socket: &UdpSocket) -> (Vec<u8>, IpFields, SocketAddr) {
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut polled, PollTimeout::try_from(TIMEOUT).unwrap()), Ok(1), "timed out");
        let mut batch = RecvBatch::new(1, SlotLayout { headroom: 0, payload: 2048, tailroom: 0 });
        assert_eq!(batch.receive(socket, 0, 1).unwrap().count, 1);
        let received = batch.datagram(0).unwrap();
        (batch.arena()[received.payload.clone()].to_vec(), received.fields, received.source)
    }

    fn send_marked(socket: &UdpSocket, payload: &[u8], to: SocketAddr, fields: IpFields) {
        let mut batch = SendBatch::new();
        batch.push(&Target::new(to, None, fields), &[Piece::of_arena(0..payload.len())]);
        assert_eq!(batch.flush(socket, payload), [SendStatus::Sent]);
    }

    fn send_indication(peer: SocketAddr, payload: &[u8], dont_fragment: bool) -> Vec<u8> {
        message(Class::Indication, Method::SEND, TransactionId::new([9; 12]), &|writer| {
            writer.push(&XorPeerAddress(peer));
            if dont_fragment {
                writer.push(&DontFragment);
            }
            writer.push(&Data(payload));
        })
    }

    // §14: indications and channels carry the values of the incoming datagram, with a hop limit that is lower by one. A
    // response carries the defaults.
    #[test]
    fn ip_header_fields_are_relayed_between_datagrams() {
        for ip in loopback() {
            let server = Server::start(&config(&[ip], LOOPBACK_PEERS));
            let ip: IpAddr = ip.parse().unwrap();
            let (peer, listener) = (marked_socket(ip), marked_socket(ip));
            let peer_address = peer.local_addr().unwrap();
            let client = Client::on(listener, server.udp_address());
            let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
            client.permit(&session, peer_address);
            for (sent, arrived) in [(SENT, RELAYED), (fields(0, 255), fields(0, 254)), (fields(0, 2), fields(0, 1))] {
                // A datagram whose hop limit has run out is not relayed.
                let lost = send_indication(peer_address, b"lost", false);
                send_marked(client.socket(), &lost, server.udp_address(), fields(0, 1));
                let indication = send_indication(peer_address, b"out", false);
                send_marked(client.socket(), &indication, server.udp_address(), sent);
                assert_eq!(receive_marked(&peer), (b"out".to_vec(), arrived, relayed));
                send_marked(&peer, b"lost", relayed, fields(0, 1));
                send_marked(&peer, b"in", relayed, sent);
                let (message, got, _) = receive_marked(client.socket());
                assert!(message.windows(2).any(|bytes| bytes == b"in"), "{message:?}");
                assert_eq!(got, arrived);
            }
            let bound = client.request(&session, Method::CHANNEL_BIND, &|writer| {
                writer.push(&ChannelNumber(0x4000));
                writer.push(&XorPeerAddress(peer_address));
            });
            assert_eq!(bound.error(), None);
            send_marked(client.socket(), b"\x40\x00\x00\x03out", server.udp_address(), SENT);
            assert_eq!(receive_marked(&peer), (b"out".to_vec(), RELAYED, relayed));
            send_marked(&peer, b"in", relayed, SENT);
            let expected = (b"\x40\x00\x00\x02in".to_vec(), RELAYED, server.udp_address());
            assert_eq!(receive_marked(client.socket()), expected);
            // Together, so that the server receives several of them in one batch.
            let limits = [60, 61, 61, 60, 9, 60, 60, 9];
            for limit in limits {
                let packet = [0x40, 0, 0, 1, limit];
                send_marked(client.socket(), &packet, server.udp_address(), fields(0, limit));
            }
            for limit in limits {
                assert_eq!(receive_marked(&peer), (vec![limit], fields(0, limit - 1), relayed));
            }
            client.send(&message(Class::Request, Method::BINDING, TransactionId::new([1; 12]), &|_| {}));
            assert_eq!(receive_marked(client.socket()).1, defaults(ip));
        }
    }

    /// Returns the fields of a datagram of a socket without options.
    fn defaults(ip: IpAddr) -> IpFields {
        let receiver = marked_socket(ip);
        UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap().send_to(b"plain", receiver.local_addr().unwrap()).unwrap();
        receive_marked(&receiver).1
    }

    // §15: Best Effort and Not-ECT.
    #[test]
    fn data_from_a_connection_is_not_marked() {
        let server = Server::start(&config(&["127.0.0.1"], LOOPBACK_PEERS));
        let ip = "127.0.0.1".parse().unwrap();
        let peer = marked_socket(ip);
        let peer_address = peer.local_addr().unwrap();
        let client = Client::connect(server.tcp_address());
        let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
        client.permit(&session, peer_address);
        client.send_to_peer(peer_address, b"out");
        assert_eq!(receive_marked(&peer), (b"out".to_vec(), defaults(ip), relayed));
    }

    // §11.5: an unused peer port, for clients on UDP and TCP. Other peers are not affected.
    #[test]
    fn an_unreachable_peer_is_reported_to_the_client() {
        let more = format!("{LOOPBACK_PEERS}[compat]\nicmp-indications = \"always\"\n");
        for ip in loopback() {
            let server = Server::start(&config(&[ip], &more));
            let port_unreachable = if ip == "127.0.0.1" { (3, 3) } else { (1, 4) };
            let ip: IpAddr = ip.parse().unwrap();
            for client in [Client::new(server.udp_address()), Client::connect(server.tcp_address())] {
                let peer = socket(SocketAddr::new(ip, 0));
                let unused = socket(SocketAddr::new(ip, 0)).local_addr().unwrap();
                let (session, relayed) = client.allocate(&Login::mint("alice", 600)).unwrap();
                client.permit(&session, unused);
                for _ in 0..3 {
                    client.send_to_peer(unused, b"out");
                    let indication = client.receive();
                    assert_eq!(indication.get(), Some(XorPeerAddress(unused)));
                    let (kind, code) = port_unreachable;
                    assert_eq!(indication.get(), Some(Icmp { kind, code, data: 0 }));
                    client.send_to_peer(peer.local_addr().unwrap(), b"out");
                    assert_eq!(receive(&peer), (b"out".to_vec(), relayed));
                    peer.send_to(b"in", relayed).unwrap();
                    assert_eq!(client.receive().get(), Some(Data(b"in")));
                }
                client.delete(&session);
            }
        }
    }

    // §7.2 step 4, §11.2.
    #[test]
    fn dont_fragment_is_understood() {
        let server = Server::start(&config(&["127.0.0.1"], LOOPBACK_PEERS));
        let peer = socket("127.0.0.1:0".parse().unwrap());
        let client = Client::new(server.udp_address());
        let session = client.challenge(&Login::mint("alice", 600));
        let response = client.request(&session, Method::ALLOCATE, &|writer| {
            writer.push(&RequestedTransport::UDP);
            writer.push(&DontFragment);
        });
        assert_eq!(response.error(), None);
        client.permit(&session, peer.local_addr().unwrap());
        for dont_fragment in [true, false] {
            client.send(&send_indication(peer.local_addr().unwrap(), &[7; 1_200], dont_fragment));
            assert_eq!(receive(&peer).0, [7; 1_200]);
        }
    }

    // §7.2 step 9: data of both families through one allocation.
    #[test]
    fn a_dual_allocation_reaches_peers_of_both_families() {
        if !has_ipv6() {
            return;
        }
        let server = Server::start(&config_for(&["127.0.0.1"], &["127.0.0.1", "::1"], LOOPBACK_PEERS));
        let client = Client::new(server.udp_address());
        let session = client.challenge(&Login::mint("alice", 600));
        let response = client.request(&session, Method::ALLOCATE, &|writer| {
            writer.push(&RequestedTransport::UDP);
            writer.push(&AdditionalAddressFamily(AddressFamily::V6));
        });
        let relayed: Vec<SocketAddr> = response.all().into_iter().map(|XorRelayedAddress(address)| address).collect();
        assert_eq!(relayed.len(), 2);
        for relayed in relayed {
            let peer = socket(SocketAddr::new(relayed.ip(), 0));
            client.permit(&session, peer.local_addr().unwrap());
            client.send_to_peer(peer.local_addr().unwrap(), b"out");
            assert_eq!(receive(&peer), (b"out".to_vec(), relayed));
            peer.send_to(b"in", relayed).unwrap();
            assert_eq!(client.receive().get(), Some(Data(b"in")));
        }
    }

    // §7.2 step 8: other 5-tuples may belong to other workers, where the token is valid too.
    #[test]
    fn a_reservation_token_is_valid_on_every_5_tuple() {
        let server = Server::start(&format!("workers = 4\n{}", config(&["127.0.0.1"], "")));
        let login = Login::mint("alice", 600);
        for round in 0..12 {
            let first = Client::new(server.udp_address());
            let session = first.challenge(&login);
            let response = first.request(&session, Method::ALLOCATE, &|writer| {
                writer.push(&RequestedTransport::UDP);
                writer.push(&EvenPort { reserve_next: true });
            });
            let (XorRelayedAddress(even), token): (_, ReservationToken) =
                (response.get().unwrap(), response.get().unwrap());
            let second =
                if round % 2 == 0 { Client::new(server.udp_address()) } else { Client::connect(server.tcp_address()) };
            let next = second.challenge(&login);
            let response = second.request(&next, Method::ALLOCATE, &|writer| {
                writer.push(&RequestedTransport::UDP);
                writer.push(&token);
            });
            let XorRelayedAddress(odd) = response.get().unwrap();
            assert_eq!((even.port() % 2, odd.port()), (0, even.port() + 1));
            second.delete(&next);
            first.delete(&session);
        }
    }
}
