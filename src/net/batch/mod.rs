//! Many UDP datagrams in one system call.
//!
//! ```text
//!   socket ──▶ RecvBatch: an arena of slots ──▶ caller ──▶ SendBatch ──▶ socket
//!
//!   slot      ┌──────────┬───────────────────────────────┬──────────┐
//!             │ headroom │ datagram or merged datagrams  │ tailroom │
//!             └──────────┴───────────────────────────────┴──────────┘
//!                           │ 1200   │ 1200   │ 800 │
//!                          [hdr]↓   [hdr]↓   [hdr]↓      pieces: ranges of the arena, headers of the SendBatch
//! ```
//!
//! A payload stays in the arena between the call that receives it and the call that sends it.

mod receive;
mod send;

pub(crate) use receive::DropCounter;
pub use receive::{Datagram, Filled, RecvBatch, SlotLayout};
pub use send::{Piece, SendBatch, SendStatus, Target};
