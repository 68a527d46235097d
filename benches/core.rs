//! Benchmarks of the core without sockets, on a server with a thousand allocations: the routes of the fast path, and
//! requests. They measure time and heap allocations.
//!
//! `cargo bench --bench core`. Only compare times of the same run.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use divan::{AllocProfiler, Bencher, Divan, black_box};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use turnserver::auth::time_limited::{self, Credential};
use turnserver::auth::{LongTermKey, Secret};
use turnserver::ip_fields::IpFields;
use turnserver::stun::attribute::{
    ChannelNumber, Data, Lifetime, Nonce, Realm, RequestedTransport, Username, XorPeerAddress,
};
use turnserver::stun::{Class, EncodeAttribute, MessageWriter, Method, TransactionId};
use turnserver::turn::{
    Action, ClientBurst, Context, Direction, FiveTuple, FromClient, FromPeer, HEADROOM, Instant, Opened, Outcome,
    PeerBurst, RESPONSE_BUFFER, RejectionCode, Server, Snapshot, SocketId, SocketSpec, Transport,
};

use crate::test_world::Blueprint;

#[path = "../tests/support/world.rs"]
mod test_world;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const REALM: &str = "example.org";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const UNIX: u64 = 1_800_000_000;
const CLIENTS: usize = 1_000;
const PAYLOAD: usize = 1_000;
const CHANNEL: u16 = 0x4000;
const BOUND: u16 = 7_000;
const PERMITTED: u16 = 7_001;

fn main() {
    // By default, divan derives the number of calls per sample from the first calls, whose caches are cold.
    Divan::default().sample_size(1_000).sample_count(100).config_with_args().main();
}

/// A server on which each client has its own user with a time-limited credential, and an allocation with one channel.
/// The last client has no allocation.
struct World {
    server: Server,
    rng: StdRng,
    clients: Vec<Client>,
    relays: Vec<SocketId>,
    /// The client of the last call of [`next`](Self::next).
    current: usize,
}

struct Client {
    tuple: FiveTuple,
    username: String,
    key: LongTermKey,
    nonce: String,
}

impl Client {
    fn new(number: usize, snapshot: &Snapshot) -> Self {
        let client = SocketAddr::from(([192, 0, 2, 1], 10_000 + u16::try_from(number).unwrap()));
        let server = SocketAddr::from(([192, 0, 2, 200], 3478));
        let user = format!("user-{number}");
        let Credential { username, password, .. } = time_limited::mint(&secret(), Some(&user), UNIX + 3_600);
        let key = LongTermKey::derive(&username, REALM, password.as_bytes());
        let nonce = snapshot.nonces.mint(UNIX, client).to_string();
        Self { tuple: FiveTuple { client, server, transport: Transport::Udp }, username, key, nonce }
    }

    fn request(&self, method: Method, attributes: &[&dyn EncodeAttribute]) -> Vec<u8> {
        message(Class::Request, method, |writer| {
            attributes.iter().for_each(|attribute| writer.push(*attribute));
            writer.push(&Username(&self.username));
            writer.push(&Realm(REALM));
            writer.push(&Nonce(&self.nonce));
            writer.message_integrity(self.key.as_bytes());
        })
    }

    fn channel_bind(&self) -> Vec<u8> {
        self.request(Method::CHANNEL_BIND, &[&ChannelNumber(CHANNEL), &XorPeerAddress(peer(BOUND))])
    }
}

impl World {
    fn new() -> Self {
        let mut blueprint = Blueprint::new(REALM, ("10.0.0.5", "203.0.113.9"), 49_152..=65_535);
        blueprint.secrets.push(secret());
        blueprint.policy.allow.push("198.51.100.0/24".parse().unwrap());
        blueprint.limits.allocations_per_user = 32;
        let (server, snapshot, _) = blueprint.server();
        let clients = (0..=CLIENTS).map(|number| Client::new(number, &snapshot)).collect();
        let (rng, relays) = (StdRng::seed_from_u64(7), Vec::with_capacity(CLIENTS));
        let mut world = Self { server, rng, clients, relays, current: 0 };
        let response = &mut [0; RESPONSE_BUFFER];
        for client in 0..CLIENTS {
            let packet = world.clients[client].request(Method::ALLOCATE, &[&RequestedTransport::UDP]);
            let relay = world.allocate(client, &packet, response).socket;
            world.relays.push(relay);
            let packet = world.clients[client].channel_bind();
            world.succeed(client, &packet, response);
        }
        world
    }

    fn packet(&mut self, client: usize, packet: &[u8], response: &mut [u8]) -> FromClient {
        let mut cx = Context { now: now(), unix: UNIX, rng: &mut self.rng };
        let tuple = &self.clients[client].tuple;
        let mut burst = ClientBurst::new(0..packet.len(), None, IpFields::default());
        self.server.client_packet(&mut cx, tuple, packet, &mut burst, response).unwrap()
    }

    fn succeed(&mut self, client: usize, packet: &[u8], response: &mut [u8]) {
        let decision = self.packet(client, packet, response);
        assert!(matches!(&decision, FromClient::Respond(response) if matches!(response.outcome, Outcome::Answered(_))));
    }

    fn allocate(&mut self, client: usize, packet: &[u8], response: &mut [u8]) -> SocketSpec {
        let FromClient::Open(open) = self.packet(client, packet, response) else { panic!("no socket to open") };
        let mut cx = Context { now: now(), unix: UNIX, rng: &mut self.rng };
        let opened = self.server.socket_opened(&mut cx, &open, Ok(()), response);
        assert!(matches!(opened, Opened::Respond(..)));
        while self.server.next_action().is_some() {}
        open
    }

    /// Returns another client each time, so that caches are no warmer than in practice.
    fn next(&mut self) -> usize {
        self.current = (self.current + 367) % CLIENTS;
        self.current
    }

    /// Returns a packet of each client.
    fn packets(&self, packet: impl Fn(&Client) -> Vec<u8>) -> Vec<Vec<u8>> {
        self.clients.iter().map(packet).collect()
    }
}

fn secret() -> Secret {
    Secret::new(SECRET).unwrap()
}

fn peer(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], port))
}

fn now() -> Instant {
    Instant::from_elapsed(Duration::from_secs(1_000))
}

fn message(class: Class, method: Method, fill: impl FnOnce(&mut MessageWriter<'_>)) -> Vec<u8> {
    let mut buffer = vec![0; 70_000];
    let mut writer = MessageWriter::new(&mut buffer, class, method, TransactionId::new([7; 12]));
    fill(&mut writer);
    writer.finish().unwrap().to_vec()
}

#[divan::bench]
fn channel_data_to_peer(bencher: Bencher<'_, '_>) {
    let mut world = World::new();
    let packet = [&[0x40, 0, 0x03, 0xe8][..], &[7; PAYLOAD]].concat();
    bencher.bench_local(|| {
        let client = world.next();
        let FromClient::Relay(route) = world.packet(client, black_box(&packet), &mut []) else { panic!("no route") };
        world.server.credit(route.socket, Direction::ToPeers, 1, PAYLOAD as u64);
    });
}

#[divan::bench]
fn send_indication_to_peer(bencher: Bencher<'_, '_>) {
    let mut world = World::new();
    let packet = message(Class::Indication, Method::SEND, |writer| {
        writer.push(&XorPeerAddress(peer(PERMITTED)));
        writer.push(&Data(&[7; PAYLOAD]));
    });
    bencher.bench_local(|| {
        let client = world.next();
        let FromClient::Relay(route) = world.packet(client, black_box(&packet), &mut []) else { panic!("no route") };
        world.server.credit(route.socket, Direction::ToPeers, 1, PAYLOAD as u64);
    });
}

/// Measures a datagram from a peer: the decision, the header and the credit.
fn to_client(bencher: Bencher<'_, '_>, source: SocketAddr) {
    let mut world = World::new();
    let (mut headroom, data) = ([0; HEADROOM], [7; PAYLOAD]);
    bencher.bench_local(|| {
        let client = world.next();
        let relay = world.relays[client];
        let mut burst = PeerBurst::new(black_box(source), 0..PAYLOAD, None, IpFields::default());
        let mut cx = Context { now: now(), unix: UNIX, rng: &mut world.rng };
        let decision = world.server.peer_packet(&mut cx, relay, black_box(&data), &mut burst, black_box(&mut headroom));
        world.server.credit(relay, Direction::ToClient, 1, PAYLOAD as u64);
        assert!(matches!(decision, Some(FromPeer::Relay(_))));
    });
}

#[divan::bench]
fn channel_data_to_client(bencher: Bencher<'_, '_>) {
    to_client(bencher, peer(BOUND));
}

#[divan::bench]
fn data_indication_to_client(bencher: Bencher<'_, '_>) {
    to_client(bencher, peer(PERMITTED));
}

#[divan::bench]
fn binding(bencher: Bencher<'_, '_>) {
    let mut world = World::new();
    let packet = message(Class::Request, Method::BINDING, |writer| writer.fingerprint());
    let mut response = [0; RESPONSE_BUFFER];
    bencher.bench_local(|| {
        let client = world.next();
        world.succeed(client, black_box(&packet), &mut response);
    });
}

/// Measures a request that succeeds, from one client after another.
fn request(bencher: Bencher<'_, '_>, packet: impl Fn(&Client) -> Vec<u8>) {
    let mut world = World::new();
    let packets = world.packets(packet);
    let mut response = [0; RESPONSE_BUFFER];
    bencher.bench_local(|| {
        let client = world.next();
        world.succeed(client, black_box(&packets[client]), &mut response);
    });
}

#[divan::bench]
fn refresh(bencher: Bencher<'_, '_>) {
    request(bencher, |client| client.request(Method::REFRESH, &[&Lifetime(600)]));
}

#[divan::bench]
fn create_permission(bencher: Bencher<'_, '_>) {
    request(bencher, |client| client.request(Method::CREATE_PERMISSION, &[&XorPeerAddress(peer(PERMITTED))]));
}

/// Measures a request with many distinct peers: as many as are allowed, more, and as many as a message can have.
#[divan::bench(args = [256, 300, 5_400])]
fn create_permission_of_many(bencher: Bencher<'_, '_>, count: u16) {
    let mut world = World::new();
    let address =
        |number: u16| SocketAddr::from(([198, 51, 100 + number.to_be_bytes()[0], number.to_be_bytes()[1]], 9));
    let peers: Vec<_> = (0..count).map(|number| XorPeerAddress(address(number))).collect();
    let peers: Vec<_> = peers.iter().map(|peer| peer as &dyn EncodeAttribute).collect();
    let packet = world.clients[0].request(Method::CREATE_PERMISSION, &peers);
    let mut response = [0; RESPONSE_BUFFER];
    bencher.bench_local(|| {
        black_box(world.packet(0, black_box(&packet), &mut response));
        while world.server.next_action().is_some() {}
    });
}

/// Measures what a source without credentials can cost with one datagram: a request with that many empty attributes. The core
/// reads the first ones of too many.
#[divan::bench(args = [0, 300, 16_000])]
fn unauthenticated(bencher: Bencher<'_, '_>, attributes: usize) {
    let mut world = World::new();
    let packet = message(Class::Request, Method::CREATE_PERMISSION, |writer| {
        writer.push(&Nonce("made up"));
        (0..attributes).for_each(|_| writer.push(&Data(&[])));
        writer.message_integrity(b"some key");
    });
    let mut response = [0; RESPONSE_BUFFER];
    bencher.bench_local(|| black_box(world.packet(CLIENTS, black_box(&packet), &mut response)));
}

#[divan::bench]
fn channel_bind(bencher: Bencher<'_, '_>) {
    request(bencher, Client::channel_bind);
}

#[divan::bench]
fn challenge(bencher: Bencher<'_, '_>) {
    let mut world = World::new();
    let packet = message(Class::Request, Method::ALLOCATE, |writer| writer.push(&RequestedTransport::UDP));
    let mut response = [0; RESPONSE_BUFFER];
    bencher.bench_local(|| {
        let decision = world.packet(CLIENTS, black_box(&packet), &mut response);
        let FromClient::Respond(response) = decision else { panic!("no response") };
        assert_eq!(response.outcome, Outcome::Rejected(RejectionCode::Unauthenticated));
    });
}

/// Measures an allocation from the Allocate request with credentials to the Refresh that deletes it.
#[divan::bench]
fn allocate_and_delete(bencher: Bencher<'_, '_>) {
    let mut world = World::new();
    let client = &world.clients[CLIENTS];
    let allocate = client.request(Method::ALLOCATE, &[&RequestedTransport::UDP]);
    let delete = client.request(Method::REFRESH, &[&Lifetime(0)]);
    let mut response = [0; RESPONSE_BUFFER];
    bencher.bench_local(|| {
        world.allocate(CLIENTS, black_box(&allocate), &mut response);
        world.succeed(CLIENTS, black_box(&delete), &mut response);
        while let Some(action) = world.server.next_action() {
            if let Action::Close { bind, .. } = action {
                world.server.socket_closed(bind);
            }
        }
    });
}
