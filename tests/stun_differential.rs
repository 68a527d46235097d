//! Compares our wire code with the `stun` and `turn` crates of webrtc-rs. Both must write the same bytes for a message
//! and read the same values from them.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests fail by panicking; clippy.toml allows it in #[test] functions, but not in their helpers"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ::stun::message::{Getter, Setter};
use ::turn::proto;
use proptest::collection::vec;
use proptest::prelude::*;
use turnserver::stun::attribute::*;
use turnserver::stun::*;

/// The other implementation.
mod theirs {
    pub(crate) use stun::addr::{AlternateServer, MappedAddress};
    pub(crate) use stun::agent::TransactionId;
    pub(crate) use stun::attributes::*;
    pub(crate) use stun::error_code::{ErrorCode, ErrorCodeAttribute};
    pub(crate) use stun::fingerprint::FINGERPRINT;
    pub(crate) use stun::integrity::MessageIntegrity;
    pub(crate) use stun::message::{Message, MessageClass, MessageType, Method};
    pub(crate) use stun::textattrs::TextAttribute;
    pub(crate) use stun::uattrs::UnknownAttributes;
    pub(crate) use stun::xoraddr::XorMappedAddress;
}

/// The methods that both sides know. A method of the `stun` crate cannot be built from a number.
const METHODS: [(Method, theirs::Method); 10] = [
    (Method::BINDING, stun::message::METHOD_BINDING),
    (Method::ALLOCATE, stun::message::METHOD_ALLOCATE),
    (Method::REFRESH, stun::message::METHOD_REFRESH),
    (Method::SEND, stun::message::METHOD_SEND),
    (Method::DATA, stun::message::METHOD_DATA),
    (Method::CREATE_PERMISSION, stun::message::METHOD_CREATE_PERMISSION),
    (Method::CHANNEL_BIND, stun::message::METHOD_CHANNEL_BIND),
    (Method::CONNECT, stun::message::METHOD_CONNECT),
    (Method::CONNECTION_BIND, stun::message::METHOD_CONNECTION_BIND),
    (Method::CONNECTION_ATTEMPT, stun::message::METHOD_CONNECTION_ATTEMPT),
];

const CLASSES: [(Class, theirs::MessageClass); 4] = [
    (Class::Request, stun::message::CLASS_REQUEST),
    (Class::Indication, stun::message::CLASS_INDICATION),
    (Class::Success, stun::message::CLASS_SUCCESS_RESPONSE),
    (Class::Error, stun::message::CLASS_ERROR_RESPONSE),
];

/// An attribute.
#[derive(Clone, Debug)]
enum Item {
    MappedAddress(SocketAddr),
    XorMappedAddress(SocketAddr),
    XorPeerAddress(SocketAddr),
    XorRelayedAddress(SocketAddr),
    AlternateServer(SocketAddr),
    Username(String),
    Realm(String),
    Nonce(String),
    Software(String),
    ErrorCode(u16, String),
    UnknownAttributes(Vec<u16>),
    ChannelNumber(u16),
    Lifetime(u32),
    Data(Vec<u8>),
    RequestedAddressFamily(AddressFamily),
    /// The `turn` crate reads `true` but cannot write it, because its field is private.
    EvenPort(bool),
    RequestedTransport(u8),
    DontFragment,
    ReservationToken([u8; 8]),
    /// An attribute for which the `stun` crate has no type.
    Raw(u16, Vec<u8>),
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ];
    (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

/// Generates at most 508 bytes, which both sides accept in every attribute.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![vec(any::<char>(), 0..20), vec(any::<char>(), 127)].prop_map(|chars| chars.into_iter().collect())
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        address().prop_map(Item::MappedAddress),
        address().prop_map(Item::XorMappedAddress),
        address().prop_map(Item::XorPeerAddress),
        address().prop_map(Item::XorRelayedAddress),
        address().prop_map(Item::AlternateServer),
        text().prop_map(Item::Username),
        text().prop_map(Item::Realm),
        text().prop_map(Item::Nonce),
        text().prop_map(Item::Software),
        (300_u16..=699, text()).prop_map(|(code, reason)| Item::ErrorCode(code, reason)),
        vec(any::<u16>(), 0..8).prop_map(Item::UnknownAttributes),
        any::<u16>().prop_map(Item::ChannelNumber),
        any::<u32>().prop_map(Item::Lifetime),
        vec(any::<u8>(), 0..100).prop_map(Item::Data),
        prop_oneof![Just(AddressFamily::V4), Just(AddressFamily::V6)].prop_map(Item::RequestedAddressFamily),
        any::<bool>().prop_map(Item::EvenPort),
        any::<u8>().prop_map(Item::RequestedTransport),
        Just(Item::DontFragment),
        any::<[u8; 8]>().prop_map(Item::ReservationToken),
        // Numbers unknown to both sides. The range excludes 0x8020, which the stun crate reads as the
        // XOR-MAPPED-ADDRESS of a draft; RFC 8489 §18.3 does not assign it.
        (0x9000_u16..0xFFFF, vec(any::<u8>(), 0..20)).prop_map(|(kind, value)| Item::Raw(kind, value)),
    ]
}

/// A message that both sides can write.
#[derive(Clone, Debug)]
struct Case {
    class: (Class, theirs::MessageClass),
    method: (Method, theirs::Method),
    transaction: [u8; 12],
    items: Vec<Item>,
    key: Option<Vec<u8>>,
    fingerprint: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let (class, method) = (prop::sample::select(&CLASSES), prop::sample::select(&METHODS));
    let key = proptest::option::of(vec(any::<u8>(), 0..100));
    (class, method, any::<[u8; 12]>(), vec(item(), 0..8), key, any::<bool>()).prop_map(
        |(class, method, transaction, mut items, key, fingerprint)| {
            // Each type occurs once, because both sides read only the first.
            let mut seen = Vec::new();
            items.retain(|item| {
                let kind = match item {
                    Item::Raw(kind, _) => Ok(*kind),
                    _ => Err(std::mem::discriminant(item)),
                };
                let is_new = !seen.contains(&kind);
                seen.push(kind);
                is_new
            });
            Case { class, method, transaction, items, key, fingerprint }
        },
    )
}

fn write_ours(case: &Case) -> Vec<u8> {
    let mut buffer = vec![0xEE; 8000];
    let mut writer = MessageWriter::new(&mut buffer, case.class.0, case.method.0, TransactionId::new(case.transaction));
    for item in &case.items {
        match item {
            Item::MappedAddress(address) => writer.push(&MappedAddress(*address)),
            Item::XorMappedAddress(address) => writer.push(&XorMappedAddress(*address)),
            Item::XorPeerAddress(address) => writer.push(&XorPeerAddress(*address)),
            Item::XorRelayedAddress(address) => writer.push(&XorRelayedAddress(*address)),
            Item::AlternateServer(address) => writer.push(&AlternateServer(*address)),
            Item::Username(text) => writer.push(&Username(text)),
            Item::Realm(text) => writer.push(&Realm(text)),
            Item::Nonce(text) => writer.push(&Nonce(text)),
            Item::Software(text) => writer.push(&Software(text)),
            Item::ErrorCode(code, reason) => {
                writer.push(&ErrorCodeAttribute { code: ErrorCode::new(*code).unwrap(), reason });
            }
            Item::UnknownAttributes(types) => {
                let types: Vec<_> = types.iter().copied().map(AttributeType::new).collect();
                writer.push(&UnknownAttributes::new(&types));
            }
            Item::ChannelNumber(number) => writer.push(&ChannelNumber(*number)),
            Item::Lifetime(seconds) => writer.push(&Lifetime(*seconds)),
            Item::Data(payload) => writer.push(&Data(payload)),
            Item::RequestedAddressFamily(family) => writer.push(&RequestedAddressFamily(*family)),
            Item::EvenPort(reserve_next) => writer.push(&EvenPort { reserve_next: *reserve_next }),
            Item::RequestedTransport(protocol) => writer.push(&RequestedTransport(*protocol)),
            Item::DontFragment => writer.push(&DontFragment),
            Item::ReservationToken(token) => writer.push(&ReservationToken(*token)),
            Item::Raw(kind, value) => writer.push(&RawAttribute { kind: AttributeType::new(*kind), value }),
        }
    }
    if let Some(key) = &case.key {
        writer.message_integrity(key);
    }
    if case.fingerprint {
        writer.fingerprint();
    }
    writer.finish().unwrap().to_vec()
}

fn write_theirs(case: &Case) -> Vec<u8> {
    let mut message = theirs::Message::new();
    message.transaction_id = theirs::TransactionId(case.transaction);
    message.typ = theirs::MessageType::new(case.method.1, case.class.1);
    message.write_header();
    for item in &case.items {
        let text = |kind, text: &String| Box::new(theirs::TextAttribute::new(kind, text.clone()));
        let setter: Box<dyn Setter> = match item {
            Item::MappedAddress(it) => Box::new(theirs::MappedAddress { ip: it.ip(), port: it.port() }),
            Item::XorMappedAddress(it) => Box::new(theirs::XorMappedAddress { ip: it.ip(), port: it.port() }),
            Item::XorPeerAddress(it) => Box::new(proto::peeraddr::PeerAddress { ip: it.ip(), port: it.port() }),
            Item::XorRelayedAddress(it) => Box::new(proto::relayaddr::RelayedAddress { ip: it.ip(), port: it.port() }),
            Item::AlternateServer(it) => {
                let address = theirs::AlternateServer { ip: it.ip(), port: it.port() };
                address.add_to_as(&mut message, theirs::ATTR_ALTERNATE_SERVER).unwrap();
                continue;
            }
            Item::Username(it) => text(theirs::ATTR_USERNAME, it),
            Item::Realm(it) => text(theirs::ATTR_REALM, it),
            Item::Nonce(it) => text(theirs::ATTR_NONCE, it),
            Item::Software(it) => text(theirs::ATTR_SOFTWARE, it),
            Item::ErrorCode(code, reason) => Box::new(theirs::ErrorCodeAttribute {
                code: theirs::ErrorCode(*code),
                reason: reason.clone().into_bytes(),
            }),
            Item::UnknownAttributes(types) => {
                Box::new(theirs::UnknownAttributes(types.iter().copied().map(theirs::AttrType).collect()))
            }
            Item::ChannelNumber(number) => Box::new(proto::channum::ChannelNumber(*number)),
            Item::Lifetime(seconds) => Box::new(proto::lifetime::Lifetime(Duration::from_secs((*seconds).into()))),
            Item::Data(payload) => Box::new(proto::data::Data(payload.clone())),
            Item::RequestedAddressFamily(family) => Box::new(their_family(*family)),
            Item::EvenPort(false) => Box::new(proto::evenport::EvenPort::default()),
            Item::EvenPort(true) => {
                message.add(theirs::ATTR_EVEN_PORT, &[0x80]);
                continue;
            }
            Item::RequestedTransport(protocol) => {
                Box::new(proto::reqtrans::RequestedTransport { protocol: proto::Protocol(*protocol) })
            }
            Item::DontFragment => Box::new(proto::dontfrag::DontFragmentAttr),
            Item::ReservationToken(token) => Box::new(proto::rsrvtoken::ReservationToken(token.to_vec())),
            Item::Raw(kind, value) => {
                message.add(theirs::AttrType(*kind), value);
                continue;
            }
        };
        setter.add_to(&mut message).unwrap();
    }
    if let Some(key) = &case.key {
        theirs::MessageIntegrity(key.clone()).add_to(&mut message).unwrap();
    }
    if case.fingerprint {
        theirs::FINGERPRINT.add_to(&mut message).unwrap();
    }
    message.raw
}

fn their_family(family: AddressFamily) -> proto::reqfamily::RequestedAddressFamily {
    match family {
        AddressFamily::V4 => proto::reqfamily::REQUESTED_FAMILY_IPV4,
        AddressFamily::V6 => proto::reqfamily::REQUESTED_FAMILY_IPV6,
    }
}

fn read_ours(bytes: &[u8], case: &Case) {
    let message = Message::parse(bytes).unwrap();
    assert_eq!((message.class(), message.method()), (case.class.0, case.method.0));
    assert_eq!(message.transaction_id().as_bytes(), &case.transaction);
    for item in &case.items {
        match item {
            Item::MappedAddress(address) => assert_eq!(message.get(), Ok(Some(MappedAddress(*address)))),
            Item::XorMappedAddress(address) => assert_eq!(message.get(), Ok(Some(XorMappedAddress(*address)))),
            Item::XorPeerAddress(address) => assert_eq!(message.get(), Ok(Some(XorPeerAddress(*address)))),
            Item::XorRelayedAddress(address) => assert_eq!(message.get(), Ok(Some(XorRelayedAddress(*address)))),
            Item::AlternateServer(address) => assert_eq!(message.get(), Ok(Some(AlternateServer(*address)))),
            Item::Username(text) => assert_eq!(message.get(), Ok(Some(Username(text)))),
            Item::Realm(text) => assert_eq!(message.get(), Ok(Some(Realm(text)))),
            Item::Nonce(text) => assert_eq!(message.get(), Ok(Some(Nonce(text)))),
            Item::Software(text) => assert_eq!(message.get(), Ok(Some(Software(text)))),
            Item::ErrorCode(code, reason) => {
                let expected = ErrorCodeAttribute { code: ErrorCode::new(*code).unwrap(), reason };
                assert_eq!(message.get(), Ok(Some(expected)));
            }
            Item::UnknownAttributes(types) => {
                let found = message.get::<UnknownAttributes<'_>>().unwrap().unwrap();
                assert!(found.iter().map(AttributeType::number).eq(types.iter().copied()));
            }
            Item::ChannelNumber(number) => assert_eq!(message.get(), Ok(Some(ChannelNumber(*number)))),
            Item::Lifetime(seconds) => assert_eq!(message.get(), Ok(Some(Lifetime(*seconds)))),
            Item::Data(payload) => assert_eq!(message.get(), Ok(Some(Data(payload)))),
            Item::RequestedAddressFamily(family) => {
                assert_eq!(message.get(), Ok(Some(RequestedAddressFamily(*family))));
            }
            Item::EvenPort(reserve_next) => {
                assert_eq!(message.get(), Ok(Some(EvenPort { reserve_next: *reserve_next })));
            }
            Item::RequestedTransport(protocol) => assert_eq!(message.get(), Ok(Some(RequestedTransport(*protocol)))),
            Item::DontFragment => assert_eq!(message.get(), Ok(Some(DontFragment))),
            Item::ReservationToken(token) => assert_eq!(message.get(), Ok(Some(ReservationToken(*token)))),
            Item::Raw(kind, value) => {
                let kind = AttributeType::new(*kind);
                assert!(message.attributes().any(|found| found == RawAttribute { kind, value }));
            }
        }
    }
    let integrity = case.key.as_ref().map_or(IntegrityStatus::Absent, |_| IntegrityStatus::Valid);
    assert_eq!(message.verify_integrity(case.key.as_deref().unwrap_or_default()), integrity);
    let fingerprint = if case.fingerprint { FingerprintStatus::Valid } else { FingerprintStatus::Absent };
    assert_eq!(message.fingerprint(), fingerprint);
}

fn their_message(bytes: &[u8]) -> Option<theirs::Message> {
    let mut message = theirs::Message::new();
    message.unmarshal_binary(bytes).ok().map(|()| message)
}

fn read_theirs(bytes: &[u8], case: &Case) {
    fn get<T: Getter>(message: &theirs::Message, mut empty: T) -> T {
        empty.get_from(message).unwrap();
        empty
    }

    let mut message = their_message(bytes).unwrap();
    assert_eq!(message.typ, theirs::MessageType::new(case.method.1, case.class.1));
    assert_eq!(message.transaction_id.0, case.transaction);
    for item in &case.items {
        let m = &message;
        let check_text = |kind, expected: &String| {
            assert_eq!(&theirs::TextAttribute::get_from_as(m, kind).unwrap().text, expected);
        };
        match item {
            Item::MappedAddress(it) => {
                let found = get(m, theirs::MappedAddress::default());
                assert_eq!(SocketAddr::new(found.ip, found.port), *it);
            }
            Item::XorMappedAddress(it) => {
                let found = get(m, theirs::XorMappedAddress::default());
                assert_eq!(SocketAddr::new(found.ip, found.port), *it);
            }
            Item::XorPeerAddress(it) => {
                let found = get(m, proto::peeraddr::PeerAddress::default());
                assert_eq!(SocketAddr::new(found.ip, found.port), *it);
            }
            Item::XorRelayedAddress(it) => {
                let found = get(m, proto::relayaddr::RelayedAddress::default());
                assert_eq!(SocketAddr::new(found.ip, found.port), *it);
            }
            Item::AlternateServer(it) => {
                let mut found = theirs::AlternateServer::default();
                found.get_from_as(m, theirs::ATTR_ALTERNATE_SERVER).unwrap();
                assert_eq!(SocketAddr::new(found.ip, found.port), *it);
            }
            Item::Username(it) => check_text(theirs::ATTR_USERNAME, it),
            Item::Realm(it) => check_text(theirs::ATTR_REALM, it),
            Item::Nonce(it) => check_text(theirs::ATTR_NONCE, it),
            Item::Software(it) => check_text(theirs::ATTR_SOFTWARE, it),
            Item::ErrorCode(code, reason) => {
                let found = get(m, theirs::ErrorCodeAttribute::default());
                assert_eq!((found.code.0, found.reason.as_slice()), (*code, reason.as_bytes()));
            }
            Item::UnknownAttributes(types) => {
                let found = get(m, theirs::UnknownAttributes(Vec::new()));
                assert!(found.0.iter().map(theirs::AttrType::value).eq(types.iter().copied()));
            }
            Item::ChannelNumber(number) => assert_eq!(get(m, proto::channum::ChannelNumber::default()).0, *number),
            Item::Lifetime(seconds) => {
                assert_eq!(get(m, proto::lifetime::Lifetime::default()).0, Duration::from_secs((*seconds).into()));
            }
            Item::Data(payload) => assert_eq!(&get(m, proto::data::Data::default()).0, payload),
            Item::RequestedAddressFamily(family) => {
                assert_eq!(get(m, proto::reqfamily::RequestedAddressFamily::default()), their_family(*family));
            }
            Item::EvenPort(reserve_next) => {
                let found = get(m, proto::evenport::EvenPort::default());
                assert_eq!(found.to_string(), format!("reserve: {reserve_next}"));
            }
            Item::RequestedTransport(protocol) => {
                assert_eq!(get(m, proto::reqtrans::RequestedTransport::default()).protocol.0, *protocol);
            }
            Item::DontFragment => _ = get(m, proto::dontfrag::DontFragmentAttr),
            Item::ReservationToken(token) => {
                assert_eq!(get(m, proto::rsrvtoken::ReservationToken::default()).0, token);
            }
            Item::Raw(kind, value) => assert_eq!(&m.get(theirs::AttrType(*kind)).unwrap(), value),
        }
    }
    if let Some(key) = &case.key {
        theirs::MessageIntegrity(key.clone()).check(&mut message).unwrap();
    }
    if case.fingerprint {
        theirs::FINGERPRINT.check(&message).unwrap();
    }
}

/// Compares how both sides judge arbitrary bytes.
fn compare_verdicts(bytes: &[u8], key: &[u8]) {
    let theirs = their_message(bytes);
    let ours = match (Message::parse(bytes), &theirs) {
        (Ok(ours), Some(_)) => ours,
        (Err(_), None) => return,
        // RFC 8489 §6.3: "checks that the first two bits are 0 ... and that the message length is sensible". The stun
        // crate does neither: it discards the two bits, and ignores bytes after the message.
        (Err(ParseError::LeadingBits | ParseError::TrailingBytes), Some(_)) => return,
        (ours, theirs) => panic!("ours: {ours:?}, theirs: {theirs:?}"),
    };
    let mut theirs = theirs.unwrap();
    assert!(CLASSES.contains(&(ours.class(), theirs.typ.class)));
    assert!(METHODS.iter().all(|&(our, their)| (our == ours.method()) == (their == theirs.typ.method)));

    // RFC 8489 §9, §14.7: attributes after the checksums are ignored. The stun crate returns all.
    let mut found = theirs.attributes.0.iter();
    for attribute in ours.attributes() {
        // The stun crate reads 0x8020, which RFC 8489 §18.3 does not assign, as the XOR-MAPPED-ADDRESS of a draft.
        let number = if attribute.kind.number() == 0x8020 { 0x0020 } else { attribute.kind.number() };
        assert!(found.any(|it| it.typ.value() == number && it.value == attribute.value));
    }

    let our_verdict = ours.verify_integrity(key);
    let their_verdict = theirs::MessageIntegrity(key.to_vec()).check(&mut theirs).is_ok();
    // Our code ignores a MESSAGE-INTEGRITY after another checksum. The stun crate checks it.
    if our_verdict != IntegrityStatus::Absent {
        assert_eq!(our_verdict == IntegrityStatus::Valid, their_verdict);
    }
    assert_eq!(ours.fingerprint() == FingerprintStatus::Valid, theirs::FINGERPRINT.check(&theirs).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

    #[test]
    fn both_write_the_same_bytes_and_read_the_same_values(case in case()) {
        let bytes = write_ours(&case);
        prop_assert_eq!(&bytes, &write_theirs(&case));
        read_ours(&bytes, &case);
        read_theirs(&bytes, &case);
    }

    #[test]
    fn both_agree_about_mutated_messages(
        case in case(),
        overwrites in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = write_ours(&case);
        for (at, byte) in overwrites {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        compare_verdicts(&bytes, case.key.as_deref().unwrap_or_default());
    }
}

// The stun crate has no types for these attributes, but must find the same values at the same offsets.
#[test]
fn attributes_unknown_to_the_stun_crate_keep_their_framing() {
    let mut buffer = [0; 1000];
    let mut writer =
        MessageWriter::new(&mut buffer, Class::Request, Method::ALLOCATE, TransactionId::new(*b"transaction!"));
    let algorithms = [PasswordAlgorithm::SHA256, PasswordAlgorithm { algorithm: 9, parameters: b"p" }];
    writer.push(&Userhash(&[7; 32]));
    writer.push(&PasswordAlgorithms::new(&algorithms));
    writer.push(&algorithms[1]);
    writer.push(&AlternateDomain("turn.example.org"));
    writer.push(&AdditionalAddressFamily(AddressFamily::V6));
    writer.push(&AddressErrorCode {
        family: AddressFamily::V4,
        code: ErrorCode::INSUFFICIENT_CAPACITY,
        reason: "full",
    });
    writer.push(&Icmp { kind: 3, code: 4, data: 1400 });
    writer.message_integrity(b"key");
    writer.fingerprint();
    let items = vec![
        Item::Raw(0x001E, vec![7; 32]),
        Item::Raw(0x8002, b"\0\x02\0\0\0\x09\0\x01p\0\0\0".to_vec()),
        Item::Raw(0x001D, b"\0\x09\0\x01p\0\0\0".to_vec()),
        Item::Raw(0x8003, b"turn.example.org".to_vec()),
        Item::Raw(0x8000, b"\x02\0\0\0".to_vec()),
        Item::Raw(0x8001, b"\x01\0\x05\x08full".to_vec()),
        Item::Raw(0x8004, b"\0\0\x03\x04\0\0\x05\x78".to_vec()),
    ];
    let expected = Case {
        class: CLASSES[0],
        method: METHODS[1],
        transaction: *b"transaction!",
        items,
        key: Some(b"key".to_vec()),
        fingerprint: true,
    };
    let bytes = writer.finish().unwrap();
    assert_eq!(bytes, write_theirs(&expected));
    read_theirs(bytes, &expected);
}
