//! Text for people: aligned columns, and units.

use serde_json::Value;
use turnserver::printable::Escaped;

/// Rows of cells. Numbers are aligned on the right.
#[derive(Debug)]
pub(crate) struct Table {
    /// The header of each column, and whether the column has numbers.
    columns: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table. A header that begins with `>` is that of numbers.
    pub(crate) fn new(headers: &[&'static str]) -> Self {
        let column = |header: &&'static str| header.strip_prefix('>').map_or((*header, false), |name| (name, true));
        Self { columns: headers.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Returns the lines, the header first.
    pub(crate) fn lines(&self) -> Vec<String> {
        let width = |at: usize, header: &str| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            cells.chain([header.len()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = self.columns.iter().enumerate().map(|(at, (header, _))| width(at, header)).collect();
        let header: Vec<String> = self.columns.iter().map(|(header, _)| (*header).to_owned()).collect();
        std::iter::once(&header).chain(&self.rows).map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let cells = cells.iter().zip(widths).zip(&self.columns).map(|((cell, &width), (_, is_number))| {
            if *is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}

/// Returns text that is safe on a terminal: a name from the network must not control it, or look like another one.
pub(crate) fn printable(text: &str) -> String {
    Escaped(text).to_string()
}

/// Returns a number of bytes in a unit, with three digits.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn bytes(count: u64) -> String {
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        // What would be rounded to 1000 has the next unit.
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    match value {
        value if value < 9.995 => format!("{value:.2} {unit}"),
        value if value < 99.95 => format!("{value:.1} {unit}"),
        value => format!("{value:.0} {unit}"),
    }
}

/// Returns bytes per second as bits per second.
pub(crate) fn bit_rate(bytes_per_second: f64) -> String {
    let bits = (bytes_per_second.max(0.0) * 8.0).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is rounded and not negative")]
    let text = bytes(bits as u64);
    let (value, unit) = text.split_once(' ').unwrap_or((&text, "B"));
    format!("{value} {}bit/s", unit.trim_end_matches('B'))
}

/// Returns a duration with its two greatest units.
pub(crate) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {:02} s", seconds % 60),
        (0, ..) => format!("{hours} h {:02} min", minutes % 60),
        _ => format!("{days} d {:02} h", hours % 24),
    }
}

/// Returns a number with its noun.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Returns a text field of a response, or an empty text.
pub(crate) fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Returns a number of a response, or 0.
pub(crate) fn number(value: &Value, field: &str) -> u64 {
    value.get(field).and_then(Value::as_u64).unwrap_or_default()
}

/// Returns a list of a response, or an empty one.
pub(crate) fn list<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_names_cannot_control_the_terminal() {
        let mut table = Table::new(&["NAME", ">BYTES"]);
        table.row(vec!["ann".to_owned(), "5 B".to_owned()]);
        table.row(vec!["é\u{1b}[2J".to_owned(), "999 kB".to_owned()]);
        table.row(vec!["a\u{202e}b".to_owned(), "1 B".to_owned()]);
        let lines = ["NAME         BYTES", "ann            5 B", "é\\u{1b}[2J  999 kB", "a\\u{202e}b     1 B"];
        assert_eq!(table.lines(), lines);
    }

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_996, "10.0 kB"),
            (99_960, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
        assert_eq!([0.0, 100.0, 1_250_000.0].map(bit_rate), ["0 bit/s", "800 bit/s", "10.0 Mbit/s"]);
        assert_eq!([59, 61, 3_660, 90_000].map(duration), ["59 s", "1 min 01 s", "1 h 01 min", "1 d 01 h"]);
    }
}
