//! The model: the behaviour that RFC 8656 and RFC 8489 require, with linear lists and absolute times in milliseconds.
//!
//! Where the server has a choice (a port, the moment within a second at which it removes what has expired), the model
//! checks the choice and adopts it.

mod addresses;
mod allocate;
mod data;
mod requests;
mod tokens;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use turnserver::auth::KeyAlgorithm;
use turnserver::stun::{Method, TransactionId};
use turnserver::turn::{
    Action, Alternate, Denial, DropReason, Event, FiveTuple, Limit, RedirectCause, RedirectWhen, SocketId,
};

pub(crate) use self::addresses::{Alloc, Reservation};
pub(crate) use self::allocate::PortPreference;
use self::allocate::Wanted;
use self::tokens::UserTokens;
use crate::packet::Signed;
use crate::setup::{Credential, Setup};

/// No port is free. The model does not distinguish whether other programs use some of the ports.
pub(crate) const NO_PORT: Limit = Limit::RelayPorts;

/// The two clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) ms: u64,
    /// Seconds.
    pub(crate) unix: u64,
}

/// The expected decision about a client's packet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expect {
    Drop(DropReason),
    ToPeer {
        relay: SocketId,
        peer: SocketAddr,
        payload: Vec<u8>,
        dont_fragment: bool,
    },
    Respond(ExpectedResponse),
    /// Open a relay socket.
    Open(Box<Wanted>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExpectedResponse {
    pub(crate) method: Method,
    pub(crate) transaction: TransactionId,
    pub(crate) fingerprint: bool,
    /// The credential of the integrity attribute.
    pub(crate) signer: Option<usize>,
    /// Which of its keys is used.
    pub(crate) keyed: KeyAlgorithm,
    /// Whether it has MESSAGE-INTEGRITY, and whether it has MESSAGE-INTEGRITY-SHA256.
    pub(crate) integrity: (bool, bool),
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Mapped(SocketAddr),
    Allocated {
        relayed: Vec<SocketAddr>,
        mapped: SocketAddr,
        lifetime: u32,
        /// Whether the family is IPv6, and the code.
        address_error: Option<(bool, u16)>,
        token: Option<[u8; 8]>,
    },
    Refreshed(u32),
    Empty,
    Error {
        code: u16,
        challenge: bool,
        unknown: Vec<u16>,
    },
    /// An error that is counted under the limit.
    LimitReached(Limit),
    Redirected {
        servers: Vec<SocketAddr>,
        domain: Option<String>,
    },
}

/// The expected decision about a peer's datagram or an ICMP error.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ExpectPeer {
    Drop(DropReason),
    Channel(FiveTuple, u16),
    Indication(FiveTuple, SocketAddr),
    /// The 5-tuple, the peer and the data of the ICMP attribute.
    Icmp(FiveTuple, SocketAddr, u32),
}

/// The expected decision after a relay socket was opened or failed to open.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ExpectOpened {
    Respond(FiveTuple, ExpectedResponse),
    /// Another socket of this address family for this allocation of the model.
    OpenAnother {
        at: usize,
        v6: bool,
    },
    Abandoned,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) setup: Setup,
    pub(crate) credentials: Vec<Credential>,
    /// That of the packet that arrives now.
    pub(crate) hop_limit: u8,
    /// Includes expired ones until the server has ended them.
    pub(crate) allocs: Vec<Alloc>,
    /// Reserved ports.
    pub(crate) reservations: Vec<Reservation>,
    /// Every token so far.
    tokens: Vec<[u8; 8]>,
    /// Relay sockets that exist, are being opened or are being closed.
    pub(crate) taken: Vec<SocketAddr>,
    pub(crate) set_aside: Vec<(SocketAddr, u64)>,
    /// The ports whose socket was closed a short time ago. They are used only if no other is free.
    resting: Vec<(SocketAddr, u64)>,
    /// Every nonce so far, with its time and client.
    nonces: HashMap<String, (u64, SocketAddr)>,
    /// The token buckets of users.
    users: HashMap<String, UserTokens>,
    /// The expected actions of the server, in order.
    pub(crate) announced: Vec<Action>,
    pub(crate) draining: bool,
}

impl Model {
    pub(crate) fn new(setup: Setup, credentials: Vec<Credential>) -> Self {
        Self {
            hop_limit: 0,
            setup,
            credentials,
            allocs: Vec::new(),
            reservations: Vec::new(),
            tokens: Vec::new(),
            taken: Vec::new(),
            set_aside: Vec::new(),
            resting: Vec::new(),
            nonces: HashMap::new(),
            users: HashMap::new(),
            announced: Vec::new(),
            draining: false,
        }
    }

    fn find(&self, tuple: &FiveTuple) -> Option<usize> {
        self.allocs.iter().position(|alloc| alloc.tuple == *tuple)
    }

    /// Returns the open allocation of a 5-tuple.
    pub(crate) fn live(&self, now: Now, tuple: &FiveTuple) -> Option<usize> {
        self.find(tuple).filter(|at| self.allocs[*at].open && !self.allocs[*at].has_ended(now))
    }

    /// Returns the address that the relay socket of an advertised address is bound to.
    fn own_relay(&self, peer: SocketAddr) -> Option<SocketAddr> {
        self.open_sockets().find(|address| address.relayed == peer).map(|address| address.bind)
    }

    /// Returns the advertised address of the sender of a datagram.
    fn advertised_source(&self, source: SocketAddr) -> SocketAddr {
        self.open_sockets().find(|address| address.bind == source).map_or(source, |address| address.relayed)
    }

    /// Whether the address is that of a relay socket, or the relayed transport address that clients know.
    fn is_relayed(&self, address: SocketAddr) -> bool {
        self.open_sockets().any(|open| [open.bind, open.relayed].contains(&address))
    }

    /// Returns the destination of data for a peer, or why the policy denies it.
    fn peer(&self, peer: SocketAddr) -> Result<SocketAddr, Denial> {
        match self.own_relay(peer) {
            Some(bind) => Ok(bind),
            None => self.setup.denial(peer.ip()).map_or(Ok(peer), Err),
        }
    }

    /// Announces that a client has reached a limit.
    fn limit_reached(&mut self, at: usize, limit: Limit) {
        let alloc = &self.allocs[at];
        let (id, user, tuple) = (Some(alloc.id()), alloc.user.clone(), alloc.tuple);
        self.announced.push(Action::Log(Event::LimitReached { id, user, tuple, limit }));
    }

    /// Returns the response to an Allocate request that fails: this error, or a redirection if there is an alternate
    /// server for the case `when` (RFC 8489 §10). The transaction ID, which is random, selects the server.
    fn redirect_or_reject(
        &mut self,
        failure: Body,
        when: Option<RedirectWhen>,
        user: &str,
        tuple: &FiveTuple,
        transaction: TransactionId,
    ) -> Body {
        let (user, tuple) = (user.to_owned(), *tuple);
        let sum: usize = transaction.as_bytes().iter().map(|byte| usize::from(*byte)).sum();
        let pick = |alternate: &Alternate, v6: bool| {
            let of_family: Vec<_> = alternate.servers.iter().filter(|server| server.is_ipv6() == v6).collect();
            (!of_family.is_empty()).then(|| *of_family[sum % of_family.len()])
        };
        let v6 = tuple.client.is_ipv6();
        let alternate =
            self.setup.alternate.as_ref().filter(|alternate| when.is_some_and(|when| when <= alternate.when));
        let Some((alternate, server)) = alternate.and_then(|alternate| Some((alternate, pick(alternate, v6)?))) else {
            self.announced.push(Action::Log(match failure {
                Body::LimitReached(limit) => Event::LimitReached { id: None, user, tuple, limit },
                _ => Event::AllocationRejected { user, tuple, reason: "" },
            }));
            return failure;
        };
        let servers = std::iter::once(server).chain(pick(alternate, !v6)).collect();
        let cause = match (when, failure) {
            (Some(RedirectWhen::Always), _) => RedirectCause::Always,
            (_, Body::LimitReached(limit)) => RedirectCause::Limit(limit),
            _ => RedirectCause::Rejected(""),
        };
        self.announced.push(Action::Log(Event::AllocationRedirected { user, tuple, server, cause }));
        // The clients use UDP, so the name in a certificate is not sent.
        Body::Redirected { servers, domain: None }
    }

    /// Checks that a nonce is unique to its client (RFC 8489 §9.2.4).
    pub(crate) fn issued(&mut self, now: Now, client: SocketAddr, nonce: &str) {
        let known = *self.nonces.entry(nonce.to_owned()).or_insert((now.unix, client));
        assert_eq!(known, (now.unix, client), "a nonce is new and unique to its client");
    }

    fn nonce_is_good(&self, now: Now, client: SocketAddr, nonce: &str) -> bool {
        let Some((at, owner)) = self.nonces.get(nonce) else { return false };
        // A nonce from the future was made before the clock was set back.
        let lifetime = self.setup.nonce_lifetime;
        *owner == client && now.unix < at + lifetime && *at <= now.unix + lifetime
    }

    pub(crate) fn client_packet(&mut self, now: Now, tuple: &FiveTuple, bytes: &[u8], signed: Signed) -> Expect {
        let ip = tuple.client.ip();
        let broadcast = IpAddr::from([255, 255, 255, 255]);
        if tuple.client.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip == broadcast {
            return Expect::Drop(DropReason::UnusableSource);
        }
        // RFC 8656 §12, Table 3; RFC 5766 §11 had channels up to 0x7FFF.
        let last_channel = if self.setup.rfc5766_channels { 127 } else { 79 };
        match bytes.first() {
            Some(first) if *first <= 3 => self.stun(now, tuple, bytes, signed),
            Some(first) if (64..=last_channel).contains(first) => self.channel_data(now, tuple, bytes),
            _ => Expect::Drop(DropReason::UnknownProtocol),
        }
    }
}

fn seconds_left(deadline: u64, now: Now) -> u32 {
    deadline.saturating_sub(now.ms).div_ceil(1_000) as u32
}

fn error(code: u16) -> Body {
    Body::Error { code, challenge: false, unknown: Vec::new() }
}
