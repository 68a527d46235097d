//! Limits of a user over all nodes, by leases. No request waits for a lease.
//!
//! A user may have N allocations over all nodes. Each node applies a [`Share`] of its own to the user. A user that is new
//! at a node begins at once with the *first share* F = min(N, max(16, N / nodes)). Meanwhile the node asks for a lease: it
//! enters itself into the user's [`Record`] by compare-and-set. It takes what it wants, but no more than N less the
//! grants of the others. If that is less than the user has there already, it takes what the user has: a lease never ends
//! an allocation. The node renews the lease, gives back what is not needed, and removes its entry when the user has left.
//! The grants of a node that does not renew them end with its lease.
//!
//! The bytes per second of a user are divided in the same way, in proportion to the user's allocations at each node.
//!
//! # The bound
//!
//! A user that has allocations at k nodes has at most N + F × (k − 1) of them, whatever the order of messages, and while
//! the engine is away. In detail:
//!
//! - The grants of a record exceed N only by what nodes took because it was in use when they entered the record. That is
//!   at most F for each, and only if other nodes held the rest of N. A grant that is too large is never renewed with more.
//! - A node that is not in the record has at most F: its user arrived before the records agreed, the engine is away, or the
//!   record has [`Record::MOST_HOLDERS`] entries; in that case no new allocation is admitted.
//! - A share is lowered before the record says so ([`Output::Share`], [`Leases::applied`]), and raised after it.
//!
//! While the engine is away, nodes keep what they hold, however long. After its return, for [`SETTLE`], no grant grows
//! and none of others counts as ended, so that all nodes come back to their grants, even if the engine has lost the records.
//! A node that is cut off alone for longer than its lease is different: for the others it is dead, and they take what
//! it holds. What its user has there, at most its grant, comes on top of the bound.
//!
//! The same bound applies to the bytes per second B: at most B × (1 + f × (k − 1)), where f is the first fraction, F / N.
//!
//! Ends of leases are times of the wall clock. They are compared with an allowance of [`SKEW`] seconds, and leases last three
//! renewals, so clocks may differ by 20 s.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use rand::{Rng, RngExt as _};
use sha2::{Digest as _, Sha256};

use super::record::{Holder, Record};
use crate::turn::{Instant, UserShare};

/// The whole, of which [`Share::bytes`] is a part.
pub const WHOLE: u32 = 1_000_000;
/// The first share is at least this: enough for the call of a browser.
const FIRST: u32 = 16;
/// The first part of the bytes per second if allocations are not limited.
const FIRST_BYTES: u32 = WHOLE / 2;

/// The time between renewals of a lease.
pub const RENEWAL: Duration = Duration::from_secs(10);
/// The same for ordinary users: the node has no more than the first share, all grants fit into the limits, and no node
/// lacks anything.
pub const LONG_RENEWAL: Duration = Duration::from_secs(60);
/// A lease lasts this many renewals.
const RENEWALS: u32 = 3;
/// How long after the start or the return of the engine grants do not grow and those of others do not end.
pub const SETTLE: Duration = Duration::from_secs(30);
/// How many seconds after its end a lease of another node counts as ended.
pub const SKEW: u64 = 5;
/// The longest time that a lease lasts, and what clocks may differ by, in seconds.
const LONGEST: u64 = LONG_RENEWAL.as_secs() * RENEWALS as u64;
const ALLOWANCE: u64 = 20;
/// How long a user without allocations keeps its entry.
const LINGER: Duration = Duration::from_secs(5);
/// The least time from one lease to an earlier renewal that asks for more.
const IMPATIENCE: Duration = Duration::from_secs(2);
/// The greatest time until the next attempt.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a node lets a user use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The number of allocations; [`u32::MAX`] if they are not limited.
    pub allocations: u32,
    /// The part of the user's bytes per second, in millionths.
    pub bytes: u32,
}

impl From<Share> for UserShare {
    fn from(share: Share) -> Self {
        Self { allocations: share.allocations, bytes: share.bytes }
    }
}

/// The limits over all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The allocations that a user may have, N; 0 is no limit.
    pub allocations: u32,
    /// The number of live nodes.
    pub nodes: u32,
}

impl Limits {
    /// Returns the share of a user that is new at a node.
    #[must_use]
    pub fn first(self) -> Share {
        if self.allocations == 0 {
            return Share { allocations: u32::MAX, bytes: FIRST_BYTES };
        }
        let allocations = self.allocations.min(FIRST.max(self.allocations / self.nodes.max(1)));
        Share { allocations, bytes: part(allocations, self.allocations) }
    }
}

/// The key of a user's record: the first 16 bytes of the SHA-256 of the name, since names may have any characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 16]);

impl Key {
    /// Returns the key of a user.
    #[must_use]
    pub fn of(user: &str) -> Self {
        let hash = Sha256::digest(user.as_bytes());
        let mut key = [0; 16];
        key.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        Self(key)
    }

    /// Parses 32 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(|bits| Self(bits.to_be_bytes()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// What the caller has to do. Each `Read`, `Write` and `Delete` gets exactly one of the responses
/// [`read`](Leases::read), [`unreadable`](Leases::unreadable), [`written`](Leases::written),
/// [`refused`](Leases::refused) and [`failed`](Leases::failed).
#[derive(Clone, PartialEq, Eq)]
pub enum Output {
    /// Apply this share to the user, then count the user's allocations and report them with [`Leases::applied`].
    Share {
        /// The key of the user.
        key: Key,
        /// The user.
        user: Box<str>,
        /// The share.
        share: Share,
    },
    /// The user has left: the first share applies again.
    Forget {
        /// The user.
        user: Box<str>,
    },
    /// Read the record.
    Read {
        /// The key of the record.
        key: Key,
    },
    /// Write the record if it has this revision.
    Write {
        /// The key of the record.
        key: Key,
        /// The expected revision; 0 if there must be no record.
        revision: u64,
        /// The record.
        record: Record,
    },
    /// Delete the record if it has this revision.
    Delete {
        /// The key of the record.
        key: Key,
        /// The expected revision.
        revision: u64,
    },
    /// Send a node the key, for its [`Leases::hinted`]: there is another holder, or one that lacks something. The message
    /// may get lost; then the node learns of it at its next renewal.
    Hint {
        /// The node.
        node: Box<str>,
        /// The key of the record.
        key: Key,
    },
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Names of users are private.
            Self::Share { key, share, .. } => write!(f, "Share({key}, {share:?})"),
            Self::Forget { user } => write!(f, "Forget({})", Key::of(user)),
            Self::Read { key } => write!(f, "Read({key})"),
            Self::Write { key, revision, record } => write!(f, "Write({key}, {revision}, {record:?})"),
            Self::Delete { key, revision } => write!(f, "Delete({key}, {revision})"),
            Self::Hint { node, key } => write!(f, "Hint({node}, {key})"),
        }
    }
}

/// The leases of a node.
pub struct Leases {
    node: Box<str>,
    limits: Limits,
    users: HashMap<Key, User>,
    /// When the next step of each user is due, in microseconds. Users that wait for a response are not in it.
    due: BTreeSet<(u64, Key)>,
    outputs: VecDeque<Output>,
    in_flight: usize,
    /// Since when the engine has responded to everything; `None` while it is away.
    works_since: Option<Instant>,
}

struct User {
    name: Box<str>,
    used: u32,
    /// What the node applies.
    share: Share,
    /// The revision of `record`; 0 if there is none. `None` if a read has to come first.
    revision: Option<u64>,
    record: Record,
    step: Step,
    due: u64,
    /// When the lease was last written.
    leased: Option<Instant>,
    /// Refused writes in a row.
    conflicts: u32,
    /// Whether there was no more to take when the lease was written.
    capped: bool,
}

/// What a user waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// For its time.
    Due,
    Reading,
    /// For the count after its share was lowered.
    Applying,
    /// For the response to a write, which grants this share.
    Writing(Share, Record),
    /// For the response to a write or a deletion that removes the entry of this node.
    Leaving(Record),
}

/// What a node enters into a record.
struct Plan {
    holder: Holder,
    /// The record without the entry of this node and without leases that have ended.
    others: Record,
    capped: bool,
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

impl Leases {
    /// The greatest number of users. Further ones keep the first share.
    pub const MOST_USERS: usize = 100_000;
    /// The greatest number of reads, writes and deletions without a response.
    pub const MOST_IN_FLIGHT: usize = 64;

    /// Creates the leases of a node without users. The engine is away.
    #[must_use]
    pub fn new(node: &str, limits: Limits) -> Self {
        Self {
            node: node.into(),
            limits,
            users: HashMap::new(),
            due: BTreeSet::new(),
            outputs: VecDeque::new(),
            in_flight: 0,
            works_since: None,
        }
    }

    /// Returns the name of the node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Changes the limits. Leases follow at their next renewals.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Returns the share of a user.
    #[must_use]
    pub fn share(&self, user: &str) -> Share {
        self.users.get(&Key::of(user)).map_or(self.limits.first(), |user| user.share)
    }

    /// Returns the number of users with a lease, or on the way to one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there are no users.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Returns the next output.
    pub fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns the time until [`advance`](Self::advance) has to be called; `None` if only an input makes it necessary.
    #[must_use]
    pub fn next_due(&self, now: Instant) -> Option<Duration> {
        let (at, _) = self.due.first()?;
        let ready = self.works_since.is_some() && self.in_flight < Self::MOST_IN_FLIGHT;
        ready.then(|| Duration::from_micros(at.saturating_sub(now.micros())))
    }

    /// Takes the number of allocations that a user has at this node.
    pub fn count_changed(&mut self, user: &str, used: u32, now: Instant) {
        let key = Key::of(user);
        let first = self.limits.first();
        if let Some(known) = self.users.get_mut(&key) {
            known.used = used;
            self.hasten(key, now);
        } else if used > 0 && self.users.len() < Self::MOST_USERS {
            let fresh = User {
                name: user.into(),
                used,
                share: first,
                // Most users are at one node only, so a write without a read usually succeeds.
                revision: Some(0),
                record: Record::default(),
                step: Step::Due,
                due: 0,
                leased: None,
                conflicts: 0,
                capped: false,
            };
            self.users.insert(key, fresh);
            self.schedule(key, now);
        }
    }

    /// Takes the number of allocations of a user after an [`Output::Share`] was applied.
    pub fn applied(&mut self, key: Key, used: u32, now: Instant, unix: u64) {
        let Some(user) = self.users.get_mut(&key) else { return };
        user.used = used;
        if user.step == Step::Applying {
            user.step = Step::Due;
            self.begin(key, now, unix);
        }
    }

    /// Takes the record at a revision, or that there is none.
    pub fn read(&mut self, key: Key, found: Option<(u64, Record)>, now: Instant, unix: u64) {
        if !self.responded(key) {
            return;
        }
        let Some(user) = self.users.get_mut(&key) else { return };
        let (revision, record) = found.unwrap_or_default();
        (user.revision, user.record, user.step) = (Some(revision), record, Step::Due);
        self.begin(key, now, unix);
    }

    /// Takes that a write was accepted and made this revision, or a deletion (any revision).
    pub fn written(&mut self, key: Key, revision: u64, now: Instant, unix: u64) {
        if !self.responded(key) {
            return;
        }
        let first = self.limits.first();
        let Some(user) = self.users.get_mut(&key) else { return };
        user.conflicts = 0;
        match std::mem::replace(&mut user.step, Step::Due) {
            Step::Writing(share, record) => {
                let before = user.share;
                // Other holders change the record until the next renewal, which therefore begins with a read.
                user.revision = (record.holders.len() == 1).then_some(revision);
                (user.share, user.record, user.leased) = (share, record, Some(now));
                if share != before {
                    self.outputs.push_back(Output::Share { key, user: user.name.clone(), share });
                }
                let renewal = self.renewal(key, unix);
                self.schedule(key, now.plus(renewal));
                self.hasten(key, now);
            }
            Step::Leaving(record) if user.used == 0 => {
                drop(record);
                self.forget(key);
            }
            Step::Leaving(record) => {
                // The user has come back meanwhile.
                user.revision = if record.holders.is_empty() { Some(0) } else { Some(revision) };
                (user.record, user.leased) = (record, None);
                user.share.allocations = user.share.allocations.min(first.allocations);
                self.schedule(key, now);
            }
            Step::Due | Step::Reading | Step::Applying => {}
        }
    }

    /// Takes that the record did not have the expected revision.
    pub fn refused(&mut self, key: Key, now: Instant, rng: &mut impl Rng) {
        if !self.responded(key) {
            return;
        }
        let Some(user) = self.users.get_mut(&key) else { return };
        (user.revision, user.step) = (None, Step::Due);
        user.conflicts += 1;
        // The first time at once: mostly there is one other writer, which is done.
        let pause = if user.conflicts == 1 { Duration::ZERO } else { pause(user.conflicts, rng) };
        self.schedule(key, now.plus(pause));
    }

    /// Takes that a read found something that is no record of this version. The user keeps the share that it has.
    pub fn unreadable(&mut self, key: Key, now: Instant) {
        if !self.responded(key) {
            return;
        }
        let Some(user) = self.users.get_mut(&key) else { return };
        (user.revision, user.step) = (None, Step::Due);
        self.schedule(key, now.plus(LONG_RENEWAL));
    }

    /// Takes that there was no response in time, or an error. Whether a write took effect is unknown.
    pub fn failed(&mut self, key: Key, now: Instant, rng: &mut impl Rng) {
        if !self.responded(key) {
            return;
        }
        // Nodes may have been unable to renew their leases.
        self.works_since = self.works_since.map(|_| now);
        let Some(user) = self.users.get_mut(&key) else { return };
        (user.revision, user.step) = (None, Step::Due);
        self.schedule(key, now.plus(pause(u32::MAX, rng)));
    }

    /// Takes that the engine is away or back. The caller reports no responses to requests from before.
    pub fn engine(&mut self, works: bool, now: Instant, rng: &mut impl Rng) {
        if works == self.works_since.is_some() {
            return;
        }
        self.works_since = works.then_some(now);
        self.in_flight = 0;
        self.outputs.retain(|output| matches!(output, Output::Share { .. } | Output::Forget { .. }));
        self.due.clear();
        for (key, user) in &mut self.users {
            if matches!(user.step, Step::Reading | Step::Writing(..) | Step::Leaving(_)) {
                user.step = Step::Due;
            }
            if user.revision != Some(0) || user.leased.is_some() {
                user.revision = None;
            }
            // All nodes come back at once.
            user.due = now.plus(pause(u32::MAX, rng)).micros();
            if user.step == Step::Due {
                self.due.insert((user.due, *key));
            }
        }
    }

    /// Takes a hint of another node ([`Output::Hint`]).
    pub fn hinted(&mut self, key: Key, now: Instant) {
        let Some(user) = self.users.get_mut(&key) else { return };
        if user.step == Step::Due {
            user.revision = None;
            // At most one renewal every two seconds, whoever sends hints.
            let at = user.leased.map_or(now, |leased| leased.plus(IMPATIENCE));
            if at.micros() < user.due {
                self.schedule(key, at);
            }
        }
    }

    /// Counts again the allocations of users whose steps are due. A change of a count may have got lost on its way.
    pub fn recount(&mut self, count: impl Fn(&str) -> u32, now: Instant) {
        for (_, key) in self.due.iter().take(Self::MOST_IN_FLIGHT).take_while(|(at, _)| *at <= now.micros()) {
            if let Some(user) = self.users.get_mut(key) {
                user.used = count(&user.name);
            }
        }
    }

    /// Begins the steps that are due.
    pub fn advance(&mut self, now: Instant, unix: u64) {
        while self.works_since.is_some()
            && self.in_flight < Self::MOST_IN_FLIGHT
            && let Some((at, key)) = self.due.first().copied()
            && at <= now.micros()
        {
            self.due.pop_first();
            self.begin(key, now, unix);
        }
    }

    /// Begins a user's step: a read, or a write or deletion. If that lowers the share, the node applies it first, and begins
    /// again with the count that the user then has.
    fn begin(&mut self, key: Key, now: Instant, unix: u64) {
        let first = self.limits.first();
        let works = self.works_since.is_some();
        let Some(user) = self.users.get(&key) else { return };
        if !works {
            return self.schedule(key, now);
        }
        let Some(revision) = user.revision else {
            self.wait_for(key, Step::Reading);
            self.outputs.push_back(Output::Read { key });
            return;
        };
        let plan = self.plan(user, now, unix);
        let own = user.record.holders.get(&self.node);
        let (is_holder, was_short) = (own.is_some(), own.is_some_and(|own| own.short));
        if user.used == 0 {
            let lowest = Share { allocations: user.share.allocations.min(first.allocations), ..user.share };
            if !is_holder {
                return self.forget(key);
            }
            if self.lower(key, lowest) {
                return;
            }
            self.wait_for(key, Step::Leaving(plan.others.clone()));
            self.outputs.push_back(if plan.others.holders.is_empty() {
                Output::Delete { key, revision }
            } else {
                Output::Write { key, revision, record: plan.others }
            });
            return;
        }
        if !is_holder && plan.others.holders.len() >= Record::MOST_HOLDERS {
            // The record is full: the user keeps what it has here.
            let bytes = WHOLE / u32::try_from(Record::MOST_HOLDERS).unwrap_or(WHOLE).max(self.limits.nodes);
            let used = self.allocations(user.used);
            if !self.lower(key, Share { allocations: used, bytes: user.share.bytes.min(bytes) }) {
                if let Some(user) = self.users.get_mut(&key) {
                    user.revision = None;
                }
                self.schedule(key, now.plus(RENEWAL));
            }
            return;
        }
        let share = Share { allocations: self.allocations(plan.holder.granted), bytes: plan.holder.bytes };
        if self.lower(key, share) {
            return;
        }
        let mut record = plan.others;
        if !is_holder || plan.holder.short && !was_short {
            // A node with a long lease would otherwise learn of it late.
            let long = |holder: &Holder| holder.until > unix + (RENEWAL * RENEWALS).as_secs();
            let late = record.holders.iter().filter(|(_, holder)| long(holder));
            self.outputs.extend(late.map(|(node, _)| Output::Hint { node: node.clone(), key }));
        }
        record.holders.insert(self.node.clone(), plan.holder);
        if let Some(user) = self.users.get_mut(&key) {
            user.capped = plan.capped;
        }
        self.wait_for(key, Step::Writing(share, record.clone()));
        self.outputs.push_back(Output::Write { key, revision, record });
    }

    /// Decides what the node enters into the record of a user.
    fn plan(&self, user: &User, now: Instant, unix: u64) -> Plan {
        let settled = self.works_since.is_some_and(|since| now.since(since) >= SETTLE);
        let (first, used) = (self.limits.first(), user.used);
        let mut others = user.record.clone();
        others.holders.remove(&self.node);
        // A lease that lasts for longer than leases do was not made by a node with a right clock.
        let latest = unix.saturating_add(LONGEST).saturating_add(ALLOWANCE);
        others.holders.values_mut().for_each(|holder| holder.until = holder.until.min(latest));
        others.holders.retain(|_, holder| !settled || holder.until.saturating_add(SKEW) >= unix);
        let sum = |of: &dyn Fn(&Holder) -> u32| others.holders.values().map(of).fold(0, u32::saturating_add);
        let (granted, bytes, used_there) =
            (sum(&|holder| holder.granted), sum(&|holder| holder.bytes), sum(&|holder| holder.used));

        // What the user may need soon, and what remains for it if each node gets an equal part of what is not in use.
        let limit = if self.limits.allocations == 0 { u32::MAX } else { self.limits.allocations };
        let ample = used.saturating_add(FIRST / 2).max(first.allocations).min(limit.max(used));
        let unused = limit.saturating_sub(used_there.saturating_add(used));
        let nodes = u32::try_from(others.holders.len()).unwrap_or(u32::MAX).saturating_add(1);
        let fair = used.saturating_add(unused / nodes).min(ample);
        let wanted = if others.holders.values().any(|holder| holder.short) { fair } else { ample };
        let mut taken = wanted.min(limit.saturating_sub(granted)).max(used);
        if !settled {
            taken = taken.min(user.share.allocations.max(used));
        }
        let target = part(used, used.saturating_add(used_there));
        let mut part = target.min(WHOLE.saturating_sub(bytes).max(user.share.bytes));
        if !settled {
            part = part.min(user.share.bytes);
        }
        // Without a limit on allocations, the record has the counts for the bytes only.
        let taken = if self.limits.allocations == 0 { used } else { taken };
        let short = self.limits.allocations != 0 && taken < fair;
        let fits = !short
            && others.holders.values().all(|holder| !holder.short)
            && (taken <= first.allocations && granted.saturating_add(taken) <= limit)
            && (part == target && bytes.saturating_add(part) <= WHOLE);
        let until = unix + (if fits { LONG_RENEWAL } else { RENEWAL } * RENEWALS).as_secs();
        let capped = taken < ample || ample >= limit;
        Plan { holder: Holder { granted: taken, used, bytes: part, until, short }, others, capped }
    }

    /// Returns the time until the next renewal of a lease that was written.
    fn renewal(&self, key: Key, unix: u64) -> Duration {
        let Some(own) = self.users.get(&key).and_then(|user| user.record.holders.get(&self.node)) else {
            return RENEWAL;
        };
        if own.until > unix + (RENEWAL * RENEWALS).as_secs() { LONG_RENEWAL } else { RENEWAL }
    }

    /// Returns `count`, or no limit.
    fn allocations(&self, count: u32) -> u32 {
        if self.limits.allocations == 0 { u32::MAX } else { count }
    }

    /// Lowers the share of a user to at most `share`. Returns whether it was higher.
    fn lower(&mut self, key: Key, share: Share) -> bool {
        let Some(user) = self.users.get_mut(&key) else { return false };
        let lower = Share {
            allocations: user.share.allocations.min(share.allocations),
            bytes: user.share.bytes.min(share.bytes),
        };
        if lower == user.share {
            return false;
        }
        (user.share, user.step) = (lower, Step::Applying);
        self.outputs.push_back(Output::Share { key, user: user.name.clone(), share: lower });
        true
    }

    fn wait_for(&mut self, key: Key, step: Step) {
        if let Some(user) = self.users.get_mut(&key) {
            user.step = step;
            self.in_flight += 1;
        }
    }

    /// Counts the response for a user; false if none was expected.
    fn responded(&mut self, key: Key) -> bool {
        let waits = self
            .users
            .get(&key)
            .is_some_and(|user| matches!(user.step, Step::Reading | Step::Writing(..) | Step::Leaving(_)));
        if waits {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        waits
    }

    /// Makes the next step earlier if the user has left, or soon needs more.
    fn hasten(&mut self, key: Key, now: Instant) {
        let Some(user) = self.users.get(&key).filter(|user| user.step == Step::Due) else { return };
        let wants_more = !user.capped && user.used > user.share.allocations.saturating_sub(FIRST / 4);
        let earliest = match user.used {
            0 => now.plus(LINGER),
            _ if wants_more => user.leased.map_or(now, |leased| leased.plus(IMPATIENCE)),
            _ => return,
        };
        if earliest.micros() < user.due {
            self.schedule(key, earliest);
        }
    }

    fn schedule(&mut self, key: Key, at: Instant) {
        let Some(user) = self.users.get_mut(&key) else { return };
        self.due.remove(&(user.due, key));
        user.due = at.micros();
        self.due.insert((user.due, key));
    }

    fn forget(&mut self, key: Key) {
        if let Some(user) = self.users.remove(&key) {
            self.due.remove(&(user.due, key));
            self.outputs.push_back(Output::Forget { user: user.name });
        }
    }
}

/// Returns a part of [`WHOLE`].
fn part(of: u32, all: u32) -> u32 {
    let part = u64::from(of) * u64::from(WHOLE) / u64::from(all.max(1));
    u32::try_from(part).unwrap_or(WHOLE).min(WHOLE)
}

/// Returns a random time, the longer the more attempts were made.
fn pause(attempts: u32, rng: &mut impl Rng) -> Duration {
    let longest = Duration::from_millis(50).saturating_mul(1_u32 << attempts.min(8)).min(LONGEST_PAUSE);
    longest.mul_f64(rng.random_range(0.0..1.0))
}
