//! Relay addresses: which are chosen, logged and advertised.

use std::net::IpAddr;

use turnserver::net::interfaces;

use super::running::{Running, text_config, turnserver};
use crate::support::client::{Client, Login};
use crate::support::{LogLine, Server, TempDir, config, config_for, config_without_secret, has_ipv6};

fn relay_address(server: &Server) -> LogLine {
    server.wait_for_log(|line| line.message() == "relay address")
}

fn warnings(server: &Server) -> Vec<LogLine> {
    server.logs().into_iter().filter(|line| line.level() == "WARN").collect()
}

/// Returns an address of this machine that other networks cannot reach, if it has one.
fn private_address() -> Option<IpAddr> {
    let private = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_documentation(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    };
    interfaces::read().unwrap().addresses.into_iter().map(|interface| interface.address).find(|ip| private(*ip))
}

#[test]
fn a_loopback_relay_address_works_with_a_warning() {
    let server = Server::start(&config(&["127.0.0.1"], ""));
    let line = relay_address(&server);
    assert_eq!(line.field("address").as_deref(), Some("127.0.0.1"));
    assert_eq!(line.field("advertised").as_deref(), Some("127.0.0.1"));
    assert!(line.field("reason").unwrap().contains("loopback address of lo"), "{line:?}");
    let warnings = warnings(&server);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].message().starts_with("only programs on this machine can use the relay"), "{warnings:?}");

    let (_, relayed) = Client::new(server.udp_address()).allocate(&Login::mint("alice", 600)).unwrap();
    assert_eq!(relayed.ip().to_string(), "127.0.0.1");
}

#[test]
fn a_private_relay_address_without_a_mapping_is_a_warning_with_the_setting() {
    // A machine with only public addresses has nothing to warn about. Unit tests cover the choice itself.
    let Some(ip) = private_address() else { return };
    let server = Server::start(&config_for(&["127.0.0.1"], &[&ip.to_string()], ""));
    let warnings = warnings(&server);
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert!(warning.message().contains(&ip.to_string()), "{warning:?}");
    assert!(warning.message().contains(&format!("set external = {{ \"{ip}\" = \"PUBLIC ADDRESS\" }}")), "{warning:?}");
}

#[test]
fn a_mapped_relay_address_is_advertised() {
    let mapping = "[relay]\nexternal = { \"127.0.0.1\" = \"203.0.113.9\" }\n";
    let server = Server::start(&config_without_secret(&["127.0.0.1"], "").replace("[relay]\n", mapping));
    let line = relay_address(&server);
    assert_eq!(line.field("address").as_deref(), Some("127.0.0.1"));
    assert_eq!(line.field("advertised").as_deref(), Some("203.0.113.9"));
    assert!(line.field("reason").unwrap().contains("relay.external"), "{line:?}");
    let warnings = warnings(&server);
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert!(warning.message().contains("203.0.113.9, which is an address for examples"), "{warning:?}");

    let printed = server.printed_credential();
    let urls = [
        format!("turn:203.0.113.9:{}?transport=udp", server.udp_address().port()),
        format!("turn:203.0.113.9:{}?transport=tcp", server.tcp_address().port()),
    ];
    assert_eq!(printed.configuration["iceServers"][0]["urls"], serde_json::json!(urls));
    let login = Login::new(&printed.username, &printed.password);
    let (_, relayed) = Client::new(server.udp_address()).allocate(&login).unwrap();
    assert_eq!(relayed.ip().to_string(), "203.0.113.9");
    let created = server.wait_for_log(|line| line.message() == "allocation created");
    assert_eq!(created.field("user").as_deref(), Some("try"));
}

#[test]
fn check_config_shows_the_advertised_address() {
    let mapping = "[relay]\nexternal = { \"127.0.0.1\" = \"203.0.113.9\" }\n";
    let directory = TempDir::new();
    directory.write("turnserver.toml", &text_config(&["127.0.0.1"], "").replace("[relay]\n", mapping));
    let report = turnserver(&directory, &["check-config"]).stdout.join("\n");
    assert!(report.contains("relaying on 127.0.0.1 as 203.0.113.9: "), "{report}");
}

#[test]
fn automatic_relay_addresses_are_found_on_any_machine() {
    let config = text_config(&["127.0.0.1"], "").replace("addresses = [\"127.0.0.1\"]", "addresses = \"auto\"");
    let server = Running::start(&config, &[]);
    let line = server.wait_for_line(|line| line.contains(" relay address "));
    assert!(line.contains(" address of "), "{line}");
}

/// Asserts that the server starts with a warning with these parts, and that `check-config` has the same warning.
#[track_caller]
fn assert_waits(config: &str, parts: &[&str]) {
    let has_parts = |line: &str| parts.iter().all(|part| line.contains(part));
    let server = Running::start(config, &[]);
    server.wait_for_line(|line| line.contains(" WARN ") && has_parts(line));
    let directory = TempDir::new();
    directory.write("turnserver.toml", config);
    let finished = turnserver(&directory, &["check-config"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.iter().any(|line| line.starts_with("warning: ") && has_parts(line)), "{finished:?}");
}

#[test]
fn a_relay_address_that_this_machine_does_not_have_is_waited_for_with_a_warning_that_explains_nat() {
    let config =
        text_config(&["127.0.0.1"], "").replace("addresses = [\"127.0.0.1\"]", "addresses = [\"203.0.113.7\"]");
    assert_waits(&config, &["relay.addresses", "203.0.113.7", "127.0.0.1 (lo)", "The server waits", "`external`"]);
}

#[test]
fn a_listen_address_that_this_machine_does_not_have_is_waited_for_with_a_warning() {
    for transport in ["udp", "tcp"] {
        let addresses = ["203.0.113.7:0", "[2001:db8:ffff::7]:0"];
        for address in addresses.into_iter().take(if has_ipv6() { 2 } else { 1 }) {
            let config = text_config(&["127.0.0.1"], "");
            let (before, after) = config.split_once(&format!("{transport} = ")).unwrap();
            let (_, after) = after.split_once('\n').unwrap();
            let config = format!("{before}{transport} = [{address:?}]\n{after}");
            let begin = format!("clients cannot reach the server at {transport} {address} yet");
            assert_waits(&config, &[&begin, &format!("listen.{transport}")]);
        }
    }
}
