//! `turnserver doctor --url` against coturn, right and broken. Over the offload only where it examines this server.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;

use turnserver::auth::{Secret, time_limited};
use turnserver::clock::unix_seconds;

use crate::report::{Report, examine, examine_by};
use crate::site::Version::V4;
use crate::site::{Site, on_each_site};
use crate::support::blocked_ports::BLOCKED_RELAY_PORTS;
use crate::support::certificates::Authority;
use crate::support::network::in_own_network;
use crate::support::{Process, TIMEOUT, TempDir, skip};

const PACKAGE: Option<&str> = Some("coturn");
const SECRET: &str = "a secret of coturn";

/// A running coturn with time-limited credentials.
struct Coturn {
    address: SocketAddr,
    _process: Process,
    _directory: TempDir,
}

impl Coturn {
    fn start(more: &[&str]) -> Self {
        Self::start_at("127.0.0.1".parse().unwrap(), &[&["--no-tls"], more].concat())
    }

    fn start_at(ip: IpAddr, more: &[&str]) -> Self {
        let directory = TempDir::new();
        // coturn cannot pick a port itself.
        let address = UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap();
        let own = ip.to_string();
        let mut command = Command::new("/usr/bin/turnserver");
        command
            .args(["-n", "--no-cli", "--no-dtls", "--use-auth-secret", "--realm", "coturn.example"])
            .args(["--listening-ip", &own, "--relay-ip", &own, "--log-file", "stdout", "--verbose"])
            .args(["--min-port", "20000", "--max-port", "32000", "--static-auth-secret", SECRET])
            .args(["--listening-port", &address.port().to_string()])
            .arg("--pidfile")
            .arg(directory.path().join("pid"))
            .arg("--userdb")
            .arg(directory.path().join("db"))
            .args(more);
        let process = Process::start(&mut command, PACKAGE);
        let ready = |lines: &[String]| {
            let opened = |line: &&String| line.contains("listener opened on") && line.contains("UDP");
            lines.iter().find(opened).map(drop)
        };
        assert!(process.stdout.wait_for(TIMEOUT, ready).is_some(), "{}", process.output());
        Self { address, _process: process, _directory: directory }
    }

    fn uri(&self, transport: &str) -> String {
        format!("turn:{}?transport={transport}", self.address)
    }

    fn examine(&self, secret: &str) -> Report {
        examine(&["--url", &self.uri("udp"), "--secret-file", "-"], secret)
    }
}

#[test]
fn a_coturn_that_works_has_no_fault() {
    let coturn = Coturn::start(&["--allow-loopback-peers"]);
    let uris = [coturn.uri("udp"), coturn.uri("tcp")];
    let report = examine(&["--url", &uris[0], "--url", &uris[1], "--secret-file", "-"], SECRET);
    assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
    assert!(report.text_of("allocation").contains("coturn.example"));
    assert!(report.text_of("channels").starts_with("40 of 40 messages arrived"), "{:#?}", report.findings);
}

#[test]
fn a_coturn_with_ipv6_and_tls_is_examined_on_each_transport() {
    let (authority, directory) = (Authority::new(unix_seconds()), TempDir::new());
    let [certificate, key] = authority.write(&authority.issue(&["::1"]), directory.path());
    let root = directory.write("root.pem", &authority.root());
    let [certificate, key, root] = [&certificate, &key, &root].map(|path| path.to_str().unwrap());
    let port = UdpSocket::bind("[::1]:0").unwrap().local_addr().unwrap().port().to_string();
    let more = ["--allow-loopback-peers", "--cert", certificate, "--pkey", key, "--tls-listening-port", &port];
    let coturn = Coturn::start_at("::1".parse().unwrap(), &more);
    let uris = [coturn.uri("udp"), coturn.uri("tcp"), format!("turns:[::1]:{port}?transport=tcp")];
    let [udp, tcp, tls] = &uris;
    let examine_tls = |more: &[&str]| examine(&[&["--url", tls, "--secret-file", "-"], more].concat(), SECRET);
    let report = examine(&["--url", udp, "--url", tcp, "--url", tls, "--secret-file", "-", "--ca-file", root], SECRET);
    assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
    let works = |(check, text): &(&str, &str)| *check == "channels" && text.starts_with("40 of 40 messages arrived");
    assert_eq!(report.with("ok").iter().filter(|found| works(found)).count(), 3, "{:#?}", report.findings);
    assert!(examine_tls(&[]).only_fault("certificate").contains("Test Root"));
}

/// Examines a machine whose server does not run, after shell commands that set up its packet filter. Returns the status and
/// the text about the filter, if there is one.
fn with_filter(commands: &str) -> Option<(String, String)> {
    let directory = TempDir::new();
    let config = format!(
        "[listen]\nudp = [\"[::]:3478\"]\ntcp = [\"[::]:3478\"]\n\
         [relay]\naddresses = [\"9.9.9.9\", \"2620:fe::fe\"]\nports = \"50000-50999\"\n[auth]\nsecrets = [{:?}]\n",
        crate::support::SECRET
    );
    let config = directory.write("turnserver.toml", &config);
    let script = format!(
        "set -e\n{commands}\nexec {} doctor --json --config {}\n",
        env!("CARGO_BIN_EXE_turnserver"),
        config.display()
    );
    let report =
        examine_by(Command::new("unshare").args(["--mount", "sh", "-c", &script]).current_dir(directory.path()), "");
    let finding = report.findings.iter().find(|finding| finding["check"] == "firewall")?;
    Some((finding["status"].as_str().unwrap().to_owned(), finding["what"].as_str().unwrap().to_owned()))
}

/// A machine with public addresses of both families.
const PUBLIC: [&str; 5] = [
    "link set lo up",
    "address add 9.9.9.9/32 dev lo",
    "address add 2620:fe::fe/128 dev lo nodad",
    "route add default dev lo",
    "-6 route add default dev lo",
];

/// Runs a test on such a machine, if a program is installed.
fn with_program(program: &str, test: impl FnOnce() + Send) {
    if Path::new(program).exists() {
        in_own_network(&PUBLIC, test);
    } else {
        skip(&format!("{program} is missing"));
    }
}

#[test]
fn what_nftables_drops_is_named() {
    with_program("/usr/sbin/nft", || {
        assert_eq!(with_filter(""), None);
        let rules = |policy: &str, rules: &str| {
            let table = format!(
                "table inet t {{ set open {{ type inet_service; flags interval; elements = {{ 3478, 50000-50999 }}\n }}\n\
                 chain in {{ type filter hook input priority 0; policy {policy};\n\
                 ct state vmap {{ established : accept, related : accept, invalid : drop }}\niif lo accept\n{rules}\n }}\n\
                 chain out {{ type filter hook output priority 0; policy drop; udp dport 50000-50999 accept; oif lo accept\n }}\n }}"
            );
            with_filter(&format!("nft flush ruleset\nnft -f - <<'END'\n{table}\nEND")).unwrap()
        };
        let closed = "nftables of this machine drops tcp 3478 (IPv4), udp 3478 (IPv4), udp 50000-50999 (IPv4), tcp 3478 \
                      (IPv6), udp 3478 (IPv6), udp 50000-50999 (IPv6)";
        for (policy, text) in [("drop", ""), ("accept", "reject with icmpx type admin-prohibited")] {
            assert_eq!(rules(policy, text), ("fault".to_owned(), closed.to_owned()));
        }
        let some = "meta nfproto ipv4 udp dport @open accept\ntcp dport { 22, 3478 } ct state new accept\n\
                    ip6 nexthdr udp udp dport 50000-50500 accept\nip6 daddr 2620:fe::fe udp dport 3478 accept";
        let (status, text) = rules("drop", some);
        assert_eq!(
            (status.as_str(), text.as_str()),
            ("fault", "nftables of this machine drops udp 50501-50999 (IPv6)")
        );
        let (status, text) = rules("drop", "meta l4proto { tcp, udp } th dport @open accept");
        assert_eq!((status.as_str(), text.ends_with("accept all ports of the server")), ("ok", true), "{text}");
        let (status, text) = rules("drop", "meta l4proto { tcp, udp } limit rate 100/second accept");
        assert_eq!(
            (status.as_str(), text.contains("unless a rule about addresses or rates")),
            ("warning", true),
            "{text}"
        );
        // As firewalld begins its chain.
        let (status, text) =
            rules("accept", "ct status dnat accept\ntcp dport 22 accept\nreject with icmpx type admin-prohibited");
        assert_eq!((status, text), ("fault".to_owned(), closed.to_owned()));
    });
}

#[test]
fn a_firewall_that_rejects_packets_is_named_from_outside() {
    with_program("/usr/sbin/nft", || {
        let table = |how: &str| {
            format!(
                "table inet t {{ chain in {{ type filter hook input priority 0; meta l4proto {{ tcp, udp }} th dport 3478 \
                 reject with icmpx type {how}\n }}\n }}"
            )
        };
        for (how, expected) in
            [("admin-prohibited", "rejects packets to UDP port 3478"), ("port-unreachable", "or a firewall")]
        {
            let script = format!("nft flush ruleset; nft '{}'", table(how));
            assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
            let report = examine(&["--url", "turn:9.9.9.9", "--secret-file", "-"], SECRET);
            let text = report.only_fault("binding");
            assert!(text.contains(expected), "{how}: {text}");
        }
    });
}

#[test]
fn what_iptables_drops_is_named() {
    with_program("/usr/sbin/iptables", || {
        let commands = "iptables -N own\niptables -A INPUT -i lo -j ACCEPT\n\
                        iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                        iptables -A INPUT -p udp -m multiport --dports 3478,50000:50899 -j own\n\
                        iptables -A own -s 192.0.2.0/24 -j DROP\niptables -A own -j ACCEPT\n\
                        iptables -A INPUT ! -p icmp -j REJECT";
        let (status, text) = with_filter(commands).unwrap();
        let closed = "iptables of this machine drops tcp 3478 (IPv4), udp 50900-50999 (IPv4)";
        assert_eq!((status.as_str(), text.as_str()), ("fault", closed));
    });
}

#[test]
fn what_ufw_drops_is_named() {
    with_program("/usr/sbin/ufw", || {
        // The settings of the machine stay as they are.
        let with_rules = |rules: &str| {
            let own = "cp -a /etc/ufw ufw\nmount --bind ufw /etc/ufw\n";
            with_filter(&format!("{own}ufw --force enable >/dev/null\n{rules}")).unwrap()
        };
        let allow = |what: &str| format!("ufw allow {what} >/dev/null\n");
        let (status, text) = with_rules(&(allow("3478") + &allow("proto udp from any to any port 50000:50499")));
        assert_eq!(status, "fault", "{text}");
        assert!(text.ends_with(" drop udp 50500-50999 (IPv4), udp 50500-50999 (IPv6)"), "{text}");
        let (status, text) = with_rules(&(allow("3478") + &allow("50000:50999/udp")));
        assert_eq!((status.as_str(), text.ends_with("accept all ports of the server")), ("ok", true), "{text}");
    });
}

#[test]
fn what_is_wrong_with_a_coturn_is_named() {
    let coturn = Coturn::start(&["--allow-loopback-peers"]);
    assert!(coturn.examine("another secret").only_fault("credentials").contains("coturn.example"));
    let old = time_limited::mint(&Secret::new(SECRET).unwrap(), Some("ann"), unix_seconds() - 3_700);
    let expired = examine(&["--ice-servers", "-"], &old.ice_servers(&[coturn.uri("udp")]));
    assert!(expired.only_fault("credentials").starts_with("the credential expired 1 h"));
    // It does not permit loopback addresses by default.
    let denied = Coturn::start(&[]).examine(SECRET);
    assert!(denied.only_fault("relay").contains("403"), "{:#?}", denied.findings);
    in_own_network(&BLOCKED_RELAY_PORTS, || {
        let blocked = Coturn::start(&["--allow-loopback-peers"]).examine(SECRET);
        assert!(blocked.only_fault("indications").starts_with("no data passes"), "{:#?}", blocked.findings);
    });
}

on_each_site! {
    a_clock_that_is_an_hour_behind_is_named: examine_by_another_clock;
    this_server_has_no_fault: examine_this_server;
}

fn examine_this_server(site: &Site) {
    let server = site.start(&site.config(&[V4], ""));
    let uris = [("udp", server.udp_address()), ("tcp", server.tcp_address())]
        .map(|(transport, address)| format!("turn:{address}?transport={transport}"));
    let report = examine(&["--url", &uris[0], "--url", &uris[1], "--secret-file", "-"], crate::support::SECRET);
    assert_eq!(report.with("fault"), [], "{:#?}", report.findings);
    let works = |(check, text): &(&str, &str)| *check == "channels" && text.starts_with("40 of 40 messages arrived");
    assert_eq!(report.with("ok").iter().filter(|found| works(found)).count(), 2, "{:#?}", report.findings);
}

// The diagnosis runs with another clock, with coturn and with this server.
fn examine_by_another_clock(site: &Site) {
    let coturn = Coturn::start(&["--allow-loopback-peers"]);
    let server = site.start(&site.config(&[V4], ""));
    for (uri, secret) in
        [(coturn.uri("udp"), SECRET), (format!("turn:{}?transport=udp", server.udp_address()), crate::support::SECRET)]
    {
        let mut command = Command::new("faketime");
        command.args(["-f", "-1h", env!("CARGO_BIN_EXE_turnserver"), "doctor", "--json", "--url", &uri]);
        let report = examine_by(command.args(["--secret-file", "-"]), secret);
        let text = report.only_fault("clock");
        assert!(text.ends_with("is behind that of the server, by less than 2 h"), "{text}");
    }
    // A wrong secret is no matter of the clock.
    let wrong = coturn.examine("another secret of coturn");
    assert!(wrong.only_fault("credentials").contains("401"), "{:#?}", wrong.findings);
}
