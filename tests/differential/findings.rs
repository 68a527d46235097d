//! What all sequences together have shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::explained::{EXPLANATIONS, Effect, Explanation};
use crate::observe::{RESERVED_PORT, TWO_ADDRESSES};
use crate::operations::Sequence;
use crate::run::Run;

/// How often both servers have to send the same in 2000 sequences, at least.
const MINIMA: [(&str, usize); 17] = [
    ("Binding success to a client", 150),
    ("Allocate success to a client", 2_000),
    (RESERVED_PORT, 25),
    (TWO_ADDRESSES, 100),
    ("Refresh success to a client", 200),
    ("CreatePermission success to a client", 600),
    ("ChannelBind success to a client", 600),
    ("datagram to a peer", 400),
    ("Data indication to a client", 200),
    ("ChannelData to a client", 150),
    ("Allocate 437 to a client", 300),
    ("Allocate 401 to a client", 25),
    ("Allocate 440 to a client", 5),
    ("ChannelBind 400 to a client", 80),
    ("CreatePermission 403 to a client", 25),
    ("CreatePermission 443 to a client", 80),
    ("CreatePermission 438 to a client", 5),
];

/// How often our server has to get something that it has to ignore in 2000 sequences, at least.
const IGNORED: usize = 1_000;

/// On a busy machine, the kernel delivers a datagram of a peer later than the client's next request: at most in one of so
/// many sequences.
const LATE_ONE_IN: usize = 500;

#[derive(Default)]
pub(crate) struct Findings {
    sequences: usize,
    operations: usize,
    ignored: usize,
    /// Sequences with a difference that is no formality.
    different: usize,
    agreed: BTreeMap<String, usize>,
    /// For each explanation: the kinds of differences, and how often.
    explained: BTreeMap<&'static str, BTreeMap<String, usize>>,
    /// For each kind of unexplained difference: how often, and the first sequence.
    unexplained: BTreeMap<String, (usize, Sequence)>,
    /// The runs with an unexplained difference that the same sequence does not show with more time.
    vanished: Vec<(Sequence, Run)>,
}

impl Findings {
    pub(crate) fn add(&mut self, sequence: Sequence, run: Run, vanished: Option<Run>) {
        self.sequences += 1;
        self.operations += run.operations;
        self.ignored += run.ignored;
        let differs = |(explanation, _): &(&Explanation, _)| explanation.effect != Effect::Formality;
        self.different += usize::from(run.explained.iter().any(differs) || run.unexplained.is_some());
        for (name, count) in run.agreed {
            *self.agreed.entry(name).or_default() += count;
        }
        for (explanation, kind) in run.explained {
            *self.explained.entry(explanation.name).or_default().entry(kind).or_default() += 1;
        }
        self.vanished.extend(vanished.map(|run| (sequence.clone(), run)));
        if let Some(unexplained) = run.unexplained {
            self.unexplained.entry(unexplained.kind).or_insert((0, sequence)).0 += 1;
        }
    }

    /// Returns the kinds of unexplained differences, the most frequent first.
    pub(crate) fn unexplained(&self) -> impl Iterator<Item = (&str, &Sequence)> {
        let mut kinds: Vec<_> = self.unexplained.iter().collect();
        kinds.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        kinds.into_iter().map(|(kind, (_, sequence))| (kind.as_str(), sequence))
    }

    pub(crate) fn summary(&self) -> String {
        let Self { sequences, operations, ignored, different, .. } = self;
        let mut text = format!(
            "{sequences} sequences, {operations} operations, {different} sequences differed\n\
             {ignored} operations with something to ignore, compared with the same without it\n"
        );
        for (name, count) in &self.agreed {
            writeln!(text, "{count:6} from both: {name}").unwrap();
        }
        for Explanation { name, rule, right, .. } in EXPLANATIONS.into_iter().flatten() {
            writeln!(text, "{:6} {name} ({rule}; right: {right:?})", self.uses(name)).unwrap();
        }
        for (kind, (count, _)) in &self.unexplained {
            writeln!(text, "{count:6} unexplained: {kind}").unwrap();
        }
        writeln!(text, "{:6} unexplained differences that more time explains", self.vanished.len()).unwrap();
        for (sequence, run) in &self.vanished {
            let kind = run.unexplained.as_ref().map_or("", |unexplained| &unexplained.kind);
            writeln!(text, "\n=== not again: {kind}\n{sequence}{}", run.transcript).unwrap();
        }
        text
    }

    /// Returns the kinds of differences of each explanation.
    pub(crate) fn kinds(&self) -> String {
        let mut text = String::new();
        for (name, kinds) in &self.explained {
            writeln!(text, "{name}").unwrap();
            kinds.iter().for_each(|(kind, count)| writeln!(text, "{count:6}     {kind}").unwrap());
        }
        text
    }

    /// Returns what is wrong. `many` tells that there were so many sequences that everything has to have occurred.
    pub(crate) fn failures(&self, many: bool) -> Vec<String> {
        let mut failures = Vec::new();
        if !self.unexplained.is_empty() {
            failures.push(format!("{} kinds of differences are not explained", self.unexplained.len()));
        }
        let ours =
            |(_, run): &&(_, Run)| run.unexplained.as_ref().is_some_and(|unexplained| !unexplained.coturn_is_late);
        let ours = self.vanished.iter().filter(ours).count();
        if ours > self.sequences.div_ceil(LATE_ONE_IN) {
            failures.push(format!("{ours} differences do not occur again, and it was not coturn that was late"));
        }
        if many {
            for (name, minimum) in MINIMA {
                let count = self.agreed.get(name).copied().unwrap_or_default();
                if count < minimum {
                    failures.push(format!("{count} of at least {minimum} from both: {name}"));
                }
            }
            if self.ignored < IGNORED {
                failures.push(format!("{} of at least {IGNORED} operations with something to ignore", self.ignored));
            }
            let unused = EXPLANATIONS.into_iter().flatten().filter(|explanation| self.uses(explanation.name) == 0);
            failures.extend(unused.map(|explanation| format!("an explanation was not used: {}", explanation.name)));
        }
        failures
    }

    fn uses(&self, name: &str) -> usize {
        self.explained.get(name).map_or(0, |kinds| kinds.values().sum())
    }
}
