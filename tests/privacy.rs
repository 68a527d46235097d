//! Tests of `log.client-addresses` and `log.usernames`: what a client, a peer or a user does leaves neither an address
//! nor a name in the log.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
#[path = "cli/running.rs"]
#[allow(dead_code, reason = "the tests of the command line use the rest")]
mod running;
#[cfg(test)]
mod support;

#[cfg(test)]
mod privacy {
    use std::net::{SocketAddr, TcpStream};
    use std::path::PathBuf;
    use std::process::Command;

    use socket2::{Domain, Socket, Type};
    use tokio_rustls::rustls::StreamOwned;
    use turnserver::auth::KeyHash;
    use turnserver::clock::unix_seconds;
    use turnserver::stun::Method;
    use turnserver::stun::attribute::XorPeerAddress;

    use crate::client::Http;
    use crate::running::{Running, as_text};
    use crate::support::certificates::Authority;
    use crate::support::client::{Client, Login, socket};
    use crate::support::tls::{ANY, session};
    use crate::support::{LogLine, TIMEOUT, TempDir, config, run, with_tls};

    /// No address of the server has the same prefix.
    const CLIENT: &str = "127.77.66.55";
    const PEER: &str = "127.88.77.66";
    const USER: &str = "confidential";
    const KEY: &str = "turn_a-key-for-tests";

    /// The events that the test causes, each of which may name a client, a peer or a user.
    const EVENTS: [&str; 13] = [
        "allocation-created",
        "allocation-ended",
        "authentication-failed",
        "connection-ended",
        "credential-issued",
        "credential-refused",
        "draining",
        "http-connection-failed",
        "limit-reached",
        "packet-failed",
        "peer-denied",
        "sessions-ended",
        "username-revoked",
    ];

    /// A server with every kind of listener, and a certificate for its clients.
    struct Fixture {
        running: Running,
        authority: Authority,
        control: PathBuf,
        _directory: TempDir,
    }

    /// Returns an address of the client that is not in use.
    fn source() -> SocketAddr {
        SocketAddr::new(CLIENT.parse().unwrap(), 0)
    }

    /// Connects from the client's address.
    fn connect(server: SocketAddr) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&source().into()).unwrap();
        socket.connect(&server.into()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.into()
    }

    impl Fixture {
        fn start(format: &str, addresses: &str, names: &str) -> Self {
            let directory = TempDir::new();
            let control = directory.path().join("control.sock");
            let authority = Authority::new(unix_seconds());
            let files = authority.write(&authority.issue(&["localhost"]), directory.path());
            let hash = KeyHash::of(KEY.as_bytes()).to_hex();
            let more = format!(
                "[limits]\nallocations-per-user = 4\n\
                 [control]\nsocket = {control:?}\n\
                 [http]\nlisten = [\"127.0.0.1:0\"]\n[[http.keys]]\nname = \"app\"\nsha256 = {hash:?}\n"
            );
            let config = with_tls(&config(&["127.0.0.1"], &more), &["127.0.0.1"], &files);
            let log = format!("[log]\nclient-addresses = {addresses:?}\nusernames = {names:?}\n");
            let config = config.replace("[log]\n", &log);
            let config = if format == "text" { as_text(&config) } else { config };
            let running = Running::start(&config, &["--log-level", "trace"]);
            Self { running, authority, control, _directory: directory }
        }

        fn udp(&self) -> Client {
            Client::on(socket(source()), self.running.address())
        }

        fn tcp(&self) -> Client {
            Client::on_tcp(connect(self.running.listening("tcp")[0]))
        }

        fn tls(&self) -> Client {
            let stream = connect(self.running.listening("tls")[0]);
            Client::on_tls(StreamOwned::new(session(&self.authority, &ANY), stream))
        }

        fn http(&self) -> Http {
            let line = self.wait_for("http-listening");
            let of_text = || line.split_once(" address=")?.1.split(' ').next().map(str::to_owned);
            let address = LogLine::parse(&line).field("address").or_else(of_text).unwrap();
            Http::over(connect(address.parse().unwrap()))
        }

        fn ctl(&self, arguments: &[&str]) -> Vec<String> {
            let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
            let finished = run(command.args(["ctl", "--socket"]).arg(&self.control).args(arguments), None, TIMEOUT);
            assert_eq!(finished.code, Some(0), "{finished:?}");
            finished.stdout
        }

        /// Waits for a line with this event.
        fn wait_for(&self, event: &str) -> String {
            self.running.wait_for_line(|line| is_event(line, event))
        }

        /// Does everything that the log reports about clients, peers and users. Returns the lines.
        fn lines(self) -> Vec<String> {
            let login = Login::mint(USER, 600);
            let clients = [self.udp(), self.tcp(), self.tls()];
            for client in &clients {
                let (session, relayed) = client.allocate(&login).unwrap();
                let denied =
                    client.request(&session, Method::CREATE_PERMISSION, &|writer| writer.push(&XorPeerAddress(peer())));
                assert_eq!(denied.error(), Some(403));
                socket(SocketAddr::new(PEER.parse().unwrap(), 0)).send_to(b"no permission", relayed).unwrap();
            }
            self.running.wait_for_line(|line| is_event(line, "packet-failed") && line.contains("no-permission"));
            self.fail(&login);
            self.request_credentials();

            // The operator sees everything.
            let sessions = self.ctl(&["sessions"]).join("\n");
            assert_eq!((sessions.matches(CLIENT).count(), sessions.matches(USER).count()), (3, 3), "{sessions}");
            self.ctl(&["kick", "--client", &clients[1].address().ip().to_string()]);
            self.ctl(&["kick", "--user", USER]);
            self.ctl(&["kick", "--user", USER, "--json"]);
            self.ctl(&["revoke", &login.username]);

            let left = self.udp();
            left.allocate(&Login::mint(USER, 601)).unwrap();
            self.ctl(&["drain"]);
            self.wait_for("draining");
            let finished = self.running.interrupt();
            assert_eq!(finished.code, Some(0));
            finished.stderr
        }

        /// Fails to authenticate, and reaches a limit.
        fn fail(&self, login: &Login) {
            assert_eq!(self.udp().allocate(&Login::new(&login.username, "wrong")).err(), Some(401));
            assert_eq!(self.udp().allocate(&Login::new(USER, "wrong")).err(), Some(401));
            let (fourth, fifth) = (self.udp(), self.udp());
            let (session, _) = fourth.allocate(login).unwrap();
            assert_eq!(fifth.allocate(login).err(), Some(486));
            fourth.delete(&session);
        }

        fn request_credentials(&self) {
            let body = format!("{{\"user\":{USER:?}}}");
            let post = |key: &str| {
                let header = format!("Authorization: Bearer {key}\r\n");
                self.http().request("POST", "/v1/ice-servers", &header, body.as_bytes()).status
            };
            assert_eq!(post(KEY), 201);
            assert_eq!(post("wrong"), 401);
            let refused = |header: &str, body: &str| {
                let headers = format!("Authorization: Bearer {KEY}\r\n{header}");
                let response = self.http().request("POST", "/v1/ice-servers", &headers, body.as_bytes());
                assert!(response.status >= 400 && response.body.len() < 400, "{response:?}");
            };
            refused(&format!("Origin: https://{CLIENT}\r\n"), "");
            refused("", &format!("{{\"{USER}{}\":1}}", "A".repeat(60_000)));
            refused("", &format!("{{\"user\":\"{USER}{}\"}}", "A".repeat(600)));
            refused("", USER);
            self.http().get(&format!("/turn?key={KEY}&service={USER}"));
            self.http().get(&format!("/turn?key={KEY}&username={USER}%ff"));
            self.http().request("POST", &format!("/v1/turn/keys/{USER}/credentials/generate"), "", b"");
            let broken = self.http().begin(b"\0\r\n\r\n");
            self.wait_for("http-connection-failed");
            drop(broken);
        }
    }

    fn peer() -> SocketAddr {
        format!("{PEER}:9").parse().unwrap()
    }

    fn is_event(line: &str, event: &str) -> bool {
        line.contains(&format!("event={event:?}")) || LogLine::parse(line).field("event").as_deref() == Some(event)
    }

    /// Asserts that the lines have all events, and none of these texts.
    fn assert_without(lines: &[String], texts: &[&str]) {
        for event in EVENTS {
            assert!(lines.iter().any(|line| is_event(line, event)), "no {event} in {lines:#?}");
        }
        // No request determines the length of a line.
        assert!(lines.iter().all(|line| line.len() < 2_000), "{lines:#?}");
        for text in texts {
            let found: Vec<_> = lines.iter().filter(|line| line.contains(text)).collect();
            assert!(found.is_empty(), "{text} in {found:#?}");
        }
    }

    #[test]
    fn with_prefixes_and_hashes_the_log_has_no_address_and_no_name() {
        for format in ["json", "text"] {
            let lines = Fixture::start(format, "prefix", "hash").lines();
            assert_without(&lines, &[CLIENT, PEER, USER]);
            let with = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
            assert!(with("127.77.66.0/24") > 10 && with("127.88.77.0/24") >= 2, "{lines:#?}");
        }
    }

    #[test]
    fn without_addresses_and_names_the_log_does_not_have_their_fields() {
        for format in ["json", "text"] {
            let lines = Fixture::start(format, "none", "none").lines();
            assert_without(&lines, &["127.77.66.", "127.88.77.", USER]);
            assert_without(&lines, &[" client=", " peer=", " user=", "\"client\":", "\"peer\":", "\"user\":"]);
        }
    }

    #[test]
    fn by_default_the_log_has_addresses_and_names() {
        let lines = Fixture::start("json", "full", "full").lines();
        let created = lines.iter().find(|line| is_event(line, "allocation-created")).unwrap();
        assert!(created.contains(CLIENT) && created.contains(USER), "{created}");
        let with = |text: &str| lines.iter().any(|line| line.contains(text));
        assert!(with(PEER) && with(&format!("user \\\"{USER}\\\"")), "{lines:#?}");
    }

    #[test]
    fn lines_of_one_user_have_the_same_hash_and_a_readable_expiry() {
        let fixture = Fixture::start("json", "full", "hash");
        let login = Login::mint(USER, 600);
        let (client, other) = (fixture.udp(), fixture.udp());
        client.allocate(&login).unwrap();
        other.allocate(&Login::mint("someone else", 600)).unwrap();
        assert_eq!(fixture.udp().allocate(&Login::new(&login.username, "wrong")).err(), Some(401));
        let user = |event: &str, of: &Client| {
            let client = of.address().to_string();
            let line = fixture.running.wait_for_line(|line| is_event(line, event) && line.contains(&client));
            LogLine::parse(&line).field("user").unwrap()
        };
        let hash = user("allocation-created", &client);
        assert_eq!(hash.len(), 16);
        assert_ne!(hash, user("allocation-created", &other));
        let failed = LogLine::parse(&fixture.wait_for("authentication-failed")).field("user").unwrap();
        let (expiry, _) = login.username.split_once(':').unwrap();
        assert_eq!(failed, format!("{expiry}:{hash}"));
        // Another run has another key.
        let again = Fixture::start("json", "full", "hash");
        again.udp().allocate(&login).unwrap();
        assert_ne!(LogLine::parse(&again.wait_for("allocation-created")).field("user"), Some(hash));
    }
}
