//! The stamp of a payload: flow, sequence number, time and checksum.

/// The length of the shortest payload that has room for a stamp, in bytes.
pub(crate) const SHORTEST: usize = 32;

/// The sequence number of the packets that establish a flow's path before the load starts.
pub(crate) const PRIMER: u64 = u64::MAX;

const MAGIC: u32 = 0x7475_726e;

/// The head of a payload. The tail is a checksum of the head and the length, which detects truncated or mixed payloads.
///
/// ```text
///  0       4      8           16       24             len-8      len
///  | magic | flow | sequence  | sent    | 0x5a, 0x5a … | checksum |
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    pub(crate) flow: u32,
    pub(crate) sequence: u64,
    /// Sending time, in nanoseconds since the Unix epoch.
    pub(crate) sent: u64,
}

impl Stamp {
    /// Returns an unstamped payload of `length` bytes, but at least [`SHORTEST`].
    pub(crate) fn blank(length: usize) -> Vec<u8> {
        vec![0x5a; length.max(SHORTEST)]
    }

    /// Stamps a payload, unless it is too short.
    pub(crate) fn write(&self, payload: &mut [u8]) {
        let whole = payload.len();
        let Some((head, rest)) = payload.split_first_chunk_mut::<24>() else { return };
        let Some(tail) = rest.last_chunk_mut::<8>() else { return };
        let fields = [u64::from(MAGIC) << 32 | u64::from(self.flow), self.sequence, self.sent];
        for (place, field) in head.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_be_bytes());
        }
        *tail = self.checksum(whole).to_be_bytes();
    }

    /// Reads the stamp of a payload. `None` if there is none or the payload is damaged.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let (head, rest) = payload.split_first_chunk::<24>()?;
        let mut fields = head.as_chunks::<8>().0.iter().map(|field| u64::from_be_bytes(*field));
        let (first, sequence, sent) = (fields.next()?, fields.next()?, fields.next()?);
        let stamp = Self { flow: u32::try_from(first & u64::from(u32::MAX)).ok()?, sequence, sent };
        let whole = first >> 32 == u64::from(MAGIC)
            && u64::from_be_bytes(*rest.last_chunk::<8>()?) == stamp.checksum(payload.len());
        whole.then_some(stamp)
    }

    fn checksum(&self, length: usize) -> u64 {
        let mixed = self.sequence.rotate_left(17) ^ self.sent.rotate_left(41) ^ u64::from(self.flow);
        (mixed ^ length as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "a benchmark is built with cfg(test), but without its tests")]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { flow: 49, sequence: 7_000_000_001, sent: 1_790_000_000_123_456_789 };

    fn stamped(length: usize) -> Vec<u8> {
        let mut payload = Stamp::blank(length);
        STAMP.write(&mut payload);
        payload
    }

    #[test]
    fn a_stamp_is_read_back() {
        for length in [SHORTEST, 33, 1000, 1200] {
            assert_eq!(stamped(length).len(), length);
            assert_eq!(Stamp::read(&stamped(length)), Some(STAMP));
        }
    }

    #[test]
    fn a_damaged_payload_is_detected() {
        let (payload, mut other) = (stamped(1000), stamped(1000));
        assert_eq!(Stamp::read(&payload[..999]), None);
        assert_eq!(Stamp::read(&payload[1..]), None);
        assert_eq!(Stamp::read(&[payload.as_slice(), &[0]].concat()), None);
        // The head of one payload with the tail of another.
        Stamp { sequence: 5, ..STAMP }.write(&mut other);
        assert_eq!(Stamp::read(&[&payload[..500], &other[500..]].concat()), None);
        // The middle is missing.
        assert_eq!(Stamp::read(&[&payload[..492], &payload[992..]].concat()), None);
    }

    #[test]
    fn other_bytes_are_not_a_stamp() {
        assert_eq!(Stamp::read(&[]), None);
        assert_eq!(Stamp::read(&[0; 1000]), None);
        assert_eq!(Stamp::read(&Stamp::blank(1000)), None);
    }

    #[test]
    fn a_payload_too_short_for_a_stamp_is_unchanged() {
        let mut short = vec![1; SHORTEST - 1];
        STAMP.write(&mut short);
        assert_eq!(short, vec![1; SHORTEST - 1]);
    }
}
