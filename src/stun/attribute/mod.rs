//! Typed attributes of RFC 8489 §14 and RFC 8656 §18.
//!
//! Each type decodes a received value, or writes one into a message. Reserved fields are written as zero and ignored
//! when read. If the length of a value is fixed, any other length is an error.

mod address;
mod checksum;
mod credential;
mod error;
mod text;
mod turn;

#[cfg(test)]
mod tests;

pub use address::{AddressFamily, AlternateServer, MappedAddress, XorMappedAddress, XorPeerAddress, XorRelayedAddress};
pub use checksum::{Fingerprint, MessageIntegrity, MessageIntegritySha256};
pub use credential::{PasswordAlgorithm, PasswordAlgorithms, Userhash};
pub use error::{AddressErrorCode, ErrorCodeAttribute, UnknownAttributes};
pub use text::{AlternateDomain, Nonce, Realm, Software, Username};
pub use turn::{
    AdditionalAddressFamily, ChannelNumber, Data, DontFragment, DraftAdditionalAddressFamily, EvenPort, Icmp, Lifetime,
    RequestedAddressFamily, RequestedTransport, ReservationToken,
};

use super::reader::Reader;
use super::{AttributeType, TransactionId, ValueWriter};

/// Why the value of an attribute is malformed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttributeError {
    /// The length is not valid for this attribute.
    #[error("wrong length")]
    WrongLength,
    /// The text is longer than a receiver must accept: 763 bytes, or 255 for a domain name.
    #[error("text too long")]
    TextTooLong,
    /// The text is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// The address family is neither IPv4 (1) nor IPv6 (2).
    #[error("unknown address family")]
    UnknownFamily,
    /// The error code is outside 300 to 699.
    #[error("error code out of range")]
    ErrorCodeOutOfRange,
    /// The text is not a domain name.
    #[error("not a domain name")]
    NotADomainName,
}

/// An attribute that can be read from a message.
pub trait Attribute<'a>: Sized {
    /// The attribute type.
    const TYPE: AttributeType;

    /// Decodes the value, which excludes padding. XORed addresses need the transaction ID (RFC 8489 §14.2).
    ///
    /// # Errors
    ///
    /// [`AttributeError`] if the value is malformed.
    fn decode(value: &'a [u8], transaction_id: TransactionId) -> Result<Self, AttributeError>;
}

/// An attribute that can be written into a message.
pub trait EncodeAttribute {
    /// Returns the attribute type.
    fn kind(&self) -> AttributeType;

    /// Writes the value without padding.
    fn encode(&self, value: &mut ValueWriter<'_>, transaction_id: TransactionId);
}

/// An attribute whose value is not decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawAttribute<'a> {
    /// The attribute type.
    pub kind: AttributeType,
    /// The value without padding.
    pub value: &'a [u8],
}

impl EncodeAttribute for RawAttribute<'_> {
    fn kind(&self) -> AttributeType {
        self.kind
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(self.value);
    }
}

// The value is not shown, because it may be confidential.
impl std::fmt::Debug for RawAttribute<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.kind, self.value.len())
    }
}

/// Returns the number of zero bytes after a DATA value of `len` bytes, 0 to 3 (RFC 8656 §18.4).
pub const fn data_padding(len: usize) -> usize {
    super::padding(len)
}

/// Reads a value with `read`, which must consume all of it.
fn read_all<'a, T>(value: &'a [u8], read: impl FnOnce(&mut Reader<'a>) -> Option<T>) -> Result<T, AttributeError> {
    let mut reader = Reader::new(value);
    match read(&mut reader) {
        Some(read) if reader.is_empty() => Ok(read),
        _ => Err(AttributeError::WrongLength),
    }
}
