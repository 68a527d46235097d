//! The steps of a request other than Binding: authentication (RFC 8489 §9.2.4), the check for unknown attributes
//! (§6.3.1), the handler of its method, and the response.

use std::rc::Rc;

use crate::auth::{AuthFailure, Identity, KeyAlgorithm, LongTermKey, NonceError};
use crate::stun::attribute::Nonce;
use crate::stun::{Attribute, AttributeType, Message};
use crate::turn::contract::{Action, AllocationId, Context, FiveTuple, FromClient, SocketSpec};
use crate::turn::database::{Asked, CannotWait, Verdict};
use crate::turn::event::{AuthCause, Event};
use crate::turn::outcome::DropReason;
use crate::turn::protocol::credentials::Credentials;
use crate::turn::protocol::rejection::Rejection;
use crate::turn::protocol::request_method::RequestMethod;
use crate::turn::protocol::response::{self, ErrorExtras, ResponseContext, Success};
use crate::turn::server::Server;
use crate::turn::shared::snapshot::WhenUnavailable;
use crate::turn::shared::sources::{Kind, Proof};
use crate::turn::tables::allocation::Allocation;
use crate::turn::tables::table::Table;
use crate::turn::time::Instant;

/// A request whose sender is authenticated.
pub(crate) struct Authenticated<'a, 'm> {
    pub(crate) message: &'a Message<'m>,
    pub(crate) context: ResponseContext,
    pub(crate) tuple: FiveTuple,
    pub(crate) identity: Rc<Identity>,
    /// The allocation of the 5-tuple, if it has one, in any state.
    pub(crate) allocation: Option<AllocationId>,
}

/// The result of a request that its handler accepts.
pub(crate) enum Accepted {
    Success(Success),
    /// The response follows when the socket is open or could not be opened.
    Open(SocketSpec),
    /// An earlier copy of the request is being processed.
    Pending,
}

/// Why a request is not authenticated.
enum Failure {
    /// The integrity is valid, but something else is not.
    Authenticated(Rejection),
    /// There are no valid credentials.
    Rejected(Rejection),
    /// The request gets no response.
    Dropped(DropReason),
    /// The request waits for the user database.
    Waits,
}

/// Carries out an authenticated request of one method.
type Handler = fn(&mut Server, &mut Context<'_>, &Authenticated<'_, '_>) -> Result<Accepted, Rejection>;

impl Server {
    pub(crate) fn request(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        method: RequestMethod,
        message: &Message<'_>,
        response: &mut [u8],
    ) -> FromClient {
        let context = ResponseContext::of(method, message);
        let handler: Handler = match method {
            RequestMethod::Binding => return self.binding(cx.now, tuple, &context, message, response),
            RequestMethod::Allocate => Self::allocate,
            RequestMethod::Refresh => Self::refresh,
            RequestMethod::CreatePermission => Self::create_permission,
            RequestMethod::ChannelBind => Self::channel_bind,
        };
        self.authenticated_request(cx, tuple, context, message, handler, response)
    }

    fn authenticated_request(
        &mut self,
        cx: &mut Context<'_>,
        tuple: &FiveTuple,
        context: ResponseContext,
        message: &Message<'_>,
        handler: Handler,
        response: &mut [u8],
    ) -> FromClient {
        // The nonce and the response limit are checked before the costly HMAC over the message, and before anything is
        // sent.
        let nonce = self.check_nonce(cx, tuple, message);
        // A client is verified if it repeats a nonce of this server, valid or expired, or if it has an allocation. A
        // flood of packets that forge the address of a verified client does not block it.
        let has_allocation = self.table.find_open(tuple, cx.now).is_some();
        let verified = nonce != Err(NonceError::Invalid) || has_allocation;
        if nonce.is_ok() {
            let proof = if has_allocation { Proof::Allocation } else { Proof::Nonce };
            self.ledger.sources.prove(self.ledger.sources.find(tuple.client.ip()), proof, cx.now);
        }
        if !verified && let Err(reason) = self.admit_challenge(tuple, context.method, message, cx.now) {
            return FromClient::Drop(reason);
        }
        let request = match Credentials::read(message, nonce).map_err(Failure::Rejected).and_then(|credentials| {
            // RFC 8489 §9.2.4 checks the integrity first. With a nonce that this server never made, the response must
            // not show whether the password is right, since anyone can make up nonces.
            if nonce == Err(NonceError::Invalid) {
                return Err(Failure::Rejected(Rejection::StaleNonce));
            }
            self.authenticate(cx, tuple, context, message, &credentials, nonce.is_ok())
        }) {
            Ok(request) => request,
            Err(Failure::Dropped(reason)) => return FromClient::Drop(reason),
            Err(Failure::Waits) => return FromClient::Wait,
            Err(Failure::Authenticated(rejection)) => {
                return self.reject(cx, tuple, &context, None, &rejection, response);
            }
            Err(Failure::Rejected(rejection)) => {
                // A nonce raises the limit on responses to its client. Only valid credentials lift it.
                if verified && let Err(reason) = self.admit_response(tuple, Kind::Verified, cx.now) {
                    return FromClient::Drop(reason);
                }
                return self.reject(cx, tuple, &context, None, &rejection, response);
            }
        };
        let accepted = match unknown_attributes(message) {
            Some(rejection) => Err(rejection),
            None => handler(self, cx, &request),
        };
        let key = request.identity.key();
        match accepted {
            Ok(Accepted::Success(success)) => response::success(response, &context, key, &success)
                .map_or(FromClient::Drop(DropReason::TooLarge), FromClient::Respond),
            Ok(Accepted::Open(open)) => FromClient::Open(open),
            Ok(Accepted::Pending) => FromClient::Drop(DropReason::AllocationPending),
            Err(rejection) => {
                // RFC 8489 §9.2.4: a challenge has no message integrity, even if a handler returns it.
                let key = (!rejection.is_challenge()).then_some(key);
                self.reject(cx, tuple, &context, key, &rejection, response)
            }
        }
    }

    pub(crate) fn reject(
        &self,
        cx: &Context<'_>,
        tuple: &FiveTuple,
        context: &ResponseContext,
        key: Option<&LongTermKey>,
        rejection: &Rejection,
        response: &mut [u8],
    ) -> FromClient {
        let nonce;
        let extras = match rejection {
            Rejection::Unauthenticated | Rejection::StaleNonce => {
                nonce = self.snapshot.nonces.mint(cx.unix, tuple.client);
                ErrorExtras::Challenge { realm: self.snapshot.authenticator.realm(), nonce: nonce.as_str() }
            }
            Rejection::UnknownAttributes(list) => ErrorExtras::Unknown(list),
            Rejection::TryAlternate(redirect) => {
                let alternate = self.snapshot.alternate.as_ref();
                let domain = alternate.and_then(|alternate| alternate.domain_for(tuple.transport));
                ErrorExtras::Alternate { redirect: *redirect, domain }
            }
            Rejection::BadRequest(_)
            | Rejection::Forbidden
            | Rejection::AllocationMismatch
            | Rejection::AddressFamilyNotSupported
            | Rejection::WrongCredentials
            | Rejection::UnsupportedTransportProtocol
            | Rejection::PeerAddressFamilyMismatch
            | Rejection::ServerError
            | Rejection::InsufficientCapacity(_)
            | Rejection::Limit(_) => ErrorExtras::None,
        };
        response::error(response, context, key, rejection, extras)
            .map_or(FromClient::Drop(DropReason::TooLarge), FromClient::Respond)
    }

    /// Checks whether this server made the nonce for this client and it has not expired. A missing nonce is invalid.
    fn check_nonce(&self, cx: &Context<'_>, tuple: &FiveTuple, message: &Message<'_>) -> Result<(), NonceError> {
        match message.get() {
            Ok(Some(Nonce(nonce))) => self.snapshot.nonces.check(nonce, cx.unix, tuple.client),
            _ => Err(NonceError::Invalid),
        }
    }

    /// Carries out the checks of RFC 8489 §9.2.4 from the username on, in order.
    fn authenticate<'a, 'm>(
        &mut self,
        cx: &Context<'_>,
        tuple: &FiveTuple,
        context: ResponseContext,
        message: &'a Message<'m>,
        credentials: &Credentials<'m>,
        nonce_is_valid: bool,
    ) -> Result<Authenticated<'a, 'm>, Failure> {
        // The identity of an allocation that is not reviewed yet may no longer be valid.
        if self.review.is_pending()
            && let Some(id) = self.table.find(tuple)
        {
            self.review_one(id, cx.now);
        }
        let authenticator = &self.snapshot.authenticator;
        let (username, algorithm) = (credentials.username(authenticator), credentials.algorithm);
        let allocation = self.table.find(tuple);
        // An allocation that has ended keeps no credentials that the configuration no longer has.
        let live = allocation.and_then(|id| self.table.get(id)).filter(|allocation| !allocation.has_ended(cx.now));
        let own = live.map(|allocation| &allocation.identity);
        let (ip, name) = (tuple.client.ip(), username.unwrap_or_default());
        let per_second = self.snapshot.limits.failed_authentications;
        // Whoever guesses passwords waits. A client of the same source that uses its allocation does not.
        let uses_own = || {
            let own = own.zip(username).filter(|(own, username)| own.is_for(username, algorithm));
            own.is_some_and(|(own, _)| credentials.is_signed_with(own.key(), message))
        };
        let waiting = self.ledger.sources.waiting(ip, name, per_second, cx.now);
        if let Some(waiting) = waiting.filter(|_| !uses_own()) {
            let (id, username) = (self.table.open_id(tuple, cx.now), name.to_owned());
            self.actions.push_back(Action::Log(Event::SourceWaits { id, username, tuple: *tuple, waiting }));
            return Err(Failure::Dropped(DropReason::FailedAuthentications));
        }
        let known = username.and_then(|username| {
            own.filter(|own| own.is_for(username, algorithm)).or_else(|| self.identity_cache.get(username, algorithm))
        });
        let mut matches = |key: &LongTermKey| credentials.is_signed_with(key, message);
        let database = self.snapshot.database.as_ref().filter(|_| algorithm == KeyAlgorithm::Md5).zip(username);
        let asked = database.filter(|(_, username)| !authenticator.decides_about(username));
        let known = known.filter(|known| database.is_none() || !known.is_of_database());
        let mut result = match asked {
            Some(_) => Err(AuthFailure::UnknownUser),
            None => authenticator.authenticate(username, algorithm, cx.unix, known, &mut matches),
        };
        let mut is_removed = None;
        if let Err(failure) = &result
            && failure.leaves_database()
            && let Some((settings, username)) = database
        {
            let is_refresh = context.method == RequestMethod::Refresh;
            let own = own.filter(|own| own.is_of_database() && own.is_for(username, algorithm));
            let asked = Asked { username, own, is_refresh };
            let mut verdict = self.database.authenticate(cx.now, authenticator, &asked, &mut matches);
            if let Verdict::Unknown = verdict {
                // Only a client that has proved its source may cause a look-up.
                if !nonce_is_valid {
                    return Err(Failure::Rejected(Rejection::StaleNonce));
                }
                match self.database.set_aside(cx.now, settings, &self.ledger, username, tuple, message) {
                    Ok(asks) => {
                        self.actions.extend(asks.then(|| Action::LookUp(username.into())));
                        return Err(Failure::Waits);
                    }
                    Err(CannotWait::Dropped(reason)) => return Err(Failure::Dropped(reason)),
                    Err(CannotWait::Unavailable) => {
                        verdict = self.database.authenticate_without(cx.now, authenticator, &asked, &mut matches);
                    }
                }
            }
            result = match verdict {
                Verdict::Authenticated(identity) => {
                    is_removed = Some(false);
                    Ok(identity)
                }
                Verdict::Removed(identity) => {
                    is_removed = Some(true);
                    Ok(identity)
                }
                Verdict::Failed(failure) => Err(failure),
                Verdict::Unknown => Err(AuthFailure::DatabaseUnavailable),
            };
            if result.as_ref().is_ok_and(|identity| authenticator.is_revoked(identity.username(), cx.unix)) {
                result = Err(AuthFailure::Revoked);
            }
        }
        let identity = match result {
            Ok(identity) => identity,
            Err(failure) => {
                let is_unavailable = failure == AuthFailure::DatabaseUnavailable;
                if !is_unavailable {
                    self.ledger.sources.count_failure(ip, name, per_second, cx.now);
                }
                // A forged source has no valid nonce, so it cannot fill the log.
                if nonce_is_valid {
                    let (username, cause) = (credentials.for_log(authenticator), AuthCause::Failure(failure));
                    let id = self.table.open_id(tuple, cx.now);
                    let event = Event::AuthenticationFailed { id, username, tuple: *tuple, cause };
                    self.actions.push_back(Action::Log(event));
                }
                let policy = self.snapshot.database.as_ref().map(|database| database.when_unavailable);
                return Err(Failure::Rejected(match policy {
                    Some(WhenUnavailable::ServerError) if is_unavailable => Rejection::ServerError,
                    _ => Rejection::Unauthenticated,
                }));
            }
        };
        if !nonce_is_valid {
            return Err(Failure::Authenticated(Rejection::StaleNonce));
        }
        let is_own = own.is_some_and(|own| Rc::ptr_eq(own, &identity));
        let expired = identity.expired_for(cx.unix).is_some();
        if context.method == RequestMethod::Refresh
            && let Some(is_removed) = is_removed
            && let Some(allocation) = allocation.and_then(|id| self.table.get_mut(id))
        {
            // As for a static user that a new configuration does not have.
            allocation.credentials_removed = is_removed;
        }
        let request = Authenticated { message, context, tuple: *tuple, identity, allocation };
        // A retransmitted Allocate gets its response again, even if the credential has expired in between.
        if context.method == RequestMethod::Allocate && expired && !self.is_retransmission(cx.now, &request) {
            return Err(Failure::Authenticated(self.expired(cx, &request)));
        }
        // The identity of an allocation is stored in the allocation, so it is not cached as well.
        if !is_own && !expired && !request.identity.is_of_database() {
            self.identity_cache.insert(&request.identity);
        }
        Ok(request)
    }

    /// Logs that the credential has expired, and rejects the request.
    pub(crate) fn expired(&mut self, cx: &Context<'_>, request: &Authenticated<'_, '_>) -> Rejection {
        let ago = request.identity.expired_for(cx.unix).unwrap_or_default();
        self.actions.push_back(Action::Log(Event::AuthenticationFailed {
            id: self.table.open_id(&request.tuple, cx.now),
            username: request.identity.username().to_owned(),
            tuple: request.tuple,
            cause: AuthCause::Expired { ago, reading: request.identity.reading() },
        }));
        Rejection::Unauthenticated
    }
}

impl Table {
    /// Returns the allocation that a request other than Allocate refers to (RFC 8656 §5).
    pub(crate) fn allocation_of(
        &mut self,
        now: Instant,
        request: &Authenticated<'_, '_>,
    ) -> Result<(AllocationId, &mut Allocation), Rejection> {
        let found = request.allocation.and_then(|id| Some((id, self.get_mut(id)?)));
        let open = found.filter(|(_, allocation)| allocation.is_open(now));
        let (id, allocation) = open.ok_or(Rejection::AllocationMismatch)?;
        // An application may have a user with the name of a test link. The two have different rights.
        let same_link = allocation.identity.test_link() == request.identity.test_link();
        if allocation.identity.username() == request.identity.username() && same_link {
            allocation.shows_rfc8656 |= request.context.shows_rfc8656;
            Ok((id, allocation))
        } else {
            Err(Rejection::WrongCredentials)
        }
    }
}

/// Returns an attribute that must be present and well-formed, else 400.
pub(crate) fn required<'m, A: Attribute<'m>>(message: &Message<'m>) -> Result<A, Rejection> {
    optional(message)?.ok_or(Rejection::BadRequest("Missing Attribute"))
}

/// Returns an attribute that must be well-formed if it is present, else 400.
pub(crate) fn optional<'m, A: Attribute<'m>>(message: &Message<'m>) -> Result<Option<A>, Rejection> {
    message.get().map_err(|_| Rejection::BadRequest("Malformed Attribute"))
}

/// RFC 8489 §6.3.1: comprehension-required attributes that are not understood → 420.
pub(crate) fn unknown_attributes(message: &Message<'_>) -> Option<Rejection> {
    let mut unknown = message.unknown_required(is_understood);
    let first = unknown.next()?;
    Some(Rejection::unknown_attributes(first, unknown))
}

/// Whether this server understands a comprehension-required attribute: it processes the attribute, or ignores it in a
/// message where it is not expected.
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
