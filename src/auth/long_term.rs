//! The key of a long-term credential.

use std::fmt;

use md5::{Digest, Md5};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The algorithm that derives a key from a password (RFC 8489 §18.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyAlgorithm {
    /// MD5 with a key of 16 bytes, for clients that support no other algorithm (RFC 8489 §18.5.1.1).
    Md5,
    /// SHA-256 with a key of 32 bytes (RFC 8489 §18.5.1.2).
    Sha256,
}

/// The key for message integrity, the digest of `username ":" realm ":" password` (RFC 8489 §9.2.2, §18.5.1).
///
/// It is zeroized on drop, redacted in `Debug` and compared in constant time.
#[derive(Clone)]
pub struct LongTermKey(Bytes);

#[derive(Clone)]
enum Bytes {
    Md5(Zeroizing<[u8; 16]>),
    Sha256(Zeroizing<[u8; 32]>),
}

impl LongTermKey {
    /// Derives the key with MD5, for clients that send no PASSWORD-ALGORITHM (RFC 8489 §9.2.2).
    ///
    /// See [`derive_by`](Self::derive_by).
    #[must_use]
    pub fn derive(username: &str, realm: &str, password: &[u8]) -> Self {
        Self::derive_by(KeyAlgorithm::Md5, username, realm, password)
    }

    /// Derives the key with the given algorithm.
    ///
    /// Quotes around `username` and `realm` and trailing NULs of all fields are removed (RFC 8489 §9.2.2). The strings
    /// must already conform to the OpaqueString profile (RFC 8265 §4.2), as every string of printable ASCII characters
    /// does.
    #[must_use]
    pub fn derive_by(algorithm: KeyAlgorithm, username: &str, realm: &str, password: &[u8]) -> Self {
        #[cfg(test)]
        DERIVATIONS.with(|derivations| derivations.set(derivations.get() + 1));
        let fields = [unquoted(username).as_bytes(), unquoted(realm).as_bytes(), without_trailing_nuls(password)];
        Self(match algorithm {
            KeyAlgorithm::Md5 => Bytes::Md5(Zeroizing::new(digest::<Md5>(fields).into())),
            KeyAlgorithm::Sha256 => Bytes::Sha256(Zeroizing::new(digest::<Sha256>(fields).into())),
        })
    }

    /// Parses the 32 hexadecimal digits of a key that was derived with MD5, with or without `0x` before them; `None` for
    /// any other text.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let mut key = Zeroizing::new([0; 16]);
        if digits.len() != 2 * key.len() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, at) in key.iter_mut().zip((0..digits.len()).step_by(2)) {
            *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self(Bytes::Md5(key)))
    }

    /// Returns the algorithm with which the key was derived.
    #[must_use]
    pub fn algorithm(&self) -> KeyAlgorithm {
        match self.0 {
            Bytes::Md5(_) => KeyAlgorithm::Md5,
            Bytes::Sha256(_) => KeyAlgorithm::Sha256,
        }
    }

    /// Returns the 16 or 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Md5(key) => key.as_slice(),
            Bytes::Sha256(key) => key.as_slice(),
        }
    }
}

#[cfg(test)]
thread_local! {
    /// The number of keys that this thread has derived.
    pub(crate) static DERIVATIONS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn digest<D: Digest>([username, realm, password]: [&[u8]; 3]) -> md5::digest::Output<D> {
    [username, b":", realm, b":", password].into_iter().fold(D::new(), D::chain_update).finalize()
}

fn unquoted(text: &str) -> &str {
    let text = text.trim_end_matches('\0');
    text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text)
}

fn without_trailing_nuls(mut bytes: &[u8]) -> &[u8] {
    while let Some(shorter) = bytes.strip_suffix(b"\0") {
        bytes = shorter;
    }
    bytes
}

impl fmt::Debug for LongTermKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LongTermKey(redacted)")
    }
}

impl PartialEq for LongTermKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

impl Eq for LongTermKey {}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8489 §9.2.2: the example in the text.
    #[test]
    fn key_of_the_rfc_example() {
        let key = LongTermKey::derive("user", "realm", b"pass");
        let expected = 0x8493_fbc5_3ba5_82fb_4c04_4c45_6bdc_40eb_u128;
        assert_eq!(key.as_bytes(), &expected.to_be_bytes());
    }

    #[test]
    fn an_md5_key_is_read_from_hexadecimal_digits() {
        const EXAMPLE: &str = "8493fbc53ba582fb4c044c456bdc40eb";
        let key = LongTermKey::derive("user", "realm", b"pass");
        for text in [EXAMPLE, &EXAMPLE.to_uppercase(), &format!("0x{EXAMPLE}")] {
            assert_eq!(LongTermKey::from_hex(text), Some(key.clone()), "{text}");
        }
        for wrong in ["", "0x", &EXAMPLE[1..], &format!("{EXAMPLE}0"), &EXAMPLE.replace("84", "8+"), "é"] {
            assert_eq!(LongTermKey::from_hex(wrong), None, "{wrong}");
        }
    }

    // RFC 8489 §18.5.1.2. From `printf user:realm:pass | sha256sum`.
    #[test]
    fn a_sha256_key_has_32_bytes() {
        let key = LongTermKey::derive_by(KeyAlgorithm::Sha256, "user", "realm", b"pass");
        let hex: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "07e934117abd40836e7c6329b54731b2b2d2a5f9a71f544922d75e0730d8251b");
        assert_ne!(key, LongTermKey::derive("user", "realm", b"pass"));
    }

    // RFC 8489 §9.2.2: "with any quotes and trailing nulls removed".
    #[test]
    fn quotes_and_trailing_nuls_are_ignored() {
        for algorithm in [KeyAlgorithm::Md5, KeyAlgorithm::Sha256] {
            let derive = |username, realm, password| LongTermKey::derive_by(algorithm, username, realm, password);
            let key = derive("user", "realm", b"pass".as_slice());
            assert_eq!(derive("\"user\"\0\0", "\"realm\"\0", b"pass\0\0\0"), key);
            assert_ne!(derive("user", "realm", b"\"pass\""), key);
            assert_ne!(derive("user\"", "realm", b"pass"), key);
        }
    }

    #[test]
    fn each_field_changes_the_key() {
        for algorithm in [KeyAlgorithm::Md5, KeyAlgorithm::Sha256] {
            let derive = |username, realm, password| LongTermKey::derive_by(algorithm, username, realm, password);
            let key = derive("user", "realm", b"pass".as_slice());
            assert_ne!(derive("User", "realm", b"pass"), key);
            assert_ne!(derive("user", "Realm", b"pass"), key);
            assert_ne!(derive("user", "realm", b"Pass"), key);
            assert_eq!(key.clone(), key);
        }
    }

    #[test]
    fn debug_shows_no_byte_of_a_key() {
        for algorithm in [KeyAlgorithm::Md5, KeyAlgorithm::Sha256] {
            let key = LongTermKey::derive_by(algorithm, "user", "realm", b"pass");
            assert_eq!(format!("{key:?}"), "LongTermKey(redacted)");
        }
    }
}
