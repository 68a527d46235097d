//! The attributes of TURN that are neither an address nor an error (RFC 8656 §18).

use super::{AddressFamily, Attribute, AttributeError, EncodeAttribute, read_all};
use crate::stun::{AttributeType, TransactionId, ValueWriter};

/// CHANNEL-NUMBER (RFC 8656 §18.1). Any 16 bits; which ones may be bound is for ChannelBind to say.
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

/// DATA (RFC 8656 §18.4): the payload of a UDP datagram. Where it lies in the message,
/// [`Message::data_range`](crate::stun::Message::data_range) says.
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

// A payload is the users' own and has no place in a log.
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
    /// ADDITIONAL-ADDRESS-FAMILY (RFC 8656 §18.11). Reads both families; that only IPv6 is allowed is for Allocate to
    /// say.
    AdditionalAddressFamily, ADDITIONAL_ADDRESS_FAMILY;
    /// The same under the number that a draft gave it and coturn's clients send.
    DraftAdditionalAddressFamily, DRAFT_ADDITIONAL_ADDRESS_FAMILY;
}

/// EVEN-PORT (RFC 8656 §18.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EvenPort {
    /// Whether the next higher port is to be held for another allocation.
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
    /// The only protocol that RFC 8656 relays.
    pub const UDP: Self = Self(17);
    /// The protocol of RFC 6062 §4.1.
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

/// DONT-FRAGMENT (RFC 8656 §18.9): a flag without a value.
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

/// ICMP (RFC 8656 §18.13): why a datagram did not reach the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Icmp {
    /// The ICMP type; what it means depends on the peer's address family.
    pub kind: u8,
    /// The ICMP code.
    pub code: u8,
    /// The MTU of the next hop in bytes where the datagram was too big, else 0.
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
