//! The fields of the IP header that are relayed with a datagram.

/// The fields of the IP header that are relayed with a datagram (RFC 8656 §13; §14 for DSCP and ECN, §21.1.7 for the hop
/// limit within a family).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IpFields {
    /// DSCP (upper six bits) and ECN: the second byte of the IPv4 header, or the IPv6 Traffic Class. The default is 0.
    pub tos: u8,
    /// The IPv4 TTL or the IPv6 Hop Limit. It is at least 1 in a datagram that is sent. `None`: the default of the
    /// system, or not known.
    pub hop_limit: Option<u8>,
}

impl IpFields {
    /// Returns the fields with which a received datagram is sent on: like a router, the server lowers the hop limit by
    /// one, so that no datagram can circle for ever. Returns `None` if the hop limit has run out.
    #[must_use]
    #[inline]
    pub fn forwarded(self) -> Option<Self> {
        match self.hop_limit {
            None => Some(self),
            Some(0..=1) => None,
            Some(limit) => Some(Self { hop_limit: Some(limit - 1), ..self }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_limit_goes_down_by_one_and_ends_at_one() {
        let fields = |hop_limit| IpFields { tos: 0xb8, hop_limit };
        for (received, sent) in [(255, Some(254)), (64, Some(63)), (2, Some(1)), (1, None), (0, None)] {
            assert_eq!(fields(Some(received)).forwarded(), sent.map(|sent| fields(Some(sent))), "{received}");
        }
        assert_eq!(fields(None).forwarded(), Some(fields(None)));
    }
}
