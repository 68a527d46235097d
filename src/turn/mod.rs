//! The TURN protocol (RFC 8656): one worker's state, without sockets, clocks or threads.
//!
//! [`Server`] is the core of a worker. `contract.rs` lists its inputs and outputs. `protocol` is the wire protocol,
//! `tables` is the state of one worker, and `shared` is what the workers of a process share.

mod burst;
mod contract;
mod data;
mod database;
mod event;
mod gauges;
mod inspect;
mod limit;
mod oldest;
mod outcome;
mod protocol;
mod rate;
mod reconfigure;
mod record;
mod routes;
mod server;
mod shared;
mod tables;
mod time;

#[cfg(test)]
mod tests;

pub use burst::{ClientBurst, PeerBurst};
pub use contract::{
    Action, AllocationId, ChannelRoute, Context, FiveTuple, FromClient, FromPeer, IcmpError, IcmpIndication,
    NotOffloaded, OpenError, Opened, RelayedAddresses, Response, SocketId, SocketKind, SocketSpec, ToClient, ToPeer,
};
pub use database::{DatabaseReply, DatabaseUnavailable};
pub use event::{AllocationSummary, AuthCause, EndReason, Event, Operator, RedirectCause, Traffic};
pub use gauges::{Gauges, RelayedFamily};
pub use inspect::{AllocationDetail, AllocationInfo, Cursor, Filter, Page};
pub use limit::Limit;
pub use oldest::Oldest;
pub use outcome::{Counters, DropReason, Outcome};
pub(crate) use protocol::channel_data;
pub use protocol::channel_data::{HEADROOM, TAILROOM};
pub use protocol::channel_numbers::ChannelNumbers;
pub(crate) use protocol::framing::next_frame;
pub use protocol::framing::{Frame, LARGEST_FRAME, is_binding, written_length};
pub use protocol::rejection::RejectionCode;
pub use protocol::request_method::RequestMethod;
pub(crate) use rate::Bucket;
pub use rate::Rate;
pub use record::{AllocationRecord, Epoch, ImportError, RelayRecord};
pub use server::Server;
pub use shared::alternate::{Alternate, RedirectWhen};
pub use shared::ledger::Ledger;
pub use shared::policy::{Denial, PeerPolicy};
pub use shared::quota::{Direction, Quota, QuotaExceeded, Ticket, UserRates, UserShare};
pub use shared::relay_address::{PortCounts, RelayAddress, RelayAddresses};
pub use shared::snapshot::{Compat, IcmpIndications, Limits, Snapshot, UserDatabase, WhenUnavailable};
pub use shared::sources::{Sources, Waiting};
pub use shared::test_links::TestLinks;
pub use tables::waiting::ResumedRequest;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use tables::{allocation::State, relays::SocketState};
pub use time::{Deadline, Instant};

pub use crate::transport::Transport;

/// The default time-to-expiry of an allocation in seconds (RFC 8656 §3.2). Shorter requested lifetimes are raised to it.
pub const DEFAULT_LIFETIME: u32 = 600;
/// The longest time-to-expiry that a request can set, in seconds (RFC 8656 §7.2).
pub const MAXIMUM_LIFETIME: u32 = 3600;
/// The size of a response buffer in bytes: enough for every response and indication that the core writes.
pub const RESPONSE_BUFFER: usize = 2048;
