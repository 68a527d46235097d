//! What every request goes through: authentication (RFC 8489 §9.2.4), the check for attributes that must be
//! understood (§6.3.1), its method, and the answer.

use std::rc::Rc;

use crate::auth::{Identity, LongTermKey, NonceError};
use crate::stun::attribute::Nonce;
use crate::stun::{Attribute, AttributeType, ErrorCode, Message, Method};
use crate::turn::contract::{Action, AllocationId, AuthCause, Context, Event, FiveTuple, FromClient, OpenRelay};
use crate::turn::outcome::DropReason;
use crate::turn::protocol::credentials::Claim;
use crate::turn::protocol::response::{self, Answering, Besides, Reject, Success};
use crate::turn::server::Server;
use crate::turn::tables::allocation::Allocation;
use crate::turn::tables::table::Table;
use crate::turn::time::Instant;

/// A request whose sender has proved who it is.
pub(crate) struct Authenticated<'a, 'm> {
    pub(crate) message: &'a Message<'m>,
    pub(crate) tuple: FiveTuple,
    pub(crate) identity: Rc<Identity>,
    /// That of the 5-tuple, if it has one, in whatever state it is.
    pub(crate) allocation: Option<AllocationId>,
}

/// What a method makes of a request that it accepts.
pub(crate) enum Accepted {
    Success(Success),
    /// The answer follows when the socket is open.
    Open(OpenRelay),
    /// An earlier copy of the request is being worked on.
    Pending,
}

impl Server {
    pub(crate) fn authenticated_request(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        message: &Message<'_>,
        reply: &mut [u8],
    ) -> FromClient {
        // Before the costly HMAC over the message, and before anything is sent.
        let nonce = self.check_nonce(cx, tuple, message);
        // Whoever repeats a nonce that it was given, valid or not, or has an allocation, receives at its address; and whoever
        // forges that address cannot have it cut off.
        let verified = nonce != Err(NonceError::Foreign) || self.table.find_open(tuple, cx.now).is_some();
        if !verified && !self.replies.admits(tuple, cx.now) {
            return FromClient::Drop(DropReason::ReplyLimit);
        }
        let answering = Answering::to(message);
        let claim = Claim::read(message, nonce);
        let request = match claim
            .as_ref()
            .map_err(|reject| *reject)
            .and_then(|claim| self.authenticate(cx, tuple, message, claim, nonce.is_ok()))
        {
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
        let key = request.identity.key();
        match accepted {
            Ok(Accepted::Success(success)) => response::success(reply, &answering, key, &success)
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

    pub(crate) fn rejected(
        &self,
        cx: &Context<'_>,
        tuple: &FiveTuple,
        answering: &Answering,
        key: Option<&LongTermKey>,
        reject: &Reject,
        reply: &mut [u8],
    ) -> FromClient {
        let (nonce, redirect);
        let besides = if reject.challenges() {
            nonce = self.shared.nonces.mint(cx.unix, tuple.client);
            Besides::Challenge { realm: self.shared.authenticator.realm(), nonce: nonce.as_str() }
        } else if reject.is(ErrorCode::TRY_ALTERNATE) {
            redirect = self.redirect_for(tuple, answering.transaction);
            redirect.map_or(Besides::Nothing, Besides::Redirect)
        } else {
            Besides::Nothing
        };
        response::error(reply, answering, key, reject, besides)
            .map_or(FromClient::Drop(DropReason::TooLarge), FromClient::Reply)
    }

    /// Whether the nonce is ours, this client's and valid; one that is missing is nobody's.
    fn check_nonce(&self, cx: &Context<'_>, tuple: &FiveTuple, message: &Message<'_>) -> Result<(), NonceError> {
        match message.get() {
            Ok(Some(Nonce(nonce))) => self.shared.nonces.check(nonce, cx.unix, tuple.client),
            _ => Err(NonceError::Foreign),
        }
    }

    /// The checks of RFC 8489 §9.2.4 from the username on, in the order given there.
    fn authenticate<'a, 'm>(
        &mut self,
        cx: &Context<'_>,
        tuple: &FiveTuple,
        message: &'a Message<'m>,
        claim: &Claim<'m>,
        nonce_is_valid: bool,
    ) -> Result<Authenticated<'a, 'm>, Reject> {
        let authenticator = &self.shared.authenticator;
        let (username, algorithm) = (claim.username(authenticator), claim.algorithm);
        let allocation = self.table.find(tuple);
        let own = allocation.and_then(|id| self.table.get(id)).map(|allocation| &allocation.identity);
        let known = username.and_then(|username| {
            own.filter(|own| own.may_be(username, algorithm)).or_else(|| self.known.find(username, algorithm))
        });
        let mut matches = |key: &LongTermKey| claim.is_signed_with(key, message);
        let identity = match authenticator.authenticate(username, algorithm, cx.unix, known, &mut matches) {
            Ok(identity) => identity,
            Err(failure) => {
                // A stranger who forges sources writes no log.
                if nonce_is_valid {
                    let (username, cause) = (claim.shown(authenticator), AuthCause::Failure(failure));
                    let event = Event::AuthenticationFailed { username, tuple: *tuple, cause };
                    self.actions.push_back(Action::Log(event));
                }
                return Err(Reject::challenge(ErrorCode::UNAUTHENTICATED));
            }
        };
        if !nonce_is_valid {
            return Err(Reject::challenge(ErrorCode::STALE_NONCE));
        }
        let is_own = own.is_some_and(|own| Rc::ptr_eq(own, &identity));
        let expired = identity.expired_for(cx.unix).is_some();
        let request = Authenticated { message, tuple: *tuple, identity, allocation };
        // An Allocate that has succeeded gets its answer again, even if the credential has expired in between.
        if message.method() == Method::ALLOCATE && expired && !self.is_retransmission(cx.now, &request) {
            return Err(self.expired(cx, &request));
        }
        // What an allocation holds is found there.
        if !is_own && !expired {
            self.known.keep(&request.identity);
        }
        Ok(request)
    }

    /// The credential was right until it expired: to be refused, and logged.
    pub(crate) fn expired(&mut self, cx: &Context<'_>, request: &Authenticated<'_, '_>) -> Reject {
        let ago = request.identity.expired_for(cx.unix).unwrap_or_default();
        self.actions.push_back(Action::Log(Event::AuthenticationFailed {
            username: request.identity.username().to_owned(),
            tuple: request.tuple,
            cause: AuthCause::Expired { ago },
        }));
        Reject::challenge(ErrorCode::UNAUTHENTICATED)
    }
}

impl Table {
    /// The allocation that a request other than Allocate is about (RFC 8656 §5).
    pub(crate) fn allocation_of(
        &mut self,
        now: Instant,
        request: &Authenticated<'_, '_>,
    ) -> Result<(AllocationId, &mut Allocation), Reject> {
        let found = request.allocation.and_then(|id| Some((id, self.get_mut(id)?)));
        let open = found.filter(|(_, allocation)| allocation.is_open(now));
        let (id, allocation) = open.ok_or(Reject::new(ErrorCode::ALLOCATION_MISMATCH, "Allocation Mismatch"))?;
        if allocation.identity.username() == request.identity.username() {
            Ok((id, allocation))
        } else {
            Err(Reject::new(ErrorCode::WRONG_CREDENTIALS, "Wrong Credentials"))
        }
    }
}

/// An attribute that must be there and be well-formed, or else 400.
pub(crate) fn required<'m, A: Attribute<'m>>(message: &Message<'m>) -> Result<A, Reject> {
    optional(message)?.ok_or(Reject::new(ErrorCode::BAD_REQUEST, "Missing Attribute"))
}

/// An attribute that must be well-formed if it is there, or else 400.
pub(crate) fn optional<'m, A: Attribute<'m>>(message: &Message<'m>) -> Result<Option<A>, Reject> {
    message.get().map_err(|_| Reject::new(ErrorCode::BAD_REQUEST, "Malformed Attribute"))
}

/// RFC 8489 §6.3.1: comprehension-required attributes that are not understood → 420.
pub(crate) fn unknown_attributes(message: &Message<'_>) -> Option<Reject> {
    let mut unknown = message.unknown_required(is_understood);
    let first = unknown.next()?;
    Some(Reject::unknown_attributes(first, unknown))
}

/// The comprehension-required attributes that this server acts on, or may ignore where it does not expect them.
pub(crate) fn is_understood(kind: AttributeType) -> bool {
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
            | AttributeType::PASSWORD_ALGORITHM
            | AttributeType::USERHASH
            | AttributeType::XOR_MAPPED_ADDRESS
    )
}
