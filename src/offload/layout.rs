//! The bytes of the maps of `relay.bpf.c`. docs/offload.md describes their fields.

use std::net::{IpAddr, SocketAddr};

/// The length of a key in bytes.
pub const KEY: usize = 40;
/// The length of an entry in bytes.
pub const ENTRY: usize = 136;
/// The length of a counter in bytes.
pub const COUNTER: usize = 24;
/// The length of a link in bytes.
pub const LINK: usize = 12;

/// The factor of the check word of an entry. It is odd, so that no change of a single word leaves the check word as it
/// is.
const CHECK_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The length of a ChannelData header (RFC 8656 §12.4).
const CHANNEL_HEADER: u16 = 4;
/// Marks the index of an interface to which packets are redirected. An index is less than 2^31.
const REDIRECTED: u32 = 1 << 31;

/// The number of UDP in an IP header.
const UDP: u16 = 17;

/// The map that has an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a client to a peer: the map `to_peer`. The program removes the channel header.
    ToPeer,
    /// From a peer to a client: the map `to_client`. The program adds the channel header.
    ToClient,
}

/// A received packet that the program relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Received {
    /// The source: the client, or the peer. It is not an IPv4-mapped address.
    pub source: SocketAddr,
    /// The destination: the address of the listener, or the relayed transport address as the packet carries it.
    pub destination: SocketAddr,
}

/// The packet that is sent in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The source: the relayed transport address as the packet carries it, or the address of the listener.
    pub source: SocketAddr,
    /// The destination: the peer, or the client.
    pub destination: SocketAddr,
    /// The index of the interface that sends it.
    pub interface: u32,
    /// Whether it is redirected to the interface even if this has received the packet (`bpf_redirect` in place of
    /// `XDP_TX`). A veth interface needs this: it delivers what `XDP_TX` sends only if its other end has a program.
    pub is_redirected: bool,
    /// The link address of the next hop.
    pub link_destination: [u8; 6],
    /// The link address of the interface. Frames that the interface receives are relayed only if it is their
    /// destination.
    pub link_source: [u8; 6],
    /// The longest IP packet that the interface sends, in bytes.
    pub longest_packet: u16,
    /// The Flow Label over IPv6: 20 bits.
    pub flow_label: u32,
    /// The Identification of the first packet over IPv4.
    pub identification: u16,
}

/// How the packets of one direction of a channel are relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The direction, which selects the map.
    pub direction: Direction,
    /// The packet that is received.
    pub received: Received,
    /// The packet that is sent.
    pub sent: Sent,
    /// The channel number.
    pub channel: u16,
    /// The time of `CLOCK_MONOTONIC` in nanoseconds from which on the entry is not used.
    pub expires: u64,
    /// The index of its counter.
    pub slot: u32,
    /// The worker whose lease counts.
    pub worker: u8,
}

impl Entry {
    /// Returns the key of the entry.
    #[must_use]
    pub fn key(&self) -> [u8; KEY] {
        let mut bytes = Bytes::new();
        let Received { source, destination } = self.received;
        bytes.put(mapped(source.ip()));
        bytes.put(mapped(destination.ip()));
        bytes.put(source.port().to_be_bytes());
        bytes.put(destination.port().to_be_bytes());
        bytes.put(match self.direction {
            Direction::ToPeer => self.channel.to_be_bytes(),
            Direction::ToClient => [0; 2],
        });
        bytes.put([0; 2]);
        bytes.finish()
    }

    /// Returns the value of the entry.
    #[must_use]
    pub fn value(&self) -> [u8; ENTRY] {
        let mut bytes = Bytes::new();
        let sent = &self.sent;
        bytes.put(self.key());
        bytes.put(self.expires.to_le_bytes());
        bytes.put(mapped(sent.source.ip()));
        bytes.put(mapped(sent.destination.ip()));
        bytes.put(sent.source.port().to_be_bytes());
        bytes.put(sent.destination.port().to_be_bytes());
        bytes.put(match self.direction {
            Direction::ToPeer => [0; 2],
            Direction::ToClient => self.channel.to_be_bytes(),
        });
        bytes.put([if sent.destination.is_ipv4() { 4 } else { 6 }, self.worker]);
        let redirected = if sent.is_redirected { REDIRECTED } else { 0 };
        bytes.put((sent.interface | redirected).to_le_bytes());
        bytes.put(self.slot.to_le_bytes());
        bytes.put(sent.link_destination);
        bytes.put(sent.link_source);
        bytes.put((sent.flow_label & 0x000f_ffff).to_be_bytes());
        bytes.put(sent.longest_packet.to_le_bytes());
        bytes.put(sent.identification.to_le_bytes());
        // The program adds words in the order of the packet, so these two are in network order.
        bytes.put(self.udp_difference().to_be_bytes());
        bytes.put(self.ipv4_sum().to_be_bytes());
        bytes.put(self.pseudo_header_sum().to_be_bytes());
        bytes.put([0; 6]);
        bytes.put(bytes.check().to_le_bytes());
        bytes.finish()
    }

    /// Returns the change of the sum that the UDP checksum covers, without the length in the channel header.
    fn udp_difference(&self) -> u16 {
        let before = Sum::default().socket(self.received.source).socket(self.received.destination);
        let after = Sum::default().socket(self.sent.source).socket(self.sent.destination);
        // The length of UDP is in the UDP header and in the pseudo-header.
        let (before, after) = match self.direction {
            Direction::ToPeer => (before.word(self.channel).word(2 * CHANNEL_HEADER), after),
            Direction::ToClient => (before, after.word(self.channel).word(2 * CHANNEL_HEADER)),
        };
        after.word(!before.fold()).fold()
    }

    /// Returns the sum of the constant fields of an IPv4 header; 0 over IPv6.
    fn ipv4_sum(&self) -> u16 {
        if self.sent.destination.is_ipv6() {
            return 0;
        }
        Sum::default().word(0x4500).word(UDP).ip(self.sent.source.ip()).ip(self.sent.destination.ip()).fold()
    }

    /// Returns the sum of the pseudo-header of the received packet, without its length.
    fn pseudo_header_sum(&self) -> u16 {
        Sum::default().word(UDP).ip(self.received.source.ip()).ip(self.received.destination.ip()).fold()
    }
}

/// Returns the value of `links` for an interface: its index, and its link address.
#[must_use]
pub(super) fn link(interface: u32, address: [u8; 6]) -> [u8; LINK] {
    let mut bytes = Bytes::new();
    bytes.put(interface.to_le_bytes());
    bytes.put(address);
    bytes.put([0; 2]);
    bytes.finish()
}

/// What a slot of `counters` has counted on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Relayed packets.
    pub packets: u64,
    /// Application data in bytes.
    pub bytes: u64,
    /// The time of `CLOCK_MONOTONIC` of the last packet, in nanoseconds. 0: none.
    pub last: u64,
}

impl Counter {
    /// Reads a counter.
    #[must_use]
    pub fn from_bytes(bytes: [u8; COUNTER]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        Self { packets: next(), bytes: next(), last: next() }
    }
}

/// What became of a packet that has an entry: the indices of `outcomes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Outcome {
    /// It was handed to the driver. All others pass to user space unchanged.
    Relayed,
    /// The entry was replaced while it was read, or is damaged.
    Replaced,
    /// The IPv4 header checksum is wrong, or lengths disagree.
    Malformed,
    /// The TTL or Hop Limit has run out.
    HopLimit,
    /// The entry has expired.
    Expired,
    /// The application data is a TURN message, which is not relayed.
    TurnMessage,
    /// The packet would be longer than the interface sends.
    TooLong,
    /// The UDP checksum is zero, and the packet is received or sent over IPv6.
    NoChecksum,
    /// The slot is not in `counters`.
    NoCounter,
    /// The driver left too little room in front of the packet.
    NoHeadroom,
    /// The driver left too little room after a short packet.
    NoTailroom,
    /// The worker of the entry has not extended its lease.
    NoLease,
    /// The frame is addressed to the link address of another host, and the kernel drops it.
    OtherHost,
    /// The UDP checksum covers only the pseudo-header, because a sender on this machine has left it to a device.
    PartialChecksum,
}

impl Outcome {
    /// All outcomes, in the order of their indices.
    pub const ALL: [Self; 14] = [
        Self::Relayed,
        Self::Replaced,
        Self::Malformed,
        Self::HopLimit,
        Self::Expired,
        Self::TurnMessage,
        Self::TooLong,
        Self::NoChecksum,
        Self::NoCounter,
        Self::NoHeadroom,
        Self::NoTailroom,
        Self::NoLease,
        Self::OtherHost,
        Self::PartialChecksum,
    ];

    /// Returns the name for the operator.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Relayed => "relayed",
            Self::Replaced => "replaced",
            Self::Malformed => "malformed",
            Self::HopLimit => "hop-limit",
            Self::Expired => "expired",
            Self::TurnMessage => "turn-message",
            Self::TooLong => "too-long",
            Self::NoChecksum => "no-checksum",
            Self::NoCounter => "no-counter",
            Self::NoHeadroom => "no-headroom",
            Self::NoTailroom => "no-tailroom",
            Self::NoLease => "no-lease",
            Self::OtherHost => "other-host",
            Self::PartialChecksum => "partial-checksum",
        }
    }
}

/// Returns an address in the IPv6 form; IPv4 as IPv4-mapped.
fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A one's complement sum (RFC 1071).
#[derive(Clone, Copy, Default)]
struct Sum(u64);

impl Sum {
    fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    fn ip(self, ip: IpAddr) -> Self {
        let add = |sum: Self, pair: &[u8; 2]| sum.word(u16::from_be_bytes(*pair));
        match ip {
            IpAddr::V4(v4) => v4.octets().as_chunks().0.iter().fold(self, add),
            IpAddr::V6(v6) => v6.octets().as_chunks().0.iter().fold(self, add),
        }
    }

    fn socket(self, socket: SocketAddr) -> Self {
        self.ip(socket.ip()).word(socket.port())
    }

    fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > u64::from(u16::MAX) {
            sum = (sum & u64::from(u16::MAX)) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(u16::MAX)
    }
}

/// The bytes of a structure, written from its start.
struct Bytes<const N: usize> {
    bytes: [u8; N],
    written: usize,
}

impl<const N: usize> Bytes<N> {
    fn new() -> Self {
        Self { bytes: [0; N], written: 0 }
    }

    fn put<const M: usize>(&mut self, field: [u8; M]) {
        let end = self.written + M;
        let room = self.bytes.get_mut(self.written..end).expect("the fields fit into the structure");
        room.copy_from_slice(&field);
        self.written = end;
    }

    /// Returns the check word of what is written: the sum of its words, each multiplied by another power of the factor.
    fn check(&self) -> u64 {
        let written = self.bytes.get(..self.written).unwrap_or_default();
        let words = written.as_chunks().0.iter().rev();
        words.fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)).wrapping_mul(CHECK_FACTOR))
    }

    fn finish(self) -> [u8; N] {
        debug_assert_eq!(self.written, N, "the fields fill the structure");
        self.bytes
    }
}
