//! Tests that cannot run on a machine.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// Reports on standard error, which the test runner does not capture here, that a test does not run, or not as a whole.
/// It fails the test if `REQUIRE_ALL_TESTS` is set, as in `.ci/run`.
pub(crate) fn skip(reason: &str) {
    let required = std::env::var_os("REQUIRE_ALL_TESTS").is_some();
    assert!(!required, "REQUIRE_ALL_TESTS is set, but this test cannot run: {reason}");
    let thread = std::thread::current();
    record(thread.name().unwrap_or("?"));
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(io::stderr(), "skipped: {test}: {reason}");
}

/// Adds the target and the name of a skipped test to the file in `SKIPPED_TESTS`, from which `.ci/run` reads what it has to
/// run again.
fn record(test: &str) {
    let Some(file) = std::env::var_os("SKIPPED_TESTS") else { return };
    let program = std::env::args().next().unwrap();
    let (target, _) = Path::new(&program).file_name().unwrap().to_str().unwrap().rsplit_once('-').unwrap();
    let mut file = OpenOptions::new().append(true).open(file).unwrap();
    file.write_all(format!("{target}\t{test}\n").as_bytes()).unwrap();
}
