//! Differences in how allocations are made and deleted.

use turnserver::stun::Method;

use super::{Case, Effect, Explanation, Right};
use crate::observe::{ABSENT, Difference, END};
use crate::operations::{Attribute, Operation, Target, Transport};

pub(super) const EXPLANATIONS: &[Explanation] = &[
    Explanation {
        name: "coturn repeats an Allocate response without its RESERVATION-TOKEN",
        rule: "RFC 8489 §6.3.1",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            case.step.is_repeated
                && case.difference.kind == "Allocate success"
                && case.field("RESERVATION-TOKEN", "present", ABSENT)
        },
    },
    Explanation {
        name: "coturn does not implement ADDITIONAL-ADDRESS-FAMILY under its number in the RFC",
        rule: "RFC 8656 §18.11",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let has = |family| case.has(|attribute| *attribute == Attribute::AdditionalFamily(family));
            let Difference { field, ours, coturn, kind, .. } = case.difference;
            let first = ours.split_once(", \"fd00").map(|(first, _)| format!("{first}]"));
            let is_dual = has(2)
                && (kind.as_str(), field.as_str()) == ("Allocate success", "XOR-RELAYED-ADDRESS")
                && first.is_some_and(|first| *coturn == first);
            // With an attribute or a family that excludes it.
            let is_bad = [0, 1, 2, 9].into_iter().any(has)
                && matches!(case.authenticated_results(), Some(("400", "success" | "404" | "440")));
            case.is(Method::ALLOCATE) && (is_dual || is_bad)
        },
    },
    Explanation {
        name: "an address family that does not exist in ADDITIONAL-ADDRESS-FAMILY",
        rule: "RFC 8656 §7.2 step 9: not specified",
        right: Right::Both,
        effect: Effect::Nothing,
        matches: |case| {
            case.has(|attribute| matches!(attribute, Attribute::DraftAdditionalFamily(0 | 9)))
                && case.results() == Some(("400", "440"))
        },
    },
    Explanation {
        name: "coturn keeps an allocation for a while after a Refresh with lifetime 0",
        rule: "RFC 8656 §8.2",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            if !case.concerned().into_iter().any(|client| has_deleted(case, client)) {
                return false;
            }
            let ours_is_gone = match case.results() {
                // After the while, coturn forgets the nonce, too.
                Some((ours, "437" | "438")) => {
                    let expected = case.rejection().map_or_else(|| case.can_result_in(ours), |code| ours == code);
                    case.is(Method::ALLOCATE) && expected
                }
                Some(("437" | "443", _)) => case.needs_allocation() && case.is_authenticated(),
                _ => case.only_coturn_relays(),
            };
            // It also ends the connection.
            ours_is_gone || !case.is_udp() && matches!(case.kinds_at_client(), Some((_, END)))
        },
    },
    Explanation {
        name: "coturn ends the allocation of a client that sends to port 0",
        rule: "RFC 8656 §11.2",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            if !case.concerned().into_iter().any(|client| has_sent_to_port_zero(case, client)) {
                return false;
            }
            match (case.results(), case.kinds_at_client()) {
                (Some(("success" | "400" | "403" | "443", "437" | "438" | "443")), _) => {
                    case.needs_allocation() && case.has_allocation()
                }
                (Some(("437", "438" | "success")), _) => case.is(Method::ALLOCATE) && case.has_allocation(),
                (_, Some((_, END))) => !case.is_udp(),
                _ => case.only_ours_relays(),
            }
        },
    },
    Explanation {
        name: "coturn takes a token of zeros for none",
        rule: "RFC 8656 §7.2 step 5",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            case.is(Method::ALLOCATE)
                && case.step.tokens.map(|token| token.map(|token| token.value)) == [Some([0; 8]); 2]
                && matches!(case.results(), Some(("400" | "508", "success")))
        },
    },
    Explanation {
        name: "coturn rejects an invalid token with 404",
        rule: "RFC 8656 §7.2 step 5: 508",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            case.is(Method::ALLOCATE) && case.step.has_invalid_token() && case.results() == Some(("508", "404"))
        },
    },
    Explanation {
        name: "a token with REQUESTED-ADDRESS-FAMILY of no family",
        rule: "RFC 8656 §7.2 steps 5 and 7",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            case.is(Method::ALLOCATE)
                && case.step.tokens[0].is_some()
                && case.has(|attribute| matches!(attribute, Attribute::Family(0 | 3 | 255)))
                && case.results() == Some(("400", "440"))
        },
    },
    Explanation {
        name: "coturn gives 0.0.0.0 after a request with an invalid token",
        rule: "RFC 8656 §7.2",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            case.difference.field == "XOR-RELAYED-ADDRESS"
                && !case.difference.ours.contains("0.0.0.0")
                && case.difference.coturn.contains("0.0.0.0")
                && case.earlier(case.client()).any(|(step, _)| step.has_invalid_token())
        },
    },
    Explanation {
        name: "coturn relays to peers over TCP",
        rule: "RFC 6062 §5.1; docs/rfc-coverage.md",
        right: Right::Both,
        effect: Effect::Ends,
        matches: |case| {
            case.is(Method::ALLOCATE)
                && case.has(|attribute| *attribute == Attribute::RequestedTransport(6))
                && matches!(case.results(), Some(("442", "400" | "440" | "success")))
        },
    },
    Explanation {
        name: "coturn rejects an unknown transport protocol with 400",
        rule: "RFC 8656 §7.2 step 3: 442",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            case.is(Method::ALLOCATE)
                && case.has(|attribute| matches!(attribute, Attribute::RequestedTransport(0 | 99 | 255)))
                && case.results() == Some(("442", "400"))
        },
    },
    Explanation {
        name: "ours rejects DONT-FRAGMENT for a relayed IPv6 address of an IPv4 client",
        rule: "RFC 8656 §3.7",
        right: Right::Ours,
        effect: Effect::Ends,
        matches: |case| {
            let families = [Attribute::Family, Attribute::AdditionalFamily, Attribute::DraftAdditionalFamily];
            let wants_ipv6 = |attribute: &Attribute| families.iter().any(|family| *attribute == family(2));
            let reserved = case.step.tokens[0].and_then(|token| token.reserves);
            case.is(Method::ALLOCATE)
                && case.transport() == Transport::Udp
                && case.has(|attribute| *attribute == Attribute::DontFragment)
                && (case.has(wants_ipv6) || reserved.is_some_and(|address| address.is_ipv6()))
                && case.results() == Some(("420", "success"))
        },
    },
];

/// Whether a client has deleted its allocation, or one address of it, at our server.
fn has_deleted(case: &Case<'_>, client: usize) -> bool {
    let was_deleted = |attribute: &Attribute| *attribute == Attribute::Lifetime(0);
    let mut deleted =
        case.earlier(client).filter(|(_, message)| message.is(Method::REFRESH) && message.has(was_deleted));
    let is_gone = case.step.allocated[0][client] != [true; 2];
    is_gone && deleted.any(|(step, _)| step.ours_sent("Refresh success"))
}

fn has_sent_to_port_zero(case: &Case<'_>, client: usize) -> bool {
    let to_zero = |operation: &Operation| {
        let message = operation.message().filter(|message| message.method == Method::SEND);
        message.is_some_and(|message| message.has(|attribute| *attribute == Attribute::Peer(Target::ZeroPort)))
    };
    let steps = case.before.iter().chain([case.step]);
    steps.filter(|step| step.operation.client() == client).any(|step| to_zero(step.operation))
}
