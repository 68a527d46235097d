//! The relay addresses of the server, with the state of their ports.
//!
//! Two clients of one server reach each other through these: a live relayed transport address of this server is always
//! an allowed peer, whatever address ranges the policy denies.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::stun::attribute::AddressFamily;
use crate::turn::shared::port_map::PortMap;
use crate::turn::shared::ports::Ports;
use crate::turn::shared::quota::TicketWord;
use crate::turn::shared::reservations::{Reservations, Token};
use crate::turn::time::Instant;

/// A relay address and the tables of its ports, which all workers share. It lives as long as a snapshot or an
/// allocation uses it. Its range of ports may change; the tables then keep the state of every port.
pub struct RelayAddress {
    bind: IpAddr,
    advertised: IpAddr,
    usable: AtomicBool,
    for_all: AtomicBool,
    /// Those of the bound address. Two relay addresses share them if they differ in the advertised address only.
    pub(crate) ports: Arc<Ports>,
    pub(crate) reservations: Reservations,
    /// A bit for each port that is the port of a live relayed transport address.
    live: PortMap<AtomicU64, 64>,
}

impl fmt::Debug for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut address = f.debug_struct("RelayAddress");
        address.field("bind", &self.bind).field("advertised", &self.advertised).field("usable", &self.is_usable());
        address.finish_non_exhaustive()
    }
}

impl RelayAddress {
    /// Creates a relay address whose ports are free. Relay sockets are bound to `bind`; clients and peers use
    /// `advertised`.
    #[must_use]
    pub fn new(bind: IpAddr, advertised: IpAddr, ports: &RangeInclusive<u16>) -> Self {
        Self::with_ports(bind, advertised, Arc::new(Ports::new(ports)))
    }

    /// Creates another relay address with the same bound address and the same ports: a port that one of them uses is
    /// not free for the other.
    #[must_use]
    pub fn sharing_ports(&self, advertised: IpAddr) -> Self {
        Self::with_ports(self.bind, advertised, Arc::clone(&self.ports))
    }

    fn with_ports(bind: IpAddr, advertised: IpAddr, ports: Arc<Ports>) -> Self {
        let range = ports.range();
        Self {
            bind,
            advertised,
            usable: AtomicBool::new(true),
            for_all: AtomicBool::new(true),
            ports,
            reservations: Reservations::new(&range),
            live: PortMap::new(&range),
        }
    }

    /// Returns the address that relay sockets are bound to.
    #[must_use]
    pub fn bind(&self) -> IpAddr {
        self.bind
    }

    /// Returns the advertised address.
    #[must_use]
    pub fn advertised(&self) -> IpAddr {
        self.advertised
    }

    /// Whether new allocations may use the address.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Relaxed)
    }

    /// Sets whether new allocations may use the address. Existing ones are not affected.
    pub fn set_usable(&self, usable: bool) {
        self.usable.store(usable, Ordering::Relaxed);
    }

    /// Whether any client may get the address. Otherwise it is only for clients that reach the server at this address.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        self.for_all.load(Ordering::Relaxed)
    }

    /// Sets whether any client may get the address.
    pub fn set_for_all(&self, for_all: bool) {
        self.for_all.store(for_all, Ordering::Relaxed);
    }

    /// Whether an allocation or a reservation uses the address.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.live_count() > 0 || self.reservations.count() > 0
    }

    /// Whether no port is free.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ports.untaken() == 0
    }

    fn live_count(&self) -> usize {
        self.live.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Sets whether a port is that of a live relayed transport address.
    pub(crate) fn set_live(&self, port: u16, live: bool) {
        let Some((word, bit)) = self.live_bit(port) else { return };
        // Relaxed: no other memory depends on the bit.
        if live {
            word.fetch_or(bit, Ordering::Relaxed)
        } else {
            word.fetch_and(!bit, Ordering::Relaxed)
        };
    }

    fn is_live(&self, port: u16) -> bool {
        self.live_bit(port).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn live_bit(&self, port: u16) -> Option<(&AtomicU64, u64)> {
        Some((self.live.get(port)?, 1 << (port % 64)))
    }
}

/// The number of relay ports in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounts {
    /// Those of allocations.
    pub used: u64,
    /// Those that an EVEN-PORT request has reserved (RFC 8656 §7.2).
    pub reserved: u64,
    /// Those that rest after an allocation, or that another program uses.
    pub quarantined: u64,
    /// The others, of an address that new allocations may use.
    pub free: u64,
}

/// The relay addresses of a snapshot. Several may have the same bound address and different advertised addresses, of
/// which a reload has replaced all but the first.
#[derive(Clone, Debug, Default)]
pub struct RelayAddresses(Vec<Entry>);

/// The two addresses are here too, because the data path compares them.
#[derive(Clone, Debug)]
struct Entry {
    bind: IpAddr,
    advertised: IpAddr,
    address: Arc<RelayAddress>,
}

impl FromIterator<Arc<RelayAddress>> for RelayAddresses {
    fn from_iter<I: IntoIterator<Item = Arc<RelayAddress>>>(addresses: I) -> Self {
        let entry = |address: Arc<RelayAddress>| Entry { bind: address.bind, advertised: address.advertised, address };
        Self(addresses.into_iter().map(entry).collect())
    }
}

impl RelayAddresses {
    /// Returns the addresses in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<RelayAddress>> + Clone {
        self.0.iter().map(|entry| &entry.address)
    }

    /// Returns the bind address of the relay socket whose advertised address is `peer`. `None` if `peer` is not a live
    /// relayed transport address of this server. The two addresses differ behind 1:1 NAT.
    #[must_use]
    pub fn live(&self, peer: SocketAddr) -> Option<SocketAddr> {
        let mut of = self.0.iter().filter(|entry| entry.advertised == peer.ip());
        of.find(|entry| entry.address.is_live(peer.port())).map(|entry| SocketAddr::new(entry.bind, peer.port()))
    }

    /// Whether `address` is the advertised address of one of these relay addresses.
    #[must_use]
    pub fn is_relay_address(&self, address: IpAddr) -> bool {
        self.0.iter().any(|entry| entry.advertised == address)
    }

    /// Whether `address` is a live relayed transport address of this server, or the bind address of its socket.
    pub(crate) fn is_live(&self, address: SocketAddr) -> bool {
        let of = |entry: &&Entry| entry.bind == address.ip() || entry.advertised == address.ip();
        self.0.iter().filter(of).any(|entry| entry.address.is_live(address.port()))
    }

    /// Returns the advertised address if `source` is the bind address of a live relay socket of this server, else
    /// `source`.
    #[must_use]
    pub fn advertised(&self, source: SocketAddr) -> SocketAddr {
        let mut of = self.0.iter().filter(|entry| entry.bind == source.ip());
        let live = of.find(|entry| entry.address.is_live(source.port()));
        live.map_or(source, |entry| SocketAddr::new(entry.advertised, source.port()))
    }

    /// Returns the number of live relayed transport addresses.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.iter().map(|address| address.live_count()).sum()
    }

    /// Returns the number of ports that allocations and reservations hold.
    #[must_use]
    pub fn taken_count(&self) -> usize {
        self.first_with_ports().map(|address| address.ports.taken()).sum()
    }

    /// Replaces the range of the ports. Ports in use stay in use, and so do reservations; outside of the new range,
    /// they are not given to another allocation afterwards. Workers use the new range at once.
    pub fn set_port_range(&self, range: &RangeInclusive<u16>) {
        // A worker may take a port of the new range as soon as one of the addresses that share their ports has it.
        for address in self.iter() {
            address.live.cover(range);
            address.reservations.cover(range);
        }
        self.first_with_ports().for_each(|address| address.ports.set_range(range));
    }

    /// Returns the number of ports in each state.
    #[must_use]
    pub fn port_counts(&self, now: Instant) -> PortCounts {
        let mut counts = PortCounts {
            used: self.live_count() as u64,
            reserved: self.reservation_count() as u64,
            ..PortCounts::default()
        };
        for address in self.first_with_ports() {
            let quarantined = address.ports.quarantined(now);
            counts.quarantined += quarantined as u64;
            if address.is_usable() {
                // The counts are read one after the other, and ports change their state in between.
                counts.free += address.ports.untaken().saturating_sub(quarantined) as u64;
            }
        }
        counts
    }

    /// Returns the first of the addresses that share their ports, for all ports.
    fn first_with_ports(&self) -> impl Iterator<Item = &Arc<RelayAddress>> {
        let shares = |one: &RelayAddress, other: &RelayAddress| Arc::ptr_eq(&one.ports, &other.ports);
        self.iter()
            .enumerate()
            .filter(move |(at, own)| !self.iter().take(*at).any(|other| shares(own, other)))
            .map(|(_, own)| own)
    }

    /// Returns the number of reservations.
    #[must_use]
    pub fn reservation_count(&self) -> usize {
        self.iter().map(|address| address.reservations.count()).sum()
    }

    /// Returns the addresses of a family.
    pub(crate) fn of_family(&self, family: AddressFamily) -> impl Iterator<Item = &Arc<RelayAddress>> + Clone {
        self.iter().filter(move |address| AddressFamily::of(address.bind) == family)
    }

    /// Returns the address that relay sockets on `bind` belong to.
    pub(crate) fn bound_to(&self, bind: IpAddr) -> Option<&Arc<RelayAddress>> {
        self.iter().find(|address| address.bind == bind)
    }

    /// Whether this address, with these tables, is one of the addresses.
    pub(crate) fn contains(&self, address: &Arc<RelayAddress>) -> bool {
        self.iter().any(|own| Arc::ptr_eq(own, address))
    }

    /// Returns the address with the port that a token reserves, and the ticket of the reservation. Another worker may
    /// claim it at the same time.
    pub(crate) fn reserved(&self, token: Token) -> Option<(&Arc<RelayAddress>, TicketWord)> {
        self.iter().find_map(|address| Some((address, address.reservations.find(token)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn nat_relays() -> RelayAddresses {
        let address =
            RelayAddress::new("10.0.0.5".parse().unwrap(), "203.0.113.9".parse().unwrap(), &(50_000..=65_535));
        [Arc::new(address)].into_iter().collect()
    }

    fn set(relays: &RelayAddresses, port: u16, live: bool) {
        relays.iter().for_each(|relay| relay.set_live(port, live));
    }

    #[test]
    fn a_live_relay_is_found_by_its_advertised_address_and_reached_at_its_bind_address() {
        let relays = nat_relays();
        set(&relays, 50_000, true);
        assert_eq!(relays.live(address("203.0.113.9:50000")), Some(address("10.0.0.5:50000")));
        assert_eq!(relays.live(address("10.0.0.5:50000")), None);
        assert_eq!(relays.advertised(address("10.0.0.5:50000")), address("203.0.113.9:50000"));
        assert_eq!(relays.live_count(), 1);
    }

    #[test]
    fn only_the_exact_port_is_live() {
        let relays = nat_relays();
        set(&relays, 65_535, true);
        assert_eq!(relays.live(address("203.0.113.9:65534")), None);
        assert_eq!(relays.live(address("203.0.113.8:65535")), None);
        assert_eq!(relays.live(address("203.0.113.9:1")), None);
        assert_eq!(relays.advertised(address("10.0.0.5:65534")), address("10.0.0.5:65534"));
        set(&relays, 65_535, false);
        assert_eq!(relays.live(address("203.0.113.9:65535")), None);
        assert_eq!(relays.live_count(), 0);
    }
}
