//! The network of the load: three temporary namespaces, or the loopback interface.
//!
//! ```text
//!  client 198.18.1.2 ── veth ── 198.18.1.1  server  198.18.2.1 ── veth ── 198.18.2.2 peer
//! ```

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::load::Outcome;

/// The hosts and their addresses.
pub(crate) struct Network {
    namespaces: Option<Namespaces>,
    /// This program, which starts all others.
    program: PathBuf,
    pub(crate) addresses: Addresses,
}

/// The addresses of the hosts.
pub(crate) struct Addresses {
    pub(crate) client: IpAddr,
    /// The server's listen address.
    pub(crate) listen: IpAddr,
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
    /// The server's relay address.
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
    /// Creates and connects the namespaces. They are removed on drop.
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
        namespaces.create(&addresses)?;
        Ok(Self { namespaces: Some(namespaces), program: std::env::current_exe()?, addresses })
    }

    /// Uses loopback addresses and free ports.
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

    /// Returns a command that runs this program on `host`. Its processes are killed when this one ends.
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

/// Namespaces whose names contain the id of this process.
struct Namespaces {
    id: u32,
}

impl Namespaces {
    fn name(&self, host: Host) -> String {
        format!("turn-bench-{}-{}", self.id, host.name())
    }

    fn create(&self, addresses: &Addresses) -> Outcome<()> {
        for host in HOSTS {
            ip(&["netns", "add", &self.name(host)])?;
            ip(&["-n", &self.name(host), "link", "set", "lo", "up"])?;
        }
        self.connect(Host::Client, addresses.client, addresses.listen)?;
        self.connect(Host::Peer, addresses.peer, addresses.relay)
    }

    /// Connects `host` to the server.
    fn connect(&self, host: Host, address: IpAddr, server_address: IpAddr) -> Outcome<()> {
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
            // This removes their interfaces too. It fails for a namespace that was not created.
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
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{program} {}` failed: {}", arguments.join(" "), stderr.trim()).into())
}
