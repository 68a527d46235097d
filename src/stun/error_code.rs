//! Error codes and their recommended reason phrases (RFC 8489 §14.8, RFC 8656 §19, RFC 6062 §6.3).

use std::fmt;

/// An error code between 300 and 699 (RFC 8489 §14.8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorCode(u16);

impl ErrorCode {
    /// The client should use another server.
    pub const TRY_ALTERNATE: Self = Self(300);
    /// The request is malformed.
    pub const BAD_REQUEST: Self = Self(400);
    /// The request does not have valid credentials.
    pub const UNAUTHENTICATED: Self = Self(401);
    /// The request is forbidden by an administrative rule.
    pub const FORBIDDEN: Self = Self(403);
    /// A comprehension-required attribute is not understood.
    pub const UNKNOWN_ATTRIBUTE: Self = Self(420);
    /// No allocation exists, or one exists already.
    pub const ALLOCATION_MISMATCH: Self = Self(437);
    /// The nonce is no longer valid.
    pub const STALE_NONCE: Self = Self(438);
    /// The server does not relay for the requested address family.
    pub const ADDRESS_FAMILY_NOT_SUPPORTED: Self = Self(440);
    /// The credentials are not those that created the allocation.
    pub const WRONG_CREDENTIALS: Self = Self(441);
    /// The server cannot relay over the requested transport.
    pub const UNSUPPORTED_TRANSPORT_PROTOCOL: Self = Self(442);
    /// The peer's address family is not that of the relayed transport address.
    pub const PEER_ADDRESS_FAMILY_MISMATCH: Self = Self(443);
    /// A connection to the peer already exists (RFC 6062).
    pub const CONNECTION_ALREADY_EXISTS: Self = Self(446);
    /// The connection to the peer failed or timed out (RFC 6062).
    pub const CONNECTION_TIMEOUT_OR_FAILURE: Self = Self(447);
    /// The user has reached the quota of allocations.
    pub const ALLOCATION_QUOTA_REACHED: Self = Self(486);
    /// The server has a temporary error.
    pub const SERVER_ERROR: Self = Self(500);
    /// The server has exhausted a resource.
    pub const INSUFFICIENT_CAPACITY: Self = Self(508);

    /// Creates an error code; `None` if it is outside 300 to 699.
    pub const fn new(code: u16) -> Option<Self> {
        if matches!(code, 300..=699) { Some(Self(code)) } else { None }
    }

    /// Returns the code as a number, 300 to 699.
    pub const fn code(self) -> u16 {
        self.0
    }

    /// Returns the recommended reason phrase, which is empty for a code without a constant.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TRY_ALTERNATE => "Try Alternate",
            Self::BAD_REQUEST => "Bad Request",
            Self::UNAUTHENTICATED => "Unauthenticated",
            Self::FORBIDDEN => "Forbidden",
            Self::UNKNOWN_ATTRIBUTE => "Unknown Attribute",
            Self::ALLOCATION_MISMATCH => "Allocation Mismatch",
            Self::STALE_NONCE => "Stale Nonce",
            Self::ADDRESS_FAMILY_NOT_SUPPORTED => "Address Family not Supported",
            Self::WRONG_CREDENTIALS => "Wrong Credentials",
            Self::UNSUPPORTED_TRANSPORT_PROTOCOL => "Unsupported Transport Protocol",
            Self::PEER_ADDRESS_FAMILY_MISMATCH => "Peer Address Family Mismatch",
            Self::CONNECTION_ALREADY_EXISTS => "Connection Already Exists",
            Self::CONNECTION_TIMEOUT_OR_FAILURE => "Connection Timeout or Failure",
            Self::ALLOCATION_QUOTA_REACHED => "Allocation Quota Reached",
            Self::SERVER_ERROR => "Server Error",
            Self::INSUFFICIENT_CAPACITY => "Insufficient Capacity",
            _ => "",
        }
    }

    /// Returns the class, 3 to 6, and the number, 0 to 99, of the attribute.
    pub(super) const fn class_and_number(self) -> [u8; 2] {
        // Both values are below 100, so the low byte is sufficient.
        [(self.0 / 100).to_be_bytes()[1], (self.0 % 100).to_be_bytes()[1]]
    }

    /// Creates an error code from class and number. Only the low three bits of the class are used (RFC 8489 §14.8).
    pub(super) const fn from_class_and_number([class, number]: [u8; 2]) -> Option<Self> {
        let class = class & 0x07;
        if matches!(class, 3..=6) && number <= 99 { Some(Self(class as u16 * 100 + number as u16)) } else { None }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            "" => write!(f, "{}", self.0),
            reason => write!(f, "{} {reason}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ErrorCode({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8489 §14.8
    #[test]
    fn every_code_is_encoded_and_decoded() {
        for code in 300..=699 {
            let code = ErrorCode::new(code).unwrap();
            let [class, number] = code.class_and_number();
            assert_eq!(u16::from(class) * 100 + u16::from(number), code.code());
            assert_eq!(ErrorCode::from_class_and_number([class, number]), Some(code));
        }
    }

    // RFC 8489 §14.8
    #[test]
    fn reserved_bits_before_the_class_are_ignored() {
        assert_eq!(ErrorCode::from_class_and_number([0xFC, 1]), Some(ErrorCode::UNAUTHENTICATED));
    }

    // RFC 8489 §14.8: class 3 to 6, number 0 to 99
    #[test]
    fn codes_out_of_range_are_invalid() {
        assert_eq!(ErrorCode::new(299), None);
        assert_eq!(ErrorCode::new(700), None);
        for pair in [[2, 0], [7, 0], [0, 0], [4, 100], [4, 255]] {
            assert_eq!(ErrorCode::from_class_and_number(pair), None);
        }
    }

    // RFC 8489 §14.8, RFC 8656 §18.12: fewer than 128 characters
    #[test]
    fn reason_phrases_are_short() {
        let phrases: Vec<&str> = (300..=699).map(|code| ErrorCode::new(code).unwrap().reason()).collect();
        assert!(phrases.iter().all(|phrase| phrase.chars().count() < 128));
        assert!(phrases.iter().filter(|phrase| !phrase.is_empty()).count() >= 16);
    }

    #[test]
    fn codes_are_displayed_with_their_reason_phrase() {
        assert_eq!(ErrorCode::STALE_NONCE.to_string(), "438 Stale Nonce");
        assert_eq!(ErrorCode::new(699).unwrap().to_string(), "699");
    }
}
