//! The differences between the two servers, and the reason of each.

use turnserver::stun::{Class, Method};

use crate::observe::{ABSENT, Difference, NOTHING};
use crate::operations::{Credentials, Damage, Item, Link, Message, Operation, Target, Token};

/// Which server is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    Ours,
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
    /// The operation. If a client repeats a message, this is the message.
    pub(crate) operation: &'c Operation,
    pub(crate) is_repeated: bool,
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

    /// Whether a peer, or a client that is another client's peer, gets data from our server only.
    fn only_ours_relays(&self) -> bool {
        self.kinds().is_some_and(|(ours, coturn)| RELAYED.contains(&ours) && coturn == NOTHING)
    }

    fn only_coturn_relays(&self) -> bool {
        self.kinds().is_some_and(|(ours, coturn)| ours == NOTHING && RELAYED.contains(&coturn))
    }

    fn has(&self, wanted: impl Fn(&Item) -> bool) -> bool {
        self.message().is_some_and(|message| message.has(wanted))
    }

    fn method(&self) -> Option<Method> {
        self.message().map(|message| message.method)
    }

    fn credentials(&self) -> Credentials {
        self.message().map_or(Credentials::None, |message| message.credentials)
    }
}

/// What relayed data is to a peer or a client.
const RELAYED: [&str; 3] = ["datagram", "Data indication", "ChannelData"];

use Right::{Both, Ours};

pub(crate) const EXPLANATIONS: &[Explanation] = &[
    Explanation {
        name: "SOFTWARE is sent by coturn in every response, by ours in responses to Allocate and Refresh",
        rule: "RFC 8489 §6.3.1.1, RFC 8656 §5",
        right: Both,
        ends: false,
        matches: |case| {
            let requires = ["Allocate success", "Refresh success"].contains(&case.difference.kind.as_str());
            case.field("SOFTWARE", ABSENT, "present") && !requires
        },
    },
    Explanation {
        name: "ours offers PASSWORD-ALGORITHMS",
        rule: "RFC 8489 §9.2.4",
        right: Ours,
        ends: false,
        matches: |case| case.field("PASSWORD-ALGORITHMS", "present", ABSENT),
    },
    Explanation {
        name: "coturn adds MAPPED-ADDRESS, RESPONSE-ORIGIN and OTHER-ADDRESS to Binding responses",
        rule: "RFC 8489 §6.3.1.2, RFC 5780 §7.3, §7.4",
        right: Both,
        ends: false,
        matches: |case| {
            case.field("MAPPED-ADDRESS", ABSENT, "its own")
                || ["RESPONSE-ORIGIN", "OTHER-ADDRESS"].iter().any(|name| case.field(name, ABSENT, "present"))
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
        name: "coturn repeats an Allocate response without its RESERVATION-TOKEN",
        rule: "RFC 8489 §6.3.1",
        right: Ours,
        ends: true,
        matches: |case| case.is_repeated && case.field("RESERVATION-TOKEN", "present", ABSENT),
    },
    Explanation {
        name: "ours signs with SHA-256 what a client with password algorithms requests",
        rule: "RFC 8489 §9.2.4",
        right: Ours,
        ends: false,
        matches: |case| {
            case.credentials() == Credentials::Sha256
                && (case.field("MESSAGE-INTEGRITY", ABSENT, "valid")
                    || case.field("MESSAGE-INTEGRITY-SHA256", "valid", ABSENT))
        },
    },
    Explanation {
        name: "coturn honours attributes after MESSAGE-INTEGRITY",
        rule: "RFC 8489 §9",
        right: Ours,
        ends: true,
        matches: |case| {
            let ours = case.results().map(|(ours, _)| ours);
            case.message().is_some_and(|message| !message.after.is_empty()) && ours != Some("420")
        },
    },
    Explanation {
        name: "coturn checks attributes before the allocation, or the user of the connection instead of the allocation's",
        rule: "RFC 8656 §5",
        right: Ours,
        ends: true,
        matches: |case| matches!(case.results(), Some(("437", "400" | "403" | "420" | "441" | "443"))),
    },
    Explanation {
        name: "coturn rejects another user with 441 before it authenticates the request",
        rule: "RFC 8656 §5",
        right: Ours,
        ends: true,
        matches: |case| matches!(case.results(), Some(("401" | "400" | "438" | NOTHING, "441"))),
    },
    Explanation {
        name: "coturn rejects an Allocate with 437 after a failed request with another username",
        rule: "RFC 8656 §7.2 step 2",
        right: Ours,
        ends: true,
        matches: |case| {
            let others = [Credentials::OtherUser, Credentials::UnknownUser];
            let named_another = |earlier: &Operation| {
                earlier.client() == case.operation.client()
                    && earlier.message().is_some_and(|message| others.contains(&message.credentials))
            };
            case.method() == Some(Method::ALLOCATE)
                && matches!(case.results(), Some((_, "437")))
                && case.before.iter().chain([case.operation]).any(named_another)
        },
    },
    Explanation {
        name: "coturn rejects known attributes of other methods with 420",
        rule: "RFC 8489 §6.3",
        right: Ours,
        ends: true,
        matches: |case| {
            let is_unknown = |item: &Item| matches!(item, Item::Raw(0x0030 | 0x7abc, _));
            matches!(case.results(), Some((_, "420"))) && case.message().is_some() && !case.has(is_unknown)
        },
    },
    Explanation {
        name: "coturn uses the last of several attributes of a type, or rejects them",
        rule: "RFC 8489 §14",
        right: Ours,
        ends: true,
        matches: |case| {
            case.method() != Some(Method::CREATE_PERMISSION) && case.message().is_some_and(Message::has_duplicates)
        },
    },
    Explanation {
        name: "coturn rejects a request with another realm with 400",
        rule: "RFC 8489 §9.2.4",
        right: Ours,
        ends: false,
        matches: |case| case.credentials() == Credentials::WrongRealm && matches!(case.results(), Some(("401", "400"))),
    },
    Explanation {
        name: "coturn answers requests of RFC 3489, which have no magic cookie",
        rule: "RFC 8489 §12; docs/rfc-coverage.md",
        right: Both,
        ends: false,
        matches: |case| {
            let damage = case.message().and_then(|message| message.damage);
            damage == Some(Damage::Cookie) && case.kinds() == Some((NOTHING, "malformed message"))
        },
    },
    Explanation {
        name: "ours drops requests of methods that it does not support; coturn rejects them",
        rule: "RFC 8489 §6.3",
        right: Ours,
        ends: false,
        matches: |case| {
            let Some((NOTHING, coturn)) = case.kinds() else { return false };
            // The response may be late if it is the first to an authenticated request.
            case.before.iter().chain([case.operation]).filter_map(Operation::message).any(|message| {
                let is_response = || coturn.starts_with(&format!("{} ", message.method));
                message.class == Class::Request && !is_served(message) && is_response()
            })
        },
    },
    Explanation {
        name: "coturn does not implement ADDITIONAL-ADDRESS-FAMILY under its number in the RFC",
        rule: "RFC 8656 §18.11",
        right: Ours,
        ends: true,
        matches: |case| case.has(|item| matches!(item, Item::AdditionalFamily(_))),
    },
    Explanation {
        name: "an address family that does not exist in ADDITIONAL-ADDRESS-FAMILY",
        rule: "RFC 8656 §7.2 step 9: not specified",
        right: Both,
        ends: false,
        matches: |case| {
            case.has(|item| matches!(item, Item::DraftAdditionalFamily(0 | 9)))
                && matches!(case.results(), Some(("400", "440")))
        },
    },
    Explanation {
        name: "coturn implements RFC 5780 and RFC 6062, and understands PRIORITY",
        rule: "RFC 8489 §6.3.1; docs/rfc-coverage.md",
        right: Both,
        ends: true,
        matches: |case| {
            case.has(|item| matches!(item, Item::Raw(0x0003 | 0x0024 | 0x0027 | 0x002a, _)))
                && (matches!(case.results(), Some(("420", _))) || case.difference.field == "UNKNOWN-ATTRIBUTES")
        },
    },
    Explanation {
        name: "coturn checks other things before unknown attributes",
        rule: "RFC 8489 §6.3.1",
        right: Ours,
        ends: false,
        matches: |case| {
            case.has(|item| matches!(item, Item::Raw(0x7abc | 0x0030, _)))
                && matches!(case.results(), Some(("420", "400" | "403" | "437" | "441" | "443")))
        },
    },
    Explanation {
        name: "coturn lists known attributes in UNKNOWN-ATTRIBUTES, and some twice",
        rule: "RFC 8489 §6.3, §14.13",
        right: Ours,
        ends: false,
        matches: |case| case.difference.field == "UNKNOWN-ATTRIBUTES",
    },
    Explanation {
        name: "coturn keeps an allocation for a while after a Refresh with lifetime 0",
        rule: "RFC 8656 §8.2",
        right: Ours,
        ends: true,
        matches: |case| {
            let deletes = |earlier: &Operation| {
                let message = earlier.message().filter(|message| message.is(Method::REFRESH));
                message.is_some_and(|message| message.has(|item| *item == Item::Lifetime(0)))
            };
            // After the while, it forgets the nonce, too, and ends the connection.
            let is_gone = matches!(case.results(), Some(("437" | "443", _) | (_, "437" | "438")))
                || matches!(case.kinds(), Some((_, "the end of the connection")))
                || case.only_coturn_relays();
            is_gone && case.before.iter().any(deletes)
        },
    },
    Explanation {
        name: "the order of the checks of one request",
        rule: "RFC 8656 §10.2, §12.2, §8.2: not specified",
        right: Both,
        ends: false,
        matches: |case| {
            let errors = ["400", "403", "443"];
            let both = case.results().is_some_and(|(ours, coturn)| errors.contains(&ours) && errors.contains(&coturn));
            case.method() != Some(Method::ALLOCATE) && both
        },
    },
    Explanation {
        name: "coturn has mobility and rejects an attempt to use it with 405; ours ignores the optional attribute",
        rule: "RFC 8489 §6.3, RFC 8016",
        right: Both,
        ends: true,
        matches: |case| {
            case.has(|item| matches!(item, Item::Raw(0x8030, _))) && matches!(case.results(), Some((_, "405")))
        },
    },
    Explanation {
        name: "coturn accepts malformed attributes",
        rule: "RFC 8489 §14, RFC 8656 §7.2, §10.2",
        right: Ours,
        ends: true,
        matches: |case| {
            case.has(|item| matches!(item, Item::Raw(..) if item.kind().number() < 0x0023))
                && matches!(case.results(), Some(("400", "success")))
        },
    },
    Explanation {
        name: "coturn takes a token of zeros for none",
        rule: "RFC 8656 §7.2 step 5",
        right: Ours,
        ends: true,
        matches: |case| {
            case.has(|item| matches!(item, Item::Token(Token::Of(_))))
                && matches!(case.results(), Some(("400" | "508", "success")))
        },
    },
    Explanation {
        name: "coturn rejects an invalid token with 404",
        rule: "RFC 8656 §7.2 step 5: 508",
        right: Ours,
        ends: false,
        matches: |case| {
            case.has(|item| matches!(item, Item::Token(_))) && matches!(case.results(), Some(("508", "404")))
        },
    },
    Explanation {
        name: "coturn does not look for a denied IPv4 address in an IPv6 address",
        rule: "docs/threat-model.md",
        right: Ours,
        ends: true,
        matches: |case| {
            case.has(|item| *item == Item::Peer(Target::MappedDenied))
                && matches!(case.results(), Some(("403", "success")))
        },
    },
    Explanation {
        name: "ours ends a connection without an allocation after anything but a request",
        rule: "docs/threat-model.md",
        right: Both,
        ends: true,
        matches: |case| {
            case.clients[case.operation.client()] == Link::Tcp
                && !case.message().is_some_and(is_served)
                && matches!(case.kinds(), Some(("the end of the connection", _)))
        },
    },
    Explanation {
        name: "coturn relays to peers over TCP",
        rule: "RFC 6062 §5.1; docs/rfc-coverage.md",
        right: Both,
        ends: true,
        matches: |case| {
            case.has(|item| *item == Item::RequestedTransport(6))
                && matches!(case.results(), Some(("442", "400" | "440" | "success")))
        },
    },
    Explanation {
        name: "ours challenges over UDP only an Allocate with REQUESTED-TRANSPORT",
        rule: "docs/rfc-coverage.md, RFC 8489 §9.2.4",
        right: Both,
        ends: false,
        matches: |case| {
            case.clients[case.operation.client()] != Link::Tcp
                && matches!(case.credentials(), Credentials::None | Credentials::NoIntegrity)
                && matches!(case.results(), Some((NOTHING, "401")))
        },
    },
    Explanation {
        name: "ours rejects DONT-FRAGMENT for a relayed IPv6 address of an IPv4 client",
        rule: "RFC 8656 §3.7",
        right: Ours,
        ends: true,
        matches: |case| {
            case.has(|item| *item == Item::DontFragment) && matches!(case.results(), Some(("420", "success")))
        },
    },
    Explanation {
        name: "coturn drops ChannelData in a datagram with more padding than needed",
        rule: "RFC 8656 §12.5, §12.6",
        right: Both,
        ends: false,
        matches: |case| {
            let Operation::ChannelData { padding, payload, .. } = case.operation else { return false };
            *padding > payload.len().wrapping_neg() % 4 && case.only_ours_relays()
        },
    },
    Explanation {
        name: "coturn accepts the channel numbers of RFC 5766",
        rule: "RFC 8656 §12; compat.rfc5766-channels",
        right: Ours,
        ends: true,
        matches: |case| {
            case.has(|item| matches!(item, Item::Channel(0x5000..=0x7fff)))
                && matches!(case.results(), Some(("400", "success")))
        },
    },
    Explanation {
        name: "coturn rejects an unknown transport protocol with 400",
        rule: "RFC 8656 §7.2 step 3: 442",
        right: Ours,
        ends: false,
        matches: |case| {
            case.has(|item| matches!(item, Item::RequestedTransport(0 | 99 | 255)))
                && matches!(case.results(), Some(("442", "400")))
        },
    },
    Explanation {
        name: "coturn drops Send indications with known attributes of other methods",
        rule: "RFC 8489 §6.3",
        right: Ours,
        ends: false,
        matches: |case| {
            let is_other = |item: &Item| !matches!(item, Item::Peer(_) | Item::Data(_) | Item::DontFragment);
            case.message().is_some_and(|message| message.method == Method::SEND && message.has(is_other))
                && case.only_ours_relays()
        },
    },
    Explanation {
        name: "coturn understands PRIORITY and attributes of RFC 5780 and RFC 6062 in Send indications",
        rule: "RFC 8489 §6.3.2",
        right: Both,
        ends: false,
        matches: |case| {
            case.has(|item| matches!(item, Item::Raw(0x0003 | 0x0024 | 0x0027 | 0x002a, _)))
                && case.only_coturn_relays()
        },
    },
    Explanation {
        name: "coturn gives 0.0.0.0 after a request with an invalid token",
        rule: "RFC 8656 §7.2",
        right: Ours,
        ends: true,
        matches: |case| {
            let had_token = |earlier: &Operation| {
                let message = earlier.message().filter(|_| earlier.client() == case.operation.client());
                message.is_some_and(|message| message.has(|item| matches!(item, Item::Token(_))))
            };
            case.difference.field == "XOR-RELAYED-ADDRESS"
                && case.difference.coturn.contains("0.0.0.0")
                && case.before.iter().any(had_token)
        },
    },
    Explanation {
        name: "coturn ends the allocation of a client that sends to port 0",
        rule: "RFC 8656 §11.2",
        right: Ours,
        ends: true,
        matches: |case| {
            let sends_to_zero = |operation: &Operation| {
                let message = operation.message().filter(|message| message.method == Method::SEND);
                message.is_some_and(|message| message.has(|item| *item == Item::Peer(Target::ZeroPort)))
            };
            // What is lost with the allocation depends on the next operation.
            case.before.iter().chain([case.operation]).any(sends_to_zero) && case.kinds().is_some()
        },
    },
    Explanation {
        name: "ours does not relay TURN messages",
        rule: "docs/threat-model.md",
        right: Both,
        ends: false,
        matches: |case| {
            let payload = match case.operation {
                Operation::ChannelData { payload, .. } | Operation::FromPeer { payload, .. } => Some(payload),
                Operation::Message { message, .. } => message.items.iter().find_map(|item| match item {
                    Item::Data(payload) => Some(payload),
                    _ => None,
                }),
                _ => None,
            };
            let is_turn = payload.is_some_and(|payload| matches!(**payload, [0, 3 | 4, _, _, 0x21, 0x12, ..]));
            is_turn && case.only_coturn_relays()
        },
    },
    Explanation {
        name: "a token with REQUESTED-ADDRESS-FAMILY of no family",
        rule: "RFC 8656 §7.2 steps 5 and 7",
        right: Ours,
        ends: false,
        matches: |case| {
            case.has(|item| matches!(item, Item::Token(_))) && matches!(case.results(), Some(("400", "440")))
        },
    },
];

/// Whether this is a request of a method that our server has.
fn is_served(message: &Message) -> bool {
    let methods = [Method::BINDING, Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND];
    message.class == Class::Request && methods.contains(&message.method)
}

/// Whether the servers may be in different states after an operation although what was received is the same.
pub(crate) fn diverges_silently(operation: &Operation) -> bool {
    let Some(message) = operation.message() else { return false };
    let twice = message.method != Method::CREATE_PERMISSION && message.has_duplicates();
    message.class == Class::Request && message.method != Method::BINDING && (twice || !message.after.is_empty())
}
