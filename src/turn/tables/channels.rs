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
    /// The same bindings ordered by peer.
    by_peer: Vec<(SocketAddr, u16)>,
}

/// A channel bound to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channel {
    pub(crate) number: u16,
    pub(crate) peer: SocketAddr,
    pub(crate) deadline: Deadline,
}

/// Why a channel cannot be bound so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BindConflict {
    NumberBoundToOtherPeer,
    PeerBoundToOtherNumber,
}

impl Channels {
    /// The peer that a channel is bound to.
    pub(crate) fn peer(&self, number: u16, now: Instant) -> Option<SocketAddr> {
        let channel = self.by_number.get(self.find(number).ok()?)?;
        (!channel.deadline.has_passed(now)).then_some(channel.peer)
    }

    /// The channel that is bound to a peer.
    pub(crate) fn number(&self, peer: SocketAddr, now: Instant) -> Option<u16> {
        let at = self.by_peer.binary_search_by_key(&peer, |(peer, _)| *peer).ok()?;
        let (_, number) = *self.by_peer.get(at)?;
        self.peer(number, now).map(|_| number)
    }

    /// Whether the two may be bound to each other; an expired binding is in nobody's way.
    pub(crate) fn conflict(&self, number: u16, peer: SocketAddr, now: Instant) -> Option<BindConflict> {
        if self.peer(number, now).is_some_and(|bound| bound != peer) {
            Some(BindConflict::NumberBoundToOtherPeer)
        } else if self.number(peer, now).is_some_and(|bound| bound != number) {
            Some(BindConflict::PeerBoundToOtherNumber)
        } else {
            None
        }
    }

    /// Binds or refreshes a channel for which there is no [`conflict`](Self::conflict).
    pub(crate) fn bind(&mut self, number: u16, peer: SocketAddr, now: Instant) {
        let deadline = Deadline::after(now, CHANNEL_LIFETIME);
        // Only an expired binding can still stand under this number or peer for somebody else.
        self.retain(|channel| !channel.deadline.has_passed(now));
        let channel = Channel { number, peer, deadline };
        match self.find(number) {
            Ok(at) => {
                if let Some(found) = self.by_number.get_mut(at) {
                    *found = channel;
                }
            }
            Err(at) => {
                insert(&mut self.by_number, at, channel);
                let at = self.by_peer.partition_point(|(other, _)| *other < peer);
                insert(&mut self.by_peer, at, (peer, number));
            }
        }
    }

    /// Returns each binding.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Channel> {
        self.by_number.iter().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Removes the bindings that `keep` does not accept.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Channel) -> bool) {
        if !self.by_number.iter().all(&keep) {
            self.by_number.retain(&keep);
            let live = &self.by_number;
            self.by_peer.retain(|(_, number)| live.binary_search_by_key(number, |channel| channel.number).is_ok());
        }
    }

    fn find(&self, number: u16) -> Result<usize, usize> {
        self.by_number.binary_search_by_key(&number, |channel| channel.number)
    }

    /// Panics unless both orders hold the same bindings.
    pub(crate) fn check_invariants(&self) {
        assert!(self.by_number.is_sorted_by(|a, b| a.number < b.number), "numbers are ordered and unique");
        assert!(self.by_peer.is_sorted_by(|a, b| a.0 < b.0), "peers are ordered and unique");
        let mut pairs: Vec<_> = self.by_number.iter().map(|channel| (channel.peer, channel.number)).collect();
        pairs.sort_unstable();
        assert_eq!(pairs, self.by_peer, "both orders hold the same bindings");
    }
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

    // RFC 8656 §12.2: neither the number nor the address may be bound otherwise.
    #[test]
    fn a_channel_and_a_peer_have_each_other_alone() {
        let mut channels = Channels::default();
        channels.bind(0x4000, peer(1), at(0));
        assert_eq!(channels.conflict(0x4000, peer(1), at(1)), None);
        assert_eq!(channels.conflict(0x4000, peer(2), at(1)), Some(BindConflict::NumberBoundToOtherPeer));
        assert_eq!(channels.conflict(0x4001, peer(1), at(1)), Some(BindConflict::PeerBoundToOtherNumber));
        assert_eq!(channels.conflict(0x4000, peer(2), at(600)), None);
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
