//! A client on a path: requests that wait for their response, and data.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::link::{Link, LinkError};
use crate::client::{Algorithms, Client, Credentials, Event, Failure, Request, Settings, Success, Timing};
use crate::clock;
use crate::stun::attribute::Icmp;

/// When requests of the diagnosis are repeated and fail: sooner than RFC 8489 recommends, because somebody waits.
pub(super) const TIMING: Timing =
    Timing { first: Duration::from_millis(500), transmissions: 4, last: 4, connection: Duration::from_secs(5) };

/// A client of a server.
pub(super) struct Session {
    link: Link,
    client: Client,
    rng: StdRng,
    received: VecDeque<Received>,
}

/// What came from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Data { peer: SocketAddr, channel: Option<u16>, data: Vec<u8> },
    Icmp { peer: SocketAddr, icmp: Icmp },
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("{0}")]
    Failure(#[from] Failure),
}

impl Session {
    pub(super) fn new(link: Link, credentials: Option<Credentials>) -> io::Result<Self> {
        let settings = Settings {
            is_connection: link.is_connection(),
            timing: TIMING,
            // As the browsers whose calls have to work.
            algorithms: Algorithms::Rfc5389,
            software: None,
        };
        let mut seed = [0; 32];
        getrandom::getrandom(&mut seed).map_err(io::Error::from)?;
        let rng = StdRng::from_seed(seed);
        Ok(Self { client: Client::new(settings, credentials), link, rng, received: VecDeque::new() })
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Requests something and waits for the end of the request. Data that comes in the meantime is kept.
    pub(super) fn request(&mut self, request: Request) -> Result<Success, Problem> {
        let id = self.client.request(request, clock::monotonic(), &mut self.rng)?;
        loop {
            while let Some(message) = self.client.transmit() {
                self.link.send(&message)?;
            }
            let Some(deadline) = self.client.deadline() else { return Err(Failure::TooLong.into()) };
            if let Some(message) = self.link.receive(deadline)?
                && let Some(result) = self.take(&message, id)
            {
                return Ok(result?);
            }
            while let Some(event) = self.client.expire(clock::monotonic()) {
                if let Event::Finished(finished, result) = event
                    && finished == id
                {
                    return Ok(result?);
                }
            }
        }
    }

    /// Takes a message. Returns the result of the request `id`, if the message ends it.
    fn take(&mut self, message: &[u8], id: crate::client::RequestId) -> Option<Result<Success, Failure>> {
        match self.client.receive(message, clock::monotonic(), &mut self.rng)? {
            Event::Finished(finished, result) => (finished == id).then_some(result),
            Event::Data { peer, channel, data } => {
                self.received.push_back(Received::Data { peer, channel, data: data.to_vec() });
                None
            }
            Event::Icmp { peer, icmp } => {
                self.received.push_back(Received::Icmp { peer, icmp });
                None
            }
        }
    }

    /// Sends data to a peer, on `channel` if there is one.
    pub(super) fn send(&mut self, peer: SocketAddr, channel: Option<u16>, data: &[u8]) -> Result<(), Problem> {
        let message = match channel {
            Some(channel) => self.client.channel_data(channel, data),
            None => Client::send_indication(peer, data, &mut self.rng),
        };
        Ok(self.link.send(&message.ok_or(Failure::TooLong)?)?)
    }

    /// Returns what came next from a peer. `None` if there is nothing until `end` on the monotonic clock.
    pub(super) fn receive(&mut self, end: Duration) -> Result<Option<Received>, Problem> {
        loop {
            if let Some(received) = self.received.pop_front() {
                return Ok(Some(received));
            }
            let Some(message) = self.link.receive(end)? else { return Ok(None) };
            match self.client.receive(&message, clock::monotonic(), &mut self.rng) {
                Some(Event::Data { peer, channel, data }) => {
                    return Ok(Some(Received::Data { peer, channel, data: data.to_vec() }));
                }
                Some(Event::Icmp { peer, icmp }) => return Ok(Some(Received::Icmp { peer, icmp })),
                Some(Event::Finished(..)) | None => {}
            }
        }
    }
}
