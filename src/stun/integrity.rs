//! The three checksums over a message: MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256, FINGERPRINT (RFC 8489 §14.5–14.7).

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;

/// Length in bytes of the value of MESSAGE-INTEGRITY.
pub(super) const SHA1_LEN: usize = 20;
/// Length in bytes of the value of a MESSAGE-INTEGRITY-SHA256 that is not truncated.
pub(super) const SHA256_LEN: usize = 32;
/// Length in bytes of the value of FINGERPRINT.
pub(super) const FINGERPRINT_LEN: usize = 4;

/// RFC 8489 §14.7: keeps a CRC-32 that the application computed from passing for a FINGERPRINT.
const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// What a message's MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256 says about it under one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IntegrityStatus {
    /// The message has no such attribute.
    Absent,
    /// Whoever wrote the message has the key.
    Valid,
    /// The attribute does not match, or its length is not the one it must have.
    Wrong,
}

/// What a message's FINGERPRINT says about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FingerprintStatus {
    /// The message has no FINGERPRINT.
    Absent,
    /// The message is STUN, and is as it was sent.
    Valid,
    /// The attribute does not match, has a wrong length, or is not the last one.
    Wrong,
}

/// The part of a message that a checksum covers, with the length that its header has to show while it is computed.
///
/// A receiver has to adjust the length of a message that it may not change, so the header goes into the checksum in
/// pieces and nothing is copied.
#[derive(Clone, Copy)]
pub(super) struct Covered<'a> {
    message_type: [u8; 2],
    length: [u8; 2],
    rest: &'a [u8],
}

impl<'a> Covered<'a> {
    /// `message` is everything in front of the attribute of `value_len` bytes. `None` if it is shorter than a header or
    /// longer than its length field can say.
    pub(super) fn new(message: &'a [u8], value_len: usize) -> Option<Self> {
        let (&[t0, t1, _, _], rest) = message.split_first_chunk()?;
        let attributes = message.len().checked_sub(super::HEADER_LEN)?;
        let length = u16::try_from(attributes + super::ATTRIBUTE_HEADER_LEN + value_len).ok()?;
        Some(Self { message_type: [t0, t1], length: length.to_be_bytes(), rest })
    }

    fn feed<M: Mac + KeyInit>(self, key: &[u8]) -> M {
        #[expect(clippy::expect_used, reason = "HMAC is defined for keys of every length (RFC 2104 §2)")]
        let mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
        mac.chain_update(self.message_type).chain_update(self.length).chain_update(self.rest)
    }

    pub(super) fn sha1(self, key: &[u8]) -> [u8; SHA1_LEN] {
        self.feed::<Hmac<Sha1>>(key).finalize().into_bytes().into()
    }

    pub(super) fn sha256(self, key: &[u8]) -> [u8; SHA256_LEN] {
        self.feed::<Hmac<Sha256>>(key).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    pub(super) fn sha1_is(self, key: &[u8], value: &[u8; SHA1_LEN]) -> bool {
        self.feed::<Hmac<Sha1>>(key).verify_slice(value).is_ok()
    }

    /// Compares in constant time.
    pub(super) fn sha256_is(self, key: &[u8], value: &[u8; SHA256_LEN]) -> bool {
        self.feed::<Hmac<Sha256>>(key).verify_slice(value).is_ok()
    }

    pub(super) fn fingerprint(self) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.message_type);
        crc.update(&self.length);
        crc.update(self.rest);
        crc.finalize() ^ FINGERPRINT_XOR
    }
}
