//! An allocation, its permissions and its channels, from Allocate to the end (RFC 8656). There is no socket and no clock:
//! times are durations since the beginning.
//!
//! ICE sends checks to many peers and media to few. Data goes in Send indications, which need one permission for all peers
//! at an IP address. Only a peer with much traffic gets a channel: servers limit the number of channels.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
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

/// Allocations, permissions and channels are renewed so long before their end, an allocation earlier if it is short.
const MARGIN: Duration = Duration::from_secs(60);

/// The life of a permission (RFC 8656 §9).
const PERMISSION: Duration = Duration::from_secs(5 * 60);

/// The life of a binding (RFC 8656 §12).
const BINDING: Duration = Duration::from_secs(10 * 60);

/// A peer has a channel when more than this number of datagrams come or go within [`WINDOW`]. A voice has 50 in one
/// direction; the checks of ICE stay far below. Each datagram on a channel is 32 bytes or more shorter.
const BUSY: u32 = 32;

/// The time within which datagrams are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// A peer to which nothing was sent for this time is forgotten.
const UNUSED: Duration = Duration::from_secs(180);

/// A channel number is used for no other peer until this time after the last binding: its life of 10 min, and 5 min
/// more (RFC 8656 §12).
const RETIRED: Duration = Duration::from_secs(15 * 60);

/// Data is sent and nothing comes from the server for this time: a Refresh finds out whether the allocation lasts. A
/// server that was restarted drops Send indications and channel data.
const SILENT: Duration = Duration::from_secs(10);

/// The time until something that was not renewed is requested again, while it lasts.
const RETRY: Duration = Duration::from_secs(10);

/// The time until a permission or a channel that was not granted is requested again.
const REJECTED: Duration = Duration::from_secs(60);

/// After the end of the allocation, nothing is due.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How many permissions are remembered, with those that the server rejects.
const PERMISSIONS: usize = 4_096;

/// How many datagrams wait for a permission: some for each peer at an address of many.
const QUEUE: usize = 512;

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
    /// When something came from the server last, or a Refresh was sent.
    silent_from: Duration,
    /// When the allocation ends without a Refresh.
    end: Duration,
    permissions: HashMap<IpAddr, Permission>,
    /// Peers to which data was sent. There are not more than channel numbers.
    peers: HashMap<SocketAddr, Peer>,
    next_number: u16,
    is_leaving: bool,
}

/// What a request is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Allocate(Families),
    Refresh,
    Release,
    Permit(IpAddr),
    Bind(SocketAddr),
}

/// What the server grants for a time. It is renewed with the first datagram in the last minute: ICE sends at least every
/// 15 s on the paths that it keeps (RFC 8445 §11).
#[derive(Debug, Default)]
struct Grant {
    is_requested: bool,
    /// It is not requested before.
    next: Duration,
    end: Duration,
}

impl Grant {
    fn lasts_at(&self, now: Duration) -> bool {
        now < self.end
    }

    /// Returns whether a request has to be sent. Then the grant counts as requested.
    fn begin_request(&mut self, now: Duration) -> bool {
        let is_due = !self.is_requested && self.next <= now;
        self.is_requested |= is_due;
        is_due
    }

    fn finished(&mut self, is_granted: bool, lifetime: Duration, now: Duration) {
        self.is_requested = false;
        if is_granted {
            self.end = now + lifetime;
            self.next = self.end - MARGIN;
        } else {
            self.next = now + if self.lasts_at(now) { RETRY } else { REJECTED };
        }
    }
}

/// The permission for an IP address.
#[derive(Debug, Default)]
struct Permission {
    grant: Grant,
    /// Data that waits for it.
    waiting: Vec<(SocketAddr, Vec<u8>)>,
}

/// A peer to which data was sent.
#[derive(Debug)]
struct Peer {
    /// When something was sent to it last.
    used: Duration,
    /// The datagrams that came and went since this time.
    counted_from: Duration,
    datagrams: u32,
    /// The number for its channel, whether there is one or not.
    number: u16,
    channel: Grant,
    /// The number may be bound, or was shortly before, and is for no other peer until then.
    reserved: Duration,
}

impl Peer {
    fn count(&mut self, now: Duration) {
        if self.counted_from + WINDOW <= now {
            (self.counted_from, self.datagrams) = (now, 0);
        }
        self.datagrams += 1;
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
            silent_from: Duration::ZERO,
            end: Duration::ZERO,
            permissions: HashMap::new(),
            peers: HashMap::new(),
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
        self.client.deadline().into_iter().chain(self.refresh_at).min().unwrap_or(NEVER)
    }

    /// Sends data to a peer. It waits until there is a permission, and is dropped if the server rejects that.
    pub(super) fn send(&mut self, peer: SocketAddr, data: &[u8], now: Duration) -> Result<(), Failure> {
        let address = peer.ip();
        if self.relayed.is_empty() {
            return Ok(());
        }
        if self.silent_from + SILENT <= now {
            // None if a Refresh is pending.
            self.refresh_at = self.refresh_at.map(|at| at.min(now));
        }
        if !self.permissions.contains_key(&address) {
            self.forget(now);
            if self.permissions.len() >= PERMISSIONS {
                return Ok(());
            }
        }
        let permission = self.permissions.entry(address).or_default();
        let (is_due, lasts) = (permission.grant.begin_request(now), permission.grant.lasts_at(now));
        if !lasts && permission.grant.is_requested && permission.waiting.len() < QUEUE {
            permission.waiting.push((peer, data.to_vec()));
        }
        if is_due {
            self.request(Request::CreatePermission(vec![peer]), Purpose::Permit(address), now)?;
        }
        if lasts { self.send_permitted(peer, data, now) } else { Ok(()) }
    }

    /// Sends data to a peer that has a permission. A peer without a channel gets it in Send indications.
    fn send_permitted(&mut self, address: SocketAddr, data: &[u8], now: Duration) -> Result<(), Failure> {
        if !self.peers.contains_key(&address) {
            self.add_peer(address, now);
        }
        let peer = self.peers.get_mut(&address);
        let channel = peer.as_ref().filter(|peer| peer.channel.lasts_at(now)).map(|peer| peer.number);
        self.outgoing.extend(match channel {
            Some(number) => self.client.channel_data(number, data),
            None => Client::send_indication(address, data, &mut self.rng),
        });
        let Some(peer) = peer else { return Ok(()) };
        peer.used = now;
        peer.count(now);
        // If the server may have bound the number, its data comes on it, and a response is needed to take that.
        if (now < peer.reserved || peer.datagrams > BUSY) && peer.channel.begin_request(now) {
            let request = Request::ChannelBind { channel: peer.number, peer: address };
            return self.request(request, Purpose::Bind(address), now);
        }
        Ok(())
    }

    /// Remembers a peer, if there is a number for it.
    fn add_peer(&mut self, address: SocketAddr, now: Duration) {
        self.forget(now);
        if self.peers.len() >= CHANNELS.len() {
            return;
        }
        let number = loop {
            let number = self.next_number;
            self.next_number = if number == *CHANNELS.end() { *CHANNELS.start() } else { number + 1 };
            if !self.peers.values().any(|peer| peer.number == number) {
                break number;
            }
        };
        let (used, counted_from, reserved) = (now, now, Duration::ZERO);
        let peer = Peer { used, counted_from, datagrams: 0, number, channel: Grant::default(), reserved };
        self.peers.insert(address, peer);
    }

    /// Forgets what is not used. If there are too many permissions, those that were rejected are requested again.
    fn forget(&mut self, now: Duration) {
        let is_crowded = self.permissions.len() >= PERMISSIONS;
        self.permissions.retain(|_, Permission { grant, .. }| {
            grant.is_requested || grant.lasts_at(now) || (now < grant.next && !is_crowded)
        });
        self.peers.retain(|_, peer| now < peer.used + UNUSED || now < peer.reserved);
    }

    /// Takes a message of the server.
    pub(super) fn receive(&mut self, message: &[u8], now: Duration) -> Option<Output> {
        let event = self.client.receive(message, now, &mut self.rng)?;
        self.silent_from = now;
        match event {
            Event::Finished(id, result) => self.finished(id, result, now),
            Event::Data { peer, data, .. } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.count(now);
                }
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
            (self.refresh_at, self.silent_from) = (None, now);
            // 10 min is what servers give (RFC 8656 §7.2).
            self.request(Request::Refresh(600), Purpose::Refresh, now)?;
        }
        Ok(outputs)
    }

    /// Gives the allocation back, also one that is requested and comes later. [`Output::Released`] follows.
    pub(super) fn release(&mut self, now: Duration) -> Option<Output> {
        self.refresh_at = None;
        self.permissions.clear();
        self.peers.clear();
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
            // The server has no allocation: it was restarted, for example (RFC 8656 §5).
            (Purpose::Permit(_) | Purpose::Bind(_), Err(Failure::Rejected(rejection)))
                if rejection.code == ErrorCode::ALLOCATION_MISMATCH =>
            {
                Some(Output::Ended(Failure::Rejected(rejection)))
            }
            (Purpose::Permit(address), result) => self.permitted(address, result.is_ok(), now).err().map(Output::Ended),
            (Purpose::Bind(peer), result) => {
                let peer = self.peers.get_mut(&peer)?;
                peer.channel.finished(result.is_ok(), BINDING, now);
                if !matches!(result, Err(Failure::Rejected(_))) {
                    peer.reserved = now + RETIRED;
                }
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

    fn permitted(&mut self, address: IpAddr, is_granted: bool, now: Duration) -> Result<(), Failure> {
        let Some(permission) = self.permissions.get_mut(&address) else { return Ok(()) };
        permission.grant.finished(is_granted, PERMISSION, now);
        for (peer, data) in std::mem::take(&mut permission.waiting) {
            if is_granted {
                self.send_permitted(peer, &data, now)?;
            }
        }
        Ok(())
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
