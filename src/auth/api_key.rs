//! Keys with which applications get credentials over HTTP. The server knows only their SHA-256.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// The SHA-256 of a key. A key is random, so its hash needs no salt.
///
/// Redacted in `Debug`, compared in constant time.
#[derive(Clone)]
pub struct KeyHash([u8; KeyHash::LENGTH]);

impl KeyHash {
    /// The length in bytes.
    pub const LENGTH: usize = 32;

    /// Returns the hash of a key.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Parses 64 hexadecimal digits; `None` for any other text.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 2 * Self::LENGTH || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut hash = [0; Self::LENGTH];
        for (byte, at) in hash.iter_mut().zip((0..text.len()).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self(hash))
    }

    /// Returns the hash as 64 hexadecimal digits, for the configuration.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyHash {}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(redacted)")
    }
}

/// Returns the key that is made of 32 random bytes. Its prefix lets scanners for leaked keys recognize it.
#[must_use]
pub fn api_key(random: &[u8; 32]) -> Zeroizing<String> {
    let random = Zeroizing::new(URL_SAFE_NO_PAD.encode(random));
    Zeroizing::new(format!("turn_{}", random.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_hash_is_read_from_and_written_as_hexadecimal_digits() {
        let hash = KeyHash::of(b"abc");
        assert_eq!(hash.to_hex(), ABC);
        assert_eq!(KeyHash::from_hex(ABC), Some(hash.clone()));
        assert_eq!(KeyHash::from_hex(&ABC.to_uppercase()), Some(hash));
        assert_ne!(KeyHash::from_hex(ABC), Some(KeyHash::of(b"abd")));
        for wrong in ["", &ABC[1..], &format!("{ABC}0"), &ABC.replace("ba", "b+"), &ABC.replace("ba", "é")] {
            assert_eq!(KeyHash::from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn debug_shows_no_digit_of_a_hash() {
        assert_eq!(format!("{:?}", KeyHash::of(b"abc")), "KeyHash(redacted)");
    }

    #[test]
    fn a_key_has_every_random_bit_and_needs_no_escaping() {
        let key = api_key(&[0xff; 32]);
        assert_eq!(key.as_str(), format!("turn_{}8", "_".repeat(42)));
        assert!(api_key(&[7; 32]).bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'));
    }
}
