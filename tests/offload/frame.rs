//! Frames made by hand, with checksums that are computed over all bytes.

use std::net::{IpAddr, SocketAddr};

pub(crate) const ETHERNET: usize = 14;
/// The shortest frame, without its checksum.
pub(crate) const SHORTEST_FRAME: usize = 60;
/// The link address of the interface on which frames arrive.
pub(crate) const OWN_LINK_ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The UDP checksum of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Checksum {
    Whole,
    /// The sum of the pseudo-header, which a sender leaves if a device computes the checksum (`CHECKSUM_PARTIAL`).
    PseudoHeader,
    Zero,
}

/// A frame with a UDP datagram.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) link_destination: [u8; 6],
    pub(crate) link_source: [u8; 6],
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) traffic_class: u8,
    pub(crate) hop_limit: u8,
    pub(crate) flow_label: u32,
    pub(crate) identification: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) checksum: Checksum,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Self {
        Self {
            link_destination: OWN_LINK_ADDRESS,
            link_source: [2, 0, 0, 0, 0, 2],
            source,
            destination,
            traffic_class: 0,
            hop_limit: 64,
            flow_label: 0,
            identification: 0,
            dont_fragment: false,
            checksum: Checksum::Whole,
            payload: payload.to_vec(),
        }
    }

    /// Returns the bytes, without padding.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.link_destination, self.link_source].concat();
        let mut udp = [self.source.port(), self.destination.port()].map(u16::to_be_bytes).concat();
        udp.extend(u16_bytes(8 + self.payload.len()));
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend([0x08, 0x00]);
                let mut ip = vec![0x45, self.traffic_class];
                ip.extend(u16_bytes(20 + udp.len()));
                ip.extend(self.identification.to_be_bytes());
                ip.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.hop_limit, 17, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                let checksum = !sum(&ip);
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
                bytes.extend(ip);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend([0x86, 0xdd]);
                let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
                bytes.extend(first.to_be_bytes());
                bytes.extend(u16_bytes(udp.len()));
                bytes.extend([17, self.hop_limit]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            families => panic!("a packet has one family: {families:?}"),
        }
        let (source, destination) = (self.source.ip(), self.destination.ip());
        let checksum = match self.checksum {
            Checksum::Whole => match !udp_sum(source, destination, &udp) {
                0 => 0xffff,
                other => other,
            },
            Checksum::PseudoHeader => pseudo_header_sum(source, destination, udp.len()),
            Checksum::Zero => 0,
        };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(udp);
        bytes
    }

    /// Returns the bytes, padded with zeros to the shortest frame.
    pub(crate) fn padded(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        bytes.resize(bytes.len().max(SHORTEST_FRAME), 0);
        bytes
    }
}

/// Returns a ChannelData message.
pub(crate) fn channel_data(number: u16, data: &[u8]) -> Vec<u8> {
    let mut message = number.to_be_bytes().to_vec();
    message.extend(u16_bytes(data.len()));
    message.extend(data);
    message
}

/// Returns the one's complement sum of bytes, padded with zero to whole words.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Returns the one's complement sum of a UDP datagram and its pseudo-header.
pub(crate) fn udp_sum(source: IpAddr, destination: IpAddr, udp: &[u8]) -> u16 {
    sum(&[pseudo_header(source, destination, udp.len()), udp.to_vec()].concat())
}

/// Returns the one's complement sum of the pseudo-header of a UDP datagram.
pub(crate) fn pseudo_header_sum(source: IpAddr, destination: IpAddr, length: usize) -> u16 {
    sum(&pseudo_header(source, destination, length))
}

fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut header = octets(source);
    header.extend(octets(destination));
    header.extend([0, 17]);
    header.extend(u16_bytes(length));
    header
}

fn u16_bytes(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap().to_be_bytes()
}
