//! The records in a segment of a spool.
//!
//! ```text
//!  magic   sequence number   length   CRC-32 of sequence number, length and content   content
//!  4       8                 4        4                                               length
//! ```

use std::ops::Range;

/// Text has no byte 0xFF, so the content of a record of text is not taken for a header.
const MAGIC: [u8; 4] = [0xFF, b'T', b'S', 0x01];
/// The length of the header of a record.
pub(super) const HEADER: usize = 20;
/// The most bytes of a record.
pub(super) const MAX_RECORD: usize = 64 * 1024;

/// The place of the content of a record in its segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) sequence: u64,
    pub(super) content: Range<usize>,
}

/// Returns a record with its header. Its content has at most [`MAX_RECORD`] bytes.
pub(super) fn encode(sequence: u64, content: &[u8]) -> Vec<u8> {
    let sequence = sequence.to_le_bytes();
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes();
    let checksum = checksum(&sequence, &length, content).to_le_bytes();
    [&MAGIC[..], &sequence, &length, &checksum, content].concat()
}

/// Returns the readable records of a segment whose first record has the number `first`, and the end of the last one.
/// What cannot be read is skipped.
pub(super) fn scan(segment: &[u8], first: u64) -> (Vec<Found>, usize) {
    let (mut found, mut end) = (Vec::new(), 0);
    let (mut offset, mut expected) = (0, first);
    while let Some(rest) = segment.get(offset..) {
        match decode(rest) {
            Some((sequence, length)) if sequence >= expected => {
                let content = offset + HEADER..offset + HEADER + length;
                (offset, end) = (content.end, content.end);
                expected = sequence.saturating_add(1);
                found.push(Found { sequence, content });
            }
            _ => {
                let Some(next) = rest.get(1..).and_then(find_magic) else { break };
                offset += 1 + next;
            }
        }
    }
    (found, end)
}

fn find_magic(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|window| window == MAGIC)
}

/// Returns the sequence number and the length of the record at the start of `bytes`, if it is complete and undamaged.
fn decode(bytes: &[u8]) -> Option<(u64, usize)> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let bytes = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|bytes| *bytes <= MAX_RECORD)?;
    let content = rest.get(..bytes)?;
    let is_right = *magic == MAGIC && checksum(sequence, length, content) == u32::from_le_bytes(*sum);
    is_right.then_some((u64::from_le_bytes(*sequence), bytes))
}

fn checksum(sequence: &[u8], length: &[u8], content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [sequence, length, content] {
        hasher.update(part);
    }
    hasher.finalize()
}
