//! Attribute types (RFC 8489 §18.3, RFC 8656 §18 and extensions that clients send).

use std::fmt;

/// The 16-bit type of an attribute (RFC 8489 §14).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeType(u16);

macro_rules! attribute_types {
    ($($constant:ident = $number:literal, $name:literal, $reference:literal;)*) => {
        impl AttributeType {
            $(#[doc = $reference] pub const $constant: Self = Self($number);)*

            const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$constant => Some($name),)*
                    _ => None,
                }
            }
        }
    };
}

attribute_types! {
    MAPPED_ADDRESS = 0x0001, "MAPPED-ADDRESS", "RFC 8489 §14.1";
    CHANGE_REQUEST = 0x0003, "CHANGE-REQUEST", "RFC 5780 §7.2";
    USERNAME = 0x0006, "USERNAME", "RFC 8489 §14.3";
    MESSAGE_INTEGRITY = 0x0008, "MESSAGE-INTEGRITY", "RFC 8489 §14.5";
    ERROR_CODE = 0x0009, "ERROR-CODE", "RFC 8489 §14.8";
    UNKNOWN_ATTRIBUTES = 0x000A, "UNKNOWN-ATTRIBUTES", "RFC 8489 §14.13";
    CHANNEL_NUMBER = 0x000C, "CHANNEL-NUMBER", "RFC 8656 §18.1";
    LIFETIME = 0x000D, "LIFETIME", "RFC 8656 §18.2";
    XOR_PEER_ADDRESS = 0x0012, "XOR-PEER-ADDRESS", "RFC 8656 §18.3";
    DATA = 0x0013, "DATA", "RFC 8656 §18.4";
    REALM = 0x0014, "REALM", "RFC 8489 §14.9";
    NONCE = 0x0015, "NONCE", "RFC 8489 §14.10";
    XOR_RELAYED_ADDRESS = 0x0016, "XOR-RELAYED-ADDRESS", "RFC 8656 §18.5";
    REQUESTED_ADDRESS_FAMILY = 0x0017, "REQUESTED-ADDRESS-FAMILY", "RFC 8656 §18.6";
    EVEN_PORT = 0x0018, "EVEN-PORT", "RFC 8656 §18.7";
    REQUESTED_TRANSPORT = 0x0019, "REQUESTED-TRANSPORT", "RFC 8656 §18.8";
    DONT_FRAGMENT = 0x001A, "DONT-FRAGMENT", "RFC 8656 §18.9";
    ACCESS_TOKEN = 0x001B, "ACCESS-TOKEN", "RFC 7635 §6.2";
    MESSAGE_INTEGRITY_SHA256 = 0x001C, "MESSAGE-INTEGRITY-SHA256", "RFC 8489 §14.6";
    PASSWORD_ALGORITHM = 0x001D, "PASSWORD-ALGORITHM", "RFC 8489 §14.12";
    USERHASH = 0x001E, "USERHASH", "RFC 8489 §14.4";
    XOR_MAPPED_ADDRESS = 0x0020, "XOR-MAPPED-ADDRESS", "RFC 8489 §14.2";
    RESERVATION_TOKEN = 0x0022, "RESERVATION-TOKEN", "RFC 8656 §18.10";
    PRIORITY = 0x0024, "PRIORITY", "RFC 8445 §16.1";
    USE_CANDIDATE = 0x0025, "USE-CANDIDATE", "RFC 8445 §16.1";
    PADDING = 0x0026, "PADDING", "RFC 5780 §7.6";
    RESPONSE_PORT = 0x0027, "RESPONSE-PORT", "RFC 5780 §7.5";
    CONNECTION_ID = 0x002A, "CONNECTION-ID", "RFC 6062 §6.2.1";
    ADDITIONAL_ADDRESS_FAMILY = 0x8000, "ADDITIONAL-ADDRESS-FAMILY", "RFC 8656 §18.11";
    ADDRESS_ERROR_CODE = 0x8001, "ADDRESS-ERROR-CODE", "RFC 8656 §18.12";
    PASSWORD_ALGORITHMS = 0x8002, "PASSWORD-ALGORITHMS", "RFC 8489 §14.11";
    ALTERNATE_DOMAIN = 0x8003, "ALTERNATE-DOMAIN", "RFC 8489 §14.16";
    ICMP = 0x8004, "ICMP", "RFC 8656 §18.13";
    DRAFT_ADDITIONAL_ADDRESS_FAMILY = 0x8032, "ADDITIONAL-ADDRESS-FAMILY (draft)", "A draft of RFC 8656, used by coturn";
    DRAFT_ADDRESS_ERROR_CODE = 0x8033, "ADDRESS-ERROR-CODE (draft)", "A draft of RFC 8656, used by coturn";
    SOFTWARE = 0x8022, "SOFTWARE", "RFC 8489 §14.14";
    ALTERNATE_SERVER = 0x8023, "ALTERNATE-SERVER", "RFC 8489 §14.15";
    FINGERPRINT = 0x8028, "FINGERPRINT", "RFC 8489 §14.7";
    ICE_CONTROLLED = 0x8029, "ICE-CONTROLLED", "RFC 8445 §16.1";
    ICE_CONTROLLING = 0x802A, "ICE-CONTROLLING", "RFC 8445 §16.1";
    RESPONSE_ORIGIN = 0x802B, "RESPONSE-ORIGIN", "RFC 5780 §7.3";
    OTHER_ADDRESS = 0x802C, "OTHER-ADDRESS", "RFC 5780 §7.4";
    THIRD_PARTY_AUTHORIZATION = 0x802E, "THIRD-PARTY-AUTHORIZATION", "RFC 7635 §6.1";
    MOBILITY_TICKET = 0x8030, "MOBILITY-TICKET", "RFC 8016 §5";
}

impl AttributeType {
    /// Creates an attribute type from its number. Every number is valid.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Returns the number of the type.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Returns whether the attribute is comprehension-required (RFC 8489 §14).
    pub const fn is_comprehension_required(self) -> bool {
        self.0 < 0x8000
    }
}

impl fmt::Display for AttributeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "0x{:04X}", self.0),
        }
    }
}

impl fmt::Debug for AttributeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttributeType({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8489 §14
    #[test]
    fn the_upper_half_of_the_types_is_comprehension_optional() {
        assert!(AttributeType::new(0x0000).is_comprehension_required());
        assert!(AttributeType::new(0x7FFF).is_comprehension_required());
        assert!(!AttributeType::new(0x8000).is_comprehension_required());
        assert!(!AttributeType::new(0xFFFF).is_comprehension_required());
    }

    #[test]
    fn attribute_types_are_displayed_with_their_rfc_names() {
        assert_eq!(AttributeType::XOR_RELAYED_ADDRESS.to_string(), "XOR-RELAYED-ADDRESS");
        assert_eq!(AttributeType::new(0x7ABC).to_string(), "0x7ABC");
    }
}
