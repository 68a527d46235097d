//! A server with the offload, and hosts for clients and peers, each in a network namespace of its own.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use turnserver::clock::Clock;
use turnserver::offload::obstacle::NotLoaded;
use turnserver::offload::program::{Program, Sizes};

use crate::hosts::{FAR, Host, set};
use crate::http::Http;
use crate::network::{in_own_network, ip};
use crate::support::client::socket;
use crate::support::{Controlled, TIMEOUT, config_for, has_ipv6, skip};

/// The addresses of the server in the networks of the client and of the peer.
pub(crate) const LISTENERS: [&str; 2] = ["10.0.1.1", "fd00:1::1"];
pub(crate) const RELAYS: [&str; 2] = ["10.0.2.1", "fd00:2::1"];

/// The addresses of the client and of the peer.
pub(crate) const CLIENTS: [&str; 2] = ["10.0.1.2", "fd00:1::2"];
pub(crate) const PEERS: [&str; 2] = ["10.0.2.2", "fd00:2::2"];

/// The sizes of the maps for the tests that load the program themselves.
pub(crate) const SIZES: Sizes = Sizes { entries: 1024, slots: 1024 };

/// The namespaces of client and peer. The server's namespace is that of the test's thread.
pub(crate) struct Network {
    pub(crate) client: Host,
    pub(crate) peer: Host,
    fence: Fence,
}

/// A network with a running server.
pub(crate) struct World<'n> {
    pub(crate) network: &'n Network,
    pub(crate) controlled: Controlled,
}

/// Sockets whose datagrams pass through the same queues as those that the program relays.
struct Fence {
    client: UdpSocket,
    at_client: UdpSocket,
    at_peer: UdpSocket,
    peer: UdpSocket,
}

/// What the program has relayed: packets and bytes to peers, and to clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) packets: [u64; 2],
    pub(crate) bytes: [u64; 2],
}

impl Traffic {
    pub(crate) fn since(self, before: Self) -> Self {
        let difference = |now: [u64; 2], before: [u64; 2]| [now[0] - before[0], now[1] - before[1]];
        Self { packets: difference(self.packets, before.packets), bytes: difference(self.bytes, before.bytes) }
    }
}

/// Returns a configuration with the offload on both interfaces.
pub(crate) fn config(more: &str) -> String {
    config_on(&["n1", "n2"], more)
}

/// Returns a configuration with the offload on these interfaces.
pub(crate) fn config_on(interfaces: &[&str], more: &str) -> String {
    let peers = format!("[peers]\nallow = [\"10.0.0.0/8\", \"fd00::/8\", \"{FAR}\", \"10.0.2.1\", \"fd00:2::1\"]\n");
    let offload = format!("[offload]\nmode = \"require\"\ninterfaces = {interfaces:?}\n");
    config_for(&LISTENERS, &RELAYS, &format!("{peers}{offload}{more}"))
}

/// Runs a test in the server's namespace. [Skips](skip) it if something is missing on this machine.
pub(crate) fn with_network(test: impl FnOnce(&Network) + Send) {
    if Command::new("ethtool").arg("--version").output().is_err() {
        return skip("`ethtool` is missing");
    }
    if let Err(error @ NotLoaded::NotPermitted(_)) = Program::load(SIZES) {
        return skip(&error.to_string());
    }
    if !has_ipv6() {
        return;
    }
    in_own_network(&["link set lo up"], || test(&Network::new()));
}

/// Runs a test with a server. `more` is added to its configuration.
pub(crate) fn with_server(more: &str, test: impl FnOnce(&World<'_>) + Send) {
    with_network(|network| test(&network.start(&config(more))));
}

impl Network {
    fn new() -> Self {
        let [client, peer] = [1, 2].map(Host::new);
        let network = Self { fence: Fence::new(&client, &peer), client, peer };
        network.prepare(&network.client, 1);
        network.prepare(&network.peer, 2);
        network
    }

    /// Prepares an interface between the server and a host.
    pub(crate) fn prepare(&self, host: &Host, number: u8) {
        let name = format!("n{number}");
        // A neighbour that becomes stale would lead through user space now and then.
        for version in ["ipv4", "ipv6"] {
            set(&format!("{version}/neigh/{name}/base_reachable_time_ms"), "3600000");
        }
        any_source(&name);
        // The kernel examines neighbours only from an address of the link.
        ip(&format!("addr add fe80::1/64 dev {name} nodad"));
        host.run(move || {
            any_source(&name);
            // With `gro`, the interface accepts redirected packets. With `tx`, it would leave checksums to the other end.
            run("ethtool", &format!("-K {name} gro on tx off"));
        });
    }

    /// Starts a server in the namespace of this thread.
    pub(crate) fn start(&self, config: &str) -> World<'_> {
        World { network: self, controlled: Controlled::start_with(config) }
    }

    /// Waits until every packet has arrived that the client, the program or the server has sent to the peer, or the peer or
    /// the program to the client.
    pub(crate) fn fence(&self) {
        let Fence { client, at_client, at_peer, peer } = &self.fence;
        pass(client, at_client);
        pass(peer, at_peer);
        pass(at_peer, peer);
        pass(at_client, client);
    }
}

impl Fence {
    fn new(client: &Host, peer: &Host) -> Self {
        let bind = |ip: &str| socket(address(ip));
        Self {
            client: socket_of(client, CLIENTS[0]),
            at_client: bind(LISTENERS[0]),
            at_peer: bind(RELAYS[0]),
            peer: socket_of(peer, PEERS[0]),
        }
    }
}

/// Sends a datagram from one socket to another, and waits for it.
fn pass(from: &UdpSocket, to: &UdpSocket) {
    from.send_to(b"fence", to.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 16];
    let (length, source) = to.recv_from(&mut buffer).expect("a datagram between neighbours arrives");
    assert_eq!((&buffer[..length], source), (&b"fence"[..], from.local_addr().unwrap()));
}

/// Accepts packets from any source at an interface of the namespace of this thread.
fn any_source(interface: &str) {
    for name in ["all", interface] {
        set(&format!("ipv4/conf/{name}/rp_filter"), "0");
    }
}

/// Binds a socket in the namespace of a host.
pub(crate) fn socket_of(host: &Host, ip: &str) -> UdpSocket {
    let address = address(ip);
    in_host(host, move || socket(address))
}

/// Runs something in the namespace of a host, and returns its result.
pub(crate) fn in_host<T: Send + 'static>(host: &Host, function: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    host.run(move || sender.send(function()).unwrap());
    receiver.recv().unwrap()
}

fn address(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 0)
}

/// Runs a program in the namespace of this thread, and returns its output.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a condition returns no error.
pub(crate) fn wait_until<T>(mut condition: impl FnMut() -> Result<T, String>) -> T {
    let start = Clock::start();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(state) => assert!(start.elapsed() < TIMEOUT, "{state}"),
        }
    }
}

/// Asserts that a socket has received nothing.
pub(crate) fn assert_silent(socket: &UdpSocket) {
    assert_eq!(waiting(socket), None, "a datagram arrives at {socket:?}");
}

/// Returns a datagram that a socket has received already.
pub(crate) fn waiting(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = [0; 2048];
    socket.set_nonblocking(true).unwrap();
    // A socket reports an ICMP error in place of a datagram.
    let received = (0..8).find_map(|_| match socket.recv(&mut buffer) {
        Ok(length) => Some(Some(buffer[..length].to_vec())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(None),
        Err(_) => None,
    });
    socket.set_nonblocking(false).unwrap();
    received.flatten()
}

impl World<'_> {
    /// Returns what the program has relayed.
    pub(crate) fn in_kernel(&self) -> Traffic {
        // The description of a session reads the counters of its channels.
        for session in self.sessions() {
            self.session(session["id"].as_str().unwrap());
        }
        let offload = self.offload();
        let both = |field: &str| ["to_peers", "to_clients"].map(|to| offload[field][to].as_u64().unwrap());
        Traffic { packets: both("packets"), bytes: both("bytes") }
    }

    pub(crate) fn sessions(&self) -> Vec<Value> {
        self.get("/v1/sessions")["sessions"].as_array().unwrap().clone()
    }

    /// Describes a session, without waiting for its rate.
    pub(crate) fn session(&self, id: &str) -> Value {
        self.get(&format!("/v1/sessions/{id}?seconds=0"))
    }

    pub(crate) fn offload(&self) -> Value {
        self.get("/v1/offload")
    }

    fn get(&self, path: &str) -> Value {
        let response = Http::unix(&self.controlled.socket).get(path);
        assert_eq!(response.status, 200, "{path}: {}", response.body);
        serde_json::from_str(&response.body).unwrap()
    }

    /// Returns how many packets with an entry had this outcome.
    pub(crate) fn outcome(&self, outcome: &str) -> u64 {
        self.offload()["outcomes"][outcome].as_u64().unwrap_or_default()
    }

    /// Writes a configuration and reloads it. `change` gets the configuration that the server was started with.
    pub(crate) fn reload(&self, change: impl FnOnce(&str) -> String) {
        let control = format!("[control]\nsocket = {:?}\n", self.controlled.socket);
        let config = self.controlled.config.replace(&control, "");
        self.controlled.server.write_config(&format!("{}{control}", change(&config)));
        let response = self.controlled.json(&["reload"]);
        assert_eq!(response["complete"], true, "{response}");
    }

    /// Asserts that the kernels of client and peer have received no datagram with a wrong checksum.
    pub(crate) fn assert_checksums(&self) {
        for host in [&self.network.client, &self.network.peer] {
            let files =
                || ["snmp", "snmp6"].map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")));
            let [v4, v6] = in_host(host, files).map(Result::unwrap);
            let of_udp: Vec<Vec<&str>> = v4
                .lines()
                .filter(|line| line.starts_with("Udp:"))
                .map(|line| line.split_whitespace().collect())
                .collect();
            let [names, values] = of_udp.as_slice() else { panic!("{v4}") };
            let at = names.iter().position(|name| *name == "InCsumErrors").unwrap();
            assert_eq!(values[at], "0", "{of_udp:?}");
            let v6 = v6.lines().find_map(|line| line.strip_prefix("Udp6InCsumErrors")).unwrap();
            assert_eq!(v6.trim(), "0");
        }
    }
}

/// Returns whether an address is IPv4.
pub(crate) fn is_v4(ip: &str) -> bool {
    ip.parse::<IpAddr>().unwrap().is_ipv4()
}

/// The time after which a server that has ended or is stopped relays nothing: its lease, and the last tick of the
/// program's clock.
pub(crate) const LEASE: Duration = Duration::from_millis(3_050);
