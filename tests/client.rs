//! The client of the library against the real server: both algorithms, both families, referral, data and ICMP errors.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
mod support;

#[cfg(test)]
mod client {
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use turnserver::auth::{KeyAlgorithm, Secret};
    use turnserver::client::{
        Algorithms, Allocate, Allocation, Client, Credentials, Event, Failure, Families, Request, Settings, Success,
        Timing,
    };
    use turnserver::clock;

    use crate::support::client::{Login, socket};
    use crate::support::{Server, TIMEOUT, config, has_ipv6};

    const ALLOW: &str = "[peers]\nallow = [\"127.0.0.1\", \"::1\"]\n";
    const USER: &str = "[[auth.users]]\nname = \"bob\"\npassword = \"builder-of-things\"\n";

    /// A client on a UDP socket.
    struct Driver {
        client: Client,
        socket: UdpSocket,
        rng: StdRng,
    }

    impl Driver {
        fn new(server: SocketAddr, (username, password): (&str, &str), algorithms: Algorithms) -> Self {
            let own = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
            let socket = socket(own.parse().unwrap());
            socket.connect(server).unwrap();
            let credentials = Credentials { username: username.to_owned(), password: Secret::new(password).unwrap() };
            let settings = Settings {
                is_connection: false,
                timing: Timing::RECOMMENDED,
                algorithms,
                software: Some("test".to_owned()),
            };
            Self { client: Client::new(settings, Some(credentials)), socket, rng: StdRng::seed_from_u64(1) }
        }

        fn with_secret(server: &Server, algorithms: Algorithms) -> Self {
            let login = Login::mint("ann", 600);
            Self::new(server.udp_address(), (&login.username, &login.password), algorithms)
        }

        fn request(&mut self, request: Request) -> Result<Success, Failure> {
            let id = self.client.request(request, clock::monotonic(), &mut self.rng).unwrap();
            loop {
                if let Event::Finished(finished, result) = self.next()
                    && finished == id
                {
                    return result;
                }
            }
        }

        /// Sends what the client has to send, and returns the next event. Copies data.
        fn next(&mut self) -> Event<'static> {
            self.next_within(TIMEOUT).expect("something happens")
        }

        /// The same, if there is an event within a time.
        fn next_within(&mut self, limit: Duration) -> Option<Event<'static>> {
            let deadline = clock::monotonic() + limit;
            loop {
                while let Some(message) = self.client.transmit() {
                    self.socket.send(&message).unwrap();
                }
                let now = clock::monotonic();
                let left = deadline.checked_sub(now).filter(|left| !left.is_zero())?;
                let wait = self.client.deadline().map_or(left, |at| at.saturating_sub(now).min(left));
                self.socket.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).unwrap();
                let mut buffer = [0; 2048];
                let Ok(length) = self.socket.recv(&mut buffer) else {
                    if let Some(event) = self.client.expire(clock::monotonic()) {
                        return Some(event);
                    }
                    continue;
                };
                match self.client.receive(&buffer[..length], clock::monotonic(), &mut self.rng) {
                    None => {}
                    Some(Event::Finished(id, result)) => return Some(Event::Finished(id, result)),
                    Some(Event::Icmp { peer, icmp }) => return Some(Event::Icmp { peer, icmp }),
                    Some(Event::Data { peer, channel, data }) => {
                        return Some(Event::Data { peer, channel, data: data.to_vec().leak() });
                    }
                }
            }
        }

        fn allocate(&mut self, families: Families) -> Result<Allocation, Failure> {
            match self.request(Request::Allocate(Allocate { families, ..Allocate::default() }))? {
                Success::Allocate(allocation) => Ok(allocation),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn both_algorithms_are_used_with_the_real_server() {
        // Time-limited usernames cannot be hashed, so a server with secrets wants no USERHASH.
        let server = Server::start(&config(&["127.0.0.1"], &format!("{USER}{ALLOW}")));
        for (algorithms, expected) in
            [(Algorithms::Rfc5389, KeyAlgorithm::Md5), (Algorithms::Rfc8489, KeyAlgorithm::Sha256)]
        {
            let static_user = Driver::new(server.udp_address(), ("bob", "builder-of-things"), algorithms);
            for mut driver in [Driver::with_secret(&server, algorithms), static_user] {
                let allocation = driver.allocate(Families::Unstated).unwrap();
                assert_eq!(allocation.mapped, driver.socket.local_addr().unwrap());
                assert_eq!(driver.client.session().unwrap().algorithm(), expected);
                assert!(driver.client.software().unwrap().starts_with("turnserver/"));
                assert_eq!(driver.request(Request::Refresh(700)), Ok(Success::Refresh(Some(Duration::from_secs(700)))));
                assert_eq!(driver.request(Request::Refresh(0)), Ok(Success::Refresh(Some(Duration::ZERO))));
            }
        }
    }

    #[test]
    fn data_passes_in_indications_and_on_channels_and_icmp_errors_come_back() {
        let more = format!("{ALLOW}[compat]\nicmp-indications = \"always\"\n");
        let server = Server::start(&config(&["127.0.0.1"], &more));
        let mut driver = Driver::with_secret(&server, Algorithms::Rfc8489);
        let relayed = driver.allocate(Families::Unstated).unwrap().relayed[0];
        let peer = socket("127.0.0.1:0".parse().unwrap());
        let to = peer.local_addr().unwrap();
        assert_eq!(driver.request(Request::CreatePermission(vec![to])), Ok(Success::CreatePermission));
        let expect = |driver: &mut Driver, channel: Option<u16>| {
            let message = match channel {
                Some(channel) => driver.client.channel_data(channel, b"to peer").unwrap(),
                None => Client::send_indication(to, b"to peer", &mut driver.rng).unwrap(),
            };
            driver.socket.send(&message).unwrap();
            let mut buffer = [0; 64];
            let (length, from) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&b"to peer"[..], relayed));
            peer.send_to(b"to client", relayed).unwrap();
            assert_eq!(driver.next(), Event::Data { peer: to, channel, data: b"to client" });
        };
        expect(&mut driver, None);
        assert_eq!(driver.request(Request::ChannelBind { channel: 0x4001, peer: to }), Ok(Success::ChannelBind));
        expect(&mut driver, Some(0x4001));
        drop(peer);
        let message = driver.client.channel_data(0x4001, b"nobody").unwrap();
        // Port unreachable. The kernel limits the rate of ICMP errors of the whole machine.
        let event = (0..TIMEOUT.as_secs()).find_map(|_| {
            driver.socket.send(&message).unwrap();
            driver.next_within(Duration::from_secs(1))
        });
        let event = event.expect("an ICMP error");
        assert!(
            matches!(event, Event::Icmp { peer, icmp } if peer == to && (icmp.kind, icmp.code) == (3, 3)),
            "{event:?}"
        );
    }

    #[test]
    fn one_allocation_has_both_families() {
        if !has_ipv6() {
            return;
        }
        let server = Server::start(&config(&["127.0.0.1", "::1"], ALLOW));
        let mut driver = {
            let login = Login::mint("ann", 600);
            let server = server.udp_address_on("127.0.0.1".parse().unwrap());
            Driver::new(server, (&login.username, &login.password), Algorithms::Rfc8489)
        };
        let allocation = driver.allocate(Families::Both).unwrap();
        let families: Vec<bool> = allocation.relayed.iter().map(SocketAddr::is_ipv6).collect();
        assert_eq!((families, allocation.refused), (vec![false, true], None));
    }

    #[test]
    fn failures_name_what_the_real_server_sent() {
        let more = "[alternate]\nservers = [\"192.0.2.1:3478\"]\nwhen = \"always\"\ndomain = \"other.example\"\n";
        let server = Server::start(&config(&["127.0.0.1"], more));
        let referred = Driver::with_secret(&server, Algorithms::Rfc8489).allocate(Families::Unstated);
        let Err(Failure::TryAlternate { servers, .. }) = &referred else { panic!("{referred:?}") };
        assert_eq!(servers, &["192.0.2.1:3478".parse().unwrap()]);
        let server = Server::start(&config(&["127.0.0.1"], ""));
        let mut wrong = Driver::new(server.udp_address(), ("2000000000:ann", "wrong"), Algorithms::Rfc8489);
        let refused = wrong.allocate(Families::Unstated);
        assert!(
            matches!(&refused, Err(Failure::CredentialsRefused { realm, .. }) if realm == "test.example"),
            "{refused:?}"
        );
        let mut denied = Driver::with_secret(&server, Algorithms::Rfc8489);
        denied.allocate(Families::Unstated).unwrap();
        let result = denied.request(Request::CreatePermission(vec!["10.0.0.1:1".parse().unwrap()]));
        let Err(Failure::Rejected(rejection)) = result else { panic!("{result:?}") };
        assert_eq!((rejection.code.code(), rejection.reason.as_str()), (403, "Forbidden"));
    }
}
