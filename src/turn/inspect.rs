//! Listing, describing and ending allocations, for control.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::contract::{AllocationId, FiveTuple, RelayedAddresses};
use super::event::{EndReason, Operator, Traffic};
use super::outcome::DropReason;
use super::server::Server;
use super::tables::allocation::Allocation;
use super::time::Instant;

/// An allocation in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationInfo {
    /// The allocation.
    pub id: AllocationId,
    /// The user.
    pub user: String,
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    /// The advertised relayed transport addresses.
    pub relay: RelayedAddresses,
    /// When the Allocate request arrived.
    pub created: Instant,
    /// The time since then.
    pub age: Duration,
    /// The time-to-expiry in seconds.
    pub expires_in: u32,
    /// The relayed traffic.
    pub traffic: Traffic,
    /// The number of permissions.
    pub permissions: usize,
    /// The number of channels.
    pub channels: usize,
}

/// An allocation with its permissions and channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationDetail {
    /// The entry in a listing.
    pub info: AllocationInfo,
    /// Each permission, and its remaining time in seconds.
    pub permissions: Vec<(IpAddr, u32)>,
    /// Each channel number, its peer, and its remaining time in seconds.
    pub channels: Vec<(u16, SocketAddr, u32)>,
    /// Each reason for which packets of the allocation were dropped, and their number.
    pub drops: Vec<(DropReason, u64)>,
}

/// Which allocations are listed: those that meet every condition. The default lists all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The user.
    pub user: Option<String>,
    /// A prefix of the client's address.
    pub client: Option<IpNet>,
    /// A prefix of a peer's address: of a permission or a channel.
    pub peer: Option<IpNet>,
}

impl Filter {
    fn accepts(&self, allocation: &Allocation, now: Instant) -> bool {
        let has_peer = |net: &IpNet| {
            let permitted = allocation.live_permissions(now).any(|(address, _)| net.contains(&address));
            permitted || allocation.live_channels(now).any(|channel| net.contains(&channel.peer.ip()))
        };
        self.user.as_ref().is_none_or(|user| user == allocation.identity.user())
            && self.client.as_ref().is_none_or(|net| net.contains(&allocation.tuple.client.ip().to_canonical()))
            && self.peer.as_ref().is_none_or(has_peer)
    }
}

/// Part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The open allocations, in no particular order.
    pub allocations: Vec<AllocationInfo>,
    /// Where the next page begins; `None` if this is the last.
    pub next: Option<Cursor>,
}

/// The place of a page in a listing. Allocations that begin or end between two pages may be missing; none is listed
/// twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u32);

impl Cursor {
    /// Returns the number from which [`from_place`](Self::from_place) makes the cursor again.
    #[must_use]
    pub fn place(self) -> u32 {
        self.0
    }

    /// Returns the cursor of a page that begins after an allocation.
    #[must_use]
    pub fn after(id: AllocationId) -> Self {
        Self(id.place + 1)
    }

    /// Returns the cursor with this number. Any number is valid.
    #[must_use]
    pub fn from_place(place: u32) -> Self {
        Self(place)
    }
}

impl Server {
    /// Examines up to `most` allocations from `cursor` on, and lists those that are open and that the filter accepts.
    /// The default cursor is the beginning.
    #[must_use]
    pub fn allocations(&self, now: Instant, cursor: Cursor, most: usize, filter: &Filter) -> Page {
        let mut page = Page::default();
        let mut examined = 0;
        for (id, allocation) in self.table.iter_from(cursor.0).take(most) {
            examined += 1;
            page.next = Some(Cursor::after(id));
            if allocation.is_open(now) && filter.accepts(allocation, now) {
                page.allocations.push(info(id, allocation, now));
            }
        }
        if examined < most {
            page.next = None;
        }
        page
    }

    /// Returns an open allocation with its permissions and channels.
    #[must_use]
    pub fn describe(&self, now: Instant, id: AllocationId) -> Option<AllocationDetail> {
        let allocation = self.table.get(id).filter(|allocation| allocation.is_open(now))?;
        let (permissions, channels) = (allocation.live_permissions(now), allocation.live_channels(now));
        Some(AllocationDetail {
            info: info(id, allocation, now),
            permissions: permissions.map(|(address, deadline)| (address, deadline.seconds_left(now))).collect(),
            channels: channels
                .map(|channel| (channel.number, channel.peer, channel.deadline.seconds_left(now)))
                .collect(),
            drops: allocation.drops.occurred().collect(),
        })
    }

    /// Ends an allocation on behalf of the operator. Returns whether it was open.
    pub fn end_allocation(&mut self, now: Instant, id: AllocationId, operator: Operator) -> bool {
        let open = self.table.get(id).is_some_and(|allocation| allocation.is_open(now));
        if open {
            self.end(id, now, EndReason::EndedByOperator(operator));
        }
        open
    }
}

pub(super) fn info(id: AllocationId, allocation: &Allocation, now: Instant) -> AllocationInfo {
    AllocationInfo {
        id,
        user: allocation.identity.user().to_owned(),
        tuple: allocation.tuple,
        relay: allocation.relays.live(now),
        created: allocation.created,
        age: now.since(allocation.created),
        expires_in: allocation.relays.seconds_left(now),
        traffic: allocation.traffic,
        permissions: allocation.live_permissions(now).count(),
        channels: allocation.live_channels(now).count(),
    }
}
