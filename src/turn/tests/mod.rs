//! Tests of the core: each gives an input, checks its exact outputs, and checks that there are no others.

mod algorithms;
mod allocate;
mod alternate;
mod authentication;
mod binding;
mod channel;
mod circles;
mod drops;
mod dual;
mod icmp;
mod identity_cache;
mod limits;
mod peer;
mod permission;
mod quota;
mod reconfigure;
mod refresh;
mod relay_addresses;
mod reservation;
mod response_limit;
mod robustness;
mod routes;
mod send;
mod support;
mod table;
mod translation;
