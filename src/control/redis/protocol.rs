//! The protocol of Redis (RESP2): commands, and the few kinds of replies to them.

use zeroize::{Zeroize as _, Zeroizing};

/// The longest value, in bytes. A key has 32 or 64 digits, and a secret is not longer than this.
const LONGEST_VALUE: usize = 4096;
/// The longest line, in bytes: that of an error.
const LONGEST_LINE: usize = 1024;
/// The most elements of an array. Its elements are not arrays, but for the reply to SCAN.
const MOST_ELEMENTS: usize = 8192;

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

/// Bytes that were received and not parsed yet. They are erased when they are removed.
#[derive(Debug, Default)]
pub(super) struct Received(Zeroizing<Vec<u8>>);

impl Received {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.0.len() + bytes.len() > self.0.capacity() {
            // Growing would leave a copy that is not erased.
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * (self.0.len() + bytes.len())));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
    }

    /// Removes and returns the first reply; `None` if it is not complete.
    pub(super) fn next(&mut self) -> Result<Option<Reply>, Malformed> {
        let mut rest = self.0.as_slice();
        let Some(reply) = parse(&mut rest, 2)? else { return Ok(None) };
        let (length, left) = (self.0.len() - rest.len(), rest.len());
        self.0.copy_within(length.., 0);
        self.0.get_mut(left..).unwrap_or_default().zeroize();
        self.0.truncate(left);
        Ok(Some(reply))
    }
}

/// Parses a reply, whose arrays are nested up to `depth` times, and moves `bytes` past it. `None` if it is not complete.
fn parse(bytes: &mut &[u8], depth: usize) -> Result<Option<Reply>, Malformed> {
    let Some(end) = bytes.iter().take(LONGEST_LINE + 2).position(|byte| *byte == b'\n') else {
        return if bytes.len() > LONGEST_LINE { Err(Malformed) } else { Ok(None) };
    };
    let (line, rest) = bytes.split_at_checked(end + 1).ok_or(Malformed)?;
    let line = line.strip_suffix(b"\r\n").ok_or(Malformed)?;
    let (kind, text) = line.split_first().ok_or(Malformed)?;
    let text = str::from_utf8(text).map_err(|_| Malformed)?;
    let number = || text.parse::<i64>().map_err(|_| Malformed);
    // -1 stands for no value.
    let length = |most: usize| match number()? {
        -1 => Ok(None),
        length => usize::try_from(length).ok().filter(|length| *length <= most).map(Some).ok_or(Malformed),
    };
    let mut rest = rest;
    let reply = match kind {
        b'+' => Reply::Status(text.to_owned()),
        b'-' => Reply::Error(text.to_owned()),
        b':' => Reply::Integer(number()?),
        b'$' => match length(LONGEST_VALUE)? {
            None => Reply::Nil,
            Some(length) => {
                let Some((value, after)) = rest.split_at_checked(length + 2) else { return Ok(None) };
                rest = after;
                Reply::Value(Zeroizing::new(value.strip_suffix(b"\r\n").ok_or(Malformed)?.to_vec()))
            }
        },
        b'*' if depth > 0 => match length(MOST_ELEMENTS)? {
            None => Reply::Nil,
            Some(length) => {
                let mut elements = Vec::new();
                for _ in 0..length {
                    let Some(element) = parse(&mut rest, depth - 1)? else { return Ok(None) };
                    elements.push(element);
                }
                Reply::Array(elements)
            }
        },
        _ => return Err(Malformed),
    };
    *bytes = rest;
    Ok(Some(reply))
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
    fn what_is_no_reply_or_too_long_is_an_error() {
        for bytes in [
            "HTTP/1.1 400 Bad Request\r\n".to_owned(),
            "\r\n".to_owned(),
            "+OK\n".to_owned(),
            "$4097\r\n".to_owned(),
            "$-2\r\n".to_owned(),
            "$x\r\n".to_owned(),
            "$1\r\nabc".to_owned(),
            "*8193\r\n".to_owned(),
            "*1\r\n*1\r\n*1\r\n".to_owned(),
            format!("+{}", "x".repeat(LONGEST_LINE + 1)),
        ] {
            let mut received = Received::default();
            received.push(bytes.as_bytes());
            assert_eq!(received.next(), Err(Malformed), "{bytes:?}");
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
