//! USERHASH and password algorithms (RFC 8489 §14.4, §14.11, §14.12).

use super::{Attribute, AttributeError, EncodeAttribute, read_all};
use crate::stun::reader::Reader;
use crate::stun::{AttributeType, TransactionId, ValueWriter, padding};

/// USERHASH (RFC 8489 §14.4): the SHA-256 of username and realm, which replaces USERNAME.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Userhash<'a>(pub &'a [u8; 32]);

impl<'a> Attribute<'a> for Userhash<'a> {
    const TYPE: AttributeType = AttributeType::USERHASH;

    fn decode(value: &'a [u8], _: TransactionId) -> Result<Self, AttributeError> {
        value.try_into().map(Self).map_err(|_| AttributeError::WrongLength)
    }
}

impl EncodeAttribute for Userhash<'_> {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(self.0);
    }
}

/// PASSWORD-ALGORITHM (RFC 8489 §14.12), and one entry of PASSWORD-ALGORITHMS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasswordAlgorithm<'a> {
    /// The number in the registry of RFC 8489 §18.5.
    pub algorithm: u16,
    /// The parameters, at most 65535 bytes. The algorithms of RFC 8489 have none.
    pub parameters: &'a [u8],
}

impl PasswordAlgorithm<'static> {
    /// The key is the MD5 of username, realm and password (RFC 8489 §18.5.1.1).
    pub const MD5: Self = Self { algorithm: 1, parameters: &[] };
    /// The key is the SHA-256 of username, realm and password (RFC 8489 §18.5.1.2).
    pub const SHA256: Self = Self { algorithm: 2, parameters: &[] };
}

impl<'a> PasswordAlgorithm<'a> {
    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let algorithm = reader.u16()?;
        let len = usize::from(reader.u16()?);
        let parameters = reader.take(len)?;
        // The last entry may lack its padding, because the padding of the attribute can take its place.
        reader.take(padding(len).min(reader.remaining()))?;
        Some(Self { algorithm, parameters })
    }

    fn write(&self, value: &mut ValueWriter<'_>) {
        value.put(&self.algorithm.to_be_bytes());
        value.put_u16_len(self.parameters.len());
        value.put(self.parameters);
        value.put_zeros(padding(self.parameters.len()));
    }
}

impl<'a> Attribute<'a> for PasswordAlgorithm<'a> {
    const TYPE: AttributeType = AttributeType::PASSWORD_ALGORITHM;

    fn decode(value: &'a [u8], _: TransactionId) -> Result<Self, AttributeError> {
        read_all(value, Self::read)
    }
}

impl EncodeAttribute for PasswordAlgorithm<'_> {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        self.write(value);
    }
}

/// PASSWORD-ALGORITHMS (RFC 8489 §14.11): the algorithms of the server in order of preference.
#[derive(Clone, Copy)]
pub struct PasswordAlgorithms<'a>(List<'a>);

#[derive(Clone, Copy)]
enum List<'a> {
    /// Complete entries.
    Received(&'a [u8]),
    ToSend(&'a [PasswordAlgorithm<'a>]),
}

impl<'a> PasswordAlgorithms<'a> {
    /// Creates the attribute for these algorithms.
    pub const fn new(algorithms: &'a [PasswordAlgorithm<'a>]) -> Self {
        Self(List::ToSend(algorithms))
    }

    /// Returns the algorithms in order.
    pub fn iter(&self) -> impl Iterator<Item = PasswordAlgorithm<'a>> + use<'a> {
        let (received, to_send): (&[u8], &[PasswordAlgorithm<'a>]) = match self.0 {
            List::Received(bytes) => (bytes, &[]),
            List::ToSend(algorithms) => (&[], algorithms),
        };
        let mut reader = Reader::new(received);
        std::iter::from_fn(move || PasswordAlgorithm::read(&mut reader)).chain(to_send.iter().copied())
    }
}

impl<'a> Attribute<'a> for PasswordAlgorithms<'a> {
    const TYPE: AttributeType = AttributeType::PASSWORD_ALGORITHMS;

    fn decode(value: &'a [u8], _: TransactionId) -> Result<Self, AttributeError> {
        let mut reader = Reader::new(value);
        while !reader.is_empty() {
            PasswordAlgorithm::read(&mut reader).ok_or(AttributeError::WrongLength)?;
        }
        Ok(Self(List::Received(value)))
    }
}

impl EncodeAttribute for PasswordAlgorithms<'_> {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        self.iter().for_each(|algorithm| algorithm.write(value));
    }
}

impl PartialEq for PasswordAlgorithms<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for PasswordAlgorithms<'_> {}

impl std::fmt::Debug for PasswordAlgorithms<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
