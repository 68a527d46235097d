//! `turnserver doctor --url` against real servers, working and broken: the fault is named, and no other.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "doctor/boxes.rs"]
mod boxes;
#[cfg(test)]
#[path = "doctor/report.rs"]
mod report;
#[cfg(test)]
mod support;

#[cfg(test)]
mod doctor {
    use std::collections::BTreeSet;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::process::Command;
    use std::thread;

    use turnserver::auth::{Secret, time_limited};
    use turnserver::clock::unix_seconds;

    use crate::report::{Report, examine};
    use crate::support::blocked_ports::BLOCKED_RELAY_PORTS;
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
        server.wait_for_log(|line| line.field("event").as_deref() == Some("allocation-ended"));
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

    #[test]
    fn a_server_that_refers_to_another_one_leads_to_that_one() {
        let second = Server::start(&config(&["127.0.0.1"], ALLOW));
        let refer = |to: SocketAddr| format!("[alternate]\nservers = [\"{to}\"]\nwhen = \"always\"\n");
        let first = Server::start(&config(&["127.0.0.1"], &refer(second.udp_address())));
        let report = with_secret(&uri(first.udp_address(), "udp"), SECRET);
        assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
        assert!(report.text_of("alternate").ends_with(&second.udp_address().to_string()), "{:#?}", report.findings);
        assert!(report.text_of("channels").starts_with("40 of 40"));
        let of_second = |finding: &&serde_json::Value| finding["check"] == "allocation";
        let subject = report.findings.iter().find(of_second).unwrap()["subject"].as_str().unwrap();
        assert!(subject.ends_with(&format!("({})", second.udp_address())), "{subject}");
    }

    #[test]
    fn servers_that_refer_to_each_other_are_a_fault() {
        let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refer = |to: SocketAddr| format!("[alternate]\nservers = [\"{to}\"]\nwhen = \"always\"\n");
        let first = Server::start(&config(&["127.0.0.1"], &refer(other)));
        let second = config(&["127.0.0.1"], &refer(first.udp_address()));
        let _second = Server::start(&second.replace("udp = [\"127.0.0.1:0\"]", &format!("udp = [\"{other}\"]")));
        let report = with_secret(&uri(first.udp_address(), "udp"), SECRET);
        assert!(report.only_fault("allocation").contains("refers to another one"), "{:#?}", report.findings);
        assert_eq!(report.with("ok").iter().filter(|(check, _)| *check == "alternate").count(), 3);
    }

    #[test]
    fn a_port_that_accepts_connections_but_no_tls_and_a_password_in_a_uri_are_named() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let report = with_secret(&format!("turns:127.0.0.1:{port}"), SECRET);
        let text = report.only_fault("reachable");
        assert!(text.starts_with(&format!("TCP port {port} accepts connections, but the TLS handshake")), "{text}");
        let report = with_secret("turn:ann:hunter2@127.0.0.1", SECRET);
        assert!(report.only_fault("uri").contains("no password"));
        assert!(!format!("{:?}", report.findings).contains("hunter2"));
    }

    #[test]
    fn a_rule_of_this_machine_that_forbids_packets_is_named() {
        let prohibit = "rule add pref 10 ipproto udp dport 3478 prohibit";
        in_own_network(&["link set lo up", "rule add pref 100 lookup local", "rule del pref 0", prohibit], || {
            let report = with_secret("turn:127.0.0.1", SECRET);
            assert!(report.only_fault("reachable").starts_with("this machine forbids"), "{:#?}", report.findings);
        });
    }

    /// Examines this machine with the configuration of a server.
    fn examine_machine(config: &str) -> Report {
        let directory = TempDir::new();
        let path = directory.write("turnserver.toml", config);
        examine(&["--config", path.to_str().unwrap()], "")
    }

    #[test]
    fn a_machine_with_a_running_server_is_examined_on_each_listener() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["127.0.0.1"]), directory.path());
        let root = directory.write("root.pem", &authority.root());
        let server = Server::start(&with_tls(&config(&["127.0.0.1"], ALLOW), &["127.0.0.1"], &files));
        let config = server.config_path().to_str().unwrap();
        let report = examine(&["--config", config, "--ca-file", root.to_str().unwrap()], "");
        assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
        let count = |check: &str| report.with("ok").iter().filter(|(found, _)| *found == check).count();
        for (check, expected) in [("listener", 3), ("channels", 3), ("certificate", 2), ("configuration", 1)] {
            assert_eq!(count(check), expected, "{check}: {:#?}", report.findings);
        }
        assert!(report.text_of("listener").ends_with(" runs and responds"), "{:#?}", report.findings);
        // Clients do not accept the certificate, whatever name they expect.
        let unknown = examine(&["--config", config], "");
        assert!(unknown.only_fault("certificate").contains("Test Root"), "{:#?}", unknown.findings);
    }

    #[test]
    fn a_front_is_examined_with_and_without_tls_and_so_is_its_web_site() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let root = directory.write("root.pem", &authority.root());
        let [front, site] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, web] = [&front, &site].map(|listener| listener.local_addr().unwrap());
        drop(front);
        let more = format!(
            "{ALLOW}[[front]]\nlisten = \"{address}\"\nweb = \"{web}\"\nnames = [\"localhost\", \"other.example\"]\n"
        );
        let text = with_tls(&config(&["127.0.0.1"], &more), &["127.0.0.1"], &files);
        let Some(server) = Server::start_unless_in_use(&text) else { return };
        let examined = || {
            let config = server.config_path().to_str().unwrap();
            examine(&["--config", config, "--ca-file", root.to_str().unwrap()], "")
        };
        let report = examined();
        let ok = |check: &str| report.with("ok").iter().filter(|(found, _)| *found == check).count();
        assert_eq!((ok("web-site"), ok("listener")), (1, 4), "{:#?}", report.findings);
        let subject = |text: &str| report.findings.iter().any(|finding| format!("{finding:?}").contains(text));
        assert!(subject(&format!("turns:localhost:{}", address.port())), "{:#?}", report.findings);
        let name =
            report.with("warning").iter().any(|(check, text)| *check == "front-name" && text.contains("other.example"));
        assert!(name, "{:#?}", report.findings);
        drop(site);
        let report = examined();
        let faults = report.with("fault");
        assert!(faults.iter().any(|(check, text)| *check == "web-site" && text.contains("refused")), "{faults:?}");
    }

    #[test]
    fn a_machine_that_is_itself_a_proxy_is_told_why_its_listeners_are_not_examined() {
        let proxies = "[listen]\nproxies = [\"127.0.0.0/8\"]\n";
        let server = Server::start(&config(&["127.0.0.1"], ALLOW).replace("[listen]\n", proxies));
        let report = examine(&["--config", server.config_path().to_str().unwrap()], "");
        assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
        let found: Vec<_> = report.with("warning").into_iter().filter(|(check, _)| *check == "listener").collect();
        assert_eq!(found.len(), 2, "{:#?}", report.findings);
        assert!(found[0].1.contains("listen.proxies has 127.0.0.1"), "{found:?}");
    }

    // It is not known by which name clients find the server.
    #[test]
    fn the_names_of_a_certificate_do_not_matter_without_a_hostname() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["turn.example.org"]), directory.path());
        let root = directory.write("root.pem", &authority.root());
        let server = Server::start(&with_tls(&config(&["127.0.0.1"], ALLOW), &["127.0.0.1"], &files));
        let config = server.config_path().to_str().unwrap();
        let report = examine(&["--config", config, "--ca-file", root.to_str().unwrap()], "");
        assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
    }

    #[test]
    fn a_certificate_that_the_server_has_not_loaded_is_a_warning() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let issue = || authority.issue(&["127.0.0.1"]);
        let files = authority.write(&issue(), directory.path());
        let root = directory.write("root.pem", &authority.root());
        // The log reports the reload of changed files.
        let server = Server::start(&with_tls(&config(&["127.0.0.1"], ALLOW), &["127.0.0.1"], &files));
        let other = TempDir::new();
        let renewed = authority.write(&issue(), other.path());
        let text = std::fs::read_to_string(server.config_path()).unwrap();
        let [mut changed, old] = [text.clone(), text];
        for (from, to) in files.iter().zip(&renewed) {
            changed = changed.replace(from.to_str().unwrap(), to.to_str().unwrap());
        }
        let report = |text: &str| {
            let path = directory.write("turnserver.toml", text);
            examine(&["--config", path.to_str().unwrap(), "--ca-file", root.to_str().unwrap()], "")
        };
        let other = "the listener serves another certificate";
        let complaints =
            |report: &Report| report.with("warning").into_iter().filter(|(_, text)| text.starts_with(other)).count();
        assert_eq!((complaints(&report(&old)), complaints(&report(&changed))), (0, 1));
    }

    #[test]
    fn a_server_on_all_addresses_is_found_where_ipv6_is_off() {
        in_own_network(&["link set lo up", "address add 9.9.9.9/32 dev lo", "route add default dev lo"], || {
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
            let text = format!(
                "[listen]\nudp = [\"[::]:3478\"]\ntcp = [\"[::]:3478\"]\n[relay]\naddresses = [\"9.9.9.9\"]\n\
                 [auth]\nsecrets = [{SECRET:?}]\n[log]\nformat = \"json\"\n"
            );
            let server = Server::start(&text);
            let report = examine(&["--config", server.config_path().to_str().unwrap()], "");
            assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
            let count = |check: &str| report.with("ok").iter().filter(|(found, _)| *found == check).count();
            assert_eq!((count("listener"), count("channels")), (2, 2), "{:#?}", report.findings);
        });
    }

    #[test]
    fn a_stun_server_tells_the_public_address_of_each_relay_address() {
        let setup = [
            "link set lo up",
            "address add 9.9.9.9/32 dev lo",
            "address add 2620:fe::fe/128 dev lo",
            "route add default dev lo",
            "-6 route add default dev lo",
        ];
        in_own_network(&setup, || {
            let _stun = Server::start(&config(&["127.0.0.1"], "").replace("127.0.0.1:0", "[::]:3479"));
            let report = |external: &str, stun: &str| {
                let text = format!(
                    "[listen]\nudp = [\"9.9.9.9:3478\"]\ntcp = []\n[relay]\n{external}\
                     addresses = [\"9.9.9.9\", \"2620:fe::fe\"]\n[auth]\nsecrets = [{SECRET:?}]\n"
                );
                let directory = TempDir::new();
                let path = directory.write("turnserver.toml", &text);
                examine(&["--config", path.to_str().unwrap(), "--stun", stun], "")
            };
            let ok = |report: &Report| {
                let of = |(check, text): (&str, &str)| (check == "public-address").then(|| text.to_owned());
                report.with("ok").into_iter().filter_map(of).collect::<Vec<_>>()
            };
            let right = report("", "stun:9.9.9.9:3479");
            assert_eq!(ok(&right), ["9.9.9.9 is 9.9.9.9 outside, which the server advertises"]);
            let right = report("", "[2620:fe::fe]:3479");
            assert_eq!(ok(&right), ["2620:fe::fe is 2620:fe::fe outside, which the server advertises"]);
            let wrong = report("external = { \"9.9.9.9\" = \"9.9.9.10\" }\n", "9.9.9.9:3479");
            let text = wrong.with("fault");
            assert!(
                text.contains(&("public-address", "9.9.9.9 is 9.9.9.9 outside, but the server advertises 9.9.9.10")),
                "{text:?}"
            );
        });
    }

    #[test]
    fn a_machine_without_a_running_server_is_examined_and_a_warning_says_so() {
        in_own_network(&["link set lo up"], || {
            let report = examine_machine(&config(&["127.0.0.1"], ALLOW).replace("127.0.0.1:0", "127.0.0.1:3478"));
            assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
            assert_eq!(report.text_of("listener"), "the port is free; the server does not run");
            assert!(report.with("warning").iter().any(|(check, _)| *check == "relay"), "{:#?}", report.findings);
        });
    }

    #[test]
    fn errors_of_the_configuration_are_faults_with_their_lines() {
        let report = examine_machine("[listen]\nudb = [\"0.0.0.0:3478\"]\n");
        assert!(report.only_fault("configuration").contains(":2:1:"), "{:#?}", report.findings);
    }

    #[test]
    fn a_port_of_another_program_is_named() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = other.accept().unwrap();
                client.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
                let _ = client.read(&mut [0; 64]);
            });
            let text =
                config(&["127.0.0.1"], ALLOW).replace("tcp = [\"127.0.0.1:0\"]", &format!("tcp = [\"{taken}\"]"));
            let report = examine_machine(&text);
            let text = report.only_fault("listener");
            assert!(text.starts_with("another program uses the port, and it is not a TURN server"), "{text}");
        });
    }

    #[test]
    fn a_machine_with_a_private_address_is_told_apart_from_one_with_a_public_address() {
        // Passes the warnings about the relay address, and all faults.
        fn machine(address: &str, route: Option<&str>, check: impl FnOnce(Vec<String>, Vec<String>) + Send) {
            let own = format!("address add {address}/24 dev lo");
            let setup: Vec<&str> = ["link set lo up", &own].into_iter().chain(route).collect();
            in_own_network(&setup, || {
                let text = format!(
                    "[listen]\nudp = [\"{address}:3478\"]\ntcp = []\n[relay]\naddresses = [\"{address}\"]\n\
                     [auth]\nsecrets = [{SECRET:?}]\n"
                );
                let report = examine_machine(&text);
                let about = |status| report.with(status).into_iter().map(|(check, text)| format!("{check}: {text}"));
                check(
                    about("warning").filter(|text| text.starts_with("relay-address: ")).collect(),
                    about("fault").collect(),
                );
            });
        }
        machine("10.1.2.3", None, |warnings, faults| {
            assert!(warnings.iter().any(|text| text.contains("10.1.2.3")), "{warnings:?}");
            assert_eq!(faults, Vec::<String>::new());
        });
        machine("198.18.0.1", None, |warnings, _| assert_eq!(warnings.len(), 1, "{warnings:?}"));
        machine("9.9.9.9", Some("route add default dev lo"), |warnings, faults| {
            assert_eq!((warnings, faults), (vec![], vec![]));
        });
        machine("9.9.9.9", None, |_, faults| {
            assert_eq!(faults, ["route: IPv4 has no route to other networks, so peers there cannot be reached"]);
        });
    }

    /// A network in which datagrams and connections to others get lost without a response.
    const SILENT: [&str; 7] = [
        "link set lo up",
        "link add own type veth peer name other",
        "address add 192.0.2.2/24 dev own",
        "link set own up",
        "link set other up",
        "neighbor add 192.0.2.1 lladdr 02:00:00:00:00:01 dev own",
        "neighbor add 192.0.2.9 lladdr 02:00:00:00:00:01 dev own",
    ];

    #[test]
    fn blocked_udp_and_a_blocked_port_of_tls_are_named() {
        in_own_network(&SILENT, || {
            let report = with_secret("turn:192.0.2.1", SECRET);
            assert!(report.only_fault("binding").starts_with("no response on UDP"), "{:#?}", report.findings);
            let report = with_secret("turns:192.0.2.1:443", SECRET);
            assert_eq!(report.only_fault("reachable"), "no response on TCP port 443 within 5 s");
        });
    }

    #[test]
    fn a_router_that_does_not_return_packets_for_the_public_address_is_a_warning() {
        in_own_network(&SILENT, || {
            let text = config(&["127.0.0.1"], ALLOW)
                .replace("[relay]\n", "[relay]\nexternal = { \"127.0.0.1\" = \"192.0.2.9\" }\n");
            let server = Server::start(&text);
            let report = examine(&["--config", server.config_path().to_str().unwrap()], "");
            assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
            let warnings = report.with("warning");
            assert!(warnings.iter().any(|(check, _)| *check == "hairpin"), "{warnings:?}");
            // This server knows its own relayed addresses.
            assert!(report.text_of("channels").starts_with("40 of 40"), "{:#?}", report.findings);
        });
    }

    #[test]
    fn the_document_explains_the_checks_that_exist() {
        let read = |path: &str| std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let sources = [
            "remote.rs",
            "machine/mod.rs",
            "machine/firewall/mod.rs",
            "machine/fleet.rs",
            "machine/fronts.rs",
            "machine/kernel.rs",
            "machine/listeners.rs",
            "machine/names.rs",
            "machine/orders.rs",
            "machine/redis.rs",
            "machine/unit.rs",
            "machine/webhook.rs",
        ];
        let source: String = sources.map(|file| read(&format!("src/doctor/{file}"))).concat();
        let document = read("docs/troubleshooting.md");
        let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        let named: BTreeSet<&str> = rows.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
        for check in &named {
            assert!(source.contains(&format!("\"{check}\"")), "there is no check {check}");
        }
        let mut failing = BTreeSet::new();
        for call in ["Finding::fault(", "Finding::warning(", "own_fault(", "own_words("] {
            let arguments = source.split(call).skip(1).map(str::trim_start);
            failing.extend(arguments.filter_map(|text| text.strip_prefix('"')?.split('"').next()));
        }
        assert!(failing.len() > 15, "{failing:?}");
        let missing: Vec<_> = failing.difference(&named).collect();
        assert!(missing.is_empty(), "docs/troubleshooting.md does not explain {missing:?}");
    }
}
