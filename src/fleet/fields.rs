//! Reads the fields of a JSON message, each within its limits. Unknown fields are ignored.

use serde_json::{Map, Value};

/// The version of the messages.
pub(super) const VERSION: u64 = 1;

/// Why a message is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It has more bytes than any valid message.
    #[error("{bytes} bytes are more than {limit}")]
    TooLong {
        /// The length of the message.
        bytes: usize,
        /// The greatest length.
        limit: usize,
    },
    /// It is not a JSON object.
    #[error("it is not a JSON object")]
    NotAnObject,
    /// It has another version, or none.
    #[error("`v` is not {VERSION}")]
    Version,
    /// A field is absent, of another type, or outside its limits.
    #[error("`{field}` {problem}")]
    Field {
        /// The name of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The fields of a JSON object.
pub(super) struct Fields<'v>(&'v Map<String, Value>);

/// Parses a message of at most `limit` bytes and checks its version.
pub(super) fn parse(bytes: &[u8], limit: usize) -> Result<Value, Malformed> {
    if bytes.len() > limit {
        return Err(Malformed::TooLong { bytes: bytes.len(), limit });
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|_| Malformed::NotAnObject)?;
    match value.get("v") {
        _ if !value.is_object() => Err(Malformed::NotAnObject),
        Some(version) if version.as_u64() == Some(VERSION) => Ok(value),
        _ => Err(Malformed::Version),
    }
}

/// Returns whether `text` can be a token of a subject of the engine: letters, digits, `-` and `_`.
pub(super) fn is_name(text: &str, longest: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !text.is_empty() && text.len() <= longest && text.bytes().all(allowed)
}

fn wrong(field: &'static str, problem: &'static str) -> Malformed {
    Malformed::Field { field, problem }
}

impl<'v> Fields<'v> {
    pub(super) fn of(value: &'v Value) -> Result<Self, Malformed> {
        value.as_object().map(Self).ok_or(Malformed::NotAnObject)
    }

    pub(super) fn get(&self, field: &'static str) -> Result<&'v Value, Malformed> {
        self.0.get(field).ok_or(wrong(field, "is absent"))
    }

    pub(super) fn object(&self, field: &'static str) -> Result<Self, Malformed> {
        self.get(field)?.as_object().map(Self).ok_or(wrong(field, "is not an object"))
    }

    /// Returns a name: letters, digits, `-` and `_`.
    pub(super) fn name(&self, field: &'static str, longest: usize) -> Result<String, Malformed> {
        let text = self.get(field)?.as_str().ok_or(wrong(field, "is not a string"))?;
        is_name(text, longest).then(|| text.to_owned()).ok_or(wrong(field, "is not a name, or too long"))
    }

    /// Returns a text of printable ASCII characters, which may be empty.
    pub(super) fn text(&self, field: &'static str, longest: usize) -> Result<String, Malformed> {
        checked_text(self.get(field)?, longest).ok_or(wrong(field, "is not a printable string, or too long"))
    }

    pub(super) fn texts(&self, field: &'static str, most: usize, longest: usize) -> Result<Vec<String>, Malformed> {
        let list = self.list(field, most)?.iter().map(|item| checked_text(item, longest));
        list.collect::<Option<_>>().ok_or(wrong(field, "has an item that is not a printable string, or too long"))
    }

    /// Returns a list of at most `most` items.
    pub(super) fn list(&self, field: &'static str, most: usize) -> Result<&'v [Value], Malformed> {
        match self.get(field)?.as_array() {
            None => Err(wrong(field, "is not a list")),
            Some(list) if list.len() > most => Err(wrong(field, "has too many items")),
            Some(list) => Ok(list),
        }
    }

    /// Returns a list of values that are written as text, such as addresses.
    pub(super) fn parsed<T: std::str::FromStr>(&self, field: &'static str, most: usize) -> Result<Vec<T>, Malformed> {
        let list = self.list(field, most)?.iter().map(|item| item.as_str()?.parse().ok());
        list.collect::<Option<_>>().ok_or(wrong(field, "has an item that is not an address"))
    }

    pub(super) fn u64(&self, field: &'static str) -> Result<u64, Malformed> {
        self.get(field)?.as_u64().ok_or(wrong(field, "is not a whole number of at least 0"))
    }

    pub(super) fn u32(&self, field: &'static str) -> Result<u32, Malformed> {
        u32::try_from(self.u64(field)?).map_err(|_| wrong(field, "is too large"))
    }

    pub(super) fn bool(&self, field: &'static str) -> Result<bool, Malformed> {
        self.get(field)?.as_bool().ok_or(wrong(field, "is not true or false"))
    }

    /// Returns a number from 0 to 1.
    pub(super) fn fraction(&self, field: &'static str) -> Result<f64, Malformed> {
        let number = self.get(field)?.as_f64().filter(|number| (0.0..=1.0).contains(number));
        number.ok_or(wrong(field, "is not a number from 0 to 1"))
    }

    /// Returns the fields of a map with at most `most` of them.
    pub(super) fn entries(
        &self,
        field: &'static str,
        most: usize,
    ) -> Result<impl Iterator<Item = (&'v String, &'v Value)> + use<'v>, Malformed> {
        let Self(map) = self.object(field)?;
        if map.len() > most { Err(wrong(field, "has too many entries")) } else { Ok(map.iter()) }
    }
}

fn checked_text(value: &Value, longest: usize) -> Option<String> {
    let text = value.as_str()?;
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    (printable && text.len() <= longest).then(|| text.to_owned())
}
