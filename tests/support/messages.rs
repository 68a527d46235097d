//! What every message and every response of the server has to fulfill. The unit tests, the fuzz targets and the
//! simulation share this file.
#![allow(dead_code, reason = "each user uses only a part of it")]

use std::collections::BTreeSet;

use turnserver::stun::attribute::ErrorCodeAttribute;
use turnserver::stun::{AttributeType, Class, HEADER_LEN, Message};
use turnserver::turn::{Outcome, Response};

/// The content of a response buffer before the server writes.
pub(crate) const UNTOUCHED: u8 = 0xaa;

/// Returns the type, the value and the padding of each attribute of a well-formed message.
pub(crate) fn attributes(message: &[u8]) -> impl Iterator<Item = (AttributeType, &[u8], &[u8])> {
    let mut rest = &message[HEADER_LEN..];
    std::iter::from_fn(move || {
        let ([kind_high, kind_low, high, low], following) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, following) = following.split_at(length);
        let (padding, following) = following.split_at(length.next_multiple_of(4) - length);
        rest = following;
        Some((AttributeType::new(u16::from_be_bytes([*kind_high, *kind_low])), value, padding))
    })
}

/// RFC 8489 §14: the padding bits must be zero, so that no bytes of other clients are in them.
pub(crate) fn assert_padding_is_zero(message: &[u8]) {
    assert!(attributes(message).all(|(.., padding)| padding.iter().all(|byte| *byte == 0)), "padding is zero");
}

/// Checks a response to a request, and returns it. The response is at the start of a buffer of [`UNTOUCHED`] bytes.
pub(crate) fn checked_response<'b>(request: &[u8], buffer: &'b [u8], decision: &Response) -> Message<'b> {
    let (written, untouched) = buffer.split_at(decision.length);
    assert!(untouched.iter().all(|byte| *byte == UNTOUCHED), "nothing is written after the response");
    let request = Message::parse(request).expect("only a message gets a response");
    let message = Message::parse(written).expect("a response is a message");
    assert_eq!(request.class(), Class::Request);
    assert_eq!((message.method(), message.transaction_id()), (request.method(), request.transaction_id()));
    assert_padding_is_zero(written);
    let mut kinds = BTreeSet::new();
    for (kind, ..) in attributes(written) {
        let may_repeat = [AttributeType::XOR_RELAYED_ADDRESS, AttributeType::ALTERNATE_SERVER].contains(&kind);
        assert!(kinds.insert(kind) || may_repeat, "an attribute type appears once");
    }
    let error = message.get::<ErrorCodeAttribute<'_>>().expect("ERROR-CODE is well-formed");
    let code = error.map(|error| error.code.code());
    match decision.outcome {
        Outcome::Answered(method) => {
            assert_eq!((message.class(), method.into(), code), (Class::Success, request.method(), None));
        }
        Outcome::Rejected(rejection) => {
            assert_eq!((message.class(), code), (Class::Error, Some(rejection.code().code())));
        }
        Outcome::RejectedByLimit(limit) => {
            assert_eq!((message.class(), code), (Class::Error, Some(limit.code().code().code())));
        }
        other => panic!("a response is not {other}"),
    }
    // RFC 8489 §14.8: fewer than 128 characters. A response to an unauthenticated client has none, because it has to be
    // short.
    let integrity = [AttributeType::MESSAGE_INTEGRITY, AttributeType::MESSAGE_INTEGRITY_SHA256];
    let is_signed = integrity.into_iter().any(|kind| message.contains(kind));
    let length = error.map_or(0, |error| error.reason.chars().count());
    assert!(if is_signed && error.is_some() { (1..128).contains(&length) } else { length == 0 }, "{error:?}");
    message
}
