//! The candidates of this program: host addresses, and addresses of the relay.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use str0m::Candidate;
use str0m::net::Transmit;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

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
}

/// Sockets.
#[derive(Debug)]
pub(crate) struct Network {
    hosts: Vec<Arc<UdpSocket>>,
    received: mpsc::Receiver<Datagram>,
    relay: Option<Relay>,
    relayed: Vec<SocketAddr>,
    /// They end with the network.
    _readers: JoinSet<()>,
}

impl Network {
    /// Opens a socket on each host address, and begins to allocate addresses at the relay.
    pub(crate) async fn open(hosts: &[IpAddr], relay: Option<watch::Receiver<Ice>>) -> io::Result<Self> {
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
        let relay = relay.map(Relay::start);
        Ok(Self { hosts: sockets, received, relay, relayed: Vec::new(), _readers: readers })
    }

    /// Returns the present candidates.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let hosts = self.hosts.iter().filter_map(|socket| socket.local_addr().ok());
        let hosts = hosts.filter_map(|address| Candidate::host(address, "udp").ok());
        hosts.chain(relayed(&self.relayed)).collect()
    }

    /// Sends a datagram from the candidate that it names. It may be lost.
    pub(crate) fn send(&self, transmit: Transmit) {
        let Transmit { source, destination, contents, .. } = transmit;
        if self.relayed.contains(&source) {
            if let Some(relay) = &self.relay {
                relay.send(destination, contents.to_vec());
            }
        } else if let Some(socket) = self.hosts.iter().find(|socket| socket.local_addr().is_ok_and(|own| own == source))
        {
            let _ = socket.try_send_to(&contents, destination);
        }
    }

    /// Waits for the next event. Nothing is lost if the caller stops waiting.
    pub(crate) async fn next(&mut self) -> NetworkEvent {
        loop {
            let from_relay = async {
                match &mut self.relay {
                    Some(relay) => relay.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(datagram) = self.received.recv() => return NetworkEvent::Datagram(datagram),
                Some(event) = from_relay => match event {
                    RelayEvent::Data { peer: source, local: destination, data } => {
                        return NetworkEvent::Datagram(Datagram { source, destination, data });
                    }
                    RelayEvent::Allocated(addresses) => {
                        let new = relayed(&addresses).collect();
                        self.relayed = addresses;
                        return NetworkEvent::Candidates(new);
                    }
                    // Connections find out that nothing arrives. They get the next addresses.
                    RelayEvent::Lost => self.relayed.clear(),
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
