//! veth interfaces that can have the program, and what the kernel counts at their ends.

use std::process::Command;

use serde_json::Value;
use turnserver::clock::Clock;
use turnserver::offload::obstacle::NotLoaded;
use turnserver::offload::program::{Program, Sizes};

use crate::hosts::{Host, set};
use crate::network::{in_own_network, ip};
use crate::support::{TIMEOUT, has_ipv6, skip};

/// The sizes of the maps for the tests that load the program themselves.
pub(crate) const SIZES: Sizes = Sizes { entries: 1024, slots: 1024 };

/// What the program has relayed: packets and bytes to peers, and to clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) packets: [u64; 2],
    pub(crate) bytes: [u64; 2],
}

impl Traffic {
    /// Reads `/v1/offload` of a control socket.
    pub(crate) fn of(offload: &Value) -> Self {
        let both = |field: &str| ["to_peers", "to_clients"].map(|to| offload[field][to].as_u64().unwrap());
        Self { packets: both("packets"), bytes: both("bytes") }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        let difference = |now: [u64; 2], before: [u64; 2]| [now[0] - before[0], now[1] - before[1]];
        Self { packets: difference(self.packets, before.packets), bytes: difference(self.bytes, before.bytes) }
    }
}

/// Runs a test in the server's namespace. [Skips](skip) it if something is missing on this machine.
pub(crate) fn at_server(test: impl FnOnce() + Send) {
    if Command::new("ethtool").arg("--version").output().is_err() {
        return skip("`ethtool` is missing");
    }
    if let Err(error @ NotLoaded::NotPermitted(_)) = Program::load(SIZES) {
        return skip(&error.to_string());
    }
    if !has_ipv6() {
        return;
    }
    in_own_network(&["link set lo up"], test);
}

/// Prepares an interface between the server, in whose namespace this thread is, and a host.
pub(crate) fn prepare(host: &Host, number: u8) {
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

/// Accepts packets from any source at an interface of the namespace of this thread.
fn any_source(interface: &str) {
    for name in ["all", interface] {
        set(&format!("ipv4/conf/{name}/rp_filter"), "0");
    }
}

/// Asserts that the kernel has received no datagram with a wrong checksum in the namespace of this thread.
pub(crate) fn assert_checksums() {
    assert_eq!(udp_errors("InCsumErrors"), 0);
}

/// Returns a counter of the kernel for UDP over IPv4 and IPv6, in the namespace of this thread.
pub(crate) fn udp_errors(name: &str) -> usize {
    let [v4, v6] =
        ["snmp", "snmp6"].map(|file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap());
    let of_udp: Vec<Vec<&str>> =
        v4.lines().filter(|line| line.starts_with("Udp:")).map(|line| line.split_whitespace().collect()).collect();
    let [names, values] = of_udp.as_slice() else { panic!("{v4}") };
    let at = names.iter().position(|other| *other == name).unwrap();
    let v6 = v6.lines().find_map(|line| line.strip_prefix(&format!("Udp6{name}"))).unwrap();
    [values[at], v6.trim()].iter().map(|value| value.parse::<usize>().unwrap()).sum()
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
