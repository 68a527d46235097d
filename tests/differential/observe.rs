//! What clients and peers receive, without the values that two servers choose for themselves: ports, nonces, tokens,
//! reason phrases, the order of attributes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use turnserver::stun::attribute::{
    ErrorCodeAttribute, Lifetime, MappedAddress, UnknownAttributes, XorMappedAddress, XorPeerAddress, XorRelayedAddress,
};
use turnserver::stun::{AttributeType, Class, FingerprintStatus, IntegrityStatus, Message, TransactionId};

use crate::client::Sent;
use crate::operations::hex;

/// Something that a client or a peer has received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// Who has received it.
    pub(crate) at: String,
    /// `Allocate 437`, `Data indication`, `ChannelData`, `datagram`, `closed` …
    pub(crate) kind: String,
    pub(crate) fields: BTreeMap<String, String>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.kind)?;
        self.fields.iter().try_for_each(|(name, value)| write!(f, ", {name}: {value}"))
    }
}

/// What is needed to replace values of one server by names.
pub(crate) struct Names<'n> {
    /// The client's own address.
    pub(crate) own: SocketAddr,
    /// The transaction of the last request.
    pub(crate) transaction: Option<TransactionId>,
    /// Returns the request of a transaction.
    pub(crate) sent: &'n dyn Fn(TransactionId) -> Sent,
    /// Whether the last request was sent again.
    pub(crate) is_repeated: bool,
    /// Returns the address that a token reserves.
    pub(crate) reserved: &'n dyn Fn([u8; 8]) -> Option<SocketAddr>,
    /// Names an address.
    pub(crate) name: &'n dyn Fn(SocketAddr) -> String,
}

pub(crate) const RESERVED_PORT: &str = "Allocate success with a reserved port";
pub(crate) const TWO_ADDRESSES: &str = "Allocate success with two addresses";

impl Seen {
    pub(crate) fn new(at: &str, kind: &str) -> Self {
        Self { at: at.to_owned(), kind: kind.to_owned(), fields: BTreeMap::new() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.fields.insert(name.to_owned(), value.to_string());
        self
    }

    /// Returns what a summary counts it as.
    pub(crate) fn names(&self) -> Vec<String> {
        let place = self.at.split(' ').next().unwrap_or_default();
        let mut names = vec![format!("{} to a {place}", self.kind)];
        let relayed = self.fields.get("XOR-RELAYED-ADDRESS").map_or("", String::as_str);
        if relayed.contains("the reserved port") {
            names.push(RESERVED_PORT.to_owned());
        }
        if relayed.contains("\", \"") {
            names.push(TWO_ADDRESSES.to_owned());
        }
        names
    }

    /// Whether a field contains a text.
    pub(crate) fn has(&self, field: &str, text: &str) -> bool {
        self.fields.get(field).is_some_and(|value| value.contains(text))
    }

    /// Whether the message has an integrity attribute.
    fn is_signed(&self) -> bool {
        ["MESSAGE-INTEGRITY", "MESSAGE-INTEGRITY-SHA256"].iter().any(|name| self.fields.contains_key(*name))
    }

    /// Reads a datagram, or a message of a connection, that a client has received.
    pub(crate) fn read(at: &str, frame: &[u8], names: &Names<'_>) -> Self {
        if let [0x40..=0x7f, _, high, low, rest @ ..] = frame {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let seen = Self::new(at, "ChannelData").with("number", hex(&frame[..2]));
            return match rest.split_at_checked(length) {
                Some((payload, padding)) => seen.with("payload", hex(payload)).with("padding", padding.len()),
                None => seen.with("truncated", hex(rest)),
            };
        }
        match Message::parse(frame) {
            Ok(message) => Self::read_message(at, &message, names),
            Err(error) => Self::new(at, "malformed message").with("error", error).with("bytes", hex(frame)),
        }
    }

    fn read_message(at: &str, message: &Message<'_>, names: &Names<'_>) -> Self {
        let outcome = match (message.class(), message.get::<ErrorCodeAttribute<'_>>()) {
            (Class::Request, _) => "request".to_owned(),
            (Class::Indication, _) => "indication".to_owned(),
            (Class::Success, _) => "success".to_owned(),
            (Class::Error, Ok(Some(error))) => error.code.code().to_string(),
            (Class::Error, _) => "error without a code".to_owned(),
        };
        let mut seen = Self::new(at, &format!("{} {outcome}", message.method()));
        if message.class() != Class::Indication && names.transaction != Some(message.transaction_id()) {
            seen = seen.with("transaction", "not that of the request");
        }
        for attribute in message.attributes() {
            let name = attribute.kind.to_string();
            let value = value(attribute.kind, attribute.value, message, names);
            let value = match seen.fields.remove(&name) {
                Some(before) if attribute.kind != AttributeType::XOR_RELAYED_ADDRESS => format!("{before} + {value}"),
                _ => value,
            };
            seen = seen.with(&name, value);
        }
        seen
    }
}

/// Returns a relayed address without the port, which a server chooses, and with what the request demands of the port.
fn relayed(address: SocketAddr, sent: &Sent, names: &Names<'_>) -> String {
    let ip = address.ip();
    match sent.token.and_then(names.reserved) {
        Some(reserved) if reserved == address => format!("{ip}, the reserved port"),
        Some(_) => format!("{ip}, not the reserved address"),
        None if !sent.even => ip.to_string(),
        None => format!("{ip}, {} port", if address.port().is_multiple_of(2) { "even" } else { "odd" }),
    }
}

/// Returns the value of an attribute for the comparison.
fn value(kind: AttributeType, value: &[u8], message: &Message<'_>, names: &Names<'_>) -> String {
    let sent = (names.sent)(message.transaction_id());
    let own = |address: SocketAddr| if address == names.own { "its own".to_owned() } else { address.to_string() };
    match kind {
        AttributeType::NONCE
        | AttributeType::SOFTWARE
        | AttributeType::RESERVATION_TOKEN
        | AttributeType::PASSWORD_ALGORITHMS
        | AttributeType::OTHER_ADDRESS
        | AttributeType::RESPONSE_ORIGIN => "present".to_owned(),
        AttributeType::ERROR_CODE => "as above".to_owned(),
        AttributeType::XOR_MAPPED_ADDRESS => {
            message.get::<XorMappedAddress>().ok().flatten().map_or_else(|| hex(value), |mapped| own(mapped.0))
        }
        AttributeType::MAPPED_ADDRESS => {
            message.get::<MappedAddress>().ok().flatten().map_or_else(|| hex(value), |mapped| own(mapped.0))
        }
        AttributeType::XOR_PEER_ADDRESS => {
            let peer = message.get::<XorPeerAddress>().ok().flatten();
            peer.map_or_else(|| hex(value), |peer| (names.name)(peer.0))
        }
        // All of them.
        AttributeType::XOR_RELAYED_ADDRESS => {
            let mut all: Vec<_> = message
                .all::<XorRelayedAddress>()
                .flatten()
                .map(|XorRelayedAddress(address)| relayed(address, &sent, names))
                .collect();
            all.sort();
            format!("{all:?}")
        }
        AttributeType::LIFETIME => match message.get::<Lifetime>() {
            // A second may have passed since the request that a retransmission repeats.
            Ok(Some(Lifetime(seconds))) if names.is_repeated && seconds % 60 >= 58 => {
                seconds.next_multiple_of(60).to_string()
            }
            Ok(Some(Lifetime(seconds))) => seconds.to_string(),
            _ => hex(value),
        },
        AttributeType::UNKNOWN_ATTRIBUTES => {
            let list = message.get::<UnknownAttributes<'_>>().ok().flatten();
            let mut list: Vec<_> = list.iter().flat_map(UnknownAttributes::iter).map(|kind| kind.to_string()).collect();
            list.sort();
            format!("{list:?}")
        }
        AttributeType::MESSAGE_INTEGRITY | AttributeType::MESSAGE_INTEGRITY_SHA256 => {
            let status = sent.key.map(|key| match kind {
                AttributeType::MESSAGE_INTEGRITY => message.verify_integrity(key.as_bytes()),
                _ => message.verify_integrity_sha256(key.as_bytes()),
            });
            if status == Some(IntegrityStatus::Valid) { "valid" } else { "wrong" }.to_owned()
        }
        AttributeType::FINGERPRINT => match message.fingerprint() {
            FingerprintStatus::Valid => "valid".to_owned(),
            _ => "wrong".to_owned(),
        },
        AttributeType::REALM => String::from_utf8_lossy(value).into_owned(),
        _ => format!("[{}]", hex(value)),
    }
}

/// A difference between the two servers in what follows one operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Difference {
    /// Who has received something different.
    pub(crate) at: String,
    /// The field that differs, or empty if one server has sent nothing or another kind of message.
    pub(crate) field: String,
    /// What our server has sent: the kind, or the value of the field.
    pub(crate) ours: String,
    pub(crate) coturn: String,
    /// The kind of the message if a field differs.
    pub(crate) kind: String,
    /// Whether our server has signed the message.
    pub(crate) ours_is_signed: bool,
}

/// The kind of what a client sees when the server closes the connection.
pub(crate) const END: &str = "the end of the connection";
pub(crate) const NOTHING: &str = "nothing";
pub(crate) const ABSENT: &str = "absent";

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, field, ours, coturn, kind, .. } = self;
        if field.is_empty() {
            write!(f, "{at}: ours: {ours}; coturn: {coturn}")
        } else {
            write!(f, "{at}: {kind}, {field}: ours: {ours}; coturn: {coturn}")
        }
    }
}

/// Returns the differences. The order matters only among what one client or peer receives.
pub(crate) fn compare(ours: &[Seen], coturn: &[Seen]) -> Vec<Difference> {
    let mut places: Vec<_> = ours.iter().chain(coturn).map(|seen| &seen.at).collect();
    places.sort();
    places.dedup();
    let mut differences = Vec::new();
    for at in places {
        let at_place = |all: &[Seen]| all.iter().filter(|seen| seen.at == *at).cloned().collect::<Vec<_>>();
        let (ours, coturn) = (at_place(ours), at_place(coturn));
        for index in 0..ours.len().max(coturn.len()) {
            compare_one(at, ours.get(index), coturn.get(index), &mut differences);
        }
    }
    differences
}

fn compare_one(at: &str, ours: Option<&Seen>, coturn: Option<&Seen>, differences: &mut Vec<Difference>) {
    let kind = |seen: Option<&Seen>| seen.map_or(NOTHING, |seen| &seen.kind).to_owned();
    let ours_is_signed = ours.is_some_and(Seen::is_signed);
    let mut differ = |kind: &str, field: &str, ours: String, coturn: String| {
        let [at, kind, field] = [at, kind, field].map(str::to_owned);
        differences.push(Difference { at, field, ours, coturn, kind, ours_is_signed });
    };
    match (ours, coturn) {
        (Some(ours), Some(coturn)) if ours.kind == coturn.kind => {
            let mut fields: Vec<_> = ours.fields.keys().chain(coturn.fields.keys()).collect();
            fields.sort();
            fields.dedup();
            for field in fields {
                let value = |seen: &Seen| seen.fields.get(field).map_or(ABSENT, String::as_str).to_owned();
                let (mine, theirs) = (value(ours), value(coturn));
                if mine != theirs {
                    differ(&ours.kind, field, mine, theirs);
                }
            }
        }
        _ => differ("", "", kind(ours), kind(coturn)),
    }
}
