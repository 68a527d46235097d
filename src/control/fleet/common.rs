//! The common state: follows its bucket, and gives back what the engine has lost.

use std::rc::Rc;
use std::time::Duration;

use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::stream;
use futures_util::StreamExt as _;
use futures_util::stream as futures;
use hyper::body::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::agent::{PAUSE, Session};
use super::engine::{Bucket, with_source};
use super::reading::{BucketState, Change, Doubtful, Held, Reading, Repair};
use super::requests;
use super::state::KEPT_EXPIRED;
use crate::clock;
use crate::control::random;

/// The interval at which the state is read as a whole.
const REREAD: Duration = Duration::from_secs(60);
/// The longest time from one entry of a reading to the next.
const READING: Duration = Duration::from_secs(30);
/// The pause before a reading that has to confirm what the last one did not find.
const CONFIRMATION: Duration = Duration::from_secs(5);
/// The longest pause before a node gives the engine back what it has lost: most find that another one has done it.
const TURN: Duration = Duration::from_secs(1);
/// The pause after an attempt to do so has failed.
const AGAIN: Duration = Duration::from_secs(10);
/// The most entries that this node gives back before it reads the bucket again.
const REPAIRED_AT_ONCE: usize = 1_000;
/// How many of them are on their way to the engine at a time.
const REPAIRS_UNDER_WAY: usize = 16;
/// The interval at which entries are removed that have ended long ago.
const PURGE: Duration = Duration::from_secs(5);
/// The most entries that are removed before the next look.
const PURGED_AT_ONCE: usize = 100;
/// The most entries that cannot be used and are known by name, so that each is logged once.
const MOST_REFUSED: usize = 1_000;
/// The interval at which this node compares its state with those of the others.
const COMPARISON: Duration = Duration::from_millis(300);

/// The state that a node uses: of which bucket, and up to which revision of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Revision {
    /// When the bucket was created, in seconds since the Unix epoch. The one that replaces a lost bucket has a later time.
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

/// What this node has given back to the engine since a loss.
#[derive(Debug, Default)]
struct Repairing {
    count: usize,
    /// Whether it has left others the time to do it.
    has_paused: bool,
    has_failed: bool,
}

/// Follows the common state.
pub(super) async fn follow_state(session: Rc<Session>) {
    let mut repairing = Repairing::default();
    loop {
        let mut store = session.open(Bucket::State).await;
        let Some((bucket, is_empty)) = identify(&session, &mut store).await else {
            sleep(PAUSE).await;
            continue;
        };
        let Ok(mut entries) = store.watch_with_history(">").await else {
            sleep(PAUSE).await;
            continue;
        };
        let now = clock::unix_seconds();
        let mut reading = session.common.borrow_mut().begin(bucket, is_clock_right(&session), now);
        let reread = sleep(REREAD.mul_f64(1.0 + random::fraction()));
        tokio::pin!(reread);
        let patience = sleep(READING);
        tokio::pin!(patience);
        // An empty bucket sends nothing.
        let (mut has_all, mut revision) = (is_empty, 0);
        loop {
            if has_all {
                // Before the heartbeats say so.
                use_changes(&session).await;
                // Once for all that came together.
                session.revision.update(|own| Revision {
                    revision: own.revision.max(narrow(revision)),
                    refused: reading.first_refused().map(narrow),
                    ..own
                });
                if !reading.is_complete()
                    && let Some(pause) = complete(&session, &store, &mut reading, &mut repairing).await
                {
                    reread.as_mut().reset(Instant::now() + pause);
                }
                session.common.borrow_mut().used(&reading, revision);
                use_changes(&session).await;
                // Whoever has made the change waits for it.
                session.beat.notify_one();
            } else {
                patience.as_mut().reset(Instant::now() + READING);
            }
            let is_complete = reading.is_complete();
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
            (has_all, revision) = (entry.delta == 0, entry.revision);
        }
    }
}

/// Finds out which bucket this is, and whether it is empty; `None` if the engine does not say.
async fn identify(session: &Session, store: &mut Store) -> Option<(BucketState, bool)> {
    let info = store.stream.info().await.ok()?;
    let created = u32::try_from(info.created.unix_timestamp()).unwrap_or_default();
    if !is_known(session, info) {
        session.revision.set(Revision { created, ..Revision::default() });
        session.common.borrow_mut().forget_revisions();
        session.is_read.set(false);
    }
    Some((BucketState { created, last: info.state.last_sequence }, info.state.messages == 0))
}

/// Whether the bucket is the one that this node follows. One with fewer revisions than before is an older copy of itself.
pub(super) fn is_known(session: &Session, info: &stream::Info) -> bool {
    let known = session.revision.get();
    let created = u32::try_from(info.created.unix_timestamp()).unwrap_or_default();
    known.created == created && info.state.last_sequence >= u64::from(known.revision)
}

/// Compares the bucket, which has been read as a whole, with what this node knows, and gives back what the engine has lost.
/// Returns the pause before the next reading, if it has to be soon.
async fn complete(
    session: &Session,
    store: &Store,
    reading: &mut Reading,
    repairing: &mut Repairing,
) -> Option<Duration> {
    let mut outcome = session.common.borrow_mut().finish(reading, clock::unix_seconds());
    session.is_changed.set(session.is_changed.get() || outcome.is_changed);
    session.is_copy_known.set(true);
    session.is_read.set(true);
    if outcome.is_changed && reading.first_refused().is_some() {
        // There may be room for them.
        session.reread.notify_one();
    }
    log_doubtful(session, outcome.secrets);
    if outcome.repairs.is_empty() {
        if outcome.is_restored {
            tracing::warn!(
                event = "fleet-state-restored",
                count = repairing.count,
                "the engine had lost entries of the common state. The nodes have restored what they know, this one `count` \
                 entries"
            );
            *repairing = Repairing::default();
        }
        return outcome.is_doubtful.then_some(CONFIRMATION);
    }
    if !std::mem::replace(&mut repairing.has_paused, true) {
        return Some(TURN.mul_f64(random::fraction()));
    }
    // Each node begins at another place.
    let first = random::below(outcome.repairs.len());
    outcome.repairs.rotate_left(first);
    outcome.repairs.truncate(REPAIRED_AT_ONCE);
    match repair(session, store, outcome.repairs).await {
        Ok(count) => {
            *repairing = Repairing { count: repairing.count + count, ..Repairing::default() };
            Some(Duration::ZERO)
        }
        Err(error) => {
            // While there is no connection, its absence is logged.
            if session.connection.borrow().is_up && !std::mem::replace(&mut repairing.has_failed, true) {
                tracing::error!(
                    event = "fleet-state-unrestored",
                    error,
                    "the engine has lost secrets or revocations, and does not take them from this node, so a node that is \
                     new does not know them. The server tries again. Check the permissions of its user, and JetStream"
                );
            }
            Some(AGAIN.mul_f64(1.0 + random::fraction()))
        }
    }
}

/// Says what becomes of secrets that the engine has lost, or that were retired, once for each bucket.
fn log_doubtful(session: &Session, secrets: Option<Doubtful>) {
    match secrets {
        None => {}
        Some(Doubtful::Kept) => {
            let created = session.revision.get().created;
            if session.lost.replace(created) != created {
                tracing::error!(
                    event = "fleet-state-lost",
                    "the engine has lost the secrets of the fleet, and this node has not read them for more than a day, so \
                     it does not give them back: some may have been retired since. It uses them until the fleet has a \
                     secret again. Add all that have to stay valid: soon after the first one, this node drops the others"
                );
            }
        }
        Some(Doubtful::Dropped(count)) => tracing::warn!(
            event = "fleet-secrets-dropped",
            count,
            "the engine has lost its state, and this node has not read it for more than a day. It does not use the secrets \
             any more that the fleet does not have"
        ),
    }
}

/// Gives the engine back what it has lost. Returns how many entries this node has changed.
async fn repair(session: &Session, store: &Store, repairs: Vec<Repair>) -> Result<usize, String> {
    let results = futures::iter(repairs).map(|repair| repair_one(session, store, repair));
    let mut results = results.buffer_unordered(REPAIRS_UNDER_WAY);
    let mut count = 0;
    while let Some(result) = results.next().await {
        count += usize::from(result?);
    }
    Ok(count)
}

/// Returns whether this node has changed the entry: another one may have been first.
async fn repair_one(session: &Session, store: &Store, repair: Repair) -> Result<bool, String> {
    let text = |key: &str| session.common.borrow().state.entry(key).map(|(_, text)| Bytes::from(text));
    match repair {
        Repair::Create(key) => {
            let Some(text) = text(&key) else { return Ok(false) };
            match store.create(&key, text).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(with_source(&error)),
            }
        }
        Repair::Update(key, revision) => {
            let Some(text) = text(&key) else { return Ok(false) };
            match store.update(&key, text, revision).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
                Err(error) => Err(with_source(&error)),
            }
        }
        Repair::Purge(key, revision) => requests::purge(session, &key, revision).await.map(|()| true),
    }
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
    let value = (entry.operation == Operation::Put).then_some(&*entry.value);
    let change = Change { key: &entry.key, revision: entry.revision, value };
    let taken = session.common.borrow_mut().take(change, reading, clock::unix_seconds());
    match taken {
        Ok(is_changed) => {
            session.is_changed.set(session.is_changed.get() || is_changed);
            session.refused.borrow_mut().remove(&entry.key);
        }
        Err(why) => refuse(session, entry, why),
    }
}

/// Notes that this node cannot use an entry.
fn refuse(session: &Session, entry: &kv::Entry, why: &str) {
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

/// Removes entries from the bucket that have ended long ago, unless they were renewed meanwhile. One node does it, the first
/// by its name.
pub(super) async fn purge_ended(session: Rc<Session>) {
    let mut ticks = interval(PURGE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_wrong = false;
    loop {
        ticks.tick().await;
        let Some(ahead) = session.engine_ahead.get() else { continue };
        let time = purge_time(clock::unix_seconds(), ahead);
        if time.is_none() && !was_wrong {
            tracing::error!(
                event = "fleet-clock-wrong",
                ahead,
                "the clock of the engine is ahead of that of this node by `ahead` seconds: set the clock that is wrong. Until then, \
                 credentials of other nodes may not be valid here, and this node removes nothing from the common state"
            );
        }
        was_wrong = time.is_none();
        let is_first = {
            let nodes = session.view.nodes();
            let first = nodes.live(session.inputs.now()).map(|beat| beat.name.as_str()).min();
            first == Some(session.settings.node.as_str())
        };
        let Some(now) = time.filter(|_| is_first && session.connection.borrow().is_up) else { continue };
        let is_old = |held: &Held| held.kept_until.is_some_and(|until| until <= now);
        let old: Vec<(String, u64)> = {
            let common = session.common.borrow();
            let old = common.entries.iter().filter(|(_, held)| is_old(held)).take(PURGED_AT_ONCE);
            old.map(|(key, held)| (key.clone(), held.revision)).collect()
        };
        for (key, revision) in old {
            if requests::purge(&session, &key, revision).await.is_err() {
                break;
            }
            let mut common = session.common.borrow_mut();
            if common.entries.get(&key).is_some_and(|held| held.revision == revision) {
                common.entries.remove(&key);
            }
        }
    }
}

/// Whether the clocks of this node and of the engine agree, as far as this node knows.
fn is_clock_right(session: &Session) -> bool {
    session.engine_ahead.get().is_none_or(|ahead| purge_time(clock::unix_seconds(), ahead).is_some())
}

/// Returns the time up to which entries may be removed, the earlier one of this node and of the engine, which is `ahead` by
/// some seconds; `None` if one of them is wrong. A clock that is far ahead would end the revocations of all nodes.
fn purge_time(own: u64, ahead: i64) -> Option<u64> {
    (ahead.unsigned_abs() <= KEPT_EXPIRED).then(|| own.saturating_add_signed(ahead.min(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_removed_by_a_clock_that_is_wrong() {
        assert_eq!(purge_time(10_000, 0), Some(10_000));
        assert_eq!([purge_time(10_000, 5), purge_time(10_000, -5)], [Some(10_000), Some(9_995)]);
        assert_eq!([purge_time(10_000, 3_601), purge_time(10_000, -3_601)], [None, None]);
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
