//! The fields of the message header (RFC 8489 §5).

use std::fmt;

/// The class of a message, from the two class bits of the message type (RFC 8489 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// A request, which expects a response.
    Request,
    /// An indication, which has no response.
    Indication,
    /// A success response.
    Success,
    /// An error response.
    Error,
}

/// A 12-bit STUN method (RFC 8489 §18.2, RFC 8656 §17, RFC 6062 §6.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method(u16);

impl Method {
    /// RFC 8489 §2.
    pub const BINDING: Self = Self(0x001);
    /// RFC 8656 §7.
    pub const ALLOCATE: Self = Self(0x003);
    /// RFC 8656 §8.
    pub const REFRESH: Self = Self(0x004);
    /// RFC 8656 §11; indications only.
    pub const SEND: Self = Self(0x006);
    /// RFC 8656 §11; indications only.
    pub const DATA: Self = Self(0x007);
    /// RFC 8656 §10.
    pub const CREATE_PERMISSION: Self = Self(0x008);
    /// RFC 8656 §12.
    pub const CHANNEL_BIND: Self = Self(0x009);
    /// RFC 6062 §4.3.
    pub const CONNECT: Self = Self(0x00A);
    /// RFC 6062 §4.3.
    pub const CONNECTION_BIND: Self = Self(0x00B);
    /// RFC 6062 §4.4; indications only.
    pub const CONNECTION_ATTEMPT: Self = Self(0x00C);

    /// Creates a method from its number; `None` if it has more than 12 bits.
    pub const fn new(number: u16) -> Option<Self> {
        if number <= 0xFFF { Some(Self(number)) } else { None }
    }

    /// Returns the number of the method, 0 to 0xFFF.
    pub const fn number(self) -> u16 {
        self.0
    }

    const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::BINDING => "Binding",
            Self::ALLOCATE => "Allocate",
            Self::REFRESH => "Refresh",
            Self::SEND => "Send",
            Self::DATA => "Data",
            Self::CREATE_PERMISSION => "CreatePermission",
            Self::CHANNEL_BIND => "ChannelBind",
            Self::CONNECT => "Connect",
            Self::CONNECTION_BIND => "ConnectionBind",
            Self::CONNECTION_ATTEMPT => "ConnectionAttempt",
            _ => return None,
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "0x{:03X}", self.0),
        }
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Method({self})")
    }
}

/// The 96-bit identifier that a request and its response share (RFC 8489 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId([u8; 12]);

impl TransactionId {
    /// Creates a transaction ID from its bytes in network byte order.
    pub const fn new(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// Returns the twelve bytes in network byte order.
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Encodes the 14-bit message type. The class bits C1 and C0 are between the method bits (RFC 8489 §5, figure 3).
pub(super) const fn encode_message_type(class: Class, Method(method): Method) -> u16 {
    let class = match class {
        Class::Request => 0x0000,
        Class::Indication => 0x0010,
        Class::Success => 0x0100,
        Class::Error => 0x0110,
    };
    (method & 0xF80) << 2 | (method & 0x070) << 1 | method & 0x00F | class
}

/// Decodes the message type; `None` if the two most significant bits are not zero.
pub(super) const fn decode_message_type(value: u16) -> Option<(Class, Method)> {
    if value & 0xC000 != 0 {
        return None;
    }
    let class = match (value & 0x0100 != 0, value & 0x0010 != 0) {
        (false, false) => Class::Request,
        (false, true) => Class::Indication,
        (true, false) => Class::Success,
        (true, true) => Class::Error,
    };
    Some((class, Method((value & 0x3E00) >> 2 | (value & 0x00E0) >> 1 | value & 0x000F)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: [Class; 4] = [Class::Request, Class::Indication, Class::Success, Class::Error];

    // RFC 8489 §5
    #[test]
    fn every_class_and_method_is_encoded_and_decoded() {
        for class in CLASSES {
            for number in 0..=0xFFF {
                let method = Method::new(number).unwrap();
                let value = encode_message_type(class, method);
                assert_eq!(value & 0xC000, 0);
                assert_eq!(decode_message_type(value), Some((class, method)));
            }
        }
    }

    // RFC 8489 §5: a Binding request is 0x0001, its success response 0x0101.
    #[test]
    fn message_types_have_their_published_values() {
        assert_eq!(encode_message_type(Class::Request, Method::BINDING), 0x0001);
        assert_eq!(encode_message_type(Class::Success, Method::BINDING), 0x0101);
        assert_eq!(encode_message_type(Class::Error, Method::ALLOCATE), 0x0113);
        assert_eq!(encode_message_type(Class::Indication, Method::SEND), 0x0016);
        assert_eq!(encode_message_type(Class::Indication, Method::DATA), 0x0017);
    }

    #[test]
    fn message_type_with_a_leading_bit_is_invalid() {
        assert_eq!(decode_message_type(0x4001), None);
        assert_eq!(decode_message_type(0x8001), None);
    }

    #[test]
    fn method_of_thirteen_bits_is_invalid() {
        assert_eq!(Method::new(0x1000), None);
        assert_eq!(Method::new(0x003), Some(Method::ALLOCATE));
    }

    #[test]
    fn methods_are_displayed_with_their_rfc_names() {
        assert_eq!(Method::CREATE_PERMISSION.to_string(), "CreatePermission");
        assert_eq!(Method::new(0x0AB).unwrap().to_string(), "0x0AB");
        assert_eq!(format!("{:?}", TransactionId::new([0xAB; 12])), "ab".repeat(12));
    }
}
