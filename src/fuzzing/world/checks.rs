//! What has to hold after each step.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::rights::{Opening, Reservation, Rights};
use super::{Worker, World};
use crate::fuzzing::credentials::{self, Signature};
use crate::stun::attribute::{AddressFamily, Data, XorPeerAddress};
use crate::stun::{Class, Message, Method};
use crate::test_messages::assert_padding_is_zero;
use crate::turn::*;

/// What a packet without effect leaves as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Footprint {
    allocations: usize,
    counted: u32,
    ports: usize,
    permissions: u64,
    channels: u64,
    /// The open allocations of each worker; `None` while it reviews them, because a packet continues a review.
    records: Vec<Option<Vec<AllocationRecord>>>,
}

impl Footprint {
    /// Asserts that nothing has been added, and that no allocation has been changed or ended. A request with valid
    /// credentials that is rejected may end an allocation whose credentials the configuration does not have.
    pub(super) fn assert_same(&self, after: &Self, is_authentic: bool) {
        assert!(
            after.allocations <= self.allocations
                && after.counted <= self.counted
                && after.ports <= self.ports
                && after.permissions <= self.permissions
                && after.channels <= self.channels,
            "a packet without effect creates no state: {self:?}, {after:?}"
        );
        for (before, after) in self.records.iter().zip(&after.records) {
            let (Some(before), Some(after)) = (before, after) else { continue };
            if is_authentic {
                for after in after {
                    let of = before.iter().find(|before| before.tuple == after.tuple).expect("it is not new");
                    // The request may have attributes of RFC 8656 all the same.
                    let of = AllocationRecord { shows_rfc8656: after.shows_rfc8656, ..of.clone() };
                    assert_eq!(of, *after, "a request that is rejected changes nothing");
                }
            } else {
                assert_eq!(before, after, "a packet without valid credentials changes nothing");
            }
        }
    }
}

impl World {
    pub(super) fn footprint(&self) -> Footprint {
        let gauges = self.workers.iter().map(|worker| worker.server.gauges());
        let (permissions, channels) =
            gauges.fold((0, 0), |(one, other), gauges| (one + gauges.permissions, other + gauges.channels));
        let records = |worker: &Worker| {
            let is_reviewed = !worker.server.review.is_pending();
            is_reviewed.then(|| worker.server.export(self.epoch()).collect())
        };
        Footprint {
            allocations: self.workers.iter().map(|worker| worker.server.allocation_count()).sum(),
            counted: self.ledger.quota.allocations(),
            ports: self.all_tables.taken_count(),
            permissions,
            channels,
            records: self.workers.iter().map(records).collect(),
        }
    }

    /// Whether a packet is a request that only a client with valid credentials can send. They may have expired.
    pub(super) fn is_authentic(&self, at: usize, tuple: &FiveTuple, packet: &[u8], signature: &Signature) -> bool {
        let Ok(message) = Message::parse(packet) else { return false };
        let lifetime = self.blueprint.nonce_lifetime;
        let is_own = |own: &Signature| signature.is_that_of(own, &self.blueprint);
        signature.signs(&message)
            && signature.has_fresh_nonce(&message, self.unix, lifetime)
            && (signature.is_known(&self.blueprint) || self.own_signature(at, tuple).is_some_and(is_own))
    }

    /// Returns the signature with which the allocation of a client was made.
    fn own_signature(&self, at: usize, tuple: &FiveTuple) -> Option<&Signature> {
        let Worker { opening, rights, .. } = &self.workers[at];
        let is_live =
            |rights: &&Rights| rights.tuple == *tuple && rights.relays.values().any(|relay| relay.until > self.ms);
        let open = rights.values().find(is_live).map(|rights| &rights.signature);
        let is_own = |opening: &&Opening| opening.tuple == *tuple && opening.is_live(self.ms);
        open.or_else(|| opening.iter().find(is_own).map(|opening| &opening.signature))
    }

    /// Whether nothing is left of any client.
    pub(in crate::fuzzing) fn is_empty(&self) -> bool {
        let Footprint { allocations, counted, ports, permissions, channels, records: _ } = self.footprint();
        (allocations, counted, ports, permissions, channels) == (0, 0, 0, 0, 0)
            && self.all_tables.live_count() == 0
            && self.all_tables.reservation_count() == 0
            && credentials::users().iter().all(|user| self.ledger.quota.of_user(user) == 0)
            && self.workers.iter().all(|worker| {
                worker.open.is_empty()
                    && worker.opening.is_empty()
                    && worker.rights.is_empty()
                    && worker.routes.is_empty()
            })
    }

    /// Asserts that the policy allows a client and a peer to exchange data.
    pub(super) fn assert_allowed(&self, at: usize, id: AllocationId, peer: SocketAddr) {
        let server = &self.workers[at].server;
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

    pub(super) fn check(&mut self, at: usize) {
        let (now, ms) = (self.now(), self.ms);
        let Worker { server, opening, open, routes, rights, .. } = &mut self.workers[at];
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
            let rights = rights.get_mut(&id).expect("an open allocation was created");
            let left = |until: u64| Duration::from_millis(until.saturating_sub(ms));
            let relays = allocation.relays.iter().filter(|relay| relay.socket == SocketState::Open);
            let mut relays: Vec<_> = relays.map(|relay| (relay.bind(), relay.deadline.left(now))).collect();
            relays.sort_unstable();
            let promised = rights.relays.iter().map(|(bind, relay)| (*bind, left(relay.until)));
            assert!(promised.eq(relays.iter().copied()), "an allocation lasts as long as promised: {rights:?}");

            // What a new policy has removed does not come back.
            let permissions: Vec<_> = allocation.live_permissions(now).collect();
            let has_family = |address| allocation.has(AddressFamily::of(address), now);
            let may_keep = |address| {
                has_family(address) && server.snapshot.permission_allowed(&allocation.identity, address).is_ok()
            };
            rights.permissions.retain(|address, until| {
                let is_kept = permissions.iter().any(|(kept, _)| kept == address);
                assert!(*until <= ms || is_kept || !may_keep(*address), "a permission lasts 300 s");
                *until > ms && is_kept
            });
            let lasting = |(address, deadline): &(IpAddr, Deadline)| {
                rights.permissions.get(address).is_some_and(|until| deadline.left(now) == left(*until))
            };
            assert!(permissions.iter().all(lasting), "a permission was requested and lasts 300 s");

            let channels: Vec<_> = allocation.live_channels(now).collect();
            rights.channels.retain(|number, (peer, until)| {
                let is_kept = channels.iter().any(|channel| (channel.number, channel.peer) == (*number, *peer));
                let is_denied = !may_keep(peer.ip()) || !server.snapshot.compat.channels.contains(*number);
                assert!(*until <= ms || is_kept || is_denied, "a channel lasts 600 s");
                *until > ms && is_kept
            });
            for channel in channels {
                let (peer, until) = rights.channels.get(&channel.number).expect("a channel was requested");
                assert_eq!((channel.peer, channel.deadline.left(now)), (*peer, left(*until)), "a channel lasts 600 s");
            }
        }
        assert_eq!((in_table, created), (open.len(), rights.len()), "each open socket has an allocation");
        self.check_shared();
    }

    /// Checks what the workers share.
    fn check_shared(&self) {
        let all = &self.all_tables;
        let reserved = self.reservations.len();
        let (mut counted, mut held, mut live) = (reserved, reserved, 0);
        let mut users: Vec<&str> = self.reservations.iter().map(|reservation| reservation.user.as_str()).collect();
        for worker in &self.workers {
            for allocation in worker.server.table.iter() {
                let reserves = matches!(&allocation.state, State::Opening(opening) if opening.reserve.is_some());
                let places = 1 + usize::from(reserves);
                counted += places;
                users.extend(std::iter::repeat_n(allocation.identity.user(), places));
            }
            held += worker.server.held_ports();
            live += worker.open.len();
        }
        assert_eq!(self.ledger.quota.allocations() as usize, counted, "the quota counts allocations and reservations");
        for user in credentials::users() {
            let own = users.iter().filter(|other| **other == user).count() as u64;
            assert_eq!(self.ledger.quota.of_user(&user), own, "the quota counts those of {user}");
        }
        for table in all.iter() {
            let own = self.reservations.iter().filter(|reservation| Arc::ptr_eq(&reservation.table, table));
            assert_eq!(table.reservations.count(), own.count(), "a port is reserved for 30 s, or until it is claimed");
        }
        let is_taken = |reservation: &Reservation| reservation.table.ports.is_taken(reservation.bind.port());
        assert!(self.reservations.iter().all(is_taken), "a reserved port is taken");
        assert_eq!(all.taken_count(), held, "each taken port is held");
        assert_eq!(all.live_count(), live, "each open socket is live");
    }
}

/// Asserts that a message to a client has this data of a peer, and nothing else. It is a ChannelData message if the peer
/// has a channel (RFC 8656 §12.6).
pub(super) fn assert_message(message: &[u8], peer: SocketAddr, channel: Option<u16>, data: &[u8], is_framed: bool) {
    if let Some(number) = channel {
        let length = u16::try_from(data.len()).expect("it fits into the length field");
        let expected = [&number.to_be_bytes(), &length.to_be_bytes(), data].concat();
        let (written, padding) = message.split_at(expected.len());
        assert_eq!(written, expected);
        let padded = if is_framed { expected.len().next_multiple_of(4) } else { expected.len() };
        assert_eq!(message.len(), padded);
        return assert!(padding.iter().all(|byte| *byte == 0));
    }
    let indication = Message::parse(message).expect("a Data indication is a message");
    assert_eq!((indication.class(), indication.method()), (Class::Indication, Method::DATA));
    assert_eq!(indication.get(), Ok(Some(XorPeerAddress(peer))));
    assert_eq!(indication.get(), Ok(Some(Data(data))));
    assert_eq!(indication.attributes().count(), 2);
    assert_padding_is_zero(message);
}
