//! The limits that a client can reach: their names, their settings, and the texts for the client and the log.

use crate::setting;
use crate::turn::contract::{Action, AllocationId, FiveTuple};
use crate::turn::event::Event;
use crate::turn::protocol::rejection::RejectionCode;

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $setting:expr, $reason:literal,
        $what:literal: $cause:literal;)+) => {
        /// A limit that a request or data can reach.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Limit {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Limit {
            /// Every limit.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the name in counters.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }

            /// Returns the setting that raises the limit.
            #[must_use]
            pub fn setting(self) -> &'static str {
                match self {
                    $(Self::$name => $setting,)+
                }
            }

            /// Returns the text for the log: what happened, and why.
            #[must_use]
            pub fn note(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($what, ": ", $cause),)+
                }
            }

            /// Returns the second part of the note: why, and what to do.
            #[must_use]
            pub fn cause(self) -> &'static str {
                match self {
                    $(Self::$name => $cause,)+
                }
            }

            /// Returns the reason phrase of the response, which names the limit for a client's developer.
            pub(crate) fn reason(self) -> &'static str {
                match self {
                    $(Self::$name => $reason,)+
                }
            }
        }
    };
}

limits! {
    /// The user has as many allocations as one user may have.
    AllocationsPerUser = "allocations-per-user", setting::ALLOCATIONS_PER_USER,
        "Allocation Quota Reached",
        "allocation rejected": "the user has as many allocations as this limit allows";
    /// The static user has as many allocations as its own limit allows.
    AllocationsOfStaticUser = "allocations-of-static-user", setting::STATIC_USER_ALLOCATIONS,
        "Allocation Quota Reached",
        "allocation rejected": "the static user has as many allocations as its own limit allows";
    /// The user makes allocations faster than allowed.
    AllocationRate = "allocation-rate", setting::ALLOCATIONS_PER_SECOND_PER_USER,
        "Allocation Quota Reached: allocations per second",
        "allocation rejected": "the user makes allocations faster than this limit allows";
    /// The server has as many allocations as it may have.
    Allocations = "allocations", setting::ALLOCATIONS,
        "Insufficient Capacity: allocations",
        "allocation rejected": "the server has as many allocations as this limit allows";
    /// Every relay port is taken.
    RelayPorts = "relay-ports", setting::RELAY_PORTS,
        "Insufficient Capacity: relay ports",
        "allocation rejected": "no relay port of the server is free: widen the range";
    /// Every relay port is taken, some of them by other programs.
    PortsInUse = "ports-in-use", setting::RELAY_PORTS,
        "Insufficient Capacity: relay ports",
        "allocation rejected": "no free relay port was found, and other programs use some of them: give this server a \
         range of its own; ports in use are retried after a minute";
    /// The kernel cannot open a relay socket.
    Sockets = "sockets", setting::OPEN_FILES,
        "Insufficient Capacity: sockets",
        "allocation rejected": "the kernel cannot open another relay socket: raise the limit of open files, unless \
         the log has another error of a relay socket";
    /// This machine no longer has the relay address.
    RelayAddress = "relay-address", setting::RELAY_ADDRESSES,
        "Insufficient Capacity: relay address",
        "allocation rejected": "this machine does not have the relay address at present. The server uses another one, \
         or this one again, as soon as it can";
    /// The allocation has as many permissions as it may have.
    Permissions = "permissions", setting::PERMISSIONS_PER_ALLOCATION,
        "Insufficient Capacity: permissions",
        "permission rejected": "the allocation has as many permissions as this limit allows";
    /// The allocation has as many channels as it may have.
    Channels = "channels", setting::CHANNELS_PER_ALLOCATION,
        "Insufficient Capacity: channels",
        "channel rejected": "the allocation has as many channels as this limit allows";
    /// The allocation requests new peer addresses faster than allowed.
    PeerRate = "peer-rate", setting::PEERS_PER_SECOND,
        "Insufficient Capacity: new peers per second",
        "permission rejected": "the allocation requests new peers faster than this limit allows";
    /// An allocation relays more application data in one direction than allowed.
    AllocationBandwidth = "allocation-bandwidth", setting::BYTES_PER_SECOND_PER_ALLOCATION,
        "Insufficient Capacity: bytes per second of an allocation",
        "data dropped": "this allocation relays more than this limit allows";
    /// The allocations of one user relay more application data in one direction than allowed.
    UserBandwidth = "user-bandwidth", setting::BYTES_PER_SECOND_PER_USER,
        "Insufficient Capacity: bytes per second of a user",
        "data dropped": "the allocations of this user relay more than this limit allows";
}

impl Limit {
    /// Returns the code of the error response: 486 for a limit on the allocations of a user (RFC 8656 §7.2 step 10),
    /// else 508.
    #[must_use]
    pub const fn code(self) -> RejectionCode {
        match self {
            Self::AllocationsPerUser | Self::AllocationsOfStaticUser | Self::AllocationRate => {
                RejectionCode::AllocationQuotaReached
            }
            _ => RejectionCode::InsufficientCapacity,
        }
    }

    /// Whether data above the limit is dropped. The other limits reject requests.
    #[must_use]
    pub const fn drops_data(self) -> bool {
        matches!(self, Self::AllocationBandwidth | Self::UserBandwidth)
    }

    /// Returns the log entry for a client that has reached the limit, with its allocation if it has one.
    pub(crate) fn reached(self, id: Option<AllocationId>, user: &str, tuple: FiveTuple) -> Action {
        Action::Log(Event::LimitReached { id, user: user.to_owned(), tuple, limit: self })
    }
}
