//! The key of a long-term credential.

use std::fmt;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The 16-byte key `MD5(username ":" realm ":" password)` under which a request's MESSAGE-INTEGRITY is computed
/// (RFC 8489 §9.2.2). Zeroised on drop, redacted in `Debug`, compared in constant time.
#[derive(Clone)]
pub struct LongTermKey(Zeroizing<[u8; 16]>);

impl LongTermKey {
    /// Derives the key. Quotes around `username` and `realm` and NULs behind each field do not count
    /// (RFC 8489 §9.2.2). The strings are expected in the form that the OpaqueString profile (RFC 8265 §4.2) gives
    /// them, which any string of ASCII letters, digits, punctuation and spaces already has.
    #[must_use]
    pub fn derive(username: &str, realm: &str, password: &[u8]) -> Self {
        let digest = Md5::new()
            .chain_update(unquoted(username))
            .chain_update(b":")
            .chain_update(unquoted(realm))
            .chain_update(b":")
            .chain_update(without_trailing_nuls(password))
            .finalize();
        Self(Zeroizing::new(digest.into()))
    }

    /// The key bytes, for the HMAC.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
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
        self.0.ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for LongTermKey {}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8489 §9.2.2: the example in the text
    #[test]
    fn key_of_the_rfc_example() {
        let key = LongTermKey::derive("user", "realm", b"pass");
        let expected = 0x8493_fbc5_3ba5_82fb_4c04_4c45_6bdc_40eb_u128;
        assert_eq!(key.as_bytes(), &expected.to_be_bytes());
    }

    // RFC 8489 §9.2.2: "with any quotes and trailing nulls removed"
    #[test]
    fn quotes_and_trailing_nuls_do_not_count() {
        let key = LongTermKey::derive("user", "realm", b"pass");
        assert_eq!(LongTermKey::derive("\"user\"\0\0", "\"realm\"\0", b"pass\0\0\0"), key);
        assert_ne!(LongTermKey::derive("user", "realm", b"\"pass\""), key);
        assert_ne!(LongTermKey::derive("user\"", "realm", b"pass"), key);
    }

    #[test]
    fn each_field_counts() {
        let key = LongTermKey::derive("user", "realm", b"pass");
        assert_ne!(LongTermKey::derive("User", "realm", b"pass"), key);
        assert_ne!(LongTermKey::derive("user", "Realm", b"pass"), key);
        assert_ne!(LongTermKey::derive("user", "realm", b"Pass"), key);
        assert_eq!(key.clone(), key);
    }

    #[test]
    fn debug_shows_no_byte_of_a_key() {
        let key = LongTermKey::derive("user", "realm", b"pass");
        assert_eq!(format!("{key:?}"), "LongTermKey(redacted)");
    }
}
