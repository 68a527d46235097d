//! The common state: follows its bucket, and writes to it what the engine has lost.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use async_nats::jetstream::kv::{self, Operation, Store};
use futures_util::StreamExt as _;
use hyper::body::Bytes;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::agent::{PAUSE, Session};
use super::engine::{Bucket, random_fraction};
use super::requests;
use super::state::Entry;
use crate::clock;

/// The interval at which the state is read as a whole.
const REREAD: Duration = Duration::from_secs(60);
/// The interval at which this node compares its state with those of the others.
const COMPARISON: Duration = Duration::from_millis(300);

/// The state that a node uses: of which bucket, and up to which revision of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Revision {
    /// When the bucket was created, in seconds since the Unix epoch: a bucket that was lost has another successor.
    pub(super) created: u32,
    pub(super) revision: u32,
    /// The first revision that this node could not use.
    refused: Option<u32>,
}

impl Revision {
    /// Returns a number that is greater for a later state.
    pub(super) fn number(self) -> u64 {
        let used = self.refused.map_or(self.revision, |refused| self.revision.min(refused.saturating_sub(1)));
        (u64::from(self.created) << 32) | u64::from(used)
    }

    /// Returns the number of what this node has read, whether it could use it or not.
    fn read(self) -> u64 {
        self.of(self.revision.into())
    }

    /// Returns the number of a revision of the same bucket.
    pub(super) fn of(self, revision: u64) -> u64 {
        (u64::from(self.created) << 32) | u64::from(narrow(revision))
    }
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Follows the common state.
pub(super) async fn follow_state(session: Rc<Session>) {
    loop {
        let mut store = session.open(Bucket::State).await;
        let Some(is_empty) = identify(&session, &mut store).await else {
            sleep(PAUSE).await;
            continue;
        };
        let Ok(mut entries) = store.watch_with_history(">").await else {
            sleep(PAUSE).await;
            continue;
        };
        // The keys that the bucket has, until all are read.
        let mut seen = Some(BTreeSet::new());
        let mut is_changed = false;
        if is_empty {
            refill(&session, &store, &seen.take().unwrap_or_default()).await;
        }
        let reread = sleep(REREAD.mul_f64(1.0 + random_fraction()));
        tokio::pin!(reread);
        loop {
            let entry = tokio::select! {
                entry = entries.next() => entry,
                () = &mut reread => break,
                () = session.reread.notified() => break,
            };
            let Some(Ok(entry)) = entry else {
                sleep(PAUSE).await;
                break;
            };
            is_changed |= take(&session, &entry);
            if let Some(seen) = &mut seen {
                seen.insert(entry.key.clone());
            }
            if entry.delta > 0 {
                continue;
            }
            // Once for all that came together.
            if std::mem::take(&mut is_changed) {
                session.use_state().await;
                session.changed.notify_one();
            }
            session.revision.update(|own| Revision { revision: own.revision.max(narrow(entry.revision)), ..own });
            // Whoever has made the change waits for it.
            session.beat.notify_one();
            if let Some(seen) = seen.take() {
                refill(&session, &store, &seen).await;
            }
        }
    }
}

/// Reads the state again if other nodes use a later one. What this node follows may have ended without a word: the server
/// that sent it is gone, or the bucket was lost, and another node has made it again.
pub(super) async fn catch_up(session: Rc<Session>) {
    let mut ticks = interval(COMPARISON);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut late, mut tried) = (false, None);
    loop {
        ticks.tick().await;
        let latest = {
            let (nodes, now) = (session.view.nodes(), session.inputs.now());
            nodes.live(now).map(|beat| beat.state).max()
        };
        let was_late = late;
        late = latest > Some(session.revision.get().read());
        // A change takes a moment to come, and a second attempt at the same state would be in vain.
        if late && was_late && latest != tried {
            tried = latest;
            session.reread.notify_one();
        }
    }
}

/// Notes which bucket this is. Returns whether it is empty; `None` if the engine does not say.
async fn identify(session: &Session, store: &mut Store) -> Option<bool> {
    let info = store.stream.info().await.ok()?;
    let created = u32::try_from(info.created.unix_timestamp()).unwrap_or_default();
    if session.revision.get().created != created {
        session.revision.set(Revision { created, ..Revision::default() });
        session.revisions.borrow_mut().clear();
    }
    Some(info.state.messages == 0)
}

/// Takes an entry. Returns whether it changes the state.
fn take(session: &Session, entry: &kv::Entry) -> bool {
    session.revisions.borrow_mut().insert(entry.key.clone(), entry.revision);
    let mut state = session.state.borrow_mut();
    if entry.operation != Operation::Put {
        return state.remove(&entry.key);
    }
    let parsed = Entry::parse(&entry.key, &entry.value);
    match parsed.and_then(|parsed| state.insert(parsed, clock::unix_seconds())) {
        Ok(is_changed) => is_changed,
        Err(why) => {
            drop(state);
            session.count(|counts| counts.malformed += 1);
            session.revision.update(|own| {
                let refused = Some(own.refused.unwrap_or(u32::MAX).min(narrow(entry.revision)));
                Revision { refused, ..own }
            });
            tracing::warn!(
                event = "fleet-entry-unusable",
                key = crate::printable::shown(&entry.key),
                error = why,
                "this node cannot use a secret or a revocation of the fleet"
            );
            false
        }
    }
}

/// Writes what this node uses and the bucket does not have: the engine has lost it.
async fn refill(session: &Session, store: &Store, seen: &BTreeSet<String>) {
    let now = clock::unix_seconds();
    let missing: Vec<(String, String)> = {
        let state = session.state.borrow();
        state.live_entries(now).filter(|(key, _)| !seen.contains(key)).collect()
    };
    for (key, entry) in missing {
        // Another node may have written it.
        let _ = store.create(&key, Bytes::from(entry)).await;
    }
}

/// Removes entries that have ended long ago, unless they were renewed meanwhile.
pub(super) async fn forget_ended(session: &Session) {
    let ended = session.state.borrow().ended(clock::unix_seconds());
    for key in ended {
        let revision = session.revisions.borrow_mut().remove(&key);
        if let Some(revision) = revision {
            requests::purge(session, &key, revision).await;
        }
        if session.state.borrow_mut().remove(&key) {
            session.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_later_bucket_is_greater_and_one_that_could_not_be_used_is_not_reached() {
        let own = Revision { created: 7, revision: 5, refused: None };
        assert!(own.number() >= own.of(5) && own.number() < own.of(6));
        assert!(Revision { created: 8, ..Revision::default() }.number() > own.number());
        assert!(Revision { refused: Some(4), ..own }.number() < own.of(4));
        assert_eq!(Revision { refused: Some(4), ..own }.read(), own.number());
    }
}
