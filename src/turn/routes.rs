//! Channel routes: bound channels, announced as plain data.

use super::contract::{Action, AllocationId, ChannelRoute, NotOffloaded};
use super::server::Server;
use super::tables::allocation::Allocation;
use super::tables::channels::Channel;
use super::time::{Deadline, Instant};
use crate::stun::attribute::AddressFamily;

impl Server {
    /// Announces the changes to the routes of an allocation. Call it after every change to its channels or
    /// the deadlines of its relayed transport addresses.
    pub(crate) fn announce_routes(&mut self, id: AllocationId, now: Instant) {
        let Some(allocation) = self.table.get_mut(id) else { return };
        let mut channels = std::mem::take(&mut allocation.channels);
        for channel in channels.iter_mut() {
            let expires = allocation.route_expiry(channel, now);
            if expires == channel.route() {
                continue;
            }
            self.routes += usize::from(channel.route().is_none());
            self.routes -= usize::from(expires.is_none());
            self.actions.extend(match expires {
                Some(expires) => allocation.route(id, channel, expires).map(Action::RouteAdded),
                None => allocation.announced_route(id, channel).map(Action::RouteRemoved),
            });
            channel.set_route(expires);
        }
        allocation.channels = channels;
    }

    /// Returns why traffic of a route must not be relayed outside the core at present. A new snapshot may change it.
    #[must_use]
    pub fn why_not_offloaded(&self, route: &ChannelRoute) -> Option<NotOffloaded> {
        let (snapshot, peer) = (&self.snapshot, route.peer.ip());
        let allocation = self.table.get(route.socket.allocation());
        if snapshot.relays.is_relay_address(peer) || snapshot.policy.own.contains(&peer) {
            Some(NotOffloaded::OwnPeer)
        } else if snapshot.limits.byte_rate.is_some() || snapshot.limits.user_rates.bytes.is_some() {
            Some(NotOffloaded::ByteRate)
        } else if allocation.is_some_and(|allocation| allocation.identity.test_link().is_some()) {
            Some(NotOffloaded::TestLink)
        } else if !snapshot.compat.channels.contains(route.channel) {
            Some(NotOffloaded::ChannelNumber)
        } else {
            None
        }
    }

    /// Returns the routes whose end [`next_action`](Self::next_action) will report.
    pub fn removed_routes(&self) -> impl Iterator<Item = &ChannelRoute> + '_ {
        self.actions.iter().filter_map(|action| match action {
            Action::RouteRemoved(route) => Some(route),
            _ => None,
        })
    }

    /// Announces the end of every route of an allocation.
    pub(crate) fn remove_routes(&mut self, id: AllocationId) {
        let Some(allocation) = self.table.get(id) else { return };
        for route in allocation.channels.iter().filter_map(|channel| allocation.announced_route(id, channel)) {
            self.routes -= 1;
            self.actions.push_back(Action::RouteRemoved(route));
        }
    }

    /// Removes the permissions and channels of an allocation that have expired, and those whose relayed transport
    /// address has ended.
    pub(crate) fn remove_expired(&mut self, id: AllocationId, now: Instant) {
        self.retain_channels(id, now, |allocation, channel| {
            !channel.deadline.has_passed(now) && allocation.has(AddressFamily::from(&channel.peer), now)
        });
        let Some(allocation) = self.table.get_mut(id) else { return };
        self.gauges.subtract(allocation);
        allocation.remove_expired_permissions(now);
        self.gauges.add(allocation);
        self.announce_routes(id, now);
    }

    /// Removes the channels that `keep` does not accept, and their routes. Returns how many.
    pub(crate) fn retain_channels(
        &mut self,
        id: AllocationId,
        now: Instant,
        keep: impl Fn(&Allocation, &Channel) -> bool,
    ) -> usize {
        let Some(allocation) = self.table.get_mut(id) else { return 0 };
        if allocation.channels.iter().all(|channel| keep(allocation, channel)) {
            return 0;
        }
        let mut channels = std::mem::take(&mut allocation.channels);
        let before = channels.len();
        for channel in channels.iter().filter(|channel| !keep(allocation, channel)) {
            if let Some(route) = allocation.announced_route(id, channel) {
                self.routes -= 1;
                self.actions.push_back(Action::RouteRemoved(route));
            }
        }
        channels.retain(|channel| keep(allocation, channel));
        let removed = before - channels.len();
        allocation.channels = channels;
        self.announce_routes(id, now);
        removed
    }
}

impl Allocation {
    /// Returns when the route of a channel expires. `None` if the channel is not a route.
    fn route_expiry(&self, channel: &Channel, now: Instant) -> Option<Deadline> {
        let (_, relay) = self.relays.of_family(AddressFamily::from(&channel.peer), now)?;
        let expires = channel.deadline.earlier(relay.deadline);
        (!expires.has_passed(now)).then_some(expires)
    }

    fn announced_route(&self, id: AllocationId, channel: &Channel) -> Option<ChannelRoute> {
        channel.route().and_then(|expires| self.route(id, channel, expires))
    }

    fn route(&self, id: AllocationId, channel: &Channel, expires: Deadline) -> Option<ChannelRoute> {
        let family = AddressFamily::from(&channel.peer);
        let (index, relay) = self.relays.indexed().find(|(_, relay)| relay.family() == family)?;
        Some(ChannelRoute {
            tuple: self.tuple,
            channel: channel.number,
            socket: id.socket(index),
            relay: relay.bind(),
            peer: channel.peer,
            expires,
        })
    }
}
