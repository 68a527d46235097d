//! Compares the server with coturn (Debian package `coturn`): both get the same random sequences of messages, over real
//! sockets between network namespaces, and every difference in what clients and peers receive has to be explained in
//! `differential/explained.rs`. Needs root and `ip`.
//!
//! `DIFFERENTIAL_SEQUENCES` sets the number of sequences, and `DIFFERENTIAL_SEED` the first seed.

// `cfg(test)` makes clippy treat the helpers in a test binary as test code.
#[cfg(test)]
#[path = "differential/encode.rs"]
mod encode;
#[cfg(test)]
#[path = "differential/explained.rs"]
mod explained;
#[cfg(test)]
#[path = "differential/generate.rs"]
mod generate;
#[cfg(test)]
#[path = "differential/laboratory.rs"]
mod laboratory;
#[cfg(test)]
#[path = "differential/observe.rs"]
mod observe;
#[cfg(test)]
#[path = "differential/operations.rs"]
mod operations;
#[cfg(test)]
#[path = "differential/party.rs"]
mod party;
#[cfg(test)]
#[path = "differential/shrink.rs"]
mod shrink;
#[cfg(test)]
mod support;

#[cfg(test)]
mod differential {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use turnserver::clock::Clock;

    use crate::explained::{EXPLANATIONS, Explanation};
    use crate::generate::sequence;
    use crate::laboratory::{Laboratory, Run};
    use crate::operations::Sequence;
    use crate::shrink::shrink;
    use crate::support::network::in_own_network;

    const SEQUENCES: u64 = 2_000;
    /// Sequences that run at the same time.
    const LANES: usize = 4;

    /// What all sequences together have shown.
    #[derive(Default)]
    struct Findings {
        operations: usize,
        /// Sequences with a difference.
        different: usize,
        explained: BTreeMap<&'static str, usize>,
        /// For each kind of unexplained difference: how often, and the first sequence.
        unexplained: BTreeMap<String, (usize, Sequence)>,
    }

    impl Findings {
        fn add(&mut self, sequence: Sequence, run: Run) {
            self.operations += run.operations;
            self.different += usize::from(!run.explained.is_empty() || run.unexplained.is_some());
            for explanation in run.explained {
                *self.explained.entry(explanation.name).or_default() += 1;
            }
            if let Some(kind) = run.unexplained {
                self.unexplained.entry(kind).or_insert((0, sequence)).0 += 1;
            }
        }

        fn summary(&self, sequences: u64) -> String {
            let Self { operations, different, explained, .. } = self;
            let mut text = format!("{sequences} sequences, {operations} operations, {different} sequences differed\n");
            for Explanation { name, rule, right, .. } in EXPLANATIONS {
                let count = explained.get(name).copied().unwrap_or_default();
                writeln!(text, "{count:6} {name} ({rule}; right: {right:?})").unwrap();
            }
            text
        }
    }

    fn from_environment(name: &str) -> Option<u64> {
        std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
    }

    #[test]
    fn every_difference_from_coturn_is_explained() {
        in_own_network(&[], || {
            let laboratory = Laboratory::new();
            let count = from_environment("DIFFERENTIAL_SEQUENCES").unwrap_or(SEQUENCES);
            let seed = from_environment("DIFFERENTIAL_SEED").unwrap_or(1);
            let clock = Clock::start();
            let (next, findings) = (AtomicU64::new(0), Mutex::new(Findings::default()));
            thread::scope(|scope| {
                for _ in 0..LANES {
                    scope.spawn(|| {
                        let lane = laboratory.lane();
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= count {
                                break;
                            }
                            let sequence = sequence(seed + number);
                            let run = lane.run_until_certain(&sequence);
                            findings.lock().unwrap().add(sequence, run);
                        }
                    });
                }
            });
            let findings = findings.into_inner().unwrap();
            println!("{} in {:?}", findings.summary(count), clock.elapsed());
            if findings.unexplained.is_empty() {
                return;
            }
            let examples = from_environment("DIFFERENTIAL_EXAMPLES").unwrap_or(3);
            let mut kinds: Vec<_> = findings.unexplained.iter().collect();
            kinds.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
            for (kind, (count, _)) in &kinds {
                println!("{count:6} unexplained: {kind}");
            }
            let lane = laboratory.lane();
            for (kind, (_, sequence)) in kinds.iter().take(usize::try_from(examples).unwrap()) {
                let (shrunk, run) = shrink(&lane, sequence, kind);
                println!("\n=== {kind}\n{shrunk}{}", run.transcript);
            }
            panic!("{} kinds of differences are not explained", kinds.len());
        });
    }
}
