//! Replacing the configuration of a running server, and revoking what the new one does not allow.
//!
//! A new configuration applies at once to new requests. Its limits apply at once to all data, its peer policy only to
//! data of peers without a channel. Existing allocations are reviewed a few at a time, so that no packet waits for the
//! review of all.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::contract::{Action, AllocationId};
use super::event::{EndReason, Event};
use super::server::Server;
use super::shared::policy::Denial;
use super::shared::snapshot::{Limits, Snapshot};
use super::tables::allocation::{Allocation, State};
use super::tables::relays::{Relay, SocketState};
use super::time::Instant;
use crate::auth::{Identity, IdentityCache, Standing};

/// The progress of a review.
#[derive(Debug)]
pub(crate) struct Review {
    /// The place in the table to continue at; `None` if every allocation was reviewed.
    next: Option<u32>,
    /// The highest limits so far, or the numbers of an imported allocation if they are higher. An allocation may have
    /// that many permissions and channels, because a lower limit does not remove existing ones.
    permissions: usize,
    channels: usize,
}

impl Review {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { next: None, permissions: limits.permissions_per_allocation, channels: limits.channels_per_allocation }
    }

    /// Whether there are allocations that were not reviewed since the configuration was replaced.
    pub(crate) fn is_pending(&self) -> bool {
        self.next.is_some()
    }

    /// Checks whether data may be relayed between a client and a peer with a permission. Like a channel, a permission was
    /// allowed by the policy, unless a new policy has not reviewed it yet.
    pub(crate) fn permitted_peer_allowed(
        &self,
        snapshot: &Snapshot,
        identity: &Identity,
        peer: SocketAddr,
    ) -> Result<SocketAddr, Denial> {
        if self.is_pending() {
            snapshot.peer_allowed(identity, peer)
        } else {
            snapshot.bound_peer_allowed(identity, peer)
        }
    }

    /// Checks whether data may be relayed between a client and a peer with a bound channel. Until a new policy has reviewed
    /// the channel, its peer may be on a relay address that has gone, which a client of a test link must not reach.
    pub(crate) fn bound_peer_allowed(
        &self,
        snapshot: &Snapshot,
        identity: &Identity,
        peer: SocketAddr,
    ) -> Result<SocketAddr, Denial> {
        if self.is_pending() && identity.test_link().is_some() {
            snapshot.peer_allowed(identity, peer)
        } else {
            snapshot.bound_peer_allowed(identity, peer)
        }
    }

    fn begin(&mut self, limits: &Limits) {
        self.next = Some(0);
        self.raise_caps(limits.permissions_per_allocation, limits.channels_per_allocation);
    }

    /// Records that an allocation may have this many permissions and channels.
    pub(crate) fn raise_caps(&mut self, permissions: usize, channels: usize) {
        self.permissions = self.permissions.max(permissions);
        self.channels = self.channels.max(channels);
    }

    /// Panics if an allocation exceeds the limits. For tests.
    pub(crate) fn check_caps(&self, allocation: &Allocation) {
        assert!(allocation.permissions.len() <= self.permissions, "permissions are capped");
        assert!(allocation.channels.len() <= self.channels, "channels are capped");
    }
}

impl Server {
    /// Replaces the configuration. [`review`](Self::review) then revokes what the new one does not allow.
    ///
    /// New allocations use its relay addresses at once, and reservations on relay addresses that it does not have end.
    pub fn reconfigure(&mut self, snapshot: Arc<Snapshot>) {
        // The keys of cached identities may no longer be valid.
        self.identity_cache = IdentityCache::new();
        self.database.reconfigure(self.snapshot.database.as_ref(), snapshot.database.as_ref());
        self.review.begin(&snapshot.limits);
        self.snapshot = snapshot;
        self.unreserve_gone();
    }

    /// Returns the configuration.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Reviews up to `most` allocations after [`reconfigure`](Self::reconfigure), fewer if that causes many actions, and
    /// returns whether there are more.
    ///
    /// An allocation ends if its username is revoked, or if its relay address has gone. If the configuration does not
    /// have its credentials, its next Refresh ends it. Permissions and channels whose peers the policy denies are
    /// removed, and so are channels whose numbers are not accepted.
    pub fn review(&mut self, now: Instant, most: usize) -> bool {
        let Some(next) = self.review.next else { return false };
        let ids: Vec<AllocationId> = self.table.iter_from(next).take(most).map(|(id, _)| id).collect();
        self.review.next = ids.last().map(|last| last.place + 1).filter(|_| ids.len() == most);
        for id in ids {
            if self.has_many_actions() {
                self.review.next = Some(id.place);
                break;
            }
            self.review_one(id, now);
        }
        self.review.next.is_some()
    }

    /// Ends an allocation whose listener a new configuration does not have, or whose client another listener serves.
    pub fn end_unserved(&mut self, now: Instant, id: AllocationId) {
        self.end(id, now, EndReason::ListenerRemoved);
    }

    /// Ends the relayed transport addresses of an allocation that are on a relay address that has gone.
    fn end_gone_relays(&mut self, id: AllocationId, now: Instant) {
        let snapshot = Arc::clone(&self.snapshot);
        let gone = |relay: &&Relay| relay.socket != SocketState::Closed && !snapshot.relays.contains(&relay.address);
        loop {
            let Some(allocation) = self.table.get(id) else { return };
            let opening = matches!(allocation.state, State::Opening(_));
            let Some(family) = allocation.relays.iter().find(gone).map(Relay::family) else { return };
            if opening {
                // The client sends its request again and gets another address.
                self.end(id, now, EndReason::RelayAddressGone);
            } else {
                self.end_relay(id, family, now, EndReason::RelayAddressGone);
            }
        }
    }

    /// Applies the configuration to one allocation.
    pub(crate) fn review_one(&mut self, id: AllocationId, now: Instant) {
        let snapshot = Arc::clone(&self.snapshot);
        let Some(allocation) = self.table.get_mut(id) else { return };
        match snapshot.authenticator.standing(&allocation.identity) {
            Standing::Revoked => return self.end(id, now, EndReason::CredentialsRevoked),
            standing => allocation.credentials_removed = standing == Standing::Removed,
        }
        self.end_gone_relays(id, now);
        self.remove_expired(id, now);
        let Some(allocation) = self.table.get_mut(id) else { return };
        let identity = Rc::clone(&allocation.identity);
        let before = allocation.permissions.len();
        self.gauges.subtract(allocation);
        allocation.permissions.retain(|address, _| snapshot.permission_allowed(&identity, address).is_ok());
        self.gauges.add(allocation);
        let permissions = before - allocation.permissions.len();
        let channels = self.retain_channels(id, now, |_, channel| {
            let peer = channel.peer;
            // If the peer is at a relay address of this server, its port is checked when data is relayed.
            let allowed = snapshot.permission_allowed(&identity, peer.ip()).is_ok();
            allowed && snapshot.compat.channels.contains(channel.number)
        });
        if permissions + channels == 0 {
            return;
        }
        self.announce_routes(id, now);
        self.table.reschedule(id);
        if let Some(allocation) = self.table.get(id) {
            let (user, tuple) = (allocation.identity.user().to_owned(), allocation.tuple);
            self.actions.push_back(Action::Log(Event::PeersRevoked { id, user, tuple, permissions, channels }));
        }
    }
}
