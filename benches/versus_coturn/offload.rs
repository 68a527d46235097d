//! The comparison of the offload with the kernel's forwarding and with the relays in user space: figures and goals.

use crate::comparison::{Rounds, values};
use crate::scenario::{Figure, Scenario};
use crate::server::Kind;
use crate::summary::{Summary, ratio};
use crate::table::{Line, number};

/// The variants of a round. The generator comes first, because its CPU time is subtracted from that of the others.
pub(crate) const KINDS: [Kind; 5] = [Kind::Generator, Kind::Forwarding, Kind::Offloaded, Kind::Coturn, Kind::Ours];

/// The headings of the table.
pub(crate) const HEADINGS: [&str; 9] =
    ["scenario", "figure", "variant", "value", "to forwarding", "to coturn", "to ours", "goal", "reached"];

/// The columns with numbers.
pub(crate) const NUMBERS: std::ops::Range<usize> = 3..7;

/// A figure, and its goals for the offload.
pub(crate) struct Row {
    pub(crate) figure: Figure,
    goals: &'static [Goal],
}

/// A goal for a figure of the offload.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Goal {
    /// At most this value.
    AtMost(f64),
    /// At most this multiple of the figure of another variant.
    RatioAtMost(f64, Kind),
    /// At least this multiple of the figure of another variant.
    RatioAtLeast(f64, Kind),
    /// At most this much more than the figure of another variant.
    MoreByAtMost(f64, Kind),
}

const fn row(figure: Figure, goals: &'static [Goal]) -> Row {
    Row { figure, goals }
}

const COST: &[Goal] = &[Goal::RatioAtMost(1.15, Kind::Forwarding), Goal::RatioAtMost(0.6, Kind::Coturn)];
const MACHINE: Row = row(Figure::MachinePerPacket, COST);
const PATH: Row = row(Figure::PathPerPacket, COST);
const SERVER: Row = row(Figure::CpuPerPacket, &[Goal::RatioAtMost(0.02, Kind::Coturn)]);
const MEDIAN: Row =
    row(Figure::P50, &[Goal::RatioAtMost(1.0, Kind::Coturn), Goal::MoreByAtMost(10.0, Kind::Forwarding)]);
const P99: Row = row(Figure::P99, &[Goal::RatioAtMost(1.0, Kind::Coturn)]);
const LOSS: Row = row(Figure::Loss, &[Goal::AtMost(0.0)]);

const fn shown(figure: Figure) -> Row {
    row(figure, &[])
}

const PACED: &[Row] = &[MACHINE, PATH, SERVER, MEDIAN, P99, LOSS, shown(Figure::Delivered)];

const MANY: &[Row] = &[MACHINE, PATH, SERVER, shown(Figure::P50), shown(Figure::P99), LOSS, shown(Figure::Delivered)];

const QUIET: &[Row] =
    &[shown(Figure::MachinePerPacket), shown(Figure::PathPerPacket), shown(Figure::CpuPerPacket), MEDIAN, P99, LOSS];

const SATURATED: &[Row] = &[
    row(Figure::Delivered, &[Goal::RatioAtLeast(1.5, Kind::Ours)]),
    shown(Figure::MachinePerPacket),
    shown(Figure::CpuPerPacket),
    shown(Figure::P50),
    shown(Figure::P99),
    LOSS,
];

const BULK: &[Row] = &[
    shown(Figure::Delivered),
    shown(Figure::MachinePerPacket),
    shown(Figure::CpuPerPacket),
    shown(Figure::P50),
    shown(Figure::P99),
    LOSS,
];

/// Returns the rows of a scenario. `None` if it is not compared: the kernel relays only single packets over UDP and
/// channels.
pub(crate) fn rows(scenario: &Scenario) -> Option<&'static [Row]> {
    match scenario.name {
        "paced-up" | "paced-down" => Some(PACED),
        "many-up" | "many-down" => Some(MANY),
        "quiet-up" | "quiet-down" => Some(QUIET),
        "saturated-up" | "saturated-down" => Some(SATURATED),
        "bulk-up" | "bulk-down" => Some(BULK),
        _ => None,
    }
}

/// Returns the lines of a scenario: one for each variant of each figure.
pub(crate) fn lines(scenario: &Scenario, rounds: &Rounds) -> Vec<Line> {
    let mut lines = Vec::new();
    for row in rows(scenario).unwrap_or_default() {
        for kind in KINDS {
            let own = values(rounds, kind, row.figure);
            let Some(summary) = Summary::of(&own) else { continue };
            let to = |other| {
                let ratio = ratio(&own, &values(rounds, other, row.figure)).filter(|_| other != kind);
                ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
            };
            let goals = if kind == Kind::Offloaded { row.goals } else { &[] };
            let reached = goals.iter().map(|goal| goal.reached(row.figure, &own, rounds));
            let reached = reached.map(|reached| match reached {
                Some(true) => "yes",
                Some(false) => "no",
                None => "?",
            });
            lines.push(Line::from([
                scenario.name.to_owned(),
                row.figure.label().to_owned(),
                kind.name().to_owned(),
                number(summary, row.figure),
                to(Kind::Forwarding),
                to(Kind::Coturn),
                to(Kind::Ours),
                goals.iter().map(|goal| goal.label()).collect::<Vec<_>>().join(", "),
                reached.collect::<Vec<_>>().join(", "),
            ]));
        }
    }
    lines
}

impl Goal {
    /// Returns whether the values of the rounds reach the goal. `None` if the other variant was not measured.
    fn reached(self, figure: Figure, own: &[f64], rounds: &Rounds) -> Option<bool> {
        let other = |kind| values(rounds, kind, figure);
        match self {
            Self::AtMost(max) => Some(Summary::of(own)?.median <= max),
            Self::RatioAtMost(max, kind) => ratio(own, &other(kind)).map(|ratio| ratio <= max),
            Self::RatioAtLeast(min, kind) => ratio(own, &other(kind)).map(|ratio| ratio >= min),
            Self::MoreByAtMost(max, kind) => {
                let other = other(kind);
                let more: Vec<f64> = own.iter().zip(&other).map(|(own, other)| own - other).collect();
                Summary::of(&more).filter(|_| own.len() == other.len()).map(|more| more.median <= max)
            }
        }
    }

    fn label(self) -> String {
        match self {
            Self::AtMost(max) => format!("≤ {max}"),
            Self::RatioAtMost(max, kind) => format!("≤ {max} × {}", kind.name()),
            Self::RatioAtLeast(min, kind) => format!("≥ {min} × {}", kind.name()),
            Self::MoreByAtMost(max, kind) => format!("≤ {} + {max}", kind.name()),
        }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::round::Measured;

    fn rounds(all: &[(Kind, &[f64])]) -> Rounds {
        let measured = |value: &f64| Measured {
            figures: BTreeMap::from([(Figure::P50, *value)]),
            remarks: Vec::new(),
            generator: 0.0,
            others: 0.0,
        };
        all.iter().map(|(kind, values)| (*kind, values.iter().map(measured).collect())).collect()
    }

    // The differences are 3, 12 and 9: the goal applies to their median.
    #[test]
    fn a_difference_is_that_of_the_same_round() {
        let rounds = rounds(&[(Kind::Forwarding, &[20.0, 10.0, 30.0]), (Kind::Coturn, &[1.0])]);
        let own = [23.0, 22.0, 39.0];
        assert_eq!(Goal::MoreByAtMost(9.0, Kind::Forwarding).reached(Figure::P50, &own, &rounds), Some(true));
        assert_eq!(Goal::MoreByAtMost(8.9, Kind::Forwarding).reached(Figure::P50, &own, &rounds), Some(false));
        assert_eq!(Goal::MoreByAtMost(9.0, Kind::Coturn).reached(Figure::P50, &own, &rounds), None);
        assert_eq!(Goal::RatioAtMost(9.0, Kind::Ours).reached(Figure::P50, &own, &rounds), None);
    }

    #[test]
    fn only_channel_data_of_single_packets_is_compared() {
        let names = |wanted| Scenario::matching(wanted).into_iter().filter(|one| rows(one).is_some()).count();
        assert_eq!(["paced", "many", "quiet", "saturated", "bulk"].map(names), [2; 5]);
        assert_eq!(["bulk-merged", "indications", "tcp", "tls", "mixed", "churn", "idle"].map(names), [0; 7]);
    }
}
