//! Allocate requests (RFC 8656 §7.2).

use std::net::{IpAddr, SocketAddr};

use turnserver::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, DraftAdditionalAddressFamily, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken,
};
use turnserver::stun::{AttributeError, AttributeType, Message};
use turnserver::turn::{DropReason, EndReason, FiveTuple, Limit, RedirectWhen};

use super::requests::desired_lifetime;
use super::{Answer, Body, Expect, Model, Now, error};

/// What is wanted of the port.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PortPreference {
    Any,
    Even,
    Pair,
}

/// An allocation without its relayed addresses.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    /// The family that is asked for first.
    pub(crate) v6: bool,
    pub(super) preference: PortPreference,
    /// The family that is asked for then.
    pub(super) next: Option<bool>,
    /// The first that was not to be had, and the answer if there is no other.
    pub(super) failed: Option<(bool, Body)>,
    /// Ports tried for the family that is asked for.
    pub(super) attempts: u32,
    /// The reserved port that it is to have.
    pub(crate) claimed: Option<SocketAddr>,
    pub(super) answer: Answer,
    pub(super) lifetime: u64,
    pub(super) username: String,
    pub(super) user: String,
}

impl Wanted {
    /// This family is not to be had; gives the next one.
    pub(super) fn fail(&mut self, v6: bool, why: Body) -> Option<bool> {
        self.failed.get_or_insert((v6, why));
        self.attempts = 0;
        self.next.take()
    }
}

fn unknown_dont_fragment() -> Body {
    Body::Error { code: 420, challenge: false, unknown: vec![0x001a] }
}

impl Model {
    /// Both sides of the result are an end; `Err` is an early one.
    pub(super) fn allocate(
        &mut self,
        now: Now,
        worker: usize,
        tuple: &FiveTuple,
        message: &Message<'_>,
        answer: Answer,
    ) -> Result<Expect, Expect> {
        let refuse = |body| Expect::Answer(Answer { body, ..answer.clone() });
        let fail = |code| refuse(error(code));
        let credential = &self.credentials[answer.signer.expect("it is authenticated")];
        let user = credential.user.clone().expect("a right credential is somebody's");
        let username = credential.username.clone();
        // Step 2.
        if let Some(at) = self.find(tuple) {
            let alloc = &self.allocs[at];
            if alloc.is_over(now) {
                self.end(now, at, EndReason::Expired);
            } else if alloc.transaction != answer.transaction || alloc.username != username {
                return Err(fail(437));
            } else if !alloc.open {
                return Err(Expect::Drop(DropReason::AllocationPending));
            } else {
                return Err(Expect::Answer(alloc.allocated(now, &answer)));
            }
        }
        // §21.4.
        if matches!(tuple.client.ip(), IpAddr::V6(v6) if v6.segments()[0] == 0x2002) {
            let body = self.refused(error(403), None, &user, tuple, answer.transaction);
            return Err(Expect::Answer(Answer { body, ..answer }));
        }
        // Step 11.
        let always = self.setup.alternate.as_ref().is_some_and(|alternate| alternate.when == RedirectWhen::Always);
        let turned_away = match (self.draining, always) {
            (true, _) => Some(RedirectWhen::Draining),
            (false, true) => Some(RedirectWhen::Always),
            (false, false) => None,
        };
        if turned_away.is_some() {
            let body = self.refused(error(508), turned_away, &user, tuple, answer.transaction);
            return Err(Expect::Answer(Answer { body, ..answer }));
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
                || has(AttributeType::ADDITIONAL_ADDRESS_FAMILY))
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
            claimed: None,
            answer: answer.clone(),
            lifetime: desired_lifetime(lifetime).max(600),
            username,
            user,
        };
        if let Some(ReservationToken(token)) = token {
            let no_df = tuple.client.is_ipv4() && has(AttributeType::DONT_FRAGMENT);
            let reserved = self.reservations.iter().find(|reservation| reservation.token == token);
            if no_df && reserved.is_some_and(|reservation| reservation.bind.is_ipv6()) {
                return Err(refuse(unknown_dont_fragment()));
            }
            return self.claim(now, tuple, token, wanted).map_err(refuse);
        }
        if !self.setup.relays.iter().any(|relay| relay.bind.is_ipv6() == wanted.v6) {
            return Err(fail(440));
        }
        // §3.7, as step 4.
        let has_v6 = self.setup.relays.iter().any(|relay| relay.bind.is_ipv6());
        let no_df = tuple.client.is_ipv4() && has(AttributeType::DONT_FRAGMENT);
        if no_df && has_v6 && (wanted.v6 || additional) {
            return Err(refuse(unknown_dont_fragment()));
        }
        // Step 10, and once more for a port that is to be reserved.
        self.admit(tuple, &wanted, 0).map_err(refuse)?;
        if preference == PortPreference::Pair {
            self.admit(tuple, &wanted, 1).map_err(refuse)?;
        }
        self.admit_rate(now, tuple, &wanted).map_err(refuse)?;
        match self.next_family(now, worker, wanted.v6, &mut wanted) {
            Some(v6) => Ok(Expect::Open(Box::new(Wanted { v6, ..wanted }))),
            None => {
                let (_, why) = wanted.failed.unwrap();
                let when = matches!(why, Body::Refused(_)).then_some(RedirectWhen::Full);
                Err(refuse(self.refused(why, when, &wanted.user, tuple, answer.transaction)))
            }
        }
    }

    /// A place in the quota besides so many that were just given, or the answer if there is none.
    fn admit(&mut self, tuple: &FiveTuple, wanted: &Wanted, besides: usize) -> Result<(), Body> {
        let user = wanted.user.as_str();
        let full = |limit: u32, places: usize| limit != 0 && places + besides >= limit as usize;
        let (limit, when) = if full(self.setup.in_all, self.places(None)) {
            (Limit::Allocations, Some(RedirectWhen::Full))
        } else if full(self.setup.per_user, self.places(Some(user))) {
            (Limit::AllocationsPerUser, None)
        } else {
            return Ok(());
        };
        Err(self.refused(Body::Refused(limit), when, user, tuple, wanted.answer.transaction))
    }

    /// What is made of a reservation counts, the reservation does not.
    fn admit_rate(&mut self, now: Now, tuple: &FiveTuple, wanted: &Wanted) -> Result<(), Body> {
        if self.may_allocate(now, &wanted.user) {
            return Ok(());
        }
        let why = Body::Refused(Limit::AllocationRate);
        Err(self.refused(why, None, &wanted.user, tuple, wanted.answer.transaction))
    }

    /// Takes a reserved port, with the reservation's place in the quota if that is the same user's.
    fn claim(&mut self, now: Now, tuple: &FiveTuple, token: [u8; 8], mut wanted: Wanted) -> Result<Expect, Body> {
        let at = self.reservations.iter().position(|reservation| reservation.token == token).ok_or(error(508))?;
        if self.reservations[at].user != wanted.user {
            self.admit(tuple, &wanted, 0)?;
        }
        self.admit_rate(now, tuple, &wanted)?;
        wanted.claimed = Some(self.reservations.remove(at).bind);
        Ok(Expect::Open(Box::new(wanted)))
    }
}
