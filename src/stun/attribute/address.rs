//! Transport addresses, plain and XORed (RFC 8489 §14.1, §14.2, §14.15; RFC 8656 §18.3, §18.5).

use std::net::{IpAddr, SocketAddr};

use super::{Attribute, AttributeError, EncodeAttribute, read_all};
use crate::stun::reader::Reader;
use crate::stun::{AttributeType, MAGIC_COOKIE, TransactionId, ValueWriter};

/// The address families of RFC 8489 §14.1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AddressFamily {
    /// IPv4 (0x01).
    V4,
    /// IPv6 (0x02).
    V6,
}

impl AddressFamily {
    /// Returns the family of an address. An IPv4-mapped IPv6 address is an IPv6 address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(super) const fn number(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 2,
        }
    }

    pub(super) const fn from_number(number: u8) -> Result<Self, AttributeError> {
        match number {
            1 => Ok(Self::V4),
            2 => Ok(Self::V6),
            _ => Err(AttributeError::UnknownFamily),
        }
    }
}

impl From<&SocketAddr> for AddressFamily {
    fn from(address: &SocketAddr) -> Self {
        Self::of(address.ip())
    }
}

/// The value with which an address is XORed: the magic cookie followed by the transaction ID, or zero for a plain
/// address.
#[derive(Clone, Copy)]
struct Mask(u128);

impl Mask {
    const PLAIN: Self = Self(0);

    fn of(transaction_id: TransactionId) -> Self {
        let low = transaction_id.as_bytes().iter().fold(0, |bits, &byte| bits << 8 | u128::from(byte));
        Self(u128::from(MAGIC_COOKIE) << 96 | low)
    }

    /// XORs `bytes` with the mask, both for encoding and decoding.
    fn apply<const N: usize>(self, mut bytes: [u8; N]) -> [u8; N] {
        bytes.iter_mut().zip(self.0.to_be_bytes()).for_each(|(byte, mask)| *byte ^= mask);
        bytes
    }
}

fn decode(value: &[u8], mask: Mask) -> Result<SocketAddr, AttributeError> {
    let mut header = Reader::new(value);
    let (Some(_), Some(family)) = (header.u8(), header.u8()) else { return Err(AttributeError::WrongLength) };
    let family = AddressFamily::from_number(family)?;
    read_all(header.rest(), |reader| {
        let port = u16::from_be_bytes(mask.apply(*reader.array()?));
        let ip: IpAddr = match family {
            AddressFamily::V4 => mask.apply::<4>(*reader.array()?).into(),
            AddressFamily::V6 => mask.apply::<16>(*reader.array()?).into(),
        };
        Some(SocketAddr::new(ip, port))
    })
}

fn encode(address: &SocketAddr, mask: Mask, value: &mut ValueWriter<'_>) {
    value.put(&[0, AddressFamily::from(address).number()]);
    value.put(&mask.apply(address.port().to_be_bytes()));
    match address.ip() {
        IpAddr::V4(ip) => value.put(&mask.apply(ip.octets())),
        IpAddr::V6(ip) => value.put(&mask.apply(ip.octets())),
    }
}

macro_rules! address_attributes {
    ($($(#[$doc:meta])* $name:ident, $kind:ident, $mask:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name(pub SocketAddr);

        impl Attribute<'_> for $name {
            const TYPE: AttributeType = AttributeType::$kind;

            fn decode(value: &[u8], transaction_id: TransactionId) -> Result<Self, AttributeError> {
                let mask: fn(TransactionId) -> Mask = $mask;
                decode(value, mask(transaction_id)).map(Self)
            }
        }

        impl EncodeAttribute for $name {
            fn kind(&self) -> AttributeType {
                Self::TYPE
            }

            fn encode(&self, value: &mut ValueWriter<'_>, transaction_id: TransactionId) {
                let mask: fn(TransactionId) -> Mask = $mask;
                encode(&self.0, mask(transaction_id), value);
            }
        }
    )*};
}

address_attributes! {
    /// MAPPED-ADDRESS (RFC 8489 §14.1), for RFC 3489 clients.
    MappedAddress, MAPPED_ADDRESS, |_| Mask::PLAIN;
    /// XOR-MAPPED-ADDRESS (RFC 8489 §14.2): the server-reflexive transport address of the client.
    XorMappedAddress, XOR_MAPPED_ADDRESS, Mask::of;
    /// XOR-PEER-ADDRESS (RFC 8656 §18.3): the address of a peer as seen by the server.
    XorPeerAddress, XOR_PEER_ADDRESS, Mask::of;
    /// XOR-RELAYED-ADDRESS (RFC 8656 §18.5): the relayed transport address of an allocation.
    XorRelayedAddress, XOR_RELAYED_ADDRESS, Mask::of;
    /// ALTERNATE-SERVER (RFC 8489 §14.15): the server to which a 300 redirects the client.
    AlternateServer, ALTERNATE_SERVER, |_| Mask::PLAIN;
}
