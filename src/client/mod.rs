//! A TURN client (RFC 8489, RFC 8656) without socket, clock or randomness of its own.
//!
//! A [`Client`] is one 5-tuple. The caller sends what [`Client::transmit`] returns to the server, passes what it
//! receives to [`Client::receive`], and calls [`Client::expire`] when [`Client::deadline`] has come. Times are durations
//! since a start of the caller's choice.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod failure;
mod frames;
mod request;
mod session;
mod transaction;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use rand::CryptoRng;

pub use failure::{Discarded, Failure, Rejection};
pub use frames::{Frames, NotFramed};
pub use request::{Allocate, Allocation, Families, Request, Success};
pub use session::{Algorithms, Credentials, Session};
pub use transaction::Timing;

use crate::stun::attribute::{
    AlternateDomain, AlternateServer, Data, Icmp, Realm, Software, XorPeerAddress, data_padding,
};
use crate::stun::{AttributeType, BufferTooSmall, Class, ErrorCode, Message, MessageWriter, Method, TransactionId};
use crate::turn::channel_data;
use failure::{optional, refuses_credentials, required};
use transaction::{Expired, Transaction};

/// The longest request in bytes.
const LONGEST_REQUEST: usize = 4_096;

/// The bytes of a Send indication besides its data: the header, an IPv6 address, the header of DATA and padding.
const INDICATION_OVERHEAD: usize = 64;

/// How many challenges a client answers for one request.
const CHALLENGES: u32 = 4;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The transport is TCP or TLS.
    pub is_connection: bool,
    /// The times of requests.
    pub timing: Timing,
    /// How the client authenticates.
    pub algorithms: Algorithms,
    /// SOFTWARE in requests.
    pub software: Option<String>,
}

/// A client of a TURN server.
pub struct Client {
    settings: Settings,
    credentials: Option<Credentials>,
    session: Option<Session>,
    pending: Vec<Pending>,
    outgoing: VecDeque<Vec<u8>>,
    channels: Vec<(u16, SocketAddr)>,
    software: Option<String>,
    requests: u32,
}

/// Identifies a request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u32);

/// A request without a final response.
struct Pending {
    id: RequestId,
    request: Request,
    transaction: Transaction,
    /// What has authenticated the request.
    session: Option<Session>,
    /// How many challenges this request has answered.
    challenges: u32,
}

/// What a client learns from a message, or from the time.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A request has ended.
    Finished(RequestId, Result<Success, Failure>),
    /// Data of a peer.
    Data {
        /// The peer.
        peer: SocketAddr,
        /// The channel, if the data came in a ChannelData message.
        channel: Option<u16>,
        /// The data.
        data: &'a [u8],
    },
    /// An ICMP error for data to a peer (RFC 8656 §11.5).
    Icmp {
        /// The peer.
        peer: SocketAddr,
        /// The error.
        icmp: Icmp,
    },
}

/// What a response means for its request.
enum Verdict {
    /// The request has ended.
    Finished(Result<Success, Failure>),
    /// The response counts as lost.
    Discard(Discarded),
    /// The request is sent again, authenticated in this way.
    Authenticate(Session),
}

impl Client {
    /// Creates a client. Without credentials, requests that need them fail.
    #[must_use]
    pub fn new(settings: Settings, credentials: Option<Credentials>) -> Self {
        Self {
            settings,
            credentials,
            session: None,
            pending: Vec::new(),
            outgoing: VecDeque::new(),
            channels: Vec::new(),
            software: None,
            requests: 0,
        }
    }

    /// Begins a request. Each ends with one [`Event::Finished`].
    ///
    /// # Errors
    /// [`Failure::TooLong`] if it does not fit into a message. Then it has not begun.
    pub fn request(&mut self, request: Request, now: Duration, rng: &mut dyn CryptoRng) -> Result<RequestId, Failure> {
        let id = RequestId(self.requests);
        // A Binding request needs no authentication.
        let session = if request == Request::Binding { None } else { self.session.clone() };
        self.send_request(id, request, session, 0, now, rng)?;
        self.requests = self.requests.wrapping_add(1);
        Ok(id)
    }

    fn send_request(
        &mut self,
        id: RequestId,
        request: Request,
        session: Option<Session>,
        challenges: u32,
        now: Duration,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), Failure> {
        let transaction = random_id(rng);
        let message = write_message(Class::Request, request.method(), transaction, LONGEST_REQUEST, |writer| {
            request.encode(writer);
            if let Some(software) = &self.settings.software {
                writer.push(&Software(software));
            }
            if let Some(session) = &session {
                session.sign(writer);
            }
        })
        .map_err(|BufferTooSmall| Failure::TooLong)?;
        self.outgoing.push_back(message.clone());
        let Settings { is_connection, timing, .. } = &self.settings;
        let transaction = Transaction::new(transaction, message, *is_connection, timing, now);
        self.pending.push(Pending { id, request, transaction, session, challenges });
        Ok(())
    }

    /// Returns a message that has to be sent to the server. `None` if there is none at present.
    pub fn transmit(&mut self) -> Option<Vec<u8>> {
        self.outgoing.pop_front()
    }

    /// Returns a Send indication (RFC 8656 §11.1). `None` if the data is longer than a message.
    pub fn send_indication(peer: SocketAddr, data: &[u8], rng: &mut dyn CryptoRng) -> Option<Vec<u8>> {
        let most = data.len() + INDICATION_OVERHEAD;
        let write = |writer: &mut MessageWriter<'_>| {
            writer.push(&XorPeerAddress(peer));
            writer.push(&Data(data));
        };
        write_message(Class::Indication, Method::SEND, random_id(rng), most, write).ok()
    }

    /// Returns a ChannelData message, with its padding on a connection (RFC 8656 §12.4, §12.5). `None` if the data is
    /// longer than a message.
    #[must_use]
    pub fn channel_data(&self, channel: u16, data: &[u8]) -> Option<Vec<u8>> {
        let length = u16::try_from(data.len()).ok()?;
        let mut message = Vec::with_capacity(data.len() + 8);
        message.extend_from_slice(&channel.to_be_bytes());
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(data);
        if self.settings.is_connection {
            message.resize(message.len() + data_padding(data.len()), 0);
        }
        Some(message)
    }

    /// Returns when [`expire`](Self::expire) has to be called. `None` if no request waits.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.pending.iter().map(|pending| pending.transaction.deadline).min()
    }

    /// Repeats requests whose time has come, and returns one that has failed. Has to be called until it returns `None`.
    pub fn expire(&mut self, now: Duration) -> Option<Event<'static>> {
        for index in 0..self.pending.len() {
            let pending = self.pending.get_mut(index)?;
            match pending.transaction.expire(now) {
                None => {}
                Some(Expired::Repeat(message)) => self.outgoing.push_back(message),
                Some(Expired::Failed(failure)) => {
                    let pending = self.pending.swap_remove(index);
                    return Some(Event::Finished(pending.id, Err(failure)));
                }
            }
        }
        None
    }

    /// Takes a message of the server: a datagram, or what [`Frames`] returns. `None` if it ends no request and carries
    /// no data.
    pub fn receive<'m>(&mut self, message: &'m [u8], now: Duration, rng: &mut dyn CryptoRng) -> Option<Event<'m>> {
        if message.first().is_some_and(|first| *first > 3) {
            let (channel, place) = channel_data::parse(message)?;
            let (_, peer) = *self.channels.iter().find(|(number, _)| *number == channel)?;
            return Some(Event::Data { peer, channel: Some(channel), data: message.get(place)? });
        }
        let message = Message::parse(message).ok()?;
        match message.class() {
            Class::Request => None,
            Class::Indication => data_indication(&message),
            Class::Success | Class::Error => self.respond(&message, now, rng),
        }
    }

    fn respond(&mut self, response: &Message<'_>, now: Duration, rng: &mut dyn CryptoRng) -> Option<Event<'static>> {
        let is_of = |pending: &Pending| {
            pending.transaction.id == response.transaction_id() && pending.request.method() == response.method()
        };
        let index = self.pending.iter().position(is_of)?;
        if let Ok(Some(Software(software))) = response.get() {
            self.software = Some(software.to_owned());
        }
        let pending = self.pending.get(index)?;
        let verdict = self.judge(pending, response).unwrap_or_else(|failure| Verdict::Finished(Err(failure)));
        match verdict {
            Verdict::Finished(result) => self.finish(index, result),
            Verdict::Discard(discarded) if self.settings.is_connection => {
                self.finish(index, Err(Failure::NotAuthentic(discarded)))
            }
            // The repetitions go on (RFC 8489 §9.2.5).
            Verdict::Discard(discarded) => {
                self.pending.get_mut(index)?.transaction.discarded = Some(discarded);
                None
            }
            Verdict::Authenticate(session) => {
                let Pending { id, request, challenges, .. } = self.pending.swap_remove(index);
                self.session = Some(session.clone());
                let sent = self.send_request(id, request, Some(session), challenges + 1, now, rng);
                sent.err().map(|failure| Event::Finished(id, Err(failure)))
            }
        }
    }

    fn finish(&mut self, index: usize, result: Result<Success, Failure>) -> Option<Event<'static>> {
        let Pending { id, request, .. } = self.pending.swap_remove(index);
        if let (Request::ChannelBind { channel, peer }, Ok(_)) = (&request, &result) {
            self.channels.retain(|(number, _)| number != channel);
            self.channels.push((*channel, *peer));
        }
        Some(Event::Finished(id, result))
    }

    /// Judges a response. The error means that the client cannot use it.
    fn judge(&self, pending: &Pending, response: &Message<'_>) -> Result<Verdict, Failure> {
        let session = pending.session.as_ref();
        let verified = session.map_or(Ok(()), |session| session.verify(response));
        let error = match (response.class(), &verified) {
            (Class::Error, Ok(())) => Some(Rejection::of(response)?),
            // An error that nobody can read is discarded like any other that the server did not send.
            (Class::Error, Err(_)) => Rejection::of(response).ok(),
            _ => None,
        };
        // RFC 8489 §9.2.4: challenges have no integrity. §10: a 300 may lack it, but if it has one, the value is checked.
        match &error {
            Some(rejection) if rejection.code == ErrorCode::UNAUTHENTICATED => {
                return self.answer_challenge(pending, response, rejection).map(Verdict::Authenticate);
            }
            Some(Rejection { code: ErrorCode::STALE_NONCE, .. }) if session.is_some() => {
                return self.answer_stale_nonce(pending, response).map(Verdict::Authenticate);
            }
            Some(Rejection { code: ErrorCode::TRY_ALTERNATE, .. }) if verified.is_ok() || !has_integrity(response) => {
                return Err(alternate(response)?);
            }
            _ => {}
        }
        if let Err(discarded) = verified {
            return Ok(Verdict::Discard(discarded));
        }
        Ok(Verdict::Finished(match error {
            Some(rejection) if refuses_credentials(rejection.code) => {
                return self.answer_challenge(pending, response, &rejection).map(Verdict::Authenticate);
            }
            Some(rejection) => Err(Failure::Rejected(rejection)),
            None => pending.request.read(response),
        }))
    }

    /// Returns what authenticates the request after a 401. A request is repeated only if something changes (RFC 8489
    /// §9.2.5).
    fn answer_challenge(
        &self,
        pending: &Pending,
        challenge: &Message<'_>,
        rejection: &Rejection,
    ) -> Result<Session, Failure> {
        if let Some(session) = &pending.session {
            let is_new = optional(challenge)?.is_some_and(|Realm(realm)| realm != session.realm());
            if !is_new || pending.challenges >= CHALLENGES || rejection.code != ErrorCode::UNAUTHENTICATED {
                let realm = session.realm().to_owned();
                return Err(Failure::CredentialsRefused { realm, rejection: rejection.clone() });
            }
        }
        let Some(credentials) = &self.credentials else {
            let Realm(realm) = required(challenge)?;
            return Err(Failure::CredentialsRequired { realm: realm.to_owned() });
        };
        Session::from_challenge(challenge, credentials.clone(), self.settings.algorithms)
    }

    fn answer_stale_nonce(&self, pending: &Pending, stale: &Message<'_>) -> Result<Session, Failure> {
        match &self.credentials {
            Some(credentials) if pending.challenges < CHALLENGES => {
                Session::from_challenge(stale, credentials.clone(), self.settings.algorithms)
            }
            _ => Err(Failure::StaleNonces { nonces: pending.challenges }),
        }
    }

    /// Returns what authenticates the requests. `None` before a challenge.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Returns SOFTWARE of the last response that had it.
    #[must_use]
    pub fn software(&self) -> Option<&str> {
        self.software.as_deref()
    }
}

// Messages are not shown: they contain usernames and nonces.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, pending, channels, .. } = self;
        let requests: Vec<Method> = pending.iter().map(|pending| pending.request.method()).collect();
        f.debug_struct("Client")
            .field("session", session)
            .field("pending", &requests)
            .field("channels", channels)
            .finish_non_exhaustive()
    }
}

/// Writes a message into a buffer of `most` bytes.
///
/// # Errors
/// If it is longer.
pub fn write_message(
    class: Class,
    method: Method,
    transaction: TransactionId,
    most: usize,
    fill: impl FnOnce(&mut MessageWriter<'_>),
) -> Result<Vec<u8>, BufferTooSmall> {
    let mut buffer = vec![0; most];
    let mut writer = MessageWriter::new(&mut buffer, class, method, transaction);
    fill(&mut writer);
    let length = writer.finish_len()?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Returns a transaction ID that nobody can guess (RFC 8489 §5).
pub fn random_id(rng: &mut dyn CryptoRng) -> TransactionId {
    let mut id = [0; 12];
    rng.fill_bytes(&mut id);
    TransactionId::new(id)
}

fn has_integrity(message: &Message<'_>) -> bool {
    message.contains(AttributeType::MESSAGE_INTEGRITY) || message.contains(AttributeType::MESSAGE_INTEGRITY_SHA256)
}

/// Reads a 300 (RFC 8489 §10).
fn alternate(response: &Message<'_>) -> Result<Failure, Failure> {
    let servers = response.all::<AlternateServer>().filter_map(Result::ok).map(|AlternateServer(server)| server);
    let domain = optional(response)?.map(|AlternateDomain(domain)| domain.to_owned());
    Ok(Failure::TryAlternate { servers: servers.collect(), domain })
}

fn data_indication<'m>(message: &Message<'m>) -> Option<Event<'m>> {
    if message.method() != Method::DATA {
        return None;
    }
    let XorPeerAddress(peer) = message.get().ok()??;
    if let Some(icmp) = message.get::<Icmp>().ok()? {
        return Some(Event::Icmp { peer, icmp });
    }
    let Data(data) = message.get().ok()??;
    Some(Event::Data { peer, channel: None, data })
}
