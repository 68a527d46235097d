//! Tests that cannot run on a machine.

use std::io::{self, Write};

/// Reports on standard error, which the test runner does not capture here, that a test does not run, or not as a whole.
/// It fails the test if `REQUIRE_ALL_TESTS` is set, as in `.ci/run`.
pub(crate) fn skip(reason: &str) {
    let required = std::env::var_os("REQUIRE_ALL_TESTS").is_some();
    assert!(!required, "REQUIRE_ALL_TESTS is set, but this test cannot run: {reason}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(io::stderr(), "skipped: {test}: {reason}");
}
