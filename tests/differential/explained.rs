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

impl Case<'_> {
    fn message(&self) -> Option<&Message> {
        self.operation.message()
    }

    /// Whether this field of the same kind of message differs in this way.
    fn field(&self, field: &str, ours: &str, coturn: &str) -> bool {
        let Difference { field: name, ours: mine, coturn: theirs, .. } = self.difference;
        (name.as_str(), mine.as_str(), theirs.as_str()) == (field, ours, coturn)
    }

    /// Returns the kinds of two messages of which one or both have another kind than the other.
    fn kinds(&self) -> Option<(&str, &str)> {
        let Difference { field, ours, coturn, .. } = self.difference;
        field.is_empty().then_some((ours.as_str(), coturn.as_str()))
    }

    /// Returns the results of a request, without its method: `success` or a code, or `nothing`.
    fn results(&self) -> Option<(&str, &str)> {
        let (ours, coturn) = self.kinds()?;
        let result = |kind: &'_ str| kind.rfind(' ').map_or(0, |space| space + 1);
        Some((&ours[result(ours)..], &coturn[result(coturn)..]))
    }

    fn method(&self) -> Option<Method> {
        self.message().map(|message| message.method)
    }

    fn credentials(&self) -> Credentials {
        self.message().map_or(Credentials::None, |message| message.credentials)
    }
}

use Right::{Both, Coturn, Ours};

pub(crate) const EXPLANATIONS: &[Explanation] = &[
    Explanation {
        name: "SOFTWARE is sent by coturn in every response, by ours in responses to Allocate and Refresh",
        rule: "RFC 8489 §6.3.1.1, RFC 8656 §5",
        right: Both,
        ends: false,
        matches: |case| case.field("SOFTWARE", ABSENT, "present"),
    },
    Explanation {
        name: "ours offers PASSWORD-ALGORITHMS",
        rule: "RFC 8489 §9.2.4",
        right: Ours,
        ends: false,
        matches: |case| case.field("PASSWORD-ALGORITHMS", "present", ABSENT),
    },
    Explanation {
        name: "coturn adds MAPPED-ADDRESS and RESPONSE-ORIGIN to Binding responses",
        rule: "RFC 8489 §6.3.1.2, RFC 5780 §7.3",
        right: Both,
        ends: false,
        matches: |case| {
            case.field("MAPPED-ADDRESS", ABSENT, "its own") || case.field("RESPONSE-ORIGIN", ABSENT, "present")
        },
    },
    Explanation {
        name: "coturn does not sign 437 and 441",
        rule: "RFC 8489 §9.2.4",
        right: Ours,
        ends: false,
        matches: |case| {
            ["437", "441"].iter().any(|code| case.difference.kind.ends_with(code))
                && case.field("MESSAGE-INTEGRITY", "valid", ABSENT)
        },
    },
    Explanation {
        name: "coturn rejects a second Allocate with 437 before it authenticates the request",
        rule: "RFC 8656 §7.2 steps 1 and 2",
        right: Ours,
        ends: false,
        matches: |case| {
            let unauthenticated = case.credentials() != Credentials::Right;
            case.method() == Some(Method::ALLOCATE)
                && matches!(case.results(), Some(("400" | "401" | "438" | NOTHING, "437")) if unauthenticated)
        },
    },
    Explanation {
        name: "coturn does not implement ADDITIONAL-ADDRESS-FAMILY under its number in the RFC",
        rule: "RFC 8656 §18.11",
        right: Ours,
        ends: true,
        matches: |case| {
            case.message().is_some_and(|message| message.has(|item| matches!(item, Item::AdditionalFamily(_))))
        },
    },
];
