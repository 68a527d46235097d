//! The sessions that a drain waits for.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::start::WorkerControl;
use crate::privacy::Privacy;
use crate::turn::{AllocationInfo, Instant as TurnInstant};
use crate::worker::SessionId;

/// The number of sessions that are named.
pub(super) const NAMED: usize = 10;

/// The time in which the workers respond, unless they are very busy or stalled.
const PATIENCE: Duration = Duration::from_millis(200);

/// Returns the oldest sessions of all workers with the indices of their workers, the oldest first. Those of a worker
/// that does not respond in time are missing.
pub(super) async fn oldest(workers: &[WorkerControl], most: usize) -> Vec<(usize, AllocationInfo)> {
    let until = Instant::now() + PATIENCE;
    let mut searches = JoinSet::new();
    for (index, worker) in workers.iter().enumerate() {
        let handle = worker.handle.clone();
        searches.spawn(async move { (index, handle.oldest(most).await) });
    }
    let mut sessions = Vec::new();
    while let Ok(Some(search)) = timeout_at(until, searches.join_next()).await {
        // A worker that has ended has no sessions.
        let Ok((index, Ok(found))) = search else { continue };
        sessions.extend(found.into_iter().map(|info| (index, info)));
    }
    // Workers respond at different times, so their ages are not comparable.
    let start = TurnInstant::from_elapsed(Duration::ZERO);
    sessions.sort_by_key(|(worker, info)| (info.created.since(start), *worker));
    sessions.truncate(most);
    sessions
}

/// Logs who is left while the server drains.
pub(super) async fn log(workers: Vec<WorkerControl>, allocations: u32, privacy: Arc<Privacy>) {
    let sessions = oldest(&workers, NAMED).await;
    let more = (allocations as usize).saturating_sub(sessions.len());
    let sessions: Vec<String> = sessions.iter().map(|(worker, info)| text(*worker, info, &privacy)).collect();
    let sessions = sessions.join(", ");
    tracing::info!(
        event = "draining",
        allocations,
        sessions,
        more,
        "draining; these sessions are the oldest that are left"
    );
}

/// Returns the ID, the user and the client of a session, as far as the log may show them.
fn text(worker: usize, info: &AllocationInfo, privacy: &Privacy) -> String {
    let mut text = SessionId { worker, allocation: info.id }.to_string();
    for part in [
        privacy.user(&info.user).map(|user| word(&user)),
        privacy.address(info.tuple.client).map(|address| address.to_string()),
    ] {
        text.extend(part.into_iter().flat_map(|part| [" ".to_owned(), part]));
    }
    text
}

/// Returns a name without blanks and commas, so that it cannot look like another session.
fn word(name: &str) -> String {
    let escape = |c: char| if c.is_whitespace() || c == ',' { c.escape_unicode().to_string() } else { c.to_string() };
    name.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_look_like_another_session() {
        assert_eq!(word("1700000000:ann"), "1700000000:ann");
        assert_eq!(word("a 192.0.2.1:5, 0-0-0"), "a\\u{20}192.0.2.1:5\\u{2c}\\u{20}0-0-0");
    }
}
