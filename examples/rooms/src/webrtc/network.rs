//! The candidates of this program: host addresses, and addresses of the relay.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use str0m::Candidate;
use str0m::net::Transmit;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::connect::Trust;
use crate::message::Ice;
use crate::relay::{Relay, RelayEvent};

/// How many received datagrams wait.
const WAITING: usize = 1_024;

/// The longest datagram in bytes. Those of WebRTC are shorter.
const DATAGRAM: usize = 2_048;

/// A received datagram.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) source: SocketAddr,
    /// The candidate to which it was sent.
    pub(crate) destination: SocketAddr,
    pub(crate) data: Vec<u8>,
}

/// What the network has.
#[derive(Debug)]
pub(crate) enum NetworkEvent {
    /// A datagram.
    Datagram(Datagram),
    /// New candidates.
    Candidates(Vec<Candidate>),
    /// New candidates in place of others, which go on for a while, or are lost. Connections move by an ICE restart.
    Moved {
        /// The new ones.
        new: Vec<Candidate>,
        /// The others.
        old: Vec<Candidate>,
    },
}

/// Where an address is valid. Participants name the addresses to which this program sends, so it must not reach for them
/// what they cannot reach themselves: other programs of this machine, and its network. Relays have rules of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// No address of one program in a network that all participants can reach: link-local, multicast, unspecified.
    Other,
    Loopback,
    Private,
    Public,
}

/// Sockets.
#[derive(Debug)]
pub(crate) struct Network {
    hosts: Vec<Arc<UdpSocket>>,
    received: mpsc::Receiver<Datagram>,
    relay: Relay,
    /// The relayed addresses that were candidates last.
    relayed: Vec<SocketAddr>,
    /// Whether they still exist.
    is_allocated: bool,
    /// They end with the network.
    _readers: JoinSet<()>,
}

impl Network {
    /// Opens a socket on each host address, and begins to allocate addresses at the relay.
    pub(crate) async fn open(hosts: &[IpAddr], relay: watch::Receiver<Ice>, trust: Trust) -> io::Result<Self> {
        let (sender, received) = mpsc::channel(WAITING);
        let (mut sockets, mut readers) = (Vec::new(), JoinSet::new());
        for host in hosts {
            let socket = Arc::new(UdpSocket::bind((*host, 0)).await?);
            let address = socket.local_addr()?;
            readers.spawn(read(Arc::clone(&socket), address, sender.clone()));
            sockets.push(socket);
        }
        if sockets.is_empty() {
            // Keeps the channel open.
            readers.spawn(async move { sender.closed().await });
        }
        let relay = Relay::start(relay, trust);
        Ok(Self { hosts: sockets, received, relay, relayed: Vec::new(), is_allocated: false, _readers: readers })
    }

    /// Returns the present candidates.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let hosts = self.hosts.iter().filter_map(|socket| socket.local_addr().ok());
        let hosts = hosts.filter_map(|address| Candidate::host(address, "udp").ok());
        hosts.chain(relayed(&self.relayed).filter(|_| self.is_allocated)).collect()
    }

    /// Sends a datagram from the candidate that it names, unless its destination is in a network that only this machine
    /// reaches ([`Scope`]). It may be lost.
    pub(crate) fn send(&self, transmit: Transmit) {
        let Transmit { source, destination, contents, .. } = transmit;
        let is_from = |socket: &&Arc<UdpSocket>| socket.local_addr().is_ok_and(|own| own == source);
        match self.hosts.iter().find(is_from) {
            Some(_) if !Scope::of(source.ip()).reaches(Scope::of(destination.ip())) => {
                tracing::debug!("nothing is sent from {source} to {destination}");
            }
            Some(socket) => drop(socket.try_send_to(&contents, destination)),
            None => self.relay.send(source, destination, contents.to_vec()),
        }
    }

    /// Gives the relayed addresses back, and waits for a moment until the relay has confirmed it.
    pub(crate) async fn close(self) {
        self.relay.close().await;
    }

    /// Waits for the next event. Nothing is lost if the caller stops waiting.
    pub(crate) async fn next(&mut self) -> NetworkEvent {
        loop {
            tokio::select! {
                Some(datagram) = self.received.recv() => return NetworkEvent::Datagram(datagram),
                Some(event) = self.relay.next() => match event {
                    RelayEvent::Data { peer: source, local: destination, data } => {
                        return NetworkEvent::Datagram(Datagram { source, destination, data });
                    }
                    RelayEvent::Allocated(addresses) => {
                        self.is_allocated = true;
                        let new = relayed(&addresses).collect();
                        let old: Vec<_> = relayed(&std::mem::replace(&mut self.relayed, addresses)).collect();
                        return if old.is_empty() {
                            NetworkEvent::Candidates(new)
                        } else {
                            NetworkEvent::Moved { new, old }
                        };
                    }
                    // Connections move when there are others.
                    RelayEvent::Lost(addresses) => self.is_allocated &= addresses != self.relayed,
                },
            }
        }
    }
}

impl Scope {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [127, ..] => Self::Loopback,
            // The second one is shared by the customers of a provider (RFC 6598).
            [100, 64..=127, ..] => Self::Private,
            _ if address.is_private() => Self::Private,
            // This network, multicast, reserved and broadcast addresses.
            [0 | 224.., ..] => Self::Other,
            _ if address.is_link_local() => Self::Other,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_unique_local() {
            Self::Private
        } else if address.is_unspecified() || address.is_multicast() || address.is_unicast_link_local() {
            Self::Other
        } else {
            Self::Public
        }
    }

    /// Whether a host address of this scope sends to an address of another one: to public ones, and to those of its own
    /// network.
    fn reaches(self, other: Self) -> bool {
        match other {
            Self::Other => false,
            Self::Public => true,
            Self::Loopback | Self::Private => self == other,
        }
    }
}

/// Whether an address may be that of a participant.
pub(super) fn is_usable(address: IpAddr) -> bool {
    Scope::of(address) != Scope::Other
}

fn relayed(addresses: &[SocketAddr]) -> impl Iterator<Item = Candidate> + '_ {
    addresses.iter().filter_map(|address| Candidate::relayed(*address, *address, "udp").ok())
}

async fn read(socket: Arc<UdpSocket>, destination: SocketAddr, sender: mpsc::Sender<Datagram>) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // An error is about an earlier datagram.
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else { continue };
        let data = buffer.get(..length).unwrap_or_default().to_vec();
        // If the reader is too slow, datagrams are dropped, as with a socket.
        let _ = sender.try_send(Datagram { source, destination, data });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use str0m::net::Protocol;

    use super::*;

    #[test]
    fn host_addresses_reach_public_addresses_and_their_own_network() {
        let addresses = [
            ("192.0.2.1", Scope::Public),
            ("2001:db8::1", Scope::Public),
            ("127.0.0.1", Scope::Loopback),
            ("127.255.0.1", Scope::Loopback),
            ("::1", Scope::Loopback),
            ("::ffff:127.0.0.1", Scope::Loopback),
            ("10.0.0.5", Scope::Private),
            ("172.31.0.1", Scope::Private),
            ("192.168.1.1", Scope::Private),
            ("100.64.0.1", Scope::Private),
            ("100.128.0.1", Scope::Public),
            ("fd00::1", Scope::Private),
            ("0.0.0.0", Scope::Other),
            ("169.254.169.254", Scope::Other),
            ("224.0.0.1", Scope::Other),
            ("255.255.255.255", Scope::Other),
            ("::", Scope::Other),
            ("fe80::1", Scope::Other),
            ("ff02::1", Scope::Other),
        ];
        for (address, scope) in addresses {
            assert_eq!(Scope::of(address.parse().unwrap()), scope, "{address}");
        }
        let reached = |own: Scope| addresses.iter().filter(|(_, other)| own.reaches(*other)).count();
        assert_eq!([Scope::Public, Scope::Loopback, Scope::Private].map(reached), [3, 3 + 4, 3 + 5]);
    }

    #[tokio::test]
    async fn a_host_address_sends_to_loopback_addresses_only_if_it_is_one() {
        let credentials = Ice::default();
        let (_sender, credentials) = watch::channel(credentials);
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let destination = peer.local_addr().unwrap();
        let send = |network: &Network, contents: &[u8]| {
            let source = network.hosts[0].local_addr().unwrap();
            network.send(Transmit { proto: Protocol::Udp, source, destination, contents: contents.to_vec().into() });
        };
        let open = async |host: &str| {
            let opened = Network::open(&[host.parse().unwrap()], credentials.clone(), Trust::default()).await;
            let opened = opened.unwrap();
            opened.hosts[0].writable().await.unwrap();
            opened
        };
        // Linux sends from any address of this machine to a loopback address.
        let elsewhere = open("0.0.0.0").await;
        send(&elsewhere, b"never");
        let (loopback, mut buffer) = (open("127.0.0.1").await, [0; 16]);
        send(&loopback, b"now");
        let received = tokio::time::timeout(Duration::from_secs(20), peer.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..received], b"now");
    }
}
