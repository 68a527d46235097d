//! The TURN protocol (RFC 8656): one worker's state, without sockets, clocks or threads.
//!
//! [`Server`] is the whole of it; what goes in and comes out stands in `contract.rs`.

mod contract;
mod limit;
mod outcome;
mod protocol;
mod rate;
mod server;
mod shared;
mod tables;
mod time;

#[cfg(test)]
mod tests;

pub use contract::{
    Action, AllocationSummary, AuthCause, Context, EndReason, Event, FiveTuple, FromClient, FromPeer, IcmpError,
    OpenError, OpenRelay, Opened, PeerRoute, RedirectCause, RelayId, RelayedAddresses, Reply, ToClient, ToPeer,
    Transport,
};
pub use limit::Limit;
pub use outcome::{Counters, DropReason, Outcome};
pub use protocol::channel_data::{Framing, HEADROOM, TAILROOM};
pub use protocol::framing::{Frame, LARGEST_FRAME, is_binding, written_length};
pub use rate::Rate;
pub use server::{RelayRange, Server, Settings, Shared};
pub use shared::alternate::{Alternate, RedirectWhen};
pub use shared::live_relays::LiveRelays;
pub use shared::policy::{Denial, PeerPolicy};
pub use shared::quota::{Quota, QuotaExceeded, Ticket, UserRates};
pub use shared::reservations::Reservations;
pub use tables::ports::slice_of;
pub use time::{Deadline, Instant};

/// The time-to-expiry of an allocation whose client asks for nothing longer, in seconds (RFC 8656 §3.2).
pub const DEFAULT_LIFETIME: u32 = 600;
/// The longest time-to-expiry that a client can get at a time, in seconds (RFC 8656 §7.2).
pub const MAXIMUM_LIFETIME: u32 = 3600;
/// Enough for every answer that the core writes, in bytes.
pub const REPLY_BUFFER: usize = 2048;
