//! The TURN server of one worker: its state, its sockets and the expiry of allocations.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::contract::{Action, AllocationId, FiveTuple, OpenError, SocketId};
use super::database::DatabaseUsers;
use super::event::{AllocationSummary, EndReason, Event};
use super::gauges::Gauges;
use super::protocol::framing::{self, Frame};
use super::protocol::response_limit::ResponseBudget;
use super::reconfigure::Review;
use super::shared::ledger::Ledger;
use super::shared::ports::PortPreference;
use super::shared::relay_address::RelayAddress;
use super::shared::reservations::Token;
use super::shared::snapshot::Snapshot;
use super::tables::allocation::{Allocation, State};
use super::tables::relays::{Relay, SocketState};
use super::tables::table::Table;
use super::time::{Deadline, Instant};
use crate::auth::IdentityCache;
use crate::stun::attribute::AddressFamily;

/// A port that this worker holds: the address to which the socket is bound, and the relay address with the port.
type HeldPort = (SocketAddr, Arc<RelayAddress>);

/// The TURN server of one worker.
#[derive(Debug)]
pub struct Server {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) table: Table,
    pub(crate) actions: VecDeque<Action>,
    /// The ports of the relay sockets that the shell must close and has not reported closed.
    closing: VecDeque<HeldPort>,
    /// The ports of the relay sockets that the shell opens for allocations that have ended.
    abandoned: Vec<HeldPort>,
    /// The reservations that this worker has made, in the order in which they expire. Some may have been claimed: see
    /// [`remember_reservation`](Self::remember_reservation).
    pub(crate) reserved: VecDeque<(Deadline, Token, Arc<RelayAddress>)>,
    pub(crate) responses: ResponseBudget,
    pub(crate) identity_cache: IdentityCache,
    /// What is known about the users of the user database.
    pub(crate) database: DatabaseUsers,
    pub(crate) review: Review,
    /// The number of channels that are routes.
    pub(crate) routes: usize,
    /// The other gauges.
    pub(crate) gauges: Gauges,
}

/// The number of reservations for which there is room once one has been made.
const FEWEST_RESERVED: usize = 16;

/// The number of actions after which others are left for later. Each may take the shell several microseconds.
const MANY_ACTIONS: usize = 512;

impl Server {
    /// Creates a server without allocations.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, ledger: Arc<Ledger>) -> Self {
        Self {
            responses: ResponseBudget::default(),
            review: Review::new(&snapshot.limits),
            table: Table::new(ledger.table_room()),
            database: DatabaseUsers::new(snapshot.database.as_ref()),
            snapshot,
            ledger,
            actions: VecDeque::new(),
            closing: VecDeque::new(),
            abandoned: Vec::new(),
            reserved: VecDeque::new(),
            identity_cache: IdentityCache::new(),
            routes: 0,
            gauges: Gauges::default(),
        }
    }

    /// Examines the start of a byte stream.
    #[must_use]
    pub fn next_frame(&self, bytes: &[u8]) -> Frame {
        framing::next_frame(bytes, self.snapshot.compat.channels)
    }

    /// Ends the allocation of a client whose connection is closed (RFC 8656 §3.1).
    pub fn connection_closed(&mut self, now: Instant, tuple: &FiveTuple) {
        self.database.abandon(tuple);
        if let Some(id) = self.table.find(tuple) {
            self.end(id, now, EndReason::ConnectionClosed);
        }
    }

    /// Returns the allocation of a 5-tuple, in any state.
    #[must_use]
    pub fn allocation_of(&self, tuple: &FiveTuple) -> Option<AllocationId> {
        self.table.find(tuple)
    }

    /// Ends allocations, permissions, channels and reservations that have expired, of up to `most` allocations, fewer if
    /// that causes many actions. Returns whether there may be more. Call it about once per second, until it returns `false`.
    ///
    /// What has expired has no effect, even before this call.
    pub fn advance(&mut self, now: Instant, most: usize) -> bool {
        for _ in 0..most {
            if self.has_many_actions() {
                return true;
            }
            let Some(id) = self.table.pop_due(now) else {
                self.end_reservations(now);
                return false;
            };
            self.expire(id, now);
        }
        true
    }

    fn end_reservations(&mut self, now: Instant) {
        while let Some((_, token, address)) = self.reserved.pop_front_if(|(deadline, ..)| deadline.has_passed(now)) {
            self.unreserve(token, &address);
        }
    }

    fn expire(&mut self, id: AllocationId, now: Instant) {
        let Some(allocation) = self.table.get(id) else { return };
        if allocation.has_ended(now) {
            return self.end(id, now, EndReason::Expired);
        }
        let expired = |relay: &&Relay| relay.socket == SocketState::Open && relay.deadline.has_passed(now);
        let expired = allocation.relays.iter().find(expired).map(Relay::family);
        match expired {
            Some(family) => self.end_relay(id, family, now, EndReason::Expired),
            None => {
                self.remove_expired(id, now);
                self.table.reschedule(id);
            }
        }
    }

    /// Ends every allocation and every reservation.
    pub fn stop(&mut self, now: Instant) {
        self.abandon_waiting();
        while let Some(id) = self.table.any() {
            self.end(id, now, EndReason::ServerStopped);
        }
        while let Some((_, token, address)) = self.reserved.pop_front() {
            self.unreserve(token, &address);
        }
    }

    /// Returns the next action that an input requires in addition to its decision. Call it after every input until it
    /// returns `None`.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Reports that a relay socket is closed, so that its port can be bound again.
    pub fn socket_closed(&mut self, bind: SocketAddr) {
        let at = self.closing.iter().position(|(closing, _)| *closing == bind);
        debug_assert!(at.is_some(), "a socket is reported closed once");
        if let Some((_, address)) = at.and_then(|at| self.closing.remove(at)) {
            address.ports.release(bind.port());
        }
    }

    /// Returns the number of allocations of this worker, including those whose relay socket is being opened.
    #[must_use]
    pub fn allocation_count(&self) -> usize {
        self.table.len()
    }

    /// Whether [`next_action`](Self::next_action) returns an action.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Whether so many actions wait that they are carried out before more are caused.
    pub(crate) fn has_many_actions(&self) -> bool {
        self.actions.len() >= MANY_ACTIONS
    }

    /// Returns the allocations whose end [`next_action`](Self::next_action) will report.
    pub fn ended_allocations(&self) -> impl Iterator<Item = (AllocationId, FiveTuple)> + '_ {
        self.actions.iter().filter_map(|action| match action {
            Action::Log(Event::AllocationEnded(summary)) => Some((summary.id, summary.tuple)),
            _ => None,
        })
    }

    /// Returns the number of channels that are routes.
    #[must_use]
    pub fn route_count(&self) -> usize {
        self.routes
    }

    pub(crate) fn end(&mut self, id: AllocationId, now: Instant, reason: EndReason) {
        self.remove_routes(id);
        let Some(allocation) = self.table.remove(id) else { return };
        self.gauges.subtract(&allocation);
        for (index, relay) in allocation.relays.indexed() {
            match (relay.socket, &allocation.state) {
                (SocketState::Open, _) => self.close(id.socket(index), relay, now),
                // The shell has not reported on this socket yet, so only the reserved next port is released here.
                (SocketState::Opening, State::Opening(opening)) => {
                    release_next(opening.preference, &relay.address, relay.port);
                    self.abandoned.push((relay.bind(), Arc::clone(&relay.address)));
                }
                _ => {}
            }
        }
        // The end of an allocation that is still being opened is not logged, because the client does not know of it.
        if let State::Open = allocation.state {
            self.actions.push_back(Action::Log(Event::AllocationEnded(Box::new(AllocationSummary {
                id,
                user: allocation.identity.user().to_owned(),
                tuple: allocation.tuple,
                relay: allocation.relays.advertised(),
                duration: now.since(allocation.created),
                traffic: allocation.traffic,
                reason,
            }))));
        }
    }

    /// Ends one relayed transport address with its permissions and channels (RFC 8656 §8.1). Ends the allocation if it
    /// was the last one.
    pub(crate) fn end_relay(&mut self, id: AllocationId, family: AddressFamily, now: Instant, reason: EndReason) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        if !allocation.relays.iter().any(|relay| relay.family() != family && relay.is_live(now)) {
            return self.end(id, now, reason);
        }
        self.gauges.subtract(allocation);
        let found = allocation.relays.indexed().find(|(_, relay)| relay.family() == family).map(|(index, _)| index);
        let closed = found.and_then(|index| {
            let relay = allocation.relays.at_mut(index)?;
            relay.socket = SocketState::Closed;
            Some((index, relay.clone()))
        });
        self.gauges.add(allocation);
        if let Some((index, relay)) = closed {
            self.remove_expired(id, now);
            self.close(id.socket(index), &relay, now);
        }
        self.table.reschedule(id);
    }

    fn close(&mut self, socket: SocketId, relay: &Relay, now: Instant) {
        let bind = relay.bind();
        relay.address.set_live(relay.port, false);
        relay.address.ports.rest(relay.port, now);
        self.closing.push_back((bind, Arc::clone(&relay.address)));
        self.actions.push_back(Action::Close { socket, bind });
    }

    /// Handles the result of opening a socket for an allocation that has ended. The shell closes the socket if it is
    /// open.
    pub(crate) fn abandoned_socket(&mut self, bind: SocketAddr, result: Result<(), OpenError>, now: Instant) {
        let at = self.abandoned.iter().position(|(abandoned, _)| *abandoned == bind);
        debug_assert!(at.is_some(), "a result is reported once");
        let Some(at) = at else { return };
        let (_, address) = self.abandoned.swap_remove(at);
        match result {
            Ok(()) => self.closing.push_back((bind, address)),
            Err(error) => give_back(&address, bind.port(), error, now),
        }
    }

    /// Remembers a reservation, to end it in time. If this needs more memory, it first forgets the reservations that have
    /// been claimed, so that the memory is for at most four times as many as are not, or for 32.
    pub(crate) fn remember_reservation(&mut self, until: Deadline, token: Token, address: Arc<RelayAddress>) {
        if self.reserved.len() == self.reserved.capacity() {
            self.reserved.retain(|(_, token, address)| address.reservations.find(*token).is_some());
            // There is room for as many more, so that the search is rare.
            self.reserved.reserve(self.reserved.len().max(FEWEST_RESERVED));
        }
        self.reserved.push_back((until, token, address));
    }

    /// Ends a reservation, unless it has been claimed.
    fn unreserve(&mut self, token: Token, address: &RelayAddress) {
        if address.reservations.claim(token, &self.ledger.quota).is_some() {
            address.ports.release(token.port());
        }
    }

    /// Ends the reservations on relay addresses that have gone.
    pub(crate) fn unreserve_gone(&mut self) {
        for (deadline, token, address) in std::mem::take(&mut self.reserved) {
            if self.snapshot.relays.contains(&address) {
                self.reserved.push_back((deadline, token, address));
            } else {
                self.unreserve(token, &address);
            }
        }
    }

    /// Returns the number of ports that this worker holds for its allocations. The ports of reservations are not
    /// included. For tests.
    #[must_use]
    pub fn held_ports(&self) -> usize {
        let of = |allocation: &Allocation| {
            let relays = allocation.relays.iter().filter(|relay| relay.socket != SocketState::Closed).count();
            let pair = matches!(&allocation.state, State::Opening(opening) if opening.preference == PortPreference::EvenAndNext);
            relays * if pair { 2 } else { 1 }
        };
        self.table.iter().map(of).sum::<usize>() + self.closing.len() + self.abandoned.len()
    }

    /// Panics unless the tables are consistent. For tests, after every step.
    ///
    /// `opening` is the number of requested sockets whose result the shell has not reported.
    ///
    /// # Panics
    /// If an invariant does not hold.
    pub fn check_invariants(&self, opening: usize) {
        self.table.check_invariants();
        let channels = self.table.iter().flat_map(|allocation| allocation.channels.iter());
        let routes = channels.filter(|channel| channel.route().is_some()).count();
        assert_eq!(self.routes, routes, "every route is counted");
        self.check_gauges();
        let mut requested = self.abandoned.len();
        for allocation in self.table.iter() {
            self.review.check_caps(allocation);
            for Relay { address, port, socket, .. } in allocation.relays.iter() {
                let live = self.snapshot.relays.live(SocketAddr::new(address.advertised(), *port));
                match socket {
                    SocketState::Opening => requested += 1,
                    SocketState::Open if !self.snapshot.relays.contains(address) => {
                        assert!(self.review.is_pending(), "a relay address that has gone has no allocation");
                    }
                    SocketState::Open => assert!(live.is_some(), "an open relayed transport address is live"),
                    SocketState::Closed => continue,
                }
                assert!(address.ports.is_taken(*port), "the port of a relayed transport address is taken");
            }
        }
        for (bind, address) in self.closing.iter().chain(&self.abandoned) {
            assert!(address.ports.is_taken(bind.port()), "the port of a socket is taken until the socket is closed");
        }
        assert_eq!(requested, opening, "the result of each requested socket is awaited");
    }
}

/// Releases the port of a socket that could not be opened. If another program uses it, it is not tried again soon.
pub(crate) fn give_back(address: &RelayAddress, port: u16, error: OpenError, now: Instant) {
    match error {
        OpenError::PortInUse => address.ports.set_aside(port, now),
        OpenError::AddressGone | OpenError::Other => address.ports.release(port),
    }
}

/// Releases the next higher port of an even port, if the request reserves it.
pub(crate) fn release_next(preference: PortPreference, address: &RelayAddress, even: u16) {
    if preference == PortPreference::EvenAndNext {
        address.ports.release(even | 1);
    }
}
