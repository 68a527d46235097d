//! The running server with the offload: client, server and peer are in network namespaces of their own, which veth
//! interfaces connect. Needs root, `ip` and `ethtool`.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
mod call;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod data;
#[cfg(test)]
mod ending;
#[cfg(test)]
mod expiry;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../next_hop/hosts.rs"]
mod hosts;
#[cfg(test)]
#[path = "../http/client.rs"]
mod http;
#[cfg(test)]
mod interfaces;
#[cfg(test)]
mod path;
#[cfg(test)]
mod reload;
#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;
#[cfg(test)]
mod user_space;
#[cfg(test)]
mod world;

#[cfg(test)]
use support::network;
