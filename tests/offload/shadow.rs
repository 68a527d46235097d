//! A second implementation of the program, which builds the packet to send from its parts.
//!
//! It shares no arithmetic with the program: the checksum is the one with which the sum of the packet to send is that
//! of the received packet.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::frame::{ETHERNET, SHORTEST_FRAME, pseudo_header_sum, sum, udp_sum};
use crate::kernel::{HEADROOM, LEASED, LINKS, OWN_INTERFACE, SLOTS, Verdict};
use crate::layout::{Counter, Direction, ENTRY, KEY, Outcome};

/// An entry whose expiry is not after this time has expired. All others of these tests expire in centuries.
pub(crate) const PAST: u64 = 1;

/// The state that the program sees, and what it should have counted.
#[derive(Default)]
pub(crate) struct Shadow {
    to_peer: HashMap<[u8; KEY], [u8; ENTRY]>,
    to_client: HashMap<[u8; KEY], [u8; ENTRY]>,
    /// The interface and the link address at each place.
    links: HashMap<u32, (u32, [u8; 6])>,
    /// By slot. `last` is not used.
    pub(crate) counters: BTreeMap<u32, Counter>,
    pub(crate) outcomes: HashMap<Outcome, u64>,
}

/// A received packet that has the form of one that the program relays.
struct Packet<'a> {
    source: SocketAddr,
    destination: SocketAddr,
    traffic_class: u8,
    hop_limit: u8,
    /// `None` if the lengths of IP and UDP disagree, or the IPv4 header checksum is wrong.
    udp: Option<&'a [u8]>,
    checksum: u16,
    /// What follows the UDP header, with padding of the frame.
    rest: &'a [u8],
}

impl Shadow {
    pub(crate) fn insert(&mut self, direction: Direction, key: [u8; KEY], value: [u8; ENTRY]) {
        self.entries(direction).insert(key, value);
    }

    pub(crate) fn remove(&mut self, direction: Direction, key: &[u8; KEY]) {
        self.entries(direction).remove(key);
    }

    pub(crate) fn link(&mut self, interface: u32, address: [u8; 6]) {
        self.links.insert(interface % LINKS, (interface, address));
    }

    fn entries(&mut self, direction: Direction) -> &mut HashMap<[u8; KEY], [u8; ENTRY]> {
        match direction {
            Direction::ToPeer => &mut self.to_peer,
            Direction::ToClient => &mut self.to_client,
        }
    }

    /// Returns what the program should return, and the frame afterwards.
    pub(crate) fn run(&mut self, metadata: usize, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let unchanged = (Verdict::Pass, frame.to_vec());
        let Some(packet) = parse(frame) else { return unchanged };
        let channel = packet.rest.first_chunk::<4>().map(|header| [header[0], header[1]]);
        let channel = channel.filter(|[first, _]| (0x40..0x80).contains(first)).unwrap_or_default();
        let to_peer = self.to_peer.get(&key(&packet, channel)).filter(|_| channel != [0, 0]).copied();
        let found = match to_peer {
            Some(entry) => Some((Direction::ToPeer, channel, entry)),
            None => self.to_client.get(&key(&packet, [0, 0])).map(|entry| (Direction::ToClient, [0, 0], *entry)),
        };
        let Some((direction, channel, entry)) = found else { return unchanged };
        let key = key(&packet, channel);
        let result = self.relay(direction, &key, &entry, &packet, frame, metadata);
        let outcome = result.as_ref().map_or_else(|outcome| *outcome, |_| Outcome::Relayed);
        *self.outcomes.entry(outcome).or_default() += 1;
        result.unwrap_or(unchanged)
    }

    fn relay(
        &mut self,
        direction: Direction,
        key: &[u8; KEY],
        entry: &[u8; ENTRY],
        packet: &Packet<'_>,
        frame: &[u8],
        metadata: usize,
    ) -> Result<(Verdict, Vec<u8>), Outcome> {
        if entry[..KEY] != key[..] || entry[ENTRY - 8..] != check(entry).to_le_bytes() {
            return Err(Outcome::Replaced);
        }
        let interface = u32::from_le_bytes(entry[88..92].try_into().unwrap());
        let own_address = match self.links.get(&(OWN_INTERFACE % LINKS)) {
            Some((OWN_INTERFACE, address)) if interface != OWN_INTERFACE => address,
            _ => &entry[102..108],
        };
        if frame[..6] != *own_address {
            return Err(Outcome::OtherHost);
        }
        let udp = packet.udp.ok_or(Outcome::Malformed)?;
        let data = &udp[8..];
        let application = match direction {
            Direction::ToClient => data,
            Direction::ToPeer => {
                let (header, application) = data.split_at_checked(4).ok_or(Outcome::Malformed)?;
                if usize::from(u16::from_be_bytes([header[2], header[3]])) != application.len() {
                    return Err(Outcome::Malformed);
                }
                application
            }
        };
        if packet.hop_limit < 2 {
            return Err(Outcome::HopLimit);
        }
        if is_turn_message(application) {
            return Err(Outcome::TurnMessage);
        }
        let v4 = entry[86] == 4;
        let payload = match direction {
            Direction::ToPeer => application.to_vec(),
            Direction::ToClient => {
                let length = u16::try_from(application.len()).unwrap().to_be_bytes();
                [&entry[84..86], &length, application].concat()
            }
        };
        let length = if v4 { 20 } else { 40 } + 8 + payload.len();
        if length > usize::from(u16::from_le_bytes(entry[112..114].try_into().unwrap())) {
            return Err(Outcome::TooLong);
        }
        if packet.checksum == 0 && !(v4 && packet.source.is_ipv4()) {
            return Err(Outcome::NoChecksum);
        }
        if packet.checksum == pseudo_header_sum(packet.source.ip(), packet.destination.ip(), udp.len()) {
            return Err(Outcome::PartialChecksum);
        }
        let slot = u32::from_le_bytes(entry[92..96].try_into().unwrap());
        if slot >= SLOTS {
            return Err(Outcome::NoCounter);
        }
        if u64::from_le_bytes(entry[40..48].try_into().unwrap()) <= PAST {
            return Err(Outcome::Expired);
        }
        if entry[87] != LEASED {
            return Err(Outcome::NoLease);
        }
        let received_length = if packet.source.is_ipv4() { 20 } else { 40 } + udp.len();
        let needed = length.saturating_sub(received_length);
        if needed > HEADROOM - metadata {
            return Err(Outcome::NoHeadroom);
        }

        let counter = self.counters.entry(slot).or_default();
        let identification =
            u16::from_le_bytes(entry[114..116].try_into().unwrap()).wrapping_add(low_half(counter.packets));
        counter.packets += 1;
        counter.bytes += application.len() as u64;
        let mut sent = packet_to_send(entry, packet, udp, &payload, identification);
        // The padding stays at its place behind the packet, as far as the shortest frame has room for it.
        sent.extend(&frame[ETHERNET + received_length..]);
        sent.resize((ETHERNET + length).max(SHORTEST_FRAME), 0);
        Ok((if interface == OWN_INTERFACE { Verdict::Transmit } else { Verdict::Redirect }, sent))
    }
}

/// Returns the check word that an entry should have.
fn check(entry: &[u8; ENTRY]) -> u64 {
    let words = entry[..ENTRY - 8].chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    (1..)
        .zip(words)
        .map(|(power, word)| word.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64.wrapping_pow(power)))
        .fold(0, u64::wrapping_add)
}

/// Returns the lower 16 bits.
fn low_half(number: u64) -> u16 {
    u16::try_from(number % 0x1_0000).unwrap()
}

fn parse(frame: &[u8]) -> Option<Packet<'_>> {
    let (link, packet) = frame.split_at_checked(ETHERNET)?;
    if link[0] % 2 == 1 {
        return None;
    }
    match [link[12], link[13]] {
        [0x08, 0x00] => parse_v4(packet),
        [0x86, 0xdd] => parse_v6(packet),
        _ => None,
    }
}

fn parse_v4(packet: &[u8]) -> Option<Packet<'_>> {
    let (header, udp) = packet.split_at_checked(20)?;
    let (udp_header, rest) = udp.split_at_checked(8)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if header[0] != 0x45 || header[9] != 17 || fragment & 0xbfff != 0 {
        return None;
    }
    let ip = |octets: &[u8]| IpAddr::from(<[u8; 4]>::try_from(octets).unwrap());
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let whole = udp_of_length(udp, length.checked_sub(20)).filter(|_| sum(header) == 0xffff);
    Some(Packet {
        source: SocketAddr::new(ip(&header[12..16]), u16::from_be_bytes([udp_header[0], udp_header[1]])),
        destination: SocketAddr::new(ip(&header[16..20]), u16::from_be_bytes([udp_header[2], udp_header[3]])),
        traffic_class: header[1],
        hop_limit: header[8],
        udp: whole,
        checksum: u16::from_be_bytes([udp_header[6], udp_header[7]]),
        rest,
    })
}

fn parse_v6(packet: &[u8]) -> Option<Packet<'_>> {
    let (header, udp) = packet.split_at_checked(40)?;
    let (udp_header, rest) = udp.split_at_checked(8)?;
    if header[0] >> 4 != 6 || header[6] != 17 {
        return None;
    }
    let ip = |octets: &[u8]| Ipv6Addr::from(<[u8; 16]>::try_from(octets).unwrap());
    let source = ip(&header[8..24]);
    if source.to_ipv4_mapped().is_some() {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    Some(Packet {
        source: SocketAddr::new(source.into(), u16::from_be_bytes([udp_header[0], udp_header[1]])),
        destination: SocketAddr::new(ip(&header[24..40]).into(), u16::from_be_bytes([udp_header[2], udp_header[3]])),
        traffic_class: header[0] << 4 | header[1] >> 4,
        hop_limit: header[7],
        udp: udp_of_length(udp, Some(length)),
        checksum: u16::from_be_bytes([udp_header[6], udp_header[7]]),
        rest,
    })
}

/// Returns the UDP datagram, if it has the length that the IP header implies.
fn udp_of_length(udp: &[u8], length: Option<usize>) -> Option<&[u8]> {
    let own = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    if length == Some(own) && own >= 8 { udp.get(..own) } else { None }
}

fn key(packet: &Packet<'_>, channel: [u8; 2]) -> [u8; KEY] {
    let address = |socket: SocketAddr| match socket.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut key = [address(packet.source), address(packet.destination)].concat();
    key.extend(packet.source.port().to_be_bytes());
    key.extend(packet.destination.port().to_be_bytes());
    key.extend(channel);
    key.extend([0, 0]);
    key.try_into().unwrap()
}

fn packet_to_send(
    entry: &[u8; ENTRY],
    received: &Packet<'_>,
    received_udp: &[u8],
    payload: &[u8],
    identification: u16,
) -> Vec<u8> {
    let ip = |place: usize| {
        let octets: [u8; 16] = entry[place..place + 16].try_into().unwrap();
        if entry[86] == 4 {
            IpAddr::from(Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]))
        } else {
            IpAddr::from(octets)
        }
    };
    let (source, destination) = (ip(48), ip(64));
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut udp = entry[80..84].to_vec();
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    if received.checksum != 0 {
        // RFC 1071: sums that differ by a multiple of 0xffff are equal.
        let wanted = u32::from(udp_sum(received.source.ip(), received.destination.ip(), received_udp));
        let without = u32::from(udp_sum(source, destination, &udp));
        let checksum = match u16::try_from((wanted + 0xffff - without) % 0xffff).unwrap() {
            0 => 0xffff,
            other => other,
        };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    }
    let mut sent = entry[96..108].to_vec();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, received.traffic_class];
            header.extend((20 + length).to_be_bytes());
            header.extend(identification.to_be_bytes());
            header.extend([0, 0, received.hop_limit - 1, 17, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let checksum = !sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            sent.extend([0x08, 0x00]);
            sent.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let label = u32::from_be_bytes(entry[108..112].try_into().unwrap());
            sent.extend([0x86, 0xdd]);
            sent.extend((6 << 28 | u32::from(received.traffic_class) << 20 | label).to_be_bytes());
            sent.extend(length.to_be_bytes());
            sent.extend([17, received.hop_limit - 1]);
            sent.extend(source.octets());
            sent.extend(destination.octets());
        }
        families => panic!("an entry has one family: {families:?}"),
    }
    sent.extend(udp);
    sent
}

fn is_turn_message(data: &[u8]) -> bool {
    let Some([high, low, _, _, cookie @ ..]) = data.first_chunk::<8>() else { return false };
    // The methods of TURN in all four classes (RFC 8489 §5): Allocate, Refresh, Send, Data, CreatePermission,
    // ChannelBind, Connect, ConnectionBind, ConnectionAttempt.
    let methods = [3, 4, 6, 7, 8, 9, 10, 11, 12];
    let class_bits = [(0, 0x00), (0, 0x10), (1, 0x00), (1, 0x10)];
    *cookie == [0x21, 0x12, 0xa4, 0x42]
        && class_bits.iter().any(|(class, bits)| methods.iter().any(|method| [*high, *low] == [*class, bits | method]))
}
