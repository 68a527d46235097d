use std::fmt::Debug;

use super::*;
use crate::stun::{Class, ErrorCode, Message, MessageWriter, Method};

const TRANSACTION: TransactionId = TransactionId::new(*b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae");

/// Checks decoding and encoding. `wire` is the value without padding.
fn check<'a, A: Attribute<'a> + EncodeAttribute + PartialEq + Debug>(attribute: A, wire: &'a [u8]) {
    assert_eq!(A::decode(wire, TRANSACTION).as_ref(), Ok(&attribute));
    assert_eq!(attribute.kind(), A::TYPE);
    assert_eq!(encode(&attribute), wire);
}

fn encode(attribute: &impl EncodeAttribute) -> Vec<u8> {
    let mut buffer = vec![0xEE; 2000];
    let mut writer = MessageWriter::new(&mut buffer, Class::Request, Method::ALLOCATE, TRANSACTION);
    writer.push(attribute);
    let written = Message::parse(writer.finish().unwrap()).unwrap().attributes().next().unwrap();
    assert_eq!(written.kind, attribute.kind());
    written.value.to_vec()
}

/// Checks that `A` accepts the prefixes of `value` of the `valid` lengths and no others.
fn check_lengths<'a, A: Attribute<'a> + Debug>(value: &'a [u8; 64], valid: &[usize]) {
    for len in 0..=value.len() {
        let result = A::decode(&value[..len], TRANSACTION);
        if valid.contains(&len) {
            assert!(result.is_ok(), "{} of {len} bytes: {result:?}", A::TYPE);
        } else {
            assert_eq!(result.err(), Some(AttributeError::WrongLength), "{} of {len} bytes", A::TYPE);
        }
    }
}

/// The start of an IPv4 address.
const IPV4: [u8; 64] = {
    let mut value = [1; 64];
    value[0] = 0;
    value
};
const IPV6: [u8; 64] = {
    let mut value = [2; 64];
    value[0] = 0;
    value
};
const ONES: [u8; 64] = [1; 64];

// RFC 8489 §14.1, §14.15
#[test]
fn plain_addresses_are_read_and_written() {
    let v4 = "192.0.2.1:32853".parse().unwrap();
    let v6 = "[2001:db8::1]:443".parse().unwrap();
    check(MappedAddress(v4), b"\x00\x01\x80\x55\xc0\x00\x02\x01");
    check(AlternateServer(v4), b"\x00\x01\x80\x55\xc0\x00\x02\x01");
    let wire = b"\x00\x02\x01\xbb\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01";
    check(MappedAddress(v6), wire);
    check(AlternateServer(v6), wire);
}

// RFC 8489 §14.2, with the addresses of RFC 5769 §2.2 and §2.3
#[test]
fn xored_addresses_are_read_and_written() {
    let v4 = "192.0.2.1:32853".parse().unwrap();
    let wire = b"\x00\x01\xa1\x47\xe1\x12\xa6\x43";
    check(XorMappedAddress(v4), wire);
    check(XorPeerAddress(v4), wire);
    check(XorRelayedAddress(v4), wire);
    let v6 = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
    let wire = b"\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9";
    check(XorMappedAddress(v6), wire);
    check(XorPeerAddress(v6), wire);
    check(XorRelayedAddress(v6), wire);
}

#[test]
fn extreme_addresses_are_read_and_written() {
    for address in ["0.0.0.0:0", "255.255.255.255:65535", "[::]:0", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"] {
        let address = address.parse().unwrap();
        check(MappedAddress(address), &encode(&MappedAddress(address)));
        check(XorPeerAddress(address), &encode(&XorPeerAddress(address)));
    }
    // An IPv4-mapped address remains an IPv6 address. The peer policy unmaps it.
    let mapped = "[::ffff:192.0.2.1]:1".parse().unwrap();
    check(XorPeerAddress(mapped), &encode(&XorPeerAddress(mapped)));
}

// RFC 8489 §14.1: IPv4 has 32 bits of address, IPv6 has 128
#[test]
fn addresses_have_the_length_of_their_family() {
    check_lengths::<MappedAddress>(&IPV4, &[8]);
    check_lengths::<MappedAddress>(&IPV6, &[20]);
    check_lengths::<XorMappedAddress>(&IPV4, &[8]);
    check_lengths::<XorMappedAddress>(&IPV6, &[20]);
    check_lengths::<XorPeerAddress>(&IPV4, &[8]);
    check_lengths::<XorPeerAddress>(&IPV6, &[20]);
    check_lengths::<XorRelayedAddress>(&IPV4, &[8]);
    check_lengths::<XorRelayedAddress>(&IPV6, &[20]);
    check_lengths::<AlternateServer>(&IPV4, &[8]);
    check_lengths::<AlternateServer>(&IPV6, &[20]);
}

// RFC 8489 §14.1: the first byte is ignored, the second is 1 or 2
#[test]
fn address_family_is_one_or_two_and_the_byte_before_it_is_ignored() {
    let mut wire = *b"\xff\x01\x80\x55\xc0\x00\x02\x01";
    assert_eq!(MappedAddress::decode(&wire, TRANSACTION), Ok(MappedAddress("192.0.2.1:32853".parse().unwrap())));
    for family in [0, 3, 0x10, 0xFF] {
        wire[1] = family;
        assert_eq!(MappedAddress::decode(&wire, TRANSACTION), Err(AttributeError::UnknownFamily));
        assert_eq!(XorPeerAddress::decode(&wire, TRANSACTION), Err(AttributeError::UnknownFamily));
    }
}

// RFC 8489 §14.3, §14.9, §14.10, §14.14
#[test]
fn texts_are_read_and_written() {
    for text in ["", "a", "alice", "\u{30DE}\u{30C8}", "with \"quotes\" and \0"] {
        check(Username(text), text.as_bytes());
        check(Realm(text), text.as_bytes());
        check(Nonce(text), text.as_bytes());
        check(Software(text), text.as_bytes());
    }
}

fn check_text_limits<'a, A: Attribute<'a> + Debug>(long: &'a [u8; 764]) {
    assert!(A::decode(&long[..763], TRANSACTION).is_ok());
    assert_eq!(A::decode(long, TRANSACTION).err(), Some(AttributeError::TextTooLong));
    assert_eq!(A::decode(b"\xff", TRANSACTION).err(), Some(AttributeError::NotUtf8));
    assert_eq!(A::decode(b"\xed\xa0\x80", TRANSACTION).err(), Some(AttributeError::NotUtf8));
    assert_eq!(
        A::decode("\u{30DE}".as_bytes().split_last().unwrap().1, TRANSACTION).err(),
        Some(AttributeError::NotUtf8)
    );
}

// RFC 8489 §14.3, §14.9, §14.10, §14.14: "MUST be able to parse a UTF-8-encoded sequence of 763 or fewer octets"
#[test]
fn texts_are_utf8_of_at_most_763_bytes() {
    let long = [b'x'; 764];
    check_text_limits::<Username<'_>>(&long);
    check_text_limits::<Realm<'_>>(&long);
    check_text_limits::<Nonce<'_>>(&long);
    check_text_limits::<Software<'_>>(&long);
}

// RFC 8489 §14.16: a DNS name of at most 255 ASCII characters
#[test]
fn alternate_domain_is_a_dns_name() {
    let label = "x".repeat(63);
    let longest = [label.as_str(), &label, &label, &label[..61], "y"].join(".");
    assert_eq!(longest.len(), 255);
    for name in ["turn.example.org", "turn.example.org.", "localhost", "xn--bcher-kva.example", "4.example", &longest] {
        check(AlternateDomain(name), name.as_bytes());
    }
    let long_label = "x".repeat(64);
    for name in ["", ".", "a..b", ".a", "-a.example", "a-.example", "a b", "a_b", "b\u{fc}cher.example", &long_label] {
        assert_eq!(
            AlternateDomain::decode(name.as_bytes(), TRANSACTION),
            Err(AttributeError::NotADomainName),
            "{name}"
        );
    }
    assert_eq!(AlternateDomain::decode(b"\xff", TRANSACTION), Err(AttributeError::NotADomainName));
    assert_eq!(AlternateDomain::decode(&[b'x'; 256], TRANSACTION), Err(AttributeError::TextTooLong));
}

// RFC 8489 §14.4
#[test]
fn userhash_has_32_bytes() {
    let hash = std::array::from_fn(|i| i.to_le_bytes()[0]);
    check(Userhash(&hash), &hash);
    check_lengths::<Userhash<'_>>(&ONES, &[32]);
}

// RFC 8489 §14.11, §14.12
#[test]
fn password_algorithms_are_read_and_written() {
    check(PasswordAlgorithm::MD5, b"\x00\x01\x00\x00");
    check(PasswordAlgorithm::SHA256, b"\x00\x02\x00\x00");
    let other = PasswordAlgorithm { algorithm: 0xABCD, parameters: b"salty" };
    check(other, b"\xab\xcd\x00\x05salty\0\0\0");
    check(PasswordAlgorithms::new(&[]), b"");
    check(
        PasswordAlgorithms::new(&[PasswordAlgorithm::SHA256, other, PasswordAlgorithm::MD5]),
        b"\x00\x02\x00\x00\xab\xcd\x00\x05salty\0\0\0\x00\x01\x00\x00",
    );
}

// RFC 8489 §14.12: the value of padding is ignored. The padding of the attribute can replace that of the last entry.
#[test]
fn padding_of_algorithm_parameters_is_ignored() {
    let expected = Ok(PasswordAlgorithm { algorithm: 9, parameters: b"p" });
    for wire in [&b"\x00\x09\x00\x01p\xff\xff\xff"[..], b"\x00\x09\x00\x01p"] {
        assert_eq!(PasswordAlgorithm::decode(wire, TRANSACTION), expected);
    }
}

#[test]
fn password_algorithms_with_inconsistent_lengths_are_errors() {
    for wire in [&b"\0"[..], b"\0\x01\0", b"\0\x01\0\x01", b"\0\x01\xff\xff", b"\0\x01\0\x05abcd", b"\0\x01\0\0\0"] {
        assert_eq!(PasswordAlgorithm::decode(wire, TRANSACTION), Err(AttributeError::WrongLength));
        assert_eq!(PasswordAlgorithms::decode(wire, TRANSACTION), Err(AttributeError::WrongLength));
    }
    assert_eq!(PasswordAlgorithm::decode(b"", TRANSACTION), Err(AttributeError::WrongLength));
    let two = b"\0\x01\0\0\0\x02\0\0";
    assert_eq!(PasswordAlgorithm::decode(two, TRANSACTION), Err(AttributeError::WrongLength));
}

// RFC 8489 §14.8
#[test]
fn error_code_is_read_and_written() {
    check(ErrorCodeAttribute::new(ErrorCode::UNAUTHENTICATED), b"\x00\x00\x04\x01Unauthenticated");
    check(ErrorCodeAttribute { code: ErrorCode::new(300).unwrap(), reason: "" }, b"\x00\x00\x03\x00");
    check(ErrorCodeAttribute { code: ErrorCode::new(699).unwrap(), reason: "?" }, b"\x00\x00\x06\x63?");
}

// RFC 8489 §14.8: reserved bits are ignored, class is 3 to 6, number is 0 to 99
#[test]
fn error_code_out_of_range_is_an_error_and_reserved_bits_are_ignored() {
    let decode = |wire| ErrorCodeAttribute::decode(wire, TRANSACTION).map(|it| it.code);
    assert_eq!(decode(b"\xff\xff\xfc\x01"), Ok(ErrorCode::UNAUTHENTICATED));
    for wire in [b"\x00\x00\x02\x00", b"\x00\x00\x07\x00", b"\x00\x00\x00\x00", b"\x00\x00\x04\x64"] {
        assert_eq!(decode(wire), Err(AttributeError::ErrorCodeOutOfRange));
    }
    for wire in [&b""[..], b"\x00", b"\x00\x00\x04"] {
        assert_eq!(decode(wire), Err(AttributeError::WrongLength));
    }
}

// RFC 8489 §14.8: 763 bytes of UTF-8
#[test]
fn reason_phrase_is_utf8_of_at_most_763_bytes() {
    let wire = |reason: &[u8]| [b"\x00\x00\x04\x01", reason].concat();
    assert!(ErrorCodeAttribute::decode(&wire(&[b'x'; 763]), TRANSACTION).is_ok());
    let decode_error = |wire: &[u8]| ErrorCodeAttribute::decode(wire, TRANSACTION).err();
    assert_eq!(decode_error(&wire(&[b'x'; 764])), Some(AttributeError::TextTooLong));
    assert_eq!(decode_error(&wire(b"\xff")), Some(AttributeError::NotUtf8));
}

// RFC 8656 §18.12
#[test]
fn address_error_code_is_read_and_written() {
    check(
        AddressErrorCode { family: AddressFamily::V6, code: ErrorCode::INSUFFICIENT_CAPACITY, reason: "full" },
        b"\x02\x00\x05\x08full",
    );
    check(
        AddressErrorCode { family: AddressFamily::V4, code: ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED, reason: "" },
        b"\x01\x00\x04\x28",
    );
    let decode = |wire| AddressErrorCode::decode(wire, TRANSACTION).map(|it| it.code);
    assert_eq!(decode(b"\x02\xff\xfd\x08"), Ok(ErrorCode::INSUFFICIENT_CAPACITY));
    assert_eq!(decode(b"\x03\x00\x05\x08"), Err(AttributeError::UnknownFamily));
    assert_eq!(decode(b"\x01\x00\x02\x08"), Err(AttributeError::ErrorCodeOutOfRange));
    for wire in [&b""[..], b"\x01", b"\x01\x00\x04"] {
        assert_eq!(decode(wire), Err(AttributeError::WrongLength));
    }
}

// RFC 8489 §14.13
#[test]
fn unknown_attributes_are_read_and_written() {
    check(UnknownAttributes::new(&[]), b"");
    check(UnknownAttributes::new(&[AttributeType::DONT_FRAGMENT]), b"\x00\x1a");
    let types = [0x7ABC, 0x0000, 0xFFFF].map(AttributeType::new);
    check(UnknownAttributes::new(&types), b"\x7a\xbc\x00\x00\xff\xff");
    for wire in [&b"\x00"[..], b"\x00\x1a\x00"] {
        assert_eq!(UnknownAttributes::decode(wire, TRANSACTION), Err(AttributeError::WrongLength));
    }
}

// RFC 8656 §18.1
#[test]
fn channel_number_is_read_and_written() {
    check(ChannelNumber(0x4000), b"\x40\x00\x00\x00");
    check(ChannelNumber(0), b"\x00\x00\x00\x00");
    check(ChannelNumber(0xFFFF), b"\xff\xff\x00\x00");
    assert_eq!(ChannelNumber::decode(b"\x4f\xff\xff\xff", TRANSACTION), Ok(ChannelNumber(0x4FFF)));
    check_lengths::<ChannelNumber>(&ONES, &[4]);
}

// RFC 8656 §18.2
#[test]
fn lifetime_is_read_and_written() {
    check(Lifetime(0), b"\x00\x00\x00\x00");
    check(Lifetime(600), b"\x00\x00\x02\x58");
    check(Lifetime(u32::MAX), b"\xff\xff\xff\xff");
    check_lengths::<Lifetime>(&ONES, &[4]);
}

// RFC 8656 §18.4
#[test]
fn data_is_read_and_written() {
    check(Data(b""), b"");
    check(Data(b"any \xff bytes \x00"), b"any \xff bytes \x00");
}

// RFC 8656 §18.6, §18.11
#[test]
fn address_family_attributes_are_read_and_written() {
    check(RequestedAddressFamily(AddressFamily::V4), b"\x01\x00\x00\x00");
    check(RequestedAddressFamily(AddressFamily::V6), b"\x02\x00\x00\x00");
    check(AdditionalAddressFamily(AddressFamily::V6), b"\x02\x00\x00\x00");
    let reserved = b"\x02\xff\xff\xff";
    assert_eq!(RequestedAddressFamily::decode(reserved, TRANSACTION), Ok(RequestedAddressFamily(AddressFamily::V6)));
    for wire in [b"\x00\x00\x00\x00", b"\x03\x00\x00\x00", b"\x00\x01\x00\x00"] {
        assert_eq!(RequestedAddressFamily::decode(wire, TRANSACTION), Err(AttributeError::UnknownFamily));
        assert_eq!(AdditionalAddressFamily::decode(wire, TRANSACTION), Err(AttributeError::UnknownFamily));
    }
    check_lengths::<RequestedAddressFamily>(&ONES, &[4]);
    check_lengths::<AdditionalAddressFamily>(&ONES, &[4]);
}

// RFC 8656 §18.7
#[test]
fn even_port_is_read_and_written() {
    check(EvenPort { reserve_next: true }, b"\x80");
    check(EvenPort { reserve_next: false }, b"\x00");
    assert_eq!(EvenPort::decode(b"\xff", TRANSACTION), Ok(EvenPort { reserve_next: true }));
    assert_eq!(EvenPort::decode(b"\x7f", TRANSACTION), Ok(EvenPort { reserve_next: false }));
    check_lengths::<EvenPort>(&ONES, &[1]);
}

// RFC 8656 §18.8
#[test]
fn requested_transport_is_read_and_written() {
    check(RequestedTransport::UDP, b"\x11\x00\x00\x00");
    check(RequestedTransport::TCP, b"\x06\x00\x00\x00");
    assert_eq!(RequestedTransport::decode(b"\x11\xff\xff\xff", TRANSACTION), Ok(RequestedTransport::UDP));
    check_lengths::<RequestedTransport>(&ONES, &[4]);
}

// RFC 8656 §18.9
#[test]
fn dont_fragment_has_no_value() {
    check(DontFragment, b"");
    check_lengths::<DontFragment>(&ONES, &[0]);
}

// RFC 8656 §18.10
#[test]
fn reservation_token_has_eight_bytes() {
    check(ReservationToken(*b"8 bytes!"), b"8 bytes!");
    check_lengths::<ReservationToken>(&ONES, &[8]);
}

// RFC 8656 §18.13
#[test]
fn icmp_is_read_and_written() {
    check(Icmp { kind: 3, code: 4, data: 1400 }, b"\x00\x00\x03\x04\x00\x00\x05\x78");
    check(Icmp { kind: 255, code: 255, data: u32::MAX }, b"\x00\x00\xff\xff\xff\xff\xff\xff");
    let reserved = b"\xff\xff\x03\x01\x00\x00\x00\x00";
    assert_eq!(Icmp::decode(reserved, TRANSACTION), Ok(Icmp { kind: 3, code: 1, data: 0 }));
    check_lengths::<Icmp>(&ONES, &[8]);
}

// RFC 8489 §14.5–14.7
#[test]
fn checksums_have_the_lengths_of_their_hashes() {
    check_lengths::<MessageIntegrity<'_>>(&ONES, &[20]);
    check_lengths::<MessageIntegritySha256<'_>>(&ONES, &[16, 20, 24, 28, 32]);
    check_lengths::<Fingerprint>(&ONES, &[4]);
    assert_eq!(Fingerprint::decode(b"\x01\x02\x03\x04", TRANSACTION), Ok(Fingerprint(0x0102_0304)));
}

#[test]
fn debug_output_does_not_show_the_payload() {
    assert_eq!(format!("{:?}", Data(b"private")), "Data(7 bytes)");
}
