//! Measures variants alternately, round by round.

use std::collections::BTreeMap;

use crate::interrupt;
use crate::load::Outcome;
use crate::network::Network;
use crate::output::{print, print_progress};
use crate::round::{self, Baseline, Measured, Times};
use crate::scenario::{Figure, Pace, Scenario};
use crate::server::{Kind, Servers};

/// The CPU use of other programs, in cores, above which a measurement is unreliable. It includes kernel threads.
const DISTURBANCE: f64 = 0.3;

/// What all scenarios have in common.
pub(crate) struct Comparison<'c> {
    pub(crate) servers: &'c Servers,
    pub(crate) network: &'c Network,
    pub(crate) times: Times,
    pub(crate) rounds: u64,
    /// The variants, in the order of a round.
    pub(crate) kinds: &'c [Kind],
    /// The figures to show while the benchmark runs.
    pub(crate) figures: fn(&Scenario) -> Vec<Figure>,
}

/// The rounds of each variant. A variant whose measurement failed has none.
pub(crate) type Rounds = BTreeMap<Kind, Vec<Measured>>;

/// Returns the values of a figure in all rounds.
pub(crate) fn values(rounds: &Rounds, kind: Kind, figure: Figure) -> Vec<f64> {
    rounds.get(&kind).into_iter().flatten().filter_map(|one| one.figures.get(&figure).copied()).collect()
}

impl Comparison<'_> {
    /// Measures all variants in every round. If a measurement of a variant fails, the remaining rounds of the scenario
    /// skip this variant. The other variants and the other scenarios are still measured.
    pub(crate) fn measure(&self, scenario: &'static Scenario, remarks: &mut Remarks) -> Outcome<Rounds> {
        let mut rounds: Rounds = self.kinds.iter().map(|kind| (*kind, Vec::new())).collect();
        for number in 1..=self.rounds {
            let name = format!("{} {number}/{}", scenario.name, self.rounds);
            let mut baseline = if self.times.machine { Some(Baseline::measure(scenario, self.times)?) } else { None };
            if let Some(Baseline { idle, .. }) = baseline {
                print_progress(&format!("{name} idle: machine CPU, cores {idle:.3}"));
            }
            let paced = scenario.work.loads().iter().all(|load| matches!(load.pace, Pace::Rate(_)));
            for kind in self.kinds.iter().filter(|kind| paced || **kind != Kind::Generator) {
                let Some(all) = rounds.get_mut(kind) else { continue };
                let name = format!("{name} {kind:?}");
                match round::measure(*kind, scenario, self.servers, self.network, self.times, baseline) {
                    Ok(measured) => {
                        print_progress(&format!("{name}: {}", self.progress(scenario, &measured)));
                        remarks.add(&name, &measured);
                        if let (Kind::Generator, Some(baseline)) = (kind, &mut baseline) {
                            baseline.generator = measured.figures.get(&Figure::MachinePerPacket).copied();
                        }
                        all.push(measured);
                    }
                    Err(error) if interrupt::interrupted() => return Err(error),
                    Err(error) => {
                        print_progress(&format!("{name}: {error}"));
                        remarks.lines.push(format!("{name}: {error}"));
                        remarks.failed = true;
                        rounds.remove(kind);
                    }
                }
            }
        }
        Ok(rounds)
    }

    fn progress(&self, scenario: &Scenario, measured: &Measured) -> String {
        let figures = (self.figures)(scenario).into_iter().filter_map(|figure| {
            let value = measured.figures.get(&figure)?;
            Some(format!("{} {value:.*}", figure.label(), figure.decimals()))
        });
        let figures: Vec<String> = figures.collect();
        let Measured { generator, others, .. } = measured;
        format!("{} (cores: generator {generator:.2}, others {others:.2})", figures.join("; "))
    }
}

/// The lines after the table.
#[derive(Default)]
pub(crate) struct Remarks {
    lines: Vec<String>,
    measurements: usize,
    /// Whether a measurement failed.
    pub(crate) failed: bool,
    /// The number of measurements that other programs disturbed, and their highest CPU use, in cores.
    disturbed: usize,
    others: f64,
}

impl Remarks {
    fn add(&mut self, name: &str, measured: &Measured) {
        self.lines.extend(measured.remarks.iter().map(|remark| format!("{name}: {remark}")));
        self.measurements += 1;
        self.disturbed += usize::from(measured.others > DISTURBANCE);
        self.others = self.others.max(measured.others);
    }

    pub(crate) fn print(&self) {
        self.lines.iter().for_each(|line| print(line));
        let Self { measurements, disturbed, others, .. } = self;
        if *disturbed > 0 {
            print(&format!(
                "{disturbed} of {measurements} measurements are unreliable: other programs used up to {others:.1} cores"
            ));
        }
    }
}
