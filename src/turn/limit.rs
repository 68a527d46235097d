//! The limits that a client can run into: how each is called, which setting is behind it, and what the client and the
//! operator are told.

use crate::stun::ErrorCode;
use crate::turn::contract::{Action, Event, FiveTuple};

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $setting:literal, $reason:literal,
        $what:literal: $cause:literal;)+) => {
        /// A limit that keeps a client from what it asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Limit {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Limit {
            /// Every limit.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in counters.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }

            /// The setting to be changed by an operator who wants to allow more.
            #[must_use]
            pub fn setting(self) -> &'static str {
                match self {
                    $(Self::$name => $setting,)+
                }
            }

            /// What an operator is told: what happens, and why.
            #[must_use]
            pub fn note(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($what, ": ", $cause),)+
                }
            }

            /// The part of the note that says why, and what to do if there is anything.
            #[must_use]
            pub fn cause(self) -> &'static str {
                match self {
                    $(Self::$name => $cause,)+
                }
            }

            /// The reason phrase of the answer, in which a client's developer learns which limit it was.
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
    AllocationsPerUser = "allocations-per-user", "limits.allocations-per-user",
        "Allocation Quota Reached",
        "allocation refused": "the user has as many allocations as this limit allows";
    /// The user makes allocations faster than one user may.
    AllocationRate = "allocation-rate", "limits.allocations-per-second-per-user",
        "Allocation Quota Reached: allocations per second",
        "allocation refused": "the user makes allocations faster than this limit allows";
    /// The server has as many allocations as it may have.
    Allocations = "allocations", "limits.allocations",
        "Insufficient Capacity: allocations",
        "allocation refused": "the server has as many allocations as this limit allows";
    /// Every relay port is taken.
    RelayPorts = "relay-ports", "relay.ports",
        "Insufficient Capacity: relay ports",
        "allocation refused": "no relay port is free: widen relay.ports";
    /// Every relay port is taken, and some of them by other programs.
    PortsInUse = "ports-in-use", "relay.ports",
        "Insufficient Capacity: relay ports",
        "allocation refused": "no relay port is free, and other programs have some of them: give this server relay.ports \
         of its own; ports that others had are tried again after a minute";
    /// The kernel refuses to open a relay socket.
    Sockets = "sockets", "LimitNOFILE",
        "Insufficient Capacity: sockets",
        "allocation refused": "the kernel refuses another relay socket: raise the limit of open files (LimitNOFILE), or \
         see whether the relay address is still on this machine";
    /// The allocation has as many permissions as it may have.
    Permissions = "permissions", "limits.permissions-per-allocation",
        "Insufficient Capacity: permissions",
        "permission refused": "the allocation has as many permissions as this limit allows";
    /// The allocation has as many channels as it may have.
    Channels = "channels", "limits.channels-per-allocation",
        "Insufficient Capacity: channels",
        "channel refused": "the allocation has as many channels as this limit allows";
    /// The allocation asks for new peer addresses faster than it may.
    PeerRate = "peer-rate", "limits.peers-per-second",
        "Insufficient Capacity: new peers per second",
        "permission refused": "the allocation asks for new peers faster than this limit allows";
    /// More application data passes an allocation in one direction than may.
    AllocationBandwidth = "allocation-bandwidth", "limits.bytes-per-second-per-allocation",
        "Insufficient Capacity: bytes per second of an allocation",
        "data dropped": "more passes this allocation than this limit allows";
    /// More application data passes the allocations of one user in one direction than may.
    UserBandwidth = "user-bandwidth", "limits.bytes-per-second-per-user",
        "Insufficient Capacity: bytes per second of a user",
        "data dropped": "more passes the allocations of this user than this limit allows";
}

impl Limit {
    /// The code of the answer to a request that meets with it: 486 for what the user has too much of (RFC 8656 §7.2 step
    /// 10), or else 508.
    #[must_use]
    pub fn code(self) -> ErrorCode {
        match self {
            Self::AllocationsPerUser | Self::AllocationRate => ErrorCode::ALLOCATION_QUOTA_REACHED,
            _ => ErrorCode::INSUFFICIENT_CAPACITY,
        }
    }

    /// The note for the log that a client has met with it.
    pub(crate) fn reached(self, user: &str, tuple: FiveTuple) -> Action {
        Action::Log(Event::LimitReached { user: user.to_owned(), tuple, limit: self })
    }
}
