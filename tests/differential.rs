//! Compares the server with coturn (Debian package `coturn`): both get the same random sequences of messages, over real
//! sockets between network namespaces, and every difference in what clients and peers receive has to be explained in
//! `differential/explained`. Needs root and `ip`.
//!
//! Our server is also compared with itself, without everything that it has to ignore.
//!
//! `DIFFERENTIAL_SEQUENCES` sets the number of sequences, and `DIFFERENTIAL_SEED` the first seed. `DIFFERENTIAL_EXAMPLES`
//! sets how many kinds of unexplained differences are shown with a short sequence; `DIFFERENTIAL_KINDS=1` prints which
//! kinds of differences each explanation was used for.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "differential/client.rs"]
mod client;
#[cfg(test)]
#[path = "differential/encode.rs"]
mod encode;
#[cfg(test)]
#[path = "differential/explained/mod.rs"]
mod explained;
#[cfg(test)]
#[path = "differential/findings.rs"]
mod findings;
#[cfg(test)]
#[path = "differential/generate.rs"]
mod generate;
#[cfg(test)]
#[path = "differential/observe.rs"]
mod observe;
#[cfg(test)]
#[path = "differential/operations.rs"]
mod operations;
#[cfg(test)]
#[path = "support/rng.rs"]
mod rng;
#[cfg(test)]
#[path = "differential/run.rs"]
mod run;
#[cfg(test)]
#[path = "differential/servers.rs"]
mod servers;
#[cfg(test)]
#[path = "differential/shrink.rs"]
mod shrink;
#[cfg(test)]
#[path = "differential/side.rs"]
mod side;
#[cfg(test)]
mod support;

#[cfg(test)]
mod differential {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use turnserver::clock::Clock;

    use crate::findings::Findings;
    use crate::generate::sequence;
    use crate::servers::Servers;
    use crate::shrink::shrink;
    use crate::support::network::in_own_network;

    const SEQUENCES: u64 = 2_000;
    /// Sequences that run at the same time.
    const THREADS: usize = 4;

    fn from_environment(name: &str) -> Option<u64> {
        std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
    }

    #[test]
    fn every_difference_from_coturn_is_explained() {
        in_own_network(&[], || {
            let servers = Servers::new();
            let count = from_environment("DIFFERENTIAL_SEQUENCES").unwrap_or(SEQUENCES);
            let seed = from_environment("DIFFERENTIAL_SEED").unwrap_or(1);
            let clock = Clock::start();
            let (next, findings) = (AtomicU64::new(0), Mutex::new(Findings::default()));
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        let runner = servers.runner();
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= count {
                                break;
                            }
                            let sequence = sequence(seed + number);
                            let (run, vanished) = runner.run_until_certain(&sequence);
                            findings.lock().unwrap().add(sequence, run, vanished);
                        }
                    });
                }
            });
            let findings = findings.into_inner().unwrap();
            println!("{}in {:?}", findings.summary(), clock.elapsed());
            if from_environment("DIFFERENTIAL_KINDS").is_some() {
                println!("{}", findings.kinds());
            }
            let examples = from_environment("DIFFERENTIAL_EXAMPLES").unwrap_or(3);
            let runner = servers.runner();
            for (kind, sequence) in findings.unexplained().take(usize::try_from(examples).unwrap()) {
                let (shrunk, run) = shrink(&runner, sequence, kind);
                println!("\n=== {kind}\n{shrunk}{}", run.transcript);
            }
            let failures = findings.failures(count >= SEQUENCES);
            assert!(failures.is_empty(), "{}", failures.join("\n"));
        });
    }
}
