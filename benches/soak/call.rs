//! A call: an allocation whose data a peer returns.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use turnserver::auth::Secret;
use turnserver::client::{
    Algorithms, Allocate, Client, Credentials, Event, Failure, Request, Settings, Success, Timing,
};
use turnserver::clock::Clock;

use crate::PEERS;
use crate::link::Link;
use crate::support::client::Login;
use crate::tally::Tally;

const CHANNEL: u16 = 0x4000;

/// The time between two packets of a call.
const PACE: Duration = Duration::from_millis(20);

/// Why something did not work. Shown by `Debug`.
#[derive(Debug)]
#[expect(dead_code, reason = "the fields are for the message")]
pub(crate) enum Broken {
    /// The link has ended.
    Link(io::Error),
    /// The server does not want it, or does not respond.
    Server(Failure),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Link(error)
    }
}

impl Broken {
    /// Returns the error code of the server.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Server(Failure::Rejected(rejection)) => Some(rejection.code.code()),
            Self::Server(Failure::CredentialsRefused { rejection, .. }) => Some(rejection.code.code()),
            _ => None,
        }
    }
}

/// A client with its link.
pub(crate) struct Caller {
    link: Link,
    client: Client,
    rng: StdRng,
    clock: Clock,
}

impl Caller {
    pub(crate) fn new(link: Link, login: Login, seed: u64) -> Self {
        let Login { username, password } = login;
        let password = Secret::new(password.as_bytes()).expect("a password that was minted");
        let settings = Settings {
            is_connection: link.is_connection(),
            timing: Timing::RECOMMENDED,
            algorithms: if seed.is_multiple_of(2) { Algorithms::Rfc5389 } else { Algorithms::Rfc8489 },
            software: None,
        };
        let client = Client::new(settings, Some(Credentials { username, password }));
        Self { link, client, rng: StdRng::seed_from_u64(seed), clock: Clock::start() }
    }

    /// Sends a request and waits for its end. What else comes is dropped.
    pub(crate) fn request(&mut self, request: Request) -> Result<Success, Broken> {
        let id = self.client.request(request, self.clock.elapsed(), &mut self.rng).map_err(Broken::Server)?;
        loop {
            self.flush()?;
            let now = self.clock.elapsed();
            if let Some(Event::Finished(of, result)) = self.client.expire(now)
                && of == id
            {
                return result.map_err(Broken::Server);
            }
            let limit = self.client.deadline().unwrap_or_default().saturating_sub(now);
            let Some(message) = self.link.receive(limit)? else { continue };
            if let Some(Event::Finished(of, result)) =
                self.client.receive(&message, self.clock.elapsed(), &mut self.rng)
                && of == id
            {
                return result.map_err(Broken::Server);
            }
        }
    }

    /// Allocates, and returns the relayed address.
    pub(crate) fn allocate(&mut self) -> Result<SocketAddr, Broken> {
        match self.request(Request::Allocate(Allocate::default()))? {
            Success::Allocate(allocation) => Ok(allocation.relayed[0]),
            other => unreachable!("Allocate ends with {other:?}"),
        }
    }

    /// Exchanges packets with a peer for a time, in channels or indications, refreshes, and deletes the allocation.
    pub(crate) fn call(&mut self, length: Duration, tally: &Tally) -> Result<(), Broken> {
        let relay = self.allocate()?;
        let peer = UdpSocket::bind((PEERS.parse::<IpAddr>().expect("an address"), 0))?;
        let address = peer.local_addr()?;
        let has_channel = address.port() % 3 != 0;
        self.request(if has_channel {
            Request::ChannelBind { channel: CHANNEL, peer: address }
        } else {
            Request::CreatePermission(vec![address])
        })?;
        peer.connect(relay)?;
        let begin = Clock::start();
        let mut number = 0_u32;
        while begin.elapsed() < length {
            let payload = [number.to_be_bytes().as_slice(), &[7; 156]].concat();
            let message = if has_channel {
                self.client.channel_data(CHANNEL, &payload)
            } else {
                Client::send_indication(address, &payload, &mut self.rng)
            };
            self.link.send(&message.expect("data of 160 bytes fits"))?;
            tally.sent.add(1);
            if self.returns(&peer, &payload, PACE * (number + 1), &begin)? {
                tally.returned.add(1);
            }
            number += 1;
            if number.is_multiple_of(200) {
                self.request(Request::Refresh(600))?;
            }
        }
        self.request(Request::Refresh(0)).map(|_| ())
    }

    /// Lets the peer return a packet. Whether it came back to the client before the next one is due, or a second later.
    fn returns(&mut self, peer: &UdpSocket, payload: &[u8], due: Duration, begin: &Clock) -> Result<bool, Broken> {
        let mut buffer = [0; 2048];
        peer.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut is_back = false;
        if let Ok(length) = peer.recv(&mut buffer) {
            let _ = peer.send(&buffer[..length]); // counted as lost
            let limit = Clock::start();
            while !is_back && limit.elapsed() < Duration::from_secs(1) {
                let Some(message) = self.link.receive(Duration::from_millis(200))? else { continue };
                let event = self.client.receive(&message, self.clock.elapsed(), &mut self.rng);
                is_back = matches!(event, Some(Event::Data { data, .. }) if data == payload);
            }
        }
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        Ok(is_back)
    }

    /// Sends a message that is no request.
    pub(crate) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.link.send(message)
    }

    fn flush(&mut self) -> Result<(), Broken> {
        while let Some(message) = self.client.transmit() {
            self.link.send(&message)?;
        }
        Ok(())
    }
}
