//! Configurations for test servers.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The realm of every test server.
pub(crate) const REALM: &str = "test.example";

/// The shared secret of the test servers that have one.
pub(crate) const SECRET: &str = "a secret for tests only";

/// Returns a configuration with UDP and TCP listeners on ports that the kernel picks, one shared secret and a JSON log.
/// It listens and relays on `addresses`. `more` is appended TOML: tables other than `listen`, `relay`, `auth` and
/// `log`.
pub(crate) fn config(addresses: &[&str], more: &str) -> String {
    config_for(addresses, addresses, more)
}

/// Like `config`, with different addresses for listening and relaying.
pub(crate) fn config_for(listen: &[&str], relay: &[&str], more: &str) -> String {
    format!("{}[auth]\nsecrets = [{SECRET:?}]\n{more}", without_secret(listen, relay))
}

/// Like `config`, without secret and user. The server then generates a credential.
pub(crate) fn config_without_secret(addresses: &[&str], more: &str) -> String {
    format!("{}{more}", without_secret(addresses, addresses))
}

/// Adds TLS listeners on `addresses` to `config`, with the certificate and the key in these files.
pub(crate) fn with_tls(config: &str, addresses: &[&str], [certificate, key]: &[PathBuf; 2]) -> String {
    let listen: Vec<String> = addresses.iter().map(|ip| SocketAddr::new(parse(ip), 0).to_string()).collect();
    let (before, after) = config.split_once("[relay]").unwrap();
    format!("{before}tls = {listen:?}\n[tls]\ncertificate = {certificate:?}\nprivate-key = {key:?}\n[relay]{after}")
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

/// Returns 500 ports below the kernel's range for other sockets. Ranges of several servers may overlap, because a
/// server skips ports in use.
fn relay_ports() -> (u16, u16) {
    let random = RandomState::new().hash_one(std::process::id());
    let first = 20_000 + u16::try_from(random % 11_500).unwrap();
    (first, first + 499)
}
