//! What a server holds at a moment, counted as it changes, because nothing scans all allocations.

use super::server::Server;
use super::tables::allocation::{Allocation, State};
use super::tables::relays::SocketState;
use crate::stun::attribute::AddressFamily;
use crate::transport::Transport;

/// The address families of an allocation's relayed transport addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayedFamily {
    /// One IPv4 address.
    V4,
    /// One IPv6 address.
    V6,
    /// An IPv4 and an IPv6 address (RFC 8656 §7.2).
    Both,
}

impl RelayedFamily {
    /// Every value, in the order of the gauges.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Both];

    /// Returns the name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
            Self::Both => "both",
        }
    }
}

/// The numbers of what a server holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Open allocations by client transport, in the order of [`Transport::ALL`], and by address family, in the order of
    /// [`RelayedFamily::ALL`].
    pub allocations: [[u64; RelayedFamily::ALL.len()]; Transport::ALL.len()],
    /// Those of them that users of test links have.
    pub test_links: u64,
    /// Permissions. One that has expired may count for up to a second.
    pub permissions: u64,
    /// Channels whose peers have a relayed transport address of their address family.
    pub channels: u64,
}

impl Gauges {
    /// Adds the permissions of an allocation and, if it is open, the allocation.
    pub(crate) fn add(&mut self, allocation: &Allocation) {
        self.permissions += allocation.permissions.len() as u64;
        if let Some(count) = self.count_of(allocation) {
            *count += 1;
            self.test_links += u64::from(allocation.identity.test_link().is_some());
        }
    }

    /// Subtracts what `add` adds.
    pub(crate) fn subtract(&mut self, allocation: &Allocation) {
        self.permissions -= allocation.permissions.len() as u64;
        if let Some(count) = self.count_of(allocation) {
            *count -= 1;
            self.test_links -= u64::from(allocation.identity.test_link().is_some());
        }
    }

    fn count_of(&mut self, allocation: &Allocation) -> Option<&mut u64> {
        let family = allocation.relayed_family()?;
        self.allocations.get_mut(allocation.tuple.transport as usize)?.get_mut(family as usize)
    }
}

impl Allocation {
    /// Returns the address families whose sockets are open; `None` if the Allocate request has no response yet.
    fn relayed_family(&self) -> Option<RelayedFamily> {
        let State::Open = self.state else { return None };
        let has =
            |family| self.relays.iter().any(|relay| relay.family() == family && relay.socket == SocketState::Open);
        match [AddressFamily::V4, AddressFamily::V6].map(has) {
            [true, false] => Some(RelayedFamily::V4),
            [false, true] => Some(RelayedFamily::V6),
            [true, true] => Some(RelayedFamily::Both),
            [false, false] => None,
        }
    }
}

impl Server {
    /// Returns what the server holds. This takes the same time whatever it holds.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges { channels: self.routes as u64, ..self.gauges }
    }

    /// Panics if a gauge is wrong. For tests.
    pub(crate) fn check_gauges(&self) {
        let mut counted = Gauges { channels: self.routes as u64, ..Gauges::default() };
        self.table.iter().for_each(|allocation| counted.add(allocation));
        assert_eq!(self.gauges(), counted, "the gauges agree with the table");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_gauges_is_that_of_the_values() {
        assert!(Transport::ALL.iter().enumerate().all(|(at, transport)| *transport as usize == at));
        assert!(RelayedFamily::ALL.iter().enumerate().all(|(at, family)| *family as usize == at));
    }
}
