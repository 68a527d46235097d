//! Allocations and their relayed transport addresses: how they begin, and how they end (RFC 8656 §7.2, §8).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use turnserver::stun::TransactionId;
use turnserver::turn::{
    Action, AllocationSummary, EndReason, Event, FiveTuple, Limit, OpenError, RedirectWhen, RelayedAddresses, SocketId,
    SocketSpec, Traffic,
};

use super::allocate::{PortPreference, Wanted};
use super::tokens::AllocTokens;
use super::{Answer, Body, ExpectOpened, Model, NO_PORT, Now, error, seconds_left};

/// How long a port that somebody else has is left alone.
const ASIDE_MS: u64 = 60_000;
/// Ports that are tried for one address.
const ATTEMPTS: u32 = 16;
const RESERVED_MS: u64 = 30_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Opening,
    Open,
    Over,
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
}

#[derive(Clone, Debug)]
pub(crate) struct Alloc {
    pub(crate) tuple: FiveTuple,
    pub(crate) worker: usize,
    /// IPv4 first, and the one that is being opened last.
    pub(crate) addresses: Vec<Address>,
    pub(crate) username: String,
    pub(super) user: String,
    pub(crate) transaction: TransactionId,
    created: u64,
    /// When it ends if it is never answered.
    pub(crate) deadline: u64,
    /// Whether the client has been answered.
    pub(crate) open: bool,
    wanted: Wanted,
    token: Option<[u8; 8]>,
    pub(crate) permissions: Vec<(IpAddr, u64)>,
    pub(crate) channels: Vec<(u16, SocketAddr, u64)>,
    pub(super) traffic: Traffic,
    /// A second, and how many ICMP errors were told in it.
    pub(super) icmp: (u64, u32),
    pub(super) tokens: AllocTokens,
}

/// A port that waits for its token.
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    pub(crate) token: [u8; 8],
    pub(super) bind: SocketAddr,
    pub(super) user: String,
    worker: usize,
    pub(crate) until: u64,
}

impl Alloc {
    pub(crate) fn is_over(&self, now: Now) -> bool {
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

    /// Forgets what has expired.
    pub(super) fn purge(&mut self, now: Now) {
        let families = [false, true].map(|v6| self.has(now, v6));
        self.permissions.retain(|(peer, until)| *until > now.ms && families[usize::from(peer.is_ipv6())]);
        self.channels.retain(|(_, peer, until)| *until > now.ms && families[usize::from(peer.is_ipv6())]);
    }

    fn told(&self) -> RelayedAddresses {
        let told = |v6| self.address(v6).filter(|address| address.state != State::Opening);
        let [v4, v6] = [false, true].map(|v6| told(v6).map(|address| address.relayed));
        RelayedAddresses { v4, v6 }
    }

    /// The answer to the request that made it.
    pub(super) fn allocated(&self, now: Now, answer: &Answer) -> Answer {
        let live = || self.addresses.iter().filter(|address| address.is_live(now));
        let body = Body::Allocated {
            relayed: live().map(|address| address.relayed).collect(),
            mapped: self.tuple.client,
            lifetime: live().map(|address| seconds_left(address.deadline, now)).min().unwrap(),
            address_error: self.wanted.failed.as_ref().map(|(v6, why)| (*v6, code(why))),
            token: self.token,
        };
        Answer { body, ..answer.clone() }
    }

    fn summary(&self, now: Now, reason: EndReason) -> AllocationSummary {
        AllocationSummary {
            id: self.addresses[0].id.allocation(),
            user: self.user.clone(),
            tuple: self.tuple,
            relay: self.told(),
            duration: Duration::from_millis(now.ms - self.created),
            traffic: self.traffic,
            reason,
        }
    }

    /// The port that is to be reserved when the client is answered.
    fn next_to(&self) -> Option<SocketAddr> {
        let bind = self.addresses.first()?.bind;
        (!self.open && self.wanted.preference == PortPreference::Pair)
            .then(|| SocketAddr::new(bind.ip(), bind.port() + 1))
    }
}

impl Model {
    /// Sockets that are open, with what they are called.
    pub(super) fn open_sockets(&self) -> impl Iterator<Item = &Address> {
        self.allocs.iter().flat_map(|alloc| &alloc.addresses).filter(|address| address.state == State::Open)
    }

    pub(crate) fn count_open_sockets(&self) -> usize {
        self.open_sockets().count()
    }

    /// Ports that nobody has a socket on and nobody else gets.
    pub(crate) fn reserved_ports(&self) -> Vec<SocketAddr> {
        let to_be = self.allocs.iter().filter_map(Alloc::next_to);
        self.reservations.iter().map(|reservation| reservation.bind).chain(to_be).collect()
    }

    /// How many places of the quota a user has, or all together have.
    pub(crate) fn places(&self, user: Option<&str>) -> usize {
        let of = |owner: &String| user.is_none_or(|user| user == owner);
        let allocs = self.allocs.iter().filter(|alloc| of(&alloc.user));
        let to_be = allocs.clone().filter(|alloc| !alloc.open && alloc.wanted.preference == PortPreference::Pair);
        allocs.count() + to_be.count() + self.reservations.iter().filter(|reservation| of(&reservation.user)).count()
    }

    /// Takes an allocation away and announces its end if its beginning was announced.
    pub(super) fn end(&mut self, now: Now, at: usize, reason: EndReason) {
        let alloc = self.allocs.remove(at);
        let open = alloc.addresses.iter().filter(|address| address.state == State::Open);
        self.announced.extend(open.map(|address| Action::Close(address.id)));
        if alloc.open {
            self.announced.push(Action::Log(Event::AllocationEnded(Box::new(alloc.summary(now, reason)))));
        }
    }

    /// Ends one address, and with the last one the allocation.
    pub(super) fn end_address(&mut self, now: Now, at: usize, v6: bool) {
        if !self.allocs[at].has(now, !v6) {
            return self.end(now, at, EndReason::Deleted);
        }
        let address = self.allocs[at].live_mut(now, Some(v6)).next().unwrap();
        address.state = State::Over;
        self.announced.push(Action::Close(address.id));
    }

    /// Even ports of this family, or any, that may be used at a worker.
    pub(crate) fn free_ports(&self, now: Now, worker: usize, v6: bool, preference: PortPreference) -> Vec<SocketAddr> {
        let relays = self.setup.ranges(worker).into_iter().filter(|relay| relay.bind.is_ipv6() == v6);
        let reserved = self.reserved_ports();
        let free: Vec<SocketAddr> = relays
            .flat_map(|relay| relay.ports.map(move |port| SocketAddr::new(relay.bind, port)))
            .filter(|bind| !self.taken.contains(bind) && !reserved.contains(bind))
            .filter(|bind| !self.aside.iter().any(|(aside, until)| aside == bind && *until > now.ms))
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
        let relay = self.setup.relays.iter().find(|relay| relay.bind == bind.ip()).expect("a relay address of ours");
        SocketAddr::new(relay.advertised, bind.port())
    }

    /// The family that a socket is asked for next; those that are not to be had are left out.
    pub(super) fn next_family(&self, now: Now, worker: usize, mut v6: bool, wanted: &mut Wanted) -> Option<bool> {
        loop {
            let known = self.setup.relays.iter().any(|relay| relay.bind.is_ipv6() == v6);
            if !self.free_ports(now, worker, v6, wanted.preference).is_empty() {
                return Some(v6);
            }
            v6 = wanted.fail(v6, if known { Body::Refused(NO_PORT) } else { error(440) })?;
        }
    }

    /// The server wants this socket for a new allocation.
    pub(crate) fn opening(&mut self, now: Now, tuple: FiveTuple, worker: usize, wanted: Wanted, open: &SocketSpec) {
        match wanted.claimed {
            Some(bind) => assert_eq!(open.bind, bind),
            None => assert_eq!(open.bind.is_ipv6(), wanted.v6),
        }
        self.allocs.push(Alloc {
            tuple,
            worker,
            addresses: Vec::new(),
            username: wanted.username.clone(),
            user: wanted.user.clone(),
            transaction: wanted.answer.transaction,
            created: now.ms,
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

    /// The server wants this socket for an allocation that it has begun.
    pub(crate) fn opening_another(&mut self, now: Now, at: usize, open: &SocketSpec) {
        self.socket_wanted(now, at, open);
    }

    fn socket_wanted(&mut self, now: Now, at: usize, open: &SocketSpec) {
        let (worker, preference) = (self.allocs[at].worker, self.allocs[at].wanted.preference);
        if self.allocs[at].wanted.claimed.is_none() {
            let free = self.free_ports(now, worker, open.bind.is_ipv6(), preference);
            assert!(free.contains(&open.bind), "{} may be used", open.bind);
        }
        let others = self.allocs.iter().filter(|alloc| alloc.worker == worker).flat_map(|alloc| &alloc.addresses);
        assert!(others.clone().all(|address| address.id != open.socket), "a new name");
        let relayed = self.relayed(open.bind);
        self.taken.push(open.bind);
        let alloc = &mut self.allocs[at];
        alloc.wanted.attempts += 1;
        let (id, bind, deadline, state) = (open.socket, open.bind, alloc.deadline, State::Opening);
        alloc.addresses.push(Address { id, bind, relayed, deadline, state });
    }

    /// A socket is open or not. `token` is what the server's answer to the client has.
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
            // A port of another worker's goes back to it.
            if error == OpenError::PortInUse && self.setup.owner_of(open.bind.port()) == worker {
                self.aside.retain(|(bind, _)| *bind != open.bind);
                self.aside.push((open.bind, now.ms + ASIDE_MS));
            }
        }
        let asked = |address: &Address| address.id == open.socket && address.state == State::Opening;
        let of = |alloc: &Alloc| alloc.worker == worker && alloc.addresses.iter().any(asked);
        let Some(at) = self.allocs.iter().position(of) else { return ExpectOpened::Abandoned };
        if self.allocs[at].is_over(now) {
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
                wanted.fail(v6, Body::Refused(Limit::Sockets))
            }
            Err(OpenError::PortInUse) => {
                alloc.addresses.pop();
                match (wanted.claimed, wanted.attempts < ATTEMPTS) {
                    (Some(_), _) => wanted.fail(v6, error(508)),
                    (None, true) => Some(v6),
                    (None, false) => wanted.fail(v6, Body::Refused(NO_PORT)),
                }
            }
        };
        let turn = turn.and_then(|v6| self.next_family(now, worker, v6, &mut wanted));
        self.allocs[at].wanted = wanted;
        match turn {
            Some(v6) => ExpectOpened::Another { at, v6 },
            None if self.allocs[at].addresses.is_empty() => {
                let alloc = self.allocs.remove(at);
                let (_, why) = alloc.wanted.failed.unwrap();
                // A reserved port that somebody else has, which is no limit, is at no other server.
                let when = matches!(why, Body::Refused(_)).then_some(RedirectWhen::Full);
                let answer = alloc.wanted.answer;
                let body = self.refused(why, when, &alloc.user, &alloc.tuple, answer.transaction);
                ExpectOpened::Answer(alloc.tuple, Answer { body, ..answer })
            }
            None => self.answered(now, at, token),
        }
    }

    fn answered(&mut self, now: Now, at: usize, token: Option<[u8; 8]>) -> ExpectOpened {
        let next_to = self.allocs[at].next_to();
        let alloc = &mut self.allocs[at];
        alloc.open = true;
        if let Some(bind) = next_to {
            let token = token.expect("a port is reserved");
            assert!(!self.tokens.contains(&token), "no token is given out twice");
            self.tokens.push(token);
            alloc.token = Some(token);
            let (user, worker, until) = (alloc.user.clone(), alloc.worker, now.ms + RESERVED_MS);
            self.reservations.push(Reservation { token, bind, user, worker, until });
        }
        self.announced.push(Action::Log(Event::AllocationCreated {
            user: alloc.user.clone(),
            tuple: alloc.tuple,
            relay: alloc.told(),
            lifetime: seconds_left(alloc.deadline, now),
        }));
        ExpectOpened::Answer(alloc.tuple, alloc.allocated(now, &alloc.wanted.answer))
    }

    pub(crate) fn closed(&mut self, bind: SocketAddr) {
        let before = self.taken.len();
        self.taken.retain(|taken| *taken != bind);
        assert_eq!(self.taken.len() + 1, before, "{bind} was in use");
    }

    /// Time passes at a worker. The server may end what has expired, and must end what expired before this second.
    pub(crate) fn advanced(&mut self, now: Now, worker: usize, actions: &[Action]) {
        self.ended(now, worker, actions, EndReason::Expired);
        let overdue = |deadline: u64| deadline.div_ceil(1_000) <= now.ms / 1_000;
        let is_open = |address: &Address| address.state == State::Open;
        let late = self.allocs.iter().filter(|alloc| alloc.worker == worker).flat_map(|alloc| &alloc.addresses);
        assert!(
            !late.clone().any(|address| is_open(address) && overdue(address.deadline)),
            "what has expired is closed"
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

    /// Takes note of what the server has ended, in an order of its choice.
    fn ended(&mut self, now: Now, worker: usize, actions: &[Action], reason: EndReason) {
        let is_open = |address: &Address| address.state == State::Open;
        for action in actions {
            let mut allocs = self.allocs.iter_mut().filter(|alloc| alloc.worker == worker);
            match action {
                Action::Close(id) => {
                    let mut addresses = allocs.flat_map(|alloc| &mut alloc.addresses);
                    let address = addresses.find(|address| address.id == *id && is_open(address));
                    let address = address.expect("what is closed was open");
                    assert!(
                        reason == EndReason::ServerStopped || address.deadline <= now.ms,
                        "{address:?} has expired"
                    );
                    address.state = State::Over;
                }
                Action::Log(Event::AllocationEnded(told)) => {
                    let alloc = allocs.find(|alloc| alloc.tuple == told.tuple).expect("what ends was there");
                    assert!(alloc.open && !alloc.addresses.iter().any(is_open), "{alloc:?} is over");
                    assert_eq!(**told, alloc.summary(now, reason));
                    self.allocs.retain(|alloc| alloc.tuple != told.tuple);
                }
                other => panic!("only ends are announced: {other:?}"),
            }
        }
        assert!(self.allocs.iter().all(|alloc| !alloc.open || alloc.addresses.iter().any(is_open)), "an end is told");
    }
}

/// The code that tells one family why it is not to be had.
fn code(why: &Body) -> u16 {
    match why {
        Body::Error { code, .. } => *code,
        // Ports and sockets.
        _ => 508,
    }
}
