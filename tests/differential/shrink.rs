//! Makes a sequence shorter that shows a difference.

use crate::operations::{Credentials, Fingerprint, Operation, Sequence, Transport};
use crate::run::{Run, Runner};

/// The number of runs after which a sequence is short enough.
const RUNS: usize = 60;

/// Removes operations, attributes and oddities, as long as the same kind of difference remains.
pub(crate) fn shrink(runner: &Runner, sequence: &Sequence, kind: &str) -> (Sequence, Run) {
    let mut best = sequence.clone();
    let mut run = runner.run_patiently(&best);
    let mut left = RUNS;
    loop {
        let shorter = candidates(&best).into_iter().find_map(|candidate| {
            left = left.checked_sub(1)?;
            let run = runner.run_patiently(&candidate);
            (run.unexplained.as_ref().is_some_and(|unexplained| unexplained.kind == kind)).then_some((candidate, run))
        });
        match shorter {
            Some(shorter) => (best, run) = shorter,
            None => return (best, run),
        }
    }
}

/// Returns simpler sequences, the simplest first.
fn candidates(sequence: &Sequence) -> Vec<Sequence> {
    let operations = &sequence.operations;
    let mut candidates = Vec::new();
    let mut size = operations.len() / 2;
    while size > 0 {
        for start in (0..operations.len()).step_by(size) {
            let mut shorter = sequence.clone();
            shorter.operations.drain(start..operations.len().min(start + size));
            candidates.push(shorter);
        }
        size /= 2;
    }
    for (client, transport) in sequence.clients.iter().enumerate() {
        if *transport != Transport::Udp {
            let mut simpler = sequence.clone();
            simpler.clients[client] = Transport::Udp;
            candidates.push(simpler);
        }
    }
    for (at, operation) in operations.iter().enumerate() {
        let Operation::Message { client, message } = operation else { continue };
        let mut simpler = Vec::new();
        for attribute in 0..message.attributes.len() {
            let mut without = message.clone();
            without.attributes.remove(attribute);
            simpler.push(without);
        }
        if !message.after.is_empty() {
            simpler.push(crate::operations::Message { after: Vec::new(), ..message.clone() });
        }
        if message.fingerprint != Fingerprint::None {
            simpler.push(crate::operations::Message { fingerprint: Fingerprint::None, ..message.clone() });
        }
        if message.damage.is_some() {
            simpler.push(crate::operations::Message { damage: None, ..message.clone() });
        }
        if !matches!(message.credentials, Credentials::Right | Credentials::None) {
            simpler.push(crate::operations::Message { credentials: Credentials::Right, ..message.clone() });
        }
        candidates.extend(simpler.into_iter().map(|message| {
            let mut sequence = sequence.clone();
            sequence.operations[at] = Operation::Message { client: *client, message };
            sequence
        }));
    }
    candidates
}
