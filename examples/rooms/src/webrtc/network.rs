//! The candidates of this program: host addresses, and addresses of the relay.

use std::io;
use std::net::{IpAddr, SocketAddr};
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

    /// Sends a datagram from the candidate that it names. It may be lost.
    pub(crate) fn send(&self, transmit: Transmit) {
        let Transmit { source, destination, contents, .. } = transmit;
        let is_from = |socket: &&Arc<UdpSocket>| socket.local_addr().is_ok_and(|own| own == source);
        match self.hosts.iter().find(is_from) {
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

fn relayed(addresses: &[SocketAddr]) -> impl Iterator<Item = Candidate> + '_ {
    addresses.iter().filter_map(|address| Candidate::relayed(*address, *address, "udp").ok())
}

async fn read(socket: Arc<UdpSocket>, destination: SocketAddr, sender: mpsc::Sender<Datagram>) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // An error is about an earlier datagram.
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else { continue };
        let data = buffer.get(..length).unwrap_or_default().to_vec();
        // A reader that is too slow loses datagrams, as with a socket.
        let _ = sender.try_send(Datagram { source, destination, data });
    }
}
