//! Writing answers.

use std::net::SocketAddr;

use crate::auth::LongTermKey;
use crate::stun::attribute::{
    AddressErrorCode, AddressFamily, AlternateDomain, AlternateServer, ErrorCodeAttribute, Lifetime, Nonce,
    PasswordAlgorithm, PasswordAlgorithms, Realm, ReservationToken, Software, UnknownAttributes, XorMappedAddress,
    XorRelayedAddress,
};
use crate::stun::{
    AttributeType, BufferTooSmall, Class, EncodeAttribute, ErrorCode, Message, MessageWriter, Method, TransactionId,
    ValueWriter,
};
use crate::turn::contract::{RelayedAddresses, Reply};
use crate::turn::limit::Limit;
use crate::turn::outcome::Outcome;
use crate::turn::shared::alternate::Redirect;
use crate::turn::shared::reservations::Token;

/// RFC 8656 §5: in the answers to Allocate and Refresh. Only clients that have proved who they are see it.
const SOFTWARE: &str = concat!("turnserver/", env!("CARGO_PKG_VERSION"));

/// How keys may be made of passwords, in the order of our preference. Every challenge lists it, which makes it 12 bytes
/// longer (112 in all with the default realm); strangers get few of them by the reply limit.
pub(crate) const PASSWORD_ALGORITHMS: PasswordAlgorithms<'static> =
    PasswordAlgorithms::new(&[PasswordAlgorithm::SHA256, PasswordAlgorithm::MD5]);

/// As many unknown attributes as one answer names.
const MAX_UNKNOWN: usize = 32;

/// What an answer must repeat of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answering {
    pub(crate) method: Method,
    pub(crate) transaction: TransactionId,
    /// Whether the client uses FINGERPRINT, and so gets one.
    pub(crate) fingerprint: bool,
    /// Whether the client knows ADDRESS-ERROR-CODE by the number that belongs to the one it has sent.
    draft_numbers: bool,
    /// Whether the client knows of password algorithms: RFC 8489 §9.2.4 has MESSAGE-INTEGRITY-SHA256 in its answers, and
    /// MESSAGE-INTEGRITY in those of the others.
    pub(crate) sha256: bool,
}

impl Answering {
    pub(crate) fn to(message: &Message<'_>) -> Self {
        let (mut fingerprint, mut sha256, mut draft, mut standard) = (false, false, false, false);
        for attribute in message.attributes() {
            match attribute.kind {
                // A wrong one was dropped long before.
                AttributeType::FINGERPRINT => fingerprint = true,
                AttributeType::PASSWORD_ALGORITHM | AttributeType::PASSWORD_ALGORITHMS => sha256 = true,
                AttributeType::DRAFT_ADDITIONAL_ADDRESS_FAMILY => draft = true,
                AttributeType::ADDITIONAL_ADDRESS_FAMILY => standard = true,
                _ => {}
            }
        }
        let (method, transaction) = (message.method(), message.transaction_id());
        Self { method, transaction, fingerprint, draft_numbers: draft && !standard, sha256 }
    }
}

/// ADDRESS-ERROR-CODE with a draft's number.
struct Draft<'a>(AddressErrorCode<'a>);

impl EncodeAttribute for Draft<'_> {
    fn kind(&self) -> AttributeType {
        AttributeType::DRAFT_ADDRESS_ERROR_CODE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, transaction: TransactionId) {
        self.0.encode(value, transaction);
    }
}

/// What a success response says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Success {
    Allocated {
        relayed: RelayedAddresses,
        mapped: SocketAddr,
        lifetime: u32,
        /// RFC 8656 §7.2 step 9: one of two families is not to be had.
        address_error: Option<(AddressFamily, ErrorCode)>,
        token: Option<Token>,
    },
    Refreshed {
        lifetime: u32,
    },
    Done,
}

/// What goes with an error response.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Besides<'a> {
    Nothing,
    /// For a 401 or 438.
    Challenge {
        realm: &'a str,
        nonce: &'a str,
    },
    /// For a 300.
    Redirect(Redirect<'a>),
}

/// Why a request gets an error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reject {
    code: ErrorCode,
    reason: &'static str,
    unknown: UnknownList,
    challenge: bool,
    /// The limit that is reached, if that is why.
    limit: Option<Limit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UnknownList {
    kinds: [AttributeType; MAX_UNKNOWN],
    length: usize,
}

impl UnknownList {
    const EMPTY: Self = Self { kinds: [AttributeType::new(0); MAX_UNKNOWN], length: 0 };
}

impl Reject {
    pub(crate) const fn new(code: ErrorCode, reason: &'static str) -> Self {
        Self { code, reason, unknown: UnknownList::EMPTY, challenge: false, limit: None }
    }

    /// Because a limit is reached.
    pub(crate) fn limited(limit: Limit) -> Self {
        Self { limit: Some(limit), ..Self::new(limit.code(), limit.reason()) }
    }

    /// With a REALM, a fresh NONCE and PASSWORD-ALGORITHMS, for the client to try (again) with credentials.
    pub(crate) fn challenge(code: ErrorCode) -> Self {
        Self { challenge: true, ..Self::new(code, code.reason()) }
    }

    pub(crate) fn unknown_attributes(first: AttributeType, rest: impl Iterator<Item = AttributeType>) -> Self {
        let mut unknown = UnknownList::EMPTY;
        for kind in std::iter::once(first).chain(rest) {
            let known = unknown.kinds.get(..unknown.length).is_some_and(|named| named.contains(&kind));
            match unknown.kinds.get_mut(unknown.length) {
                Some(place) if !known => {
                    *place = kind;
                    unknown.length += 1;
                }
                Some(_) => {}
                None => break,
            }
        }
        Self { unknown, ..Self::new(ErrorCode::UNKNOWN_ATTRIBUTE, "Unknown Attribute") }
    }

    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    pub(crate) fn is(&self, code: ErrorCode) -> bool {
        self.code == code
    }

    pub(crate) fn challenges(&self) -> bool {
        self.challenge
    }
}

/// Writes the answer to a Binding request (RFC 8489 §12).
pub(crate) fn binding(buffer: &mut [u8], answering: &Answering, mapped: SocketAddr) -> Result<Reply, BufferTooSmall> {
    let mut writer = MessageWriter::new(buffer, Class::Success, answering.method, answering.transaction);
    writer.push(&XorMappedAddress(mapped));
    finish(writer, answering, None, Outcome::Answered(answering.method))
}

/// Writes a success response to an authenticated request.
pub(crate) fn success(
    buffer: &mut [u8],
    answering: &Answering,
    key: &LongTermKey,
    success: &Success,
) -> Result<Reply, BufferTooSmall> {
    let mut writer = MessageWriter::new(buffer, Class::Success, answering.method, answering.transaction);
    match *success {
        Success::Allocated { relayed, mapped, lifetime, address_error, token } => {
            relayed.iter().for_each(|relayed| writer.push(&XorRelayedAddress(relayed)));
            writer.push(&Lifetime(lifetime));
            if let Some(token) = token {
                writer.push(&ReservationToken(token.to_bytes()));
            }
            writer.push(&XorMappedAddress(mapped));
            if let Some((family, code)) = address_error {
                let error = AddressErrorCode { family, code, reason: code.reason() };
                if answering.draft_numbers { writer.push(&Draft(error)) } else { writer.push(&error) }
            }
        }
        Success::Refreshed { lifetime } => writer.push(&Lifetime(lifetime)),
        Success::Done => {}
    }
    finish(writer, answering, Some(key), Outcome::Answered(answering.method))
}

/// Writes an error response. The key is that of the request where it was authenticated.
pub(crate) fn error(
    buffer: &mut [u8],
    answering: &Answering,
    key: Option<&LongTermKey>,
    reject: &Reject,
    besides: Besides<'_>,
) -> Result<Reply, BufferTooSmall> {
    let mut writer = MessageWriter::new(buffer, Class::Error, answering.method, answering.transaction);
    writer.push(&ErrorCodeAttribute { code: reject.code, reason: reject.reason });
    if let Some(unknown) = reject.unknown.kinds.get(..reject.unknown.length).filter(|unknown| !unknown.is_empty()) {
        writer.push(&UnknownAttributes::new(unknown));
    }
    match besides {
        Besides::Nothing => {}
        Besides::Challenge { realm, nonce } => {
            writer.push(&Realm(realm));
            writer.push(&Nonce(nonce));
            writer.push(&PASSWORD_ALGORITHMS);
        }
        Besides::Redirect(Redirect { server, other_family, domain }) => {
            writer.push(&AlternateServer(server));
            if let Some(other_family) = other_family {
                writer.push(&AlternateServer(other_family));
            }
            if let Some(domain) = domain {
                writer.push(&AlternateDomain(domain));
            }
        }
    }
    finish(writer, answering, key, reject.limit.map_or(Outcome::Rejected(reject.code), Outcome::Refused))
}

fn finish(
    mut writer: MessageWriter<'_>,
    answering: &Answering,
    key: Option<&LongTermKey>,
    outcome: Outcome,
) -> Result<Reply, BufferTooSmall> {
    if let Some(key) = key {
        if matches!(answering.method, Method::ALLOCATE | Method::REFRESH) {
            writer.push(&Software(SOFTWARE));
        }
        if answering.sha256 {
            writer.message_integrity_sha256(key.as_bytes());
        } else {
            writer.message_integrity(key.as_bytes());
        }
    }
    if answering.fingerprint {
        writer.fingerprint();
    }
    Ok(Reply { length: writer.finish_len()?, outcome })
}
