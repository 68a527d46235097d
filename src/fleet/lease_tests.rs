//! The leases of several nodes in a model of the engine, with virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::lease::{Key, LONG_RENEWAL, Leases, Limits, Output, RENEWAL, SETTLE, Share, WHOLE};
use super::record::{Holder, Record};
use crate::turn::Instant;

const USER: &str = "1700000000:alice ü";
/// The wall clock at the start.
const EPOCH: u64 = 1_700_000_000;

/// A node: its leases, and its quota with the user's allocations.
struct Node {
    leases: Leases,
    share: Share,
    used: u32,
    /// Whether the node is connected.
    connected: bool,
    /// The request without a response, and when the engine handles it.
    request: Option<(f64, Output)>,
    /// Whether the last request failed. The next one then succeeds, because no node is cut off for longer than a lease.
    failed: bool,
    /// Requests that it has sent.
    requests: u32,
}

/// Some nodes and one user.
struct World {
    limits: Limits,
    nodes: BTreeMap<String, Node>,
    /// The revision of the record, and the record.
    record: (u64, Option<Record>),
    now: f64,
    up: bool,
    latency: f64,
    /// The probability that a request fails.
    failures: f64,
    rng: StdRng,
}

impl World {
    fn new(names: &[&str], allocations: u32, seed: u64) -> Self {
        let limits = Limits { allocations, nodes: u32::try_from(names.len()).unwrap() };
        let mut world = Self {
            limits,
            nodes: BTreeMap::new(),
            record: (0, None),
            now: 0.0,
            up: true,
            latency: 0.01,
            failures: 0.0,
            rng: StdRng::seed_from_u64(seed),
        };
        names.iter().for_each(|name| world.start(name));
        world
    }

    /// Nodes that have run for a while, so that grants may grow.
    fn settled(names: &[&str], allocations: u32) -> Self {
        let mut world = Self::new(names, allocations, 1);
        world.run(SETTLE.as_secs_f64() + 1.0);
        world
    }

    fn start(&mut self, name: &str) {
        let leases = Leases::new(name, self.limits);
        let share = self.limits.first();
        let node = Node { leases, share, used: 0, connected: false, request: None, failed: false, requests: 0 };
        self.nodes.insert(name.to_owned(), node);
    }

    fn instant(&self) -> Instant {
        Instant::from_elapsed(Duration::from_secs_f64(self.now))
    }

    fn unix(&self) -> u64 {
        EPOCH + Duration::from_secs_f64(self.now).as_secs()
    }

    fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).unwrap()
    }

    /// The user tries to have `count` allocations more at a node. Returns how many it gets.
    fn allocate(&mut self, name: &str, count: u32) -> u32 {
        let node = self.node(name);
        let got = count.min(node.share.allocations.saturating_sub(node.used));
        node.used += got;
        self.report(name);
        got
    }

    fn release(&mut self, name: &str, count: u32) {
        self.node(name).used -= count;
        self.report(name);
    }

    /// Reports the user's allocations. A slow node reports them once a second.
    fn report(&mut self, name: &str) {
        if self.is_slow() {
            return;
        }
        let now = self.instant();
        let node = self.node(name);
        node.leases.count_changed(USER, node.used, now);
    }

    fn is_slow(&self) -> bool {
        self.latency > 0.1
    }

    /// Lets `seconds` pass in steps of 50 ms.
    fn run(&mut self, seconds: f64) {
        let end = self.now + seconds;
        while self.now < end {
            self.now += 0.05;
            self.step();
        }
    }

    fn step(&mut self) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in &names {
            self.step_of(name);
        }
        self.check();
    }

    fn step_of(&mut self, name: &str) {
        let (now, unix, seconds) = (self.instant(), self.unix(), self.now);
        let (up, latency, slow) = (self.up, self.latency, self.is_slow());
        // A node notices within two seconds that the engine is away or back.
        let notices = self.rng.random_bool(if slow { 0.05 } else { 1.0 });
        let reports = slow && self.rng.random_bool(0.05);
        let delay = self.rng.random_range(0.5..1.0) * latency;
        let rng = &mut self.rng;
        let node = self.nodes.get_mut(name).unwrap();
        if node.connected != up && notices {
            node.connected = up;
            node.request = None;
            node.leases.engine(up, now, rng);
        }
        if reports {
            node.leases.count_changed(USER, node.used, now);
        }
        node.leases.advance(now, unix);
        if up && node.request.as_ref().is_some_and(|(at, _)| *at <= seconds) {
            let (_, request) = node.request.take().unwrap();
            self.respond(name, request);
        }
        let node = self.nodes.get_mut(name).unwrap();
        while let Some(output) = node.leases.next_output() {
            match output {
                Output::Share { key, user, share } => {
                    assert_eq!(&*user, USER);
                    node.share = share;
                    node.leases.applied(key, node.used, now, unix);
                }
                Output::Forget { .. } => node.share = self.limits.first(),
                Output::Hint { node: to, key } => {
                    if let Some(to) = self.nodes.get_mut(&*to) {
                        to.leases.hinted(key, now);
                    }
                    return;
                }
                request => {
                    assert!(node.request.is_none(), "two requests for one key");
                    if let Output::Write { record, .. } = &request
                        && let Some(own) = record.holders.get(name)
                    {
                        // A share is lowered before a record says so.
                        assert!(node.share.allocations <= own.granted && node.share.bytes <= own.bytes, "{request:?}");
                    }
                    node.requests += 1;
                    node.request = Some((seconds + delay, request));
                }
            }
        }
    }

    fn respond(&mut self, name: &str, request: Output) {
        let (now, unix) = (self.instant(), self.unix());
        let fails = self.failures > 0.0 && !self.node(name).failed && self.rng.random_bool(self.failures);
        let takes_effect = !fails || self.rng.random_bool(0.5);
        let Self { nodes, record: (revision, record), rng, .. } = self;
        let node = nodes.get_mut(name).unwrap();
        node.failed = fails;
        let (key, accepted) = match &request {
            Output::Read { key } => (*key, true),
            Output::Write { key, revision: expected, .. } | Output::Delete { key, revision: expected } => {
                (*key, if record.is_some() { expected == revision } else { *expected == 0 })
            }
            _ => unreachable!(),
        };
        assert_eq!(key, Key::of(USER));
        if accepted && takes_effect && !matches!(request, Output::Read { .. }) {
            *revision += 1;
            *record = match &request {
                Output::Write { record, .. } => Some(Record::from_json(record.to_json().as_bytes()).unwrap()),
                _ => None,
            };
        }
        match request {
            _ if fails => node.leases.failed(key, now, rng),
            Output::Read { .. } => {
                let found = record.clone().map(|record| (*revision, record));
                node.leases.read(key, found, now, unix);
            }
            _ if accepted => node.leases.written(key, *revision, now, unix),
            _ => node.leases.refused(key, now, rng),
        }
    }

    /// The bound of the overshoot.
    fn check(&self) {
        let first = self.limits.first();
        let at: Vec<&Node> = self.nodes.values().filter(|node| node.used > 0).collect();
        let others = u32::try_from(at.len()).unwrap().saturating_sub(1);
        let used: u32 = at.iter().map(|node| node.used).sum();
        let bound = self.limits.allocations + first.allocations * others;
        assert!(used <= bound, "{used} > {bound} at {:?}: {:?}", self.now, self.record);
        let bytes: u32 = at.iter().map(|node| node.share.bytes).sum();
        assert!(bytes <= WHOLE + first.bytes * others, "{bytes} at {:?}: {:?}", self.now, self.record);
    }

    fn shares(&self) -> Vec<u32> {
        self.nodes.values().map(|node| node.share.allocations).collect()
    }

    fn granted(&self) -> BTreeMap<String, u32> {
        let holders = self.record.1.iter().flat_map(|record| &record.holders);
        holders.map(|(name, holder)| (name.to_string(), holder.granted)).collect()
    }

    /// One random action of the user, the nodes or the engine.
    fn act(&mut self, hostile: bool) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        let name = &names[self.rng.random_range(0..names.len())];
        let used = self.node(name).used;
        // A hostile user takes what it gets, and seldom gives anything back.
        let action = self.rng.random_range(0..100);
        match action {
            50..78 if hostile => {
                self.run(6.0);
                for name in &names {
                    self.allocate(name, 1000);
                }
            }
            0..50 => {
                let count = if hostile { 1000 } else { self.rng.random_range(1..4) };
                self.allocate(name, count);
            }
            50..80 if used > 0 => {
                let count = if self.rng.random_bool(0.3) { used } else { self.rng.random_range(1..=used) };
                self.release(name, count);
            }
            80..84 => self.start(name),
            84..88 => {
                // An outage of all of the engine, which may lose the records.
                self.up = false;
                self.run(3.0);
                let seconds = self.rng.random_range(0.0..400.0);
                for _ in 0..5 {
                    self.run(seconds / 5.0);
                    let name = &names[self.rng.random_range(0..names.len())];
                    self.allocate(name, 1000);
                }
                if self.rng.random_bool(0.5) {
                    self.record.1 = None;
                }
                self.up = true;
            }
            _ => {
                let seconds = self.rng.random_range(0.0..40.0);
                self.run(seconds);
            }
        }
        self.check();
    }
}

#[test]
fn the_first_share_is_enough_for_a_call_and_at_most_the_limit() {
    let first = |allocations, nodes| Limits { allocations, nodes }.first();
    assert_eq!(first(32, 5), Share { allocations: 16, bytes: 500_000 });
    assert_eq!(first(10, 5), Share { allocations: 10, bytes: WHOLE });
    assert_eq!(first(1000, 5), Share { allocations: 200, bytes: 200_000 });
    assert_eq!(first(1000, 0), Share { allocations: 1000, bytes: WHOLE });
    assert_eq!(first(0, 5), Share { allocations: u32::MAX, bytes: 500_000 });
}

#[test]
fn a_key_is_the_beginning_of_the_hash_of_the_user() {
    // printf alice | sha256sum
    assert_eq!(Key::of("alice").to_string(), "2bd806c97f0e00af1a1fc3328fa763a9");
    assert_eq!(Key::from_hex("2bd806c97f0e00af1a1fc3328fa763a9"), Some(Key::of("alice")));
    assert_eq!(Key::from_hex("+bd806c97f0e00af1a1fc3328fa763a9"), None);
    assert_eq!(Key::from_hex("2bd8"), None);
}

#[test]
fn a_user_at_one_node_gets_all_it_wants_up_to_the_limit() {
    let mut world = World::settled(&["a", "b"], 100);
    assert_eq!(world.allocate("a", 1000), 50);
    for _ in 0..20 {
        world.run(3.0);
        world.allocate("a", 1000);
    }
    assert_eq!(world.node("a").used, 100);
    assert_eq!(world.node("a").share.bytes, WHOLE);
    assert_eq!(world.shares(), [100, 50]);
}

#[test]
fn the_lease_of_a_call_costs_one_write_and_one_deletion() {
    let mut world = World::settled(&["a"], 32);
    world.allocate("a", 4);
    world.run(LONG_RENEWAL.as_secs_f64() - 1.0);
    assert_eq!(world.node("a").requests, 1);
    world.run(2.0);
    assert_eq!(world.node("a").requests, 2);
    world.release("a", 4);
    world.run(10.0);
    assert_eq!((world.node("a").requests, world.record.1.clone()), (3, None));
    assert!(world.node("a").leases.is_empty());
}

#[test]
fn a_user_that_is_over_the_limit_gets_nothing_new_and_keeps_what_it_has() {
    let mut world = World::settled(&["a", "b", "c"], 32);
    for name in ["a", "b", "c"] {
        assert_eq!(world.allocate(name, 1000), 16);
    }
    world.run(20.0);
    assert_eq!(world.shares(), [16, 16, 16]);
    world.release("a", 5);
    world.run(20.0);
    // 43 are in use.
    assert_eq!(world.allocate("a", 1), 0);
    world.release("b", 16);
    world.run(40.0);
    assert_eq!(world.allocate("a", 1), 1);
}

#[test]
fn a_node_that_is_short_gets_what_others_do_not_need_within_a_renewal() {
    let mut world = World::settled(&["a", "b"], 64);
    world.allocate("a", 30);
    for _ in 0..10 {
        world.run(3.0);
        world.allocate("a", 30);
    }
    assert!(world.granted()["a"] >= 60, "{:?}", world.granted());
    let used = world.node("a").used;
    world.release("a", used - 4);
    world.allocate("b", 16);
    world.run(2.0 * RENEWAL.as_secs_f64() + 3.0);
    world.allocate("b", 30);
    world.run(2.0 * RENEWAL.as_secs_f64() + 3.0);
    world.allocate("b", 30);
    assert!(world.node("b").used >= 40, "{:?}", world.granted());
}

#[test]
fn a_new_holder_is_hinted_to_a_node_with_a_long_lease() {
    let mut world = World::settled(&["a", "b"], 32);
    world.allocate("a", 4);
    world.run(5.0);
    assert_eq!(world.node("a").share.bytes, WHOLE);
    world.allocate("b", 4);
    world.run(2.0 * RENEWAL.as_secs_f64() + 3.0);
    assert_eq!([world.node("a").share.bytes, world.node("b").share.bytes], [WHOLE / 2, WHOLE / 2]);
}

#[test]
fn the_part_of_a_dead_node_is_free_after_its_lease() {
    let mut world = World::settled(&["a", "b"], 32);
    world.allocate("a", 16);
    world.allocate("b", 1);
    world.run(20.0);
    world.nodes.remove("a");
    for _ in 0..30 {
        world.run(2.0);
        world.allocate("b", 32);
    }
    assert_eq!(world.node("b").used, 32);
    assert_eq!(world.granted(), BTreeMap::from([("b".to_owned(), 32)]));
}

#[test]
fn while_the_engine_is_away_a_node_keeps_what_it_holds_and_new_users_get_the_first_share() {
    let mut world = World::settled(&["a", "b"], 64);
    world.allocate("a", 30);
    for _ in 0..3 {
        world.run(3.0);
        world.allocate("a", 8);
    }
    let held = world.node("a").share;
    assert!(held.allocations > 40);
    world.up = false;
    world.run(3600.0);
    assert_eq!(world.node("a").share, held);
    assert_eq!(world.allocate("b", 1000), 32);
    let requests = world.node("b").requests;
    world.run(100.0);
    assert_eq!(world.node("b").requests, requests);
    world.up = true;
    world.run(100.0);
    assert_eq!(world.granted().values().sum::<u32>(), world.nodes.values().map(|node| node.used).sum::<u32>());
}

#[test]
fn a_full_record_admits_nothing_new_at_further_nodes() {
    let names: Vec<String> = (0..Record::MOST_HOLDERS + 6).map(|number| format!("n{number:02}")).collect();
    let mut world = World::settled(&names.iter().map(String::as_str).collect::<Vec<_>>(), 100);
    for name in &names {
        world.allocate(name, 2);
    }
    world.run(120.0);
    assert_eq!(world.granted().len(), Record::MOST_HOLDERS);
    for name in &names {
        assert_eq!(world.allocate(name, 1), 0);
    }
}

#[test]
fn an_unreadable_record_is_not_overwritten() {
    let rng = &mut StdRng::seed_from_u64(1);
    let at = |seconds| Instant::from_elapsed(Duration::from_secs(seconds));
    let mut leases = Leases::new("a", Limits { allocations: 32, nodes: 5 });
    let key = Key::of(USER);
    leases.engine(true, at(0), rng);
    leases.count_changed(USER, 1, at(1));
    leases.advance(at(1), EPOCH);
    assert!(matches!(leases.next_output(), Some(Output::Write { revision: 0, .. })));
    leases.refused(key, at(1), rng);
    for minute in 0..3 {
        leases.advance(at(1 + 60 * minute), EPOCH);
        assert_eq!(leases.next_output(), Some(Output::Read { key }));
        leases.unreadable(key, at(1 + 60 * minute));
        assert_eq!(leases.next_output(), None);
    }
    assert_eq!(leases.share(USER), Share { allocations: 16, bytes: 500_000 });
}

#[test]
fn a_user_whose_last_count_got_lost_does_not_keep_its_lease() {
    let rng = &mut StdRng::seed_from_u64(1);
    let at = |seconds| Instant::from_elapsed(Duration::from_secs(seconds));
    let mut leases = Leases::new("a", Limits { allocations: 32, nodes: 5 });
    let key = Key::of(USER);
    leases.engine(true, at(0), rng);
    leases.count_changed(USER, 3, at(1));
    leases.advance(at(1), EPOCH);
    assert!(matches!(leases.next_output(), Some(Output::Write { revision: 0, .. })));
    leases.written(key, 1, at(1), EPOCH);
    leases.recount(|_| 0, at(120));
    for seconds in 120..140 {
        leases.advance(at(seconds), EPOCH + seconds);
        while let Some(output) = leases.next_output() {
            match output {
                Output::Share { key, .. } => leases.applied(key, 0, at(seconds), EPOCH + seconds),
                Output::Delete { key, .. } => leases.written(key, 0, at(seconds), EPOCH + seconds),
                Output::Forget { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(leases.len(), 0);
}

#[test]
fn an_absurd_record_of_another_node_ends_like_every_other_one() {
    let rng = &mut StdRng::seed_from_u64(1);
    let at = |seconds| Instant::from_elapsed(Duration::from_secs(seconds));
    let mut leases = Leases::new("a", Limits { allocations: 32, nodes: 5 });
    let key = Key::of(USER);
    leases.engine(true, at(0), rng);
    leases.count_changed(USER, 1, at(100));
    leases.advance(at(100), EPOCH);
    assert!(matches!(leases.next_output(), Some(Output::Write { .. })));
    leases.refused(key, at(100), rng);
    leases.advance(at(101), EPOCH);
    assert_eq!(leases.next_output(), Some(Output::Read { key }));
    let other = Holder { granted: 31, used: 31, bytes: 0, until: u64::MAX, short: false };
    let record = Record { holders: [("b".into(), other)].into() };
    leases.read(key, Some((7, record)), at(101), EPOCH);
    let record = loop {
        match leases.next_output() {
            Some(Output::Share { key, .. }) => leases.applied(key, 1, at(101), EPOCH),
            Some(Output::Hint { .. }) => {}
            Some(Output::Write { record, .. }) => break record,
            other => panic!("{other:?}"),
        }
    };
    assert!(record.holders["b"].until <= EPOCH + 300, "{record:?}");
}

#[test]
fn the_number_of_users_and_of_requests_is_bounded() {
    let mut leases = Leases::new("a", Limits { allocations: 32, nodes: 5 });
    let now = Instant::from_elapsed(Duration::from_secs(1));
    leases.engine(true, now, &mut StdRng::seed_from_u64(1));
    for number in 0..Leases::MOST_USERS + 10 {
        leases.count_changed(&format!("u{number}"), 1, now);
    }
    assert_eq!(leases.len(), Leases::MOST_USERS);
    leases.advance(now, EPOCH);
    let mut outputs = 0;
    while leases.next_output().is_some() {
        outputs += 1;
    }
    assert_eq!(outputs, Leases::MOST_IN_FLIGHT);
    assert_eq!(leases.share("u99999999"), Share { allocations: 16, bytes: 500_000 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    // The bound is checked after every step.
    #[test]
    fn a_user_never_has_more_than_the_bound(seed: u64, allocations in 1..200u32, nodes in 1..6usize, hostile: bool) {
        let names = ["a", "b", "c", "d", "e"];
        let mut world = World::new(&names[..nodes], allocations, seed);
        world.latency = 1.0;
        world.failures = 0.1;
        for _ in 0..60 {
            world.act(hostile);
        }
    }

    #[test]
    fn when_the_user_has_left_no_record_remains(seed: u64, nodes in 1..6usize) {
        let names = ["a", "b", "c", "d", "e"];
        let mut world = World::new(&names[..nodes], 40, seed);
        world.latency = 1.0;
        for _ in 0..20 {
            world.act(false);
        }
        for name in &names[..nodes] {
            let used = world.node(name).used;
            world.release(name, used);
        }
        // A node that started again has forgotten its entry, which ends with its lease.
        world.run(80.0);
        let others = world.record.1.iter().flat_map(|record| record.holders.values());
        prop_assert!(others.into_iter().all(|holder| holder.until + 5 < world.unix() + 180));
        prop_assert!(world.nodes.values().all(|node| node.leases.is_empty()));
    }
}
