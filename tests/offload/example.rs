//! Entries and packets of the tests.

use std::net::SocketAddr;

use crate::frame::{Frame, OWN_LINK_ADDRESS, channel_data};
use crate::kernel::{Kernel, LEASED, OWN_INTERFACE};
use crate::layout::{Direction, Entry, Received, Sent};

pub(crate) const CHANNEL: u16 = 0x4abc;

/// All pairs of families: of the packet that is received, and of the one that is sent. True: IPv4.
pub(crate) const FAMILIES: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];
pub(crate) const DIRECTIONS: [Direction; 2] = [Direction::ToPeer, Direction::ToClient];

/// All directions and pairs of families.
pub(crate) fn all() -> impl Iterator<Item = Entry> {
    DIRECTIONS.into_iter().flat_map(|direction| FAMILIES.map(|(received, sent)| entry(direction, received, sent)))
}

/// Returns an entry that is not used up, on the interface on which the frames of these tests arrive.
pub(crate) fn entry(direction: Direction, received_v4: bool, sent_v4: bool) -> Entry {
    let host = |v4: bool, host: u8, port: u16| -> SocketAddr {
        let text = if v4 { format!("198.51.100.{host}:{port}") } else { format!("[2001:db8::{host}]:{port}") };
        text.parse().unwrap()
    };
    Entry {
        direction,
        received: Received { source: host(received_v4, 1, 40_001), destination: host(received_v4, 2, 3478) },
        sent: Sent {
            source: host(sent_v4, 3, 50_003),
            destination: host(sent_v4, 4, 60_004),
            interface: OWN_INTERFACE,
            is_redirected: false,
            link_destination: [2, 0, 0, 0, 0, 4],
            link_source: OWN_LINK_ADDRESS,
            longest_packet: 1500,
            flow_label: 0xa_bcde,
            identification: 0xfffe,
        },
        channel: CHANNEL,
        expires: u64::MAX,
        slot: 7,
        worker: LEASED,
    }
}

/// Returns a packet with `data` for an entry.
pub(crate) fn received(entry: &Entry, data: &[u8]) -> Frame {
    let payload = match entry.direction {
        Direction::ToPeer => channel_data(entry.channel, data),
        Direction::ToClient => data.to_vec(),
    };
    Frame::new(entry.received.source, entry.received.destination, &payload)
}

/// Returns the packet that the program sends in place of [`received`] if it is the next one of the entry.
pub(crate) fn sent(kernel: &Kernel, entry: &Entry, data: &[u8]) -> Frame {
    let payload = match entry.direction {
        Direction::ToPeer => data.to_vec(),
        Direction::ToClient => channel_data(entry.channel, data),
    };
    let mut frame = Frame::new(entry.sent.source, entry.sent.destination, &payload);
    frame.link_destination = entry.sent.link_destination;
    frame.link_source = entry.sent.link_source;
    frame.hop_limit = 63;
    frame.flow_label = entry.sent.flow_label;
    let earlier = kernel.counter(entry.slot).packets;
    frame.identification = entry.sent.identification.wrapping_add(u16::try_from(earlier % 0x1_0000).unwrap());
    frame
}
