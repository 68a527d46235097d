//! The client of the `turn-client-proto` crate, which implements RFC 8489 and RFC 8656, against the real server.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
mod support;

#[cfg(test)]
mod stun_proto {
    use std::io::ErrorKind;
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    use turn_client_proto::api::{Transmit, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet};
    use turn_client_proto::prelude::*;
    use turn_client_proto::stun::Instant;
    use turn_client_proto::types::stun::message::IntegrityAlgorithm::{self, Sha1, Sha256};
    use turn_client_proto::types::{TransportType, TurnCredentials};
    use turn_client_proto::udp::TurnClientUdp;

    use turnserver::clock::Clock;

    use crate::support::client::{receive, socket};
    use crate::support::{Server, TIMEOUT, config};

    const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\"]\n";

    /// What the client reports to its application.
    #[derive(Debug, PartialEq)]
    enum Report {
        Allocated(SocketAddr),
        Permitted,
        ChannelBound,
        Data(Vec<u8>, SocketAddr),
        /// Type and code of an ICMP error about a peer.
        Icmp(SocketAddr, u8, u8),
    }

    struct Client {
        socket: UdpSocket,
        core: TurnClientUdp,
        start: Clock,
    }

    impl Client {
        fn new(server: &Server, integrity: &[IntegrityAlgorithm]) -> Self {
            let credential = server.credential("alice");
            let mut config = TurnConfig::new(TurnCredentials::new(&credential.username, &credential.password));
            for (index, algorithm) in integrity.iter().enumerate() {
                match index {
                    0 => config.set_supported_integrity(*algorithm),
                    _ => config.add_supported_integrity(*algorithm),
                }
            }
            let socket = socket("127.0.0.1:0".parse().unwrap());
            let core = TurnClientUdp::allocate(socket.local_addr().unwrap(), server.udp_address(), config);
            Self { socket, core, start: Clock::start() }
        }

        fn now(&self) -> Instant {
            let passed = i64::try_from(self.start.elapsed().as_nanos()).unwrap();
            Instant::from_nanos(passed)
        }

        /// Runs the client until it reports something.
        fn report(&mut self) -> Report {
            let mut buffer = vec![0; 2_048];
            loop {
                assert!(self.start.elapsed() < TIMEOUT, "the client reports nothing");
                if let Some(event) = self.core.poll_event() {
                    return match event {
                        TurnEvent::AllocationCreated(_, relayed) => Report::Allocated(relayed),
                        TurnEvent::PermissionCreated(..) => Report::Permitted,
                        TurnEvent::ChannelCreated(..) => Report::ChannelBound,
                        other => panic!("the client reports {other:?}"),
                    };
                }
                let next = match self.core.poll(self.now()) {
                    TurnPollRet::WaitUntil(next) => next.saturating_duration_since(self.now()),
                    other => panic!("the client does not continue: {other:?}"),
                };
                while let Some(transmit) = self.core.poll_transmit(self.now()) {
                    self.socket.send_to(&transmit.data, transmit.to).unwrap();
                }
                self.socket.set_read_timeout(Some(next.clamp(Duration::from_millis(1), TIMEOUT))).unwrap();
                let (length, from) = match self.socket.recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
                    Err(error) => panic!("{error}"),
                };
                let to = self.socket.local_addr().unwrap();
                let received = Transmit::new(&buffer[..length], TransportType::Udp, from, to);
                let now = self.now();
                match self.core.recv(received, now) {
                    TurnRecvRet::PeerData(data) => return Report::Data(data.data().to_vec(), data.peer),
                    TurnRecvRet::PeerIcmp { peer, icmp_type, icmp_code, .. } => {
                        return Report::Icmp(peer, icmp_type, icmp_code);
                    }
                    TurnRecvRet::Handled => {}
                    TurnRecvRet::Ignored(_) => panic!("the client ignores a message of the server"),
                }
            }
        }

        fn send(&mut self, peer: SocketAddr, data: &[u8]) {
            let now = self.now();
            let transmit = self.core.send_to(TransportType::Udp, peer, data, now).unwrap().unwrap();
            self.socket.send_to(&transmit.data.build(), transmit.to).unwrap();
        }
    }

    // RFC 8489 §9.2.4, §9.2.5. With its defaults the client sends PASSWORD-ALGORITHM and MESSAGE-INTEGRITY, and verifies
    // only MESSAGE-INTEGRITY in the response. It shows that it implements RFC 8656, so it gets ICMP errors (§11.5).
    #[test]
    fn an_rfc_8489_client_works_with_sha1_with_sha256_and_with_both() {
        let server = Server::start(&config(&["127.0.0.1"], LOOPBACK_PEERS));
        let choices: [&[IntegrityAlgorithm]; 5] = [&[], &[Sha1], &[Sha256], &[Sha1, Sha256], &[Sha256, Sha1]];
        for integrity in choices {
            let mut client = Client::new(&server, integrity);
            let Report::Allocated(relayed) = client.report() else { panic!("an allocation is expected") };
            let peer = socket("127.0.0.1:0".parse().unwrap());
            let peer_address = peer.local_addr().unwrap();
            let now = client.now();
            client.core.create_permission(TransportType::Udp, peer_address.ip(), now).unwrap();
            assert_eq!(client.report(), Report::Permitted, "{integrity:?}");
            client.send(peer_address, b"in an indication");
            assert_eq!(receive(&peer), (b"in an indication".to_vec(), relayed));
            let now = client.now();
            client.core.bind_channel(TransportType::Udp, peer_address, now).unwrap();
            assert_eq!(client.report(), Report::ChannelBound, "{integrity:?}");
            client.send(peer_address, b"in a channel");
            assert_eq!(receive(&peer), (b"in a channel".to_vec(), relayed));
            peer.send_to(b"back", relayed).unwrap();
            assert_eq!(client.report(), Report::Data(b"back".to_vec(), peer_address));

            let unused = socket("127.0.0.1:0".parse().unwrap()).local_addr().unwrap();
            client.send(unused, b"to a closed port");
            assert_eq!(client.report(), Report::Icmp(unused, 3, 3));
        }
    }
}
