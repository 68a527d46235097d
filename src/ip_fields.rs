//! The fields of the IP header that are relayed with a datagram.

use std::num::NonZeroU8;

/// The fields of the IP header that are relayed with a datagram (RFC 8656 §13, §14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IpFields {
    /// DSCP (upper six bits) and ECN: the second byte of the IPv4 header, or the IPv6 Traffic Class. The default is 0.
    pub tos: u8,
    /// The IPv4 TTL or the IPv6 Hop Limit. `None` is the default of the system.
    pub hop_limit: Option<NonZeroU8>,
}

impl IpFields {
    /// Returns the fields with which a received datagram is sent on: like a router, the server lowers the hop limit by
    /// one, so that no datagram can circle for ever. Returns `None` if the hop limit has run out.
    #[must_use]
    #[inline]
    pub fn forwarded(self) -> Option<Self> {
        match self.hop_limit {
            None => Some(self),
            Some(limit) => NonZeroU8::new(limit.get() - 1).map(|limit| Self { hop_limit: Some(limit), ..self }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_limit_goes_down_by_one_and_ends_at_one() {
        let fields = |limit| IpFields { tos: 0xb8, hop_limit: NonZeroU8::new(limit) };
        for (received, sent) in [(255, Some(254)), (64, Some(63)), (2, Some(1)), (1, None)] {
            assert_eq!(fields(received).forwarded(), sent.map(fields), "{received}");
        }
        // Not known.
        assert_eq!(fields(0).forwarded(), Some(fields(0)));
    }
}
