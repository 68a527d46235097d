//! The checksums of a message: MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 and FINGERPRINT (RFC 8489 §14.5–14.7).

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;

/// The length of the value of MESSAGE-INTEGRITY in bytes.
pub(super) const SHA1_LEN: usize = 20;
/// The length of the value of MESSAGE-INTEGRITY-SHA256 without truncation in bytes.
pub(super) const SHA256_LEN: usize = 32;
/// The length of the value of FINGERPRINT in bytes.
pub(super) const FINGERPRINT_LEN: usize = 4;

/// The value that is XORed with the CRC-32. It distinguishes FINGERPRINT from a CRC-32 of the application (RFC 8489
/// §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// The result of checking MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256 with a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IntegrityStatus {
    /// The message has no such attribute.
    Absent,
    /// The attribute matches: the sender has the key.
    Valid,
    /// The attribute does not match or has a wrong length.
    Wrong,
}

/// The result of checking FINGERPRINT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FingerprintStatus {
    /// The message has no FINGERPRINT.
    Absent,
    /// The attribute matches: the message is STUN and was not changed.
    Valid,
    /// The attribute does not match, has a wrong length, or is not the last one.
    Wrong,
}

/// The part of a message that a checksum covers, with the adjusted length of its header.
///
/// The message is not copied: the adjusted length is passed to the checksum separately.
#[derive(Clone, Copy)]
pub(super) struct Covered<'a> {
    message_type: [u8; 2],
    length: [u8; 2],
    rest: &'a [u8],
}

impl<'a> Covered<'a> {
    /// `message` is everything before the attribute, whose value has `value_len` bytes.
    ///
    /// `None` if it is shorter than a header, or too long for the length field.
    pub(super) fn new(message: &'a [u8], value_len: usize) -> Option<Self> {
        let (&[t0, t1, _, _], rest) = message.split_first_chunk()?;
        let attributes = message.len().checked_sub(super::HEADER_LEN)?;
        let length = u16::try_from(attributes + super::ATTRIBUTE_HEADER_LEN + value_len).ok()?;
        Some(Self { message_type: [t0, t1], length: length.to_be_bytes(), rest })
    }

    fn mac<M: Mac + KeyInit>(self, key: &[u8]) -> M {
        #[expect(clippy::expect_used, reason = "HMAC is defined for keys of every length (RFC 2104 §2)")]
        let mac = <M as KeyInit>::new_from_slice(key).expect("HMAC accepts a key of any length");
        mac.chain_update(self.message_type).chain_update(self.length).chain_update(self.rest)
    }

    pub(super) fn sha1(self, key: &[u8]) -> [u8; SHA1_LEN] {
        self.mac::<Hmac<Sha1>>(key).finalize().into_bytes().into()
    }

    pub(super) fn sha256(self, key: &[u8]) -> [u8; SHA256_LEN] {
        self.mac::<Hmac<Sha256>>(key).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    pub(super) fn verify_sha1(self, key: &[u8], value: &[u8; SHA1_LEN]) -> bool {
        self.mac::<Hmac<Sha1>>(key).verify_slice(value).is_ok()
    }

    /// Compares in constant time.
    pub(super) fn verify_sha256(self, key: &[u8], value: &[u8; SHA256_LEN]) -> bool {
        self.mac::<Hmac<Sha256>>(key).verify_slice(value).is_ok()
    }

    pub(super) fn fingerprint(self) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.message_type);
        crc.update(&self.length);
        crc.update(self.rest);
        crc.finalize() ^ FINGERPRINT_XOR
    }
}
