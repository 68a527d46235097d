//! Writes the new configuration, in the order of `turnserver.toml`.

use std::fmt::Write as _;

use toml::Value;
use zeroize::Zeroizing;

/// The tables of the file, in its order. The first one is the top level.
const TABLES: [&str; 14] = [
    "",
    "listen",
    "tls",
    "relay",
    "auth",
    "auth.redis",
    "peers",
    "limits",
    "timeouts",
    "alternate",
    "compat",
    "log",
    "http",
    "redis-status",
];

/// The keys of the new configuration. In each table they have the order in which they were set.
#[derive(Default)]
pub(super) struct Output {
    keys: Vec<Key>,
    users: Vec<User>,
}

struct Key {
    table: &'static str,
    name: &'static str,
    value: Value,
    /// The options from which the value comes.
    from: String,
}

/// One `[[auth.users]]`.
pub(super) struct User {
    pub(super) name: String,
    /// `password` or `key`.
    pub(super) kind: &'static str,
    pub(super) credential: Zeroizing<String>,
    pub(super) allocations: Option<u64>,
    pub(super) from: String,
}

impl Output {
    /// Sets a key, given by its dotted name.
    pub(super) fn set(&mut self, key: &'static str, value: impl Into<Value>, from: String) {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        self.keys.push(Key { table, name, value: value.into(), from });
    }

    /// Whether a key is set, given by its dotted name.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Returns the value of a key, given by its dotted name.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let key = key.rsplit_once('.').unwrap_or(("", key));
        self.keys.iter().find(|set| key == (set.table, set.name)).map(|set| &set.value)
    }

    pub(super) fn add_user(&mut self, user: User) {
        self.users.push(user);
    }

    pub(super) fn has_secrets(&self) -> bool {
        !self.users.is_empty() || self.has("auth.secrets")
    }

    /// Returns the text. `origin` names what was imported.
    pub(super) fn text(&self, origin: &str) -> Zeroizing<String> {
        let mut text = Zeroizing::new(format!(
            "# Configuration of turnserver, imported from {}.\n\
             #\n\
             # A comment above a key names the options of coturn from which its value comes. All other keys have their\n\
             # default values. docs/configuration.md lists all keys, docs/migrating-from-coturn.md the differences.\n",
            origin.escape_debug()
        ));
        for table in TABLES {
            let mut keys = self.keys.iter().filter(|key| key.table == table).peekable();
            if keys.peek().is_some() && !table.is_empty() {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "\n[{table}]");
            }
            for (index, Key { name, value, from, .. }) in keys.enumerate() {
                let blank = if index > 0 || table.is_empty() { "\n" } else { "" };
                let _ = writeln!(text, "{blank}# {from}\n{name} = {value}");
            }
            if table == "auth" {
                self.users.iter().for_each(|user| user.write(&mut text));
            }
        }
        text
    }
}

impl User {
    fn write(&self, text: &mut String) {
        let Self { name, kind, credential, allocations, from } = self;
        let (name, credential) = (string(name), Zeroizing::new(string(credential)));
        let _ = writeln!(text, "\n# {from}\n[[auth.users]]\nname = {name}\n{kind} = {}", *credential);
        if let Some(allocations) = allocations {
            let _ = writeln!(text, "allocations = {allocations}");
        }
    }
}

fn string(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// Returns a list of strings.
pub(super) fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> Value {
    Value::Array(values.into_iter().map(|value| Value::String(value.to_string())).collect())
}
