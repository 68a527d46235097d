//! STUN wire format: RFC 8489 §5, §14 and the attributes of RFC 8656 §18.
//!
//! [`Message`] is a view of a received message, and [`MessageWriter`] writes into a buffer of the caller. Neither
//! allocates, and neither panics on any input: all reads are bounds-checked by one reader, and all writes by
//! [`ValueWriter`]. [`attribute`] contains the typed attributes.
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

/// The length of the message header in bytes (RFC 8489 §5).
pub const HEADER_LEN: usize = 20;

/// The magic cookie, bytes 4 to 7 of every message (RFC 8489 §5).
pub const MAGIC_COOKIE: u32 = 0x2112_A442;

/// The length of an attribute's type and length fields in bytes (RFC 8489 §14).
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// Returns the number of padding bytes after a value of `len` bytes, 0 to 3 (RFC 8489 §14).
const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}
