//! Configurations for servers that live as long as one test.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The realm of every test server.
pub(crate) const REALM: &str = "test.example";

/// The shared secret of the test servers that have one.
pub(crate) const SECRET: &str = "a secret for tests only";

/// A configuration that listens (over UDP and TCP) and relays on `addresses`, on ports that the kernel picks, with one shared secret and
/// a JSON log. `more` is TOML that is added at the end: other tables than `listen`, `relay`, `auth` and `log`.
pub(crate) fn config(addresses: &[&str], more: &str) -> String {
    config_for(addresses, addresses, more)
}

/// The same, listening on other addresses than it relays on.
pub(crate) fn config_for(listen: &[&str], relay: &[&str], more: &str) -> String {
    format!("{}[auth]\nsecrets = [{SECRET:?}]\n{more}", without_secret(listen, relay))
}

/// The same with no secret and no user, for which the server makes a credential of its own.
pub(crate) fn config_without_secret(addresses: &[&str], more: &str) -> String {
    format!("{}{more}", without_secret(addresses, addresses))
}

/// `config` with TLS listeners on `addresses`, which serve the certificate and the key in these files.
pub(crate) fn with_tls(config: &str, addresses: &[&str], [certificate, key]: &[PathBuf; 2]) -> String {
    let listen: Vec<String> = addresses.iter().map(|ip| SocketAddr::new(parse(ip), 0).to_string()).collect();
    let (before, behind) = config.split_once("[relay]").unwrap();
    format!("{before}tls = {listen:?}\n[tls]\ncertificate = {certificate:?}\nprivate-key = {key:?}\n[relay]{behind}")
}

fn without_secret(listen: &[&str], relay: &[&str]) -> String {
    let listen: Vec<String> = listen.iter().map(|ip| SocketAddr::new(parse(ip), 0).to_string()).collect();
    let (first, last) = relay_ports();
    format!(
        "realm = {REALM:?}\n\
         [listen]\nudp = {listen:?}\ntcp = {listen:?}\n\
         [relay]\naddresses = {relay:?}\nports = \"{first}-{last}\"\n\
         [log]\nformat = \"json\"\n"
    )
}

fn parse(ip: &str) -> IpAddr {
    ip.parse().unwrap()
}

/// 500 ports below the range from which the kernel takes the ports of other sockets. Servers whose ranges overlap get
/// along: a port in use is skipped.
fn relay_ports() -> (u16, u16) {
    let random = RandomState::new().hash_one(std::process::id());
    let first = 20_000 + u16::try_from(random % 11_500).unwrap();
    (first, first + 499)
}
