//! The boundaries of messages on a stream (RFC 8489 §6.2.2, RFC 8656 §12.5).

use crate::stun::{HEADER_LEN, MAGIC_COOKIE};
use crate::turn::protocol::channel_data::CHANNEL_HEADER;
use crate::turn::protocol::channel_numbers::ChannelNumbers;

/// The longest frame in bytes: a STUN header and the attributes that its length field allows.
pub const LARGEST_FRAME: usize = 65_552;

/// What the start of a byte stream contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A complete message.
    Complete {
        /// The length of the message in bytes.
        message: usize,
        /// The length with padding: where the next message begins.
        length: usize,
    },
    /// The beginning of a message.
    Partial,
    /// Not a message. The next message cannot be found.
    Invalid,
}

/// Examines the start of a byte stream.
pub(crate) fn next_frame(bytes: &[u8], channels: ChannelNumbers) -> Frame {
    let Some([first, second, third, fourth]) = bytes.first_chunk() else {
        // The first byte alone can rule out a message.
        return match bytes.first() {
            Some(first) if *first > 3 && !channels.contains_first_byte(*first) => Frame::Invalid,
            _ => Frame::Partial,
        };
    };
    let (number, length) = (u16::from_be_bytes([*first, *second]), u16::from_be_bytes([*third, *fourth]).into());
    let (message, padded) = if *first <= 3 {
        let cookie = bytes.get(4..8);
        if cookie.is_some_and(|cookie| *cookie != MAGIC_COOKIE.to_be_bytes()) || !usize::is_multiple_of(length, 4) {
            return Frame::Invalid;
        }
        (HEADER_LEN + length, HEADER_LEN + length)
    } else if channels.contains(number) {
        (CHANNEL_HEADER + length, CHANNEL_HEADER + length.next_multiple_of(4))
    } else {
        return Frame::Invalid;
    };
    if bytes.len() < padded { Frame::Partial } else { Frame::Complete { message, length: padded } }
}

/// Returns the length, with padding, of a message that this server has written to a stream, from its first four bytes.
#[must_use]
pub fn written_length([first, _, high, low]: [u8; 4]) -> usize {
    let length = usize::from(u16::from_be_bytes([high, low]));
    if first <= 3 { HEADER_LEN + length } else { CHANNEL_HEADER + length.next_multiple_of(4) }
}

/// Whether the type of a message is that of a Binding request or indication (RFC 8489 §18.2).
#[must_use]
pub fn is_binding(message: &[u8]) -> bool {
    matches!(message, [0x00, 0x01 | 0x11, ..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stun::attribute::Software;
    use crate::stun::{Class, MessageWriter, Method, TransactionId};

    const CHANNELS: ChannelNumbers = ChannelNumbers::Rfc8656;

    fn binding() -> Vec<u8> {
        let mut buffer = [0; 64];
        let mut writer = MessageWriter::new(&mut buffer, Class::Request, Method::BINDING, TransactionId::new([1; 12]));
        writer.push(&Software("stream"));
        writer.finish().unwrap().to_vec()
    }

    // RFC 8489 §5: class and method in the first two bytes.
    #[test]
    fn a_binding_is_recognized_by_its_type() {
        let of = |class, method| {
            let mut buffer = [0; 64];
            let writer = MessageWriter::new(&mut buffer, class, method, TransactionId::new([1; 12]));
            is_binding(writer.finish().unwrap())
        };
        assert!(of(Class::Request, Method::BINDING) && of(Class::Indication, Method::BINDING));
        assert!(!of(Class::Success, Method::BINDING) && !of(Class::Request, Method::ALLOCATE));
        assert!(!of(Class::Indication, Method::SEND) && !is_binding(&[0x40, 0x01, 0, 0]) && !is_binding(&[]));
    }

    #[test]
    fn a_message_is_partial_until_its_last_byte() {
        let message = binding();
        for length in 0..message.len() {
            assert_eq!(next_frame(&message[..length], CHANNELS), Frame::Partial, "{length}");
        }
        let complete = Frame::Complete { message: message.len(), length: message.len() };
        assert_eq!(next_frame(&message, CHANNELS), complete);
        assert_eq!(next_frame(&[message, vec![9; 3]].concat(), CHANNELS), complete);
    }

    // RFC 8656 §12.5: padded to a multiple of four bytes. The length field does not include the padding.
    #[test]
    fn a_channel_data_frame_includes_its_padding() {
        assert_eq!(next_frame(&[0x40, 0, 0, 1, 7, 0, 0], CHANNELS), Frame::Partial);
        assert_eq!(next_frame(&[0x40, 0, 0, 1, 7, 0, 0, 0], CHANNELS), Frame::Complete { message: 5, length: 8 });
        assert_eq!(next_frame(&[0x4f, 0xff, 0, 0], CHANNELS), Frame::Complete { message: 4, length: 4 });
        let longest = [&[0x40, 0, 0xff, 0xff][..], &[0; 65_536]].concat();
        assert_eq!(next_frame(&longest, CHANNELS), Frame::Complete { message: 65_539, length: 65_540 });
        let longest = [&[0, 1, 0xff, 0xfc, 0x21, 0x12, 0xa4, 0x42][..], &[0; LARGEST_FRAME - 8]].concat();
        let complete = Frame::Complete { message: LARGEST_FRAME, length: LARGEST_FRAME };
        assert_eq!(next_frame(&longest, CHANNELS), complete);
    }

    #[test]
    fn written_length_is_the_length_of_the_frame() {
        let longest = [&[0x40, 0, 0xff, 0xff][..], &[0; 65_536]].concat();
        for message in [binding(), vec![0x40, 0, 0, 1, 7, 0, 0, 0], vec![0x4f, 0xff, 0, 0], longest] {
            assert_eq!(written_length(*message.first_chunk().unwrap()), message.len());
        }
    }

    #[test]
    fn invalid_frames_are_detected_early() {
        for garbage in [&b"\x16\x03\x01"[..], b"P", b"\x50", &[0, 1, 0, 3], &[0, 1, 0, 0, 1, 2, 3, 4]] {
            assert_eq!(next_frame(garbage, CHANNELS), Frame::Invalid, "{garbage:?}");
        }
        assert_eq!(next_frame(&[0x50, 0, 0, 0], ChannelNumbers::Rfc5766), Frame::Complete { message: 4, length: 4 });
    }

    proptest! {
        #[test]
        fn a_frame_is_never_longer_than_its_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Frame::Complete { message, length } = next_frame(&bytes, CHANNELS) {
                prop_assert!(message <= length && length <= bytes.len());
            }
        }
    }
}
