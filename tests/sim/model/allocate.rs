//! Allocate requests (RFC 8656 §7.2).

use std::net::{IpAddr, SocketAddr};

use turnserver::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, DraftAdditionalAddressFamily, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken,
};
use turnserver::stun::{AttributeError, AttributeType, Message};
use turnserver::turn::{DropReason, EndReason, FiveTuple, Limit, RedirectWhen};

use super::requests::desired_lifetime;
use super::{Body, Expect, ExpectedResponse, Model, Now, error};

/// The requested kind of port.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PortPreference {
    Any,
    Even,
    Pair,
}

/// A requested allocation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    /// Whether the first address family is IPv6.
    pub(crate) v6: bool,
    pub(super) preference: PortPreference,
    /// The second address family, if any: whether it is IPv6.
    pub(super) next: Option<bool>,
    /// The first address family that failed, and the response if the other one fails too.
    pub(super) failed: Option<(bool, Body)>,
    /// Ports tried for the current address family.
    pub(super) attempts: u32,
    /// The relay addresses that the machine does not have.
    pub(super) gone: Vec<IpAddr>,
    /// The reserved port that it claims, and the worker that reserved it.
    pub(crate) claimed: Option<(SocketAddr, usize)>,
    pub(super) response: ExpectedResponse,
    pub(super) lifetime: u64,
    pub(super) username: String,
    pub(super) user: String,
    /// Whether the request has an attribute that came with RFC 8489 or RFC 8656.
    pub(super) modern: bool,
}

impl Wanted {
    /// Records that this address family has failed. Returns the next one.
    pub(super) fn fail(&mut self, v6: bool, failure: Body) -> Option<bool> {
        self.failed.get_or_insert((v6, failure));
        self.attempts = 0;
        self.next.take()
    }
}

fn unknown_dont_fragment() -> Body {
    Body::Error { code: 420, challenge: false, unknown: vec![0x001a] }
}

impl Model {
    /// Returns the expected decision. `Err` only serves to return early.
    pub(super) fn allocate(
        &mut self,
        now: Now,
        tuple: &FiveTuple,
        message: &Message<'_>,
        response: ExpectedResponse,
    ) -> Result<Expect, Expect> {
        let reject = |body| Expect::Respond(ExpectedResponse { body, ..response.clone() });
        let fail = |code| reject(error(code));
        let credential = &self.credentials[response.signer.expect("it is authenticated")];
        let user = credential.user.clone().expect("a valid credential has a user");
        let username = credential.username.clone();
        // Step 2.
        if let Some(at) = self.find(tuple) {
            let alloc = &self.allocs[at];
            if alloc.has_ended(now) {
                self.end(now, at, EndReason::Expired);
            } else if alloc.transaction != response.transaction || alloc.username != username {
                return Err(fail(437));
            } else if !alloc.open {
                return Err(Expect::Drop(DropReason::AllocationPending));
            } else {
                return Err(Expect::Respond(alloc.allocated(now, &response)));
            }
        }
        // §21.4.
        if matches!(tuple.client.ip(), IpAddr::V6(v6) if v6.segments()[0] == 0x2002) {
            let body = self.redirect_or_reject(error(403), None, &user, tuple, response.transaction);
            return Err(Expect::Respond(ExpectedResponse { body, ..response }));
        }
        // Step 11.
        let always = self.setup.alternate.as_ref().is_some_and(|alternate| alternate.when == RedirectWhen::Always);
        let redirect_when = match (self.draining, always) {
            (true, _) => Some(RedirectWhen::Draining),
            (false, true) => Some(RedirectWhen::Always),
            (false, false) => None,
        };
        if redirect_when.is_some() {
            let body = self.redirect_or_reject(error(508), redirect_when, &user, tuple, response.transaction);
            return Err(Expect::Respond(ExpectedResponse { body, ..response }));
        }
        // Step 3.
        match message.get::<RequestedTransport>() {
            Ok(Some(RequestedTransport(17))) => {}
            Ok(Some(_)) => return Err(fail(442)),
            _ => return Err(fail(400)),
        }
        // Step 5.
        let Ok(token) = message.get::<ReservationToken>() else { return Err(fail(400)) };
        let has = |kind| message.contains(kind);
        if token.is_some()
            && (has(AttributeType::EVEN_PORT)
                || has(AttributeType::REQUESTED_ADDRESS_FAMILY)
                || has(AttributeType::ADDITIONAL_ADDRESS_FAMILY)
                || (self.setup.draft_dual_allocation && has(AttributeType::DRAFT_ADDITIONAL_ADDRESS_FAMILY)))
        {
            return Err(fail(400));
        }
        // Steps 6, 7, 8 and 9.
        let family = match message.get::<RequestedAddressFamily>() {
            Ok(family) => family.map(|RequestedAddressFamily(family)| family),
            Err(AttributeError::UnknownFamily) => return Err(fail(440)),
            Err(_) => return Err(fail(400)),
        };
        let additional = match message.get::<AdditionalAddressFamily>() {
            Ok(None) => false,
            Ok(Some(AdditionalAddressFamily(AddressFamily::V6))) if family.is_none() => true,
            _ => return Err(fail(400)),
        };
        let draft = match message.get::<DraftAdditionalAddressFamily>() {
            _ if !self.setup.draft_dual_allocation => false,
            Ok(None) => false,
            Ok(Some(DraftAdditionalAddressFamily(AddressFamily::V6))) if family.is_none() => true,
            _ => return Err(fail(400)),
        };
        let additional = additional || draft;
        let preference = match message.get::<EvenPort>() {
            Ok(None) => PortPreference::Any,
            Ok(Some(EvenPort { reserve_next: false })) => PortPreference::Even,
            Ok(Some(EvenPort { reserve_next: true })) if !additional => PortPreference::Pair,
            _ => return Err(fail(400)),
        };
        let Ok(lifetime) = message.get::<Lifetime>() else { return Err(fail(400)) };
        let mut wanted = Wanted {
            v6: family == Some(AddressFamily::V6),
            preference,
            next: additional.then_some(true),
            failed: None,
            attempts: 0,
            gone: Vec::new(),
            claimed: None,
            response: response.clone(),
            lifetime: desired_lifetime(lifetime).max(600),
            username,
            user,
            modern: super::requests::is_modern(message),
        };
        if let Some(ReservationToken(token)) = token {
            let no_df = tuple.client.is_ipv4() && has(AttributeType::DONT_FRAGMENT);
            let reserved = self.reservations.iter().find(|reservation| reservation.token == token);
            if no_df && reserved.is_some_and(|reservation| reservation.bind.is_ipv6()) {
                return Err(reject(unknown_dont_fragment()));
            }
            return self.claim(now, tuple, token, wanted).map_err(reject);
        }
        if !self.setup.relays.iter().any(|relay| relay.bind.is_ipv6() == wanted.v6) {
            return Err(fail(440));
        }
        // §3.7: DONT-FRAGMENT does not apply between an IPv4 client and an IPv6 relayed address. As in step 4, it is an
        // unknown attribute → 420.
        let has_v6 = self.setup.relays.iter().any(|relay| relay.bind.is_ipv6());
        let no_df = tuple.client.is_ipv4() && has(AttributeType::DONT_FRAGMENT);
        if no_df && has_v6 && (wanted.v6 || additional) {
            return Err(reject(unknown_dont_fragment()));
        }
        // Step 10, and again if the request reserves a port.
        self.admit(tuple, &wanted, 0).map_err(reject)?;
        if preference == PortPreference::Pair {
            self.admit(tuple, &wanted, 1).map_err(reject)?;
        }
        self.admit_rate(now, tuple, &wanted).map_err(reject)?;
        match self.next_family(now, wanted.v6, &mut wanted) {
            Some(v6) => Ok(Expect::Open(Box::new(Wanted { v6, ..wanted }))),
            None => {
                let (_, failure) = wanted.failed.unwrap();
                let when = matches!(failure, Body::LimitReached(_)).then_some(RedirectWhen::Full);
                Err(reject(self.redirect_or_reject(failure, when, &wanted.user, tuple, response.transaction)))
            }
        }
    }

    /// Checks the quota for one more place in addition to `additional` new ones. The error is the response.
    fn admit(&mut self, tuple: &FiveTuple, wanted: &Wanted, additional: usize) -> Result<(), Body> {
        let user = wanted.user.as_str();
        let full = |limit: u32, places: usize| limit != 0 && places + additional >= limit as usize;
        let (limit, when) = if full(self.setup.in_all, self.places(None)) {
            (Limit::Allocations, Some(RedirectWhen::Full))
        } else if identifies_a_user(user) && full(self.setup.per_user, self.places(Some(user))) {
            (Limit::AllocationsPerUser, None)
        } else {
            return Ok(());
        };
        Err(self.redirect_or_reject(Body::LimitReached(limit), when, user, tuple, wanted.response.transaction))
    }

    /// Checks the rate of allocations. A reservation does not count; the allocation that claims it counts.
    fn admit_rate(&mut self, now: Now, tuple: &FiveTuple, wanted: &Wanted) -> Result<(), Body> {
        if !identifies_a_user(&wanted.user) || self.admit_allocation(now, &wanted.user) {
            return Ok(());
        }
        let failure = Body::LimitReached(Limit::AllocationRate);
        Err(self.redirect_or_reject(failure, None, &wanted.user, tuple, wanted.response.transaction))
    }

    /// Claims a reserved port. A reservation of the same user passes on its place in the quota.
    fn claim(&mut self, now: Now, tuple: &FiveTuple, token: [u8; 8], mut wanted: Wanted) -> Result<Expect, Body> {
        let at = self.reservations.iter().position(|reservation| reservation.token == token).ok_or(error(508))?;
        if self.reservations[at].user != wanted.user {
            self.admit(tuple, &wanted, 0)?;
        }
        self.admit_rate(now, tuple, &wanted)?;
        let super::Reservation { bind, worker, .. } = self.reservations.remove(at);
        wanted.claimed = Some((bind, worker));
        Ok(Expect::Open(Box::new(wanted)))
    }
}

/// Returns whether a username is more than the expiry of a time-limited credential, which all clients may share.
fn identifies_a_user(user: &str) -> bool {
    user.chars().any(|c| !c.is_ascii_digit())
}
