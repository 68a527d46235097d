//! What a server holds: before a fault, and after it.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use turnserver::clock::Clock;

use crate::client::Http;
use crate::support::client::{Client, Login};
use crate::support::{Controlled, Server, TIMEOUT, TempDir, config};

/// The largest number of allocations of a user.
pub(super) const PER_USER: usize = 4;

/// The user whose allocations a fault may make fail.
pub(super) const USER: &str = "alice";

/// Returns a configuration with two workers and few limits.
pub(super) fn settings(addresses: &[&str]) -> String {
    let more = format!(
        "[limits]\nallocations-per-user = {PER_USER}\nallocations-per-second-per-user = 0\n\
         unverified-responses = 0\nconnections-per-source = 0\nfailed-authentications = 0\n[peers]\nallow = [\"127.0.0.1\", \"10.0.0.0/8\", \"fd00::/8\"]\n"
    );
    format!("workers = 2\n{}", config(addresses, &more))
}

pub(super) fn start() -> Controlled {
    Controlled::start_with(&settings(&["127.0.0.1"]))
}

/// Starts a server that can start again with its configuration: no other program gets its ports in the meantime.
pub(super) fn start_on_fixed_ports() -> Controlled {
    let directory = TempDir::new();
    let socket = directory.path().join("control.sock");
    let try_start = |attempt: u32| {
        // Below the range from which the kernel picks ports.
        let port = 10_000 + RandomState::new().hash_one(attempt) % 5_000;
        let listening = settings(&["127.0.0.1"]).replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
        let config = format!("{listening}[control]\nsocket = {socket:?}\n");
        Some((Server::start_unless_in_use(&config)?, config))
    };
    let (server, config) = (0..50).find_map(try_start).expect("a port is free");
    Controlled { server, config, socket, directory }
}

/// What a server holds for its clients, and its memory.
#[derive(Debug)]
pub(super) struct Inventory {
    held: Held,
    /// The resident memory in KiB.
    memory: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Held {
    files: usize,
    threads: usize,
    /// Metrics: allocations, permissions, channels, connections, and relay ports that are used, reserved, or there.
    gauges: BTreeMap<&'static str, u64>,
}

impl Inventory {
    /// Takes the inventory. The quota of the user must be free: all of it is used once.
    pub(super) fn of(controlled: &Controlled) -> Self {
        use_quota(controlled);
        // A connection of HTTP may be closed a moment after its response.
        let held = (0..5).map(|_| Held::of(controlled)).min_by_key(|held| held.files).unwrap();
        Self { held, memory: memory(controlled) }
    }

    /// Asserts that nothing is lost: no descriptor, thread, port, or place in the quota, and at most 8 MiB of memory.
    #[track_caller]
    pub(super) fn assert_kept(&self, controlled: &Controlled) {
        self.assert_kept_within(controlled, 8);
    }

    /// The same, with this many MiB of memory.
    #[track_caller]
    pub(super) fn assert_kept_within(&self, controlled: &Controlled, mib: u64) {
        use_quota(controlled);
        let (clock, mut held) = (Clock::start(), Held::of(controlled));
        while held != self.held {
            assert!(clock.elapsed() < TIMEOUT, "before: {:?}\nafter: {held:?}", self.held);
            held = Held::of(controlled);
        }
        let memory = memory(controlled);
        assert!(memory < self.memory + 1024 * mib, "{memory} KiB after {} KiB", self.memory);
    }
}

impl Held {
    fn of(controlled: &Controlled) -> Self {
        let metrics = Metrics::of(controlled);
        let sum = |family: &'static str| (family, metrics.sum(family));
        let gauges = [
            sum("turnserver_allocations{"),
            sum("turnserver_permissions"),
            sum("turnserver_channels"),
            sum("turnserver_connections{"),
            sum("turnserver_relay_ports{"),
            sum("turnserver_relay_ports{state=\"used\""),
            sum("turnserver_relay_ports{state=\"reserved\""),
        ];
        let count = |of: &str| fs::read_dir(format!("/proc/{}/{of}", controlled.server.id())).unwrap().count();
        Self { files: count("fd"), threads: count("task"), gauges: BTreeMap::from(gauges) }
    }
}

/// Makes as many allocations of the user as are allowed, and deletes them.
#[track_caller]
fn use_quota(controlled: &Controlled) {
    let allocate = || {
        let client = Client::new(controlled.server.listeners("udp")[0]);
        client.allocate(&Login::mint(USER, 36_000)).map(|(session, _)| (client, session))
    };
    let held: Vec<_> = (0..PER_USER).map(|at| allocate().unwrap_or_else(|code| panic!("{code} after {at}"))).collect();
    assert_eq!(allocate().map(drop), Err(486));
    held.iter().for_each(|(client, session)| client.delete(session));
}

/// Returns the resident memory in KiB.
pub(super) fn memory(controlled: &Controlled) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", controlled.server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The page of metrics.
pub(super) struct Metrics(String);

impl Metrics {
    pub(super) fn of(controlled: &Controlled) -> Self {
        let page = Http::unix(&controlled.socket).get("/metrics");
        assert_eq!(page.status, 200, "{}", page.body);
        Self(page.body)
    }

    /// Returns the sum of all series whose name and labels begin with this.
    pub(super) fn sum(&self, series: &str) -> u64 {
        let values: Vec<u64> = self.0.lines().filter(|line| line.starts_with(series)).map(value).collect();
        assert!(!values.is_empty(), "{series} is not in:\n{}", self.0);
        values.iter().sum()
    }

    /// Returns the largest value of a family, in seconds.
    pub(super) fn longest(&self, family: &str) -> Duration {
        let of = |line: &str| Duration::from_secs_f64(line.rsplit_once(' ').unwrap().1.parse().unwrap());
        let longest = self.0.lines().filter(|line| line.starts_with(family)).map(of).max();
        longest.unwrap_or_else(|| panic!("{family} is not in:\n{}", self.0))
    }
}

fn value(line: &str) -> u64 {
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Waits until the sum of series is this or more, and returns it.
#[track_caller]
pub(super) fn wait_for_sum(controlled: &Controlled, series: &str, least: u64) -> u64 {
    wait_for(controlled, series, |sum| sum >= least)
}

/// Waits until there are this many allocations. Gauges may be a second old.
#[track_caller]
pub(super) fn wait_for_allocations(controlled: &Controlled, count: u64) {
    wait_for(controlled, "turnserver_allocations{", |sum| sum == count);
}

#[track_caller]
fn wait_for(controlled: &Controlled, series: &str, wanted: impl Fn(u64) -> bool) -> u64 {
    let clock = Clock::start();
    loop {
        let sum = Metrics::of(controlled).sum(series);
        if wanted(sum) {
            return sum;
        }
        assert!(clock.elapsed() < TIMEOUT, "{series} is {sum}");
    }
}
