//! The wire format: parsing, every attribute, and what is written and read back.

use crate::stun::attribute::*;
use crate::stun::*;
use crate::test_messages::{assert_padding_is_zero, attributes};

const KEY: &[u8] = b"key";

/// Asserts that each attribute is the same after it is written and read again.
macro_rules! assert_round_trip {
    ($message:expr, $($attribute:ty),* $(,)?) => {$(
        let first = $message.get::<$attribute>();
        if let Ok(Some(first)) = first {
            let mut buffer = vec![0xEE; 70_000];
            let mut writer =
                MessageWriter::new(&mut buffer, $message.class(), $message.method(), $message.transaction_id());
            writer.push(&first);
            let again = Message::parse(writer.finish().unwrap()).unwrap();
            assert_eq!(again.get::<$attribute>(), Ok(Some(first)));
        }
        for attribute in $message.all::<$attribute>() {
            let _ = format!("{attribute:?}");
        }
    )*};
}

/// Parses a message, calls every method of it, and writes it again.
pub fn stun(data: &[u8]) {
    let Ok(message) = Message::parse(data) else { return };
    assert_eq!(message.as_bytes(), data);
    assert_round_trip!(
        message,
        MappedAddress,
        XorMappedAddress,
        Username<'_>,
        Userhash<'_>,
        ErrorCodeAttribute<'_>,
        Realm<'_>,
        Nonce<'_>,
        PasswordAlgorithms<'_>,
        PasswordAlgorithm<'_>,
        UnknownAttributes<'_>,
        Software<'_>,
        AlternateServer,
        AlternateDomain<'_>,
        ChannelNumber,
        Lifetime,
        XorPeerAddress,
        Data<'_>,
        XorRelayedAddress,
        RequestedAddressFamily,
        EvenPort,
        RequestedTransport,
        DontFragment,
        ReservationToken,
        AdditionalAddressFamily,
        AddressErrorCode<'_>,
        Icmp,
    );
    let _ = (message.get::<MessageIntegrity<'_>>(), message.get::<MessageIntegritySha256<'_>>());
    let _ = (message.get::<Fingerprint>(), message.fingerprint(), format!("{message:?}"));
    let _ = (message.verify_integrity(KEY), message.verify_integrity_sha256(KEY));
    let _ = message.unknown_required(|_| false).count();
    if let Some(range) = message.data_range() {
        assert_eq!(Some(Data(&data[range])), message.get().unwrap());
    }
    let all = count(data);
    assert!(all >= message.attributes().count());
    assert!(Message::parse_at_most(data, all).is_ok());
    assert!(all == 0 || matches!(Message::parse_at_most(data, all - 1), Err(ParseError::TooManyAttributes)));

    // A new message with the attributes that are not ignored has the same attributes.
    let write = |sealed: &dyn Fn(&mut MessageWriter<'_>)| {
        let mut buffer = vec![0xEE; 70_000];
        let mut writer = MessageWriter::new(&mut buffer, message.class(), message.method(), message.transaction_id());
        message.attributes().for_each(|attribute| writer.push(&attribute));
        sealed(&mut writer);
        let length = writer.finish_len().ok()?;
        buffer.truncate(length);
        assert_padding_is_zero(&buffer);
        Some(buffer)
    };
    let again = write(&|_| {}).unwrap();
    let again = Message::parse(&again).unwrap();
    assert_eq!(
        (again.class(), again.method(), again.transaction_id()),
        (message.class(), message.method(), message.transaction_id())
    );
    assert!(again.attributes().eq(message.attributes()));

    // With integrity, it is valid for this key and for no other. A message of 64 KiB has no room for it.
    let has = |kind| message.contains(kind);
    if has(AttributeType::MESSAGE_INTEGRITY)
        || has(AttributeType::MESSAGE_INTEGRITY_SHA256)
        || has(AttributeType::FINGERPRINT)
    {
        return;
    }
    let Some(sealed) = write(&|writer| {
        writer.message_integrity(KEY);
        writer.message_integrity_sha256(KEY);
        writer.fingerprint();
    }) else {
        return assert!(data.len() > 65_000);
    };
    let sealed = Message::parse(&sealed).unwrap();
    assert_eq!(sealed.fingerprint(), FingerprintStatus::Valid);
    assert_eq!(
        (sealed.verify_integrity(KEY), sealed.verify_integrity(b"no")),
        (IntegrityStatus::Valid, IntegrityStatus::Wrong)
    );
    assert_eq!(sealed.verify_integrity_sha256(KEY), IntegrityStatus::Valid);
    assert_eq!(sealed.verify_integrity_sha256(b"no"), IntegrityStatus::Wrong);
}

/// Returns the number of attributes, those included that a receiver ignores.
fn count(message: &[u8]) -> usize {
    attributes(message).count()
}
