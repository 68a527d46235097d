//! What every request goes through: authentication (RFC 8489 §9.2.4), the check for attributes that must be
//! understood (§6.3.1), its method, and the answer.

use super::allocation::Allocation;
use super::contract::{Action, AllocationId, AuthCause, Context, Event, FiveTuple, FromClient, OpenRelay};
use super::outcome::DropReason;
use super::reply::{self, Answering, Reject, Success};
use super::server::Server;
use super::table::Table;
use super::time::Instant;
use crate::auth::{Identity, LongTermKey, NonceError};
use crate::stun::attribute::{Nonce, Realm, Username};
use crate::stun::{Attribute, AttributeType, ErrorCode, IntegrityStatus, Message, Method};

/// A request whose sender has proved who it is.
pub(super) struct Authenticated<'a, 'm> {
    pub(super) message: &'a Message<'m>,
    pub(super) tuple: FiveTuple,
    pub(super) username: &'m str,
    pub(super) identity: Identity<'m>,
}

/// What a method makes of a request that it accepts.
pub(super) enum Accepted {
    Success(Success),
    /// The answer follows when the socket is open.
    Open(OpenRelay),
    /// An earlier copy of the request is being worked on.
    Pending,
}

impl Server {
    pub(super) fn authenticated_request(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        message: &Message<'_>,
        reply: &mut [u8],
    ) -> FromClient {
        // Before the costly HMAC over the message, and before anything is sent.
        let verified = self.is_verified(cx, tuple, message);
        if !verified && !self.replies.admits(tuple, cx.now) {
            return FromClient::Drop(DropReason::ReplyLimit);
        }
        let answering = Answering::to(message);
        let request = match self.authenticate(cx, tuple, message) {
            Ok(request) => request,
            // Who is right does not come here twice in a row; who tries passwords does.
            Err(reject)
                if verified
                    && reject.is(ErrorCode::UNAUTHENTICATED)
                    && !self.replies.admits_source(tuple.client.ip(), cx.now) =>
            {
                return FromClient::Drop(DropReason::ReplyLimit);
            }
            Err(reject) => return self.rejected(cx, tuple, &answering, None, &reject, reply),
        };
        let accepted = match unknown_attributes(message) {
            Some(reject) => Err(reject),
            None => match message.method() {
                Method::ALLOCATE => self.allocate(cx, &request),
                Method::REFRESH => self.refresh(cx, &request),
                Method::CREATE_PERMISSION => self.create_permission(cx.now, &request),
                _ => self.channel_bind(cx.now, &request),
            },
        };
        let key = &request.identity.key;
        match accepted {
            Ok(Accepted::Success(success)) => reply::success(reply, &answering, key, &success)
                .map_or(FromClient::Drop(DropReason::TooLarge), FromClient::Reply),
            Ok(Accepted::Open(open)) => FromClient::Open(open),
            Ok(Accepted::Pending) => FromClient::Drop(DropReason::AllocationPending),
            Err(reject) => {
                // RFC 8489 §9.2.4: a 401 is not signed, whichever check it comes from.
                let key = (!reject.challenges()).then_some(key);
                self.rejected(cx, tuple, &answering, key, &reject, reply)
            }
        }
    }

    pub(super) fn rejected(
        &self,
        cx: &Context<'_>,
        tuple: &FiveTuple,
        answering: &Answering,
        key: Option<&LongTermKey>,
        reject: &Reject,
        reply: &mut [u8],
    ) -> FromClient {
        let challenge = reject.challenges().then(|| {
            let nonce = self.shared.nonces.mint(cx.unix, tuple.client);
            (self.shared.authenticator.realm(), nonce)
        });
        reply::error(reply, answering, key, reject, challenge.as_ref().map(|(realm, nonce)| (*realm, nonce.as_str())))
            .map_or(FromClient::Drop(DropReason::TooLarge), FromClient::Reply)
    }

    /// Whether the client repeats a nonce that it was given, valid or not, or has an allocation: then it receives at its
    /// address, and whoever forges that address cannot have it cut off.
    fn is_verified(&mut self, cx: &Context<'_>, tuple: &FiveTuple, message: &Message<'_>) -> bool {
        let given = |Nonce(nonce)| match self.shared.nonces.check(nonce, cx.unix, tuple.client) {
            Ok(()) | Err(NonceError::Expired) => true,
            Err(NonceError::Foreign) => false,
        };
        message.get::<Nonce<'_>>().ok().flatten().is_some_and(given) || self.table.find_open(tuple, cx.now).is_some()
    }

    /// The checks of RFC 8489 §9.2.4, in the order given there.
    fn authenticate<'a, 'm>(
        &mut self,
        cx: &Context<'_>,
        tuple: &FiveTuple,
        message: &'a Message<'m>,
    ) -> Result<Authenticated<'a, 'm>, Reject> {
        let sha256 = message.contains(AttributeType::MESSAGE_INTEGRITY_SHA256);
        if !sha256 && !message.contains(AttributeType::MESSAGE_INTEGRITY) {
            return Err(Reject::challenge(ErrorCode::UNAUTHENTICATED));
        }
        let Username(username) = required(message)?;
        // RFC 8489 §9.2.2: trailing nulls are no part of the name.
        let username = username.trim_end_matches('\0');
        let Realm(_) = required(message)?;
        let Nonce(nonce) = required(message)?;
        let nonce_is_valid = self.shared.nonces.check(nonce, cx.unix, tuple.client).is_ok();

        let mut matches = |key: &LongTermKey| {
            let key = key.as_bytes();
            let status = if sha256 { message.verify_integrity_sha256(key) } else { message.verify_integrity(key) };
            status == IntegrityStatus::Valid
        };
        let identity = match self.shared.authenticator.authenticate(username, cx.unix, &mut matches) {
            Ok(identity) => identity,
            Err(failure) => {
                // A stranger who forges sources writes no log.
                if nonce_is_valid {
                    let (username, cause) = (username.to_owned(), AuthCause::Failure(failure));
                    let event = Event::AuthenticationFailed { username, tuple: *tuple, cause };
                    self.actions.push_back(Action::Log(event));
                }
                return Err(Reject::challenge(ErrorCode::UNAUTHENTICATED));
            }
        };
        if !nonce_is_valid {
            return Err(Reject::challenge(ErrorCode::STALE_NONCE));
        }
        let request = Authenticated { message, tuple: *tuple, username, identity };
        // An Allocate that has succeeded gets its answer again, even if the credential has expired in between.
        if message.method() == Method::ALLOCATE
            && request.identity.expired_for(cx.unix).is_some()
            && !self.is_retransmission(cx.now, &request)
        {
            return Err(self.expired(cx, &request));
        }
        Ok(request)
    }

    /// The credential was right until it expired: to be refused, and logged.
    pub(super) fn expired(&mut self, cx: &Context<'_>, request: &Authenticated<'_, '_>) -> Reject {
        let ago = request.identity.expired_for(cx.unix).unwrap_or_default();
        self.actions.push_back(Action::Log(Event::AuthenticationFailed {
            username: request.username.to_owned(),
            tuple: request.tuple,
            cause: AuthCause::Expired { ago },
        }));
        Reject::challenge(ErrorCode::UNAUTHENTICATED)
    }
}

impl Table {
    /// The allocation that a request other than Allocate is about (RFC 8656 §5).
    pub(super) fn allocation_of(
        &mut self,
        now: Instant,
        request: &Authenticated<'_, '_>,
    ) -> Result<(AllocationId, &mut Allocation), Reject> {
        let found = self.find_open(&request.tuple, now);
        let (id, allocation) = found.ok_or(Reject::new(ErrorCode::ALLOCATION_MISMATCH, "Allocation Mismatch"))?;
        if *allocation.username == *request.username {
            Ok((id, allocation))
        } else {
            Err(Reject::new(ErrorCode::WRONG_CREDENTIALS, "Wrong Credentials"))
        }
    }
}

/// An attribute that must be there and be well-formed, or else 400.
pub(super) fn required<'m, A: Attribute<'m>>(message: &Message<'m>) -> Result<A, Reject> {
    optional(message)?.ok_or(Reject::new(ErrorCode::BAD_REQUEST, "Missing Attribute"))
}

/// An attribute that must be well-formed if it is there, or else 400.
pub(super) fn optional<'m, A: Attribute<'m>>(message: &Message<'m>) -> Result<Option<A>, Reject> {
    message.get().map_err(|_| Reject::new(ErrorCode::BAD_REQUEST, "Malformed Attribute"))
}

/// RFC 8489 §6.3.1: comprehension-required attributes that are not understood → 420.
pub(super) fn unknown_attributes(message: &Message<'_>) -> Option<Reject> {
    let mut unknown = message.unknown_required(is_understood);
    let first = unknown.next()?;
    Some(Reject::unknown_attributes(first, unknown))
}

/// The comprehension-required attributes that this server acts on, or may ignore where it does not expect them.
///
/// USERHASH and PASSWORD-ALGORITHM count as unknown, since this server does not offer them.
pub(super) fn is_understood(kind: AttributeType) -> bool {
    matches!(
        kind,
        AttributeType::MAPPED_ADDRESS
            | AttributeType::USERNAME
            | AttributeType::MESSAGE_INTEGRITY
            | AttributeType::ERROR_CODE
            | AttributeType::UNKNOWN_ATTRIBUTES
            | AttributeType::CHANNEL_NUMBER
            | AttributeType::LIFETIME
            | AttributeType::XOR_PEER_ADDRESS
            | AttributeType::DATA
            | AttributeType::REALM
            | AttributeType::NONCE
            | AttributeType::XOR_RELAYED_ADDRESS
            | AttributeType::REQUESTED_ADDRESS_FAMILY
            | AttributeType::EVEN_PORT
            | AttributeType::REQUESTED_TRANSPORT
            | AttributeType::DONT_FRAGMENT
            | AttributeType::RESERVATION_TOKEN
            | AttributeType::MESSAGE_INTEGRITY_SHA256
            | AttributeType::XOR_MAPPED_ADDRESS
    )
}
