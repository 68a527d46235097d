//! Attributes that are texts (RFC 8489 §14.3, §14.9, §14.10, §14.14, §14.16).
//!
//! A sender has to keep them below 128 characters, hence to 509 bytes at most; a receiver has to read 763 bytes, which
//! is what RFC 5389 allowed. The writer takes any text: its caller knows where the text comes from.

use super::{Attribute, AttributeError, EncodeAttribute};
use crate::stun::{AttributeType, TransactionId, ValueWriter};

/// RFC 8489 §14.3, §14.8–14.10, §14.14: the longest text that a receiver has to accept, in bytes.
const MAX_LEN: usize = 763;

/// RFC 8489 §14.16, in bytes.
const MAX_DOMAIN_LEN: usize = 255;

pub(super) fn decode(value: &[u8]) -> Result<&str, AttributeError> {
    if value.len() > MAX_LEN {
        return Err(AttributeError::TextTooLong);
    }
    std::str::from_utf8(value).map_err(|_| AttributeError::NotUtf8)
}

/// RFC 1123 §2.1: labels of letters, digits and inner hyphens, 1 to 63 bytes each; a dot may end the name.
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
    /// USERNAME (RFC 8489 §14.3). A sender keeps it below 509 bytes.
    Username, USERNAME, decode;
    /// REALM (RFC 8489 §14.9).
    Realm, REALM, decode;
    /// NONCE (RFC 8489 §14.10).
    Nonce, NONCE, decode;
    /// SOFTWARE (RFC 8489 §14.14).
    Software, SOFTWARE, decode;
    /// ALTERNATE-DOMAIN (RFC 8489 §14.16): the name that an alternate server's certificate has to match.
    AlternateDomain, ALTERNATE_DOMAIN, decode_domain;
}
