//! What every response of the core has to fulfill.

use super::stun::assert_padding_is_zero;
use crate::stun::attribute::{ErrorCodeAttribute, Nonce, Realm};
use crate::stun::{AttributeType, Class, Message};
use crate::turn::{FiveTuple, Outcome, RESPONSE_BUFFER, RequestMethod, Response};

/// The content of a response buffer before the core writes.
pub(super) const UNTOUCHED: u8 = 0xaa;

/// The IP and UDP headers over IPv4.
const HEADERS: usize = 28;

/// Checks a response. Returns it.
pub(super) fn check<'b>(tuple: &FiveTuple, request: &[u8], buffer: &'b [u8], decision: &Response) -> Message<'b> {
    let (written, untouched) = buffer.split_at(decision.length);
    assert!(untouched.iter().all(|byte| *byte == UNTOUCHED), "nothing is written after the response");
    let request = Message::parse(request).expect("only a message gets a response");
    let message = Message::parse(written).expect("a response is a message");
    assert_eq!((message.method(), message.transaction_id()), (request.method(), request.transaction_id()));
    assert_eq!(request.class(), Class::Request);
    assert_padding_is_zero(written);
    // RFC 8489 §6.1: 576 bytes with the IPv4 and UDP headers.
    assert!(written.len() <= 576 - HEADERS && written.len() < RESPONSE_BUFFER);
    let code =
        message.get::<ErrorCodeAttribute<'_>>().expect("ERROR-CODE is well-formed").map(|error| error.code.code());
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
    let is_signed =
        message.contains(AttributeType::MESSAGE_INTEGRITY) || message.contains(AttributeType::MESSAGE_INTEGRITY_SHA256);
    let is_challenge = matches!(code, Some(401 | 438));
    if is_challenge {
        assert!(
            !is_signed
                && message.get::<Realm<'_>>().unwrap().is_some()
                && message.get::<Nonce<'_>>().unwrap().is_some()
        );
    }
    let is_binding = decision.outcome == Outcome::Answered(RequestMethod::Binding);
    assert!(is_signed || is_challenge || is_binding || message.class() == Class::Error);
    if !is_signed {
        assert!(!message.contains(AttributeType::SOFTWARE), "unauthenticated clients do not learn the version");
        // docs/threat-model.md: the largest multiple, with the default realm.
        let (sent, received) = (written.len() + HEADERS, request.as_bytes().len() + HEADERS);
        if !tuple.transport.proves_source() {
            assert!(10 * sent <= 21 * received, "{sent} bytes for {received}");
        }
    }
    message
}
