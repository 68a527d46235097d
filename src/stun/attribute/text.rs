//! Attributes whose value is text (RFC 8489 §14.3, §14.9, §14.10, §14.14, §14.16).
//!
//! A sender limits them to fewer than 128 characters, which have at most 508 bytes. A receiver must accept the 763
//! bytes of RFC 5389. The writer does not check the length, which is the responsibility of its caller.

use super::{Attribute, AttributeError, EncodeAttribute};
use crate::stun::{AttributeType, TransactionId, ValueWriter};

/// The longest text that a receiver must accept, in bytes (RFC 8489 §14.3, §14.8–14.10, §14.14).
const MAX_LEN: usize = 763;

/// The longest domain name in bytes (RFC 8489 §14.16).
const MAX_DOMAIN_LEN: usize = 255;

pub(super) fn decode(value: &[u8]) -> Result<&str, AttributeError> {
    if value.len() > MAX_LEN {
        return Err(AttributeError::TextTooLong);
    }
    std::str::from_utf8(value).map_err(|_| AttributeError::NotUtf8)
}

/// Decodes a domain name: labels of 1 to 63 letters, digits and inner hyphens, and an optional final dot (RFC 1123
/// §2.1).
fn decode_domain(value: &[u8]) -> Result<&str, AttributeError> {
    if value.len() > MAX_DOMAIN_LEN {
        return Err(AttributeError::TextTooLong);
    }
    let name = std::str::from_utf8(value).map_err(|_| AttributeError::NotADomainName)?;
    let is_label = |label: &str| {
        matches!(label.len(), 1..=63)
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if name.strip_suffix('.').unwrap_or(name).split('.').all(is_label) {
        Ok(name)
    } else {
        Err(AttributeError::NotADomainName)
    }
}

macro_rules! text_attributes {
    ($($(#[$doc:meta])* $name:ident, $kind:ident, $decode:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name<'a>(pub &'a str);

        impl<'a> Attribute<'a> for $name<'a> {
            const TYPE: AttributeType = AttributeType::$kind;

            fn decode(value: &'a [u8], _: TransactionId) -> Result<Self, AttributeError> {
                $decode(value).map(Self)
            }
        }

        impl EncodeAttribute for $name<'_> {
            fn kind(&self) -> AttributeType {
                Self::TYPE
            }

            fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
                value.put(self.0.as_bytes());
            }
        }
    )*};
}

text_attributes! {
    /// USERNAME (RFC 8489 §14.3). A sender limits it to fewer than 509 bytes.
    Username, USERNAME, decode;
    /// REALM (RFC 8489 §14.9).
    Realm, REALM, decode;
    /// NONCE (RFC 8489 §14.10).
    Nonce, NONCE, decode;
    /// SOFTWARE (RFC 8489 §14.14).
    Software, SOFTWARE, decode;
    /// ALTERNATE-DOMAIN (RFC 8489 §14.16): the name that the certificate of an alternate server must match.
    AlternateDomain, ALTERNATE_DOMAIN, decode_domain;
}
