//! Clients behind a proxy, over UDP: which datagrams are theirs, and where datagrams for them are sent.
//!
//! A proxy sends from one address for each client. Some send a PROXY header in each datagram, others in the first one of
//! a client or before it, in a datagram of its own. So a header assigns the address of the proxy to a client until another
//! header does, and datagrams without a header belong to that client:
//!
//! ```text
//!   proxy, local address ──▶ client, server (the 5-tuple of the core)      datagrams of the client
//!   client, server       ──▶ proxy, local address                          datagrams for the client
//! ```
//!
//! Client and server are the addresses in the header. The core prefers relay addresses that equal the server's, so with
//! the local address it would give clients from elsewhere a relay address of the network of the proxy.
//!
//! Datagrams for a client go to the address of its proxy, never to the address in a header. If the proxy gives the leg of a
//! client with an allocation to another client, the allocation waits for a further header of its client, and data for it
//! is dropped meanwhile.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use super::event_log::Host;
use super::{Now, Shell, Worker};
use crate::net::batch::Datagram;
use crate::proxy_protocol::{self, Header, Parsed};
use crate::transport::Transport;
use crate::turn::{ClientBurst, DropReason, FiveTuple, Instant, Outcome};

#[cfg(test)]
mod tests;

/// The maximum number of clients behind proxies of a worker: as many as fit into tables with 2^15 places.
const MAX_CLIENTS: usize = 28_672;

/// The maximum number of clients with an allocation and without a leg. A tick examines them all.
const MAX_DISPLACED: usize = 1_024;

/// The time without datagrams of the client after which it is forgotten, if it has no allocation.
const IDLE: Duration = Duration::from_secs(300);

/// The number of clients that a tick examines, so that it stays short.
const EXAMINED_PER_TICK: usize = 1_024;

/// The number of clients that are examined to make room for one.
const EXAMINED_FOR_ROOM: usize = 16;

/// The two ends of the path between a proxy and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leg {
    /// The address from which the proxy sends the datagrams of one client.
    pub(super) proxy: SocketAddr,
    /// The address of this server to which it sends them.
    pub(super) local: SocketAddr,
}

/// A client behind a proxy.
#[derive(Clone, Copy, Debug)]
struct Client {
    tuple: FiveTuple,
    /// The time of its last datagram.
    last: Instant,
}

/// Whether a client has an allocation.
type HasAllocation<'a> = &'a dyn Fn(&FiveTuple) -> bool;

/// The clients behind proxies that a worker serves.
#[derive(Debug, Default)]
pub(super) struct Proxied {
    clients: HashMap<Leg, Client>,
    legs: HashMap<FiveTuple, Leg>,
    /// The keys of `clients`, in the order in which they are examined.
    order: VecDeque<Leg>,
    /// The clients with an allocation whose leg is that of another client, with this leg. A header assigns them a new one.
    displaced: HashMap<FiveTuple, Leg>,
}

impl Proxied {
    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.displaced.is_empty()
    }

    /// Returns the leg to a client; `None` if it has none.
    fn leg_to(&self, client: &FiveTuple) -> Option<Leg> {
        self.legs.get(client).copied()
    }

    /// Returns the leg of a client, also if it is that of another client since; `None` if the client is not behind a proxy.
    pub(super) fn last_leg_to(&self, client: &FiveTuple) -> Option<Leg> {
        self.legs.get(client).or_else(|| self.displaced.get(client)).copied()
    }

    /// Assigns a leg to a client. If the client has another leg, the newer one is used: its proxy has begun to send from
    /// another address.
    fn assign(
        &mut self,
        leg: Leg,
        tuple: FiveTuple,
        now: Instant,
        has_allocation: HasAllocation<'_>,
    ) -> Result<(), DropReason> {
        if self.last_leg_to(&tuple).is_none() && has_allocation(&tuple) {
            // The allocation is that of a client that is not behind a proxy.
            return Err(DropReason::ProxyConflict);
        }
        match self.clients.get_mut(&leg) {
            Some(client) => {
                let before = client.tuple;
                if before != tuple && self.legs.get(&before) == Some(&leg) {
                    if has_allocation(&before) {
                        if self.displaced.len() >= MAX_DISPLACED {
                            return Err(DropReason::TooManyProxied);
                        }
                        self.displaced.insert(before, leg);
                    }
                    self.legs.remove(&before);
                }
                *client = Client { tuple, last: now };
            }
            None => {
                if self.clients.len() >= MAX_CLIENTS && !self.make_room(now, has_allocation) {
                    return Err(DropReason::TooManyProxied);
                }
                self.clients.insert(leg, Client { tuple, last: now });
                self.order.push_back(leg);
            }
        }
        self.displaced.remove(&tuple);
        self.legs.insert(tuple, leg);
        Ok(())
    }

    /// Returns the client of a datagram without a header.
    fn client(&mut self, leg: &Leg, now: Instant) -> Option<FiveTuple> {
        let client = self.clients.get_mut(leg)?;
        // Another leg may have taken its place.
        if self.legs.get(&client.tuple) != Some(leg) {
            return None;
        }
        client.last = now;
        Some(client.tuple)
    }

    /// Forgets a client without an allocation. Of those that are examined, it is the first that is idle, or otherwise the
    /// one that has been idle for the longest time.
    fn make_room(&mut self, now: Instant, has_allocation: HasAllocation<'_>) -> bool {
        let mut longest: Option<(Leg, Duration)> = None;
        for _ in 0..EXAMINED_FOR_ROOM.min(self.order.len()) {
            let Some(leg) = self.order.pop_front() else { break };
            self.order.push_back(leg);
            let Some(client) = self.clients.get(&leg) else { continue };
            if self.legs.get(&client.tuple) == Some(&leg) && has_allocation(&client.tuple) {
                continue;
            }
            let idle = now.since(client.last);
            if longest.is_none_or(|(_, other)| idle > other) {
                longest = Some((leg, idle));
            }
            if idle > IDLE {
                break;
            }
        }
        let Some((leg, _)) = longest else { return false };
        // It was examined just now, so it is near the end.
        if let Some(at) = self.order.iter().rposition(|other| *other == leg) {
            self.order.remove(at);
        }
        self.forget(&leg);
        true
    }

    /// Forgets the idle clients without an allocation, of some clients. Returns those with an allocation whose leg
    /// `is_served` does not accept any more, and forgets them, too.
    pub(super) fn tick(
        &mut self,
        now: Instant,
        has_allocation: HasAllocation<'_>,
        is_served: impl Fn(&Leg) -> bool,
    ) -> Vec<FiveTuple> {
        let mut ended = Vec::new();
        for _ in 0..EXAMINED_PER_TICK.min(self.order.len()) {
            let Some(leg) = self.order.pop_front() else { break };
            let Some(client) = self.clients.get(&leg) else { continue };
            let has_allocation = self.legs.get(&client.tuple) == Some(&leg) && has_allocation(&client.tuple);
            let is_served = is_served(&leg);
            if is_served && (has_allocation || now.since(client.last) <= IDLE) {
                self.order.push_back(leg);
                continue;
            }
            if has_allocation {
                ended.push(client.tuple);
            }
            self.forget(&leg);
        }
        self.displaced.retain(|tuple, leg| {
            let (has_allocation, is_served) = (has_allocation(tuple), is_served(leg));
            if has_allocation && !is_served {
                ended.push(*tuple);
            }
            has_allocation && is_served
        });
        ended
    }

    fn forget(&mut self, leg: &Leg) {
        if let Some(client) = self.clients.remove(leg)
            && self.legs.get(&client.tuple) == Some(leg)
        {
            self.legs.remove(&client.tuple);
        }
    }

    /// Returns the memory that it keeps, in bytes.
    #[cfg(test)]
    fn memory(&self) -> usize {
        // A table has a byte of control data for each place, and eighths of them stay free.
        let of_clients = self.clients.capacity() * 8 / 7 * (size_of::<(Leg, Client)>() + 1);
        let of_legs = self.legs.capacity() * 8 / 7 * (size_of::<(FiveTuple, Leg)>() + 1);
        let of_displaced = self.displaced.capacity() * 8 / 7 * (size_of::<(FiveTuple, Leg)>() + 1);
        of_clients + of_legs + of_displaced + self.order.capacity() * size_of::<Leg>()
    }
}

/// What becomes of a datagram, or of one of those that the kernel merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sorted {
    /// It belongs to this client. A header of this length comes first.
    Of(FiveTuple, usize),
    Dropped(DropReason),
}

impl Worker {
    /// Serves a datagram at a listener that some clients reach through a proxy. `real` has its actual addresses.
    pub(super) fn serve_with_proxies(&mut self, now: Now, real: FiveTuple, datagram: Datagram) {
        if datagram.truncated {
            return self.serve_client(now, &real, datagram);
        }
        let merged = datagram.segment.map(std::num::NonZeroUsize::get);
        let bytes = self.datagrams.buffer.arena().get(datagram.payload.clone()).unwrap_or_default();
        let has_header = bytes.chunks(merged.unwrap_or(usize::MAX)).any(proxy_protocol::begins);
        if !has_header {
            return match self.sort(now, &real, datagram.payload.clone()) {
                Sorted::Of(tuple, _) => self.serve_client(now, &tuple, datagram),
                Sorted::Dropped(reason) => {
                    let packets = count_in(datagram.payload.len(), merged);
                    self.shell.count_packets(Host::Client(real.client), Outcome::Dropped(reason), packets);
                }
            };
        }
        let end = datagram.payload.end;
        for start in datagram.payload.clone().step_by(merged.unwrap_or(usize::MAX)) {
            let place = start..end.min(start.saturating_add(merged.unwrap_or(usize::MAX)));
            match self.sort(now, &real, place.clone()) {
                // The header may be a datagram of its own.
                Sorted::Of(_, length) if length > 0 && length == place.len() => {
                    let outcome = Outcome::Dropped(DropReason::ProxyHeaderAlone);
                    self.shell.count_outcome(Host::Client(real.client), outcome);
                }
                Sorted::Of(tuple, length) => {
                    let burst = ClientBurst::new(start + length..place.end, None, datagram.fields);
                    self.shell.serve_burst(now, &tuple, &mut self.datagrams, burst);
                }
                Sorted::Dropped(reason) => {
                    self.shell.count_outcome(Host::Client(real.client), Outcome::Dropped(reason));
                }
            }
        }
    }

    /// Finds the client of the datagram at a place in the buffer. Logs what an operator should know.
    fn sort(&mut self, now: Now, real: &FiveTuple, place: Range<usize>) -> Sorted {
        let bytes = self.datagrams.buffer.arena().get(place).unwrap_or_default();
        let shell = &mut self.shell;
        let Some(proxied) = &mut shell.proxied else { return Sorted::Of(*real, 0) };
        let sorted = if shell.snapshot.is_proxy(real.client.ip()) {
            proxied.sort(real, bytes, now.monotonic, &|tuple| shell.server.allocation_of(tuple).is_some())
        } else if proxy_protocol::begins(bytes) {
            Sorted::Dropped(DropReason::ProxyHeaderUnexpected)
        } else if proxied.last_leg_to(real).is_some() {
            Sorted::Dropped(DropReason::ProxyConflict)
        } else {
            Sorted::Of(*real, 0)
        };
        match sorted {
            Sorted::Dropped(DropReason::ProxyHeaderUnexpected) => {
                shell.events.proxy_not_listed(now.monotonic, *real);
            }
            Sorted::Dropped(reason @ (DropReason::ProxyHeaderMissing | DropReason::ProxyHeaderMalformed)) => {
                shell.events.proxy_header_failed(now.monotonic, *real, reason.label());
            }
            _ => {}
        }
        sorted
    }
}

impl Shell {
    /// Returns the addresses between which the datagrams of a client are sent: those of its 5-tuple, unless it is behind a
    /// proxy. `None` if its proxy sends for another client from the address of this one.
    pub(super) fn leg_to(&self, client: &FiveTuple) -> Option<Leg> {
        let real = Leg { proxy: client.client, local: client.server };
        let Some(proxied) = &self.proxied else { return Some(real) };
        // Most clients have a leg, or there are few that lost theirs.
        proxied.leg_to(client).or_else(|| (!proxied.displaced.contains_key(client)).then_some(real))
    }

    /// Returns the address of this server at which the datagrams of a client arrive, or arrived.
    pub(super) fn local_of(&self, client: &FiveTuple) -> SocketAddr {
        let leg = self.proxied.as_ref().and_then(|proxied| proxied.last_leg_to(client));
        leg.map_or(client.server, |leg| leg.local)
    }

    /// Forgets clients behind proxies that are idle, or whose proxy is not in the configuration any more. The allocations
    /// of these end.
    pub(super) fn forget_proxied(&mut self, now: Now) {
        let Self { proxied, snapshot, server, .. } = self;
        let Some(clients) = proxied else { return };
        let has_allocation = |tuple: &FiveTuple| server.allocation_of(tuple).is_some();
        let ended = clients.tick(now.monotonic, &has_allocation, |leg| snapshot.is_proxy(leg.proxy.ip()));
        for id in ended.iter().filter_map(|tuple| self.server.allocation_of(tuple)).collect::<Vec<_>>() {
            self.server.end_unserved(now.monotonic, id);
        }
        self.carry_out(now);
        if self.snapshot.proxies.is_empty() && self.proxied.as_ref().is_some_and(Proxied::is_empty) {
            self.proxied = None;
        }
    }
}

/// Returns the number of datagrams in `length` bytes.
fn count_in(length: usize, merged: Option<usize>) -> u64 {
    merged.map_or(1, |each| length.div_ceil(each.max(1)).max(1) as u64)
}

impl Proxied {
    /// Finds the client of a datagram from a proxy.
    fn sort(&mut self, real: &FiveTuple, bytes: &[u8], now: Instant, has_allocation: HasAllocation<'_>) -> Sorted {
        let leg = Leg { proxy: real.client, local: real.server };
        if !proxy_protocol::begins(bytes) {
            return match self.client(&leg, now) {
                Some(tuple) => Sorted::Of(tuple, 0),
                None => Sorted::Dropped(DropReason::ProxyHeaderMissing),
            };
        }
        let Ok(Parsed::Header(Header { length, addresses })) = proxy_protocol::parse(bytes) else {
            return Sorted::Dropped(DropReason::ProxyHeaderMalformed);
        };
        let tuple = addresses.map_or(*real, |addresses| {
            let addresses = addresses.canonical();
            FiveTuple { client: addresses.client, server: addresses.server, transport: Transport::Udp }
        });
        match self.assign(leg, tuple, now, has_allocation) {
            Ok(()) => Sorted::Of(tuple, length),
            Err(reason) => Sorted::Dropped(reason),
        }
    }
}
