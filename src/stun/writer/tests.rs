use crate::stun::attribute::*;
use crate::stun::*;

const TRANSACTION: TransactionId = TransactionId::new(*b"transaction!");

fn writer(buffer: &mut [u8]) -> MessageWriter<'_> {
    MessageWriter::new(buffer, Class::Indication, Method::DATA, TRANSACTION)
}

// RFC 8489 §5
#[test]
fn header_has_the_layout_of_the_rfc() {
    let mut buffer = [0xEE; 20];
    assert_eq!(writer(&mut buffer).finish().unwrap(), b"\x00\x17\x00\x00\x21\x12\xa4\x42transaction!");
}

// RFC 8489 §14: "the padding bits MUST be set to zero on sending"
#[test]
fn padding_is_zero_in_a_dirty_buffer() {
    for len in 0..9 {
        let mut buffer = [0xEE; 64];
        let value = vec![b'x'; len];
        let mut writer = writer(&mut buffer);
        writer.push(&Data(&value));
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len(), 24 + len.next_multiple_of(4));
        assert_eq!(&bytes[22..24], &u16::try_from(len).unwrap().to_be_bytes());
        assert_eq!(&bytes[24..24 + len], value);
        assert!(bytes[24 + len..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn message_that_does_not_fit_is_an_error_and_stays_within_its_buffer() {
    let fill = |writer: &mut MessageWriter<'_>| {
        writer.push(&Username("alice"));
        writer.push(&UnknownAttributes::new(&[AttributeType::LIFETIME]));
        writer.push(&PasswordAlgorithms::new(&[PasswordAlgorithm { algorithm: 9, parameters: b"p" }]));
        writer.message_integrity(b"key");
        writer.message_integrity_sha256(b"key");
        writer.fingerprint();
    };
    let mut buffer = [0; 256];
    let mut whole = writer(&mut buffer);
    fill(&mut whole);
    let needed = whole.finish_len().unwrap();

    for len in 0..needed {
        let mut buffer = [0xEE; 256];
        let (available, rest) = buffer.split_at_mut(len);
        let mut writer = writer(available);
        fill(&mut writer);
        assert!(writer.written() <= len);
        assert_eq!(writer.finish(), Err(BufferTooSmall), "{len}");
        assert!(rest.iter().all(|&byte| byte == 0xEE));
    }
    let mut exact = vec![0xEE; needed];
    let mut writer = writer(&mut exact);
    fill(&mut writer);
    assert_eq!(writer.finish_len(), Ok(needed));
}

#[test]
fn small_attribute_after_one_that_did_not_fit_is_still_an_error() {
    let mut buffer = [0; 40];
    let mut writer = writer(&mut buffer);
    writer.push(&Data(&[0; 100]));
    writer.push(&DontFragment);
    assert_eq!(writer.finish(), Err(BufferTooSmall));
}

// RFC 8489 §5, §14: both lengths have 16 bits
#[test]
fn lengths_above_sixteen_bits_are_errors() {
    let mut buffer = vec![0; 140_000];
    let value = vec![0; 70_000];

    let mut longest = writer(&mut buffer);
    longest.push(&Data(&value[..0xFFF8]));
    assert_eq!(longest.finish_len(), Ok(20 + 0xFFFC));

    let mut message_too_long = writer(&mut buffer);
    message_too_long.push(&Data(&value[..0xFFF8]));
    message_too_long.push(&DontFragment);
    assert_eq!(message_too_long.finish(), Err(BufferTooSmall));

    let mut integrity_too_long = writer(&mut buffer);
    integrity_too_long.push(&Data(&value[..0xFFF0]));
    integrity_too_long.message_integrity(b"key");
    assert_eq!(integrity_too_long.finish(), Err(BufferTooSmall));

    let mut value_too_long = writer(&mut buffer);
    value_too_long.push(&Data(&value[..0x10000]));
    assert_eq!(value_too_long.finish(), Err(BufferTooSmall));

    let mut parameters_too_long = writer(&mut buffer);
    parameters_too_long.push(&PasswordAlgorithm { algorithm: 9, parameters: &value });
    assert_eq!(parameters_too_long.finish(), Err(BufferTooSmall));

    assert_eq!(writer(&mut buffer).finish_with_data_header(0xFFF9), Err(BufferTooSmall));
    assert_eq!(writer(&mut buffer).finish_with_data_header(0x10000), Err(BufferTooSmall));
    assert_eq!(writer(&mut buffer).finish_with_data_header(usize::MAX), Err(BufferTooSmall));
}

// RFC 8656 §11.6
#[test]
fn data_indication_without_a_copy_equals_one_with_a_copied_payload() {
    for (peer, head_len) in [("192.0.2.1:7", 36), ("[2001:db8::1]:7", 48)] {
        let peer = XorPeerAddress(peer.parse().unwrap());
        for len in [0, 1, 2, 3, 4, 1200] {
            let payload = vec![0xAB; len];
            let mut copied = vec![0xEE; 2000];
            let mut copying = writer(&mut copied);
            copying.push(&peer);
            copying.push(&Data(&payload));

            let mut head = [0xEE; 48];
            let mut in_place = writer(&mut head);
            in_place.push(&peer);
            let head = in_place.finish_with_data_header(len).unwrap();
            assert_eq!(head.len(), head_len);
            let whole = [head, &payload, &[0; 3][..data_padding(len)]].concat();
            assert_eq!(whole, copying.finish().unwrap());
        }
    }
}
