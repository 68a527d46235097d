//! Why a request of a client failed: what was expected, and what came.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::printable::Escaped;
use crate::stun::attribute::{AddressFamily, AttributeError, ErrorCodeAttribute, UnknownAttributes};
use crate::stun::{Attribute, AttributeType, ErrorCode, Message};

/// An error response that the server sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The error code, 300 to 699.
    pub code: ErrorCode,
    /// The reason phrase, as the server wrote it, or that of the RFC if the server wrote none.
    pub reason: String,
    /// The attributes that the server did not understand (420).
    pub unknown: Vec<AttributeType>,
}

/// Why a response was discarded, as if it had never come (RFC 8489 §9.2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// A response to a request with credentials without MESSAGE-INTEGRITY, with its error code if it is an error.
    Unauthenticated(Option<ErrorCode>),
    /// The integrity attribute does not match the key: the server has another key, or the response was changed.
    WrongIntegrity,
    /// The nonce announces password algorithms, but the response does not list them: it was changed.
    AlgorithmsRemoved,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No response came in time.
    NoResponse {
        /// How often the request was sent.
        transmissions: u32,
        /// The time from the first transmission.
        waited: Duration,
    },
    /// Responses came, but none that the server demonstrably sent (RFC 8489 §9.2.5). This is why the last one was
    /// discarded.
    NotAuthentic(Discarded),
    /// The server wants credentials, and there are none.
    CredentialsRequired {
        /// The realm of the challenge.
        realm: String,
    },
    /// The server does not accept the credentials (401 or 441).
    CredentialsRefused {
        /// The realm for which they were used.
        realm: String,
        /// What the server sent.
        rejection: Rejection,
    },
    /// The server called each nonce stale that it had sent (438).
    StaleNonces {
        /// How many it sent.
        nonces: u32,
    },
    /// None of the password algorithms of the server is supported. These are their numbers (RFC 8489 §18.5).
    NoCommonAlgorithm(Vec<u16>),
    /// The nonce of a challenge announces password algorithms, but the challenge does not list them: it was changed
    /// (RFC 8489 §9.2.5).
    AlgorithmsRemoved,
    /// The server names another one (300).
    TryAlternate {
        /// The addresses, in the order of the server.
        servers: Vec<SocketAddr>,
        /// The name in the certificate of that server.
        domain: Option<String>,
    },
    /// Another error response.
    Rejected(Rejection),
    /// The response lacks an attribute.
    Missing(AttributeType),
    /// The allocation has no relayed address of a family that was requested.
    FamilyMissing(AddressFamily),
    /// The value of an attribute of the response is malformed.
    Malformed(AttributeType, AttributeError),
    /// The response contains attributes that must be understood, but are not (RFC 8489 §6.3.3).
    NotUnderstood(Vec<AttributeType>),
    /// The request does not fit into a message.
    TooLong,
}

/// Error codes that mean that the credentials are wrong.
pub(super) fn refuses_credentials(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::UNAUTHENTICATED | ErrorCode::WRONG_CREDENTIALS)
}

impl Rejection {
    /// Reads an error response.
    pub(super) fn of(message: &Message<'_>) -> Result<Self, Failure> {
        let error: ErrorCodeAttribute<'_> = required(message)?;
        let unknown = message.get::<UnknownAttributes<'_>>().ok().flatten();
        Ok(Self {
            code: error.code,
            reason: if error.reason.is_empty() { error.code.reason() } else { error.reason }.to_owned(),
            unknown: unknown.into_iter().flat_map(|unknown| unknown.iter()).collect(),
        })
    }
}

/// Reads an attribute that a message may lack.
pub(super) fn optional<'a, A: Attribute<'a>>(message: &Message<'a>) -> Result<Option<A>, Failure> {
    message.get().map_err(|error| Failure::Malformed(A::TYPE, error))
}

/// Reads an attribute that a message must have.
pub(super) fn required<'a, A: Attribute<'a>>(message: &Message<'a>) -> Result<A, Failure> {
    optional(message)?.ok_or(Failure::Missing(A::TYPE))
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.code.code(), Escaped(&self.reason))?;
        if !self.unknown.is_empty() {
            write!(f, ", which names {}", List(&self.unknown))?;
        }
        Ok(())
    }
}

impl fmt::Display for Discarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthenticated(None) => f.write_str("a success response without MESSAGE-INTEGRITY"),
            Self::Unauthenticated(Some(code)) => {
                write!(f, "{} ({}) without MESSAGE-INTEGRITY", code.code(), code.reason())
            }
            Self::WrongIntegrity => f.write_str("a response with a wrong MESSAGE-INTEGRITY"),
            Self::AlgorithmsRemoved => f.write_str("a response from which PASSWORD-ALGORITHMS was removed"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoResponse { transmissions, waited } => {
                let times = if *transmissions == 1 { "once".to_owned() } else { format!("{transmissions} times") };
                write!(f, "no response within {:.1} s; the request was sent {times}", waited.as_secs_f64())
            }
            Self::NotAuthentic(discarded) => write!(f, "expected a response with valid integrity, got {discarded}"),
            Self::CredentialsRequired { realm } => {
                write!(f, "the server wants credentials for the realm \"{}\"", Escaped(realm))
            }
            Self::CredentialsRefused { realm, rejection } => {
                write!(f, "the credentials are refused in the realm \"{}\": {rejection}", Escaped(realm))
            }
            Self::StaleNonces { nonces } => write!(f, "the server called {nonces} of its own nonces stale (438)"),
            Self::NoCommonAlgorithm(numbers) => {
                let numbers: Vec<String> = numbers.iter().map(u16::to_string).collect();
                write!(f, "the password algorithms of the server are not supported: {}", numbers.join(", "))
            }
            Self::AlgorithmsRemoved => f.write_str(
                "the nonce announces password algorithms, but the challenge lists none: something between client and \
                 server changes messages",
            ),
            Self::TryAlternate { servers, domain } => {
                let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
                write!(f, "the server refers to another one (300): {}", servers.join(", "))?;
                domain.as_ref().map_or(Ok(()), |domain| write!(f, " ({})", Escaped(domain)))
            }
            Self::Rejected(rejection) => write!(f, "the server rejects the request: {rejection}"),
            Self::Missing(kind) => write!(f, "the response lacks {kind}"),
            Self::FamilyMissing(family) => {
                let version = if *family == AddressFamily::V4 { 4 } else { 6 };
                write!(f, "expected a relayed IPv{version} address, but the server gave none")
            }
            Self::Malformed(kind, error) => write!(f, "{kind} in the response is malformed: {error}"),
            Self::NotUnderstood(kinds) => {
                write!(f, "the response contains attributes that must be understood: {}", List(kinds))
            }
            Self::TooLong => f.write_str("the request does not fit into a message"),
        }
    }
}

impl std::error::Error for Failure {}

/// Attribute types, separated by commas.
struct List<'a>(&'a [AttributeType]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, kind) in self.0.iter().enumerate() {
            write!(f, "{}{kind}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
