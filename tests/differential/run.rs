//! Runs a sequence with both servers.
//!
//! If the sequence has something that a server has to ignore, our server gets it twice: from other clients without what
//! is to be ignored. It must not make a difference.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::UdpSocket;

use turnserver::stun::{Class, Method};

use crate::client;
use crate::explained::{Case, EXPLANATIONS, Effect, Explanation, Step, diverges_silently, is_served};
use crate::observe::{Difference, END, NOTHING, Seen, compare};
use crate::operations::{Attribute, Credentials, Message, Operation, Peer, Sequence, Target, hex};
use crate::side::{Listening, Side};

/// Runs sequences on one thread, with sockets of its own.
pub(crate) struct Runner {
    pub(crate) listening: [Listening; 2],
    /// Those of the peers of our server, of coturn, and of our server again.
    pub(crate) peers: [Vec<UdpSocket>; 3],
}

/// What a sequence has shown.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) operations: usize,
    /// The operations in which our server got something that it has to ignore, and was compared with itself.
    pub(crate) ignored: usize,
    /// The explained differences, with their kinds.
    pub(crate) explained: Vec<(&'static Explanation, String)>,
    /// A difference that is not explained. It ends the sequence.
    pub(crate) unexplained: Option<Unexplained>,
    /// How often both servers have sent each kind of message.
    pub(crate) agreed: BTreeMap<String, usize>,
    pub(crate) transcript: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Unexplained {
    pub(crate) kind: String,
    /// Whether the difference is that coturn has not sent something.
    pub(crate) coturn_is_late: bool,
}

/// How many times as long as at first the servers get after a difference that is not explained.
const PATIENCE: usize = 10;

impl Runner {
    /// Runs a sequence. If a difference is not explained, runs it again with more time, so that timing does not explain
    /// it. Returns the run, and the first run if the second one does not show its difference.
    pub(crate) fn run_until_certain(&self, sequence: &Sequence) -> (Run, Option<Run>) {
        let first = self.run(sequence, 1);
        if first.unexplained.is_none() {
            return (first, None);
        }
        let mut second = self.run_patiently(sequence);
        if second.unexplained.is_some() {
            // On a machine with much else to do, even that may be too short.
            second = self.run(sequence, 10 * PATIENCE);
        }
        let coturn_is_late = first.unexplained.as_ref().is_some_and(|unexplained| unexplained.coturn_is_late);
        // A difference that coturn does not cause gets more chances to show again.
        for _ in 0..if coturn_is_late { 0 } else { 3 } {
            if second.unexplained.is_none() {
                second = self.run(sequence, 1);
            }
        }
        let is_certain = second.unexplained.is_some();
        (second, Some(first).filter(|_| !is_certain))
    }

    pub(crate) fn run_patiently(&self, sequence: &Sequence) -> Run {
        self.run(sequence, PATIENCE)
    }

    /// Runs a sequence until the two servers are in different states.
    fn run(&self, sequence: &Sequence, patience: usize) -> Run {
        let side = |server: usize, peers: usize| {
            Side::new(self.listening[server], &self.peers[peers], &sequence.clients, patience)
        };
        let (mut ours, mut coturn) = (side(0, 0), Some(side(1, 1)));
        let mut reference = sequence.operations.iter().any(has_ignored).then(|| side(0, 2));
        let (mut run, mut before) = (Run::default(), Vec::new());
        for (at, operation) in sequence.operations.iter().enumerate() {
            if ours.is_closed(operation.client()) {
                continue;
            }
            let allocated = [ours.allocated(), coturn.as_ref().map(Side::allocated).unwrap_or_default()];
            let mut seen = ours.step(at, operation);
            if let Some(reference) = &mut reference {
                run.compare_with_itself(at, operation, &mut seen, [&mut ours, reference]);
            }
            if let Some(other) = &mut coturn {
                let mut theirs = other.step(at, operation);
                // Ours drops a request of a method that it does not have. Nothing shows when coturn's response will come.
                let earlier = &sequence.operations[..at];
                theirs.retain(|seen| !earlier.iter().any(|earlier| is_late_rejection(seen, earlier)));
                other.catch_up(&mut theirs, &seen, operation);
                ours.catch_up(&mut seen, &theirs, operation);
                let is_repeated = matches!(operation, Operation::Again { .. });
                let original = original(&sequence.operations[..at], operation);
                let tokens = [ours.token_sent(), other.token_sent()];
                let step = Step { operation: original, is_repeated, allocated, tokens, seen: [seen, theirs] };
                let ends = run.compare(at, operation, step, &mut before, sequence);
                if ends {
                    coturn.take().into_iter().for_each(Side::finish);
                }
            }
            if run.unexplained.is_some() || (coturn.is_none() && reference.is_none()) {
                break;
            }
        }
        if let Some(mut reference) = reference {
            for (at, operation) in (0..sequence.clients.len()).flat_map(probes).enumerate() {
                if run.unexplained.is_some() || ours.is_closed(operation.client()) {
                    continue;
                }
                let at = sequence.operations.len() + at;
                let mut seen = ours.step(at, &operation);
                run.compare_with_itself(at, &operation, &mut seen, [&mut ours, &mut reference]);
            }
            reference.finish();
        }
        ours.finish();
        coturn.into_iter().for_each(Side::finish);
        run
    }
}

impl Run {
    /// Compares what both servers have sent. Returns whether they are in different states.
    fn compare<'s>(
        &mut self,
        at: usize,
        operation: &Operation,
        step: Step<'s>,
        before: &mut Vec<Step<'s>>,
        sequence: &'s Sequence,
    ) -> bool {
        self.operations += 1;
        let [ours, coturn] = &step.seen;
        let differences = compare(ours, coturn);
        write_step(&mut self.transcript, at, operation, &[("ours  ", ours), ("coturn", coturn)], &differences);
        self.count(ours, coturn);
        let mut ends = diverges_silently(step.operation);
        for difference in &differences {
            let case = Case { before, step: &step, difference, clients: &sequence.clients };
            match EXPLANATIONS.iter().copied().flatten().find(|explanation| (explanation.matches)(&case)) {
                Some(explanation) => {
                    ends |= explanation.effect == Effect::Ends;
                    self.explained.push((explanation, case.kind()));
                }
                None => {
                    let of_earlier =
                        coturn.iter().any(|seen| seen.at == difference.at && !may_follow(seen, step.operation));
                    let coturn_is_late = of_earlier || (difference.field.is_empty() && difference.coturn == NOTHING);
                    self.unexplained.get_or_insert(Unexplained { kind: case.kind(), coturn_is_late });
                }
            }
        }
        before.push(step);
        ends
    }

    /// Lets other clients of our server do the same without what a server has to ignore, and compares.
    fn compare_with_itself(
        &mut self,
        at: usize,
        operation: &Operation,
        seen: &mut Vec<Seen>,
        [ours, reference]: [&mut Side<'_>; 2],
    ) {
        self.ignored += usize::from(has_ignored(operation));
        let without = without_ignored(operation);
        let mut expected = reference.step(at, &without);
        reference.catch_up(&mut expected, seen, operation);
        ours.catch_up(seen, &expected, operation);
        let differences = compare(seen, &expected);
        if let Some(difference) = differences.first() {
            write_step(&mut self.transcript, at, operation, &[("ours  ", seen)], &[]);
            let expected = [("ours  ", &*expected)];
            write_step(&mut self.transcript, at, &without, &expected, &differences);
            let place = difference.at.split(' ').next().unwrap_or_default();
            let Difference { field, ours, coturn: without, kind, .. } = difference;
            let kind =
                format!("what is to be ignored matters: {place}: {kind} {field}: {ours} / without it: {without}");
            self.unexplained.get_or_insert(Unexplained { kind, coturn_is_late: false });
        }
    }

    fn count(&mut self, ours: &[Seen], coturn: &[Seen]) {
        let names = |seen: &[Seen]| {
            let mut names = BTreeMap::<String, usize>::new();
            for name in seen.iter().flat_map(Seen::names) {
                *names.entry(name).or_default() += 1;
            }
            names
        };
        let coturn = names(coturn);
        for (name, count) in names(ours) {
            let both = count.min(coturn.get(&name).copied().unwrap_or_default());
            *self.agreed.entry(name).or_default() += both;
        }
    }
}

/// Whether this is the late response to a request of a method that our server does not have.
fn is_late_rejection(seen: &Seen, earlier: &Operation) -> bool {
    let Some(message) = earlier.message().filter(|message| message.class == Class::Request) else { return false };
    let is_response = seen.at == client::name(earlier.client())
        && seen.kind.starts_with(&format!("{} ", message.method))
        && seen.has("transaction", "");
    is_response && !is_served(message)
}

/// Whether a server may send this because of the operation, and not only because of an earlier one.
fn may_follow(seen: &Seen, operation: &Operation) -> bool {
    let payload = match operation {
        Operation::ChannelData { payload, .. } | Operation::FromPeer { payload, .. } => Some(payload),
        Operation::Message { message, .. } => message.attributes.iter().find_map(Attribute::data),
        Operation::Again { .. } | Operation::Bytes { .. } => None,
    };
    let carries = |payload: &Vec<u8>| ["payload", "DATA"].iter().any(|name| seen.has(name, &hex(payload)));
    let is_response = |message: &Message| seen.kind.starts_with(&format!("{} ", message.method));
    payload.is_some_and(carries) || operation.message().is_some_and(is_response) || seen.kind == END
}

/// Returns the operation, or the message that a client repeats.
fn original<'s>(before: &'s [Operation], operation: &'s Operation) -> &'s Operation {
    let is_original =
        |earlier: &&Operation| matches!(earlier, Operation::Message { client, .. } if *client == operation.client());
    match operation {
        Operation::Again { .. } => before.iter().rev().find(is_original).unwrap_or(operation),
        _ => operation,
    }
}

fn has_ignored(operation: &Operation) -> bool {
    operation.message().is_some_and(|message| message.without_ignored() != *message)
}

fn without_ignored(operation: &Operation) -> Operation {
    match operation {
        Operation::Message { client, message } => {
            Operation::Message { client: *client, message: message.without_ignored() }
        }
        other => other.clone(),
    }
}

/// Returns operations that show what state our server has for a client.
fn probes(client: usize) -> Vec<Operation> {
    let send = |peer| {
        let attributes = vec![Attribute::Peer(Target::Peer(peer)), Attribute::Data(vec![0x80, 1])];
        let mut message = Message::request(Method::SEND, attributes);
        (message.class, message.credentials) = (Class::Indication, Credentials::None);
        Operation::Message { client, message }
    };
    let refresh = Message::request(Method::REFRESH, Vec::new());
    let channel = |number| Operation::ChannelData { client, number, payload: vec![0x80; 4], excess: 0, padding: 0 };
    let from = |peer| Operation::FromPeer { peer, client, payload: vec![0x80, 2] };
    let numbers = [0x4000, 0x4001, 0x4002, 0x4003, 0x4fff];
    let peers = [Peer::A, Peer::B, Peer::V6];
    let messages = std::iter::once(Operation::Message { client, message: refresh });
    messages.chain(peers.map(send)).chain(peers.map(from)).chain(numbers.map(channel)).collect()
}

fn write_step(
    transcript: &mut String,
    at: usize,
    operation: &Operation,
    seen: &[(&str, &[Seen])],
    differences: &[Difference],
) {
    writeln!(transcript, "{at:3}. {operation}").unwrap();
    for (server, seen) in seen {
        seen.iter().for_each(|seen| writeln!(transcript, "       {server} -> {seen}").unwrap());
    }
    differences.iter().for_each(|difference| writeln!(transcript, "       difference: {difference}").unwrap());
}
