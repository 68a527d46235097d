//! A node: its sessions, the quota of its users, its leases and its outbox.

use std::collections::{HashMap, VecDeque};

use turnserver::fleet::lease::Limits;
use turnserver::fleet::{Heartbeat, Leases, Load};

use super::consumer::Event;

/// The relay ports of a node.
const PORTS: u32 = 16_384;
/// An outbox has room for this many events. Then `usage` events are dropped, which the next ones make up.
pub(crate) const OUTBOX: usize = 200_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Up,
    Draining,
    Down,
}

/// What a user has at a node.
#[derive(Clone, Copy, Default)]
pub(crate) struct Account {
    pub(crate) used: u32,
    /// The share that the leases gave; `None` is the first share.
    pub(crate) share: Option<u32>,
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) region: usize,
    pub(crate) weight: u32,
    pub(crate) state: State,
    pub(crate) up_since: u64,
    pub(crate) boot: u64,
    pub(crate) sequence: u64,
    /// Indexes of its sessions.
    pub(crate) sessions: Vec<u32>,
    pub(crate) bits: f64,
    pub(crate) users: HashMap<u32, Account>,
    pub(crate) leases: Leases,
    /// Grows when the connection to the engine is lost, so that late responses are recognized.
    pub(crate) connection: u32,
    pub(crate) connected: bool,
    /// When the leases are woken next.
    pub(crate) wake: u64,
    pub(crate) outbox: VecDeque<Event>,
    /// How many events of the outbox are on the way.
    pub(crate) in_flight: usize,
    pub(crate) batch: u32,
}

impl Node {
    pub(crate) fn new(name: String, region: usize, weight: u32, limits: Limits) -> Self {
        let leases = Leases::new(&name, limits);
        Self {
            name,
            region,
            weight,
            state: State::Up,
            up_since: 0,
            boot: 1,
            sequence: 0,
            sessions: Vec::new(),
            bits: 0.0,
            users: HashMap::new(),
            leases,
            connection: 0,
            connected: false,
            wake: u64::MAX,
            outbox: VecDeque::new(),
            in_flight: 0,
            batch: 0,
        }
    }

    pub(crate) fn load(&self) -> f64 {
        self.bits / (f64::from(self.weight) * 10_000_000.0)
    }

    /// Returns a heartbeat, without what the simulation does not need.
    pub(crate) fn beat(&mut self, region: &str) -> Heartbeat {
        self.sequence += 1;
        let allocations = self.sessions.len() as u32;
        Heartbeat {
            name: self.name.clone(),
            boot: self.boot,
            sequence: self.sequence,
            region: region.to_owned(),
            weight: self.weight,
            urls: Vec::new(),
            load: Load {
                allocations,
                free_ports: PORTS.saturating_sub(allocations),
                capacity: PORTS,
                bits_per_second: self.bits.max(0.0) as u64,
                cpu: (0.9 * self.load()).clamp(0.0, 1.0),
            },
            draining: self.state == State::Draining,
            version: String::new(),
            addresses: Vec::new(),
            tls_addresses: Vec::new(),
            state: 0,
        }
    }
}
