//! The program `src/offload/relay.bpf.c`, run by the kernel on single frames (`BPF_PROG_TEST_RUN`) and between network
//! namespaces. Needs `CAP_BPF` and `CAP_NET_ADMIN`.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
mod attach;
#[cfg(test)]
mod command;
#[cfg(test)]
mod example;
#[cfg(test)]
mod frame;
#[cfg(test)]
mod kernel;
#[cfg(test)]
use turnserver::offload::layout;
#[cfg(test)]
mod leases;
#[cfg(test)]
mod maps;
#[cfg(test)]
mod network;
#[cfg(test)]
mod passed;
#[cfg(test)]
mod random;
#[cfg(test)]
mod relayed;
#[cfg(test)]
mod replaced;
#[cfg(test)]
mod shadow;
#[cfg(test)]
mod speed;
