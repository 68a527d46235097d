//! Network namespaces: servers in one, and each participant in its own behind a router.
//!
//! The servers are at 192.0.2.1 (rooms) and 192.0.2.2 (relay), and at 2001:db8::1 and 2001:db8::2. The relay denies the
//! addresses of routers and browsers as peers, because they are private.

use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use crate::driver::Driver;
use crate::line::slow_line;
use crate::place::Servers;
use crate::relay::{Listeners, Relay};
use crate::support::network::{Host, Namespace, in_own_network, ip, set};
use crate::support::{TIMEOUT, TempDir, run};
use crate::webdriver::Browser;

const V4: Listeners = Listeners {
    udp: "['192.0.2.2:3478']",
    tcp: "['192.0.2.2:3478']",
    tls: "['192.0.2.2:443']",
    relay: "['192.0.2.2']",
};

// Chromium asks for an IPv4 address at the relay, however it reaches it.
const V6: Listeners = Listeners {
    udp: "['[2001:db8::2]:3478']",
    tcp: "['[2001:db8::2]:3478']",
    tls: "['[2001:db8::2]:443']",
    relay: "['192.0.2.2', '2001:db8::2']",
};

/// Runs a test in the namespace of the servers.
pub(crate) fn among_homes(test: impl FnOnce() + Send) {
    let network = [
        "link set lo up",
        "addr add 192.0.2.1/32 dev lo",
        "addr add 192.0.2.2/32 dev lo",
        "addr add 2001:db8::1/128 dev lo",
        "addr add 2001:db8::2/128 dev lo",
    ];
    in_own_network(&network, || {
        forward();
        test();
    });
}

/// Starts the servers. Browsers reach them over IPv4.
pub(crate) fn servers() -> Servers {
    Servers::start(vec![Relay::start_on(&V4)], "192.0.2.1:443", &[])
}

/// Starts the servers. Browsers reach them over IPv6.
pub(crate) fn servers_v6() -> Servers {
    Servers::start(vec![Relay::start_on(&V6)], "[2001:db8::1]:443", &[])
}

/// Lets the namespace of this thread forward packets.
fn forward() {
    set("ipv4/ip_forward", "1");
    set("ipv6/conf/all/forwarding", "1");
}

/// Adds an address of the link, which the kernel needs to find the neighbours of packets that it forwards.
fn examine_neighbours(network: u8) {
    ip(&format!("addr add fe80::1/64 dev n{network} nodad"));
}

/// What a router does with packets.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// Statements of nftables for the packets that pass the router.
    pub(crate) filter: &'static str,
    /// Whether the line behind the router is slow and loses packets.
    pub(crate) is_slow: bool,
}

impl Rules {
    /// A router that changes the addresses of packets, and passes all.
    pub(crate) const OPEN: Self = Self { filter: "accept;", is_slow: false };
}

/// A network behind a router with a symmetric NAT: each destination sees another port.
pub(crate) struct Home {
    /// The router is host 2 of this network, and host 1 of the next one.
    network: u8,
    router: Arc<Host>,
}

impl Home {
    /// Connects a router to the namespace of the servers, in which this thread is.
    pub(crate) fn new(network: u8, rules: Rules) -> Self {
        let router = Arc::new(Host::new(network));
        let inside = network + 1;
        examine_neighbours(network);
        ip(&format!("-6 route add fd00:{inside}::/64 via fd00:{network}::2"));
        router.run(move || {
            forward();
            ip(&format!("route add default via 10.0.{network}.1"));
            ip(&format!("-6 route add default via fd00:{network}::1"));
            let filter = rules.filter;
            let script = format!(
                "table ip nat {{ chain out {{ type nat hook postrouting priority srcnat;
                 oifname n{network} masquerade random,fully-random\n}}\n}}
                 table inet pass {{ chain pass {{ type filter hook forward priority filter; {filter}\n}}\n}}\n"
            );
            let directory = TempDir::new();
            command("nft", &["-f", directory.write("rules", &script).to_str().unwrap()]);
        });
        Self { network, router }
    }

    /// Connects the namespace of a participant by another interface.
    pub(crate) fn join(&self, participant: &Arc<Host>) {
        let participant = Arc::clone(participant);
        self.connect(move |network| {
            participant.connect(network);
            participant
        });
    }

    /// Returns the namespace of a participant.
    pub(crate) fn participant(&self, rules: Rules) -> Arc<Host> {
        self.connect(move |network| {
            if rules.is_slow {
                return slow_line(network);
            }
            let participant = Host::new(network);
            participant.ip(&format!("-6 route add default via fd00:{network}::1"));
            Arc::new(participant)
        })
    }

    fn connect(&self, connect: impl FnOnce(u8) -> Arc<Host> + Send + 'static) -> Arc<Host> {
        let inside = self.network + 1;
        let participant = self.router.run(move || {
            let participant = connect(inside);
            examine_neighbours(inside);
            participant
        });
        participant.ip(&format!("route add default via 10.0.{inside}.1"));
        participant
    }
}

fn command(program: &str, arguments: &[&str]) {
    let finished = run(Command::new(program).args(arguments), None, TIMEOUT);
    assert_eq!(finished.code, Some(0), "{program} {arguments:?}: {finished:?}");
}

/// A Chromium in the namespace of a participant.
pub(crate) struct Inside {
    namespace: Namespace,
    browser: Option<Browser>,
}

impl Inside {
    pub(crate) fn start(participant: &Host) -> Self {
        let namespace = participant.run(Namespace::own);
        let browser = Some(namespace.run(Browser::start));
        Self { namespace, browser }
    }

    /// Talks to the driver of the browser, which listens on the loopback address of the namespace.
    fn with<T: Send>(&self, command: impl FnOnce(&Browser) -> T + Send) -> T {
        self.namespace.run(|| command(self.browser.as_ref().expect("it runs until it is dropped")))
    }
}

impl Driver for Inside {
    fn name(&self) -> &'static str {
        "Chromium"
    }

    fn open(&self, preload: &str) -> Value {
        self.with(|browser| browser.open(preload))
    }

    fn navigate(&self, window: &Value, url: &str) {
        self.with(|browser| Driver::navigate(browser, window, url));
    }

    fn execute_async(&self, window: &Value, script: &str, arguments: &[Value]) -> Value {
        self.with(|browser| Driver::execute_async(browser, window, script, arguments))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let browser = self.browser.take();
        self.namespace.run(|| drop(browser));
    }
}
