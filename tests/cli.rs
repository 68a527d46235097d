//! Tests of `turnserver` as a process: exit codes, output and signals.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
mod support;

#[cfg(test)]
mod cli {
    mod addresses;
    mod alternate;
    mod check_config;
    mod drain;
    mod failures;
    mod generate;
    mod logs;
    mod network;
    mod running;
    mod service;
    mod start;
    mod stop;
}
