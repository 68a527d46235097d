//! The channel numbers that a server accepts (RFC 8656 §12).

use std::ops::RangeInclusive;

/// The range of channel numbers, for demultiplexing, framing and ChannelBind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelNumbers {
    /// 0x4000–0x4FFF (RFC 8656 §12).
    #[default]
    Rfc8656,
    /// 0x4000–0x7FFF, as in RFC 5766 §11. Some clients still use such numbers.
    Rfc5766,
}

impl ChannelNumbers {
    /// Returns the range.
    #[must_use]
    pub const fn range(self) -> RangeInclusive<u16> {
        match self {
            Self::Rfc8656 => 0x4000..=0x4fff,
            Self::Rfc5766 => 0x4000..=0x7fff,
        }
    }

    /// Whether a channel may have this number.
    #[must_use]
    pub fn contains(self, number: u16) -> bool {
        self.range().contains(&number)
    }

    /// Whether a ChannelData message may begin with this byte (RFC 8656 §12, Table 3).
    #[must_use]
    pub fn contains_first_byte(self, byte: u8) -> bool {
        let [first, _] = self.range().start().to_be_bytes();
        let [last, _] = self.range().end().to_be_bytes();
        (first..=last).contains(&byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8656 §12, Table 3; RFC 5766 §11.
    #[test]
    fn the_first_byte_determines_the_range() {
        for number in 0..=u16::MAX {
            let [byte, _] = number.to_be_bytes();
            for numbers in [ChannelNumbers::Rfc8656, ChannelNumbers::Rfc5766] {
                assert_eq!(numbers.contains(number), numbers.contains_first_byte(byte), "{number:#x}");
            }
        }
        assert!(ChannelNumbers::Rfc8656.contains(0x4fff) && !ChannelNumbers::Rfc8656.contains(0x5000));
        assert!(ChannelNumbers::Rfc5766.contains(0x7fff) && !ChannelNumbers::Rfc5766.contains(0x8000));
    }
}
