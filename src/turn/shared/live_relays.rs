//! The live relayed transport addresses of all workers.
//!
//! Two clients of one server reach each other through these: a live relayed transport address of this server is always
//! an allowed peer, whatever address ranges the policy denies.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

/// One bit for each port of each relay address. A worker sets and clears the bits of the ports that it uses. All
/// workers read them.
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
    /// Creates a table without live addresses. `addresses` are pairs of the address that relay sockets are bound to and
    /// the advertised address.
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
        // Relaxed: no other memory depends on the bit.
        if live {
            word.fetch_or(bit, Ordering::Relaxed)
        } else {
            word.fetch_and(!bit, Ordering::Relaxed)
        };
    }

    /// Returns the bind address of the relay socket whose advertised address is `peer`. `None` if `peer` is not a live
    /// relayed transport address of this server. The two addresses differ behind 1:1 NAT.
    #[must_use]
    pub fn live(&self, peer: SocketAddr) -> Option<SocketAddr> {
        let address = self.addresses.iter().find(|address| address.advertised == peer.ip())?;
        address.is_live(peer.port()).then(|| SocketAddr::new(address.bind, peer.port()))
    }

    /// Whether `address` is the advertised address of one of this server's relay addresses.
    #[must_use]
    pub fn is_relay_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.advertised == address)
    }

    /// Returns the advertised address if `source` is the bind address of a live relay socket of this server, else
    /// `source`.
    #[must_use]
    pub fn advertised(&self, source: SocketAddr) -> SocketAddr {
        match self.addresses.iter().find(|address| address.bind == source.ip()) {
            Some(address) if address.is_live(source.port()) => SocketAddr::new(address.advertised, source.port()),
            _ => source,
        }
    }

    /// Returns the number of live relayed transport addresses.
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

    fn nat_relays() -> LiveRelays {
        LiveRelays::new([("10.0.0.5".parse().unwrap(), "203.0.113.9".parse().unwrap())])
    }

    #[test]
    fn a_live_relay_is_found_by_its_advertised_address_and_reached_at_its_bind_address() {
        let live = nat_relays();
        live.set(address("10.0.0.5:50000"), true);
        assert_eq!(live.live(address("203.0.113.9:50000")), Some(address("10.0.0.5:50000")));
        assert_eq!(live.live(address("10.0.0.5:50000")), None);
        assert_eq!(live.advertised(address("10.0.0.5:50000")), address("203.0.113.9:50000"));
        assert_eq!(live.count(), 1);
    }

    #[test]
    fn only_the_exact_port_is_live() {
        let live = nat_relays();
        live.set(address("10.0.0.5:65535"), true);
        assert_eq!(live.live(address("203.0.113.9:65534")), None);
        assert_eq!(live.live(address("203.0.113.8:65535")), None);
        assert_eq!(live.advertised(address("10.0.0.5:65534")), address("10.0.0.5:65534"));
        live.set(address("10.0.0.5:65535"), false);
        assert_eq!(live.live(address("203.0.113.9:65535")), None);
        assert_eq!(live.count(), 0);
    }
}
