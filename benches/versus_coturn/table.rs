//! Prints the result as a table, as text or Markdown.

use std::fmt::Write;
use std::ops::Range;

use crate::scenario::{Figure, Goal};
use crate::summary::{Summary, ratio};

/// The headings of the comparison with coturn.
pub(crate) const HEADINGS: [&str; 7] = ["scenario", "figure", "ours", "coturn", "ratio", "goal", "reached"];

/// The columns with numbers in the comparison of two servers.
pub(crate) const NUMBERS: Range<usize> = 2..5;

/// The cells of a line. The first is the scenario.
pub(crate) type Line = Vec<String>;

/// The rounds of one figure in a comparison of our server with another one.
pub(crate) struct Pair {
    pub(crate) scenario: &'static str,
    pub(crate) figure: Figure,
    pub(crate) goal: Option<Goal>,
    pub(crate) ours: Vec<f64>,
    pub(crate) other: Vec<f64>,
}

impl Pair {
    /// Returns the line of the figure. `None` if nothing was measured.
    pub(crate) fn line(&self) -> Option<Line> {
        let ratio = ratio(&self.ours, &self.other);
        let (ours, other) = (Summary::of(&self.ours), Summary::of(&self.other));
        ours.or(other)?;
        let reached = match self.goal.and_then(|goal| goal.reached(ours?.median, ratio)) {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        let number = |summary: Option<Summary>| summary.map_or(String::new(), |summary| number(summary, self.figure));
        Some(Line::from([
            self.scenario.to_owned(),
            self.figure.label().to_owned(),
            number(ours),
            number(other),
            ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
            self.goal.map_or(String::new(), Goal::label),
            reached.to_owned(),
        ]))
    }
}

/// A table with its headings and the columns that contain numbers.
pub(crate) struct Table {
    pub(crate) headings: &'static [&'static str],
    pub(crate) numbers: Range<usize>,
    pub(crate) lines: Vec<Line>,
}

impl Table {
    fn headings(&self) -> Line {
        self.headings.iter().map(|heading| (*heading).to_owned()).collect()
    }

    /// Returns the table as text, in columns.
    pub(crate) fn text(&self) -> String {
        let headings = self.headings();
        let rows = || std::iter::once(&headings).chain(&self.lines);
        let mut widths = vec![0; headings.len()];
        for row in rows() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut table = String::new();
        let mut before = "";
        for row in rows() {
            let scenario = row.first().map_or("", String::as_str);
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let cell = if column == 0 && scenario == before { "" } else { cell };
                let padding = width - cell.chars().count();
                let (left, right) = if self.numbers.contains(&column) { (padding, 0) } else { (0, padding) };
                // Writing into a String does not fail.
                let _ = write!(line, "{:left$}{cell}{:right$}  ", "", "");
            }
            table.push_str(line.trim_end());
            table.push('\n');
            before = scenario;
        }
        table
    }

    /// Returns the table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut table = row(&self.headings());
        let column = |column| if self.numbers.contains(&column) { "--:|" } else { "---|" };
        table.extend(std::iter::once("|").chain((0..self.headings.len()).map(column)));
        table.push('\n');
        self.lines.iter().for_each(|line| table.push_str(&row(line)));
        table
    }
}

/// Returns the median with the range of the rounds.
pub(crate) fn number(summary: Summary, figure: Figure) -> String {
    let Summary { median, min, max } = summary;
    let format = |value| grouped(value, figure.decimals());
    if format(min) == format(max) {
        format(median)
    } else {
        format!("{} ({}–{})", format(median), format(min), format(max))
    }
}

/// Formats a number with a space between thousands.
fn grouped(value: f64, decimals: usize) -> String {
    let plain = format!("{value:.decimals$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut text = String::new();
    for (place, digit) in whole.chars().enumerate() {
        let remaining = whole.len() - place;
        if place > 0 && remaining.is_multiple_of(3) && !text.ends_with('-') {
            text.push(' ');
        }
        text.push(digit);
    }
    text + rest
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    fn table() -> Table {
        let cpu = Pair {
            scenario: "paced-up",
            figure: Figure::CpuPerPacket,
            goal: Some(Goal::RatioAtMost(0.5)),
            ours: vec![6.1, 5.9, 6.4],
            other: vec![13.7, 13.0, 14.0],
        };
        let delivered =
            Pair { scenario: "paced-up", figure: Figure::Delivered, goal: None, ours: vec![39_999.6], other: vec![] };
        let lines = [cpu, delivered].iter().filter_map(Pair::line).collect();
        Table { headings: &HEADINGS, numbers: NUMBERS, lines }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let expected = "\
scenario  figure                                  ours              coturn  ratio  goal     reached
paced-up  server CPU per packet, µs   6.10 (5.90–6.40)  13.70 (13.00–14.00)   0.45  ≤ 0.5 ×   yes
          delivered, packets/s                  40 000
";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let table = table().text();
        assert_eq!(squeezed(&table), squeezed(expected));
        let column =
            |line: &str, cell: &str| line.find(cell).map(|at| line[..at].chars().count() + cell.chars().count());
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(column(rows[0], "ours"), column(rows[1], "6.40)"));
        assert_eq!(column(rows[0], "ours"), column(rows[2], "40 000"));
        assert!(rows[2].starts_with("          delivered"));
    }

    #[test]
    fn markdown_names_the_scenario_in_each_row() {
        let table = table().markdown();
        assert_eq!(table.lines().nth(1), Some("|---|---|--:|--:|--:|---|---|"));
        assert_eq!(
            table.lines().nth(2),
            Some(
                "| paced-up | server CPU per packet, µs | 6.10 (5.90–6.40) | 13.70 (13.00–14.00) | 0.45 | ≤ 0.5 × | yes |"
            )
        );
        assert_eq!(table.lines().nth(3), Some("| paced-up | delivered, packets/s | 40 000 |  |  |  |  |"));
    }

    #[test]
    fn thousands_are_separated() {
        let all = [(0.0, 0), (999.0, 0), (1_000.0, 0), (1_015_000.4, 0), (1_234.567, 2), (-1_234.0, 0), (-123.0, 0)];
        let texts = all.map(|(value, decimals)| grouped(value, decimals));
        assert_eq!(texts, ["0", "999", "1 000", "1 015 000", "1 234.57", "-1 234", "-123"]);
    }
}
