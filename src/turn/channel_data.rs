//! The ChannelData message (RFC 8656 §12.4).

use std::net::SocketAddr;
use std::ops::Range;

use super::contract::Transport;
use crate::stun::attribute::{XorPeerAddress, data_padding};
use crate::stun::{Class, MessageWriter, Method, TransactionId};

/// Length of a ChannelData header.
pub(super) const CHANNEL_HEADER: usize = 4;

/// Bytes that the shell leaves free in front of what it receives from a peer: room for a ChannelData header or for a
/// whole Data indication up to its data, with an IPv6 peer address.
///
/// ```text
///  0                                            44      48                  48+len
///  |            headroom                         | header |      payload       |  3 bytes for padding
///  | STUN header 20 | XOR-PEER-ADDRESS 12 or 24 | DATA 4 |                    |
/// ```
pub const HEADROOM: usize = 48;

/// Bytes that the shell leaves free behind the longest payload, for the padding of a Data indication.
pub const TAILROOM: usize = 3;

/// Where the payload of a ChannelData message lies, and its channel. `None` if the length field says more than there
/// is; bytes behind the payload are allowed (RFC 8656 §12.5: padding).
pub(super) fn parse(datagram: &[u8]) -> Option<(u16, Range<usize>)> {
    let ([number_high, number_low, length_high, length_low], data) = datagram.split_first_chunk::<CHANNEL_HEADER>()?;
    let length = usize::from(u16::from_be_bytes([*length_high, *length_low]));
    (length <= data.len())
        .then(|| (u16::from_be_bytes([*number_high, *number_low]), CHANNEL_HEADER..CHANNEL_HEADER + length))
}

/// Writes a ChannelData header in front of the `length` bytes at [`HEADROOM`] and says where the message lies, with the
/// padding that it has on a stream (RFC 8656 §12.5).
pub(super) fn wrap_in_channel_data(
    buffer: &mut [u8],
    length: usize,
    number: u16,
    transport: Transport,
) -> Option<Range<usize>> {
    let start = HEADROOM - CHANNEL_HEADER;
    let header = buffer.get_mut(start..HEADROOM)?.first_chunk_mut::<CHANNEL_HEADER>()?;
    let [number_high, number_low] = number.to_be_bytes();
    let [length_high, length_low] = u16::try_from(length).ok()?.to_be_bytes();
    *header = [number_high, number_low, length_high, length_low];
    let end = HEADROOM + if transport.is_stream() { length.next_multiple_of(4) } else { length };
    // What is left in the buffer behind the payload is another client's data.
    buffer.get_mut(HEADROOM + length..end)?.fill(0);
    Some(start..end)
}

/// Writes a Data indication around the `length` bytes at [`HEADROOM`] (RFC 8656 §11.3) and says where the message
/// lies. `None` if the message would be longer than its length field can say.
pub(super) fn wrap_in_data_indication(
    buffer: &mut [u8],
    length: usize,
    peer: SocketAddr,
    transaction: TransactionId,
) -> Option<Range<usize>> {
    // The writer fills forwards, so the header is made aside and put where it ends at the payload.
    let mut header = [0; HEADROOM];
    let mut writer = MessageWriter::new(&mut header, Class::Indication, Method::DATA, transaction);
    writer.push(&XorPeerAddress(peer));
    let header = writer.finish_with_data_behind(length).ok()?;

    let (start, end) = (HEADROOM - header.len(), HEADROOM + length + data_padding(length));
    buffer.get_mut(start..HEADROOM)?.copy_from_slice(header);
    // What is left in the buffer behind the payload is another client's data.
    buffer.get_mut(HEADROOM + length..end)?.fill(0);
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stun::Message;
    use crate::stun::attribute::Data;

    #[test]
    fn parse_refuses_a_length_beyond_the_datagram() {
        assert_eq!(parse(&[0x40, 0, 0, 1]), None);
        assert_eq!(parse(&[0x40, 0, 0]), None);
        assert_eq!(parse(&[0x40, 0, 0xff, 0xff, 1, 2, 3]), None);
    }

    // RFC 8656 §12.4: 0 is a valid length. §12.5: over UDP padding may be there.
    #[test]
    fn parse_takes_an_empty_payload_and_leaves_padding_out() {
        assert_eq!(parse(&[0x40, 1, 0, 0]), Some((0x4001, 4..4)));
        assert_eq!(parse(&[0x4f, 0xff, 0, 1, 9, 0, 0, 0]), Some((0x4fff, 4..5)));
    }

    proptest! {
        #[test]
        fn what_is_wrapped_is_read_back(
            payload in prop::collection::vec(any::<u8>(), 0..70),
            v6 in any::<bool>(),
            port in any::<u16>(),
        ) {
            let peer = if v6 { format!("[2001:db8::7]:{port}") } else { format!("192.0.2.7:{port}") };
            let peer: SocketAddr = peer.parse().unwrap();
            let mut buffer = vec![0xee; HEADROOM + payload.len() + TAILROOM];
            buffer[HEADROOM..HEADROOM + payload.len()].copy_from_slice(&payload);

            let range = wrap_in_data_indication(&mut buffer, payload.len(), peer, TransactionId::new([5; 12])).unwrap();
            let message = Message::parse(&buffer[range.clone()]).unwrap();
            prop_assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
            prop_assert_eq!(message.get::<XorPeerAddress>(), Ok(Some(XorPeerAddress(peer))));
            prop_assert_eq!(message.get::<Data<'_>>(), Ok(Some(Data(&payload))));
            prop_assert!(buffer[HEADROOM + payload.len()..range.end].iter().all(|byte| *byte == 0));

            let range = wrap_in_channel_data(&mut buffer, payload.len(), 0x4abc, Transport::Udp).unwrap();
            let message = &buffer[range];
            prop_assert_eq!(parse(message), Some((0x4abc, 4..4 + payload.len())));
            prop_assert_eq!(&message[4..], &payload);

            buffer[HEADROOM + payload.len()..].fill(0xee);
            let range = wrap_in_channel_data(&mut buffer, payload.len(), 0x4abc, Transport::Tcp).unwrap();
            let message = &buffer[range];
            prop_assert_eq!(message.len() % 4, 0);
            prop_assert_eq!(parse(message), Some((0x4abc, 4..4 + payload.len())));
            prop_assert!(message[4 + payload.len()..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_payload_too_long_for_the_length_field_is_refused() {
        let length = usize::from(u16::MAX);
        let mut buffer = vec![0; HEADROOM + length + TAILROOM];
        let peer = "192.0.2.7:9".parse().unwrap();
        assert_eq!(wrap_in_data_indication(&mut buffer, length, peer, TransactionId::new([0; 12])), None);
        assert!(wrap_in_channel_data(&mut buffer, length, 0x4000, Transport::Tcp).is_some());
    }
}
