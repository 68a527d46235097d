//! What has to hold after each step.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Worker, World};
use crate::auth::LongTermKey;
use crate::fuzzing::stun::{assert_padding_is_zero, attributes};
use crate::stun::attribute::{Data, Nonce, XorPeerAddress};
use crate::stun::{Attribute as _, AttributeType, Class, IntegrityStatus, Message, Method};
use crate::turn::*;

/// The state that a packet without valid credentials must not increase.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Footprint {
    allocations: usize,
    counted: u32,
    ports: usize,
    permissions: u64,
    channels: u64,
}

impl Footprint {
    /// Asserts that nothing has been added.
    pub(super) fn assert_no_growth(&self, after: &Self) {
        assert!(
            after.allocations <= self.allocations
                && after.counted <= self.counted
                && after.ports <= self.ports
                && after.permissions <= self.permissions
                && after.channels <= self.channels,
            "a packet without credentials creates no state: {self:?}, {after:?}"
        );
    }
}

impl World {
    pub(super) fn footprint(&self) -> Footprint {
        let gauges = self.workers.iter().map(|worker| worker.server.gauges());
        let (permissions, channels) =
            gauges.fold((0, 0), |(one, other), gauges| (one + gauges.permissions, other + gauges.channels));
        Footprint {
            allocations: self.workers.iter().map(|worker| worker.server.allocation_count()).sum(),
            counted: self.ledger.quota.allocations(),
            ports: self.all_tables.taken_count(),
            permissions,
            channels,
        }
    }

    /// Whether a request has a nonce that this server made for its client, and that has not expired.
    pub(super) fn has_fresh_nonce(&self, at: usize, tuple: &FiveTuple, packet: &[u8]) -> bool {
        let nonces = &self.workers[at].server.snapshot().nonces;
        let nonce = Message::parse(packet).ok().and_then(|message| message.get::<Nonce<'_>>().ok().flatten());
        nonce.is_some_and(|Nonce(nonce)| nonces.check(nonce, self.unix, tuple.client).is_ok())
    }

    /// Whether nothing is left of any client.
    pub(in crate::fuzzing) fn is_empty(&self) -> bool {
        self.footprint() == Footprint { allocations: 0, counted: 0, ports: 0, permissions: 0, channels: 0 }
            && self.all_tables.live_count() == 0
            && self.all_tables.reservation_count() == 0
            && self.workers.iter().all(|worker| {
                worker.open.is_empty()
                    && worker.opening.is_empty()
                    && worker.rights.is_empty()
                    && worker.routes.is_empty()
            })
    }

    /// Asserts that a client and a peer may exchange data.
    pub(super) fn assert_permitted(&self, at: usize, id: AllocationId, peer: SocketAddr) {
        let Worker { server, rights, .. } = &self.workers[at];
        let rights = rights.get(&id).expect("the allocation was created");
        let lasts = |until: Option<&u64>| until.is_some_and(|until| *until > self.ms);
        assert!(
            lasts(rights.permissions.get(&peer.ip())) || lasts(rights.channels.get(&peer)),
            "{peer} has a permission or a channel"
        );
        let identity = &server.table.get(id).expect("the allocation exists").identity;
        if !server.review.is_pending() {
            assert!(server.snapshot().peer_allowed(identity, peer).is_ok(), "the policy allows {peer}");
        }
    }

    pub(super) fn assert_free(&self) {
        assert!(self.is_empty(), "everything is free: {:?}", self.footprint());
        for worker in &self.workers {
            assert_eq!(worker.server.gauges(), Gauges::default());
        }
    }

    pub(super) fn check(&self, at: usize) {
        let (now, Worker { server, opening, open, routes, rights, .. }) = (self.now(), &self.workers[at]);
        server.check_invariants(opening.len());
        assert_eq!(server.route_count(), routes.len());
        let mut in_table = 0;
        let mut created = 0;
        for (id, allocation) in server.table.iter_from(0) {
            for (index, relay) in allocation.relays.indexed() {
                if relay.socket == SocketState::Open {
                    in_table += 1;
                    assert_eq!(open.get(&id.socket(index)), Some(&relay.bind()), "an open socket is known");
                }
            }
            if !matches!(allocation.state, State::Open) {
                continue;
            }
            created += 1;
            let rights = rights.get(&id).expect("an open allocation was created");
            for (address, deadline) in allocation.live_permissions(now) {
                let left = rights.permissions.get(&address).map_or(0, |until| until.saturating_sub(self.ms));
                assert!(
                    deadline.left(now) <= Duration::from_millis(left),
                    "a permission was requested and lasts 300 s"
                );
            }
            for channel in allocation.live_channels(now) {
                let left = rights.channels.get(&channel.peer).map_or(0, |until| until.saturating_sub(self.ms));
                assert!(channel.deadline.left(now) <= Duration::from_millis(left), "a channel lasts 600 s");
            }
        }
        assert_eq!((in_table, created), (open.len(), rights.len()), "each open socket has an allocation");
        self.check_shared();
    }

    /// Checks what the workers share.
    fn check_shared(&self) {
        let all = &self.all_tables;
        let reserved = all.reservation_count();
        let (mut counted, mut held, mut live) = (reserved, reserved, 0);
        for worker in &self.workers {
            let reserves = |allocation: &Allocation| match &allocation.state {
                State::Opening(opening) => usize::from(opening.reserve.is_some()),
                State::Open => 0,
            };
            counted += worker.server.allocation_count() + worker.server.table.iter().map(reserves).sum::<usize>();
            held += worker.server.held_ports();
            live += worker.open.len();
        }
        assert_eq!(self.ledger.quota.allocations() as usize, counted, "the quota counts allocations and reservations");
        assert_eq!(all.taken_count(), held, "each taken port is held");
        assert_eq!(all.live_count(), live, "each open socket is live");
    }
}

/// Returns the peers that a request names before its integrity, without the reader of messages.
pub(super) fn signed_peers(request: &Message<'_>) -> Vec<SocketAddr> {
    const INTEGRITY: [AttributeType; 2] = [AttributeType::MESSAGE_INTEGRITY, AttributeType::MESSAGE_INTEGRITY_SHA256];
    let signed = attributes(request.as_bytes()).take_while(|(kind, ..)| !INTEGRITY.contains(kind));
    let peers = signed.filter(|(kind, ..)| *kind == XorPeerAddress::TYPE);
    peers.map(|(_, value, _)| XorPeerAddress::decode(value, request.transaction_id()).expect("it was read").0).collect()
}

/// Whether a request is signed with a key.
pub(super) fn verifies(packet: &[u8], key: &LongTermKey) -> bool {
    Message::parse(packet).is_ok_and(|message| {
        message.verify_integrity(key.as_bytes()) == IntegrityStatus::Valid
            || message.verify_integrity_sha256(key.as_bytes()) == IntegrityStatus::Valid
    })
}

/// Asserts that a message to a client has this data of a peer, and nothing else.
pub(super) fn assert_message(message: &[u8], peer: SocketAddr, data: &[u8], is_framed: bool) {
    if message[0] >= 4 {
        let Frame::Complete { message: end, length } = next_frame(message, ChannelNumbers::Rfc5766) else {
            // Without padding, the message is not a frame of a stream.
            assert!(!is_framed && message.len() == 4 + data.len());
            return assert_eq!(&message[4..], data);
        };
        assert_eq!((&message[4..end], length), (data, message.len()));
        return;
    }
    let indication = Message::parse(message).expect("a Data indication is a message");
    assert_eq!((indication.class(), indication.method()), (Class::Indication, Method::DATA));
    assert_eq!(indication.get(), Ok(Some(XorPeerAddress(peer))));
    assert_eq!(indication.get(), Ok(Some(Data(data))));
    assert_eq!(indication.attributes().count(), 2);
    assert_padding_is_zero(message);
}
