//! Allocate (RFC 8656 §7.2).

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt as _;

use super::super::allocation::{Allocation, Channels, Opening, Permissions, State};
use super::super::contract::{Action, Context, Event, FromClient, OpenError, OpenRelay, Opened, RelayId};
use super::super::policy::is_tunneled;
use super::super::ports::PortPool;
use super::super::quota::QuotaExceeded;
use super::super::reply::{self, Answering, Reject, Success};
use super::super::request::{Accepted, Authenticated, optional, required};
use super::super::server::Server;
use super::super::time::{Deadline, Instant};
use super::super::{DEFAULT_LIFETIME, EndReason, MAXIMUM_LIFETIME};
use super::FORBIDDEN;
use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, EvenPort, Lifetime, RequestedAddressFamily, RequestedTransport,
};
use crate::stun::{AttributeError, ErrorCode, Message};

/// How many ports are tried that somebody else turns out to have.
const ATTEMPTS: u8 = 16;

/// What an Allocate request asks for.
struct Wanted {
    family: AddressFamily,
    /// An IPv6 address besides.
    additional: bool,
    even_port: bool,
    /// The port next to the even one, to be kept for another allocation.
    reserve_next: bool,
    lifetime: Duration,
}

impl Wanted {
    fn parse(message: &Message<'_>) -> Result<Self, Reject> {
        // Step 3: missing or malformed → 400, no UDP → 442.
        let transport: RequestedTransport = required(message)?;
        if transport != RequestedTransport::UDP {
            let code = ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL;
            return Err(Reject::new(code, "Unsupported Transport Protocol"));
        }
        // Steps 6 and 7. An unknown family is one that is not supported.
        let requested = match message.get::<RequestedAddressFamily>() {
            Ok(requested) => requested.map(|RequestedAddressFamily(family)| family),
            Err(AttributeError::UnknownFamily) => return Err(NO_SUCH_FAMILY),
            Err(_) => return Err(Reject::new(ErrorCode::BAD_REQUEST, "Malformed Attribute")),
        };
        let additional = match optional(message)? {
            None => false,
            Some(AdditionalAddressFamily(AddressFamily::V6)) if requested.is_none() => true,
            // Step 6: both attributes → 400. Step 9: the IPv4 family → 400.
            Some(AdditionalAddressFamily(_)) => {
                return Err(Reject::new(ErrorCode::BAD_REQUEST, "Bad ADDITIONAL-ADDRESS-FAMILY"));
            }
        };
        // Step 8: a reservation and an additional family → 400.
        let even_port: Option<EvenPort> = optional(message)?;
        let reserve_next = even_port.is_some_and(|even_port| even_port.reserve_next);
        if reserve_next && additional {
            return Err(Reject::new(ErrorCode::BAD_REQUEST, "Bad EVEN-PORT"));
        }
        let lifetime = optional(message)?.map_or(DEFAULT_LIFETIME, |Lifetime(seconds)| seconds);
        let lifetime = Duration::from_secs(lifetime.clamp(DEFAULT_LIFETIME, MAXIMUM_LIFETIME).into());
        let (family, even_port) = (requested.unwrap_or(AddressFamily::V4), even_port.is_some());
        Ok(Self { family, additional, even_port, reserve_next, lifetime })
    }
}

const NO_SUCH_FAMILY: Reject = Reject::new(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED, "Address Family not Supported");

/// A limit that stands in the way, with what to tell the client and the operator.
struct Limit {
    reject: Reject,
    note: &'static str,
}

const USER_LIMIT: Limit = Limit {
    reject: Reject::new(ErrorCode::ALLOCATION_QUOTA_REACHED, "Allocation Quota Reached"),
    note: "the user has as many allocations as limits.allocations-per-user allows",
};
const SERVER_LIMIT: Limit = Limit {
    reject: Reject::new(ErrorCode::INSUFFICIENT_CAPACITY, "Insufficient Capacity: allocations"),
    note: "the server has as many allocations as limits.allocations allows",
};
const NO_PORT: Limit = Limit {
    reject: Reject::new(ErrorCode::INSUFFICIENT_CAPACITY, "Insufficient Capacity: relay ports"),
    note: "no relay port is free: widen relay.ports",
};
const PORTS_IN_USE: Limit = Limit {
    reject: Reject::new(ErrorCode::INSUFFICIENT_CAPACITY, "Insufficient Capacity: relay ports"),
    note: "no relay port is free, and other programs have some of them: give this server relay.ports of its own; \
           ports that others had are tried again after a minute",
};
const TUNNELED: Limit = Limit {
    reject: FORBIDDEN,
    note: "the client comes from a Teredo or 6to4 address, which RFC 8656 §21.4 has no allocation for",
};
const DRAINING: Limit = Limit {
    reject: Reject::new(ErrorCode::INSUFFICIENT_CAPACITY, "Server is shutting down"),
    note: "the server is shutting down: it ends with its last allocation",
};
const NO_SOCKET: Limit = Limit {
    reject: Reject::new(ErrorCode::INSUFFICIENT_CAPACITY, "Insufficient Capacity: sockets"),
    note: "the kernel refuses another relay socket: raise the limit of open files (LimitNOFILE), or see whether the \
           relay address is still on this machine",
};

impl Server {
    /// Whether the request is the one that made the allocation of its 5-tuple, once more.
    pub(in crate::turn) fn is_retransmission(&self, now: Instant, request: &Authenticated<'_, '_>) -> bool {
        let allocation = self.table.find(&request.tuple).and_then(|id| self.table.get(id));
        allocation.is_some_and(|allocation| {
            let transaction = request.message.transaction_id();
            !allocation.deadline.has_passed(now) && allocation.was_made_by(transaction, request.username)
        })
    }

    pub(in crate::turn) fn allocate(
        &mut self,
        cx: &mut Context<'_>,
        request: &Authenticated<'_, '_>,
    ) -> Result<Accepted, Reject> {
        let answering = Answering::to(request.message);
        // Step 2: the 5-tuple has an allocation → 437, unless this is the request that made it, once more.
        if let Some(id) = self.table.find(&request.tuple) {
            match self.table.get(id).filter(|allocation| !allocation.deadline.has_passed(cx.now)) {
                Some(allocation) if allocation.was_made_by(answering.transaction, request.username) => {
                    return Ok(match allocation.state {
                        State::Opening(_) => Accepted::Pending,
                        State::Open => {
                            let no_additional_family = Wanted::parse(request.message)?.additional;
                            Accepted::Success(allocated(allocation, cx, no_additional_family))
                        }
                    });
                }
                Some(_) => return Err(Reject::new(ErrorCode::ALLOCATION_MISMATCH, "Allocation Mismatch")),
                None => self.end(id, cx.now, EndReason::Expired),
            }
        }
        if is_tunneled(request.tuple.client.ip()) {
            return Err(self.limited(request, &TUNNELED));
        }
        if self.shared.draining.load(Ordering::Relaxed) {
            return Err(self.limited(request, &DRAINING));
        }
        let wanted = Wanted::parse(request.message)?;
        // Step 7: a family that no relay address has → 440.
        let relays = self.relays_of(wanted.family);
        if relays.is_empty() {
            return Err(NO_SUCH_FAMILY);
        }
        // Step 8: next to an even port none is ever reserved here, which is the 508 of a server that cannot satisfy it.
        if wanted.reserve_next {
            return Err(Reject::new(ErrorCode::INSUFFICIENT_CAPACITY, "Insufficient Capacity: no reservations"));
        }
        // Step 10: 486.
        let ticket = match self.shared.quota.admit(request.identity.user) {
            Ok(ticket) => ticket,
            Err(QuotaExceeded::User) => return Err(self.limited(request, &USER_LIMIT)),
            Err(QuotaExceeded::Server) => return Err(self.limited(request, &SERVER_LIMIT)),
        };
        let Some((bind, relayed)) = self.take_port(cx, &relays, wanted.even_port) else {
            self.shared.quota.release(ticket);
            return Err(self.limited(request, self.out_of_ports(&relays)));
        };
        let relay = self.table.insert(Allocation {
            tuple: request.tuple,
            bind,
            relayed,
            state: State::Opening(Box::new(Opening {
                attempts: 1,
                answering,
                key: request.identity.key.clone(),
                no_additional_family: wanted.additional,
                even_port: wanted.even_port,
            })),
            transaction: answering.transaction,
            username: request.username.into(),
            user: request.identity.user.into(),
            created: cx.now,
            deadline: Deadline::after(cx.now, wanted.lifetime),
            permissions: Permissions::default(),
            channels: Channels::default(),
            bytes_to_peers: 0,
            bytes_to_client: 0,
            ticket,
        });
        Ok(Accepted::Open(OpenRelay { relay, bind }))
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
            Err(OpenError::PortInUse) => {
                if let Some(pool) = self.pool_mut(open.bind.ip()) {
                    pool.set_aside(open.bind.port(), cx.now);
                }
            }
            Err(OpenError::Other) => self.give_back(open.bind),
        }
        // An allocation whose time came while its socket was being opened is gone, whether it was swept or not.
        if self.table.get(open.relay).is_some_and(|allocation| allocation.deadline.has_passed(cx.now)) {
            self.end(open.relay, cx.now, EndReason::Expired);
        }
        let opening = match self.table.get_mut(open.relay).map(|allocation| &mut allocation.state) {
            Some(State::Opening(opening)) => opening,
            Some(State::Open) | None => {
                if result.is_ok() {
                    self.count_abandoned();
                }
                return Opened::Abandoned;
            }
        };
        match result {
            Ok(()) => self.opened(cx, open.relay, reply),
            Err(OpenError::PortInUse) if opening.attempts < ATTEMPTS => {
                opening.attempts += 1;
                let even_port = opening.even_port;
                self.try_another(cx, open, even_port, reply)
            }
            Err(OpenError::PortInUse) => self.not_opened(cx, open.relay, &PORTS_IN_USE, reply),
            Err(OpenError::Other) => self.not_opened(cx, open.relay, &NO_SOCKET, reply),
        }
    }

    fn opened(&mut self, cx: &Context<'_>, relay: RelayId, reply: &mut [u8]) -> Opened {
        let Some(allocation) = self.table.get_mut(relay) else { return Opened::Abandoned };
        let State::Opening(opening) = std::mem::replace(&mut allocation.state, State::Open) else {
            return Opened::Abandoned;
        };
        self.shared.live.set(allocation.bind, true);
        let success = allocated(allocation, cx, opening.no_additional_family);
        self.actions.push_back(Action::Log(Event::AllocationCreated {
            user: allocation.user.to_string(),
            tuple: allocation.tuple,
            relay: allocation.relayed,
            lifetime: allocation.deadline.seconds_left(cx.now),
        }));
        match reply::success(reply, &opening.answering, &opening.key, &success) {
            Ok(reply) => Opened::Reply(allocation.tuple, reply),
            Err(_) => {
                self.end(relay, cx.now, EndReason::Deleted);
                Opened::Abandoned
            }
        }
    }

    fn try_another(&mut self, cx: &mut Context<'_>, failed: &OpenRelay, even_port: bool, reply: &mut [u8]) -> Opened {
        let family = AddressFamily::of(failed.bind.ip());
        let relays = self.relays_of(family);
        let Some((bind, relayed)) = self.take_port(cx, &relays, even_port) else {
            return self.not_opened(cx, failed.relay, self.out_of_ports(&relays), reply);
        };
        match self.table.get_mut(failed.relay) {
            Some(allocation) => (allocation.bind, allocation.relayed) = (bind, relayed),
            None => {
                self.give_back(bind);
                return Opened::Abandoned;
            }
        }
        Opened::Open(OpenRelay { relay: failed.relay, bind })
    }

    fn not_opened(&mut self, cx: &Context<'_>, relay: RelayId, limit: &Limit, reply: &mut [u8]) -> Opened {
        let Some(allocation) = self.table.remove(relay) else { return Opened::Abandoned };
        self.shared.quota.release(allocation.ticket);
        let State::Opening(opening) = allocation.state else { return Opened::Abandoned };
        let (user, tuple) = (allocation.user.into(), allocation.tuple);
        self.actions.push_back(Action::Log(Event::AllocationRefused { user, tuple, limit: limit.note }));
        match self.rejected(cx, &tuple, &opening.answering, Some(&opening.key), &limit.reject, reply) {
            FromClient::Reply(reply) => Opened::Reply(tuple, reply),
            _ => Opened::Abandoned,
        }
    }

    /// A free port of one of the relay addresses, beginning at a random one of them: where to bind the socket, and what
    /// to tell the client.
    fn take_port(&mut self, cx: &mut Context<'_>, relays: &[usize], even: bool) -> Option<(SocketAddr, SocketAddr)> {
        if relays.is_empty() {
            return None;
        }
        let first = cx.rng.random_range(0..relays.len());
        let (behind, ahead) = relays.split_at_checked(first)?;
        ahead.iter().chain(behind).find_map(|at| {
            let (relay, pool) = (self.settings.relays.get(*at)?, self.pools.get_mut(*at)?);
            let port = pool.take(cx.now, even, cx.rng)?;
            Some((SocketAddr::new(relay.bind, port), SocketAddr::new(relay.advertised, port)))
        })
    }

    fn out_of_ports(&self, relays: &[usize]) -> &'static Limit {
        let others_have_some = relays.iter().any(|at| self.pools.get(*at).is_some_and(PortPool::has_set_aside));
        if others_have_some { &PORTS_IN_USE } else { &NO_PORT }
    }

    fn relays_of(&self, family: AddressFamily) -> Vec<usize> {
        let relays = (0..).zip(&self.settings.relays);
        relays.filter(|(_, relay)| AddressFamily::of(relay.bind) == family).map(|(at, _)| at).collect()
    }

    fn limited(&mut self, request: &Authenticated<'_, '_>, limit: &Limit) -> Reject {
        let (user, tuple) = (request.identity.user.to_owned(), request.tuple);
        self.actions.push_back(Action::Log(Event::AllocationRefused { user, tuple, limit: limit.note }));
        limit.reject
    }
}

fn allocated(allocation: &Allocation, cx: &Context<'_>, no_additional_family: bool) -> Success {
    Success::Allocated {
        relayed: allocation.relayed,
        mapped: allocation.tuple.client,
        lifetime: allocation.deadline.seconds_left(cx.now),
        no_additional_family,
    }
}
