//! The two servers, their certificates, and the CPU time that they use.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use turnserver::clock::Clock;

use crate::Outcome;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(20);

/// The type of the key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Certificate {
    Ecdsa,
    Rsa,
}

impl Certificate {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ecdsa => "ECDSA P-256",
            Self::Rsa => "RSA 2048",
        }
    }
}

/// A temporary directory, deleted when dropped.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Outcome<Self> {
        let path = std::env::temp_dir().join(format!("turnserver-handshakes-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes a certificate and its key.
    pub(crate) fn certificate(&self, certificate: Certificate) -> Outcome<[PathBuf; 2]> {
        let key: &[&str] = match certificate {
            Certificate::Ecdsa => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
            Certificate::Rsa => &["-newkey", "rsa:2048"],
        };
        let files = ["certificate", "key"].map(|part| self.file(&format!("{certificate:?}-{part}.pem")));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext"])
            .arg("subjectAltName=DNS:localhost")
            .args(key)
            .arg("-out")
            .arg(&files[0])
            .arg("-keyout")
            .arg(&files[1])
            .stderr(Stdio::null())
            .status()?;
        if made.success() { Ok(files) } else { Err("openssl could not make a certificate".into()) }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ours,
    Coturn,
}

/// A running server, killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// Its TLS listener.
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(kind: Kind, program: &Path, directory: &Directory, files: &[PathBuf; 2]) -> Outcome<Self> {
        let address = free_port()?;
        let [certificate, key] = files;
        let mut command = Command::new(program);
        match kind {
            Kind::Ours => {
                let path = directory.file("turnserver.toml");
                let text = format!(
                    "realm = \"bench\"\n[listen]\nudp = []\ntcp = []\ntls = [\"{address}\"]\n\
                     [tls]\ncertificate = {certificate:?}\nprivate-key = {key:?}\n\
                     [relay]\naddresses = [\"127.0.0.1\"]\nports = \"49152-50151\"\n\
                     [auth]\nsecrets = [\"a secret for the benchmark\"]\n\
                     [limits]\nconnections-per-source = 0\n\
                     [control]\nsocket = \"\"\n[log]\nlevel = \"warn\"\n[offload]\nmode = \"off\"\n"
                );
                fs::write(&path, text)?;
                command.arg("--config").arg(path);
            }
            Kind::Coturn => {
                command
                    .args(["-n", "--no-dtls", "--no-udp", "--no-tcp", "--no-cli", "--lt-cred-mech", "--realm=bench"])
                    .args(["--user=a:b", "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", "--log-file=stdout"])
                    .arg(format!("--tls-listening-port={}", address.port()))
                    .arg(format!("--cert={}", certificate.display()))
                    .arg(format!("--pkey={}", key.display()))
                    .arg(format!("--pidfile={}", directory.file("coturn.pid").display()))
                    .arg(format!("--userdb={}", directory.file("coturn.db").display()));
            }
        }
        let output = fs::File::create(directory.file(&format!("{kind:?}.log")))?;
        let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        let server = Self { child, address };
        let clock = Clock::start();
        while TcpStream::connect(address).is_err() {
            if clock.elapsed() > START {
                let log = fs::read_to_string(directory.file(&format!("{kind:?}.log"))).unwrap_or_default();
                return Err(format!("{kind:?} does not listen:\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Returns the CPU time of its threads so far.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may have ended.
            let Ok(line) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            sum += line.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(Duration::from_nanos(sum))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns an address on loopback whose port is free now.
fn free_port() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
