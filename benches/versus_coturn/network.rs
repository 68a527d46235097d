//! The network of the load: three temporary namespaces, or the loopback interface.
//!
//! ```text
//!  client 198.18.1.2 ── veth ── 198.18.1.1  server  198.18.2.1 ── veth ── 198.18.2.2 peer
//!                                   198.18.3.1
//!                                       └──── veth ── 198.18.3.2 attacker, with `Setup::Attack` only
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
    pub(crate) attacker: IpAddr,
}

/// A host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Host {
    Client,
    Server,
    Peer,
    Attacker,
}

/// The server's interfaces.
pub(crate) const SERVER_INTERFACES: [&str; 2] = ["to-client", "to-peer"];

const HOSTS: [Host; 4] = [Host::Client, Host::Server, Host::Peer, Host::Attacker];

/// The addresses of the attacker besides its own. The server sends to them and to all other addresses through the attacker.
pub(crate) const ATTACKER_NETWORK: &str = "10.0.0.0/8";

/// The settings of the interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Setup {
    /// GRO at the server's interfaces.
    Plain,
    /// The same, and what the XDP program of the server needs at the other ends: GRO, without which veth drops
    /// redirected packets, and complete UDP checksums, which veth otherwise leaves to the receiver. Client and peer have
    /// a route to each other through the server, for the kernel's forwarding.
    Offload,
    /// As `Plain`, and an attacker that can forge any source.
    Attack,
}

impl Network {
    /// Creates and connects the namespaces. They are removed on drop.
    pub(crate) fn namespaces(setup: Setup) -> Outcome<Self> {
        let address = |third, fourth| IpAddr::V4(Ipv4Addr::new(198, 18, third, fourth));
        let addresses = Addresses {
            client: address(1, 2),
            listen: address(1, 1),
            port: 3478,
            tls_port: 5349,
            relay: address(2, 1),
            peer: address(2, 2),
            attacker: address(3, 2),
        };
        let namespaces = Namespaces { id: std::process::id(), setup };
        namespaces.create(&addresses)?;
        Ok(Self { namespaces: Some(namespaces), program: std::env::current_exe()?, addresses })
    }

    /// Returns the settings of the interfaces.
    pub(crate) fn setup(&self) -> Setup {
        self.namespaces.as_ref().map_or(Setup::Plain, |namespaces| namespaces.setup)
    }

    /// Lets the kernel forward packets between client and peer.
    pub(crate) fn forwarding(&self) -> Outcome<Forwarding<'_>> {
        let namespaces = self.namespaces.as_ref().ok_or("the loopback interface forwards nothing")?;
        namespaces.forward(true)?;
        Ok(Forwarding(namespaces))
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
            attacker: address(4),
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

/// The kernel's forwarding between client and peer, until it is dropped.
pub(crate) struct Forwarding<'n>(&'n Namespaces);

impl Drop for Forwarding<'_> {
    fn drop(&mut self) {
        // If it stays on, only the servers that follow could notice, and they do not depend on it.
        let _ = self.0.forward(false);
    }
}

/// Namespaces whose names contain the id of this process.
struct Namespaces {
    id: u32,
    setup: Setup,
}

impl Namespaces {
    fn name(&self, host: Host) -> String {
        format!("turn-bench-{}-{}", self.id, host.name())
    }

    fn create(&self, addresses: &Addresses) -> Outcome<()> {
        for host in HOSTS.into_iter().filter(|host| *host != Host::Attacker || self.setup == Setup::Attack) {
            ip(&["netns", "add", &self.name(host)])?;
            ip(&["-n", &self.name(host), "link", "set", "lo", "up"])?;
        }
        self.connect(Host::Client, addresses.client, addresses.listen)?;
        self.connect(Host::Peer, addresses.peer, addresses.relay)?;
        match self.setup {
            Setup::Plain => return Ok(()),
            Setup::Attack => return self.connect_attacker(addresses),
            Setup::Offload => {}
        }
        self.route(Host::Client, addresses.peer, addresses.listen)?;
        self.route(Host::Peer, addresses.client, addresses.relay)
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
        run("ip", &["netns", "exec", &server, "ethtool", "-K", &end, "gro", "on"])?;
        match self.setup {
            Setup::Plain | Setup::Attack => Ok(()),
            Setup::Offload => {
                run("ip", &["netns", "exec", &namespace, "ethtool", "-K", "to-server", "gro", "on", "tx", "off"])
            }
        }
    }

    /// Connects the attacker, which has a whole network of addresses, and through which the server reaches all others.
    fn connect_attacker(&self, addresses: &Addresses) -> Outcome<()> {
        let gateway = IpAddr::V4(Ipv4Addr::new(198, 18, 3, 1));
        let (attacker, server) = (self.name(Host::Attacker), self.name(Host::Server));
        self.connect(Host::Attacker, addresses.attacker, gateway)?;
        for to in [addresses.listen, addresses.relay] {
            self.route(Host::Attacker, to, gateway)?;
        }
        ip(&["-n", &attacker, "route", "add", "local", ATTACKER_NETWORK, "dev", "lo"])?;
        ip(&["-n", &server, "route", "add", "default", "via", &addresses.attacker.to_string()])?;
        for interface in ["all", "to-attacker"] {
            let write = format!("echo 0 > /proc/sys/net/ipv4/conf/{interface}/rp_filter");
            run("ip", &["netns", "exec", &server, "sh", "-c", &write])?;
        }
        Ok(())
    }

    /// Adds the route of `host` to the address `to` through the server.
    fn route(&self, host: Host, to: IpAddr, server_address: IpAddr) -> Outcome<()> {
        ip(&["-n", &self.name(host), "route", "add", &to.to_string(), "via", &server_address.to_string()])
    }

    /// Turns the kernel's forwarding in the server's namespace on or off.
    fn forward(&self, on: bool) -> Outcome<()> {
        let write = format!("echo {} > /proc/sys/net/ipv4/ip_forward", u8::from(on));
        run("ip", &["netns", "exec", &self.name(Host::Server), "sh", "-c", &write])
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
            Self::Attacker => "attacker",
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
