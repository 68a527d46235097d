//! Typed attributes: what RFC 8489 §14 and RFC 8656 §18 define, one type each.
//!
//! A type decodes a value that came from the network, or writes one into a message. Fields that are reserved are
//! written as zero and ignored when read. Where a value has a fixed length, any other length is an error.

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

/// Why an attribute's value is not what its definition says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttributeError {
    /// The length is not one that this attribute can have.
    #[error("wrong length")]
    WrongLength,
    /// A text is longer than a receiver has to accept (763 bytes; 255 for a domain name).
    #[error("text too long")]
    TextTooLong,
    /// A text is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// The address family is neither IPv4 (1) nor IPv6 (2).
    #[error("unknown address family")]
    UnknownFamily,
    /// The error code is outside 300 to 699.
    #[error("error code out of range")]
    ErrorCodeOutOfRange,
    /// The domain name is not one.
    #[error("not a domain name")]
    NotADomainName,
}

/// An attribute that can be read from a message.
pub trait Attribute<'a>: Sized {
    /// Its type.
    const TYPE: AttributeType;

    /// Reads the value, without padding. XOR addresses need the transaction ID (RFC 8489 §14.2).
    ///
    /// # Errors
    ///
    /// [`AttributeError`] when the value is not what the definition says.
    fn decode(value: &'a [u8], transaction_id: TransactionId) -> Result<Self, AttributeError>;
}

/// An attribute that can be written into a message.
pub trait EncodeAttribute {
    /// Its type.
    fn kind(&self) -> AttributeType;

    /// Writes the value, without padding.
    fn encode(&self, value: &mut ValueWriter<'_>, transaction_id: TransactionId);
}

/// An attribute as it stands in the message, without its padding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawAttribute<'a> {
    /// Its type.
    pub kind: AttributeType,
    /// Its value; a part of the message.
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

// Names the attribute and not its value, which may hold what a client sent in confidence.
impl std::fmt::Debug for RawAttribute<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.kind, self.value.len())
    }
}

/// How many zero bytes follow a DATA value of `len` bytes: 0 to 3 (RFC 8656 §18.4).
pub const fn data_padding(len: usize) -> usize {
    super::padding(len)
}

/// Runs `read` over a value, all of which it has to consume.
fn read_all<'a, T>(value: &'a [u8], read: impl FnOnce(&mut Reader<'a>) -> Option<T>) -> Result<T, AttributeError> {
    let mut reader = Reader::new(value);
    match read(&mut reader) {
        Some(read) if reader.is_empty() => Ok(read),
        _ => Err(AttributeError::WrongLength),
    }
}
