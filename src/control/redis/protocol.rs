//! The protocol of Redis (RESP2): commands, and the few kinds of replies to them.

use zeroize::{Zeroize as _, Zeroizing};

/// The longest value, in bytes. A key has 32 or 64 digits, and a secret is not longer than this.
const LONGEST_VALUE: usize = 4096;
/// The longest line, in bytes: that of an error.
const LONGEST_LINE: usize = 1024;
/// The most elements of arrays in a reply, and the most bytes of values in them.
const MOST_ELEMENTS: usize = 8192;
const MOST_BYTES: usize = 1 << 20;
/// Elements of an array are not arrays, but for the reply to SCAN.
const DEPTH: usize = 2;

/// A reply. Values are erased on drop.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// A status, such as `OK`.
    Status(String),
    /// The text begins with a word such as `ERR` or `NOAUTH`.
    Error(String),
    Integer(i64),
    Value(Zeroizing<Vec<u8>>),
    /// There is no value.
    Nil,
    Array(Vec<Self>),
    /// A value or an array that is too long. It was received and not kept.
    TooLong,
}

/// Bytes that are no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it sent something other than replies of Redis: check the host and the port, and whether it expects TLS")]
pub(super) struct Malformed;

/// Appends a command.
pub(super) fn write_command(to: &mut Vec<u8>, words: &[&[u8]]) {
    to.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        to.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        to.extend_from_slice(word);
        to.extend_from_slice(b"\r\n");
    }
}

/// What was received of replies. Values are erased on drop, and bytes when they are removed.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// Bytes that were not parsed yet.
    bytes: Zeroizing<Vec<u8>>,
    /// How many of the next bytes belong to a value that is too long.
    skipped: usize,
    /// The arrays that are not complete, the outer one first.
    arrays: Vec<Array>,
    /// The elements of the arrays, and the bytes of their values.
    elements: usize,
    element_bytes: usize,
}

#[derive(Debug)]
struct Array {
    missing: usize,
    elements: Vec<Reply>,
    is_too_long: bool,
}

/// A part of a reply.
enum Part {
    Whole(Reply),
    /// The number of elements that follow.
    Array(usize),
    /// The bytes that follow and are not kept.
    TooLong(usize),
}

impl Received {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let (skipped, bytes) = bytes.split_at_checked(self.skipped).unwrap_or((bytes, &[]));
        self.skipped -= skipped.len();
        if self.bytes.len() + bytes.len() > self.bytes.capacity() {
            // Growing would leave a copy that is not erased.
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * (self.bytes.len() + bytes.len())));
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Removes and returns the first reply; `None` if it is not complete.
    pub(super) fn next(&mut self) -> Result<Option<Reply>, Malformed> {
        let bytes = std::mem::take(&mut self.bytes);
        let mut rest = bytes.as_slice();
        let reply = self.parse(&mut rest);
        let (length, left) = (bytes.len() - rest.len(), rest.len());
        self.bytes = bytes;
        self.bytes.copy_within(length.., 0);
        self.bytes.get_mut(left..).unwrap_or_default().zeroize();
        self.bytes.truncate(left);
        reply
    }

    /// Parses what is there of a reply, and moves `bytes` past it.
    fn parse(&mut self, bytes: &mut &[u8]) -> Result<Option<Reply>, Malformed> {
        while let Some(part) = parse(bytes)? {
            let reply = match part {
                Part::Whole(reply) => Some(reply),
                Part::Array(0) => Some(Reply::Array(Vec::new())),
                Part::Array(missing) => {
                    if self.arrays.len() >= DEPTH {
                        return Err(Malformed);
                    }
                    self.arrays.push(Array { missing, elements: Vec::new(), is_too_long: false });
                    None
                }
                Part::TooLong(length) => {
                    let here = length.min(bytes.len());
                    *bytes = bytes.get(here..).unwrap_or_default();
                    self.skipped = length - here;
                    Some(Reply::TooLong)
                }
            };
            if let Some(reply) = reply.and_then(|reply| self.complete(reply)) {
                (self.elements, self.element_bytes) = (0, 0);
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// Adds a reply to the array that it is an element of. Returns the reply that is complete by it.
    fn complete(&mut self, mut reply: Reply) -> Option<Reply> {
        while let Some(array) = self.arrays.last_mut() {
            self.elements += 1;
            self.element_bytes += if let Reply::Value(value) = &reply { value.len() } else { 0 };
            array.missing -= 1;
            if self.elements > MOST_ELEMENTS || self.element_bytes > MOST_BYTES {
                array.is_too_long = true;
            } else {
                array.elements.push(reply);
            }
            if array.missing > 0 {
                return None;
            }
            let Array { elements, is_too_long, .. } = self.arrays.pop()?;
            reply = if is_too_long { Reply::TooLong } else { Reply::Array(elements) };
        }
        Some(reply)
    }
}

/// Parses a part of a reply, and moves `bytes` past it. `None` if it is not complete.
fn parse(bytes: &mut &[u8]) -> Result<Option<Part>, Malformed> {
    let Some(end) = bytes.iter().take(LONGEST_LINE + 2).position(|byte| *byte == b'\n') else {
        return if bytes.len() > LONGEST_LINE { Err(Malformed) } else { Ok(None) };
    };
    let (line, mut rest) = bytes.split_at_checked(end + 1).ok_or(Malformed)?;
    let line = line.strip_suffix(b"\r\n").ok_or(Malformed)?;
    let (kind, text) = line.split_first().ok_or(Malformed)?;
    let text = str::from_utf8(text).map_err(|_| Malformed)?;
    let number = || text.parse::<i64>().map_err(|_| Malformed);
    // -1 stands for no value.
    let length = || match number()? {
        -1 => Ok(None),
        length => usize::try_from(length).map(Some).map_err(|_| Malformed),
    };
    let part = match kind {
        b'+' => Part::Whole(Reply::Status(text.to_owned())),
        b'-' => Part::Whole(Reply::Error(text.to_owned())),
        b':' => Part::Whole(Reply::Integer(number()?)),
        b'$' => match length()? {
            None => Part::Whole(Reply::Nil),
            Some(length) if length > LONGEST_VALUE => Part::TooLong(length.saturating_add(2)),
            Some(length) => {
                let Some((value, after)) = rest.split_at_checked(length + 2) else { return Ok(None) };
                rest = after;
                Part::Whole(Reply::Value(Zeroizing::new(value.strip_suffix(b"\r\n").ok_or(Malformed)?.to_vec())))
            }
        },
        b'*' => length()?.map_or(Part::Whole(Reply::Nil), Part::Array),
        _ => return Err(Malformed),
    };
    *bytes = rest;
    Ok(Some(part))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(text: &str) -> Reply {
        Reply::Value(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_command_states_the_length_of_each_word() {
        let mut bytes = Vec::new();
        write_command(&mut bytes, &[b"GET", "turn/realm/é".as_bytes()]);
        assert_eq!(bytes, "*2\r\n$3\r\nGET\r\n$13\r\nturn/realm/é\r\n".as_bytes());
    }

    #[test]
    fn replies_are_parsed_however_they_are_split() {
        let bytes = b"+OK\r\n-ERR no\r\n:7\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n$1\r\nx\r\n*1\r\n$0\r\n\r\n*-1\r\n";
        let expected = [
            Reply::Status("OK".to_owned()),
            Reply::Error("ERR no".to_owned()),
            Reply::Integer(7),
            value("a\r\n"),
            Reply::Nil,
            Reply::Array(vec![value("x"), Reply::Array(vec![value("")])]),
            Reply::Nil,
        ];
        for size in [1, 2, 3, 7, bytes.len()] {
            let (mut received, mut replies) = (Received::default(), Vec::new());
            for part in bytes.chunks(size) {
                received.push(part);
                while let Some(reply) = received.next().unwrap() {
                    replies.push(reply);
                }
            }
            assert_eq!(replies, expected, "{size}");
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bytes in [
            "HTTP/1.1 400 Bad Request\r\n".to_owned(),
            "\r\n".to_owned(),
            "+OK\n".to_owned(),
            "$-2\r\n".to_owned(),
            "$x\r\n".to_owned(),
            "$1\r\nabc".to_owned(),
            "*1\r\n*1\r\n*1\r\n".to_owned(),
            format!("+{}", "x".repeat(LONGEST_LINE + 1)),
        ] {
            let mut received = Received::default();
            received.push(bytes.as_bytes());
            assert_eq!(received.next(), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_skipped_and_not_kept() {
        let set = |count: usize, value: &str| {
            format!("*{count}\r\n") + &format!("${}\r\n{value}\r\n", value.len()).repeat(count)
        };
        let text = [
            format!("$5000\r\n{}\r\n+1\r\n", "x".repeat(5000)),
            format!("*2\r\n$5000\r\n{}\r\n$1\r\na\r\n", "x".repeat(5000)),
            set(9000, "a"),
            set(400, &"x".repeat(4000)),
            format!("*2\r\n$1\r\n0\r\n{}", set(9000, "a")),
            set(8192, "a"),
        ]
        .concat();
        for size in [1, 7, 4096, text.len()] {
            let (mut received, mut replies) = (Received::default(), Vec::new());
            for part in text.as_bytes().chunks(size) {
                received.push(part);
                assert!(received.bytes.len() <= size + LONGEST_VALUE + 16);
                while let Some(reply) = received.next().unwrap() {
                    replies.push(reply);
                }
            }
            let [long, status, of_two, many, large, scan, set] = replies.try_into().unwrap();
            assert_eq!([long, many, large], [Reply::TooLong, Reply::TooLong, Reply::TooLong], "{size}");
            assert_eq!(status, Reply::Status("1".to_owned()));
            assert_eq!(of_two, Reply::Array(vec![Reply::TooLong, value("a")]));
            assert_eq!(scan, Reply::TooLong);
            assert!(matches!(set, Reply::Array(values) if values.len() == 8192));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(prop::sample::select(b"+-:$*0129\r\nax".to_vec()), 0..40)) {
            let mut received = Received::default();
            received.push(&bytes);
            while let Ok(Some(_)) = received.next() {}
        }
    }
}
