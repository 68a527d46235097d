//! One allocation: its relayed transport addresses, permissions and channels (RFC 8656 §6, §9, §12).

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use super::contract::{Action, FiveTuple};
use super::limit::Limit;
use super::methods::Obstacle;
use super::ports::Wish;
use super::quota::{Direction, Quota, Ticket};
use super::rate::{Bucket, Rate};
use super::relays::Relays;
use super::reply::Answering;
use super::reservations::Token;
use super::time::{Deadline, Instant};
use crate::auth::Identity;
use crate::stun::attribute::AddressFamily;
use crate::stun::{ErrorCode, TransactionId};

/// RFC 8656 §9: it MUST be 300 seconds.
pub(super) const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// RFC 8656 §12.
pub(super) const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// Of how many ICMP errors a client is told in a second: enough to learn of every peer that is gone, and nothing to
/// those who forge them.
const ICMP_PER_SECOND: u32 = 10;

/// How long it is not told again that data is dropped because of a limit.
const TOLD: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) tuple: FiveTuple,
    pub(super) relays: Relays,
    pub(super) state: State,
    /// Of the Allocate request, to know its retransmissions (RFC 8656 §7.2).
    pub(super) transaction: TransactionId,
    /// Whose it is.
    pub(super) identity: Rc<Identity>,
    pub(super) created: Instant,
    /// The family that was asked for and is not to be had, and why (RFC 8656 §7.2 step 9).
    pub(super) address_error: Option<(AddressFamily, ErrorCode)>,
    /// Of the port next to its own, to be told again (RFC 8656 §7.2).
    pub(super) token: Option<Token>,
    pub(super) permissions: Permissions,
    pub(super) channels: Channels,
    pub(super) bytes_to_peers: u64,
    pub(super) bytes_to_client: u64,
    pub(super) icmp: IcmpBudget,
    pub(super) ticket: Ticket,
    pub(super) meter: Meter,
}

/// What an allocation has used of its rates.
#[derive(Debug)]
pub(super) struct Meter {
    to_peers: Bucket,
    to_client: Bucket,
    pub(super) peers: Bucket,
    /// Until when nobody needs to be told again that its own limit, or its user's, has dropped data.
    own_told: Deadline,
    user_told: Deadline,
}

impl Meter {
    pub(super) const UNUSED: Self = Self {
        to_peers: Bucket::FULL,
        to_client: Bucket::FULL,
        peers: Bucket::FULL,
        own_told: Deadline::PASSED,
        user_told: Deadline::PASSED,
    };
}

#[derive(Debug)]
pub(super) enum State {
    /// The shell is opening a relay socket.
    Opening(Box<Opening>),
    Open,
}

/// What is needed to open the sockets and to answer the Allocate request then.
#[derive(Debug)]
pub(super) struct Opening {
    /// Ports tried so far for the address family whose turn it is.
    pub(super) attempts: u8,
    pub(super) answering: Answering,
    /// When the allocation ends.
    pub(super) deadline: Deadline,
    pub(super) wish: Wish,
    /// The family whose turn is next.
    pub(super) next: Option<AddressFamily>,
    /// The first that is not to be had, and why.
    pub(super) failed: Option<(AddressFamily, Obstacle)>,
    /// The address is one that was reserved, and no other will do.
    pub(super) claimed: bool,
    /// The place in the quota of the port to be reserved.
    pub(super) reserve: Option<Ticket>,
}

/// ICMP errors that the client has been told of in a second.
#[derive(Debug, Default)]
pub(super) struct IcmpBudget {
    second: u64,
    told: u32,
}

impl IcmpBudget {
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        if self.second != now.second() {
            *self = Self { second: now.second(), told: 0 };
        }
        self.told += u32::from(self.told <= ICMP_PER_SECOND);
        self.told <= ICMP_PER_SECOND
    }
}

impl Allocation {
    /// Whether its client has been answered and its time has not come.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        matches!(self.state, State::Open) && !self.has_ended(now)
    }

    /// Whether its time has come: that of the last of its relayed transport addresses.
    pub(super) fn has_ended(&self, now: Instant) -> bool {
        match &self.state {
            State::Opening(opening) => opening.deadline.has_passed(now),
            State::Open => !self.relays.iter().any(|relay| relay.is_live(now)),
        }
    }

    /// Whether there is a relayed transport address of this family.
    pub(super) fn has(&self, family: AddressFamily, now: Instant) -> bool {
        self.relays.iter().any(|relay| relay.family() == family && relay.is_live(now))
    }

    /// Whether it comes from the Allocate request with this transaction ID and USERNAME.
    pub(super) fn was_made_by(&self, transaction: TransactionId, username: &str) -> bool {
        self.transaction == transaction && self.identity.username() == username
    }

    /// What is to be opened, unless all of it is.
    pub(super) fn opening(&mut self) -> Option<(&mut Opening, &mut Relays)> {
        match &mut self.state {
            State::Opening(opening) => Some((opening, &mut self.relays)),
            State::Open => None,
        }
    }

    /// Counts application data that may pass, or says which limit is in its way.
    pub(super) fn pass(
        &mut self,
        direction: Direction,
        bytes: usize,
        now: Instant,
        rate: Option<&Rate>,
        quota: &Quota,
    ) -> Result<(), Limit> {
        let (bucket, counter) = match direction {
            Direction::ToPeers => (&mut self.meter.to_peers, &mut self.bytes_to_peers),
            Direction::ToClient => (&mut self.meter.to_client, &mut self.bytes_to_client),
        };
        let after = match rate {
            Some(rate) => bucket.offer(rate, now, bytes).ok_or(Limit::AllocationBandwidth)?,
            None => *bucket,
        };
        // What the user's limit drops has cost the allocation nothing.
        if !quota.admits_bytes(&self.ticket, direction, now, bytes) {
            return Err(Limit::UserBandwidth);
        }
        *bucket = after;
        *counter += bytes as u64;
        Ok(())
    }

    /// What to tell of data that a limit has dropped, unless it has been told lately.
    pub(super) fn complaint(&mut self, limit: Limit, now: Instant) -> Option<Action> {
        let told = match limit {
            Limit::UserBandwidth => &mut self.meter.user_told,
            _ => &mut self.meter.own_told,
        };
        if !told.has_passed(now) {
            return None;
        }
        *told = Deadline::after(now, TOLD);
        Some(limit.reached(self.identity.user(), self.tuple))
    }

    /// When it next has something to expire.
    pub(super) fn next_deadline(&self) -> Deadline {
        let permissions = self.permissions.list.iter().map(|permission| permission.deadline);
        let channels = self.channels.by_number.iter().map(|channel| channel.deadline);
        let own = match &self.state {
            State::Opening(opening) => opening.deadline,
            State::Open => self.relays.deadline().unwrap_or(Deadline::NEVER),
        };
        permissions.chain(channels).fold(own, Deadline::earlier)
    }

    /// Forgets permissions and channels whose time has come, also those of a relayed transport address that is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.permissions.list.retain(|permission| !permission.deadline.has_passed(now));
        self.channels.retain(|channel| !channel.deadline.has_passed(now));
        for relay in self.relays.iter().filter(|relay| !relay.is_live(now)) {
            let family = relay.family();
            self.permissions.list.retain(|permission| AddressFamily::of(permission.address) != family);
            self.channels.retain(|channel| AddressFamily::from(&channel.peer) != family);
        }
    }
}

/// The addresses whose datagrams the client wants, in order.
#[derive(Debug, Default)]
pub(super) struct Permissions {
    list: Vec<Permission>,
}

#[derive(Debug)]
struct Permission {
    address: IpAddr,
    deadline: Deadline,
}

impl Permissions {
    pub(super) fn allows(&self, address: IpAddr, now: Instant) -> bool {
        self.find(address).is_ok_and(|at| self.list.get(at).is_some_and(|found| !found.deadline.has_passed(now)))
    }

    /// Installs or refreshes a permission.
    pub(super) fn install(&mut self, address: IpAddr, now: Instant) {
        let deadline = Deadline::after(now, PERMISSION_LIFETIME);
        match self.find(address) {
            Ok(at) => {
                if let Some(found) = self.list.get_mut(at) {
                    found.deadline = deadline;
                }
            }
            Err(at) => insert(&mut self.list, at, Permission { address, deadline }),
        }
    }

    /// How many of the distinct `addresses` have no entry yet.
    pub(super) fn missing(&self, addresses: impl Iterator<Item = IpAddr>) -> usize {
        let mut new: Vec<IpAddr> = addresses.filter(|address| self.find(*address).is_err()).collect();
        new.sort_unstable();
        new.dedup();
        new.len()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    fn find(&self, address: IpAddr) -> Result<usize, usize> {
        self.list.binary_search_by_key(&address, |permission| permission.address)
    }
}

/// Inserts into a list that mostly stays as short as it is: room for more is made by one at first.
fn insert<T>(list: &mut Vec<T>, at: usize, item: T) {
    if list.len() == list.capacity() {
        list.reserve_exact(if list.len() < 4 { 1 } else { list.len() });
    }
    list.insert(at, item);
}

/// Channel bindings, found by number and by peer.
#[derive(Debug, Default)]
pub(super) struct Channels {
    /// Ordered by number.
    by_number: Vec<Channel>,
    /// The same bindings ordered by peer.
    by_peer: Vec<(SocketAddr, u16)>,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    number: u16,
    peer: SocketAddr,
    deadline: Deadline,
}

/// Why a channel cannot be bound so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BindConflict {
    NumberBoundToOtherPeer,
    PeerBoundToOtherNumber,
}

impl Channels {
    /// The peer that a channel is bound to.
    pub(super) fn peer(&self, number: u16, now: Instant) -> Option<SocketAddr> {
        let channel = self.by_number.get(self.find(number).ok()?)?;
        (!channel.deadline.has_passed(now)).then_some(channel.peer)
    }

    /// The channel that is bound to a peer.
    pub(super) fn number(&self, peer: SocketAddr, now: Instant) -> Option<u16> {
        let at = self.by_peer.binary_search_by_key(&peer, |(peer, _)| *peer).ok()?;
        let (_, number) = *self.by_peer.get(at)?;
        self.peer(number, now).map(|_| number)
    }

    /// Whether the two may be bound to each other; an expired binding is in nobody's way.
    pub(super) fn conflict(&self, number: u16, peer: SocketAddr, now: Instant) -> Option<BindConflict> {
        if self.peer(number, now).is_some_and(|bound| bound != peer) {
            Some(BindConflict::NumberBoundToOtherPeer)
        } else if self.number(peer, now).is_some_and(|bound| bound != number) {
            Some(BindConflict::PeerBoundToOtherNumber)
        } else {
            None
        }
    }

    /// Binds or refreshes a channel for which there is no [`conflict`](Self::conflict).
    pub(super) fn bind(&mut self, number: u16, peer: SocketAddr, now: Instant) {
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

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    fn retain(&mut self, keep: impl Fn(&Channel) -> bool) {
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
    pub(super) fn check_invariants(&self) {
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

    // RFC 8656 §9: 300 seconds, by address alone.
    #[test]
    fn a_permission_lasts_five_minutes_from_its_last_refresh() {
        let address = peer(0).ip();
        let mut permissions = Permissions::default();
        permissions.install(address, at(0));
        assert!(permissions.allows(address, at(299)));
        permissions.install(address, at(299));
        assert!(permissions.allows(address, at(598)));
        assert!(!permissions.allows(address, at(599)));
        assert_eq!(permissions.len(), 1);
    }

    #[test]
    fn missing_counts_distinct_new_addresses() {
        let mut permissions = Permissions::default();
        let [a, b, c]: [IpAddr; 3] = [[192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 3]].map(IpAddr::from);
        permissions.install(b, at(0));
        assert_eq!(permissions.missing([a, b, c, a].into_iter()), 2);
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
