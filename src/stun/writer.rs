//! Writing of messages (RFC 8489 §5, §14).

#[cfg(test)]
mod tests;

use super::integrity::Covered;
use super::types::encode_message_type;
use super::{AttributeType, Class, EncodeAttribute, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId, padding};

/// The message does not fit into the buffer, or its length does not fit into 16 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the message does not fit into the buffer")]
pub struct BufferTooSmall;

/// Writes the value of an attribute. Bytes that do not fit are discarded, which makes the message fail.
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

    /// Appends a length as 16 bits. A length above 65535 makes the message fail.
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

    /// Overwrites the two bytes at `at` with a length.
    fn patch_u16(&mut self, at: usize, value: usize) {
        match (u16::try_from(value), self.buffer.get_mut(at..).and_then(<[u8]>::first_chunk_mut)) {
            (Ok(value), Some(place)) if !self.overflow => *place = value.to_be_bytes(),
            _ => self.overflow = true,
        }
    }
}

/// Writes a message: the header, then attributes and checksums in the order of the calls.
///
/// Only the `finish` methods report that the message does not fit into the buffer, so that the other calls need no
/// error handling.
// There is no Debug, because the rest of the buffer may contain other data.
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

    /// Appends an attribute and its zero padding (RFC 8489 §14).
    ///
    /// A receiver ignores an attribute after an integrity attribute. See [`super::Message::attributes`].
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

    /// Appends MESSAGE-INTEGRITY, computed over the message so far (RFC 8489 §14.5).
    pub fn message_integrity(&mut self, key: &[u8]) {
        self.push_checksum(AttributeType::MESSAGE_INTEGRITY, |covered| covered.sha1(key));
    }

    /// Appends MESSAGE-INTEGRITY-SHA256 without truncation, computed over the message so far (RFC 8489 §14.6).
    pub fn message_integrity_sha256(&mut self, key: &[u8]) {
        self.push_checksum(AttributeType::MESSAGE_INTEGRITY_SHA256, |covered| covered.sha256(key));
    }

    /// Appends FINGERPRINT, which must be the last attribute (RFC 8489 §14.7).
    pub fn fingerprint(&mut self) {
        self.push_checksum(AttributeType::FINGERPRINT, |covered| covered.fingerprint().to_be_bytes());
    }

    /// Returns the length of the message so far in bytes, including the header.
    pub fn written(&self) -> usize {
        self.out.len
    }

    /// Completes the message and returns it.
    ///
    /// # Errors
    ///
    /// [`BufferTooSmall`] if the message does not fit. The content of the buffer is then undefined.
    pub fn finish(self) -> Result<&'b [u8], BufferTooSmall> {
        self.finish_with_length_of(0)
    }

    /// Completes the message and returns its length in bytes, for a caller that still needs the buffer.
    ///
    /// # Errors
    ///
    /// As [`Self::finish`].
    pub fn finish_len(self) -> Result<usize, BufferTooSmall> {
        self.finish().map(<[u8]>::len)
    }

    /// Completes the message with the header of a DATA attribute, and returns it without the value.
    ///
    /// The caller appends the `data_len` bytes of the value and [`data_padding`](super::attribute::data_padding) zero
    /// bytes. If XOR-PEER-ADDRESS is the only other attribute, the returned part has 36 bytes for an IPv4 peer and 48
    /// for an IPv6 peer.
    ///
    /// # Errors
    ///
    /// As [`Self::finish`].
    pub fn finish_with_data_header(mut self, data_len: usize) -> Result<&'b [u8], BufferTooSmall> {
        self.out.put(&AttributeType::DATA.number().to_be_bytes());
        self.out.put_u16_len(data_len);
        self.finish_with_length_of(data_len.saturating_add(padding(data_len)))
    }

    fn finish_with_length_of(mut self, data_len: usize) -> Result<&'b [u8], BufferTooSmall> {
        self.out.patch_u16(2, self.out.len.saturating_add(data_len).saturating_sub(HEADER_LEN));
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
    /// Overwrites the last padding. RFC 5769 pads with spaces.
    pub(super) fn repad(&mut self, count: usize, byte: u8) {
        let end = self.out.len;
        self.out.buffer[end - count..end].fill(byte);
    }
}
