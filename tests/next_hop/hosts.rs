//! The server's namespace and its neighbours.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use turnserver::offload::next_hop::{NextHop, Notice, Obstacle, Pair, Resolution, Watcher};

pub(crate) use crate::network::{Host, link_address, set, text};
use crate::network::{in_own_network, ip};

/// Timeout of every wait. It is long because the machine may be busy, and shorter than the time in which the watcher
/// finds changes of a few pairs without notifications.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(25);

/// The owner of all pairs.
pub(crate) const OWNER: u16 = 3;

/// An address that only gateways lead to.
pub(crate) const FAR: &str = "203.0.113.9";
/// The same for IPv6.
pub(crate) const FAR6: &str = "2001:db8:9::9";

/// Runs many `ip` commands in one process.
pub(crate) fn batch(commands: &[String]) {
    let mut process = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(commands.join("\n").as_bytes()).unwrap();
    assert!(process.wait().unwrap().success());
}

/// Runs a test in the server's namespace with hosts on the given networks, whose link addresses the server knows.
pub(crate) fn with_neighbours<const N: usize>(networks: [u8; N], test: impl FnOnce(&[Host; N], &mut Server) + Send) {
    with_hosts(networks, |hosts, server| {
        for network in networks {
            for address in [format!("10.0.{network}.2"), format!("fd00:{network}::2"), "fe80::2".to_owned()] {
                let link_address = text(link_address(network, 2));
                ip(&format!("neigh replace {address} lladdr {link_address} dev n{network} nud permanent"));
            }
        }
        test(hosts, server);
    });
}

/// Runs a test in the server's namespace with hosts on the given networks.
pub(crate) fn with_hosts<const N: usize>(networks: [u8; N], test: impl FnOnce(&[Host; N], &mut Server) + Send) {
    in_own_network(&[], || {
        let hosts = networks.map(Host::new);
        test(&hosts, &mut Server::new());
    });
}

/// The server: a watcher and its thread's runtime.
pub(crate) struct Server {
    runtime: Runtime,
    watcher: Option<Watcher>,
    /// The last resolution of each pair that `OWNER` has got.
    known: HashMap<Pair, Resolution>,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self {
            runtime: Builder::new_current_thread().enable_all().build().unwrap(),
            watcher: None,
            known: HashMap::new(),
        }
    }

    /// The watcher, which is opened at the first call.
    pub(crate) fn watcher(&mut self) -> &mut Watcher {
        let _inside = self.runtime.enter();
        self.watcher.get_or_insert_with(|| Watcher::open().unwrap())
    }

    pub(crate) fn ask(&mut self, pair: Pair) -> Resolution {
        let resolution = self.watcher().ask(OWNER, pair).unwrap();
        self.known.insert(pair, resolution.clone());
        resolution
    }

    /// Returns the next notices.
    pub(crate) fn notices(&mut self) -> Vec<Notice> {
        let watcher = self.watcher.as_mut().expect("a pair was asked for");
        let next = async { timeout(TIMEOUT, watcher.next()).await.expect("a notice arrives") };
        let notices = self.runtime.block_on(next).unwrap();
        for notice in &notices {
            if let Notice::Changed { owner: OWNER, pair, resolution } = notice {
                self.known.insert(*pair, resolution.clone());
            }
        }
        notices
    }

    /// Waits until the resolution of a pair satisfies a condition.
    pub(crate) fn wait(&mut self, pair: Pair, condition: impl Fn(&Resolution) -> bool) {
        // Notices that ask for the use of a neighbour come without end.
        let mut uses = 0;
        while !condition(&self.known[&pair]) {
            let notices = self.notices();
            uses += usize::from(notices.iter().any(|notice| matches!(notice, Notice::Use { .. })));
            assert!(uses < 5, "{pair:?} stays {:?}", self.known[&pair]);
        }
    }

    /// Waits until a pair has a resolution.
    pub(crate) fn wait_for(&mut self, pair: Pair, expected: &Resolution) {
        self.wait(pair, |resolution| resolution == expected);
    }
}

pub(crate) fn pair(source: &str, destination: &str) -> Pair {
    Pair { source: address(source), destination: address(destination) }
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The index of an interface of the server.
pub(crate) fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// The next hop to the host of a network.
pub(crate) fn through(network: u8) -> NextHop {
    NextHop {
        interface: index(&format!("n{network}")),
        is_redirected: true,
        link_destination: link_address(network, 2),
        link_source: link_address(network, 1),
        longest_packet: 1500,
    }
}

pub(crate) fn unresolved(network: u8, neighbour: &str) -> Resolution {
    Err(Obstacle::Unresolved { neighbour: address(neighbour), interface: format!("n{network}").into() })
}

/// Sends a datagram of the pair through the kernel.
pub(crate) fn send(pair: Pair) {
    UdpSocket::bind((pair.source, 0)).unwrap().send_to(b"data", (pair.destination, 9)).unwrap();
}

/// Says why a test does not run. It fails the test if `REQUIRE_ALL_TESTS` is set, as in `.ci/run`.
pub(crate) fn skip(reason: &str) {
    let required = std::env::var_os("REQUIRE_ALL_TESTS").is_some();
    assert!(!required, "REQUIRE_ALL_TESTS is set, but this test cannot run: {reason}");
    let _ = writeln!(io::stderr(), "skipped: {reason}");
}
