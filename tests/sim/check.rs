//! Parses the messages of the server and compares them with the expected ones.

use std::net::SocketAddr;

use turnserver::auth::LongTermKey;
use turnserver::stun::attribute::{
    AddressErrorCode, AddressFamily, AlternateDomain, AlternateServer, Data, ErrorCodeAttribute, Icmp, Lifetime, Nonce,
    PasswordAlgorithms, Realm, ReservationToken, Software, UnknownAttributes, XorMappedAddress, XorPeerAddress,
    XorRelayedAddress,
};
use turnserver::stun::{
    Attribute as _, AttributeType, Class, ErrorCode, FingerprintStatus, IntegrityStatus, Message, Method,
};
use turnserver::turn::{Limit, Outcome, RejectionCode};

use crate::model::{Body, ExpectedResponse, NO_PORT};
use crate::setup::REALM;
use crate::test_messages::assert_padding_is_zero;

/// Checks a response. Returns its nonce.
pub(crate) fn response(
    bytes: &[u8],
    outcome: Outcome,
    expected: &ExpectedResponse,
    key: Option<&LongTermKey>,
) -> Option<String> {
    let message = Message::parse(bytes).expect("a response is well-formed");
    assert_padding_is_zero(bytes);
    assert_eq!((message.method(), message.transaction_id()), (expected.method, expected.transaction));
    let fingerprint = if expected.fingerprint { FingerprintStatus::Valid } else { FingerprintStatus::Absent };
    assert_eq!(message.fingerprint(), fingerprint);
    // RFC 8489 §9.2.4: exactly the integrity attributes that the client expects.
    let key_bytes = key.map(LongTermKey::as_bytes).unwrap_or_default();
    let (sha1, sha256) = (message.verify_integrity(key_bytes), message.verify_integrity_sha256(key_bytes));
    let status = |has| if has && key.is_some() { IntegrityStatus::Valid } else { IntegrityStatus::Absent };
    assert_eq!((sha1, sha256), (status(expected.integrity.0), status(expected.integrity.1)));
    assert!(!message.contains(AttributeType::USERNAME) && !message.contains(AttributeType::USERHASH));
    // RFC 8656 §5 recommends SOFTWARE in responses to Allocate and Refresh. Unauthenticated clients do not get it.
    let named = key.is_some() && [Method::ALLOCATE, Method::REFRESH].contains(&message.method());
    assert_eq!(message.get::<Software<'_>>().unwrap().is_some(), named);

    let body = match (body(&message, bytes), outcome) {
        (Body::Error { code, challenge: false, .. }, Outcome::RejectedByLimit(limit)) => {
            let user = matches!(limit, Limit::AllocationsPerUser | Limit::AllocationRate);
            assert_eq!(code, if user { 486 } else { 508 });
            Body::LimitReached(merge_port_limits(limit))
        }
        (body @ Body::Redirected { .. }, outcome) => {
            assert_eq!(outcome, Outcome::Rejected(RejectionCode::TryAlternate));
            body
        }
        (body @ Body::Error { code, .. }, Outcome::Rejected(counted)) => {
            assert_eq!(counted.code().code(), code);
            body
        }
        (body, outcome) => {
            let Outcome::Answered(method) = outcome else { panic!("{outcome} for {body:?}") };
            assert_eq!(Method::from(method), expected.method);
            body
        }
    };
    assert_eq!(body, expected.body);
    let nonce = message.get::<Nonce<'_>>().unwrap().map(|Nonce(text)| text.to_owned());
    let challenged = matches!(body, Body::Error { challenge: true, .. });
    assert_eq!(nonce.is_some(), challenged);
    let realm = message.get().unwrap();
    assert_eq!(realm, challenged.then_some(Realm(REALM)));
    let listed = message.get::<PasswordAlgorithms<'_>>().unwrap();
    let listed = listed.map(|listed| listed.iter().map(|entry| entry.algorithm).collect::<Vec<_>>());
    assert_eq!(listed, challenged.then_some(vec![2, 1]));
    nonce
}

/// Merges the two reasons for a missing port, which the model does not distinguish.
pub(crate) fn merge_port_limits(limit: Limit) -> Limit {
    if limit == Limit::PortsInUse { NO_PORT } else { limit }
}

/// Returns the RESERVATION-TOKEN of a response.
pub(crate) fn token(bytes: &[u8]) -> Option<[u8; 8]> {
    let message = Message::parse(bytes).expect("a response is well-formed");
    message.get().unwrap().map(|ReservationToken(token)| token)
}

fn body(message: &Message<'_>, bytes: &[u8]) -> Body {
    if message.class() == Class::Error {
        let ErrorCodeAttribute { code, reason } = message.get().unwrap().expect("an error has a code");
        // A response to an unauthenticated client has to be short.
        let integrity = [AttributeType::MESSAGE_INTEGRITY, AttributeType::MESSAGE_INTEGRITY_SHA256];
        assert_eq!(reason.is_empty(), !integrity.iter().any(|kind| message.contains(*kind)), "{reason}");
        let servers: Vec<SocketAddr> = message.all::<AlternateServer>().map(|server| server.unwrap().0).collect();
        let domain = message.get().unwrap().map(|AlternateDomain(domain)| domain.to_owned());
        if code == ErrorCode::TRY_ALTERNATE {
            return Body::Redirected { servers, domain };
        }
        assert_eq!((servers.as_slice(), domain), (&[][..], None));
        let unknown = message.get::<UnknownAttributes<'_>>().unwrap();
        assert_eq!(unknown.is_some(), code.code() == 420);
        return Body::Error {
            code: code.code(),
            challenge: matches!(code.code(), 401 | 438),
            unknown: unknown.map_or(Vec::new(), |list| list.iter().map(AttributeType::number).collect()),
        };
    }
    assert_eq!(message.class(), Class::Success);
    let mapped = message.get().unwrap().map(|XorMappedAddress(address)| address);
    let relayed: Vec<SocketAddr> = message.all::<XorRelayedAddress>().map(|relayed| relayed.unwrap().0).collect();
    let lifetime = message.get().unwrap().map(|Lifetime(seconds)| seconds);
    // A draft uses another number.
    let draft = message.attributes().find(|attribute| attribute.kind.number() == 0x8033);
    let draft = draft.map(|attribute| AddressErrorCode::decode(attribute.value, message.transaction_id()).unwrap());
    let address_error = message.get::<AddressErrorCode<'_>>().unwrap().or(draft);
    let address_error =
        address_error.map(|AddressErrorCode { family, code, .. }| (family == AddressFamily::V6, code.code()));
    match (message.method(), mapped, relayed.as_slice(), lifetime) {
        (Method::BINDING, Some(mapped), [], None) => Body::Mapped(mapped),
        (Method::ALLOCATE, Some(mapped), [_, ..], Some(lifetime)) => {
            Body::Allocated { relayed, mapped, lifetime, address_error, token: token(bytes) }
        }
        (Method::REFRESH, None, [], Some(lifetime)) => Body::Refreshed(lifetime),
        (Method::CREATE_PERMISSION | Method::CHANNEL_BIND, None, [], None) => Body::Empty,
        _ => panic!("no such response: {message:?}"),
    }
}

/// Checks a Data indication with data.
pub(crate) fn data_indication(bytes: &[u8], peer: SocketAddr, payload: &[u8]) {
    let message = Message::parse(bytes).expect("a Data indication is well-formed");
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
    assert_eq!(message.get(), Ok(Some(XorPeerAddress(peer))));
    assert_eq!(message.get(), Ok(Some(Data(payload))));
    assert_eq!(message.attributes().count(), 2);
    assert_padding_is_zero(bytes);
}

/// Checks a Data indication about an ICMP error.
pub(crate) fn icmp_indication(bytes: &[u8], peer: SocketAddr, icmp: Icmp) {
    let message = Message::parse(bytes).expect("a Data indication is well-formed");
    assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
    assert_eq!(message.get(), Ok(Some(XorPeerAddress(peer))));
    assert_eq!(message.get(), Ok(Some(icmp)));
    assert_eq!(message.attributes().count(), 2);
}

pub(crate) fn channel_data(bytes: &[u8], number: u16, payload: &[u8]) {
    assert_eq!(&bytes[..2], number.to_be_bytes());
    assert_eq!(&bytes[2..4], (payload.len() as u16).to_be_bytes());
    assert_eq!(&bytes[4..], payload);
}
