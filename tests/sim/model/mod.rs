//! The shadow model: what RFC 8656 and RFC 8489 say that a server does, in lists that are searched from the front and
//! with absolute times in milliseconds.
//!
//! Where the server may choose (a port, the moment within a second at which it forgets what has expired), the model
//! takes over the choice after it has found it legal.

mod data;
mod requests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use turnserver::stun::{Method, TransactionId};
use turnserver::turn::{
    Action, AllocationSummary, Denial, DropReason, EndReason, Event, FiveTuple, OpenError, OpenRelay, RelayId,
};

use crate::packet::Signed;
use crate::setup::{Credential, Setup};

/// How long a port that somebody else has is left alone.
const ASIDE_MS: u64 = 60_000;
/// Ports that are tried for one allocation.
const ATTEMPTS: u32 = 16;

/// The two clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) ms: u64,
    /// Seconds.
    pub(crate) unix: u64,
}

/// What the server has to do with a client's packet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expect {
    Drop(DropReason),
    ToPeer {
        relay: RelayId,
        peer: SocketAddr,
        payload: Vec<u8>,
    },
    Answer(Answer),
    /// Open a relay socket of this family on a free port.
    Open(Box<Wanted>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) method: Method,
    pub(crate) transaction: TransactionId,
    pub(crate) fingerprint: bool,
    /// The credential that it has to be signed with.
    pub(crate) signer: Option<usize>,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Mapped(SocketAddr),
    Allocated { relayed: SocketAddr, mapped: SocketAddr, lifetime: u32, address_error: bool },
    Refreshed(u32),
    Done,
    Error { code: u16, challenge: bool, unknown: Vec<u16> },
}

/// What the server has to do with a peer's datagram.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ExpectPeer {
    Drop(DropReason),
    Channel(FiveTuple, u16),
    Indication(FiveTuple, SocketAddr),
}

/// What the server has to do when a relay socket was opened or not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ExpectOpened {
    Answer(FiveTuple, Answer),
    /// Another port of this family.
    Another {
        v6: bool,
    },
    Abandoned,
}

/// An allocation without its relayed address.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) v6: bool,
    even: bool,
    answer: Answer,
    additional: bool,
    lifetime: u64,
    username: String,
    user: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Alloc {
    pub(crate) tuple: FiveTuple,
    pub(crate) worker: usize,
    pub(crate) id: RelayId,
    pub(crate) bind: SocketAddr,
    pub(crate) relayed: SocketAddr,
    pub(crate) username: String,
    user: String,
    pub(crate) transaction: TransactionId,
    created: u64,
    pub(crate) deadline: u64,
    pub(crate) open: bool,
    attempts: u32,
    even: bool,
    additional: bool,
    answer: Answer,
    pub(crate) permissions: Vec<(IpAddr, u64)>,
    pub(crate) channels: Vec<(u16, SocketAddr, u64)>,
    to_peers: u64,
    to_client: u64,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) setup: Setup,
    pub(crate) credentials: Vec<Credential>,
    /// Expired ones included until the server has noticed.
    pub(crate) allocs: Vec<Alloc>,
    /// Relay sockets that exist, are being opened or are being closed.
    pub(crate) taken: Vec<SocketAddr>,
    pub(crate) aside: Vec<(SocketAddr, u64)>,
    /// Every nonce that was given out: when, and to whom.
    nonces: HashMap<String, (u64, SocketAddr)>,
    /// What the server has to announce, in order.
    pub(crate) announced: Vec<Action>,
}

impl Model {
    pub(crate) fn new(setup: Setup, credentials: Vec<Credential>) -> Self {
        Self {
            setup,
            credentials,
            allocs: Vec::new(),
            taken: Vec::new(),
            aside: Vec::new(),
            nonces: HashMap::new(),
            announced: Vec::new(),
        }
    }

    fn find(&self, tuple: &FiveTuple) -> Option<usize> {
        self.allocs.iter().position(|alloc| alloc.tuple == *tuple)
    }

    /// The open allocation of a 5-tuple.
    pub(crate) fn live(&self, now: Now, tuple: &FiveTuple) -> Option<usize> {
        self.find(tuple).filter(|at| self.allocs[*at].open && self.allocs[*at].deadline > now.ms)
    }

    /// The relay socket behind a transport address, as clients know it.
    fn own_relay(&self, peer: SocketAddr) -> Option<SocketAddr> {
        let open = self.allocs.iter().filter(|alloc| alloc.open);
        open.map(|alloc| (alloc.bind, alloc.relayed)).find(|(_, relayed)| *relayed == peer).map(|(bind, _)| bind)
    }

    /// Where data for a peer goes, or why it may not.
    fn peer(&self, peer: SocketAddr) -> Result<SocketAddr, Denial> {
        match self.own_relay(peer) {
            Some(bind) => Ok(bind),
            None => self.setup.denial(peer.ip()).map_or(Ok(peer), Err),
        }
    }

    pub(crate) fn open_allocations(&self) -> usize {
        self.allocs.iter().filter(|alloc| alloc.open).count()
    }

    /// Takes an allocation away and announces its end if its beginning was announced.
    fn end(&mut self, now: Now, at: usize, reason: EndReason) {
        let alloc = self.allocs.remove(at);
        if alloc.open {
            self.announced.push(Action::Close(alloc.id));
            self.announced.push(Action::Log(Event::AllocationEnded(Box::new(summary(&alloc, now, reason)))));
        }
    }

    /// Sockets of this family that may be opened at a worker.
    pub(crate) fn free_ports(&self, now: Now, worker: usize, v6: bool, even: bool) -> Vec<SocketAddr> {
        let settings = self.setup.settings(worker);
        let relays = settings.relays.into_iter().filter(|relay| relay.bind.is_ipv6() == v6);
        relays
            .flat_map(|relay| relay.ports.map(move |port| SocketAddr::new(relay.bind, port)))
            .filter(|bind| !even || bind.port() % 2 == 0)
            .filter(|bind| !self.taken.contains(bind))
            .filter(|bind| !self.aside.iter().any(|(aside, until)| aside == bind && *until > now.ms))
            .collect()
    }

    fn relayed(&self, bind: SocketAddr) -> SocketAddr {
        let relay = self.setup.relays.iter().find(|relay| relay.bind == bind.ip()).expect("a relay address of ours");
        SocketAddr::new(relay.advertised, bind.port())
    }

    /// The server wants this socket for a new allocation.
    pub(crate) fn opening(&mut self, now: Now, tuple: FiveTuple, worker: usize, wanted: Wanted, open: &OpenRelay) {
        assert!(self.free_ports(now, worker, wanted.v6, wanted.even).contains(&open.bind), "{} may be used", open.bind);
        assert!(self.allocs.iter().all(|alloc| alloc.worker != worker || alloc.id != open.relay), "a new name");
        self.taken.push(open.bind);
        self.allocs.push(Alloc {
            tuple,
            worker,
            id: open.relay,
            bind: open.bind,
            relayed: self.relayed(open.bind),
            username: wanted.username,
            user: wanted.user,
            transaction: wanted.answer.transaction,
            created: now.ms,
            deadline: now.ms + wanted.lifetime * 1_000,
            open: false,
            attempts: 1,
            even: wanted.even,
            additional: wanted.additional,
            answer: wanted.answer,
            permissions: Vec::new(),
            channels: Vec::new(),
            to_peers: 0,
            to_client: 0,
        });
    }

    /// The server wants this socket in place of one that was not to be had.
    pub(crate) fn opening_another(&mut self, now: Now, worker: usize, open: &OpenRelay) {
        let relayed = self.relayed(open.bind);
        let at = self.allocs.iter().position(|alloc| alloc.worker == worker && alloc.id == open.relay).unwrap();
        let free = self.free_ports(now, worker, open.bind.is_ipv6(), self.allocs[at].even);
        assert!(free.contains(&open.bind), "{} may be used", open.bind);
        self.taken.push(open.bind);
        let alloc = &mut self.allocs[at];
        (alloc.bind, alloc.relayed) = (open.bind, relayed);
    }

    pub(crate) fn opened(
        &mut self,
        now: Now,
        worker: usize,
        open: &OpenRelay,
        result: Result<(), OpenError>,
    ) -> ExpectOpened {
        if let Err(error) = result {
            self.taken.retain(|bind| *bind != open.bind);
            if error == OpenError::PortInUse {
                self.aside.retain(|(bind, _)| *bind != open.bind);
                self.aside.push((open.bind, now.ms + ASIDE_MS));
            }
        }
        let Some(at) = self.allocs.iter().position(|alloc| alloc.worker == worker && alloc.id == open.relay) else {
            return ExpectOpened::Abandoned;
        };
        if self.allocs[at].deadline <= now.ms {
            self.end(now, at, EndReason::Expired);
            return ExpectOpened::Abandoned;
        }
        let v6 = open.bind.is_ipv6();
        let tuple = self.allocs[at].tuple;
        match result {
            Ok(()) => {
                let alloc = &mut self.allocs[at];
                alloc.open = true;
                let answer = allocated(alloc, now, &alloc.answer);
                self.announced.push(Action::Log(Event::AllocationCreated {
                    user: alloc.user.clone(),
                    tuple,
                    relay: alloc.relayed,
                    lifetime: seconds_left(alloc.deadline, now),
                }));
                ExpectOpened::Answer(tuple, answer)
            }
            Err(OpenError::PortInUse)
                if self.allocs[at].attempts < ATTEMPTS
                    && !self.free_ports(now, worker, v6, self.allocs[at].even).is_empty() =>
            {
                self.allocs[at].attempts += 1;
                ExpectOpened::Another { v6 }
            }
            Err(_) => {
                let alloc = self.allocs.remove(at);
                self.announced.push(Action::Log(Event::AllocationRefused { user: alloc.user, tuple, limit: "" }));
                ExpectOpened::Answer(tuple, Answer { body: error(508), ..alloc.answer })
            }
        }
    }

    pub(crate) fn closed(&mut self, bind: SocketAddr) {
        let before = self.taken.len();
        self.taken.retain(|taken| *taken != bind);
        assert_eq!(self.taken.len() + 1, before, "{bind} was in use");
    }

    /// Time passes at a worker. The server may end what has expired, and must end what expired before this second.
    pub(crate) fn advanced(&mut self, now: Now, worker: usize, actions: &[Action]) {
        let overdue = |alloc: &Alloc| alloc.worker == worker && alloc.deadline.div_ceil(1_000) <= now.ms / 1_000;
        self.allocs.retain(|alloc| alloc.open || !overdue(alloc));
        for pair in actions.chunks(2) {
            let [Action::Close(id), Action::Log(Event::AllocationEnded(told))] = pair else {
                panic!("only ends are announced when time passes: {pair:?}")
            };
            let at = self.allocs.iter().position(|alloc| alloc.worker == worker && alloc.id == *id);
            let alloc = self.allocs.remove(at.expect("what ends was there"));
            assert!(alloc.open && alloc.deadline <= now.ms, "{alloc:?} has expired");
            assert_eq!(**told, summary(&alloc, now, EndReason::Expired));
        }
        assert!(!self.allocs.iter().any(overdue), "what has expired is gone");
    }

    /// The server stops.
    pub(crate) fn stopped(&mut self, now: Now, worker: usize, actions: &[Action]) {
        for pair in actions.chunks(2) {
            let [Action::Close(id), Action::Log(Event::AllocationEnded(told))] = pair else {
                panic!("only ends are announced at the end: {pair:?}")
            };
            let at = self.allocs.iter().position(|alloc| alloc.worker == worker && alloc.id == *id);
            let alloc = self.allocs.remove(at.expect("what ends was there"));
            assert_eq!(**told, summary(&alloc, now, EndReason::ServerStopped));
        }
        assert!(!self.allocs.iter().any(|alloc| alloc.worker == worker && alloc.open), "everything has ended");
        self.allocs.retain(|alloc| alloc.worker != worker);
    }

    /// The server gave a client a nonce, which nobody else may have (RFC 8489 §9.2.4).
    pub(crate) fn issued(&mut self, now: Now, client: SocketAddr, nonce: &str) {
        let known = *self.nonces.entry(nonce.to_owned()).or_insert((now.unix, client));
        assert_eq!(known, (now.unix, client), "a nonce is fresh and its client's alone");
    }

    fn nonce_is_good(&self, now: Now, client: SocketAddr, nonce: &str) -> bool {
        let Some((at, owner)) = self.nonces.get(nonce) else { return false };
        // One from the future was made before the clock was set back.
        let lifetime = self.setup.nonce_lifetime;
        *owner == client && now.unix < at + lifetime && *at <= now.unix + lifetime
    }

    pub(crate) fn client_packet(
        &mut self,
        now: Now,
        worker: usize,
        tuple: &FiveTuple,
        bytes: &[u8],
        signed: Signed,
    ) -> Expect {
        let ip = tuple.client.ip();
        let broadcast = IpAddr::from([255, 255, 255, 255]);
        if tuple.client.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip == broadcast {
            return Expect::Drop(DropReason::UnusableSource);
        }
        // RFC 8656 §12, Table 3; RFC 5766 §11 had channels up to 0x7FFF.
        let last_channel = if self.setup.rfc5766_channels { 127 } else { 79 };
        match bytes.first() {
            Some(first) if *first <= 3 => self.stun(now, worker, tuple, bytes, signed),
            Some(first) if (64..=last_channel).contains(first) => self.channel_data(now, tuple, bytes),
            _ => Expect::Drop(DropReason::UnknownProtocol),
        }
    }
}

fn summary(alloc: &Alloc, now: Now, reason: EndReason) -> AllocationSummary {
    AllocationSummary {
        user: alloc.user.clone(),
        tuple: alloc.tuple,
        relay: alloc.relayed,
        duration: std::time::Duration::from_millis(now.ms - alloc.created),
        bytes_to_peers: alloc.to_peers,
        bytes_to_client: alloc.to_client,
        reason,
    }
}

fn seconds_left(deadline: u64, now: Now) -> u32 {
    deadline.saturating_sub(now.ms).div_ceil(1_000) as u32
}

fn error(code: u16) -> Body {
    Body::Error { code, challenge: false, unknown: Vec::new() }
}

fn allocated(alloc: &Alloc, now: Now, answer: &Answer) -> Answer {
    let body = Body::Allocated {
        relayed: alloc.relayed,
        mapped: alloc.tuple.client,
        lifetime: seconds_left(alloc.deadline, now),
        address_error: alloc.additional,
    };
    Answer { body, ..answer.clone() }
}
