//! Messages on a stream: wherever it is cut, the same messages are found.

use super::input::Input;
use crate::client::Frames;
use crate::turn::{ChannelNumbers, Frame, LARGEST_FRAME, next_frame, written_length};

/// Takes the messages of a stream in one piece, and in pieces whose lengths are in the input.
pub fn framing(data: &[u8]) {
    let mut input = Input::new(data);
    let channels = if input.flag() { ChannelNumbers::Rfc5766 } else { ChannelNumbers::Rfc8656 };
    let pieces = input.take(8);
    let stream = input.rest();
    let (mut rest, mut count) = (stream, 0);
    let end = loop {
        let frame = next_frame(rest, channels);
        // The longest frame has 64 KiB, of which the first bytes and the last ones decide.
        let (start, end) = (rest.len().min(80), rest.len().saturating_sub(8).max(80));
        for cut in (0..start).chain(end..rest.len()) {
            let found = next_frame(&rest[..cut], channels);
            match frame {
                Frame::Complete { length, .. } if cut >= length => assert_eq!(found, frame),
                Frame::Complete { .. } | Frame::Partial => assert_eq!(found, Frame::Partial),
                // An early end is not noticed before its bytes have come, and then it stays one.
                Frame::Invalid => assert!(matches!(found, Frame::Partial | Frame::Invalid)),
            }
        }
        let Frame::Complete { message, length } = frame else { break frame };
        assert!(4 <= message && message <= length && length <= rest.len() && length <= LARGEST_FRAME);
        assert_eq!(written_length(*rest.first_chunk().unwrap()), length);
        rest = &rest[length..];
        count += 1;
    };
    if end == Frame::Partial {
        assert!(rest.len() < LARGEST_FRAME, "what is kept until more comes is bounded");
    }

    let whole = client_messages(&[stream]);
    if channels == ChannelNumbers::Rfc5766 {
        // The client takes the same messages as the server.
        assert_eq!((whole.0.len(), whole.1), (count, end != Frame::Invalid));
    }
    let mut chunks = Vec::new();
    let (mut left, mut lengths) = (stream, pieces.iter().cycle());
    while !left.is_empty() {
        let length = lengths.next().map_or(1, |length| usize::from(*length).max(1)).min(left.len());
        let (chunk, following) = left.split_at(length);
        chunks.push(chunk);
        left = following;
    }
    assert_eq!(client_messages(&chunks), whole, "the messages do not depend on the pieces");
}

/// Returns the messages that a client takes from a stream that comes in these pieces, and whether all of it was framed.
fn client_messages(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, bool) {
    let (mut frames, mut messages) = (Frames::default(), Vec::new());
    for piece in pieces {
        frames.push(piece);
        loop {
            match frames.next_message() {
                Ok(Some(message)) => messages.push(message.to_vec()),
                Ok(None) => {
                    assert!(frames.rest().len() < LARGEST_FRAME, "what is kept until more comes is bounded");
                    break;
                }
                Err(_) => return (messages, false),
            }
        }
    }
    (messages, true)
}
