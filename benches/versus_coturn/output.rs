//! What the benchmark prints.

use std::io::Write;

/// Prints a line of the result.
pub(crate) fn print(line: &str) {
    // Without a reader the output does not matter.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line for the user who waits.
pub(crate) fn print_progress(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
