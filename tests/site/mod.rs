//! The sites on which a case runs: loopback, and a network whose interface has the XDP program.

use crate::hosts::Host;
use crate::http::Http;
use crate::interfaces::{Traffic, assert_checksums, at_server, prepare, run};
use crate::network::{Namespace, ip};
use crate::support::{Server, TempDir, config_for};

/// The version of IP addresses.
#[derive(Clone, Copy)]
pub(crate) enum Version {
    V4,
    V6,
}

/// Where the server of a case is, and its clients and peers, to which the thread of the case belongs.
pub(crate) struct Site {
    server: [&'static str; 2],
    host: [&'static str; 2],
    /// A second IPv4 address of clients, at which no server listens.
    pub(crate) other: &'static str,
    /// The network namespace of the server, with the interface that has the program.
    namespace: Option<Namespace>,
    directory: TempDir,
}

/// Makes two tests of each case, a function of the site: one over loopback, and one over the offload.
macro_rules! on_each_site {
    ($($test:ident: $case:expr;)+) => {
        mod loopback {
            #[allow(clippy::wildcard_imports, reason = "a case may use everything of its module")]
            use super::*;

            $(
                #[test]
                fn $test() {
                    $crate::site::over_loopback($case);
                }
            )+
        }

        mod offload {
            #[allow(clippy::wildcard_imports, reason = "a case may use everything of its module")]
            use super::*;

            $(
                #[test]
                fn $test() {
                    $crate::site::over_the_offload($case);
                }
            )+
        }
    };
}
pub(crate) use on_each_site;

/// Runs a case over loopback.
pub(crate) fn over_loopback(case: impl FnOnce(&Site)) {
    case(&Site {
        server: ["127.0.0.1", "::1"],
        host: ["127.0.0.1", "::1"],
        other: "127.0.0.2",
        namespace: None,
        directory: TempDir::new(),
    });
}

/// Runs a case with the server in one network namespace and its clients and peers in another, and asserts that these
/// receive no wrong checksum. The program sends packets back through the interface that has received them.
pub(crate) fn over_the_offload(case: impl FnOnce(&Site) + Send) {
    at_server(|| {
        let host = Host::new(1);
        prepare(&host, 1);
        let clients = host.run(|| {
            ip("addr add 10.0.1.3/24 dev n1");
            // Chromium uses the addresses with which it would reach the internet.
            ip("route add default via 10.0.1.1");
            ip("-6 route add default via fd00:1::1");
            Namespace::own()
        });
        let site = Site {
            server: ["10.0.1.1", "fd00:1::1"],
            host: ["10.0.1.2", "fd00:1::2"],
            other: "10.0.1.3",
            namespace: Some(Namespace::own()),
            directory: TempDir::new(),
        };
        clients.enter();
        case(&site);
        assert_checksums();
    });
}

impl Site {
    /// Returns the address of the server.
    pub(crate) fn server(&self, version: Version) -> &'static str {
        self.server[version as usize]
    }

    /// Returns the address of clients and peers.
    pub(crate) fn host(&self, version: Version) -> &'static str {
        self.host[version as usize]
    }

    /// Returns the configuration of a server that listens and relays on addresses of these versions.
    pub(crate) fn config(&self, versions: &[Version], more: &str) -> String {
        self.config_for(versions, versions, more)
    }

    /// Like `config`, with different addresses for listening and relaying.
    pub(crate) fn config_for(&self, listen: &[Version], relay: &[Version], more: &str) -> String {
        let [listen, relay] =
            [listen, relay].map(|versions| versions.iter().map(|version| self.server(*version)).collect::<Vec<_>>());
        config_for(&listen, &relay, &format!("{more}{}", self.tables()))
    }

    /// Returns the tables that each configuration has: a control socket, and the offload.
    pub(crate) fn tables(&self) -> String {
        let control = format!("[control]\nsocket = {:?}\n", self.directory.path().join("control.sock"));
        let offload = if self.is_offloaded() { "[offload]\nmode = \"require\"\ninterfaces = [\"n1\"]\n" } else { "" };
        format!("{offload}{control}")
    }

    /// Allows peers that are plain sockets of this site.
    pub(crate) fn peers(&self) -> String {
        format!("[peers]\nallow = {:?}\n", self.host)
    }

    /// Starts a server, and waits until it is ready.
    pub(crate) fn start(&self, config: &str) -> Server {
        self.at_server(|| Server::start(config))
    }

    /// Runs something in the network namespace of the server. Processes that it starts, and sockets, stay there.
    pub(crate) fn at_server<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        match &self.namespace {
            Some(namespace) => namespace.run(function),
            None => function(),
        }
    }

    /// Returns the path of the control socket.
    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("control.sock")
    }

    /// Describes which packets the kernel has dropped at each end of the offload's interface.
    pub(crate) fn drops(&self) -> String {
        if !self.is_offloaded() {
            return String::new();
        }
        let counted = || {
            let of_sockets = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            let of_udp: Vec<&str> = of_sockets.lines().filter(|line| line.starts_with("Udp:")).collect();
            format!("{of_udp:#?}\n{}\n{}", run("ip", "-s -s link show n1"), run("ethtool", "-S n1"))
        };
        format!("at the clients: {}\nat the server: {}", counted(), self.at_server(counted))
    }

    /// Returns whether the server has the program, and a network namespace of its own.
    pub(crate) fn is_offloaded(&self) -> bool {
        self.namespace.is_some()
    }

    /// Returns what the program has relayed, as the server has counted it. `None` over loopback.
    pub(crate) fn in_kernel(&self) -> Option<Traffic> {
        self.namespace.as_ref()?;
        let response = Http::unix(&self.socket()).get("/v1/offload");
        assert_eq!(response.status, 200, "{}", response.body);
        Some(Traffic::of(&serde_json::from_str(&response.body).unwrap()))
    }
}
