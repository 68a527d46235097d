//! Allocate (RFC 8656 §7.2).

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt as _;

use crate::auth::Identity;
use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, DraftAdditionalAddressFamily, EvenPort, Lifetime, RequestedAddressFamily,
    RequestedTransport, ReservationToken,
};
use crate::stun::{AttributeError, AttributeType, ErrorCode, Message, TransactionId};
use crate::turn::contract::{
    Action, AllocationId, Context, Event, FiveTuple, FromClient, OpenError, OpenRelay, Opened, RedirectCause,
};
use crate::turn::limit::Limit;
use crate::turn::protocol::methods::FORBIDDEN;
use crate::turn::protocol::request::{Accepted, Authenticated, optional, required};
use crate::turn::protocol::response::{self, Answering, Reject, Success};
use crate::turn::server::Server;
use crate::turn::shared::alternate::RedirectWhen;
use crate::turn::shared::policy::is_tunneled;
use crate::turn::shared::quota::{QuotaExceeded, Ticket, TicketWord};
use crate::turn::shared::reservations::{Reserved, Token};
use crate::turn::tables::allocation::{Allocation, IcmpBudget, Meter, Opening, State};
use crate::turn::tables::channels::Channels;
use crate::turn::tables::permissions::Permissions;
use crate::turn::tables::ports::{PortPool, Wish};
use crate::turn::tables::relays::{Relay, Relays, Socket};
use crate::turn::time::{Deadline, Instant};
use crate::turn::{DEFAULT_LIFETIME, EndReason, MAXIMUM_LIFETIME};

/// How many ports are tried that somebody else turns out to have.
const ATTEMPTS: u8 = 16;

/// RFC 8656 §7.2: a port MUST be reserved for at least 30 seconds.
const RESERVATION: Duration = Duration::from_secs(30);

/// What an Allocate request asks for.
struct Wanted {
    address: WantedAddress,
    lifetime: Duration,
}

#[derive(Clone, Copy)]
enum WantedAddress {
    New {
        family: AddressFamily,
        /// An IPv6 address besides.
        additional: bool,
        wish: Wish,
    },
    Reserved(Token),
}

/// What says which address is wanted, and so does not go with a token.
const CHOICES: [AttributeType; 3] =
    [AttributeType::EVEN_PORT, AttributeType::REQUESTED_ADDRESS_FAMILY, AttributeType::ADDITIONAL_ADDRESS_FAMILY];

impl Wanted {
    fn parse(message: &Message<'_>, draft_dual_allocation: bool) -> Result<Self, Reject> {
        let bad = |reason| Err(Reject::new(ErrorCode::BAD_REQUEST, reason));
        // Step 3: missing or malformed → 400, no UDP → 442.
        let transport: RequestedTransport = required(message)?;
        if transport != RequestedTransport::UDP {
            let code = ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL;
            return Err(Reject::new(code, "Unsupported Transport Protocol"));
        }
        // Step 5: a token together with another choice of the address → 400.
        let token = optional(message)?.map(|ReservationToken(bytes)| Token::from_bytes(bytes));
        if token.is_some() && CHOICES.iter().any(|kind| message.contains(*kind)) {
            return bad("Bad RESERVATION-TOKEN");
        }
        // Steps 6 and 7. An unknown family is one that is not supported.
        let requested = match message.get::<RequestedAddressFamily>() {
            Ok(requested) => requested.map(|RequestedAddressFamily(family)| family),
            Err(AttributeError::UnknownFamily) => return Err(NO_SUCH_FAMILY),
            Err(_) => return bad("Malformed Attribute"),
        };
        let additional = optional(message)?.map(|AdditionalAddressFamily(family)| family);
        let draft = if draft_dual_allocation { optional(message)? } else { None };
        let additional = additional.or(draft.map(|DraftAdditionalAddressFamily(family)| family));
        // Step 6: both attributes → 400. Step 9: the IPv4 family → 400.
        if additional.is_some_and(|family| family == AddressFamily::V4 || requested.is_some()) {
            return bad("Bad ADDITIONAL-ADDRESS-FAMILY");
        }
        let additional = additional.is_some();
        // Step 8: a reservation and an additional family → 400.
        let wish = match optional(message)? {
            None => Wish::Any,
            Some(EvenPort { reserve_next: false }) => Wish::Even,
            Some(EvenPort { reserve_next: true }) if additional => return bad("Bad EVEN-PORT"),
            Some(EvenPort { reserve_next: true }) => Wish::EvenAndNext,
        };
        let lifetime = optional(message)?.map_or(DEFAULT_LIFETIME, |Lifetime(seconds)| seconds);
        let lifetime = Duration::from_secs(lifetime.clamp(DEFAULT_LIFETIME, MAXIMUM_LIFETIME).into());
        let family = requested.unwrap_or(AddressFamily::V4);
        let address = token.map_or(WantedAddress::New { family, additional, wish }, WantedAddress::Reserved);
        Ok(Self { address, lifetime })
    }
}

const NO_SUCH_FAMILY: Reject = Reject::new(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED, "Address Family not Supported");
const NO_RESERVATION: Reject = Reject::new(ErrorCode::INSUFFICIENT_CAPACITY, "Insufficient Capacity: reserved port");

/// What stands in the way of an allocation, or of one of two address families.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Obstacle {
    Limit(Limit),
    Other {
        reject: Reject,
        /// What the operator is told.
        reason: &'static str,
        /// When clients are sent to another server because of it, if ever.
        redirect: Option<RedirectWhen>,
    },
}

const NO_FAMILY: Obstacle = Obstacle::Other {
    reject: NO_SUCH_FAMILY,
    reason: "the server has no relay address of this family",
    redirect: None,
};
const NO_PORT: Obstacle = Obstacle::Limit(Limit::RelayPorts);
const DRAINING: Obstacle = Obstacle::Other {
    reject: Reject::new(ErrorCode::INSUFFICIENT_CAPACITY, "Server is shutting down"),
    reason: "the server is shutting down: it ends with its last allocation",
    redirect: Some(RedirectWhen::Draining),
};
const ALWAYS: Obstacle = Obstacle::Other {
    reject: Reject::new(ErrorCode::INSUFFICIENT_CAPACITY, "Insufficient Capacity: no server for this address family"),
    reason: "alternate.when is always, but there is no alternate server for the client's address family and transport",
    redirect: Some(RedirectWhen::Always),
};
const TUNNELED: Obstacle = Obstacle::Other {
    reject: FORBIDDEN,
    reason: "the client comes from a Teredo or 6to4 address, which RFC 8656 §21.4 has no allocation for",
    redirect: None,
};
const RESERVED_PORT_IN_USE: Obstacle = Obstacle::Other {
    reject: NO_RESERVATION,
    reason: "another program has a relay port that was reserved: give this server relay.ports of its own",
    redirect: None,
};

impl Obstacle {
    fn reject(self) -> Reject {
        match self {
            Self::Limit(limit) => Reject::limited(limit),
            Self::Other { reject, .. } => reject,
        }
    }

    /// When clients are sent to another server because of it, if ever, and why.
    fn redirect(self) -> Option<(RedirectWhen, RedirectCause)> {
        match self {
            Self::Limit(limit @ (Limit::Allocations | Limit::RelayPorts | Limit::PortsInUse | Limit::Sockets)) => {
                Some((RedirectWhen::Full, RedirectCause::Limit(limit)))
            }
            Self::Limit(_) => None,
            Self::Other { redirect: Some(RedirectWhen::Always), .. } => {
                Some((RedirectWhen::Always, RedirectCause::Always))
            }
            Self::Other { redirect, reason, .. } => redirect.map(|when| (when, RedirectCause::Refused(reason))),
        }
    }

    /// The note for the log.
    fn told(self, user: &str, tuple: FiveTuple) -> Action {
        match self {
            Self::Limit(limit) => limit.reached(user, tuple),
            Self::Other { reason, .. } => {
                Action::Log(Event::AllocationRefused { user: user.to_owned(), tuple, reason })
            }
        }
    }
}

impl Server {
    /// Whether the request is the one that made the allocation of its 5-tuple, once more.
    pub(crate) fn is_retransmission(&self, now: Instant, request: &Authenticated<'_, '_>) -> bool {
        let allocation = request.allocation.and_then(|id| self.table.get(id));
        allocation.is_some_and(|allocation| {
            let transaction = request.message.transaction_id();
            !allocation.has_ended(now) && allocation.was_made_by(transaction, request.identity.username())
        })
    }

    pub(crate) fn allocate(
        &mut self,
        cx: &mut Context<'_>,
        request: &Authenticated<'_, '_>,
    ) -> Result<Accepted, Reject> {
        // Step 2: the 5-tuple has an allocation → 437, unless this is the request that made it, once more.
        if let Some(id) = request.allocation {
            let retransmission = self.is_retransmission(cx.now, request);
            match self.table.get(id).filter(|allocation| !allocation.has_ended(cx.now)) {
                Some(allocation) if retransmission => {
                    return Ok(match allocation.state {
                        State::Opening(_) => Accepted::Pending,
                        State::Open => Accepted::Success(allocated(allocation, cx.now)),
                    });
                }
                Some(_) => return Err(Reject::new(ErrorCode::ALLOCATION_MISMATCH, "Allocation Mismatch")),
                None => self.end(id, cx.now, EndReason::Expired),
            }
        }
        if is_tunneled(request.tuple.client.ip()) {
            return Err(self.refused(request, TUNNELED));
        }
        // Step 11.
        if let Some(obstacle) = self.turns_away() {
            return Err(self.refused(request, obstacle));
        }
        let Wanted { address, lifetime } = Wanted::parse(request.message, self.settings.draft_dual_allocation)?;
        let deadline = Deadline::after(cx.now, lifetime);
        match address {
            WantedAddress::New { family, additional, wish } => {
                // Step 7: a family that no relay address has → 440.
                if self.relays_of(family).is_empty() {
                    return Err(NO_SUCH_FAMILY);
                }
                if (family == AddressFamily::V6 || additional) && !self.relays_of(AddressFamily::V6).is_empty() {
                    check_dont_fragment(request)?;
                }
                let (ticket, reserve) = self.admit_with_neighbour(cx.now, request, wish)?;
                let next = additional.then_some(AddressFamily::V6);
                let id = self.begin(cx.now, request, ticket, Start { deadline, wish, next, reserve, claimed: false });
                match self.next_socket(cx, id, family) {
                    Some(open) => Ok(Accepted::Open(open)),
                    None => Err(self.give_up(id).map_or(NO_PORT.reject(), |given_up| given_up.reject)),
                }
            }
            WantedAddress::Reserved(token) => {
                let (reserved, ticket) = self.claim(cx.now, request, token)?;
                let start = Start { deadline, wish: Wish::Any, next: None, reserve: None, claimed: true };
                let id = self.begin(cx.now, request, ticket, start);
                let open = self.ask_for_socket(id, reserved.bind, reserved.relayed);
                open.map(Accepted::Open).ok_or(NO_RESERVATION)
            }
        }
    }

    /// Step 10: a place in the quota, or 486 or 508.
    fn admit(&mut self, request: &Authenticated<'_, '_>) -> Result<Ticket, Reject> {
        match self.shared.quota.admit(request.identity.user()) {
            Ok(ticket) => Ok(ticket),
            Err(QuotaExceeded::User) => Err(self.refused(request, Obstacle::Limit(Limit::AllocationsPerUser))),
            Err(QuotaExceeded::Server) => Err(self.refused(request, Obstacle::Limit(Limit::Allocations))),
        }
    }

    /// Counts one allocation that is being made, whose user has this ticket.
    fn admit_rate(&mut self, now: Instant, request: &Authenticated<'_, '_>, ticket: TicketWord) -> Result<(), Reject> {
        if self.shared.quota.admits_rate(ticket, now) {
            return Ok(());
        }
        Err(self.refused(request, Obstacle::Limit(Limit::AllocationRate)))
    }

    fn refused(&mut self, request: &Authenticated<'_, '_>, obstacle: Obstacle) -> Reject {
        self.refusal(request.identity.user(), request.tuple, request.message.transaction_id(), obstacle)
    }

    /// What a client gets in place of an allocation: another server, or else the obstacle's error.
    fn refusal(&mut self, user: &str, tuple: FiveTuple, transaction: TransactionId, obstacle: Obstacle) -> Reject {
        let redirect = obstacle.redirect();
        let redirected = redirect.and_then(|(when, cause)| self.redirect(user, tuple, transaction, when, cause));
        redirected.unwrap_or_else(|| {
            self.actions.push_back(obstacle.told(user, tuple));
            obstacle.reject()
        })
    }

    /// Why no client is given an allocation at present, if none is.
    fn turns_away(&self) -> Option<Obstacle> {
        if self.shared.draining.load(Ordering::Relaxed) {
            Some(DRAINING)
        } else if self.shared.alternate.as_ref().is_some_and(|alternate| alternate.when == RedirectWhen::Always) {
            Some(ALWAYS)
        } else {
            None
        }
    }

    /// A place in the quota, and another one if a port is to be reserved: it counts like an allocation until it is one,
    /// and is made as one only then.
    fn admit_with_neighbour(
        &mut self,
        now: Instant,
        request: &Authenticated<'_, '_>,
        wish: Wish,
    ) -> Result<(Ticket, Option<Ticket>), Reject> {
        let ticket = self.admit(request)?;
        let reserve = match wish {
            Wish::EvenAndNext => self.admit(request).map(Some),
            Wish::Any | Wish::Even => Ok(None),
        };
        // What is refused for another reason costs nothing of the rate.
        let admitted = reserve.and_then(|reserve| match self.admit_rate(now, request, ticket.word()) {
            Ok(()) => Ok(reserve),
            Err(reject) => {
                reserve.into_iter().for_each(|reserve| self.shared.quota.release(reserve));
                Err(reject)
            }
        });
        match admitted {
            Ok(reserve) => Ok((ticket, reserve)),
            Err(reject) => {
                self.shared.quota.release(ticket);
                Err(reject)
            }
        }
    }

    /// Step 5: takes what a token stands for, with the place in the quota that it has, or 508. The address family is that
    /// of the reserved address.
    fn claim(
        &mut self,
        now: Instant,
        request: &Authenticated<'_, '_>,
        token: Token,
    ) -> Result<(Reserved, Ticket), Reject> {
        let reserved = self.shared.reservations.find(token).ok_or(NO_RESERVATION)?;
        if reserved.bind.is_ipv6() {
            check_dont_fragment(request)?;
        }
        // A token is good for everybody, but everybody's allocations count as their own.
        let same_user = self.shared.quota.is_of(reserved.ticket, request.identity.user());
        let own = if same_user { None } else { Some(self.admit(request)?) };
        let counted = own.as_ref().map_or(reserved.ticket, Ticket::word);
        if let Err(reject) = self.admit_rate(now, request, counted) {
            own.into_iter().for_each(|own| self.shared.quota.release(own));
            return Err(reject);
        }
        let (ticket, left) = match (self.shared.reservations.claim(token), own) {
            (Some(ticket), None) => (Ok(ticket), None),
            (Some(ticket), Some(own)) => (Ok(own), Some(ticket)),
            (None, own) => (Err(NO_RESERVATION), own),
        };
        if let Some(left) = left {
            self.shared.quota.release(left);
        }
        let ticket = ticket?;
        match self.pool_of(reserved.bind) {
            Some(pool) => pool.claim(reserved.bind.port()),
            None => self.borrowed += 1,
        }
        Ok((reserved, ticket))
    }

    /// Enters an allocation without an address.
    fn begin(&mut self, now: Instant, request: &Authenticated<'_, '_>, ticket: Ticket, start: Start) -> AllocationId {
        let answering = Answering::to(request.message);
        let opening = Opening {
            attempts: 0,
            answering,
            deadline: start.deadline,
            wish: start.wish,
            next: start.next,
            failed: None,
            claimed: start.claimed,
            reserve: start.reserve,
        };
        self.table.insert(Allocation {
            tuple: request.tuple,
            relays: Relays::default(),
            state: State::Opening(Box::new(opening)),
            transaction: answering.transaction,
            identity: Rc::clone(&request.identity),
            created: now,
            address_error: None,
            token: None,
            permissions: Permissions::default(),
            channels: Channels::default(),
            bytes_to_peers: 0,
            bytes_to_client: 0,
            icmp: IcmpBudget::default(),
            ticket,
            meter: Meter::UNUSED,
        })
    }

    /// Takes a port for a socket of `family`, or of the family behind it where there is none. `None` if nothing more can
    /// be opened.
    fn next_socket(&mut self, cx: &mut Context<'_>, id: AllocationId, mut family: AddressFamily) -> Option<OpenRelay> {
        loop {
            let (opening, _) = self.table.get_mut(id)?.opening()?;
            let wish = opening.wish;
            match self.take_port(cx, family, wish) {
                Ok((bind, relayed)) => return self.ask_for_socket(id, bind, relayed),
                Err(obstacle) => {
                    let (opening, _) = self.table.get_mut(id)?.opening()?;
                    family = opening.fail(family, obstacle)?;
                }
            }
        }
    }

    fn ask_for_socket(&mut self, id: AllocationId, bind: SocketAddr, relayed: SocketAddr) -> Option<OpenRelay> {
        let (opening, relays) = self.table.get_mut(id)?.opening()?;
        opening.attempts += 1;
        let (deadline, family) = (opening.deadline, AddressFamily::from(&bind));
        relays.set(Relay::opening(bind, relayed, deadline));
        Some(OpenRelay { relay: id.relay(family), bind })
    }

    /// Takes note of what became of a relay socket that the core asked for.
    ///
    /// An answer is written to `reply`, as in [`client_packet`](Self::client_packet).
    pub fn relay_opened(
        &mut self,
        cx: &mut Context<'_>,
        open: &OpenRelay,
        result: Result<(), OpenError>,
        reply: &mut [u8],
    ) -> Opened {
        match result {
            Ok(()) => {}
            Err(OpenError::PortInUse) => self.set_aside(open.bind, cx.now),
            Err(OpenError::Other) => self.give_back(open.bind),
        }
        let (id, family) = (open.relay.allocation(), open.relay.family());
        // An allocation whose time came while its socket was being opened is gone, whether it was swept or not.
        if self.table.get(id).is_some_and(|allocation| allocation.has_ended(cx.now)) {
            self.end(id, cx.now, EndReason::Expired);
        }
        let Some((opening, relays)) = self.table.get_mut(id).and_then(Allocation::opening) else {
            if result.is_ok() {
                self.count_abandoned();
            }
            return Opened::Abandoned;
        };
        let turn = match result {
            Ok(()) => {
                if let Some(relay) = relays.get_mut(family) {
                    relay.socket = Socket::Open;
                }
                self.shared.live.set(open.bind, true);
                opening.next_family()
            }
            Err(error) => {
                relays.remove(family);
                let turn = match error {
                    OpenError::PortInUse if opening.claimed => opening.fail(family, RESERVED_PORT_IN_USE),
                    OpenError::PortInUse if opening.attempts < ATTEMPTS => Some(family),
                    OpenError::PortInUse => opening.fail(family, Obstacle::Limit(Limit::PortsInUse)),
                    OpenError::Other => opening.fail(family, Obstacle::Limit(Limit::Sockets)),
                };
                let wish = opening.wish;
                self.release_next(wish, open.bind);
                turn
            }
        };
        match turn.and_then(|family| self.next_socket(cx, id, family)) {
            Some(next) => Opened::Open(next),
            None => self.answer(cx, id, reply),
        }
    }

    /// Answers when there is nothing more to be opened: with success if anything is open.
    fn answer(&mut self, cx: &mut Context<'_>, id: AllocationId, reply: &mut [u8]) -> Opened {
        let Some(allocation) = self.table.get_mut(id) else { return Opened::Abandoned };
        let Some(bind) = allocation.relays.iter().next().map(Relay::bind) else {
            return self.refuse(cx, id, reply);
        };
        let State::Opening(opening) = std::mem::replace(&mut allocation.state, State::Open) else {
            return Opened::Abandoned;
        };
        let Opening { answering, failed, reserve, .. } = *opening;
        let token = reserve.and_then(|ticket| self.reserve_next(cx, bind, ticket));
        let Some(allocation) = self.table.get_mut(id) else { return Opened::Abandoned };
        allocation.token = token;
        // Step 9: what is not to be had of two families is told.
        allocation.address_error = failed.map(|(family, obstacle)| (family, obstacle.reject().code()));
        let success = allocated(allocation, cx.now);
        self.actions.push_back(Action::Log(Event::AllocationCreated {
            user: allocation.identity.user().to_owned(),
            tuple: allocation.tuple,
            relay: allocation.relays.told(),
            lifetime: allocation.relays.seconds_left(cx.now),
        }));
        match response::success(reply, &answering, allocation.identity.key(), &success) {
            Ok(reply) => Opened::Reply(allocation.tuple, reply),
            Err(_) => {
                self.end(id, cx.now, EndReason::Deleted);
                Opened::Abandoned
            }
        }
    }

    /// Keeps the port next to an even one for whoever comes with the token.
    fn reserve_next(&mut self, cx: &mut Context<'_>, even: SocketAddr, ticket: Ticket) -> Option<Token> {
        let next = SocketAddr::new(even.ip(), even.port() | 1);
        match self.shared.reservations.reserve(next, ticket, cx.rng) {
            Ok(token) => {
                self.reserved.push_back((Deadline::after(cx.now, RESERVATION), token, next));
                Some(token)
            }
            Err(ticket) => {
                self.shared.quota.release(ticket);
                self.release_next(Wish::EvenAndNext, even);
                None
            }
        }
    }

    fn refuse(&mut self, cx: &Context<'_>, id: AllocationId, reply: &mut [u8]) -> Opened {
        let Some(GivenUp { tuple, identity, answering, reject }) = self.give_up(id) else { return Opened::Abandoned };
        match self.rejected(cx, &tuple, &answering, Some(identity.key()), &reject, reply) {
            FromClient::Reply(reply) => Opened::Reply(tuple, reply),
            _ => Opened::Abandoned,
        }
    }

    /// Takes an allocation back for which nothing can be opened.
    fn give_up(&mut self, id: AllocationId) -> Option<GivenUp> {
        let Allocation { tuple, identity, state, ticket, .. } = self.table.remove(id)?;
        self.shared.quota.release(ticket);
        let State::Opening(mut opening) = state else { return None };
        if let Some(reserve) = opening.reserve.take() {
            self.shared.quota.release(reserve);
        }
        let answering = opening.answering;
        let reject = self.refusal(identity.user(), tuple, answering.transaction, opening.obstacle());
        Some(GivenUp { tuple, identity, answering, reject })
    }

    /// A free port of one of the relay addresses of a family, beginning at a random one of them: where to bind the
    /// socket, and what to tell the client.
    fn take_port(
        &mut self,
        cx: &mut Context<'_>,
        family: AddressFamily,
        wish: Wish,
    ) -> Result<(SocketAddr, SocketAddr), Obstacle> {
        let relays = self.relays_of(family);
        if relays.is_empty() {
            return Err(NO_FAMILY);
        }
        let first = cx.rng.random_range(0..relays.len());
        for at in relays.iter().cycle().skip(first).take(relays.len()) {
            let Some(port) = self.take_port_of(cx, *at, wish) else { continue };
            if let Some(relay) = self.settings.relays.get(*at) {
                return Ok((SocketAddr::new(relay.bind, port), SocketAddr::new(relay.advertised, port)));
            }
        }
        let others_have_some = relays.iter().any(|at| self.pools.get(*at).is_some_and(PortPool::has_set_aside));
        Err(if others_have_some { Obstacle::Limit(Limit::PortsInUse) } else { NO_PORT })
    }

    fn take_port_of(&mut self, cx: &mut Context<'_>, at: usize, wish: Wish) -> Option<u16> {
        let bind = self.settings.relays.get(at)?.bind;
        if wish == Wish::EvenAndNext && !self.shared.reservations.cover(bind) {
            return None;
        }
        let taken = self.pools.get_mut(at)?.take(cx.now, wish, cx.rng);
        if taken.is_none() {
            self.collect_returned(at);
            return self.pools.get_mut(at)?.take(cx.now, wish, cx.rng);
        }
        taken
    }

    fn relays_of(&self, family: AddressFamily) -> Vec<usize> {
        let relays = (0..).zip(&self.settings.relays);
        relays.filter(|(_, relay)| AddressFamily::of(relay.bind) == family).map(|(at, _)| at).collect()
    }
}

/// How an allocation begins.
struct Start {
    deadline: Deadline,
    wish: Wish,
    next: Option<AddressFamily>,
    reserve: Option<Ticket>,
    claimed: bool,
}

/// An allocation that came to nothing, and how to tell its client.
struct GivenUp {
    tuple: FiveTuple,
    identity: Rc<Identity>,
    answering: Answering,
    reject: Reject,
}

impl Opening {
    /// Turns to the next family.
    fn next_family(&mut self) -> Option<AddressFamily> {
        self.attempts = 0;
        self.next.take()
    }

    /// Remembers why a family is not to be had, and turns to the next one.
    fn fail(&mut self, family: AddressFamily, obstacle: Obstacle) -> Option<AddressFamily> {
        self.failed.get_or_insert((family, obstacle));
        self.next_family()
    }

    /// Why nothing could be opened.
    fn obstacle(&self) -> Obstacle {
        self.failed.map_or(NO_PORT, |(_, obstacle)| obstacle)
    }
}

/// RFC 8656 §3.7: whether datagrams from an IPv4 client came with DF is not to be learned from a socket, so where they may
/// go to IPv6 peers, DONT-FRAGMENT → 420, as in step 4.
fn check_dont_fragment(request: &Authenticated<'_, '_>) -> Result<(), Reject> {
    let FiveTuple { client, transport, .. } = request.tuple;
    let asked = request.message.contains(AttributeType::DONT_FRAGMENT);
    if asked && client.is_ipv4() && !transport.is_stream() {
        return Err(Reject::unknown_attributes(AttributeType::DONT_FRAGMENT, std::iter::empty()));
    }
    Ok(())
}

fn allocated(allocation: &Allocation, now: Instant) -> Success {
    Success::Allocated {
        relayed: allocation.relays.live(now),
        mapped: allocation.tuple.client,
        lifetime: allocation.relays.seconds_left(now),
        address_error: allocation.address_error,
        token: allocation.token,
    }
}
