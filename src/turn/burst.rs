//! Packets that arrive together: the segments of a datagram that the kernel merged (UDP_GRO), or a single packet.
//!
//! The core decides about the first packet of a burst and reuses the decision for the packets that have the same route.
//! Each packet is still charged to the rates and counted.

use std::net::SocketAddr;
use std::ops::Range;

use super::contract::{FiveTuple, ToPeer};
use super::outcome::DropReason;
use super::protocol::channel_data::Framing;
use crate::ip_fields::IpFields;

/// Consecutive packets in a buffer, all of one length except the last.
#[derive(Debug)]
struct Segments {
    rest: Range<usize>,
    length: usize,
    done: bool,
}

impl Segments {
    /// `length` is the length of each packet. `None` means that there is only one packet, which may be empty.
    fn new(place: Range<usize>, length: Option<usize>) -> Self {
        Self { length: length.unwrap_or(place.len()).max(1), rest: place, done: false }
    }

    fn next(&mut self) -> Option<Range<usize>> {
        if self.done {
            return None;
        }
        let start = self.rest.start;
        self.rest.start = self.rest.end.min(start.saturating_add(self.length));
        self.done = self.rest.is_empty();
        Some(start..self.rest.start)
    }
}

/// Packets of one client. Pass the burst to [`Server::client_packet`](crate::turn::Server::client_packet) until it
/// returns `None`.
#[derive(Debug)]
pub struct ClientBurst {
    segments: Segments,
    pub(crate) fields: IpFields,
    pub(crate) cached: Option<CachedRoute>,
}

/// The route of a ChannelData message. It applies to the next message if header and length are the same.
#[derive(Debug)]
pub(crate) struct CachedRoute {
    pub(crate) header: [u8; 4],
    pub(crate) length: usize,
    /// The payload range is relative to the start of the message.
    pub(crate) route: ToPeer,
}

impl ClientBurst {
    /// Creates a burst at `place` in a buffer. The packets arrived with these fields of the IP header. `length` is the
    /// length of each packet, if there are several.
    #[must_use]
    pub fn new(place: Range<usize>, length: Option<usize>, fields: IpFields) -> Self {
        Self { segments: Segments::new(place, length), fields, cached: None }
    }

    pub(crate) fn next(&mut self) -> Option<Range<usize>> {
        self.segments.next()
    }
}

/// Datagrams of one peer on one relay socket. Pass the burst to
/// [`Server::peer_packet`](crate::turn::Server::peer_packet) until it returns `None`.
#[derive(Debug)]
pub struct PeerBurst {
    segments: Segments,
    pub(crate) source: SocketAddr,
    pub(crate) fields: IpFields,
    pub(crate) decided: Option<Result<PeerRoute, DropReason>>,
}

/// The route from a peer to a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerRoute {
    pub(crate) tuple: FiveTuple,
    pub(crate) framing: Framing,
    pub(crate) fields: IpFields,
}

impl PeerBurst {
    /// Creates a burst from `source` at `place` in a buffer. The datagrams arrived with these fields of the IP
    /// header. `length` is the length of each datagram, if there are several.
    #[must_use]
    pub fn new(source: SocketAddr, place: Range<usize>, length: Option<usize>, fields: IpFields) -> Self {
        Self { segments: Segments::new(place, length), source, fields, decided: None }
    }

    pub(crate) fn next(&mut self) -> Option<Range<usize>> {
        self.segments.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_the_burst_and_the_last_may_be_shorter() {
        let all = |place, length| {
            let mut segments = Segments::new(place, length);
            std::iter::from_fn(move || segments.next()).map(|range| (range.start, range.end)).collect::<Vec<_>>()
        };
        assert_eq!(all(10..35, Some(10)), [(10, 20), (20, 30), (30, 35)]);
        assert_eq!(all(10..30, Some(10)), [(10, 20), (20, 30)]);
        assert_eq!(all(10..35, None), [(10, 35)]);
        assert_eq!(all(10..10, None), [(10, 10)]);
        assert_eq!(all(10..10, Some(5)), [(10, 10)]);
    }
}
