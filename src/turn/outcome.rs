//! What became of a packet: every one ends in exactly one [`Outcome`], and is counted under it.

use std::fmt;

use crate::stun::{ErrorCode, Method};
use crate::turn::limit::Limit;

/// The one end of a packet. The same words serve in logs, counters and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Sent on from a client to a peer.
    RelayedToPeer,
    /// Sent on from a peer to a client.
    RelayedToClient,
    /// An ICMP error that a client was told of (RFC 8656 §11.5).
    RelayedIcmp,
    /// A request that got a success response.
    Answered(Method),
    /// A request that got an error response, but for those below.
    Rejected(ErrorCode),
    /// A request that got an error response (486 or 508) because a limit is reached.
    Refused(Limit),
    /// A packet that got silence.
    Dropped(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a packet got silence.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in logs and counters.
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
    /// A FINGERPRINT that does not match (RFC 8489 §6.3).
    WrongFingerprint = "wrong-fingerprint",
    /// A response; a server asks nothing.
    UnexpectedResponse = "unexpected-response",
    /// A method that this server does not serve, or not in this class (RFC 8489 §6.3).
    UnsupportedMethod = "unsupported-method",
    /// A Binding indication: a keep-alive, which is never answered.
    Keepalive = "keepalive",
    /// A client transport address that nothing can be sent to.
    UnusableSource = "unusable-source",
    /// A request from a source that has not shown that it receives answers, and has got many.
    ReplyLimit = "reply-limit",
    /// A datagram longer than the receive buffer.
    Truncated = "truncated",
    /// An indication or ChannelData on a 5-tuple that has no allocation (RFC 8656 §5).
    NoAllocation = "no-allocation",
    /// A repeated Allocate request whose first copy is still being worked on.
    AllocationPending = "allocation-pending",
    /// ChannelData whose length field exceeds the datagram (RFC 8656 §12.6).
    MalformedChannelData = "malformed-channel-data",
    /// ChannelData on a channel that is not bound (RFC 8656 §12.6).
    ChannelNotBound = "channel-not-bound",
    /// A Send indication without a valid XOR-PEER-ADDRESS and DATA, or with attributes that must be understood.
    MalformedIndication = "malformed-indication",
    /// A Send indication for a peer, or a datagram from or an ICMP error about one, without a permission (RFC 8656 §9).
    NoPermission = "no-permission",
    /// A peer that the peer policy does not admit.
    PeerForbidden = "peer-forbidden",
    /// A datagram, or an ICMP error, on a relay socket whose allocation has ended.
    AllocationEnded = "allocation-ended",
    /// Application data beyond what the allocation may have relayed in a second.
    AllocationBandwidth = "allocation-bandwidth",
    /// Application data beyond what the user may have relayed in a second.
    UserBandwidth = "user-bandwidth",
    /// An ICMP error of a type that clients are not told (RFC 8656 §11.5).
    IcmpType = "icmp-type",
    /// An ICMP error on an allocation whose client has been told of many in this second.
    IcmpLimit = "icmp-limit",
    /// Data that does not fit into a message to the client.
    TooLarge = "too-large",
    /// The kernel dropped it, because the socket's receive buffer was full.
    ReceiveBufferFull = "receive-buffer-full",
    /// The socket's send buffer was full.
    SendBufferFull = "send-buffer-full",
    /// The kernel refused to send.
    SendFailed = "send-failed",
}

const METHODS: [Method; 5] =
    [Method::BINDING, Method::ALLOCATE, Method::REFRESH, Method::CREATE_PERMISSION, Method::CHANNEL_BIND];

const CODES: [ErrorCode; 13] = [
    ErrorCode::TRY_ALTERNATE,
    ErrorCode::BAD_REQUEST,
    ErrorCode::UNAUTHENTICATED,
    ErrorCode::FORBIDDEN,
    ErrorCode::UNKNOWN_ATTRIBUTE,
    ErrorCode::ALLOCATION_MISMATCH,
    ErrorCode::STALE_NONCE,
    ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED,
    ErrorCode::WRONG_CREDENTIALS,
    ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL,
    ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH,
    ErrorCode::ALLOCATION_QUOTA_REACHED,
    ErrorCode::INSUFFICIENT_CAPACITY,
];

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RelayedToPeer => f.write_str("relayed-to-peer"),
            Self::RelayedToClient => f.write_str("relayed-to-client"),
            Self::RelayedIcmp => f.write_str("relayed-icmp"),
            Self::Answered(method) => write!(f, "answered {method}"),
            Self::Rejected(code) => write!(f, "rejected {}", code.code()),
            Self::Refused(limit) => write!(f, "refused {}", limit.label()),
            Self::Dropped(reason) => write!(f, "dropped {}", reason.label()),
        }
    }
}

/// How many packets had which outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    relayed_to_peer: u64,
    relayed_to_client: u64,
    relayed_icmp: u64,
    answered: [u64; METHODS.len()],
    rejected: [u64; CODES.len()],
    refused: [u64; Limit::ALL.len()],
    dropped: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Counts one packet.
    pub fn count(&mut self, outcome: Outcome) {
        if let Some(counter) = self.counter_mut(outcome) {
            *counter += 1;
        }
    }

    /// How many packets had `outcome`.
    #[must_use]
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.clone().counter_mut(outcome).map_or(0, |counter| *counter)
    }

    /// Every outcome that occurred, with its count.
    pub fn occurred(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        let relayed = [
            (Outcome::RelayedToPeer, self.relayed_to_peer),
            (Outcome::RelayedToClient, self.relayed_to_client),
            (Outcome::RelayedIcmp, self.relayed_icmp),
        ];
        let answered = METHODS.into_iter().map(Outcome::Answered).zip(self.answered);
        let rejected = CODES.into_iter().map(Outcome::Rejected).zip(self.rejected);
        let refused = Limit::ALL.iter().copied().map(Outcome::Refused).zip(self.refused);
        let dropped = DropReason::ALL.iter().copied().map(Outcome::Dropped).zip(self.dropped);
        relayed
            .into_iter()
            .chain(answered)
            .chain(rejected)
            .chain(refused)
            .chain(dropped)
            .filter(|(_, count)| *count > 0)
    }

    /// All packets.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.occurred().map(|(_, count)| count).sum()
    }

    /// Adds the counts of another worker.
    pub fn add(&mut self, other: &Self) {
        for (outcome, count) in other.occurred() {
            if let Some(counter) = self.counter_mut(outcome) {
                *counter += count;
            }
        }
    }

    /// `None` for an answer or a rejection that no handler gives.
    fn counter_mut(&mut self, outcome: Outcome) -> Option<&mut u64> {
        match outcome {
            Outcome::RelayedToPeer => Some(&mut self.relayed_to_peer),
            Outcome::RelayedToClient => Some(&mut self.relayed_to_client),
            Outcome::RelayedIcmp => Some(&mut self.relayed_icmp),
            Outcome::Answered(method) => self.answered.get_mut(METHODS.iter().position(|known| *known == method)?),
            Outcome::Rejected(code) => self.rejected.get_mut(CODES.iter().position(|known| *known == code)?),
            Outcome::Refused(limit) => self.refused.get_mut(limit as usize),
            Outcome::Dropped(reason) => self.dropped.get_mut(reason as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_has_a_counter_and_a_name_of_its_own() {
        let mut counters = Counters::default();
        let outcomes: Vec<Outcome> = [Outcome::RelayedToPeer, Outcome::RelayedToClient, Outcome::RelayedIcmp]
            .into_iter()
            .chain(METHODS.map(Outcome::Answered))
            .chain(CODES.map(Outcome::Rejected))
            .chain(Limit::ALL.iter().copied().map(Outcome::Refused))
            .chain(DropReason::ALL.iter().copied().map(Outcome::Dropped))
            .collect();
        for outcome in &outcomes {
            counters.count(*outcome);
            assert_eq!(counters.get(*outcome), 1);
        }
        assert_eq!(counters.total(), outcomes.len() as u64);
        assert_eq!(outcomes.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len(), outcomes.len());
    }
}
