//! Writing responses.

use std::net::SocketAddr;

use crate::auth::{LongTermKey, SecurityFeatures};
use crate::stun::attribute::{
    AddressErrorCode, AddressFamily, AlternateDomain, AlternateServer, ErrorCodeAttribute, Lifetime, Nonce,
    PasswordAlgorithm, PasswordAlgorithms, Realm, ReservationToken, Software, UnknownAttributes, XorMappedAddress,
    XorRelayedAddress,
};
use crate::stun::{
    AttributeType, BufferTooSmall, Class, EncodeAttribute, ErrorCode, Message, MessageWriter, TransactionId,
    ValueWriter,
};
use crate::turn::contract::{RelayedAddresses, Response};
use crate::turn::outcome::Outcome;
use crate::turn::protocol::rejection::{Rejection, UnknownAttributeList};
use crate::turn::protocol::request_method::RequestMethod;
use crate::turn::shared::alternate::Redirect;
use crate::turn::shared::reservations::Token;

/// The value of SOFTWARE in responses to Allocate and Refresh (RFC 8656 §5). Only authenticated clients get it.
const SOFTWARE: &str = concat!("turnserver/", env!("CARGO_PKG_VERSION"));

/// The password algorithms in order of preference. With the default realm a challenge has 84 bytes, 12 of them for this
/// list. The response limit bounds how many challenges an unverified source gets.
pub(crate) const PASSWORD_ALGORITHMS: PasswordAlgorithms<'static> =
    PasswordAlgorithms::new(&[PasswordAlgorithm::SHA256, PasswordAlgorithm::MD5]);

/// The properties of a request that its response depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseContext {
    pub(crate) method: RequestMethod,
    pub(crate) transaction: TransactionId,
    /// Whether the request has a FINGERPRINT. Then the response has one.
    pub(crate) fingerprint: bool,
    /// Whether the client uses the draft's attribute numbers for dual allocation.
    draft_numbers: bool,
    /// Whether the response has MESSAGE-INTEGRITY: if the request has it, or if `sha256` is false.
    sha1: bool,
    /// Whether the client uses password algorithms. RFC 8489 §9.2.4: then the response has MESSAGE-INTEGRITY-SHA256.
    sha256: bool,
    /// Whether the request has an attribute of RFC 8489 or RFC 8656 that earlier RFCs do not have. The client then
    /// knows Data indications about ICMP errors (RFC 8656 §11.6).
    pub(crate) shows_rfc8656: bool,
}

impl ResponseContext {
    pub(crate) fn of(method: RequestMethod, message: &Message<'_>) -> Self {
        let (mut fingerprint, mut draft, mut standard) = (false, false, false);
        let (mut sha1_request, mut algorithms, mut shows_rfc8656) = (false, false, false);
        for attribute in message.attributes() {
            match attribute.kind {
                // A message with a wrong FINGERPRINT was dropped before.
                AttributeType::FINGERPRINT => fingerprint = true,
                AttributeType::MESSAGE_INTEGRITY => sha1_request = true,
                AttributeType::PASSWORD_ALGORITHM | AttributeType::PASSWORD_ALGORITHMS => {
                    (algorithms, shows_rfc8656) = (true, true);
                }
                AttributeType::MESSAGE_INTEGRITY_SHA256 | AttributeType::USERHASH => shows_rfc8656 = true,
                AttributeType::DRAFT_ADDITIONAL_ADDRESS_FAMILY => draft = true,
                AttributeType::ADDITIONAL_ADDRESS_FAMILY => (standard, shows_rfc8656) = (true, true),
                _ => {}
            }
        }
        Self {
            method,
            transaction: message.transaction_id(),
            fingerprint,
            draft_numbers: draft && !standard,
            // A client may use password algorithms and check only the kind of integrity that it has sent.
            sha1: sha1_request || !algorithms,
            sha256: algorithms,
            shows_rfc8656,
        }
    }
}

/// ADDRESS-ERROR-CODE with the draft's attribute number.
struct Draft<'a>(AddressErrorCode<'a>);

impl EncodeAttribute for Draft<'_> {
    fn kind(&self) -> AttributeType {
        AttributeType::DRAFT_ADDRESS_ERROR_CODE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, transaction: TransactionId) {
        self.0.encode(value, transaction);
    }
}

/// The content of a success response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Success {
    Allocated {
        relayed: RelayedAddresses,
        mapped: SocketAddr,
        lifetime: u32,
        /// RFC 8656 §7.2 step 9: the address family that could not be allocated, and why.
        address_error: Option<(AddressFamily, ErrorCode)>,
        token: Option<Token>,
    },
    Refreshed {
        lifetime: u32,
    },
    Done,
}

/// The attributes of an error response in addition to ERROR-CODE.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ErrorExtras<'a> {
    None,
    /// For a 401 or 438.
    Challenge {
        realm: &'a str,
        nonce: &'a str,
    },
    /// For a 420.
    Unknown(&'a UnknownAttributeList),
    /// For a 300.
    Alternate {
        redirect: Redirect,
        domain: Option<&'a str>,
    },
}

/// Writes the response to a Binding request (RFC 8489 §12).
pub(crate) fn binding(
    buffer: &mut [u8],
    context: &ResponseContext,
    mapped: SocketAddr,
) -> Result<Response, BufferTooSmall> {
    let mut writer = MessageWriter::new(buffer, Class::Success, context.method.into(), context.transaction);
    writer.push(&XorMappedAddress(mapped));
    finish(writer, context, None, Outcome::Answered(context.method))
}

/// Writes a success response to an authenticated request.
pub(crate) fn success(
    buffer: &mut [u8],
    context: &ResponseContext,
    key: &LongTermKey,
    success: &Success,
) -> Result<Response, BufferTooSmall> {
    let mut writer = MessageWriter::new(buffer, Class::Success, context.method.into(), context.transaction);
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
                if context.draft_numbers { writer.push(&Draft(error)) } else { writer.push(&error) }
            }
        }
        Success::Refreshed { lifetime } => writer.push(&Lifetime(lifetime)),
        Success::Done => {}
    }
    finish(writer, context, Some(key), Outcome::Answered(context.method))
}

/// Writes an error response. `key` is that of the request if it was authenticated.
pub(crate) fn error(
    buffer: &mut [u8],
    context: &ResponseContext,
    key: Option<&LongTermKey>,
    rejection: &Rejection,
    extras: ErrorExtras<'_>,
) -> Result<Response, BufferTooSmall> {
    let mut writer = MessageWriter::new(buffer, Class::Error, context.method.into(), context.transaction);
    // An unverified source may get a response without integrity, so it is as short as possible.
    let reason = if key.is_some() { rejection.reason() } else { "" };
    writer.push(&ErrorCodeAttribute { code: rejection.code().code(), reason });
    match extras {
        ErrorExtras::None => {}
        ErrorExtras::Challenge { realm, nonce } => {
            writer.push(&Realm(realm));
            writer.push(&Nonce(nonce));
            // RFC 8489 §9.2.1: a client detects that the nonce and the attribute contradict each other.
            if SecurityFeatures::of(nonce).is_some_and(|features| features.password_algorithms) {
                writer.push(&PASSWORD_ALGORITHMS);
            }
        }
        ErrorExtras::Unknown(list) => writer.push(&UnknownAttributes::new(list.as_slice())),
        ErrorExtras::Alternate { redirect: Redirect { server, other_family }, domain } => {
            writer.push(&AlternateServer(server));
            if let Some(other_family) = other_family {
                writer.push(&AlternateServer(other_family));
            }
            if let Some(domain) = domain {
                writer.push(&AlternateDomain(domain));
            }
        }
    }
    finish(writer, context, key, rejection.outcome())
}

fn finish(
    mut writer: MessageWriter<'_>,
    context: &ResponseContext,
    key: Option<&LongTermKey>,
    outcome: Outcome,
) -> Result<Response, BufferTooSmall> {
    if let Some(key) = key {
        if matches!(context.method, RequestMethod::Allocate | RequestMethod::Refresh) {
            writer.push(&Software(SOFTWARE));
        }
        // RFC 8489 §14.5: MESSAGE-INTEGRITY-SHA256 follows MESSAGE-INTEGRITY.
        if context.sha1 {
            writer.message_integrity(key.as_bytes());
        }
        if context.sha256 {
            writer.message_integrity_sha256(key.as_bytes());
        }
    }
    if context.fingerprint {
        writer.fingerprint();
    }
    Ok(Response { length: writer.finish_len()?, outcome })
}
