//! The core by example: an input, its exact outputs, and nothing besides.

mod algorithms;
mod allocate;
mod alternate;
mod authentication;
mod binding;
mod channel;
mod dual;
mod icmp;
mod known;
mod limits;
mod peer;
mod permission;
mod quota;
mod reconfigure;
mod refresh;
mod reservation;
mod robustness;
mod routes;
mod send;
mod support;
mod table;
mod translation;
