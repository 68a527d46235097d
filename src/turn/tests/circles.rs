//! Packets that would circle between allocations, on one server or on two.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::auth::LongTermKey;
use crate::ip_fields::IpFields;
use crate::stun::attribute::{
    ChannelNumber, Data, Lifetime, Nonce, Realm, RequestedTransport, Username, XorPeerAddress,
};
use crate::stun::{Class, EncodeAttribute, MessageWriter, Method, TransactionId};
use crate::test_world::{self, Blueprint};
use crate::turn::tests::support::*;
use crate::turn::{
    Action, Context, Direction, DropReason, FiveTuple, FromClient, HEADROOM, Instant, OpenError, Opened,
    RESPONSE_BUFFER, Server, Snapshot, SocketId, TAILROOM, Transport,
};

const CHANNEL: u16 = 0x4000;

/// Returns TURN messages of several classes and methods.
fn turn_messages() -> Vec<Vec<u8>> {
    let methods = [Method::ALLOCATE, Method::REFRESH, Method::SEND, Method::DATA, Method::CREATE_PERMISSION];
    let classes = [Class::Request, Class::Indication, Class::Success, Class::Error];
    classes.into_iter().flat_map(|class| methods.map(|method| plain(class, method, &[]))).collect()
}

fn bound() -> (World, Client, Relay) {
    let mut world = World::new();
    let client = world.client(1);
    let relay = world.allocate(&client);
    world.accept(&client, Method::CHANNEL_BIND, &[&ChannelNumber(CHANNEL), &XorPeerAddress(peer(1))]);
    (world, client, relay)
}

#[test]
fn turn_messages_are_not_relayed_and_binding_is() {
    let (mut world, client, relay) = bound();
    let mut other_port = peer(1);
    other_port.set_port(7_001);
    let send = |data: &[u8]| plain(Class::Indication, Method::SEND, &[&XorPeerAddress(peer(1)), &Data(data)]);
    for data in turn_messages() {
        for packet in [channel_data(CHANNEL, &data), send(&data)] {
            assert_eq!(world.dropped(&client.tuple, &packet), DropReason::RelayedTurn);
        }
        for source in [peer(1), other_port] {
            assert_eq!(world.peer_packet(relay.id, source, &data), Err(DropReason::RelayedTurn));
        }
    }
    for class in [Class::Request, Class::Indication, Class::Success, Class::Error] {
        let check = plain(class, Method::BINDING, &[]);
        assert_eq!(world.relayed(&client.tuple, &channel_data(CHANNEL, &check)).2, check);
        assert_eq!(world.relayed(&client.tuple, &send(&check)).2, check);
        for source in [peer(1), other_port] {
            assert!(world.peer_packet(relay.id, source, &check).is_ok());
        }
    }
}

// The route of a merged datagram is decided once, and its data is examined for each packet.
#[test]
fn a_turn_message_between_merged_packets_is_not_relayed() {
    let (mut world, client, relay) = bound();
    let (data, turn) = ([0; 20], plain(Class::Request, Method::ALLOCATE, &[]));
    let packets = [&data[..], &turn, &data, &turn, &data];
    let expected = packets.map(|packet| if packet == turn { Err(DropReason::RelayedTurn) } else { Ok(20) });
    let merged = packets.map(|packet| channel_data(CHANNEL, packet)).concat();
    assert_eq!(world.client_burst(&client.tuple, &merged, 24), expected);
    assert_eq!(world.peer_burst(relay.id, peer(1), &packets.concat(), 20), expected);
}

// Over UDP. The source port of a connection is not a port of a relay socket.
#[test]
fn a_relayed_transport_address_is_not_a_client() {
    let mut world = World::new();
    let relay = world.allocate(&world.client(1));
    let before = world.footprint();
    for address in [relay.relayed, relay.bind] {
        let mut client = world.client(2);
        client.tuple.client = address;
        client.nonce = world.nonce(address);
        let udp = RequestedTransport::UDP;
        for request in [
            plain(Class::Request, Method::ALLOCATE, &[&udp]),
            client.request(world.transaction(), Method::ALLOCATE, &[&udp]),
            client.request(world.transaction(), Method::REFRESH, &[]),
        ] {
            assert_eq!(world.dropped(&client.tuple, &request), DropReason::RelayedClient);
        }
        let binding = plain(Class::Request, Method::BINDING, &[]);
        assert_eq!(world.response_to(&client.tuple, &binding).code(), None);
        assert_eq!(world.footprint(), before);
    }
    let mut client = world.client(3);
    client.tuple.client = relay.bind;
    client.tuple.transport = Transport::Tcp;
    client.nonce = world.nonce(relay.bind);
    world.allocate(&client);
}

// RFC 8656 §21.1.7.
#[test]
fn a_listener_of_the_server_is_not_a_client() {
    let mut world = World::with(|blueprint| {
        blueprint.policy.own = vec!["198.51.100.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        blueprint.udp_ports = vec![3478, 443];
    });
    let before = world.footprint();
    for own in ["198.51.100.1:3478", "198.51.100.1:443", "[2001:db8::1]:3478"] {
        let mut client = world.client(1);
        client.tuple.client = own.parse().unwrap();
        client.nonce = world.nonce(client.tuple.client);
        let request = client.request(world.transaction(), Method::ALLOCATE, &[&RequestedTransport::UDP]);
        assert_eq!(world.dropped(&client.tuple, &request), DropReason::RelayedClient, "{own}");
    }
    assert_eq!(world.footprint(), before);
    // Another program on this machine, and another machine, are clients.
    for other in ["198.51.100.1:3479", "198.51.100.2:3478"] {
        let mut client = world.client(1);
        client.tuple.client = other.parse().unwrap();
        client.nonce = world.nonce(client.tuple.client);
        world.allocate(&client);
    }
}

/// The most servers that a packet passes in a world without circles: a packet to a relayed transport address on the
/// same server, and the response of the server.
const MOST_PASSES: u32 = 4;

/// Two servers, and an attacker who has credentials for both, knows every nonce, and can delay packets.
struct Servers {
    servers: [Server; 2],
    snapshots: [Arc<Snapshot>; 2],
    /// The relay sockets of each server.
    sockets: [Vec<(SocketId, SocketAddr)>; 2],
    flight: VecDeque<Packet>,
    rng: StdRng,
    now: Instant,
    transactions: u32,
    most_passes: u32,
    dropped: Vec<DropReason>,
}

#[derive(Clone, Debug)]
struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
    /// The number of servers that this packet, or the packet that caused it, has passed.
    passes: u32,
    fields: IpFields,
}

/// How the attacker sends: from a host of its own, or through allocations. The first is the one whose client is the
/// host.
#[derive(Clone, Debug)]
struct Way {
    host: SocketAddr,
    /// The listener and the relayed transport address of each allocation.
    through: Vec<(SocketAddr, SocketAddr)>,
}

impl Way {
    /// Returns the source of packets that are sent on this way.
    fn source(&self) -> SocketAddr {
        self.through.last().map_or(self.host, |(_, relayed)| *relayed)
    }

    /// Returns the packet that carries a message to its destination.
    fn packet(&self, to: SocketAddr, message: Vec<u8>) -> Packet {
        let wrap = |(to, bytes): (SocketAddr, Vec<u8>), (listener, _): &(SocketAddr, SocketAddr)| {
            (*listener, plain(Class::Indication, Method::SEND, &[&XorPeerAddress(to), &Data(&bytes)]))
        };
        let (to, bytes) = self.through.iter().rev().fold((to, message), wrap);
        Packet { from: self.host, to, bytes, passes: 0, fields: hops(64) }
    }
}

fn hops(hop_limit: u8) -> IpFields {
    IpFields { hop_limit: Some(hop_limit), ..IpFields::default() }
}

fn listener(server: usize) -> SocketAddr {
    [address("8.8.1.1:3478"), address("8.8.2.2:3478")][server]
}

impl Servers {
    /// Two ports for each server: a port that was released is used again soon.
    fn new(seed: u64) -> Self {
        let blueprint = |server: usize| {
            let ip = listener(server).ip().to_string();
            let mut blueprint = Blueprint::new(REALM, (&ip, &ip), 50_000..=50_001).user("eve", "password");
            blueprint.policy.own.push(listener(server).ip());
            blueprint
        };
        let parts = [blueprint(0).server(), blueprint(1).server()].map(|(server, snapshot, _)| (server, snapshot));
        let [(first, first_snapshot), (second, second_snapshot)] = parts;
        Self {
            servers: [first, second],
            snapshots: [first_snapshot, second_snapshot],
            sockets: [Vec::new(), Vec::new()],
            flight: VecDeque::new(),
            rng: StdRng::seed_from_u64(seed),
            now: Instant::from_elapsed(seconds(1_000)),
            transactions: 0,
            most_passes: 0,
            dropped: Vec::new(),
        }
    }

    /// Sends a request with valid credentials to a server.
    fn request(&mut self, way: &Way, server: usize, method: Method, attributes: &[&dyn EncodeAttribute]) {
        let nonce = self.snapshots[server].nonces.mint(UNIX, way.source()).to_string();
        let key = LongTermKey::derive("eve", REALM, b"password");
        self.transactions += 1;
        let mut id = [0; 12];
        id[..4].copy_from_slice(&self.transactions.to_be_bytes());
        let mut buffer = [0; 512];
        let mut writer = MessageWriter::new(&mut buffer, Class::Request, method, TransactionId::new(id));
        attributes.iter().for_each(|attribute| writer.push(*attribute));
        writer.push(&Username("eve"));
        writer.push(&Realm(REALM));
        writer.push(&Nonce(&nonce));
        writer.message_integrity(key.as_bytes());
        let message = writer.finish().unwrap().to_vec();
        self.flight.push_back(way.packet(listener(server), message));
    }

    fn allocate(&mut self, way: &Way, server: usize) {
        self.request(way, server, Method::ALLOCATE, &[&RequestedTransport::UDP]);
    }

    fn permit(&mut self, way: &Way, server: usize, peers: &[SocketAddr]) {
        for peer in peers {
            self.request(way, server, Method::CREATE_PERMISSION, &[&XorPeerAddress(*peer)]);
        }
    }

    /// Returns the way through the newest allocation of a server, if there is one.
    fn through(&self, way: &Way, server: usize) -> Way {
        let relayed = self.sockets[server].last().map_or(listener(server), |(_, bind)| *bind);
        let mut way = way.clone();
        way.through.push((listener(server), relayed));
        way
    }

    /// Delivers packets until none is left. With `shuffled`, in any order.
    fn deliver_all(&mut self, shuffled: bool) {
        for _ in 0..2_000 {
            let at = if shuffled && !self.flight.is_empty() { self.rng.random_range(0..self.flight.len()) } else { 0 };
            let Some(packet) = self.flight.remove(at) else { return };
            self.deliver(packet);
        }
    }

    /// Delivers one packet. It is lost if no server has its destination.
    fn deliver(&mut self, packet: Packet) {
        let Packet { from, to, .. } = packet;
        for server in 0..2 {
            if to == listener(server) {
                return self.client_sends(
                    server,
                    FiveTuple { client: from, server: to, transport: Transport::Udp },
                    packet,
                );
            }
            if let Some((socket, _)) = self.sockets[server].iter().find(|(_, bind)| *bind == to).copied() {
                return self.peer_sends(server, socket, packet);
            }
        }
    }

    fn sent(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>, passes: u32, fields: IpFields) {
        self.most_passes = self.most_passes.max(passes);
        self.flight.push_back(Packet { from, to, bytes, passes, fields });
    }

    fn client_sends(&mut self, server: usize, tuple: FiveTuple, packet: Packet) {
        let mut buffer = vec![0; RESPONSE_BUFFER];
        let mut cx = Context { now: self.now, unix: UNIX, rng: &mut self.rng };
        let core = &mut self.servers[server];
        let passes = packet.passes + 1;
        match test_world::client_packet(core, &mut cx, &tuple, &packet.bytes, packet.fields, &mut buffer) {
            FromClient::Relay(route) => {
                core.credit(route.socket, Direction::ToPeers, 1, route.payload.len() as u64);
                let bind = self.sockets[server].iter().find(|(socket, _)| *socket == route.socket).unwrap().1;
                self.sent(bind, route.peer, packet.bytes[route.payload].to_vec(), passes, route.fields);
            }
            FromClient::Respond(response) => {
                self.sent(tuple.server, tuple.client, buffer[..response.length].to_vec(), passes, hops(64));
            }
            FromClient::Open(open) => {
                // A freed port is taken again in the same moment, so its old socket is closed first.
                self.actions(server);
                let mut cx = Context { now: self.now, unix: UNIX, rng: &mut self.rng };
                let used = self.sockets[server].iter().any(|(_, bind)| *bind == open.bind);
                let result = if used { Err(OpenError::PortInUse) } else { Ok(()) };
                let opened = self.servers[server].socket_opened(&mut cx, &open, result, &mut buffer);
                self.sockets[server].push((open.socket, open.bind));
                let Opened::Respond(tuple, response) = opened else { panic!("the socket is open") };
                self.sent(tuple.server, tuple.client, buffer[..response.length].to_vec(), passes, hops(64));
            }
            FromClient::Wait => unreachable!("there is no user database"),
            FromClient::Drop(reason) => self.dropped.push(reason),
        }
        self.actions(server);
    }

    fn peer_sends(&mut self, server: usize, socket: SocketId, packet: Packet) {
        let length = packet.bytes.len();
        let mut buffer = vec![0; HEADROOM + length + TAILROOM];
        buffer[HEADROOM..HEADROOM + length].copy_from_slice(&packet.bytes);
        let mut cx = Context { now: self.now, unix: UNIX, rng: &mut self.rng };
        let core = &mut self.servers[server];
        match test_world::peer_packet(core, &mut cx, socket, packet.from, packet.fields, &mut buffer) {
            Ok((route, message)) => {
                self.sent(
                    route.tuple.server,
                    route.tuple.client,
                    buffer[message].to_vec(),
                    packet.passes + 1,
                    route.fields,
                );
            }
            Err(reason) => self.dropped.push(reason),
        }
        self.actions(server);
    }

    fn actions(&mut self, server: usize) {
        while let Some(action) = self.servers[server].next_action() {
            if let Action::Close { socket, bind } = action {
                self.sockets[server].retain(|(open, _)| *open != socket);
                self.servers[server].socket_closed(bind);
            }
        }
    }
}

/// Allocates B on the second server through A on the first one, and then, through B, an allocation on the first server
/// that gets the port of A. Each is then the client of the other one.
fn circle(servers: &mut Servers, shuffled: bool) {
    let host = |port| Way { host: SocketAddr::from(([9, 9, 9, 9], port)), through: Vec::new() };
    let (own, other, data) = (host(1), host(2), host(3));
    let [first, second] = [listener(0), listener(1)];
    servers.allocate(&own, 0);
    servers.permit(&own, 0, &[second]);
    servers.deliver_all(false);
    let via_first = servers.through(&own, 0);
    servers.allocate(&via_first, 1);
    servers.permit(&via_first, 1, &[first]);
    servers.deliver_all(shuffled);
    // The only other port of the first server is taken, so the next allocation gets the port of A.
    servers.allocate(&other, 0);
    servers.deliver_all(false);
    let a = servers.sockets[0]
        .iter()
        .position(|(_, bind)| Some(*bind) == via_first.through.last().map(|(_, relayed)| *relayed));
    if let Some(a) = a {
        let a = servers.sockets[0].remove(a);
        servers.sockets[0].push(a);
    }
    let via_both = servers.through(&via_first, 1);
    servers.allocate(&via_both, 0);
    servers.permit(&via_both, 0, &[second, data.host]);
    // The requests pass A before A is freed, and reach the first server after that.
    for _ in 0..6 {
        if let Some(packet) = servers.flight.pop_front() {
            servers.deliver(packet);
        }
    }
    let waiting = std::mem::take(&mut servers.flight);
    servers.request(&own, 0, Method::REFRESH, &[&Lifetime(0)]);
    servers.deliver_all(false);
    servers.flight = waiting;
    servers.deliver_all(shuffled);
    for (_, bind) in servers.sockets.concat() {
        servers.flight.push_back(Packet {
            from: data.host,
            to: bind,
            bytes: b"circulates".to_vec(),
            passes: 0,
            fields: hops(64),
        });
    }
    servers.deliver_all(shuffled);
}

#[test]
fn a_packet_does_not_circle_between_two_servers() {
    for seed in 0..50 {
        let mut servers = Servers::new(seed);
        circle(&mut servers, seed > 0);
        // The attack is cut where it needs a request through an allocation, and not before.
        assert!(servers.dropped.contains(&DropReason::RelayedTurn), "seed {seed}: {:?}", servers.dropped);
        assert!(servers.most_passes > 0);
        assert!(servers.most_passes <= MOST_PASSES, "seed {seed}: a packet has passed {} servers", servers.most_passes);
    }
}

// Should all else fail, a datagram passes no more servers than its hop limit allows.
#[test]
fn each_server_lowers_the_hop_limit() {
    let host = |port| Way { host: SocketAddr::from(([9, 9, 9, 9], port)), through: Vec::new() };
    for (hop_limit, passes) in [(3, 2), (2, 1), (1, 0)] {
        let mut servers = Servers::new(1);
        let (caller, callee) = (host(1), host(2));
        servers.allocate(&caller, 0);
        servers.allocate(&callee, 1);
        servers.deliver_all(false);
        let [from, to] = [servers.through(&caller, 0), servers.through(&callee, 1)];
        servers.permit(&caller, 0, &[to.source()]);
        servers.permit(&callee, 1, &[from.source()]);
        servers.deliver_all(false);
        servers.most_passes = 0;
        let packet = from.packet(to.source(), b"data".to_vec());
        servers.flight.push_back(Packet { fields: hops(hop_limit), ..packet });
        servers.deliver_all(false);
        assert_eq!(servers.most_passes, passes, "{hop_limit}");
        assert_eq!(servers.dropped.contains(&DropReason::HopLimit), passes < 2);
    }
}

/// The attacker allocates, permits, frees and sends on ways of up to two allocations, in any order.
#[test]
fn no_sequence_of_requests_makes_a_packet_circle() {
    let (mut relayed_turn, mut relayed_data) = (0, 0);
    for seed in 0..200 {
        let mut servers = Servers::new(seed);
        let hosts = [1, 2, 3].map(|port| SocketAddr::from(([9, 9, 9, 9], port)));
        for _ in 0..60 {
            let mut way = Way { host: hosts[servers.rng.random_range(0..3)], through: Vec::new() };
            for _ in 0..servers.rng.random_range(0..3) {
                let server = servers.rng.random_range(0..2);
                way = servers.through(&way, server);
            }
            let server = servers.rng.random_range(0..2);
            match servers.rng.random_range(0..8) {
                0..=2 => servers.allocate(&way, server),
                3..=4 => servers.permit(&way, server, &[listener(0), listener(1), hosts[2]]),
                5 => servers.request(&way, server, Method::REFRESH, &[&Lifetime(0)]),
                _ => {
                    for (_, bind) in servers.sockets.concat() {
                        servers.flight.push_back(way.packet(bind, b"data".to_vec()));
                    }
                }
            }
            if servers.rng.random_range(0..3) == 0 {
                servers.deliver_all(true);
            }
        }
        servers.deliver_all(true);
        assert!(servers.most_passes <= MOST_PASSES, "seed {seed}: a packet has passed {} servers", servers.most_passes);
        relayed_turn += usize::from(servers.dropped.contains(&DropReason::RelayedTurn));
        relayed_data += usize::from(servers.most_passes > 1);
    }
    assert!(relayed_turn > 50 && relayed_data > 20, "{relayed_turn} {relayed_data}");
}
