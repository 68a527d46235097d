//! Shared secrets and passwords.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A shared secret or a password. It is not empty, zeroized on drop, redacted in `Debug` and compared in constant time.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// A secret is empty. Anyone could create credentials with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret is empty")]
pub struct EmptySecret;

impl Secret {
    /// Creates a secret from its bytes.
    ///
    /// # Errors
    ///
    /// [`EmptySecret`] if there are none.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, EmptySecret> {
        let bytes = Zeroizing::new(bytes.into());
        if bytes.is_empty() { Err(EmptySecret) } else { Ok(Self(bytes)) }
    }

    /// Returns the bytes, for a MAC or a digest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_byte_of_a_secret() {
        let secret = Secret::new("north wind").unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
        assert_eq!(format!("{secret:#?}"), "Secret(redacted)");
    }

    #[test]
    fn an_empty_secret_is_an_error() {
        assert_eq!(Secret::new("").unwrap_err(), EmptySecret);
    }

    #[test]
    fn secrets_are_equal_when_their_bytes_are() {
        let secret = Secret::new("north wind").unwrap();
        assert_eq!(secret, Secret::new(b"north wind".to_vec()).unwrap());
        assert_ne!(secret, Secret::new("north wine").unwrap());
        assert_ne!(secret, Secret::new("north win").unwrap());
        assert_eq!(secret.clone().as_bytes(), b"north wind");
    }
}
