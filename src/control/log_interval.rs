//! How often a line about the same trouble is logged.

use std::time::Duration;

use tokio::time::Instant;

/// Returns whether it is time for another line, and remembers it.
pub(super) fn is_due(last: &mut Option<Instant>, interval: Duration) -> bool {
    let now = Instant::now();
    let is_due = last.is_none_or(|last| now.duration_since(last) >= interval);
    if is_due {
        *last = Some(now);
    }
    is_due
}
