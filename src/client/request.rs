//! What a client requests, and what it gets.

use std::net::SocketAddr;
use std::time::Duration;

use super::failure::{Failure, optional, required};
use crate::stun::attribute::{
    AdditionalAddressFamily, AddressErrorCode, AddressFamily, ChannelNumber, DontFragment, EvenPort, Lifetime,
    RequestedAddressFamily, RequestedTransport, ReservationToken, XorMappedAddress, XorPeerAddress, XorRelayedAddress,
};
use crate::stun::{AttributeType, ErrorCode, Message, MessageWriter, Method};

/// What a client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Binding: its own address, as the server sees it (RFC 8489 §12).
    Binding,
    /// Allocate (RFC 8656 §7).
    Allocate(Allocate),
    /// Refresh with a lifetime in seconds; 0 deletes the allocation (RFC 8656 §8).
    Refresh(u32),
    /// CreatePermission for the addresses of these peers (RFC 8656 §10).
    CreatePermission(Vec<SocketAddr>),
    /// ChannelBind (RFC 8656 §12).
    ChannelBind {
        /// The channel, 0x4000 to 0x4FFF.
        channel: u16,
        /// The peer.
        peer: SocketAddr,
    },
}

/// The options of an Allocate request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocate {
    /// The families of the relayed addresses.
    pub families: Families,
    /// The requested lifetime in seconds. The server chooses without it.
    pub lifetime: Option<u32>,
    /// Requests DONT-FRAGMENT, which a server may not support (420).
    pub dont_fragment: bool,
    /// Requests an even port; `Some(true)` also reserves the next one.
    pub even_port: Option<bool>,
    /// The token of a port that was reserved.
    pub reservation: Option<[u8; 8]>,
}

/// The families of the relayed addresses that a client requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// What the server gives without an attribute: IPv4 (RFC 8656 §7.1).
    #[default]
    Unstated,
    /// REQUESTED-ADDRESS-FAMILY.
    One(AddressFamily),
    /// IPv4, and IPv6 by ADDITIONAL-ADDRESS-FAMILY.
    Both,
}

/// What a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Success {
    /// The address of the client, as the server sees it.
    Binding(SocketAddr),
    /// The allocation.
    Allocate(Allocation),
    /// The lifetime of the allocation, if the server names it.
    Refresh(Option<Duration>),
    /// Permissions for all peers.
    CreatePermission,
    /// The channel is bound.
    ChannelBind,
}

/// An allocation, as the server describes it (RFC 8656 §7.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The relayed addresses: one, or one of each family.
    pub relayed: Vec<SocketAddr>,
    /// The address of the client, as the server sees it.
    pub mapped: SocketAddr,
    /// The time until it expires without a Refresh.
    pub lifetime: Duration,
    /// The token of the reserved port.
    pub reservation: Option<[u8; 8]>,
    /// The family of two that the server does not give, and why.
    pub refused: Option<(AddressFamily, ErrorCode)>,
}

impl Request {
    /// Returns the STUN method.
    #[must_use]
    pub fn method(&self) -> Method {
        match self {
            Self::Binding => Method::BINDING,
            Self::Allocate(_) => Method::ALLOCATE,
            Self::Refresh(_) => Method::REFRESH,
            Self::CreatePermission(_) => Method::CREATE_PERMISSION,
            Self::ChannelBind { .. } => Method::CHANNEL_BIND,
        }
    }

    /// Writes the attributes of the request, without those that authenticate it.
    pub fn encode(&self, writer: &mut MessageWriter<'_>) {
        match self {
            Self::Binding => {}
            Self::Allocate(allocate) => allocate.encode(writer),
            Self::Refresh(lifetime) => writer.push(&Lifetime(*lifetime)),
            Self::CreatePermission(peers) => peers.iter().for_each(|peer| writer.push(&XorPeerAddress(*peer))),
            Self::ChannelBind { channel, peer } => {
                writer.push(&ChannelNumber(*channel));
                writer.push(&XorPeerAddress(*peer));
            }
        }
    }

    /// Reads a success response to this request.
    ///
    /// # Errors
    /// If it lacks an attribute that the client needs, or one is malformed, not understood or not what was requested.
    pub fn read(&self, response: &Message<'_>) -> Result<Success, Failure> {
        let unknown: Vec<AttributeType> = response.unknown_required(is_understood).collect();
        if !unknown.is_empty() {
            return Err(Failure::NotUnderstood(unknown));
        }
        Ok(match self {
            Self::Binding => Success::Binding(required::<XorMappedAddress>(response)?.0),
            Self::Allocate(allocate) => Success::Allocate(allocate.read(response)?),
            Self::Refresh(_) => {
                let lifetime = optional(response)?;
                Success::Refresh(lifetime.map(|Lifetime(seconds)| Duration::from_secs(seconds.into())))
            }
            Self::CreatePermission(_) => Success::CreatePermission,
            Self::ChannelBind { .. } => Success::ChannelBind,
        })
    }
}

impl Allocate {
    fn encode(&self, writer: &mut MessageWriter<'_>) {
        writer.push(&RequestedTransport::UDP);
        match self.families {
            Families::Unstated => {}
            Families::One(family) => writer.push(&RequestedAddressFamily(family)),
            Families::Both => writer.push(&AdditionalAddressFamily(AddressFamily::V6)),
        }
        if let Some(lifetime) = self.lifetime {
            writer.push(&Lifetime(lifetime));
        }
        if self.dont_fragment {
            writer.push(&DontFragment);
        }
        if let Some(reserve_next) = self.even_port {
            writer.push(&EvenPort { reserve_next });
        }
        if let Some(token) = self.reservation {
            writer.push(&ReservationToken(token));
        }
    }

    fn read(&self, response: &Message<'_>) -> Result<Allocation, Failure> {
        let kind = AttributeType::XOR_RELAYED_ADDRESS;
        let relayed: Result<Vec<XorRelayedAddress>, _> = response.all().collect();
        let relayed: Vec<_> =
            relayed.map_err(|error| Failure::Malformed(kind, error))?.into_iter().map(|relayed| relayed.0).collect();
        let (Lifetime(lifetime), XorMappedAddress(mapped)) = (required(response)?, required(response)?);
        let refused = optional::<AddressErrorCode<'_>>(response)?.map(|refused| (refused.family, refused.code));
        let has = |family| relayed.iter().any(|relayed| AddressFamily::of(relayed.ip()) == family);
        let lacks = |family: &AddressFamily| !has(*family) && refused.is_none_or(|(refused, _)| refused != *family);
        let wanted: &[AddressFamily] = match &self.families {
            // A server that gives another family than IPv4 breaks the RFC, but the client can use it.
            Families::Unstated => &[],
            Families::One(family) => std::slice::from_ref(family),
            Families::Both => &[AddressFamily::V4, AddressFamily::V6],
        };
        match wanted.iter().find(|family| lacks(family)) {
            Some(family) if !relayed.is_empty() => Err(Failure::FamilyMissing(*family)),
            _ if relayed.is_empty() => Err(Failure::Missing(kind)),
            _ => Ok(Allocation {
                relayed,
                mapped,
                lifetime: Duration::from_secs(lifetime.into()),
                reservation: optional(response)?.map(|ReservationToken(token)| token),
                refused,
            }),
        }
    }
}

/// The comprehension-required attributes that a client understands in a success response.
fn is_understood(kind: AttributeType) -> bool {
    [
        AttributeType::MAPPED_ADDRESS,
        AttributeType::XOR_MAPPED_ADDRESS,
        AttributeType::XOR_RELAYED_ADDRESS,
        AttributeType::LIFETIME,
        AttributeType::RESERVATION_TOKEN,
        AttributeType::USERNAME,
        AttributeType::USERHASH,
        AttributeType::REALM,
        AttributeType::NONCE,
        AttributeType::MESSAGE_INTEGRITY,
        AttributeType::MESSAGE_INTEGRITY_SHA256,
        AttributeType::PASSWORD_ALGORITHM,
    ]
    .contains(&kind)
}
