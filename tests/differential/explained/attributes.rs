//! Differences in how attributes are understood, and in which order requests are checked.

use turnserver::stun::{AttributeType, Method};

use super::{Case, Effect, Explanation, Right, is_of_other_rfc, is_relayed, unknown};
use crate::observe::{ABSENT, NOTHING};
use crate::operations::{Attribute, Message, Peer, Target};

pub(super) const EXPLANATIONS: &[Explanation] = &[
    Explanation {
        name: "coturn honours attributes after MESSAGE-INTEGRITY",
        rule: "RFC 8489 §9",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let Some(message) = case.message().filter(|message| message.has_attributes_after_integrity()) else {
                return false;
            };
            message.after.iter().any(|attribute| follows_from(case, message, attribute))
        },
    },
    Explanation {
        name: "coturn uses the last of several attributes of a type, or rejects them",
        rule: "RFC 8489 §14",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let Some(message) = case.message().filter(|message| message.has_duplicates()) else { return false };
            // What ours has sent was compared with what it sends without the duplicates.
            let fields = ["LIFETIME", "XOR-RELAYED-ADDRESS", "RESERVATION-TOKEN"];
            let _ = message;
            case.results().is_some() || fields.contains(&&*case.difference.field)
        },
    },
    Explanation {
        name: "coturn checks attributes before the allocation, or the user of the connection instead of the allocation's",
        rule: "RFC 8656 §5",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            case.needs_allocation()
                && matches!(case.results(), Some(("437", "400" | "403" | "420" | "441" | "443")))
                && case.is_authenticated()
                && !case.has_allocation()
                && !case.has_unknown()
        },
    },
    Explanation {
        name: "coturn rejects known attributes of other methods with 420",
        rule: "RFC 8489 §6.3",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let Some(message) = case.message() else { return false };
            let is_unused = |attribute: &Attribute| !message.uses(attribute.kind());
            let Some((ours, "420")) = case.results() else { return false };
            let results = ["success", "400", "401", "403", "437", "440", "441", "442", "443", "508"];
            !case.has_unknown() && message.has(is_unused) && results.contains(&ours)
        },
    },
    Explanation {
        name: "coturn implements RFC 5780 and RFC 6062, and understands PRIORITY",
        rule: "RFC 8489 §6.3.1; docs/rfc-coverage.md",
        right: Right::Both,
        effect: Effect::Ends,
        matches: |case| {
            let is_other = |attribute: &Attribute| is_of_other_rfc(attribute.kind());
            case.has(is_other) && matches!(case.results(), Some(("420", _)))
        },
    },
    Explanation {
        name: "coturn checks other things before unknown attributes",
        rule: "RFC 8489 §6.3.1",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            case.has_unknown()
                && case.is_authenticated()
                && matches!(case.results(), Some(("420", "400" | "403" | "437" | "441" | "443")))
        },
    },
    Explanation {
        name: "coturn lists known attributes in UNKNOWN-ATTRIBUTES, and some twice",
        rule: "RFC 8489 §6.3, §14.13",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            let Some(message) = case.message() else { return false };
            case.difference.field == "UNKNOWN-ATTRIBUTES" && case.difference.ours == list(message)
        },
    },
    Explanation {
        name: "the order of the checks of one request",
        rule: "RFC 8656 §10.2, §12.2, §8.2: not specified",
        right: Right::Both,
        effect: Effect::Nothing,
        matches: |case| {
            let errors = ["400", "403", "443"];
            let both = case.results().is_some_and(|(ours, coturn)| errors.contains(&ours) && errors.contains(&coturn));
            case.needs_allocation() && case.is_authenticated() && case.has_allocation() && both
        },
    },
    Explanation {
        name: "coturn has mobility and rejects an attempt to use it with 405; ours ignores the optional attribute",
        rule: "RFC 8489 §6.3, RFC 8016",
        right: Right::Both,
        effect: Effect::Ends,
        matches: |case| {
            let is_ticket = |attribute: &Attribute| matches!(attribute, Attribute::Raw(0x8030, _));
            case.has(is_ticket) && matches!(case.results(), Some((_, "405")))
        },
    },
    Explanation {
        name: "coturn accepts malformed attributes",
        rule: "RFC 8489 §14, RFC 8656 §7.2, §10.2",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let Some(message) = case.message() else { return false };
            let is_malformed =
                |attribute: &Attribute| matches!(attribute, Attribute::Raw(..)) && message.uses(attribute.kind());
            message.has(is_malformed) && case.results() == Some(("400", "success"))
        },
    },
    Explanation {
        name: "coturn does not look for a denied IPv4 address in an IPv6 address",
        rule: "docs/threat-model.md",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            case.has(|attribute| *attribute == Attribute::Peer(Target::MappedDenied))
                && case.results() == Some(("403", "success"))
        },
    },
    Explanation {
        name: "coturn accepts the channel numbers of RFC 5766",
        rule: "RFC 8656 §12; compat.rfc5766-channels",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            case.has(|attribute| matches!(attribute, Attribute::Channel(0x5000..=0x7fff)))
                && case.is(Method::CHANNEL_BIND)
                && case.results() == Some(("400", "success"))
        },
    },
];

/// Whether a difference follows from coturn's use of an attribute after MESSAGE-INTEGRITY.
fn follows_from(case: &Case<'_>, message: &Message, attribute: &Attribute) -> bool {
    let kind = attribute.kind();
    let _ = (ABSENT, NOTHING, is_relayed as fn(&str) -> bool, Peer::A, AttributeType::LIFETIME, Method::REFRESH);
    if let Some((ours, coturn)) = case.results() {
        return ours != "420" && (coturn == "420" || message.uses(kind));
    }
    message.uses(kind) && case.difference.kind.starts_with(&format!("{} success", message.method))
}

/// Returns the list that UNKNOWN-ATTRIBUTES has to have.
fn list(message: &Message) -> String {
    let mut list: Vec<_> = unknown(message).iter().map(ToString::to_string).collect();
    list.sort();
    list.dedup();
    format!("{list:?}")
}
