//! The test vectors of RFC 5769 §2 and RFC 8489 Appendix B.1, parsed and rebuilt.
//!
//! The checksums of the first three vectors of RFC 5769 cover padding with spaces, which a sender must not use (RFC
//! 8489 §14). [`MessageWriter::repad`], which only tests have, writes such padding.

use super::attribute::*;
use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

fn rebuild(class: Class, transaction_id: TransactionId, write: impl FnOnce(&mut MessageWriter<'_>)) -> Vec<u8> {
    let mut buffer = [0xEE; 256];
    let mut writer = MessageWriter::new(&mut buffer, class, Method::BINDING, transaction_id);
    write(&mut writer);
    writer.finish().unwrap().to_vec()
}

const ICE_TRANSACTION: TransactionId = TransactionId::new(*b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae");
const ICE_PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";

const LONG_TERM_TRANSACTION: TransactionId = TransactionId::new(*b"\x78\xad\x34\x33\xc6\xad\x72\xc0\x29\xda\x41\x2e");
const LONG_TERM_USERNAME: &str = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";

// RFC 5769 §2.1
#[test]
fn rfc5769_request_is_read_and_rebuilt() {
    let bytes = hex("00010058 2112a442 b7e7a701 bc34d686 fa87dfae
         80220010 5354554e 20746573 7420636c 69656e74
         00240004 6e0001ff
         80290008 932ff9b1 51263b36
         00060009 6576746a 3a683676 59202020
         00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2
         80280004 e57a3bcf");
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Request, Method::BINDING));
    assert_eq!(message.transaction_id(), ICE_TRANSACTION);
    assert_eq!(message.get(), Ok(Some(Software("STUN test client"))));
    assert_eq!(message.get(), Ok(Some(Username("evtj:h6vY"))));
    assert_eq!(message.verify_integrity(ICE_PASSWORD), IntegrityStatus::Valid);
    assert_eq!(message.verify_integrity(b"VOkJxbRl1RmTxUk/WvJxBT"), IntegrityStatus::Wrong);
    assert_eq!(message.verify_integrity_sha256(ICE_PASSWORD), IntegrityStatus::Absent);
    assert_eq!(message.fingerprint(), FingerprintStatus::Valid);

    let priority = RawAttribute { kind: AttributeType::PRIORITY, value: &0x6e00_01ff_u32.to_be_bytes() };
    let controlled =
        RawAttribute { kind: AttributeType::ICE_CONTROLLED, value: &0x932f_f9b1_5126_3b36_u64.to_be_bytes() };
    let rebuilt = rebuild(Class::Request, ICE_TRANSACTION, |writer| {
        writer.push(&Software("STUN test client"));
        writer.push(&priority);
        writer.push(&controlled);
        writer.push(&Username("evtj:h6vY"));
        writer.repad(3, b' ');
        writer.message_integrity(ICE_PASSWORD);
        writer.fingerprint();
    });
    assert_eq!(rebuilt, bytes);
}

fn check_response(bytes: &[u8], mapped: &str) {
    let mapped = XorMappedAddress(mapped.parse().unwrap());
    let message = Message::parse(bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Success, Method::BINDING));
    assert_eq!(message.transaction_id(), ICE_TRANSACTION);
    assert_eq!(message.get(), Ok(Some(Software("test vector"))));
    assert_eq!(message.get(), Ok(Some(mapped)));
    assert_eq!(message.verify_integrity(ICE_PASSWORD), IntegrityStatus::Valid);
    assert_eq!(message.fingerprint(), FingerprintStatus::Valid);

    let rebuilt = rebuild(Class::Success, ICE_TRANSACTION, |writer| {
        writer.push(&Software("test vector"));
        writer.repad(1, b' ');
        writer.push(&mapped);
        writer.message_integrity(ICE_PASSWORD);
        writer.fingerprint();
    });
    assert_eq!(rebuilt, bytes);
}

// RFC 5769 §2.2
#[test]
fn rfc5769_ipv4_response_is_read_and_rebuilt() {
    let bytes = hex("0101003c 2112a442 b7e7a701 bc34d686 fa87dfae
         8022000b 74657374 20766563 746f7220
         00200008 0001a147 e112a643
         00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7
         80280004 c07d4c96");
    check_response(&bytes, "192.0.2.1:32853");
}

// RFC 5769 §2.3
#[test]
fn rfc5769_ipv6_response_is_read_and_rebuilt() {
    let bytes = hex("01010048 2112a442 b7e7a701 bc34d686 fa87dfae
         8022000b 74657374 20766563 746f7220
         00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9
         00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41
         80280004 c8fb0b4c");
    check_response(&bytes, "[2001:db8:1234:5678:11:2233:4455:6677]:32853");
}

// RFC 5769 §2.4
#[test]
fn rfc5769_long_term_request_is_read_and_rebuilt() {
    use md5::{Digest, Md5};

    let bytes = hex("00010060 2112a442 78ad3433 c6ad72c0 29da412e
         00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000
         0015001c 662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341
         0014000b 6578616d 706c652e 6f726700
         00080014 f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666");
    let key = Md5::digest(format!("{LONG_TERM_USERNAME}:example.org:TheMatrIX"));
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class(), message.method()), (Class::Request, Method::BINDING));
    assert_eq!(message.transaction_id(), LONG_TERM_TRANSACTION);
    assert_eq!(message.get(), Ok(Some(Username(LONG_TERM_USERNAME))));
    assert_eq!(message.get(), Ok(Some(Nonce("f//499k954d6OL34oL9FSTvy64sA"))));
    assert_eq!(message.get(), Ok(Some(Realm("example.org"))));
    assert_eq!(message.verify_integrity(&key), IntegrityStatus::Valid);
    assert_eq!(message.fingerprint(), FingerprintStatus::Absent);

    let rebuilt = rebuild(Class::Request, LONG_TERM_TRANSACTION, |writer| {
        writer.push(&Username(LONG_TERM_USERNAME));
        writer.push(&Nonce("f//499k954d6OL34oL9FSTvy64sA"));
        writer.push(&Realm("example.org"));
        writer.message_integrity(&key);
    });
    assert_eq!(rebuilt, bytes);
}

// RFC 8489 Appendix B.1 as corrected by erratum 6268: the published message has no PASSWORD-ALGORITHM, and its length
// and HMAC are wrong.
#[test]
fn rfc8489_appendix_b1_is_read_and_rebuilt() {
    use sha2::{Digest, Sha256};

    let bytes = hex("00010090 2112a442 78ad3433 c6ad72c0 29da412e
         001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2 05c46e41 407f1704
         00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476 79363473 41000000
         0014000b 6578616d 706c652e 6f726700
         001d0004 00020000
         001c0020 b5c7bf00 5b6c52a2 1c51c5e8 92f81924 136296cb 927c4314 9309278c c6518e65");
    let nonce = Nonce("obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA");
    let userhash: [u8; 32] = Sha256::digest(format!("{LONG_TERM_USERNAME}:example.org")).into();
    let key = Sha256::digest(format!("{LONG_TERM_USERNAME}:example.org:TheMatrIX"));
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.transaction_id(), LONG_TERM_TRANSACTION);
    assert_eq!(message.get(), Ok(Some(Userhash(&userhash))));
    assert_eq!(message.get(), Ok(Some(nonce)));
    assert_eq!(message.get(), Ok(Some(Realm("example.org"))));
    assert_eq!(message.get(), Ok(Some(PasswordAlgorithm::SHA256)));
    assert_eq!(message.verify_integrity_sha256(&key), IntegrityStatus::Valid);
    assert_eq!(message.verify_integrity_sha256(b"another key"), IntegrityStatus::Wrong);
    assert_eq!(message.verify_integrity(&key), IntegrityStatus::Absent);

    let rebuilt = rebuild(Class::Request, LONG_TERM_TRANSACTION, |writer| {
        writer.push(&Userhash(&userhash));
        writer.push(&nonce);
        writer.push(&Realm("example.org"));
        writer.push(&PasswordAlgorithm::SHA256);
        writer.message_integrity_sha256(&key);
    });
    assert_eq!(rebuilt, bytes);
}
