//! The server's namespace and its neighbours.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, gettid};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use turnserver::offload::next_hop::{NextHop, Notice, Obstacle, Pair, Resolution, Watcher};

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

/// A namespace of its own on the other end of one interface of the server.
///
/// Network `n` is 10.0.n.0/24 and fd00:n::/64 on the interface `n<n>` at both ends. The server is host 1 there, and the
/// other end is host 2, and fe80::2. The last bytes of the link addresses are n and the host.
pub(crate) struct Host {
    commands: mpsc::Sender<(Job, mpsc::Sender<()>)>,
    thread: Pid,
}

type Job = Box<dyn FnOnce() + Send>;

impl Host {
    /// Creates the interface of network `network` in the namespace of this thread, and the namespace of its other end.
    pub(crate) fn new(network: u8) -> Self {
        let (commands, received) = mpsc::channel::<(Job, mpsc::Sender<()>)>();
        let (started, id) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            started.send(gettid()).unwrap();
            // The namespace ends with the thread, when the test drops its sender.
            for (command, done) in received {
                command();
                done.send(()).unwrap();
            }
        });
        let host = Self { commands, thread: id.recv().unwrap() };
        host.connect(network);
        host
    }

    /// Creates the interface of another network in the namespace of this thread, whose other end is in this namespace.
    pub(crate) fn connect(&self, network: u8) {
        let (name, thread) = (format!("n{network}"), self.thread);
        ip(&format!("link add {name} type veth peer name {name} netns {thread}"));
        configure(network, 1);
        self.run(move || {
            configure(network, 2);
            ip(&format!("addr add fe80::2/64 dev {name} nodad"));
            wait_for_link(network);
        });
        wait_for_link(network);
    }

    /// Runs something in the namespace.
    pub(crate) fn run(&self, command: impl FnOnce() + Send + 'static) {
        let (done, wait) = mpsc::channel();
        self.commands.send((Box::new(command), done)).unwrap();
        wait.recv().expect("the command succeeds");
    }

    /// Runs an `ip` command in the namespace.
    pub(crate) fn ip(&self, arguments: &str) {
        let arguments = arguments.to_owned();
        self.run(move || ip(&arguments));
    }
}

fn configure(network: u8, host: u8) {
    let name = format!("n{network}");
    // A link-local address that the kernel adds would take a second.
    set(&format!("ipv6/conf/{name}/addr_gen_mode"), "1");
    for command in [
        "link set lo up".to_owned(),
        format!("link set {name} address {}", text(link_address(network, host))),
        format!("link set {name} up"),
        format!("addr add 10.0.{network}.{host}/24 dev {name}"),
        format!("addr add fd00:{network}::{host}/64 dev {name} nodad"),
    ] {
        ip(&command);
    }
}

/// Waits until the kernel has noticed that both ends of an interface are up, which it does in the background.
fn wait_for_link(network: u8) {
    let name = format!("n{network}");
    let is_up = || {
        let output = Command::new("ip").args(["-o", "link", "show", "dev", &name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("state UP")
    };
    assert!((0..10_000).any(|_| is_up()), "{name} has no link");
}

/// Sets a parameter of the network stack in the namespace of this thread.
pub(crate) fn set(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

pub(crate) fn link_address(network: u8, host: u8) -> [u8; 6] {
    [2, 0, 0, 0, network, host]
}

pub(crate) fn text(link_address: [u8; 6]) -> String {
    link_address.map(|byte| format!("{byte:02x}")).join(":")
}

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
