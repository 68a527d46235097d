//! Interoperability with coturn's test client and echo peer (Debian package `coturn`), openssl, libnice, Janus and
//! Prometheus, over loopback.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "import_coturn/cases.rs"]
mod cases;
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
#[path = "interop/doctor.rs"]
mod doctor;
#[cfg(test)]
#[path = "interop/import_coturn.rs"]
mod import_coturn;
#[cfg(test)]
#[path = "interop/janus.rs"]
mod janus;
#[cfg(test)]
#[path = "interop/prometheus.rs"]
mod prometheus;
#[cfg(test)]
#[path = "interop/reload.rs"]
mod reload;
#[cfg(test)]
#[path = "doctor/report.rs"]
mod report;
#[cfg(test)]
mod support;

#[cfg(test)]
mod uclient {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::process::Command;
    use std::time::Duration;

    use turnserver::clock::unix_seconds;

    use crate::support::certificates::Authority;
    use crate::support::{Process, Server, TIMEOUT, TempDir, config, config_for, run, with_tls};

    const PACKAGE: Option<&str> = Some("coturn");
    const MESSAGES: usize = 200;
    const MESSAGE_LEN: usize = 1000;

    /// The client uses channel numbers of RFC 5766, and a draft's number for ADDITIONAL-ADDRESS-FAMILY.
    pub(crate) const FOR_UCLIENT: &str = "[compat]\nrfc5766-channels = true\ndraft-dual-allocation = true\n";

    /// Allows peers that are plain sockets on this machine.
    pub(crate) const LOOPBACK_PEERS: &str = "[peers]\nallow = [\"127.0.0.1\", \"::1\"]\n";

    #[derive(Clone, Copy)]
    pub(crate) enum Transport {
        Udp,
        Tcp,
        Tls,
    }

    /// The relayed addresses that each client allocates.
    #[derive(Clone, Copy)]
    pub(crate) enum Allocation {
        /// One address. Every second request asks for an even port.
        One,
        /// An even port (EVEN-PORT with the R bit) and the next one (RESERVATION-TOKEN).
        Pair,
        /// An IPv4 and an IPv6 address.
        Dual,
    }

    #[derive(Clone, Copy)]
    enum Data {
        Channels,
        Indications,
    }

    /// The totals at the end of the client's output.
    #[derive(Debug, PartialEq)]
    struct Summary {
        sent: usize,
        received: usize,
        sent_bytes: usize,
        received_bytes: usize,
        lost: usize,
        dropped: usize,
    }

    impl Summary {
        fn parse(output: &[String]) -> Option<Self> {
            let figure = |name: &str| {
                let after = output.iter().rev().find_map(|line| line.split_once(name))?.1.trim_start();
                after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            };
            Some(Self {
                sent: figure("tot_send_msgs=")?,
                received: figure("tot_recv_msgs=")?,
                sent_bytes: figure("tot_send_bytes ~")?,
                received_bytes: figure("tot_recv_bytes ~")?,
                lost: figure("Total lost packets")?,
                dropped: figure("total send dropped")?,
            })
        }
    }

    fn free_udp_port(ip: IpAddr) -> u16 {
        UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap().port()
    }

    /// Starts the echo peer and waits until it responds.
    pub(crate) fn start_peer(ip: IpAddr) -> (Process, SocketAddr) {
        let address = SocketAddr::new(ip, free_udp_port(ip));
        let mut command = Command::new("turnutils_peer");
        let peer = Process::start(command.args(["-p", &address.port().to_string(), "-L", &ip.to_string()]), PACKAGE);

        let probe = UdpSocket::bind((ip, 0)).unwrap();
        let interval = Duration::from_millis(50);
        probe.set_read_timeout(Some(interval)).unwrap();
        for _ in 0..TIMEOUT.as_millis() / interval.as_millis() {
            probe.send_to(b"are you there?", address).unwrap();
            if probe.recv_from(&mut [0; 64]).is_ok() {
                return (peer, address);
            }
        }
        panic!("turnutils_peer does not echo on {address}; its output:\n{}", peer.output());
    }

    /// Starts a server that listens on `transport`.
    fn start(transport: Transport, ip: &str, more: &str) -> Server {
        start_with(transport, ip, &config(&[ip], more))
    }

    pub(crate) fn start_with(transport: Transport, ip: &str, config: &str) -> Server {
        if !matches!(transport, Transport::Tls) {
            return Server::start(config);
        }
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        // The files may be removed now: a server that is ready has read them.
        Server::start(&with_tls(config, &[ip], &files))
    }

    /// Runs the client to its end and asserts that everything it sends comes back.
    pub(crate) fn uclient(
        case: &str,
        server: &Server,
        transport: Transport,
        allocation: Allocation,
        clients: usize,
        arguments: &[&str],
    ) {
        let credential = server.credential("uclient");
        let (address, more) = match transport {
            Transport::Udp => (server.udp_address(), &[][..]),
            Transport::Tcp => (server.tcp_address(), &["-t"][..]),
            Transport::Tls => (server.tls_address(), &["-t", "-S"][..]),
        };
        let mut command = Command::new("turnutils_uclient");
        command.args(["-u", &credential.username, "-w", &credential.password]);
        command.args(match allocation {
            Allocation::One => &["-c"][..],
            Allocation::Pair => &[],
            Allocation::Dual => &["-Z"],
        });
        command.args(["-m", &clients.to_string(), "-n", &MESSAGES.to_string(), "-l", &MESSAGE_LEN.to_string()]);
        command
            .args(["-z", "5", "-p", &address.port().to_string()])
            .args(more)
            .args(arguments)
            .arg(address.ip().to_string());

        let mut finished = run(&mut command, PACKAGE, Duration::from_secs(60));
        // A client binds two channels with random numbers, which are equal once in thousands of runs.
        if finished.stdout.iter().any(|line| line.contains("Channel Bound to Another Peer")) {
            println!("uclient {case}: again, because a client has chosen one number for two peers");
            finished = run(&mut command, PACKAGE, Duration::from_secs(60));
        }
        let summary = Summary::parse(&finished.stdout).unwrap_or_else(|| panic!("no summary in {finished:#?}"));
        println!("uclient {case}: {summary:?}");
        let messages = clients * MESSAGES;
        let bytes = messages * MESSAGE_LEN;
        let expected = Summary {
            sent: messages,
            received: messages,
            sent_bytes: bytes,
            received_bytes: bytes,
            lost: 0,
            dropped: 0,
        };
        assert_eq!(summary, expected, "{finished:#?}");
        assert_eq!(finished.code, Some(0));
    }

    /// Sends data through the relay to an echo peer and back.
    fn echo_through_peer(case: &str, transport: Transport, ip: &str, data: Data) {
        let server = start(transport, ip, &format!("{FOR_UCLIENT}{LOOPBACK_PEERS}"));
        let (_peer, peer) = start_peer(ip.parse().unwrap());
        let (peer_ip, peer_port) = (peer.ip().to_string(), peer.port().to_string());
        let mut arguments = vec![family(ip), "-e", &peer_ip, "-r", &peer_port];
        if matches!(data, Data::Indications) {
            arguments.push("-s");
        }
        uclient(case, &server, transport, Allocation::One, 4, &arguments);
    }

    /// Like `echo_through_peer` with pairs of ports. Asserts that reservations are claimed.
    fn echo_through_pairs_of_ports(case: &str, transport: Transport, ip: &str) {
        let server = start(transport, ip, &format!("{FOR_UCLIENT}{LOOPBACK_PEERS}"));
        let (_peer, peer) = start_peer(ip.parse().unwrap());
        let (peer_ip, peer_port) = (peer.ip().to_string(), peer.port().to_string());
        let arguments = [family(ip), "-e", &peer_ip, "-r", &peer_port];
        uclient(case, &server, transport, Allocation::Pair, 4, &arguments);
        let logs = server.terminate().logs;
        let ports: BTreeSet<u16> = logs
            .iter()
            .filter(|line| line.message() == "allocation created")
            .map(|line| line.field("relay").unwrap().parse::<SocketAddr>().unwrap().port())
            .collect();
        let pairs = ports.iter().filter(|port| port.is_multiple_of(2) && ports.contains(&(*port + 1))).count();
        assert!(pairs >= 2, "{ports:?}");
    }

    /// Exchanges data between clients with an address of each family and a peer of one family.
    fn echo_through_dual_allocations(case: &str, transport: Transport, ip: &str, data: Data) {
        let more = format!("{FOR_UCLIENT}{LOOPBACK_PEERS}");
        let server = start_with(transport, ip, &config_for(&[ip], &["127.0.0.1", "::1"], &more));
        let (_peer, peer) = start_peer(ip.parse().unwrap());
        let (peer_ip, peer_port) = (peer.ip().to_string(), peer.port().to_string());
        let mut arguments = vec!["-e", &*peer_ip, "-r", &peer_port];
        if matches!(data, Data::Indications) {
            arguments.push("-s");
        }
        uclient(case, &server, transport, Allocation::Dual, 4, &arguments);
    }

    /// Exchanges data relay to relay between two allocations, which requires no allowed peers.
    fn client_to_client(case: &str, transport: Transport, ip: &str, data: Data) {
        let server = start(transport, ip, FOR_UCLIENT);
        let mut arguments = vec![family(ip), "-y"];
        if matches!(data, Data::Indications) {
            arguments.push("-s");
        }
        uclient(case, &server, transport, Allocation::One, 2, &arguments);
    }

    /// Returns the option that requests the relayed address family.
    pub(crate) fn family(ip: &str) -> &'static str {
        if ip.contains(':') { "-x" } else { "-X" }
    }

    #[test]
    fn all_bytes_come_back_through_channels_over_ipv4() {
        echo_through_peer("channels, IPv4", Transport::Udp, "127.0.0.1", Data::Channels);
    }

    #[test]
    fn all_bytes_come_back_in_indications_over_ipv4() {
        echo_through_peer("indications, IPv4", Transport::Udp, "127.0.0.1", Data::Indications);
    }

    #[test]
    fn all_bytes_come_back_through_channels_over_ipv6() {
        echo_through_peer("channels, IPv6", Transport::Udp, "::1", Data::Channels);
    }

    #[test]
    fn all_bytes_come_back_in_indications_over_ipv6() {
        echo_through_peer("indications, IPv6", Transport::Udp, "::1", Data::Indications);
    }

    #[test]
    fn all_bytes_arrive_relay_to_relay_through_channels_over_ipv4() {
        client_to_client("relay to relay, channels, IPv4", Transport::Udp, "127.0.0.1", Data::Channels);
    }

    #[test]
    fn all_bytes_arrive_relay_to_relay_in_indications_over_ipv6() {
        client_to_client("relay to relay, indications, IPv6", Transport::Udp, "::1", Data::Indications);
    }

    #[test]
    fn all_bytes_come_back_through_channels_over_tcp_and_ipv4() {
        echo_through_peer("channels, IPv4, TCP", Transport::Tcp, "127.0.0.1", Data::Channels);
    }

    #[test]
    fn all_bytes_come_back_through_channels_over_tcp_and_ipv6() {
        echo_through_peer("channels, IPv6, TCP", Transport::Tcp, "::1", Data::Channels);
    }

    #[test]
    fn all_bytes_come_back_in_indications_over_tcp_and_ipv4() {
        echo_through_peer("indications, IPv4, TCP", Transport::Tcp, "127.0.0.1", Data::Indications);
    }

    #[test]
    fn all_bytes_come_back_in_indications_over_tcp_and_ipv6() {
        echo_through_peer("indications, IPv6, TCP", Transport::Tcp, "::1", Data::Indications);
    }

    #[test]
    fn all_bytes_come_back_through_channels_over_tls_and_ipv4() {
        echo_through_peer("channels, IPv4, TLS", Transport::Tls, "127.0.0.1", Data::Channels);
    }

    #[test]
    fn all_bytes_come_back_through_channels_over_tls_and_ipv6() {
        echo_through_peer("channels, IPv6, TLS", Transport::Tls, "::1", Data::Channels);
    }

    #[test]
    fn all_bytes_come_back_in_indications_over_tls_and_ipv4() {
        echo_through_peer("indications, IPv4, TLS", Transport::Tls, "127.0.0.1", Data::Indications);
    }

    #[test]
    fn all_bytes_come_back_in_indications_over_tls_and_ipv6() {
        echo_through_peer("indications, IPv6, TLS", Transport::Tls, "::1", Data::Indications);
    }

    #[test]
    fn all_bytes_arrive_relay_to_relay_through_channels_over_tls() {
        client_to_client("relay to relay, channels, IPv4, TLS", Transport::Tls, "127.0.0.1", Data::Channels);
    }

    #[test]
    fn all_bytes_arrive_relay_to_relay_through_channels_over_tcp() {
        client_to_client("relay to relay, channels, IPv4, TCP", Transport::Tcp, "127.0.0.1", Data::Channels);
    }

    /// Redirects every client to a second server (RFC 8489 §10).
    fn redirected(case: &str, transport: Transport) {
        let second = start(transport, "127.0.0.1", FOR_UCLIENT);
        let (key, address) = match transport {
            Transport::Udp => ("servers", second.udp_address()),
            Transport::Tcp => ("servers", second.tcp_address()),
            Transport::Tls => ("tls-servers", second.tls_address()),
        };
        let alternate = format!("[alternate]\n{key} = [\"{address}\"]\nwhen = \"always\"\n");
        let first = start(transport, "127.0.0.1", &alternate);
        uclient(case, &first, transport, Allocation::One, 2, &["-X", "-y"]);
    }

    #[test]
    fn all_bytes_arrive_at_the_alternate_server() {
        redirected("redirected", Transport::Udp);
    }

    #[test]
    fn all_bytes_arrive_at_the_alternate_server_over_tcp() {
        redirected("redirected, TCP", Transport::Tcp);
    }

    #[test]
    fn all_bytes_arrive_at_the_alternate_server_over_tls() {
        redirected("redirected, TLS", Transport::Tls);
    }

    #[test]
    fn all_bytes_come_back_through_pairs_of_ports_over_ipv4() {
        echo_through_pairs_of_ports("pairs of ports, IPv4", Transport::Udp, "127.0.0.1");
    }

    #[test]
    fn all_bytes_come_back_through_pairs_of_ports_over_ipv6() {
        echo_through_pairs_of_ports("pairs of ports, IPv6", Transport::Udp, "::1");
    }

    #[test]
    fn all_bytes_come_back_through_pairs_of_ports_over_tcp() {
        echo_through_pairs_of_ports("pairs of ports, IPv4, TCP", Transport::Tcp, "127.0.0.1");
    }

    #[test]
    fn all_bytes_come_back_through_dual_allocations_from_an_ipv4_peer() {
        echo_through_dual_allocations("dual, channels, IPv4", Transport::Udp, "127.0.0.1", Data::Channels);
    }

    #[test]
    fn all_bytes_come_back_through_dual_allocations_from_an_ipv6_peer() {
        echo_through_dual_allocations("dual, indications, IPv6", Transport::Udp, "::1", Data::Indications);
    }

    #[test]
    fn all_bytes_come_back_through_dual_allocations_over_tcp() {
        echo_through_dual_allocations("dual, indications, IPv4, TCP", Transport::Tcp, "127.0.0.1", Data::Indications);
    }

    #[test]
    fn all_bytes_come_back_through_pairs_of_ports_over_tls() {
        echo_through_pairs_of_ports("pairs of ports, IPv6, TLS", Transport::Tls, "::1");
    }

    #[test]
    fn all_bytes_come_back_through_dual_allocations_over_tls() {
        echo_through_dual_allocations("dual, channels, IPv6, TLS", Transport::Tls, "::1", Data::Channels);
    }

    #[test]
    fn the_summary_is_parsed_from_the_last_figures() {
        let output = [
            "3: : start_mclient: msz=4, tot_send_msgs=33, tot_recv_msgs=31, tot_send_bytes ~ 16500, tot_recv_bytes ~ 15500",
            "6: : start_mclient: tot_send_msgs=200, tot_recv_msgs=198",
            "6: : start_mclient: tot_send_bytes ~ 100000, tot_recv_bytes ~ 99000",
            "6: : Total lost packets 2 (1.000000%), total send dropped 0 (0.000000%)",
        ];
        let summary = Summary::parse(&output.map(str::to_owned));
        let expected =
            Summary { sent: 200, received: 198, sent_bytes: 100_000, received_bytes: 99_000, lost: 2, dropped: 0 };
        assert_eq!(summary, Some(expected));
        assert_eq!(Summary::parse(&["0: : error 403 (Forbidden)".to_owned()]), None);
    }
}

#[cfg(test)]
mod s_client {
    use std::process::Command;

    use turnserver::clock::unix_seconds;

    use crate::support::certificates::Authority;
    use crate::support::{Server, TIMEOUT, TempDir, config, run, with_tls};

    // RFC 7443 §2, RFC 7301 §3.2
    #[test]
    fn openssl_connects_with_tls_1_2_and_1_3_and_alpn() {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let root = directory.write("root.pem", &authority.root());
        let server = Server::start(&with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &files));
        let connect = |version: &str, more: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-verify_return_error", "-verify_hostname", "localhost", version, "-CAfile"]);
            command.arg(&root).arg("-connect").arg(server.tls_address().to_string()).args(more);
            let finished = run(&mut command, Some("openssl"), TIMEOUT);
            (finished.code, [finished.stdout, finished.stderr].concat().join("\n"))
        };
        for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            for (protocols, selected) in [
                ("stun.turn", "ALPN protocol: stun.turn"),
                ("h2,stun.nat-discovery", "ALPN protocol: stun.nat-discovery"),
            ] {
                let (code, output) = connect(version, &["-alpn", protocols]);
                println!("s_client {version} -alpn {protocols}: exit code {code:?}, {selected}");
                assert_eq!(code, Some(0), "{output}");
                for part in [&format!("New, {name}, Cipher is "), selected, "Verification: OK"] {
                    assert!(output.contains(part), "{part} is not in {output}");
                }
            }
            let (code, output) = connect(version, &[]);
            assert!(code == Some(0) && output.contains("No ALPN negotiated"), "{output}");
            let (code, output) = connect(version, &["-alpn", "h2,http/1.1"]);
            assert!(code == Some(1) && output.contains("alert no application protocol"), "{output}");
        }
        let (code, output) = connect("-tls1_1", &["-cipher", "DEFAULT:@SECLEVEL=0"]);
        assert!(code == Some(1) && output.contains("alert"), "{output}");
    }
}

#[cfg(test)]
mod libnice {
    use std::net::{SocketAddr, TcpListener};
    use std::process::Command;

    use turnserver::clock::unix_seconds;

    use crate::support::certificates::Authority;
    use crate::support::client::Login;
    use crate::support::{Server, TIMEOUT, TempDir, config, run, with_tls};

    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/libnice.py");
    /// Ports that are tried, because another program can take one before the server binds it.
    const ATTEMPTS: usize = 10;

    /// Returns the types of the candidates that libnice gathers with this relay type.
    fn candidates(server: SocketAddr, relay: &str) -> Vec<String> {
        let login = Login::mint("alice", 600);
        // The bindings belong to Debian's Python.
        let mut command = Command::new("/usr/bin/python3");
        command.args([SCRIPT, &server.ip().to_string(), &server.port().to_string()]);
        command.args([&login.username, &login.password, relay]);
        let finished = run(&mut command, Some("python3-gi gir1.2-nice-0.1"), TIMEOUT);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout
    }

    fn with_certificate(directory: &TempDir) -> String {
        let authority = Authority::new(unix_seconds());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        with_tls(&config(&["127.0.0.1"], ""), &["127.0.0.1"], &files)
    }

    // libnice 0.1.21, which GStreamer and Janus use, sends TURN without TLS over TCP to the port of a turns: URL.
    #[test]
    fn libnice_without_tls_on_a_tls_port_is_named_in_the_log() {
        let directory = TempDir::new();
        // The line is limited for each worker, and libnice connects twice.
        let server = Server::start(&format!("workers = 1\n{}", with_certificate(&directory)));
        assert!(!candidates(server.tls_address(), "TLS").contains(&"relayed".to_owned()));
        let lines = server.terminate().logs;
        let named: Vec<_> =
            lines.iter().filter(|line| line.field("event").as_deref() == Some("plain-on-tls-port")).collect();
        assert_eq!(named.len(), 1, "{lines:?}");
        assert!(named[0].field("client").unwrap().starts_with("127.0.0.1:"), "{named:?}");
        assert!(named[0].message().contains("listen.tcp"), "{named:?}");
    }

    #[test]
    fn libnice_gets_a_relayed_candidate_on_a_port_that_tcp_and_tls_share() {
        let directory = TempDir::new();
        let config = with_certificate(&directory);
        let server = (0..ATTEMPTS).find_map(|_| {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            Server::start_unless_in_use(&config.replace("127.0.0.1:0", &address.to_string()))
        });
        let server = server.unwrap();
        for relay in ["TLS", "TCP", "UDP"] {
            let found = candidates(server.tls_address(), relay);
            println!("libnice {relay}: {found:?}");
            assert!(found.contains(&"relayed".to_owned()), "{relay}: {found:?}");
        }
    }
}
