//! The messages on a TCP or TLS connection (RFC 8489 §6.2.2, RFC 8656 §12.5).

use crate::turn::{ChannelNumbers, Frame, next_frame};

/// The received bytes of a connection, from which messages are taken.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// The messages before it have been taken.
    start: usize,
}

/// The connection contains something else than STUN messages and ChannelData.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sent something that is neither a STUN message nor ChannelData")]
pub struct NotFramed;

impl Frames {
    /// Appends received bytes.
    pub fn push(&mut self, received: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.start));
        self.bytes.extend_from_slice(received);
    }

    /// Returns the next message without its padding. `None` if it is not complete.
    ///
    /// # Errors
    /// If there is no message. Then no further one can be found.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, NotFramed> {
        match next_frame(self.rest(), ChannelNumbers::Rfc5766) {
            Frame::Complete { message, length } => {
                let begin = self.start;
                self.start += length;
                Ok(self.bytes.get(begin..begin + message))
            }
            Frame::Partial => Ok(None),
            Frame::Invalid => Err(NotFramed),
        }
    }

    /// Returns the bytes of a message that is not complete. The text of another protocol can look like the beginning of
    /// ChannelData.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_whatever_parts_they_come_in() {
        let stream = [0x40, 0, 0, 1, 7, 0, 0, 0, 0x40, 1, 0, 4, 1, 2, 3, 4];
        for part in 1..=stream.len() {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for received in stream.chunks(part) {
                frames.push(received);
                while let Some(message) = frames.next_message().unwrap() {
                    found.push(message.to_vec());
                }
            }
            assert_eq!(found, [vec![0x40, 0, 0, 1, 7], vec![0x40, 1, 0, 4, 1, 2, 3, 4]], "{part}");
        }
    }

    #[test]
    fn what_is_not_turn_is_an_error() {
        let mut frames = Frames::default();
        frames.push(&[0x16, 3, 3, 0, 2]);
        assert_eq!(frames.next_message(), Err(NotFramed));
        let mut text = Frames::default();
        text.push(b"HTTP/1.1 400 Bad Request\r\n");
        assert_eq!(text.next_message(), Ok(None), "a long message on channel 0x4854");
        assert!(text.rest().starts_with(b"HTTP/"));
    }
}
