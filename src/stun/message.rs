//! A view of a received message (RFC 8489 §5, §14).

#[cfg(test)]
mod tests;

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;

use super::attribute::{Fingerprint, MessageIntegrity, MessageIntegritySha256};
use super::integrity::{Covered, FINGERPRINT_LEN, SHA1_LEN};
use super::reader::Reader;
use super::types::decode_message_type;
use super::{
    ATTRIBUTE_HEADER_LEN, Attribute, AttributeError, AttributeType, Class, FingerprintStatus, IntegrityStatus,
    MAGIC_COOKIE, Method, RawAttribute, TransactionId,
};

/// Why bytes are not a STUN message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// The message is shorter than a header.
    #[error("fewer than 20 bytes")]
    TooShort,
    /// The two most significant bits are not zero (RFC 8489 §5).
    #[error("the two leading bits are not zero")]
    LeadingBits,
    /// The magic cookie is missing: another protocol, or RFC 3489.
    #[error("no magic cookie")]
    Cookie,
    /// The length is not a multiple of four (RFC 8489 §5).
    #[error("the length is not a multiple of four")]
    UnalignedLength,
    /// The message is shorter than its length field.
    #[error("shorter than the length field")]
    Truncated,
    /// The message is followed by more bytes.
    #[error("bytes after the end of the message")]
    TrailingBytes,
    /// An attribute extends past the end of the message.
    #[error("an attribute extends past the end of the message")]
    AttributeOverrun,
    /// The message has more attributes than the receiver reads.
    #[error("too many attributes")]
    TooManyAttributes,
}

/// A message whose header and attribute lengths are valid. Attribute values are decoded on demand.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    bytes: &'a [u8],
    attributes: Reader<'a>,
    class: Class,
    method: Method,
    transaction_id: TransactionId,
}

impl<'a> Message<'a> {
    /// Parses a whole datagram or frame.
    ///
    /// The length of every attribute is checked, even after the integrity attributes. Values are not read.
    ///
    /// # Errors
    ///
    /// [`ParseError`] unless the bytes are exactly one STUN message with a magic cookie.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        Self::parse_at_most(bytes, usize::MAX)
    }

    /// Like [`parse`](Self::parse), but reads at most `most` attributes.
    ///
    /// # Errors
    ///
    /// Also [`ParseError::TooManyAttributes`], without reading the attributes after them.
    pub fn parse_at_most(bytes: &'a [u8], most: usize) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        let (Some(message_type), Some(length), Some(cookie), Some(&transaction_id)) =
            (reader.u16(), reader.u16(), reader.u32(), reader.array())
        else {
            return Err(ParseError::TooShort);
        };
        let (class, method) = decode_message_type(message_type).ok_or(ParseError::LeadingBits)?;
        if cookie != MAGIC_COOKIE {
            return Err(ParseError::Cookie);
        }
        let length = usize::from(length);
        if !length.is_multiple_of(4) {
            return Err(ParseError::UnalignedLength);
        }
        if reader.remaining() < length {
            return Err(ParseError::Truncated);
        }
        if reader.remaining() > length {
            return Err(ParseError::TrailingBytes);
        }
        let attributes = reader;
        let mut left = most;
        while !reader.is_empty() {
            left = left.checked_sub(1).ok_or(ParseError::TooManyAttributes)?;
            reader.attribute().ok_or(ParseError::AttributeOverrun)?;
        }
        Ok(Self { bytes, attributes, class, method, transaction_id: TransactionId::new(transaction_id) })
    }

    /// Returns the class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Returns the method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Returns the transaction ID.
    pub fn transaction_id(&self) -> TransactionId {
        self.transaction_id
    }

    /// Returns the whole message, including the header.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the attributes in order, except those that a receiver ignores (RFC 8489 §9, §14.7).
    ///
    /// After MESSAGE-INTEGRITY, only MESSAGE-INTEGRITY-SHA256 and FINGERPRINT are returned; after
    /// MESSAGE-INTEGRITY-SHA256, only FINGERPRINT; and after FINGERPRINT, nothing.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes { reader: self.attributes, message_len: self.bytes.len(), seen: Seen::Nothing }
    }

    /// Returns the first attribute of a type, or `None`. Later ones are duplicates (RFC 8489 §14).
    ///
    /// # Errors
    ///
    /// [`AttributeError`] if the value is malformed.
    pub fn get<A: Attribute<'a>>(&self) -> Result<Option<A>, AttributeError> {
        self.all().next().transpose()
    }

    /// Returns all attributes of a type in order, for XOR-PEER-ADDRESS in CreatePermission, which may be repeated.
    pub fn all<A: Attribute<'a>>(&self) -> impl Iterator<Item = Result<A, AttributeError>> + use<'a, A> {
        let transaction_id = self.transaction_id;
        self.attributes()
            .filter(|attribute| attribute.kind == A::TYPE)
            .map(move |attribute| A::decode(attribute.value, transaction_id))
    }

    /// Returns whether [`Self::attributes`] contains an attribute of this type.
    pub fn contains(&self, kind: AttributeType) -> bool {
        self.attributes().any(|attribute| attribute.kind == kind)
    }

    /// Returns the comprehension-required attributes that are not `understood`, for a 420 (RFC 8489 §6.3.1).
    ///
    /// A type that occurs twice is returned twice.
    pub fn unknown_required<F: Fn(AttributeType) -> bool>(
        &self,
        understood: F,
    ) -> impl Iterator<Item = AttributeType> + use<'a, F> {
        self.attributes()
            .map(|attribute| attribute.kind)
            .filter(move |&kind| kind.is_comprehension_required() && !understood(kind))
    }

    /// Returns the range of the value of the first DATA attribute in [`Self::as_bytes`], for relaying it without a
    /// copy.
    pub fn data_range(&self) -> Option<Range<usize>> {
        let (start, attribute) = self.find(AttributeType::DATA)?;
        let start = start + ATTRIBUTE_HEADER_LEN;
        Some(start..start + attribute.value.len())
    }

    /// Checks FINGERPRINT (RFC 8489 §14.7).
    pub fn fingerprint(&self) -> FingerprintStatus {
        let Some((start, attribute)) = self.find(AttributeType::FINGERPRINT) else { return FingerprintStatus::Absent };
        // "MUST be the last attribute": it then ends at the end of the message.
        let is_last = start + ATTRIBUTE_HEADER_LEN + FINGERPRINT_LEN == self.bytes.len();
        match (Fingerprint::decode(attribute.value, self.transaction_id), self.covered(start, FINGERPRINT_LEN)) {
            (Ok(Fingerprint(value)), Some(covered)) if is_last && covered.fingerprint() == value => {
                FingerprintStatus::Valid
            }
            _ => FingerprintStatus::Wrong,
        }
    }

    /// Checks MESSAGE-INTEGRITY with the key of RFC 8489 §9.1.1 or §9.2.2 in constant time.
    pub fn verify_integrity(&self, key: &[u8]) -> IntegrityStatus {
        let Some((start, attribute)) = self.find(AttributeType::MESSAGE_INTEGRITY) else {
            return IntegrityStatus::Absent;
        };
        match (MessageIntegrity::decode(attribute.value, self.transaction_id), self.covered(start, SHA1_LEN)) {
            (Ok(MessageIntegrity(value)), Some(covered)) if covered.verify_sha1(key, value) => IntegrityStatus::Valid,
            _ => IntegrityStatus::Wrong,
        }
    }

    /// Checks MESSAGE-INTEGRITY-SHA256 in constant time.
    ///
    /// A truncated value is wrong, because TURN does not allow truncation (RFC 8489 §14.6).
    pub fn verify_integrity_sha256(&self, key: &[u8]) -> IntegrityStatus {
        let Some((start, attribute)) = self.find(AttributeType::MESSAGE_INTEGRITY_SHA256) else {
            return IntegrityStatus::Absent;
        };
        let value = MessageIntegritySha256::decode(attribute.value, self.transaction_id).ok().and_then(|it| it.full());
        match (value, self.covered(start, attribute.value.len())) {
            (Some(value), Some(covered)) if covered.verify_sha256(key, value) => IntegrityStatus::Valid,
            _ => IntegrityStatus::Wrong,
        }
    }

    /// Returns the first attribute of a type and the start of its header.
    fn find(&self, kind: AttributeType) -> Option<(usize, RawAttribute<'a>)> {
        let mut attributes = self.attributes();
        loop {
            let (start, attribute) = attributes.next_with_start()?;
            if attribute.kind == kind {
                return Some((start, attribute));
            }
        }
    }

    fn covered(&self, start: usize, value_len: usize) -> Option<Covered<'a>> {
        Covered::new(self.bytes.get(..start)?, value_len)
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("class", &self.class)
            .field("method", &self.method)
            .field("transaction_id", &self.transaction_id)
            .field("attributes", &self.attributes())
            .finish()
    }
}

/// The last attribute that restricts the attributes after it.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Nothing,
    Integrity,
    IntegritySha256,
    Fingerprint,
}

/// An iterator over the attributes of a message that a receiver does not ignore. See [`Message::attributes`].
#[derive(Clone)]
pub struct Attributes<'a> {
    reader: Reader<'a>,
    message_len: usize,
    seen: Seen,
}

impl<'a> Attributes<'a> {
    fn next_with_start(&mut self) -> Option<(usize, RawAttribute<'a>)> {
        loop {
            let start = self.message_len - self.reader.remaining();
            let (kind, value) = self.reader.attribute()?;
            let ignored = match self.seen {
                Seen::Nothing => false,
                Seen::Integrity => {
                    !matches!(kind, AttributeType::MESSAGE_INTEGRITY_SHA256 | AttributeType::FINGERPRINT)
                }
                Seen::IntegritySha256 => kind != AttributeType::FINGERPRINT,
                Seen::Fingerprint => return None,
            };
            if ignored {
                continue;
            }
            self.seen = match kind {
                AttributeType::MESSAGE_INTEGRITY => Seen::Integrity,
                AttributeType::MESSAGE_INTEGRITY_SHA256 => Seen::IntegritySha256,
                AttributeType::FINGERPRINT => Seen::Fingerprint,
                _ => self.seen,
            };
            return Some((start, RawAttribute { kind, value }));
        }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = RawAttribute<'a>;

    fn next(&mut self) -> Option<RawAttribute<'a>> {
        self.next_with_start().map(|(_, attribute)| attribute)
    }
}

impl FusedIterator for Attributes<'_> {}

impl fmt::Debug for Attributes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}
