use crate::stun::attribute::*;
use crate::stun::*;

const TRANSACTION: TransactionId = TransactionId::new(*b"transaction!");
const KEY: &[u8] = b"key";

/// The start of the value of the first attribute.
const FIRST_VALUE: usize = 24;

fn write(write: impl FnOnce(&mut MessageWriter<'_>)) -> Vec<u8> {
    let mut buffer = vec![0; 70_000];
    let mut writer = MessageWriter::new(&mut buffer, Class::Request, Method::ALLOCATE, TRANSACTION);
    write(&mut writer);
    writer.finish().unwrap().to_vec()
}

fn raw(kind: u16, value: &[u8]) -> RawAttribute<'_> {
    RawAttribute { kind: AttributeType::new(kind), value }
}

fn kinds(bytes: &[u8]) -> Vec<AttributeType> {
    Message::parse(bytes).unwrap().attributes().map(|attribute| attribute.kind).collect()
}

fn with_length(bytes: &[u8], length: u16) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

// RFC 8489 §5
#[test]
fn header_without_attributes_is_a_message() {
    let bytes = write(|_| ());
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(bytes.len(), HEADER_LEN);
    assert_eq!(message.class(), Class::Request);
    assert_eq!(message.method(), Method::ALLOCATE);
    assert_eq!(message.transaction_id(), TRANSACTION);
    assert_eq!(message.as_bytes(), bytes);
    assert_eq!(message.attributes().next(), None);
    assert_eq!(message.verify_integrity(KEY), IntegrityStatus::Absent);
    assert_eq!(message.verify_integrity_sha256(KEY), IntegrityStatus::Absent);
    assert_eq!(message.fingerprint(), FingerprintStatus::Absent);
}

#[test]
fn truncated_message_is_an_error() {
    let bytes = write(|writer| {
        writer.push(&Username("alice"));
        writer.push(&XorPeerAddress("[2001:db8::1]:9".parse().unwrap()));
        writer.push(&Data(b"12345"));
        writer.message_integrity(KEY);
        writer.message_integrity_sha256(KEY);
        writer.fingerprint();
    });
    for len in 0..bytes.len() {
        let expected = if len < HEADER_LEN { ParseError::TooShort } else { ParseError::Truncated };
        assert_eq!(Message::parse(&bytes[..len]).unwrap_err(), expected, "{len}");

        // With an adjusted length, it is a message only if it ends between two attributes.
        if len >= HEADER_LEN {
            let cut = with_length(&bytes[..len], u16::try_from(len - HEADER_LEN).unwrap());
            let between_attributes = [20, 32, 56, 68, 92, 128].contains(&len);
            assert_eq!(Message::parse(&cut).is_ok(), between_attributes, "{len}");
        }
    }
}

// RFC 8489 §5: the length excludes the header and is a multiple of four
#[test]
fn wrong_length_is_an_error() {
    let bytes = write(|writer| writer.push(&Lifetime(600)));
    let parse = |length| Message::parse(&with_length(&bytes, length)).map(|_| ());
    assert_eq!(parse(8), Ok(()));
    assert_eq!(parse(4), Err(ParseError::TrailingBytes));
    assert_eq!(parse(0), Err(ParseError::TrailingBytes));
    assert_eq!(parse(12), Err(ParseError::Truncated));
    assert_eq!(parse(0xFFFC), Err(ParseError::Truncated));
    for length in [1, 2, 3, 5, 6, 7, 9, 0xFFFF] {
        assert_eq!(parse(length), Err(ParseError::UnalignedLength));
    }
}

// RFC 8489 §14
#[test]
fn attribute_that_extends_past_the_end_is_an_error() {
    let bytes = write(|writer| {
        writer.push(&Lifetime(600));
        writer.push(&Lifetime(600));
    });
    let parse = |length: u16| {
        let mut bytes = bytes.clone();
        bytes[22..24].copy_from_slice(&length.to_be_bytes());
        Message::parse(&bytes).map(|message| message.attributes().count())
    };
    assert_eq!(parse(4), Ok(2));
    assert_eq!(parse(9), Ok(1));
    assert_eq!(parse(12), Ok(1));
    assert_eq!(parse(8), Err(ParseError::AttributeOverrun));
    for length in [13, 14, 16, 600, 0x7FFF, 0xFFFC, 0xFFFF] {
        assert_eq!(parse(length), Err(ParseError::AttributeOverrun));
    }
}

// RFC 8489 §14: padding is required, and its value is ignored
#[test]
fn the_value_of_padding_is_ignored() {
    let mut bytes = write(|writer| {
        writer.push(&Username("a"));
        writer.push(&Lifetime(1));
    });
    bytes[FIRST_VALUE + 1..FIRST_VALUE + 4].fill(0xFF);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.get(), Ok(Some(Username("a"))));
    assert_eq!(message.get(), Ok(Some(Lifetime(1))));
}

// RFC 8489 §5
#[test]
fn other_protocols_are_errors() {
    let bytes = write(|writer| writer.push(&Lifetime(600)));
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        Message::parse(&bytes).map(|_| ()).unwrap_err()
    };
    assert_eq!(with(0, 0x40), ParseError::LeadingBits);
    assert_eq!(with(0, 0x80), ParseError::LeadingBits);
    for at in 4..8 {
        assert_eq!(with(at, 0xEE), ParseError::Cookie);
    }
}

// RFC 8489 §9: "agents MUST ignore all attributes that follow MESSAGE-INTEGRITY, with the exception of ..."
#[test]
fn attributes_after_message_integrity_are_ignored() {
    let bytes = write(|writer| {
        writer.push(&Username("alice"));
        writer.message_integrity(KEY);
        writer.push(&Lifetime(3600));
        writer.push(&raw(0x7FFF, b""));
        writer.message_integrity(b"another key");
        writer.message_integrity_sha256(KEY);
        writer.push(&Realm("evil"));
        writer.message_integrity_sha256(b"another key");
        writer.fingerprint();
    });
    assert_eq!(
        kinds(&bytes),
        [
            AttributeType::USERNAME,
            AttributeType::MESSAGE_INTEGRITY,
            AttributeType::MESSAGE_INTEGRITY_SHA256,
            AttributeType::FINGERPRINT
        ]
    );
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.get::<Lifetime>(), Ok(None));
    assert_eq!(message.get::<Realm<'_>>(), Ok(None));
    assert!(!message.contains(AttributeType::LIFETIME));
    assert_eq!(message.all::<Lifetime>().count(), 0);
    assert_eq!(message.unknown_required(|_| false).count(), 3);
    assert_eq!(message.verify_integrity(KEY), IntegrityStatus::Valid);
    assert_eq!(message.verify_integrity_sha256(KEY), IntegrityStatus::Valid);
    assert_eq!(message.fingerprint(), FingerprintStatus::Valid);
}

// RFC 8489 §9
#[test]
fn attributes_after_message_integrity_sha256_are_ignored() {
    let bytes = write(|writer| {
        writer.message_integrity_sha256(KEY);
        writer.push(&Lifetime(3600));
        writer.message_integrity(KEY);
        writer.fingerprint();
    });
    assert_eq!(kinds(&bytes), [AttributeType::MESSAGE_INTEGRITY_SHA256, AttributeType::FINGERPRINT]);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.verify_integrity(KEY), IntegrityStatus::Absent);
    assert_eq!(message.verify_integrity_sha256(KEY), IntegrityStatus::Valid);
}

// RFC 8489 §14.7: FINGERPRINT is the last attribute
#[test]
fn attributes_after_fingerprint_are_ignored_and_make_it_wrong() {
    let bytes = write(|writer| {
        writer.push(&Lifetime(1));
        writer.fingerprint();
        writer.push(&Username("alice"));
        writer.message_integrity(KEY);
    });
    assert_eq!(kinds(&bytes), [AttributeType::LIFETIME, AttributeType::FINGERPRINT]);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.verify_integrity(KEY), IntegrityStatus::Absent);
    assert_eq!(message.fingerprint(), FingerprintStatus::Wrong);
}

// RFC 8489 §14: "only the first occurrence needs to be processed"
#[test]
fn first_of_two_attributes_is_used() {
    let bytes = write(|writer| {
        writer.push(&Lifetime(1));
        writer.push(&Lifetime(2));
    });
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.get(), Ok(Some(Lifetime(1))));
    assert_eq!(message.all().collect::<Vec<_>>(), [Ok(Lifetime(1)), Ok(Lifetime(2))]);
}

#[test]
fn first_attribute_is_used_even_if_it_is_malformed() {
    let bytes = write(|writer| {
        writer.push(&raw(0x000D, b"toolong"));
        writer.push(&Lifetime(2));
    });
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.get::<Lifetime>(), Err(AttributeError::WrongLength));
    assert_eq!(message.all().collect::<Vec<_>>(), [Err(AttributeError::WrongLength), Ok(Lifetime(2))]);
}

// RFC 8656 §10.1: CreatePermission carries one or more XOR-PEER-ADDRESS
#[test]
fn repeated_addresses_are_all_returned_in_order() {
    let peers = ["192.0.2.1:1", "[2001:db8::2]:2", "192.0.2.3:3"].map(|peer| XorPeerAddress(peer.parse().unwrap()));
    let bytes = write(|writer| peers.iter().for_each(|peer| writer.push(peer)));
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.all().collect::<Result<Vec<XorPeerAddress>, _>>().unwrap(), peers);
}

// RFC 8489 §6.3.1
#[test]
fn unknown_required_returns_required_attributes_that_are_not_understood() {
    let bytes = write(|writer| {
        writer.push(&raw(0x7ABC, b"x"));
        writer.push(&Lifetime(1));
        writer.push(&raw(0x8ABC, b"x"));
        writer.push(&DontFragment);
        writer.push(&raw(0x7ABC, b"y"));
    });
    let message = Message::parse(&bytes).unwrap();
    let unknown: Vec<_> = message.unknown_required(|kind| kind == AttributeType::LIFETIME).collect();
    assert_eq!(unknown, [AttributeType::new(0x7ABC), AttributeType::DONT_FRAGMENT, AttributeType::new(0x7ABC)]);
}

#[test]
fn data_range_is_the_range_of_the_payload() {
    let bytes = write(|writer| {
        writer.push(&XorPeerAddress("192.0.2.1:1".parse().unwrap()));
        writer.push(&Data(b"hello"));
        writer.push(&Data(b"second"));
    });
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.data_range(), Some(36..41));
    assert_eq!(&bytes[message.data_range().unwrap()], b"hello");
    assert_eq!(message.get(), Ok(Some(Data(b"hello"))));
    assert_eq!(Message::parse(&write(|_| ())).unwrap().data_range(), None);
}

#[test]
fn empty_payload_has_an_empty_range() {
    let bytes = write(|writer| writer.push(&Data(b"")));
    assert_eq!(Message::parse(&bytes).unwrap().data_range(), Some(24..24));
}

// RFC 8489 §14.5, §14.6, §14.7
#[test]
fn every_flipped_bit_is_detected() {
    let bytes = write(|writer| {
        writer.push(&Username("alice"));
        writer.message_integrity(KEY);
        writer.message_integrity_sha256(KEY);
        writer.fingerprint();
    });
    let integrity_end = 20 + 12 + 24;
    let sha256_end = integrity_end + 36;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let Ok(message) = Message::parse(&flipped) else { continue };
        assert_ne!(message.fingerprint(), FingerprintStatus::Valid, "bit {bit}");
        // The HMAC is computed with an adjusted length, and `parse` has checked the length of the header.
        if bit / 8 < integrity_end && !(2..4).contains(&(bit / 8)) {
            assert_ne!(message.verify_integrity(KEY), IntegrityStatus::Valid, "bit {bit}");
        }
        if bit / 8 < sha256_end && !(2..4).contains(&(bit / 8)) {
            assert_ne!(message.verify_integrity_sha256(KEY), IntegrityStatus::Valid, "bit {bit}");
        }
    }
}

// RFC 8489 §14.5, §14.7: MESSAGE-INTEGRITY and FINGERPRINT each have a fixed length
#[test]
fn checksums_of_another_length_are_wrong() {
    for len in [0, 1, 3, 4, 5, 16, 19, 20, 21, 24, 31, 32, 33, 64] {
        let value = vec![0; len];
        for kind in
            [AttributeType::MESSAGE_INTEGRITY, AttributeType::MESSAGE_INTEGRITY_SHA256, AttributeType::FINGERPRINT]
        {
            let bytes = write(|writer| writer.push(&RawAttribute { kind, value: &value }));
            let message = Message::parse(&bytes).unwrap();
            let of = |it| if kind == it { IntegrityStatus::Wrong } else { IntegrityStatus::Absent };
            assert_eq!(message.verify_integrity(KEY), of(AttributeType::MESSAGE_INTEGRITY));
            assert_eq!(message.verify_integrity_sha256(KEY), of(AttributeType::MESSAGE_INTEGRITY_SHA256));
            assert_eq!(message.fingerprint() == FingerprintStatus::Wrong, kind == AttributeType::FINGERPRINT);
        }
    }
}

// RFC 8489 §14.6: the full 32 bytes unless the usage allows truncation; TURN does not
#[test]
fn truncated_message_integrity_sha256_is_wrong() {
    let full = write(|writer| writer.message_integrity_sha256(KEY));
    for len in [16, 20, 24, 28] {
        let bytes = write(|writer| {
            writer.push(&RawAttribute {
                kind: AttributeType::MESSAGE_INTEGRITY_SHA256,
                value: &full[FIRST_VALUE..FIRST_VALUE + len],
            });
        });
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.get::<MessageIntegritySha256<'_>>().unwrap().unwrap().as_bytes().len(), len);
        assert_eq!(message.verify_integrity_sha256(KEY), IntegrityStatus::Wrong);
    }
}

// RFC 2104 §2: keys longer than a block are hashed first
#[test]
fn keys_of_every_length_work() {
    for len in [0, 1, 16, 32, 63, 64, 65, 128, 1000] {
        let key = vec![7; len];
        let bytes = write(|writer| {
            writer.message_integrity(&key);
            writer.message_integrity_sha256(&key);
        });
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.verify_integrity(&key), IntegrityStatus::Valid);
        assert_eq!(message.verify_integrity_sha256(&key), IntegrityStatus::Valid);
    }
}

#[test]
fn longest_message_is_read() {
    let payload = vec![0xAB; 0xFFFC - 4];
    let bytes = write(|writer| writer.push(&Data(&payload)));
    assert_eq!(bytes.len(), HEADER_LEN + 0xFFFC);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.get(), Ok(Some(Data(&payload))));
    assert_eq!(message.data_range(), Some(24..24 + payload.len()));
}

#[test]
fn message_of_only_empty_attributes_is_read() {
    let bytes = write(|writer| (0..0xFFFC / 4).for_each(|_| writer.push(&DontFragment)));
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.attributes().count(), 0xFFFC / 4);
    assert_eq!(message.get::<Lifetime>(), Ok(None));
}

#[test]
fn a_message_is_read_at_every_alignment() {
    let address = "[2001:db8::1]:4242".parse().unwrap();
    let bytes = write(|writer| {
        writer.push(&Data(&[7, 8, 9]));
        writer.push(&XorPeerAddress(address));
    });
    for offset in 0..8 {
        let shifted = [vec![0; offset], bytes.clone()].concat();
        let message = Message::parse(&shifted[offset..]).unwrap();
        assert_eq!(message.get(), Ok(Some(Data(&[7, 8, 9]))));
        assert_eq!(message.get(), Ok(Some(XorPeerAddress(address))));
    }
}

#[test]
fn datagrams_of_735_and_65535_bytes_do_not_panic() {
    for len in [735, 65_535] {
        for fill in [0x00, 0x01, 0x7F, 0xFF] {
            let mut bytes = vec![fill; len];
            bytes[..8].copy_from_slice(b"\x00\x03\x00\x00\x21\x12\xa4\x42");
            for length in [len - HEADER_LEN, (len - HEADER_LEN) & !3, 0xFFFC] {
                let bytes = with_length(&bytes, u16::try_from(length).unwrap());
                assert!(Message::parse(&bytes).is_err());
                let aligned = &bytes[..HEADER_LEN + ((len - HEADER_LEN) & !3)];
                if let Ok(message) = Message::parse(aligned) {
                    assert!(message.attributes().count() <= len / 4);
                }
            }
        }
    }
}

#[test]
fn debug_output_shows_attributes_without_their_values() {
    let bytes = write(|writer| {
        writer.push(&Username("alice"));
        writer.push(&Data(b"private"));
    });
    let text = format!("{:?}", Message::parse(&bytes).unwrap());
    assert!(text.contains("USERNAME (5 bytes)") && text.contains("DATA (7 bytes)"), "{text}");
    assert!(!text.contains("alice") && !text.contains("private"), "{text}");
}

#[test]
fn attributes_above_the_maximum_are_not_read() {
    let mut bytes = vec![0, 1, 0, 16];
    bytes.extend(MAGIC_COOKIE.to_be_bytes());
    bytes.extend([7; 12]);
    bytes.extend([0x80, 0x22, 0, 0].repeat(3));
    bytes.extend([0x80, 0x22, 0xff, 0xff]);
    assert_eq!(Message::parse(&bytes).unwrap_err(), ParseError::AttributeOverrun);
    assert_eq!(Message::parse_at_most(&bytes, 4).unwrap_err(), ParseError::AttributeOverrun);
    assert_eq!(Message::parse_at_most(&bytes, 3).unwrap_err(), ParseError::TooManyAttributes);
    bytes.truncate(32);
    bytes[3] = 12;
    assert_eq!(Message::parse_at_most(&bytes, 3).unwrap().attributes().count(), 3);
    assert_eq!(Message::parse_at_most(&bytes, 2).unwrap_err(), ParseError::TooManyAttributes);
}
