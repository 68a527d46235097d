//! Tests that the fast path allocates no heap memory, and that an idle TURN allocation needs little memory. They replace
//! the global allocator, so they are a separate binary.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests fail by panicking; clippy.toml allows this only in #[test] functions, not in their helpers"
)]
#![expect(unsafe_code, reason = "implementing GlobalAlloc is unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use turnserver::auth::{LongTermKey, Revocations};
use turnserver::ip_fields::IpFields;
use turnserver::net::batch::{Piece, RecvBatch, SendBatch, SendStatus, SlotLayout, Target};
use turnserver::net::udp;
use turnserver::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, ChannelNumber, Data, Nonce, Realm, RequestedTransport, Username,
    XorPeerAddress,
};
use turnserver::stun::{Class, EncodeAttribute, MessageWriter, Method, TransactionId};
use turnserver::turn::{
    Context, Direction, DropReason, FiveTuple, FromClient, HEADROOM, IcmpError, Instant, Ledger, Opened, Outcome,
    RESPONSE_BUFFER, Rate, RejectionCode, RelayAddress, Server, SocketId, TAILROOM, Transport,
};

use crate::memory_table::documented;
use crate::test_world::Blueprint;

#[path = "support/memory_table.rs"]
mod memory_table;
#[path = "support/world.rs"]
mod test_world;

/// Counts the heap allocations of each thread separately, so that other threads of the test runner do not count.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// The requested bytes of all live heap allocations.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

fn count(size: usize) {
    // The cells of a thread that ends no longer exist.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
    let _ = LIVE.try_with(|live| live.set(live.get().wrapping_add(size)));
}

fn uncount(size: usize) {
    let _ = LIVE.try_with(|live| live.set(live.get().wrapping_sub(size)));
}

// SAFETY: every call is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        uncount(layout.size());
        count(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        uncount(layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FIELDS: IpFields = IpFields { tos: 0xb8, hop_limit: Some(60) };

const ROUNDS: usize = 1_000;
const REALM: &str = "example.org";
const PASSWORD: &str = "wonderland";
const UNIX: u64 = 1_800_000_000;
/// The number of users, and of idle clients.
const CLIENTS: usize = 1_000;
const PORTS: RangeInclusive<u16> = 50_000..=51_999;

/// Runs `round` [`ROUNDS`] times and fails if it allocates heap memory.
fn allocates_nothing(mut round: impl FnMut()) {
    let before = ALLOCATIONS.get();
    for _ in 0..ROUNDS {
        round();
    }
    assert_eq!(ALLOCATIONS.get() - before, 0, "heap allocations in {ROUNDS} rounds");
}

/// A server with one allocation that has a channel to one peer and a permission for another.
struct World {
    server: Server,
    rng: StdRng,
    tuple: FiveTuple,
    user: String,
    nonce: String,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn bound() -> SocketAddr {
    address("198.51.100.1:7000")
}

fn permitted() -> SocketAddr {
    address("198.51.100.2:7000")
}

impl World {
    /// Returns the world and the relay socket of its allocation.
    fn new() -> (Self, SocketId) {
        Self::limited(None)
    }

    /// Like [`new`](Self::new), with a rate limit for the allocation and for its user.
    fn limited(bytes: Option<Rate>) -> (Self, SocketId) {
        Self::limited_to(bytes, 8)
    }

    /// Like [`limited`](Self::limited), with this many permissions and channels.
    fn limited_to(bytes: Option<Rate>, peers: u32) -> (Self, SocketId) {
        let mut blueprint = Blueprint::new(REALM, ("10.0.0.5", "203.0.113.9"), PORTS);
        for number in 0..CLIENTS {
            blueprint = blueprint.user(&format!("user-{number}"), PASSWORD);
        }
        blueprint.policy.allow.push("198.51.100.0/24".parse().unwrap());
        blueprint.limits.byte_rate = bytes;
        blueprint.limits.user_rates.bytes = bytes;
        blueprint.limits.permissions_per_allocation = peers.try_into().unwrap();
        blueprint.limits.channels_per_allocation = peers.try_into().unwrap();
        let (server, snapshot, _) = blueprint.server();
        let (client, address) = (address("192.0.2.1:5000"), address("192.0.2.200:3478"));
        let nonce = snapshot.nonces.mint(UNIX, client).to_string();
        let tuple = FiveTuple { client, server: address, transport: Transport::Udp };
        let rng = StdRng::seed_from_u64(7);
        let mut world = Self { server, rng, tuple, user: "user-0".to_owned(), nonce };

        let relay = world.allocate();
        assert_success(&world.request(Method::CREATE_PERMISSION, &[&XorPeerAddress(permitted())]));
        (world, relay)
    }

    /// Continues with another 5-tuple and another user.
    fn become_client(&mut self, number: usize, user: &str) {
        user.clone_into(&mut self.user);
        self.tuple.client = SocketAddr::from(([192, 0, 2, 2], 10_000 + u16::try_from(number).unwrap()));
        self.nonce = self.server.snapshot().nonces.mint(UNIX, self.tuple.client).to_string();
    }

    /// Creates an allocation with a channel, and thus a permission. Returns its relay socket.
    fn allocate(&mut self) -> SocketId {
        let FromClient::Open(open) = self.request(Method::ALLOCATE, &[&RequestedTransport::UDP]) else {
            panic!("no socket to open")
        };
        let mut cx = Context { now: now(), unix: UNIX, rng: &mut self.rng };
        let opened = self.server.socket_opened(&mut cx, &open, Ok(()), &mut [0; RESPONSE_BUFFER]);
        assert!(matches!(opened, Opened::Respond(..)));
        assert_success(&self.request(Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(bound())]));
        while self.server.next_action().is_some() {}
        open.socket
    }

    fn request(&mut self, method: Method, attributes: &[&dyn EncodeAttribute]) -> FromClient {
        let (tuple, packet) = (self.tuple, self.authenticated(method, attributes));
        self.packet(&tuple, &packet, &mut [0; RESPONSE_BUFFER])
    }

    fn authenticated(&self, method: Method, attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
        let key = LongTermKey::derive(&self.user, REALM, PASSWORD.as_bytes());
        message(Class::Request, method, |writer| {
            attributes.iter().for_each(|attribute| writer.push(*attribute));
            writer.push(&Username(&self.user));
            writer.push(&Realm(REALM));
            writer.push(&Nonce(&self.nonce));
            writer.message_integrity(key.as_bytes());
        })
    }

    fn packet(&mut self, tuple: &FiveTuple, packet: &[u8], response: &mut [u8]) -> FromClient {
        let mut cx = Context { now: now(), unix: UNIX, rng: &mut self.rng };
        test_world::client_packet(&mut self.server, &mut cx, tuple, packet, FIELDS, response)
    }
}

fn now() -> Instant {
    Instant::from_elapsed(Duration::from_secs(1_000))
}

fn assert_success(decision: &FromClient) {
    let FromClient::Respond(response) = decision else { panic!("no response") };
    assert!(matches!(response.outcome, Outcome::Answered(_)), "{}", response.outcome);
}

fn message(class: Class, method: Method, fill: impl FnOnce(&mut MessageWriter<'_>)) -> Vec<u8> {
    let mut buffer = vec![0; 2_000];
    let mut writer = MessageWriter::new(&mut buffer, class, method, TransactionId::new([7; 12]));
    fill(&mut writer);
    writer.finish().unwrap().to_vec()
}

// Verifies the check itself.
#[test]
#[should_panic(expected = "heap allocations in 1000 rounds")]
fn a_heap_allocation_is_detected() {
    allocates_nothing(|| drop(std::hint::black_box(vec![1_u8])));
}

#[test]
fn binding_allocates_nothing() {
    let (mut world, _) = World::new();
    let packet = message(Class::Request, Method::BINDING, |writer| writer.fingerprint());
    let mut response = [0; RESPONSE_BUFFER];
    for client in ["192.0.2.9:5000", "[2001:db8::9]:5000"] {
        let tuple = FiveTuple { client: address(client), ..world.tuple };
        allocates_nothing(|| assert_success(&world.packet(&tuple, &packet, &mut response)));
    }
}

#[test]
fn challenging_an_unauthenticated_client_allocates_nothing() {
    let (mut world, _) = World::new();
    let tuple = FiveTuple { client: address("192.0.2.9:5000"), ..world.tuple };
    let packet = message(Class::Request, Method::ALLOCATE, |writer| writer.push(&RequestedTransport::UDP));
    let mut response = [0; RESPONSE_BUFFER];
    allocates_nothing(|| {
        let FromClient::Respond(response) = world.packet(&tuple, &packet, &mut response) else { panic!("no response") };
        assert_eq!(response.outcome, Outcome::Rejected(RejectionCode::Unauthenticated));
    });
}

#[test]
fn refreshing_an_allocation_allocates_nothing() {
    let (mut world, _) = World::new();
    let mut response = [0; RESPONSE_BUFFER];
    let packets = [
        world.authenticated(Method::REFRESH, &[]),
        world.authenticated(Method::CREATE_PERMISSION, &[&XorPeerAddress(permitted()), &XorPeerAddress(bound())]),
        world.authenticated(Method::CHANNEL_BIND, &[&ChannelNumber(0x4000), &XorPeerAddress(bound())]),
    ];
    let tuple = world.tuple;
    for packet in packets {
        allocates_nothing(|| assert_success(&world.packet(&tuple, &packet, &mut response)));
    }
}

#[test]
fn channel_data_to_a_peer_allocates_nothing() {
    let (mut world, relay) = World::new();
    let (tuple, packet) = (world.tuple, [&[0x40, 0, 0, 200][..], &[7; 200]].concat());
    allocates_nothing(|| {
        let FromClient::Relay(route) = world.packet(&tuple, &packet, &mut []) else { panic!("no route") };
        assert_eq!((route.socket, route.peer, route.payload), (relay, bound(), 4..204));
    });
}

#[test]
fn send_indication_allocates_nothing() {
    let (mut world, relay) = World::new();
    let packet = message(Class::Indication, Method::SEND, |writer| {
        writer.push(&XorPeerAddress(permitted()));
        writer.push(&Data(&[7; 201]));
    });
    let tuple = world.tuple;
    allocates_nothing(|| {
        let FromClient::Relay(route) = world.packet(&tuple, &packet, &mut []) else { panic!("no route") };
        assert_eq!((route.socket, route.peer, route.payload.len()), (relay, permitted(), 201));
    });
}

#[test]
fn an_icmp_error_allocates_nothing() {
    let (mut world, relay) = World::new();
    let shown = AdditionalAddressFamily(AddressFamily::V6);
    assert_success(&world.request(Method::REFRESH, &[&shown]));
    let mut buffer = [0; RESPONSE_BUFFER];
    let mut indications = 0;
    // The first drop of an allocation creates its counters.
    world.server.count_drops(relay, DropReason::IcmpLimit, 1);
    allocates_nothing(|| {
        let mut cx = Context { now: now(), unix: UNIX, rng: &mut world.rng };
        let error = IcmpError { kind: 3, code: 3, mtu: 0 };
        let sent = world.server.peer_unreachable(&mut cx, relay, permitted(), error, &mut buffer);
        indications += usize::from(sent.is_ok());
    });
    assert_eq!(indications, 10);
}

#[test]
fn channel_data_and_data_indications_to_a_client_allocate_nothing() {
    let (mut world, relay) = World::new();
    let mut buffer = [7; HEADROOM + 201 + TAILROOM];
    for (source, length) in [(bound(), 4 + 201), (permitted(), 20 + 12 + 4 + 204)] {
        allocates_nothing(|| {
            let mut cx = Context { now: now(), unix: UNIX, rng: &mut world.rng };
            let sent = test_world::peer_packet(&mut world.server, &mut cx, relay, source, FIELDS, &mut buffer);
            let (route, message) = sent.unwrap();
            world.server.credit(relay, Direction::ToClient, 1, 201);
            assert_eq!((route.tuple, message.len()), (world.tuple, length));
        });
    }
}

#[test]
fn an_idle_allocation_needs_little_memory() {
    for (users, most) in [(1, 500), (CLIENTS, 650)] {
        let (mut world, _) = World::new();
        let before = LIVE.get();
        for number in 0..CLIENTS {
            world.become_client(number, &format!("user-{}", number % users));
            world.allocate();
        }
        let each = (LIVE.get() - before) / CLIENTS;
        assert!(each <= most, "{each} bytes with {users} users");
    }
}

/// Compares what was measured with a figure of docs/threat-model.md.
fn assert_documented(topic: &str, bytes: usize) {
    let most = documented(topic);
    println!("{topic}: {bytes} bytes");
    assert!(bytes <= most && most < bytes + bytes / 4, "{topic}: {bytes} bytes, and {most} are documented");
}

// tests/memory.rs measures it in the process, with the system's own costs.
#[test]
fn an_allocation_with_all_its_permissions_and_channels_needs_what_is_documented() {
    const PEERS: u8 = 255;
    let (mut world, _) = World::limited_to(None, u32::from(PEERS) + 1);
    let before = LIVE.get();
    for number in 0..CLIENTS / 10 {
        world.become_client(number, &format!("user-{number}"));
        world.allocate();
        for peer in 0..=PEERS {
            let (channel, peer) = (0x4100 + u16::from(peer), SocketAddr::from(([198, 51, 100, peer], 9)));
            // One more than there may be: `allocate` has bound a channel.
            world.request(Method::CHANNEL_BIND, &[&ChannelNumber(channel), &XorPeerAddress(peer)]);
        }
    }
    while world.server.next_action().is_some() {}
    assert_documented("The heap of an allocation with all of them", (LIVE.get() - before) / (CLIENTS / 10));
}

#[test]
fn the_tables_that_workers_share_need_what_is_documented() {
    let before = LIVE.get();
    let sources = turnserver::turn::Sources::default();
    let of_sources = LIVE.get() - before;
    assert_documented("The table of sources", of_sources);
    let before = LIVE.get();
    let ledger = Ledger::new(16_384, 10_000, [[7; 32]; 2]);
    assert_documented("The tables of users and of connections", LIVE.get() - before - of_sources);
    let before = LIVE.get();
    let ip = address("192.0.2.1:1").ip();
    let relay = RelayAddress::new(ip, ip, &(49_152..=65_535));
    assert_documented("The ports and reservations of a relay address", LIVE.get() - before);
    let (before, mut revoked) = (LIVE.get(), Revocations::default());
    for number in 0..Revocations::CAPACITY {
        revoked.revoke(&format!("{number:0>763}"), u64::MAX, 0).unwrap();
    }
    assert_documented("What the control socket adds", LIVE.get() - before);
    drop((sources, ledger, relay, revoked));
}

#[test]
fn batches_allocate_nothing_once_they_have_grown() {
    let bind = || udp::bind_listener(address("127.0.0.1:0")).unwrap();
    let (sender, receiver) = (bind(), bind());
    let target = Target::new(receiver.local_addr().unwrap(), None, FIELDS);
    let (payload, lengths) = ([7; 1_000], [1_000, 1_000, 1_000, 10, 500]);
    for merged in [false, true] {
        if merged && !udp::enable_gro(&receiver) {
            return;
        }
        let mut outbound = SendBatch::new();
        let mut inbound = RecvBatch::new(8, SlotLayout { headroom: HEADROOM, payload: 65_536, tailroom: TAILROOM });
        let mut round = || {
            for length in lengths {
                let header = outbound.keep(&[0x40, 0, 0, 0]);
                outbound.push(&target, &[header, Piece::of_arena(0..length)]);
            }
            assert_eq!(outbound.flush(&sender, &payload), [SendStatus::Sent; 5]);
            let mut arrived = 0;
            while arrived < lengths.len() {
                let mut polled = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
                assert_eq!(poll(&mut polled, PollTimeout::from(10_000_u16)), Ok(1));
                let received = inbound.receive(&receiver, 0, 8).unwrap();
                for slot in 0..received.count {
                    let datagram = inbound.datagram(slot).unwrap();
                    let longest = datagram.segment.map_or(usize::MAX, NonZeroUsize::get);
                    for segment in inbound.arena()[datagram.payload.clone()].chunks(longest) {
                        assert_eq!(segment.len(), 4 + lengths[arrived]);
                        arrived += 1;
                    }
                }
            }
        };
        round();
        allocates_nothing(round);
    }
}

#[test]
fn data_below_a_rate_limit_allocates_nothing() {
    let (mut world, relay) = World::limited(Rate::of_bytes(1_000_000_000));
    let (tuple, packet) = (world.tuple, [&[0x40, 0, 0, 200][..], &[7; 200]].concat());
    let mut buffer = [7; HEADROOM + 201 + TAILROOM];
    allocates_nothing(|| {
        assert!(matches!(world.packet(&tuple, &packet, &mut []), FromClient::Relay(_)));
        let mut cx = Context { now: now(), unix: UNIX, rng: &mut world.rng };
        assert!(test_world::peer_packet(&mut world.server, &mut cx, relay, bound(), FIELDS, &mut buffer).is_ok());
    });
}

// Only the log entry for the first dropped packet and the counters of the allocation's drops need memory.
#[test]
fn data_above_a_rate_limit_allocates_nothing() {
    let (mut world, relay) = World::limited(Rate::new(1, 100));
    let (tuple, packet) = (world.tuple, [&[0x40, 0, 0, 200][..], &[7; 200]].concat());
    let mut buffer = [7; HEADROOM + 201 + TAILROOM];
    let dropped = FromClient::Drop(DropReason::AllocationBandwidth);
    while world.server.next_action().is_some() {}
    assert_eq!(world.packet(&tuple, &packet, &mut []), dropped);
    assert!(world.server.next_action().is_some());
    allocates_nothing(|| {
        assert_eq!(world.packet(&tuple, &packet, &mut []), dropped);
        let mut cx = Context { now: now(), unix: UNIX, rng: &mut world.rng };
        let sent = test_world::peer_packet(&mut world.server, &mut cx, relay, bound(), FIELDS, &mut buffer);
        assert_eq!(sent.unwrap_err(), DropReason::AllocationBandwidth);
    });
    assert_eq!(world.server.next_action(), None);
}
