//! The TURN protocol (RFC 8656): one worker's state, without sockets, clocks or threads.
//!
//! [`Server`] is the whole of it; what goes in and comes out stands in `contract.rs`.

mod allocation;
mod alternate;
mod channel_data;
mod claim;
mod contract;
mod framing;
mod icmp;
mod limit;
mod live;
mod methods;
mod outcome;
mod policy;
mod ports;
mod quota;
mod rate;
mod relays;
mod reply;
mod reply_limit;
mod request;
mod reservations;
mod server;
mod table;
mod time;
mod wheel;

#[cfg(test)]
mod tests;

pub use alternate::{Alternate, RedirectWhen};
pub use channel_data::{Framing, HEADROOM, TAILROOM};
pub use contract::{
    Action, AllocationSummary, AuthCause, Context, EndReason, Event, FiveTuple, FromClient, FromPeer, IcmpError,
    OpenError, OpenRelay, Opened, PeerRoute, RedirectCause, RelayId, RelayedAddresses, Reply, ToClient, ToPeer,
    Transport,
};
pub use framing::{Frame, LARGEST_FRAME, is_binding, written_length};
pub use limit::Limit;
pub use live::LiveRelays;
pub use outcome::{Counters, DropReason, Outcome};
pub use policy::{Denial, PeerPolicy};
pub use ports::slice_of;
pub use quota::{Quota, QuotaExceeded, Ticket, UserRates};
pub use rate::Rate;
pub use reservations::Reservations;
pub use server::{RelayRange, Server, Settings, Shared};
pub use time::{Deadline, Instant};

/// The time-to-expiry of an allocation whose client asks for nothing longer, in seconds (RFC 8656 §3.2).
pub const DEFAULT_LIFETIME: u32 = 600;
/// The longest time-to-expiry that a client can get at a time, in seconds (RFC 8656 §7.2).
pub const MAXIMUM_LIFETIME: u32 = 3600;
/// Enough for every answer that the core writes, in bytes.
pub const REPLY_BUFFER: usize = 2048;
