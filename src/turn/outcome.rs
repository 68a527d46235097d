//! What happened to a packet: each packet has exactly one [`Outcome`] and is counted under it.

use std::fmt;

use crate::stun::Method;
use crate::turn::limit::Limit;
use crate::turn::protocol::rejection::RejectionCode;
use crate::turn::protocol::request_method::RequestMethod;

/// What happened to a packet. Logs, counters and tests use the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Relayed from a client to a peer.
    RelayedToPeer,
    /// Relayed from a peer to a client.
    RelayedToClient,
    /// An ICMP error that was passed on to a client (RFC 8656 §11.5).
    RelayedIcmp,
    /// A request that got a success response.
    Answered(RequestMethod),
    /// A request that got an error response for a reason other than a limit.
    Rejected(RejectionCode),
    /// A request that got an error response (486 or 508) because a limit is reached.
    RejectedByLimit(Limit),
    /// A packet without a response.
    Dropped(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the name in logs and counters.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// Neither STUN nor ChannelData by its first byte (RFC 8656 §12, Table 3).
    UnknownProtocol = "unknown-protocol",
    /// A STUN header or an attribute list that RFC 8489 §5 does not allow.
    MalformedStun = "malformed-stun",
    /// A message with more attributes than any client needs.
    TooManyAttributes = "too-many-attributes",
    /// A FINGERPRINT that does not match (RFC 8489 §6.3).
    WrongFingerprint = "wrong-fingerprint",
    /// A STUN response, although the server sends no requests.
    UnexpectedResponse = "unexpected-response",
    /// A method that this server does not serve in this class (RFC 8489 §6.3).
    UnsupportedMethod = "unsupported-method",
    /// A Binding indication: a keep-alive without a response.
    Keepalive = "keepalive",
    /// A client transport address that cannot be sent to.
    UnusableSource = "unusable-source",
    /// A request that gets no response, because its source has had as many responses as the rate limit allows.
    ResponseLimit = "response-limit",
    /// A request from a source that has proved nothing, while the worker has sent as many responses to such sources as
    /// leave it time for data.
    ResponseBudget = "response-budget",
    /// A request without credentials over UDP that no client sends first: anything but an Allocate request with
    /// REQUESTED-TRANSPORT.
    NoCredentials = "no-credentials",
    /// A request with credentials from a source that has failed to authenticate too often.
    FailedAuthentications = "failed-authentications",
    /// A retransmitted request whose first copy waits for the user database.
    LookupPending = "lookup-pending",
    /// A request of a user that is not known, from a source that has caused as many look-ups in the user database as it
    /// may.
    LookupLimit = "lookup-limit",
    /// A request that waited for the user database when its connection, the database's configuration or the server ended.
    LookupAbandoned = "lookup-abandoned",
    /// A datagram longer than the receive buffer.
    Truncated = "truncated",
    /// An indication or ChannelData on a 5-tuple that has no allocation (RFC 8656 §5).
    NoAllocation = "no-allocation",
    /// A retransmitted Allocate request whose first copy is still being processed.
    AllocationPending = "allocation-pending",
    /// ChannelData whose length field exceeds the datagram (RFC 8656 §12.6).
    MalformedChannelData = "malformed-channel-data",
    /// ChannelData on a channel that is not bound (RFC 8656 §12.6).
    ChannelNotBound = "channel-not-bound",
    /// A Send indication without a valid XOR-PEER-ADDRESS and DATA, or with unknown comprehension-required attributes.
    MalformedIndication = "malformed-indication",
    /// A Send indication for a peer without a permission, a datagram from one, or an ICMP error about one (RFC 8656
    /// §9).
    NoPermission = "no-permission",
    /// Application data that is a TURN message. It could make a packet circle between two servers.
    RelayedTurn = "relayed-turn",
    /// A TURN request from a relayed transport address, or from a UDP listener, of this server.
    RelayedClient = "relayed-client",
    /// A datagram whose TTL or Hop Limit has run out: it arrived with 1 or 0. Relaying lowers it, like a router.
    HopLimit = "hop-limit",
    /// A peer that the peer policy denies.
    PeerForbidden = "peer-forbidden",
    /// A datagram, or an ICMP error, on a relay socket whose allocation has ended, or data that waited for its client.
    AllocationEnded = "allocation-ended",
    /// Application data above the rate limit of the allocation.
    AllocationBandwidth = "allocation-bandwidth",
    /// Application data above the rate limit of the user.
    UserBandwidth = "user-bandwidth",
    /// Application data above the limit of a test link.
    TestLinkBytes = "test-link-bytes",
    /// An ICMP error of a type that is not passed on to clients (RFC 8656 §11.5).
    IcmpType = "icmp-type",
    /// An ICMP error that is not passed on to this client (`compat.icmp-indications`).
    IcmpWithheld = "icmp-withheld",
    /// An ICMP error above the rate limit of the allocation.
    IcmpLimit = "icmp-limit",
    /// Data that does not fit into a message to the client.
    TooLarge = "too-large",
    /// The kernel dropped it, because the socket's receive buffer was full.
    ReceiveBufferFull = "receive-buffer-full",
    /// The socket's send buffer was full, or too much relayed data waited for a client on a connection, or for all of
    /// them.
    SendBufferFull = "send-buffer-full",
    /// Relayed data that waited too long for a client on a connection.
    Outdated = "outdated",
    /// A datagram of a proxy without a PROXY header, while none has named its client.
    ProxyHeaderMissing = "proxy-header-missing",
    /// A datagram of a proxy whose PROXY header is not valid.
    ProxyHeaderMalformed = "proxy-header-malformed",
    /// A datagram with a PROXY header from a source that is not a proxy.
    ProxyHeaderUnexpected = "proxy-header-unexpected",
    /// A PROXY header without a packet. It names the client of the datagrams that follow.
    ProxyHeaderAlone = "proxy-header-alone",
    /// A datagram with the 5-tuple of another client: one of the two is behind a proxy.
    ProxyConflict = "proxy-conflict",
    /// A datagram of a proxy for a further client, while there are as many as a worker keeps.
    TooManyProxied = "too-many-proxied",
    /// Data for a client behind a proxy that sends for another client from the same address, until a header names the
    /// client again.
    ProxyPathLost = "proxy-path-lost",
    /// The kernel failed to send.
    SendFailed = "send-failed",
}

impl Outcome {
    /// The number of outcomes.
    pub const COUNT: usize =
        3 + RequestMethod::ALL.len() + RejectionCode::ALL.len() + Limit::ALL.len() + DropReason::ALL.len();

    /// Returns every outcome, in the order of their indices.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::RelayedToPeer, Self::RelayedToClient, Self::RelayedIcmp]
            .into_iter()
            .chain(RequestMethod::ALL.iter().copied().map(Self::Answered))
            .chain(RejectionCode::ALL.iter().copied().map(Self::Rejected))
            .chain(Limit::ALL.iter().copied().map(Self::RejectedByLimit))
            .chain(DropReason::ALL.iter().copied().map(Self::Dropped))
    }

    /// Whether a packet can have this outcome. Data above a limit is dropped and not rejected, and 486 is always due to a
    /// limit.
    #[must_use]
    pub const fn is_possible(self) -> bool {
        match self {
            Self::Rejected(code) => !matches!(code, RejectionCode::AllocationQuotaReached),
            Self::RejectedByLimit(limit) => !limit.drops_data(),
            _ => true,
        }
    }

    /// Returns whether the packet was rejected or dropped.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Rejected(_) | Self::RejectedByLimit(_) | Self::Dropped(_))
    }

    /// Returns the place of the outcome in an array of [`COUNT`](Self::COUNT) counters.
    #[must_use]
    pub const fn index(self) -> usize {
        const ANSWERED: usize = 3;
        const REJECTED: usize = ANSWERED + RequestMethod::ALL.len();
        const BY_LIMIT: usize = REJECTED + RejectionCode::ALL.len();
        const DROPPED: usize = BY_LIMIT + Limit::ALL.len();
        match self {
            Self::RelayedToPeer => 0,
            Self::RelayedToClient => 1,
            Self::RelayedIcmp => 2,
            Self::Answered(method) => ANSWERED + method as usize,
            Self::Rejected(code) => REJECTED + code as usize,
            Self::RejectedByLimit(limit) => BY_LIMIT + limit as usize,
            Self::Dropped(reason) => DROPPED + reason as usize,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RelayedToPeer => f.write_str("relayed-to-peer"),
            Self::RelayedToClient => f.write_str("relayed-to-client"),
            Self::RelayedIcmp => f.write_str("relayed-icmp"),
            Self::Answered(method) => write!(f, "answered {}", Method::from(*method)),
            Self::Rejected(code) => write!(f, "rejected {code}"),
            Self::RejectedByLimit(limit) => write!(f, "rejected {} {}", limit.code(), limit.label()),
            Self::Dropped(reason) => write!(f, "dropped {}", reason.label()),
        }
    }
}

/// The number of packets by outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters([u64; Outcome::COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; Outcome::COUNT])
    }
}

impl From<[u64; Outcome::COUNT]> for Counters {
    /// The counts are in the order of [`Outcome::index`].
    fn from(counts: [u64; Outcome::COUNT]) -> Self {
        Self(counts)
    }
}

impl Counters {
    /// Counts one packet.
    #[expect(clippy::indexing_slicing, reason = "every index of an outcome is below COUNT, see the test")]
    pub fn count(&mut self, outcome: Outcome) {
        self.0[outcome.index()] += 1;
    }

    /// Returns the number of packets with `outcome`.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "every index of an outcome is below COUNT, see the test")]
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.0[outcome.index()]
    }

    /// Returns every outcome that occurred, with its count.
    pub fn occurred(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        Outcome::all().zip(self.0).filter(|(_, count)| *count > 0)
    }

    /// Returns the number of all packets.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds the counts of another worker.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, other)| *count += other);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_has_a_counter_and_a_name_of_its_own() {
        let mut counters = Counters::default();
        for (index, outcome) in Outcome::all().enumerate() {
            assert_eq!(outcome.index(), index);
            counters.count(outcome);
            assert_eq!(counters.get(outcome), 1);
        }
        assert_eq!(counters.total(), Outcome::COUNT as u64);
        assert_eq!(Outcome::all().map(|outcome| outcome.to_string()).collect::<BTreeSet<_>>().len(), Outcome::COUNT);
    }
}
