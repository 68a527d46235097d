//! What all nodes of a fleet have in common: revoked usernames, and secrets with their times.
//!
//! It is kept in a bucket of the engine, one entry for each username and secret, and a copy of it in the state directory,
//! so that a node which starts while the engine is away knows it, too.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use serde_json::{Value, json};

use crate::auth::{Revocations, Secret};
use crate::fleet::{Heartbeat, Key};

/// The version of an entry.
const VERSION: u64 = 1;
/// The longest entry in bytes.
const MAX_ENTRY: usize = 8 * 1024;
/// The most secrets.
const MAX_SECRETS: usize = 32;
/// The most secrets, with those that have ended lately.
const MOST_SECRETS: usize = 8 * MAX_SECRETS;
/// The longest secret in bytes.
pub(super) const MAX_SECRET: usize = 1_024;
/// The longest value of USERNAME in bytes (RFC 8489 §14.3).
const MAX_USERNAME: usize = 763;

/// Whether this can be a username: not too long, and without control characters, which OpaqueString excludes (RFC 8489
/// §14.3) and which take six bytes each in an entry.
pub(super) fn is_username(text: &str) -> bool {
    (1..=MAX_USERNAME).contains(&text.len()) && !text.contains(char::is_control)
}

/// A secret of all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FleetSecret {
    pub(super) secret: Secret,
    /// When nodes begin to make credentials with it, in seconds since the Unix epoch. They accept it at once.
    pub(super) from: u64,
    /// When they cease to accept it, if that is decided.
    pub(super) until: Option<u64>,
    /// When the entry was changed, in milliseconds since the Unix epoch: of two, the later one counts.
    pub(super) changed: u64,
}

/// A username that no node accepts.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct FleetRevocation {
    pub(super) username: String,
    /// In seconds since the Unix epoch.
    pub(super) until: u64,
    /// Whether it was ended or shortened, so that an earlier form of it must not come back.
    pub(super) is_shortened: bool,
    /// When the entry was changed, in milliseconds since the Unix epoch.
    pub(super) changed: u64,
}

/// How long an entry that was ended stays, in seconds: a node that was away for a shorter time learns of the end.
pub(super) const KEPT: u64 = 86_400;
/// How long a revocation stays that has ended by itself. Clocks may differ by that.
pub(super) const KEPT_EXPIRED: u64 = 3_600;

impl fmt::Debug for FleetRevocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names of users are private.
        f.debug_struct("FleetRevocation").field("until", &self.until).finish_non_exhaustive()
    }
}

/// The state that all nodes have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FleetState {
    pub(super) secrets: BTreeMap<String, FleetSecret>,
    pub(super) revocations: BTreeMap<Key, FleetRevocation>,
}

/// What a node uses of the state at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::control) struct FleetInUse {
    /// The secrets that are accepted, the one for new credentials first, if any is for them.
    pub(in crate::control) secrets: Vec<Secret>,
    /// Whether the first one is for new credentials.
    pub(in crate::control) mints: bool,
    /// The revoked usernames, each until a time.
    pub(in crate::control) revoked: Vec<(String, u64)>,
}

impl FleetInUse {
    /// Returns these revocations together with others.
    pub(in crate::control) fn revocations(&self, own: &Revocations, unix_now: u64) -> Revocations {
        own.with(self.revoked.iter().map(|(username, until)| (username.as_str(), *until)), unix_now)
    }
}

/// An entry of the bucket: its key, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Secret(String, FleetSecret),
    Revocation(Key, FleetRevocation),
}

/// The beginning of the keys of revocations.
pub(super) const REVOKED: &str = "revoked.";
/// The beginning of the keys of secrets.
pub(super) const SECRET: &str = "secret.";

/// Returns the key of the entry for a secret.
pub(super) fn secret_key(id: &str) -> String {
    format!("{SECRET}{id}")
}

/// Returns the key of the entry for a username.
pub(super) fn revocation_key(username: &str) -> String {
    format!("{REVOKED}{}", Key::of(username))
}

impl FleetSecret {
    pub(super) fn to_json(&self) -> String {
        let secret = String::from_utf8_lossy(self.secret.as_bytes());
        let Self { from, until, changed, .. } = self;
        json!({ "v": VERSION, "secret": secret, "from": from, "until": until, "changed": changed }).to_string()
    }

    fn is_accepted(&self, unix_now: u64) -> bool {
        self.until.is_none_or(|until| until > unix_now)
    }

    /// Returns when the entry may be forgotten, if that is decided.
    fn kept_until(&self) -> Option<u64> {
        self.until.map(|until| until.saturating_add(KEPT))
    }
}

impl FleetRevocation {
    pub(super) fn to_json(&self) -> String {
        let Self { username, until, is_shortened, changed } = self;
        json!({ "v": VERSION, "username": username, "until": until, "shortened": is_shortened, "changed": changed })
            .to_string()
    }

    fn kept_until(&self) -> u64 {
        self.until.saturating_add(if self.is_shortened { KEPT } else { KEPT_EXPIRED })
    }
}

impl Entry {
    /// Returns when it may be forgotten, in seconds since the Unix epoch; `None` if that is not decided.
    pub(super) fn kept_until(&self) -> Option<u64> {
        match self {
            Self::Secret(_, secret) => secret.kept_until(),
            Self::Revocation(_, revocation) => Some(revocation.kept_until()),
        }
    }

    pub(super) fn changed(&self) -> u64 {
        match self {
            Self::Secret(_, secret) => secret.changed,
            Self::Revocation(_, revocation) => revocation.changed,
        }
    }

    /// Reads an entry. The error says what is wrong, without a secret.
    pub(super) fn parse(key: &str, value: &[u8]) -> Result<Self, &'static str> {
        if value.len() > MAX_ENTRY {
            return Err("is too long");
        }
        let value: Value = serde_json::from_slice(value).map_err(|_| "is not JSON")?;
        if value.get("v").and_then(Value::as_u64) != Some(VERSION) {
            return Err("has another version");
        }
        let until = value.get("until").and_then(Value::as_u64);
        let changed = value.get("changed").and_then(Value::as_u64).unwrap_or_default();
        if let Some(id) = key.strip_prefix(SECRET) {
            if !Heartbeat::is_node_name(id) {
                return Err("has a key that is no name of a secret");
            }
            let text = value.get("secret").and_then(Value::as_str).filter(|text| text.len() <= MAX_SECRET);
            let secret = text.and_then(|text| Secret::new(text).ok()).ok_or("has no secret")?;
            let from = value.get("from").and_then(Value::as_u64).ok_or("has no `from`")?;
            return Ok(Self::Secret(id.to_owned(), FleetSecret { secret, from, until, changed }));
        }
        let key = key.strip_prefix(REVOKED).and_then(Key::from_hex).ok_or("has an unknown key")?;
        let username = value.get("username").and_then(Value::as_str);
        let username = username.filter(|name| is_username(name)).ok_or("has no username")?;
        if Key::of(username) != key {
            return Err("has the key of another username");
        }
        let until = until.ok_or("has no `until`")?;
        let is_shortened = value.get("shortened").and_then(Value::as_bool).unwrap_or_default();
        Ok(Self::Revocation(key, FleetRevocation { username: username.to_owned(), until, is_shortened, changed }))
    }
}

impl FleetState {
    /// The most entries, with those that have ended lately.
    pub(super) const MOST_ENTRIES: usize = 4 * Revocations::CAPACITY;

    /// Whether the numbers of entries are below their limits, so that none was left out for them.
    pub(super) fn has_room(&self) -> bool {
        self.secrets.len() < MOST_SECRETS && self.revocations.len() < Self::MOST_ENTRIES
    }

    /// Returns the number of accepted secrets whose keys of the bucket fulfil a condition.
    pub(super) fn accepted_secrets(&self, unix_now: u64, is_wanted: impl Fn(&str) -> bool) -> usize {
        let accepted = self.secrets.iter().filter(|(_, secret)| secret.is_accepted(unix_now));
        accepted.filter(|(id, _)| is_wanted(&secret_key(id))).count()
    }

    /// Returns the keys of the bucket for all entries, with those that have ended lately.
    pub(super) fn keys(&self) -> impl Iterator<Item = String> {
        let secrets = self.secrets.keys().map(|id| secret_key(id));
        secrets.chain(self.revocations.values().map(|revocation| revocation_key(&revocation.username)))
    }

    /// Takes an entry. Returns whether it changes anything; the error says why it cannot be used.
    pub(super) fn insert(&mut self, entry: Entry, unix_now: u64) -> Result<bool, &'static str> {
        match entry {
            Entry::Secret(id, secret) => {
                // Those that have ended lately are among them.
                if self.secrets.len() >= MOST_SECRETS && !self.secrets.contains_key(&id) {
                    return Err("exceeds the greatest number of secrets");
                }
                Ok(self.secrets.insert(id, secret.clone()).as_ref() != Some(&secret))
            }
            Entry::Revocation(key, revocation) => {
                if self.revocations.len() >= Self::MOST_ENTRIES && !self.revocations.contains_key(&key) {
                    self.revocations.retain(|_, revocation| revocation.until > unix_now);
                }
                if self.revocations.len() >= Self::MOST_ENTRIES && !self.revocations.contains_key(&key) {
                    return Err("exceeds the greatest number of revocations");
                }
                Ok(self.revocations.insert(key, revocation.clone()).as_ref() != Some(&revocation))
            }
        }
    }

    /// Returns why no further entry of this kind fits, if none does.
    pub(super) fn refuses(&self, entry_key: &str, unix_now: u64) -> Option<String> {
        let live = || self.revocations.values().filter(|revocation| revocation.until > unix_now).count();
        let is_known = |key: Key| self.revocations.contains_key(&key);
        let key = entry_key.strip_prefix(REVOKED).and_then(Key::from_hex);
        match key {
            Some(key) if !is_known(key) && live() >= Revocations::CAPACITY => {
                Some(format!("the fleet has {} revocations, which is the greatest number", Revocations::CAPACITY))
            }
            None if self.secrets.values().filter(|secret| secret.is_accepted(unix_now)).count() >= MAX_SECRETS => {
                Some(format!("the fleet has {MAX_SECRETS} secrets, which is the greatest number"))
            }
            _ => None,
        }
    }

    /// Returns the revocation with a key of the bucket.
    pub(super) fn revocation(&self, key: &str) -> Option<&FleetRevocation> {
        self.revocations.get(&Key::from_hex(key.strip_prefix(REVOKED)?)?)
    }

    /// Removes the entry with a key of the bucket. Returns whether there was one.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let secret = key.strip_prefix(SECRET).and_then(|id| self.secrets.remove(id));
        let revocation = key.strip_prefix(REVOKED).and_then(Key::from_hex);
        secret.is_some() || revocation.is_some_and(|key| self.revocations.remove(&key).is_some())
    }

    /// Returns the keys and texts of the entries, with those that have ended lately.
    pub(super) fn entries(&self) -> impl Iterator<Item = (String, String)> {
        let secrets = self.secrets.iter().map(|(id, secret)| (secret_key(id), secret.to_json()));
        let revocations = self.revocations.values();
        secrets.chain(revocations.map(|revocation| (revocation_key(&revocation.username), revocation.to_json())))
    }

    /// Returns when the entry with a key of the bucket was changed, and its text.
    pub(super) fn entry(&self, key: &str) -> Option<(u64, String)> {
        if let Some(id) = key.strip_prefix(SECRET) {
            return self.secrets.get(id).map(|secret| (secret.changed, secret.to_json()));
        }
        self.revocation(key).map(|revocation| (revocation.changed, revocation.to_json()))
    }

    /// Returns what a node uses at a time.
    pub(super) fn at(&self, unix_now: u64) -> FleetInUse {
        let accepted = || self.secrets.values().filter(|secret| secret.is_accepted(unix_now));
        // One that will end is used only if there is no other.
        let minting = accepted().filter(|secret| secret.from <= unix_now);
        let minting = minting.max_by_key(|secret| (secret.until.is_none(), secret.from));
        let rest = accepted().filter(|secret| Some(*secret) != minting);
        let live = self.revocations.values().filter(|revocation| revocation.until > unix_now);
        FleetInUse {
            secrets: minting.into_iter().chain(rest).map(|secret| secret.secret.clone()).collect(),
            mints: minting.is_some(),
            revoked: live.map(|revocation| (revocation.username.clone(), revocation.until)).collect(),
        }
    }

    /// Returns the next time at which [`at`](Self::at) returns something else.
    pub(super) fn next_change(&self, unix_now: u64) -> Option<u64> {
        let of_secrets = self.secrets.values().flat_map(|secret| [Some(secret.from), secret.until]).flatten();
        let of_revocations = self.revocations.values().map(|revocation| revocation.until);
        of_secrets.chain(of_revocations).filter(|at| *at > unix_now).min()
    }

    /// Removes what has ended long ago. Returns whether there was anything.
    pub(super) fn forget_ended(&mut self, unix_now: u64) -> bool {
        let before = self.secrets.len() + self.revocations.len();
        self.secrets.retain(|_, secret| secret.kept_until().is_none_or(|until| until > unix_now));
        self.revocations.retain(|_, revocation| revocation.kept_until() > unix_now);
        self.secrets.len() + self.revocations.len() != before
    }

    /// Removes the entries whose keys of the bucket are not kept. Returns whether there was any.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&str) -> bool) -> bool {
        let before = self.secrets.len() + self.revocations.len();
        self.secrets.retain(|id, _| is_kept(&secret_key(id)));
        self.revocations.retain(|_, revocation| is_kept(&revocation_key(&revocation.username)));
        self.secrets.len() + self.revocations.len() != before
    }

    /// Writes the state as text for a file: lines of a key and an entry.
    ///
    /// # Errors
    /// Those of `to`.
    pub(super) fn write(&self, to: &mut impl io::Write) -> io::Result<()> {
        self.entries().try_for_each(|(key, entry)| writeln!(to, "{key} {entry}"))
    }

    /// Reads what [`write`](Self::write) writes. Lines that cannot be used are left out.
    pub(super) fn from_text(text: &str, unix_now: u64) -> Self {
        let mut state = Self::default();
        for line in text.lines() {
            let entry = line.split_once(' ').and_then(|(key, value)| Entry::parse(key, value.as_bytes()).ok());
            if let Some(entry) = entry {
                let _ = state.insert(entry, unix_now);
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str, from: u64, until: Option<u64>) -> FleetSecret {
        FleetSecret { secret: Secret::new(text).unwrap(), from, until, changed: 5 }
    }

    fn state(secrets: &[(&str, FleetSecret)]) -> FleetState {
        let mut state = FleetState::default();
        for (id, secret) in secrets {
            state.insert(Entry::Secret((*id).to_owned(), secret.clone()), 0).unwrap();
        }
        state
    }

    fn texts(in_use: &FleetInUse) -> Vec<String> {
        in_use.secrets.iter().map(|secret| String::from_utf8_lossy(secret.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn a_new_secret_is_accepted_at_once_and_used_for_credentials_from_its_time_on() {
        let state = state(&[("a", secret("one", 100, Some(300))), ("b", secret("two", 200, None))]);
        assert_eq!((texts(&state.at(50)), state.at(50).mints), (vec!["one".to_owned(), "two".to_owned()], false));
        assert_eq!((texts(&state.at(150)), state.at(150).mints), (vec!["one".to_owned(), "two".to_owned()], true));
        assert_eq!((texts(&state.at(200)), state.at(200).mints), (vec!["two".to_owned(), "one".to_owned()], true));
        assert_eq!(texts(&state.at(300)), ["two"]);
        assert_eq!([99, 100, 200, 300].map(|now| state.next_change(now)), [Some(100), Some(200), Some(300), None]);
    }

    #[test]
    fn the_state_outlives_a_text() {
        let mut state = state(&[("a", secret("one \"quoted\" ü", 100, None))]);
        let username = "1767225600:ann b".to_owned();
        let revocation = FleetRevocation { username, until: 1_767_225_600, is_shortened: true, changed: 7 };
        state.insert(Entry::Revocation(Key::of(&revocation.username), revocation), 0).unwrap();
        let mut text = Vec::new();
        state.write(&mut text).unwrap();
        assert_eq!(FleetState::from_text(str::from_utf8(&text).unwrap(), 0), state);
        assert_eq!(FleetState::from_text("junk\nsecret.a {}\n", 0), FleetState::default());
    }

    #[test]
    fn a_wrong_entry_is_refused_without_its_content() {
        let good = secret("s", 1, None).to_json();
        assert!(Entry::parse("secret.a", good.as_bytes()).is_ok());
        for (key, value, why) in [
            ("secret.a.b", good.as_str(), "has a key that is no name of a secret"),
            ("other.a", &good, "has an unknown key"),
            ("secret.a", r#"{"v":2,"secret":"s","from":1}"#, "has another version"),
            ("secret.a", r#"{"v":1,"from":1}"#, "has no secret"),
            ("secret.a", r#"{"v":1,"secret":"s"}"#, "has no `from`"),
            (
                "revoked.00000000000000000000000000000000",
                r#"{"v":1,"username":"a","until":1}"#,
                "has the key of another username",
            ),
            (&revocation_key("a\tb"), r#"{"v":1,"username":"a\tb","until":1}"#, "has no username"),
            ("secret.a", "x", "is not JSON"),
        ] {
            assert_eq!(Entry::parse(key, value.as_bytes()), Err(why), "{key} {value}");
        }
    }

    #[test]
    fn what_has_ended_long_ago_is_forgotten() {
        let mut state = state(&[("a", secret("one", 0, Some(100))), ("b", secret("two", 0, None))]);
        let revocation = |name: &str, is_shortened| {
            let revocation = FleetRevocation { username: name.to_owned(), until: 100, is_shortened, changed: 0 };
            Entry::Revocation(Key::of(name), revocation)
        };
        state.insert(revocation("ann", false), 0).unwrap();
        state.insert(revocation("bob", true), 0).unwrap();
        assert!(!state.forget_ended(100 + KEPT_EXPIRED - 1));
        assert!(state.forget_ended(100 + KEPT_EXPIRED) && state.entry(&revocation_key("ann")).is_none());
        assert!(!state.forget_ended(100 + KEPT - 1) && state.entry(&revocation_key("bob")).is_some());
        assert!(state.forget_ended(100 + KEPT));
        assert_eq!(texts(&state.at(0)), ["two"]);
        assert!(!state.retain(|key| key == "secret.b") && state.retain(|_| false));
        assert_eq!(state, FleetState::default());
    }

    #[test]
    fn revocations_of_the_fleet_join_those_of_the_node() {
        let mut own = Revocations::default();
        own.revoke("500:ann", 500, 0).unwrap();
        let in_use = FleetInUse { revoked: vec![("600:bob".to_owned(), 600)], ..FleetInUse::default() };
        let all = in_use.revocations(&own, 100);
        assert!(all.covers("500:ann", 100) && all.covers("600:bob", 100) && !own.covers("600:bob", 100));
    }
}
