//! `turnserver doctor --url` against coturn, right and broken.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use turnserver::auth::{Secret, time_limited};
use turnserver::clock::unix_seconds;

use crate::report::{BLOCKED_RELAY_PORTS, Report, examine, examine_by};
use crate::support::network::in_own_network;
use crate::support::{Process, Server, TIMEOUT, TempDir, config};

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
        let directory = TempDir::new();
        // coturn cannot pick a port itself.
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("/usr/bin/turnserver");
        command
            .args(["-n", "--no-cli", "--no-tls", "--no-dtls", "--use-auth-secret", "--realm", "coturn.example"])
            .args(["--listening-ip", "127.0.0.1", "--relay-ip", "127.0.0.1", "--log-file", "stdout", "--verbose"])
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

// The diagnosis runs with another clock, with coturn and with this server.
#[test]
fn a_clock_that_is_an_hour_behind_is_named() {
    let coturn = Coturn::start(&["--allow-loopback-peers"]);
    let server = Server::start(&config(&["127.0.0.1"], ""));
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
