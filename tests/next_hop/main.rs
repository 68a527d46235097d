//! The next hop (`turnserver::offload::next_hop`) and the selection of interfaces (`select`) with real interfaces, routes
//! and neighbours: network namespaces that are connected by veth interfaces. Needs root and the `ip` command.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
mod changes;
#[cfg(test)]
mod hosts;
#[cfg(test)]
mod ipsec;
#[cfg(test)]
#[allow(dead_code, reason = "these tests use a part of it")]
#[path = "../support/network.rs"]
mod network;
#[cfg(test)]
mod obstacles;
#[cfg(test)]
mod overrun;
#[cfg(test)]
mod path_mtu;
#[cfg(test)]
mod privileges;
#[cfg(test)]
mod select;
#[cfg(test)]
mod speed;

#[cfg(test)]
use hosts::skip;
