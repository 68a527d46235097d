//! Why an allocation, or one of its two address families, cannot be made.

use crate::turn::contract::{Action, FiveTuple};
use crate::turn::event::{Event, RedirectCause};
use crate::turn::limit::Limit;
use crate::turn::protocol::rejection::Rejection;
use crate::turn::shared::alternate::RedirectWhen;

#[derive(Clone, Copy, Debug)]
pub(crate) enum AllocateFailure {
    Limit(Limit),
    /// No relay address has this address family.
    NoAddressOfFamily,
    /// The relay addresses of this address family are not usable at present.
    AddressGone,
    Draining,
    /// `alternate.when` is `always`. The request is rejected only if there is no alternate server for the client.
    AlwaysRedirected,
    /// The client has a Teredo or 6to4 address (RFC 8656 §21.4).
    Tunneled,
    ReservedPortInUse,
}

impl AllocateFailure {
    pub(crate) const NO_PORT: Self = Self::Limit(Limit::RelayPorts);

    pub(super) fn rejection(self) -> Rejection {
        match self {
            Self::Limit(limit) => Rejection::Limit(limit),
            Self::NoAddressOfFamily => Rejection::AddressFamilyNotSupported,
            Self::AddressGone => Rejection::InsufficientCapacity("Insufficient Capacity: relay address"),
            Self::Draining => Rejection::InsufficientCapacity("Server is shutting down"),
            Self::AlwaysRedirected => {
                Rejection::InsufficientCapacity("Insufficient Capacity: no server for this address family")
            }
            Self::Tunneled => Rejection::Forbidden,
            Self::ReservedPortInUse => NO_RESERVATION,
        }
    }

    /// Returns the condition under which the failure causes a redirect, and the cause for the log; `None` if it never
    /// does.
    pub(super) fn redirect(self) -> Option<(RedirectWhen, RedirectCause)> {
        match self {
            Self::Limit(
                limit @ (Limit::Allocations
                | Limit::RelayPorts
                | Limit::PortsInUse
                | Limit::Sockets
                | Limit::RelayAddress),
            ) => Some((RedirectWhen::Full, RedirectCause::Limit(limit))),
            Self::AddressGone => Some((RedirectWhen::Full, RedirectCause::Rejected(self.reason()))),
            Self::Draining => Some((RedirectWhen::Draining, RedirectCause::Rejected(self.reason()))),
            Self::AlwaysRedirected => Some((RedirectWhen::Always, RedirectCause::Always)),
            Self::Limit(_) | Self::NoAddressOfFamily | Self::Tunneled | Self::ReservedPortInUse => None,
        }
    }

    /// Returns the log entry.
    pub(super) fn log(self, user: &str, tuple: FiveTuple) -> Action {
        match self {
            Self::Limit(limit) => limit.reached(None, user, tuple),
            other => {
                let (user, reason) = (user.to_owned(), other.reason());
                Action::Log(Event::AllocationRejected { user, tuple, reason })
            }
        }
    }

    /// Returns the reason for the log.
    fn reason(self) -> &'static str {
        match self {
            Self::Limit(limit) => limit.cause(),
            Self::NoAddressOfFamily => "the server has no relay address of this address family",
            Self::AddressGone => {
                "this machine does not have a relay address of this address family at present. The server waits for one"
            }
            Self::Draining => "the server is shutting down and stops when its last allocation ends",
            Self::AlwaysRedirected => {
                "alternate.when is always, but there is no alternate server for the client's address family and transport"
            }
            Self::Tunneled => "the client has a Teredo or 6to4 address, which the server rejects (RFC 8656 §21.4)",
            Self::ReservedPortInUse => {
                "another program uses a reserved relay port: give this server a range of its own"
            }
        }
    }
}

pub(super) const NO_RESERVATION: Rejection = Rejection::InsufficientCapacity("Insufficient Capacity: reserved port");
