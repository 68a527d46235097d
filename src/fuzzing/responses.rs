//! What every response of the core has to fulfill.

use super::credentials::Signature;
use crate::auth::NonceMint;
use crate::stun::attribute::{
    AlternateDomain, AlternateServer, ErrorCodeAttribute, Nonce, PasswordAlgorithms, Realm, UnknownAttributes,
    XorMappedAddress,
};
use crate::stun::{AttributeType, FingerprintStatus, IntegrityStatus, Message, Method};
use crate::test_messages::checked_response;
use crate::test_world::Blueprint;
use crate::turn::{FiveTuple, Outcome, RejectionCode, RequestMethod, Response};

/// docs/threat-model.md: the most unknown attributes that an error lists.
const MOST_UNKNOWN: usize = 32;

/// A request, and what is known about it.
pub(super) struct Case<'a> {
    pub(super) tuple: &'a FiveTuple,
    pub(super) request: &'a [u8],
    pub(super) unix: u64,
    pub(super) blueprint: &'a Blueprint,
    pub(super) nonces: &'a NonceMint,
    /// That of an authentic request.
    pub(super) signature: Option<&'a Signature>,
    /// Whether the response may lack integrity: the request has flaws that are found before its credentials are
    /// verified, or the credentials are not good for everything.
    pub(super) may_be_unsigned: bool,
    /// Whether the client has proved that it receives at its address.
    pub(super) has_proved_source: bool,
}

/// Checks a response.
pub(super) fn check(case: &Case<'_>, buffer: &[u8], decision: &Response) {
    let request = Message::parse(case.request).expect("only a message gets a response");
    let message = checked_response(case.request, buffer, decision);
    // RFC 8489 §6.1: 576 bytes with the IPv4 and UDP headers.
    let length = message.as_bytes().len();
    assert!(length <= 576 - 28);
    // RFC 8489 §7: a response has a FINGERPRINT if its request has one.
    let has_fingerprint = request.fingerprint() != FingerprintStatus::Absent;
    let fingerprint = if has_fingerprint { FingerprintStatus::Valid } else { FingerprintStatus::Absent };
    assert_eq!(message.fingerprint(), fingerprint);

    let is_signed = check_integrity(case, &request, &message);
    let is_named = is_signed && [Method::ALLOCATE, Method::REFRESH].contains(&request.method());
    assert_eq!(message.contains(AttributeType::SOFTWARE), is_named, "unauthenticated clients do not learn the version");
    assert!(!message.contains(AttributeType::USERNAME) && !message.contains(AttributeType::USERHASH));
    check_content(case, &request, &message, decision.outcome);
    if !is_signed && !case.has_proved_source {
        check_length(case, &request, length, decision.outcome);
    }
}

/// Checks that a response has the integrity attributes that its client expects (RFC 8489 §9.2.4), with the key of the
/// request. Returns whether it has one.
fn check_integrity(case: &Case<'_>, request: &Message<'_>, message: &Message<'_>) -> bool {
    let key = case.signature.map(|signature| signature.key.as_bytes()).unwrap_or_default();
    let found = [message.verify_integrity(key), message.verify_integrity_sha256(key)];
    if found == [IntegrityStatus::Absent; 2] {
        let error = message.get::<ErrorCodeAttribute<'_>>().unwrap().map(|error| error.code.code());
        let is_binding = request.method() == Method::BINDING && matches!(error, None | Some(420));
        assert!(is_binding || matches!(error, Some(400 | 401 | 438)), "{error:?} has integrity");
        assert!(is_binding || case.may_be_unsigned, "a response to a request with valid credentials has integrity");
        return false;
    }
    assert!(case.signature.is_some(), "only valid credentials get a response with integrity");
    let uses_algorithms = [AttributeType::PASSWORD_ALGORITHM, AttributeType::PASSWORD_ALGORITHMS];
    let has_sha256 = uses_algorithms.into_iter().any(|kind| request.contains(kind));
    let has_sha1 = request.contains(AttributeType::MESSAGE_INTEGRITY) || !has_sha256;
    let status = |has| if has { IntegrityStatus::Valid } else { IntegrityStatus::Absent };
    assert_eq!(found, [has_sha1, has_sha256].map(status));
    true
}

fn check_content(case: &Case<'_>, request: &Message<'_>, message: &Message<'_>, outcome: Outcome) {
    let (realm, nonce) = (message.get::<Realm<'_>>().unwrap(), message.get::<Nonce<'_>>().unwrap());
    let algorithms = message.get::<PasswordAlgorithms<'_>>().unwrap();
    if let Outcome::Rejected(RejectionCode::Unauthenticated | RejectionCode::StaleNonce) = outcome {
        assert_eq!(realm, Some(Realm(&case.blueprint.realm)));
        let Nonce(nonce) = nonce.expect("a challenge has a nonce");
        assert_eq!(case.nonces.check(nonce, case.unix, case.tuple.client), Ok(()));
        // Of each user, this server has the keys of both algorithms.
        let algorithms: Vec<u16> = algorithms
            .into_iter()
            .flat_map(|listed| listed.iter().map(|entry| entry.algorithm).collect::<Vec<_>>())
            .collect();
        assert_eq!(algorithms, [2, 1]);
    } else {
        assert!(realm.is_none() && nonce.is_none() && algorithms.is_none());
    }
    let unknown = message.get::<UnknownAttributes<'_>>().unwrap();
    assert_eq!(unknown.is_some(), outcome == Outcome::Rejected(RejectionCode::UnknownAttribute));
    if let Some(unknown) = unknown {
        let listed: Vec<AttributeType> = unknown.iter().collect();
        assert!((1..=MOST_UNKNOWN).contains(&listed.len()) && listed.iter().all(|kind| request.contains(*kind)));
    }
    let servers: Vec<_> = message.all::<AlternateServer>().map(|server| server.unwrap().0).collect();
    let domain = message.get().unwrap().map(|AlternateDomain(domain)| domain.to_owned());
    if outcome == Outcome::Rejected(RejectionCode::TryAlternate) {
        let alternate = case.blueprint.alternate.as_ref().expect("an alternate server is configured");
        // RFC 8489 §10: the first is of the address family of the client.
        assert_eq!(servers.first().map(|server| server.is_ipv4()), Some(case.tuple.client.is_ipv4()));
        assert!(
            servers.iter().all(|server| alternate.servers.contains(server))
                && (domain.is_none() || domain == alternate.domain)
        );
    } else {
        assert!(servers.is_empty() && domain.is_none());
    }
    if outcome == Outcome::Answered(RequestMethod::Binding) {
        assert_eq!(message.get(), Ok(Some(XorMappedAddress(case.tuple.client))));
        assert_eq!(message.attributes().count(), 1 + usize::from(message.contains(AttributeType::FINGERPRINT)));
    }
}

/// Checks the length of a response to a source that may be forged, in hundredths of the request. These are the limits
/// of docs/threat-model.md, with a realm as short as the default one.
fn check_length(case: &Case<'_>, request: &Message<'_>, length: usize, outcome: Outcome) {
    let (is_ipv4, headers) = if case.tuple.client.is_ipv4() { (true, 28) } else { (false, 48) };
    let most = match outcome {
        Outcome::Answered(RequestMethod::Binding) if is_ipv4 => 125,
        Outcome::Answered(RequestMethod::Binding) => 136,
        Outcome::Rejected(RejectionCode::UnknownAttribute) => 125,
        Outcome::Rejected(RejectionCode::Unauthenticated | RejectionCode::StaleNonce) => 200,
        _ => 100,
    };
    let (sent, received) = (length + headers, request.as_bytes().len() + headers);
    assert!(100 * sent <= most * received, "{sent} bytes for {received}: {outcome}");
}
