//! What a packet needs to leave this machine without the kernel's network stack: the interface, both link addresses,
//! and the longest packet. docs/offload.md, "The next hop", describes the design.
//!
//! [`Watcher`] finds the next hops of many pairs of addresses with netlink and reports what changes. `Table` has its
//! logic, without sockets. [`Asker`] asks it from another thread. None needs a capability or IP forwarding.

mod asker;
mod judge;
mod message;
mod obstacle;
mod socket;
mod table;
#[cfg(test)]
mod tests;
mod watcher;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use asker::{Asker, Desks, desks};
pub(super) use judge::Link;
use message::{List, Message};
pub use obstacle::Obstacle;
use socket::Reading;
use table::Table;
pub use watcher::{Watcher, resolve};

/// The addresses of the packets of one direction. The order is that of the destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// The destination: a client or a peer.
    pub destination: IpAddr,
    /// The source: an address of this machine.
    pub source: IpAddr,
}

impl Pair {
    /// The first and the last pair with a destination from `first` to `last`.
    fn range(first: IpAddr, last: IpAddr) -> std::ops::RangeInclusive<Self> {
        let least = Self { destination: first, source: Ipv4Addr::UNSPECIFIED.into() };
        let greatest = Self { destination: last, source: Ipv6Addr::from([u8::MAX; 16]).into() };
        least..=greatest
    }
}

/// How packets leave this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The index of the interface that sends them.
    pub interface: u32,
    /// As in [`Sent`](super::layout::Sent): the interface is a veth.
    pub is_redirected: bool,
    /// The link address of the neighbour.
    pub link_destination: [u8; 6],
    /// The link address of the interface.
    pub link_source: [u8; 6],
    /// The longest IP packet in bytes.
    pub longest_packet: u16,
}

/// A next hop, or why there is none.
pub type Resolution = Result<NextHop, Obstacle>;

/// Who asks for a pair, for example the number of a worker.
pub type Owner = u16;

/// What a [`Watcher`] reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The resolution of a pair has changed.
    Changed {
        /// Who has asked for the pair.
        owner: Owner,
        /// The pair.
        pair: Pair,
        /// Its resolution.
        resolution: Resolution,
    },
    /// The kernel has not heard from the neighbour for some time. It examines the neighbour only if the kernel itself
    /// sends a packet to it: the owner sends the next packet through a socket, either of this pair or, if this pair has
    /// no packets, of another one with the same interface and link address of the neighbour.
    Use {
        /// Who has asked for the pair. Each owner of the pair gets a notice.
        owner: Owner,
        /// The pair.
        pair: Pair,
    },
}

impl Notice {
    fn is_for(&self, owner: Owner, pair: &Pair) -> bool {
        let (Self::Changed { owner: other, pair: about, .. } | Self::Use { owner: other, pair: about }) = self;
        *other == owner && about == pair
    }
}

/// Returns the interfaces of the network namespace of this thread, by their indices, with their addresses.
pub(super) fn interfaces() -> io::Result<BTreeMap<u32, (Link, Vec<IpAddr>)>> {
    let mut interfaces = BTreeMap::<u32, (Link, Vec<IpAddr>)>::new();
    // The interfaces are read first.
    for message in Reading::of(&[List::Addresses, List::Links])?.complete()? {
        match message {
            Message::Link(index, link) => {
                interfaces.insert(index, (link, Vec::new()));
            }
            Message::Address(index, ip) => {
                if let Some((_, addresses)) = interfaces.get_mut(&index) {
                    addresses.push(ip);
                }
            }
            _ => {}
        }
    }
    Ok(interfaces)
}
