//! The contract between the core and its shell: every input and every output.
//!
//! The shell passes packets, the results of socket operations and commands to the core. The core returns a decision. On
//! the fast path the decision is a route over the buffer that the shell holds: nothing is copied or allocated.
//!
//! ```text
//!   input                                            output
//!   client_packet   a datagram or frame of a client  FromClient: relay, respond, open a socket, wait, drop
//!   looked_up       what the user database says      -
//!   resume          a request that has waited        FromClient, as for client_packet
//!   peer_packet     a datagram of a peer             FromPeer: relay, drop
//!   peer_unreachable  an ICMP error                  IcmpIndication for the client, or a drop reason
//!   socket_opened   the result of opening a socket   Opened: respond, open another socket, abandon
//!   socket_closed   a socket is closed               -
//!   credit          packets that were relayed        -
//!   count_drops     packets that the shell dropped   -
//!   connection_closed, advance, stop                 -
//!   reconfigure     a new snapshot                   -
//!   review          some allocations, after that     whether there is more to review
//!   end_allocation  a command                        whether there was such an allocation
//!   import          an allocation of another process the sockets that it needs
//!   allocations, describe, seek_oldest, export       plain data
//!
//!   After every input: next_action, until it returns None.
//!   Action: close a socket, look up a user, log an event, a channel route was added or removed
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::num::ParseIntError;
use std::ops::Range;
use std::str::FromStr;

use super::event::Event;
use super::outcome::{DropReason, Outcome};
use super::time::{Deadline, Instant};
use crate::ip_fields::IpFields;
use crate::transport::Transport;

/// The time and the source of randomness, which the caller provides.
pub struct Context<'a> {
    /// The monotonic clock.
    pub now: Instant,
    /// The wall clock, in seconds since the Unix epoch. The times in credentials and nonces refer to it.
    pub unix: u64,
    /// A cryptographically secure source.
    pub rng: &'a mut dyn rand::CryptoRng,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("now", &self.now).field("unix", &self.unix).finish_non_exhaustive()
    }
}

/// The 5-tuple of a client and the server (RFC 8656 §2), as the server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// The source of the client's packets.
    pub client: SocketAddr,
    /// The address that the client sends to.
    pub server: SocketAddr,
    /// The transport between them.
    pub transport: Transport,
}

/// Identifies an allocation. It is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllocationId {
    /// The place in the table.
    pub(crate) place: u32,
    /// Distinguishes the allocation from earlier ones in the same place.
    pub(crate) generation: u32,
}

impl fmt::Display for AllocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.place, self.generation)
    }
}

impl FromStr for AllocationId {
    type Err = ParseIntError;

    /// Parses what `Display` writes.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (place, generation) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self { place: place.parse()?, generation: generation.parse()? })
    }
}

/// The number of sockets that an allocation can have.
const SOCKETS_PER_ALLOCATION: u32 = 2;

/// Identifies a relay socket. It is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId {
    /// The allocation's place times [`SOCKETS_PER_ALLOCATION`], plus the index of the socket within the allocation.
    slot: u32,
    generation: u32,
}

impl SocketId {
    /// Returns a small number that no two open relay sockets of a worker share. It is reused after the socket is
    /// closed.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    /// Returns the allocation that the socket belongs to.
    #[must_use]
    pub fn allocation(self) -> AllocationId {
        AllocationId { place: self.slot / SOCKETS_PER_ALLOCATION, generation: self.generation }
    }

    /// Returns the identifier with this slot and generation 0.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn for_tests(slot: u32) -> Self {
        Self { slot, generation: 0 }
    }

    pub(crate) fn index(self) -> SocketIndex {
        SocketIndex(self.slot % SOCKETS_PER_ALLOCATION)
    }
}

/// The place of a socket within its allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketIndex(u32);

impl SocketIndex {
    pub(crate) const FIRST: Self = Self(0);
    pub(crate) const SECOND: Self = Self(1);
}

impl AllocationId {
    pub(crate) fn socket(self, index: SocketIndex) -> SocketId {
        SocketId { slot: self.place * SOCKETS_PER_ALLOCATION + index.0, generation: self.generation }
    }
}

/// A relay socket that the shell must open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSpec {
    /// The identifier of the socket in all later calls.
    pub socket: SocketId,
    /// What kind of socket it is.
    pub kind: SocketKind,
    /// The address to bind it to.
    pub bind: SocketAddr,
}

/// The kind of a relay socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A UDP socket.
    Udp,
}

/// The relayed transport addresses of an allocation: one, or one of each address family (RFC 8656 §7.2). Displayed with
/// a comma in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayedAddresses {
    /// The IPv4 one.
    pub v4: Option<SocketAddr>,
    /// The IPv6 one.
    pub v6: Option<SocketAddr>,
}

impl RelayedAddresses {
    /// Returns the addresses, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = SocketAddr> {
        self.v4.into_iter().chain(self.v6)
    }
}

impl From<SocketAddr> for RelayedAddresses {
    fn from(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self { v4: Some(address), v6: None } } else { Self { v4: None, v6: Some(address) } }
    }
}

impl fmt::Display for RelayedAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        self.iter().try_for_each(|address| write!(f, "{}{address}", std::mem::replace(&mut separator, ",")))
    }
}

/// An ICMP error about a datagram that was sent to a peer (RFC 8656 §11.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// The type: of ICMPv4 for an IPv4 peer, of ICMPv6 for an IPv6 peer.
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// The MTU of the next hop in bytes, if the datagram was too big for it.
    pub mtu: u32,
}

/// The decision about a packet from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromClient {
    /// Send part of the buffer to a peer.
    Relay(ToPeer),
    /// Send the first bytes of the response buffer to the client.
    Respond(Response),
    /// Carry out the pending [`Action`]s, then open a relay socket and report the result with
    /// [`Server::socket_opened`](crate::turn::Server::socket_opened).
    Open(SocketSpec),
    /// The request waits for the user database ([`Action::LookUp`]). It has no outcome yet.
    Wait,
    /// Do nothing.
    Drop(DropReason),
}

/// The decision about a datagram from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromPeer {
    /// Send part of the buffer to a client.
    Relay(ToClient),
    /// Do nothing.
    Drop(DropReason),
}

/// A payload to send to a peer. The shell [credits](crate::turn::Server::credit) it once it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToPeer {
    /// The socket to send from.
    pub socket: SocketId,
    /// The destination: the peer's transport address, or the bind address of a relay socket of this server.
    pub peer: SocketAddr,
    /// The application data within the buffer.
    pub payload: Range<usize>,
    /// The fields of the IP header to send with (RFC 8656 §14, §15).
    pub fields: IpFields,
    /// Whether to prevent fragmentation, for IPv4 by setting DF (RFC 8656 §14, §15).
    pub dont_fragment: bool,
}

/// A message to send to a client: a header, a payload and padding. The shell [credits](crate::turn::Server::credit) the
/// payload once it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToClient {
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    /// The length in bytes of the header, which is at the end of the headroom.
    pub header: usize,
    /// The application data within the buffer.
    pub payload: Range<usize>,
    /// The number of zero bytes after the payload, at most [`TAILROOM`](crate::turn::TAILROOM).
    pub padding: usize,
    /// The fields of the IP header to send with. A connection ignores them (RFC 8656 §16).
    pub fields: IpFields,
}

/// A Data indication about an ICMP error (RFC 8656 §11.5). It is in the response buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IcmpIndication {
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    /// The length in bytes.
    pub length: usize,
}

/// A response to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The length of the response, which begins at the start of the response buffer.
    pub length: usize,
    /// The outcome that the request is counted under, once the response is sent.
    pub outcome: Outcome,
}

/// Why a relay socket could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Another program has the port; another port may work.
    PortInUse,
    /// The machine does not have the address at present.
    AddressGone,
    /// No port will work, for example because no file descriptor is left.
    Other,
}

impl OpenError {
    /// Every error, in the order of the counters.
    pub const ALL: [Self; 3] = [Self::PortInUse, Self::AddressGone, Self::Other];

    /// Returns the name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::PortInUse => "port-in-use",
            Self::AddressGone => "address-gone",
            Self::Other => "other",
        }
    }
}

/// The decision after a relay socket was opened or failed to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Send the first bytes of the response buffer to the client.
    Respond(FiveTuple, Response),
    /// Open this socket: in place of the one that failed, or in addition to the one that is open.
    Open(SocketSpec),
    /// The allocation has ended. Close the socket if it is open, and report it closed.
    Abandoned,
}

/// An action of the shell in addition to the decision about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Close a relay socket, and then report its address with
    /// [`Server::socket_closed`](crate::turn::Server::socket_closed).
    Close {
        /// The socket.
        socket: SocketId,
        /// The address that it is bound to.
        bind: SocketAddr,
    },
    /// Look up this username in the user database, and report the result with
    /// [`Server::looked_up`](crate::turn::Server::looked_up).
    LookUp(Box<str>),
    /// Log an event.
    Log(Event),
    /// A channel became a route, or the expiry of its route changed.
    RouteAdded(ChannelRoute),
    /// A channel is no longer a route.
    RouteRemoved(ChannelRoute),
}

/// Why only the core may relay the traffic of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOffloaded {
    /// The peer has an address of this server, and may be the relayed transport address of another client. For each
    /// packet, the core checks that this address is still in use, and translates it to the bound address.
    OwnPeer,
    /// The core charges each packet to a rate of the allocation or of the user.
    ByteRate,
    /// The core charges each packet to the test link.
    TestLink,
    /// The channel number is no longer accepted.
    ChannelNumber,
}

/// A bound channel as plain data. Traffic that is relayed outside the core must be
/// [credited](crate::turn::Server::credit), and TURN messages must not be relayed.
///
/// The 5-tuple and the channel number identify a route.
/// [`why_not_offloaded`](crate::turn::Server::why_not_offloaded) says which routes only the core may relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelRoute {
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    /// The channel number.
    pub channel: u16,
    /// The relay socket.
    pub socket: SocketId,
    /// The address that the relay socket is bound to.
    pub relay: SocketAddr,
    /// The peer's transport address, as the client knows it.
    pub peer: SocketAddr,
    /// The earlier expiry of the channel and its relayed transport address. A refresh can postpone it.
    pub expires: Deadline,
}
