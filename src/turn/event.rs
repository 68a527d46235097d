//! The log entries about clients and allocations.

use std::fmt;
use std::net::SocketAddr;
use std::ops::AddAssign;
use std::time::Duration;

use super::contract::{AllocationId, FiveTuple, RelayedAddresses};
use super::limit::Limit;
use super::shared::policy::Denial;
use super::shared::sources::Waiting;
use crate::auth::time_limited::Reading;
use crate::auth::{AuthFailure, HumanSeconds};
use crate::setting::ALTERNATE_WHEN;

/// An event for the operator's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An allocation was created.
    AllocationCreated {
        /// The allocation.
        id: AllocationId,
        /// The user.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The advertised relayed transport addresses.
        relay: RelayedAddresses,
        /// The time-to-expiry in seconds.
        lifetime: u32,
    },
    /// An allocation was refreshed. Only if [`Snapshot::refresh_events`] is set.
    ///
    /// [`Snapshot::refresh_events`]: crate::turn::Snapshot::refresh_events
    AllocationRefreshed {
        /// The allocation.
        id: AllocationId,
        /// The user.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The time-to-expiry in seconds; 0 if the client deletes the allocation, or one of its relayed transport
        /// addresses.
        lifetime: u32,
    },
    /// An allocation ended.
    AllocationEnded(Box<AllocationSummary>),
    /// A client with a valid nonce sent credentials that are not valid.
    AuthenticationFailed {
        /// The open allocation of the 5-tuple, if it has one.
        id: Option<AllocationId>,
        /// The USERNAME of the request.
        username: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// Why they are not valid.
        cause: AuthCause,
    },
    /// A request was dropped without a check of its credentials, because its source has failed to authenticate too
    /// often.
    SourceWaits {
        /// The open allocation of the 5-tuple, if it has one.
        id: Option<AllocationId>,
        /// The USERNAME of the request.
        username: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// What has to wait.
        waiting: Waiting,
    },
    /// An authenticated client requested a peer that the policy denies.
    PeerDenied {
        /// The allocation.
        id: AllocationId,
        /// The user.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The requested peer.
        peer: SocketAddr,
        /// The rule that denies it.
        denial: Denial,
    },
    /// An authenticated client requested a channel number of RFC 5766 that RFC 8656 §12 does not allow.
    Rfc5766Channel {
        /// The allocation.
        id: AllocationId,
        /// The user.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The requested channel number.
        number: u16,
    },
    /// An authenticated client was redirected to another server.
    AllocationRedirected {
        /// The user.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The alternate server of the client's address family.
        server: SocketAddr,
        /// Why.
        cause: RedirectCause,
    },
    /// The allocation of an authenticated client was rejected for a reason other than a limit.
    AllocationRejected {
        /// The user.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// Why, and what the operator can do about it, if anything.
        reason: &'static str,
    },
    /// An authenticated client reached a limit. For dropped data this event occurs once a minute for each allocation
    /// and limit.
    LimitReached {
        /// The allocation; `None` for a limit on allocations.
        id: Option<AllocationId>,
        /// The user.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The limit.
        limit: Limit,
    },
    /// The configuration denies peers of an allocation, or no longer accepts some of its channel numbers. The affected
    /// permissions and channels were removed.
    PeersRevoked {
        /// The allocation.
        id: AllocationId,
        /// The user.
        user: String,
        /// The client's 5-tuple.
        tuple: FiveTuple,
        /// The number of permissions that were removed.
        permissions: usize,
        /// The number of channels that were removed.
        channels: usize,
    },
}

/// Why a client is redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectCause {
    /// `alternate.when` is `always`.
    Always,
    /// The client reached a limit. The redirect is logged in place of an [`Event::LimitReached`].
    Limit(Limit),
    /// Without the redirect, the allocation would be rejected for this reason. The redirect is logged in place of an
    /// [`Event::AllocationRejected`].
    Rejected(&'static str),
}

impl fmt::Display for RedirectCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => write!(f, "{ALTERNATE_WHEN} is always"),
            Self::Limit(limit) => write!(f, "{} ({})", limit.cause(), limit.setting()),
            Self::Rejected(reason) => f.write_str(reason),
        }
    }
}

/// Why credentials are not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthCause {
    /// They are wrong.
    Failure(AuthFailure),
    /// They have expired.
    Expired {
        /// Seconds since the expiry.
        ago: u64,
        /// Which part of the username was read as the expiry.
        reading: Reading,
    },
}

impl AuthCause {
    /// The name of each cause in metrics, in the order of [`index`](Self::index).
    pub const LABELS: [&'static str; 10] = [
        "unknown-user",
        "unknown-userhash",
        "expiry-in-milliseconds",
        "no-secret",
        "wrong-password",
        "wrong-secret",
        "wrong-secret-and-expired",
        "expired",
        "revoked",
        "database-unavailable",
    ];

    /// Returns the place of the cause in an array of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Failure(AuthFailure::UnknownUser | AuthFailure::UnknownToDatabase) => 0,
            Self::Failure(AuthFailure::UnknownUserhash) => 1,
            Self::Failure(AuthFailure::ExpiryInMilliseconds { .. }) => 2,
            Self::Failure(AuthFailure::NoSecret) => 3,
            Self::Failure(AuthFailure::WrongPassword | AuthFailure::WrongDatabaseKey) => 4,
            Self::Failure(AuthFailure::WrongSecret { .. }) => 5,
            Self::Failure(AuthFailure::WrongSecretAndExpired { .. }) => 6,
            Self::Expired { .. } => 7,
            Self::Failure(AuthFailure::Revoked) => 8,
            Self::Failure(AuthFailure::DatabaseUnavailable) => 9,
        }
    }
}

impl fmt::Display for AuthCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failure(failure) => failure.fmt(f),
            Self::Expired { ago, reading } => write!(
                f,
                "the credential expired {} ago (if it should still be valid, compare the clocks of the application and of \
                 this machine){reading}",
                HumanSeconds(*ago)
            ),
        }
    }
}

/// The summary of an allocation that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationSummary {
    /// The allocation.
    pub id: AllocationId,
    /// The user.
    pub user: String,
    /// The client's 5-tuple.
    pub tuple: FiveTuple,
    /// The advertised relayed transport addresses.
    pub relay: RelayedAddresses,
    /// The time from the Allocate request to the end.
    pub duration: Duration,
    /// The relayed traffic.
    pub traffic: Traffic,
    /// Why it ended.
    pub reason: EndReason,
}

/// The packets and bytes of application data that were relayed, that is, sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets from the client to its peers.
    pub packets_to_peers: u64,
    /// Bytes from the client to its peers.
    pub bytes_to_peers: u64,
    /// Packets from peers to the client.
    pub packets_to_client: u64,
    /// Bytes from peers to the client.
    pub bytes_to_client: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.packets_to_peers += other.packets_to_peers;
        self.bytes_to_peers += other.bytes_to_peers;
        self.packets_to_client += other.packets_to_client;
        self.bytes_to_client += other.bytes_to_client;
    }
}

/// Why an allocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The client requested a lifetime of zero (RFC 8656 §8.2).
    Deleted,
    /// Its time-to-expiry reached zero.
    Expired,
    /// The client's connection was closed.
    ConnectionClosed,
    /// The server stopped.
    ServerStopped,
    /// The operator revoked its username.
    CredentialsRevoked,
    /// Its client refreshed it with credentials that a new configuration does not have.
    CredentialsRemoved,
    /// A new configuration does not have the listener of its client, or another one serves its client.
    ListenerRemoved,
    /// The server does not have its relay address any more.
    RelayAddressGone,
    /// The operator ended it.
    EndedByOperator(Operator),
}

/// Who sent a command of the operator: a process of this machine, or the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The process ID, if the kernel knows it.
    pub process: Option<i32>,
    /// The user ID of the process; `None` for the fleet.
    pub user: Option<u32>,
}

impl Operator {
    /// An order over the fleet.
    pub const FLEET: Self = Self { process: None, user: None };
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.process, self.user) {
            (_, None) => f.write_str("over the fleet"),
            (Some(process), Some(user)) => write!(f, "process {process} of user {user}"),
            (None, Some(user)) => write!(f, "a process of user {user}"),
        }
    }
}

impl EndReason {
    /// Returns the name of the reason for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::ConnectionClosed => "connection-closed",
            Self::ServerStopped => "server-stopped",
            Self::CredentialsRevoked => "credentials-revoked",
            Self::CredentialsRemoved => "credentials-removed",
            Self::ListenerRemoved => "listener-removed",
            Self::RelayAddressGone => "relay-address-gone",
            Self::EndedByOperator(_) => "ended-by-operator",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndedByOperator(operator) => return write!(f, "ended by the operator ({operator})"),
            Self::Deleted => "deleted by the client",
            Self::Expired => "expired",
            Self::ConnectionClosed => "the connection was closed",
            Self::ServerStopped => "the server stopped",
            Self::CredentialsRevoked => "the credentials were revoked",
            Self::CredentialsRemoved => "the configuration no longer has the credentials",
            Self::ListenerRemoved => "the configuration no longer has the listener, or another one serves the client",
            Self::RelayAddressGone => "the relay address has gone",
        })
    }
}
