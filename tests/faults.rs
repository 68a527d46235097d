//! Faults of the machine around a running server. Each test injects one for real, and asserts what clients and the
//! operator see, and that nothing is lost afterwards ([`inventory`](faults::inventory)).

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "http/client.rs"]
mod client;
#[cfg(test)]
mod support;

#[cfg(test)]
mod faults {
    mod call;
    mod clock;
    mod descriptors;
    mod ends;
    mod environment;
    mod errors;
    mod inventory;
    mod log;
    mod memory;
    mod network;
    mod ports;
    mod sending;
    mod stopped;
}
