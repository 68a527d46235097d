//! Allocations and their relayed transport addresses: how they begin, and how they end (RFC 8656 §7.2, §8).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use turnserver::stun::TransactionId;
use turnserver::turn::{
    Action, AllocationId, AllocationSummary, EndReason, Event, FiveTuple, Limit, OpenError, RedirectWhen,
    RelayedAddresses, SocketId, SocketSpec, Traffic,
};

use super::allocate::{PortPreference, Wanted};
use super::tokens::AllocTokens;
use super::{Body, ExpectOpened, ExpectedResponse, Model, NO_PORT, Now, error, seconds_left};

/// The time for which a port in use by another program is not tried again.
const SET_ASIDE_SECONDS: u64 = 60;
/// The time for which a port rests after its socket was closed, with the second that has begun.
const REST_SECONDS: u64 = 6;
/// The number of ports that are tried for one address.
const ATTEMPTS: u32 = 16;
const RESERVED_MS: u64 = 30_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Opening,
    Open,
    Ended,
}

#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) id: SocketId,
    pub(crate) bind: SocketAddr,
    pub(crate) relayed: SocketAddr,
    pub(crate) deadline: u64,
    pub(crate) state: State,
}

impl Address {
    fn is_live(&self, now: Now) -> bool {
        self.state == State::Open && self.deadline > now.ms
    }

    fn close(&self) -> Action {
        Action::Close { socket: self.id, bind: self.bind }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Alloc {
    pub(crate) tuple: FiveTuple,
    pub(crate) worker: usize,
    /// IPv4 first. The address that is being opened is the last.
    pub(crate) addresses: Vec<Address>,
    pub(crate) username: String,
    pub(super) user: String,
    pub(crate) transaction: TransactionId,
    created: u64,
    /// When it expires if its Allocate request gets no response.
    pub(crate) deadline: u64,
    /// Whether the client has got a success response.
    pub(crate) open: bool,
    wanted: Wanted,
    token: Option<[u8; 8]>,
    pub(crate) permissions: Vec<(IpAddr, u64)>,
    pub(crate) channels: Vec<(u16, SocketAddr, u64)>,
    pub(super) traffic: Traffic,
    /// A second, and the number of ICMP errors in it.
    pub(super) icmp: (u64, u32),
    /// Whether a request has had an attribute that came with RFC 8489 or RFC 8656.
    pub(super) modern: bool,
    pub(super) tokens: AllocTokens,
}

/// A reserved port.
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    pub(crate) token: [u8; 8],
    pub(super) bind: SocketAddr,
    pub(super) user: String,
    pub(super) worker: usize,
    pub(crate) until: u64,
}

impl Alloc {
    pub(crate) fn has_ended(&self, now: Now) -> bool {
        if self.open { !self.addresses.iter().any(|address| address.is_live(now)) } else { self.deadline <= now.ms }
    }

    /// Whether it has a relayed transport address of this family.
    pub(crate) fn has(&self, now: Now, v6: bool) -> bool {
        self.address(v6).is_some_and(|address| address.is_live(now))
    }

    pub(super) fn address(&self, v6: bool) -> Option<&Address> {
        self.addresses.iter().find(|address| address.bind.is_ipv6() == v6)
    }

    pub(super) fn live_mut(&mut self, now: Now, v6: Option<bool>) -> impl Iterator<Item = &mut Address> {
        let wanted = move |address: &&mut Address| v6.is_none_or(|v6| address.bind.is_ipv6() == v6);
        self.addresses.iter_mut().filter(move |address| address.is_live(now)).filter(wanted)
    }

    /// Removes what has expired.
    pub(super) fn purge(&mut self, now: Now) {
        let families = [false, true].map(|v6| self.has(now, v6));
        self.permissions.retain(|(peer, until)| *until > now.ms && families[usize::from(peer.is_ipv6())]);
        self.channels.retain(|(_, peer, until)| *until > now.ms && families[usize::from(peer.is_ipv6())]);
    }

    fn advertised(&self) -> RelayedAddresses {
        let opened = |v6| self.address(v6).filter(|address| address.state != State::Opening);
        let [v4, v6] = [false, true].map(|v6| opened(v6).map(|address| address.relayed));
        RelayedAddresses { v4, v6 }
    }

    /// Returns the response to the request that created it.
    pub(super) fn allocated(&self, now: Now, response: &ExpectedResponse) -> ExpectedResponse {
        let live = || self.addresses.iter().filter(|address| address.is_live(now));
        let body = Body::Allocated {
            relayed: live().map(|address| address.relayed).collect(),
            mapped: self.tuple.client,
            lifetime: live().map(|address| seconds_left(address.deadline, now)).min().unwrap(),
            address_error: self.wanted.failed.as_ref().map(|(v6, failure)| (*v6, code(failure))),
            token: self.token,
        };
        ExpectedResponse { body, ..response.clone() }
    }

    /// Returns its identifier.
    pub(super) fn id(&self) -> AllocationId {
        self.addresses[0].id.allocation()
    }

    fn summary(&self, now: Now, reason: EndReason) -> AllocationSummary {
        AllocationSummary {
            id: self.id(),
            user: self.user.clone(),
            tuple: self.tuple,
            relay: self.advertised(),
            duration: Duration::from_millis(now.ms - self.created),
            traffic: self.traffic,
            reason,
        }
    }

    /// Returns the port that will be reserved with the success response.
    fn next_to(&self) -> Option<SocketAddr> {
        let bind = self.addresses.first()?.bind;
        (!self.open && self.wanted.preference == PortPreference::Pair)
            .then(|| SocketAddr::new(bind.ip(), bind.port() + 1))
    }
}

impl Model {
    /// Returns the addresses with an open socket.
    pub(super) fn open_sockets(&self) -> impl Iterator<Item = &Address> {
        self.allocs.iter().flat_map(|alloc| &alloc.addresses).filter(|address| address.state == State::Open)
    }

    pub(crate) fn count_open_sockets(&self) -> usize {
        self.open_sockets().count()
    }

    /// Returns the ports that have no socket and are not available.
    pub(crate) fn reserved_ports(&self) -> Vec<SocketAddr> {
        let pending = self.allocs.iter().filter_map(Alloc::next_to);
        self.reservations.iter().map(|reservation| reservation.bind).chain(pending).collect()
    }

    /// Returns the number of places in the quota that a user holds, or that all users hold together.
    pub(crate) fn places(&self, user: Option<&str>) -> usize {
        let of = |owner: &String| user.is_none_or(|user| user == owner);
        let allocs = self.allocs.iter().filter(|alloc| of(&alloc.user));
        let pending = allocs.clone().filter(|alloc| !alloc.open && alloc.wanted.preference == PortPreference::Pair);
        allocs.count() + pending.count() + self.reservations.iter().filter(|reservation| of(&reservation.user)).count()
    }

    /// Ends an allocation, and announces the end if the client knows of the allocation.
    pub(super) fn end(&mut self, now: Now, at: usize, reason: EndReason) {
        let alloc = self.allocs.remove(at);
        let open = alloc.addresses.iter().filter(|address| address.state == State::Open);
        open.clone().for_each(|address| self.rests(now, address.bind));
        self.announced.extend(open.map(Address::close));
        if alloc.open {
            self.announced.push(Action::Log(Event::AllocationEnded(Box::new(alloc.summary(now, reason)))));
        }
    }

    /// Ends one address; the end of the last one ends the allocation.
    pub(super) fn end_address(&mut self, now: Now, at: usize, v6: bool) {
        if !self.allocs[at].has(now, !v6) {
            return self.end(now, at, EndReason::Deleted);
        }
        let address = self.allocs[at].live_mut(now, Some(v6)).next().unwrap();
        address.state = State::Ended;
        let (bind, close) = (address.bind, address.close());
        self.announced.push(close);
        self.rests(now, bind);
    }

    /// A port rests, because its socket is closed.
    fn rests(&mut self, now: Now, bind: SocketAddr) {
        self.resting.retain(|(port, _)| *port != bind);
        self.resting.push((bind, (now.ms / 1_000 + REST_SECONDS) * 1_000));
    }

    /// Returns the ports of an address family that every worker may choose.
    pub(crate) fn free_ports(
        &self,
        now: Now,
        v6: bool,
        preference: PortPreference,
        gone: &[IpAddr],
    ) -> Vec<SocketAddr> {
        let is_gone = |bind: &SocketAddr| gone.contains(&bind.ip());
        let rests = |bind: &SocketAddr| self.resting.iter().any(|(port, until)| port == bind && *until > now.ms);
        let rested = self.ports_without(now, v6, preference, |bind| is_gone(bind) || rests(bind));
        if rested.is_empty() { self.ports_without(now, v6, preference, is_gone) } else { rested }
    }

    fn ports_without(
        &self,
        now: Now,
        v6: bool,
        preference: PortPreference,
        excluded: impl Fn(&SocketAddr) -> bool,
    ) -> Vec<SocketAddr> {
        let relays = self.setup.relays.iter().filter(|relay| relay.bind.is_ipv6() == v6);
        let reserved = self.reserved_ports();
        let free: Vec<SocketAddr> = relays
            .flat_map(|relay| self.setup.ports.clone().map(move |port| SocketAddr::new(relay.bind, port)))
            .filter(|bind| !self.taken.contains(bind) && !reserved.contains(bind))
            .filter(|bind| !self.set_aside.iter().any(|(port, until)| port == bind && *until > now.ms))
            .filter(|bind| !excluded(bind))
            .collect();
        let fits = |bind: &SocketAddr| match preference {
            PortPreference::Any => true,
            PortPreference::Even => bind.port().is_multiple_of(2),
            PortPreference::Pair => {
                bind.port().is_multiple_of(2) && free.contains(&SocketAddr::new(bind.ip(), bind.port() + 1))
            }
        };
        free.iter().copied().filter(fits).collect()
    }

    fn relayed(&self, bind: SocketAddr) -> SocketAddr {
        let relay = self.setup.relays.iter().find(|relay| relay.bind == bind.ip()).expect("a relay address");
        SocketAddr::new(relay.advertised, bind.port())
    }

    /// Returns the address family of the next socket. Families without a free port are skipped.
    pub(super) fn next_family(&self, now: Now, mut v6: bool, wanted: &mut Wanted) -> Option<bool> {
        loop {
            let known = self.setup.relays.iter().any(|relay| relay.bind.is_ipv6() == v6);
            if !self.free_ports(now, v6, wanted.preference, &wanted.gone).is_empty() {
                return Some(v6);
            }
            v6 = wanted.fail(v6, if known { Body::LimitReached(NO_PORT) } else { error(440) })?;
        }
    }

    /// The server opens this socket for a new allocation.
    pub(crate) fn opening(&mut self, now: Now, tuple: FiveTuple, worker: usize, wanted: Wanted, open: &SocketSpec) {
        match wanted.claimed {
            Some((bind, _)) => assert_eq!(open.bind, bind),
            None => assert_eq!(open.bind.is_ipv6(), wanted.v6),
        }
        self.allocs.push(Alloc {
            tuple,
            worker,
            addresses: Vec::new(),
            username: wanted.username.clone(),
            user: wanted.user.clone(),
            transaction: wanted.response.transaction,
            created: now.ms,
            modern: wanted.modern,
            deadline: now.ms + wanted.lifetime * 1_000,
            open: false,
            wanted,
            token: None,
            permissions: Vec::new(),
            channels: Vec::new(),
            traffic: Traffic::default(),
            icmp: (0, 0),
            tokens: AllocTokens::default(),
        });
        self.socket_wanted(now, self.allocs.len() - 1, open);
    }

    /// The server opens another socket for an allocation.
    pub(crate) fn opening_another(&mut self, now: Now, at: usize, open: &SocketSpec) {
        self.socket_wanted(now, at, open);
    }

    fn socket_wanted(&mut self, now: Now, at: usize, open: &SocketSpec) {
        let (worker, preference) = (self.allocs[at].worker, self.allocs[at].wanted.preference);
        if self.allocs[at].wanted.claimed.is_none() {
            let free = self.free_ports(now, open.bind.is_ipv6(), preference, &self.allocs[at].wanted.gone);
            assert!(free.contains(&open.bind), "{} may be used", open.bind);
        }
        let others = self.allocs.iter().filter(|alloc| alloc.worker == worker).flat_map(|alloc| &alloc.addresses);
        assert!(others.clone().all(|address| address.id != open.socket), "the identifier is new");
        let relayed = self.relayed(open.bind);
        self.taken.push(open.bind);
        let next = (preference == PortPreference::Pair).then(|| SocketAddr::new(open.bind.ip(), open.bind.port() + 1));
        self.resting.retain(|(bind, _)| *bind != open.bind && Some(*bind) != next);
        let alloc = &mut self.allocs[at];
        alloc.wanted.attempts += 1;
        let (id, bind, deadline, state) = (open.socket, open.bind, alloc.deadline, State::Opening);
        alloc.addresses.push(Address { id, bind, relayed, deadline, state });
    }

    /// A socket was opened or failed. `token` is that of the server's response to the client.
    pub(crate) fn opened(
        &mut self,
        now: Now,
        worker: usize,
        open: &SocketSpec,
        result: Result<(), OpenError>,
        token: Option<[u8; 8]>,
    ) -> ExpectOpened {
        if let Err(error) = result {
            self.taken.retain(|bind| *bind != open.bind);
            if error == OpenError::PortInUse {
                self.set_aside.retain(|(bind, _)| *bind != open.bind);
                self.set_aside.push((open.bind, (now.ms / 1_000 + SET_ASIDE_SECONDS) * 1_000));
            }
        }
        let asked = |address: &Address| address.id == open.socket && address.state == State::Opening;
        let of = |alloc: &Alloc| alloc.worker == worker && alloc.addresses.iter().any(asked);
        let Some(at) = self.allocs.iter().position(of) else { return ExpectOpened::Abandoned };
        if self.allocs[at].has_ended(now) {
            self.end(now, at, EndReason::Expired);
            return ExpectOpened::Abandoned;
        }
        let v6 = open.bind.is_ipv6();
        let alloc = &mut self.allocs[at];
        let mut wanted = alloc.wanted.clone();
        let turn = match result {
            Ok(()) => {
                alloc.addresses.last_mut().unwrap().state = State::Open;
                wanted.attempts = 0;
                wanted.next.take()
            }
            Err(OpenError::Other) => {
                alloc.addresses.pop();
                wanted.fail(v6, Body::LimitReached(Limit::Sockets))
            }
            Err(OpenError::AddressGone) => {
                alloc.addresses.pop();
                wanted.gone.push(open.bind.ip());
                let is_other = |bind: IpAddr| bind.is_ipv6() == v6 && !wanted.gone.contains(&bind);
                let others = self.setup.relays.iter().any(|relay| is_other(relay.bind));
                if others && wanted.claimed.is_none() && wanted.attempts < ATTEMPTS {
                    Some(v6)
                } else {
                    wanted.fail(v6, Body::LimitReached(Limit::RelayAddress))
                }
            }
            Err(OpenError::PortInUse) => {
                alloc.addresses.pop();
                match (wanted.claimed, wanted.attempts < ATTEMPTS) {
                    (Some(_), _) => wanted.fail(v6, error(508)),
                    (None, true) => Some(v6),
                    (None, false) => wanted.fail(v6, Body::LimitReached(NO_PORT)),
                }
            }
        };
        let turn = turn.and_then(|v6| self.next_family(now, v6, &mut wanted));
        self.allocs[at].wanted = wanted;
        match turn {
            Some(v6) => ExpectOpened::OpenAnother { at, v6 },
            None if self.allocs[at].addresses.is_empty() => {
                let alloc = self.allocs.remove(at);
                let (_, failure) = alloc.wanted.failed.unwrap();
                // A client is redirected only if a limit is reached. A reserved port that another program uses is not a
                // limit, and an alternate server does not have the reservation.
                let when = matches!(failure, Body::LimitReached(_)).then_some(RedirectWhen::Full);
                let response = alloc.wanted.response;
                let body = self.redirect_or_reject(failure, when, &alloc.user, &alloc.tuple, response.transaction);
                ExpectOpened::Respond(alloc.tuple, ExpectedResponse { body, ..response })
            }
            None => self.respond(now, at, token),
        }
    }

    fn respond(&mut self, now: Now, at: usize, token: Option<[u8; 8]>) -> ExpectOpened {
        let next_to = self.allocs[at].next_to();
        let alloc = &mut self.allocs[at];
        alloc.open = true;
        if let Some(bind) = next_to {
            let token = token.expect("a port is reserved");
            assert!(!self.tokens.contains(&token), "tokens are unique");
            self.tokens.push(token);
            alloc.token = Some(token);
            let (user, worker, until) = (alloc.user.clone(), alloc.worker, now.ms + RESERVED_MS);
            self.reservations.push(Reservation { token, bind, user, worker, until });
        }
        self.announced.push(Action::Log(Event::AllocationCreated {
            id: alloc.id(),
            user: alloc.user.clone(),
            tuple: alloc.tuple,
            relay: alloc.advertised(),
            lifetime: seconds_left(alloc.deadline, now),
        }));
        ExpectOpened::Respond(alloc.tuple, alloc.allocated(now, &alloc.wanted.response))
    }

    pub(crate) fn closed(&mut self, bind: SocketAddr) {
        let before = self.taken.len();
        self.taken.retain(|taken| *taken != bind);
        assert_eq!(self.taken.len() + 1, before, "{bind} was in use");
    }

    /// The worker advances its clock. It may end what has expired, and must end what expired before this second.
    pub(crate) fn advanced(&mut self, now: Now, worker: usize, actions: &[Action]) {
        self.ended(now, worker, actions, EndReason::Expired);
        let overdue = |deadline: u64| deadline.div_ceil(1_000) <= now.ms / 1_000;
        let is_open = |address: &Address| address.state == State::Open;
        let late = self.allocs.iter().filter(|alloc| alloc.worker == worker).flat_map(|alloc| &alloc.addresses);
        assert!(
            !late.clone().any(|address| is_open(address) && overdue(address.deadline)),
            "expired addresses are closed"
        );
        self.allocs.retain(|alloc| alloc.worker != worker || alloc.open || !overdue(alloc.deadline));
        self.reservations.retain(|reservation| reservation.worker != worker || reservation.until > now.ms);
    }

    /// The server stops.
    pub(crate) fn stopped(&mut self, now: Now, worker: usize, actions: &[Action]) {
        self.ended(now, worker, actions, EndReason::ServerStopped);
        let left = self.allocs.iter().filter(|alloc| alloc.worker == worker);
        assert!(left.clone().flat_map(|alloc| &alloc.addresses).all(|address| address.state != State::Open));
        assert!(!left.clone().any(|alloc| alloc.open), "everything has ended");
        self.allocs.retain(|alloc| alloc.worker != worker);
        self.reservations.retain(|reservation| reservation.worker != worker);
    }

    /// Applies the ends that the server announced, in any order.
    fn ended(&mut self, now: Now, worker: usize, actions: &[Action], reason: EndReason) {
        let is_open = |address: &Address| address.state == State::Open;
        let mut closed = Vec::new();
        for action in actions {
            let mut allocs = self.allocs.iter_mut().filter(|alloc| alloc.worker == worker);
            match action {
                close @ Action::Close { .. } => {
                    let mut addresses = allocs.flat_map(|alloc| &mut alloc.addresses);
                    let address = addresses.find(|address| address.close() == *close && is_open(address));
                    let address = address.expect("the closed socket was open");
                    assert!(
                        reason == EndReason::ServerStopped || address.deadline <= now.ms,
                        "{address:?} has expired"
                    );
                    address.state = State::Ended;
                    closed.push(address.bind);
                }
                Action::Log(Event::AllocationEnded(summary)) => {
                    let alloc = allocs.find(|alloc| alloc.tuple == summary.tuple).expect("the allocation existed");
                    assert!(alloc.open && !alloc.addresses.iter().any(is_open), "{alloc:?} has ended");
                    assert_eq!(**summary, alloc.summary(now, reason));
                    self.allocs.retain(|alloc| alloc.tuple != summary.tuple);
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
        closed.into_iter().for_each(|bind| self.rests(now, bind));
        assert!(
            self.allocs.iter().all(|alloc| !alloc.open || alloc.addresses.iter().any(is_open)),
            "each end is reported"
        );
    }
}

/// Returns the code of ADDRESS-ERROR-CODE for a failure.
fn code(failure: &Body) -> u16 {
    match failure {
        Body::Error { code, .. } => *code,
        // No port or no socket.
        _ => 508,
    }
}
