//! A network that drops what relay sockets receive.

/// A namespace that drops datagrams for the relay ports of the tests, 20000 to 32000.
pub(crate) const BLOCKED_RELAY_PORTS: [&str; 4] = [
    "link set lo up",
    // The rule has to precede that of local addresses.
    "rule add pref 100 lookup local",
    "rule del pref 0",
    "rule add pref 10 ipproto udp dport 20000-32000 blackhole",
];
