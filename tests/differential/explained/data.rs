//! Differences in what is relayed.

use turnserver::stun::{AttributeType, Class, Method};

use super::{Case, Effect, Explanation, Right, is_of_other_rfc, is_served};
use crate::observe::{END, NOTHING};
use crate::operations::{Attribute, Operation, Transport};

pub(super) const EXPLANATIONS: &[Explanation] = &[
    Explanation {
        name: "ours ends a connection without an allocation after anything but a request",
        rule: "RFC 8656 §5",
        right: Right::Coturn("it bounds what an unauthenticated client can send (docs/threat-model.md)"),
        effect: Effect::Ends,
        matches: |case| {
            case.transport() == Transport::Tcp
                && !case.message().is_some_and(is_served)
                && !case.has_allocation()
                && is_ended(case)
        },
    },
    Explanation {
        name: "ours ends a connection after bytes that are no STUN message by RFC 7983",
        rule: "RFC 8489 §18.2, RFC 8656 §12",
        right: Right::Both,
        effect: Effect::Ends,
        matches: |case| {
            // Such a message begins with a byte above 3.
            let is_reserved = case.method().is_some_and(|method| method.number() >= 0x100);
            case.transport() == Transport::Tcp && is_reserved && is_ended(case)
        },
    },
    Explanation {
        name: "coturn drops ChannelData in a datagram with more padding than needed",
        rule: "RFC 8656 §12.5, §12.6",
        right: Right::Both,
        effect: Effect::Nothing,
        matches: |case| {
            let Operation::ChannelData { padding, payload, .. } = case.step.operation else { return false };
            case.is_udp() && *padding > payload.len().wrapping_neg() % 4 && case.only_ours_relays()
        },
    },
    Explanation {
        name: "coturn drops Send indications with known attributes of other methods",
        rule: "RFC 8489 §6.3",
        right: Right::Ours,
        effect: Effect::Nothing,
        matches: |case| {
            let is_other = |attribute: &Attribute| {
                let used = [AttributeType::XOR_PEER_ADDRESS, AttributeType::DATA, AttributeType::DONT_FRAGMENT];
                attribute.kind().is_comprehension_required() && !used.contains(&attribute.kind())
            };
            case.method() == Some(Method::SEND) && case.has(is_other) && !case.has_unknown() && case.only_ours_relays()
        },
    },
    Explanation {
        name: "coturn understands PRIORITY and attributes of RFC 5780 and RFC 6062 in Send indications",
        rule: "RFC 8489 §6.3.2",
        right: Right::Both,
        effect: Effect::Nothing,
        matches: |case| {
            let is_send = case
                .message()
                .is_some_and(|message| (message.class, message.method) == (Class::Indication, Method::SEND));
            is_send && case.has(|attribute| is_of_other_rfc(attribute.kind())) && case.only_coturn_relays()
        },
    },
    Explanation {
        name: "ours does not relay TURN messages",
        rule: "RFC 8656 §11.2, §11.3, §12.6",
        right: Right::Coturn("a packet could circle between allocations for ever (docs/threat-model.md)"),
        effect: Effect::Nothing,
        matches: |case| {
            let payload = match case.step.operation {
                Operation::ChannelData { payload, .. } | Operation::FromPeer { payload, .. } => Some(payload),
                Operation::Message { message, .. } => message.attributes.iter().find_map(Attribute::data),
                _ => None,
            };
            let is_turn = payload.is_some_and(|payload| matches!(**payload, [0, 3 | 4, _, _, 0x21, 0x12, ..]));
            is_turn && case.only_coturn_relays()
        },
    },
];

/// Whether our server has ended the connection, and coturn has dropped or rejected a message.
fn is_ended(case: &Case<'_>) -> bool {
    let is_rejected = |coturn: &str| ["400", "401", "403", "420"].iter().any(|code| coturn.ends_with(code));
    let ended = case.kinds_at_client().filter(|(ours, _)| *ours == END);
    ended.is_some_and(|(_, coturn)| coturn == NOTHING || is_rejected(coturn))
}
