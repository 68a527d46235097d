//! The relayed transport addresses that are live now, over all workers.
//!
//! Two clients of one server reach each other through these: a relayed address of our own is a permitted peer however
//! strict the policy is, because it is checked here and not by address range.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

/// One bit for each port of each relay address. A worker sets and clears the bits of its own ports; all read.
#[derive(Debug)]
pub struct LiveRelays {
    addresses: Vec<RelayPorts>,
}

#[derive(Debug)]
struct RelayPorts {
    bind: IpAddr,
    advertised: IpAddr,
    ports: Box<[AtomicU64]>,
}

impl LiveRelays {
    /// Takes pairs of the address that relay sockets are bound to and the address that clients are told.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = (IpAddr, IpAddr)>) -> Self {
        let ports = || (0..=u16::MAX / 64).map(|_| AtomicU64::new(0)).collect();
        let addresses =
            addresses.into_iter().map(|(bind, advertised)| RelayPorts { bind, advertised, ports: ports() }).collect();
        Self { addresses }
    }

    pub(crate) fn set(&self, bind: SocketAddr, live: bool) {
        let Some(address) = self.addresses.iter().find(|address| address.bind == bind.ip()) else { return };
        let (word, bit) = address.bit(bind.port());
        // Relaxed: the bit publishes nothing but itself.
        if live {
            word.fetch_or(bit, Ordering::Relaxed)
        } else {
            word.fetch_and(!bit, Ordering::Relaxed)
        };
    }

    /// If `peer`, as a client names it, is a live relayed transport address of ours: where datagrams for it go, which
    /// differs from the advertised address behind 1:1 NAT.
    #[must_use]
    pub fn live(&self, peer: SocketAddr) -> Option<SocketAddr> {
        let address = self.addresses.iter().find(|address| address.advertised == peer.ip())?;
        address.is_live(peer.port()).then(|| SocketAddr::new(address.bind, peer.port()))
    }

    /// Whether `address` is one of our relay addresses, as clients know them.
    #[must_use]
    pub fn is_relay_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.advertised == address)
    }

    /// The address that clients know the sender of a datagram by: a live relay socket of ours behind 1:1 NAT sends
    /// from its inside address, and is known by its outside one.
    #[must_use]
    pub fn advertised(&self, source: SocketAddr) -> SocketAddr {
        match self.addresses.iter().find(|address| address.bind == source.ip()) {
            Some(address) if address.is_live(source.port()) => SocketAddr::new(address.advertised, source.port()),
            _ => source,
        }
    }

    /// How many relayed transport addresses are live.
    #[must_use]
    pub fn count(&self) -> usize {
        let words = self.addresses.iter().flat_map(|address| address.ports.iter());
        words.map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }
}

impl RelayPorts {
    fn is_live(&self, port: u16) -> bool {
        let (word, bit) = self.bit(port);
        word.load(Ordering::Relaxed) & bit != 0
    }

    #[expect(clippy::indexing_slicing, reason = "there is a word for every 64 of the 65536 ports")]
    fn bit(&self, port: u16) -> (&AtomicU64, u64) {
        (&self.ports[usize::from(port / 64)], 1 << (port % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn behind_nat() -> LiveRelays {
        LiveRelays::new([("10.0.0.5".parse().unwrap(), "203.0.113.9".parse().unwrap())])
    }

    #[test]
    fn a_live_relay_is_known_by_its_outside_address_and_reached_at_its_inside_one() {
        let live = behind_nat();
        live.set(address("10.0.0.5:50000"), true);
        assert_eq!(live.live(address("203.0.113.9:50000")), Some(address("10.0.0.5:50000")));
        assert_eq!(live.live(address("10.0.0.5:50000")), None);
        assert_eq!(live.advertised(address("10.0.0.5:50000")), address("203.0.113.9:50000"));
        assert_eq!(live.count(), 1);
    }

    #[test]
    fn only_the_very_port_is_live() {
        let live = behind_nat();
        live.set(address("10.0.0.5:65535"), true);
        assert_eq!(live.live(address("203.0.113.9:65534")), None);
        assert_eq!(live.live(address("203.0.113.8:65535")), None);
        assert_eq!(live.advertised(address("10.0.0.5:65534")), address("10.0.0.5:65534"));
        live.set(address("10.0.0.5:65535"), false);
        assert_eq!(live.live(address("203.0.113.9:65535")), None);
        assert_eq!(live.count(), 0);
    }
}
