//! The events of a day, in their order.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use turnserver::fleet::lease::Limits;
use turnserver::fleet::sums::Kind;
use turnserver::fleet::{Key, Nodes, Output, choose, select};
use turnserver::turn::Instant;

use super::clients::{self, DAY, REGIONS};
use super::consumer::{Consumer, Event};
use super::engine::{Engine, Response};
use super::node::{Node, OUTBOX, State};
use super::report::Balance;
use super::{Arguments, Policy};

/// The limit of a user's allocations over all nodes.
pub(crate) const LIMIT: u32 = 32;
/// The wall clock at the start of the day.
const EPOCH: u64 = 1_800_000_000;
const SECOND: u64 = 1_000_000;
/// Nodes that take part in the balance have run for this long: a new node is empty.
const WARM: u64 = 1200 * SECOND;
/// The outage: an hour, when most regions are busy.
const OUTAGE: (u64, u64) = (13 * 3600 * SECOND, 14 * 3600 * SECOND);
const ELECTIONS: u32 = 12;
/// The most events in a batch.
const BATCH: usize = 2000;

/// What happens.
enum Happening {
    Arrive(usize),
    Begin { region: usize, end: u64, bits: f64 },
    End { call: u32, generation: u32 },
    Beat(u16),
    Views,
    Deliver { node: u16, batch: u32, latency: u64 },
    Wake(u16),
    Request { node: u16, connection: u32, issued: u64, request: Box<Output> },
    Hint { node: u16, key: Key },
    Fail(u16),
    Restart(u16),
    Drain(u16, bool),
    Engine(bool),
    Election,
    Notice(u16, bool),
    Attack { user: u32, round: u32 },
    Sample,
}

/// A happening and its time; of several at one time, the first that was queued.
struct Queued(u64, u64, Happening);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

struct Session {
    id: u32,
    node: u16,
    /// Its place among the sessions of the node.
    place: u32,
    started: u64,
    bits: f64,
    user: u32,
    call: u32,
}

#[derive(Default)]
struct Call {
    generation: u32,
    region: usize,
    end: u64,
    bits: f64,
    /// Indexes of its sessions; the first one relays.
    sessions: Vec<u32>,
}

/// What a hostile user has at all nodes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Hostile {
    pub(crate) total: u32,
    pub(crate) places: u32,
    pub(crate) most: u32,
    /// Whether it attacks during the outage.
    pub(crate) in_outage: bool,
}

/// A day and what it shows.
pub(crate) struct Day {
    full: bool,
    policy: Policy,
    now: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    queued: u64,
    rng: StdRng,
    limits: Limits,
    pub(crate) nodes: Vec<Node>,
    names: HashMap<String, u16>,
    views: Vec<Nodes>,
    pub(crate) engine: Engine,
    sessions: Vec<Option<Session>>,
    free_sessions: Vec<u32>,
    calls: Vec<Call>,
    free_calls: Vec<u32>,
    next_user: u32,
    /// Calls per second and region at the activity 1.
    rates: Vec<f64>,
    closing: bool,
    pub(crate) consumer: Consumer,
    pub(crate) balance: Balance,
    pub(crate) hostile: Vec<Hostile>,
    pub(crate) over_bound: u64,
    /// Sessions and their bytes.
    pub(crate) started: u32,
    pub(crate) ended: u64,
    pub(crate) ended_bytes: u64,
    /// The sessions whose nodes died before their last events had been accepted, and their bytes.
    pub(crate) dead: HashMap<u32, u64>,
    pub(crate) sent_events: u64,
    pub(crate) dropped_usage: u64,
    pub(crate) longest_outbox: usize,
    /// Clients without any node, and attempts at nodes that were not there.
    pub(crate) unserved: u64,
    pub(crate) failed_attempts: u64,
    /// Allocations of ordinary clients that a share did not admit.
    pub(crate) rejected: u64,
    pub(crate) deaths: u32,
}

impl Day {
    /// Runs a day. Without `full`, there are no leases and no events.
    pub(crate) fn run(arguments: &Arguments, policy: Policy, full: bool) -> Self {
        let mut day = Self::new(arguments, policy, full);
        day.plan(arguments);
        while day.now < DAY as u64 * SECOND {
            day.next();
        }
        day.close();
        day
    }

    fn new(arguments: &Arguments, policy: Policy, full: bool) -> Self {
        let limits = Limits { allocations: LIMIT, nodes: arguments.nodes.into() };
        let calls = f64::from(arguments.sessions) / clients::ALLOCATIONS_PER_CALL;
        let mean_rate = calls / DAY / clients::mean_activity();
        let rates: Vec<f64> = REGIONS.iter().map(|(_, part, _)| mean_rate * f64::from(*part) / 100.0).collect();
        let mut nodes: Vec<Node> = Vec::new();
        for (region, (name, part, _)) in REGIONS.iter().enumerate() {
            let count = (u32::from(arguments.nodes) * part).div_ceil(100).max(1);
            // Every fourth node is twice as strong. The busiest hour takes about 60 % of a region.
            let peak = rates[region] * clients::mean_duration() * clients::mean_bits();
            let strength = count + count / 4;
            let unit = peak / 0.6 / f64::from(strength);
            for number in 0..count {
                let times = if number % 4 == 3 { 2.0 } else { 1.0 };
                let weight = ((unit * times / 10_000_000.0).round() as u32).max(1);
                nodes.push(Node::new(format!("{name}-{number}"), region, weight, limits));
            }
        }
        let names = nodes.iter().enumerate().map(|(at, node)| (node.name.clone(), at as u16)).collect();
        Self {
            full,
            policy,
            now: 0,
            queue: BinaryHeap::new(),
            queued: 0,
            rng: StdRng::seed_from_u64(arguments.seed),
            limits,
            nodes,
            names,
            views: vec![Nodes::new(); usize::from(arguments.minters)],
            engine: Engine::new(),
            sessions: Vec::new(),
            free_sessions: Vec::new(),
            calls: Vec::new(),
            free_calls: Vec::new(),
            next_user: arguments.hostile.into(),
            rates,
            closing: false,
            consumer: Consumer::default(),
            balance: Balance::default(),
            hostile: vec![Hostile::default(); arguments.hostile.into()],
            over_bound: 0,
            started: 0,
            ended: 0,
            ended_bytes: 0,
            dead: HashMap::new(),
            sent_events: 0,
            dropped_usage: 0,
            longest_outbox: 0,
            unserved: 0,
            failed_attempts: 0,
            rejected: 0,
            deaths: 0,
        }
    }

    /// Queues what does not depend on anything else.
    fn plan(&mut self, arguments: &Arguments) {
        let end = DAY as u64 * SECOND;
        let count = self.nodes.len() as u16;
        self.push(0, Happening::Views);
        for node in 0..count {
            let at = self.rng.random_range(0..2 * SECOND);
            self.push(at, Happening::Beat(node));
            self.push(0, Happening::Notice(node, true));
        }
        for region in 0..REGIONS.len() {
            // Views need a moment.
            self.push(3 * SECOND, Happening::Arrive(region));
        }
        // One node of twenty joins later, one of twenty dies, one of ten is drained for half an hour.
        for _ in 0..(count / 20).max(1) {
            let node = self.rng.random_range(0..count);
            self.nodes[usize::from(node)].state = State::Down;
            let at = self.rng.random_range(0..end);
            self.push(at, Happening::Restart(node));
        }
        for _ in 0..(count / 20).max(2) {
            let (at, node) = (self.rng.random_range(0..end), self.rng.random_range(0..count));
            self.push(at, Happening::Fail(node));
        }
        for _ in 0..(count / 10).max(2) {
            let (at, node) = (self.rng.random_range(0..end), self.rng.random_range(0..count));
            self.push(at, Happening::Drain(node, true));
        }
        for _ in 0..ELECTIONS {
            let at = self.rng.random_range(0..end);
            self.push(at, Happening::Election);
        }
        self.push(OUTAGE.0, Happening::Engine(false));
        self.push(OUTAGE.1, Happening::Engine(true));
        if self.full {
            for user in 0..u32::from(arguments.hostile) {
                let spread = u64::from(user) * (end - 7200 * SECOND) / u64::from(arguments.hostile) + 60 * SECOND;
                // One in four attacks during the outage.
                let in_outage = user % 4 == 3;
                let at = if in_outage { OUTAGE.0 + 600 * SECOND } else { spread };
                self.hostile[user as usize].in_outage = in_outage || (OUTAGE.0..OUTAGE.1).contains(&at);
                self.push(at, Happening::Attack { user, round: 0 });
            }
        }
        self.push(3600 * SECOND, Happening::Sample);
    }

    fn push(&mut self, at: u64, happening: Happening) {
        self.queued += 1;
        self.queue.push(Reverse(Queued(at, self.queued, happening)));
    }

    fn instant(&self) -> Instant {
        Instant::from_elapsed(Duration::from_micros(self.now))
    }

    fn unix(&self) -> u64 {
        EPOCH + self.now / SECOND
    }

    fn next(&mut self) {
        let Some(Reverse(Queued(at, _, happening))) = self.queue.pop() else { unreachable!("nodes beat for ever") };
        self.now = at;
        match happening {
            Happening::Arrive(region) => self.arrive(region),
            Happening::Begin { region, end, bits } => self.begin(region, end, bits),
            Happening::End { call, generation } => {
                if !self.closing && self.calls[call as usize].generation == generation {
                    self.end(call);
                }
            }
            Happening::Beat(node) => self.beat(node),
            Happening::Views => {
                let now = self.instant();
                if self.engine.up && self.engine.stalled_until <= self.now {
                    self.views.iter_mut().for_each(|view| view.own_beat_observed(now));
                }
                self.push(self.now + 2 * SECOND, Happening::Views);
            }
            Happening::Deliver { node, batch, latency } => self.deliver(node, batch, latency),
            Happening::Wake(node) => {
                let at = usize::from(node);
                if self.nodes[at].wake == self.now {
                    self.nodes[at].wake = u64::MAX;
                    self.pump(node);
                }
            }
            Happening::Request { node, connection, issued, request } => {
                self.request(node, connection, issued, request);
            }
            Happening::Hint { node, key } => {
                let now = self.instant();
                self.nodes[usize::from(node)].leases.hinted(key, now);
                self.pump(node);
            }
            Happening::Fail(node) => self.fail(node),
            Happening::Restart(node) => self.restart(node),
            Happening::Drain(node, drains) => {
                let to = if drains { State::Draining } else { State::Up };
                let from = if drains { State::Up } else { State::Draining };
                if self.nodes[usize::from(node)].state == from {
                    (self.nodes[usize::from(node)].state, self.nodes[usize::from(node)].up_since) = (to, self.now);
                }
                if drains {
                    self.push(self.now + 1800 * SECOND, Happening::Drain(node, false));
                }
            }
            Happening::Engine(up) => {
                self.engine.up = up;
                if up {
                    // The bucket keeps records for ten minutes only.
                    self.engine.lose_records();
                }
                for node in 0..self.nodes.len() as u16 {
                    let after = if up { SECOND / 2..5 * SECOND } else { 0..2 * SECOND };
                    let at = self.now + self.rng.random_range(after);
                    self.push(at, Happening::Notice(node, up));
                }
            }
            Happening::Election => {
                self.engine.stalled_until = self.now + self.rng.random_range(2 * SECOND..5 * SECOND);
            }
            Happening::Notice(node, up) => self.notice(node, up),
            Happening::Attack { user, round } => self.attack(user, round),
            Happening::Sample => {
                let (now, balance) = (self.now, &mut self.balance);
                for region in 0..REGIONS.len() {
                    let warm = |node: &&Node| {
                        node.region == region && node.state == State::Up && node.up_since + WARM <= now.max(WARM)
                    };
                    let outage = (OUTAGE.0..OUTAGE.1 + 600 * SECOND).contains(&now);
                    balance.sample(self.nodes.iter().filter(warm).map(Node::load).collect(), outage);
                }
                self.consumer.bill(now);
                self.push(now + 60 * SECOND, Happening::Sample);
            }
        }
    }

    /// A call begins, perhaps: arrivals are thinned by the activity of the region.
    fn arrive(&mut self, region: usize) {
        let rate = self.rates[region];
        let gap = -self.rng.random_range(f64::MIN_POSITIVE..1.0_f64).ln() / rate;
        self.push(self.now + (gap * 1e6) as u64, Happening::Arrive(region));
        let (_, _, zone) = REGIONS[region];
        if self.rng.random_bool(clients::activity(self.now as f64 / 1e6, zone).min(1.0)) {
            let end = self.now + (clients::duration(&mut self.rng) * 1e6) as u64;
            let bits = clients::bits_per_second(&mut self.rng);
            self.begin(region, end, bits);
        }
    }

    /// Gets credentials from a random node and allocates at the nodes that they name.
    fn begin(&mut self, region: usize, end: u64, bits: f64) {
        if self.closing {
            return;
        }
        let now = self.instant();
        let view = self.rng.random_range(0..self.views.len());
        let chosen = self.choose(view, region, now);
        if chosen.is_empty() {
            self.unserved += 1;
            return;
        }
        let user = self.next_user;
        self.next_user += 1;
        let call = self.free_calls.pop().unwrap_or_else(|| {
            self.calls.push(Call::default());
            self.calls.len() as u32 - 1
        });
        let count = clients::allocations(&mut self.rng);
        let mut relays = false;
        for node in chosen {
            if self.nodes[usize::from(node)].state != State::Up {
                self.failed_attempts += 1;
                continue;
            }
            for number in 0..if relays { 1 } else { count } {
                let bits = if relays || number > 0 { 0.0 } else { bits };
                match self.open(node, user, call, bits) {
                    Some(session) => self.calls[call as usize].sessions.push(session),
                    None => self.rejected += 1,
                }
            }
            relays = true;
        }
        let entry = &mut self.calls[call as usize];
        (entry.region, entry.end, entry.bits) = (region, end, bits);
        if entry.sessions.is_empty() {
            self.free_calls.push(call);
            // The page asks again.
            self.push(self.now + 2 * SECOND, Happening::Begin { region, end: end + 2 * SECOND, bits });
            return;
        }
        let generation = entry.generation;
        self.push(end, Happening::End { call, generation });
    }

    fn choose(&mut self, view: usize, region: usize, now: Instant) -> Vec<u16> {
        let (name, ..) = REGIONS[region];
        let (view, rng, names) = (&mut self.views[view], &mut self.rng, &self.names);
        if self.policy == Policy::Fleet {
            return choose(view, &[name], 2, now, rng).iter().map(|beat| names[&beat.name]).collect();
        }
        let live: Vec<_> = view.live(now).filter(|beat| beat.region == name && !beat.draining).collect();
        if live.is_empty() {
            return Vec::new();
        }
        let first = if self.policy == Policy::Random {
            live[rng.random_range(0..live.len())]
        } else {
            live.iter().min_by(|one, other| select::load(one).total_cmp(&select::load(other))).unwrap()
        };
        let second = live[rng.random_range(0..live.len())];
        let second = (second.name != first.name).then_some(second);
        [Some(first), second].into_iter().flatten().map(|beat| names[&beat.name]).collect()
    }

    /// Makes an allocation, if the user's share admits it.
    fn open(&mut self, node: u16, user: u32, call: u32, bits: f64) -> Option<u32> {
        let first = self.limits.first().allocations;
        let now = self.instant();
        let entry = &mut self.nodes[usize::from(node)];
        if self.full {
            let account = entry.users.entry(user).or_default();
            if account.used >= account.share.unwrap_or(first) {
                return None;
            }
            account.used += 1;
            entry.leases.count_changed(&name_of(user), account.used, now);
            let is_first = account.used == 1;
            if let Some(hostile) = self.hostile.get_mut(user as usize) {
                hostile.total += 1;
                hostile.places += u32::from(is_first);
                hostile.most = hostile.most.max(hostile.total);
                self.over_bound += u64::from(hostile.total > LIMIT + first * (hostile.places - 1));
            }
        }
        let id = self.started;
        self.started += 1;
        let place = entry.sessions.len() as u32;
        let session = Session { id, node, place, started: self.now, bits, user, call };
        let index = match self.free_sessions.pop() {
            Some(index) => {
                self.sessions[index as usize] = Some(session);
                index
            }
            None => {
                self.sessions.push(Some(session));
                self.sessions.len() as u32 - 1
            }
        };
        entry.sessions.push(index);
        entry.bits += bits;
        self.emit(node, Event { session: id, kind: Kind::Started, bytes: 0 });
        self.pump(node);
        Some(index)
    }

    /// Ends an allocation, or lets it die with its node.
    fn shut(&mut self, index: u32, dies: bool) {
        let Session { id, node, place, started, bits, user, .. } = self.sessions[index as usize].take().unwrap();
        self.free_sessions.push(index);
        let bytes = bytes_of(bits, started, self.now);
        let now = self.instant();
        let entry = &mut self.nodes[usize::from(node)];
        entry.sessions.swap_remove(place as usize);
        if let Some(moved) = entry.sessions.get(place as usize) {
            self.sessions[*moved as usize].as_mut().unwrap().place = place;
        }
        entry.bits -= bits;
        if self.full {
            let account = entry.users.get_mut(&user).unwrap();
            account.used -= 1;
            let used = account.used;
            if let Some(hostile) = self.hostile.get_mut(user as usize) {
                hostile.total -= 1;
                hostile.places -= u32::from(used == 0);
            }
            if dies {
                self.dead.insert(id, bytes);
                return;
            }
            entry.leases.count_changed(&name_of(user), used, now);
            self.ended += 1;
            self.ended_bytes += bytes;
            self.emit(node, Event { session: id, kind: Kind::Ended, bytes });
            self.pump(node);
        }
    }

    fn end(&mut self, call: u32) {
        let entry = &mut self.calls[call as usize];
        entry.generation += 1;
        let sessions = std::mem::take(&mut entry.sessions);
        self.free_calls.push(call);
        sessions.into_iter().for_each(|session| self.shut(session, false));
    }

    /// Puts an event into the outbox of a node.
    fn emit(&mut self, node: u16, event: Event) {
        if !self.full {
            return;
        }
        let outbox = &mut self.nodes[usize::from(node)].outbox;
        if event.kind == Kind::Usage && outbox.len() >= OUTBOX {
            self.dropped_usage += 1;
            return;
        }
        outbox.push_back(event);
        self.sent_events += 1;
        self.longest_outbox = self.longest_outbox.max(outbox.len());
    }

    /// A node beats, and sends what is in its outbox.
    fn beat(&mut self, node: u16) {
        self.push(self.now + 2 * SECOND, Happening::Beat(node));
        let now = self.instant();
        let at = usize::from(node);
        if self.nodes[at].state == State::Down {
            return;
        }
        let works = self.engine.up && self.engine.stalled_until <= self.now;
        let (region, ..) = REGIONS[self.nodes[at].region];
        let beat = self.nodes[at].beat(region);
        if works && self.nodes[at].connected {
            self.engine.traffic.heartbeats += 1;
            for view in &mut self.views {
                view.heard(beat.clone(), now);
            }
        }
        if !self.full {
            return;
        }
        if beat.sequence.is_multiple_of(30) {
            for index in self.nodes[at].sessions.clone() {
                let session = self.sessions[index as usize].as_ref().unwrap();
                let bytes = bytes_of(session.bits, session.started, self.now);
                let event = Event { session: session.id, kind: Kind::Usage, bytes };
                self.emit(node, event);
            }
        }
        self.flush(node);
    }

    fn flush(&mut self, node: u16) {
        let latency = Engine::latency(&mut self.rng);
        let entry = &mut self.nodes[usize::from(node)];
        if entry.connected && entry.in_flight == 0 && !entry.outbox.is_empty() {
            entry.in_flight = entry.outbox.len().min(BATCH);
            entry.batch += 1;
            let batch = entry.batch;
            self.push(self.now + latency, Happening::Deliver { node, batch, latency });
        }
    }

    /// A batch of events arrives at the engine, and its acknowledgement at the node, unless it is lost.
    fn deliver(&mut self, node: u16, batch: u32, latency: u64) {
        let at = usize::from(node);
        if self.nodes[at].batch != batch || self.nodes[at].in_flight == 0 || !self.engine.up {
            return;
        }
        if self.engine.stalled_until > self.now {
            let until = self.engine.stalled_until;
            self.push(until + latency, Happening::Deliver { node, batch, latency });
            // The node waits for some time, and then sends the batch again. The first one arrives, too.
            if self.rng.random_bool(0.3) {
                self.accept(node);
            }
            return;
        }
        self.accept(node);
        let lost = self.rng.random_bool(1e-4);
        let entry = &mut self.nodes[at];
        if !lost {
            entry.outbox.drain(..entry.in_flight);
        }
        entry.in_flight = 0;
        if entry.outbox.len() >= BATCH {
            self.flush(node);
        }
    }

    fn accept(&mut self, node: u16) {
        let entry = &self.nodes[usize::from(node)];
        self.engine.traffic.events += entry.in_flight as u64;
        for event in entry.outbox.iter().take(entry.in_flight) {
            self.consumer.apply(*event, self.now);
        }
    }

    /// Carries out what the leases of a node ask for.
    fn pump(&mut self, node: u16) {
        if !self.full {
            return;
        }
        let (now, unix, at) = (self.instant(), self.unix(), usize::from(node));
        self.nodes[at].leases.advance(now, unix);
        while let Some(output) = self.nodes[at].leases.next_output() {
            let entry = &mut self.nodes[at];
            match output {
                Output::Share { key, user, share } => {
                    let account = entry.users.entry(user_of(&user)).or_default();
                    account.share = Some(share.allocations);
                    entry.leases.applied(key, account.used, now, unix);
                }
                Output::Forget { user } => {
                    let user = user_of(&user);
                    if let Some(account) = entry.users.get_mut(&user) {
                        account.share = None;
                        if account.used == 0 {
                            entry.users.remove(&user);
                        }
                    }
                }
                Output::Hint { node: to, key } => {
                    self.engine.traffic.hints += 1;
                    let after = Engine::latency(&mut self.rng);
                    let to = self.names[&*to];
                    self.push(self.now + after, Happening::Hint { node: to, key });
                }
                request => {
                    let connection = entry.connection;
                    let after = Engine::latency(&mut self.rng);
                    let request = Box::new(request);
                    self.push(self.now + after, Happening::Request { node, connection, issued: self.now, request });
                }
            }
        }
        let entry = &mut self.nodes[at];
        if let Some(after) = entry.leases.next_due(now) {
            let wake = self.now + (after.as_micros() as u64).max(1);
            if wake < entry.wake {
                entry.wake = wake;
                self.push(wake, Happening::Wake(node));
            }
        }
    }

    fn request(&mut self, node: u16, connection: u32, issued: u64, request: Box<Output>) {
        let (now, unix, at) = (self.instant(), self.unix(), usize::from(node));
        if self.nodes[at].connection != connection || !self.engine.up {
            return;
        }
        if self.engine.stalled_until > self.now && self.now < issued + 4 * SECOND {
            let next = self.engine.stalled_until.min(issued + 4 * SECOND) + self.rng.random_range(0..SECOND / 5);
            self.push(next, Happening::Request { node, connection, issued, request });
            return;
        }
        let (Output::Read { key } | Output::Write { key, .. } | Output::Delete { key, .. }) = &*request else { return };
        let key = *key;
        let timed_out = self.engine.stalled_until > self.now;
        let response = if timed_out && self.rng.random_bool(0.5) { None } else { Some(self.engine.handle(&request)) };
        let (leases, rng) = (&mut self.nodes[at].leases, &mut self.rng);
        match response {
            _ if timed_out => leases.failed(key, now, rng),
            Some(Response::Found(found)) => leases.read(key, found, now, unix),
            Some(Response::Accepted(revision)) => leases.written(key, revision, now, unix),
            Some(Response::Refused) => leases.refused(key, now, rng),
            None => {}
        }
        self.pump(node);
    }

    /// A node notices that the engine is away or back.
    fn notice(&mut self, node: u16, up: bool) {
        let at = usize::from(node);
        if self.nodes[at].state == State::Down || self.nodes[at].connected == up {
            return;
        }
        // What was on the way may have arrived, without an acknowledgement.
        if !up && self.nodes[at].in_flight > 0 && self.rng.random_bool(0.5) {
            self.accept(node);
        }
        let now = self.instant();
        let entry = &mut self.nodes[at];
        (entry.connected, entry.in_flight) = (up, 0);
        entry.connection += 1;
        entry.leases.engine(up, now, &mut self.rng);
        self.pump(node);
    }

    fn fail(&mut self, node: u16) {
        let at = usize::from(node);
        if self.nodes[at].state == State::Down || self.closing {
            return;
        }
        self.deaths += 1;
        let mut calls = Vec::new();
        for index in self.nodes[at].sessions.clone() {
            let call = self.sessions[index as usize].as_ref().unwrap().call;
            self.shut(index, true);
            if let Some(entry) = self.calls.get_mut(call as usize) {
                if entry.sessions.first() == Some(&index) && !calls.contains(&call) {
                    calls.push(call);
                }
                entry.sessions.retain(|session| *session != index);
            }
        }
        for event in std::mem::take(&mut self.nodes[at].outbox) {
            if event.kind == Kind::Ended && self.dead.insert(event.session, event.bytes).is_none() {
                self.ended -= 1;
                self.ended_bytes -= event.bytes;
            }
        }
        let entry = &mut self.nodes[at];
        (entry.state, entry.connected, entry.in_flight, entry.bits) = (State::Down, false, 0, 0.0);
        entry.connection += 1;
        entry.users.clear();
        entry.leases = turnserver::fleet::Leases::new(&entry.name, self.limits);
        let back = self.now + self.rng.random_range(120..1200) * SECOND;
        self.push(back, Happening::Restart(node));
        // The clients get new credentials.
        for call in calls {
            let Call { region, end, bits, .. } = self.calls[call as usize];
            self.end(call);
            let after = self.now + self.rng.random_range(SECOND..5 * SECOND);
            if after < end {
                self.push(after, Happening::Begin { region, end, bits });
            }
        }
    }

    fn restart(&mut self, node: u16) {
        let entry = &mut self.nodes[usize::from(node)];
        if entry.state == State::Down {
            (entry.state, entry.up_since, entry.sequence) = (State::Up, self.now, 0);
            entry.boot += 1;
            let up = self.engine.up;
            self.push(self.now + SECOND, Happening::Notice(node, up));
        }
    }

    /// A hostile user takes at all nodes what it gets, keeps it for an hour, and tries again meanwhile.
    fn attack(&mut self, user: u32, round: u32) {
        const CALL: u32 = u32::MAX;
        if self.closing {
            return;
        }
        if round == 20 {
            for index in 0..self.sessions.len() as u32 {
                if self.sessions[index as usize].as_ref().is_some_and(|session| session.user == user) {
                    self.shut(index, false);
                }
            }
            return;
        }
        for node in 0..self.nodes.len() as u16 {
            let mut tries = 0;
            while self.nodes[usize::from(node)].state == State::Up
                && tries < 1000
                && self.open(node, user, CALL, 0.0).is_some()
            {
                tries += 1;
            }
        }
        let after = if round == 19 { 3300 } else { 15 };
        self.push(self.now + after * SECOND, Happening::Attack { user, round: round + 1 });
    }

    /// Ends all sessions, and lets the nodes empty their outboxes.
    fn close(&mut self) {
        self.closing = true;
        for index in 0..self.sessions.len() as u32 {
            if self.sessions[index as usize].is_some() {
                self.shut(index, false);
            }
        }
        let end = self.now + 600 * SECOND;
        while self.now < end && self.nodes.iter().any(|node| !node.outbox.is_empty()) {
            for _ in 0..1000 {
                self.next();
            }
        }
        self.consumer.bill(u64::MAX);
    }
}

fn bytes_of(bits: f64, started: u64, now: u64) -> u64 {
    (bits / 8.0 * (now - started) as f64 / 1e6) as u64
}

fn name_of(user: u32) -> String {
    format!("1800086400:u{user}")
}

fn user_of(name: &str) -> u32 {
    name.rsplit('u').next().unwrap().parse().unwrap()
}
