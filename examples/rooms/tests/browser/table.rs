//! The table of what was seen: target/tmp/rooms-table.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const HEAD: &str =
    "| system | transport | browsers | network | what was seen | first frame after |\n|---|---|---|---|---|---|\n";

/// A row of the table.
#[derive(Clone, Copy)]
pub(crate) struct Row<'r> {
    pub(crate) system: &'r str,
    /// How the participants reach the relay.
    pub(crate) transport: &'r str,
    pub(crate) browsers: &'r str,
    pub(crate) network: &'r str,
    pub(crate) seen: &'r str,
    /// Milliseconds from the navigation to the first decoded frame.
    pub(crate) first_frame: Option<u64>,
}

impl Row<'_> {
    /// Prints the row, and writes it to the table in place of an earlier one for the same case.
    pub(crate) fn report(self) {
        static TABLE: Mutex<()> = Mutex::new(());
        let case = format!("| {} | {} | {} | {} |", self.system, self.transport, self.browsers, self.network);
        let first_frame = self.first_frame.map_or_else(|| "–".to_owned(), |time| format!("{time} ms"));
        let row = format!("{case} {} | {first_frame} |", self.seen);
        println!("{row}");
        // A test that fails meanwhile has left no half-written table.
        let _guard = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rooms-table.md");
        let before = fs::read_to_string(&file).unwrap_or_default();
        let mut rows: BTreeMap<String, &str> = before.lines().skip(2).map(|line| (case_of(line), line)).collect();
        rows.insert(case, &row);
        let rows: String = rows.values().flat_map(|row| [row, "\n"]).collect();
        fs::write(&file, format!("{HEAD}{rows}")).unwrap();
    }
}

/// Returns the first four cells of a row.
fn case_of(row: &str) -> String {
    row.split_inclusive('|').take(5).collect()
}

/// Reports what participants in Chromium saw who reach the relay over loopback addresses.
pub(crate) fn report(system: &str, transport: &str, seen: &str, first_frame: Option<u64>) {
    Row { system, transport, browsers: "Chromium", network: "loopback", seen, first_frame }.report();
}
