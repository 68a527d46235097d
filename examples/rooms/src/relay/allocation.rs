//! One allocation on one connection with the relay, from Allocate to the last Refresh.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use turnserver::client::Credentials;
use turnserver::transport::{Transport, TurnUri};

use super::keeper::{Keeper, Output};
use super::link::{self, Reader, Writer};
use super::{Ended, Message, Owner};
use crate::connect::Trust;

/// The time to connect.
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// How long the relay may take to confirm that an allocation is given back.
const FAREWELL: Duration = Duration::from_secs(1);

/// An allocation that was replaced is given back when nothing has come or gone for this time.
const QUIET: Duration = Duration::from_secs(10);

/// A peer's address, and data for it.
pub(super) type Outgoing = (SocketAddr, Vec<u8>);

/// How to allocate.
pub(super) struct Server<'s> {
    pub(super) uri: &'s TurnUri,
    /// Its address, if it is not that of the URI.
    pub(super) address: Option<SocketAddr>,
    pub(super) credentials: &'s Credentials,
    pub(super) trust: &'s Trust,
}

/// An allocation that nobody uses yet.
pub(super) struct Allocation {
    reader: Reader,
    writer: Writer,
    keeper: Keeper,
    outputs: VecDeque<Output>,
    begin: Instant,
    pub(super) addresses: Vec<SocketAddr>,
}

/// The orders for an allocation that is used.
pub(super) struct Orders {
    /// What has to be sent. The allocation is given back when this is closed.
    pub(super) outgoing: mpsc::Receiver<Outgoing>,
    /// Another allocation replaces this one.
    pub(super) replaced: oneshot::Receiver<()>,
}

impl Allocation {
    /// Connects and allocates. `None` if the owner goes away meanwhile; then, the allocation is given back.
    pub(super) async fn make(server: Server<'_>, owner: &mut Owner) -> Result<Option<Self>, Ended> {
        let opened = tokio::select! {
            opened = timeout(CONNECT, link::open(server.uri, server.address, server.trust)) => opened.map_err(|_| Ended::Late)??,
            () = owner.gone() => return Ok(None),
        };
        let (reader, writer) = opened;
        let is_connection = server.uri.transport() != Transport::Udp;
        let mut keeper = Keeper::new(is_connection, server.credentials.clone(), random_generator()?);
        keeper.allocate(Duration::ZERO)?;
        let (outputs, begin, addresses) = (VecDeque::new(), Instant::now(), Vec::new());
        let mut new = Self { reader, writer, keeper, outputs, begin, addresses };
        loop {
            tokio::select! {
                output = new.advance() => match output? {
                    Output::Ended(failure) => return Err(failure.into()),
                    Output::Allocated(addresses) => {
                        new.addresses = addresses;
                        return Ok(Some(new));
                    }
                    Output::Data { .. } | Output::Released => {}
                },
                () = owner.gone() => {
                    new.release().await;
                    return Ok(None);
                }
            }
        }
    }

    /// Returns what comes next. Nothing is lost if the caller stops waiting.
    async fn advance(&mut self) -> Result<Output, Ended> {
        let Self { reader, writer, keeper, outputs, begin, .. } = self;
        loop {
            while let Some(message) = keeper.transmit() {
                writer.push(message);
            }
            if let Some(output) = outputs.pop_front() {
                return Ok(output);
            }
            let deadline = *begin + keeper.deadline();
            tokio::select! {
                received = reader.receive() => outputs.extend(keeper.receive(received?, begin.elapsed())),
                flushed = writer.flush(), if !writer.is_idle() => flushed?,
                () = sleep_until(deadline) => outputs.extend(keeper.expire(begin.elapsed())?),
            }
        }
    }

    /// Relays until the owner is gone, or the allocation is replaced and not used.
    ///
    /// # Errors
    /// If the allocation is lost.
    pub(super) async fn relay(mut self, mut orders: Orders, events: &mpsc::Sender<Message>) -> Result<(), Ended> {
        let (mut is_replaced, mut last_used) = (false, Instant::now());
        loop {
            let mut output = None;
            tokio::select! {
                next = self.advance() => output = Some(next?),
                sent = orders.outgoing.recv() => match sent {
                    Some((peer, data)) => {
                        last_used = Instant::now();
                        self.keeper.send(peer, &data, self.begin.elapsed())?;
                    }
                    None => break,
                },
                _ = &mut orders.replaced, if !is_replaced => (is_replaced, last_used) = (true, Instant::now()),
                () = sleep_until(last_used + QUIET), if is_replaced => break,
            }
            match output {
                Some(Output::Data { peer, local, data }) => {
                    last_used = Instant::now();
                    // Data for a reader that is too slow is dropped, as at a socket.
                    let _ = events.try_send(Message::Data { peer, local, data });
                }
                Some(Output::Ended(failure)) => return Err(failure.into()),
                Some(Output::Allocated(_) | Output::Released) | None => {}
            }
        }
        self.release().await;
        Ok(())
    }

    /// Gives the allocation back, and waits for a moment until the relay has confirmed it.
    async fn release(mut self) {
        self.outputs.extend(self.keeper.release(self.begin.elapsed()));
        let released =
            async { while !matches!(self.advance().await, Ok(Output::Released | Output::Ended(_)) | Err(_)) {} };
        if timeout(FAREWELL, released).await.is_err() {
            tracing::debug!("the relay did not confirm that an allocation was given back");
        }
    }
}

fn random_generator() -> Result<rand::rngs::StdRng, std::io::Error> {
    use rand::SeedableRng as _;
    let mut seed = [0; 32];
    getrandom::getrandom(&mut seed).map_err(std::io::Error::from)?;
    Ok(rand::rngs::StdRng::from_seed(seed))
}
