//! The record of a user in the key-value bucket of the leases.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Heartbeat;
use super::fields::{self, Fields, Malformed, VERSION};

/// What each node holds for one user. The bucket may let a record expire ten minutes after its last write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The holders, by the names of their nodes.
    pub holders: BTreeMap<Box<str>, Holder>,
}

/// What one node holds for a user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// The allocations that the user may have at the node.
    pub granted: u32,
    /// The allocations that the user has there.
    pub used: u32,
    /// The part of the user's bytes per second that may be used there, in millionths.
    pub bytes: u32,
    /// When the lease ends, in seconds since the Unix epoch.
    pub until: u64,
    /// Whether the node has less than its fair part, so that the others give back what they do not need.
    pub short: bool,
}

impl Record {
    /// The greatest number of holders. A user at more nodes gets no new allocations at the further ones.
    pub const MOST_HOLDERS: usize = 64;
    /// The greatest length of a record in bytes.
    pub const LONGEST: usize = 16 * 1024;

    /// Returns the record as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let holder = |holder: &Holder| {
            let Holder { granted, used, bytes, until, short } = *holder;
            let mut fields = json!({ "granted": granted, "used": used, "bytes": bytes, "until": until });
            if short && let Some(fields) = fields.as_object_mut() {
                fields.insert("short".to_owned(), Value::Bool(true));
            }
            fields
        };
        let nodes: serde_json::Map<String, Value> =
            self.holders.iter().map(|(name, own)| (name.to_string(), holder(own))).collect();
        json!({ "v": VERSION, "nodes": nodes }).to_string()
    }

    /// Parses a record.
    ///
    /// # Errors
    /// If it is not a record of this version, or exceeds a limit.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Malformed> {
        let value = fields::parse(bytes, Self::LONGEST)?;
        let mut holders = BTreeMap::new();
        for (name, fields) in Fields::of(&value)?.entries("nodes", Self::MOST_HOLDERS)? {
            if !Heartbeat::is_node_name(name) {
                return Err(Malformed::Field { field: "nodes", problem: "has a key that is not the name of a node" });
            }
            let short = fields.get("short").is_some();
            let fields = Fields::of(fields)?;
            let holder = Holder {
                granted: fields.u32("granted")?,
                used: fields.u32("used")?,
                bytes: fields.u32("bytes")?,
                until: fields.u64("until")?,
                short: short && fields.bool("short")?,
            };
            holders.insert(name.as_str().into(), holder);
        }
        Ok(Self { holders })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDER: Holder =
        Holder { granted: u32::MAX, used: u32::MAX, bytes: 1_000_000, until: 99_999_999_999, short: true };

    #[test]
    fn a_record_survives_json() {
        let one = Holder { granted: 16, used: 3, bytes: 500_000, until: 1_700_000_000, short: false };
        let record = Record { holders: BTreeMap::from([("a".into(), one), ("b".into(), HOLDER)]) };
        assert_eq!(Record::from_json(record.to_json().as_bytes()), Ok(record));
    }

    #[test]
    fn a_record_with_all_holders_is_valid_and_one_with_more_is_not() {
        let name = |number: usize| -> Box<str> { format!("{number:0>64}").into() };
        let mut record = Record { holders: (0..Record::MOST_HOLDERS).map(|number| (name(number), HOLDER)).collect() };
        assert_eq!(Record::from_json(record.to_json().as_bytes()), Ok(record.clone()));
        record.holders.insert("a".into(), HOLDER);
        let error = Record::from_json(record.to_json().as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "`nodes` has too many entries");
    }

    #[test]
    fn a_malformed_record_has_a_reason() {
        let reason = |text: &str| Record::from_json(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(reason("{\"nodes\":{}}"), "`v` is not 1");
        assert_eq!(reason("{\"v\":1,\"nodes\":[]}"), "`nodes` is not an object");
        assert_eq!(reason("{\"v\":1,\"nodes\":{\"a\":{}}}"), "`granted` is absent");
        assert_eq!(reason("{\"v\":1,\"nodes\":{\"a b\":{}}}"), "`nodes` has a key that is not the name of a node");
    }
}
