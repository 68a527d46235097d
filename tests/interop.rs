//! Interoperability with coturn's test client and echo peer (Debian package `coturn`), openssl, libnice, Janus,
//! HAProxy, nginx and Prometheus. Cases in which the server relays run over loopback (`loopback::`), and over a veth
//! interface with the XDP program (`offload::`), which needs root, `ip` and `ethtool`.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "import_coturn/cases.rs"]
mod cases;
#[cfg(test)]
#[path = "interop/doctor.rs"]
mod doctor;
#[cfg(test)]
#[path = "interop/front.rs"]
mod front;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "next_hop/hosts.rs"]
mod hosts;
#[cfg(test)]
#[path = "http/client.rs"]
mod http;
#[cfg(test)]
#[path = "interop/import_coturn.rs"]
mod import_coturn;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "offloaded/interfaces.rs"]
mod interfaces;
#[cfg(test)]
#[path = "interop/janus.rs"]
mod janus;
#[cfg(test)]
#[path = "front/nginx.rs"]
mod nginx;
#[cfg(test)]
#[path = "interop/openssl.rs"]
mod openssl;
#[cfg(test)]
#[path = "interop/prometheus.rs"]
mod prometheus;
#[cfg(test)]
#[path = "interop/proxies.rs"]
mod proxies;
#[cfg(test)]
#[path = "interop/reload.rs"]
mod reload;
#[cfg(test)]
#[path = "doctor/report.rs"]
mod report;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
mod site;
#[cfg(test)]
mod support;

#[cfg(test)]
use support::network;

#[cfg(test)]
mod uclient {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::process::Command;
    use std::time::Duration;

    use turnserver::clock::unix_seconds;

    use crate::interfaces::{udp_errors, wait_until};
    use crate::site::Version::{self, V4, V6};
    use crate::site::{Site, on_each_site};
    use crate::support::certificates::Authority;
    use crate::support::{Finished, Process, Server, TIMEOUT, TempDir, config, run, with_tls};

    use Data::{Channels, Indications};
    use Transport::{Tcp, Tls, Udp};

    const PACKAGE: Option<&str> = Some("coturn");
    /// Of the cases with an echo peer.
    const CLIENTS: usize = 4;
    const MESSAGES: usize = 200;
    const MESSAGE_LEN: usize = 1000;

    /// The client uses channel numbers of RFC 5766, and a draft's number for ADDITIONAL-ADDRESS-FAMILY.
    pub(crate) const FOR_UCLIENT: &str = "[compat]\nrfc5766-channels = true\ndraft-dual-allocation = true\n";

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
    pub(crate) fn start_peer(site: &Site, version: Version) -> (Process, SocketAddr) {
        let ip = site.host(version).parse().unwrap();
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
    fn start(site: &Site, transport: Transport, version: Version, more: &str) -> Server {
        start_with(site, transport, version, &site.config(&[version], more))
    }

    pub(crate) fn start_with(site: &Site, transport: Transport, version: Version, config: &str) -> Server {
        if !matches!(transport, Tls) {
            return site.start(config);
        }
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        // The files may be removed now: a server that is ready has read them.
        site.start(&with_tls(config, &[site.server(version)], &files))
    }

    /// Runs the client to its end and asserts that everything it sends comes back.
    pub(crate) fn uclient(
        site: &Site,
        case: &str,
        server: &Server,
        transport: Transport,
        allocation: Allocation,
        clients: usize,
        arguments: &[&str],
    ) {
        let credential = server.credential("uclient");
        let (address, more) = match transport {
            Udp => (server.udp_address(), &[][..]),
            Tcp => (server.tcp_address(), &["-t"][..]),
            Tls => (server.tls_address(), &["-t", "-S"][..]),
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

        let (mut finished, mut overflowed) = run_and_count(site, &mut command);
        let mut summary = Summary::parse(&finished.stdout);
        for _ in 0..2 {
            // A client binds two channels with random numbers, which are equal once in thousands of runs.
            if finished.stdout.iter().any(|line| line.contains("Channel Bound to Another Peer")) {
                println!("uclient {case}: again, because a client has chosen one number for two peers");
            } else if summary.as_ref().is_some_and(|summary| (1..=overflowed).contains(&summary.lost)) {
                println!("uclient {case}: again, because sockets did not take {overflowed} datagrams: {summary:?}");
            } else {
                break;
            }
            (finished, overflowed) = run_and_count(site, &mut command);
            summary = Summary::parse(&finished.stdout);
        }
        let summary = summary.unwrap_or_else(|| panic!("no summary in {finished:#?}"));
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
        assert_eq!(summary, expected, "{finished:#?}\n{}", site.drops());
        assert_eq!(finished.code, Some(0));
    }

    /// Runs the client to its end. Returns the number of datagrams for which client and peer had no room, too: on a busy
    /// machine they receive too late, and a datagram from a veth interface takes 4 KiB of their 128 KiB. They cannot be
    /// told from those of the server over loopback.
    fn run_and_count(site: &Site, command: &mut Command) -> (Finished, usize) {
        let overflowed = || if site.is_offloaded() { udp_errors("RcvbufErrors") } else { 0 };
        let before = overflowed();
        let finished = run(command, PACKAGE, Duration::from_secs(60));
        (finished, overflowed() - before)
    }

    /// Waits until the log has all bytes that the clients have sent through the relay to an echo peer and back.
    fn wait_for_logged_bytes(server: &Server) {
        server.wait_for_logs(|lines| {
            let bytes_of = |field: &str| -> usize {
                let ended = lines.iter().filter(|line| line.message() == "allocation ended");
                ended.map(|line| line.field(field).unwrap().parse::<usize>().unwrap()).sum()
            };
            // A client that was run again has added some.
            ["bytes_to_peers", "bytes_to_client"]
                .iter()
                .all(|field| bytes_of(field) >= CLIENTS * MESSAGES * MESSAGE_LEN)
        });
    }

    /// Waits until the server has counted that the kernel relayed most of this data to an echo peer and back, or asserts
    /// that it relayed none.
    fn assert_in_kernel(site: &Site, transport: Transport, data: Data) {
        let Some(relayed) = site.in_kernel() else { return };
        if !matches!((transport, data), (Udp, Channels)) {
            assert_eq!(relayed.packets, [0, 0]);
            return;
        }
        let messages = (CLIENTS * MESSAGES) as u64;
        // User space relays the first packets, before there are entries.
        let relayed = wait_until(|| {
            let [to_peers, to_clients] = site.in_kernel().unwrap().packets;
            let is_most = to_peers.min(to_clients) > messages / 2;
            if is_most { Ok([to_peers, to_clients]) } else { Err(format!("{to_peers} and {to_clients}")) }
        });
        println!("the kernel relays {relayed:?} of {messages} packets");
    }

    /// Sends data through the relay to an echo peer and back.
    fn echo_through_peer(site: &Site, case: &str, transport: Transport, version: Version, data: Data) {
        let server = start(site, transport, version, &format!("{FOR_UCLIENT}{}", site.peers()));
        let (_peer, peer) = start_peer(site, version);
        let (peer_ip, peer_port) = (peer.ip().to_string(), peer.port().to_string());
        let mut arguments = vec![family(version), "-e", &peer_ip, "-r", &peer_port];
        if matches!(data, Indications) {
            arguments.push("-s");
        }
        uclient(site, case, &server, transport, Allocation::One, CLIENTS, &arguments);
        wait_for_logged_bytes(&server);
        assert_in_kernel(site, transport, data);
    }

    /// Like `echo_through_peer` with pairs of ports. Asserts that reservations are claimed.
    fn echo_through_pairs_of_ports(site: &Site, case: &str, transport: Transport, version: Version) {
        let server = start(site, transport, version, &format!("{FOR_UCLIENT}{}", site.peers()));
        let (_peer, peer) = start_peer(site, version);
        let (peer_ip, peer_port) = (peer.ip().to_string(), peer.port().to_string());
        let arguments = [family(version), "-e", &peer_ip, "-r", &peer_port];
        uclient(site, case, &server, transport, Allocation::Pair, CLIENTS, &arguments);
        wait_for_logged_bytes(&server);
        assert_in_kernel(site, transport, Channels);
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
    fn echo_through_dual_allocations(site: &Site, case: &str, transport: Transport, version: Version, data: Data) {
        let more = format!("{FOR_UCLIENT}{}", site.peers());
        let server = start_with(site, transport, version, &site.config_for(&[version], &[V4, V6], &more));
        let (_peer, peer) = start_peer(site, version);
        let (peer_ip, peer_port) = (peer.ip().to_string(), peer.port().to_string());
        let mut arguments = vec!["-e", &*peer_ip, "-r", &peer_port];
        if matches!(data, Indications) {
            arguments.push("-s");
        }
        uclient(site, case, &server, transport, Allocation::Dual, CLIENTS, &arguments);
        // The client leaves some of its allocations, so that the log does not have them.
        assert_in_kernel(site, transport, data);
    }

    /// Exchanges data relay to relay between two allocations, which requires no allowed peers.
    fn client_to_client(site: &Site, case: &str, transport: Transport, version: Version, data: Data) {
        let server = start(site, transport, version, FOR_UCLIENT);
        let mut arguments = vec![family(version), "-y"];
        if matches!(data, Indications) {
            arguments.push("-s");
        }
        uclient(site, case, &server, transport, Allocation::One, 2, &arguments);
    }

    /// Redirects every client to a second server (RFC 8489 §10).
    fn redirected(site: &Site, case: &str, transport: Transport) {
        let second = start(site, transport, V4, FOR_UCLIENT);
        let (key, address) = match transport {
            Udp => ("servers", second.udp_address()),
            Tcp => ("servers", second.tcp_address()),
            Tls => ("tls-servers", second.tls_address()),
        };
        let alternate = format!("[alternate]\n{key} = [\"{address}\"]\nwhen = \"always\"\n");
        // It relays nothing, and only one server can use the program.
        let config = config(&[site.server(V4)], &format!("{alternate}[offload]\nmode = \"off\"\n"));
        let first = start_with(site, transport, V4, &config);
        uclient(site, case, &first, transport, Allocation::One, 2, &["-X", "-y"]);
    }

    /// Returns the option that requests the relayed address family.
    pub(crate) fn family(version: Version) -> &'static str {
        match version {
            V4 => "-X",
            V6 => "-x",
        }
    }

    on_each_site! {
        all_bytes_come_back_through_channels_over_ipv4:
            |site| echo_through_peer(site, "channels, IPv4", Udp, V4, Channels);
        all_bytes_come_back_in_indications_over_ipv4:
            |site| echo_through_peer(site, "indications, IPv4", Udp, V4, Indications);
        all_bytes_come_back_through_channels_over_ipv6:
            |site| echo_through_peer(site, "channels, IPv6", Udp, V6, Channels);
        all_bytes_come_back_in_indications_over_ipv6:
            |site| echo_through_peer(site, "indications, IPv6", Udp, V6, Indications);
        all_bytes_arrive_relay_to_relay_through_channels_over_ipv4:
            |site| client_to_client(site, "relay to relay, channels, IPv4", Udp, V4, Channels);
        all_bytes_arrive_relay_to_relay_in_indications_over_ipv6:
            |site| client_to_client(site, "relay to relay, indications, IPv6", Udp, V6, Indications);
        all_bytes_come_back_through_channels_over_tcp_and_ipv4:
            |site| echo_through_peer(site, "channels, IPv4, TCP", Tcp, V4, Channels);
        all_bytes_come_back_through_channels_over_tcp_and_ipv6:
            |site| echo_through_peer(site, "channels, IPv6, TCP", Tcp, V6, Channels);
        all_bytes_come_back_in_indications_over_tcp_and_ipv4:
            |site| echo_through_peer(site, "indications, IPv4, TCP", Tcp, V4, Indications);
        all_bytes_come_back_in_indications_over_tcp_and_ipv6:
            |site| echo_through_peer(site, "indications, IPv6, TCP", Tcp, V6, Indications);
        all_bytes_come_back_through_channels_over_tls_and_ipv4:
            |site| echo_through_peer(site, "channels, IPv4, TLS", Tls, V4, Channels);
        all_bytes_come_back_through_channels_over_tls_and_ipv6:
            |site| echo_through_peer(site, "channels, IPv6, TLS", Tls, V6, Channels);
        all_bytes_come_back_in_indications_over_tls_and_ipv4:
            |site| echo_through_peer(site, "indications, IPv4, TLS", Tls, V4, Indications);
        all_bytes_come_back_in_indications_over_tls_and_ipv6:
            |site| echo_through_peer(site, "indications, IPv6, TLS", Tls, V6, Indications);
        all_bytes_arrive_relay_to_relay_through_channels_over_tls:
            |site| client_to_client(site, "relay to relay, channels, IPv4, TLS", Tls, V4, Channels);
        all_bytes_arrive_relay_to_relay_through_channels_over_tcp:
            |site| client_to_client(site, "relay to relay, channels, IPv4, TCP", Tcp, V4, Channels);
        all_bytes_arrive_at_the_alternate_server:
            |site| redirected(site, "redirected", Udp);
        all_bytes_arrive_at_the_alternate_server_over_tcp:
            |site| redirected(site, "redirected, TCP", Tcp);
        all_bytes_arrive_at_the_alternate_server_over_tls:
            |site| redirected(site, "redirected, TLS", Tls);
        all_bytes_come_back_through_pairs_of_ports_over_ipv4:
            |site| echo_through_pairs_of_ports(site, "pairs of ports, IPv4", Udp, V4);
        all_bytes_come_back_through_pairs_of_ports_over_ipv6:
            |site| echo_through_pairs_of_ports(site, "pairs of ports, IPv6", Udp, V6);
        all_bytes_come_back_through_pairs_of_ports_over_tcp:
            |site| echo_through_pairs_of_ports(site, "pairs of ports, IPv4, TCP", Tcp, V4);
        all_bytes_come_back_through_dual_allocations_from_an_ipv4_peer:
            |site| echo_through_dual_allocations(site, "dual, channels, IPv4", Udp, V4, Channels);
        all_bytes_come_back_through_dual_allocations_from_an_ipv6_peer:
            |site| echo_through_dual_allocations(site, "dual, indications, IPv6", Udp, V6, Indications);
        all_bytes_come_back_through_dual_allocations_over_tcp:
            |site| echo_through_dual_allocations(site, "dual, indications, IPv4, TCP", Tcp, V4, Indications);
        all_bytes_come_back_through_pairs_of_ports_over_tls:
            |site| echo_through_pairs_of_ports(site, "pairs of ports, IPv6, TLS", Tls, V6);
        all_bytes_come_back_through_dual_allocations_over_tls:
            |site| echo_through_dual_allocations(site, "dual, channels, IPv6, TLS", Tls, V6, Channels);
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

    use crate::site::Version::V4;
    use crate::site::{Site, on_each_site};
    use crate::support::certificates::Authority;
    use crate::support::{TIMEOUT, TempDir, run, with_tls};

    on_each_site! {
        // RFC 7443 §2, RFC 7301 §3.2
        openssl_connects_with_tls_1_2_and_1_3_and_alpn: connect;
    }

    fn connect(site: &Site) {
        let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        let root = directory.write("root.pem", &authority.root());
        let server = site.start(&with_tls(&site.config(&[V4], ""), &[site.server(V4)], &files));
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

    use crate::site::Version::V4;
    use crate::site::{Site, on_each_site};
    use crate::support::certificates::Authority;
    use crate::support::client::Login;
    use crate::support::{Server, TIMEOUT, TempDir, run, with_tls};

    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/libnice.py");
    /// Ports that are tried, because another program can take one before the server binds it.
    const ATTEMPTS: usize = 10;

    /// Returns the types of the candidates that libnice gathers with this relay type.
    fn candidates(site: &Site, server: SocketAddr, relay: &str) -> Vec<String> {
        let login = Login::mint("alice", 600);
        // The bindings belong to Debian's Python.
        let mut command = Command::new("/usr/bin/python3");
        command.args([SCRIPT, site.host(V4), &server.ip().to_string(), &server.port().to_string()]);
        command.args([&login.username, &login.password, relay]);
        let finished = run(&mut command, Some("python3-gi gir1.2-nice-0.1"), TIMEOUT);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout
    }

    fn with_certificate(site: &Site, directory: &TempDir) -> String {
        let authority = Authority::new(unix_seconds());
        let files = authority.write(&authority.issue(&["localhost"]), directory.path());
        with_tls(&site.config(&[V4], ""), &[site.server(V4)], &files)
    }

    on_each_site! {
        libnice_without_tls_on_a_tls_port_is_named_in_the_log: without_tls;
        libnice_gets_a_relayed_candidate_on_a_port_that_tcp_and_tls_share: on_a_shared_port;
    }

    // libnice 0.1.21, which GStreamer and Janus use, sends TURN without TLS over TCP to the port of a turns: URL.
    fn without_tls(site: &Site) {
        let directory = TempDir::new();
        // The line is limited for each worker, and libnice connects twice.
        let server = site.start(&format!("workers = 1\n{}", with_certificate(site, &directory)));
        assert!(!candidates(site, server.tls_address(), "TLS").contains(&"relayed".to_owned()));
        let lines = server.terminate().logs;
        let named: Vec<_> =
            lines.iter().filter(|line| line.field("event").as_deref() == Some("plain-on-tls-port")).collect();
        assert_eq!(named.len(), 1, "{lines:?}");
        assert!(named[0].field("client").unwrap().starts_with(&format!("{}:", site.host(V4))), "{named:?}");
        assert!(named[0].message().contains("listen.tcp"), "{named:?}");
    }

    fn on_a_shared_port(site: &Site) {
        let directory = TempDir::new();
        let config = with_certificate(site, &directory);
        let any = format!("{}:0", site.server(V4));
        let server = site.at_server(|| {
            (0..ATTEMPTS).find_map(|_| {
                let address = TcpListener::bind(&any).unwrap().local_addr().unwrap();
                Server::start_unless_in_use(&config.replace(&any, &address.to_string()))
            })
        });
        let server = server.unwrap();
        for relay in ["TLS", "TCP", "UDP"] {
            let found = candidates(site, server.tls_address(), relay);
            println!("libnice {relay}: {found:?}");
            assert!(found.contains(&"relayed".to_owned()), "{relay}: {found:?}");
        }
    }
}
