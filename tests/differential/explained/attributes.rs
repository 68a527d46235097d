//! Differences in how attributes are understood, and in which order requests are checked.

use turnserver::stun::Method;

use super::{Case, Effect, Explanation, Right, is_of_other_rfc, unknown};
use crate::observe::NOTHING;
use crate::operations::{Attribute, Message, Target};

pub(super) const EXPLANATIONS: &[Explanation] = &[
    Explanation {
        name: "coturn checks attributes before the allocation",
        rule: "RFC 8656 §5",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            case.needs_allocation()
                && !case.has_allocation()
                && !case.has_unknown()
                && matches!(case.authenticated_results(), Some(("437", "400" | "403" | "420" | "443")))
        },
    },
    Explanation {
        name: "coturn rejects known attributes of other methods with 420",
        rule: "RFC 8489 §6.3",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let Some((ours, "420")) = case.authenticated_results() else { return false };
            has_of_other_method(case) && !case.has_unknown() && case.can_have(ours)
        },
    },
    Explanation {
        name: "coturn implements RFC 5780 and RFC 6062, and understands PRIORITY",
        rule: "RFC 8489 §6.3.1; docs/rfc-coverage.md",
        right: Right::Both,
        effect: Effect::Ends,
        matches: |case| {
            let is_other = |attribute: &Attribute| is_of_other_rfc(attribute.kind());
            let Some(("420", coturn)) = case.authenticated_results().filter(|_| case.has(is_other)) else {
                return false;
            };
            // The response to CHANGE-REQUEST comes from an address from which the client does not receive.
            let is_elsewhere = case.is(Method::BINDING) && coturn == NOTHING;
            is_elsewhere || ["success", "400", "403", "404", "405", "437", "440", "441", "443"].contains(&coturn)
        },
    },
    Explanation {
        name: "coturn checks other things before unknown attributes",
        rule: "RFC 8489 §6.3.1",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            case.has_unknown()
                && matches!(
                    case.authenticated_results(),
                    Some(("420", "400" | "403" | "404" | "437" | "440" | "441" | "443"))
                )
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
            let (denied, other_family) = (case.has_denied_peer(), case.has_peer_of_other_family());
            case.has_allocation()
                && match case.authenticated_results() {
                    Some(("403", "443") | ("443", "403")) => denied && other_family,
                    Some(("400", "403")) => denied && !case.is(Method::REFRESH),
                    Some(("400", "443") | ("443", "400")) => other_family || case.is(Method::REFRESH),
                    _ => false,
                }
        },
    },
    Explanation {
        name: "coturn rejects a channel to port 0 with 400, and ours with 403",
        rule: "RFC 8656 §12.2: not specified",
        right: Right::Both,
        effect: Effect::Nothing,
        matches: |case| {
            case.is(Method::CHANNEL_BIND)
                && case.has(|attribute| *attribute == Attribute::Peer(Target::ZeroPort))
                && case.authenticated_results() == Some(("403", "400"))
        },
    },
    Explanation {
        name: "coturn has mobility and rejects an attempt to use it with 405; ours ignores the optional attribute",
        rule: "RFC 8489 §6.3, RFC 8016",
        right: Right::Both,
        effect: Effect::Ends,
        matches: |case| {
            let is_ticket = |attribute: &Attribute| matches!(attribute, Attribute::Raw(0x8030, _));
            let Some((ours, coturn)) = case.authenticated_results().filter(|_| case.has(is_ticket)) else {
                return false;
            };
            match coturn {
                "400" if case.is(Method::ALLOCATE) => case.can_have(ours),
                "405" => case.can_have(ours),
                _ => false,
            }
        },
    },
    Explanation {
        name: "coturn accepts malformed attributes, or rejects a malformed family with 440",
        rule: "RFC 8489 §14, RFC 8656 §7.2, §10.2",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let Some(message) = case.message() else { return false };
            let is_malformed =
                |attribute: &Attribute| matches!(attribute, Attribute::Raw(..)) && message.uses(attribute.kind());
            let is_family = |attribute: &Attribute| matches!(attribute, Attribute::Raw(0x0017, _));
            match case.authenticated_results() {
                Some(("400", "success")) => message.has(is_malformed),
                // Coturn takes a malformed peer for an IPv4 one.
                Some(("400", "443")) => {
                    message.has(|one| matches!(one, Attribute::Raw(0x0012, _))) && message.has(is_malformed)
                }
                Some(("400", "440")) => message.is(Method::ALLOCATE) && message.has(is_family),
                _ => false,
            }
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
    Explanation {
        name: "coturn honours attributes after MESSAGE-INTEGRITY",
        rule: "RFC 8489 §9",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let has = case.message().is_some_and(Message::has_attributes_after_integrity);
            has && follows_from_ignored(case)
        },
    },
    Explanation {
        name: "coturn uses the last of several attributes of a type, or rejects them",
        rule: "RFC 8489 §14",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| case.message().is_some_and(Message::has_duplicates) && follows_from_ignored(case),
    },
];

/// Whether the message has an attribute that requires comprehension, and that only other methods use.
fn has_of_other_method(case: &Case<'_>) -> bool {
    let message = case.message();
    let is_other = |attribute: &&Attribute| {
        let kind = attribute.kind();
        kind.is_comprehension_required() && message.is_some_and(|message| !message.uses(kind))
    };
    message.is_some_and(|message| message.attributes.iter().any(|attribute| is_other(&attribute)))
}

/// Whether a difference follows from coturn's use of an attribute that has to be ignored.
fn follows_from_ignored(case: &Case<'_>) -> bool {
    let Some(message) = case.message() else { return false };
    message.ignored().any(|attribute| follows_from(case, message, attribute))
}

fn follows_from(case: &Case<'_>, message: &Message, attribute: &Attribute) -> bool {
    let (method, uses) = (message.method, message.uses(attribute.kind()));
    let field = |name: &str| case.difference.field == name && case.difference.kind == format!("{method} success");
    let Some((ours, coturn)) = case.authenticated_results() else {
        return match (method, attribute) {
            (Method::ALLOCATE | Method::REFRESH, Attribute::Lifetime(_)) => field("LIFETIME"),
            (Method::ALLOCATE, Attribute::EvenPort(_)) => field("RESERVATION-TOKEN") || field("XOR-RELAYED-ADDRESS"),
            (Method::ALLOCATE, Attribute::Family(_) | Attribute::DraftAdditionalFamily(_)) => {
                field("XOR-RELAYED-ADDRESS")
            }
            (Method::SEND, Attribute::Data(_)) => case.only_ours_relays(),
            (Method::SEND, Attribute::Raw(..)) => uses && case.only_ours_relays(),
            (Method::SEND, Attribute::Peer(_)) => case.only_ours_relays() || case.only_coturn_relays(),
            _ => false,
        };
    };
    let results = ["success", "400", "403", "443"];
    // What our server sends for the message was compared with what it sends without the attribute.
    case.can_have(ours)
        && match (method, attribute) {
            _ if coturn == "420" => !uses,
            _ if !uses => false,
            (Method::ALLOCATE, _) => ["success", "400", "404", "440"].contains(&coturn),
            (Method::REFRESH, Attribute::Family(_) | Attribute::Raw(0x0017, _)) => {
                [("success", "400"), ("success", "443"), ("443", "success")].contains(&(ours, coturn))
            }
            (Method::CREATE_PERMISSION, Attribute::Peer(_)) => {
                [("400", "success"), ("400", "443"), ("success", "443")].contains(&(ours, coturn))
            }
            (Method::CHANNEL_BIND, _) => results.contains(&coturn),
            (_, Attribute::Raw(..)) => [ours, coturn] == ["success", "400"],
            _ => false,
        }
}

/// Returns the list that UNKNOWN-ATTRIBUTES has to have.
fn list(message: &Message) -> String {
    let mut list: Vec<_> = unknown(message).iter().map(ToString::to_string).collect();
    list.sort();
    list.dedup();
    format!("{list:?}")
}
