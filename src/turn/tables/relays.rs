//! The relayed transport addresses of an allocation (RFC 8656 §7.2, §8.1).

use std::net::SocketAddr;
use std::sync::Arc;

use crate::stun::attribute::AddressFamily;
use crate::turn::contract::{RelayedAddresses, SocketIndex};
use crate::turn::shared::relay_address::RelayAddress;
use crate::turn::time::{Deadline, Instant};

/// At most one relayed transport address of each address family. Each has a time-to-expiry of its own (RFC 8656 §8.1).
#[derive(Debug, Default)]
pub(crate) struct Relays {
    first: Option<Relay>,
    /// The address of the other family. Few allocations have two.
    second: Option<Box<Relay>>,
}

/// A relayed transport address and its socket.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    pub(crate) address: Arc<RelayAddress>,
    /// The port, which this allocation holds.
    pub(crate) port: u16,
    family: AddressFamily,
    pub(crate) deadline: Deadline,
    pub(crate) socket: SocketState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketState {
    Opening,
    Open,
    /// Closed, although the allocation has not ended.
    Closed,
}

impl Relays {
    /// Stores an address and returns the index of its socket.
    pub(crate) fn set(&mut self, relay: Relay) -> SocketIndex {
        match &mut self.first {
            Some(first) if first.family() != relay.family() => {
                self.second = Some(Box::new(relay));
                SocketIndex::SECOND
            }
            first => {
                *first = Some(relay);
                SocketIndex::FIRST
            }
        }
    }

    /// Removes the address whose socket could not be opened.
    pub(crate) fn remove(&mut self, index: SocketIndex) -> Option<Relay> {
        if index == SocketIndex::FIRST { self.first.take() } else { self.second.take().map(|second| *second) }
    }

    pub(crate) fn at(&self, index: SocketIndex) -> Option<&Relay> {
        if index == SocketIndex::FIRST { self.first.as_ref() } else { self.second.as_deref() }
    }

    pub(crate) fn at_mut(&mut self, index: SocketIndex) -> Option<&mut Relay> {
        if index == SocketIndex::FIRST { self.first.as_mut() } else { self.second.as_deref_mut() }
    }

    /// Returns the address of a family and the index of its socket, if its socket is open and it has not expired.
    pub(crate) fn of_family(&self, family: AddressFamily, now: Instant) -> Option<(SocketIndex, &Relay)> {
        self.indexed().find(|(_, relay)| relay.family() == family && relay.is_live(now))
    }

    /// Returns each address and the index of its socket.
    pub(crate) fn indexed(&self) -> impl Iterator<Item = (SocketIndex, &Relay)> {
        let first = self.first.iter().map(|relay| (SocketIndex::FIRST, relay));
        first.chain(self.second.as_deref().map(|relay| (SocketIndex::SECOND, relay)))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Relay> {
        self.first.iter().chain(self.second.as_deref())
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Relay> {
        self.first.iter_mut().chain(self.second.as_deref_mut())
    }

    /// Returns the advertised addresses of the sockets that are or were open.
    pub(crate) fn advertised(&self) -> RelayedAddresses {
        self.addresses(|relay| relay.socket != SocketState::Opening)
    }

    /// Returns the advertised addresses that are in use.
    pub(crate) fn live(&self, now: Instant) -> RelayedAddresses {
        self.addresses(|relay| relay.is_live(now))
    }

    /// Returns the shortest time-to-expiry of the addresses in use, in seconds.
    pub(crate) fn seconds_left(&self, now: Instant) -> u32 {
        let live = self.iter().filter(|relay| relay.is_live(now)).map(|relay| relay.deadline.seconds_left(now));
        live.min().unwrap_or(0)
    }

    /// Returns the earliest deadline of the open sockets.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        let open = self.iter().filter(|relay| relay.socket == SocketState::Open);
        open.map(|relay| relay.deadline).reduce(Deadline::earlier)
    }

    fn addresses(&self, which: impl Fn(&Relay) -> bool) -> RelayedAddresses {
        let of = |family| self.iter().find(|relay| relay.family() == family && which(relay)).map(Relay::advertised);
        RelayedAddresses { v4: of(AddressFamily::V4), v6: of(AddressFamily::V6) }
    }
}

impl Relay {
    pub(crate) fn new(address: Arc<RelayAddress>, port: u16, deadline: Deadline, socket: SocketState) -> Self {
        let family = AddressFamily::of(address.bind());
        Self { address, port, family, deadline, socket }
    }

    /// Returns the address that the socket is bound to.
    pub(crate) fn bind(&self) -> SocketAddr {
        SocketAddr::new(self.address.bind(), self.port)
    }

    /// Returns the relayed transport address that the client and peers use.
    pub(crate) fn advertised(&self) -> SocketAddr {
        SocketAddr::new(self.address.advertised(), self.port)
    }

    pub(crate) fn family(&self) -> AddressFamily {
        self.family
    }

    pub(crate) fn is_live(&self, now: Instant) -> bool {
        self.socket == SocketState::Open && !self.deadline.has_passed(now)
    }
}
