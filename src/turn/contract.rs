//! The contract between the core and its shell, on one page.
//!
//! The shell hands in packets and the results of sockets that the core asked for; the core answers with a decision.
//! On the fast path that decision is a route over the buffer that the shell holds: nothing is copied or allocated.
//!
//! ```text
//!                 client_packet                          relay_opened
//!   client ─────────────────────▶ ┌────────────────┐ ◀───────────────────── shell
//!          ◀───────────────────── │  turn::Server  │ ─────────────────────▶ OpenRelay, ToPeer
//!            Reply, ToClient      └────────────────┘      next_action       Close, Log
//!                                     ▲        ▲                            (then relay_closed)
//!      peer_packet, peer_unreachable ─┘        └─ advance (time), stop
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use crate::auth::{AuthFailure, HumanSeconds};
use crate::stun::attribute::AddressFamily;
use crate::turn::limit::Limit;
use crate::turn::outcome::{DropReason, Outcome};
use crate::turn::protocol::channel_data::Framing;
use crate::turn::shared::policy::Denial;
use crate::turn::time::Instant;

/// What the core may not fetch for itself: the time and randomness.
pub struct Context<'a> {
    /// The monotonic clock.
    pub now: Instant,
    /// The wall clock, in seconds since the Unix epoch; credentials and nonces are dated by it.
    pub unix: u64,
    /// A cryptographically secure source.
    pub rng: &'a mut dyn rand::CryptoRng,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("now", &self.now).field("unix", &self.unix).finish_non_exhaustive()
    }
}

/// The transport between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Plain UDP.
    Udp,
    /// Plain TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
}

impl Transport {
    /// Whether packets arrive in a row on a connection, whose handshake has shown that the client is where it says.
    #[must_use]
    pub fn is_stream(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Tcp | Self::Tls => true,
        }
    }

    /// The DSCP and ECN that a datagram is relayed with which came with `tos`, from or to a client on this transport:
    /// the same, or none where one side is a connection (RFC 8656 §14–§16).
    pub(crate) fn relayed_tos(self, tos: u8) -> u8 {
        if self.is_stream() { 0 } else { tos }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        })
    }
}

/// The communication path between a client and the server (RFC 8656 §2), as the server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// Where the client's packets come from.
    pub client: SocketAddr,
    /// The address that the client wrote to.
    pub server: SocketAddr,
    /// How they travel.
    pub transport: Transport,
}

/// Names an allocation's relay socket of one address family, and no other one's ever after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelayId {
    /// Twice the allocation's place in the table, and one more for IPv6.
    slot: u32,
    generation: u32,
}

impl RelayId {
    /// A small number that no two live relay sockets of a worker share; it is used again after the socket is closed.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    pub(crate) fn allocation(self) -> AllocationId {
        AllocationId { place: self.slot / 2, generation: self.generation }
    }

    pub(crate) fn family(self) -> AddressFamily {
        if self.slot.is_multiple_of(2) { AddressFamily::V4 } else { AddressFamily::V6 }
    }
}

/// Names an allocation, and no other one ever after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AllocationId {
    pub(crate) place: u32,
    pub(crate) generation: u32,
}

impl AllocationId {
    pub(crate) fn relay(self, family: AddressFamily) -> RelayId {
        let slot = self.place * 2 + u32::from(family == AddressFamily::V6);
        RelayId { slot, generation: self.generation }
    }
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
    /// Those that there are, IPv4 first.
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
    /// The type, of ICMPv4 or ICMPv6 as the peer's address is.
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// The MTU of the next hop in bytes, where the datagram was too big for it.
    pub mtu: u32,
}

/// What to do with a packet from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromClient {
    /// Send part of the packet to a peer.
    Relay(ToPeer),
    /// Send the first bytes of the reply buffer back to the client.
    Reply(Reply),
    /// Carry out the [`Action`]s that wait, then open a relay socket and report with
    /// [`Server::relay_opened`](crate::turn::Server::relay_opened).
    Open(OpenRelay),
    /// Nothing.
    Drop(DropReason),
}

/// What to do with a datagram from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromPeer {
    /// Send part of the buffer to a client.
    Relay(ToClient),
    /// Nothing.
    Drop(DropReason),
}

/// A route to a peer: the bytes `payload` of the packet, out of relay socket `relay`, to `peer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToPeer {
    /// The socket to send from.
    pub relay: RelayId,
    /// The peer's transport address, as the network knows it.
    pub peer: SocketAddr,
    /// The application data within the packet.
    pub payload: Range<usize>,
    /// The DSCP and ECN to send with, as they stand in the TOS or Traffic Class field (RFC 8656 §14, §15).
    pub tos: u8,
    /// Whether DF is to be 1, or IPv6 is not to fragment; otherwise the datagram may be fragmented (RFC 8656 §14, §15).
    pub dont_fragment: bool,
}

/// A route to a client: the bytes `message` of the buffer, on the 5-tuple.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToClient {
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    /// The message within the buffer, whose header lies in the headroom.
    pub message: Range<usize>,
    /// The DSCP and ECN to send with, as they stand in the TOS or Traffic Class field (RFC 8656 §14); it means nothing on
    /// a connection (§16).
    pub tos: u8,
    /// Under what the datagram is counted once it is sent.
    pub outcome: Outcome,
}

/// How a peer's datagrams reach a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRoute {
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    /// What stands around each of them.
    pub framing: Framing,
    /// The DSCP and ECN to send with, as in [`ToClient::tos`].
    pub tos: u8,
}

/// An answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Bytes of the reply buffer that are the answer.
    pub length: usize,
    /// Under what the request is counted.
    pub outcome: Outcome,
}

/// A relay socket to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRelay {
    /// What the socket is called from here on.
    pub relay: RelayId,
    /// The address to bind it to.
    pub bind: SocketAddr,
}

/// Why a relay socket could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Somebody else has the port; another one may do.
    PortInUse,
    /// No port will do: no descriptors left, the address is gone from the machine, and so on.
    Other,
}

/// What to do when a relay socket was opened or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Send the first bytes of the reply buffer to the client.
    Reply(FiveTuple, Reply),
    /// Open this socket: in place of the one that was not to be had, or besides the one that is open.
    Open(OpenRelay),
    /// The allocation is gone: close the socket, if there is one.
    Abandoned,
}

/// What the core wants done, or known, besides the answer to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Close a relay socket, and then report with [`Server::relay_closed`](crate::turn::Server::relay_closed).
    Close(RelayId),
    /// Something to log.
    Log(Event),
}

/// What an operator may want to read about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An allocation was made.
    AllocationCreated {
        /// Whose it is.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The relayed transport addresses that the client was told.
        relay: RelayedAddresses,
        /// For how long, in seconds.
        lifetime: u32,
    },
    /// An allocation is over.
    AllocationEnded(Box<AllocationSummary>),
    /// A client that can receive at its address presented credentials that do not hold.
    AuthenticationFailed {
        /// The USERNAME that it gave.
        username: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// Why they do not hold.
        cause: AuthCause,
    },
    /// An authenticated client asked for a peer that the policy refuses.
    PeerRefused {
        /// Whose allocation it is.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The peer asked for.
        peer: SocketAddr,
        /// The rule that refuses it.
        denial: Denial,
    },
    /// An authenticated client asked for a channel number of RFC 5766 that RFC 8656 §12 does not allow.
    Rfc5766Channel {
        /// Whose allocation it is.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The number asked for.
        number: u16,
    },
    /// An authenticated client was sent to another server in place of being given an allocation.
    AllocationRedirected {
        /// Who asked.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The alternate server of the client's family.
        server: SocketAddr,
        /// Why.
        cause: RedirectCause,
    },
    /// An authenticated client is given no allocation, for a reason that is none of the limits.
    AllocationRefused {
        /// Who asked.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// Why, and what to do if there is anything.
        reason: &'static str,
    },
    /// An authenticated client has run into a limit. Of data that is dropped this is told once a minute for each
    /// allocation and limit.
    LimitReached {
        /// Who asked, or whose allocation it is.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The limit.
        limit: Limit,
    },
}

/// Why a client is sent to another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectCause {
    /// Because every client is.
    Always,
    /// Because of what would have been an [`Event::LimitReached`].
    Limit(Limit),
    /// Because of what would have been an [`Event::AllocationRefused`], with its `reason`.
    Refused(&'static str),
}

impl fmt::Display for RedirectCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("alternate.when is always"),
            Self::Limit(limit) => write!(f, "{} ({})", limit.cause(), limit.setting()),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

/// Why credentials do not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthCause {
    /// They are not right.
    Failure(AuthFailure),
    /// They were right until so many seconds ago.
    Expired {
        /// Seconds since the expiry.
        ago: u64,
    },
}

impl fmt::Display for AuthCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failure(failure) => failure.fmt(f),
            Self::Expired { ago } => write!(
                f,
                "the credential expired {} ago (if it should not have, compare the clocks of the application and of \
                 this machine)",
                HumanSeconds(*ago)
            ),
        }
    }
}

/// An allocation's life, told at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationSummary {
    /// Whose it was.
    pub user: String,
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    /// The relayed transport addresses that the client was told.
    pub relay: RelayedAddresses,
    /// From the Allocate request to the end.
    pub duration: Duration,
    /// Application data relayed from the client, in bytes.
    pub bytes_to_peers: u64,
    /// Application data relayed to the client, in bytes.
    pub bytes_to_client: u64,
    /// What ended it.
    pub reason: EndReason,
}

/// What ended an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The client asked for a lifetime of zero (RFC 8656 §8.2).
    Deleted,
    /// Its time-to-expiry reached zero.
    Expired,
    /// The client's connection is gone.
    ConnectionClosed,
    /// The server is stopping.
    ServerStopped,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deleted => "deleted by the client",
            Self::Expired => "expired",
            Self::ConnectionClosed => "the connection was closed",
            Self::ServerStopped => "the server stopped",
        })
    }
}
