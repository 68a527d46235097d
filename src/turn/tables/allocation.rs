//! One allocation: its state and its rate usage (RFC 8656 §6).

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::channels::{Channel, Channels};
use super::drops::Drops;
use super::permissions::Permissions;
use super::relays::Relays;
use crate::auth::Identity;
use crate::stun::attribute::AddressFamily;
use crate::stun::{ErrorCode, TransactionId};
use crate::turn::contract::{Action, AllocationId, FiveTuple};
use crate::turn::event::Traffic;
use crate::turn::limit::Limit;
use crate::turn::outcome::DropReason;
use crate::turn::protocol::methods::AllocateFailure;
use crate::turn::protocol::response::ResponseContext;
use crate::turn::rate::Bucket;
use crate::turn::shared::ports::PortPreference;
use crate::turn::shared::quota::{Direction, Ticket};
use crate::turn::shared::relay_address::RelayAddress;
use crate::turn::shared::reservations::Token;
use crate::turn::time::{Deadline, Instant};

/// The number of ICMP errors per second that a client gets. It suffices to report unreachable peers, and limits forged
/// errors.
const ICMP_PER_SECOND: u32 = 10;

/// The time between two log entries about data that a limit drops.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) tuple: FiveTuple,
    pub(crate) relays: Relays,
    pub(crate) state: State,
    /// The transaction ID of the Allocate request. It identifies retransmissions (RFC 8656 §7.2).
    pub(crate) transaction: TransactionId,
    pub(crate) identity: Rc<Identity>,
    pub(crate) created: Instant,
    /// The requested address family that could not be allocated, and why (RFC 8656 §7.2 step 9).
    pub(crate) address_error: Option<(AddressFamily, ErrorCode)>,
    /// The token of the reserved next port. The response to a retransmission has it too (RFC 8656 §7.2).
    pub(crate) token: Option<Token>,
    pub(crate) permissions: Permissions,
    pub(crate) channels: Channels,
    pub(crate) traffic: Traffic,
    /// The packets that were dropped while it existed.
    pub(crate) drops: Drops,
    pub(crate) icmp: IcmpBudget,
    /// Whether a request of this allocation has shown that the client implements RFC 8489 or RFC 8656.
    pub(crate) shows_rfc8656: bool,
    /// Whether the configuration no longer has its credentials. Then the next Refresh ends it.
    pub(crate) credentials_removed: bool,
    pub(crate) ticket: Ticket,
    pub(crate) meter: Meter,
}

/// The rate usage of an allocation.
#[derive(Debug)]
pub(crate) struct Meter {
    to_peers: Bucket,
    to_client: Bucket,
    pub(crate) peers: Bucket,
    /// The earliest time of the next log entry about data that the limit of the allocation drops. `user_reported` is
    /// the same for the limit of the user.
    own_reported: Deadline,
    user_reported: Deadline,
}

impl Meter {
    pub(crate) const UNUSED: Self = Self {
        to_peers: Bucket::FULL,
        to_client: Bucket::FULL,
        peers: Bucket::FULL,
        own_reported: Deadline::PASSED,
        user_reported: Deadline::PASSED,
    };

    /// Returns the bucket for the bytes of one direction.
    pub(crate) fn bucket(&mut self, direction: Direction) -> &mut Bucket {
        match direction {
            Direction::ToPeers => &mut self.to_peers,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

#[derive(Debug)]
pub(crate) enum State {
    /// The shell is opening a relay socket.
    Opening(Box<Opening>),
    Open,
}

/// The state of opening the sockets, and the properties of the response to the Allocate request.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The number of ports tried for the current address family.
    pub(crate) attempts: u8,
    pub(crate) context: ResponseContext,
    /// When the allocation ends.
    pub(crate) deadline: Deadline,
    pub(crate) preference: PortPreference,
    /// The address family to open next.
    pub(crate) next: Option<AddressFamily>,
    /// The first address family that failed, and why.
    pub(crate) failed: Option<(AddressFamily, AllocateFailure)>,
    /// Whether the address was reserved. Then no other port is tried.
    pub(crate) claimed: bool,
    /// The relay addresses on which no socket could be opened, because the machine does not have them.
    pub(crate) gone: Vec<Arc<RelayAddress>>,
    /// The place in the quota for the next higher port, if the request reserves it.
    pub(crate) reserve: Option<Ticket>,
}

/// The ICMP errors that the client got in one second.
#[derive(Debug, Default)]
pub(crate) struct IcmpBudget {
    second: u32,
    sent: u32,
}

impl IcmpBudget {
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        let second = now.second_u32();
        if self.second != second {
            *self = Self { second, sent: 0 };
        }
        self.sent += u32::from(self.sent <= ICMP_PER_SECOND);
        self.sent <= ICMP_PER_SECOND
    }
}

impl Allocation {
    /// Whether its sockets are open and it has not expired.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        matches!(self.state, State::Open) && !self.has_ended(now)
    }

    /// Whether the last of its relayed transport addresses has expired.
    pub(crate) fn has_ended(&self, now: Instant) -> bool {
        match &self.state {
            State::Opening(opening) => opening.deadline.has_passed(now),
            State::Open => !self.relays.iter().any(|relay| relay.is_live(now)),
        }
    }

    /// Counts a dropped packet, and returns the reason.
    #[cold]
    pub(crate) fn dropped(&mut self, reason: DropReason) -> DropReason {
        self.drops.add(reason, 1);
        reason
    }

    /// Whether it has a relayed transport address of this family.
    pub(crate) fn has(&self, family: AddressFamily, now: Instant) -> bool {
        self.relays.of_family(family, now).is_some()
    }

    /// Whether the Allocate request with this transaction ID and USERNAME created it.
    pub(crate) fn was_made_by(&self, transaction: TransactionId, username: &str) -> bool {
        self.transaction == transaction && self.identity.username() == username
    }

    /// Returns the state of opening the sockets; `None` if the allocation is open.
    pub(crate) fn opening(&mut self) -> Option<(&mut Opening, &mut Relays)> {
        match &mut self.state {
            State::Opening(opening) => Some((opening, &mut self.relays)),
            State::Open => None,
        }
    }

    /// Returns the log entry about data that a limit has dropped, at most once per [`REPORT_INTERVAL`].
    pub(crate) fn report_limit(&mut self, id: AllocationId, limit: Limit, now: Instant) -> Option<Action> {
        let reported = match limit {
            Limit::UserBandwidth => &mut self.meter.user_reported,
            _ => &mut self.meter.own_reported,
        };
        if !reported.has_passed(now) {
            return None;
        }
        *reported = Deadline::after(now, REPORT_INTERVAL);
        Some(self.limit_reached(id, limit))
    }

    /// Returns the log entry for a client that has reached a limit with this allocation.
    pub(crate) fn limit_reached(&self, id: AllocationId, limit: Limit) -> Action {
        limit.reached(Some(id), self.identity.user(), self.tuple)
    }

    /// Returns the earliest deadline of the allocation, its permissions and its channels.
    pub(crate) fn next_deadline(&self) -> Deadline {
        let permissions = self.permissions.iter().map(|(_, deadline)| deadline);
        let channels = self.channels.iter().map(|channel| channel.deadline);
        let own = match &self.state {
            State::Opening(opening) => opening.deadline,
            State::Open => self.relays.deadline().unwrap_or(Deadline::NEVER),
        };
        permissions.chain(channels).fold(own, Deadline::earlier)
    }

    /// Returns the permissions that have not expired, and whose address family has a relayed transport address.
    pub(crate) fn live_permissions(&self, now: Instant) -> impl Iterator<Item = (IpAddr, Deadline)> {
        let live = move |(address, deadline): &(IpAddr, Deadline)| {
            !deadline.has_passed(now) && self.has(AddressFamily::of(*address), now)
        };
        self.permissions.iter().filter(live)
    }

    /// Returns the channels that have not expired, and whose address family has a relayed transport address.
    pub(crate) fn live_channels(&self, now: Instant) -> impl Iterator<Item = &Channel> {
        let live = move |channel: &&Channel| {
            !channel.deadline.has_passed(now) && self.has(AddressFamily::from(&channel.peer), now)
        };
        self.channels.iter().filter(live)
    }

    /// Removes the permissions that have expired, and those whose relayed transport address has ended.
    pub(crate) fn remove_expired_permissions(&mut self, now: Instant) {
        let live = [AddressFamily::V4, AddressFamily::V6].map(|family| self.has(family, now));
        self.permissions.retain(|address, deadline| {
            let [v4, v6] = live;
            !deadline.has_passed(now) && if address.is_ipv4() { v4 } else { v6 }
        });
    }
}
