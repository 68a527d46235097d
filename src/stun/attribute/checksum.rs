//! The values of the checksums (RFC 8489 §14.5–14.7).
//!
//! They can only be decoded. [`MessageWriter`](crate::stun::MessageWriter) computes and writes them, and
//! [`Message`](crate::stun::Message) checks them.

use super::{Attribute, AttributeError};
use crate::stun::integrity::{FINGERPRINT_LEN, SHA1_LEN, SHA256_LEN};
use crate::stun::{AttributeType, TransactionId};

/// MESSAGE-INTEGRITY (RFC 8489 §14.5): an HMAC-SHA1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageIntegrity<'a>(pub &'a [u8; SHA1_LEN]);

impl<'a> Attribute<'a> for MessageIntegrity<'a> {
    const TYPE: AttributeType = AttributeType::MESSAGE_INTEGRITY;

    fn decode(value: &'a [u8], _: TransactionId) -> Result<Self, AttributeError> {
        value.try_into().map(Self).map_err(|_| AttributeError::WrongLength)
    }
}

/// MESSAGE-INTEGRITY-SHA256 (RFC 8489 §14.6): the first 16, 20, 24, 28 or all 32 bytes of an HMAC-SHA256.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageIntegritySha256<'a>(&'a [u8]);

impl<'a> MessageIntegritySha256<'a> {
    /// Returns the bytes, which may be truncated.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Returns all 32 bytes; `None` if they are truncated.
    pub fn full(&self) -> Option<&'a [u8; SHA256_LEN]> {
        self.0.try_into().ok()
    }
}

impl<'a> Attribute<'a> for MessageIntegritySha256<'a> {
    const TYPE: AttributeType = AttributeType::MESSAGE_INTEGRITY_SHA256;

    fn decode(value: &'a [u8], _: TransactionId) -> Result<Self, AttributeError> {
        match value.len() {
            16 | 20 | 24 | 28 | SHA256_LEN => Ok(Self(value)),
            _ => Err(AttributeError::WrongLength),
        }
    }
}

/// FINGERPRINT (RFC 8489 §14.7): the CRC-32 XORed with 0x5354554E.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint(pub u32);

impl Attribute<'_> for Fingerprint {
    const TYPE: AttributeType = AttributeType::FINGERPRINT;

    fn decode(value: &[u8], _: TransactionId) -> Result<Self, AttributeError> {
        let bytes: [u8; FINGERPRINT_LEN] = value.try_into().map_err(|_| AttributeError::WrongLength)?;
        Ok(Self(u32::from_be_bytes(bytes)))
    }
}
