//! Recognizes TURN messages in relayed data.
//!
//! A client that relays TURN messages to another server makes allocations whose client is a relayed transport address.
//! Two such allocations can be each other's client, and a packet then circles between them for ever. Therefore TURN
//! messages are not relayed. Applications do not send them: between peers, ICE uses Binding only (RFC 8445 §7).

use crate::stun::MAGIC_COOKIE;

/// The bits of the class in a message type (RFC 8489 §5).
const CLASS: u16 = 0x0110;

/// Whether application data is a STUN message with a method of TURN, in any class: those of RFC 8656 §17, and Connect,
/// ConnectionBind and ConnectionAttempt (RFC 6062 §6.1).
#[inline]
pub(crate) fn is_turn_message(data: &[u8]) -> bool {
    let Some([high, low, _, _, cookie @ ..]) = data.first_chunk::<8>() else { return false };
    // The first byte rules out almost all data.
    *high <= 3
        && *cookie == MAGIC_COOKIE.to_be_bytes()
        && matches!(u16::from_be_bytes([*high, *low]) & !CLASS, 0x003 | 0x004 | 0x006..=0x00c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::{Class, MessageWriter, Method, TransactionId};

    fn message(class: Class, method: Method) -> Vec<u8> {
        let mut buffer = [0; 32];
        let writer = MessageWriter::new(&mut buffer, class, method, TransactionId::new([7; 12]));
        writer.finish().unwrap().to_vec()
    }

    #[test]
    fn every_method_of_turn_is_recognized_in_every_class_and_binding_is_not() {
        let turn = [
            Method::ALLOCATE,
            Method::REFRESH,
            Method::SEND,
            Method::DATA,
            Method::CREATE_PERMISSION,
            Method::CHANNEL_BIND,
        ];
        for class in [Class::Request, Class::Indication, Class::Success, Class::Error] {
            for method in turn {
                assert!(is_turn_message(&message(class, method)), "{class:?} {method:?}");
            }
            assert!(!is_turn_message(&message(class, Method::BINDING)), "{class:?}");
        }
        // RFC 6062: Connect, ConnectionBind and ConnectionAttempt.
        for low in [0x0a, 0x0b, 0x0c, 0x1c] {
            assert!(is_turn_message(&[0, low, 0, 0, 0x21, 0x12, 0xa4, 0x42]));
        }
    }

    #[test]
    fn other_data_is_not_a_turn_message() {
        let allocate = message(Class::Request, Method::ALLOCATE);
        for length in 0..8 {
            assert!(!is_turn_message(&allocate[..length]));
        }
        for at in 4..8 {
            let mut other = allocate.clone();
            other[at] ^= 1;
            assert!(!is_turn_message(&other));
        }
        // RFC 7983: DTLS, RTP and ChannelData begin with other bytes.
        for first in [4, 20, 64, 128, 255] {
            let mut other = allocate.clone();
            other[0] = first;
            assert!(!is_turn_message(&other));
        }
        // RFC 5780, and the pings of Chromium.
        for kind in [[0x00, 0x05], [0x02, 0x00], [0x03, 0x00], [0x00, 0x0d]] {
            assert!(!is_turn_message(&[kind[0], kind[1], 0, 0, 0x21, 0x12, 0xa4, 0x42]));
        }
    }
}
