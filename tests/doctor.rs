//! `turnserver doctor --url` against real servers, working and broken: the fault is named, and no other.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "doctor/report.rs"]
mod report;
#[cfg(test)]
mod support;

#[cfg(test)]
mod doctor {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::process::Command;
    use std::thread;

    use turnserver::auth::{Secret, time_limited};
    use turnserver::clock::unix_seconds;

    use crate::report::{BLOCKED_RELAY_PORTS, Report, examine};
    use crate::support::certificates::Authority;
    use crate::support::network::in_own_network;
    use crate::support::{SECRET, Server, TIMEOUT, TempDir, config, with_tls};

    const ALLOW: &str = "[peers]\nallow = [\"127.0.0.0/8\"]\n";

    fn with_secret(uri: &str, secret: &str) -> Report {
        examine(&["--url", uri, "--secret-file", "-"], secret)
    }

    fn uri(address: SocketAddr, transport: &str) -> String {
        format!("turn:{address}?transport={transport}")
    }

    #[test]
    fn a_server_that_works_is_measured_on_each_transport() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let root = directory.write("root.pem", &authority.root());
        let server = Server::start(&with_tls(&config(&["127.0.0.1"], ALLOW), &["127.0.0.1"], &files));
        let tls = format!("turns:localhost:{}", server.tls_address().port());
        let (udp, tcp) = (uri(server.udp_address(), "udp"), uri(server.tcp_address(), "tcp"));
        let root = root.to_str().unwrap();
        let report =
            examine(&["--url", &udp, "--url", &tcp, "--url", &tls, "--ca-file", root, "--secret-file", "-"], SECRET);
        assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
        // Clients elsewhere cannot reach a loopback address.
        assert_eq!(report.with("warning").len(), 3);
        assert!(report.with("warning").iter().all(|(check, _)| *check == "relayed-address"), "{:#?}", report.findings);
        assert_eq!(report.code, Some(1));
        for (check, count) in [("dns", 3), ("binding", 3), ("allocation", 3), ("indications", 3), ("channels", 3)] {
            assert_eq!(report.with("ok").iter().filter(|(found, _)| *found == check).count(), count, "{check}");
        }
        assert!(report.text_of("channels").starts_with("40 of 40 messages arrived; round trip "));
        assert!(report.text_of("certificate").contains("localhost"), "{:#?}", report.findings);
        assert!(report.text_of("mtu").starts_with("1452 bytes"));
        // It cleans up: all six allocations are gone.
        server.wait_for_logs(|logs| {
            logs.iter().filter(|line| line.field("event").as_deref() == Some("allocation-ended")).count() == 6
        });
    }

    #[test]
    fn the_report_for_people_has_a_line_for_each_finding_and_a_summary() {
        let server = Server::start(&config(&["127.0.0.1"], ALLOW));
        let directory = TempDir::new();
        let secret = directory.write("secret", SECRET);
        let mut command = Command::new(env!("CARGO_BIN_EXE_turnserver"));
        command.args(["doctor", "--url", &uri(server.udp_address(), "udp"), "--secret-file"]).arg(secret);
        let finished = crate::support::run(&mut command, None, TIMEOUT);
        assert_eq!((finished.code, finished.stderr.len()), (Some(1), 0), "{finished:?}");
        assert_eq!(finished.stdout.last().unwrap(), "8 checks, 1 warning, 0 faults");
        assert_eq!(finished.stdout.len(), 9);
        let warning = finished.stdout.iter().find(|line| line.starts_with("warning  relayed-address turn:127.0.0.1:"));
        assert!(warning.unwrap().contains(" → set the public address"), "{finished:?}");
        assert!(!finished.stdout.concat().contains(SECRET));
    }

    #[test]
    fn what_is_wrong_with_credentials_is_said() {
        let server = Server::start(&config(&["127.0.0.1"], ALLOW));
        let uri = uri(server.udp_address(), "udp");
        let text = with_secret(&uri, "another secret for tests").only_fault("credentials").to_owned();
        assert!(text.contains("test.example"), "{text}");
        let none = examine(&["--url", &uri], "");
        assert!(none.only_fault("credentials").contains("wants credentials for the realm \"test.example\""));
        let secret = Secret::new(SECRET).unwrap();
        let old = time_limited::mint(&secret, Some("ann"), unix_seconds() - 3_700);
        let servers = old.ice_servers(std::slice::from_ref(&uri));
        let expired = examine(&["--ice-servers", "-"], &servers);
        assert!(
            expired.only_fault("credentials").starts_with("the credential expired 1 h 1 min ago"),
            "{:?}",
            expired.findings
        );
        let good = time_limited::mint(&secret, Some("ann"), unix_seconds() + 600).ice_servers(&[uri]);
        assert_eq!(examine(&["--ice-servers", "-"], &good).with("fault"), []);
    }

    #[test]
    fn a_port_without_a_server_and_a_port_of_another_server_are_told_apart() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for transport in ["udp", "tcp"] {
            let check = if transport == "udp" { "binding" } else { "reachable" };
            let report = with_secret(&uri(free, transport), SECRET);
            let text = report.only_fault(check);
            assert!(
                text.contains(&format!("nothing listens on {} port {}", transport.to_uppercase(), free.port())),
                "{text}"
            );
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = other.accept().unwrap();
                let _ = client.read(&mut [0; 64]).unwrap();
                client.write_all(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n").unwrap();
                // Until the client goes.
                let _ = client.read(&mut [0; 64]);
            });
            let report = with_secret(&uri(address, "tcp"), SECRET);
            let text = report.only_fault("binding");
            assert_eq!(text, "the server does not speak TURN; it sends: HTTP/1.1 400 Bad Request");
        });
    }

    #[test]
    fn a_name_without_an_address_and_a_uri_that_is_none_are_faults() {
        let report = with_secret("turn:turnserver.invalid", SECRET);
        assert!(report.only_fault("dns").starts_with("turnserver.invalid has no address"));
        assert!(with_secret("turn://127.0.0.1", SECRET).only_fault("uri").contains("write turn:127.0.0.1"));
    }

    #[test]
    fn a_limit_on_allocations_is_a_warning() {
        let server = Server::start(&config(&["127.0.0.1"], &format!("{ALLOW}[limits]\nallocations-per-user = 1\n")));
        let report = with_secret(&uri(server.udp_address(), "udp"), SECRET);
        assert_eq!((report.with("fault"), report.code), (vec![], Some(1)));
        let warnings = report.with("warning");
        assert!(warnings.iter().any(|(check, text)| *check == "relay" && text.contains("486")), "{warnings:?}");
    }

    #[test]
    fn a_certificate_of_an_unknown_authority_and_for_another_name_is_a_fault_and_the_rest_is_examined() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["turn.example.org"]), directory.path());
        let server = Server::start(&with_tls(&config(&["127.0.0.1"], ALLOW), &["127.0.0.1"], &files));
        let uri = format!("turns:localhost:{}", server.tls_address().port());
        let unknown = with_secret(&uri, SECRET);
        assert!(unknown.only_fault("certificate").contains("Test Root"), "{:#?}", unknown.findings);
        let root = directory.write("root.pem", &authority.root());
        let root = ["--ca-file", root.to_str().unwrap()];
        let other = examine(&[&["--url", &uri, "--secret-file", "-"], &root[..]].concat(), SECRET);
        let text = other.only_fault("certificate");
        assert_eq!(text, "the certificate is not for localhost, but for turn.example.org");
        assert!(other.text_of("channels").starts_with("40 of 40"));
    }

    #[test]
    fn relay_ports_that_are_blocked_and_a_small_mtu_are_named() {
        let setup = ["link set lo up", "link set lo mtu 1280"];
        in_own_network(&setup, || {
            let server = Server::start(&config(&["127.0.0.1"], ALLOW));
            let report = with_secret(&uri(server.udp_address(), "udp"), SECRET);
            assert_eq!(report.with("fault"), []);
            assert!(report.text_of("mtu").starts_with("1200 bytes"), "{:#?}", report.findings);
        });
        in_own_network(&["link set lo up", "link set lo mtu 1000"], || {
            let server = Server::start(&config(&["127.0.0.1"], ALLOW));
            let report = with_secret(&uri(server.udp_address(), "udp"), SECRET);
            let warnings = report.with("warning");
            assert!(warnings.iter().any(|(check, text)| *check == "mtu" && text.contains("only 500")), "{warnings:?}");
        });
        in_own_network(&BLOCKED_RELAY_PORTS, || {
            let server = Server::start(&config(&["127.0.0.1"], ALLOW));
            let report = with_secret(&uri(server.udp_address(), "udp"), SECRET);
            assert!(report.only_fault("indications").starts_with("no data passes"), "{:#?}", report.findings);
        });
    }
}
