//! Pebble, its DNS, and a server that orders its certificate from it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, RootCertStore, SignatureScheme};
use turnserver::clock::{Clock, unix_seconds};

use crate::support::any_certificate::AnyCertificate;
use crate::support::certificates::Authority;
use crate::support::tls::{TlsStream, handshake_of, tcp};
use crate::support::{Controlled, Process, TIMEOUT, TempDir, config};

/// The name of the server.
pub(crate) const NAME: &str = "turn.example.org";

/// The directory of pebble.
pub(crate) const DIRECTORY: &str = "https://127.0.0.1:14000/dir";
const API: &str = "127.0.0.1:14000";
const MANAGEMENT: &str = "127.0.0.1:15000";
const DNS: &str = "127.0.0.1:8053";
const DNS_MANAGEMENT: &str = "127.0.0.1:8055";

/// The TLS listener of the server.
pub(crate) const TLS: &str = "127.0.0.1:443";

/// The settings of pebble.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// The lives of certificates, in seconds.
    pub(crate) life: u64,
    /// The identifier and the key of an account that it requires.
    pub(crate) external_account: Option<(&'static str, &'static str)>,
}

pub(crate) const USUAL: Settings = Settings { life: 90 * 86_400, external_account: None };

/// The machine: a directory with the certificate of pebble, and the DNS.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
    pub(crate) authority: Authority,
    _dns: Process,
}

impl Place {
    pub(crate) fn new() -> Self {
        let (directory, authority) = (TempDir::new(), Authority::new(unix_seconds()));
        authority.write(&authority.issue(&["127.0.0.1"]), directory.path());
        directory.write("ca.pem", &authority.root());
        let mut dns = Command::new("pebble-challtestsrv");
        dns.args(["-dns01", DNS, "-management", DNS_MANAGEMENT, "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]);
        dns.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let dns = Process::start(&mut dns, Some("pebble"));
        wait_for_port(DNS);
        wait_for_port(DNS_MANAGEMENT);
        Self { directory, authority, _dns: dns }
    }

    /// Starts pebble.
    pub(crate) fn pebble(&self, settings: Settings) -> Process {
        let mut keys = json!({});
        if let Some((id, key)) = settings.external_account {
            keys[id] = key.into();
        }
        let path = |name: &str| self.directory.path().join(name);
        let text = json!({ "pebble": {
            "listenAddress": API,
            "managementListenAddress": MANAGEMENT,
            "certificate": path("fullchain.pem"),
            "privateKey": path("privkey.pem"),
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": settings.external_account.is_some(),
            "externalAccountMACKeys": keys,
            "certificateValidityPeriod": settings.life,
        }});
        let file = self.directory.write("pebble.json", &text.to_string());
        let mut pebble = Command::new("pebble");
        // One of ten nonces is refused. What was checked before is checked again.
        pebble.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "10").env("PEBBLE_AUTHZREUSE", "0");
        pebble.args(["-strict", "-dnsserver", DNS, "-config"]).arg(file);
        let pebble = Process::start(&mut pebble, Some("pebble"));
        wait_for_port(API);
        wait_for_port(MANAGEMENT);
        pebble
    }

    /// Lets a name lead to an address, and to no other one.
    pub(crate) fn point(&self, name: &str, address: &str) {
        let host = format!("{name}.");
        post(DNS_MANAGEMENT, "/clear-a", &json!({ "host": host }));
        post(DNS_MANAGEMENT, "/add-a", &json!({ "host": host, "addresses": [address] }));
    }

    /// Returns the present root of pebble.
    pub(crate) fn root(&self) -> CertificateDer<'static> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.root().as_bytes()).unwrap()).unwrap();
        let mut stream = connect(MANAGEMENT, "127.0.0.1", Some(roots)).unwrap();
        stream.write_all(b"GET /roots/0 HTTP/1.0\r\nHost: pebble\r\n\r\n").unwrap();
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        CertificateDer::from_pem_slice(&response).unwrap()
    }

    /// Returns the state directory of the server.
    pub(crate) fn state(&self) -> std::path::PathBuf {
        self.directory.path().join("state")
    }

    /// Returns a configuration with `[tls.acme]` for these names. `more` has further keys of it, and tables.
    pub(crate) fn config(&self, names: &[&str], more: &str) -> String {
        self.config_at(DIRECTORY, names, TLS, more)
    }

    /// The same with another directory and TLS listener.
    pub(crate) fn config_at(&self, directory: &str, names: &[&str], tls: &str, more: &str) -> String {
        let (before, after) = config(&["127.0.0.1"], "").split_once("[relay]").map(own).unwrap();
        let (ca, state) = (self.directory.path().join("ca.pem"), self.state());
        format!(
            "{before}tls = [{tls:?}]\n[relay]{after}\n[tls.acme]\ndomains = {names:?}\nterms-agreed = true\n\
             directory = {directory:?}\ndirectory-ca-file = {ca:?}\nstate-directory = {state:?}\n{more}\n"
        )
    }
}

fn own((before, after): (&str, &str)) -> (String, String) {
    (before.to_owned(), after.to_owned())
}

fn post(address: &str, path: &str, body: &Value) {
    let (mut stream, body) = (tcp(address.parse().unwrap()), body.to_string());
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.0\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.split(' ').nth(1) == Some("200"), "{response}");
}

fn wait_for_port(address: &str) {
    wait_until(|| TcpStream::connect(address).is_ok(), &format!("nothing listens on {address}"));
}

/// Asks until something is so.
pub(crate) fn wait_until(mut is_so: impl FnMut() -> bool, otherwise: &str) {
    let clock = Clock::start();
    while !is_so() {
        assert!(clock.elapsed() < TIMEOUT, "{otherwise}");
        std::thread::yield_now();
    }
}

/// The signatures of the certificates of pebble and of challenges.
static SIGNATURES: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];

/// Performs a handshake. Without roots, every certificate is accepted.
pub(crate) fn connect(server: &str, name: &str, roots: Option<RootCertStore>) -> Result<TlsStream, rustls::Error> {
    offering(server, name, roots, &[])
}

/// Performs the handshake of an authority (RFC 8737 §3).
pub(crate) fn challenge(server: &str, name: &str) -> Result<TlsStream, rustls::Error> {
    offering(server, name, None, &[b"acme-tls/1"])
}

fn offering(
    server: &str,
    name: &str,
    roots: Option<RootCertStore>,
    protocols: &[&[u8]],
) -> Result<TlsStream, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = match roots {
        Some(roots) => builder.with_root_certificates(roots),
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(&SIGNATURES))),
    }
    .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    handshake_of(ClientConnection::new(Arc::new(config), name).unwrap(), server.parse().unwrap())
}

/// Returns the certificate that the server presents.
pub(crate) fn presented(server: &str, name: &str) -> Result<Vec<u8>, rustls::Error> {
    let stream = connect(server, name, None)?;
    Ok(stream.conn.peer_certificates().unwrap()[0].to_vec())
}

/// Connects as a client that trusts pebble does.
pub(crate) fn trusted(place: &Place, server: &str, name: &str) -> TlsStream {
    let mut roots = RootCertStore::empty();
    roots.add(place.root()).unwrap();
    connect(server, name, Some(roots)).unwrap()
}

/// Returns what `turnserver ctl certificates` says about orders.
pub(crate) fn status(controlled: &Controlled) -> Value {
    controlled.json(&["certificates"])["acme"].clone()
}

/// Waits for a state, and returns the status. The log is a moment earlier.
pub(crate) fn wait_for_state(controlled: &Controlled, state: &str) -> Value {
    wait_until(|| status(controlled)["state"] == state, &format!("the state is not `{state}`"));
    status(controlled)
}

/// Waits for this many log lines of an event.
pub(crate) fn wait_for(controlled: &Controlled, event: &str, count: usize) -> String {
    let is_event = |line: &crate::support::LogLine| line.field("event").as_deref() == Some(event);
    controlled.server.wait_for_logs(|lines| lines.iter().filter(|line| is_event(line)).count() >= count);
    let lines = controlled.server.logs();
    let last = lines.iter().rfind(|line| is_event(line)).unwrap();
    last.text().to_owned()
}

/// Waits until the server presents another certificate than `before`.
pub(crate) fn wait_for_other(server: &str, name: &str, before: &[u8]) {
    wait_until(|| presented(server, name).unwrap() != before, "the certificate has not been replaced");
}

/// Returns the names of the files in the state directory with their modes.
pub(crate) fn files(place: &Place) -> Vec<(String, u32)> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut files: Vec<_> = fs::read_dir(place.state())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name.split('-').next().unwrap().to_owned(), entry.metadata().unwrap().permissions().mode() & 0o7777)
        })
        .collect();
    files.sort();
    files
}
