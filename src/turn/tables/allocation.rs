//! One allocation: its relayed transport addresses, permissions and channels (RFC 8656 §6, §9, §12).

use std::rc::Rc;
use std::time::Duration;

use super::channels::Channels;
use super::permissions::Permissions;
use crate::auth::Identity;
use crate::stun::attribute::AddressFamily;
use crate::stun::{ErrorCode, TransactionId};
use crate::turn::contract::{Action, FiveTuple};
use crate::turn::limit::Limit;
use crate::turn::protocol::methods::Obstacle;
use crate::turn::protocol::response::Answering;
use crate::turn::rate::{Bucket, Rate};
use crate::turn::shared::quota::{Direction, Quota, Ticket};
use crate::turn::shared::reservations::Token;
use crate::turn::tables::ports::Wish;
use crate::turn::tables::relays::Relays;
use crate::turn::time::{Deadline, Instant};

/// Of how many ICMP errors a client is told in a second: enough to learn of every peer that is gone, and nothing to
/// those who forge them.
const ICMP_PER_SECOND: u32 = 10;

/// How long it is not told again that data is dropped because of a limit.
const TOLD: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) tuple: FiveTuple,
    pub(crate) relays: Relays,
    pub(crate) state: State,
    /// Of the Allocate request, to know its retransmissions (RFC 8656 §7.2).
    pub(crate) transaction: TransactionId,
    /// Whose it is.
    pub(crate) identity: Rc<Identity>,
    pub(crate) created: Instant,
    /// The family that was asked for and is not to be had, and why (RFC 8656 §7.2 step 9).
    pub(crate) address_error: Option<(AddressFamily, ErrorCode)>,
    /// Of the port next to its own, to be told again (RFC 8656 §7.2).
    pub(crate) token: Option<Token>,
    pub(crate) permissions: Permissions,
    pub(crate) channels: Channels,
    pub(crate) bytes_to_peers: u64,
    pub(crate) bytes_to_client: u64,
    pub(crate) icmp: IcmpBudget,
    pub(crate) ticket: Ticket,
    pub(crate) meter: Meter,
}

/// What an allocation has used of its rates.
#[derive(Debug)]
pub(crate) struct Meter {
    to_peers: Bucket,
    to_client: Bucket,
    pub(crate) peers: Bucket,
    /// Until when nobody needs to be told again that its own limit, or its user's, has dropped data.
    own_told: Deadline,
    user_told: Deadline,
}

impl Meter {
    pub(crate) const UNUSED: Self = Self {
        to_peers: Bucket::FULL,
        to_client: Bucket::FULL,
        peers: Bucket::FULL,
        own_told: Deadline::PASSED,
        user_told: Deadline::PASSED,
    };
}

#[derive(Debug)]
pub(crate) enum State {
    /// The shell is opening a relay socket.
    Opening(Box<Opening>),
    Open,
}

/// What is needed to open the sockets and to answer the Allocate request then.
#[derive(Debug)]
pub(crate) struct Opening {
    /// Ports tried so far for the address family whose turn it is.
    pub(crate) attempts: u8,
    pub(crate) answering: Answering,
    /// When the allocation ends.
    pub(crate) deadline: Deadline,
    pub(crate) wish: Wish,
    /// The family whose turn is next.
    pub(crate) next: Option<AddressFamily>,
    /// The first that is not to be had, and why.
    pub(crate) failed: Option<(AddressFamily, Obstacle)>,
    /// The address is one that was reserved, and no other will do.
    pub(crate) claimed: bool,
    /// The place in the quota of the port to be reserved.
    pub(crate) reserve: Option<Ticket>,
}

/// ICMP errors that the client has been told of in a second.
#[derive(Debug, Default)]
pub(crate) struct IcmpBudget {
    second: u64,
    told: u32,
}

impl IcmpBudget {
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        if self.second != now.second() {
            *self = Self { second: now.second(), told: 0 };
        }
        self.told += u32::from(self.told <= ICMP_PER_SECOND);
        self.told <= ICMP_PER_SECOND
    }
}

impl Allocation {
    /// Whether its client has been answered and its time has not come.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        matches!(self.state, State::Open) && !self.has_ended(now)
    }

    /// Whether its time has come: that of the last of its relayed transport addresses.
    pub(crate) fn has_ended(&self, now: Instant) -> bool {
        match &self.state {
            State::Opening(opening) => opening.deadline.has_passed(now),
            State::Open => !self.relays.iter().any(|relay| relay.is_live(now)),
        }
    }

    /// Whether there is a relayed transport address of this family.
    pub(crate) fn has(&self, family: AddressFamily, now: Instant) -> bool {
        self.relays.iter().any(|relay| relay.family() == family && relay.is_live(now))
    }

    /// Whether it comes from the Allocate request with this transaction ID and USERNAME.
    pub(crate) fn was_made_by(&self, transaction: TransactionId, username: &str) -> bool {
        self.transaction == transaction && self.identity.username() == username
    }

    /// What is to be opened, unless all of it is.
    pub(crate) fn opening(&mut self) -> Option<(&mut Opening, &mut Relays)> {
        match &mut self.state {
            State::Opening(opening) => Some((opening, &mut self.relays)),
            State::Open => None,
        }
    }

    /// Counts application data that may pass, or says which limit is in its way.
    pub(crate) fn pass(
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
    pub(crate) fn complaint(&mut self, limit: Limit, now: Instant) -> Option<Action> {
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
    pub(crate) fn next_deadline(&self) -> Deadline {
        let permissions = self.permissions.iter().map(|(_, deadline)| deadline);
        let channels = self.channels.iter().map(|channel| channel.deadline);
        let own = match &self.state {
            State::Opening(opening) => opening.deadline,
            State::Open => self.relays.deadline().unwrap_or(Deadline::NEVER),
        };
        permissions.chain(channels).fold(own, Deadline::earlier)
    }

    /// Forgets permissions and channels whose time has come, also those of a relayed transport address that is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.permissions.retain(|_, deadline| !deadline.has_passed(now));
        self.channels.retain(|channel| !channel.deadline.has_passed(now));
        for relay in self.relays.iter().filter(|relay| !relay.is_live(now)) {
            let family = relay.family();
            self.permissions.retain(|address, _| AddressFamily::of(address) != family);
            self.channels.retain(|channel| AddressFamily::from(&channel.peer) != family);
        }
    }
}
