//! A relayed address: a socket that sends and receives through the relay.
//!
//! [`keeper`] is the protocol, without sockets and clocks; [`link`] is the connection with the relay; [`allocation`] joins
//! the two. The task here allocates again when an allocation is lost, and when there are new credentials: an allocation
//! keeps the username with which it was made (RFC 8656 §5), so it ends with its credentials. The one before is given back
//! when it is not used any more.

mod allocation;
mod keeper;
mod link;

use std::future::pending;
use std::net::SocketAddr;
use std::str::FromStr as _;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use turnserver::auth::Secret;
use turnserver::client::{Credentials, Failure};
use turnserver::transport::TurnUri;

use crate::connect::Trust;
use crate::message::Ice;
use allocation::{Allocation, CONNECT, Orders, Outgoing, Server};

/// How many datagrams wait in each direction. More are dropped.
const WAITING: usize = 1_024;

/// The shortest and the longest pause before the next attempt to allocate.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How many alternate servers are followed one after another (RFC 8489 §10).
const REDIRECTIONS: usize = 4;

/// How long the end of a [`Relay`] may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What happens to a relayed address.
#[derive(Debug)]
pub enum RelayEvent {
    /// There are relayed addresses: one, or one of each family. Those before are given back when they are not used any
    /// more.
    Allocated(Vec<SocketAddr>),
    /// Relayed addresses are lost, or were given back. If they were the last ones, others come later.
    Lost(Vec<SocketAddr>),
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
    routes: Vec<Route>,
    incoming: mpsc::Receiver<Message>,
    _present: watch::Sender<()>,
}

/// The relayed addresses of an allocation, and where data from them goes.
#[derive(Debug)]
struct Route {
    addresses: Vec<SocketAddr>,
    outgoing: mpsc::Sender<Outgoing>,
}

/// What the tasks report.
#[derive(Debug)]
enum Message {
    Allocated(Route),
    Lost(Vec<SocketAddr>),
    Data { peer: SocketAddr, local: SocketAddr, data: Vec<u8> },
}

impl Relay {
    /// Begins to allocate with the first of the servers that can be used. `trust` is for `turns` URLs. Each allocation uses
    /// the credentials that are the newest then.
    #[must_use]
    pub fn start(ice: watch::Receiver<Ice>, trust: Trust) -> Self {
        let (events, incoming) = mpsc::channel(WAITING);
        let (present, owner) = watch::channel(());
        tokio::spawn(Task { ice, trust, events, owner: Owner(owner) }.run());
        Self { routes: Vec::new(), incoming, _present: present }
    }

    /// Sends data to a peer from a relayed address. It is dropped if the address is lost.
    pub fn send(&self, local: SocketAddr, peer: SocketAddr, data: Vec<u8>) {
        if let Some(route) = self.routes.iter().find(|route| route.addresses.contains(&local)) {
            let _ = route.outgoing.try_send((peer, data));
        }
    }

    /// Waits for the next event. Nothing is lost if the caller stops waiting.
    pub async fn next(&mut self) -> Option<RelayEvent> {
        Some(match self.incoming.recv().await? {
            Message::Allocated(route) => {
                let addresses = route.addresses.clone();
                self.routes.push(route);
                RelayEvent::Allocated(addresses)
            }
            Message::Lost(addresses) => {
                self.routes.retain(|route| route.addresses != addresses);
                RelayEvent::Lost(addresses)
            }
            Message::Data { peer, local, data } => RelayEvent::Data { peer, local, data },
        })
    }

    /// Gives the relayed addresses back, and waits for a moment until the relay has confirmed it.
    pub async fn close(self) {
        let Self { routes, mut incoming, _present: present } = self;
        drop((routes, present));
        // The tasks keep the channel open.
        let ended = async { while incoming.recv().await.is_some() {} };
        let _ = timeout(FAREWELL, ended).await;
    }
}

/// Why there is no allocation, or why it has ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Link(#[from] std::io::Error),
    #[error("{0}")]
    Failed(#[from] Failure),
    #[error("the servers redirect to each other")]
    Circle,
    #[error("no connection within {} s", CONNECT.as_secs())]
    Late,
}

/// Knows whether the owner still wants a relayed address.
#[derive(Clone, Debug)]
struct Owner(watch::Receiver<()>);

impl Owner {
    /// Waits until the owner is gone.
    async fn gone(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// Whether the owner still wants a relayed address.
#[derive(PartialEq, Eq)]
enum Interest {
    Present,
    Lost,
}

/// An allocation that is used.
struct Running {
    /// The credentials with which it was made.
    ice: Ice,
    /// When another one is requested because the credentials have changed.
    renew_at: Option<Instant>,
    task: JoinHandle<()>,
    replace: oneshot::Sender<()>,
}

/// Keeps a relayed address.
struct Task {
    ice: watch::Receiver<Ice>,
    trust: Trust,
    events: mpsc::Sender<Message>,
    owner: Owner,
}

impl Task {
    /// Allocates again and again until the owner is gone. The allocations notice that themselves.
    async fn run(mut self) {
        let (mut current, mut pause): (Option<Running>, _) = (None, PAUSES.0);
        loop {
            if let Some(running) = &mut current {
                tokio::select! {
                    _ = &mut running.task => {
                        current = None;
                        pause = PAUSES.0;
                        if self.pause(pause).await == Interest::Lost {
                            return;
                        }
                    }
                    () = renewal(&mut self.ice, &running.ice, &mut running.renew_at) => {}
                    () = self.owner.gone() => return,
                }
            }
            if let Some(new) = self.allocate().await {
                if let Some(old) = current.replace(new) {
                    let _ = old.replace.send(());
                }
                pause = PAUSES.0;
                continue;
            }
            if let Some(running) = &mut current {
                running.renew_at = Some(Instant::now() + pause);
            } else if self.pause(pause).await == Interest::Lost {
                return;
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Waits until the next attempt, which new credentials make at once.
    async fn pause(&mut self, pause: Duration) -> Interest {
        tokio::select! {
            () = self.owner.gone() => Interest::Lost,
            () = sleep(pause) => Interest::Present,
            () = changed(&mut self.ice) => Interest::Present,
        }
    }

    /// Tries the servers in their order.
    async fn allocate(&mut self) -> Option<Running> {
        let ice = self.ice.borrow_and_update().clone();
        for entry in &ice.ice_servers {
            let Ok(password) = Secret::new(entry.credential.as_bytes()) else { continue };
            let credentials = Credentials { username: entry.username.clone(), password };
            for uri in entry.urls.iter().filter_map(|url| TurnUri::from_str(url).ok()) {
                match self.use_server(uri.clone(), &credentials).await {
                    Ok(Some(allocation)) => return Some(self.begin(allocation, ice.clone())),
                    Ok(None) => return None,
                    Err(error) => tracing::warn!("no relayed address from {uri}: {error}"),
                }
            }
        }
        None
    }

    /// Allocates at a server, or at those to which it refers.
    async fn use_server(&mut self, mut uri: TurnUri, credentials: &Credentials) -> Result<Option<Allocation>, Ended> {
        let mut address = None;
        for _ in 0..=REDIRECTIONS {
            let server = Server { uri: &uri, address, credentials, trust: &self.trust };
            match Allocation::make(server, &mut self.owner.clone()).await {
                // Another server is asked at once: this one drains or is full.
                Err(Ended::Failed(Failure::TryAlternate { servers, domain })) if !servers.is_empty() => {
                    tracing::debug!("{uri} refers to {servers:?}");
                    address = servers.first().copied();
                    // The name in the certificate stays the same without another one.
                    if let Some(domain) = domain {
                        uri = TurnUri::new(uri.transport(), &domain, uri.port());
                    }
                }
                other => return other,
            }
        }
        Err(Ended::Circle)
    }

    /// Begins to use an allocation.
    fn begin(&self, allocation: Allocation, ice: Ice) -> Running {
        let addresses = allocation.addresses.clone();
        let (outgoing, to_send) = mpsc::channel(WAITING);
        let (replace, replaced) = oneshot::channel();
        let events = self.events.clone();
        let task = tokio::spawn(async move {
            let route = Route { addresses: addresses.clone(), outgoing };
            // If the owner is gone, `to_send` is closed now.
            let _ = events.send(Message::Allocated(route)).await;
            let orders = Orders { outgoing: to_send, replaced };
            if let Err(error) = allocation.relay(orders, &events).await {
                tracing::warn!("the relayed address {addresses:?} is lost: {error}");
            }
            let _ = events.send(Message::Lost(addresses)).await;
        });
        Running { ice, renew_at: None, task, replace }
    }
}

/// Waits until there are new credentials, and then for a random time, so that not all allocate at the same time. Without a
/// clock: credentials are renewed before they expire, so those before last for at least a part of the time between both.
/// Those for use at once have no such time. The end of the wait is kept in `at`: after an attempt that failed, only the
/// pause follows.
async fn renewal(ice: &mut watch::Receiver<Ice>, used: &Ice, at: &mut Option<Instant>) {
    loop {
        while ice.borrow_and_update().ice_servers == used.ice_servers {
            changed(ice).await;
        }
        let between = ice.borrow().expires.saturating_sub(used.expires);
        let most = Duration::from_secs(between.min(24 * 60 * 60) / 4);
        let most = if ice.borrow().at_once { Duration::ZERO } else { most };
        tokio::select! {
            () = sleep_until(*at.get_or_insert_with(|| Instant::now() + random_part(most))) => return,
            () = changed(ice) => if ice.borrow().at_once {
                *at = Some(Instant::now());
            },
        }
    }
}

/// Waits for other credentials.
async fn changed(ice: &mut watch::Receiver<Ice>) {
    if ice.changed().await.is_err() {
        // The source of credentials is gone.
        pending::<()>().await;
    }
}

/// Returns a random time up to `most`.
pub(crate) fn random_part(most: Duration) -> Duration {
    let mut random = [0; 4];
    // Without it, the time is zero.
    let _ = getrandom::getrandom(&mut random);
    most.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::IceServer;

    fn ice(username: &str, expires: u64) -> Ice {
        let (username, credential) = (username.to_owned(), String::new());
        Ice {
            ice_servers: vec![IceServer { urls: Vec::new(), username, credential }],
            expires,
            lifetime: 3_600,
            at_once: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_credentials_has_one_random_wait() {
        let used = ice("old", 3_600);
        let (credentials, mut receiver) = watch::channel(used.clone());
        let mut at = None;
        let begin = Instant::now();
        assert!(timeout(PAUSES.1, renewal(&mut receiver, &used, &mut at)).await.is_err());
        credentials.send_replace(ice("new", 7_200));
        renewal(&mut receiver, &used, &mut at).await;
        assert!(begin.elapsed() <= PAUSES.1 + Duration::from_secs(3_600 / 4 + 1));
        // An attempt has failed.
        at = Some(Instant::now() + PAUSES.0);
        credentials.send_replace(ice("newer", 10_800));
        let failed = Instant::now();
        renewal(&mut receiver, &used, &mut at).await;
        assert!(failed.elapsed() <= PAUSES.0 + Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_for_use_at_once_end_the_wait() {
        let used = ice("old", 3_600);
        let (credentials, mut receiver) = watch::channel(ice("new", 90_000));
        let (mut at, begin) = (Some(Instant::now() + Duration::from_secs(1_000)), Instant::now());
        let renewed = async {
            renewal(&mut receiver, &used, &mut at).await;
            begin.elapsed()
        };
        let change = async {
            sleep(Duration::from_secs(10)).await;
            credentials.send_replace(Ice { at_once: true, ..ice("newer", 90_000) });
        };
        assert!(tokio::join!(renewed, change).0 <= Duration::from_secs(11));
    }
}
