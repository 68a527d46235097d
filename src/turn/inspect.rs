//! Listing, describing and ending allocations, for control.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::contract::{AllocationId, FiveTuple, RelayedAddresses};
use super::event::{EndReason, Traffic};
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
    /// The time since the Allocate request.
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

impl Server {
    /// Lists up to `most` open allocations from `cursor` on. The default cursor is the beginning.
    #[must_use]
    pub fn allocations(&self, now: Instant, cursor: Cursor, most: usize) -> Page {
        let mut page = Page::default();
        let mut examined = 0;
        for (id, allocation) in self.table.iter_from(cursor.0).take(most) {
            examined += 1;
            page.next = Some(Cursor(id.place + 1));
            if allocation.is_open(now) {
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
        })
    }

    /// Ends an allocation on behalf of the operator. Returns whether it was open.
    pub fn end_allocation(&mut self, now: Instant, id: AllocationId) -> bool {
        let open = self.table.get(id).is_some_and(|allocation| allocation.is_open(now));
        if open {
            self.end(id, now, EndReason::EndedByOperator);
        }
        open
    }
}

fn info(id: AllocationId, allocation: &Allocation, now: Instant) -> AllocationInfo {
    AllocationInfo {
        id,
        user: allocation.identity.user().to_owned(),
        tuple: allocation.tuple,
        relay: allocation.relays.live(now),
        age: now.since(allocation.created),
        expires_in: allocation.relays.seconds_left(now),
        traffic: allocation.traffic,
        permissions: allocation.live_permissions(now).count(),
        channels: allocation.live_channels(now).count(),
    }
}
