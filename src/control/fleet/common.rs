//! The common state: follows its bucket, and writes to it what the engine has lost.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::stream;
use futures_util::StreamExt as _;
use hyper::body::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::agent::{PAUSE, Session};
use super::copy::Origin;
use super::engine::Bucket;
use super::requests;
use super::state::{Entry, KEPT};
use crate::clock;
use crate::control::random;

/// The interval at which the state is read as a whole.
const REREAD: Duration = Duration::from_secs(60);
/// The longest time from one entry of a reading to the next.
const READING: Duration = Duration::from_secs(30);
/// The most entries that are removed before the next look.
const PURGED_AT_ONCE: usize = 100;
/// The most entries that cannot be used and are known by name, so that each is logged once.
const MOST_REFUSED: usize = 1_000;
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

/// An entry of the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) revision: u64,
    /// When it may be removed, in seconds since the Unix epoch; `None` if that is not decided.
    kept_until: Option<u64>,
}

/// What one reading of the bucket has found.
#[derive(Debug, Default)]
struct Reading {
    /// The keys that the bucket has, until all are read.
    seen: Option<BTreeSet<String>>,
    /// The entries that this node cannot use.
    refused: BTreeMap<String, u32>,
    /// Whether the engine has lost what this node knows.
    is_lost: bool,
    /// The entries that this node knows in a later form, and their revisions in the bucket.
    outdated: BTreeMap<String, u64>,
}

/// Follows the common state.
pub(super) async fn follow_state(session: Rc<Session>) {
    loop {
        let mut store = session.open(Bucket::State).await;
        let Some(bucket) = identify(&session, &mut store).await else {
            sleep(PAUSE).await;
            continue;
        };
        let Ok(mut entries) = store.watch_with_history(">").await else {
            sleep(PAUSE).await;
            continue;
        };
        let is_lost = bucket.lacks(session.origin.get(), clock::unix_seconds());
        let mut reading = Reading { seen: Some(BTreeSet::new()), is_lost, ..Reading::default() };
        if bucket.is_empty {
            if !complete(&session, &store, &mut reading, &bucket).await {
                sleep(PAUSE).await;
                continue;
            }
            use_changes(&session).await;
            session.beat.notify_one();
        }
        let reread = sleep(REREAD.mul_f64(1.0 + random::fraction()));
        tokio::pin!(reread);
        let patience = sleep(READING);
        tokio::pin!(patience);
        loop {
            let is_complete = reading.seen.is_none();
            let entry = tokio::select! {
                entry = entries.next() => entry,
                () = &mut reread, if is_complete => break,
                () = &mut patience, if !is_complete => break,
                // A reading that has begun is not interrupted.
                () = session.reread.notified(), if is_complete => break,
            };
            let Some(Ok(entry)) = entry else {
                sleep(PAUSE).await;
                break;
            };
            take(&session, &entry, &mut reading);
            if entry.delta > 0 {
                patience.as_mut().reset(Instant::now() + READING);
                continue;
            }
            if is_complete || reading.is_lost {
                // Before the heartbeats say so.
                use_changes(&session).await;
            }
            // Once for all that came together.
            session.revision.update(|own| Revision {
                revision: own.revision.max(narrow(entry.revision)),
                refused: reading.refused.values().min().copied(),
                ..own
            });
            let is_done = match reading.seen {
                Some(_) => complete(&session, &store, &mut reading, &bucket).await,
                None => restore(&session, &store, &mut reading).await,
            };
            if !is_done {
                sleep(PAUSE).await;
                break;
            }
            session.origin.update(|origin| Origin {
                // A later loss of this change has to be noticed.
                revision: if origin.created == bucket.created {
                    origin.revision.max(entry.revision)
                } else {
                    origin.revision
                },
                ..origin
            });
            use_changes(&session).await;
            // Whoever has made the change waits for it.
            session.beat.notify_one();
        }
    }
}

/// What is known of the bucket before it is read.
struct BucketState {
    created: u32,
    /// Its last revision.
    last: u64,
    is_empty: bool,
}

impl BucketState {
    /// Whether the engine has lost what this node knows from `origin`.
    fn lacks(&self, origin: Origin, now: u64) -> bool {
        let is_lost = origin.created != self.created || self.last < origin.revision;
        // After a longer time, what the others have removed meanwhile would come back.
        is_lost && origin.read_at.saturating_add(KEPT) > now
    }
}

/// Finds out which bucket this is; `None` if the engine does not say.
async fn identify(session: &Session, store: &mut Store) -> Option<BucketState> {
    let info = store.stream.info().await.ok()?;
    let created = u32::try_from(info.created.unix_timestamp()).unwrap_or_default();
    if !is_known(session, info) {
        session.revision.set(Revision { created, ..Revision::default() });
        session.entries.borrow_mut().clear();
        session.is_read.set(false);
    }
    Some(BucketState { created, last: info.state.last_sequence, is_empty: info.state.messages == 0 })
}

/// Whether the bucket is the one that this node follows. One with fewer revisions than before is an older copy of itself.
pub(super) fn is_known(session: &Session, info: &stream::Info) -> bool {
    let known = session.revision.get();
    let created = u32::try_from(info.created.unix_timestamp()).unwrap_or_default();
    known.created == created && info.state.last_sequence >= u64::from(known.revision)
}

/// Compares the bucket, which has been read as a whole, with what this node knew before. Returns whether that succeeded.
async fn complete(session: &Session, store: &Store, reading: &mut Reading, bucket: &BucketState) -> bool {
    let Some(seen) = reading.seen.take() else { return true };
    let now = clock::unix_seconds();
    let is_other = session.origin.get().created != bucket.created;
    if reading.is_lost {
        if !restore(session, store, reading).await || !refill(session, store, &seen).await {
            return false;
        }
    } else if is_other && session.state.borrow().has_secret() && !seen.iter().any(|key| key.starts_with("secret.")) {
        // Nobody has removed all secrets one by one.
        if session.lost.replace(bucket.created) != bucket.created {
            tracing::error!(
                event = "fleet-state-lost",
                "the engine has lost the secrets of the fleet, and this node has not read them for more than a day. It goes \
                 on with those that it knows, and does not give them to the other nodes: add again those that are to stay"
            );
        }
        session.is_read.set(true);
        return true;
    } else {
        session.entries.borrow_mut().retain(|key, _| seen.contains(key));
        let is_changed = session.state.borrow_mut().retain(|key| seen.contains(key));
        session.is_changed.set(session.is_changed.get() || is_changed);
        if is_changed && !reading.refused.is_empty() {
            // There may be room for them.
            session.reread.notify_one();
        }
    }
    session.origin.set(Origin {
        created: bucket.created,
        revision: bucket.last.max(session.revision.get().revision.into()),
        read_at: now,
    });
    session.is_copy_known.set(true);
    session.is_read.set(true);
    true
}

/// Uses the state if it has changed, or if it is not certain that control has got it.
async fn use_changes(session: &Session) {
    if session.is_changed.get() {
        session.use_state().await;
        session.is_changed.set(false);
        session.changed.notify_one();
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
            // One that cannot be would hide the others.
            let latest = clock::unix_seconds().saturating_add(86_400) << 32;
            nodes.live(now).map(|beat| beat.state).filter(|state| *state < latest).max()
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

/// Takes an entry.
fn take(session: &Session, entry: &kv::Entry, reading: &mut Reading) {
    if let Some(seen) = &mut reading.seen {
        seen.insert(entry.key.clone());
    }
    reading.refused.remove(&entry.key);
    let now = clock::unix_seconds();
    let is_changed = if entry.operation == Operation::Put {
        match Entry::parse(&entry.key, &entry.value) {
            Ok(parsed) => {
                let (revision, kept_until) = (entry.revision, parsed.kept_until());
                session.entries.borrow_mut().insert(entry.key.clone(), Held { revision, kept_until });
                let mut state = session.state.borrow_mut();
                let known = state.entry(&entry.key).map(|(changed, _)| changed);
                if reading.is_lost && known > Some(parsed.changed()) {
                    reading.outdated.insert(entry.key.clone(), revision);
                    Ok(false)
                } else if kept_until.is_some_and(|until| until <= now) {
                    Ok(state.remove(&entry.key))
                } else {
                    state.insert(parsed, now)
                }
            }
            Err(why) => Err(why),
        }
    } else {
        session.entries.borrow_mut().remove(&entry.key);
        Ok(session.state.borrow_mut().remove(&entry.key))
    };
    match is_changed {
        Ok(is_changed) => {
            session.is_changed.set(session.is_changed.get() || is_changed);
            session.refused.borrow_mut().remove(&entry.key);
        }
        Err(why) => refuse(session, entry, why, reading),
    }
}

/// Notes that this node cannot use an entry.
fn refuse(session: &Session, entry: &kv::Entry, why: &str, reading: &mut Reading) {
    reading.refused.insert(entry.key.clone(), narrow(entry.revision));
    let mut known = session.refused.borrow_mut();
    if known.get(&entry.key) == Some(&entry.revision) || known.len() >= MOST_REFUSED {
        return;
    }
    known.insert(entry.key.clone(), entry.revision);
    drop(known);
    session.count(|counts| counts.malformed += 1);
    tracing::warn!(
        event = "fleet-entry-unusable",
        key = crate::printable::shown(&entry.key),
        error = why,
        "this node cannot use a secret or a revocation of the fleet"
    );
}

/// Writes what this node knows in a later form than the bucket: the engine has lost it. Returns whether that succeeded.
async fn restore(session: &Session, store: &Store, reading: &mut Reading) -> bool {
    while let Some((key, revision)) = reading.outdated.pop_first() {
        let known = session.state.borrow().entry(&key);
        let Some((_, entry)) = known else { continue };
        match store.update(&key, Bytes::from(entry), revision).await {
            Ok(_) => {}
            // Another node has written it, and what it has written is to come.
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
            Err(_) => return false,
        }
    }
    true
}

/// Writes what this node knows and the bucket does not have: the engine has lost it. Returns whether that succeeded.
async fn refill(session: &Session, store: &Store, seen: &BTreeSet<String>) -> bool {
    let missing: Vec<(String, String)> =
        session.state.borrow().entries().filter(|(key, _)| !seen.contains(key)).collect();
    for (key, entry) in missing {
        match store.create(&key, Bytes::from(entry)).await {
            Ok(_) => {}
            // Another node has written it, and what it has written is to come.
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {}
            Err(_) => return false,
        }
    }
    true
}

/// Forgets entries that have ended long ago. One node, the first by its name, removes them from the bucket, unless they were
/// renewed meanwhile.
pub(super) async fn forget_ended(session: &Session) {
    let now = clock::unix_seconds();
    if session.state.borrow_mut().forget_ended(now) {
        session.changed.notify_one();
    }
    let is_first = {
        let nodes = session.view.nodes();
        let first = nodes.live(session.inputs.now()).map(|beat| beat.name.as_str()).min();
        first == Some(session.settings.node.as_str())
    };
    if !is_first || !session.connection.borrow().is_up {
        return;
    }
    let is_old = |held: &Held| held.kept_until.is_some_and(|until| until <= now);
    let old: Vec<(String, u64)> = {
        let entries = session.entries.borrow();
        let old = entries.iter().filter(|(_, held)| is_old(held)).take(PURGED_AT_ONCE);
        old.map(|(key, held)| (key.clone(), held.revision)).collect()
    };
    for (key, revision) in old {
        if !requests::purge(session, &key, revision).await {
            break;
        }
        session.entries.borrow_mut().remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gets_back_what_it_has_lost_but_not_what_was_removed_while_this_node_was_away() {
        let origin = Origin { created: 7, revision: 5, read_at: 1_000 };
        let lacks = |created, last, now| BucketState { created, last, is_empty: false }.lacks(origin, now);
        assert!(!lacks(7, 5, 1_010) && !lacks(7, 9, 1_010));
        // It was made again, or is an older copy of itself.
        assert!(lacks(8, 0, 1_010) && lacks(7, 4, 1_010));
        assert!(!lacks(8, 0, 1_000 + KEPT));
    }

    #[test]
    fn the_number_of_a_later_bucket_is_greater_and_one_that_could_not_be_used_is_not_reached() {
        let own = Revision { created: 7, revision: 5, refused: None };
        assert!(own.number() >= own.of(5) && own.number() < own.of(6));
        assert!(Revision { created: 8, ..Revision::default() }.number() > own.number());
        assert!(Revision { refused: Some(4), ..own }.number() < own.of(4));
        assert_eq!(Revision { refused: Some(4), ..own }.read(), own.number());
    }
}
