//! Writing a message into a buffer of the caller (RFC 8489 §5, §14).

#[cfg(test)]
mod tests;

use super::integrity::Covered;
use super::types::encode_message_type;
use super::{AttributeType, Class, EncodeAttribute, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId, padding};

/// The message does not fit into the buffer, or into the 16 bits of its length.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the message does not fit into the buffer")]
pub struct BufferTooSmall;

/// Takes the bytes of an attribute's value. What does not fit is dropped and remembered.
pub struct ValueWriter<'b> {
    buffer: &'b mut [u8],
    len: usize,
    overflow: bool,
}

impl ValueWriter<'_> {
    /// Appends `bytes`.
    pub fn put(&mut self, bytes: &[u8]) {
        if let Some(place) = self.reserve(bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Appends `count` zero bytes.
    pub fn put_zeros(&mut self, count: usize) {
        if let Some(place) = self.reserve(count) {
            place.fill(0);
        }
    }

    /// Appends a length as 16 bits; one that needs more makes the message too long.
    pub(super) fn put_u16_len(&mut self, len: usize) {
        match u16::try_from(len) {
            Ok(len) => self.put(&len.to_be_bytes()),
            Err(_) => self.overflow = true,
        }
    }

    fn reserve(&mut self, count: usize) -> Option<&mut [u8]> {
        let start = self.len;
        let place =
            if self.overflow { None } else { self.buffer.get_mut(start..).and_then(|free| free.get_mut(..count)) };
        match place {
            Some(_) => self.len += count,
            None => self.overflow = true,
        }
        place
    }

    /// Writes a length into the two bytes at `at`, which `put` has passed.
    fn patch_u16(&mut self, at: usize, value: usize) {
        match (u16::try_from(value), self.buffer.get_mut(at..).and_then(<[u8]>::first_chunk_mut)) {
            (Ok(value), Some(place)) if !self.overflow => *place = value.to_be_bytes(),
            _ => self.overflow = true,
        }
    }
}

/// Writes one message: header, attributes in the order of the calls, checksums last.
///
/// Nothing is ever written behind the end of the buffer. A message that does not fit is noticed by the `finish` methods
/// alone, so that the calls in between need no error handling.
// No Debug: the buffer behind the message may hold what was in it before.
pub struct MessageWriter<'b> {
    out: ValueWriter<'b>,
    transaction_id: TransactionId,
}

impl<'b> MessageWriter<'b> {
    /// Starts a message at the beginning of `buffer`.
    pub fn new(buffer: &'b mut [u8], class: Class, method: Method, transaction_id: TransactionId) -> Self {
        let mut out = ValueWriter { buffer, len: 0, overflow: false };
        out.put(&encode_message_type(class, method).to_be_bytes());
        out.put(&[0; 2]);
        out.put(&MAGIC_COOKIE.to_be_bytes());
        out.put(transaction_id.as_bytes());
        Self { out, transaction_id }
    }

    /// Appends an attribute and its padding, which is zero (RFC 8489 §14).
    ///
    /// Behind an integrity attribute a receiver ignores it; see [`super::Message::attributes`].
    pub fn push(&mut self, attribute: &(impl EncodeAttribute + ?Sized)) {
        self.out.put(&attribute.kind().number().to_be_bytes());
        let length_at = self.out.len;
        self.out.put(&[0; 2]);
        let start = self.out.len;
        attribute.encode(&mut self.out, self.transaction_id);
        let value_len = self.out.len - start;
        self.out.patch_u16(length_at, value_len);
        self.out.put_zeros(padding(value_len));
    }

    /// Appends MESSAGE-INTEGRITY over everything so far (RFC 8489 §14.5).
    pub fn message_integrity(&mut self, key: &[u8]) {
        self.push_checksum(AttributeType::MESSAGE_INTEGRITY, |covered| covered.sha1(key));
    }

    /// Appends MESSAGE-INTEGRITY-SHA256, not truncated, over everything so far (RFC 8489 §14.6).
    pub fn message_integrity_sha256(&mut self, key: &[u8]) {
        self.push_checksum(AttributeType::MESSAGE_INTEGRITY_SHA256, |covered| covered.sha256(key));
    }

    /// Appends FINGERPRINT, which has to be the last attribute (RFC 8489 §14.7).
    pub fn fingerprint(&mut self) {
        self.push_checksum(AttributeType::FINGERPRINT, |covered| covered.fingerprint().to_be_bytes());
    }

    /// How many bytes the message has so far, its header included.
    pub fn written(&self) -> usize {
        self.out.len
    }

    /// Ends the message and returns it.
    ///
    /// # Errors
    ///
    /// [`BufferTooSmall`] when it did not fit; the buffer's content is then meaningless.
    pub fn finish(self) -> Result<&'b [u8], BufferTooSmall> {
        self.finish_with_length_of(0)
    }

    /// Ends the message and returns only its length in bytes, for a caller that goes on to use the buffer.
    ///
    /// # Errors
    ///
    /// As [`Self::finish`].
    pub fn finish_len(self) -> Result<usize, BufferTooSmall> {
        self.finish().map(<[u8]>::len)
    }

    /// Ends the message with the header of a DATA attribute, whose `data_len` bytes of value lie, or will be sent,
    /// right behind what is returned. The caller appends [`data_padding`](super::attribute::data_padding) zero bytes.
    ///
    /// With XOR-PEER-ADDRESS as the only attribute before it, what is returned has 36 bytes for an IPv4 peer and 48 for
    /// an IPv6 peer.
    ///
    /// # Errors
    ///
    /// As [`Self::finish`].
    pub fn finish_with_data_behind(mut self, data_len: usize) -> Result<&'b [u8], BufferTooSmall> {
        self.out.put(&AttributeType::DATA.number().to_be_bytes());
        self.out.put_u16_len(data_len);
        self.finish_with_length_of(data_len.saturating_add(padding(data_len)))
    }

    fn finish_with_length_of(mut self, behind: usize) -> Result<&'b [u8], BufferTooSmall> {
        self.out.patch_u16(2, self.out.len.saturating_add(behind).saturating_sub(HEADER_LEN));
        let ValueWriter { buffer, len, overflow } = self.out;
        if overflow {
            return Err(BufferTooSmall);
        }
        let buffer: &'b [u8] = buffer;
        buffer.get(..len).ok_or(BufferTooSmall)
    }

    fn push_checksum<const N: usize>(&mut self, kind: AttributeType, compute: impl FnOnce(Covered<'_>) -> [u8; N]) {
        let covered = self.out.buffer.get(..self.out.len).and_then(|message| Covered::new(message, N));
        let value = match covered {
            Some(covered) if !self.out.overflow => compute(covered),
            _ => return self.out.overflow = true,
        };
        self.out.put(&kind.number().to_be_bytes());
        self.out.put_u16_len(N);
        self.out.put(&value);
    }
}

#[cfg(test)]
impl MessageWriter<'_> {
    /// Overwrites the padding that was just written. RFC 5769 pads with spaces.
    pub(super) fn repad(&mut self, count: usize, byte: u8) {
        let end = self.out.len;
        self.out.buffer[end - count..end].fill(byte);
    }
}
