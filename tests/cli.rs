//! `turnserver` as a process: exit codes, what it says where, and what it does between start and stop.

// `cfg(test)` tells clippy that helpers in a test binary are test code too.
#[cfg(test)]
mod support;

#[cfg(test)]
mod cli {
    mod addresses;
    mod alternate;
    mod check_config;
    mod drain;
    mod failures;
    mod logs;
    mod network;
    mod running;
    mod service;
    mod start;
    mod stop;
}
