//! Channel routes that the XDP program relays in the kernel: which, and what they have relayed.
//!
//! ```text
//!   core ── route events ──▶ Offload ── entries ──▶ maps of the program
//!                               ▲  └──── pairs ────▶ watcher of next hops, in its own thread
//!                               └── next hops, counters
//! ```
//!
//! A channel has an entry for each direction, which is made and removed by itself. Removing is immediate. Making is
//! left to [`serve`], in slices that are short for the packets that wait. User space relays what has no entry, so
//! nothing here delays or loses a packet.

mod counting;
mod reason;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::sync::Notify;

use super::Worker;
use super::tasks::yield_to_tasks;
use crate::clock;
use crate::offload::layout::{self, Entry, Received, Sent};
use crate::offload::maps::{Maps, NotInserted};
use crate::offload::next_hop::{Asker, NextHop, Notice, Pair, Resolution};
use crate::transport::Transport;
use crate::turn::{ChannelRoute, Deadline, Direction, FiveTuple, Instant, NotOffloaded, Server, SocketId};
pub(crate) use counting::Blocks;
use counting::Counting;
pub(super) use counting::Relayed;
use reason::Reason;

/// For how long entries are used after a tick. A worker that has ended or is stalled relays nothing after that.
const LEASE: Duration = Duration::from_secs(3);

/// The directions of routes that are examined before the worker serves packets again. To make an entry takes about 1.3 µs,
/// and to remove one and read its counter about 2.3 µs, so this takes a millisecond at most.
const PER_STEP: usize = 400;

/// The blocks of counters that are read before the worker serves packets again: 0.3 ms.
const BLOCKS_PER_STEP: usize = 16;

/// The entries that the kernel did not take and that are tried again per tick.
const RETRIES: usize = 256;

/// The labels of the reasons for which a direction of a channel has no entry.
pub(crate) const REASONS: [&str; 12] = Reason::LABELS;

/// What a worker needs to have entries.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The number of the worker's lease.
    pub(crate) worker: u8,
    /// The maps, whose entries, counters and leases another process does not use.
    pub(crate) maps: Maps,
    /// The slots of the counters, which the workers share.
    pub(crate) blocks: Arc<Blocks>,
    pub(crate) asker: Asker,
}

/// The channel routes of a worker.
#[derive(Debug)]
pub(super) struct Offload {
    /// The number of the worker's lease.
    worker: u8,
    maps: Maps,
    counting: Counting,
    asker: Rc<Asker>,
    /// The interfaces that have the program.
    interfaces: Arc<BTreeSet<u32>>,
    by_channel: HashMap<(FiveTuple, u16), u32>,
    routes: Vec<Option<Route>>,
    free: Vec<u32>,
    pairs: HashMap<Pair, Watched>,
    /// Directions whose entry may have to change.
    due: VecDeque<Leg>,
    /// Directions whose entry the kernel did not take, and the one that was tried again last.
    rejected: BTreeSet<Leg>,
    retried: Option<Leg>,
    /// Notices that wait.
    notices: VecDeque<Notice>,
    /// Directions without entry, so that the kernel sends a packet to the neighbour: since this second, and since the
    /// one before.
    resting: [Vec<(Leg, Neighbour)>; 2],
    /// A direction to each neighbour that has relayed packets in one of the last two readings, and the number of that
    /// reading.
    latest: HashMap<Neighbour, (Leg, u64)>,
    readings: u64,
    reading: Reading,
    state: State,
    counts: Counts,
    /// What the program has relayed, to be credited.
    relayed: Vec<Relayed>,
    /// The time of `CLOCK_MONOTONIC` at which the clock of the process was zero.
    clock_start: Duration,
    /// Wakes [`serve`].
    wake: Rc<Notify>,
}

/// Whether entries are used.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Active,
    /// Not before the allocations have been reviewed after a new configuration.
    Suspended {
        reviewed: bool,
    },
    /// Not before the next start: the kernel does not remove entries or does not extend the lease, or nothing watches
    /// routes and neighbours.
    Failed(Arc<str>),
}

/// The block of counters that is read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    After(Option<u32>),
    /// All blocks were read in this second.
    Complete,
}

/// What is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// The entries to peers, and those to clients.
    pub(super) entries: [u64; 2],
    /// The directions of channels without entry, in the order of [`REASONS`].
    pub(super) without: [u64; REASONS.len()],
}

/// The interface and the link address of a next hop.
type Neighbour = (u32, [u8; 6]);

/// One direction of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Leg {
    route: u32,
    direction: Direction,
}

#[derive(Debug)]
struct Route {
    route: ChannelRoute,
    /// The client is behind a proxy.
    proxied: bool,
    ways: [Way; 2],
}

/// How the packets of one direction of a route are relayed.
#[derive(Debug)]
struct Way {
    pair: Pair,
    /// The entry, or why there is none.
    entry: Result<Entry, Reason>,
    is_due: bool,
    rests: bool,
    flow_label: u32,
    identification: u16,
}

/// A pair for which a next hop is wanted.
#[derive(Debug, Default)]
struct Watched {
    legs: BTreeSet<Leg>,
    resolution: Option<Resolution>,
}

impl Offload {
    /// Begins without entries. `clock_start` is the time of `CLOCK_MONOTONIC` at which the clock of the process was
    /// zero.
    pub(super) fn new(plan: Plan, clock_start: Duration, interfaces: Arc<BTreeSet<u32>>) -> Self {
        let Plan { worker, maps, blocks, asker } = plan;
        let mut offload = Self {
            worker,
            maps,
            counting: Counting::new(blocks),
            asker: Rc::new(asker),
            interfaces,
            by_channel: HashMap::new(),
            routes: Vec::new(),
            free: Vec::new(),
            pairs: HashMap::new(),
            due: VecDeque::new(),
            rejected: BTreeSet::new(),
            retried: None,
            notices: VecDeque::new(),
            resting: Default::default(),
            latest: HashMap::new(),
            readings: 0,
            reading: Reading::Complete,
            state: State::Active,
            counts: Counts::default(),
            relayed: Vec::new(),
            clock_start,
            wake: Rc::default(),
        };
        offload.extend_lease();
        offload
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns what the program has relayed since the last call.
    pub(super) fn take_relayed(&mut self) -> Vec<Relayed> {
        std::mem::take(&mut self.relayed)
    }

    /// Adds a route, or changes the expiry of a route. Its entries are made later.
    pub(super) fn add(&mut self, route: ChannelRoute, proxied: bool, rng: &mut StdRng) {
        let key = (route.tuple, route.channel);
        if let Some(&at) = self.by_channel.get(&key) {
            let known = self.routes.get_mut(at as usize).and_then(Option::as_mut);
            if let Some(known) =
                known.filter(|known| known.route == ChannelRoute { expires: known.route.expires, ..route })
            {
                known.route = route;
                self.examine_route(at);
                return;
            }
            self.remove(std::iter::once(&route));
        }
        let way = |pair| Way {
            pair,
            entry: Err(Reason::Pending),
            is_due: false,
            rests: false,
            flow_label: rng.random(),
            identification: rng.random(),
        };
        let ways = pairs(&route).map(way);
        let at = self.free.pop().unwrap_or_else(|| {
            self.routes.push(None);
            u32::try_from(self.routes.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(place) = self.routes.get_mut(at as usize) {
            *place = Some(Route { route, proxied, ways });
        }
        self.by_channel.insert(key, at);
        for direction in DIRECTIONS {
            *self.counts.place(&Err(Reason::Pending), direction) += 1;
            self.watch(Leg { route: at, direction });
        }
        self.examine_route(at);
    }

    /// Removes routes and their entries. What they have relayed is complete, but for packets that the program is about to
    /// send.
    pub(super) fn remove<'r>(&mut self, routes: impl Iterator<Item = &'r ChannelRoute>) {
        let mut slots = Vec::new();
        for route in routes {
            let Some(at) = self.by_channel.remove(&(route.tuple, route.channel)) else { continue };
            let Some(Route { ways, .. }) = self.routes.get_mut(at as usize).and_then(Option::take) else { continue };
            self.free.push(at);
            for (way, direction) in ways.into_iter().zip(DIRECTIONS) {
                let leg = Leg { route: at, direction };
                *self.counts.place(&way.entry, direction) -= 1;
                self.unwatch(leg, way.pair);
                self.rejected.remove(&leg);
                if let Ok(entry) = way.entry {
                    self.remove_entry(&entry);
                    slots.push(entry.slot);
                }
            }
        }
        self.release(slots);
    }

    fn remove_entry(&mut self, entry: &Entry) {
        if let Err(error) = self.maps.remove(entry.direction, &entry.key()) {
            self.fail(&error);
        }
    }

    /// Reads the slots of entries that have been removed.
    fn release(&mut self, slots: Vec<u32>) {
        let (relayed, mut active) = (&mut self.relayed, Vec::new());
        let credit = |counted, leg| {
            relayed.push(counted);
            active.extend(leg);
        };
        if let Err(error) = self.counting.release(&mut self.maps, slots, credit) {
            self.fail(&error);
        }
        self.note_active(active);
    }

    /// Notes the neighbours of directions that have relayed packets.
    fn note_active(&mut self, legs: Vec<Leg>) {
        for leg in legs {
            if let Some(Ok(entry)) = self.way(leg).map(|way| &way.entry) {
                self.latest.insert(neighbour(entry), (leg, self.readings));
            }
        }
    }

    /// Queues notices about next hops.
    pub(super) fn learn(&mut self, notices: Vec<Notice>) {
        self.notices.extend(notices);
    }

    fn consider(&mut self, notice: Notice) {
        match notice {
            Notice::Changed { pair, resolution, .. } => {
                let Some(watched) = self.pairs.get_mut(&pair) else { return };
                watched.resolution = Some(resolution);
                let legs: Vec<Leg> = watched.legs.iter().copied().collect();
                legs.into_iter().for_each(|leg| self.examine(leg));
            }
            Notice::Use { pair, .. } => self.rest(pair),
        }
    }

    /// Leaves one direction to user space for a while, so that the kernel sends packets to the neighbour of a pair: one
    /// that has relayed packets lately.
    fn rest(&mut self, pair: Pair) {
        let Some(Ok(hop)) = self.pairs.get(&pair).and_then(|watched| watched.resolution.as_ref()) else { return };
        let neighbour = (hop.interface, hop.link_destination);
        if self.resting.iter().flatten().any(|(_, resting)| *resting == neighbour) {
            return;
        }
        let Some((leg, _)) = self.latest.remove(&neighbour) else { return };
        // The number of a route that has ended may be that of another one.
        let has_neighbour = |way: &&mut Way| way.entry.as_ref().is_ok_and(|entry| self::neighbour(entry) == neighbour);
        let Some(way) = self.way_mut(leg).filter(has_neighbour) else { return };
        way.rests = true;
        self.resting[0].push((leg, neighbour));
        self.examine(leg);
    }

    /// Looks up again how packets reach a peer, because one was too long for the path.
    pub(super) fn recheck(&self, peer: SocketAddr, relay: SocketAddr) {
        let pair = Pair { destination: peer.ip(), source: relay.ip() };
        if self.pairs.contains_key(&pair) {
            self.asker.recheck(pair);
        }
    }

    /// Stops using the entries until [`reviewed`](Self::reviewed), because a new configuration may not allow them.
    pub(super) fn suspend(&mut self) {
        if !matches!(self.state, State::Failed(_)) {
            self.state = State::Suspended { reviewed: false };
            self.set_lease(0);
        }
        self.examine_all();
    }

    /// The allocations have been reviewed, so the entries that remain may be used.
    pub(super) fn reviewed(&mut self) {
        if let State::Suspended { reviewed } = &mut self.state {
            *reviewed = true;
            self.wake.notify_one();
        }
    }

    pub(super) fn set_interfaces(&mut self, interfaces: &Arc<BTreeSet<u32>>) {
        if self.interfaces != *interfaces {
            self.interfaces = Arc::clone(interfaces);
            self.examine_all();
        }
    }

    /// Does the work of a second.
    pub(super) fn tick(&mut self) {
        if self.state == State::Active {
            self.extend_lease();
        }
        let [now, before] = &mut self.resting;
        for (leg, _) in std::mem::replace(before, std::mem::take(now)) {
            if let Some(way) = self.way_mut(leg) {
                way.rests = false;
                self.examine(leg);
            }
        }
        let after = self.retried.map_or(Unbounded, Excluded);
        let retried: Vec<Leg> = self.rejected.range((after, Unbounded)).take(RETRIES).copied().collect();
        self.retried = retried.last().copied();
        for leg in retried {
            self.rejected.remove(&leg);
            self.examine(leg);
        }
        if self.reading == Reading::Complete {
            self.reading = Reading::After(None);
        }
        self.wake.notify_one();
    }

    /// Does a step of the work that waits. Returns whether there is more.
    pub(super) fn step(&mut self, server: &Server) -> bool {
        for _ in 0..PER_STEP {
            let Some(notice) = self.notices.pop_front() else { break };
            self.consider(notice);
        }
        for _ in 0..PER_STEP {
            let Some(leg) = self.due.pop_front() else { break };
            self.settle(leg, server);
        }
        if self.due.is_empty() && self.state == (State::Suspended { reviewed: true }) {
            self.state = State::Active;
            self.extend_lease();
        }
        self.read_blocks(BLOCKS_PER_STEP);
        !self.notices.is_empty() || !self.due.is_empty() || self.reading != Reading::Complete
    }

    /// Reads some blocks of counters.
    fn read_blocks(&mut self, most: usize) {
        let mut active = Vec::new();
        for _ in 0..most {
            let Reading::After(before) = self.reading else { break };
            let Some(block) = self.counting.block_after(before) else {
                self.reading = Reading::Complete;
                self.counting.give_back();
                self.readings += 1;
                let readings = self.readings;
                self.latest.retain(|_, (_, read)| *read + 1 >= readings);
                break;
            };
            self.reading = Reading::After(Some(block));
            let relayed = &mut self.relayed;
            let credit = |counted, leg| {
                relayed.push(counted);
                active.extend(leg);
            };
            if let Err(error) = self.counting.read_block(&mut self.maps, block, credit) {
                self.fail(&error);
            }
        }
        self.note_active(active);
    }

    /// Reads the counters of the channels of an allocation.
    pub(super) fn read(&mut self, tuple: &FiveTuple, channels: impl Iterator<Item = u16>) {
        for channel in channels {
            let Some(route) = self.route(tuple, channel) else { continue };
            let slots = route.ways.each_ref().map(|way| way.entry.as_ref().ok().map(|entry| entry.slot));
            for slot in slots.into_iter().flatten() {
                match self.counting.read_one(&mut self.maps, slot) {
                    Ok(relayed) => self.relayed.extend(relayed),
                    Err(error) => self.fail(&error),
                }
            }
        }
    }

    /// Returns why user space relays the packets of a channel to its peer, and those to its client; `None` if there is
    /// no such route.
    pub(super) fn why_in_user_space(&self, tuple: &FiveTuple, channel: u16) -> Option<[Option<String>; 2]> {
        let route = self.route(tuple, channel)?;
        Some(route.ways.each_ref().map(|way| way.entry.as_ref().err().map(ToString::to_string)))
    }

    /// Ends the use of the entries, and reads all counters, at the end of the worker.
    pub(super) fn finish(&mut self) {
        self.set_lease(0);
        self.reading = Reading::After(None);
        self.read_blocks(usize::MAX);
    }

    fn route(&self, tuple: &FiveTuple, channel: u16) -> Option<&Route> {
        self.routes.get(*self.by_channel.get(&(*tuple, channel))? as usize)?.as_ref()
    }

    fn way(&self, leg: Leg) -> Option<&Way> {
        let route = self.routes.get(leg.route as usize)?.as_ref()?;
        route.ways.get(index(leg.direction))
    }

    fn way_mut(&mut self, leg: Leg) -> Option<&mut Way> {
        let route = self.routes.get_mut(leg.route as usize)?.as_mut()?;
        route.ways.get_mut(index(leg.direction))
    }

    /// Asks for the next hop of a direction, unless its client is connected.
    fn watch(&mut self, leg: Leg) {
        let Some(route) = self.routes.get(leg.route as usize).and_then(Option::as_ref) else { return };
        let (Some(way), Transport::Udp) = (route.ways.get(index(leg.direction)), route.route.tuple.transport) else {
            return;
        };
        let watched = self.pairs.entry(way.pair).or_default();
        if watched.legs.is_empty() {
            self.asker.ask(way.pair);
        }
        watched.legs.insert(leg);
    }

    fn unwatch(&mut self, leg: Leg, pair: Pair) {
        let Some(watched) = self.pairs.get_mut(&pair) else { return };
        if watched.legs.remove(&leg) && watched.legs.is_empty() {
            self.pairs.remove(&pair);
            self.asker.release(pair);
        }
    }

    fn examine_all(&mut self) {
        let all = (0..).zip(&self.routes).filter(|(_, route)| route.is_some()).map(|(at, _)| at);
        let all: Vec<u32> = all.collect();
        all.into_iter().for_each(|at| self.examine_route(at));
    }

    fn examine_route(&mut self, route: u32) {
        DIRECTIONS.into_iter().for_each(|direction| self.examine(Leg { route, direction }));
    }

    /// Queues a direction whose entry may have to change.
    fn examine(&mut self, leg: Leg) {
        let Some(way) = self.way_mut(leg) else { return };
        if !std::mem::replace(&mut way.is_due, true) {
            self.due.push_back(leg);
            self.wake.notify_one();
        }
    }

    /// Gives a direction the entry that it should have.
    fn settle(&mut self, leg: Leg, server: &Server) {
        let Some(way) = self.way_mut(leg) else { return };
        way.is_due = false;
        let before = way.entry.clone();
        let after = match self.wanted(leg, server) {
            Ok(wanted) => self.install(leg, &before, wanted),
            Err(reason) => Err(reason),
        };
        if let (Ok(entry), Err(_)) = (&before, &after) {
            self.remove_entry(entry);
            self.release(vec![entry.slot]);
        }
        match after {
            Err(Reason::Full | Reason::Rejected(_)) if !self.has_failed() => self.rejected.insert(leg),
            _ => self.rejected.remove(&leg),
        };
        *self.counts.place(&before, leg.direction) -= 1;
        *self.counts.place(&after, leg.direction) += 1;
        if let Some(way) = self.way_mut(leg) {
            way.entry = after;
        }
    }

    /// Makes an entry, or replaces the one that there is. `slot` of `wanted` is not set yet.
    fn install(
        &mut self,
        leg: Leg,
        before: &Result<Entry, Reason>,
        (socket, wanted): (SocketId, Entry),
    ) -> Result<Entry, Reason> {
        let slot = match before {
            Ok(entry) => entry.slot,
            Err(_) => {
                let slot = self.counting.take(&mut self.maps, socket, leg);
                slot.map_err(|error| rejected(&error))?.ok_or(Reason::Full)?
            }
        };
        let entry = Entry { slot, ..wanted };
        if before.as_ref() == Ok(&entry) {
            return Ok(entry);
        }
        let inserted = self.maps.insert(&entry).map_err(|error| match error {
            NotInserted::Full => Reason::Full,
            NotInserted::Failed(error) => rejected(&error),
        });
        if inserted.is_err() && before.is_err() {
            self.release(vec![slot]);
        }
        inserted.map(|()| entry)
    }

    /// Returns the entry that a direction should have, without its slot.
    fn wanted(&self, leg: Leg, server: &Server) -> Result<(SocketId, Entry), Reason> {
        if let State::Failed(error) = &self.state {
            return Err(Reason::Rejected(Arc::clone(error)));
        }
        let pending = Reason::Pending;
        let route = self.routes.get(leg.route as usize).and_then(Option::as_ref).ok_or(pending.clone())?;
        let way = route.ways.get(index(leg.direction)).ok_or(pending.clone())?;
        let ChannelRoute { tuple, channel, socket, relay, peer, expires } = route.route;
        if tuple.transport != Transport::Udp {
            return Err(Reason::Connection);
        }
        if route.proxied {
            return Err(Reason::Proxy);
        }
        match server.why_not_offloaded(&route.route) {
            Some(NotOffloaded::ByteRate) => return Err(Reason::ByteRate),
            Some(NotOffloaded::TestLink) => return Err(Reason::TestLink),
            Some(NotOffloaded::OwnPeer) => return Err(Reason::OwnPeer),
            Some(NotOffloaded::ChannelNumber) => return Err(Reason::ChannelNumber),
            None => {}
        }
        let resolution = self.pairs.get(&way.pair).and_then(|watched| watched.resolution.as_ref()).ok_or(pending)?;
        let hop = resolution.as_ref().map_err(|obstacle| Reason::NextHop(obstacle.clone()))?;
        let NextHop { interface, is_redirected, link_destination, link_source, longest_packet } = *hop;
        if !self.interfaces.contains(&interface) {
            return Err(Reason::NotAttached(interface));
        }
        if way.rests {
            return Err(Reason::NeighbourCheck);
        }
        let (direction, [source, destination], [sent_from, sent_to]) = match leg.direction {
            Direction::ToPeers => (layout::Direction::ToPeer, [tuple.client, tuple.server], [relay, peer]),
            Direction::ToClient => (layout::Direction::ToClient, [peer, relay], [tuple.server, tuple.client]),
        };
        let entry = Entry {
            direction,
            received: Received { source, destination },
            sent: Sent {
                source: sent_from,
                destination: sent_to,
                interface,
                is_redirected,
                link_destination,
                link_source,
                longest_packet,
                flow_label: way.flow_label,
                identification: way.identification,
            },
            channel,
            expires: self.monotonic_nanoseconds(expires),
            slot: 0,
            worker: self.worker,
        };
        Ok((socket, entry))
    }

    /// Returns a deadline as a time of `CLOCK_MONOTONIC`.
    fn monotonic_nanoseconds(&self, deadline: Deadline) -> u64 {
        let since_start = deadline.left(Instant::from_elapsed(Duration::ZERO));
        nanoseconds(self.clock_start.saturating_add(since_start))
    }

    fn extend_lease(&mut self) {
        self.set_lease(nanoseconds(clock::monotonic().saturating_add(LEASE)));
    }

    fn set_lease(&mut self, until: u64) {
        if let Err(error) = self.maps.extend_lease(self.worker, until) {
            self.fail(&error);
        }
    }

    /// Uses no entry after the thread that watches routes and neighbours has ended.
    fn lose_watcher(&mut self) {
        self.fail(&io::Error::other("the thread that watches routes and neighbours has ended"));
    }

    fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed(_))
    }

    /// Uses no entry from now on: after such an error, the kernel may have entries that should not be there. Without a
    /// lease they have no effect.
    fn fail(&mut self, error: &io::Error) {
        if self.has_failed() {
            return;
        }
        self.state = State::Failed(error.to_string().into());
        let ended = self.maps.extend_lease(self.worker, 0).is_ok();
        let effect = if ended { "at once" } else { "within 3 s" };
        tracing::error!(
            event = "offload-failed",
            worker = self.worker,
            %error,
            "the offload has failed: this worker relays everything itself {effect}, until the server is restarted"
        );
        self.examine_all();
    }
}

impl Counts {
    fn place(&mut self, entry: &Result<Entry, Reason>, direction: Direction) -> &mut u64 {
        let place = match entry {
            Ok(_) => self.entries.get_mut(index(direction)),
            Err(reason) => self.without.get_mut(reason.index()),
        };
        place.unwrap_or_else(|| unreachable!("each direction and each reason has a place"))
    }
}

/// Carries the changes out that wait, until the worker has ended.
pub(super) async fn serve(worker: Weak<RefCell<Worker>>) {
    let Some((asker, wake)) = worker.upgrade().and_then(|worker| {
        let worker = worker.borrow();
        let offload = worker.shell.offload.as_ref()?;
        Some((Rc::clone(&offload.asker), Rc::clone(&offload.wake)))
    }) else {
        return;
    };
    let mut asker = Some(asker);
    loop {
        let notices = tokio::select! {
            notices = notices(asker.as_deref()) => notices,
            () = wake.notified() => Some(Vec::new()),
        };
        {
            let Some(worker) = worker.upgrade() else { return };
            let mut worker = worker.borrow_mut();
            let Some(offload) = &mut worker.shell.offload else { return };
            match notices {
                Some(notices) => offload.learn(notices),
                None => {
                    asker = None;
                    offload.lose_watcher();
                }
            }
        }
        while worker.upgrade().is_some_and(|worker| worker.borrow_mut().shell.step_offload()) {
            yield_to_tasks().await;
        }
    }
}

/// Waits for notices; forever without an asker. `None`: there will be no more.
async fn notices(asker: Option<&Asker>) -> Option<Vec<Notice>> {
    match asker {
        Some(asker) => asker.notices().await,
        None => std::future::pending().await,
    }
}

/// The directions, in the order of [`Route::ways`].
const DIRECTIONS: [Direction; 2] = [Direction::ToPeers, Direction::ToClient];

fn index(direction: Direction) -> usize {
    usize::from(direction == Direction::ToClient)
}

/// Returns the addresses of the packets that are sent to the peer, and to the client.
fn pairs(route: &ChannelRoute) -> [Pair; 2] {
    let pair =
        |destination: SocketAddr, source: SocketAddr| Pair { destination: destination.ip(), source: source.ip() };
    [pair(route.peer, route.relay), pair(route.tuple.client, route.tuple.server)]
}

fn neighbour(Entry { sent, .. }: &Entry) -> Neighbour {
    (sent.interface, sent.link_destination)
}

fn rejected(error: &io::Error) -> Reason {
    Reason::Rejected(error.to_string().into())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
