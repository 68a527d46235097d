//! The channel bindings of an allocation (RFC 8656 §12).

use std::net::SocketAddr;
use std::time::Duration;

use super::short_list::insert;
use crate::turn::time::{Deadline, Instant};

/// RFC 8656 §12.
const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// Channel bindings, found by number and by peer.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// Ordered by number.
    by_number: Vec<Channel>,
    /// The indices in `by_number`, ordered by peer. Rebuilt when a binding is added or removed.
    by_peer: Box<[u16]>,
}

/// A channel bound to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channel {
    pub(crate) number: u16,
    pub(crate) peer: SocketAddr,
    pub(crate) deadline: Deadline,
    /// The announced expiry of the route; [`Deadline::PASSED`] if the channel is not a route.
    route: Deadline,
}

impl Channel {
    pub(crate) fn new(number: u16, peer: SocketAddr, deadline: Deadline) -> Self {
        Self { number, peer, deadline, route: Deadline::PASSED }
    }

    /// Returns the announced expiry of the route; `None` if the channel is not a route.
    pub(crate) fn route(&self) -> Option<Deadline> {
        (self.route != Deadline::PASSED).then_some(self.route)
    }

    pub(crate) fn set_route(&mut self, expires: Option<Deadline>) {
        self.route = expires.unwrap_or(Deadline::PASSED);
    }
}

/// Why a channel cannot be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BindConflict {
    NumberBoundToOtherPeer,
    PeerBoundToOtherNumber,
}

impl Channels {
    /// Returns the peer that a channel is bound to.
    pub(crate) fn peer(&self, number: u16, now: Instant) -> Option<SocketAddr> {
        let channel = self.by_number.get(self.find(number).ok()?)?;
        (!channel.deadline.has_passed(now)).then_some(channel.peer)
    }

    /// Returns the channel that is bound to a peer.
    pub(crate) fn number(&self, peer: SocketAddr, now: Instant) -> Option<u16> {
        let at = self.find_peer(peer).ok()?;
        let channel = self.by_number.get(usize::from(*self.by_peer.get(at)?))?;
        (!channel.deadline.has_passed(now)).then_some(channel.number)
    }

    /// Returns the conflict that prevents binding `number` to `peer`, if there is one. An expired binding is no
    /// conflict.
    pub(crate) fn conflict(&self, number: u16, peer: SocketAddr, now: Instant) -> Option<BindConflict> {
        if self.peer(number, now).is_some_and(|bound| bound != peer) {
            Some(BindConflict::NumberBoundToOtherPeer)
        } else if self.number(peer, now).is_some_and(|bound| bound != number) {
            Some(BindConflict::PeerBoundToOtherNumber)
        } else {
            None
        }
    }

    /// Binds or refreshes a channel. There must be no [`conflict`](Self::conflict), and expired bindings must have been
    /// removed.
    pub(crate) fn bind(&mut self, number: u16, peer: SocketAddr, now: Instant) {
        self.bind_until(number, peer, Deadline::after(now, CHANNEL_LIFETIME));
    }

    /// Like [`bind`](Self::bind), with the given deadline.
    pub(crate) fn bind_until(&mut self, number: u16, peer: SocketAddr, deadline: Deadline) {
        match self.find(number) {
            Ok(at) => {
                if let Some(found) = self.by_number.get_mut(at) {
                    debug_assert_eq!(found.peer, peer, "expired bindings are removed first");
                    found.deadline = deadline;
                }
            }
            Err(at) => {
                insert(&mut self.by_number, at, Channel::new(number, peer, deadline));
                self.index_by_peer();
            }
        }
    }

    /// Returns each binding, ordered by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Channel> {
        self.by_number.iter()
    }

    /// Returns each binding, for changes to its route.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Channel> {
        self.by_number.iter_mut()
    }

    /// Removes the bindings that `keep` does not accept.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Channel) -> bool) {
        self.by_number.retain(keep);
        self.index_by_peer();
    }

    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    fn find(&self, number: u16) -> Result<usize, usize> {
        self.by_number.binary_search_by_key(&number, |channel| channel.number)
    }

    fn find_peer(&self, peer: SocketAddr) -> Result<usize, usize> {
        self.by_peer.binary_search_by_key(&Some(peer), |place| peer_at(&self.by_number, *place))
    }

    fn index_by_peer(&mut self) {
        self.by_peer = (0..).take(self.by_number.len()).collect();
        self.by_peer.sort_unstable_by_key(|place| peer_at(&self.by_number, *place));
    }

    /// Panics unless both orders hold the same bindings.
    pub(crate) fn check_invariants(&self) {
        assert!(self.by_number.is_sorted_by(|a, b| a.number < b.number), "numbers are ordered and unique");
        let peers: Vec<_> = self.by_peer.iter().map(|place| peer_at(&self.by_number, *place)).collect();
        assert!(peers.is_sorted_by(|a, b| a < b), "peers are ordered and unique");
        assert_eq!(peers.len(), self.by_number.len(), "both orders hold the same bindings");
    }
}

fn peer_at(by_number: &[Channel], place: u16) -> Option<SocketAddr> {
    by_number.get(usize::from(place)).map(|channel| channel.peer)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(second: u64) -> Instant {
        Instant::from_elapsed(Duration::from_secs(second))
    }

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    // RFC 8656 §12.2: neither the number nor the peer may be in another binding.
    #[test]
    fn a_channel_has_one_peer_and_a_peer_has_one_channel() {
        let mut channels = Channels::default();
        channels.bind(0x4000, peer(1), at(0));
        assert_eq!(channels.conflict(0x4000, peer(1), at(1)), None);
        assert_eq!(channels.conflict(0x4000, peer(2), at(1)), Some(BindConflict::NumberBoundToOtherPeer));
        assert_eq!(channels.conflict(0x4001, peer(1), at(1)), Some(BindConflict::PeerBoundToOtherNumber));
        assert_eq!(channels.conflict(0x4000, peer(2), at(600)), None);
        channels.retain(|channel| !channel.deadline.has_passed(at(600)));
        channels.bind(0x4000, peer(2), at(600));
        assert_eq!((channels.number(peer(1), at(600)), channels.number(peer(2), at(600))), (None, Some(0x4000)));
        channels.check_invariants();
    }

    proptest! {
        #[test]
        fn channels_behave_like_a_map(steps in prop::collection::vec((0..6u16, 0..6u16, 0..400u64), 1..80)) {
            let mut channels = Channels::default();
            let mut model = BTreeMap::<u16, (u16, u64)>::new();
            let mut second = 0;
            for (number, port, pause) in steps {
                second += pause;
                model.retain(|_, (_, deadline)| *deadline > second);
                let taken = model.get(&number).is_some_and(|(bound, _)| *bound != port)
                    || model.iter().any(|(bound, (other, _))| *other == port && *bound != number);
                prop_assert_eq!(channels.conflict(number, peer(port), at(second)).is_some(), taken);
                if !taken {
                    channels.retain(|channel| !channel.deadline.has_passed(at(second)));
                    channels.bind(number, peer(port), at(second));
                    model.insert(number, (port, second + 600));
                }
                channels.check_invariants();
                for candidate in 0..6 {
                    let expected = model.get(&candidate).map(|(port, _)| peer(*port));
                    prop_assert_eq!(channels.peer(candidate, at(second)), expected);
                    let expected = model.iter().find(|(_, (port, _))| *port == candidate).map(|(number, _)| *number);
                    prop_assert_eq!(channels.number(peer(candidate), at(second)), expected);
                }
            }
        }
    }
}
