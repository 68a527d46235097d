//! Fronts that change while the server runs.

use std::io::{Read as _, Write as _};

use toml::Table;

use crate::common::{Fixture, connect, exchange};
use crate::site::{GREETING, Site};
use crate::support::client::{Client, Login};
use crate::support::tls::{ANY, handshake};

impl Fixture {
    /// Returns the configuration, with the ports that the server has.
    fn config(&self) -> Table {
        let text = std::fs::read_to_string(self.server.server.config_path()).unwrap();
        let mut config: Table = text.parse().unwrap();
        config["front"][0]["listen"] = self.address().to_string().into();
        config
    }

    fn reload(&self, config: &Table) -> serde_json::Value {
        self.server.server.write_config(&config.to_string());
        let response = self.server.json(&["reload"]);
        assert_eq!(response["complete"], true, "{response}");
        response
    }
}

#[test]
fn other_names_and_another_web_site_apply_to_new_connections() {
    let one = Site::echo();
    let other = Site::start("127.0.0.1:0", |mut stream| {
        // Unread data make the kernel reset the connection.
        stream.read_to_end(&mut Vec::new())?;
        stream.write_all(b"another")
    });
    let front = Fixture::new(&one, "", "");
    let address = front.address();
    let mut open = front.visit();
    open.write_all(b"GET /").unwrap();
    let mut greeting = [0; GREETING.len()];
    open.read_exact(&mut greeting).unwrap();
    let hello = front.hello("localhost", &[]);
    let mut config = front.config();
    // So that only what is meant to change differs.
    front.reload(&config);
    config["front"][0]["web"] = other.address().to_string().into();
    config["front"][0]["names"] = toml::Value::Array(Vec::new());
    let response = front.reload(&config);
    let keys: Vec<&str> =
        response["changes"].as_array().unwrap().iter().filter_map(|own| own["key"].as_str()).collect();
    assert_eq!(keys, ["front.web", "front.names"]);
    assert_eq!(exchange(connect(address), &hello), b"another");
    assert_eq!(exchange(open, b" on"), b"GET / on");
}

#[test]
fn each_web_site_that_cannot_be_reached_is_logged() {
    // No program listens at port 1.
    let front = Fixture::at("127.0.0.1:1", "", "");
    let address = front.address();
    let visit = || assert!(exchange(connect(address), b"GET /").starts_with(b"HTTP/1.1 502 "));
    let mut config = front.config();
    for web in ["127.0.0.1:1", "127.0.0.2:1"] {
        config["front"][0]["web"] = web.into();
        front.reload(&config);
        (0..2).for_each(|_| visit());
    }
    let logged: Vec<_> = front.events("web-site-unreachable").iter().filter_map(|line| line.field("web")).collect();
    assert_eq!(logged, ["127.0.0.1:1", "127.0.0.2:1"]);
}

#[test]
fn fronts_come_and_go_with_their_connections_left_alone() {
    let site = Site::echo();
    let front = Fixture::new(&site, "", "");
    let address = front.address();
    let mut open = front.visit();
    open.write_all(b"GET /").unwrap();
    let mut greeting = [0; GREETING.len()];
    open.read_exact(&mut greeting).unwrap();
    let client = front.allocate_over_tls();
    let config = front.config();
    let mut without = config.clone();
    without.remove("front");
    front.reload(&without);
    front.server.event("front-closed");
    assert!(std::net::TcpStream::connect(address).is_err());
    assert_eq!(client.binding(), client.address());
    front.reload(&config);
    assert_eq!(exchange(connect(address), b"GET /"), [GREETING, b"GET /"].concat());
    assert_eq!(exchange(open, b" on"), b"GET / on");
}

// An operator who has TURN on port 443 adds a web site there, and may take it away again.
#[test]
fn the_port_of_a_tls_listener_becomes_a_front_and_the_other_way_round() {
    let site = Site::echo();
    let front = Fixture::new(&site, "", "");
    let (own, tls) = (front.address(), front.server.server.tls_address());
    let mut config = front.config();
    for (web, relay) in [(tls, own), (own, tls)] {
        config["front"][0]["listen"] = web.to_string().into();
        config["listen"]["tls"] = vec![relay.to_string()].into();
        front.reload(&config);
        assert_eq!(exchange(connect(web), b"GET /"), [GREETING, b"GET /"].concat());
        for address in [web, relay] {
            let client = Client::on_tls(handshake(address, &front.authority, &ANY).unwrap());
            assert!(client.allocate(&Login::mint("alice", 600)).is_ok());
        }
    }
}
