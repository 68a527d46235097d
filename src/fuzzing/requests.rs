//! Clients with credentials, and their requests: valid ones, mutated ones that are signed again, and damaged ones.

use std::net::SocketAddr;

use super::credentials::{Credential, Signature};
use super::input::Input;
use super::world::World;
use crate::auth::{KeyAlgorithm, LongTermKey, Secret, userhash};
use crate::stun::attribute::{
    AdditionalAddressFamily, AddressFamily, ChannelNumber, Data, DontFragment, EvenPort, Lifetime, Nonce, Realm,
    RequestedAddressFamily, RequestedTransport, ReservationToken, Userhash, Username, XorPeerAddress,
};
use crate::stun::{AttributeType, Class, Message, MessageWriter, Method, RawAttribute, TransactionId};
use crate::test_world::Blueprint;
use crate::turn::*;

pub(super) const REALM: &str = "example.org";
pub(super) const SECRET: &str = "north-star";
pub(super) const LINK_SECRET: &str = "a secret of the run";
pub(super) const USERS: [(&str, &str); 2] = [("alice", "wonderland"), ("bob", "builder")];

/// The IPv4 relay address is behind 1:1 NAT.
pub(super) const RELAYS: [(&str, &str); 2] = [("10.0.0.5", "203.0.113.9"), ("2001:db8:1::5", "2001:db8:1::5")];
pub(super) const PORTS: std::ops::RangeInclusive<u16> = 50_000..=50_005;

const CHANNELS: [u16; 8] = [0x4000, 0x4001, 0x4002, 0x4003, 0x4fff, 0x5000, 0x7fff, 0x3fff];

/// The number of 5-tuples. Those with an even number belong to the first worker.
pub(super) const CLIENTS: usize = 6;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Returns the configuration at the start: two relay addresses, static users, time-limited credentials, test links.
pub(super) fn blueprint() -> Blueprint {
    let mut blueprint = Blueprint::new(REALM, RELAYS[0], PORTS);
    let v6 = RELAYS[1].0.parse().unwrap();
    blueprint.relays.push((v6, v6));
    blueprint.secrets.push(Secret::new(SECRET).unwrap());
    blueprint.test_links = Some(Secret::new(LINK_SECRET).unwrap());
    blueprint.udp_ports = vec![3_478];
    blueprint.limits.channels_per_allocation = 4;
    blueprint.expiry_grace = 700;
    blueprint.policy = PeerPolicy {
        allow: ["198.51.100.0/24", "2001:db8:2::/48"].map(|net| net.parse().unwrap()).to_vec(),
        own: ["10.0.0.5", "203.0.113.9", "2001:db8:1::5", "192.0.2.200"].map(|own| own.parse().unwrap()).to_vec(),
        ..PeerPolicy::default()
    };
    USERS.into_iter().fold(blueprint, |blueprint, (name, password)| blueprint.user(name, password))
}

/// Returns the 5-tuple of a client.
pub(super) fn tuple(client: usize) -> FiveTuple {
    let (client, server, transport) = match client {
        0 => ("192.0.2.1:5000", "192.0.2.200:3478", Transport::Udp),
        1 => ("192.0.2.1:5001", "192.0.2.200:3478", Transport::Udp),
        2 => ("[2001:db8:9::1]:5000", "[2001:db8:1::5]:3478", Transport::Udp),
        3 => ("192.0.2.2:5000", "192.0.2.200:3478", Transport::Tcp),
        4 => ("[2001:db8:9::2]:5000", "[2001:db8:1::5]:5349", Transport::Tls),
        // One that may be a relayed transport address.
        _ => ("203.0.113.9:50000", "192.0.2.200:3478", Transport::Udp),
    };
    FiveTuple { client: address(client), server: address(server), transport }
}

/// Returns the peer with this number: allowed ones, denied ones, and addresses of this server.
pub(super) fn peer(world: &World, number: u8) -> SocketAddr {
    match number % 16 {
        at @ 0..=3 => SocketAddr::from(([198, 51, 100, 1 + (at >> 1)], 7_000 + u16::from(at & 1))),
        at @ 4..=5 => SocketAddr::from(([0x2001, 0xdb8, 2, 0, 0, 0, 0, at.into()], 7_000)),
        6 => address("198.51.100.200:7000"),
        7 => address("127.0.0.1:7000"),
        8 => address("[::ffff:198.51.100.1]:7000"),
        9 => address("203.0.113.9:50000"),
        10 => address("203.0.113.9:50001"),
        11 => address("10.0.0.5:50000"),
        12 => address("[2001:db8:1::5]:50000"),
        at => {
            let relayed = world.relayed();
            relayed.get(usize::from(at - 13)).copied().unwrap_or_else(|| address("192.0.2.200:3478"))
        }
    }
}

/// A request, and how it is signed.
pub(super) struct Signed {
    pub(super) client: usize,
    pub(super) bytes: Vec<u8>,
    pub(super) signature: Signature,
}

/// Who signs a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Somebody with the password.
    Owner,
    /// Somebody who guesses the password.
    Guesser,
}

/// An attribute: its type and value.
type Raw = (u16, Vec<u8>);

/// Reads a request.
pub(super) fn read(world: &World, by: By, input: &mut Input<'_>) -> Signed {
    const METHODS: [Method; 8] = [
        Method::ALLOCATE,
        Method::REFRESH,
        Method::CREATE_PERMISSION,
        Method::CHANNEL_BIND,
        Method::BINDING,
        Method::ALLOCATE,
        Method::CONNECT,
        Method::SEND,
    ];
    let (client, method) = (input.below(CLIENTS), input.pick(&METHODS));
    let transaction = TransactionId::new([input.byte() % 8; 12]);
    let mut attributes = own_attributes(world, input, method, transaction);
    let authentication = [input.byte(), input.byte(), input.byte()];
    for _ in 0..authentication[2] >> 6 {
        mutate(&mut attributes, input);
    }
    sign(world, by, client, (method, transaction), &attributes, authentication, input)
}

/// Returns the attributes of a method, as raw ones.
fn own_attributes(world: &World, input: &mut Input<'_>, method: Method, transaction: TransactionId) -> Vec<Raw> {
    let (flags, flaw) = (input.byte(), input.byte());
    let mut buffer = [0; 2_000];
    let mut writer = MessageWriter::new(&mut buffer, Class::Request, method, transaction);
    let family = |choice: u8| if choice & 1 == 0 { AddressFamily::V6 } else { AddressFamily::V4 };
    match method {
        Method::ALLOCATE => {
            match flaw {
                1 => {}
                2 => writer.push(&RequestedTransport::TCP),
                _ => writer.push(&RequestedTransport::UDP),
            }
            match flags & 3 {
                0 => {}
                3 => writer.push(&AdditionalAddressFamily(AddressFamily::V6)),
                choice => writer.push(&RequestedAddressFamily(family(choice))),
            }
            match flags >> 2 & 3 {
                0 => {}
                1 => writer.push(&EvenPort { reserve_next: false }),
                2 => writer.push(&EvenPort { reserve_next: true }),
                _ => {
                    let token = world.tokens.len().checked_sub(1 + usize::from(flaw >> 4)).map(|at| world.tokens[at]);
                    writer.push(&ReservationToken(token.unwrap_or([1; 8])));
                }
            }
            lifetime(&mut writer, flags >> 4);
            if flags & 0x80 != 0 {
                writer.push(&DontFragment);
            }
        }
        Method::REFRESH => {
            lifetime(&mut writer, flags);
            if flags & 8 != 0 {
                writer.push(&RequestedAddressFamily(family(flags >> 4)));
            }
        }
        Method::CREATE_PERMISSION => {
            for _ in 0..=flags % 4 {
                writer.push(&XorPeerAddress(peer(world, input.byte())));
            }
        }
        Method::CHANNEL_BIND => {
            writer.push(&ChannelNumber(CHANNELS[usize::from(flags % 8)]));
            writer.push(&XorPeerAddress(peer(world, input.byte())));
        }
        _ => {}
    }
    raw(writer.finish().unwrap())
}

fn lifetime(writer: &mut MessageWriter<'_>, choice: u8) {
    const LIFETIMES: [Option<u32>; 8] =
        [None, Some(0), Some(1), Some(600), Some(601), Some(1_000), Some(3_600), Some(u32::MAX)];
    if let Some(seconds) = LIFETIMES[usize::from(choice & 7)] {
        writer.push(&Lifetime(seconds));
    }
}

fn raw(message: &[u8]) -> Vec<Raw> {
    let message = Message::parse(message).unwrap();
    message.attributes().map(|attribute| (attribute.kind.number(), attribute.value.to_vec())).collect()
}

/// Changes the list of attributes.
fn mutate(attributes: &mut Vec<Raw>, input: &mut Input<'_>) {
    let (kind, at) = (input.byte(), input.byte());
    let count = attributes.len();
    let place = usize::from(at) % count.max(1);
    match kind % 8 {
        0 => attributes.insert(place, (input.u16(), input.bytes().to_vec())),
        _ if count == 0 => {}
        1 => drop(attributes.remove(place)),
        2 => attributes.insert(place, attributes[place].clone()),
        3 => attributes.swap(0, place),
        4 => attributes[place].0 = input.u16(),
        5 => {
            let value = &mut attributes[place].1;
            value.truncate(input.byte().into());
        }
        6 => attributes[place].1.extend(input.bytes()),
        _ => {
            let (index, byte) = (input.byte(), input.byte());
            let value = &mut attributes[place].1;
            if !value.is_empty() {
                let index = usize::from(index) % value.len();
                value[index] ^= byte;
            }
        }
    }
}

/// Writes and signs a request. The authentication has three bytes: the user and the nonce, the algorithms, the damage.
fn sign(
    world: &World,
    by: By,
    client: usize,
    (method, transaction): (Method, TransactionId),
    attributes: &[Raw],
    [user, algorithm, damage]: [u8; 3],
    input: &mut Input<'_>,
) -> Signed {
    const LISTED: &[u8] = &[0, 2, 0, 0, 0, 1, 0, 0];
    let credential = Credential::numbered(user);
    let credential = if by == By::Guesser { credential.guessed() } else { credential };
    let username = credential.username.as_str();
    let (named, sha1, sha256): (Option<&[u8]>, bool, bool) = match algorithm % 8 {
        0..=2 => (None, true, false),
        3 => (Some(&[0, 2, 0, 0]), false, true),
        4 => (Some(&[0, 1, 0, 0]), false, true),
        5 => (Some(&[0, 2, 0, 0]), true, true),
        6 => (None, false, true),
        _ => (None, true, true),
    };
    let derivation = if named == Some(&[0, 2, 0, 0]) { KeyAlgorithm::Sha256 } else { KeyAlgorithm::Md5 };
    let is_anonymous = algorithm & 0x10 != 0;
    let realm = if algorithm & 0x40 == 0 { world.snapshot().authenticator.realm() } else { REALM };
    let key = LongTermKey::derive_by(derivation, username, realm, credential.password.as_bytes());
    let nonces = &world.snapshot().nonces;
    let tuple = tuple(client);
    let mint = |unix, client| Some((nonces.mint(unix, client).to_string(), unix));
    let (own, others) = match user >> 3 & 7 {
        0..=4 => (mint(world.unix, tuple.client), None),
        5 => (mint(world.unix - 4_000, tuple.client), None),
        6 => (None, mint(world.unix, address("192.0.2.99:1"))),
        _ => (None, None),
    };
    let mut buffer = [0; 4_096];
    let mut writer = MessageWriter::new(&mut buffer, Class::Request, method, transaction);
    for (kind, value) in attributes {
        writer.push(&RawAttribute { kind: AttributeType::new(*kind), value });
    }
    if is_anonymous {
        writer.push(&Userhash(&userhash(username, realm)));
    } else {
        writer.push(&Username(username));
    }
    writer.push(&Realm(realm));
    if let Some((nonce, _)) = own.as_ref().or(others.as_ref()) {
        writer.push(&Nonce(nonce));
    }
    if let Some(named) = named {
        writer.push(&RawAttribute { kind: AttributeType::PASSWORD_ALGORITHMS, value: LISTED });
        writer.push(&RawAttribute { kind: AttributeType::PASSWORD_ALGORITHM, value: named });
    }
    if sha1 {
        writer.message_integrity(key.as_bytes());
    }
    if sha256 {
        writer.message_integrity_sha256(key.as_bytes());
    }
    if algorithm & 8 != 0 {
        // After the integrity: another permission and a longer lifetime, which must be ignored.
        writer.push(&XorPeerAddress(address("198.51.100.77:7000")));
        writer.push(&Lifetime(3_599));
    }
    if algorithm & 0x20 != 0 {
        writer.fingerprint();
    }
    let mut bytes = writer.finish().unwrap().to_vec();
    match damage & 7 {
        1 => {
            let at = usize::from(input.u16()) % bytes.len();
            bytes[at] ^= input.byte();
        }
        2 => bytes.truncate(usize::from(input.u16()) % bytes.len()),
        3 => bytes.extend(input.bytes()),
        _ => {}
    }
    let (realm, is_intact) = (realm.to_owned(), authentication_is_whole(damage));
    let signature = Signature { realm, key, is_anonymous, nonce: own, is_intact, credential };
    Signed { client, bytes, signature }
}

/// Whether the last byte of the authentication neither mutates the attributes nor damages the message.
fn authentication_is_whole(damage: u8) -> bool {
    damage >> 6 == 0 && !(1..=3).contains(&(damage & 7))
}

/// Returns a Send indication.
pub(super) fn send_indication(world: &World, input: &mut Input<'_>) -> Vec<u8> {
    let (to, flags, data) = (peer(world, input.byte()), input.byte(), input.bytes());
    let mut buffer = [0; 1_000];
    let transaction = TransactionId::new([9; 12]);
    let mut writer = MessageWriter::new(&mut buffer, Class::Indication, Method::SEND, transaction);
    if flags & 1 == 0 {
        writer.push(&XorPeerAddress(to));
    }
    if flags & 2 != 0 {
        writer.push(&DontFragment);
    }
    if flags & 4 == 0 {
        writer.push(&Data(data));
    }
    if flags & 8 != 0 {
        writer.push(&XorPeerAddress(peer(world, flags >> 4)));
    }
    writer.finish().unwrap().to_vec()
}

/// Returns ChannelData messages, one after the other, each with the same length, and the length of one.
pub(super) fn channel_data(input: &mut Input<'_>) -> (Vec<u8>, usize) {
    let (number, count, flaw) = (CHANNELS[input.below(8)], 1 + input.below(4), input.byte());
    let data = input.bytes();
    let length = if flaw == 1 { data.len() + 1 } else { data.len() } as u16;
    let mut messages = Vec::new();
    for at in 0..count {
        let number = if flaw == 2 && at == 1 { number ^ 1 } else { number };
        messages.extend(number.to_be_bytes());
        messages.extend(length.to_be_bytes());
        messages.extend(data);
    }
    (messages, 4 + data.len())
}
