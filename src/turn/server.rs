//! The TURN server of one worker: its state, its sockets and the expiry of allocations.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::contract::{Action, AllocationId, FiveTuple, SocketId};
use super::event::{AllocationSummary, EndReason, Event};
use super::protocol::framing::{self, Frame};
use super::reconfigure::Review;
use super::shared::ledger::Ledger;
use super::shared::reservations::Token;
use super::shared::snapshot::Snapshot;
use super::tables::allocation::State;
use super::tables::ports::{PortPool, PortPreference};
use super::tables::relays::{Relay, SocketState};
use super::tables::response_limit::ResponseLimit;
use super::tables::table::Table;
use super::time::{Deadline, Instant};
use crate::auth::IdentityCache;
use crate::stun::attribute::AddressFamily;

/// A relay address and those of its ports that a worker may use.
#[derive(Clone, Debug)]
pub struct RelayRange {
    /// The address that relay sockets are bound to.
    pub bind: IpAddr,
    /// The advertised address: what clients and peers use.
    pub advertised: IpAddr,
    /// Ports that no other worker uses.
    pub ports: RangeInclusive<u16>,
}

/// The TURN server of one worker.
#[derive(Debug)]
pub struct Server {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) relays: Vec<RelayRange>,
    /// In the order of `relays`.
    pub(crate) pools: Vec<PortPool>,
    pub(crate) table: Table,
    pub(crate) actions: VecDeque<Action>,
    /// The number of relay sockets that the shell must close and has not reported closed.
    closing: usize,
    /// The reservations of this worker in the order in which they expire. Some may have been claimed.
    pub(crate) reserved: VecDeque<(Deadline, Token, SocketAddr)>,
    /// The number of ports of other workers that this worker has claimed with reservation tokens.
    pub(crate) borrowed: usize,
    pub(crate) responses: ResponseLimit,
    pub(crate) identity_cache: IdentityCache,
    pub(crate) review: Review,
    /// The number of channels that are routes.
    pub(crate) routes: usize,
}

impl Server {
    /// Creates a server without allocations. `relays` are the relay addresses with the ports of this worker.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, ledger: Arc<Ledger>, relays: Vec<RelayRange>) -> Self {
        let pools = relays.iter().map(|relay| PortPool::new(relay.ports.clone())).collect();
        let ports = relays.iter().map(|relay| relay.ports.len()).sum();
        Self {
            responses: ResponseLimit::new(snapshot.limits.unverified_responses),
            review: Review::new(&snapshot.limits),
            snapshot,
            ledger,
            relays,
            pools,
            table: Table::new(ports),
            actions: VecDeque::new(),
            closing: 0,
            reserved: VecDeque::new(),
            borrowed: 0,
            identity_cache: IdentityCache::new(),
            routes: 0,
        }
    }

    /// Examines the start of a byte stream.
    #[must_use]
    pub fn next_frame(&self, bytes: &[u8]) -> Frame {
        framing::next_frame(bytes, self.snapshot.compat.channels)
    }

    /// Ends the allocation of a client whose connection is closed (RFC 8656 §3.1).
    pub fn connection_closed(&mut self, now: Instant, tuple: &FiveTuple) {
        if let Some(id) = self.table.find(tuple) {
            self.end(id, now, EndReason::ConnectionClosed);
        }
    }

    /// Whether a 5-tuple has an allocation.
    #[must_use]
    pub fn has_allocation(&self, tuple: &FiveTuple) -> bool {
        self.table.find(tuple).is_some()
    }

    /// Ends allocations, permissions, channels and reservations that have expired. Call it about once per second.
    pub fn advance(&mut self, now: Instant) {
        while let Some(id) = self.table.pop_due(now) {
            self.expire(id, now);
        }
        while let Some((_, token, bind)) = self.reserved.pop_front_if(|(deadline, ..)| deadline.has_passed(now)) {
            self.unreserve(token, bind);
        }
        (0..self.pools.len()).for_each(|at| self.collect_returned(at));
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
        while let Some(id) = self.table.any() {
            self.end(id, now, EndReason::ServerStopped);
        }
        while let Some((_, token, bind)) = self.reserved.pop_front() {
            self.unreserve(token, bind);
        }
    }

    /// Returns the next action that an input requires in addition to its decision. Call it after every input until it
    /// returns `None`.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Reports that a relay socket is closed, so that its port can be bound again.
    pub fn socket_closed(&mut self, bind: SocketAddr) {
        debug_assert!(self.closing > 0, "a socket is reported closed once");
        self.closing = self.closing.saturating_sub(1);
        self.release_port(bind);
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

    /// Returns the number of channels that are routes.
    #[must_use]
    pub fn route_count(&self) -> usize {
        self.routes
    }

    pub(crate) fn end(&mut self, id: AllocationId, now: Instant, reason: EndReason) {
        self.remove_routes(id);
        let Some(allocation) = self.table.remove(id) else { return };
        for (index, relay) in allocation.relays.indexed() {
            match (relay.socket, &allocation.state) {
                (SocketState::Open, _) => self.close(id.socket(index), relay),
                // The shell has not reported on this socket yet, so only the reserved next port is released here.
                (SocketState::Opening, State::Opening(opening)) => self.release_next(opening.preference, relay.bind()),
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
        let found = allocation.relays.indexed().find(|(_, relay)| relay.family() == family).map(|(index, _)| index);
        if let Some((index, relay)) = found.and_then(|index| Some((index, allocation.relays.at_mut(index)?))) {
            relay.socket = SocketState::Closed;
            let relay = *relay;
            self.remove_expired(id, now);
            self.close(id.socket(index), &relay);
        }
        self.table.reschedule(id);
    }

    fn close(&mut self, socket: SocketId, relay: &Relay) {
        self.ledger.live.set(relay.bind(), false);
        self.closing += 1;
        self.actions.push_back(Action::Close { socket, bind: relay.bind() });
    }

    /// Releases the port of a socket that is closed or was not opened.
    pub(crate) fn release_port(&mut self, bind: SocketAddr) {
        match self.pool_of(bind) {
            Some(pool) => pool.release(bind.port()),
            None => self.return_borrowed(bind),
        }
    }

    /// Sets aside a port that another program uses.
    pub(crate) fn set_aside(&mut self, bind: SocketAddr, now: Instant) {
        match self.pool_of(bind) {
            Some(pool) => pool.set_aside(bind.port(), now),
            None => self.return_borrowed(bind),
        }
    }

    fn return_borrowed(&mut self, bind: SocketAddr) {
        debug_assert!(self.borrowed > 0, "a port of another worker was claimed");
        self.borrowed = self.borrowed.saturating_sub(1);
        self.ledger.reservations.return_port(bind);
    }

    /// Releases the next higher port of an even port, if the request reserves it.
    pub(crate) fn release_next(&mut self, preference: PortPreference, even: SocketAddr) {
        let next = SocketAddr::new(even.ip(), even.port() | 1);
        if let (PortPreference::EvenAndNext, Some(pool)) = (preference, self.pool_of(next)) {
            pool.release_reserved(next.port());
        }
    }

    /// Ends a reservation of this worker, unless it has been claimed.
    pub(crate) fn unreserve(&mut self, token: Token, bind: SocketAddr) {
        let Some(_ticket) = self.ledger.reservations.claim(token, &self.ledger.quota) else { return };
        if let Some(pool) = self.pool_of(bind) {
            pool.release_reserved(bind.port());
        }
    }

    /// Takes back the ports of one relay address that other workers have returned.
    pub(crate) fn collect_returned(&mut self, at: usize) {
        if let (Some(relay), Some(pool)) = (self.relays.get(at), self.pools.get_mut(at)) {
            self.ledger.reservations.collect(relay.bind, &relay.ports, |port| pool.release_reserved(port));
        }
    }

    /// Returns the pool of a port if it is one of this worker's.
    pub(crate) fn pool_of(&mut self, bind: SocketAddr) -> Option<&mut PortPool> {
        let at = self.relays.iter().position(|relay| relay.bind == bind.ip())?;
        self.pools.get_mut(at).filter(|pool| pool.owns(bind.port()))
    }

    /// Counts a socket that the shell has opened for an allocation that has ended.
    pub(crate) fn count_abandoned(&mut self) {
        self.closing += 1;
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
        let mut open = 0;
        for allocation in self.table.iter() {
            self.review.check_caps(allocation);
            for relay in allocation.relays.iter().filter(|relay| relay.socket == SocketState::Open) {
                open += 1;
                let live = self.ledger.live.live(relay.advertised());
                assert!(live.is_some(), "an open relayed transport address is live");
                let at = self.relays.iter().position(|known| known.bind == relay.bind().ip());
                let pool = at.and_then(|at| self.pools.get(at)).expect("it is on one of the relay addresses");
                let port = relay.bind().port();
                assert!(pool.is_taken(port) || !pool.owns(port), "a port in use is not in the pool");
            }
        }
        let taken: usize = self.pools.iter().map(PortPool::taken).sum();
        assert_eq!(taken + self.borrowed, open + opening + self.closing, "no port is leaked");
    }

    /// Returns the number of ports of this worker that are reserved or claimed by other workers. For tests.
    #[must_use]
    pub fn reserved_ports(&self) -> usize {
        self.pools.iter().map(PortPool::reserved).sum()
    }

    /// Returns the number of ports of other workers that this worker has claimed. For tests.
    #[must_use]
    pub fn borrowed_ports(&self) -> usize {
        self.borrowed
    }
}
