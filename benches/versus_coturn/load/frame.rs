//! Messages with payloads: creating them, and finding the payload in received ones.

use std::net::SocketAddr;
use std::ops::Range;

use turnserver::stun::attribute::{Data, XorPeerAddress};
use turnserver::stun::{Class, Message, MessageWriter, Method, TransactionId};

use super::Outcome;
use super::stamp::Stamp;

const CHANNEL_HEADER: usize = 4;

/// A message with an unstamped payload, which is copied and stamped for each packet.
pub(crate) struct Template {
    bytes: Vec<u8>,
    payload: Range<usize>,
}

impl Template {
    /// Creates a bare payload, as peers send it.
    pub(crate) fn bare(payload: usize) -> Self {
        let bytes = Stamp::blank(payload);
        Self { payload: 0..bytes.len(), bytes }
    }

    /// Creates a ChannelData message (RFC 8656 §12.4), with padding in a stream (§12.5).
    pub(crate) fn channel(number: u16, payload: usize, stream: bool) -> Outcome<Self> {
        let mut bytes = number.to_be_bytes().to_vec();
        bytes.extend(u16::try_from(payload)?.to_be_bytes());
        bytes.extend(Stamp::blank(payload));
        let payload = CHANNEL_HEADER..bytes.len();
        if stream {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Ok(Self { bytes, payload })
    }

    /// Creates a Send indication (RFC 8656 §11.1).
    pub(crate) fn indication(peer: SocketAddr, payload: usize) -> Outcome<Self> {
        let (mut buffer, id) = (vec![0; payload + 100], TransactionId::new([0x5e; 12]));
        let mut writer = MessageWriter::new(&mut buffer, Class::Indication, Method::SEND, id);
        writer.push(&XorPeerAddress(peer));
        writer.push(&Data(&Stamp::blank(payload)));
        let bytes = writer.finish()?.to_vec();
        let payload = Message::parse(&bytes)?.data_range().ok_or("the indication has no data")?;
        Ok(Self { bytes, payload })
    }

    /// Returns the length of the message in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the message with this stamp to `buffer`.
    pub(crate) fn append(&self, stamp: &Stamp, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        buffer.extend_from_slice(&self.bytes);
        if let Some(payload) = buffer.get_mut(start..).and_then(|message| message.get_mut(self.payload.clone())) {
            stamp.write(payload);
        }
    }
}

/// Returns the payload of a ChannelData message or a Data indication.
pub(crate) fn payload_of(message: &[u8]) -> Option<&[u8]> {
    let first = *message.first()?;
    if (0x40..0x50).contains(&first) {
        let (header, data) = message.split_first_chunk::<CHANNEL_HEADER>()?;
        let [_, _, high, low] = *header;
        return data.get(..usize::from(u16::from_be_bytes([high, low])));
    }
    let message = Message::parse(message).ok()?;
    let is_data = message.class() == Class::Indication && message.method() == Method::DATA;
    if is_data { message.get::<Data<'_>>().ok().flatten().map(|data| data.0) } else { None }
}

/// Returns the payload of a message that was forwarded, and so has the form in which it was sent: ChannelData of a client
/// or the bare payload of a peer.
pub(crate) fn forwarded_payload(message: &[u8]) -> &[u8] {
    // The first byte of a stamp is neither that of ChannelData nor that of a STUN message.
    payload_of(message).unwrap_or(message)
}

/// Returns the length in a stream of the message at the start of `bytes`. `None` if more bytes are needed.
pub(crate) fn length_in_stream(bytes: &[u8]) -> Option<usize> {
    let [first, _, high, low] = *bytes.first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    Some(if first < 4 { turnserver::stun::HEADER_LEN + length } else { (4 + length).next_multiple_of(4) })
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { flow: 3, sequence: 4, sent: 5 };

    fn message(template: &Template) -> Vec<u8> {
        let mut buffer = b"before".to_vec();
        template.append(&STAMP, &mut buffer);
        assert_eq!(buffer.len(), 6 + template.len());
        buffer.split_off(6)
    }

    // RFC 8656 §12.5: in a stream, padding is part of the message but not of the payload.
    #[test]
    fn the_payload_of_channel_data_is_found() {
        for (payload, stream, whole) in
            [(1000, false, 1004), (1001, false, 1005), (1001, true, 1008), (1200, true, 1204)]
        {
            let message = message(&Template::channel(0x4001, payload, stream).unwrap());
            assert_eq!(message.len(), whole);
            let found = payload_of(&message).unwrap();
            assert_eq!((found.len(), Stamp::read(found)), (payload, Some(STAMP)));
            if stream {
                assert_eq!(length_in_stream(&message), Some(whole));
            }
        }
    }

    #[test]
    fn a_send_indication_carries_the_payload() {
        let peer = "192.0.2.1:9".parse().unwrap();
        let bytes = message(&Template::indication(peer, 1000).unwrap());
        assert_eq!(length_in_stream(&bytes), Some(bytes.len()));
        // Only a Data indication has a payload for a client.
        assert_eq!(payload_of(&bytes), None);
        let parsed = Message::parse(&bytes).unwrap();
        assert_eq!(Stamp::read(parsed.get::<Data<'_>>().unwrap().unwrap().0), Some(STAMP));
        assert_eq!(parsed.get(), Ok(Some(XorPeerAddress(peer))));
    }

    #[test]
    fn a_peer_sends_the_payload_alone() {
        assert_eq!(Stamp::read(&message(&Template::bare(1000))), Some(STAMP));
    }

    #[test]
    fn a_forwarded_message_is_as_it_was_sent() {
        for template in [Template::channel(0x4001, 1000, false).unwrap(), Template::bare(1000)] {
            assert_eq!(Stamp::read(forwarded_payload(&message(&template))), Some(STAMP));
        }
    }

    #[test]
    fn an_incomplete_header_has_no_length() {
        assert_eq!(length_in_stream(&[0x40, 1, 0]), None);
        assert_eq!(payload_of(&[0x40, 1, 0, 9, 1]), None);
        assert_eq!(payload_of(&[]), None);
    }
}
