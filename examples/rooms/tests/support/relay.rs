//! A relay in a process of its own, and a slow path to it.
#![allow(dead_code, reason = "each test uses a part")]

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey, IsCa, KeyPair, generate_simple_self_signed,
};
use serde_json::Value;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use turnserver::auth::KeyHash;

use super::program::program;
use super::{SECRET, file};

/// The key for the endpoint for credentials.
pub(crate) const KEY: &str = "turn_the_key_of_the_tests";

/// A certificate that signs itself, and its key, in files.
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    key: PathBuf,
}

impl Identity {
    /// Makes a certificate for a name.
    pub(crate) fn of(name: &str) -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()]).unwrap();
        Self { certificate: file("certificate.pem", &cert.pem()), key: file("key.pem", &signing_key.serialize_pem()) }
    }
}

/// A certificate authority of the tests.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) certificate: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let certificate = file("authority.pem", &issuer.pem());
        Self { issuer, certificate }
    }

    /// Issues a certificate for a name.
    pub(crate) fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        Identity {
            certificate: file("certificate.pem", &certificate.pem()),
            key: file("key.pem", &key.serialize_pem()),
        }
    }
}

/// A relay on loopback addresses.
pub(crate) struct RelayProcess {
    process: Child,
    pub(crate) udp: SocketAddr,
    pub(crate) tcp: SocketAddr,
    pub(crate) tls: Option<SocketAddr>,
    /// The endpoint for credentials, whose key is [`KEY`].
    pub(crate) http: SocketAddr,
    config: PathBuf,
}

impl RelayProcess {
    /// Starts a relay on free ports.
    pub(crate) fn start() -> Self {
        Self::start_on(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts a relay with this UDP listener.
    pub(crate) fn start_on(udp: SocketAddr) -> Self {
        Self::start_with(udp, None, "")
    }

    /// Starts a relay with TLS, if there is a certificate with its key, and with further sections of the configuration.
    pub(crate) fn start_with(udp: SocketAddr, identity: Option<&Identity>, sections: &str) -> Self {
        let (tls, files) = match identity {
            Some(Identity { certificate, key }) => {
                ("tls = ['127.0.0.1:0']\n", format!("[tls]\ncertificate = {certificate:?}\nprivate-key = {key:?}\n"))
            }
            None => ("", String::new()),
        };
        let config = format!(
            "[listen]\nudp = ['{udp}']\ntcp = ['127.0.0.1:0']\n{tls}{files}[relay]\naddresses = \
             ['127.0.0.1']\n[auth]\nsecrets = ['{SECRET}']\nexpiry-grace = '0s'\n[control]\nsocket = ''\n[log]\nformat = \
             'json'\n{sections}[http]\nlisten = ['127.0.0.1:0']\n[[http.keys]]\nname = 'rooms'\nuser-prefix = \
             'rooms:'\nsha256 = '{}'\n",
            KeyHash::of(KEY.as_bytes()).to_hex()
        );
        let config = file("relay.toml", &config);
        let mut process = Command::new(program())
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let (mut udp, mut tcp, mut tls, mut http) = (None, None, None, None);
        for line in lines.by_ref() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let fields = &line["fields"];
            let address = || fields["address"].as_str().unwrap().parse().ok();
            match (fields["event"].as_str(), fields["transport"].as_str()) {
                (Some("listening"), Some("udp")) => udp = address(),
                (Some("listening"), Some("tcp")) => tcp = address(),
                (Some("listening"), Some("tls")) => tls = address(),
                (Some("http-listening"), _) => http = address(),
                (Some("ready"), _) => break,
                _ => {}
            }
        }
        // The log must be read: otherwise, the relay would lose lines.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, udp: udp.unwrap(), tcp: tcp.unwrap(), tls, http: http.unwrap(), config }
    }

    /// Returns a URL of the relay.
    pub(crate) fn url(&self, transport: &str) -> String {
        let address = if transport == "udp" { self.udp } else { self.tcp };
        format!("turn:{address}?transport={transport}")
    }

    /// Returns the options with which `rooms` uses this relay over UDP.
    pub(crate) fn options(&self) -> [String; 4] {
        ["--config".to_owned(), self.config.display().to_string(), "--turn-url".to_owned(), self.url("udp")]
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A path to a relay that loses what exceeds a rate, in the direction to the client.
pub(crate) struct SlowPath {
    pub(crate) address: SocketAddr,
    rate: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl SlowPath {
    /// Opens a path for one client, at first without a limit.
    pub(crate) async fn open(relay: SocketAddr) -> Self {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        back.connect(relay).await.unwrap();
        let (address, rate) = (front.local_addr().unwrap(), Arc::new(AtomicU64::new(u64::MAX)));
        let task = tokio::spawn(pass(front, back, Arc::clone(&rate)));
        Self { address, rate, task }
    }

    /// Sets the rate in bits per second.
    pub(crate) fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(front: UdpSocket, back: UdpSocket, rate: Arc<AtomicU64>) {
    let (mut up, mut down) = (vec![0; 2_048], vec![0; 2_048]);
    let (mut client, mut last, mut bits) = (None, Instant::now(), 0.0_f64);
    loop {
        tokio::select! {
            received = front.recv_from(&mut up) => {
                let (length, from) = received.unwrap();
                client = Some(from);
                let _ = back.send(&up[..length]).await;
            }
            received = back.recv(&mut down) => {
                let Ok(length) = received else { continue };
                let rate = rate.load(Ordering::Relaxed);
                #[allow(clippy::cast_precision_loss, reason = "a rate needs no precision")]
                let (per_second, size) = (rate as f64, (length * 8) as f64);
                // As much as in 50 ms may come at once.
                bits = (bits + last.elapsed().as_secs_f64() * per_second).min((per_second / 20.0).max(24_000.0));
                last = Instant::now();
                if bits >= size || rate == u64::MAX {
                    bits -= size;
                    if let Some(client) = client {
                        let _ = front.send_to(&down[..length], client).await;
                    }
                }
            }
        }
    }
}
