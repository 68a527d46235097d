//! The attributes of RFC 8656 §18 except addresses and errors.

use super::{AddressFamily, Attribute, AttributeError, EncodeAttribute, read_all};
use crate::stun::{AttributeType, TransactionId, ValueWriter};

/// CHANNEL-NUMBER (RFC 8656 §18.1). ChannelBind checks the range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelNumber(pub u16);

impl Attribute<'_> for ChannelNumber {
    const TYPE: AttributeType = AttributeType::CHANNEL_NUMBER;

    fn decode(value: &[u8], _: TransactionId) -> Result<Self, AttributeError> {
        read_all(value, |reader| {
            let number = reader.u16()?;
            reader.u16()?;
            Some(Self(number))
        })
    }
}

impl EncodeAttribute for ChannelNumber {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(&self.0.to_be_bytes());
        value.put_zeros(2);
    }
}

/// LIFETIME in seconds (RFC 8656 §18.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetime(pub u32);

impl Attribute<'_> for Lifetime {
    const TYPE: AttributeType = AttributeType::LIFETIME;

    fn decode(value: &[u8], _: TransactionId) -> Result<Self, AttributeError> {
        read_all(value, |reader| reader.u32().map(Self))
    }
}

impl EncodeAttribute for Lifetime {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(&self.0.to_be_bytes());
    }
}

/// DATA (RFC 8656 §18.4): the payload of a UDP datagram.
///
/// See [`Message::data_range`](crate::stun::Message::data_range) for its range in the message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Data<'a>(pub &'a [u8]);

impl<'a> Attribute<'a> for Data<'a> {
    const TYPE: AttributeType = AttributeType::DATA;

    fn decode(value: &'a [u8], _: TransactionId) -> Result<Self, AttributeError> {
        Ok(Self(value))
    }
}

impl EncodeAttribute for Data<'_> {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(self.0);
    }
}

// The payload is not shown, because it is confidential.
impl std::fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Data({} bytes)", self.0.len())
    }
}

macro_rules! family_attributes {
    ($($(#[$doc:meta])* $name:ident, $kind:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct $name(pub AddressFamily);

        impl Attribute<'_> for $name {
            const TYPE: AttributeType = AttributeType::$kind;

            fn decode(value: &[u8], _: TransactionId) -> Result<Self, AttributeError> {
                let &[family, _, _, _] = read_all(value, |reader| reader.array())?;
                AddressFamily::from_number(family).map(Self)
            }
        }

        impl EncodeAttribute for $name {
            fn kind(&self) -> AttributeType {
                Self::TYPE
            }

            fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
                value.put(&[self.0.number(), 0, 0, 0]);
            }
        }
    )*};
}

family_attributes! {
    /// REQUESTED-ADDRESS-FAMILY (RFC 8656 §18.6).
    RequestedAddressFamily, REQUESTED_ADDRESS_FAMILY;
    /// ADDITIONAL-ADDRESS-FAMILY (RFC 8656 §18.11). Allocate checks that it is IPv6.
    AdditionalAddressFamily, ADDITIONAL_ADDRESS_FAMILY;
    /// ADDITIONAL-ADDRESS-FAMILY with the number of a draft, which clients of coturn send.
    DraftAdditionalAddressFamily, DRAFT_ADDITIONAL_ADDRESS_FAMILY;
}

/// EVEN-PORT (RFC 8656 §18.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EvenPort {
    /// Whether the next higher port is reserved for another allocation.
    pub reserve_next: bool,
}

impl Attribute<'_> for EvenPort {
    const TYPE: AttributeType = AttributeType::EVEN_PORT;

    fn decode(value: &[u8], _: TransactionId) -> Result<Self, AttributeError> {
        read_all(value, |reader| reader.u8().map(|flags| Self { reserve_next: flags & 0x80 != 0 }))
    }
}

impl EncodeAttribute for EvenPort {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(&[if self.reserve_next { 0x80 } else { 0 }]);
    }
}

/// REQUESTED-TRANSPORT (RFC 8656 §18.8): an IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestedTransport(pub u8);

impl RequestedTransport {
    /// UDP, the only protocol of RFC 8656.
    pub const UDP: Self = Self(17);
    /// TCP (RFC 6062 §4.1).
    pub const TCP: Self = Self(6);
}

impl Attribute<'_> for RequestedTransport {
    const TYPE: AttributeType = AttributeType::REQUESTED_TRANSPORT;

    fn decode(value: &[u8], _: TransactionId) -> Result<Self, AttributeError> {
        read_all(value, |reader| reader.array().map(|&[protocol, _, _, _]| Self(protocol)))
    }
}

impl EncodeAttribute for RequestedTransport {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(&[self.0, 0, 0, 0]);
    }
}

/// DONT-FRAGMENT (RFC 8656 §18.9), which has no value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DontFragment;

impl Attribute<'_> for DontFragment {
    const TYPE: AttributeType = AttributeType::DONT_FRAGMENT;

    fn decode(value: &[u8], _: TransactionId) -> Result<Self, AttributeError> {
        read_all(value, |_| Some(Self))
    }
}

impl EncodeAttribute for DontFragment {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, _: &mut ValueWriter<'_>, _: TransactionId) {}
}

/// RESERVATION-TOKEN (RFC 8656 §18.10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReservationToken(pub [u8; 8]);

impl Attribute<'_> for ReservationToken {
    const TYPE: AttributeType = AttributeType::RESERVATION_TOKEN;

    fn decode(value: &[u8], _: TransactionId) -> Result<Self, AttributeError> {
        read_all(value, |reader| reader.array().copied().map(Self))
    }
}

impl EncodeAttribute for ReservationToken {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(&self.0);
    }
}

/// ICMP (RFC 8656 §18.13): an ICMP error for a datagram to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Icmp {
    /// The type: of ICMP for an IPv4 peer, of ICMPv6 for an IPv6 peer.
    pub kind: u8,
    /// The ICMP code.
    pub code: u8,
    /// The MTU of the next hop in bytes if the datagram was too long, otherwise 0.
    pub data: u32,
}

impl Attribute<'_> for Icmp {
    const TYPE: AttributeType = AttributeType::ICMP;

    fn decode(value: &[u8], _: TransactionId) -> Result<Self, AttributeError> {
        read_all(value, |reader| {
            let &[_, _, kind, code] = reader.array()?;
            Some(Self { kind, code, data: reader.u32()? })
        })
    }
}

impl EncodeAttribute for Icmp {
    fn kind(&self) -> AttributeType {
        Self::TYPE
    }

    fn encode(&self, value: &mut ValueWriter<'_>, _: TransactionId) {
        value.put(&[0, 0, self.kind, self.code]);
        value.put(&self.data.to_be_bytes());
    }
}
