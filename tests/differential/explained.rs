//! The differences between the two servers, and the reason of each.

use turnserver::stun::{AttributeType, Class, Method};

use crate::observe::{ABSENT, Difference, NOTHING};
use crate::operations::{Credentials, Damage, Fingerprint, Item, Link, Message, Operation, Target};

/// Which server is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    Ours,
    Coturn,
    /// The RFC allows both.
    Both,
}

pub(crate) struct Explanation {
    pub(crate) name: &'static str,
    /// The section of an RFC, or the document that says what our server does.
    pub(crate) rule: &'static str,
    pub(crate) right: Right,
    /// Whether the servers are in different states afterwards, so that the sequence ends.
    pub(crate) ends: bool,
    pub(crate) matches: fn(&Case<'_>) -> bool,
}

/// A difference and its circumstances.
pub(crate) struct Case<'c> {
    pub(crate) before: &'c [Operation],
    pub(crate) operation: &'c Operation,
    pub(crate) difference: &'c Difference,
    pub(crate) clients: &'c [Link],
}

impl Case<'_> {
    /// Returns a text that is the same for similar differences.
    pub(crate) fn kind(&self) -> String {
        let Difference { at, field, ours, coturn, kind } = self.difference;
        let place = at.split(' ').next().unwrap_or_default();
        let operation = match self.operation {
            Operation::Message { message, .. } => format!("{} {:?}", message.method, message.class),
            Operation::Again { .. } => "a repeated message".to_owned(),
            Operation::ChannelData { .. } => "ChannelData".to_owned(),
            Operation::Bytes { .. } => "bytes".to_owned(),
            Operation::FromPeer { .. } => "a datagram of a peer".to_owned(),
        };
        format!("{operation}: {place}: {kind} {field}: {ours} / {coturn}")
    }
}

pub(crate) const EXPLANATIONS: &[Explanation] = &[];
