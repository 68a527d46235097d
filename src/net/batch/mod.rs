//! Many UDP datagrams in one system call.
//!
//! ```text
//!   socket ──▶ RecvBatch: an arena of slots ──▶ the caller decides ──▶ SendBatch ──▶ socket
//!
//!   a slot    ┌──────────┬───────────────────────────────┬──────────┐
//!             │ headroom │ a datagram, or merged ones    │ tailroom │
//!             └──────────┴───────────────────────────────┴──────────┘
//!                           │ 1200   │ 1200   │ 800 │
//!                          [hdr]↓   [hdr]↓   [hdr]↓      pieces: ranges of the arena, headers of the SendBatch
//! ```
//!
//! Payloads stay in the arena from the call that receives them to the call that sends them.

mod receive;
mod send;

pub use receive::{Datagram, DropCounter, Filled, RecvBatch, Room};
pub use send::{Fate, Piece, SendBatch, Target};
