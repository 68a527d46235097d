//! What the workers share for the lifetime of the process. It has no locks.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::turn::shared::live_relays::LiveRelays;
use crate::turn::shared::quota::Quota;
use crate::turn::shared::reservations::Reservations;

/// Tables of atomic words. No reload replaces them.
#[derive(Debug)]
pub struct Ledger {
    /// The relayed transport addresses of this server that are in use.
    pub live: LiveRelays,
    /// The ports that are reserved for the client with their token.
    pub reservations: Reservations,
    /// The number of allocations, in total and per user, and the rate usage of users.
    pub quota: Arc<Quota>,
    /// The number of connections, in total and per source. A source is an IPv4 address or an IPv6 /64, as text.
    pub connections: Arc<Quota>,
    draining: AtomicBool,
}

impl Ledger {
    /// Creates a ledger without allocations. `addresses` are pairs of the address that relay sockets are bound to and
    /// the advertised address, each with `ports`. The keys come from a secure random source.
    #[must_use]
    pub fn new(
        addresses: impl IntoIterator<Item = (IpAddr, IpAddr)>,
        ports: &RangeInclusive<u16>,
        [quota, connections]: [[u8; 32]; 2],
    ) -> Self {
        let addresses: Vec<_> = addresses.into_iter().collect();
        Self {
            live: LiveRelays::new(addresses.iter().copied()),
            reservations: Reservations::new(addresses.iter().copied(), ports),
            quota: Arc::new(Quota::new(ports.len() * addresses.len(), quota)),
            connections: Arc::new(Quota::new(CONNECTIONS, connections)),
            draining: AtomicBool::new(false),
        }
    }

    /// Whether new allocations are rejected because the process is about to end.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Begins or ends a drain.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }
}

/// The number of connections that the table of sources has room for.
const CONNECTIONS: usize = 16_384;
