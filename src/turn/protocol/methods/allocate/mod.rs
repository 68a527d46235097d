//! Allocate (RFC 8656 §7.2).

mod failure;
mod options;

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;

use crate::auth::Identity;
use crate::special_purpose::is_tunneled;
use crate::stun::attribute::AddressFamily;
use crate::stun::{AttributeType, TransactionId};
use crate::turn::contract::{
    Action, AllocationId, Context, FiveTuple, FromClient, OpenError, Opened, SocketKind, SocketSpec,
};
use crate::turn::event::{EndReason, Event, Traffic};
use crate::turn::limit::Limit;
use crate::turn::protocol::rejection::Rejection;
use crate::turn::protocol::request::{Accepted, Authenticated};
use crate::turn::protocol::response::{self, ResponseContext, Success};
use crate::turn::server::{Server, give_back, release_next};
use crate::turn::shared::alternate::RedirectWhen;
use crate::turn::shared::ports::{PortPreference, Resting};
use crate::turn::shared::quota::{QuotaExceeded, Ticket, TicketWord};
use crate::turn::shared::relay_address::{RelayAddress, RelayAddresses};
use crate::turn::shared::reservations::Token;
use crate::turn::tables::allocation::{Allocation, IcmpBudget, Meter, Opening, State};
use crate::turn::tables::channels::Channels;
use crate::turn::tables::drops::Drops;
use crate::turn::tables::permissions::Permissions;
use crate::turn::tables::relays::{Relay, Relays, SocketState};
use crate::turn::time::{Deadline, Instant};
use failure::NO_RESERVATION;
use options::{AddressOption, AllocateOptions};

pub(crate) use failure::AllocateFailure;

/// The maximum number of ports that are tried for one address family when other programs use some of them.
const ATTEMPTS: u8 = 16;

/// RFC 8656 §7.2: a port MUST be reserved for at least 30 seconds.
const RESERVATION: Duration = Duration::from_secs(30);

impl Server {
    /// Whether the request is a retransmission of the one that created the allocation of its 5-tuple.
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
    ) -> Result<Accepted, Rejection> {
        // Step 2: the 5-tuple has an allocation → 437, unless this is a retransmission of the request that created it.
        if let Some(id) = request.allocation {
            let retransmission = self.is_retransmission(cx.now, request);
            match self.table.get(id).filter(|allocation| !allocation.has_ended(cx.now)) {
                Some(allocation) if retransmission => {
                    return Ok(match allocation.state {
                        State::Opening(_) => Accepted::Pending,
                        State::Open => Accepted::Success(allocated(allocation, cx.now)),
                    });
                }
                Some(_) => return Err(Rejection::AllocationMismatch),
                None => self.end(id, cx.now, EndReason::Expired),
            }
        }
        if is_tunneled(request.tuple.client.ip()) {
            return Err(self.failed(request, AllocateFailure::Tunneled));
        }
        // Step 11.
        if let Some(failure) = self.general_failure() {
            return Err(self.failed(request, failure));
        }
        let AllocateOptions { address, lifetime } =
            AllocateOptions::parse(request.message, self.snapshot.compat.draft_dual_allocation)?;
        let lifetime = match request.identity.expires() {
            // An allocation of a test link ends with its credential.
            Some(expires) if request.identity.test_link().is_some() => {
                lifetime.min(Duration::from_secs(expires.saturating_sub(cx.unix)))
            }
            _ => lifetime,
        };
        let deadline = Deadline::after(cx.now, lifetime);
        match address {
            AddressOption::New { family, additional, preference } => {
                // No relay address of any family yet → 508, because none is available at this time (§19).
                if self.snapshot.relays.iter().next().is_none() {
                    return Err(self.failed(request, AllocateFailure::AddressGone));
                }
                // Step 7: a family that no relay address has → 440.
                let has = |family| self.snapshot.relays.of_family(family).next().is_some();
                if !has(family) {
                    return Err(Rejection::AddressFamilyNotSupported);
                }
                if (family == AddressFamily::V6 || additional) && has(AddressFamily::V6) {
                    check_dont_fragment(request)?;
                }
                let (ticket, reserve) = self.admit_with_neighbour(cx.now, request, preference)?;
                let next = additional.then_some(AddressFamily::V6);
                let id =
                    self.begin(cx.now, request, ticket, Start { deadline, preference, next, reserve, claimed: false });
                match self.next_socket(cx, id, family) {
                    Some(open) => Ok(Accepted::Open(open)),
                    None => {
                        Err(self.abandon(id).map_or(AllocateFailure::NO_PORT.rejection(), |failed| failed.rejection))
                    }
                }
            }
            AddressOption::Reserved(token) => {
                let (address, port, ticket) = self.claim(cx.now, request, token)?;
                let start =
                    Start { deadline, preference: PortPreference::Any, next: None, reserve: None, claimed: true };
                let id = self.begin(cx.now, request, ticket, start);
                let open = self.request_socket(id, address, port);
                open.map(Accepted::Open).ok_or(NO_RESERVATION)
            }
        }
    }

    /// Step 10: takes a place in the quota. If a limit is reached → 486 or 508.
    fn admit(&mut self, request: &Authenticated<'_, '_>) -> Result<Ticket, Rejection> {
        let (limits, user) = (&self.snapshot.limits, request.identity.user());
        let own = request.identity.own_allocations();
        let quota = &self.ledger.quota;
        let admitted = match own {
            Some(own) => quota.admit(user, own, limits.allocations),
            None => quota.admit_shared(user, limits.allocations_per_user, limits.allocations),
        };
        match admitted {
            Ok(ticket) => Ok(ticket),
            Err(QuotaExceeded::User) if own.is_some() && request.identity.test_link().is_none() => {
                Err(self.failed(request, AllocateFailure::Limit(Limit::AllocationsOfStaticUser)))
            }
            Err(QuotaExceeded::User) => Err(self.failed(request, AllocateFailure::Limit(Limit::AllocationsPerUser))),
            Err(QuotaExceeded::Server) => Err(self.failed(request, AllocateFailure::Limit(Limit::Allocations))),
        }
    }

    /// Charges an allocation to the rate of the user of a ticket.
    fn admit_rate(
        &mut self,
        now: Instant,
        request: &Authenticated<'_, '_>,
        ticket: TicketWord,
    ) -> Result<(), Rejection> {
        let rate = self.snapshot.limits.user_rates.allocations.as_ref();
        // A user without a limit on allocations may stand for many clients.
        let unlimited = request.identity.own_allocations() == Some(0);
        if unlimited || self.ledger.quota.admits_rate(ticket, rate, now) {
            return Ok(());
        }
        Err(self.failed(request, AllocateFailure::Limit(Limit::AllocationRate)))
    }

    fn failed(&mut self, request: &Authenticated<'_, '_>, failure: AllocateFailure) -> Rejection {
        self.redirect_or_reject(request.identity.user(), request.tuple, request.context.transaction, failure)
    }

    /// Redirects a client that gets no allocation, or rejects its request if no redirect applies. Logs the redirect or
    /// the rejection.
    fn redirect_or_reject(
        &mut self,
        user: &str,
        tuple: FiveTuple,
        transaction: TransactionId,
        failure: AllocateFailure,
    ) -> Rejection {
        let redirect = failure.redirect().and_then(|(when, cause)| {
            let alternate = self.snapshot.alternate.as_ref().filter(|alternate| when <= alternate.when)?;
            Some((alternate.pick(&tuple, transaction)?, cause))
        });
        match redirect {
            Some((redirect, cause)) => {
                let (user, server) = (user.to_owned(), redirect.server);
                self.actions.push_back(Action::Log(Event::AllocationRedirected { user, tuple, server, cause }));
                Rejection::TryAlternate(redirect)
            }
            None => {
                self.actions.push_back(failure.log(user, tuple));
                failure.rejection()
            }
        }
    }

    /// Returns the reason if no client can get an allocation at present.
    fn general_failure(&self) -> Option<AllocateFailure> {
        if self.ledger.is_draining() {
            Some(AllocateFailure::Draining)
        } else if self.snapshot.alternate.as_ref().is_some_and(|alternate| alternate.when == RedirectWhen::Always) {
            Some(AllocateFailure::AlwaysRedirected)
        } else {
            None
        }
    }

    /// Takes a place in the quota, and another one if the request reserves a port: a reservation counts as an
    /// allocation.
    fn admit_with_neighbour(
        &mut self,
        now: Instant,
        request: &Authenticated<'_, '_>,
        preference: PortPreference,
    ) -> Result<(Ticket, Option<Ticket>), Rejection> {
        let ticket = self.admit(request)?;
        let reserve = match preference {
            PortPreference::EvenAndNext => Some(self.admit(request)?),
            PortPreference::Any | PortPreference::Even => None,
        };
        // The rate is charged last, so a request that the quota rejects is not charged.
        self.admit_rate(now, request, ticket.word())?;
        Ok((ticket, reserve))
    }

    /// Step 5: takes the address that a token reserves, with a place in the quota. No such reservation → 508. The
    /// allocation has the address family of the reserved address.
    fn claim(
        &mut self,
        now: Instant,
        request: &Authenticated<'_, '_>,
        token: Option<Token>,
    ) -> Result<(Arc<RelayAddress>, u16, Ticket), Rejection> {
        let token = token.ok_or(NO_RESERVATION)?;
        let (address, reserved) = self.snapshot.relays.reserved(token).ok_or(NO_RESERVATION)?;
        let address = Arc::clone(address);
        if address.bind().is_ipv6() {
            check_dont_fragment(request)?;
        }
        // Any user can claim a token, but an allocation counts for the user who makes it.
        let same_user = self.ledger.quota.is_of(reserved, request.identity.user());
        let own = if same_user { None } else { Some(self.admit(request)?) };
        let counted = own.as_ref().map_or(reserved, Ticket::word);
        self.admit_rate(now, request, counted)?;
        let claimed = address.reservations.claim(token, &self.ledger.quota).ok_or(NO_RESERVATION)?;
        Ok((address, token.port(), own.unwrap_or(claimed)))
    }

    /// Adds an allocation that has no address yet to the table.
    fn begin(&mut self, now: Instant, request: &Authenticated<'_, '_>, ticket: Ticket, start: Start) -> AllocationId {
        let opening = Opening {
            attempts: 0,
            context: request.context,
            deadline: start.deadline,
            preference: start.preference,
            next: start.next,
            failed: None,
            claimed: start.claimed,
            gone: Vec::new(),
            reserve: start.reserve,
        };
        self.table.insert(Allocation {
            tuple: request.tuple,
            relays: Relays::default(),
            state: State::Opening(Box::new(opening)),
            transaction: request.context.transaction,
            identity: Rc::clone(&request.identity),
            created: now,
            address_error: None,
            token: None,
            permissions: Permissions::default(),
            channels: Channels::default(),
            traffic: Traffic::default(),
            drops: Drops::default(),
            icmp: IcmpBudget::default(),
            shows_rfc8656: request.context.shows_rfc8656,
            credentials_removed: false,
            ticket,
            meter: Meter::UNUSED,
        })
    }

    /// Takes a port for a socket of `family`. If that fails, continues with the next family. `None` if no family is
    /// left.
    fn next_socket(&mut self, cx: &mut Context<'_>, id: AllocationId, mut family: AddressFamily) -> Option<SocketSpec> {
        loop {
            let allocation = self.table.get(id)?;
            let State::Opening(opening) = &allocation.state else { return None };
            match self.take_port(cx, family, allocation.tuple.server.ip(), opening) {
                Ok((address, port)) => return self.request_socket(id, address, port),
                Err(failure) => {
                    let (opening, _) = self.table.get_mut(id)?.opening()?;
                    family = opening.fail(family, failure)?;
                }
            }
        }
    }

    /// Requests a socket on a port that the caller holds.
    fn request_socket(&mut self, id: AllocationId, address: Arc<RelayAddress>, port: u16) -> Option<SocketSpec> {
        let (opening, relays) = self.table.get_mut(id)?.opening()?;
        opening.attempts += 1;
        let relay = Relay::new(address, port, opening.deadline, SocketState::Opening);
        let bind = relay.bind();
        let index = relays.set(relay);
        Some(SocketSpec { socket: id.socket(index), kind: SocketKind::Udp, bind })
    }

    /// Continues an Allocate request with the result of opening a relay socket.
    ///
    /// A response is written to `response`, as in [`client_packet`](Self::client_packet).
    pub fn socket_opened(
        &mut self,
        cx: &mut Context<'_>,
        open: &SocketSpec,
        result: Result<(), OpenError>,
        response: &mut [u8],
    ) -> Opened {
        let (id, index, family) = (open.socket.allocation(), open.socket.index(), AddressFamily::from(&open.bind));
        // The allocation may have expired while its socket was being opened.
        if self.table.get(id).is_some_and(|allocation| allocation.has_ended(cx.now)) {
            self.end(id, cx.now, EndReason::Expired);
        }
        let server = self.table.get(id).map(|allocation| allocation.tuple.server.ip());
        let opening = self.table.get_mut(id).and_then(Allocation::opening);
        let (Some(server), Some((opening, relays))) = (server, opening) else {
            self.abandoned_socket(open.bind, result, cx.now);
            return Opened::Abandoned;
        };
        let next = match result {
            Ok(()) => {
                if let Some(relay) = relays.at_mut(index) {
                    relay.socket = SocketState::Open;
                    relay.address.set_live(relay.port, true);
                }
                opening.next_family()
            }
            Err(error) => {
                let removed = relays.remove(index);
                if let Some(relay) = &removed {
                    release_next(opening.preference, &relay.address, relay.port);
                    give_back(&relay.address, relay.port, error, cx.now);
                }
                if let (OpenError::AddressGone, Some(relay)) = (error, removed) {
                    opening.gone.push(relay.address);
                }
                match error {
                    OpenError::PortInUse if opening.claimed => opening.fail(family, AllocateFailure::ReservedPortInUse),
                    OpenError::PortInUse if opening.attempts < ATTEMPTS => Some(family),
                    OpenError::PortInUse => opening.fail(family, AllocateFailure::Limit(Limit::PortsInUse)),
                    OpenError::AddressGone
                        if !opening.claimed
                            && opening.attempts < ATTEMPTS
                            && candidates(&self.snapshot.relays, family, server, &opening.gone).next().is_some() =>
                    {
                        Some(family)
                    }
                    OpenError::AddressGone => opening.fail(family, AllocateFailure::Limit(Limit::RelayAddress)),
                    OpenError::Other => opening.fail(family, AllocateFailure::Limit(Limit::Sockets)),
                }
            }
        };
        match next.and_then(|family| self.next_socket(cx, id, family)) {
            Some(next) => Opened::Open(next),
            None => self.finish_allocate(cx, id, response),
        }
    }

    /// Responds when all sockets are open or have failed: with a success response if at least one socket is open.
    fn finish_allocate(&mut self, cx: &mut Context<'_>, id: AllocationId, response: &mut [u8]) -> Opened {
        let Some(allocation) = self.table.get_mut(id) else { return Opened::Abandoned };
        let Some((address, port)) =
            allocation.relays.iter().next().map(|relay| (Arc::clone(&relay.address), relay.port))
        else {
            return self.reject_allocate(cx, id, response);
        };
        let State::Opening(opening) = std::mem::replace(&mut allocation.state, State::Open) else {
            return Opened::Abandoned;
        };
        let Opening { context, failed, reserve, .. } = *opening;
        let token = reserve.and_then(|ticket| self.reserve_next(cx, address, port, ticket));
        let Some(allocation) = self.table.get_mut(id) else { return Opened::Abandoned };
        allocation.token = token;
        // Step 9: the response names the family that could not be allocated.
        allocation.address_error = failed.map(|(family, failure)| (family, failure.rejection().code().code()));
        let success = allocated(allocation, cx.now);
        self.gauges.add(allocation);
        self.actions.push_back(Action::Log(Event::AllocationCreated {
            id,
            user: allocation.identity.user().to_owned(),
            tuple: allocation.tuple,
            relay: allocation.relays.advertised(),
            lifetime: allocation.relays.seconds_left(cx.now),
        }));
        match response::success(response, &context, allocation.identity.key(), &success) {
            Ok(response) => Opened::Respond(allocation.tuple, response),
            Err(_) => {
                self.end(id, cx.now, EndReason::Deleted);
                Opened::Abandoned
            }
        }
    }

    /// Reserves the port next to an even one for the client that presents the token.
    fn reserve_next(
        &mut self,
        cx: &mut Context<'_>,
        address: Arc<RelayAddress>,
        even: u16,
        ticket: Ticket,
    ) -> Option<Token> {
        match address.reservations.reserve(even | 1, ticket, cx.rng) {
            Ok(token) => {
                self.remember_reservation(Deadline::after(cx.now, RESERVATION), token, address);
                Some(token)
            }
            Err(_ticket) => {
                release_next(PortPreference::EvenAndNext, &address, even);
                None
            }
        }
    }

    fn reject_allocate(&mut self, cx: &Context<'_>, id: AllocationId, response: &mut [u8]) -> Opened {
        let Some(Failed { tuple, identity, context, rejection }) = self.abandon(id) else { return Opened::Abandoned };
        match self.reject(cx, &tuple, &context, Some(identity.key()), &rejection, response) {
            FromClient::Respond(response) => Opened::Respond(tuple, response),
            _ => Opened::Abandoned,
        }
    }

    /// Removes an allocation for which no socket can be opened.
    fn abandon(&mut self, id: AllocationId) -> Option<Failed> {
        let Allocation { tuple, identity, state, .. } = self.table.remove(id)?;
        let State::Opening(opening) = state else { return None };
        let context = opening.context;
        let rejection = self.redirect_or_reject(identity.user(), tuple, context.transaction, opening.failure());
        Some(Failed { tuple, identity, context, rejection })
    }

    /// Takes a free port of one of the relay addresses of a family. The first one is the address at which the client
    /// reaches the server, because its peers may reach no other; otherwise a random one.
    fn take_port(
        &self,
        cx: &mut Context<'_>,
        family: AddressFamily,
        server: IpAddr,
        opening: &Opening,
    ) -> Result<(Arc<RelayAddress>, u16), AllocateFailure> {
        let (relays, preference) = (&self.snapshot.relays, opening.preference);
        if relays.of_family(family).next().is_none() {
            return Err(AllocateFailure::NoAddressOfFamily);
        }
        let usable = candidates(relays, family, server, &opening.gone);
        let count = usable.clone().count();
        if count == 0 {
            return Err(AllocateFailure::AddressGone);
        }
        if let Some(address) = usable.clone().find(|address| address.bind() == server) {
            for resting in [Resting::Excluded, Resting::Included] {
                if let Some(port) = address.ports.take(cx.now, preference, resting, cx.rng) {
                    return Ok((Arc::clone(address), port));
                }
            }
        }
        let first = cx.rng.random_range(0..count);
        for resting in [Resting::Excluded, Resting::Included] {
            for address in usable.clone().cycle().skip(first).take(count) {
                if let Some(port) = address.ports.take(cx.now, preference, resting, cx.rng) {
                    return Ok((Arc::clone(address), port));
                }
            }
        }
        let in_use = usable.clone().any(|address| address.ports.in_use_elsewhere(cx.now) > 0);
        Err(if in_use { AllocateFailure::Limit(Limit::PortsInUse) } else { AllocateFailure::NO_PORT })
    }
}

/// Returns the relay addresses of a family that a client at `server` may get, except those that have gone.
fn candidates<'a>(
    relays: &'a RelayAddresses,
    family: AddressFamily,
    server: IpAddr,
    gone: &'a [Arc<RelayAddress>],
) -> impl Iterator<Item = &'a Arc<RelayAddress>> + Clone {
    relays.of_family(family).filter(move |address| {
        let allowed = address.is_usable() && (address.is_for_all() || address.bind() == server);
        allowed && !gone.iter().any(|gone| Arc::ptr_eq(gone, address))
    })
}

/// The initial state of an allocation.
struct Start {
    deadline: Deadline,
    preference: PortPreference,
    next: Option<AddressFamily>,
    reserve: Option<Ticket>,
    claimed: bool,
}

/// An allocation that could not be made, and the rejection of its request.
struct Failed {
    tuple: FiveTuple,
    identity: Rc<Identity>,
    context: ResponseContext,
    rejection: Rejection,
}

impl Opening {
    /// Continues with the next family.
    fn next_family(&mut self) -> Option<AddressFamily> {
        self.attempts = 0;
        self.next.take()
    }

    /// Records why a family failed, and continues with the next one.
    fn fail(&mut self, family: AddressFamily, failure: AllocateFailure) -> Option<AddressFamily> {
        self.failed.get_or_insert((family, failure));
        self.next_family()
    }

    /// Returns why no socket could be opened.
    fn failure(&self) -> AllocateFailure {
        self.failed.map_or(AllocateFailure::NO_PORT, |(_, failure)| failure)
    }
}

/// RFC 8656 §3.7: a socket does not report whether a received IPv4 datagram had DF set. Therefore DONT-FRAGMENT → 420,
/// as in step 4, if data may be relayed to IPv6 peers.
fn check_dont_fragment(request: &Authenticated<'_, '_>) -> Result<(), Rejection> {
    let FiveTuple { client, transport, .. } = request.tuple;
    let asked = request.message.contains(AttributeType::DONT_FRAGMENT);
    if asked && client.is_ipv4() && transport.carries_ip_fields() {
        return Err(Rejection::unknown_attributes(AttributeType::DONT_FRAGMENT, std::iter::empty()));
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
