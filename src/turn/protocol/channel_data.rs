//! The ChannelData message (RFC 8656 §12.4).

use std::net::SocketAddr;
use std::ops::Range;

use crate::stun::attribute::{XorPeerAddress, data_padding};
use crate::stun::{Class, MessageWriter, Method, TransactionId};

/// Length of a ChannelData header.
pub(crate) const CHANNEL_HEADER: usize = 4;

/// The bytes that the shell keeps free in front of a datagram from a peer: enough for a ChannelData header, or for a
/// Data indication up to its data, with an IPv6 peer address.
///
/// ```text
///  0                                            44       48                  48+len
///  |                     headroom                        |      payload       |  3 bytes for padding
///  |                             ChannelData:   | header |
///  | STUN header 20 | XOR-PEER-ADDRESS 24       | DATA 4 |  an IPv4 peer: 12, so the message begins at 12
/// ```
pub const HEADROOM: usize = 48;

/// The bytes that the shell keeps free after the longest payload, for padding.
pub const TAILROOM: usize = 3;

/// Returns the channel number of a ChannelData message and the place of its payload. `None` if the length field exceeds
/// the datagram; bytes after the payload are allowed (RFC 8656 §12.5: padding).
pub(crate) fn parse(datagram: &[u8]) -> Option<(u16, Range<usize>)> {
    let ([number_high, number_low, length_high, length_low], data) = datagram.split_first_chunk::<CHANNEL_HEADER>()?;
    let length = usize::from(u16::from_be_bytes([*length_high, *length_low]));
    (length <= data.len())
        .then(|| (u16::from_be_bytes([*number_high, *number_low]), CHANNEL_HEADER..CHANNEL_HEADER + length))
}

/// The form in which data of a peer is sent to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// ChannelData on this channel (RFC 8656 §12.4).
    Channel {
        /// The channel that is bound to the peer.
        number: u16,
        /// On a stream it is padded to a multiple of four bytes (RFC 8656 §12.5).
        padded: bool,
    },
    /// A Data indication that names this peer (RFC 8656 §11.3).
    Indication(SocketAddr),
}

impl Framing {
    /// Writes the header of `length` bytes of data to the end of `headroom`. Returns the length of the header; `None`
    /// if `length` does not fit into the length field.
    #[must_use]
    pub(crate) fn write_header(
        &self,
        length: usize,
        rng: &mut dyn rand::CryptoRng,
        headroom: &mut [u8; HEADROOM],
    ) -> Option<usize> {
        match self {
            Self::Channel { number, .. } => {
                let [number_high, number_low] = number.to_be_bytes();
                let [length_high, length_low] = u16::try_from(length).ok()?.to_be_bytes();
                *headroom.last_chunk_mut()? = [number_high, number_low, length_high, length_low];
                Some(CHANNEL_HEADER)
            }
            Self::Indication(peer) => {
                let mut transaction = [0; 12];
                rng.fill_bytes(&mut transaction);
                // The writer fills a buffer from its start. The header has to end at the payload, so it is copied.
                let mut header = [0; HEADROOM];
                let transaction = TransactionId::new(transaction);
                let mut writer = MessageWriter::new(&mut header, Class::Indication, Method::DATA, transaction);
                writer.push(&XorPeerAddress(*peer));
                let header = writer.finish_with_data_header(length).ok()?;
                headroom.get_mut(HEADROOM - header.len()..)?.copy_from_slice(header);
                Some(header.len())
            }
        }
    }

    /// Returns the number of zero bytes after `length` bytes of data, at most [`TAILROOM`].
    #[must_use]
    pub(crate) fn padding(&self, length: usize) -> usize {
        match self {
            Self::Channel { padded: false, .. } => 0,
            Self::Channel { padded: true, .. } => length.next_multiple_of(4) - length,
            Self::Indication(_) => data_padding(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::stun::Message;
    use crate::stun::attribute::Data;

    /// Writes the header and the padding around the `length` bytes at [`HEADROOM`] of a buffer, as a shell does.
    fn wrap(framing: Framing, buffer: &mut [u8], length: usize, rng: &mut StdRng) -> Option<Range<usize>> {
        let header = framing.write_header(length, rng, buffer.first_chunk_mut()?)?;
        let end = HEADROOM + length + framing.padding(length);
        buffer[HEADROOM + length..end].fill(0);
        Some(HEADROOM - header..end)
    }

    fn channel(padded: bool) -> Framing {
        Framing::Channel { number: 0x4abc, padded }
    }

    #[test]
    fn parse_fails_if_the_length_exceeds_the_datagram() {
        assert_eq!(parse(&[0x40, 0, 0, 1]), None);
        assert_eq!(parse(&[0x40, 0, 0]), None);
        assert_eq!(parse(&[0x40, 0, 0xff, 0xff, 1, 2, 3]), None);
    }

    // RFC 8656 §12.4: 0 is a valid length. §12.5: over UDP there may be padding.
    #[test]
    fn parse_accepts_an_empty_payload_and_excludes_padding() {
        assert_eq!(parse(&[0x40, 1, 0, 0]), Some((0x4001, 4..4)));
        assert_eq!(parse(&[0x4f, 0xff, 0, 1, 9, 0, 0, 0]), Some((0x4fff, 4..5)));
    }

    proptest! {
        #[test]
        fn written_messages_are_parsed_to_the_same_content(
            payload in prop::collection::vec(any::<u8>(), 0..70),
            v6 in any::<bool>(),
            port in any::<u16>(),
        ) {
            let peer = if v6 { format!("[2001:db8::7]:{port}") } else { format!("192.0.2.7:{port}") };
            let peer: SocketAddr = peer.parse().unwrap();
            let mut buffer = vec![0xee; HEADROOM + payload.len() + TAILROOM];
            buffer[HEADROOM..HEADROOM + payload.len()].copy_from_slice(&payload);

            let mut rng = StdRng::seed_from_u64(5);
            let range = wrap(Framing::Indication(peer), &mut buffer, payload.len(), &mut rng).unwrap();
            let message = Message::parse(&buffer[range.clone()]).unwrap();
            prop_assert_eq!((message.class(), message.method()), (Class::Indication, Method::DATA));
            prop_assert_eq!(message.get::<XorPeerAddress>(), Ok(Some(XorPeerAddress(peer))));
            prop_assert_eq!(message.get::<Data<'_>>(), Ok(Some(Data(&payload))));
            prop_assert!(buffer[HEADROOM + payload.len()..range.end].iter().all(|byte| *byte == 0));

            let range = wrap(channel(false), &mut buffer, payload.len(), &mut rng).unwrap();
            let message = &buffer[range];
            prop_assert_eq!(parse(message), Some((0x4abc, 4..4 + payload.len())));
            prop_assert_eq!(&message[4..], &payload);

            buffer[HEADROOM + payload.len()..].fill(0xee);
            let range = wrap(channel(true), &mut buffer, payload.len(), &mut rng).unwrap();
            let message = &buffer[range];
            prop_assert_eq!(message.len() % 4, 0);
            prop_assert_eq!(parse(message), Some((0x4abc, 4..4 + payload.len())));
            prop_assert!(message[4 + payload.len()..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_payload_too_long_for_the_length_field_gets_no_header() {
        let length = usize::from(u16::MAX);
        let mut buffer = vec![0; HEADROOM + length + TAILROOM];
        let peer = "192.0.2.7:9".parse().unwrap();
        let mut rng = StdRng::seed_from_u64(5);
        assert_eq!(wrap(Framing::Indication(peer), &mut buffer, length, &mut rng), None);
        assert!(wrap(channel(true), &mut buffer, length, &mut rng).is_some());
    }
}
