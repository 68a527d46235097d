//! Error responses: their codes and their content.

use std::fmt;

use crate::stun::{AttributeType, ErrorCode};
use crate::turn::limit::Limit;
use crate::turn::outcome::Outcome;
use crate::turn::shared::alternate::Redirect;

macro_rules! rejection_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:ident,)+) => {
        /// The code of an error response that this server sends (RFC 8489 §14.8, RFC 8656 §19).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum RejectionCode {
            $($(#[doc = $doc])+ $name,)+
        }

        impl RejectionCode {
            /// Every code, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the rejection code with this number; `None` if this server never sends it.
            #[must_use]
            pub fn of(code: ErrorCode) -> Option<Self> {
                match code {
                    $(ErrorCode::$code => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// Returns the code on the wire.
            #[must_use]
            pub const fn code(self) -> ErrorCode {
                match self {
                    $(Self::$name => ErrorCode::$code,)+
                }
            }
        }
    };
}

rejection_codes! {
    /// 300: the client is redirected to another server.
    TryAlternate = TRY_ALTERNATE,
    /// 400.
    BadRequest = BAD_REQUEST,
    /// 401.
    Unauthenticated = UNAUTHENTICATED,
    /// 403: the server denies the peer, or the client has a tunnel address.
    Forbidden = FORBIDDEN,
    /// 420.
    UnknownAttribute = UNKNOWN_ATTRIBUTE,
    /// 437.
    AllocationMismatch = ALLOCATION_MISMATCH,
    /// 438.
    StaleNonce = STALE_NONCE,
    /// 440.
    AddressFamilyNotSupported = ADDRESS_FAMILY_NOT_SUPPORTED,
    /// 441.
    WrongCredentials = WRONG_CREDENTIALS,
    /// 442.
    UnsupportedTransportProtocol = UNSUPPORTED_TRANSPORT_PROTOCOL,
    /// 443.
    PeerAddressFamilyMismatch = PEER_ADDRESS_FAMILY_MISMATCH,
    /// 486: a limit of the user.
    AllocationQuotaReached = ALLOCATION_QUOTA_REACHED,
    /// 500: the user database is not available.
    ServerError = SERVER_ERROR,
    /// 508.
    InsufficientCapacity = INSUFFICIENT_CAPACITY,
}

impl fmt::Display for RejectionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code().code())
    }
}

/// Why a request gets an error response, and the content of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// 300 with ALTERNATE-SERVER (RFC 8489 §10).
    TryAlternate(Redirect),
    /// 400 with this reason phrase.
    BadRequest(&'static str),
    /// 401 with a challenge: REALM, a new NONCE and PASSWORD-ALGORITHMS.
    Unauthenticated,
    Forbidden,
    /// 420 with UNKNOWN-ATTRIBUTES.
    UnknownAttributes(UnknownAttributeList),
    AllocationMismatch,
    /// 438 with the same challenge as a 401.
    StaleNonce,
    AddressFamilyNotSupported,
    WrongCredentials,
    UnsupportedTransportProtocol,
    PeerAddressFamilyMismatch,
    /// 500. It has no message integrity, because it is not known whether the client has the key.
    ServerError,
    /// 508 with this reason phrase.
    InsufficientCapacity(&'static str),
    /// 486 or 508, because this limit is reached.
    Limit(Limit),
}

impl Rejection {
    pub(crate) fn unknown_attributes(first: AttributeType, others: impl Iterator<Item = AttributeType>) -> Self {
        Self::UnknownAttributes(UnknownAttributeList::new(first, others))
    }

    pub(crate) fn code(&self) -> RejectionCode {
        match self {
            Self::TryAlternate(_) => RejectionCode::TryAlternate,
            Self::BadRequest(_) => RejectionCode::BadRequest,
            Self::Unauthenticated => RejectionCode::Unauthenticated,
            Self::Forbidden => RejectionCode::Forbidden,
            Self::UnknownAttributes(_) => RejectionCode::UnknownAttribute,
            Self::AllocationMismatch => RejectionCode::AllocationMismatch,
            Self::StaleNonce => RejectionCode::StaleNonce,
            Self::AddressFamilyNotSupported => RejectionCode::AddressFamilyNotSupported,
            Self::WrongCredentials => RejectionCode::WrongCredentials,
            Self::UnsupportedTransportProtocol => RejectionCode::UnsupportedTransportProtocol,
            Self::PeerAddressFamilyMismatch => RejectionCode::PeerAddressFamilyMismatch,
            Self::ServerError => RejectionCode::ServerError,
            Self::InsufficientCapacity(_) => RejectionCode::InsufficientCapacity,
            Self::Limit(limit) => limit.code(),
        }
    }

    /// Returns the reason phrase for an authenticated client.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(reason) | Self::InsufficientCapacity(reason) => reason,
            Self::Limit(limit) => limit.reason(),
            other => other.code().code().reason(),
        }
    }

    /// Returns the outcome that the request is counted under.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Limit(limit) => Outcome::RejectedByLimit(*limit),
            other => Outcome::Rejected(other.code()),
        }
    }

    /// Whether the response carries a challenge. RFC 8489 §9.2.4: such a response has no message integrity.
    pub(crate) fn is_challenge(&self) -> bool {
        matches!(self, Self::Unauthenticated | Self::StaleNonce)
    }
}

/// The maximum number of unknown attributes in one response.
const MAX_UNKNOWN: usize = 32;

/// The distinct attribute types of a 420 response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownAttributeList {
    kinds: [AttributeType; MAX_UNKNOWN],
    length: usize,
}

impl UnknownAttributeList {
    fn new(first: AttributeType, others: impl Iterator<Item = AttributeType>) -> Self {
        let mut list = Self { kinds: [AttributeType::new(0); MAX_UNKNOWN], length: 0 };
        for kind in std::iter::once(first).chain(others) {
            let listed = list.as_slice().contains(&kind);
            match list.kinds.get_mut(list.length) {
                Some(place) if !listed => {
                    *place = kind;
                    list.length += 1;
                }
                Some(_) => {}
                None => break,
            }
        }
        list
    }

    pub(crate) fn as_slice(&self) -> &[AttributeType] {
        self.kinds.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number() {
        for code in RejectionCode::ALL {
            assert_eq!(RejectionCode::of(code.code()), Some(*code));
        }
        assert_eq!(RejectionCode::of(ErrorCode::CONNECTION_ALREADY_EXISTS), None);
    }

    #[test]
    fn a_420_lists_each_type_once_and_32_at_most() {
        let kind = AttributeType::new;
        let list = UnknownAttributeList::new(kind(1), [kind(2), kind(1), kind(3)].into_iter());
        assert_eq!(list.as_slice(), [kind(1), kind(2), kind(3)]);
        assert_eq!(UnknownAttributeList::new(kind(1), (1..100).map(kind)).as_slice().len(), 32);
    }
}
