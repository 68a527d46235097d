//! STUN wire code: RFC 8489 §5, §14 and the attributes of RFC 8656 §18.
//!
//! [`Message`] is a view over a received datagram and [`MessageWriter`] fills a caller's buffer. Neither allocates,
//! and no sequence of bytes makes either panic: every read goes through one small reader that cannot over-read, every
//! write through [`ValueWriter`]. Typed attributes are in [`attribute`]; each knows only its own value.
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod attribute;
mod attribute_type;
mod error_code;
mod integrity;
mod message;
mod reader;
mod types;
mod writer;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod vectors;

pub use attribute::{Attribute, AttributeError, EncodeAttribute, RawAttribute};
pub use attribute_type::AttributeType;
pub use error_code::ErrorCode;
pub use integrity::{FingerprintStatus, IntegrityStatus};
pub use message::{Attributes, Message, ParseError};
pub use types::{Class, Method, TransactionId};
pub use writer::{BufferTooSmall, MessageWriter, ValueWriter};

/// Length in bytes of the header in front of the attributes (RFC 8489 §5).
pub const HEADER_LEN: usize = 20;

/// The constant in bytes 4 to 7 of every message (RFC 8489 §5).
pub const MAGIC_COOKIE: u32 = 0x2112_A442;

/// Length in bytes of the type and length in front of an attribute's value (RFC 8489 §14).
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// How many bytes of padding follow a value of `len` bytes: 0 to 3 (RFC 8489 §14).
const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}
