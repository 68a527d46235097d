//! An allocation and its channels, from Allocate to the end (RFC 8656). There is no socket and no clock: times are
//! durations since the beginning.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use turnserver::client::{
    Algorithms, Allocate, Allocation, Client, Credentials, Event, Failure, Families, Request, RequestId, Settings,
    Success, Timing,
};
use turnserver::stun::ErrorCode;

/// When requests are repeated and fail: sooner than RFC 8489 recommends, because a call waits.
const TIMING: Timing =
    Timing { first: Duration::from_millis(250), transmissions: 5, last: 8, connection: Duration::from_secs(5) };

/// An allocation is refreshed so long before its end, or earlier if it is short.
const MARGIN: Duration = Duration::from_secs(60);

/// A channel is bound again after this time: with the permission, which lasts 5 min (RFC 8656 §9, §12).
const REBIND: Duration = Duration::from_secs(240);

/// A peer to which nothing was sent for this time needs no channel.
const UNUSED: Duration = Duration::from_secs(180);

/// A channel number is used for no other peer until this time after the last binding: its life of 10 min, and 5 min
/// more (RFC 8656 §12).
const RETIRED: Duration = Duration::from_secs(15 * 60);

/// The life of a binding (RFC 8656 §12).
const BINDING: Duration = Duration::from_secs(10 * 60);

/// The time until a binding or an allocation that was not renewed is tried again, while it lasts.
const RETRY: Duration = Duration::from_secs(10);

/// A peer that the server refuses is tried again after this time.
const REFUSED: Duration = Duration::from_secs(60);

/// After the end of the allocation, nothing is due.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How many peers that the server refuses are remembered.
const REFUSALS: usize = 4_096;

/// How many datagrams wait for a channel.
const QUEUE: usize = 16;

/// The channel numbers (RFC 8656 §12).
const CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x4FFF;

/// What follows from a message or from the time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// There are relayed addresses.
    Allocated(Vec<SocketAddr>),
    /// A peer sent data to a relayed address.
    Data { peer: SocketAddr, local: SocketAddr, data: Vec<u8> },
    /// The allocation is lost, or was not made.
    Ended(Failure),
    /// The allocation was given back, as far as the server responds.
    Released,
}

/// Keeps an allocation.
pub(super) struct Keeper {
    client: Client,
    rng: StdRng,
    outgoing: VecDeque<Vec<u8>>,
    /// What the pending requests are for.
    pending: HashMap<RequestId, Purpose>,
    relayed: Vec<SocketAddr>,
    refresh_at: Option<Duration>,
    /// When the allocation ends without a Refresh.
    end: Duration,
    channels: HashMap<SocketAddr, Channel>,
    /// The peers that the server refuses, and since when.
    refused: HashMap<SocketAddr, Duration>,
    next_number: u16,
    is_leaving: bool,
}

/// What a request is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Allocate(Families),
    Refresh,
    Release,
    Bind(SocketAddr),
}

/// The channel of a peer.
#[derive(Debug)]
struct Channel {
    number: u16,
    state: State,
    /// When something was sent to the peer last.
    used: Duration,
    /// When the server confirmed the binding last.
    confirmed: Option<Duration>,
}

#[derive(Debug)]
enum State {
    /// The first binding has been requested. Datagrams wait for it.
    Requested(VecDeque<Vec<u8>>),
    /// Bound at this time, and not requested again.
    Bound(Duration),
    /// Bound, and requested again.
    Rebinding,
    /// The server did not respond, and may have bound the number. Tried again after this time, with this number.
    Unknown(Duration),
}

impl Channel {
    /// Whether data was sent to the peer shortly before.
    fn is_used_at(&self, time: Duration) -> bool {
        time < self.used + UNUSED
    }
}

impl Keeper {
    pub(super) fn new(is_connection: bool, credentials: Credentials, rng: StdRng) -> Self {
        let settings = Settings {
            is_connection,
            timing: TIMING,
            algorithms: Algorithms::Rfc8489,
            software: Some("rooms".to_owned()),
        };
        Self {
            client: Client::new(settings, Some(credentials)),
            rng,
            outgoing: VecDeque::new(),
            pending: HashMap::new(),
            relayed: Vec::new(),
            refresh_at: None,
            end: Duration::ZERO,
            channels: HashMap::new(),
            refused: HashMap::new(),
            next_number: *CHANNELS.start(),
            is_leaving: false,
        }
    }

    /// Requests an allocation with an address of each family.
    pub(super) fn allocate(&mut self, now: Duration) -> Result<(), Failure> {
        self.request_allocation(Families::Both, now)
    }

    fn request_allocation(&mut self, families: Families, now: Duration) -> Result<(), Failure> {
        let allocate = Allocate { families, ..Allocate::default() };
        self.request(Request::Allocate(allocate), Purpose::Allocate(families), now)
    }

    fn request(&mut self, request: Request, purpose: Purpose, now: Duration) -> Result<(), Failure> {
        let id = self.client.request(request, now, &mut self.rng)?;
        self.pending.insert(id, purpose);
        Ok(())
    }

    /// Returns a message for the server. `None` if there is none at present.
    pub(super) fn transmit(&mut self) -> Option<Vec<u8>> {
        self.client.transmit().or_else(|| self.outgoing.pop_front())
    }

    /// Returns when [`expire`](Self::expire) has to be called.
    pub(super) fn deadline(&self) -> Duration {
        let bindings = self.channels.values().filter_map(|channel| match channel.state {
            State::Bound(at) if channel.is_used_at(at + REBIND) => Some(at + REBIND),
            State::Bound(at) => Some(at + RETIRED),
            State::Unknown(at) => Some(at + RETIRED),
            State::Requested(_) | State::Rebinding => None,
        });
        let refusals = self.refused.values().map(|at| *at + REFUSED);
        let others = self.client.deadline().into_iter().chain(self.refresh_at);
        bindings.chain(refusals).chain(others).min().unwrap_or(NEVER)
    }

    /// Sends data to a peer. It waits until the peer has a channel, and is lost if the server refuses one.
    pub(super) fn send(&mut self, peer: SocketAddr, data: &[u8], now: Duration) -> Result<(), Failure> {
        if self.relayed.is_empty() || self.refused.get(&peer).is_some_and(|at| now < *at + REFUSED) {
            return Ok(());
        }
        if let Some(channel) = self.channels.get_mut(&peer) {
            channel.used = now;
            let number = channel.number;
            match &mut channel.state {
                State::Requested(waiting) => {
                    if waiting.len() < QUEUE {
                        waiting.push_back(data.to_vec());
                    }
                    return Ok(());
                }
                State::Unknown(at) if now < *at + REFUSED => return Ok(()),
                State::Unknown(_) => channel.state = State::Requested(VecDeque::from([data.to_vec()])),
                State::Bound(at) => {
                    self.outgoing.extend(self.client.channel_data(number, data));
                    if now < *at + REBIND {
                        return Ok(());
                    }
                    // The peer was not used for a while.
                    channel.state = State::Rebinding;
                }
                State::Rebinding => {
                    self.outgoing.extend(self.client.channel_data(number, data));
                    return Ok(());
                }
            }
            return self.request(Request::ChannelBind { channel: number, peer }, Purpose::Bind(peer), now);
        }
        // Without a free number, the data is lost. The peers that are not used release theirs.
        let Some(number) = self.free_number() else { return Ok(()) };
        let state = State::Requested(VecDeque::from([data.to_vec()]));
        self.channels.insert(peer, Channel { number, state, used: now, confirmed: None });
        self.request(Request::ChannelBind { channel: number, peer }, Purpose::Bind(peer), now)
    }

    fn free_number(&mut self) -> Option<u16> {
        if self.channels.len() >= CHANNELS.len() {
            return None;
        }
        loop {
            let number = self.next_number;
            self.next_number = if number == *CHANNELS.end() { *CHANNELS.start() } else { number + 1 };
            if !self.channels.values().any(|channel| channel.number == number) {
                return Some(number);
            }
        }
    }

    /// Takes a message of the server.
    pub(super) fn receive(&mut self, message: &[u8], now: Duration) -> Option<Output> {
        match self.client.receive(message, now, &mut self.rng)? {
            Event::Finished(id, result) => self.finished(id, result, now),
            Event::Data { peer, data, .. } => {
                let local = self.relayed.iter().find(|relayed| relayed.is_ipv4() == peer.is_ipv4())?;
                Some(Output::Data { peer, local: *local, data: data.to_vec() })
            }
            // ICE finds out which paths work.
            Event::Icmp { .. } => None,
        }
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, now: Duration) -> Result<Vec<Output>, Failure> {
        let mut outputs = Vec::new();
        while let Some(event) = self.client.expire(now) {
            if let Event::Finished(id, result) = event {
                outputs.extend(self.finished(id, result, now));
            }
        }
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_at = None;
            // 10 min is what servers give (RFC 8656 §7.2).
            self.request(Request::Refresh(600), Purpose::Refresh, now)?;
        }
        self.channels.retain(|_, channel| match channel.state {
            State::Bound(at) => now < at + RETIRED,
            State::Unknown(at) => now < at + RETIRED,
            State::Requested(_) | State::Rebinding => true,
        });
        self.refused.retain(|_, at| now < *at + REFUSED);
        let mut due = Vec::new();
        for (peer, channel) in &mut self.channels {
            if let State::Bound(at) = channel.state
                && now >= at + REBIND
                // As `deadline`, which is earlier than this call.
                && channel.is_used_at(at + REBIND)
            {
                channel.state = State::Rebinding;
                due.push((*peer, channel.number));
            }
        }
        for (peer, channel) in due {
            self.request(Request::ChannelBind { channel, peer }, Purpose::Bind(peer), now)?;
        }
        Ok(outputs)
    }

    /// Gives the allocation back, also one that is requested and comes later. [`Output::Released`] follows.
    pub(super) fn release(&mut self, now: Duration) -> Option<Output> {
        self.refresh_at = None;
        self.channels.clear();
        self.refused.clear();
        self.pending.retain(|_, purpose| matches!(purpose, Purpose::Allocate(_)));
        self.is_leaving = true;
        if self.relayed.is_empty() {
            return self.pending.is_empty().then_some(Output::Released);
        }
        self.request(Request::Refresh(0), Purpose::Release, now).err().map(|_| Output::Released)
    }

    fn finished(&mut self, id: RequestId, result: Result<Success, Failure>, now: Duration) -> Option<Output> {
        match (self.pending.remove(&id)?, result) {
            (Purpose::Release, _) => Some(Output::Released),
            (Purpose::Allocate(_), Ok(Success::Allocate(allocation))) => self.allocated(allocation, now),
            (Purpose::Allocate(_), Err(_)) if self.is_leaving => Some(Output::Released),
            // An old server has one family only, and does not say so.
            (Purpose::Allocate(Families::Both), Err(Failure::FamilyMissing(_) | Failure::Missing(_))) => {
                self.request_allocation(Families::Unstated, now).err().map(Output::Ended)
            }
            (Purpose::Refresh, Ok(Success::Refresh(lifetime))) => {
                self.lasts(lifetime.unwrap_or(MARGIN * 10), now);
                None
            }
            // The allocation lasts. Another request may arrive.
            (Purpose::Refresh, Err(failure)) if may_be_repeated(&failure) && now < self.end => {
                self.refresh_at = Some((now + RETRY).min(self.end));
                None
            }
            (Purpose::Allocate(_) | Purpose::Refresh, Err(failure)) => Some(Output::Ended(failure)),
            (Purpose::Bind(peer), result) => {
                self.bound(peer, &result, now);
                None
            }
            _ => None,
        }
    }

    fn allocated(&mut self, allocation: Allocation, now: Duration) -> Option<Output> {
        self.relayed.clone_from(&allocation.relayed);
        if self.is_leaving {
            return self.release(now);
        }
        self.lasts(allocation.lifetime, now);
        Some(Output::Allocated(allocation.relayed))
    }

    fn lasts(&mut self, lifetime: Duration, now: Duration) {
        self.refresh_at = Some(now + until_refresh(lifetime));
        self.end = now + lifetime;
    }

    fn bound(&mut self, peer: SocketAddr, result: &Result<Success, Failure>, now: Duration) {
        let Some(channel) = self.channels.get_mut(&peer) else { return };
        let lasts = channel.confirmed.is_some_and(|at| now < at + BINDING);
        let new = match (result, &channel.state) {
            (Ok(_), _) => {
                channel.confirmed = Some(now);
                State::Bound(now)
            }
            (Err(_), State::Rebinding) if lasts => State::Bound((now + RETRY).saturating_sub(REBIND)),
            (Err(Failure::Rejected(_)), _) => {
                // The number is free for another peer.
                self.channels.remove(&peer);
                if self.refused.len() < REFUSALS {
                    self.refused.insert(peer, now);
                }
                return;
            }
            (Err(_), _) => State::Unknown(now),
        };
        let before = std::mem::replace(&mut channel.state, new);
        if let (Ok(_), State::Requested(waiting)) = (result, before) {
            let client = &self.client;
            self.outgoing.extend(waiting.iter().filter_map(|data| client.channel_data(channel.number, data)));
        }
    }
}

/// Whether the next request may succeed.
fn may_be_repeated(failure: &Failure) -> bool {
    match failure {
        Failure::NoResponse { .. } | Failure::NotAuthentic(_) | Failure::StaleNonces { .. } => true,
        Failure::Rejected(rejection) => rejection.code == ErrorCode::SERVER_ERROR,
        _ => false,
    }
}

/// Returns the time from a response until the next Refresh.
fn until_refresh(lifetime: Duration) -> Duration {
    lifetime.saturating_sub(MARGIN).max(lifetime / 2)
}
