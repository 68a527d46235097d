//! The relayed transport addresses of an allocation (RFC 8656 §7.2, §8.1).

use std::net::{IpAddr, SocketAddr};

use crate::stun::attribute::AddressFamily;
use crate::turn::contract::RelayedAddresses;
use crate::turn::time::{Deadline, Instant};

/// At most one of each address family. Each has a time-to-expiry of its own (RFC 8656 §8.1).
#[derive(Debug, Default)]
pub(crate) struct Relays {
    first: Option<Relay>,
    /// Of the other family. Few allocations have two.
    second: Option<Box<Relay>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Relay {
    /// What its socket is bound to.
    address: IpAddr,
    /// What the client is told.
    advertised: IpAddr,
    port: u16,
    pub(crate) deadline: Deadline,
    pub(crate) socket: Socket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Socket {
    Opening,
    Open,
    /// Over before the allocation is.
    Closed,
}

impl Relays {
    /// Enters the address whose socket is being opened.
    pub(crate) fn set(&mut self, relay: Relay) {
        match &mut self.first {
            Some(first) if first.family() != relay.family() => self.second = Some(Box::new(relay)),
            first => *first = Some(relay),
        }
    }

    /// Takes the address of a family out, whose socket could not be opened.
    pub(crate) fn remove(&mut self, family: AddressFamily) {
        self.first.take_if(|relay| relay.family() == family);
        self.second.take_if(|relay| relay.family() == family);
    }

    pub(crate) fn get_mut(&mut self, family: AddressFamily) -> Option<&mut Relay> {
        self.iter_mut().find(|relay| relay.family() == family)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Relay> {
        self.first.iter().chain(self.second.as_deref())
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Relay> {
        self.first.iter_mut().chain(self.second.as_deref_mut())
    }

    /// Those that are or were open.
    pub(crate) fn told(&self) -> RelayedAddresses {
        self.addresses(|relay| relay.socket != Socket::Opening)
    }

    pub(crate) fn live(&self, now: Instant) -> RelayedAddresses {
        self.addresses(|relay| relay.is_live(now))
    }

    /// The time-to-expiry of the live one that ends first, in seconds.
    pub(crate) fn seconds_left(&self, now: Instant) -> u32 {
        let live = self.iter().filter(|relay| relay.is_live(now)).map(|relay| relay.deadline.seconds_left(now));
        live.min().unwrap_or(0)
    }

    /// The earliest end of those that are open.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        let open = self.iter().filter(|relay| relay.socket == Socket::Open);
        open.map(|relay| relay.deadline).reduce(Deadline::earlier)
    }

    fn addresses(&self, which: impl Fn(&Relay) -> bool) -> RelayedAddresses {
        let of = |family| self.iter().find(|relay| relay.family() == family && which(relay)).map(Relay::relayed);
        RelayedAddresses { v4: of(AddressFamily::V4), v6: of(AddressFamily::V6) }
    }
}

impl Relay {
    /// Its socket is being opened. Both addresses have the same port.
    pub(crate) fn opening(bind: SocketAddr, relayed: SocketAddr, deadline: Deadline) -> Self {
        debug_assert_eq!(bind.port(), relayed.port());
        Self { address: bind.ip(), advertised: relayed.ip(), port: bind.port(), deadline, socket: Socket::Opening }
    }

    /// What its socket is bound to.
    pub(crate) fn bind(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// What the client is told.
    pub(crate) fn relayed(&self) -> SocketAddr {
        SocketAddr::new(self.advertised, self.port)
    }

    pub(crate) fn family(&self) -> AddressFamily {
        AddressFamily::of(self.address)
    }

    pub(crate) fn is_live(&self, now: Instant) -> bool {
        self.socket == Socket::Open && !self.deadline.has_passed(now)
    }
}
