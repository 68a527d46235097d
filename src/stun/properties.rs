//! Property tests of the reader and the writer with generated, mutated and random bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fuzzing;

const KEY: &[u8] = b"key";

/// A part of a generated message: any attribute, or a checksum at any position.
#[derive(Clone, Debug)]
enum Part {
    Raw(u16, Vec<u8>),
    Integrity,
    IntegritySha256,
    Fingerprint,
}

fn part() -> impl Strategy<Value = Part> {
    let known = (0x0001_u16..0x0030).prop_union(0x8000_u16..0x8030);
    prop_oneof![
        8 => (known, vec(any::<u8>(), 0..40)).prop_map(|(kind, value)| Part::Raw(kind, value)),
        // Values that are valid as address families, small numbers and texts.
        8 => ((0x0001_u16..0x0030).prop_union(0x8000_u16..0x8005), vec(0_u8..6, 0..24))
            .prop_map(|(kind, value)| Part::Raw(kind, value)),
        1 => (any::<u16>(), vec(any::<u8>(), 0..8)).prop_map(|(kind, value)| Part::Raw(kind, value)),
        1 => Just(Part::Integrity),
        1 => Just(Part::IntegritySha256),
        1 => Just(Part::Fingerprint),
    ]
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::Request), Just(Class::Indication), Just(Class::Success), Just(Class::Error)]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    (class(), 0_u16..=0xFFF, any::<[u8; 12]>(), vec(part(), 0..12)).prop_map(|(class, method, transaction, parts)| {
        let mut buffer = vec![0xEE; 2000];
        let method = Method::new(method).unwrap();
        let mut writer = MessageWriter::new(&mut buffer, class, method, TransactionId::new(transaction));
        for part in &parts {
            match part {
                Part::Raw(kind, value) => writer.push(&RawAttribute { kind: AttributeType::new(*kind), value }),
                Part::Integrity => writer.message_integrity(KEY),
                Part::IntegritySha256 => writer.message_integrity_sha256(KEY),
                Part::Fingerprint => writer.fingerprint(),
            }
        }
        writer.finish().unwrap().to_vec()
    })
}

/// Generates a message of which some bytes are overwritten and which may be cut.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    (message(), vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), any::<prop::sample::Index>(), 0..8).prop_map(
        |(mut bytes, overwrites, cut, cut_if_zero)| {
            for (at, byte) in overwrites {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if cut_if_zero == 0 {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2048) })]

    #[test]
    fn written_messages_are_read_back(bytes in message()) {
        prop_assert!(Message::parse(&bytes).is_ok());
        fuzzing::stun(&bytes);
    }

    #[test]
    fn mutated_messages_do_not_panic_and_can_be_rewritten(bytes in mutated()) {
        fuzzing::stun(&bytes);
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..200)) {
        fuzzing::stun(&bytes);
    }

    // Random bytes are rarely a valid header. With one, parsing reaches the attributes.
    #[test]
    fn random_bytes_after_a_header_do_not_panic(words in vec(any::<[u8; 4]>(), 0..60)) {
        let attributes = words.concat();
        let mut bytes = b"\x00\x03\x00\x00\x21\x12\xa4\x42transaction!".to_vec();
        bytes[2..4].copy_from_slice(&u16::try_from(attributes.len()).unwrap().to_be_bytes());
        bytes.extend(attributes);
        fuzzing::stun(&bytes);
    }

    // RFC 8489 §14: "the padding bits MUST be set to zero on sending"
    #[test]
    fn written_padding_is_zero(bytes in message()) {
        let mut rest = &bytes[HEADER_LEN..];
        while let [_, _, high, low, following @ ..] = rest {
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            let padded = len.next_multiple_of(4);
            prop_assert!(following[len..padded].iter().all(|&byte| byte == 0));
            rest = &following[padded..];
        }
        prop_assert!(rest.is_empty());
    }
}
