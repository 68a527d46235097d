//! Where the load runs: three network namespaces of our own, or loopback.
//!
//! ```text
//!  client 198.18.1.2 ── veth ── 198.18.1.1  server  198.18.2.1 ── veth ── 198.18.2.2 peer
//! ```

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::load::Outcome;

/// The hosts and how programs get onto them.
pub(crate) struct Network {
    namespaces: Option<Namespaces>,
    /// This program, which starts every other one.
    program: PathBuf,
    pub(crate) addresses: Addresses,
}

/// Who has which address.
pub(crate) struct Addresses {
    pub(crate) client: IpAddr,
    /// Where the server listens.
    pub(crate) listen: IpAddr,
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
    /// Where the server's relayed addresses are.
    pub(crate) relay: IpAddr,
    pub(crate) peer: IpAddr,
}

/// A host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Host {
    Client,
    Server,
    Peer,
}

const HOSTS: [Host; 3] = [Host::Client, Host::Server, Host::Peer];

impl Network {
    /// Makes the namespaces and joins them. They are removed when this is dropped.
    pub(crate) fn namespaces() -> Outcome<Self> {
        let address = |third, fourth| IpAddr::V4(Ipv4Addr::new(198, 18, third, fourth));
        let addresses = Addresses {
            client: address(1, 2),
            listen: address(1, 1),
            port: 3478,
            tls_port: 5349,
            relay: address(2, 1),
            peer: address(2, 2),
        };
        let namespaces = Namespaces { id: std::process::id() };
        namespaces.make(&addresses)?;
        Ok(Self { namespaces: Some(namespaces), program: std::env::current_exe()?, addresses })
    }

    /// Uses addresses of the loopback interface and ports that are free.
    pub(crate) fn loopback() -> Outcome<Self> {
        let address = |last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let free = || UdpSocket::bind((address(2), 0))?.local_addr().map(|address| address.port());
        let addresses = Addresses {
            client: address(1),
            listen: address(2),
            port: free()?,
            tls_port: free()?,
            relay: address(2),
            peer: address(3),
        };
        Ok(Self { namespaces: None, program: std::env::current_exe()?, addresses })
    }

    /// A command line of this program, to be run on `host`. What it starts ends with this process.
    pub(crate) fn command(&self, host: Host, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = match &self.namespaces {
            Some(namespaces) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespaces.name(host)]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.args(arguments);
        command
    }
}

/// The namespaces of the process with this id, which makes their names unique.
struct Namespaces {
    id: u32,
}

impl Namespaces {
    fn name(&self, host: Host) -> String {
        format!("turn-bench-{}-{}", self.id, host.name())
    }

    fn make(&self, addresses: &Addresses) -> Outcome<()> {
        for host in HOSTS {
            ip(&["netns", "add", &self.name(host)])?;
            ip(&["-n", &self.name(host), "link", "set", "lo", "up"])?;
        }
        self.join(Host::Client, addresses.client, addresses.listen)?;
        self.join(Host::Peer, addresses.peer, addresses.relay)
    }

    /// Joins `host` to the server.
    fn join(&self, host: Host, address: IpAddr, server_address: IpAddr) -> Outcome<()> {
        let (namespace, server) = (self.name(host), self.name(Host::Server));
        let end = format!("to-{}", host.name());
        ip(&["-n", &namespace, "link", "add", "to-server", "type", "veth", "peer", "name", &end, "netns", &server])?;
        for (namespace, end, address) in [(&namespace, "to-server", address), (&server, &end, server_address)] {
            ip(&["-n", namespace, "address", "add", &format!("{address}/24"), "dev", end])?;
            ip(&["-n", namespace, "link", "set", end, "up"])?;
        }
        run("ip", &["netns", "exec", &server, "ethtool", "-K", &end, "gro", "on"])
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for host in HOSTS {
            // The interfaces go with their namespaces. One that was never made is none of our business.
            let _ = run("ip", &["netns", "delete", &self.name(host)]);
        }
    }
}

impl Host {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Peer => "peer",
        }
    }
}

fn ip(arguments: &[&str]) -> Outcome<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Outcome<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{program} {}` failed: {}", arguments.join(" "), said.trim()).into())
}
