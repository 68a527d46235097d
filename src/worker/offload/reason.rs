//! Why user space relays one direction of a channel.

use std::fmt;
use std::sync::Arc;

use crate::offload::next_hop::Obstacle;

/// Why one direction of a channel has no entry. The text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The client is connected over TCP or TLS.
    Connection,
    /// There is a limit on the bytes per second of an allocation or a user.
    ByteRate,
    /// The credential is that of a test link, which has a limit on bytes.
    TestLink,
    /// The peer has an address of this server.
    OwnPeer,
    /// The configuration no longer accepts the channel number.
    ChannelNumber,
    /// The entry is about to be made.
    Pending,
    /// The packets cannot leave without the kernel's network stack.
    NextHop(Obstacle),
    /// The program is not attached to the interface that sends the packets.
    NotAttached(u32),
    /// The kernel sends a packet to the neighbour, so that it examines it.
    NeighbourCheck,
    /// All entries or counters are in use.
    Full,
    /// The kernel rejects entries.
    Rejected(Arc<str>),
    /// The client is behind a proxy, whose headers the program does not know.
    Proxy,
}

impl Reason {
    /// The labels in metrics, in the order of [`index`](Self::index).
    pub(crate) const LABELS: [&str; 12] = [
        "connection",
        "byte-rate",
        "test-link",
        "own-peer",
        "channel-number",
        "pending",
        "next-hop",
        "not-attached",
        "neighbour-check",
        "full",
        "rejected",
        "proxy",
    ];

    pub(super) fn index(&self) -> usize {
        match self {
            Self::Connection => 0,
            Self::ByteRate => 1,
            Self::TestLink => 2,
            Self::OwnPeer => 3,
            Self::ChannelNumber => 4,
            Self::Pending => 5,
            Self::NextHop(_) => 6,
            Self::NotAttached(_) => 7,
            Self::NeighbourCheck => 8,
            Self::Full => 9,
            Self::Rejected(_) => 10,
            Self::Proxy => 11,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection => f.write_str("the client is connected over TCP or TLS"),
            Self::ByteRate => f.write_str("the configuration limits the bytes per second of an allocation or a user"),
            Self::TestLink => f.write_str("the bytes of a test link are limited"),
            Self::OwnPeer => f.write_str("the peer has an address of this server"),
            Self::ChannelNumber => f.write_str("the configuration no longer accepts the channel number"),
            Self::Pending => f.write_str("the entry is being made"),
            Self::NextHop(obstacle) => write!(f, "{obstacle}"),
            Self::NotAttached(index) => write!(
                f,
                "the program is not attached to the interface with index {index} (`ip link`), which sends the packets"
            ),
            Self::NeighbourCheck => f.write_str("for a second, so that the kernel examines the neighbour"),
            Self::Full => f.write_str("the maps are full: raise offload.channels, and restart the server"),
            Self::Proxy => f.write_str("the client is behind a proxy that sends PROXY headers"),
            Self::Rejected(error) => write!(f, "the kernel does not take the entry: {error}"),
        }
    }
}
