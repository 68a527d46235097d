//! The core under clients with valid credentials: a sequence of requests, data of clients and peers, results of sockets,
//! times and commands of the operator, with every invariant checked after each step.

use super::credentials::{Credential, Signature};
use super::input::Input;
use super::requests::{self, By, CLIENTS, PORTS, REALM, Signed, USERS, blueprint, peer, tuple};
use super::world::{Worker, World};
use crate::auth::{KeyAlgorithm, LongTermKey, Secret};
use crate::ip_fields::IpFields;
use crate::stun::attribute::{AddressFamily, Nonce, Realm, RequestedAddressFamily, RequestedTransport, Username};
use crate::stun::{Class, MessageWriter, Method, TransactionId};
use crate::test_world::Blueprint;
use crate::turn::*;

/// The most steps of a run. Longer ones would reach more states, but each would cost more than another input.
const STEPS: usize = 64;

/// Runs a sequence of operations on two workers.
pub fn core_authenticated(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(changed(input.u16()), 2);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut world, &mut input);
    }
    if input.flag() {
        world.stop();
    } else {
        world.expire_all();
    }
    every_port_is_free(&mut world);
}

fn step(world: &mut World, input: &mut Input<'_>) {
    let operation = input.byte();
    match operation % 16 {
        0..=3 => {
            let Signed { client, bytes, signature } = requests::read(world, By::Owner, input);
            world.client_packet(client & 1, &tuple(client), &bytes, None, Some(&signature));
            // Most sockets can be opened, so an input does not have to say it.
            if operation & 0x40 == 0 && world.opening_count(client & 1) > 0 {
                let last = world.opening_count(client & 1) - 1;
                world.report_opened(client & 1, last, Ok(()));
            }
        }
        4 => {
            let client = input.below(CLIENTS);
            world.client_packet(client & 1, &tuple(client), input.bytes(), None, None);
        }
        5 => {
            let client = input.below(CLIENTS);
            let packet = requests::send_indication(world, input);
            world.client_packet(client & 1, &tuple(client), &packet, None, None);
        }
        6 => {
            let client = input.below(CLIENTS);
            let (packets, length) = requests::channel_data(input);
            world.client_packet(client & 1, &tuple(client), &packets, Some(length), None);
        }
        7 | 8 => {
            let (at, which, source) = (input.below(2), input.byte(), peer(world, input.byte()));
            let (length, payload) = (input.byte(), input.bytes());
            let Some(socket) = some_socket(world, at, which) else { return };
            let length = (length > 0).then_some(length.into());
            world.peer_packet(at, socket, source, payload, length);
        }
        9 => {
            let (at, which, to) = (input.below(2), input.byte(), peer(world, input.byte()));
            let error = IcmpError { kind: input.byte(), code: input.byte(), mtu: input.u16().into() };
            let Some(socket) = some_socket(world, at, which) else { return };
            world.icmp(at, socket, to, error);
        }
        10 => {
            let (at, which) = (input.below(2), input.below(8));
            let result = match input.byte() % 8 {
                1 => Err(OpenError::PortInUse),
                2 => Err(OpenError::AddressGone),
                3 => Err(OpenError::Other),
                _ => Ok(()),
            };
            world.report_opened(at, which, result);
        }
        11 => {
            let (at, which) = (input.below(2), input.below(8));
            world.report_closed(at, which);
        }
        12 | 13 => time(world, input),
        14 => {
            let blueprint = changed(input.u16());
            world.reconfigure(blueprint);
        }
        _ => command(world, input),
    }
}

/// Returns a socket that is open, or was. The last quarter of the choices are closed ones, if there are any.
fn some_socket(world: &World, at: usize, which: u8) -> Option<SocketId> {
    let Worker { open, closed, .. } = &world.workers[at];
    if open.is_empty() || which >= 192 {
        let closed = closed.get(usize::from(which) % closed.len().max(1));
        if closed.is_some() {
            return closed.copied();
        }
    }
    open.keys().nth(usize::from(which) % open.len().max(1)).copied()
}

fn time(world: &mut World, input: &mut Input<'_>) {
    const PASSES: [u64; 16] = [
        1, 999, 1_000, 5_000, 6_000, 29_999, 30_000, 60_000, 299_999, 300_000, 300_001, 600_000, 700_000, 2_000_000,
        3_600_000, 10,
    ];
    let choice = input.byte();
    world.pass(PASSES[usize::from(choice % 16)]);
    if choice & 0x40 != 0 {
        // The wall clock is set.
        world.unix = world.unix.saturating_add_signed(if choice & 0x80 == 0 { 3_600 } else { -3_600 });
    }
    if choice & 0x10 == 0 {
        world.advance(0, usize::MAX);
    }
    if choice & 0x20 == 0 {
        world.advance(1, if choice & 0x80 == 0 { usize::MAX } else { 1 });
    }
}

fn command(world: &mut World, input: &mut Input<'_>) {
    let client = input.below(CLIENTS);
    let (at, tuple) = (client & 1, tuple(client));
    match input.byte() % 12 {
        0 | 1 => world.review(at, usize::MAX),
        2 => world.review(at, 1),
        3 => world.kick(at, &tuple, true),
        4 => world.kick(at, &tuple, false),
        5 => world.connection_closed(at, &tuple),
        6 => world.hand_over(),
        7 => world.ledger.set_draining(!world.ledger.is_draining()),
        8 => world.sends = !world.sends,
        9 => {
            let (tos, hop_limit) = (input.byte(), input.byte());
            world.fields = IpFields { tos, hop_limit: (hop_limit < 250).then_some(hop_limit) };
        }
        10 => world.stop(),
        _ => {
            for table in world.snapshot().relays.iter() {
                table.set_usable(!table.is_usable());
            }
        }
    }
}

/// Returns the configuration of the start with changes.
fn changed(changes: u16) -> Blueprint {
    let mut blueprint = blueprint();
    let has = |bit: u16| changes >> bit & 1 == 1;
    let limits = &mut blueprint.limits;
    if has(0) {
        limits.allocations_per_user = 2;
    }
    if has(1) {
        limits.allocations = 3;
    }
    if has(2) {
        (limits.permissions_per_allocation, limits.channels_per_allocation) = (2, 2);
    }
    if has(3) {
        limits.peer_rate = Rate::new(1, 3);
        limits.user_rates.allocations = Rate::new(1, 3);
    }
    if has(4) {
        limits.byte_rate = Rate::new(100, 300);
        limits.user_rates.bytes = Rate::new(200, 400);
    }
    if has(5) {
        (limits.unverified_responses, limits.failed_authentications) = (1, 1);
    }
    if has(6) {
        blueprint.policy.deny.push("198.51.100.0/25".parse().unwrap());
    }
    if has(7) {
        blueprint.users.pop();
    }
    if has(8) {
        blueprint.secrets = vec![Secret::new("a new secret").unwrap()];
    }
    if has(9) {
        blueprint.relays[0] = ("10.0.0.5".parse().unwrap(), "203.0.113.10".parse().unwrap());
    }
    if has(10) {
        blueprint.relays.pop();
    }
    if has(11) {
        blueprint.compat = Compat {
            channels: ChannelNumbers::Rfc5766,
            draft_dual_allocation: true,
            icmp_indications: IcmpIndications::Always,
        };
    }
    if has(12) {
        let servers = ["192.0.2.77:3478", "[2001:db8:9::7]:3478"].map(|server| server.parse().unwrap()).to_vec();
        let when = if has(13) { RedirectWhen::Always } else { RedirectWhen::Full };
        let domain = Some("turn.example.net".to_owned());
        blueprint.alternate = Some(Alternate { tls_servers: servers.clone(), servers, domain, when });
    }
    if has(14) {
        blueprint.realm = "example.net".to_owned();
        blueprint.former_realms = vec![REALM.to_owned()];
    }
    if has(15) {
        blueprint.revoked.push("alice".to_owned());
        blueprint.relays.reverse();
    }
    blueprint
}

/// Each port of each relay address can be allocated once, whatever happened before.
fn every_port_is_free(world: &mut World) {
    world.reconfigure(blueprint());
    world.ledger.set_draining(false);
    world.snapshot().relays.iter().for_each(|table| table.set_usable(true));
    world.sends = true;
    // Ports that other programs used are set aside for a minute.
    world.pass(120_000);
    (0..2).for_each(|at| world.review(at, usize::MAX));
    let key = LongTermKey::derive_by(KeyAlgorithm::Md5, USERS[0].0, REALM, USERS[0].1.as_bytes());
    for family in [AddressFamily::V4, AddressFamily::V6] {
        let before = world.relayed().len();
        for client in 0..=PORTS.len() {
            let mut tuple = tuple(0);
            tuple.client.set_port(10_000 + 100 * family as u16 + client as u16);
            let nonce = world.snapshot().nonces.mint(world.unix, tuple.client).to_string();
            let mut buffer = [0; 500];
            let id = TransactionId::new([client as u8; 12]);
            let mut writer = MessageWriter::new(&mut buffer, Class::Request, Method::ALLOCATE, id);
            writer.push(&RequestedTransport::UDP);
            writer.push(&RequestedAddressFamily(family));
            writer.push(&Username(USERS[0].0));
            writer.push(&Realm(REALM));
            writer.push(&Nonce(&nonce));
            writer.message_integrity(key.as_bytes());
            let signature = Signature {
                credential: Credential::of_user(USERS[0]),
                realm: REALM.to_owned(),
                key: key.clone(),
                is_anonymous: false,
                nonce: Some((nonce.clone(), world.unix)),
                is_intact: true,
            };
            let request = writer.finish().unwrap().to_vec();
            world.client_packet(0, &tuple, &request, None, Some(&signature));
            world.report_opened(0, 0, Ok(()));
        }
        assert_eq!(world.relayed().len() - before, PORTS.len(), "each port can be allocated");
    }
    world.stop();
}
