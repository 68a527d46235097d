//! What success responses have promised to clients, computed from the requests by the rules of RFC 8656.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::World;
use crate::fuzzing::credentials::Signature;
use crate::stun::attribute::{
    AddressErrorCode, AddressFamily, ChannelNumber, Lifetime, ReservationToken, XorMappedAddress, XorPeerAddress,
    XorRelayedAddress,
};
use crate::stun::{Attribute as _, AttributeType, Message, Method, TransactionId};
use crate::test_messages::attributes;
use crate::turn::*;

/// RFC 8656 §9 and §12, in milliseconds.
const PERMISSION: u64 = 300_000;
const CHANNEL: u64 = 600_000;
/// RFC 8656 §7.2: the least time for which a port is reserved.
pub(super) const RESERVATION: u64 = 30_000;
/// RFC 8656 §3.2 and §7.2, in seconds.
const LIFETIMES: (u32, u32) = (600, 3_600);

/// A relayed transport address of an allocation.
#[derive(Clone, Debug)]
pub(super) struct Relayed {
    pub(super) table: Arc<RelayAddress>,
    /// When it expires. Times are in milliseconds.
    pub(super) until: u64,
}

/// What a client may do on an allocation, according to the responses that it got.
#[derive(Clone, Debug)]
pub(super) struct Rights {
    pub(super) tuple: FiveTuple,
    /// Of the Allocate request, or of the last Refresh.
    pub(super) signature: Signature,
    transaction: TransactionId,
    /// By bound address.
    pub(super) relays: BTreeMap<SocketAddr, Relayed>,
    refused: Option<AddressFamily>,
    token: Option<[u8; 8]>,
    pub(super) permissions: HashMap<IpAddr, u64>,
    /// By number.
    pub(super) channels: HashMap<u16, (SocketAddr, u64)>,
}

impl Rights {
    /// Returns the channel that is bound to a peer.
    pub(super) fn channel_of(&self, peer: SocketAddr, now: u64) -> Option<u16> {
        let mut bound = self.channels.iter().filter(|(_, (bound, until))| *bound == peer && *until > now);
        bound.next().map(|(number, _)| *number)
    }

    /// Returns the peer to which a channel is bound.
    pub(super) fn peer_of(&self, number: u16, now: u64) -> Option<SocketAddr> {
        self.channels.get(&number).filter(|(_, until)| *until > now).map(|(peer, _)| *peer)
    }

    pub(super) fn has_permission(&self, address: IpAddr, now: u64) -> bool {
        self.permissions.get(&address).is_some_and(|until| *until > now)
    }

    pub(super) fn has_family_of(&self, address: IpAddr, now: u64) -> bool {
        self.relays.iter().any(|(bind, relay)| bind.is_ipv4() == address.is_ipv4() && relay.until > now)
    }

    /// Checks the response to the Allocate request, or to its retransmission (RFC 8656 §7.2). It names the relayed
    /// transport addresses that have not expired and of which `is_present` is true.
    fn assert_allocated(&self, response: &Message<'_>, now: u64, is_present: impl Fn(&Relayed) -> bool) {
        let live = self.relays.iter().filter(|(_, relay)| relay.until > now && is_present(relay));
        let relayed: Vec<SocketAddr> = response.all::<XorRelayedAddress>().map(|relayed| relayed.unwrap().0).collect();
        let live: Vec<_> = live.collect();
        let advertised = live.iter().map(|(bind, relay)| SocketAddr::new(relay.table.advertised(), bind.port()));
        assert_eq!(relayed, advertised.collect::<Vec<_>>(), "the open sockets");
        assert_eq!(response.get(), Ok(Some(XorMappedAddress(self.tuple.client))));
        let until =
            live.iter().map(|(_, relay)| relay.until).min().expect("an allocation has a relayed transport address");
        assert_eq!(response.get(), Ok(Some(Lifetime(seconds(until - now)))));
        assert_eq!(response.get(), Ok(self.token.map(ReservationToken)));
        let draft = response.attributes().find(|attribute| attribute.kind == AttributeType::DRAFT_ADDRESS_ERROR_CODE);
        let draft = draft.map(|draft| AddressErrorCode::decode(draft.value, response.transaction_id()).unwrap());
        let refused = response.get::<AddressErrorCode<'_>>().unwrap().or(draft);
        assert_eq!(refused.map(|refused| refused.family), self.refused);
    }
}

/// Returns a time in seconds, rounded up as in LIFETIME.
fn seconds(ms: u64) -> u32 {
    ms.div_ceil(1_000) as u32
}

/// What an Allocate request asks for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    families: Vec<AddressFamily>,
    is_even: bool,
    reserves: bool,
    token: Option<[u8; 8]>,
    until: u64,
    /// The relayed transport addresses whose sockets are open.
    opened: BTreeMap<SocketAddr, Relayed>,
}

/// A port that a client has reserved.
#[derive(Clone, Debug)]
pub(super) struct Reservation {
    pub(super) token: [u8; 8],
    pub(super) bind: SocketAddr,
    pub(super) table: Arc<RelayAddress>,
    /// The worker that has made it.
    pub(super) at: usize,
    pub(super) until: u64,
    pub(super) user: String,
}

/// A request for a socket.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) spec: SocketSpec,
    pub(super) tuple: FiveTuple,
    pub(super) request: Vec<u8>,
    pub(super) signature: Signature,
    asked: Asked,
    /// Its relay address.
    table: Arc<RelayAddress>,
    /// Whether its allocation has ended before its result is known.
    is_abandoned: bool,
}

impl Opening {
    /// Whether it is of an allocation that has not ended.
    pub(super) fn is_live(&self, now: u64) -> bool {
        !self.is_abandoned && self.asked.until > now
    }
}

impl World {
    /// Records the first socket that an Allocate request needs.
    pub(super) fn requested(
        &mut self,
        at: usize,
        tuple: &FiveTuple,
        spec: SocketSpec,
        request: &[u8],
        signature: &Signature,
    ) {
        assert!(!signature.has_expired(self.unix), "an expired credential makes no allocation");
        let message = Message::parse(request).expect("the request is a message");
        assert_eq!(message.method(), Method::ALLOCATE);
        let value = |kind| signed_value(&message, kind);
        let is_dual = value(AttributeType::ADDITIONAL_ADDRESS_FAMILY).is_some()
            || self.blueprint.compat.draft_dual_allocation
                && value(AttributeType::DRAFT_ADDITIONAL_ADDRESS_FAMILY).is_some();
        let token: Option<[u8; 8]> =
            value(AttributeType::RESERVATION_TOKEN).map(|token| token.try_into().expect("a token has eight bytes"));
        let families = match (token, value(AttributeType::REQUESTED_ADDRESS_FAMILY)) {
            (Some(_), _) => vec![AddressFamily::from(&spec.bind)],
            (None, Some([1, ..])) => vec![AddressFamily::V4],
            (None, Some(_)) => vec![AddressFamily::V6],
            (None, None) if is_dual => vec![AddressFamily::V4, AddressFamily::V6],
            (None, None) => vec![AddressFamily::V4],
        };
        let even_port = value(AttributeType::EVEN_PORT);
        let lifetime = 1_000 * u64::from(self.lifetime(&message, signature));
        let asked = Asked {
            families,
            is_even: even_port.is_some(),
            reserves: even_port.is_some_and(|value| value[0] & 0x80 != 0),
            token,
            until: self.ms + lifetime,
            opened: BTreeMap::new(),
        };
        if let Some(token) = token {
            let found = self.reservations.iter().position(|reservation| reservation.token == token);
            let reservation = self.reservations.swap_remove(found.expect("a token is claimed once"));
            assert_eq!(reservation.bind, spec.bind, "a token gives the reserved port");
        }
        // A client has one allocation, so an earlier one has ended.
        self.abandon(at, tuple);
        self.open_next(at, *tuple, spec, request.to_vec(), signature.clone(), asked);
    }

    /// Records that the allocation of a client has ended, if its sockets are being opened.
    pub(super) fn abandon(&mut self, at: usize, tuple: &FiveTuple) {
        let own = self.workers[at].opening.iter_mut().filter(|opening| opening.tuple == *tuple);
        own.for_each(|opening| opening.is_abandoned = true);
    }

    /// Records a socket that an Allocate request needs.
    fn open_next(
        &mut self,
        at: usize,
        tuple: FiveTuple,
        spec: SocketSpec,
        request: Vec<u8>,
        signature: Signature,
        asked: Asked,
    ) {
        let table = self.tables.iter().find(|table| table.bind() == spec.bind.ip());
        let table = Arc::clone(table.expect("a socket is on a relay address"));
        assert!(self.blueprint.ports.contains(&spec.bind.port()), "a socket is in the range of ports");
        assert!(asked.families.contains(&AddressFamily::from(&spec.bind)), "its address family was requested");
        assert!(asked.token.is_some() || !asked.is_even || spec.bind.port().is_multiple_of(2), "its port is even");
        let worker = &mut self.workers[at];
        assert!(!worker.open.contains_key(&spec.socket), "sockets are identified uniquely");
        assert!(worker.opening.iter().all(|other| other.spec.socket != spec.socket));
        worker.opening.push(Opening { spec, tuple, request, signature, asked, table, is_abandoned: false });
    }

    /// Reports the result of a requested socket.
    pub(in crate::fuzzing) fn report_opened(&mut self, at: usize, which: usize, mut result: Result<(), OpenError>) {
        if self.workers[at].opening.is_empty() {
            return;
        }
        let which = which % self.workers[at].opening.len();
        let opening = self.workers[at].opening.swap_remove(which);
        let is_live = opening.is_live(self.ms);
        let Opening { spec, tuple, request, signature, mut asked, table, is_abandoned: _ } = opening;
        // The kernel binds an address once.
        if result.is_ok() && self.workers.iter().any(|worker| worker.binds(spec.bind)) {
            result = Err(OpenError::PortInUse);
        }
        let (opened, buffer) = self.socket_opened(at, &spec, result);
        let is_used = !matches!(opened, Opened::Abandoned);
        assert!(is_live || !is_used, "an allocation that has ended is not opened");
        match (result, is_used) {
            (Ok(()), true) => {
                asked.opened.insert(spec.bind, Relayed { table: Arc::clone(&table), until: asked.until });
                self.workers[at].open.insert(spec.socket, spec.bind);
            }
            (Ok(()), false) => self.workers[at].closing.push(spec.bind),
            (Err(_), _) => {}
        }
        match opened {
            Opened::Respond(to, decision) => {
                assert_eq!(to, tuple, "the response is for the client of the request");
                let response = self.check_response(&tuple, &request, &buffer, &decision, Some(&signature));
                if matches!(decision.outcome, Outcome::Answered(_)) {
                    self.opened(at, &spec, tuple, &response, signature, (asked, &table));
                } else {
                    assert!(asked.opened.is_empty(), "an open socket is used");
                }
            }
            Opened::Open(next) => self.open_next(at, tuple, next, request, signature, asked),
            Opened::Abandoned => {}
        }
        self.carry_out(at);
    }

    /// Checks the response to an Allocate request whose sockets are open, and records what it gives to the client.
    fn opened(
        &mut self,
        at: usize,
        spec: &SocketSpec,
        tuple: FiveTuple,
        response: &[u8],
        signature: Signature,
        (asked, table): (Asked, &Arc<RelayAddress>),
    ) {
        let response = Message::parse(response).expect("a response is a message");
        let token = response.get().unwrap().map(|ReservationToken(token)| token);
        assert_eq!(token.is_some(), asked.reserves, "a port is reserved on request");
        if let Some(token) = token {
            self.tokens.push(token);
            let (even, _) = asked.opened.first_key_value().expect("an open socket");
            assert!(even.port().is_multiple_of(2), "the port before a reserved one is even");
            let bind = SocketAddr::new(even.ip(), even.port() + 1);
            assert!(self.reservations.iter().all(|other| other.token != token && other.bind != bind));
            let (until, user) = (self.ms + RESERVATION, signature.credential.user.clone());
            let table = Arc::clone(table);
            self.reservations.push(Reservation { token, bind, table, at, until, user });
        }
        let has = |family: &AddressFamily| asked.opened.keys().any(|bind| AddressFamily::from(bind) == *family);
        let refused = asked.families.iter().copied().find(|family| !has(family));
        assert!(asked.families.len() > 1 || refused.is_none(), "the requested address family");
        let open = self.workers[at].open.iter().filter(|(socket, _)| socket.allocation() == spec.socket.allocation());
        assert!(open.map(|(_, bind)| bind).collect::<BTreeSet<_>>().into_iter().eq(asked.opened.keys()));
        let rights = Rights {
            tuple,
            signature,
            transaction: response.transaction_id(),
            relays: asked.opened,
            refused,
            token,
            permissions: HashMap::new(),
            channels: HashMap::new(),
        };
        rights.assert_allocated(&response, self.ms, |_| true);
        let before = self.workers[at].created.replace((spec.socket.allocation(), rights));
        assert!(before.is_none(), "the preceding allocation was announced");
    }

    /// Returns the lifetime that a request gets, in seconds (RFC 8656 §7.2, §8.2).
    fn lifetime(&self, request: &Message<'_>, signature: &Signature) -> u32 {
        let (default, most) = LIFETIMES;
        let lifetime = signed_lifetime(request).unwrap_or(default).clamp(default, most);
        match signature.credential.expires {
            // The allocation of a test link ends with its credential.
            Some(expires) if signature.credential.is_of_test_link() && request.method() == Method::ALLOCATE => {
                lifetime.min((expires - self.unix) as u32)
            }
            _ => lifetime,
        }
    }

    /// Records what a success response gives to a client.
    pub(super) fn grant(
        &mut self,
        at: usize,
        tuple: &FiveTuple,
        request: &Message<'_>,
        response: &Message<'_>,
        signature: &Signature,
    ) {
        self.tokens.extend(response.get().unwrap().map(|ReservationToken(token)| token));
        let (ms, unix, grace) = (self.ms, self.unix, self.blueprint.expiry_grace);
        let lifetime = if request.method() == Method::REFRESH { self.lifetime(request, signature) } else { 0 };
        // An allocation that a new configuration has not reviewed is reviewed before its next request.
        let tables = &self.tables;
        let is_present = |relay: &Relayed| tables.iter().any(|table| Arc::ptr_eq(table, &relay.table));
        // The rights of an allocation that the request has deleted are still there.
        let rights = self.workers[at].rights.values_mut().find(|rights| rights.tuple == *tuple);
        let rights = rights.expect("a success response refers to an open allocation");
        assert_eq!(rights.signature.credential.username, signature.credential.username, "of the same username");
        let mut peers = signed_peers(request).peekable();
        match request.method() {
            Method::ALLOCATE => {
                assert_eq!(rights.transaction, request.transaction_id(), "an allocation is not replaced");
                rights.assert_allocated(response, ms, is_present);
            }
            Method::REFRESH => {
                let family = signed_value(request, AttributeType::REQUESTED_ADDRESS_FAMILY).map(|value| value[0] == 1);
                let is_meant = |bind: &SocketAddr| family.is_none_or(|is_v4| bind.is_ipv4() == is_v4);
                if signed_lifetime(request) == Some(0) {
                    assert_eq!(response.get(), Ok(Some(Lifetime(0))));
                    let deleted = rights.relays.iter_mut().filter(|(bind, _)| is_meant(bind));
                    deleted.for_each(|(_, relay)| relay.until = ms);
                } else {
                    // After its credential expires, an allocation is not prolonged beyond the grace period.
                    let grace = if signature.credential.is_of_test_link() { 0 } else { grace };
                    let last = signature.credential.expires.map_or(u64::MAX, |expires| {
                        assert!(expires + grace > unix, "the grace period has not ended");
                        ms + 1_000 * (expires + grace - unix)
                    });
                    let live = rights
                        .relays
                        .iter_mut()
                        .filter(|(bind, relay)| is_meant(bind) && relay.until > ms && is_present(relay));
                    let until = live.map(|(_, relay)| {
                        relay.until = (ms + 1_000 * u64::from(lifetime)).min(last.max(relay.until));
                        relay.until
                    });
                    let until = until.min().expect("a relayed transport address is refreshed");
                    assert_eq!(response.get(), Ok(Some(Lifetime(seconds(until - ms)))));
                    rights.signature = signature.clone();
                }
            }
            Method::CREATE_PERMISSION => {
                assert!(peers.peek().is_some(), "a permission is for a peer");
                for peer in peers {
                    assert!(rights.has_family_of(peer.ip(), ms), "a peer of a relayed address family");
                    rights.permissions.insert(peer.ip(), ms + PERMISSION);
                }
            }
            Method::CHANNEL_BIND => {
                let peer = peers.next().expect("a channel is bound to a peer");
                let ChannelNumber(number) = request.get().unwrap().expect("a channel number");
                assert!(rights.has_family_of(peer.ip(), ms), "a peer of a relayed address family");
                // RFC 8656 §12.2.
                assert!(rights.peer_of(number, ms).is_none_or(|bound| bound == peer), "another peer has the channel");
                assert!(
                    rights.channel_of(peer, ms).is_none_or(|bound| bound == number),
                    "the peer has another channel"
                );
                rights.channels.insert(number, (peer, ms + CHANNEL));
                rights.permissions.insert(peer.ip(), ms + PERMISSION);
            }
            method => panic!("{method:?} has no authenticated success response"),
        }
    }
}

/// Returns the value of the first attribute of a type before the integrity, without the reader of messages.
fn signed_value<'m>(request: &Message<'m>, kind: AttributeType) -> Option<&'m [u8]> {
    signed_values(request, kind).next()
}

fn signed_values<'m>(request: &Message<'m>, kind: AttributeType) -> impl Iterator<Item = &'m [u8]> {
    const INTEGRITY: [AttributeType; 2] = [AttributeType::MESSAGE_INTEGRITY, AttributeType::MESSAGE_INTEGRITY_SHA256];
    let signed = attributes(request.as_bytes()).take_while(|(kind, ..)| !INTEGRITY.contains(kind));
    signed.filter(move |(other, ..)| *other == kind).map(|(_, value, _)| value)
}

fn signed_lifetime(request: &Message<'_>) -> Option<u32> {
    let value = signed_value(request, AttributeType::LIFETIME)?;
    Some(u32::from_be_bytes(value.try_into().expect("it was read")))
}

/// Returns the peers that a request names before its integrity.
fn signed_peers<'m>(request: &Message<'m>) -> impl Iterator<Item = SocketAddr> {
    let transaction = request.transaction_id();
    let values = signed_values(request, XorPeerAddress::TYPE);
    values.map(move |value| XorPeerAddress::decode(value, transaction).expect("it was read").0)
}
