//! Routes and next hops become entries of real maps. The tests need the privilege to load the program.

use std::net::{IpAddr, SocketAddr};

use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues};
use rand::SeedableRng as _;

use super::*;
use crate::net::testing::skip;
use crate::offload::next_hop::{Desks, Obstacle, desks};
use crate::offload::program::{Program, Sizes};
use crate::test_world::Blueprint;
use crate::turn::{Rate, SocketId};

const INTERFACE: u32 = 7;
const PEER: &str = "203.0.113.9:4000";
const RELAY: &str = "192.0.2.1:50000";

struct World {
    offload: Offload,
    server: Server,
    rng: StdRng,
    /// The other end of the asker.
    desks: Option<Desks>,
    program: Program,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_channel_takes_what_is_documented() {
    // Tables and queues may have twice as much room as they need. The nodes of a set have eleven elements, of which at
    // least five are used in a large set.
    let of_route = size_of::<Option<Route>>() + size_of::<((FiveTuple, u16), u32)>() + size_of::<u32>();
    let of_leg = size_of::<(Pair, Watched)>()
        + size_of::<Leg>()
        + size_of::<(Leg, Neighbour)>()
        + size_of::<(Neighbour, (Leg, u64))>()
        + size_of::<Relayed>();
    let of_slot = size_of::<counting::Slot>() + size_of::<u32>();
    let node = 11 * size_of::<Leg>() + 16;
    let bytes = 2 * of_route + 2 * (2 * (of_leg + of_slot) + node + node / 5);
    println!("a channel takes {bytes} bytes");
    let documented = crate::test_memory_table::documented("A channel while the XDP program is attached");
    assert!(bytes <= documented && documented < 2 * bytes, "{bytes}");
}

/// Returns a worker's offload, or nothing if this process may not load the program.
fn world(channels: u32, blueprint: &Blueprint) -> Option<World> {
    let sizes = Sizes { entries: channels, slots: 64 * (2 * channels).div_ceil(64) };
    let program = match Program::load(sizes) {
        Ok(program) => program,
        Err(error) => {
            skip(&error.to_string());
            return None;
        }
    };
    let maps = Maps::new(program.descriptors().unwrap()).unwrap();
    let blocks = Arc::new(Blocks::new(maps.slots()));
    let (mut askers, desks) = desks(1);
    let plan = Plan { worker: 0, maps, blocks, asker: askers.remove(0) };
    let offload = Offload::new(plan, Duration::from_secs(1_000), Arc::new(BTreeSet::from([INTERFACE])));
    let server = Server::new(blueprint.snapshot(), blueprint.ledger());
    Some(World { offload, server, rng: StdRng::seed_from_u64(1), desks: Some(desks), program })
}

fn blueprint() -> Blueprint {
    Blueprint::new("test", ("192.0.2.1", "192.0.2.1"), 50_000..=50_099)
}

fn route(client_port: u16, channel: u16) -> ChannelRoute {
    let client = SocketAddr::new("198.51.100.2".parse().unwrap(), client_port);
    ChannelRoute {
        tuple: FiveTuple { client, server: address("192.0.2.1:3478"), transport: Transport::Udp },
        channel,
        socket: SocketId::for_tests(0),
        relay: address(RELAY),
        peer: address(PEER),
        expires: Deadline::after(Instant::from_elapsed(Duration::ZERO), Duration::from_secs(600)),
    }
}

fn hop(interface: u32) -> NextHop {
    NextHop {
        interface,
        is_redirected: false,
        link_destination: [2, 0, 0, 0, 0, 2],
        link_source: [2, 0, 0, 0, 0, 1],
        longest_packet: 1500,
    }
}

impl World {
    fn add(&mut self, route: ChannelRoute) {
        self.offload.add(route, false, &mut self.rng);
    }

    fn remove(&mut self, route: &ChannelRoute) {
        self.offload.remove(std::iter::once(route));
    }

    /// The time until which entries are used.
    fn lease(&self) -> u64 {
        let map = MapData::from_fd(self.program.descriptors().unwrap().lease).unwrap();
        Array::<MapData, u64>::try_from(Map::Array(map)).unwrap().get(&0, 0).unwrap()
    }

    /// Resolves both pairs of the routes.
    fn resolve(&mut self, resolution: &Resolution) {
        for destination in ["203.0.113.9", "198.51.100.2"] {
            self.learn(destination, resolution);
        }
    }

    fn learn(&mut self, destination: &str, resolution: &Resolution) {
        let pair = pair(destination);
        self.offload.learn(vec![Notice::Changed { owner: 0, pair, resolution: resolution.clone() }]);
    }

    fn work(&mut self) {
        while self.offload.step(&self.server) {}
    }

    /// Returns the number of entries of each direction.
    fn entries(&mut self) -> [u64; 2] {
        self.work();
        let counts = self.offload.counts();
        let kept = self.keys();
        assert_eq!(counts.entries, kept, "the maps have as many entries as are counted");
        counts.entries
    }

    /// Returns the number of entries in the maps.
    fn keys(&self) -> [u64; 2] {
        let mut maps = Maps::new(self.program.descriptors().unwrap()).unwrap();
        [layout::Direction::ToPeer, layout::Direction::ToClient].map(|direction| maps.count(direction).unwrap() as u64)
    }

    /// Counts packets in a slot, as the program does.
    fn relay(&self, slot: u32, packets: u64, bytes: u64, last: u64) {
        let map = MapData::from_fd(self.program.descriptors().unwrap().counters).unwrap();
        let mut counters: PerCpuArray<MapData, [u64; 3]> = Map::PerCpuArray(map).try_into().unwrap();
        let mut cpus = counters.get(&slot, 0).unwrap().to_vec();
        let [all_packets, all_bytes, latest] = cpus.last_mut().unwrap();
        *all_packets += packets;
        *all_bytes += bytes;
        *latest = last;
        counters.set(slot, PerCpuValues::try_from(cpus).unwrap(), 0).unwrap();
    }

    /// Reads all counters, and returns what is to be credited.
    fn read(&mut self) -> Vec<(Direction, u64, u64)> {
        self.offload.tick();
        self.work();
        let relayed = self.offload.take_relayed().into_iter();
        relayed.map(|Relayed { direction, packets, bytes, .. }| (direction, packets, bytes)).collect()
    }

    fn reasons(&self, route: &ChannelRoute) -> [Option<String>; 2] {
        self.offload.why_in_user_space(&route.tuple, route.channel).unwrap()
    }
}

fn pair(destination: &str) -> Pair {
    Pair { destination: destination.parse().unwrap(), source: "192.0.2.1".parse::<IpAddr>().unwrap() }
}

#[test]
fn a_route_has_entries_from_its_next_hops_until_its_end() {
    let Some(mut world) = world(16, &blueprint()) else { return };
    let route = route(1000, 0x4000);
    world.add(route);
    assert_eq!(world.entries(), [0, 0]);
    assert_eq!(world.reasons(&route), [(); 2].map(|()| Some("the entry is being made".to_owned())));
    world.learn("203.0.113.9", &Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [1, 0], "each direction has its own next hop");
    world.learn("198.51.100.2", &Ok(hop(INTERFACE)));
    assert_eq!((world.entries(), world.reasons(&route)), ([1, 1], [None, None]));
    // A later expiry replaces the entries.
    world.add(ChannelRoute { expires: route.expires.plus(Duration::from_secs(60)), ..route });
    assert_eq!(world.entries(), [1, 1]);
    world.resolve(&Err(Obstacle::NoRoute));
    assert_eq!(world.entries(), [0, 0]);
    world.resolve(&Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [1, 1]);
    // At once, without a step.
    world.remove(&route);
    assert_eq!((world.keys(), world.offload.pairs.len()), ([0, 0], 0));
    assert_eq!(world.offload.counts(), Counts::default());
}

#[test]
fn a_channel_for_another_peer_replaces_the_entries() {
    let Some(mut world) = world(16, &blueprint()) else { return };
    world.add(route(1000, 0x4000));
    world.resolve(&Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [1, 1]);
    world.add(ChannelRoute { peer: address("203.0.113.10:4000"), ..route(1000, 0x4000) });
    assert_eq!(world.entries(), [0, 0]);
    world.learn("198.51.100.2", &Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [0, 1]);
    world.learn("203.0.113.10", &Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [1, 1]);
}

#[test]
fn what_only_user_space_may_relay_has_no_entry_and_a_reason() {
    let connection = ChannelRoute {
        tuple: FiveTuple { transport: Transport::Tcp, ..route(1000, 0x4000).tuple },
        ..route(1000, 0x4000)
    };
    let own = ChannelRoute { peer: address("192.0.2.1:50001"), ..route(1000, 0x4000) };
    let rates = |change: fn(&mut Blueprint)| {
        let mut blueprint = blueprint();
        change(&mut blueprint);
        blueprint
    };
    let limited = rates(|blueprint| blueprint.limits.byte_rate = Rate::of_bytes(1_000_000));
    let user = rates(|blueprint| blueprint.limits.user_rates.bytes = Rate::of_bytes(1_000_000));
    for (blueprint, route, reason) in [
        (blueprint(), connection, "TCP or TLS"),
        (blueprint(), own, "an address of this server"),
        (limited, route(1000, 0x4000), "limits the bytes per second"),
        (user, route(1000, 0x4000), "limits the bytes per second"),
        (blueprint(), route(1000, 0x5000), "no longer accepts the channel number"),
    ] {
        let Some(mut world) = world(16, &blueprint) else { return };
        world.add(route);
        world.resolve(&Ok(hop(INTERFACE)));
        assert_eq!(world.entries(), [0, 0]);
        assert!(world.reasons(&route).iter().flatten().all(|why| why.contains(reason)), "{:?}", world.reasons(&route));
    }
}

#[test]
fn an_interface_without_the_program_is_not_used() {
    let Some(mut world) = world(16, &blueprint()) else { return };
    let route = route(1000, 0x4000);
    world.add(route);
    world.resolve(&Ok(hop(8)));
    assert_eq!(world.entries(), [0, 0]);
    assert!(world.reasons(&route)[0].as_ref().unwrap().contains("index 8"));
    world.offload.set_interfaces(&Arc::new(BTreeSet::from([8])));
    assert_eq!(world.entries(), [1, 1]);
    world.offload.set_interfaces(&Arc::default());
    assert_eq!(world.entries(), [0, 0]);
}

#[test]
fn full_maps_leave_the_rest_to_user_space_until_there_is_room() {
    let Some(mut world) = world(2, &blueprint()) else { return };
    let routes: Vec<ChannelRoute> = (0..4).map(|number| route(1000 + number, 0x4000)).collect();
    // The map to clients has one entry for each peer and relayed transport address.
    for (number, route) in (0..).zip(&routes) {
        world.add(ChannelRoute { relay: SocketAddr::new(route.relay.ip(), 50_000 + number), ..*route });
    }
    world.resolve(&Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [2, 2]);
    let full = Reason::Full.index();
    assert_eq!(world.offload.counts().without[full], 4);
    let first = ChannelRoute { relay: address("192.0.2.1:50000"), ..routes[0] };
    world.remove(&first);
    world.offload.tick();
    assert_eq!(world.entries(), [2, 2]);
    assert_eq!(world.offload.counts().without[full], 2);
}

// A packet that was being relayed when its entry was removed may be counted later.
#[test]
fn slots_are_free_only_seconds_after_their_entries_however_many_end_at_once() {
    const ROUTES: u16 = 32;
    let Some(mut world) = world(ROUTES.into(), &blueprint()) else { return };
    let with_relay = |number: u16| {
        let relay = SocketAddr::new(address(RELAY).ip(), 50_000 + number);
        ChannelRoute { relay, ..route(1000 + number, 0x4000) }
    };
    let routes: Vec<ChannelRoute> = (0..ROUTES).map(with_relay).collect();
    routes.iter().for_each(|route| world.add(*route));
    world.resolve(&Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [32, 32]);
    routes[..24].chunks(8).for_each(|routes| world.offload.remove(routes.iter()));
    world.add(with_relay(ROUTES));
    world.resolve(&Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [8, 8]);
    world.offload.tick();
    assert_eq!(world.entries(), [8, 8]);
    for _ in 0..2 {
        world.offload.tick();
        world.work();
    }
    assert_eq!(world.entries(), [9, 9]);
}

#[test]
fn a_neighbour_is_left_to_the_kernel_for_one_to_two_seconds() {
    let Some(mut world) = world(16, &blueprint()) else { return };
    world.add(route(1000, 0x4000));
    world.resolve(&Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [1, 1]);
    let examine = |world: &mut World| {
        world.offload.learn(vec![Notice::Use { owner: 0, pair: pair("203.0.113.9") }; 3]);
        world.entries()
    };
    assert_eq!(examine(&mut world), [1, 1], "without packets, the neighbour does not matter");
    // Both directions have the same neighbour. The one that has relayed rests.
    world.relay(1, 1, 10, 500);
    world.read();
    assert_eq!(examine(&mut world), [1, 0]);
    world.offload.tick();
    assert_eq!(examine(&mut world), [1, 0]);
    world.offload.tick();
    assert_eq!(world.entries(), [1, 1]);
    // Packets of long ago do not count.
    world.relay(0, 1, 10, 600);
    (0..4).for_each(|_| drop(world.read()));
    assert_eq!(examine(&mut world), [1, 1]);
}

#[test]
fn what_is_counted_is_credited_once_and_also_after_the_end() {
    let Some(mut world) = world(16, &blueprint()) else { return };
    let route = route(1000, 0x4000);
    world.add(route);
    world.resolve(&Ok(hop(INTERFACE)));
    world.work();
    world.relay(0, 2, 300, 1);
    world.relay(1, 1, 7, 1);
    assert_eq!(world.read(), [(Direction::ToPeers, 2, 300), (Direction::ToClient, 1, 7)]);
    assert_eq!(world.read(), []);
    world.relay(0, 1, 10, 2);
    world.remove(&route);
    let relayed = world.offload.take_relayed();
    assert_eq!(relayed.iter().map(|relayed| relayed.bytes).collect::<Vec<_>>(), [10]);
    // The program was about to send this one.
    world.relay(1, 1, 20, 3);
    assert_eq!(world.read(), [(Direction::ToClient, 1, 20)]);
    assert_eq!(world.read(), []);
}

#[test]
fn entries_are_used_after_a_review_only() {
    let Some(mut world) = world(16, &blueprint()) else { return };
    world.add(route(1000, 0x4000));
    world.resolve(&Ok(hop(INTERFACE)));
    world.work();
    let soon = nanoseconds(clock::monotonic().saturating_add(Duration::from_secs(1)));
    assert!(world.lease() > soon);
    world.offload.suspend();
    assert_eq!(world.lease(), 0, "at once");
    world.work();
    world.offload.tick();
    assert_eq!((world.lease(), &world.offload.state), (0, &State::Suspended { reviewed: false }));
    world.offload.reviewed();
    assert_eq!(world.lease(), 0, "not before all entries have been examined");
    world.work();
    assert!(world.lease() > soon);
    world.offload.finish();
    assert_eq!(world.lease(), 0);
}

#[test]
fn slots_and_places_are_used_again() {
    let Some(mut world) = world(16, &blueprint()) else { return };
    world.resolve(&Ok(hop(INTERFACE)));
    for round in 0..40 {
        let routes: Vec<ChannelRoute> = (0..8).map(|number| route(1000 + round * 8 + number, 0x4000)).collect();
        for (number, route) in (0..).zip(&routes) {
            world.add(ChannelRoute { relay: SocketAddr::new(route.relay.ip(), 50_000 + number), ..*route });
        }
        world.resolve(&Ok(hop(INTERFACE)));
        assert_eq!(world.entries(), [8, 8], "round {round}");
        for (number, route) in (0..).zip(&routes) {
            let relay = SocketAddr::new(route.relay.ip(), 50_000 + number);
            world.remove(&ChannelRoute { relay, ..*route });
        }
        // Two readings free the slots.
        for _ in 0..2 {
            world.offload.tick();
            world.work();
        }
    }
    assert_eq!((world.keys(), world.offload.routes.len()), ([0, 0], 8));
}

#[test]
fn refreshes_of_what_the_kernel_does_not_take_cause_no_growth() {
    let Some(mut world) = world(1, &blueprint()) else { return };
    let routes = [route(1000, 0x4000), ChannelRoute { relay: address("192.0.2.1:50001"), ..route(1001, 0x4000) }];
    routes.into_iter().for_each(|route| world.add(route));
    world.resolve(&Ok(hop(INTERFACE)));
    for seconds in 1..100 {
        let expires = routes[1].expires.plus(Duration::from_secs(seconds));
        world.add(ChannelRoute { expires, ..routes[1] });
        world.work();
    }
    assert_eq!((world.entries(), world.offload.rejected.len()), ([1, 1], 2));
    world.remove(&routes[1]);
    assert_eq!(world.offload.rejected.len(), 0);
    for seconds in 1..10 {
        let removed = ChannelRoute { expires: routes[1].expires.plus(Duration::from_secs(seconds)), ..routes[1] };
        world.add(removed);
        world.work();
        world.remove(&removed);
    }
    assert_eq!((world.entries(), world.offload.rejected.len()), ([1, 1], 0));
}

#[test]
fn each_worker_gets_slots_although_others_have_free_ones() {
    let sizes = Sizes::for_channels(16);
    let blocks = Blocks::new(sizes.slots);
    let taken = std::iter::from_fn(|| blocks.take()).count();
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!(taken > cpus, "{taken} blocks for {cpus} workers");
}

#[test]
fn without_its_watcher_nothing_is_relayed() {
    let Some(mut world) = world(16, &blueprint()) else { return };
    world.add(route(1000, 0x4000));
    world.resolve(&Ok(hop(INTERFACE)));
    assert_eq!(world.entries(), [1, 1]);
    drop(world.desks.take());
    let asker = Rc::clone(&world.offload.asker);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(notices(Some(&asker))), None);
    world.offload.lose_watcher();
    assert_eq!((world.lease(), world.entries()), (0, [0, 0]));
    world.offload.tick();
    assert_eq!(world.lease(), 0);
}

/// How long the steps are in which entries are made and removed.
#[test]
#[ignore = "a measurement"]
fn speed() {
    const ROUTES: u32 = 10_000;
    let Some(mut world) = world(ROUTES, &blueprint()) else { return };
    let routes: Vec<ChannelRoute> = (0..ROUTES)
        .map(|number| {
            let relay = SocketAddr::new(address(RELAY).ip(), 10_000 + u16::try_from(number).unwrap());
            ChannelRoute { relay, ..route(10_000 + u16::try_from(number).unwrap(), 0x4000) }
        })
        .collect();
    let measure = |what: &str, step: &mut dyn FnMut() -> bool| {
        let (start, mut longest, mut steps) = (clock::monotonic(), Duration::ZERO, 0);
        loop {
            let before = clock::monotonic();
            let more = step();
            longest = longest.max(clock::monotonic().saturating_sub(before));
            steps += 1;
            if !more {
                break;
            }
        }
        let took = clock::monotonic().saturating_sub(start);
        println!("{what}: {took:?} in {steps} steps, the longest {longest:?}");
    };
    routes.iter().for_each(|route| world.add(*route));
    measure("next hops", &mut || {
        world.resolve(&Ok(hop(INTERFACE)));
        false
    });
    measure("make", &mut || world.offload.step(&world.server));
    assert_eq!(world.offload.counts().entries, [u64::from(ROUTES); 2]);
    world.offload.tick();
    measure("read", &mut || world.offload.step(&world.server));
    // As many as allocations expire between two batches of packets.
    let mut ending = routes.chunks(64);
    measure("remove", &mut || {
        let Some(routes) = ending.next() else { return false };
        world.offload.remove(routes.iter());
        true
    });
}
