//! A relayed address: a socket that sends and receives through the relay.
//!
//! [`keeper`] is the protocol, without sockets and clocks; [`link`] is the connection with the relay. The task here joins
//! the two, and allocates again when an allocation is lost.

mod keeper;
mod link;

use std::net::SocketAddr;
use std::str::FromStr as _;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use turnserver::auth::Secret;
use turnserver::client::{Credentials, Failure};
use turnserver::transport::{Transport, TurnUri};

use crate::message::Ice;
use keeper::{Keeper, Output};
use link::Link;

/// How many datagrams wait in each direction. More are lost, as in the network.
const WAITING: usize = 1_024;

/// The shortest and the longest pause before the next attempt to allocate.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The time to connect.
const CONNECT: Duration = Duration::from_secs(5);

/// How many alternate servers are followed one after another (RFC 8489 §10).
const REDIRECTIONS: usize = 4;

/// What happens to a relayed address.
#[derive(Debug)]
pub enum RelayEvent {
    /// There are relayed addresses: one, or one of each family.
    Allocated(Vec<SocketAddr>),
    /// They are lost. Others come later.
    Lost,
    /// A peer sent data.
    Data {
        /// The peer.
        peer: SocketAddr,
        /// The relayed address to which it was sent.
        local: SocketAddr,
        /// The data.
        data: Vec<u8>,
    },
}

/// A relayed address. It is given back when this is dropped.
#[derive(Debug)]
pub struct Relay {
    outgoing: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    incoming: mpsc::Receiver<RelayEvent>,
}

impl Relay {
    /// Begins to allocate with the first of the servers that can be used. Each allocation uses the credentials that are
    /// the newest then.
    #[must_use]
    pub fn start(ice: watch::Receiver<Ice>) -> Self {
        let (outgoing, to_send) = mpsc::channel(WAITING);
        let (events, incoming) = mpsc::channel(WAITING);
        tokio::spawn(Task { ice, to_send, events }.run());
        Self { outgoing, incoming }
    }

    /// Sends data to a peer. It is lost if there is no relayed address.
    pub fn send(&self, peer: SocketAddr, data: Vec<u8>) {
        let _ = self.outgoing.try_send((peer, data));
    }

    /// Waits for the next event. Nothing is lost if the caller stops waiting.
    pub async fn next(&mut self) -> Option<RelayEvent> {
        self.incoming.recv().await
    }
}

/// Why an allocation has ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Link(#[from] std::io::Error),
    #[error("{0}")]
    Refused(#[from] Failure),
    #[error("{0} is not used: {1}")]
    Uri(String, String),
    #[error("no connection within {} s", CONNECT.as_secs())]
    Late,
}

/// Whether the owner still wants a relayed address.
#[derive(PartialEq, Eq)]
enum Owner {
    Present,
    Gone,
}

/// A server, and how to authenticate.
struct Server {
    uri: TurnUri,
    credentials: Credentials,
}

/// Keeps a relayed address.
struct Task {
    ice: watch::Receiver<Ice>,
    to_send: mpsc::Receiver<(SocketAddr, Vec<u8>)>,
    events: mpsc::Sender<RelayEvent>,
}

impl Task {
    async fn run(mut self) {
        let mut pause = PAUSES.0;
        loop {
            for server in self.servers() {
                let mut was_allocated = false;
                match self.use_server(server, &mut was_allocated).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!("no relayed address: {error}"),
                }
                if was_allocated {
                    pause = PAUSES.0;
                    if self.events.send(RelayEvent::Lost).await.is_err() {
                        return;
                    }
                    // The next attempt uses the newest credentials.
                    break;
                }
            }
            if self.wait(pause).await == Owner::Gone {
                return;
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Waits until the next attempt. Data in the meantime is lost.
    async fn wait(&mut self, pause: Duration) -> Owner {
        let end = sleep(pause);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return Owner::Present,
                sent = self.to_send.recv() => if sent.is_none() { return Owner::Gone },
            }
        }
    }

    /// Returns the servers in their order.
    fn servers(&self) -> Vec<Server> {
        let mut servers = Vec::new();
        for entry in &self.ice.borrow().ice_servers {
            let Ok(password) = Secret::new(entry.credential.as_bytes()) else { continue };
            let credentials = Credentials { username: entry.username.clone(), password };
            let uris = entry.urls.iter().filter_map(|url| TurnUri::from_str(url).ok());
            servers.extend(uris.map(|uri| Server { uri, credentials: credentials.clone() }));
        }
        servers
    }

    /// Allocates, and relays until the owner is gone.
    async fn use_server(&mut self, mut server: Server, was_allocated: &mut bool) -> Result<(), Ended> {
        for _ in 0..REDIRECTIONS {
            match self.relay(&server, was_allocated).await {
                // Another server is asked at once: this one drains or is full.
                Err(Ended::Refused(Failure::TryAlternate { servers, domain })) if !*was_allocated => {
                    let Some(address) = servers.first() else { break };
                    let transport = server.uri.transport();
                    let host = domain.unwrap_or_else(|| address.ip().to_string());
                    server.uri = TurnUri::new(transport, &host, address.port());
                }
                other => return other,
            }
        }
        Err(Ended::Uri(server.uri.to_string(), "the servers redirect to each other".to_owned()))
    }

    async fn relay(&mut self, server: &Server, was_allocated: &mut bool) -> Result<(), Ended> {
        let mut link = timeout(CONNECT, Link::connect(&server.uri)).await.map_err(|_| Ended::Late)??;
        let begin = Instant::now();
        let is_connection = server.uri.transport() != Transport::Udp;
        let mut keeper = Keeper::new(is_connection, server.credentials.clone(), random_generator()?);
        keeper.allocate(Duration::ZERO)?;
        loop {
            while let Some(message) = keeper.transmit() {
                link.send(&message).await?;
            }
            let deadline = begin + keeper.deadline();
            let mut outputs = Vec::new();
            tokio::select! {
                received = link.receive() => outputs.extend(keeper.receive(received?, begin.elapsed())),
                sent = self.to_send.recv() => match sent {
                    Some((peer, data)) => keeper.send(peer, &data, begin.elapsed())?,
                    None => {
                        keeper.release(begin.elapsed());
                        while let Some(message) = keeper.transmit() {
                            link.send(&message).await?;
                        }
                        return Ok(());
                    }
                },
                () = sleep_until(deadline) => outputs = keeper.expire(begin.elapsed())?,
            }
            for output in outputs {
                let event = match output {
                    Output::Ended(failure) => return Err(failure.into()),
                    Output::Allocated(addresses) => {
                        *was_allocated = true;
                        RelayEvent::Allocated(addresses)
                    }
                    Output::Data { peer, local, data } => {
                        // A reader that is too slow loses data, as with a socket.
                        let _ = self.events.try_send(RelayEvent::Data { peer, local, data });
                        continue;
                    }
                };
                if self.events.send(event).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn random_generator() -> Result<rand::rngs::StdRng, std::io::Error> {
    use rand::SeedableRng as _;
    let mut seed = [0; 32];
    getrandom::getrandom(&mut seed).map_err(std::io::Error::from)?;
    Ok(rand::rngs::StdRng::from_seed(seed))
}
