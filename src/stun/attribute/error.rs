//! The attributes of error responses (RFC 8489 §14.8, §14.13; RFC 8656 §18.12).

use super::{AddressFamily, Attribute, AttributeError, EncodeAttribute, text};
use crate::stun::reader::Reader;
use crate::stun::{AttributeType, ErrorCode, TransactionId, ValueWriter};

/// ERROR-CODE (RFC 8489 §14.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorCodeAttribute<'a> {
    /// The error code.
    pub code: ErrorCode,
    /// The reason phrase, fewer than 128 characters.
    pub reason: &'a str,
}

impl ErrorCodeAttribute<'static> {
    /// Creates the attribute with the recommended reason phrase of the code.
    pub const fn new(code: ErrorCode) -> Self {
        Self { code, reason: code.reason() }
    }
}

impl<'a> Attribute<'a> for ErrorCodeAttribute<'a> {
    const TYPE: AttributeType = AttributeType::ERROR_CODE;

    fn decode(value: &'a [u8], _: TransactionId) -> Result<Self, AttributeError> {
        let mut reader = Reader::new(value);
        let &[_, _, class, number] = reader.array().ok_or(AttributeError::WrongLength)?;
        let code = ErrorCode::from_class_and_number([class, number]).ok_or(AttributeError::ErrorCodeOutOfRange)?;
        Ok(Self { code, reason: text::decode(reader.rest())? })
    }
}

impl EncodeAttribute for ErrorCodeAttribute<'_> {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(&[0; 2]);
        value.put(&self.code.class_and_number());
        value.put(self.reason.as_bytes());
    }
}

/// ADDRESS-ERROR-CODE (RFC 8656 §18.12): why one of two requested address families was not allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressErrorCode<'a> {
    /// The family that was not allocated.
    pub family: AddressFamily,
    /// The error code, 440 or 508.
    pub code: ErrorCode,
    /// The reason phrase, fewer than 128 characters.
    pub reason: &'a str,
}

impl<'a> Attribute<'a> for AddressErrorCode<'a> {
    const TYPE: AttributeType = AttributeType::ADDRESS_ERROR_CODE;

    fn decode(value: &'a [u8], transaction_id: TransactionId) -> Result<Self, AttributeError> {
        let &family = value.first().ok_or(AttributeError::WrongLength)?;
        let ErrorCodeAttribute { code, reason } = ErrorCodeAttribute::decode(value, transaction_id)?;
        Ok(Self { family: AddressFamily::from_number(family)?, code, reason })
    }
}

impl EncodeAttribute for AddressErrorCode<'_> {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(&[self.family.number(), 0]);
        value.put(&self.code.class_and_number());
        value.put(self.reason.as_bytes());
    }
}

/// UNKNOWN-ATTRIBUTES (RFC 8489 §14.13): the types that the server did not understand.
#[derive(Clone, Copy)]
pub struct UnknownAttributes<'a>(List<'a>);

#[derive(Clone, Copy)]
enum List<'a> {
    /// Two bytes per type.
    Received(&'a [u8]),
    ToSend(&'a [AttributeType]),
}

impl<'a> UnknownAttributes<'a> {
    /// Creates the attribute for these types.
    pub const fn new(types: &'a [AttributeType]) -> Self {
        Self(List::ToSend(types))
    }

    /// Returns the types in order.
    pub fn iter(&self) -> impl Iterator<Item = AttributeType> + use<'a> {
        let (received, to_send): (&[u8], &[AttributeType]) = match self.0 {
            List::Received(bytes) => (bytes, &[]),
            List::ToSend(types) => (&[], types),
        };
        let mut reader = Reader::new(received);
        std::iter::from_fn(move || reader.u16()).map(AttributeType::new).chain(to_send.iter().copied())
    }
}

impl<'a> Attribute<'a> for UnknownAttributes<'a> {
    const TYPE: AttributeType = AttributeType::UNKNOWN_ATTRIBUTES;

    fn decode(value: &'a [u8], _: TransactionId) -> Result<Self, AttributeError> {
        if value.len().is_multiple_of(2) { Ok(Self(List::Received(value))) } else { Err(AttributeError::WrongLength) }
    }
}

impl EncodeAttribute for UnknownAttributes<'_> {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        self.iter().for_each(|kind| value.put(&kind.number().to_be_bytes()));
    }
}

impl PartialEq for UnknownAttributes<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for UnknownAttributes<'_> {}

impl std::fmt::Debug for UnknownAttributes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
