//! A server with the offload, and hosts for clients and peers, each in a network namespace of its own.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use turnserver::clock::Clock;

use crate::hosts::{FAR, Host};
use crate::http::Http;
use crate::interfaces::{Traffic, assert_checksums, at_server, prepare};
use crate::support::client::socket;
use crate::support::{Controlled, TIMEOUT, config_for};

/// The addresses of the server in the networks of the client and of the peer.
pub(crate) const LISTENERS: [&str; 2] = ["10.0.1.1", "fd00:1::1"];
pub(crate) const RELAYS: [&str; 2] = ["10.0.2.1", "fd00:2::1"];

/// The addresses of the client and of the peer.
pub(crate) const CLIENTS: [&str; 2] = ["10.0.1.2", "fd00:1::2"];
pub(crate) const PEERS: [&str; 2] = ["10.0.2.2", "fd00:2::2"];

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

/// Runs a test in the server's namespace. [Skips](crate::support::skip) it if something is missing on this machine.
pub(crate) fn with_network(test: impl FnOnce(&Network) + Send) {
    at_server(|| test(&Network::new()));
}

/// Runs a test with a server. `more` is added to its configuration.
pub(crate) fn with_server(more: &str, test: impl FnOnce(&World<'_>) + Send) {
    with_network(|network| test(&network.start(&config(more))));
}

impl Network {
    fn new() -> Self {
        let [client, peer] = [1, 2].map(Host::new);
        let network = Self { fence: Fence::new(&client, &peer), client, peer };
        prepare(&network.client, 1);
        prepare(&network.peer, 2);
        network
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

/// Sends a datagram from one socket to another, and waits for it. It may get lost while an interface comes up.
fn pass(from: &UdpSocket, to: &UdpSocket) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let fence = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    to.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let (clock, mut buffer) = (Clock::start(), [0; 16]);
    loop {
        from.send_to(&fence, to.local_addr().unwrap()).unwrap();
        while let Ok((length, source)) = to.recv_from(&mut buffer) {
            assert_eq!(source, from.local_addr().unwrap());
            // An earlier one came late.
            if buffer[..length] == fence {
                return;
            }
        }
        assert!(clock.elapsed() < TIMEOUT, "no datagram arrives between neighbours");
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
        Traffic::of(&self.offload())
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
            host.run(assert_checksums);
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
