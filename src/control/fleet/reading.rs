//! What a reading of the common state's bucket means: which entries count, what the engine has lost, and what somebody has
//! removed. It does no I/O.
//!
//! A server of the engine may lag behind the others, and the engine may lose what it stores, or get it back from a backup.
//! A node that believed all of that would forget revocations, and accept secrets that were retired long ago.

use std::collections::{BTreeMap, BTreeSet};

use super::copy::Origin;
use super::state::{Entry, FleetState, KEPT, KEPT_EXPIRED, REVOKED, SECRET};

/// The most keys of the bucket that this node follows. The nodes write far fewer.
const MOST_KEYS: usize = 2 * FleetState::MOST_ENTRIES;
/// The most entries of a reading that cannot be used and are known by name.
const MOST_REFUSED: usize = 1_000;

/// An entry of the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) revision: u64,
    /// When it may be removed, in seconds since the Unix epoch; `None` if that is not decided.
    pub(super) kept_until: Option<u64>,
}

/// What is known of the bucket before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BucketState {
    /// When it was created, in seconds since the Unix epoch.
    pub(super) created: u32,
    /// Its last revision.
    pub(super) last: u64,
}

/// How the engine has lost what this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The bucket is an older copy of itself.
    RolledBack,
    /// There is another bucket in its place.
    Replaced,
}

/// A change of the bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    pub(super) key: &'a str,
    pub(super) revision: u64,
    /// What the entry holds; `None` if it was removed.
    pub(super) value: Option<&'a [u8]>,
}

/// Something that the bucket needs, because the engine has lost it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Repair {
    /// It lacks an entry.
    Create(String),
    /// It has an earlier form of an entry, with this revision.
    Update(String, u64),
    /// It has an entry that was removed before, with this revision.
    Purge(String, u64),
}

/// What has become of the secrets that a bucket without them may have lost, or that may have been retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubtful {
    /// The bucket has none, so this node uses its own.
    Kept,
    /// The bucket has others, so this many are not used any more.
    Dropped(usize),
}

/// One reading of the bucket as a whole, and what came after it.
#[derive(Debug)]
pub(super) struct Reading {
    bucket: BucketState,
    is_clock_right: bool,
    loss: Option<Loss>,
    /// The keys that the bucket has, until all are read.
    seen: Option<BTreeSet<String>>,
    /// Whether the bucket has more keys than this node follows.
    is_cut: bool,
    /// The entries that it has with an earlier revision than this node knows.
    behind: BTreeSet<String>,
    /// The entries that this node cannot use.
    refused: BTreeMap<String, u64>,
    /// The entries that this node knows in a later form, or that had been removed.
    wrong: Vec<Repair>,
}

/// What a reading as a whole has shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Whether the state has changed.
    pub(super) is_changed: bool,
    /// Whether another reading has to show that what this one lacks, or has in an earlier form, is not only late.
    pub(super) is_doubtful: bool,
    /// What the bucket needs. Until then, the loss is not over.
    pub(super) repairs: Vec<Repair>,
    pub(super) secrets: Option<Doubtful>,
    /// Whether a loss is over.
    pub(super) is_restored: bool,
}

/// What this node knows of the bucket.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) state: FleetState,
    /// Where the state comes from.
    pub(super) origin: Origin,
    /// The entries of the bucket.
    pub(super) entries: BTreeMap<String, Held>,
    /// What the last reading has not found.
    absent: BTreeSet<String>,
    /// What it had with an earlier revision.
    behind: BTreeSet<String>,
    /// Whether this node gives the engine back what it has lost.
    pub(super) repairs: bool,
}

impl Reading {
    /// Whether the bucket was read as a whole.
    pub(super) fn is_complete(&self) -> bool {
        self.seen.is_none()
    }

    /// Returns the first revision that this node could not use.
    pub(super) fn first_refused(&self) -> Option<u64> {
        self.refused.values().min().copied()
    }
}

impl Common {
    pub(super) fn new(state: FleetState, origin: Origin) -> Self {
        Self { state, origin, ..Self::default() }
    }

    /// Whether this node has read the bucket, in this or an earlier run.
    pub(super) fn is_known(&self) -> bool {
        self.origin.created != 0
    }

    /// Begins to read the bucket. `is_clock_right` says whether the clocks of this node and of the engine agree.
    pub(super) fn begin(&mut self, bucket: BucketState, is_clock_right: bool, now: u64) -> Reading {
        let Origin { created, revision, .. } = self.origin;
        let loss = if !self.is_known() {
            None
        } else if created != bucket.created {
            Some(Loss::Replaced)
        } else if bucket.last < revision {
            // Until it is restored, also if it has got other revisions by then.
            self.origin.revision = u64::MAX;
            Some(Loss::RolledBack)
        } else {
            None
        };
        self.repairs = loss.is_some() && self.is_recent(now);
        Reading {
            bucket,
            is_clock_right,
            loss,
            seen: Some(BTreeSet::new()),
            is_cut: false,
            behind: BTreeSet::new(),
            refused: BTreeMap::new(),
            wrong: Vec::new(),
        }
    }

    /// Whether the bucket has room for no further revocation.
    pub(super) fn holds_most_revocations(&self) -> bool {
        let held = self.entries.range(REVOKED.to_owned()..).take_while(|(key, _)| key.starts_with(REVOKED));
        held.count() >= FleetState::MOST_ENTRIES
    }

    /// Whether all that the other nodes have removed since this one has read the bucket would still be there.
    fn is_recent(&self, now: u64) -> bool {
        let read_at = self.origin.read_at;
        // The clock may have been wrong, or is.
        read_at.saturating_add(KEPT) > now && read_at <= now.saturating_add(KEPT_EXPIRED)
    }

    /// Takes a change. Returns whether it changes the state.
    ///
    /// # Errors
    /// If this node cannot use the entry: why.
    pub(super) fn take(&mut self, change: Change<'_>, reading: &mut Reading, now: u64) -> Result<bool, &'static str> {
        let Change { key, revision, value } = change;
        let is_full = |keys: usize, is_known: bool| keys >= MOST_KEYS && !is_known;
        if let Some(seen) = &mut reading.seen {
            if is_full(seen.len(), seen.contains(key)) {
                reading.is_cut = true;
                return Err("exceeds the greatest number of entries");
            }
            seen.insert(key.to_owned());
        }
        if self.entries.get(key).is_some_and(|held| held.revision > revision) {
            // The server of the engine lags behind.
            if reading.seen.is_some() {
                reading.behind.insert(key.to_owned());
            }
            return Ok(false);
        }
        reading.refused.remove(key);
        let Some(value) = value else {
            self.entries.remove(key);
            return Ok(self.state.remove(key));
        };
        let taken = Entry::parse(key, value).and_then(|entry| {
            if is_full(self.entries.len(), self.entries.contains_key(key)) {
                return Err("exceeds the greatest number of entries");
            }
            self.use_entry(entry, change, reading, now)
        });
        if taken.is_err() && (reading.refused.len() < MOST_REFUSED || reading.refused.contains_key(key)) {
            reading.refused.insert(key.to_owned(), revision);
        }
        taken
    }

    fn use_entry(
        &mut self,
        entry: Entry,
        Change { key, revision, .. }: Change<'_>,
        reading: &mut Reading,
        now: u64,
    ) -> Result<bool, &'static str> {
        let kept_until = entry.kept_until();
        let known = self.state.entry(key).map(|(changed, _)| changed);
        let is_outdated = known > Some(entry.changed());
        if reading.loss.is_none() && is_outdated && revision <= self.origin.revision && !self.entries.contains_key(key)
        {
            // This node had read later ones before it was started again.
            if reading.seen.is_some() {
                reading.behind.insert(key.to_owned());
            }
            return Ok(false);
        }
        self.entries.insert(key.to_owned(), Held { revision, kept_until });
        if reading.loss.is_some() && is_outdated {
            reading.wrong.push(Repair::Update(key.to_owned(), revision));
            return Ok(false);
        }
        let changed = entry.changed() / 1_000;
        let was_there = changed.saturating_add(KEPT_EXPIRED) < self.origin.read_at;
        let was_removed = known.is_none() && was_there && reading.is_clock_right && self.state.has_room();
        if reading.loss == Some(Loss::RolledBack) && was_removed {
            reading.wrong.push(Repair::Purge(key.to_owned(), revision));
            return Ok(false);
        }
        if kept_until.is_some_and(|until| until <= now) {
            return Ok(self.state.remove(key));
        }
        self.state.insert(entry, now)
    }

    /// Compares the bucket, which has been read as a whole, with what this node knows.
    pub(super) fn finish(&mut self, reading: &mut Reading, now: u64) -> Outcome {
        let Some(seen) = reading.seen.take() else { return Outcome::default() };
        let mut outcome = Outcome::default();
        match reading.loss {
            None => {
                let behind = std::mem::replace(&mut self.behind, std::mem::take(&mut reading.behind));
                if !behind.is_disjoint(&self.behind) {
                    // No server lags for so long: others have made more changes since the bucket became older.
                    self.origin.revision = u64::MAX;
                    self.forget_revisions();
                    return Outcome { is_doubtful: true, ..outcome };
                }
                outcome.is_doubtful = !self.behind.is_empty();
                self.forget_absent(&seen, reading.is_cut, &mut outcome);
            }
            Some(_) => {
                self.absent.clear();
                let is_recent = self.is_recent(now);
                outcome.repairs = std::mem::take(&mut reading.wrong);
                if !is_recent {
                    self.doubt(&seen, now, &mut outcome);
                }
                let lost = self.state.keys().filter(|key| {
                    let ends_later = || self.state.revocation(key).is_some_and(|revocation| revocation.until > now);
                    !seen.contains(key) && (is_recent || ends_later())
                });
                outcome.repairs.extend(lost.map(Repair::Create));
            }
        }
        if outcome.repairs.is_empty() && outcome.secrets != Some(Doubtful::Kept) {
            // A node that knows nothing has restored nothing.
            outcome.is_restored = reading.loss.take().is_some() && self.state != FleetState::default();
            self.repairs = false;
            self.origin = Origin { created: reading.bucket.created, revision: reading.bucket.last, read_at: now };
        }
        outcome
    }

    /// Forgets what two readings in a row have not found.
    fn forget_absent(&mut self, seen: &BTreeSet<String>, is_cut: bool, outcome: &mut Outcome) {
        if is_cut {
            return;
        }
        let was_absent = std::mem::take(&mut self.absent);
        let mut absent = BTreeSet::new();
        let mut is_kept = |key: &str| {
            if seen.contains(key) {
                return true;
            }
            if was_absent.contains(key) {
                return false;
            }
            absent.insert(key.to_owned());
            true
        };
        self.entries.retain(|key, _| is_kept(key));
        outcome.is_changed = self.state.retain(is_kept);
        outcome.is_doubtful |= !absent.is_empty();
        self.absent = absent;
    }

    /// Decides about secrets that were lost, or retired while this node was away for so long that the others have forgotten
    /// them. Revocations stay: one too many ends by itself, one too few lets somebody in.
    fn doubt(&mut self, seen: &BTreeSet<String>, now: u64, outcome: &mut Outcome) {
        if self.state.accepted_secrets(now, |key| !seen.contains(key)) == 0 {
            return;
        }
        if self.state.accepted_secrets(now, |key| seen.contains(key)) == 0 {
            // Nobody has retired all of them.
            outcome.secrets = Some(Doubtful::Kept);
            return;
        }
        let dropped = self.state.accepted_secrets(now, |key| !seen.contains(key));
        outcome.is_changed |= self.state.retain(|key| !key.starts_with(SECRET) || seen.contains(key));
        outcome.secrets = Some(Doubtful::Dropped(dropped));
    }

    /// Notes that this node uses the bucket up to a revision: a later loss of it has to be noticed.
    pub(super) fn used(&mut self, reading: &Reading, revision: u64) {
        if self.origin.created == reading.bucket.created {
            self.origin.revision = self.origin.revision.max(revision);
        }
    }

    /// Forgets the revisions of entries, which belong to another bucket than the one that is read next.
    pub(super) fn forget_revisions(&mut self) {
        self.entries.clear();
        self.absent.clear();
        self.behind.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::auth::Secret;
    use crate::control::fleet::state::{FleetRevocation, FleetSecret, revocation_key, secret_key};
    use crate::fleet::Key;

    const NOW: u64 = 1_800_000_000;
    const BUCKET: BucketState = BucketState { created: 7, last: 50 };

    /// A secret that was changed some seconds ago, with its key.
    fn secret(id: &str, age: u64, until: Option<u64>) -> (String, Entry) {
        let (secret, changed) = (Secret::new("a secret").unwrap(), (NOW - age) * 1_000);
        (secret_key(id), Entry::Secret(id.to_owned(), FleetSecret { secret, from: 0, until, changed }))
    }

    fn revocation(username: &str, age: u64, until: u64) -> (String, Entry) {
        let key = (revocation_key(username), Key::of(username));
        let (username, changed) = (username.to_owned(), (NOW - age) * 1_000);
        (key.0, Entry::Revocation(key.1, FleetRevocation { username, until, is_shortened: false, changed }))
    }

    /// Returns a node that knows entries, and has read the bucket some seconds ago.
    fn node(known: &[(String, Entry)], created: u32, revision: u64, age: u64) -> Common {
        let mut state = FleetState::default();
        for (_, entry) in known {
            state.insert(entry.clone(), NOW).unwrap();
        }
        Common::new(state, Origin { created, revision, read_at: NOW - age })
    }

    fn take(node: &mut Common, reading: &mut Reading, (key, entry): &(String, Entry), revision: u64) -> bool {
        let text = match entry {
            Entry::Secret(_, secret) => secret.to_json(),
            Entry::Revocation(_, revocation) => revocation.to_json(),
        };
        node.take(Change { key, revision, value: Some(text.as_bytes()) }, reading, NOW).unwrap()
    }

    /// Reads a bucket that has entries, with revisions from 1 on.
    fn read(node: &mut Common, bucket: BucketState, entries: &[(String, Entry)]) -> Outcome {
        let mut reading = node.begin(bucket, true, NOW);
        for (entry, revision) in entries.iter().zip(1..) {
            take(node, &mut reading, entry, revision);
        }
        node.finish(&mut reading, NOW)
    }

    fn keys(node: &Common) -> Vec<String> {
        node.state.keys().collect()
    }

    #[test]
    fn a_lost_bucket_gets_back_what_it_lacks_until_nothing_is_missing() {
        let known = [secret("a", 9, None), secret("b", 9, Some(NOW - 5)), revocation("ann", 9, NOW + 5)];
        let [a, b, ann] = known.clone().map(|(key, _)| key);
        for (created, revision) in [(6, 50), (7, 51)] {
            let mut node = node(&known, created, revision, 10);
            // Another node has been faster with one of them. What has ended has to stay known, too.
            let outcome = read(&mut node, BUCKET, &known[..1]);
            assert_eq!(outcome.repairs, [Repair::Create(b.clone()), Repair::Create(ann.clone())]);
            assert!(node.repairs && !outcome.is_restored && outcome.secrets.is_none());
            // By now the bucket has more revisions than before, and the loss is not over.
            let outcome = read(&mut node, BucketState { last: 99, ..BUCKET }, &known[..2]);
            assert_eq!(outcome.repairs, [Repair::Create(ann.clone())]);
            let outcome = read(&mut node, BucketState { last: 100, ..BUCKET }, &known);
            assert!(outcome.repairs.is_empty() && outcome.is_restored && !node.repairs);
            assert_eq!(node.origin, Origin { created: 7, revision: 100, read_at: NOW });
            assert_eq!(keys(&node), [a.clone(), b.clone(), ann.clone()]);
        }
    }

    #[test]
    fn after_a_day_away_revocations_are_given_back_and_secrets_are_doubtful() {
        let known = [secret("a", 90_000, None), revocation("ann", 90_000, NOW + 5), revocation("bob", 9, NOW - 5)];
        let [a, ann, bob] = known.clone().map(|(key, _)| key);
        let other = [secret("c", 5, None)];
        // `read_at` may also come from a wrong clock.
        for age in [KEPT as i64, -2 * KEPT_EXPIRED as i64] {
            let mut node = node(&known, 6, 50, 0);
            node.origin.read_at = NOW.saturating_add_signed(-age);
            let outcome = read(&mut node, BUCKET, &[]);
            assert_eq!(
                (outcome.secrets, &*outcome.repairs),
                (Some(Doubtful::Kept), &[Repair::Create(ann.clone())][..])
            );
            assert!(!node.repairs);
            // Until somebody adds a secret.
            let outcome = read(&mut node, BUCKET, &known[1..2]);
            assert_eq!((outcome.secrets, outcome.is_restored), (Some(Doubtful::Kept), false));
            assert!([&a, &ann, &bob].into_iter().all(|key| keys(&node).contains(key)));
            // An ended one is none.
            let ended = [secret("c", 5, Some(NOW - 1)), known[1].clone()];
            assert_eq!(read(&mut node, BUCKET, &ended).secrets, Some(Doubtful::Kept));
            let now = [other[0].clone(), known[1].clone()];
            let outcome = read(&mut node, BucketState { last: 60, ..BUCKET }, &now);
            assert_eq!((outcome.secrets, outcome.is_restored), (Some(Doubtful::Dropped(1)), true));
            assert!(outcome.is_changed && !keys(&node).contains(&a) && keys(&node).contains(&ann));
        }
    }

    #[test]
    fn an_older_copy_of_the_bucket_does_not_bring_back_what_was_changed_or_removed() {
        let retired = secret("a", 100, Some(NOW - 50));
        let mut node = node(from_ref(&retired), 7, 80, 10);
        let older = [secret("a", 9_000, None), secret("gone", 90_000, None), secret("new", 5, None)];
        let outcome = read(&mut node, BUCKET, &older);
        assert_eq!(outcome.repairs, [Repair::Update(retired.0.clone(), 1), Repair::Purge(older[1].0.clone(), 2)]);
        assert_eq!(keys(&node), [retired.0.clone(), older[2].0.clone()]);
        assert_eq!(node.state.accepted_secrets(NOW, |_| true), 1);
        // By a clock that is wrong, each entry may be old.
        let mut node = self::node(from_ref(&retired), 7, 80, 10);
        let mut reading = node.begin(BUCKET, false, NOW);
        assert!(take(&mut node, &mut reading, &older[1], 2) && node.finish(&mut reading, NOW).secrets.is_none());
        // In another bucket, that is no reason to remove anything.
        let mut node = self::node(&[retired], 6, 80, 10);
        assert!(matches!(&*read(&mut node, BUCKET, &older).repairs, [Repair::Update(..)]));
    }

    #[test]
    fn an_older_copy_that_others_have_changed_more_often_since_is_noticed_too() {
        let [ann, bob] = ["ann", "bob"].map(|name| revocation(name, 50, NOW + 5));
        let mut node = node(&[], 0, 0, 0);
        read(&mut node, BucketState { last: 2, ..BUCKET }, &[ann.clone(), bob.clone()]);
        // The bucket had been empty, and got further entries.
        let others = ["c", "d", "e"].map(|name| revocation(name, 5, NOW + 5));
        let entries = [from_ref(&bob), &others[..]].concat();
        let bucket = BucketState { last: 4, ..BUCKET };
        assert!(read(&mut node, bucket, &entries).is_doubtful && node.behind.len() == 1);
        assert!(read(&mut node, bucket, &entries).is_doubtful);
        assert_eq!(read(&mut node, bucket, &entries).repairs, [Repair::Create(ann.0.clone())]);
        assert_eq!(keys(&node).len(), 5);
    }

    #[test]
    fn a_server_that_lags_behind_undoes_nothing() {
        let (old, new) = (revocation("ann", 100, NOW + 5), revocation("ann", 50, NOW + 90));
        let late = secret("late", 10, None);
        let mut node = node(&[], 0, 0, 0);
        read(&mut node, BUCKET, from_ref(&old));
        let mut reading = node.begin(BUCKET, true, NOW);
        take(&mut node, &mut reading, &old, 1);
        node.finish(&mut reading, NOW);
        assert!(take(&mut node, &mut reading, &new, 51) && take(&mut node, &mut reading, &late, 52));
        assert!(!take(&mut node, &mut reading, &old, 1));
        node.used(&reading, 52);
        let until = |node: &Common| node.state.revocation(&new.0).map(|revocation| revocation.until);
        assert_eq!(until(&node), Some(NOW + 90));
        // The latest entry is not there yet: one reading does not prove that it is gone.
        let outcome = read(&mut node, BucketState { last: 52, ..BUCKET }, from_ref(&old));
        assert!(outcome.is_doubtful && !outcome.is_changed && until(&node) == Some(NOW + 90));
        assert!(keys(&node).contains(&late.0) && node.entries.contains_key(&late.0));
        // The same after a restart.
        let mut node = Common::new(node.state.clone(), node.origin);
        let outcome = read(&mut node, BucketState { last: 52, ..BUCKET }, from_ref(&old));
        assert!(outcome.is_doubtful && until(&node) == Some(NOW + 90) && keys(&node).contains(&late.0));
        // A second reading without it does.
        let outcome = read(&mut node, BucketState { last: 52, ..BUCKET }, from_ref(&new));
        assert!(outcome.is_changed && !outcome.is_doubtful);
        assert_eq!((keys(&node), node.entries.len()), (vec![new.0.clone()], 1));
        // Somebody has really put the older form there again.
        let mut reading = node.begin(BucketState { last: 52, ..BUCKET }, true, NOW);
        assert!(take(&mut node, &mut reading, &old, 53) && until(&node) == Some(NOW + 5));
    }

    #[test]
    fn the_keys_that_are_followed_are_bounded_and_what_does_not_fit_removes_nothing() {
        let ann = revocation("ann", 9, NOW + 5);
        let mut node = node(from_ref(&ann), 7, 50, 10);
        for _ in 0..2 {
            let mut reading = node.begin(BUCKET, true, NOW);
            for number in 0..MOST_KEYS + 1 {
                let key = format!("other.{number}");
                let change = Change { key: &key, revision: 1, value: Some(b"{}") };
                assert!(node.take(change, &mut reading, NOW).is_err());
            }
            assert!(reading.refused.len() == MOST_REFUSED && reading.first_refused() == Some(1));
            assert_eq!(reading.seen.as_ref().map(BTreeSet::len), Some(MOST_KEYS));
            assert!(!node.finish(&mut reading, NOW).is_changed && keys(&node) == [ann.0.clone()]);
        }
    }

    #[test]
    fn the_room_for_revocations_is_not_that_of_secrets() {
        let mut node = node(&[], 0, 0, 0);
        let held = Held { revision: 1, kept_until: None };
        node.entries.extend((0..FleetState::MOST_ENTRIES - 1).map(|number| (format!("revoked.{number}"), held)));
        node.entries.insert("secret.a".to_owned(), held);
        assert!(!node.holds_most_revocations());
        node.entries.insert("revoked.z".to_owned(), held);
        assert!(node.holds_most_revocations());
    }
}
