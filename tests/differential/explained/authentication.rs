//! Differences in authentication, and in what every response has.

use turnserver::stun::{Class, Method};

use super::{Case, Effect, Explanation, Right, is_served};
use crate::observe::{ABSENT, NOTHING};
use crate::operations::{Credentials, Damage, Message};

pub(super) const EXPLANATIONS: &[Explanation] = &[
    Explanation {
        name: "coturn sends SOFTWARE in responses to all methods, ours to Allocate and Refresh",
        rule: "RFC 8656 §5",
        right: Right::Both,
        effect: Effect::Formality,
        matches: |case| case.field("SOFTWARE", ABSENT, "present") && !has_software(case),
    },
    Explanation {
        name: "ours sends no SOFTWARE to a client that it has not authenticated",
        rule: "RFC 8656 §5",
        right: Right::Coturn("a response to a forged source is as short as possible (docs/rfc-coverage.md)"),
        effect: Effect::Formality,
        matches: |case| {
            case.field("SOFTWARE", ABSENT, "present") && has_software(case) && !case.difference.ours_is_signed
        },
    },
    Explanation {
        name: "ours offers PASSWORD-ALGORITHMS",
        rule: "RFC 8489 §9.2.4",
        right: Right::Ours,
        effect: Effect::Formality,
        matches: |case| {
            let is_challenge = ["401", "438"].iter().any(|code| case.difference.kind.ends_with(code));
            is_challenge && case.field("PASSWORD-ALGORITHMS", "present", ABSENT)
        },
    },
    Explanation {
        name: "coturn adds MAPPED-ADDRESS, RESPONSE-ORIGIN and OTHER-ADDRESS to Binding responses",
        rule: "RFC 8489 §6.3.1.2, RFC 5780 §7.3, §7.4",
        right: Right::Both,
        effect: Effect::Formality,
        matches: |case| {
            let added = case.field("MAPPED-ADDRESS", ABSENT, "its own")
                || ["RESPONSE-ORIGIN", "OTHER-ADDRESS"].iter().any(|name| case.field(name, ABSENT, "present"));
            added && case.difference.kind == "Binding success"
        },
    },
    Explanation {
        name: "coturn does not sign 437 and 441",
        rule: "RFC 8489 §9.2.4",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            ["437", "441"].iter().any(|code| case.difference.kind.ends_with(code))
                && case.is_authenticated()
                && case.field("MESSAGE-INTEGRITY", "valid", ABSENT)
        },
    },
    Explanation {
        name: "ours signs with SHA-256 what a client with password algorithms requests",
        rule: "RFC 8489 §9.2.4",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            case.credentials() == Credentials::Sha256
                && (case.field("MESSAGE-INTEGRITY", ABSENT, "valid")
                    || case.field("MESSAGE-INTEGRITY-SHA256", "valid", ABSENT))
        },
    },
    Explanation {
        name: "coturn rejects a second Allocate with 437 before it authenticates the request",
        rule: "RFC 8656 §7.2 steps 1 and 2",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            let Some((ours, "437")) = case.results() else { return false };
            case.is(Method::ALLOCATE) && case.has_allocation() && case.rejection() == Some(ours)
        },
    },
    Explanation {
        name: "coturn rejects another user with 441 before it authenticates the request",
        rule: "RFC 8656 §5",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let Some((ours, "441")) = case.results() else { return false };
            case.needs_allocation() && case.rejection() == Some(ours) && has_named_another(case)
        },
    },
    Explanation {
        name: "coturn compares the user with the one of the connection, and not with that of an allocation",
        rule: "RFC 8656 §5",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let results = case.results() == Some(("437", "441"));
            case.needs_allocation()
                && results
                && case.is_authenticated()
                && !case.has_allocation()
                && has_named_another(case)
        },
    },
    Explanation {
        name: "coturn rejects an Allocate with 437 after a failed request with another username",
        rule: "RFC 8656 §7.2 step 2",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let Some((ours, "437")) = case.results() else { return false };
            let expected = match case.rejection() {
                Some(rejection) => ours == rejection,
                None => case.can_result_in(ours),
            };
            case.is(Method::ALLOCATE) && expected && !case.has_allocation() && has_named_another(case)
        },
    },
    Explanation {
        name: "coturn rejects a request with another realm with 400",
        rule: "RFC 8489 §9.2.4",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| case.credentials() == Credentials::WrongRealm && case.results() == Some(("401", "400")),
    },
    Explanation {
        name: "ours challenges over UDP only an Allocate with REQUESTED-TRANSPORT",
        rule: "RFC 8489 §9.2.4",
        right: Right::Coturn("the challenge would be longer than the request (docs/rfc-coverage.md)"),
        effect: Effect::Nothing,
        matches: |case| {
            let is_served = case.message().is_some_and(is_served);
            is_served && case.rejection() == Some(NOTHING) && case.results() == Some((NOTHING, "401"))
        },
    },
    Explanation {
        name: "coturn responds to requests of RFC 3489, which have no magic cookie",
        rule: "RFC 8656 §5",
        right: Right::Both,
        effect: Effect::Nothing,
        matches: |case| {
            let damage = case.message().and_then(|message| message.damage);
            damage == Some(Damage::Cookie) && case.kinds_at_client() == Some((NOTHING, "malformed message"))
        },
    },
    Explanation {
        name: "ours drops requests of methods that it does not support; coturn rejects them",
        rule: "RFC 8489 §6.3",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            let Some(message) = case.message().filter(|message| message.class == Class::Request) else { return false };
            !is_served(message)
                && matches!(case.results(), Some((NOTHING, "400" | "401" | "403" | "420" | "438" | "441")))
        },
    },
];

/// Whether RFC 8656 §5 wants SOFTWARE in this response.
fn has_software(case: &Case<'_>) -> bool {
    ["Allocate ", "Refresh "].iter().any(|method| case.difference.kind.starts_with(method))
}

/// Whether this or an earlier request of the client had another username than the allocation of the client.
fn has_named_another(case: &Case<'_>) -> bool {
    let others = [Credentials::OtherUser, Credentials::UnknownUser];
    let is_other = |message: &Message| others.contains(&message.credentials);
    case.message().is_some_and(is_other) || case.earlier(case.client()).any(|(_, message)| is_other(message))
}
