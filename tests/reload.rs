//! Tests of reload: real servers with real calls, whose configuration changes.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod reload {
    mod listeners;
    mod ports;

    use std::collections::HashMap;
    use std::fs;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use nix::sys::signal::Signal;
    use serde_json::Value;
    use sha2::{Digest as _, Sha256};
    use turnserver::auth::LongTermKey;
    use turnserver::stun::attribute::{Data, Lifetime, PasswordAlgorithms};
    use turnserver::stun::{Method, TransactionId};

    use crate::client::Http;
    use crate::support::certificates::Authority;
    use crate::support::client::{self, Client, Login, Session};
    use crate::support::{Controlled, Finally, Process, REALM, SECRET, TIMEOUT, TempDir, config, with_tls};

    const ALLOW: &str = "[peers]\nallow = [\"127.0.0.1\"]\n";
    const LISTENER_REMOVED: &str = "the configuration no longer has the listener, or another one serves the client";
    const HTTP: &str = "[http]\nlisten = [\"127.0.0.1:0\"]\n";

    impl Controlled {
        /// Writes a configuration and reloads it. Returns the response.
        fn reload(&self, config: &str) -> Value {
            self.server.write_config(config);
            let response = self.json(&["reload"]);
            assert_eq!(response["complete"], true, "{response}");
            response
        }

        /// Writes a configuration whose reload fails. Returns the message.
        fn refused(&self, config: &str) -> String {
            self.server.write_config(config);
            let (code, message) = self.failure(&["reload"]);
            assert_eq!(code, Some(1), "{message}");
            message
        }

        fn http_address(&self) -> SocketAddr {
            self.event("http-listening").field("address").unwrap().parse().unwrap()
        }

        fn generation(&self) -> u64 {
            let page = Http::unix(&self.socket).get("/metrics").body;
            metric(&page, "turnserver_config_generation")
        }
    }

    fn metric(page: &str, name: &str) -> u64 {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in:\n{page}")).parse().unwrap()
    }

    /// Returns the changed keys of a response.
    fn keys(response: &Value) -> Vec<&str> {
        response["changes"].as_array().unwrap().iter().map(|change| change["key"].as_str().unwrap()).collect()
    }

    fn refresh(client: &Client, session: &Session) -> Option<u16> {
        client.request(session, Method::REFRESH, &|_| {}).error()
    }

    /// Sets keys of a configuration; a key of a table that is missing appends the table.
    fn with(config: &str, settings: &[(&str, &str)]) -> String {
        let mut table: toml::Table = config.parse().unwrap();
        for (key, value) in settings {
            let value: toml::Table = format!("v = {value}").parse().unwrap();
            let (path, key) = key.rsplit_once('.').unwrap_or(("", key));
            let mut place = &mut table;
            for part in path.split('.').filter(|part| !part.is_empty()) {
                place = place.entry(part).or_insert(toml::Value::Table(toml::Table::new())).as_table_mut().unwrap();
            }
            place.insert(key.to_owned(), value["v"].clone());
        }
        table.to_string()
    }

    /// The keys that can change under a call, with values that do not end it.
    const LIVE: [(&str, &str); 72] = [
        ("realm", "'new.example'"),
        ("hostname", "'turn.example'"),
        ("drain-deadline", "'3s'"),
        ("relay.external", "{ '127.0.0.1' = '192.0.2.9' }"),
        ("relay.ports", "'31600-31699'"),
        ("relay.addresses", "['127.0.0.1', '127.0.0.2']"),
        ("auth.secrets", "['a second secret for tests', 'a secret for tests only']"),
        ("auth.secrets-file", "'SECRETS'"),
        ("auth.nonce-lifetime", "'30m'"),
        ("auth.expiry-grace", "'2h'"),
        ("auth.users", "[{ name = 'bob', password = 'password of bob' }]"),
        ("auth.users", "[{ name = 'bob', password = 'another password' }]"),
        ("auth.users", "[{ name = 'bob', password = 'another password', allocations = 3 }]"),
        ("auth.users", "[{ name = 'bob', key = '8493fbc53ba582fb4c044c456bdc40eb' }]"),
        ("redis-status", "{ url = 'unix:///nonexistent' }"),
        ("auth.redis", "{ url = 'unix:///nonexistent' }"),
        ("peers.allow", "['127.0.0.1', '10.0.0.0/8']"),
        ("peers.deny", "['198.51.100.0/24']"),
        ("peers.nat64-prefixes", "['2001:db8:64::/96']"),
        ("limits.allocations-per-user", "20"),
        ("limits.allocations", "99"),
        ("limits.allocations-per-second-per-user", "9"),
        ("limits.permissions-per-allocation", "99"),
        ("limits.channels-per-allocation", "98"),
        ("limits.peers-per-second", "97"),
        ("limits.bytes-per-second-per-allocation", "10000000"),
        ("limits.bytes-per-second-per-user", "20000000"),
        ("limits.connections", "96"),
        ("limits.connections-per-source", "95"),
        ("limits.allocated-connections-per-source", "94"),
        ("limits.unverified-responses", "93"),
        ("limits.failed-authentications", "92"),
        ("listen.proxies", "['10.0.0.7']"),
        ("timeouts.tls-handshake", "'11s'"),
        ("timeouts.first-request", "'12s'"),
        ("timeouts.idle", "'13s'"),
        ("timeouts.unauthenticated", "'14s'"),
        ("alternate.servers", "['192.0.2.1:3478']"),
        ("alternate.tls-servers", "['192.0.2.1:5349']"),
        ("alternate.domain", "'other.example'"),
        ("alternate.when", "'full'"),
        ("compat.rfc5766-channels", "true"),
        ("compat.draft-dual-allocation", "true"),
        ("compat.icmp-indications", "'always'"),
        ("log.level", "'debug'"),
        ("log.format", "'text'"),
        ("log.format", "'json'"),
        ("log.level", "'info'"),
        ("log.client-addresses", "'none'"),
        ("log.usernames", "'hash'"),
        ("http.url", "'https://turn.example'"),
        ("http.metrics-from", "['10.0.0.0/8']"),
        ("http.metrics-token-file", "'TOKEN'"),
        ("http.listen", "['127.0.0.1:0']"),
        ("http.keys", "[{ name = 'app', sha256 = 'HASH' }]"),
        ("http.keys", "[{ name = 'app', sha256 = 'OTHER' }]"),
        ("http.keys", "[{ name = 'app', sha256 = 'OTHER', ttl = '2h' }]"),
        ("http.keys", "[{ name = 'app', sha256 = 'OTHER', ttl = '2h', user-prefix = 'a' }]"),
        (
            "http.keys",
            "[{ name = 'app', sha256 = 'OTHER', ttl = '2h', user-prefix = 'a', origins = ['https://a.example'] }]",
        ),
        (
            "http.keys",
            "[{ name = 'app', sha256 = 'OTHER', ttl = '2h', user-prefix = 'a', origins = ['https://a.example'], \
             requests-per-second = 7 }]",
        ),
        ("http.keys-file", "'FURTHER'"),
        ("http.tls", "true"),
        ("front", "[{ listen = '127.0.0.1:0', web = '127.0.0.1:9', names = ['a.example'] }]"),
        (
            "front",
            "[{ listen = '127.0.0.1:0', web = '127.0.0.1:7', names = ['b.example'], without-name = 'relay', http = true, \
             proxy-protocol = true, connections = 7, idle = '2m' }]",
        ),
        ("webhook", "{ url = 'http://127.0.0.1:9/', secret-file = 'SIGNING' }"),
        (
            "webhook",
            "{ url = 'http://127.0.0.1:7/', secret-file = 'SIGNING', events = ['ended'], batch = 7, interval = '2s', \
             spool = 65536, timeout = '7s', ca-file = 'AUTHORITY', allow-http = true }",
        ),
        ("node", "'fra-1'"),
        ("fleet", "{ servers = ['nats://127.0.0.1:1'] }"),
        (
            "fleet",
            "{ servers = ['nats://127.0.0.1:2', 'nats://127.0.0.1:1'], user = 'ann', password-file = 'TOKEN', ca-file = \
             'AUTHORITY', name = 'other', region = 'eu', weight = 7, urls = ['turn:a.example:3478?transport=udp'], limits = \
             'fleet', regions-file = 'REGIONS', nodes-per-credential = 3, replicas = 1 }",
        ),
        ("tls.certificates", "[{ certificate = 'FURTHER-CERTIFICATE', private-key = 'OTHER-KEY' }]"),
        ("tls.certificate", "'CERTIFICATE'"),
        ("tls.private-key", "'KEY'"),
    ];

    #[test]
    fn each_live_key_changes_under_a_call_that_loses_nothing() {
        let (authority, directory) = (Authority::new(turnserver::clock::unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let others = TempDir::new();
        let moved = authority.write(&authority.issue(&["localhost"]), others.path());
        let more = TempDir::new();
        let further = authority.write(&authority.issue(&["web.example.org"]), more.path());
        let secrets = directory.write("secrets", "a third secret for tests\n");
        let token = directory.write("token", "a-token-of-sufficient-length\n");
        let regions = directory.write("regions", "198.51.100.0/24 eu\n");
        let signing = directory.write("signing", "whsec_d2ViaG9vayBzZWNyZXQgb2YgdGhlIHRlc3RzISEhISE=\n");
        let root = directory.write("root.pem", &authority.root());
        let further_key = format!("[[http.keys]]\nname = 'further'\nsha256 = '{}'\n", "3".repeat(64));
        let keys_file = directory.write("keys.toml", &further_key);
        let fixture = Controlled::start_with(&with_tls(&config(&["127.0.0.1"], ALLOW), &["127.0.0.1"], &files));
        let places: HashMap<&str, String> = [
            ("SECRETS", secrets.display().to_string()),
            ("SIGNING", signing.display().to_string()),
            ("AUTHORITY", root.display().to_string()),
            ("TOKEN", token.display().to_string()),
            ("REGIONS", regions.display().to_string()),
            ("'FURTHER'", format!("{keys_file:?}")),
            ("HASH", "1".repeat(64)),
            ("'OTHER'", format!("{:?}", "2".repeat(64))),
            ("'CERTIFICATE'", format!("{:?}", moved[0])),
            ("'KEY'", format!("{:?}", moved[1])),
            ("'FURTHER-CERTIFICATE'", format!("{:?}", further[0])),
            ("'OTHER-KEY'", format!("{:?}", further[1])),
        ]
        .into();
        let peer = client::socket("127.0.0.1:0".parse().unwrap());
        let to = peer.local_addr().unwrap();
        let (client, login) = (Client::new(fixture.server.udp_address()), Login::mint("ann", 600));
        let (session, relay) = client.allocate(&login).unwrap();
        client.permit(&session, to);
        let (done, exchanged) = (AtomicBool::new(false), AtomicU64::new(0));
        // The client that refreshes is another, because the call uses its socket all the time.
        let (other, other_login) = (Client::new(fixture.server.udp_address()), Login::mint("bob", 600));
        let (mut other_session, _) = other.allocate(&other_login).unwrap();
        let client = thread::scope(|scope| {
            let call = scope.spawn(|| {
                let client = client;
                while !done.load(Ordering::Relaxed) {
                    let number = exchanged.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                    client.send_to_peer(to, &number);
                    assert_eq!(client::receive(&peer), (number.to_vec(), relay));
                    peer.send_to(&number, relay).unwrap();
                    assert_eq!(client.receive().get::<Data<'_>>(), Some(Data(&number)));
                }
                client
            });
            let finally = Finally(&done);
            let mut text = fixture.config.clone();
            let mut seen = Vec::new();
            // The two files belong together.
            let steps = LIVE[..70].iter().map(std::slice::from_ref).chain([&LIVE[70..]]);
            for step in steps {
                let filled: Vec<(&str, String)> = step
                    .iter()
                    .map(|(key, value)| {
                        let fill = |text: String, (place, actual): (&&str, &String)| text.replace(place, actual);
                        (*key, places.iter().fold((*value).to_owned(), fill))
                    })
                    .collect();
                let settings: Vec<(&str, &str)> = filled.iter().map(|(key, value)| (*key, value.as_str())).collect();
                text = with(&text, &settings);
                let response = fixture.reload(&text);
                for change in response["changes"].as_array().unwrap() {
                    assert_eq!(change["needs_restart"], false, "{step:?}: {response}");
                    seen.push(change["key"].as_str().unwrap().to_owned());
                }
                for (key, _) in step {
                    assert!(keys(&response).iter().any(|changed| changed.starts_with(key)), "{key}: {response}");
                }
                let before = exchanged.load(Ordering::Relaxed);
                match refresh(&other, &other_session) {
                    // A nonce of the old secrets is stale. Only the key stays that of the old realm.
                    Some(438) => other_session = other.renew(&other_session),
                    result => assert_eq!(result, None, "{step:?}"),
                }
                assert_eq!(refresh(&other, &other_session), None, "{step:?}");
                while exchanged.load(Ordering::Relaxed) < before + 2 {
                    assert!(!call.is_finished(), "the call has ended: {step:?}");
                    thread::yield_now();
                }
            }
            drop(finally);
            assert!(seen.len() > LIVE.len() - 5, "{seen:?}");
            call.join().unwrap()
        });
        assert_eq!(fixture.events("allocation-ended"), 0);
        let page = Http::unix(&fixture.socket).get("/metrics").body;
        assert_eq!(metric(&page, "turnserver_config_generation"), 1 + LIVE.len() as u64 - 1);
        // Nothing of a call is lost: the server has relayed what its ends have counted.
        let bytes = 8 * exchanged.load(Ordering::Relaxed);
        let session = client.challenge(&login);
        client.delete(&session);
        let ended = fixture.event("allocation-ended");
        assert_eq!(ended.field("bytes_to_peers"), Some(bytes.to_string()));
        assert_eq!(ended.field("bytes_to_client"), Some(bytes.to_string()));
    }

    #[test]
    fn a_bad_file_changes_nothing_and_says_the_line() {
        let fixture = Controlled::start("");
        let (client, session, _) = fixture.allocate("ann");
        let bad = format!("relm = \"x\"\n{}", fixture.config.replace(SECRET, "another secret for tests"));
        let message = fixture.refused(&bad);
        assert!(
            message.contains("turnserver.toml:1:1: unknown key `relm`") && message.contains("did you mean"),
            "{message}"
        );
        assert_eq!(fixture.event("reload-refused").level(), "ERROR");
        let page = Http::unix(&fixture.socket).get("/metrics").body;
        assert_eq!(metric(&page, "turnserver_config_last_reload_success"), 0);
        assert_eq!(metric(&page, "turnserver_config_generation"), 1);
        // The secret of the bad file is not in use, and that of the good one is.
        assert_eq!(refresh(&client, &session), None);
        let (_other, ..) = fixture.allocate("bob");
        fixture.reload(&fixture.config);
        let page = Http::unix(&fixture.socket).get("/metrics").body;
        assert_eq!(metric(&page, "turnserver_config_last_reload_success"), 1);
    }

    #[test]
    fn a_listener_that_cannot_be_bound_and_a_broken_certificate_refuse_everything() {
        let (authority, directory) = (Authority::new(turnserver::clock::unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let fixture = Controlled::start_with(&with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &files));
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = format!("['127.0.0.1:0', '{}']", taken.local_addr().unwrap());
        let message = fixture
            .refused(&with(&fixture.config, &[("listen.udp", &listen), ("auth.secrets", "['other other other']")]));
        assert!(message.contains("another program uses the port"), "{message}");
        fs::write(&files[0], "nothing").unwrap();
        let message = fixture.refused(&with(&fixture.config, &[("auth.secrets", "['other other other']")]));
        assert!(message.contains("`tls.certificate`") && message.contains("cannot be used"), "{message}");
        let alternate = format!("['{}']", fixture.server.udp_address());
        authority.write(&authority.issue(&["localhost"]), directory.path());
        let udp = format!("['{}']", fixture.server.udp_address());
        let message =
            fixture.refused(&with(&fixture.config, &[("alternate.servers", &alternate), ("listen.udp", &udp)]));
        assert!(message.contains("[alternate]") || message.contains("`alternate.servers`"), "{message}");
        assert_eq!(fixture.generation(), 1);
        let (_client, ..) = fixture.allocate("ann");
    }

    #[test]
    fn a_trial_shows_the_changes_and_makes_none() {
        let fixture = Controlled::start(ALLOW);
        let changed = with(
            &fixture.config,
            &[
                ("auth.secrets", "['a new secret for tests']"),
                ("workers", "7"),
                ("limits.allocations", "5"),
                ("offload.mode", "'off'"),
                ("offload.interfaces", "['eth0', 'eth1']"),
                ("offload.channels", "9"),
            ],
        );
        fixture.server.write_config(&changed);
        let finished = fixture.run(&["reload", "--dry-run"]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let lines: Vec<Vec<&str>> = finished.stdout.iter().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(finished.stdout[0], "the configuration has no errors; 6 changes since it was last read");
        assert!(lines.contains(&vec!["workers", "one", "per", "CPU", "7", "needs", "a", "restart"]), "{finished:?}");
        assert!(lines.contains(&vec!["auth.secrets", "(hidden)", "(hidden)"]), "{finished:?}");
        assert!(lines.contains(&vec!["offload.mode", "auto", "off", "needs", "a", "restart"]), "{finished:?}");
        assert!(lines.contains(&vec!["limits.allocations", "0", "(no", "limit)", "5"]), "{finished:?}");
        assert_eq!((fixture.generation(), fixture.events("setting-changed")), (1, 0));
        let (_client, ..) = fixture.allocate("ann");
        // What needs a restart is named until then.
        let of_offload = ["offload.mode", "offload.interfaces", "offload.channels"];
        let all = [&["workers", "auth.secrets", "limits.allocations"][..], &of_offload].concat();
        assert_eq!(keys(&fixture.reload(&changed)), all);
        let again = fixture.reload(&changed);
        assert_eq!(keys(&again), [&["workers"][..], &of_offload].concat());
        let changes = again["changes"].as_array().unwrap();
        assert!(changes.iter().all(|change| change["needs_restart"] == true), "{again}");
        let logs = fixture.server.logs();
        assert!(logs.iter().all(|line| !line.text().contains("a new secret")), "{logs:#?}");
        let limit = fixture.server.wait_for_log(|line| line.field("key").as_deref() == Some("limits.allocations"));
        assert_eq!(
            (limit.field("from").unwrap(), limit.field("to").unwrap()),
            ("0 (no limit)".to_owned(), "5".to_owned())
        );
    }

    #[test]
    fn the_allocations_of_removed_credentials_end_at_their_next_refresh() {
        let fixture = Controlled::start(ALLOW);
        let peer = client::socket("127.0.0.1:0".parse().unwrap());
        let (client, login) = (Client::new(fixture.server.udp_address()), Login::mint("ann", 600));
        let (session, relay) = client.allocate(&login).unwrap();
        client.permit(&session, peer.local_addr().unwrap());
        fixture.reload(&fixture.config.replace(SECRET, "another secret for tests"));
        assert_eq!(Client::new(fixture.server.udp_address()).allocate(&login).err(), Some(401));
        client.send_to_peer(peer.local_addr().unwrap(), b"still here");
        assert_eq!(client::receive(&peer), (b"still here".to_vec(), relay));
        // The nonce is of the old secret, so the client gets a new one first.
        assert_eq!(refresh(&client, &session), Some(438));
        let session = client.challenge(&login);
        client.permit(&session, peer.local_addr().unwrap());
        assert_eq!(fixture.events("allocation-ended"), 0);
        assert_eq!(refresh(&client, &session), Some(401));
        let ended = fixture.event("allocation-ended");
        assert_eq!(ended.field("reason").as_deref(), Some("the configuration no longer has the credentials"));
    }

    // RFC 8489 §9.2.2: the key depends on the realm.
    #[test]
    fn a_key_of_the_old_realm_causes_a_warning_and_a_new_one_authenticates() {
        let key = |realm: &str| {
            let key = LongTermKey::derive("bob", realm, b"a password");
            key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let user = |realm: &str| format!("[{{ name = 'bob', key = '{}' }}]", key(realm));
        let fixture = Controlled::start(ALLOW);
        let login = Login::new("bob", "a password");
        let allocate = || Client::new(fixture.server.udp_address()).allocate(&login).map(|_| ());
        let offers_algorithms = || {
            let client = Client::new(fixture.server.udp_address());
            client.send(&client::allocate(TransactionId::new([7; 12])));
            client.receive().get::<PasswordAlgorithms<'_>>().is_some()
        };
        assert!(offers_algorithms());
        fixture.reload(&with(&fixture.config, &[("auth.users", &user(REALM))]));
        assert_eq!(allocate(), Ok(()));
        assert!(!offers_algorithms());
        let moved = with(&fixture.config, &[("realm", "'new.example'"), ("auth.users", &user(REALM))]);
        let response = fixture.reload(&moved);
        assert!(response["warnings"].to_string().contains("valid in one realm only"), "{response}");
        assert_eq!(allocate(), Err(401));
        let moved = with(&moved, &[("auth.users", &user("new.example"))]);
        assert!(!fixture.reload(&moved)["warnings"].to_string().contains("realm"));
        assert_eq!(allocate(), Ok(()));
    }

    #[test]
    fn sighup_reloads_and_several_reloads_at_once_are_carried_out_one_after_the_other() {
        let fixture = Controlled::start("");
        fixture.server.write_config(&with(&fixture.config, &[("limits.allocations", "77")]));
        fixture.server.signal(Signal::SIGHUP);
        let done = fixture.event("reload-done");
        assert!(done.message().starts_with("SIGHUP: ") && done.field("generation").as_deref() == Some("2"), "{done:?}");
        let commands: Vec<Process> = (0..4).map(|_| Process::start(&mut fixture.command(&["reload"]), None)).collect();
        fixture.server.signal(Signal::SIGHUP);
        for command in commands {
            let finished = command.finish(TIMEOUT);
            assert_eq!(finished.code, Some(0), "{finished:?}");
        }
        fixture.server.wait_for_logs(|lines| {
            lines.iter().filter(|line| line.field("event").as_deref() == Some("reload-done")).count() == 6
        });
        assert_eq!(fixture.generation(), 7);
    }

    #[test]
    fn a_reload_during_a_drain_changes_the_configuration_and_not_the_drain() {
        let fixture = Controlled::start("");
        let (client, session, _) = fixture.allocate("ann");
        assert_eq!(fixture.run(&["drain"]).code, Some(0));
        let changed = with(&fixture.config, &[("alternate.servers", "['192.0.2.1:3478']")]);
        assert_eq!(keys(&fixture.reload(&changed)), ["alternate.servers"]);
        // Redirected, and not rejected with 508 any more.
        assert_eq!(Client::new(fixture.server.udp_address()).allocate(&Login::mint("bob", 600)).err(), Some(300));
        assert_eq!(refresh(&client, &session), None);
        client.delete(&session);
        let ended = fixture.server.wait_for_log(|line| line.field("event").as_deref() == Some("stopped"));
        assert_eq!(ended.level(), "INFO");
    }

    #[test]
    fn a_removed_listener_ends_its_udp_allocations_and_keeps_connections() {
        let fixture = Controlled::start("");
        let (udp, tcp) = (fixture.server.udp_address(), fixture.server.tcp_address());
        let (client, _session, _) = fixture.allocate("ann");
        let connected = Client::connect(tcp);
        let (session, _) = connected.allocate(&Login::mint("bob", 600)).unwrap();
        let kept = Client::new(udp);
        let response = fixture
            .reload(&with(&fixture.config, &[("listen.udp", "['127.0.0.2:0']"), ("listen.tcp", "['127.0.0.2:0']")]));
        assert_eq!(keys(&response), ["listen.udp", "listen.tcp"]);
        let ended = fixture.event("allocation-ended");
        assert_eq!(ended.field("reason").as_deref(), Some(LISTENER_REMOVED));
        assert_eq!(ended.field("client"), Some(client.address().to_string()));
        let closed = fixture.event("listener-closed");
        assert!(
            closed.field("address").is_some_and(|address| [udp, tcp].map(|own| own.to_string()).contains(&address))
        );
        assert_eq!(refresh(&connected, &session), None);
        // Nobody listens there any more.
        drop(kept);
        while UdpSocket::bind(udp).is_err() || TcpListener::bind(tcp).is_err() {
            thread::yield_now();
        }
        let new = fixture.server.wait_for_log(|line| {
            line.message() == "listening"
                && line.field("transport").as_deref() == Some("udp")
                && line.field("address").is_some_and(|address| address.starts_with("127.0.0.2:"))
        });
        let client = Client::new(new.field("address").unwrap().parse().unwrap());
        client.allocate(&Login::mint("carol", 600)).unwrap();
    }

    // The kernel distributes packets among the workers by the address of the listener, so their clients would reach
    // other workers.
    #[test]
    fn allocations_end_if_another_listener_takes_the_place_of_theirs() {
        let fixture = Controlled::start("");
        let udp = fixture.server.udp_address();
        let (exact, wildcard) = (format!("['{udp}']"), format!("['0.0.0.0:{}']", udp.port()));
        let both = format!("['{udp}', '0.0.0.0:{}']", udp.port());
        fixture.reload(&with(&fixture.config, &[("listen.udp", &exact)]));
        let mut ended = 0;
        for (listen, ends) in [(&wildcard, true), (&both, true), (&exact, false), (&both, false), (&wildcard, true)] {
            let (client, session, _) = fixture.allocate("ann");
            fixture.reload(&with(&fixture.config, &[("listen.udp", listen)]));
            ended += usize::from(ends);
            assert_eq!(refresh(&client, &session), if ends { Some(437) } else { None }, "{listen}");
            fixture.server.wait_for_logs(|lines| {
                let ends = lines.iter().filter(|line| line.field("event").as_deref() == Some("allocation-ended"));
                ends.filter(|line| line.field("reason").as_deref() == Some(LISTENER_REMOVED)).count() == ended
            });
            if !ends {
                client.delete(&session);
            }
        }
    }

    #[test]
    fn peers_that_the_new_policy_denies_are_cut_off_at_once() {
        let fixture = Controlled::start("[peers]\nallow = [\"127.0.0.2\"]\n");
        let peer = client::socket("127.0.0.2:0".parse().unwrap());
        let (client, session, relay) = fixture.allocate("ann");
        client.permit(&session, peer.local_addr().unwrap());
        let response =
            fixture.reload(&with(&fixture.config, &[("peers.deny", "['127.0.0.2']"), ("peers.allow", "[]")]));
        assert_eq!([&response["revoked_permissions"], &response["revoked_channels"]], [1, 0]);
        let page = Http::unix(&fixture.socket).get("/metrics").body;
        assert_eq!(metric(&page, "turnserver_revoked_peers_total{kind=\"permission\"}"), 1);
        assert_eq!(metric(&page, "turnserver_revoked_peers_total{kind=\"channel\"}"), 0);
        let cut = fixture.event("peers-revoked");
        assert_eq!(cut.field("permissions").as_deref(), Some("1"));
        peer.send_to(b"x", relay).unwrap();
        fixture.reload(&fixture.config);
        client.permit(&session, peer.local_addr().unwrap());
        peer.send_to(b"y", relay).unwrap();
        assert_eq!(client.receive().get::<Data<'_>>(), Some(Data(b"y")));
    }

    #[test]
    fn a_new_port_range_and_mapping_apply_to_new_allocations() {
        let fixture = Controlled::start("");
        let (client, session, relay) = fixture.allocate("ann");
        let response = fixture.reload(&with(
            &fixture.config,
            &[("relay.ports", "'31700-31709'"), ("relay.external", "{ '127.0.0.1' = '192.0.2.9' }")],
        ));
        assert_eq!(keys(&response), ["relay.external", "relay.ports"]);
        let (_new, _, new) = fixture.allocate("bob");
        assert_eq!(new.ip().to_string(), "192.0.2.9");
        assert!((31_700..=31_709).contains(&new.port()) && !(31_700..=31_709).contains(&relay.port()), "{new} {relay}");
        assert_eq!(refresh(&client, &session), None);
        assert_eq!(fixture.events("allocation-ended"), 0);
        let page = Http::unix(&fixture.socket).get("/metrics").body;
        assert_eq!(metric(&page, "turnserver_relay_ports{state=\"used\"}"), 2);
        assert_eq!(metric(&page, "turnserver_relay_ports{state=\"free\"}"), 9);
        client.request(&session, Method::REFRESH, &|writer| writer.push(&Lifetime(0)));
        fixture.event("allocation-ended");
    }

    #[test]
    fn http_listeners_tokens_and_keys_change() {
        let directory = TempDir::new();
        let token = directory.write("token", "a-token-of-sufficient-length\n");
        let fixture = Controlled::start(HTTP);
        let first = fixture.http_address();
        assert_eq!(Http::tcp(first).get("/healthz").status, 200);
        let token = format!("{token:?}");
        let changed = with(
            &fixture.config,
            &[("http.listen", "['127.0.0.1:0', '127.0.0.2:0']"), ("http.metrics-token-file", &token)],
        );
        assert_eq!(keys(&fixture.reload(&changed)), ["http.listen", "http.metrics-token-file"]);
        let second = fixture.server.wait_for_log(|line| {
            line.field("event").as_deref() == Some("http-listening")
                && line.field("address").is_some_and(|address| address.starts_with("127.0.0.2:"))
        });
        let second: SocketAddr = second.field("address").unwrap().parse().unwrap();
        let without = Http::tcp(second).get("/healthz");
        assert_eq!(without.status, 401, "{}", without.body);
        let bearer = "Authorization: Bearer a-token-of-sufficient-length\r\n";
        for address in [first, second] {
            assert_eq!(Http::tcp(address).request("GET", "/healthz", bearer, b"").status, 200);
        }
        fixture.reload(&with(&fixture.config, &[("http.listen", "[]")]));
        for address in [first, second] {
            assert!(TcpStream::connect(address).is_err(), "{address}");
        }
        fixture.server.wait_for_logs(|lines| {
            lines.iter().filter(|line| line.field("event").as_deref() == Some("http-listener-closed")).count() == 2
        });
    }

    #[test]
    fn a_key_for_credentials_is_added_and_removed() {
        let fixture = Controlled::start(HTTP);
        let (address, key) = (fixture.http_address(), "a-key-that-this-test-has-made-up");
        let status = || {
            let headers = format!("Authorization: Bearer {key}\r\n");
            Http::tcp(address).request("POST", "/v1/ice-servers", &headers, b"{}").status
        };
        assert_ne!(status(), 201);
        let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        let keys = format!("[{{ name = 'app', sha256 = '{hash}' }}]");
        fixture.reload(&with(&fixture.config, &[("http.keys", &keys)]));
        assert_eq!(status(), 201);
        fixture.reload(&fixture.config);
        assert_ne!(status(), 201);
    }

    #[test]
    fn the_log_changes_its_format_and_level_and_keeps_a_level_that_ctl_has_set() {
        let fixture = Controlled::start("");
        fixture.reload(&with(&fixture.config, &[("log.format", "'text'")]));
        fixture.reload(&with(&fixture.config, &[("log.format", "'text'"), ("limits.allocations", "3")]));
        let text = fixture.server.wait_for_log(|line| line.text().contains("key=\"limits.allocations\""));
        assert!(text.text().starts_with("20"), "{text:?}");
        fixture.reload(&fixture.config);
        fixture.reload(&fixture.config);
        assert!(
            fixture
                .server
                .wait_for_log(|line| line.field("generation").as_deref() == Some("5"))
                .text()
                .starts_with('{')
        );
        assert_eq!(fixture.run(&["log-level", "debug"]).code, Some(0));
        let level = || fixture.run(&["--json", "status"]).stdout.join("");
        fixture.reload(&fixture.config);
        assert!(level().contains("\"log_level\":\"debug\""), "{}", level());
        fixture.reload(&with(&fixture.config, &[("log.level", "'warn'")]));
        assert!(level().contains("\"log_level\":\"warn\""), "{}", level());
    }

    #[test]
    fn a_secret_ends_a_trial_of_the_generated_one() {
        let fixture = Controlled::start_with(&crate::support::config_without_secret(&["127.0.0.1"], ""));
        let printed = fixture.server.printed_credential();
        let login = Login::new(&printed.username, &printed.password);
        let client = Client::new(fixture.server.udp_address());
        client.allocate(&login).unwrap();
        // The generated secret stays as long as there is no other.
        fixture.reload(&with(&fixture.config, &[("limits.allocations", "50")]));
        Client::new(fixture.server.udp_address()).allocate(&login).unwrap();
        fixture.reload(&with(&fixture.config, &[("auth.secrets", &format!("[{SECRET:?}]"))]));
        assert_eq!(Client::new(fixture.server.udp_address()).allocate(&login).err(), Some(401));
        let (_client, ..) = fixture.allocate("ann");
        assert_eq!(fixture.server.stdout().len(), 1);
        fixture.reload(&fixture.config);
        assert_eq!(fixture.server.wait_for_stdout(2).len(), 2);
    }
}
