//! The differences between the two servers, and the reason of each.
//!
//! A predicate names what each server has sent, and the circumstances that lead to it. It must not match if our server
//! does something else than the rule demands.

mod allocations;
mod attributes;
mod authentication;
mod data;

use turnserver::stun::{AttributeType, Class, Method};

use crate::client;
use crate::observe::{Difference, NOTHING, Seen};
use crate::operations::{Attribute, Credentials, Message, Operation, Peer, Target, Transport};
use crate::side::SentToken;

/// Which server is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    Ours,
    /// The RFC allows both.
    Both,
    /// Coturn follows the RFC, and ours does not, for this reason.
    Coturn(&'static str),
}

/// What a difference means for the rest of the sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// Nothing, and almost every sequence has it.
    Formality,
    Nothing,
    /// The servers are in different states afterwards, so the comparison ends.
    Ends,
}

pub(crate) struct Explanation {
    pub(crate) name: &'static str,
    /// The section of an RFC, or the document that says what our server does.
    pub(crate) rule: &'static str,
    pub(crate) right: Right,
    pub(crate) effect: Effect,
    pub(crate) matches: fn(&Case<'_>) -> bool,
}

pub(crate) const EXPLANATIONS: [&[Explanation]; 4] =
    [authentication::EXPLANATIONS, attributes::EXPLANATIONS, allocations::EXPLANATIONS, data::EXPLANATIONS];

/// An operation with its results.
pub(crate) struct Step<'s> {
    /// The operation. If a client repeats a message, this is the message.
    pub(crate) operation: &'s Operation,
    pub(crate) is_repeated: bool,
    /// For each server and client, whether the client had a relayed address of each family before.
    pub(crate) allocated: [Vec<[bool; 2]>; 2],
    /// The tokens in the message to each server.
    pub(crate) tokens: [Option<SentToken>; 2],
    pub(crate) seen: [Vec<Seen>; 2],
}

/// A difference and its circumstances.
pub(crate) struct Case<'c> {
    pub(crate) before: &'c [Step<'c>],
    pub(crate) step: &'c Step<'c>,
    pub(crate) difference: &'c Difference,
    pub(crate) clients: &'c [Transport],
}

impl Step<'_> {
    fn message(&self) -> Option<&Message> {
        self.operation.message()
    }

    /// Whether the request has a token that reserves nothing at our server.
    fn has_invalid_token(&self) -> bool {
        self.tokens[0].is_some_and(|token| token.reserves.is_none())
    }

    /// Whether our server has sent this kind of response to the client.
    fn ours_sent(&self, kind: &str) -> bool {
        self.seen[0].iter().any(|seen| seen.kind == kind)
    }
}

impl Case<'_> {
    /// Returns a text that is the same for similar differences.
    pub(crate) fn kind(&self) -> String {
        let Difference { at, field, ours, coturn, kind, .. } = self.difference;
        let place = at.split(' ').next().unwrap_or_default();
        let operation = match self.step.operation {
            Operation::Message { message, .. } => format!("{} {:?}", message.method, message.class),
            Operation::Again { .. } => "a repeated message".to_owned(),
            Operation::ChannelData { .. } => "ChannelData".to_owned(),
            Operation::Bytes { .. } => "bytes".to_owned(),
            Operation::FromPeer { .. } => "a datagram of a peer".to_owned(),
        };
        format!("{operation}: {place}: {kind} {field}: {ours} / {coturn}")
    }

    fn message(&self) -> Option<&Message> {
        self.step.message()
    }

    fn client(&self) -> usize {
        self.step.operation.client()
    }

    fn transport(&self) -> Transport {
        self.clients[self.client()]
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

    /// Returns the kinds of what the client of the operation has received.
    fn kinds_at_client(&self) -> Option<(&str, &str)> {
        self.kinds().filter(|_| self.difference.at == client::name(self.client()))
    }

    /// Returns the results of a request: `success`, a code, or `nothing`.
    fn results(&self) -> Option<(&str, &str)> {
        let message = self.message().filter(|message| message.class == Class::Request)?;
        let (ours, coturn) = self.kinds_at_client()?;
        let method = format!("{} ", message.method);
        let result =
            |kind: &'_ str| if kind == NOTHING { Some(0) } else { kind.starts_with(&method).then_some(method.len()) };
        Some((&ours[result(ours)?..], &coturn[result(coturn)?..]))
    }

    /// Whether a peer, or a client that is another client's peer, gets data from our server only.
    fn only_ours_relays(&self) -> bool {
        self.kinds().is_some_and(|(ours, coturn)| is_relayed(ours) && coturn == NOTHING)
    }

    fn only_coturn_relays(&self) -> bool {
        self.kinds().is_some_and(|(ours, coturn)| ours == NOTHING && is_relayed(coturn))
    }

    fn has(&self, wanted: impl Fn(&Attribute) -> bool) -> bool {
        self.message().is_some_and(|message| message.has(wanted))
    }

    /// Whether our server does not know an attribute of the message, which requires comprehension.
    fn has_unknown(&self) -> bool {
        self.message().is_some_and(|message| !unknown(message).is_empty())
    }

    fn method(&self) -> Option<Method> {
        self.message().map(|message| message.method)
    }

    fn is(&self, method: Method) -> bool {
        self.message().is_some_and(|message| message.is(method))
    }

    /// Whether this is a request that needs an allocation.
    fn needs_allocation(&self) -> bool {
        [Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND].iter().any(|method| self.is(*method))
    }

    fn credentials(&self) -> Credentials {
        match self.message().map(|message| message.credentials) {
            // There is no other client.
            Some(Credentials::ForeignNonce) if self.clients.len() == 1 => Credentials::Right,
            credentials => credentials.unwrap_or(Credentials::None),
        }
    }

    /// Whether the request has valid credentials of a user, perhaps not of the one with the allocation.
    fn is_authenticated(&self) -> bool {
        matches!(self.credentials(), Credentials::Right | Credentials::OtherUser | Credentials::Sha256)
    }

    /// Returns the result that a request has to have because of its credentials; `None` if they are valid.
    fn rejection(&self) -> Option<&'static str> {
        let has_transport = self.has(|attribute| attribute.kind() == AttributeType::REQUESTED_TRANSPORT);
        let begins = self.is(Method::ALLOCATE) && has_transport;
        match self.credentials() {
            Credentials::Right | Credentials::OtherUser | Credentials::Sha256 => None,
            Credentials::None if self.is_udp() && !begins && !self.has_allocation() => Some(NOTHING),
            Credentials::NoUsername | Credentials::NoRealm | Credentials::NoNonce => Some("400"),
            Credentials::MadeUpNonce | Credentials::ForeignNonce => Some("438"),
            Credentials::None
            | Credentials::NoIntegrity
            | Credentials::ShortIntegrity
            | Credentials::UnknownUser
            | Credentials::WrongPassword
            | Credentials::WrongRealm => Some("401"),
        }
    }

    /// Whether the request has one of the two results, and has valid credentials.
    fn authenticated_results(&self) -> Option<(&str, &str)> {
        self.results().filter(|_| self.is_authenticated() || self.is(Method::BINDING))
    }

    /// Whether the message has a peer that our server denies.
    fn has_denied_peer(&self) -> bool {
        let is_denied = |attribute: &Attribute| match attribute {
            Attribute::Peer(Target::Peer(_) | Target::Relay(_)) => false,
            Attribute::Peer(Target::ZeroPort) => self.is(Method::CHANNEL_BIND),
            Attribute::Peer(_) => true,
            _ => false,
        };
        self.has(is_denied)
    }

    /// Whether the message has a peer of a family of which the client has no relayed address.
    fn has_peer_of_other_family(&self) -> bool {
        let [ipv4, ipv6] = self.step.allocated[0][self.client()];
        self.has(|attribute| match attribute {
            Attribute::Peer(Target::Peer(Peer::V6) | Target::MappedDenied) => !ipv6,
            Attribute::Peer(_) => !ipv4,
            _ => false,
        })
    }

    /// Whether an Allocate request with valid credentials and without an allocation can have this result at our server.
    fn can_result_in(&self, result: &str) -> bool {
        let is_no_family = |family| ![1, 2].contains(&family);
        match result {
            "success" | "400" => true,
            "420" => self.has_unknown() || self.has(|attribute| *attribute == Attribute::DontFragment),
            "440" => self.has(|attribute| matches!(attribute, Attribute::Family(family) if is_no_family(*family))),
            "442" => self.has(|attribute| matches!(attribute, Attribute::RequestedTransport(0 | 6 | 99 | 255))),
            "508" => self.step.has_invalid_token(),
            _ => false,
        }
    }

    /// Whether a request with valid credentials can have this result at our server. The handlers are not modelled, so
    /// a success and a 400 are always possible.
    fn can_have(&self, result: &str) -> bool {
        match (self.is(Method::ALLOCATE), self.has_allocation()) {
            (true, true) | (false, false) if !self.is(Method::BINDING) => result == "437",
            (true, _) => self.can_result_in(result),
            _ => match result {
                "success" | "400" => true,
                "403" => self.has_denied_peer(),
                "443" => self.has_peer_of_other_family() || self.is(Method::REFRESH),
                _ => false,
            },
        }
    }

    fn is_udp(&self) -> bool {
        self.transport() != Transport::Tcp
    }

    /// Whether the client of the operation has an allocation at our server.
    fn has_allocation(&self) -> bool {
        self.step.allocated[0][self.client()] != [false; 2]
    }

    /// Returns the earlier messages of a client with their results.
    fn earlier(&self, client: usize) -> impl Iterator<Item = (&Step<'_>, &Message)> {
        let own = self.before.iter().filter(move |step| step.operation.client() == client);
        own.filter_map(|step| Some((step, step.message()?)))
    }

    /// Returns the clients whose allocation matters: that of the operation, the one whose relayed address is the peer,
    /// and the one that receives something.
    fn concerned(&self) -> Vec<usize> {
        let target = |attribute: &Attribute| match attribute {
            Attribute::Peer(Target::Relay(client)) => Some(*client),
            _ => None,
        };
        let targets = self.message().into_iter().flat_map(|message| message.attributes.iter().filter_map(target));
        let receives = |client: &usize| self.difference.at == client::name(*client);
        std::iter::once(self.client()).chain(targets).chain((0..self.clients.len()).filter(receives)).collect()
    }
}

/// Whether this is relayed data, as a peer or a client receives it.
fn is_relayed(kind: &str) -> bool {
    ["datagram", "Data indication", "ChannelData"].contains(&kind)
}

/// Returns the attributes that our server does not know, and that require comprehension.
fn unknown(message: &Message) -> Vec<AttributeType> {
    let kinds = message.attributes.iter().map(Attribute::kind);
    let ignored = message.after.iter().map(Attribute::kind).filter(|_| !message.credentials.have_integrity());
    let unknown = |kind: &AttributeType| matches!(kind.number(), 0x0030 | 0x7abc) || is_of_other_rfc(*kind);
    kinds.chain(ignored).filter(unknown).collect()
}

/// Whether coturn knows this attribute, and ours does not: CHANGE-REQUEST, PRIORITY, RESPONSE-PORT, CONNECTION-ID.
fn is_of_other_rfc(kind: AttributeType) -> bool {
    matches!(kind.number(), 0x0003 | 0x0024 | 0x0027 | 0x002a)
}

/// Whether this is a request of a method that our server has.
pub(crate) fn is_served(message: &Message) -> bool {
    let methods = [Method::BINDING, Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND];
    message.class == Class::Request && methods.contains(&message.method)
}

/// Whether the servers may be in different states after an operation although what was received is the same.
pub(crate) fn diverges_silently(operation: &Operation) -> bool {
    let Some(message) = operation.message() else { return false };
    let honours = message.has_duplicates() || message.has_attributes_after_integrity();
    message.class == Class::Request && message.method != Method::BINDING && honours
}
