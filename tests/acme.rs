//! The server orders its certificate from a real ACME server, Debian's `pebble`. Each test has a network namespace of its
//! own, in which the names lead to the server and the ports are the usual ones. It needs root and `ip`.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "acme/back_off.rs"]
mod back_off;
#[cfg(test)]
#[path = "acme/doctor.rs"]
mod doctor;
#[cfg(test)]
#[path = "acme/failures.rs"]
mod failures;
#[cfg(test)]
#[path = "acme/issue.rs"]
mod issue;
#[cfg(test)]
#[path = "acme/pebble.rs"]
mod pebble;
#[cfg(test)]
#[path = "acme/proxy.rs"]
mod proxy;
#[cfg(test)]
mod support;
